"""MedXAI: why a medical-imaging network answers as it does."""

__version__ = "0.1.0"
