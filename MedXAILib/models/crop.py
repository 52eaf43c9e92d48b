"""Boxes of a network's grid: what an output voxel can see, what a change can reach, and tiles that are exact."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """The voxels [start, stop) of a grid, one number per spatial axis."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.start, self.stop))

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    @property
    def index(self) -> tuple:
        """Index of the box in a tensor (N, C, *spatial)."""
        return (..., *(slice(a, b) for a, b in zip(self.start, self.stop)))

    def within(self, outer: Box) -> Box:
        """This box in the coordinates of a box that holds it."""
        return Box(
            tuple(a - o for a, o in zip(self.start, outer.start)), tuple(b - o for b, o in zip(self.stop, outer.start))
        )

    def grown(self, below, above, shape) -> Box:
        """Grown by ``below`` and ``above`` voxels per axis, clipped to a grid of ``shape``."""
        return Box(
            tuple(max(0, a - n) for a, n in zip(self.start, below)),
            tuple(min(size, b + n) for b, n, size in zip(self.stop, above, shape)),
        )

    def common(self, other: Box) -> Box:
        """The voxels of both."""
        return Box(tuple(map(max, zip(self.start, other.start))), tuple(map(min, zip(self.stop, other.stop))))


def whole(shape) -> Box:
    return Box((0,) * len(shape), tuple(shape))


@dataclass(frozen=True)
class Neighbourhood:
    """The boxes around one output voxel, derived from the receptive field (radius r per axis and side).

    ``gradient``: where the gradient of the voxel's logit can be non-zero (r). ``reach``: outputs that a change there can alter (2r).
    ``gradient_input`` and ``reach_input``: what must be fed to compute them exactly, on the grid of the total stride (r and 3r).
    """

    gradient: Box
    reach: Box
    gradient_input: Box
    reach_input: Box


def around(point, field, shape, multiple=1) -> Neighbourhood:
    """The boxes around output voxel ``point`` of a grid of ``shape``; the whole grid where ``field`` is not exact.

    Parameters
    ----------
    point : tuple of int
        Index on the network's grid.
    field : ReceptiveField
        From ``Model.receptive_field``.
    shape : tuple of int
        The network's grid.
    multiple : int or sequence of int
        Sizes the network takes (``multiple_of`` of the package).
    """
    if not field.exact:
        return Neighbourhood(*[whole(shape)] * 4)
    below, above = [r[0] for r in field.radius], [r[1] for r in field.radius]
    voxel = Box(tuple(point), tuple(p + 1 for p in point))
    gradient = voxel.grown(below, above, shape)
    reach = gradient.grown(above, below, shape)  # an output sees `below` downwards, so a change reaches `below` upwards
    return Neighbourhood(
        gradient,
        reach,
        aligned(gradient, field.stride, shape, multiple),
        aligned(reach.grown(below, above, shape), field.stride, shape, multiple),
    )


def aligned(box: Box, stride, shape, multiple=1) -> Box:
    """The smallest box around ``box`` whose origin and size are multiples of the stride (or that ends at the border)."""
    multiple = (multiple,) * len(shape) if isinstance(multiple, int) else multiple
    steps = [math.lcm(s, m) for s, m in zip(stride, multiple)]
    return Box(
        tuple(a // s * s for a, s in zip(box.start, steps)),
        tuple(min(n, -(-b // s) * s) for b, s, n in zip(box.stop, steps, shape)),
    )


def tiles(field, shape, size: int, multiple=1) -> Iterator[tuple[Box, Box]]:
    """Cut a grid into output boxes of at most ``size`` voxels per axis, each with the input that makes it exact.

    Yields
    ------
    output, input : Box
        The outputs to keep, and what to feed.
    """
    below, above = [r[0] for r in field.radius], [r[1] for r in field.radius]
    counts = [-(-n // size) for n in shape]
    for flat in range(math.prod(counts)):
        start = []
        for n in reversed(counts):
            start.insert(0, flat % n * size)
            flat //= n
        out = Box(tuple(start), tuple(min(n, a + size) for a, n in zip(start, shape)))
        yield out, aligned(out.grown(below, above, shape), field.stride, shape, multiple)
