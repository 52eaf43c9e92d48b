"""The losses of cycle-consistent activation maximization (Katzmann et al. 2021, eq. 1 to 4), all in 32 bits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from ..models.ssim import dssim


def activation_loss(log_odds: Tensor, kind: str) -> Tensor:
    """What raises a class, from the log-odds of its probability, shape (N,): its cross-entropy −log p, or −log-odds (``linear``); the mean over images.

    Eq. 4 prints C(x); meant is C(G(x)), without which nothing would raise the class.
    """
    return (functional.softplus(-log_odds) if kind == "cross-entropy" else -log_odds).mean()


def keeping_losses(x: Tensor, made: Sequence[Tensor], back: Sequence[Tensor], settings, data_range: float) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Similarity and cycle loss, both ways together.

    Parameters
    ----------
    x : Tensor, shape (N, C, *spatial)
    made : sequence of Tensor
        G⁺(x), G⁻(x).
    back : sequence of Tensor
        G⁻(G⁺(x)), G⁺(G⁻(x)).
    settings : CycleTrainingSettings
        ``similarity`` and ``dssim``.

    Returns
    -------
    similarity, cycle : Tensor, scalar
        Σ L_sim(x, G±(x)) (DSSIM in the paper), Σ ½ (L1 + DSSIM)(x, G∓(G±(x))) (eq. 2); means over images.
    """
    x, made, back = x.float(), [one.float() for one in made], [one.float() for one in back]
    structural = "dssim" in settings.similarity
    apart = [one.mean() for one in dssim(x, [*(made if structural else []), *back], data_range, settings.dssim)]
    alike, again = (apart[: len(made)], apart[len(made) :]) if structural else ([], apart)
    cycle = sum(0.5 * ((one - x).abs().mean() + d) for one, d in zip(back, again))
    if settings.similarity == "dssim":
        return sum(alike), cycle
    if settings.similarity == "l2":
        return sum((one - x).square().mean() for one in made), cycle
    plain = sum((one - x).abs().mean() for one in made)
    return (0.5 * (sum(alike) + plain) if structural else plain), cycle
