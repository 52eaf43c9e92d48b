"""Multi-scale structural dissimilarity, fast on patches and the same in 2-D and 3-D."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

TAPS, SIGMA = 11, 1.5  # of the Gaussian window (Wang et al. 2003)
K = (0.01, 0.03)


def scales_of(shape: Sequence[int]) -> int:
    """At how many scales, each half as large as the last, the window fits; at least one."""
    count, least = 1, min(shape)
    while least // 2 >= TAPS:
        count, least = count + 1, least // 2
    return count


def dssim(x: Tensor, others: Sequence[Tensor], data_range: float, kind: str = "standard", scales: int = 0) -> list[Tensor]:  # fmt: skip
    """Multi-scale structural dissimilarity of one image and several others; the statistics of ``x`` are worked out once.

    Parameters
    ----------
    x : Tensor, shape (N, C, *spatial)
    others : sequence of Tensor
        Of the same shape.
    data_range : float
        Of the data set, in the images' units.
    kind : str
        ``standard``: (1 − SSIM) / 2 with c₁ = (0.01 · range)², c₂ = (0.03 · range)². ``paper``: eq. 1 as printed, 1 − SSIM / 2 with c₁ = .01, c₂ = .03.
    scales : int
        How many, by means of 2 × 2 (× 2); 0: as many as the window of 11 fits. Smaller images get a smaller window.

    Returns
    -------
    list of Tensor, shape (N,)
        The mean over positions where the window lies inside, channels and scales; 0 for equal images (½ for ``paper``), 1 at most.
    """
    c1, c2 = K if kind == "paper" else tuple((k * data_range) ** 2 for k in K)
    dims, images = x.ndim - 2, [one.float() for one in (x, *others)]
    totals = [0.0] * len(others)
    pool = functional.avg_pool2d if dims == 2 else functional.avg_pool3d
    middle = images[0].detach().mean(tuple(range(2, x.ndim)), keepdim=True)
    images = [one - middle for one in images]  # variances do not depend on it, but their rounding does
    count = scales or scales_of(x.shape[2:])
    for scale in range(count):
        images = [pool(one, 2) for one in images] if scale else images
        x, *rest = images
        x2 = x * x
        parts = [x, x2, *rest, *(one * one for one in rest), *(x * one for one in rest)]
        mean, square, *found = _blurred(torch.stack(parts))
        n = len(rest)
        for number, (other, other2, both) in enumerate(zip(found[:n], found[n : 2 * n], found[2 * n :])):
            covariance, variances = both - mean * other, square - mean * mean + other2 - other * other
            a, b = mean + middle, other + middle
            ssim = (2 * a * b + c1) * (2 * covariance + c2) / ((a * a + b * b + c1) * (variances + c2))
            totals[number] = totals[number] + ssim.flatten(1).mean(1) / count
    return [1 - one / 2 if kind == "paper" else (1 - one) / 2 for one in totals]


def cycle_errors(x: Tensor, back: Sequence[Tensor], data_range: float) -> list[float]:
    """½ (mean absolute difference + DSSIM) of an image and what comes back through both generators, for each order (Katzmann et al. 2021, eq. 2)."""
    return [0.5 * float((one - x).abs().mean() + d.mean()) for one, d in zip(back, dssim(x, back, data_range))]


def _blurred(x: Tensor) -> Tensor:
    """Gaussian mean over the last axes, all but the first three, where the window lies inside."""
    for axis in range(3, x.ndim):
        x = torch.tensordot(x, _window(x.shape[axis], x.device), ([axis], [0])).movedim(-1, axis)
    return x


@lru_cache(maxsize=32)
def _window(size: int, device) -> Tensor:
    """The Gaussian window at every place of an axis, shape (size, size − taps + 1): as a product of matrices it is fast for patches."""
    taps = min(TAPS, size - (size % 2 == 0))
    one = torch.exp(-0.5 * ((torch.arange(taps, dtype=torch.float64) - taps // 2) / SIGMA) ** 2)
    one = (one / one.sum()).float()
    found = torch.zeros(size, size - taps + 1)
    for place in range(size - taps + 1):
        found[place : place + taps, place] = one
    return found.to(device)
