"""`counterfactual`: known answers on planted classifiers, warm start, self-checks, geometry, formats, bad input, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from classifiers import classifier, exported, scripted, stack
from test_partial import inpainter
from torch import nn

from MedXAILib import io
from MedXAILib.cli import main
from MedXAILib.errors import MedXAIError
from MedXAILib.evaluation.judged import explain
from MedXAILib.explanation import Patch, run
from MedXAILib.settings import CounterfactualSettings
from MedXAILib.volume import Volume

DIMS = pytest.mark.parametrize("dims", (2, 3))
OBLIQUE = np.array([[-0.8, 0.1, 0, 10], [0.1, -0.9, 0, -20], [0, 0.05, 2, 5], [0, 0, 0, 1]], float)


class Score(nn.Module):
    """Two classes whose log-odds are ``gain`` · how(sum of each lesion) − ``offset``; ``how`` reduces (N, lesions) to (N)."""

    def __init__(self, lesions, gain: float, offset: float, how):
        super().__init__()
        self.register_buffer("lesions", torch.stack([torch.from_numpy(np.asarray(one, np.float32)) for one in lesions]))
        self.gain, self.offset, self.how = gain, offset, how

    def forward(self, x):
        sums = (x * self.lesions[None]).flatten(2).sum(2)
        odds = self.gain * self.how(sums) - self.offset
        return torch.stack([-odds / 2, odds / 2], 1)


def added(sums):
    return sums.sum(1)


def box(shape, *slices):
    mask = np.zeros(shape, bool)
    mask[slices] = True
    return mask


def shown(*lesions, matrix=None) -> Volume:
    """An image of constant background 0 with lesions of 1."""
    array = np.logical_or.reduce(lesions).astype(np.float32)
    return Volume(array if array.ndim == 3 else array[None], np.eye(4) if matrix is None else matrix, "image")


def counterfactual(model, volume, segments=(), each=None, **settings):
    chosen = (
        dict(
            fill="mean",
            lambda_score=1.0,
            theta=0.5,
            lambda_tv=0.0,
            lambda_area=1.0,
            mask_nodes=64,
            restarts=2,
            device="cpu",
        )
        | settings
    )
    return run(explain("counterfactual", model, [volume], CounterfactualSettings(**chosen), segments), each)


def region(result) -> np.ndarray:
    array = result.masks["region"].array > 0
    return array[0] if array.shape[0] == 1 else array


# ---- known answers ------------------------------------------------------------------------------------------------------


@DIMS
def test_the_lesion_goes_when_it_is_worth_its_area_and_stays_when_it_is_not(dims):
    """A perfect inpainter (constant background), a score linear in the lesion's pixels, area alone: a voxel gains λ₁ a (1 + p), between a and 2a, and costs λ₃ / Σ1."""
    shape, where = ((24, 28), np.s_[6:12, 8:16]) if dims == 2 else ((12, 14, 10), np.s_[3:8, 4:9, 2:6])
    lesion, gain = box(shape, *where), 0.2
    model = classifier(Score([lesion], gain, 2.0, added), dims)
    voxels = lesion.size
    worth = counterfactual(model, shown(lesion), lambda_area=0.9 * gain * voxels)
    assert np.array_equal(region(worth), lesion)  # all of it, and nothing outside
    assert worth.scores["log_odds_after"] == pytest.approx(-2, abs=1e-3)
    assert worth.scores["area_share"] == pytest.approx(lesion.mean())
    unworth = counterfactual(model, shown(lesion), lambda_area=2.1 * gain * voxels)
    assert not region(unworth).any() and unworth.provenance["crossed"] is False
    assert unworth.scores["probability_after"] == unworth.scores["probability_before"]
    assert any("No voxel crossed θ" in note and "--lambda-area" in note for note in unworth.notes)


def test_of_two_lesions_of_which_one_suffices_both_go():
    first, second = box((32, 32), np.s_[4:9], np.s_[5:10]), box((32, 32), np.s_[20:25], np.s_[18:23])
    model = classifier(Score([first, second], 0.3, 3.0, lambda sums: torch.logsumexp(4 * sums, 1) / 4))
    assert np.array_equal(region(counterfactual(model, shown(first, second), steps=200)), first | second)


def test_of_two_lesions_that_are_both_needed_the_smaller_goes():
    small, large = box((32, 32), np.s_[4:8], np.s_[5:9]), box((32, 32), np.s_[18:26], np.s_[18:26])
    model = classifier(Score([small, large], 0.3, 3.0, lambda sums: -torch.logsumexp(-sums, 1)))
    assert np.array_equal(region(counterfactual(model, shown(small, large), steps=200)), small)


