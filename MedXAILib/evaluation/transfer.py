"""Whether a pair of generators moves images from class to class (Katzmann et al. 2021, section 4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..explanation import Table
from .statistics import Estimate, estimate, wilson


@dataclass(frozen=True)
class PairedT:
    """Student's paired t test, two-sided, with the effect size d_z = mean / standard deviation of the differences."""

    difference: Estimate  # a − b
    t: float
    df: int
    p: float
    effect: Estimate  # d_z


def paired_t(a, b) -> PairedT:
    """Compare paired values; pairs in which one is NaN are left out.

    Returns
    -------
    PairedT
        t, p and the effect are NaN for fewer than two pairs, and where all differences are the same (an effect without spread has no size).
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    d = (a - b)[np.isfinite(a) & np.isfinite(b)]
    t, p, effect = math.nan, math.nan, Estimate(math.nan, math.nan, math.nan, len(d))
    if len(d) > 1 and _spread(d) > 0:
        t, p = (float(one) for one in stats.ttest_1samp(d, 0.0))
        effect = estimate(_effect, d)
    return PairedT(estimate(np.mean, d), t, max(len(d) - 1, 0), p, effect)


@dataclass(frozen=True)
class Transfer:
    """What a pair of generators does to the probability of the positive class.

    ``up`` is G⁺(x) against x, ``down`` x against G⁻(x). ``flipped`` is the share of cases whose class the opposite generator changes (``to_positive`` of those on
    the negative side, ``to_negative`` of the others), ``ordered`` the share in which G⁻(x) < x < G⁺(x).
    """

    images: dict[str, Estimate]  # x, G⁻(x), G⁺(x): mean probability
    up: PairedT
    down: PairedT
    flipped: Estimate
    to_positive: Estimate
    to_negative: Estimate
    ordered: Estimate


def transfer(x, down, up, positive, flipped) -> Transfer:
    """Judge a transfer by the probability of the positive class.

    Parameters
    ----------
    x, down, up : array, shape (cases,)
        Probability of the positive class at x, G⁻(x) and G⁺(x).
    positive, flipped : array, shape (cases,)
        Whether x lies on the positive side (`Sides.is_positive`), and whether the opposite generator changes its class (`Sides.flipped`).
    """
    x, down, up = (np.asarray(one, float) for one in (x, down, up))
    known = np.isfinite(x) & np.isfinite(down) & np.isfinite(up)
    x, down, up = x[known], down[known], up[known]
    positive, flipped = (np.asarray(one, bool)[known] for one in (positive, flipped))
    return Transfer(
        {"x": estimate(np.mean, x), "G⁻(x)": estimate(np.mean, down), "G⁺(x)": estimate(np.mean, up)},
        paired_t(up, x), paired_t(x, down), wilson(int(flipped.sum()), len(x)), wilson(int(flipped[~positive].sum()), int((~positive).sum())),
        wilson(int(flipped[positive].sum()), int(positive.sum())), wilson(int(((down < x) & (x < up)).sum()), len(x)),
    )  # fmt: skip


def transfer_table(found: Transfer) -> Table:
    """As a table: the mean probability of the three images, then the two differences with their tests."""
    names = ("of", "probability", "low", "high", "t", "df", "p", "d_z", "d_z_low", "d_z_high", "n")
    rows = [
        (name, one.value, one.low, one.high, *[math.nan] * 6, one.n) for name, one in found.images.items()
    ] + [
        (name, one.difference.value, one.difference.low, one.difference.high, one.t, one.df, one.p, one.effect.value, one.effect.low, one.effect.high,
         one.difference.n)
        for name, one in (("x − G⁻(x)", found.down), ("G⁺(x) − x", found.up))
    ]  # fmt: skip
    return Table("Probability of the positive class", {name: list(column) for name, column in zip(names, zip(*rows))})


def _spread(d, axis=-1):
    """The standard deviation (n − 1); 0 where there is none beyond rounding."""
    sd = np.std(d, axis=axis, ddof=1)
    return np.where(sd <= 1e-12 * np.abs(d).max(axis), 0.0, sd)


def _effect(d, axis=-1):
    """d_z; infinite where there is no spread, which a resample may draw."""
    sd, mean = _spread(d, axis), np.mean(d, axis)
    return np.where(sd > 0, mean / np.where(sd > 0, sd, 1), np.copysign(np.inf, mean))
