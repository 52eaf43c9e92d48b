"""How good a classifier is, as Table 1 of Katzmann et al. 2021 tells it: ten figures of two classes, each with its interval."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from ..explanation import Table
from .statistics import Estimate, estimate

#: Figures in the paper's order, and their titles.
FIGURES = {
    "accuracy": "Accuracy", "f1": "F1", "sensitivity": "Sensitivity", "specificity": "Specificity", "ppv": "PPV", "npv": "NPV",
    "informedness": "Informedness", "markedness": "Markedness", "mcc": "MCC", "auc": "AUC",
}  # fmt: skip


def classifier_figures(true, probability, predicted=None) -> dict[str, Estimate]:
    """The figures of `FIGURES` with 95 % intervals by bootstrap of cases (`statistics.estimate`).

    Parameters
    ----------
    true : array, shape (cases,)
        1 for the positive class, else 0.
    probability : array, shape (cases,)
        Of the positive class.
    predicted : array, shape (cases,), optional
        1 where the classifier answers the positive class; by default where its probability is above 0.5.

    Returns
    -------
    dict of Estimate
        NaN where a figure is not defined, such as the sensitivity without a positive case; no interval where it is defined in less than 90 % of the resamples.
        Cases whose probability is NaN are left out.
    """
    true, probability = np.asarray(true, float), np.asarray(probability, float)
    predicted = (probability > 0.5).astype(float) if predicted is None else np.asarray(predicted, float)
    known = np.isfinite(true) & np.isfinite(probability) & np.isfinite(predicted)
    true, probability, predicted = (column[known] for column in (true, probability, predicted))
    found = {}
    for name in FIGURES:

        def figure(index, axis=-1, name=name):
            # Cases by their number: one column, so that one without spread (all are of one class) is not taken for undefined.
            at = np.asarray(index).astype(int)
            return figures(true[at], probability[at], predicted[at], name)

        found[name] = estimate(figure, np.arange(len(true)))
    return found


def classifier_table(found: dict[str, Estimate]) -> Table:
    """The figures as a table: one row each, in the paper's order."""
    columns = {"metric": [FIGURES[name] for name in found]}
    for part in ("value", "low", "high", "n"):
        columns[part] = [getattr(one, part) for one in found.values()]
    return Table("Performance of the classifier", columns)


def figures(true, probability, predicted, name: str) -> np.ndarray:
    """One figure along the last axis of arrays of 0 and 1 (and probabilities); NaN where it is not defined."""
    true, predicted = np.asarray(true) > 0, np.asarray(predicted) > 0
    if name == "auc":
        return auc(probability, true)
    tp, fp, fn, tn = (np.sum(one, -1, dtype=float) for one in (true & predicted, ~true & predicted, true & ~predicted, ~true & ~predicted))  # fmt: skip
    share = {
        "accuracy": (tp + tn, tp + fp + fn + tn), "f1": (2 * tp, 2 * tp + fp + fn), "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp), "ppv": (tp, tp + fp), "npv": (tn, tn + fn),
    }  # fmt: skip
    if name in share:
        return _ratio(*share[name])
    if name == "informedness":
        return _ratio(*share["sensitivity"]) + _ratio(*share["specificity"]) - 1
    if name == "markedness":
        return _ratio(*share["ppv"]) + _ratio(*share["npv"]) - 1
    return _ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))  # mcc


def auc(score, true) -> np.ndarray:
    """Area under the ROC curve along the last axis: how often a true case has the higher score than a false one, ties counting half.

    Parameters
    ----------
    score, true : array, shape (…, cases)

    Returns
    -------
    ndarray, shape (…)
        NaN without a true or without a false case.
    """
    true = np.asarray(true) > 0
    ranks = stats.rankdata(score, axis=-1)
    positive = true.sum(-1, dtype=float)
    negative = true.shape[-1] - positive
    return _ratio((ranks * true).sum(-1) - positive * (positive + 1) / 2, positive * negative)


def average_precision(score, true) -> float:
    """Area under the precision-recall curve as a sum over thresholds, Σ (R_n − R_{n−1}) P_n; equal scores share a threshold. NaN without a true case."""
    score, true = np.asarray(score, float).ravel(), np.asarray(true).ravel() > 0
    if not true.any():
        return math.nan
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # of each threshold
    hits = np.cumsum(true[order])[last]
    return float(np.sum(np.diff(hits, prepend=0) * hits / (last + 1)) / true.sum())


def _ratio(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    return np.where(b > 0, a / np.where(b > 0, b, 1), math.nan)