def test_a_network_that_looks_at_a_marker_gives_the_marker():
    lesion, marker = box((32, 32), np.s_[10:18], np.s_[10:18]), box((32, 32), np.s_[1:4], np.s_[27:31])
    result = counterfactual(classifier(Score([marker], 0.5, 3.0, added)), shown(lesion, marker))
    assert np.array_equal(region(result), marker)


def test_the_border_makes_it_whole():
    """A lesion with a pixel that the network does not look at: without λ₂ it stays, with λ₂ it goes with the rest."""
    lesion = box((32, 32), np.s_[10:19], np.s_[10:19])
    pierced = lesion.copy()
    pierced[14, 14] = False
    model = classifier(Score([pierced], 0.3, 3.0, added))
    assert np.array_equal(region(counterfactual(model, shown(lesion))), pierced)
    assert np.array_equal(region(counterfactual(model, shown(lesion), lambda_tv=1.0)), lesion)


def test_with_nothing_deleted_image_and_answer_are_what_they_were():
    lesion = box((24, 24), np.s_[6:12], np.s_[8:16])
    image = shown(lesion)
    image.array[:] += np.random.default_rng(0).normal(0, 0.1, image.shape).astype(np.float32)
    before = image.array.copy()
    result = counterfactual(classifier(Score([lesion], 0.2, 1.0, added)), image, lambda_area=1e5)
    assert not region(result).any()
    assert np.array_equal(result.maps["inpainted"].volume.array, before) and np.array_equal(image.array, before)
    assert not result.maps["difference"].volume.array.any()
    assert result.scores["log_odds_after"] == result.scores["log_odds_before"]


def test_what_is_outside_the_region_is_untouched_to_the_bit():
    torch.manual_seed(0)
    image = Volume(np.random.default_rng(0).normal(0, 1, (1, 32, 32)).astype(np.float32), OBLIQUE, "image", "HU")
    result = counterfactual(classifier(stack(seed=3)), image, lambda_area=0.01, learning_rate=0.1)
    inside = result.masks["region"].array > 0
    assert inside.any() and not inside.all()
    assert np.array_equal(result.maps["inpainted"].volume.array[~inside], image.array[~inside])
    assert np.array_equal(result.maps["difference"].volume.array == 0, ~inside | (result.maps["inpainted"].volume.array == image.array))  # fmt: skip
    for layer in result.maps.values():
        assert layer.volume.same_grid(image)
    assert result.scores["log_odds_after"] < result.scores["log_odds_before"]


def test_only_the_organ_is_touched():
    first, second = box((32, 32), np.s_[4:9], np.s_[5:10]), box((32, 32), np.s_[20:25], np.s_[18:23])
    organ = box((32, 32), np.s_[:16], np.s_[:])
    image = shown(first, second)
    segment = image.with_array(organ[None].astype(np.uint8), "organ")
    segment.attributes["role"] = "organ"
    result = counterfactual(classifier(Score([first, second], 0.3, 3.0, added)), image, [segment])
    assert np.array_equal(region(result), first)
    assert result.scores["area_share"] == pytest.approx(first.sum() / organ.sum())


def test_paper_preset_starts_so_that_its_steps_can_cross():
    lesion = box((32, 32), np.s_[8:16], np.s_[8:16])
    paper = CounterfactualSettings.PRESETS["paper"]
    result = counterfactual(classifier(Score([lesion], 0.2, 2.0, added)), shown(lesion), **paper | {"lambda_tv": 0.0})
    assert np.array_equal(region(result), lesion)
    share = result.maps["mask"].volume.array
    assert 0.59 < share.max() < 0.81 and share.min() >= 0.19  # Adam moves a voxel by 0.2 at most


@pytest.mark.parametrize("theta", (0.2, 0.8))
def test_theta_cuts_the_mask(theta):
    lesion = box((24, 24), np.s_[6:12], np.s_[8:16])
    result = counterfactual(classifier(Score([lesion], 0.2, 2.0, added)), shown(lesion), theta=theta, steps=6)
    assert np.array_equal(region(result), result.maps["mask"].volume.array[0] > theta)


# ---- the run ------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_and_the_model_is_left_as_it_was():
    model = classifier(stack(norm=True))
    model.module.train()
    image = Volume(np.random.default_rng(0).normal(0, 1, (1, 32, 32)).astype(np.float32), np.eye(4), "image")
    before, state = {n: v.clone() for n, v in model.module.state_dict().items()}, torch.get_rng_state()
    first, second = (counterfactual(model, image, steps=10, fill="noise") for _ in range(2))
    assert np.array_equal(first.maps["mask"].volume.array, second.maps["mask"].volume.array)
    assert all(torch.equal(v, before[n]) for n, v in model.module.state_dict().items())
    assert model.module.training and torch.equal(torch.get_rng_state(), state)
    stopped = explain("counterfactual", model, [image], CounterfactualSettings(device="cpu"), ())
    for _ in range(12):
        next(stopped)
    stopped.close()
    assert model.module.training and torch.equal(torch.get_rng_state(), state)


