"""Random holes to train an inpainter on: blocks, single ones and clusters of them (Major et al. 2020, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .settings import InpainterSettings


def random_holes(shape: Sequence[int], settings: InpainterSettings, rng: np.random.Generator) -> np.ndarray:
    """Holes of one image.

    Parameters
    ----------
    shape : sequence of int
        Spatial shape, 2-D or 3-D.
    settings : InpainterSettings
        ``holes``, ``hole_size``, ``clusters``, ``cluster_size``, ``largest``.
    rng : Generator

    Returns
    -------
    ndarray of bool, ``shape``
        True in holes; at least one block, never more than the share ``largest``.

    Notes
    -----
    The number of blocks is drawn from 1 to ``holes``, in small images to as many as fill the share ``largest`` were none to overlap; where one
    block alone exceeds that, its edge is shortened. A cluster grows to a drawn size by blocks that each lie beside an earlier one: any of
    them, which makes it compact, or mostly the last one, which makes it long. It extends at most over the share ``cluster_size`` of the shortest edge, or two blocks.
    """
    shape = tuple(int(n) for n in shape)
    edge, most = blocks(shape, settings)
    left = int(rng.integers(1, most + 1))
    reach = max(2 * edge, int(settings.cluster_size * min(shape)))
    room = (reach // edge) ** len(shape)  # blocks that fill the reach
    free = np.array([n - edge for n in shape])
    holes = np.zeros(shape, bool)
    while left:
        start = rng.integers(0, free + 1)
        placed = [start]
        if left > 1 and rng.random() < settings.clusters:
            count = round(2 * (room / 2) ** rng.random())  # small ones as often as large ones, by factors of their size
            placed = _cluster(start, min(left, count), edge, reach, free, rng)
        for corner in placed:
            holes[tuple(slice(c, c + edge) for c in corner)] = True
        left -= len(placed)
    return holes


def blocks(shape: Sequence[int], settings: InpainterSettings) -> tuple[int, int]:
    """Edge of a block, and how many there are at most, in an image of spatial ``shape``."""
    allowed = settings.largest * math.prod(shape)
    edge = max(1, min(settings.hole_size, min(shape), int((allowed + 1e-9) ** (1 / len(shape)) + 1e-9)))
    return edge, max(1, min(settings.holes, int((allowed + 1e-9) / edge ** len(shape))))


def _cluster(start, count, edge, reach, free, rng):
    """First voxels of ``count`` blocks side by side around ``start``, fewer where they would leave the cluster's reach or the image."""
    span, before, after = reach // edge - 1, start // edge, (free - start) // edge  # in blocks
    least = np.clip(span - after, 0, span)
    before = np.minimum(rng.integers(least, np.maximum(least, np.minimum(before, span)) + 1), before)
    below, above = -before, np.minimum(span - before, after)
    long, cells = rng.random() < 0.5, [(0,) * len(free)]
    taken, tries = set(cells), 8 * count
    axes, ways, picks, turns = rng.integers(len(free), size=tries), rng.choice((-1, 1), size=tries), rng.random(tries), rng.random(tries)  # fmt: skip
    axis, way, stuck = axes[0], ways[0], False
    for n in range(tries):
        if len(cells) == count:
            break
        if stuck or not long or turns[n] < 0.3:
            axis, way = axes[n], ways[n]
        cell = list(cells[int(picks[n] * len(cells)) if stuck or not long else -1])
        cell[axis] += way
        stuck = not below[axis] <= cell[axis] <= above[axis] or tuple(cell) in taken
        if not stuck:
            cells.append(tuple(cell))
            taken.add(tuple(cell))
    return [start + edge * np.array(cell) for cell in cells]
