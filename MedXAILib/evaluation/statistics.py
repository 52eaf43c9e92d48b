"""Statistics over cases, every figure with its interval."""

from __future__ import annotations

import inspect
import math
import warnings
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 9999
DEFINED = 0.9  # share of the resamples in which a statistic must be defined for an interval
FEWEST = 8  # cases below which no interval is given: a bootstrap of fewer says little
COVERAGES = (1.0, 0.9, 0.75, 0.5)  # section 4.6 of He et al. 2023, Table 2


@dataclass(frozen=True)
class Estimate:
    """A figure over ``n`` cases with its 95 % interval; NaN where undefined."""

    value: float
    low: float
    high: float
    n: int

    def named(self, name: str) -> dict[str, float]:
        """As scores of an explanation."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def pearson(x, y, axis: int = -1):
    """Pearson's correlation along an axis; 0 where one of both has no spread beyond rounding."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    a, b = (v - v.mean(axis, keepdims=True) for v in (x, y))
    spread = [(v**2).sum(axis) for v in (a, b)]
    flat = np.logical_or(*(s <= v.shape[axis] * (1e-12 * np.abs(v).max(axis)) ** 2 for s, v in zip(spread, (x, y))))
    return np.where(flat, 0.0, (a * b).sum(axis) / np.sqrt(np.where(flat, 1.0, spread[0] * spread[1])))


def spearman(x, y, axis: int = -1):
    """Spearman's correlation: Pearson's of the ranks, ties sharing their mean rank."""
    return pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis)