def test_mask_and_image_are_streamed_and_the_curve_grows():
    lesion = box((24, 24), np.s_[6:12], np.s_[8:16])
    volume, seen, points = shown(lesion), {"mask": None, "inpainted": None}, []

    def each(step):
        points.extend(step.points)
        if step.previews:
            for name, one in step.previews().items():
                if seen[name] is None:
                    assert isinstance(one, Volume) and one.same_grid(volume)
                    seen[name] = one.array.copy()
                else:
                    assert isinstance(one, Patch)
                    seen[name][one.box] = one.array

    result = counterfactual(classifier(Score([lesion], 0.2, 2.0, added)), volume, each=each, steps=40)
    assert [one.step for one in points] == list(range(41)) and points[0].curve == "optimisation"
    assert points[-1].values["probability"] < 0.2 < 0.9 < points[0].values["probability"]
    np.testing.assert_array_equal(seen["mask"], result.maps["mask"].volume.array)
    np.testing.assert_allclose(seen["inpainted"], result.maps["inpainted"].volume.array, atol=1e-6)
    curve = result.curves["optimisation"]
    assert list(curve.columns) == ["step", "probability", "area", "loss"] and len(curve.columns["step"]) == 41


def test_a_warm_start_goes_on_from_the_mask():
    lesion = box((32, 32), np.s_[8:16], np.s_[8:16])
    model, image = classifier(Score([lesion], 0.2, 2.0, added)), shown(lesion)
    whole = counterfactual(model, image)
    start = whole.maps["mask"].volume
    start.attributes["role"] = "start"
    again = counterfactual(model, image, [start], steps=1)
    assert again.provenance["warm_start"] and again.curves["optimisation"].columns["probability"][0] < 0.2
    assert np.array_equal(region(again), lesion)
    coarse = counterfactual(model, image, mask_nodes=8)
    start = coarse.maps["mask"].volume
    start.attributes["role"] = "start"
    for _ in range(4):
        again = counterfactual(model, image, [start], mask_nodes=8, steps=1, learning_rate=1e-6)
        start = again.maps["mask"].volume
        start.attributes["role"] = "start"
    np.testing.assert_allclose(start.array, coarse.maps["mask"].volume.array, atol=0.05)
    cold = counterfactual(model, image, steps=1)
    assert not cold.provenance["warm_start"] and cold.curves["optimisation"].columns["probability"][0] > 0.5


def test_holes_are_filled_by_the_inpainter_and_nothing_leaks(tmp_path):
    image = Volume(np.random.default_rng(0).normal(0, 1, (1, 32, 32)).astype(np.float32), np.eye(4), "image")
    folder = inpainter(tmp_path / "inpainter")
    result = counterfactual(classifier(stack(seed=3)), image, inpainter=str(folder), lambda_area=0.01, steps=30)
    assert result.provenance["inpainter"]["name"] == "inpainter" and not result.provenance["inpainter"]["fallback"]
    assert result.self_checks["hole_content_invariance"] == result.self_checks["hole_content_invariance"] | {
        "value": 0.0,
        "passed": True,
    }
    assert not any("fall-back" in note for note in result.notes)
    other = counterfactual(classifier(stack(seed=3)), image, fill="blur", steps=5)
    assert other.provenance["inpainter"] == {"name": "blur", "sha256": None, "fallback": True}
    assert any("fall-back (blur)" in note for note in other.notes)


# ---- self-checks --------------------------------------------------------------------------------------------------------


def test_self_checks_of_a_right_answer():
    lesion = box((40, 40), np.s_[8:14], np.s_[8:14])
    result = counterfactual(classifier(Score([lesion], 0.5, 3.0, added)), shown(lesion))
    checks = result.self_checks
    assert checks["drop_kept"]["value"] == pytest.approx(1, abs=1e-3) and checks["drop_kept"]["passed"]
    assert checks["more_than_elsewhere"]["value"] == 1 and checks["more_than_elsewhere"]["passed"]
    assert checks["complement_keeps_class"]["value"] > 0.99 and checks["complement_keeps_class"]["passed"]
    assert checks["hole_content_invariance"]["value"] == 0 and checks["written_image"]["passed"]
    assert all(one["meaning"] for one in checks.values())


