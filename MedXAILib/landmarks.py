"""How much of the heat falls where: filter maps into one heat map, and its share in each landmark (Kumar & Menkovski 2016, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .explanation import Table

MARGIN = 1 / 6  # of the extent along an axis: what is nearer to an edge than this is border
DRAWS = 2000  # of the bootstrap over filters
FEWEST = 5  # filters from which an interval is given
ELSEWHERE = "elsewhere"


def coarse_parts(shape: Sequence[int]) -> dict[str, np.ndarray]:
    """Corners, borders and centre of a grid, for images without landmarks: a coarse partition, not an anatomical one.

    A voxel is near an edge when it lies within a sixth of the extent (`MARGIN`) from either end of an axis; ``corners`` are near along two axes or
    more, ``borders`` along one, ``centre`` along none. Axes of one voxel do not count.

    Returns
    -------
    dict of str to ndarray of bool, shape ``shape``
    """
    near = np.zeros(shape, np.int8)
    for axis, length in enumerate(shape):
        if length > 1:
            place = (np.arange(length) + 0.5) / length
            edge = (np.minimum(place, 1 - place) < MARGIN).astype(np.int8)
            near += edge.reshape([-1 if n == axis else 1 for n in range(len(shape))])
    return {"corners": near >= 2, "borders": near == 1, "centre": near == 0}


def weights(scores: Sequence[float], combine: str) -> np.ndarray:
    """The weight of each filter in the heat map, summing to 1: ``equal``, or in proportion to its score (``activation``)."""
    found = np.clip(np.asarray(scores, float), 0, None) if combine == "activation" else np.ones(len(scores))
    return found / found.sum() if found.sum() > 0 else np.full(len(found), 1 / max(1, len(found)))


def spread(back_projection: np.ndarray) -> np.ndarray:
    """The magnitude of one filter's back-projection as a share of its total, times the number of voxels: 1 everywhere were it even.

    0 everywhere where nothing came back. float32.
    """
    size = np.abs(back_projection, dtype=np.float32)
    total = size.sum(dtype=np.float64)
    return np.multiply(size, size.size / total, dtype=np.float64).astype(np.float32) if total > 0 else size


def heat(back_projections: Sequence[np.ndarray], weight: Sequence[float]) -> np.ndarray:
    """The combined map: the weighted mean of the filters' `spread` (filters whose back-projection is 0 are left out), float32.

    Its mean over the grid is 1, so a value says how many times more heat falls there than if it were spread evenly.
    """
    result, total = np.zeros(back_projections[0].shape, np.float32), 0.0
    for one, w in zip(back_projections, weight):
        if np.any(one):
            result += np.float32(w) * spread(one)
            total += w
    return result / np.float32(total) if total else result


def shares(back_projection: np.ndarray, parts: Mapping[str, np.ndarray]) -> list[float]:
    """The share of one filter's heat that falls into each part; NaN where nothing came back."""
    size = np.abs(back_projection, dtype=np.float32)
    total = size.sum(dtype=np.float64)
    if not total:
        return [np.nan] * len(parts)
    return [float(size[part].sum(dtype=np.float64) / total) for part in parts.values()]


def with_rest(parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parts, and ``elsewhere`` for what lies in none of them (left out where that is nothing)."""
    rest = ~np.logical_or.reduce(list(parts.values()))
    return {**parts, **({ELSEWHERE: rest} if rest.any() else {})}


def landmark_table(
    each: Sequence[Sequence[float]], weight: Sequence[float], parts: Mapping[str, np.ndarray], title="Landmarks"
) -> Table:
    """How much of the heat falls into each landmark, against its share of the area.

    Parameters
    ----------
    each : sequence of sequences, shape (filters, landmarks)
        As `shares` gives them for each filter.
    weight : sequence of float, one per filter
        As `weights` gives them.
    parts : mapping of str to ndarray of bool
        Landmarks by name, on the grid of the maps; they may overlap.

    Returns
    -------
    Table
        Columns ``landmark``, ``voxels``, ``area_share``, ``heat_share``, ``low`` and ``high`` (95 % interval when the filters are drawn again, percentile
        bootstrap with a fixed seed; NaN for fewer than five), ``ratio`` (heat share by area share, 1: no more than by chance), ``filters`` (how many
        have a larger share of their heat there than the landmark has of the area) and ``of`` (filters that count).
    """
    each, weight = np.asarray(each, float).reshape(-1, len(parts)), np.asarray(weight, float)
    told = ~np.isnan(each).any(1)
    each, weight = each[told], weight[told]
    area = np.array([part.mean() for part in parts.values()])
    low = high = mean = np.full(len(parts), np.nan)
    if weight.sum() > 0:
        mean = weight @ each / weight.sum()
        if len(each) >= FEWEST:
            drawn = np.random.default_rng(0).integers(len(each), size=(DRAWS, len(each)))
            drawn = drawn[weight[drawn].sum(1) > 0]
            counts = weight[drawn]
            again = np.einsum("dn,dnl->dl", counts, each[drawn]) / counts.sum(1, keepdims=True)
            low, high = np.percentile(again, (2.5, 97.5), axis=0)
    return Table(
        title,
        {
            "landmark": list(parts),
            "voxels": [int(part.sum()) for part in parts.values()],
            "area_share": area.tolist(),
            "heat_share": list(mean),
            "low": list(low),
            "high": list(high),
            "ratio": [h / a if a else np.nan for h, a in zip(mean, area)],
            "filters": (each > area).sum(0).tolist(),
            "of": [len(each)] * len(parts),
        },
    )
