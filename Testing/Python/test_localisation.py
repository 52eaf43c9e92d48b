"""Distances, ratios and thresholds that can be worked out by hand, in 2-D and 3-D; tests of paired cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import ndimage, stats

from MedXAILib.evaluation.localisation import (
    area_ratio,
    at_percentile,
    centre,
    components,
    dice,
    distance,
    hausdorff,
    hit,
    overlap,
)  # fmt: skip
from MedXAILib.evaluation.statistics import holm, signed_rank

EMPTY = np.zeros((20, 30), bool)


def box(shape, *ranges):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*one) for one in ranges)] = True
    return mask


def points(shape, *at):
    mask = np.zeros(shape, bool)
    for one in at:
        mask[one] = True
    return mask


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_voxels_that_share_a_corner_are_one_component():
    assert len(components(points((5, 5), (0, 0), (1, 1), (3, 3)))) == 2
    found = components(points((4, 4, 4), (0, 0, 0), (1, 1, 1), (3, 3, 3)))
    assert [int(one.sum()) for one in found] == [2, 1] and found[0].dtype == bool and found[0].shape == (4, 4, 4)
    assert components(EMPTY) == []


@pytest.mark.parametrize(("shape", "spacing"), [((9, 9), (2, 0.5)), ((1, 9, 9), (7, 2, 0.5)), ((9, 9, 9), (1, 2, 3))])
def test_the_centre_is_in_mm(shape, spacing):
    mask = box(shape, *((2, 5),) * len(shape)) if 1 not in shape else box(shape, (0, 1), (2, 5), (2, 5))
    expected = [0 if n == 1 else 3 * mm for n, mm in zip(shape, spacing)]
    np.testing.assert_allclose(centre(mask, spacing), expected)
    assert np.isnan(centre(np.zeros(shape, bool), spacing)).all()


# ---- D and H ---------------------------------------------------------------------------------------------------------


def test_distance_between_centres():
    """Squares with centres (2, 2) and (5, 6), 3 and 4 voxels apart."""
    a, b = box((20, 30), (1, 4), (1, 4)), box((20, 30), (4, 7), (5, 8))
    assert distance(a, b, (1, 1)) == pytest.approx(5)
    assert distance(a, b, (2, 0.5)) == pytest.approx(math.hypot(6, 2))
    assert distance(a, a, (2, 0.5)) == 0 == hausdorff(a, a, (2, 0.5))
    solid = box((9, 9, 9), (1, 4), (1, 4), (1, 4)), box((9, 9, 9), (3, 6), (4, 7), (5, 8))
    assert distance(*solid, (3, 2, 1)) == pytest.approx(math.sqrt(6**2 + 6**2 + 4**2))


def test_several_parts_give_the_median_over_pairs():
    """Points on one row: findings at 0 and 10, components at 1, 2 and 20: distances 1, 2, 20, 9, 8, 10."""
    truth, found = points((3, 30), (1, 0), (1, 10)), points((3, 30), (0, 3), (1, 6), (1, 20))
    assert distance(points((3, 30), (1, 3)), truth, (1, 2)) == pytest.approx((6 + 14) / 2)  # of two, the mean
    expected = np.median([math.hypot(1, 3), math.hypot(1, 7), 6, 4, 20, 10])
    assert distance(found, truth, (1, 1)) == pytest.approx(expected)
    one_by_one = [points((3, 30), (1, 0)), points((3, 30), (1, 10)), np.zeros((3, 30), bool)]
    assert distance(found, one_by_one, (1, 1)) == pytest.approx(expected)
    # Findings that touch are two when given as two.
    touching = [points((3, 30), (1, 0)), points((3, 30), (1, 1))]
    one = points((3, 30), (1, 8))
    assert distance(one, touching, (1, 1)) == pytest.approx(7.5) == distance(one, touching[0] | touching[1], (1, 1))
    assert distance(one, [touching[0], *touching], (1, 1)) == pytest.approx(8)  # 8, 8, 7


def test_hausdorff_by_hand():
    a, b = box((20, 30), (2, 5), (2, 5)), box((20, 30), (2, 5), (2, 15))
    assert (
        hausdorff(a, b, (1, 1)) == 10 == hausdorff(b, a, (1, 1))
    )  # one lies within the other: still the farthest voxel
    assert hausdorff(a, b, (9, 0.5)) == 5


def test_hausdorff_is_of_the_whole_result_and_the_median_over_findings():
    a = box((20, 30), (2, 5), (2, 5))
    speck = a | points((20, 30), (19, 2))
    assert hausdorff(speck, a, (1, 1)) == 15  # a distant speck counts
    # Result a, findings a and a point at (19, 2): 0 to the first; the second's farthest voxel of a is (2, 4).
    assert hausdorff(a, speck, (1, 1)) == pytest.approx((0 + math.hypot(17, 2)) / 2)


@pytest.mark.parametrize("shape", [(14, 11), (1, 14, 11), (7, 9, 8)])
def test_hausdorff_is_that_of_all_pairs(shape):
    random, spacing = np.random.default_rng(len(shape)), (1.5, 0.7, 2.0)[: len(shape)]
    for _ in range(5):
        found = random.random(shape) > 0.97
        truth = ndimage.binary_dilation(random.random(shape) > 0.995, iterations=1)
        found.flat[3] = truth.flat[-3] = True
        a = np.argwhere(found) * spacing
        each = []
        for one in components(truth):
            pairs = np.linalg.norm(a[:, None] - (np.argwhere(one) * spacing)[None], axis=-1)
            each.append(max(pairs.min(0).max(), pairs.min(1).max()))
        assert hausdorff(found, truth, spacing) == pytest.approx(np.median(each))


def test_empty_sets_have_no_distance():
    some = box((20, 30), (1, 4), (1, 4))
    for measure in (distance, hausdorff):
        for pair in ((EMPTY, some), (some, EMPTY), (EMPTY, EMPTY), (some, []), (some, [EMPTY])):
            assert math.isnan(measure(*pair, (1, 1))), (measure, pair)


# ---- ratios ----------------------------------------------------------------------------------------------------------


def test_ratios_by_hand():
    organ, a, b = box((20, 30), (0, 10), (0, 10)), box((20, 30), (0, 5), (0, 4)), box((20, 30), (0, 10), (2, 4))
    assert area_ratio(a, organ) == 0.2 and area_ratio(EMPTY, organ) == 0 and math.isnan(area_ratio(a, EMPTY))
    assert overlap(a, b) == 10 / 20 and overlap(a, organ) == 1 and overlap(a, ~organ) == 0
    assert math.isnan(overlap(a, EMPTY)) and math.isnan(overlap(EMPTY, EMPTY))
    assert dice(a, b) == 20 / 40 and dice(a, a) == 1 and dice(a, EMPTY) == 0 and math.isnan(dice(EMPTY, EMPTY))


def test_hit_of_a_mask_is_the_centre_of_its_largest_part():
    truth = box((20, 30), (0, 6), (0, 6))
    assert hit(box((20, 30), (1, 4), (1, 4)) | box((20, 30), (10, 12), (10, 12)), truth) == 1
    assert hit(box((20, 30), (1, 2), (1, 2)) | box((20, 30), (10, 12), (10, 12)), truth) == 0
    ring = box((20, 30), (1, 6), (1, 6)) & ~box((20, 30), (2, 5), (2, 5))
    assert hit(ring, box((20, 30), (3, 4), (3, 4))) == 1  # about the finding, as the paper's regions often are
    assert hit(EMPTY, truth) == 0 and math.isnan(hit(truth, EMPTY))


def test_hit_of_a_map_is_its_maximum():
    truth, values = box((4, 5), (0, 2), (0, 5)), np.zeros((4, 5), np.float32)
    assert hit(values, truth) == 0.5  # of a constant map every voxel is the maximum: half of them lie inside
    values[3, 3] = 1
    assert hit(values, truth) == 0
    values[1, 1] = 2
    assert hit(values, truth) == 1


def test_a_percentile_is_one_of_the_organ():
    """The organ holds 0…99, the rest is brighter: above the 75th percentile are 75…99."""
    values = np.full((20, 10), 1000.0)
    values[:10] = np.random.default_rng(0).permutation(100).reshape(10, 10)
    organ = values < 100
    for percentile, count in ((50, 50), (75, 25), (90, 10)):
        found = at_percentile(values, organ, percentile)
        assert found.sum() == count and values[found].min() == 100 - count and not found[10:].any()
    whole = at_percentile(values, np.ones_like(organ), 50)
    assert whole.sum() == 100 and whole[10:].all()  # of all voxels the brighter half is what lies outside


def test_ties_at_a_percentile():
    organ = np.ones((10, 10), bool)
    zeros = np.zeros((10, 10))
    zeros[0, :4] = [1, 2, 3, 4]
    assert at_percentile(zeros, organ, 50).sum() == 4  # what is 0, as half of the image is, is not above it
    plateau = zeros.copy()
    plateau[5:] = 4
    assert at_percentile(plateau, organ, 75).sum() == 51  # more than a quarter share the maximum: all of them
    for constant in (0.0, 3.5):
        assert not at_percentile(np.full((10, 10), constant), organ, 90).any()
    assert not at_percentile(zeros, EMPTY[:10, :10], 50).any()


# ---- tests of paired cases -------------------------------------------------------------------------------------------


def test_signed_rank_by_hand():
    """Differences 1, 2, 3, 4, 5, −6: the ranks of the negative ones sum to 6; 14 of 64 sign patterns give 6 or less, so p = 2 · 14 / 64."""
    b = np.array([3.0, 1, 4, 1, 5, 9])
    a = b + [1, 2, 3, 4, 5, -6]
    found = signed_rank(a, b)
    patterns = [sum(rank for rank in range(1, 7) if n >> (rank - 1) & 1) for n in range(64)]
    assert sum(one <= 6 for one in patterns) == 14
    assert (found.p, found.n, found.dropped) == (pytest.approx(28 / 64), 6, 0)
    assert signed_rank(b, a).p == pytest.approx(found.p)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_signed_rank_with_ties_is_that_of_all_signs(n):
    random = np.random.default_rng(n)
    for _ in range(4):
        differences = random.integers(-3, 5, n).astype(float)
        differences[0] = 2
        ranks = stats.rankdata(abs(differences))[differences != 0]
        sums = [sum(r for r, up in zip(ranks, signs) if up) for signs in itertools.product((0, 1), repeat=len(ranks))]
        ours = stats.rankdata(abs(differences))[differences > 0].sum()
        expected = min(1, 2 * min(np.mean(np.array(sums) <= ours + 1e-9), np.mean(np.array(sums) >= ours - 1e-9)))
        assert signed_rank(differences, np.zeros(n)).p == pytest.approx(expected)
    smooth = random.normal(0.3, 1, 30 + n)
    assert signed_rank(smooth, 0 * smooth).p == pytest.approx(stats.wilcoxon(smooth).pvalue)  # exact in SciPy, too


def test_signed_rank_is_that_of_scipy_with_zeros_after_pratt():
    random = np.random.default_rng(0)
    a, b = random.normal(0.4, 1, (2, 60)).round(1)
    b[:5] = a[:5]
    found = signed_rank(np.append(a, [np.nan, 1]), np.append(b, [1, np.nan]))
    assert (found.n, found.dropped) == (60, 2)
    assert found.p == pytest.approx(stats.wilcoxon(a, b, zero_method="pratt").pvalue)
    assert found.p != pytest.approx(stats.wilcoxon(a, b, zero_method="wilcox").pvalue)


def test_signed_rank_without_a_difference():
    assert signed_rank([1, 2, 3], [1, 2, 3]).p == 1
    none = signed_rank([math.nan, 1], [2, math.nan])
    assert math.isnan(none.p) and (none.n, none.dropped) == (0, 2)


def test_holm_by_hand():
    """.01·4, .02·3, then .03·2 = .06 and .04 are raised to what came before."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1] and holm([]) == []
    with_nan = holm([0.02, math.nan, 0.04])
    assert with_nan[0] == pytest.approx(0.04) and math.isnan(with_nan[1]) and with_nan[2] == pytest.approx(0.04)