def test_a_region_that_is_no_more_than_any_other_does_not_pass():
    """A class that is as much in any place: filling the same shape elsewhere does as much."""
    from MedXAILib.methods.impact_checks import Asking
    from MedXAILib.models import prepare
    from MedXAILib.models.inpainter import fallback

    image = Volume(np.random.default_rng(0).uniform(0.9, 1.1, (1, 32, 32)).astype(np.float32), np.eye(4), "image")
    model = classifier(Score([np.ones((32, 32))], 0.05, 20.0, added))
    prepared = prepare(model, [image])
    organ, region = torch.ones(32, 32, dtype=torch.bool), torch.zeros(32, 32, dtype=torch.bool)
    region[4:9, 4:9] = True
    fill = fallback("mean", prepared, organ, 0)
    fill.image = fill.image * 0  # what takes its place is darker everywhere
    with torch.no_grad():
        before = model.log_odds(model.logits(prepared.x), 1)
    ask = Asking(model, 1, before, fill, prepared.x, organ, 4)
    (drop,) = ask.drops(region[None, None])
    check = finished(ask.elsewhere(region, drop, 0))
    assert (
        drop > 1
        and 0 < check["value"] < 0.95
        and check["passed"] is False
        and "20 random other places" in check["meaning"]
    )
    lost = finished(ask.elsewhere(organ, drop, 0))
    assert lost["passed"] is None and lost["value"] is None and "too few other places" in lost["meaning"]


def test_a_region_that_has_nothing_to_do_with_it_does_not_carry_the_class():
    """Where what takes the rest's place holds the class itself, the check says nothing; else it fails for a wrong region."""
    from MedXAILib.methods.impact_checks import Asking
    from MedXAILib.models import prepare
    from MedXAILib.models.inpainter import fallback

    lesion = box((32, 32), np.s_[8:16], np.s_[8:16])
    model, image = classifier(Score([lesion], 0.2, 2.0, added)), shown(lesion)
    prepared = prepare(model, [image])
    organ, corner = torch.ones(32, 32, dtype=torch.bool), torch.zeros(32, 32, dtype=torch.bool)
    corner[0, 0] = True
    ask = Asking(model, 1, None, fallback("mean", prepared, organ, 0), prepared.x, organ, 4)
    assert ask.complement(corner, 0 * prepared.x)["passed"] is False
    assert ask.complement(corner, prepared.x)["passed"] is None
    assert ask.complement(torch.from_numpy(lesion), 0 * prepared.x)["passed"] is True


def finished(steps):
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_what_thresholding_loses_is_told():
    from MedXAILib.methods.impact_checks import kept

    assert kept(4.0, -4.0, 3.0) == kept(4.0, -4.0, 3.0) | {"value": 1 / 8, "passed": False}
    assert kept(4.0, -4.0, -4.0)["passed"] and kept(1.0, 2.0, 0.0)["passed"] is None


def test_parts_of_the_region_are_told_with_place_and_share():
    first, second = box((32, 32), np.s_[4:10], np.s_[5:11]), box((32, 32), np.s_[20:24], np.s_[18:22])
    image = shown(first, second, matrix=OBLIQUE)
    table = counterfactual(classifier(Score([first, second], 0.3, 4.0, added)), image).tables["components"].columns
    assert table["component"] == [1, 2] and table["voxels"] == [36, 16]
    pixel = np.prod(image.spacing[:2])
    assert table["mm2"] == pytest.approx([36 * pixel, 16 * pixel])
    assert table["share_of_drop"] == pytest.approx(
        [36 / 52, 16 / 52], abs=0.02
    )  # the mean of the rest holds a little of the other
    for number, (j, i) in enumerate(((6.5, 7.5), (21.5, 19.5))):
        assert [table[axis][number] for axis in "ras"] == pytest.approx(image.index_to_ras((0, j, i)))


def test_many_parts_are_counted_and_the_largest_looked_at():
    spots = np.zeros((40, 40), bool)
    spots[1::6, 1::6] = True
    result = counterfactual(classifier(Score([spots], 0.4, 3.0, added)), shown(spots), restarts=1)
    assert (
        result.scores["components"] == spots.sum() == 49 and len(result.tables["components"].columns["component"]) == 16
    )
    assert any("49 parts; the 16 largest" in note for note in result.notes)


def test_what_the_networks_window_cuts_off_goes_too():
    """A lesion of 500 in a window of 0 to 100: the written image holds what the search put there, not 400 left over."""
    lesion = box((32, 32), np.s_[8:16], np.s_[8:16])
    image = shown(lesion)
    image.array[:] = 20 + 480 * image.array
    model = classifier(
        Score([lesion], 0.25, 5.0, added), input={"intensity": {"kind": "window", "low": 0, "high": 100}}
    )
    result = counterfactual(model, image)
    assert np.array_equal(region(result), lesion)
    np.testing.assert_allclose(result.maps["inpainted"].volume.array, 20, atol=1)
    assert result.self_checks["written_image"]["passed"] and result.maps["difference"].volume.array.min() < -470


