"""What takes the place of a deleted region: an inpainter made for the classifier's images, or a stated fall-back."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import MedXAIError
from ..volume import Volume
from .geometry import Prepared, prepare
from .loading import load_companion
from .partial import PartialUNet

FALLBACKS = ("blur", "mean", "noise")


class Inpainter:
    """A loaded inpainter.

    Parameters
    ----------
    folder : path
        A package of task ``inpainting``, made by `medxai train inpainter`.
    device : str
        As `load` takes it.

    Raises
    ------
    MedXAIError
        When the package is none of an inpainter.
    """

    def __init__(self, folder, device: str = "auto"):
        self.model = load_companion(folder, device, "inpainting", PartialUNet, "inpainter", "medxai train inpainter")
        self.package = self.model.package

    def bind(self, classifier, prepared: Prepared, volumes: list[Volume]) -> Fill:
        """What this inpainter puts into holes of a classifier's image.

        Parameters
        ----------
        classifier : Model
        prepared : Prepared
            The classifier's input, made of ``volumes``.

        Raises
        ------
        MedXAIError
            When it was made for images of other dimensions, channels, size, spacing or orientation.
        """
        mine, other = self.package.input, classifier.package.input
        told = f"The inpainter '{self.package.name}' was trained on"
        advice = f"; train one for '{classifier.package.name}' (medxai train inpainter --match)."
        if mine.spatial_dims != other.spatial_dims:
            raise MedXAIError(
                f"{told} {mine.spatial_dims}-D images, and the classifier takes {other.spatial_dims}-D ones{advice}"
            )
        if len(mine.channels) != len(other.channels):
            raise MedXAIError(f"{told} images of {len(mine.channels)} channel(s), and the classifier takes {len(other.channels)}{advice}")  # fmt: skip
        if mine.size and tuple(mine.size) != prepared.shape:
            by = [" × ".join(map(str, size)) for size in (mine.size, prepared.shape)]
            raise MedXAIError(f"{told} images of {by[0]}, and the classifier looks at {by[1]}{advice}")
        if mine.orientation and other.orientation and mine.orientation != other.orientation:
            raise MedXAIError(f"{told} images that lie as {mine.orientation}, and the classifier takes {other.orientation}{advice}")  # fmt: skip
        if mine.spacing and other.spacing and any(abs(a / b - 1) > 0.1 for a, b in zip(mine.spacing, other.spacing)):
            raise MedXAIError(f"{told} voxels of {mine.spacing} mm, and the classifier's are {other.spacing} mm{advice}")  # fmt: skip
        package = replace(classifier.package, input=replace(other, intensity=mine.intensity))
        own = prepare(SimpleNamespace(package=package, device=classifier.device), volumes, prepared.slice)
        return _Learned(self.model, own, prepared)

    def doubts(self, classifier) -> list[str]:
        """What speaks against this inpainter for a classifier's images although it can be used: it may know other ones."""
        mine, other = self.package.input, classifier.package.input
        if mine.channels == other.channels and mine.orientation == other.orientation:
            return []
        one, two = (
            f"'{', '.join(one.channels)}'" + f" ({one.orientation})" * bool(one.orientation) for one in (mine, other)
        )
        return [
            f"The inpainter '{self.package.name}' was trained on {one}, and the classifier takes {two}: make sure that both mean the same images"
            " (medxai train inpainter --match names them alike)."
        ]

    def record(self) -> dict:
        """What an explanation's provenance says of it."""
        return {"name": self.package.name, "sha256": self.package.sha256, "fallback": False}


class Fill:
    """What a hole of the classifier's image is filled with."""

    image: Tensor  # (1, C, *spatial), in the units in which it is filled

    def fill(self, hole: Tensor) -> Tensor:
        """Fill holes.

        Parameters
        ----------
        hole : Tensor of bool, shape (N, 1, *spatial)
            True where the image is not known; nothing there is looked at.

        Returns
        -------
        Tensor, shape (N, C, *spatial)
            Network units of the classifier; what is outside the hole is of no meaning.
        """
        raise NotImplementedError

    def without(self, hole: Tensor) -> Fill:
        """The same of the image with NaN in a hole: filling that hole must give the same."""
        other = copy.copy(self)
        other.image = torch.where(hole, torch.nan, self.image)
        return other

    def bytes(self, count: int) -> int:
        """Memory that filling ``count`` images at once takes, about."""
        raise NotImplementedError


