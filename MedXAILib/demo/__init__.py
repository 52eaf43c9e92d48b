"""Phantoms and the demonstration."""
