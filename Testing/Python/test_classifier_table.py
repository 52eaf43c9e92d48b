"""Table 1 of Katzmann et al. 2021: by hand, by the definitions written out, and where nothing is defined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from MedXAILib.evaluation.classifier_table import FIGURES, auc, average_precision, classifier_figures, classifier_table

# 4 true positives, 2 false negatives, 1 false positive, 3 true negatives
TRUE = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 0])
P = np.array([0.9, 0.8, 0.7, 0.6, 0.4, 0.2, 0.65, 0.3, 0.2, 0.1])


def test_by_hand():
    found = {name: one.value for name, one in classifier_figures(TRUE, P).items()}
    se, sp, ppv, npv = 4 / 6, 3 / 4, 4 / 5, 3 / 5
    assert found == pytest.approx(
        {
            "accuracy": 0.7, "f1": 2 * ppv * se / (ppv + se), "sensitivity": se, "specificity": sp, "ppv": ppv, "npv": npv,
            "informedness": se + sp - 1, "markedness": ppv + npv - 1, "mcc": (4 * 3 - 1 * 2) / math.sqrt(5 * 6 * 4 * 5),
            "auc": (4 + 4 + 4 + 3 + 3 + 1.5) / 24,  # of the negatives each positive beats, the tie at 0.2 half
        }
    )  # fmt: skip
    assert list(found) == list(FIGURES) and found["mcc"] == pytest.approx(math.sqrt(found["informedness"] * found["markedness"]))  # fmt: skip


def by_definition(true, p):
    """As scikit-learn has it, case by case."""
    guess = p > 0.5
    pairs = [(a > b) + 0.5 * (a == b) for a in p[true == 1] for b in p[true == 0]]
    seen = [(t, g) for t, g in zip(true, guess)]
    tp, fn, fp, tn = (sum(one == pair for one in seen) for pair in ((1, True), (1, False), (0, True), (0, False)))
    return {
        "accuracy": np.mean(true == guess), "f1": tp / (tp + (fp + fn) / 2), "sensitivity": tp / (tp + fn), "specificity": tn / (tn + fp),
        "ppv": tp / (tp + fp), "npv": tn / (tn + fn), "informedness": tp / (tp + fn) - fp / (tn + fp), "markedness": tp / (tp + fp) - fn / (tn + fn),
        "mcc": np.corrcoef(true, guess)[0, 1], "auc": np.mean(pairs),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_by_the_definitions(seed):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 2, 60)
    p = np.round(np.clip(rng.normal(0.35 + 0.3 * true, 0.25), 0, 1), 2)
    found = classifier_figures(true, p)
    assert {name: one.value for name, one in found.items()} == pytest.approx(by_definition(true, p))
    for name, one in found.items():
        assert one.low < one.value < one.high and one.n == 60, name
    # About what the binomial distribution says of a share.
    share = found["accuracy"].value
    assert found["accuracy"].high - found["accuracy"].low == pytest.approx(4 * math.sqrt(share * (1 - share) / 60), rel=0.2)  # fmt: skip
    table = classifier_table(found).columns
    assert table["metric"] == list(FIGURES.values()) and table["n"] == [60] * 10 and table["value"][0] == share


def test_the_same_twice_and_cases_without_a_probability():
    p = P.copy()
    p[3] = math.nan
    a, b = classifier_figures(TRUE, p), classifier_figures(np.delete(TRUE, 3), np.delete(p, 3))
    assert repr(a) == repr(b) == repr(classifier_figures(TRUE, p))  # intervals, NaN and all
    assert a["accuracy"].n == 9 and a["accuracy"].low < a["accuracy"].high


def test_few_cases_have_intervals():
    """Of ten cases with four negatives a resample may have none: an interval is made of the others, as if there were no such resample."""
    found = classifier_figures(TRUE, P)
    for name, one in found.items():
        assert (
            0 <= one.low + (name in ("informedness", "markedness", "mcc")) and one.low < one.value <= one.high <= 1
        ), name
    assert (
        classifier_figures([0, 1] * 4, [0.1, 0.9] * 4)["auc"].low == 1
    )  # perfect, also where a resample has one class


def test_the_interval_without_undefined_resamples_is_scipys():
    from MedXAILib.evaluation import statistics

    values = np.random.default_rng(1).gamma(2, size=30)
    plain = statistics.estimate(np.mean, values)
    drawn = np.random.default_rng(2).choice(values, (100000, 30)).mean(1)
    low, high = statistics._bca(np.mean, values[None], values.mean(), drawn)
    assert (low, high) == pytest.approx((plain.low, plain.high), rel=0.02)


def test_a_biased_statistic_has_the_interval_of_scipy():
    """The variance of skewed values: more than half of the resamples lie below it, and its acceleration is not 0."""
    from MedXAILib.evaluation import statistics

    values = np.random.default_rng(3).gamma(1, size=25)
    theirs = stats.bootstrap((values,), np.var, n_resamples=9999, method="BCa", random_state=np.random.default_rng(0))
    drawn, value = theirs.bootstrap_distribution, np.var(values)
    assert (drawn < value).mean() > 0.55
    assert statistics._bca(np.var, values[None], value, drawn) == pytest.approx(tuple(theirs.confidence_interval), rel=1e-6)  # fmt: skip
    assert np.quantile(drawn, 0.975) < 0.9 * theirs.confidence_interval.high


def test_nothing_defined_is_no_crash():
    only = classifier_figures(np.ones(20), np.linspace(0.4, 0.9, 20))
    assert only["sensitivity"].value == 16 / 20 and only["accuracy"].low < 0.8 < only["accuracy"].high
    assert all(math.isnan(only[name].value) for name in ("specificity", "informedness", "mcc", "auc"))
    assert only["ppv"].value == 1 == only["ppv"].low and only["npv"].value == 0
    right = classifier_figures([0, 1] * 10, [0.1, 0.9] * 10)
    assert right["accuracy"].value == 1 == right["auc"].value == right["mcc"].value == right["accuracy"].low
    never = classifier_figures([0, 1] * 10, [0.1, 0.2] * 10)
    assert math.isnan(never["ppv"].value) and math.isnan(never["markedness"].value) and math.isnan(never["mcc"].value)
    assert never["auc"].value == 1 and never["sensitivity"].value == 0 == never["f1"].value
    for none in (classifier_figures([], []), classifier_figures([1, 0], [0.2, 0.3])):
        assert all(math.isnan(one.value) for one in none.values())


def test_the_class_that_is_answered():
    """Where more classes than two compete, a probability below a half may be the largest."""
    assert classifier_figures(TRUE, P / 2, P > 0.5)["accuracy"].value == 0.7


def test_auc_and_average_precision():
    assert auc([3, 2, 1], [1, 0, 0]) == 1 and auc([1, 1], [1, 0]) == 0.5 and math.isnan(auc([1, 2], [1, 1]))
    np.testing.assert_allclose(auc([[3, 2, 1], [1, 2, 3]], [[1, 0, 0], [1, 0, 0]]), [1, 0])
    # Thresholds 3 (1 of 1), 2 (a tie, 2 of 3), 1 (3 of 4): recalls 1/3, 2/3, 1
    assert average_precision([3, 2, 2, 1], [1, 1, 0, 1]) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert average_precision([1, 1, 1, 1], [1, 0, 0, 0]) == 0.25 and math.isnan(average_precision([1, 2], [0, 0]))