def test_every_channel_is_written():
    lesion = box((32, 32), np.s_[8:16], np.s_[8:16])

    class Second(Score):
        def forward(self, x):
            return super().forward(x[:, 1:])

    other = Volume(np.random.default_rng(0).normal(0, 1, (1, 32, 32)).astype(np.float32), np.eye(4), "first")
    chosen = CounterfactualSettings(fill="mean", lambda_score=1.0, lambda_tv=0, mask_nodes=64, restarts=1, device="cpu")
    result = run(
        explain(
            "counterfactual", classifier(Second([lesion], 0.2, 2.0, added), channels=2), [other, shown(lesion)], chosen
        )
    )
    assert result.self_checks["written_image"]["passed"] and np.array_equal(region(result), lesion)
    np.testing.assert_allclose(result.maps["inpainted-2"].volume.array, 0, atol=1e-6)
    inside = result.masks["region"].array > 0
    assert np.array_equal(result.maps["inpainted"].volume.array[~inside], other.array[~inside])


def test_outside_the_region_nothing_changes_where_the_network_resamples_either():
    lesion = box((64, 64), np.s_[16:32], np.s_[16:32])
    image = shown(lesion)
    image.array[:] += np.random.default_rng(0).normal(0, 0.05, image.shape).astype(np.float32)
    model = classifier(Score([lesion[::2, ::2]], 0.2, 2.0, added), input={"size": [32, 32], "fit": "resize"})
    result = counterfactual(model, image)
    outside = result.masks["region"].array == 0
    assert np.array_equal(result.maps["inpainted"].volume.array[outside], image.array[outside]) and not outside.all()
    assert result.self_checks["written_image"]["value"] < 0.02 * (
        result.scores["log_odds_before"] - result.scores["log_odds_after"]
    )


def test_what_is_finer_than_the_networks_grid_goes_too():
    """A checkerboard on the lesion that a network of half the resolution cannot see: none of it is left in the region."""
    lesion = box((64, 64), np.s_[16:32], np.s_[16:32])
    image = shown(lesion)
    checkers = 0.5 * (np.indices((64, 64)).sum(0) % 2 * 2 - 1) * lesion
    image.array[0] += checkers.astype(np.float32)
    model = classifier(Score([lesion[::2, ::2]], 0.2, 2.0, added), input={"size": [32, 32], "fit": "resize"})
    result = counterfactual(model, image)
    inside, written = region(result), result.maps["inpainted"].volume.array[0]
    assert np.array_equal(inside, lesion) and np.abs(written[inside] * np.sign(checkers[inside])).mean() < 0.1
    assert np.abs(np.diff(written, axis=1)[17:31, 17:30]).max() < 0.1  # of 1


def test_a_start_is_not_given_up_for_something_worse():
    lesion = box((32, 32), np.s_[8:16], np.s_[8:16])
    model, image = classifier(Score([lesion], 0.2, 2.0, added)), shown(lesion)
    start = image.with_array(lesion[None].astype(np.float32), "mask")
    start.attributes["role"] = "start"
    result = counterfactual(model, image, [start], steps=3, learning_rate=1.0, lambda_area=1.0, mask_nodes=4)
    assert result.scores["log_odds_after"] < 0
    kept = counterfactual(model, image, [start], steps=1, learning_rate=1.0, lambda_score=0.0, lambda_area=-0.0)
    assert np.array_equal(region(kept), lesion)


def test_an_inpainter_of_other_images_is_doubted(tmp_path):
    image = Volume(np.random.default_rng(0).normal(0, 1, (1, 32, 32)).astype(np.float32), np.eye(4), "image")
    folder = inpainter(tmp_path / "other", **{"channels": 1})
    about = json.loads((folder / "model.json").read_text("utf-8"))
    about["input"]["channels"] = about["output"]["labels"] = ["mammogram"]
    (folder / "model.json").write_text(json.dumps(about), "utf-8")
    result = counterfactual(classifier(stack()), image, inpainter=str(folder), steps=1)
    assert any("was trained on 'mammogram', and the classifier takes 'image 0'" in note for note in result.notes)


def test_padding_does_not_make_an_organ():
    """33 columns padded to 48: without an organ the area is the plain share, so the lesion goes where it is worth its voxels."""
    lesion = box((32, 33), np.s_[8:16], np.s_[8:16])
    padded = np.zeros((32, 48), bool)
    padded[:, :33] = lesion
    model = classifier(Score([padded], 0.2, 2.0, added), input={"multiple_of": 16})
    result = counterfactual(model, shown(lesion), lambda_area=0.9 * 0.2 * 32 * 33)
    assert np.array_equal(region(result), lesion)
    assert not region(counterfactual(model, shown(lesion), lambda_area=2.1 * 0.2 * 32 * 33)).any()


# ---- annotation ---------------------------------------------------------------------------------------------------------


