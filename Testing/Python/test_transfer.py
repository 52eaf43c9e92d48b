"""The transfer of section 4.1: means, the paired t test and its effect size by their formulae, flips by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from MedXAILib.evaluation.transfer import paired_t, transfer, transfer_table

X = np.array([0.2, 0.4, 0.6, 0.8, 0.5, 0.1, 0.9, 0.3])
UP = np.array([0.7, 0.9, 0.8, 0.95, 0.45, 0.6, 0.85, 0.55])
DOWN = np.array([0.1, 0.1, 0.55, 0.4, 0.3, 0.1, 0.5, 0.2])


def judged(x, down, up):
    """Of two classes, whose border is 0.5."""
    x, down, up = (np.asarray(one, float) for one in (x, down, up))
    return transfer(x, down, up, x > 0.5, np.where(x > 0.5, down <= 0.5, up > 0.5))


def test_by_hand():
    found = judged(X, DOWN, UP)
    assert [found.images[name].value for name in ("x", "G⁻(x)", "G⁺(x)")] == pytest.approx(
        [X.mean(), DOWN.mean(), UP.mean()]
    )
    # Answered negative (p ≤ 0.5): 0.2, 0.4, 0.5, 0.1, 0.3; the third stays. Positive: 0.6 stays, 0.8 and 0.9 (to 0.5 exactly) go.
    assert (found.to_positive.value, found.to_positive.n) == (0.8, 5)
    assert (found.to_negative.value, found.to_negative.n) == (pytest.approx(2 / 3), 3)
    assert (found.flipped.value, found.flipped.n) == (6 / 8, 8)
    assert found.ordered.value == 5 / 8  # not 0.5 and 0.9, which G⁺ lowers, nor 0.1, which G⁻ leaves
    assert found.flipped.low < 0.75 < found.flipped.high


def test_the_paired_t_test():
    d = UP - X
    found = judged(X, DOWN, UP)
    t = d.mean() / (d.std(ddof=1) / math.sqrt(8))
    assert found.up.t == pytest.approx(t) and found.up.df == 7
    assert found.up.p == pytest.approx(2 * stats.t.sf(t, 7)) == pytest.approx(stats.ttest_rel(UP, X).pvalue)
    assert (
        found.up.effect.value == pytest.approx(t / math.sqrt(8))
        and found.up.effect.low < found.up.effect.value < found.up.effect.high
    )
    assert found.down.difference.value == pytest.approx((X - DOWN).mean()) and found.down.t > 0
    swapped = paired_t(X, UP)
    assert (swapped.t, swapped.p, swapped.effect.value) == pytest.approx((-t, found.up.p, -found.up.effect.value))


def test_the_table():
    columns = transfer_table(judged(X, DOWN, UP)).columns
    assert columns["of"] == ["x", "G⁻(x)", "G⁺(x)", "x − G⁻(x)", "G⁺(x) − x"]
    assert columns["probability"][4] == pytest.approx((UP - X).mean()) and math.isnan(columns["t"][0])
    assert columns["df"][3:] == [7, 7] and columns["n"] == [8] * 5


def test_what_is_not_defined():
    assert paired_t([1, 1], [1, math.nan]).df == 0 and math.isnan(paired_t([1.0], [0.0]).t)
    same = paired_t(X + 0.1, X)
    assert same.difference.value == pytest.approx(0.1) and math.isnan(same.t) and math.isnan(same.effect.value)
    nothing = judged([], [], [])
    assert math.isnan(nothing.images["x"].value) and math.isnan(nothing.flipped.value) and nothing.flipped.n == 0
    gone = judged([0.2, math.nan, 0.3, 0.4], [0.1] * 4, [0.9] * 4)
    assert gone.flipped.n == 3 and gone.flipped.value == 1 and math.isnan(gone.to_negative.value)
    assert judged(X, X, X).flipped.value == 0 and judged(X, X, X).ordered.value == 0


def test_flips_are_those_that_are_given():
    """Of more classes than two neither the side nor a flip follows from the probabilities."""
    positive, flipped = np.array([1, 1, 1, 0, 0, 0, 0, 0]), np.array([1, 0, 0, 1, 1, 1, 0, 0])
    found = transfer(X, DOWN, UP, positive, flipped)
    assert (found.flipped.value, found.to_negative.value, found.to_positive.value) == (4 / 8, 1 / 3, 3 / 5)
    gone = transfer(np.where(np.arange(8) == 3, math.nan, X), DOWN, UP, positive, flipped)
    assert (gone.flipped.value, gone.to_positive.value, gone.to_negative.n) == (3 / 7, 2 / 4, 3)
