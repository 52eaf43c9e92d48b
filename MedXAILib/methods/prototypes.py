"""Prototype segmentation (ProtoSeg) of deep features at their own resolution: He et al. 2023, section 3.1.

A voxel belongs to the object where its features are nearer to the object's prototype than to the background's. The difference of the two
squared distances, |f − c_b|² − |f − c_t|² = 2 (c_t − c_b)·(f − (c_t + c_b)/2), is affine in f. Interpolation is linear and keeps
constants, so it commutes with an affine map: upsampling this one scalar gives what upsampling every channel would give. The prototypes
of upsampled features, Σ B·(U f) / Σ B, are Σ (Uᵀ B)·f / Σ B, with Uᵀ the adjoint of the interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
_CHUNK = 1 << 21  # bytes of features taken at once, so that they stay in the processor's cache


@dataclass(frozen=True)
class Interpolation:
    """How features are brought to the network's grid: ``linear`` or ``nearest``, as `torch.nn.functional.interpolate`."""

    mode: str = "linear"
    align_corners: bool = False

    def up(self, values: Tensor, size: Sequence[int]) -> Tensor:
        """``values`` (N, C, *low) on a grid of ``size``: (N, C, *size)."""
        size = tuple(size)
        if tuple(values.shape[2:]) == size:
            return values
        if self.mode == "nearest":
            return functional.interpolate(values, size, mode="nearest")
        return functional.interpolate(values, size, mode=_LINEAR[len(size)], align_corners=self.align_corners)

    def adjoint(self, weights: Tensor, low: Sequence[int]) -> Tensor:
        """Uᵀ ``weights``: what (N, K, *size) weighs on a grid of shape ``low``, (N, K, *low). The sum stays the same."""
        for axis, (n, m) in enumerate(zip(weights.shape[2:], low), 2):
            if n != m:
                weights = (weights.transpose(axis, -1) @ self._matrix(n, m, weights)).transpose(axis, -1)
        return weights.contiguous()

    def _matrix(self, size: int, low: int, like: Tensor) -> Tensor:
        """(size, low): what each voxel of one axis takes from each of the low ones. Interpolation works axis by axis."""
        one = torch.eye(low, dtype=like.dtype, device=like.device)[None]
        return Interpolation.up(self, one, (size,))[0].T


def normalized(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (N, K, *low) with sum 1 for each prototype, (N, K, voxels), and their sums before, (N, K); zero stays zero."""
    weights = weights.flatten(2)
    sums = weights.sum(-1)
    return weights / torch.where(sums > 0, sums, 1.0)[..., None], sums


def separation(features: Tensor, weights: Tensor, channels: bool = False) -> Tensor:
    """By how much nearer each voxel is to each object's prototype than to the background's; eq. 6 and 7.

    Parameters
    ----------
    features : Tensor, shape (N, C, *low)
        Of one layer, differentiable.
    weights : Tensor, shape (N, K, *low)
        Uᵀ of the soft masks of the background (first) and of each object; any positive scale.
    channels : bool
        For each channel by itself (the units of section 4.5) instead of for all together.

    Returns
    -------
    Tensor, shape (N, K − 1, *low), or (N, K − 1, C, *low)
        Half of |f − c_0|² − |f − c_k|², summed over channels: object k where it is above 0 (K = 2) or the largest one above 0; a tie
        is background. Where nothing has the weight of a prototype it is −1 (no object) or +1 (no background) everywhere.
    """
    weights, sums = normalized(weights)
    total = _Total(channels)
    for _, part in _centred(features.flatten(2)):  # c_k − c_0 would otherwise lose its digits where the mean is large
        total.add(part, weights @ part.transpose(1, 2))
    return total.settled(sums, features)


def weighed(features: Tensor, weights: Tensor, offset: Tensor) -> Tensor:
    """Σ w_k (f − offset), (K, C), of one tile (1, C, *low) of an image; ``offset`` (C,) is any point near the features."""
    weights = weights.flatten(2)  # a batch of one: a product of matrices this thin is slow
    return torch.cat([weights @ part.transpose(1, 2) for _, part in _centred(features.flatten(2), offset)], 2)[0]


def separation_from(features: Tensor, weighed: Tensor, sums: Tensor, offset: Tensor, channels: bool = False) -> Tensor:
    """`separation` of one tile from prototypes that were summed over all tiles.

    Parameters
    ----------
    features : Tensor, shape (1, C, *low)
    weighed : Tensor, shape (K, C)
        Sum of `weighed` over the tiles.
    sums : Tensor, shape (K,)
        Sum of the weights over the tiles.
    offset : Tensor, shape (C,)
        The same for all tiles.
    """
    c = weighed / torch.where(sums > 0, sums, 1.0)[:, None]
    total = _Total(channels)
    for at, part in _centred(features.flatten(2), offset):
        total.add(part, c[None, :, at : at + part.shape[1]])
    return total.settled(sums[None], features)


def _centred(flat: Tensor, offset: Tensor | None = None):
    """Channels (N, C, voxels) minus their means, or minus ``offset`` (C,): (first channel, part), a part at a time.

    Parts stay in the processor's cache and are written over each other; for training and on a GPU it is all at once.
    """
    rows, scratch = flat.shape[1], None
    if not torch.is_grad_enabled() and flat.device.type == "cpu":
        rows = max(1, min(rows, _CHUNK // max(1, flat[:, :1].numel() * flat.element_size())))
        # Made anew for each part, its pages would cost more than the sums.
        scratch = flat.new_empty((flat.shape[0], rows, flat.shape[2]))
    for at in range(0, flat.shape[1], rows):
        part = flat[:, at : at + rows]
        away = part.mean(-1, keepdim=True) if offset is None else offset[at : at + rows, None]
        yield at, part - away if scratch is None else torch.sub(part, away, out=scratch[:, : part.shape[1]])


class _Total:
    """(c_k − c_0)·(f − (c_k + c_0)/2) summed over the channels that are added, or for each of them (``channels``)."""

    def __init__(self, channels: bool):
        self.channels, self.each = channels, []
        self.values, self.constant = None, 0.0

    def add(self, part: Tensor, c: Tensor) -> None:
        """Channels (N, C, voxels) and their prototypes (N, K, C)."""
        apart, middle = c[:, 1:] - c[:, :1], (c[:, 1:] + c[:, :1]) / 2
        if self.channels:
            self.each.append(apart[..., None] * (part[:, None] - middle[..., None]))
            return
        self.constant = self.constant + (apart * middle).sum(-1, keepdim=True)
        if self.values is None:
            self.values = apart @ part
        elif torch.is_grad_enabled():
            self.values = torch.baddbmm(self.values, apart, part)
        else:
            self.values.baddbmm_(apart, part)

    def settled(self, sums: Tensor, features: Tensor) -> Tensor:
        """On the grid of the features; where nothing has the weight (N, K) of a prototype everything is the other class."""
        total = torch.cat(self.each, 2) if self.channels else self.values - self.constant
        no_object, no_background = sums[:, 1:] <= 0, sums[:, :1] <= 0
        if bool(no_object.any() | no_background.any()):
            shape = (*total.shape[:2], *(1,) * (total.ndim - 2))
            total = torch.where(no_object.reshape(shape), -1.0, total)
            total = torch.where((no_background & ~no_object).reshape(shape), 1.0, total)
        return total.unflatten(-1, features.shape[2:])