def test_distances_to_an_annotation_are_in_millimetres():
    lesion = box((32, 32), np.s_[8:16], np.s_[8:16])
    image = shown(lesion, matrix=np.diag([0.5, 2.0, 1.0, 1.0]))
    truth = image.with_array(np.roll(lesion, (0, 4), (0, 1))[None].astype(np.uint8), "drawn")
    result = counterfactual(classifier(Score([lesion], 0.2, 2.0, added)), image, [truth], mask_nodes=256)
    assert result.scores["distance_mm"] == pytest.approx(4 * 0.5) and result.scores["hausdorff_mm"] == pytest.approx(2)
    assert result.scores["dice"] == pytest.approx(0.5) and result.scores["hit"] == 1
    assert result.tables["distances"].columns["distance_mm"] == pytest.approx([2.0])


def test_the_annotation_does_not_lead_the_search():
    lesion = box((32, 32), np.s_[8:16], np.s_[8:16])
    model, image = classifier(Score([lesion], 0.2, 2.0, added)), shown(lesion)
    elsewhere = image.with_array(box((1, 32, 32), 0, np.s_[20:26], np.s_[20:26]).astype(np.uint8), "drawn")
    with_one = counterfactual(model, image, [elsewhere])
    assert np.array_equal(with_one.maps["mask"].volume.array, counterfactual(model, image).maps["mask"].volume.array)
    assert with_one.scores["hit"] == 0


def test_an_organ_that_leaves_the_finding_out_takes_it_in():
    lesion = box((32, 32), np.s_[8:16], np.s_[8:16])
    image = shown(lesion)
    labels = {"organ": ~lesion & box((32, 32), np.s_[:24], np.s_[:24]), "annotation": lesion}
    segments = [image.with_array(mask[None].astype(np.uint8), name) for name, mask in labels.items()]
    for one, role in zip(segments, labels):
        one.attributes["role"] = role
    result = counterfactual(classifier(Score([lesion], 0.2, 2.0, added)), image, segments)
    assert np.array_equal(region(result), lesion) and any("was taken in" in note for note in result.notes)
    assert result.scores["area_share"] == pytest.approx(64 / 24**2)


# ---- geometry, sizes, formats -------------------------------------------------------------------------------------------


def test_a_slice_of_a_volume_by_its_annotation():
    lesion = box((6, 32, 32), np.s_[4], np.s_[8:16], np.s_[8:16])
    image = shown(lesion, matrix=OBLIQUE)
    truth = image.with_array(lesion.astype(np.uint8), "drawn")
    result = counterfactual(classifier(Score([lesion[4]], 0.2, 2.0, added)), image, [truth])
    assert result.provenance["slice"] == "k:4" and np.array_equal(result.masks["region"].array > 0, lesion)
    deep = image.with_array(
        np.repeat(lesion[4:5], 6, 0).astype(np.uint8), "drawn"
    )  # in every slice: the one looked at counts
    result = counterfactual(classifier(Score([lesion[4]], 0.2, 2.0, added)), image, [deep], slice="k:4")
    assert [result.scores[name] for name in ("distance_mm", "hausdorff_mm", "dice", "hit")] == [0, 0, 1, 1]
    with pytest.raises(MedXAIError, match="choose one, such as --slice"):
        counterfactual(classifier(Score([lesion[4]], 0.2, 2.0, added)), image)


def test_a_network_of_another_resolution():
    lesion = box((64, 64), np.s_[16:32], np.s_[16:32])
    image = shown(lesion, matrix=np.diag([0.5, 0.5, 1.0, 1.0]))
    model = classifier(Score([lesion[::2, ::2]], 0.2, 2.0, added), input={"size": [32, 32], "fit": "resize"})
    result = counterfactual(model, image)
    assert np.array_equal(region(result), lesion) and result.provenance["spacing_mm"] == pytest.approx([1, 1])
    assert result.self_checks["written_image"]["passed"]


@pytest.mark.parametrize("shape", ((1, 64, 64), (1, 576, 448), (64, 64, 64)))
def test_sizes_of_the_paper_and_of_3d(tmp_path, shape):
    dims = 2 if shape[0] == 1 else 3
    image = Volume(np.random.default_rng(0).normal(0, 1, shape).astype(np.float32), np.eye(4), "image")
    folder = inpainter(tmp_path / "inpainter", dims, levels=4)
    result = counterfactual(
        classifier(stack(dims), dims), image, inpainter=str(folder), steps=2, restarts=1, mask_nodes=16
    )
    assert result.maps["mask"].volume.shape == shape and result.provenance["bytes_stated"] > 4 * image.array.size
    assert np.isfinite(result.scores["log_odds_after"])


