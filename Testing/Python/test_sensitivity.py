"""Differentiable features, and how much of each step of a dream is one of them."""

import math

import numpy as np
import planted
import pytest
import torch
from test_dream import UNET, dream, network, open_package, settings, volume

from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import run
from MedXAILib.features import compute
from MedXAILib.features.soft import SOFT, Soft, resolve_soft
from MedXAILib.volume import Volume


def case(ndim, centres=False, width=25.0, seed=0):
    rng = np.random.default_rng(seed)
    shape = (6, 7, 5) if ndim == 3 else (9, 11)
    image = rng.normal(size=shape) * 60 + 20
    if centres:  # every intensity in the middle of its bin: soft and hard bins are the same
        image = (np.floor(image / width) + 0.5) * width
    return image, rng.random(shape) < 0.6


def soft(image, weight, **options):
    return Soft(torch.as_tensor(image), torch.as_tensor(weight), **options)


@pytest.mark.parametrize("ndim", [2, 3])
def test_with_a_hard_mask_the_features_are_the_usual_ones(ndim):
    image, mask = case(ndim, centres=True)
    matrix = np.diag([2.0, 1.5, 3.0, 1.0])
    array, inside = (one.reshape(-1, *image.shape[-2:]) for one in (image, mask))
    names = [name for name in SOFT if name != "soft_volume"]
    expected = compute(Volume(array, matrix), Volume(inside.astype("u1"), matrix), names)
    found = soft(image, mask.astype(float), voxel=9.0)
    for name in names:
        assert float(found.feature(name)) == pytest.approx(expected[name], rel=1e-9, abs=1e-9), name
    assert float(found.feature("soft_volume")) == mask.sum() * 9.0


def test_off_the_middle_of_the_bins_only_what_bins_is_a_variant():
    image, mask = case(3)
    volume = Volume(image, np.eye(4))
    expected = compute(volume, volume.with_array(mask.astype("u1")), ["firstorder", "glcm_Contrast"])
    found = soft(image, mask.astype(float))
    for name in expected:
        near = float(found.feature(name)) == pytest.approx(expected[name], rel=1e-9)
        assert near == (name not in ("firstorder_Entropy", "firstorder_Uniformity", "glcm_Contrast")), name
    assert float(found.feature("glcm_Contrast")) == pytest.approx(expected["glcm_Contrast"], rel=0.1)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("options", [{}, {"bin_count": 6}])
def test_gradients_are_those_of_finite_differences(ndim, options):
    image, _ = case(ndim, seed=1)
    weight = np.random.default_rng(2).random(image.shape) ** 2
    along = [torch.from_numpy(np.random.default_rng(3 + n).normal(size=image.shape)) for n in range(2)]
    if options:  # the ends of the range move with its bins, and are not differentiated
        for at in (image.argmin(), image.argmax()):
            along[0].flatten()[at] = 0
            weight.flat[at] = 1
            along[1].flatten()[at] = 0
    x, w = (torch.from_numpy(one).requires_grad_(True) for one in (image, weight))
    found, step = Soft(x, w, voxel=2.0, **options), 1e-6
    for name in SOFT:
        value = found.feature(name)
        slopes = torch.autograd.grad(value, (x, w), retain_graph=True, allow_unused=True)
        told = sum(float((s * d).sum()) for s, d in zip(slopes, along) if s is not None)
        with torch.no_grad():
            ends = [
                float(Soft(x + h * along[0], w + h * along[1], voxel=2.0, **options).feature(name))
                for h in (-step, step)
            ]
        seen = (ends[1] - ends[0]) / (2 * step)
        assert told == pytest.approx(seen, rel=2e-4, abs=1e-6 * max(1, abs(float(value)))), name


def test_nothing_in_the_mask_and_too_many_bins_are_undefined():
    image, mask = case(2)
    assert math.isnan(float(soft(image, np.zeros(image.shape)).feature("firstorder_Mean")))
    wild = soft(image * 1e9, mask.astype(float))
    assert wild.capped and not soft(image, mask.astype(float)).capped
    assert math.isnan(float(wild.feature("glcm_Contrast"))) and math.isnan(float(wild.feature("firstorder_Entropy")))
    assert math.isfinite(float(wild.feature("firstorder_Mean")))


