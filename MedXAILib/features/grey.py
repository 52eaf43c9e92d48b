"""Grey levels of masked voxels, binned as pyradiomics 3.0.1 bins them, and many boxes of them laid out for torch."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch

from ..errors import MedXAIError

_KEPT = 1 << 23  # neighbours, of all directions, that are kept for the next class


def bin_edges(inner: np.ndarray, bin_width: float, bin_count: int = 0) -> np.ndarray:
    """Lower edges of the bins, as pyradiomics 3.0.1 sets them.

    With a width the first edge is the greatest multiple of it that is not above the least intensity, so the bins of two masks agree;
    with a count (above 0) the bins divide the range of this mask.

    Computed by numpy from the image's own numbers and a Python float, as there, so equal to what pyradiomics has under the same numpy:
    for a float32 image numpy 2 counts in float32 and numpy 1 in float64. A width such as .1 that has no exact binary form may then put
    a voxel that lies on an edge to either side.

    Raises
    ------
    MedXAIError
        When bins are finer than that type of number tells apart; pyradiomics then fails, or counts bins without a width.
    """
    try:
        if bin_count:
            edges = np.histogram_bin_edges(inner, bin_count)
        else:
            low, high = inner.min(), inner.max()
            edges = np.arange(low - low % bin_width, high + 2 * bin_width, bin_width)
            if len(edges) == 1:
                edges = np.array([edges[0] - 0.5, edges[0] + 0.5])
        apart = len(edges) > 1 and bool((edges[1:] > edges[:-1]).all())
    except ValueError:  # "Too many bins for data range", as numpy 2 has it
        apart = False
    if not apart:
        bins, use = (f"{bin_count} bins", "fewer") if bin_count else (f"bins of {bin_width:g}", "a larger bin width")
        raise MedXAIError(
            f"{bins} are too fine for {inner.dtype} numbers from {inner.min():g} to {inner.max():g}; use {use}."
        )
    if bin_count:
        edges[-1] += 1  # the greatest intensity belongs to the last bin
    return edges


def grey_levels(inner: np.ndarray, bin_width: float, bin_count: int = 0) -> np.ndarray:
    """The grey level of each voxel, from 1: int64, shape of ``inner``."""
    edges = bin_edges(inner, bin_width, bin_count)
    away = (inner.astype(np.float64) - float(edges[0])) / (float(edges[1]) - float(edges[0]))
    level = np.clip(away, 0, len(edges) - 2).astype(np.int64)
    # Right but for rounding, which the edges themselves settle.
    level += inner >= edges[level + 1]
    level -= inner < edges[level]
    return level + 1


def shared_bins(inner: np.ndarray, bin_width: float) -> np.ndarray:
    """Numbers from 1 that say which voxels share a bin, for ranges too wide to have grey levels."""
    return np.unique(np.floor(inner.astype(np.float64) / bin_width), return_inverse=True)[1].reshape(-1) + 1


def directions(ndim: int) -> list[tuple[int, int, int]]:
    """Steps (k, j, i) to half of the neighbours at Chebyshev distance 1: 13 in three dimensions, 4 within the slices across k."""
    steps = itertools.product((0, 1) if ndim == 3 else (0,), (-1, 0, 1), (-1, 0, 1))
    return [step for step in steps if step > (0, 0, 0)]


class Boxes:
    """The grey levels of several masks on one line of voxels, so that a step to a neighbour is the same shift for all of them.

    Every row, slice and (where steps lead from slice to slice) box ends with an empty voxel, row or slice, and the line begins with as many
    empty voxels as the longest shift: a shift by one neighbour, either way, never leaves the line and never reaches another row's voxels.

    Parameters
    ----------
    masks : list of ndarray of bool, shape (k, j, i)
        In two dimensions the slices lie along k.
    levels : list of ndarray of int
        Grey level (from 1) of each voxel of the mask, in its order.
    ndim : int
    device : str or torch.device

    Attributes
    ----------
    line : Tensor of int32, shape (n,)
        0 outside the masks, else 1 + the rank of the voxel's grey level among those that occur in its mask.
    at : Tensor of int64, shape (voxels,)
        Where the voxels of the masks lie on the line; ``item``, which box each belongs to; ``rank``, from 0.
    grey : Tensor of float64, shape (boxes, ranks)
        The grey level of each rank, 0 beyond those that occur; ``ranks``, their number at most.
    longest : int
        The longest edge of a box, in voxels.
    shifts : list of int
        What ``steps``, those of `directions`, are on the line, all positive.
    """

    def __init__(self, masks, levels, ndim: int, device="cpu"):
        rows, columns = (max(mask.shape[axis] for mask in masks) + 1 for axis in (1, 2))
        self.steps, self.columns, self.slab = directions(ndim), columns, rows * columns
        self.shifts = [dk * self.slab + dj * columns + di for dk, dj, di in self.steps]
        self.lead, between = max(self.shifts), int(ndim == 3)
        self.starts = list(itertools.accumulate((mask.shape[0] + between for mask in masks), initial=0))
        present = [np.flatnonzero(np.bincount(one)) for one in levels]
        self.ranks = max(map(len, present))
        line = np.zeros(self.lead + self.starts[-1] * self.slab, np.int32)
        grid = line[self.lead :].reshape(-1, rows, columns)
        grey = np.zeros((len(masks), self.ranks))
        for box, (mask, level, there, start) in enumerate(zip(masks, levels, present, self.starts)):
            rank = np.zeros(there[-1] + 1, np.int32)
            rank[there] = np.arange(1, len(there) + 1)
            k, j, i = mask.shape
            grid[start : start + k, :j, :i][mask] = rank[level]
            grey[box, : len(there)] = there
        self.count, self.device = len(masks), torch.device(device)
        self.index = torch.int32 if line.size < 1 << 30 else torch.int64  # narrow numbers are faster
        self._beside: dict[int, torch.Tensor] = {}
        self.longest = max(max(mask.shape) for mask in masks)
        self.line = torch.from_numpy(line).to(self.device)
        self.grey = torch.from_numpy(grey).to(self.device)

    @functools.cached_property
    def at(self):
        return where(self.line)

    @functools.cached_property
    def item(self):
        return self.item_of(self.at)

    @functools.cached_property
    def rank(self):
        return self.here.long() - 1

    @functools.cached_property
    def here(self):
        """The line at the voxels, shape (voxels,)."""
        return self.line.index_select(0, self.at)

    @functools.cached_property
    def cell(self):
        """Box and rank of each voxel in one number: item · ranks + rank."""
        return self.rank + self.item * self.ranks

    @functools.cached_property
    def size(self):
        """Voxels of each mask, float64."""
        return torch.bincount(self.item, minlength=self.count).double()

    def item_of(self, at):
        """The box that positions on the line belong to."""
        if self.count == 1:
            return torch.zeros_like(at)
        ends = torch.tensor([self.lead + start * self.slab for start in self.starts[1:]], device=self.device)
        return torch.bucketize(at, ends, right=True)

    def beside(self, shift: int, values=None):
        """``values`` (the line) at the neighbour of each voxel, shape (voxels,). ``shift`` may be negative."""
        if values is not None:
            return values.index_select(0, self.near + shift)
        found = self._beside.get(shift)
        if found is None:
            found = self.line.index_select(0, self.near + shift)
            if len(found) * len(self.shifts) < _KEPT:  # several classes ask for it
                self._beside[shift] = found
        return found

    @functools.cached_property
    def near(self):
        """`at` in narrow numbers."""
        return self.at.to(self.index)

    def line_of(self, step):
        """Which straight line along a step each voxel lies on: int64, shape (voxels,), the same number for the same line."""
        k, within = (self.at - self.lead) // self.slab, (self.at - self.lead) % self.slab
        place = k, within // self.columns, within % self.columns
        far = place[next(axis for axis, s in enumerate(step) if s)]  # along the line: that part of the step is 1
        number = self.item
        for at, s in zip(place, step):
            number = number * (1 << 17) + (at - far * s) + (1 << 16)
        return number


def where(values):
    """Positions that are not 0: int64; on the CPU by numpy, which is several times faster at it."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(values.numpy() != 0))  # of truth values it is faster still
    return values.nonzero()[:, 0]