def test_programs_give_what_the_network_gives():
    torch.manual_seed(0)
    image = Volume(np.random.default_rng(0).normal(0, 1, (1, 32, 32)).astype(np.float32), np.eye(4), "image")
    plain = counterfactual(classifier(stack()), image, steps=15).maps["mask"].volume.array
    for module in (scripted(stack()), exported(stack(), (1, 1, 32, 32))):  # the second takes one image at a time
        found = counterfactual(classifier(module), image, steps=15).maps["mask"].volume.array
        np.testing.assert_allclose(found, plain, atol=1e-4)


@pytest.mark.parametrize("name", ("ResNet", "DenseNet"))
@DIMS
def test_networks_of_monai(name, dims):
    from monai.networks import nets

    torch.manual_seed(0)
    if name == "ResNet":
        module = nets.ResNet("basic", [1, 1, 1, 1], [4, 4, 8, 8], spatial_dims=dims, n_input_channels=1, num_classes=3)
    else:
        module = nets.DenseNet(dims, 1, 3, init_features=4, growth_rate=4, block_config=(2, 2))
    shape = (1, 48, 40) if dims == 2 else (32, 32, 24)
    image = Volume(np.random.default_rng(0).normal(0, 1, shape).astype(np.float32), np.eye(4), "image")
    result = counterfactual(
        classifier(module, dims, labels=3), image, steps=20, restarts=1, learning_rate=0.1, lambda_area=0.01
    )
    columns = result.curves["optimisation"].columns
    assert columns["loss"][-1] < columns["loss"][0] and len(result.tables["classes"].columns["label"]) == 3


def test_several_labels_at_once():
    lesion = box((24, 24), np.s_[6:12], np.s_[8:16])

    class One(Score):
        def forward(self, x):
            return super().forward(x)[:, 1:] * 2

    output = {"labels": ["mass"], "activation": "sigmoid"}
    result = counterfactual(classifier(One([lesion], 0.2, 2.0, added), output=output), shown(lesion))
    assert np.array_equal(region(result), lesion) and result.scores["probability_after"] == pytest.approx(1 / (1 + np.exp(2)), rel=1e-3)  # fmt: skip


# ---- bad input ----------------------------------------------------------------------------------------------------------


class Stepped(nn.Module):
    """Answers by rounding: no gradient."""

    def forward(self, x):
        bright = (x > 0.5).float().mean((1, 2, 3)) + 0 * x.mean((1, 2, 3))
        return torch.stack([-bright, bright], 1)


def segment(image, mask, role, name="liver"):
    one = Volume(mask.astype(np.uint8), image.ijk_to_ras, name)
    one.attributes["role"] = role
    return one


@pytest.mark.parametrize(
    "case, words",
    [
        (
            "absent",
            "'label 0' is not what 'small' sees in 'image': its probability is 2.04e-05, and the network answers .label 1.",
        ),
        ("gradient", "has no usable gradient of 'label 1'.*choose another network"),
        ("empty organ", "'liver' is empty"),
        ("organ elsewhere", "do not overlap"),
        ("organ not on the slice", "has no voxel on slice k:3"),
        ("two organs", "one organ too many"),
        ("start", "lies on another grid"),
        ("start that is an image", "holds values from 0 to 255, and a mask goes from 0 to 1"),
        ("empty start", "is empty where the network looks"),
        ("empty annotation", "'liver' is empty; draw it or leave it out"),
        ("unknown role", "'liver' has the role 'foo'"),
        ("sure", "is so sure of 'label 1'.*export it with its logits"),
        ("turns infinite", "no longer finite at step"),
        ("segmentation network", "is a segmentation network"),
        ("memory", "needs about .* GiB.*--restarts"),
        ("not finite", "not finite"),
        ("inpainter", "no model.json|There is no"),
    ],
)
def test_bad_input_is_one_sentence(case, words, monkeypatch, tmp_path):
    lesion = box((32, 32), np.s_[8:16], np.s_[8:16])
    image, model, segments, more = shown(lesion), classifier(Score([lesion], 0.2, 2.0, added)), [], {}
    if case == "absent":
        more = {"label": "label 0"}
    elif case == "gradient":
        model = classifier(Stepped())
    elif case == "empty organ":
        segments = [segment(image, np.zeros(image.shape), "organ")]
    elif case == "organ elsewhere":
        far = np.eye(4)
        far[:3, 3] = 1000
        segments = [segment(Volume(image.array, far), np.ones(image.shape), "organ")]
    elif case == "organ not on the slice":
        image = shown(np.stack([lesion] * 4))
        segments, more = [segment(image, box(image.shape, np.s_[:2]), "organ")], {"slice": "k:3"}
    elif case == "two organs":
        segments = [segment(image, np.ones(image.shape), "organ")] * 2
    elif case == "start":
        segments = [segment(Volume(np.ones((1, 9, 9)), np.eye(4)), np.ones((1, 9, 9)), "start")]
    elif case == "start that is an image":
        segments = [segment(image, 255 * np.eye(32)[None], "start")]
    elif case == "empty start":
        segments = [segment(image, np.zeros(image.shape), "start")]
    elif case == "empty annotation":
        segments = [segment(image, np.zeros(image.shape), "annotation")]
    elif case == "unknown role":
        segments = [segment(image, np.ones(image.shape), "foo")]
    elif case == "sure":
        model = classifier(
            nn.Sequential(Score([lesion], 0.9, 2.0, added), nn.Softmax(1)), output={"activation": "none"}
        )
    elif case == "turns infinite":
        model = classifier(
            Score([lesion], 0.2, 2.0, lambda sums: sums.sum(1) + (60 - sums.sum(1)).clamp(min=0) * 1e38 * 10)
        )
    elif case == "segmentation network":
        from MedXAILib import resources
        from MedXAILib.models import load

        model = load(resources.path("Models/liver-phantom"), "cpu")
    elif case == "memory":
        monkeypatch.setattr("MedXAILib.models.memory.available", lambda device: 1000)
    elif case == "not finite":
        model = classifier(Score([lesion], float("inf"), 2.0, added))
    elif case == "inpainter":
        more = {"inpainter": str(tmp_path / "none")}
    with pytest.raises(MedXAIError, match=words) as caught:
        counterfactual(model, image, segments, **more)
    assert len(str(caught.value)) < 400


