"""What must be trained."""
