"""The loss of Liu et al. 2018 (eq. 1 to 7) for inpainting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..models.model import Model
from ..models.reading import choose, read
from .settings import InpainterSettings

_POOL = {2: functional.max_pool2d, 3: functional.max_pool3d}
_RESIZE = {2: "bilinear", 3: "trilinear"}


def inpainting_losses(made: Tensor, true: Tensor, hole: Tensor) -> dict[str, Tensor]:
    """The parts that need no other network, unweighted.

    Parameters
    ----------
    made, true : Tensor, shape (N, C, *spatial)
        What the network makes of every place, and the image.
    hole : Tensor of bool, shape (N, 1, *spatial)

    Returns
    -------
    dict of Tensor
        ``valid`` and ``hole``: L1 outside and inside holes, each divided by the number of all values (eq. 1); ``tv``: total variation of the image with its holes
        filled, between neighbours that both lie in the holes dilated by one pixel, divided likewise (eq. 7).
    """
    error, filled = (made - true).abs(), torch.where(hole, made, true)
    return {
        "valid": torch.where(hole, 0, error).sum() / error.numel(),
        "hole": torch.where(hole, error, 0).sum() / error.numel(),
        "tv": _variation(filled, dilated(hole)),
    }


def dilated(hole: Tensor) -> Tensor:
    """Holes (N, 1, *spatial), bool, one pixel larger in every direction, diagonals included."""
    return _POOL[hole.ndim - 2](hole.float(), 3, 1, 1) > 0


def _variation(x, region):
    total = 0.0
    for axis in range(2, x.ndim):
        count = x.shape[axis] - 1
        step = (x.narrow(axis, 1, count) - x.narrow(axis, 0, count)).abs()
        both = region.narrow(axis, 1, count) & region.narrow(axis, 0, count)
        total = total + torch.where(both, step, 0).sum()
    return total / x.numel()


class FeatureLoss:
    """Perceptual and style loss (eq. 2 to 6) on layers of a frozen network, which may be a program.

    Parameters
    ----------
    model : Model
        Held still by the caller (`Model.frozen`).
    names : sequence of str
        Layers as `models.reading.choose` takes them; empty: the first three blocks.
    shape : sequence of int
        Spatial shape of the images.

    Raises
    ------
    MedXAIError
        When there is no such layer, or the network does not take that shape.
    """

    def __init__(self, model: Model, names: Sequence[str], shape: Sequence[int]):
        about = model.package.input
        self.model, self.size = model, about.size if about.size else tuple(shape)
        self.channels = len(about.channels)
        chosen = choose(model, names or ("all",), self.size)
        self.layers = chosen if names else chosen[:3]

    def __call__(self, made: Tensor, true: Tensor, hole: Tensor, units: Tensor) -> dict[str, Tensor]:
        """``perceptual`` and ``style``, unweighted, of the raw output and of the image with its holes filled; means over images.

        Parameters
        ----------
        made, true, hole : Tensor
            As `inpainting_losses` takes them.
        units : Tensor, shape (N, 4)
            For each image what makes this network's units of the inpainter's: factor, addend, and the limits of its clipping.
        """
        filled = torch.where(hole, made, true)
        found = [self._one(*trio) for trio in zip(made, filled, true, units)]
        return {name: torch.stack([one[name] for one in found]).mean() for name in ("perceptual", "style")}

    def _one(self, made, filled, true, units):
        factor, addend, low, high = units.to(made)
        x = (torch.stack([made, filled, true]) * factor + addend).clamp(low, high)
        x = x.expand(-1, self.channels, *x.shape[2:])
        if tuple(x.shape[2:]) != tuple(self.size):
            x = functional.interpolate(x, self.size, mode=_RESIZE[x.ndim - 2], align_corners=False)
        self.model.graph(x.detach())  # traced once, away from the gradient
        perceptual = style = made.new_zeros(())
        waiting = len(self.layers)
        for layer, value in read(self.model, x, self.layers):
            if layer is None:
                continue
            one, other, wanted = value.unbind(0)
            grams = [gram(v) for v in (one, other, wanted)]
            for mine, its in ((one, grams[0]), (other, grams[1])):
                perceptual = perceptual + (mine - wanted).abs().mean()
                style = style + (its - grams[2]).abs().mean()
            waiting -= 1
            if not waiting:  # what comes after the last layer is not needed
                break
        return {"perceptual": perceptual, "style": style}


def gram(features: Tensor) -> Tensor:
    """K Ψᵀ Ψ of features (C, *spatial), with K = 1 / (C · places): (C, C)."""
    flat = features.flatten(1)
    return flat @ flat.T / flat.numel()


def weighted(parts: dict[str, Tensor], settings: InpainterSettings) -> Tensor:
    """The parts in sum, weighted as the settings say."""
    return sum(getattr(settings, f"{name}_weight") * part for name, part in parts.items())
