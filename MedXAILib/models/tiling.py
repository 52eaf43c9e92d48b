"""Sliding windows, for networks that take one size only."""

from __future__ import annotations

import itertools

import torch

from ..errors import MedXAIError


def sliding_logits(model, x: torch.Tensor, overlap: float = 0.5, batch: int = 1) -> torch.Tensor:
    """Logits of a whole volume from windows of the package's ``size``, blended with Gaussian weights.

    Parameters
    ----------
    model : Model
        With ``fit`` ``window``; any other package gets one pass over the whole of ``x``.
    x : Tensor, shape (1, C, *spatial)
        At least one window large (`prepare` pads it).
    overlap : float
        Share of a window that its neighbour covers too.
    batch : int
        Windows computed at once.

    Returns
    -------
    Tensor, shape (1, labels, *spatial), float32
        Differentiable where gradients are on.
    """
    about = model.package.input
    if about.fit != "window":
        return model.logits(x)
    if any(n < size for n, size in zip(x.shape[2:], about.size)):
        raise MedXAIError(
            f"The input {tuple(x.shape[2:])} is smaller than a window {tuple(about.size)} of '{model.package.name}'."
        )
    if model.package.task != "segmentation":
        raise MedXAIError(
            f"'{model.package.name}' is a {model.package.task} network, which has no answer per voxel to blend; use fit resize or pad."
        )
    from monai.inferers import sliding_window_inference

    return sliding_window_inference(
        x, about.size, batch, model.logits, overlap=overlap, mode="gaussian", sigma_scale=0.125, progress=False
    )


def windows(shape, size, overlap: float = 0.5) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Windows of ``size`` over a grid of ``shape``, each with its own part: the parts meet in the middle and cover the grid once.

    Returns
    -------
    list of (window, own)
        Both as slices of the grid.
    """
    axes = []
    for n, m in zip(shape, size):
        count = 1 if n <= m else -(-(n - m) // max(1, int(m * (1 - overlap)))) + 1
        starts = [round(k * (n - m) / max(1, count - 1)) for k in range(count)]
        edges = [0, *((a + m + b) // 2 for a, b in itertools.pairwise(starts)), n]
        axes.append([(slice(a, a + m), slice(b, c)) for a, b, c in zip(starts, edges, edges[1:])])
    return [tuple(zip(*one)) for one in itertools.product(*axes)]