def test_names():
    assert resolve_soft(["rms", "soft_volume", "rms"]) == ["firstorder_RootMeanSquared", "soft_volume"]
    assert len(resolve_soft(["firstorder", "glcm", "none"])) == 18 + 18
    for name, words in (
        ("glcm_MCC", "no gradient"),
        ("glcm_JointAverage", "no gradient"),
        ("soft", "no feature with a gradient"),
        ("shape_Sphericity", "no gradient"),
        ("soft_volum", "did you mean 'soft_volume'"),
    ):
        with pytest.raises(MedXAIError, match=words):
            resolve_soft([name])


# --- along a dream ---


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_detector_of_the_mean_moves_the_mean_and_one_of_texture_does_not(detector_package, ndim):
    shares = {}
    for kind in ("mean", "texture"):
        model = open_package(detector_package(kind, ndim=ndim))
        start, ijk = planted.detector_start(kind, ndim)
        chosen = settings(
            label="object",
            neuron_ijk=ijk,
            steps=4,
            step_size=0.002,
            sensitivity=("firstorder_Mean", "firstorder_Variance"),
        )
        found = run(dream(model, [start], chosen))
        table = found.tables["sensitivity-path"].columns
        shares[kind] = dict(zip(table["feature"], table["share"]))
        curve = found.curves["sensitivity"].columns
        assert np.isfinite(curve["firstorder_Mean"]).all() and len(curve["step"]) == 4
        assert found.self_checks["sensitivity_adds_up"]["passed"]
        assert table["share_of_a_random_step"][0] == pytest.approx(1 / planted.ball(ndim).sum())
    # The step of the first is the same for every voxel of the mask, as the gradient of their mean: all of it is the mean.
    assert (
        shares["mean"]["firstorder_Mean"] == pytest.approx(1.0, abs=1e-6)
        and shares["mean"]["firstorder_Variance"] < 1e-6
    )
    assert shares["texture"]["firstorder_Mean"] < 1e-6 < 0.01 < shares["texture"]["firstorder_Variance"]


def test_through_a_network_the_gradients_add_up_to_the_change(tmp_path):
    """The mask of a U-Net moves with every voxel, so this holds only if the gradient passes through the network."""
    model = open_package(network(tmp_path, "BasicUNet", dict(spatial_dims=2, in_channels=1, out_channels=2, features=(4, 4, 8, 8, 8, 4)), seed=3, multiple_of=16))  # fmt: skip
    start = volume((1, 64, 64), seed=5, scale=1.0)
    names = ("soft_volume", "firstorder_Mean", "firstorder_RootMeanSquared", "glcm_Contrast")
    chosen = settings(label="object", steps=40, step_size=0.05, normalize=True, sensitivity=names, bin_width=0.5)
    found = run(dream(model, [start], chosen))
    table = found.tables["sensitivity-path"].columns
    check = found.self_checks["sensitivity_adds_up"]
    assert check["passed"], (check, table)
    assert all(abs(one) > 0 for one in table["change"]) and all(0 <= share <= 1 for share in table["share"])
    assert set(table["direction"]) <= {"raised", "lowered"}


def test_while_the_mask_is_empty_there_is_no_share(linear_package):
    model = open_package(linear_package(np.ones((3, 3), np.float32), bias=-1e6))
    chosen = settings(label="object", neuron_ijk=(9, 9, 0), steps=3, sensitivity=("soft_volume",))
    found = run(dream(model, [volume((1, 20, 20))], chosen))
    assert np.isnan(found.curves["sensitivity"].columns["soft_volume"]).all()
    assert found.self_checks["sensitivity_adds_up"]["passed"] is None
    table = found.tables["sensitivity-path"].columns
    assert table["direction"] == [""] and np.isnan(table["change"][0]) and np.isnan(table["share"][0])


def test_a_wrong_name_is_refused_before_anything_is_computed(linear_package):
    model = open_package(linear_package(np.ones((3, 3), np.float32)))
    with pytest.raises(MedXAIError, match="no gradient to follow"):
        next(dream(model, [volume((1, 20, 20))], settings(sensitivity=("shape_Sphericity",))))


