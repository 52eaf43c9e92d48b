"""What a method says: steps on the way, an explanation at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

import numpy as np

from .volume import Volume


@dataclass(frozen=True)
class Patch:
    """A box of a volume's grid: what has changed, nothing else.

    ``array`` has shape (k, j, i); ``start`` is its first voxel (k, j, i) in the grid it belongs to.
    """

    array: np.ndarray
    start: tuple[int, int, int]

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Index of the patch in the array of its grid."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.array.shape))


@dataclass(frozen=True)
class Point:
    """New values of a curve or table at one step: ``values`` maps column to number (NaN where undefined)."""

    curve: str
    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class Step:
    """One step of a method.

    Parameters
    ----------
    fraction : float
        Share of the work done, 0 to 1.
    stage : str
        What is being done, a few words for a person.
    points : tuple of Point
        Curve values that became known in this step, not only this step's own.
    previews : callable or None
        Called without arguments, gives the maps as they are *at this step*, by name: a `Volume` (whole grid; always the first
        time) or a `Patch` of the grid of the first volume. Not calling it costs nothing.
    message : str
        A line for the log; may be empty.
    """

    fraction: float
    stage: str
    points: tuple[Point, ...] = ()
    previews: Callable[[], dict[str, Volume | Patch]] | None = None
    message: str = ""


@dataclass(frozen=True)
class Layer:
    """A named map of an explanation, with what a viewer needs to show it.

    Parameters
    ----------
    volume : Volume
        On the grid of the first input volume.
    kind : str
        ``image`` (same kind as the input: shown with the input's window), ``signed`` (0 = nothing, both signs count),
        ``positive`` (0 = nothing) or ``probability`` (0 to 1).
    title : str
        For legends, with the unit in brackets where there is one.
    low, high : float or None
        Display range; None: taken from the input (``image``) or from the data.
    least : float or None
        What is below it is shown as nothing (``positive``, ``probability``); None: what is next to nothing in the display range.
    """

    volume: Volume
    kind: str = "image"
    title: str = ""
    low: float | None = None
    high: float | None = None
    least: float | None = None


@dataclass(frozen=True)
class Curve:
    """Numbers over steps (or layers…): one column ``index`` and one column per series, NaN where undefined.

    ``bands`` maps a title to (low, high), a shaded or outlined reference range; ``units`` maps column to unit; ``dots`` are columns drawn as
    points without a line; ``limits`` is the range of the value axis, where it is not taken from the values.
    """

    title: str
    index: str
    columns: dict[str, np.ndarray]
    index_title: str = ""
    value_title: str = ""
    bands: dict[str, tuple[float, float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    shown: tuple[str, ...] = ()  # the series a chart shows first; all when empty
    dots: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Table:
    """A table: ``columns`` maps title to a list of equal length (numbers or text)."""

    title: str
    columns: dict[str, list]


@dataclass(frozen=True)
class Sequence:
    """A map at several steps: ``items`` are (step, Volume) on one lattice, kept steps only.

    ``kind`` as in `Layer`, or ``mask`` (uint8). ``thinned`` is the number of steps that were left out for the byte budget. ``names`` are
    file names, one per item, of items that a person looks up by name (layers, units): they are chosen, not played.
    """

    title: str
    items: list[tuple[int, Volume]]
    kind: str = "image"
    index: str = "step"
    thinned: int = 0
    names: tuple[str, ...] = ()


@dataclass
class Explanation:
    """What a method returns: named maps, masks, curves, tables and numbers, with where they come from.

    The keys of ``maps``, ``masks``, ``curves``, ``tables`` and ``sequences`` are file names without ending (`dream`,
    `mask`, `curves`, `verdicts`, `steps`). Masks are `Volume`s of uint8 on the input's grid.

    ``self_checks`` maps a name to ``{"value": number, "passed": bool or None, "meaning": one sentence}``: how far to
    trust the maps. ``notes`` are sentences a reader must see (what was left out and why). ``provenance`` holds method,
    settings, model name and SHA-256, versions, device and seconds.
    """

    method: str
    title: str
    maps: dict[str, Layer] = field(default_factory=dict)
    masks: dict[str, Volume] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    sequences: dict[str, Sequence] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    self_checks: dict[str, dict] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    provenance: dict = field(default_factory=dict)


Steps = Generator[Step, None, Explanation]


def run(steps: Steps, each: Callable[[Step], None] | None = None) -> Explanation:
    """Drive a method to its end and return its explanation; ``each`` sees every step.

    An exception in ``each`` (or an interrupt) closes the generator, whose ``finally`` puts the model back.
    """
    try:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            if each is not None:
                each(step)
    finally:
        steps.close()


def part(
    steps: Generator[Step, None, object], start: float, stop: float, stage: str = ""
) -> Generator[Step, None, object]:
    """The steps of one part of a longer work, their fraction between ``start`` and ``stop``; ends with what it returns.

    With ``stage`` a step tells that alone: no points, no previews.
    """
    with contextlib.closing(steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            fraction = start + (stop - start) * step.fraction
            yield Step(fraction, stage) if stage else replace(step, fraction=fraction)
