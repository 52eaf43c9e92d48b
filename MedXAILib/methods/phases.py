"""Parts of a method as steps of the whole."""

from __future__ import annotations

from ..explanation import Step


def during(steps, start: float, stop: float):
    """Steps of (share, stage) as steps of the method between two fractions; ends with what they return."""
    while True:
        try:
            share, stage = next(steps)
        except StopIteration as end:
            return end.value
        yield Step(start + (stop - start) * share, stage)