def test_the_dream_is_the_same_with_and_without(tmp_path):
    model = open_package(network(tmp_path, "UNet", UNET, multiple_of=4))
    plain, followed = (
        run(dream(model, [volume((1, 32, 32))], settings(label="object", steps=5, sensitivity=names)))
        for names in ((), ("soft_volume",))
    )
    assert np.array_equal(plain.maps["dream"].volume.array, followed.maps["dream"].volume.array)


@pytest.mark.parametrize("neuron", [(48, 48, 0), (2, 48, 0), (94, 2, 0)])
def test_shares_do_not_depend_on_cropping(tmp_path, neuron):
    """In the middle, at a border and in a corner, where the box that can change is no square."""
    model = open_package(network(tmp_path, "UNet", UNET, multiple_of=4))
    start, names = volume((1, 96, 96), seed=2), ("soft_volume", "firstorder_Mean")
    chosen = dict(label="object", neuron_ijk=neuron, steps=6, step_size=0.5, sensitivity=names)
    cropped, whole = (run(dream(model, [start], settings(crop=crop, **chosen))) for crop in (True, False))
    assert cropped.self_checks["crop"]["passed"] and "crop" not in whole.self_checks
    one, other = (found.tables["sensitivity-path"].columns for found in (cropped, whole))
    assert np.isfinite(one["share"]).all()
    for column in ("share", "share_of_a_random_step", "change_by_gradient", "change", "steps"):
        assert one[column] == pytest.approx(other[column], rel=1e-3), column


def test_a_volume_that_is_no_cube_resampled_and_turned(tmp_path):
    arguments = dict(
        spatial_dims=3, in_channels=1, out_channels=2, channels=[2, 4], strides=[2], kernel_size=3, up_kernel_size=3
    )
    model = open_package(
        network(tmp_path, "UNet", arguments, orientation="RAS", spacing=[1.5, 1.0, 2.0], multiple_of=2)
    )
    start = volume((22, 34, 26), seed=1)
    for crop in (True, False):
        chosen = settings(label="object", steps=3, step_size=0.5, crop=crop, sensitivity=("soft_volume", "rms"))
        table = run(dream(model, [start], chosen)).tables["sensitivity-path"].columns
        assert np.isfinite(table["share"]).all() and np.isfinite(table["change"]).all()


def test_a_feature_that_is_undefined_at_some_steps_does_not_hide_the_others(detector_package):
    """In a flat start the variance is 0 and the skewness of its gradient undefined; the mean is not."""
    model = open_package(detector_package("mean", ndim=2))
    _, ijk = planted.detector_start("mean", 2)
    flat = volume((1, 25, 25))
    flat = flat.with_array(np.full(flat.shape, 112.0, np.float32))
    for names in (
        ("firstorder_Skewness", "firstorder_Mean", "glcm_Imc2"),
        ("glcm_Imc2", "firstorder_Mean", "firstorder_Skewness"),
    ):
        chosen = settings(label="object", neuron_ijk=ijk, steps=4, step_size=0.002, sensitivity=names)
        found = run(dream(model, [flat], chosen))
        table = found.tables["sensitivity-path"].columns
        assert dict(zip(table["feature"], table["share"]))["firstorder_Mean"] > 0.5
        assert np.isfinite(found.self_checks["sensitivity_adds_up"]["value"])


def test_too_many_bins_are_told(detector_package):
    model = open_package(detector_package("mean", ndim=2))
    start, ijk = planted.detector_start("mean", 2)
    chosen = settings(
        label="object", neuron_ijk=ijk, steps=2, step_size=0.002, bin_width=1e-6, sensitivity=("glcm_Contrast", "rms")
    )
    found = run(dream(model, [start], chosen))
    table = found.tables["sensitivity-path"].columns
    assert np.isnan(table["share"][0]) and np.isnan(table["change"][0]) and np.isfinite(table["share"][1])
    assert any(note.startswith("Sensitivity: ") and "bins of 1e-06" in note for note in found.notes)