class _Learned(Fill):
    """An inpainter works in its own network units; what it gives is taken to the classifier's."""

    def __init__(self, model, own: Prepared, prepared: Prepared):
        self.model, self.prepared = model, prepared
        self.image = own.x
        units = [mine.to(other) for mine, other in zip(own.intensity, prepared.intensity)]  # one row a channel
        units = torch.tensor(units, device=own.x.device).T.reshape(4, 1, -1, *(1,) * len(prepared.shape))
        self._scale, self._offset, self._low, self._high = units

    def fill(self, hole):
        image = self.image.expand(len(hole), *self.image.shape[1:])
        with torch.no_grad():
            found = self.model.module(image, (~hole).float())
        return (found * self._scale + self._offset).clamp(self._low, self._high)

    def bytes(self, count):
        # Features of the encoder and decoder at each level, with the concatenated copies and the padded masks.
        voxels, each = self.image[0, 0].numel(), 0.0
        for level, block in enumerate(self.model.module.encoder):
            widths = block.conv.weight.shape[:2]
            each += 4.0 * (4 * widths[1] + 2 * widths[0]) * voxels / 2 ** (level * (self.image.ndim - 2))
        return int(each * count)


class _Plain(Fill):
    """What needs no network: the surroundings blurred, their mean, or noise of their mean and standard deviation."""

    def __init__(self, kind: str, image: Tensor, inside: Tensor, seed: int):
        self.kind, self.image, self.inside = kind, image, inside
        generator = torch.Generator().manual_seed(seed)
        self._noise = torch.randn(image.shape, generator=generator).to(image.device)

    def fill(self, hole):
        known = (~hole).to(self.image.dtype)
        held = torch.where(hole, 0, self.image)
        if self.kind == "blur":
            sigma = max(1.0, min(self.image.shape[2:]) / 16)
            weight = _blurred(known, sigma)  # beyond its reach, in the middle of a wide hole, the mean
            return torch.where(
                weight > 1e-3, _blurred(held, sigma) / weight.clamp(min=1e-3), self._mean(held, known)[0]
            )
        mean, spread = self._mean(held, known)
        if self.kind == "mean":
            return mean.expand(len(hole), *self.image.shape[1:])
        return mean + spread * self._noise

    def _mean(self, held, known):
        """Mean and standard deviation of what is known of the organ; of the image where nothing of it is."""
        axes = tuple(range(2, held.ndim))
        counted = known * self.inside
        counted = torch.where(counted.sum(axes, keepdim=True) > 0, counted, known)
        count = counted.sum(axes, keepdim=True).clamp(min=1)
        mean = (held * counted).sum(axes, keepdim=True) / count
        return mean, (((held - mean) * counted).square().sum(axes, keepdim=True) / count).sqrt()

    def bytes(self, count):
        return 4 * 4 * count * self.image.numel()


def fallback(kind: str, prepared: Prepared, organ: Tensor, seed: int) -> Fill:
    """One of the `FALLBACKS` for a prepared image; ``organ`` (bool, of the image's spatial shape) tells where mean and spread are taken."""
    return _Plain(kind, prepared.x, organ.to(prepared.x), seed)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing along every spatial axis, 0 outside."""
    reach, dims = int(4 * sigma + 0.5), x.ndim - 2
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    convolve = functional.conv2d if dims == 2 else functional.conv3d
    flat = x.reshape(-1, 1, *x.shape[2:])
    for axis in range(dims):
        shape, pad = [1] * dims, [0] * dims
        shape[axis], pad[axis] = len(kernel), reach
        flat = convolve(flat, kernel.reshape(1, 1, *shape), padding=tuple(pad))
    return flat.reshape(x.shape)
