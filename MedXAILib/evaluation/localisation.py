"""How far a region lies from what a person drew, and how much it takes (Major et al. 2020, section 3).

Everything takes arrays of one grid, 2-D or 3-D (of one slice, too); ``spacing`` is in mm, one number per array axis. What has no value, such as
the distance of a region that is empty, is NaN: never 0, which would be perfect, nor infinite. Whoever takes a mean leaves these out and says how many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def components(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a mask, bool, the shape of the mask each; voxels that share a corner are connected (8 neighbours, or 26 in 3-D)."""
    labels, count = _labelled(mask)
    return [labels == n for n in range(1, count + 1)]


def centre(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The centre of mass of a mask, shape (axes,), in mm from the centre of the first voxel; NaN where the mask is empty."""
    at = np.argwhere(mask)
    return at.mean(0) * spacing if len(at) else np.full(np.ndim(mask), np.nan)


def distance(result: np.ndarray, truths, spacing: Sequence[float]) -> float:
    """D of the paper for one image, in mm: between the centres of the result's connected components and those of the findings.

    It is the median over all pairs of a component and a finding ("where multiple masses, or mapping results occurred we used their median"), so
    two components on two findings do not give 0.

    Parameters
    ----------
    result : ndarray of bool
    truths : ndarray of bool, or sequence of them
        A mask, whose components are the findings, or one mask per finding (empty ones are left out).
    spacing : sequence of float

    Returns
    -------
    float
        NaN where the result is empty, or no finding is there.
    """
    labels, count = _labelled(result)
    there = [centre(one, spacing) for one in _findings(truths, np.ndim(result))]
    if not count or not there:
        return math.nan
    found = np.array(ndimage.center_of_mass(labels > 0, labels, range(1, count + 1))) * spacing
    return float(np.median(np.linalg.norm(found[:, None] - np.array(there)[None], axis=-1)))


def hausdorff(result: np.ndarray, truths, spacing: Sequence[float]) -> float:
    """H of the paper for one image, in mm: the symmetric Hausdorff distance between the whole result and a finding, the median over findings.

    The paper's words are "between GT masks and RM", and its figures fit no other reading: components one by one would put H of the noisy
    saliency maps near their D (164 pixels), and it is 371. Parameters and NaN as in `distance`.
    """
    result, there = np.asarray(result, bool), _findings(truths, np.ndim(result))
    if not result.any() or not there:
        return math.nan
    return float(np.median([_apart(result, one, spacing) for one in there]))


def area_ratio(result: np.ndarray, organ: np.ndarray) -> float:
    """A of the paper: |result| / |organ|; NaN where the organ is empty."""
    whole = np.count_nonzero(organ)
    return np.count_nonzero(result) / whole if whole else math.nan


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """O of the paper: |a ∩ b| / min(|a|, |b|); NaN where one is empty."""
    least = min(np.count_nonzero(a), np.count_nonzero(b))
    return np.count_nonzero(np.logical_and(a, b)) / least if least else math.nan


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |a ∩ b| / (|a| + |b|): 0 where one is empty, NaN where both are."""
    both = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(np.logical_and(a, b)) / both if both else math.nan


def hit(found: np.ndarray, truth: np.ndarray) -> float:
    """Whether what was found points into the truth: 1 or 0.

    A mask (bool) points to the centre of its largest component (of equal ones the first), whether that voxel belongs to it or not; an empty one
    misses. A map points to its maximum; where several voxels share it, the result is the share of them that lies inside (what a draw among them
    would score). NaN where the truth is empty.
    """
    found, truth = np.asarray(found), np.asarray(truth, bool)
    if not truth.any():
        return math.nan
    if found.dtype != bool:
        return float(truth[found == found.max()].mean())
    labels, count = _labelled(found)
    if not count:
        return 0.0
    largest = 1 + int(np.bincount(labels.ravel())[1:].argmax())
    middle = np.floor(centre(labels == largest, np.ones(found.ndim)) + 0.5).astype(int)
    return float(truth[tuple(middle)])


def at_percentile(values: np.ndarray, organ: np.ndarray, percentile: float) -> np.ndarray:
    """A map as a mask: what is above a percentile of its values in the organ, inside the organ.

    What equals the percentile is not above it, so of a map with ties less than (100 − percentile) % may be left. A plateau of the largest value that
    the percentile falls on is taken whole; a map that is constant in the organ says nothing, and gives an empty mask.

    Returns
    -------
    ndarray of bool, shape of ``values``
    """
    organ = np.asarray(organ, bool)
    inside = values[organ]
    if not inside.size or inside.min() == inside.max():
        return np.zeros(organ.shape, bool)
    limit = np.percentile(inside, percentile)
    return organ & (values >= limit if limit == inside.max() else values > limit)


def _labelled(mask):
    return ndimage.label(mask, np.ones((3,) * np.ndim(mask)))


def _findings(truths, ndim) -> list[np.ndarray]:
    if isinstance(truths, np.ndarray) and truths.ndim == ndim:
        return components(truths)
    return [one for one in (np.asarray(one, bool) for one in truths) if one.any()]


def _apart(a, b, spacing) -> float:
    """The symmetric Hausdorff distance of two masks that are not empty; exact in the box that holds both."""
    (box,) = ndimage.find_objects((a | b).astype(np.uint8))
    a, b = a[box], b[box]
    return max(ndimage.distance_transform_edt(~to, sampling=spacing)[of].max() for of, to in ((a, b), (b, a)))
