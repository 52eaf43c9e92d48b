"""The images that an explainer is trained on, as its classifier gets them, and what the classifier answers to them."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from ..errors import MedXAIError
from ..explanation import Step, part
from ..models import prepare
from ..models.model import Model
from ..models.sides import Sides
from ..models.tiling import windows
from .cycle import cut
from .images import Image, Images, kept_back, require_enough

KIND = "an explainer"
FEW = 100  # images below which a note says so


@dataclass(frozen=True)
class Patches:
    """What the networks of a training see.

    Attributes
    ----------
    shape : tuple of int
        Spatial shape of a patch.
    train : list of Tensor, shape (C, *spatial) each
        In the classifier's network units, patches or larger.
    held : Tensor, shape (N, C, *shape)
        Images kept back, of larger ones the middle.
    held_names : list of str
    data_range : float
        Of the images, for SSIM.
    """

    shape: tuple[int, ...]
    train: list[Tensor]
    held: Tensor
    held_names: list[str]
    data_range: float


def patches_of(
    model: Model, sides: Sides, names: tuple[str, str], images: Images, settings
) -> Generator[Step, None, Patches]:
    """Prepare images for a training and ask the classifier about each; what cannot be used is told in ``images.skipped``. The images' volumes are let go.

    Parameters
    ----------
    model : Model
    sides, names
        The class pair, as indices and by name.
    images : Images
    settings : CycleTrainingSettings

    Raises
    ------
    MedXAIError
        When too few can be used, the patch is larger than all of them, they have several sizes and no patch is given, the classifier gives no gradient, or it answers all
        with one class.
    """
    prepared = yield from part(_prepared(model, images), 0.0, 0.5)
    shape = _shape(model, prepared, settings)
    large = []
    for one in prepared:
        if all(n >= s for n, s in zip(one.x.shape[1:], shape)):
            large.append(one)
        else:
            images.skipped[one.name] = f"it is smaller than the patch of {_by(shape)} voxels"
    if not large:
        most = _by(max(tuple(one.x.shape[1:]) for one in prepared))
        advice = "larger images" if model.package.input.size else "a smaller one (--patch) or larger images"
        raise MedXAIError(f"The patch of {_by(shape)} voxels is larger than every image (the largest: {most}); give {advice}.")  # fmt: skip
    used = yield from part(_answered(model, sides, names, large, shape, images), 0.5, 1.0)
    require_enough(used, images.skipped, KIND)
    back = kept_back(used, settings)
    data_range = settings.data_range or _range(model.package, used)
    held = [one for one, b in zip(used, back) if b]
    if any(tuple(one.x.shape[1:]) != shape for one in held):
        images.notes.append("Images are larger than the patch; those kept back are judged at their middle.")
    train = [one.x for one, b in zip(used, back) if not b]
    if len(train) < FEW:
        images.notes.append(f"{len(train)} images are few to learn from; hundreds are needed for an explainer to be any good.")  # fmt: skip
    return Patches(shape, train, torch.stack([cut(one.x, shape) for one in held]), [one.name for one in held], data_range)  # fmt: skip


class _Prepared(SimpleNamespace):
    """``name``, ``group``, ``x`` (C, *spatial) and the frozen ``intensity`` of an image."""


def _prepared(model, images: Images):
    """Every image as the classifier gets it; a generator of steps. Windows are filled up with padding by the classifier's rule, which is no image to learn from."""
    about, on_cpu = model.package.input, SimpleNamespace(package=model.package, device="cpu")
    found, count, last, of = [], len(images.images), None, None  # the last image prepared, and of which volume
    while images.images:  # each volume is let go once its last slice is prepared
        one: Image = images.images.pop(0)
        if len(found) % 16 == 0:
            yield Step(1 - len(images.images) / count, "Preparing images")
        try:
            last = prepare(on_cpu, [one.volume], one.slice, last if of is one.volume else None)
            of = one.volume
        except MedXAIError as error:
            images.skipped[one.name] = error.message
            continue
        x = last.x[0] if about.fit != "window" else last.x[0][(slice(None), *last.valid)].clone()
        found.append(_Prepared(name=one.name, group=one.group, x=x, intensity=last.intensity[0]))
    require_enough(found, images.skipped, KIND)
    return found


