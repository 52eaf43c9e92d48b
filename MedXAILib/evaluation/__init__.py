"""How good explanations and networks are: cohorts, statistics."""

from ..resume import resumable
from .cohort import cohort
from .page import picture

__all__ = ["cohort", "picture", "resumable"]