def estimate(statistic, *columns, seed: int = 0) -> Estimate:
    """A statistic over cases with its 95 % interval by bootstrap of whole cases, bias-corrected and accelerated (Efron 1987).

    Nothing is assumed of how Dice and scores are distributed; they are bounded and skewed, so Fisher's z does not hold.

    Parameters
    ----------
    statistic : callable
        ``statistic(*columns, axis)``, such as `pearson` or `numpy.mean`.
    *columns : array, shape (cases,)
        Cases in which one of them is NaN are left out.
    seed : int
        Of the `RESAMPLES` resamples.

    Returns
    -------
    Estimate
        NaN for fewer than three cases, and for a correlation with a column that has no spread; no interval for fewer than `FEWEST` cases.
    """
    columns = np.asarray(columns, float)
    columns = columns[:, np.isfinite(columns).all(0)]
    n = columns.shape[1]
    if n < 3 or (len(columns) > 1 and any(len(np.unique(one)) == 1 for one in columns)):
        return Estimate(math.nan, math.nan, math.nan, n)
    value = float(statistic(*columns, axis=-1))
    if n < FEWEST:
        return Estimate(value, math.nan, math.nan, n)
    name = "rng" if "rng" in inspect.signature(stats.bootstrap).parameters else "random_state"  # SciPy before 1.15
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of resamples that are all the same: told by the NaN below
        found = stats.bootstrap(
            tuple(columns), statistic, n_resamples=RESAMPLES, batch=max(1, 2**20 // n), paired=True, vectorized=True,
            method="BCa", **{name: np.random.default_rng(seed)},
        )  # fmt: skip
    low, high = (float(v) for v in found.confidence_interval)
    if math.isnan(low):
        drawn = found.bootstrap_distribution[np.isfinite(found.bootstrap_distribution)]
        if len(drawn) and np.ptp(drawn) < 1e-9:  # such as points on a line
            low = high = value
        elif len(drawn) >= DEFINED * RESAMPLES > 0 and len(drawn) < RESAMPLES:
            low, high = _bca(statistic, columns, value, drawn)
    return Estimate(value, low, high, n)


def _bca(statistic, columns, value, drawn) -> tuple[float, float]:
    """The interval of `estimate` from the resamples in which the statistic is defined (Efron 1987; a share without a case of its class is not)."""
    left_out = [float(statistic(*np.delete(columns, n, 1), axis=-1)) for n in range(columns.shape[1])]
    apart = np.nanmean(left_out) - np.array(left_out)[np.isfinite(left_out)]
    skew = (apart**3).sum() / (6 * (apart**2).sum() ** 1.5) if apart.any() else 0.0
    bias = stats.norm.ppf(((drawn < value).mean() + (drawn <= value).mean()) / 2)
    ends = bias + stats.norm.ppf([0.025, 0.975])
    shares = stats.norm.cdf(bias + ends / (1 - skew * ends)) if math.isfinite(bias) else np.array([0.025, 0.975])
    return tuple(float(v) for v in np.quantile(drawn, shares))


def wilson(hits: int, n: int) -> Estimate:
    """A share with its 95 % interval after Wilson 1927, which stays within 0 and 1 also for few cases; NaN for none."""
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    z = float(stats.norm.ppf(0.975))
    middle, reach = (hits + z * z / 2) / (n + z * z), z / (n + z * z) * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return Estimate(hits / n, middle - reach if hits else 0.0, middle + reach if hits < n else 1.0, n)


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's signed-rank test of ``n`` pairs; of ``dropped`` more one value is undefined. ``p`` is NaN without a pair."""

    p: float
    n: int
    dropped: int


def signed_rank(a, b) -> SignedRank:
    """Wilcoxon's signed-rank test of paired values, two-sided; differences of 0 are ranked and then left out (Pratt 1959), all 0 give p = 1.

    Up to 50 pairs p is exact, also with ties (of the signs, given the ranks); beyond, the normal approximation of SciPy.

    Parameters
    ----------
    a, b : array, shape (cases,)
        Pairs in which one is NaN are dropped, and counted.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    known = np.isfinite(a) & np.isfinite(b)
    differences, dropped = (a - b)[known], int((~known).sum())
    if not differences.any():
        return SignedRank(1.0 if len(differences) else math.nan, len(differences), dropped)
    if len(differences) > 50:
        p = stats.wilcoxon(differences, zero_method="pratt").pvalue
    else:  # SciPy tries all signs one by one where there are ties
        ranks = np.rint(2 * stats.rankdata(np.abs(differences))).astype(int)  # twice, so that shared ones are whole
        positive, ranks = ranks[differences > 0].sum(), ranks[differences != 0]
        share = np.zeros(ranks.sum() + 1)  # of all signs, by their positive sum
        share[0] = 1
        for rank in ranks:
            share /= 2
            share[rank:] += share[:-rank].copy()
        p = min(1.0, 2 * min(share[: positive + 1].sum(), share[positive:].sum()))
    return SignedRank(float(p), len(differences), dropped)


def holm(p_values) -> list[float]:
    """p values adjusted for their number after Holm 1979, in the order given; undefined ones stay NaN and are not counted."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]  # NaN comes last
    adjusted = np.full(len(p), math.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted.tolist()


def mean(values) -> float:
    """The mean of what is defined; NaN where nothing is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def sd(values) -> float:
    """The standard deviation (n − 1) of what is defined; NaN for fewer than two values."""
    return float(np.nanstd(values, ddof=1)) if np.isfinite(values).sum() > 1 else math.nan


def coverage(score, value, shares=COVERAGES) -> dict[str, list]:
    """What is left when the cases with the lowest score are rejected (section 4.6, Table 2).

    Parameters
    ----------
    score, value : array, shape (cases,)
        The higher the score, the longer a case is kept; −inf goes first. Of equal scores the first is kept.
    shares : sequence of float
        Shares of the cases that are kept; rejected is the whole number of cases below 1 − share.

    Returns
    -------
    dict
        Columns ``coverage``, ``cases``, ``from`` (lowest score kept), ``mean``, ``sd`` (n − 1) of the value.
    """
    score, value = np.asarray(score, float), np.asarray(value, float)
    order = np.argsort(-score, kind="stable")
    rows = {name: [] for name in ("coverage", "cases", "from", "mean", "sd")}
    for share in shares:
        kept = order[: len(order) - math.floor((1 - share) * len(order) + 1e-9)]
        _append(rows, share, len(kept), float(score[kept].min()) if len(kept) else math.nan, *_moments(value[kept]))
    return rows


def percentiles(score, value, most: int = 10) -> dict[str, list]:
    """The value of cases bucketed by percentile of the score (Fig. 11): ``most`` buckets, fewer where one would hold less than three cases.

    Returns
    -------
    dict
        Columns ``from`` and ``to`` (percentiles), ``cases``, ``score`` (mean), ``mean``, ``sd`` (n − 1) of the value.
    """
    score, value = np.asarray(score, float), np.asarray(value, float)
    order = np.argsort(score, kind="stable")
    count = max(1, min(most, len(order) // 3))
    rows = {name: [] for name in ("from", "to", "cases", "score", "mean", "sd")}
    for n, some in enumerate(np.array_split(order, count)):
        finite = score[some][np.isfinite(score[some])]
        _append(rows, 100 * n / count, 100 * (n + 1) / count, len(some), _moments(finite)[0], *_moments(value[some]))
    return rows


def _append(rows, *values):
    for column, one in zip(rows.values(), values):
        column.append(one)


def _moments(values) -> tuple[float, float]:
    """Mean and standard deviation, NaN where undefined."""
    return (
        float(np.mean(values)) if len(values) else math.nan,
        float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
    )
