"""The mask of `counterfactual` and what it costs (Major et al. 2020, section 2): a coarse field of nodes, its border and its area."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_LINEAR = {2: "bilinear", 3: "trilinear"}
#: How far the start lies from θ, either way: at the learning rate of the paper, Adam moves a voxel by 0.2 at most in its 100 steps.
CONTRAST = 0.1


class Deletion:
    """The share S of the image that is deleted, made of nodes: 1 − M of the paper, 0 outside the organ.

    Parameters
    ----------
    organ : Tensor of bool, shape (*spatial)
        Where something may be deleted.
    spacing : sequence of float
        Voxel size along each axis, mm.
    nodes : int
        Nodes along the longest axis, in mm; as many voxels at most.
    theta : float
        From where on a voxel belongs to the region.
    starts : int
        How many, each with blocks of another size on its regular grid.
    whole : bool
        Whether there is no organ: all of the image counts.

    Attributes
    ----------
    edges : list of tuple
        For each start, the edge of its blocks along each axis, in voxels: an eighth of the shortest axis, or from a sixteenth to a quarter of it,
        but never below a node or two voxels.
    """

    def __init__(
        self, organ: Tensor, spacing: Sequence[float], nodes: int, theta: float, starts: int, whole: bool = False
    ):
        self.organ, self.spacing, self.theta, self.whole = organ, tuple(spacing), theta, whole
        self.shape = tuple(organ.shape)
        extents = [n * mm for n, mm in zip(self.shape, self.spacing)]
        step = max(extents) / nodes
        self.nodes = tuple(min(n, max(1, round(mm / step))) for n, mm in zip(self.shape, extents))
        least = max(
            min(extents) / 16,
            step,
            2 * max(mm for n, mm in zip(self.shape, self.spacing) if n > 1 or max(self.shape) == 1),
        )
        lengths = [2 * least] if starts == 1 else np.geomspace(least, 4 * least, starts)
        self.edges = [tuple(float(one / mm) for mm in self.spacing) for one in lengths]
        grids = [grid_holes(self.shape, edge, organ.device)[:1] for edge in self.edges]
        start = theta - CONTRAST + 2 * CONTRAST * torch.cat(grids).float()
        self.field = self._coarse(start.clamp(0, 1)).requires_grad_()

    def start_from(self, mask: Tensor) -> None:
        """Go on from a mask, shape (*spatial), 0 to 1."""
        mask = mask.to(self.field)[None, None]
        with torch.no_grad():
            field = self._coarse(mask)
            for _ in range(
                50
            ):  # the nodes whose interpolation is the mask, by Landweber's steps: averaging alone would blur it at each start
                field = (field + self._coarse(mask - self._fine(field))).clamp(0, 1)
            self.field.copy_(field.expand_as(self.field))

    def share(self) -> Tensor:
        """S, shape (starts, 1, *spatial), differentiable with respect to the field."""
        return self._fine(self.field) * self.organ

    def clamp(self) -> None:
        """Back into 0 to 1 after a step."""
        with torch.no_grad():
            self.field.clamp_(0, 1)

    def border(self, share: Tensor) -> Tensor:
        """tv: length of the region's border (in 3-D its surface) over the edge (a face) of a square (cube) as large as the organ; shape (starts,)."""
        return border(share, self.organ, self.spacing)

    def area(self, share: Tensor) -> Tensor:
        """ar: Dice overlap with the organ, shape (starts,)."""
        return area(share, self.organ, self.whole)

    def _fine(self, field: Tensor) -> Tensor:
        if self.nodes == self.shape:
            return field
        return functional.interpolate(field, self.shape, mode=_LINEAR[len(self.shape)], align_corners=False)

    def _coarse(self, values: Tensor) -> Tensor:
        if self.nodes == self.shape:
            return values.clone()
        pool = functional.adaptive_avg_pool2d if len(self.shape) == 2 else functional.adaptive_avg_pool3d
        return pool(values, self.nodes)


def border(share: Tensor, organ: Tensor, spacing: Sequence[float]) -> Tensor:
    """Total variation of S (N, 1, *spatial) in mm^(d−1), over V^((d−1)/d) with V the organ's mm^d: the same shape costs the same at any resolution.

    Returns
    -------
    Tensor, shape (N,)
        For a square region of edge e in a square organ of edge E: 4 e / E.
    """
    voxel, dims, total = math.prod(spacing), organ.ndim, 0.0
    for axis, mm in enumerate(spacing):
        steps = share.diff(dim=axis + 2).abs().flatten(1).sum(1)
        total = total + steps * (voxel / mm)
    return total / (organ.sum() * voxel) ** ((dims - 1) / dims)


def area(share: Tensor, organ: Tensor, whole: bool) -> Tensor:
    """2 ΣS / (ΣS + Σorgan), shape (N,); without an organ (``whole``: it is all of the image) the plain share ΣS / Σ1 (DESIGN section 4)."""
    deleted, size = share.flatten(1).sum(1), organ.sum()
    return deleted / size if whole else 2 * deleted / (deleted + size)


def grid_holes(shape: Sequence[int], edge: Sequence[float], device=None) -> Tensor:
    """Holes on regular grids that together cover the image, so that every voxel is once in the middle part of a block.

    A grid has one block of ``edge`` voxels (along each axis) in every 2 × 2 (× 2); each of the 2^d places of a block is one grid, and all of them once more shifted by half a block.

    Returns
    -------
    Tensor of bool, shape (2 · 2^d, 1, *shape)
    """
    dims, found = len(shape), []
    for shift in (0.0, 0.5):
        numbers = [np.floor(np.arange(n) / one + shift).astype(int) % 2 for n, one in zip(shape, edge)]
        for place in np.ndindex(*(2,) * dims):
            one = np.ones(shape, bool)
            for axis, (number, at) in enumerate(zip(numbers, place)):
                one &= (number == at).reshape([-1 if n == axis else 1 for n in range(dims)])
            found.append(one)
    return torch.from_numpy(np.stack(found))[:, None].to(device)


def grid_depth(shape: Sequence[int], edge: Sequence[float], shift: float) -> np.ndarray:
    """How far each voxel lies inside its block, as a share of the edge (0.5: in the middle), for blocks shifted by that share."""
    depth = np.full(shape, np.inf)
    for axis, n in enumerate(shape):
        at = ((np.arange(n) + 0.5) / edge[axis] + shift) % 1
        depth = np.minimum(depth, np.minimum(at, 1 - at).reshape([-1 if m == axis else 1 for m in range(len(shape))]))
    return depth


def surroundings(fill, shape: Sequence[int], edge: Sequence[float], organ: Tensor, batch: int):
    """What the neighbourhood says of every voxel: each filled while a block around it was a hole; yields (share done, stage), returns (1, C, *spatial).

    Parameters
    ----------
    fill : Fill
    edge : sequence of float
        Of the blocks, along each axis, in voxels.
    organ : Tensor of bool
        Holes are made there alone.
    batch : int
        Images filled at once.
    """
    holes = grid_holes(shape, edge, organ.device)
    half = len(holes) // 2
    nearer = torch.from_numpy(grid_depth(shape, edge, 0.5) > grid_depth(shape, edge, 0.0)).to(organ.device)
    result = None
    for start in range(0, len(holes), batch):
        some = holes[start : start + batch]
        filled = fill.fill(some & organ)
        result = torch.zeros_like(filled[0]) if result is None else result
        for number, (hole, one) in enumerate(zip(some, filled), start):
            result = torch.where(hole & (nearer if number >= half else ~nearer), one, result)
        yield (start + len(some)) / len(holes), "Looking at the surroundings"
    return result[None]
