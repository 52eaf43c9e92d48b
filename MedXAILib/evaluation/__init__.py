"""How good explanations and networks are: cohorts, statistics."""

from .cohort import cohort
from .page import picture
from .resume import resumable

__all__ = ["cohort", "picture", "resumable"]