# ---- the command --------------------------------------------------------------------------------------------------------


def test_the_command_writes_everything(tmp_path, capsys):
    from safetensors.torch import save_file

    from MedXAILib.models.networks import ShallowCNN
    from MedXAILib.package import write_package

    torch.manual_seed(1)
    network = ShallowCNN(1, 2, size=32, width=0.2)
    fields = {
        "name": "small", "task": "classification", "weights": "weights.safetensors",
        "network": {"name": "ShallowCNN", "arguments": {"in_channels": 1, "out_channels": 2, "size": 32, "width": 0.2}},
        "input": {"spatial_dims": 2, "channels": ["image"], "orientation": None, "spacing": None, "size": [32, 32], "fit": "resize", "intensity": {"kind": "none"}},
        "output": {"labels": ["healthy", "mass"], "activation": "softmax"},
    }  # fmt: skip
    write_package(tmp_path / "model", fields, lambda path: save_file(network.state_dict(), str(path)))
    image = Volume(
        np.random.default_rng(0).normal(0, 1, (1, 32, 32)).astype(np.float32), np.diag([2.0, 2, 1, 1]), "image"
    )
    io.write_volume(tmp_path / "image.nrrd", image)
    labels = np.zeros((1, 32, 32), np.uint8)
    labels[0, 2:30, 2:30] = 1
    labels[0, 10:16, 10:16] = 2
    io.write_volume(tmp_path / "mask.nrrd", image.with_array(labels))
    folder = inpainter(tmp_path / "inpainter", size=[32, 32], fit="resize")
    words = [
        "counterfactual",
        "--model",
        tmp_path / "model",
        "--volume",
        tmp_path / "image.nrrd",
        "--segmentation",
        tmp_path / "mask.nrrd",
    ]
    words += [
        "--organ",
        "1",
        "--segment",
        "2",
        "--inpainter",
        folder,
        "--steps",
        "8",
        "--lambda-area",
        "0.01",
        "--device",
        "cpu",
        "--no-scene",
    ]
    assert main([*words, "--output", tmp_path / "out"]) == 0
    about = json.loads((tmp_path / "out" / "explanation.json").read_text("utf-8"))
    for name in (
        "mask.nrrd",
        "region.nrrd",
        "inpainted.nrrd",
        "difference.nrrd",
        "optimisation.csv",
        "classes.csv",
        "components.csv",
        "distances.csv",
    ):
        assert (tmp_path / "out" / name).exists(), name
    assert {"probability_before", "probability_after", "distance_mm", "hausdorff_mm", "dice", "hit"} <= set(
        about["scores"]
    )
    assert about["inpainter"]["sha256"] and about["organ"] and about["command"][:2] == ["medxai", "counterfactual"]
    assert about["settings"]["learning_rate"] == CounterfactualSettings().learning_rate
    assert "probability before" in capsys.readouterr().out
    assert (
        main([*words, "--preset", "paper", "--start", tmp_path / "out" / "mask.nrrd", "--output", tmp_path / "paper"])
        == 0
    )
    again = json.loads((tmp_path / "paper" / "explanation.json").read_text("utf-8"))
    assert (
        again["settings"]["learning_rate"] == 2e-3 and again["settings"]["lambda_area"] == 0.01 and again["warm_start"]
    )
    assert main([*words[:5], "--organ", "1", "--output", tmp_path / "none"]) == 1
    assert "--organ names a segment of --segmentation" in capsys.readouterr().err