def _shape(model, prepared, settings) -> tuple[int, ...]:
    about, name = model.package.input, model.package.name
    if about.size is not None:
        shape = tuple(about.size)
        if settings.patch and (settings.patch,) * len(shape) != shape:
            raise MedXAIError(f"'{name}' takes {_by(shape)} voxels, so --patch cannot be {settings.patch}; leave it out.")  # fmt: skip
        return shape
    if settings.patch:
        if any(settings.patch % multiple for multiple in about.multiple_of):
            raise MedXAIError(f"'{name}' takes sizes that are multiples of {_by(about.multiple_of)}, so --patch cannot be {settings.patch}; give such a one.")  # fmt: skip
        return (settings.patch,) * about.spatial_dims
    shapes = {tuple(one.x.shape[1:]) for one in prepared}
    if len(shapes) > 1:
        raise MedXAIError(f"The images have {len(shapes)} different sizes, and '{name}' takes any; give the edge of the patches (--patch).")  # fmt: skip
    return shapes.pop()


def _answered(model, sides, names, prepared, shape, images):
    """The images in which the classifier sees one of both classes, of larger ones in any window; refused where it is the same in all. A generator of steps."""
    found, counts = [], [0, 0]
    with model.frozen():
        x = cut(prepared[0].x, shape)[None].to(model.device).requires_grad_()
        slope = model.gradient(sides.log_odds(model, model.logits(x)).sum(), x)
        if not torch.isfinite(slope).all() or not float(slope.abs().max()):
            raise MedXAIError(
                f"'{model.package.name}' has no usable gradient of '{names[0]}' with respect to the image, and the generators follow it; explain a network that "
                "gives its logits."
            )
        for number, one in enumerate(prepared):
            if number % 64 == 0:
                yield Step(number / len(prepared), "Asking the classifier")
            boxes = [box for box, _ in windows(one.x.shape[1:], shape, 0.0)]
            with torch.no_grad():
                logits = model.logits(torch.stack([one.x[(slice(None), *box)] for box in boxes]).to(model.device))
            seen = [bool(sides.seen(model, logits, side).any()) for side in (True, False)]
            counts = [a + b for a, b in zip(counts, seen)]
            if any(seen):
                found.append(one)
            else:
                images.skipped[one.name] = f"the classifier answers neither '{names[0]}' nor '{names[1]}'"
    if not all(counts):
        seen, missing = names if counts[0] else names[::-1]
        raise MedXAIError(
            f"The classifier answers '{missing}' in none of {len(prepared)} images ('{seen}' in {max(counts)}); the discriminators must see both classes, so give images "
            f"of '{missing}' too, or a classifier that tells them apart."
        )
    images.notes.append(f"The classifier answers '{names[0]}' in {counts[0]} and '{names[1]}' in {counts[1]} images; no other label of theirs was used.")  # fmt: skip
    return found


def _range(package, prepared) -> float:
    """Range of the images in network units: what their window is clipped to, 8 bits, or from the 0.1th to the 99.9th percentile."""
    first, rule = prepared[0].intensity, package.input.intensity[0]
    if first.low is not None and first.high is not None:
        return first.high - first.low
    if rule.range == "uint8" and rule.kind in ("linear", "none"):
        return 255 * abs(rule.multiply)
    low, high = np.percentile(np.concatenate([one.x.numpy().ravel()[:: max(1, math.ceil(one.x.numel() / 65536))] for one in prepared]), (0.1, 99.9))  # fmt: skip
    if not high > low:
        raise MedXAIError("The images have one value only; there is nothing to learn from them.")
    return float(high - low)


def _by(shape) -> str:
    return " × ".join(map(str, shape))
