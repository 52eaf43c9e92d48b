"""Variance of gradients: how much what a network looks at changed while it was trained (Agarwal, D'souza & Hooker, CVPR 2022)."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch

from ..errors import MedXAIError
from ..models import Model, prepare
from ..models.loading import build
from ..models.tiling import sliding_logits

FEWEST = 3  # checkpoints


def files(package) -> list[Path]:
    """The checkpoints kept beside a package's weights, in order of training."""
    found = (package.folder / "checkpoints").glob("*.safetensors")
    return sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)])


def checkpoints(model: Model) -> list[Model]:
    """The networks that ``checkpoints/epoch-K.safetensors`` in the model folder hold.

    Raises
    ------
    MedXAIError
        When there are fewer than three, or one does not fit the package's network.
    """
    package, found = model.package, files(model.package)
    if len(found) < FEWEST:
        raise MedXAIError(
            f"The model folder '{package.folder}' holds {len(found)} checkpoints of its training and {FEWEST} are needed; "
            "'medxai train segmentation' keeps them."
        )
    if package.network is None:
        raise MedXAIError(f"'{package.name}' is a program, which cannot take the weights of a checkpoint.")
    from safetensors.torch import load_file

    models = []
    for path in found:
        with torch.random.fork_rng(devices=[]):  # building draws weights that are replaced
            module = build(package.network, package.name)
        try:
            module.load_state_dict(load_file(str(path)))
        except Exception as error:  # safetensors and torch have many
            words = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200].rstrip(".")
            raise MedXAIError(
                f"The checkpoint '{path.name}' does not hold weights of '{package.name}' ({words})."
            ) from error
        module = module.eval().float().to(model.device).requires_grad_(False)
        models.append(Model(package, module, model.device))
    return models


def variance_of_gradients(model: Model, models: list[Model], volumes: list, slices=("",), label: int = -1) -> float:
    """The VoG score of one case: the higher, the harder.

    S_t = ∂A_t/∂x of each checkpoint t; its standard deviation over the checkpoints (n in the denominator, as the authors' code has it;
    eq. 3 prints the root over 1/K alone) voxel by voxel; then the mean over voxels and channels. A classifier's A is the logit of the class, before the
    softmax. Here it is the mean of the label's logit, before the activation, over the voxels where ``model`` predicts the label: the same
    voxels for every checkpoint.

    Parameters
    ----------
    model : Model
        The trained network.
    models : list of Model
        Its `checkpoints`.
    volumes : list of Volume
        One per channel.
    slices : sequence of str
        For 2-D networks the slices, which count as one image.
    label : int
        Output channel.

    Returns
    -------
    float
        NaN where nothing is predicted.
    """
    label %= len(model.labels)
    parts = []
    for one in slices:
        prepared = prepare(model, volumes, one)
        model.require_memory(prepared.shape, gradient=True, lower="the volume's size (crop it)")
        inside = torch.zeros(prepared.shape, dtype=torch.bool, device=model.device)
        inside[prepared.valid] = True
        with model.frozen(), torch.no_grad():
            parts.append((prepared.x, inside, model.foreground(sliding_logits(model, prepared.x), label)[0] & inside))
    count = sum(int(where.sum()) for *_, where in parts)
    if not count:
        return math.nan
    total = voxels = 0
    for x, inside, where in parts:
        mean = squares = torch.zeros_like(x)
        for n, one in enumerate(models, 1):
            with one.frozen(), torch.enable_grad():
                image = x.clone().requires_grad_(True)
                score = sliding_logits(one, image)[0, label][where].sum() / count
                found = one.gradient(score, image) if where.any() else torch.zeros_like(x)
            away = found - mean
            mean = mean + away / n
            squares = squares + away * (found - mean)
        total += float((squares / len(models)).clamp_min(0).sqrt()[0][:, inside].double().sum())
        voxels += x.shape[1] * int(inside.sum())
    return total / voxels
