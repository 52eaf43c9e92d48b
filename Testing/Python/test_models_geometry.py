"""A volume to a network's input and back: exact where nothing is resampled, linear where something is."""

import itertools
import json
import math
import tracemalloc
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from MedXAILib.errors import MedXAIError  # noqa: E402
from MedXAILib.models.geometry import parse_slice, plane_axis, prepare, slice_of  # noqa: E402
from MedXAILib.models.resample import on_grid  # noqa: E402
from MedXAILib.models.tiling import sliding_logits  # noqa: E402
from MedXAILib.package import Package, from_json  # noqa: E402
from MedXAILib.volume import Volume  # noqa: E402

CODES = ["".join(c) for axes in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*axes)]
PLANES_2D = ["".join(c) for axes in itertools.permutations(("RL", "AP", "SI"), 2) for c in itertools.product(*axes)]


def network(**about):
    """All that `prepare` needs of a model."""
    about = {"spatial_dims": 3, "channels": ["CT"], "intensity": {"kind": "none"}} | about
    values = {
        "schema": 1, "name": "Net", "task": "segmentation", "weights": "w.ts", "sha256": "0" * 64, "input": about,
        "output": {"labels": ["background", "object"], "activation": "softmax"},
    }  # fmt: skip
    return SimpleNamespace(package=from_json(json.loads(json.dumps(values)), "."), device=torch.device("cpu"))


def rotation(angles):
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (n for n in range(3) if n != axis)
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
        matrix = turn @ matrix
    return matrix


def affine(code="RAS", spacing=(1.0, 1.0, 1.0), angles=(0, 0, 0), origin=(0, 0, 0)):
    """An IJK-to-RAS matrix whose index axes grow towards the letters of ``code``, then turned."""
    matrix = np.eye(4)
    for column, letter in enumerate(code):
        axis = "RLAPSI".index(letter) // 2
        matrix[:3, column] = 0
        matrix[axis, column] = spacing[column] * (1 if letter in "RAS" else -1)
    matrix[:3, :3] = rotation(angles) @ matrix[:3, :3]
    matrix[:3, 3] = origin
    return matrix


def numbered(shape, matrix, dtype=np.float32, **more):
    return Volume(np.arange(math.prod(shape)).reshape(shape).astype(dtype), matrix, **more)


def place(patch, shape):
    whole = np.zeros(shape, patch.array.dtype)
    whole[patch.box] = patch.array
    return whole


# ---- orientation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1)])
@pytest.mark.parametrize("code", CODES)
def test_every_orientation_as_nibabel_and_back_to_the_bit(code, shape):
    rng = np.random.default_rng(7)
    for volume_code in ("RAS", "LPS", "ILA", "SRP"):
        volume = numbered(shape, affine(volume_code, (0.7, 1.1, 2.5), (0.3, -0.2, 0.25), (3.3, -8, 100)))
        assert volume.orientation == volume_code
        prepared = prepare(network(orientation=code), [volume])
        image = nibabel.Nifti1Image(volume.array.T, volume.ijk_to_ras)
        turn = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(code)
        )
        expected = image.as_reoriented(turn)
        assert "".join(nibabel.aff2axcodes(expected.affine)) == code
        np.testing.assert_array_equal(prepared.x[0, 0].numpy(), np.asarray(expected.dataobj))
        assert prepared.x.is_contiguous() and prepared.x.dtype == torch.float32
        delta = rng.standard_normal(prepared.shape).astype(np.float32)
        patch = prepared.change(torch.from_numpy(delta), (0, 0, 0))
        assert patch.array.shape == shape and patch.start == (0, 0, 0)
        assert np.shares_memory(patch.array, delta)  # a view: nothing was computed
        np.testing.assert_array_equal(prepared.map(prepared.x[0, 0], (0, 0, 0)).array, volume.array)
        for index in np.ndindex(shape):
            at = prepared.to_network(index)
            assert prepared.to_volume(at) == index
            assert prepared.x[(0, 0, *at)] == volume.array[index] and patch.array[index] == delta[at]
        mask = rng.random(shape) > 0.5
        np.testing.assert_array_equal(prepared.mask(prepared.mask_to_network(mask), (0, 0, 0)).array, mask)


geometries = st.fixed_dictionaries(
    {
        "code": st.sampled_from(CODES),
        "spacing": st.tuples(*[st.floats(0.3, 5)] * 3),
        "angles": st.tuples(*[st.floats(-0.5, 0.5)] * 3),
        "origin": st.tuples(*[st.floats(-500, 500)] * 3),
    }
)
shapes = st.tuples(*[st.integers(1, 9)] * 3)


@settings(max_examples=60, deadline=None)
@given(geometry=geometries, shape=shapes, code=st.none() | st.sampled_from(CODES), multiple=st.integers(1, 4),
       spacing=st.none() | st.lists(st.floats(0.4, 4), min_size=3, max_size=3), data=st.data())  # fmt: skip
def test_a_box_is_the_whole_where_it_touches_and_nothing_elsewhere(geometry, shape, code, multiple, spacing, data):
    volume = numbered(shape, affine(**geometry))
    model = network(orientation=code, spacing=spacing, multiple_of=multiple)
    try:
        prepared = prepare(model, [volume])
    except MedXAIError as error:
        assert "too small" in error.message
        return
    start = [data.draw(st.integers(0, n - 1)) for n in prepared.shape]
    size = [data.draw(st.integers(1, n - a)) for n, a in zip(prepared.shape, start)]
    box = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    whole = np.zeros(prepared.shape, np.float32)
    whole[tuple(slice(a, a + n) for a, n in zip(start, size))] = box
    zero = (0, 0, 0)
    np.testing.assert_array_equal(place(prepared.change(box, start), shape), place(prepared.change(whole, zero), shape))
    np.testing.assert_array_equal(
        place(prepared.mask(box > 0, start), shape), place(prepared.mask(whole > 0, zero), shape)
    )
    low, high = prepared.box_to_volume(start, [a + n for a, n in zip(start, size)])
    patch = prepared.change(box, start)
    if patch.array.size:
        assert patch.start == low and tuple(a + n for a, n in zip(low, patch.array.shape)) == high
    assert prepared.x.shape[2:] == prepared.shape and all(n % multiple == 0 for n in prepared.shape)
    for index in np.ndindex(shape):
        at = prepared.to_network(index)
        assert all(v.start <= p < v.stop for v, p in zip(prepared.valid, at))
        if prepared.exact:
            assert prepared.to_volume(at) == index and prepared.x[(0, 0, *at)] == volume.array[index]


# ---- resampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 2.0), (0.9, 0.5, 3.0), (1.0, 0.8, 2.5), (4.0, 4.0, 4.0)])
@pytest.mark.parametrize("code, volume_code", [("RAS", "LPS"), ("LIA", "RAS"), ("SPL", "PIR"), ("RAS", "RAS")])
def test_orientation_and_spacing_as_monai(code, volume_code, spacing):
    from monai.data import MetaTensor
    from monai.transforms import Orientation, Spacing

    rng = np.random.default_rng(1)
    volume = Volume(
        rng.random((9, 12, 14)).astype(np.float32), affine(volume_code, (0.8, 1.0, 2.5), origin=(5, -60, 33))
    )
    prepared = prepare(network(orientation=code, spacing=spacing), [volume])
    image = MetaTensor(torch.from_numpy(volume.array.T.copy())[None], affine=torch.from_numpy(volume.ijk_to_ras.copy()))
    expected = Spacing(pixdim=spacing, mode="bilinear", padding_mode="border")(
        Orientation(axcodes=code, labels=None)(image)
    )
    assert tuple(expected.shape[1:]) == prepared.shape
    np.testing.assert_allclose(prepared.x[0].numpy(), expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("fit", [{"spacing": (0.6, 1.7, 1.1)}, {"size": (17, 21, 19), "fit": "resize"}])
def test_a_ramp_survives_resampling_and_the_way_back(fit):
    k, j, i = np.meshgrid(*(np.arange(n) for n in (9, 10, 11)), indexing="ij")
    ramp = (3 * i - 2 * j + 5 * k + 7).astype(np.float32)
    volume = Volume(ramp, affine("LPS", (0.8, 1.0, 2.0), (0.1, 0.2, -0.1)))
    prepared = prepare(network(orientation="RAS", **fit), [volume])
    back = prepared.map(prepared.x[0, 0], (0, 0, 0)).array
    assert back.shape == volume.shape
    inner = np.s_[1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(back[inner], ramp[inner], atol=1e-4)
    for at in itertools.product(*((0, n // 2, n - 1) for n in prepared.shape)):
        near = prepared.to_volume(at)
        steps = [abs(one.step) for one in prepared.axes]
        slope = [{0: 5, 1: 2, 2: 3}[one.axis] for one in prepared.axes]
        # At the border a mean or a clamped sample may differ by a voxel's step.
        assert abs(float(prepared.x[(0, 0, *at)]) - ramp[near]) <= sum(s * max(1, t) for s, t in zip(slope, steps))


def test_a_constant_change_comes_back_constant():
    volume = numbered((6, 7, 8), affine("LAS", (1, 2, 3)))
    for fit in ({"spacing": (1.7, 0.9, 3.3)}, {"size": (5, 12, 6), "fit": "resize"}):
        prepared = prepare(
            network(orientation="SAR", intensity={"kind": "window", "low": 0, "high": 50}, **fit), [volume]
        )
        patch = prepared.change(np.full(prepared.shape, 0.5, np.float32), (0, 0, 0))
        np.testing.assert_allclose(patch.array, np.full(volume.shape, 25.0), rtol=1e-6)


def test_a_spacing_written_with_fewer_digits_is_the_same_spacing():
    volume = numbered((4, 5, 6), affine("RAS", (0.737463116645813, 1.0000001, 2.4999998)))
    prepared = prepare(network(orientation="RAS", spacing=(0.7374631, 1, 2.5)), [volume])
    assert prepared.exact and prepared.record()["resampling"] == "none"
    assert not prepare(
        network(orientation="RAS", spacing=(0.74, 1, 2.5)), [numbered((4, 5, 60), volume.ijk_to_ras)]
    ).exact


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (40, 33), (40, 7), (16, 24), (1, 1)])
@pytest.mark.parametrize("letters", [None, "PL", "AR", "LP"])
def test_resize_as_torch_does_with_antialiasing(size, letters):
    image = np.random.default_rng(3).random((1, 16, 24)).astype(np.float32)
    prepared = prepare(
        network(spatial_dims=2, size=size, fit="resize", orientation=letters), [Volume(image, affine("LPS"))]
    )
    source = torch.from_numpy(image)[None]
    if letters == "AR":
        source = source.flip(2, 3)
    elif letters == "LP":
        source = source.transpose(2, 3)
    expected = torch.nn.functional.interpolate(source, size, mode="bilinear", align_corners=False, antialias=True)
    np.testing.assert_allclose(prepared.x.numpy(), expected.numpy(), atol=1e-5)
    back = prepared.map(prepared.x[0, 0], (0, 0)).array
    assert back.shape == image.shape and abs(back.mean() - image.mean()) < 0.05


def test_a_small_box_costs_a_small_box():
    volume = Volume(np.zeros((256, 256, 256), np.uint8), affine("LPS", (1, 1, 1)))
    for more in ({}, {"spacing": (2.0, 2.0, 2.0)}):
        prepared = prepare(network(orientation="RAS", **more), [volume])
        delta = np.ones((10, 10, 10), np.float32)
        tracemalloc.start()
        patch = prepared.change(delta, (50, 50, 50))
        prepared.mask(delta > 0, (50, 50, 50))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert patch.array.size <= 21**3 and peak < 1e6  # the volume in float32 has 6.7e7 bytes


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_padding_at_the_end_holds_the_minimum_and_has_no_place_in_the_volume():
    volume = numbered((5, 6, 9), affine("LPS"))
    rule = {"kind": "window", "low": -100, "high": 100}
    prepared = prepare(network(orientation="RAS", multiple_of=4, intensity=rule), [volume])
    assert prepared.shape == (12, 8, 8) and prepared.valid == np.s_[0:9, 0:6, 0:5]
    outside = np.ones(prepared.shape, bool)
    outside[prepared.valid] = False
    assert (prepared.x[0, 0].numpy()[outside] == 0.5).all()  # the minimum, 0, in -100..100
    assert not prepared.mask_to_network(np.ones(volume.shape, bool))[outside].any()
    everywhere = np.ones(prepared.shape, np.float32)
    assert prepared.change(everywhere, (0, 0, 0)).array.shape == volume.shape
    empty = prepared.change(np.ones((2, 2, 2), np.float32), (10, 0, 0))
    assert empty.array.size == 0 and place(empty, volume.shape).sum() == 0


def test_multiple_of_per_axis_follows_the_networks_axes():
    prepared = prepare(network(orientation="SAR", multiple_of=[2, 3, 4]), [numbered((5, 7, 9), affine("RAS"))])
    assert prepared.shape == (6, 9, 12)


def test_fit_pad_is_on_both_sides_and_refuses_what_is_larger():
    from monai.transforms import SpatialPad

    volume = numbered((5, 6, 8), affine("RAS"))
    prepared = prepare(network(orientation="RAS", size=(13, 6, 8), fit="pad"), [volume])
    expected = SpatialPad((13, 6, 8))(torch.from_numpy(volume.array.T.copy())[None])
    np.testing.assert_array_equal(prepared.x[0].numpy(), expected.numpy())
    assert prepared.to_network((0, 0, 0)) == (2, 0, 1) and prepared.to_volume((2, 0, 1)) == (0, 0, 0)
    with pytest.raises(MedXAIError, match=r"too large for 'Net': 8 × 6 × 5 voxels.*it takes 4 × 6 × 8; crop"):
        prepare(network(orientation="RAS", size=(4, 6, 8), fit="pad"), [volume])


def test_too_small_is_said_with_both_sizes():
    with pytest.raises(MedXAIError, match=r"too small for 'Net': 9 × 6 × 5 voxels.*at least 8 × 8 × 8"):
        prepare(network(orientation="RAS", multiple_of=8), [numbered((5, 6, 9), affine("RAS"))])


def test_window_pads_to_one_window_and_slides_over_the_rest():
    model = network(orientation="RAS", size=(8, 8, 8), fit="window")
    prepared = prepare(model, [numbered((5, 9, 20), affine("RAS"))])
    assert prepared.shape == (20, 9, 8)
    seen = []

    def logits(x):
        seen.append(tuple(x.shape[2:]))
        return torch.cat([x, -2 * x], 1)

    model.logits = logits
    x = prepared.x.clone().requires_grad_(True)
    result = sliding_logits(model, x)
    assert set(seen) == {(8, 8, 8)} and result.shape == (1, 2, *prepared.shape)
    np.testing.assert_allclose(result.detach()[0, 1].numpy(), -2 * prepared.x[0, 0].numpy(), rtol=1e-5, atol=1e-4)
    (slope,) = torch.autograd.grad(result[0, 1].sum(), x)
    np.testing.assert_allclose(slope.numpy(), -2, rtol=1e-5)


def test_sliding_weights_the_middle_of_a_window_more():
    model = network(spatial_dims=2, size=(8, 8), fit="window")
    steps = iter([0.0, 1.0])
    model.logits = lambda x: torch.full_like(x, next(steps))
    blended = sliding_logits(model, torch.zeros(1, 1, 8, 12))[0, 0, 4]
    z = np.exp(-0.5 * ((np.arange(8) - 3.5) / 1.0) ** 2)  # MONAI: sigma = 0.125 · size
    for column in range(4, 8):
        first, second = z[column], z[column - 4]
        assert float(blended[column]) == pytest.approx(second / (first + second), abs=0.02)


# ---- intensity -------------------------------------------------------------------------------------------------------


def test_intensities_as_monai():
    from monai import transforms as monai

    rng = np.random.default_rng(5)
    array = (rng.random((6, 7, 8)) * 900 - 300).astype(np.int16)
    array[:2] = 0
    volume, tensor = Volume(array, affine("RAS")), torch.from_numpy(array.T.copy()).float()[None]
    for rule, transform in (
        ({"kind": "window", "low": -160, "high": 240}, monai.ScaleIntensityRange(-160, 240, 0, 1, clip=True)),
        ({"kind": "percentile", "low": 2, "high": 97}, monai.ScaleIntensityRangePercentiles(2, 97, 0, 1)),
        ({"kind": "percentile", "low": 2, "high": 97, "clip": True}, monai.ScaleIntensityRangePercentiles(2, 97, 0, 1, clip=True)),
        ({"kind": "minmax"}, monai.ScaleIntensity(0, 1)),
        ({"kind": "zscore"}, monai.NormalizeIntensity()),
        ({"kind": "zscore", "nonzero": True}, monai.NormalizeIntensity(nonzero=True)),
        ({"kind": "none"}, monai.Identity()),
    ):  # fmt: skip
        prepared = prepare(network(orientation="RAS", intensity=rule), [volume])
        np.testing.assert_allclose(
            prepared.x[0].numpy(), transform(tensor.clone()).numpy(), atol=2e-6, err_msg=str(rule)
        )
        frozen = prepared.intensity[0]
        delta = np.full(prepared.shape, 0.25, np.float32)
        np.testing.assert_allclose(prepared.change(delta, (0, 0, 0)).array, 0.25 / frozen.scale, rtol=1e-6)
        if rule["kind"] == "window":
            assert (prepared.low, prepared.high) == ((0.0,), (1.0,))
        else:
            assert prepared.low[0] == pytest.approx(float(prepared.x.min()))
            assert prepared.high[0] == pytest.approx(float(prepared.x.max()))


def test_linear_with_one_limit():
    volume = Volume(np.array([[[-2000, -1024, 0, 1000]]], np.int16), affine())
    rule = {"kind": "linear", "multiply": 2, "add": 2048, "low": 0, "high": None}
    prepared = prepare(network(intensity=rule), [volume])
    assert prepared.x.flatten().tolist() == [0, 0, 2048, 4048] and (prepared.low, prepared.high) == ((0,), (4048.0,))


def test_statistics_follow_the_order_resample_intensity_pad():
    from monai.data import MetaTensor
    from monai.transforms import Compose, DivisiblePad, NormalizeIntensity, Orientation, Spacing

    rng = np.random.default_rng(2)
    volume = Volume(rng.random((10, 11, 12)).astype(np.float32), affine("LPS", (1, 1, 2)))
    about = {"orientation": "RAS", "spacing": (1.6, 1.3, 1.1), "intensity": {"kind": "zscore"}, "multiple_of": 4}
    prepared = prepare(network(**about), [volume])
    image = MetaTensor(torch.from_numpy(volume.array.T.copy())[None], affine=torch.from_numpy(volume.ijk_to_ras.copy()))
    steps = Compose([Orientation("RAS", labels=None), Spacing((1.6, 1.3, 1.1), padding_mode="border"), NormalizeIntensity(),
                     DivisiblePad(4, method="end")])  # fmt: skip
    expected = steps(image).numpy()
    assert expected.shape[1:] == prepared.shape
    inside = (slice(None), *prepared.valid)
    np.testing.assert_allclose(prepared.x[0].numpy()[inside], expected[inside], atol=1e-4)


def test_one_value_makes_no_infinity():
    volume = Volume(np.full((3, 3, 3), 7, np.int16), affine())
    for kind in ({"kind": "minmax"}, {"kind": "zscore"}, {"kind": "percentile", "low": 1, "high": 99}):
        prepared = prepare(network(intensity=kind), [volume])
        assert (prepared.x == 0).all() and prepared.intensity[0].scale == 1
    zeros = Volume(np.zeros((3, 3, 3), np.int16), affine())
    assert (prepare(network(intensity={"kind": "zscore", "nonzero": True}), [zeros]).x == 0).all()


def test_per_slice_counts_the_slice_alone():
    array = np.stack([np.full((4, 4), 10.0), np.arange(16.0).reshape(4, 4)]).astype(np.float32)
    volume = Volume(array, affine())
    whole = prepare(network(spatial_dims=2, intensity={"kind": "minmax"}), [volume], "k:0")
    alone = prepare(network(spatial_dims=2, intensity={"kind": "minmax", "per_slice": True}), [volume], "k:1")
    assert whole.intensity[0].scale == pytest.approx(1 / 15) and whole.x[0, 0, 0, 0] == pytest.approx(10 / 15)
    np.testing.assert_allclose(alone.x[0, 0].numpy(), array[1] / 15, rtol=1e-6)
    with pytest.raises(MedXAIError, match="per slice"):
        prepare(network(intensity={"kind": "minmax", "per_slice": True}), [volume])


def test_uint8_range():
    rule = {"kind": "linear", "multiply": 1, "add": -1, "range": "uint8"}
    model = network(spatial_dims=2, intensity=rule)
    twelve = Volume(np.array([[[0, 4095]]], np.uint16), np.eye(4), attributes={"stored_low": 0, "stored_high": 4095})
    prepared = prepare(model, [twelve])
    assert prepared.x.flatten().tolist() == [-1, 254]
    np.testing.assert_allclose(prepared.change(np.ones((1, 2), np.float32), (0, 0)).array, 4095 / 255, rtol=1e-6)
    signed = Volume(
        np.array([[[-2048, 2047]]], np.int16), np.eye(4), attributes={"stored_low": -2048, "stored_high": 2047}
    )
    assert prepare(model, [signed]).x.flatten().tolist() == [-1, 254]
    eight = Volume(np.array([[[0, 200]]], np.uint8), np.eye(4))
    assert prepare(model, [eight]).x.flatten().tolist() == [-1, 199]
    dreamed = eight.with_array(np.array([[[-3, 300]]], np.float32))  # a dream may leave the range; its unit stays
    assert prepare(model, [dreamed]).x.flatten().tolist() == [-4, 299]
    with pytest.raises(MedXAIError, match=r"8-bit values .* holds 0 to 4095 without saying how many bits"):
        prepare(model, [Volume(twelve.array, np.eye(4))])


# ---- 2-D -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letters", PLANES_2D)
def test_two_letters_fix_the_plane(letters):
    volume = numbered((3, 4, 5), affine("PIR", (1, 2, 3), (0.2, 0.1, -0.2)))
    model = network(spatial_dims=2, orientation=letters)
    third = next(pair for pair in ("RL", "AP", "SI") if not set(pair) & set(letters))
    plane = {"RL": "sagittal", "AP": "coronal", "SI": "axial"}[third]
    axis = plane_axis(model.package, volume)
    assert axis == volume.array_axis(plane)
    prepared = prepare(model, [volume], f"{plane}:1")
    assert prepared.slice == f"{'kji'[axis]}:1" == slice_of(model.package, volume, (1, 1, 1))
    turned = prepare(network(orientation=third[0] + letters), [volume]).x[0, 0]
    if third[0] != volume.orientation[2 - axis]:
        turned = turned.flip(0)
    np.testing.assert_array_equal(prepared.x[0, 0].numpy(), turned[1].numpy())
    delta = np.arange(math.prod(prepared.shape), dtype=np.float32).reshape(prepared.shape)
    patch = prepared.change(delta[1:, :2], (1, 0))
    assert np.shares_memory(patch.array, delta) and patch.array.shape[axis] == 1 and patch.start[axis] == 1
    whole = place(prepared.change(delta, (0, 0)), volume.shape)
    for index in np.argwhere(whole):
        assert whole[tuple(index)] == delta[prepared.to_network(index)]
        assert prepared.to_volume(prepared.to_network(index)) == tuple(index)
    assert np.count_nonzero(whole) == delta.size - 1
    with pytest.raises(MedXAIError, match=r"lies on slice .:0, and the network looks at .:1"):
        prepared.to_network((0, 0, 0))


def test_without_letters_slices_lie_along_k():
    volume = numbered((3, 4, 5), affine("SRA"))
    prepared = prepare(network(spatial_dims=2), [volume], "k:2")
    np.testing.assert_array_equal(prepared.x[0, 0].numpy(), volume.array[2])
    with pytest.raises(MedXAIError, match="takes k slices, and axial:0 is not one; choose one from k:0 to k:2"):
        prepare(network(spatial_dims=2), [volume], "axial:0")


def test_slices_are_refused_in_words():
    model, volume = network(spatial_dims=2, orientation="PL"), numbered((3, 4, 5), affine("LPS"), name="head")
    for text, words in (
        ("coronal:1", "'Net' takes axial slices, and coronal:1 is not one; choose one from axial:0 to axial:2"),
        ("j:1", "'Net' takes axial slices, and j:1 is not one"),
        ("axial:3", "'head' has no slice axial:3; axial slices go from 0 to 2"),
        ("k:-1", "is not a slice; write axial:57"),
        ("57", "is not a slice; write axial:57"),
        ("", "'Net' is a 2-D network and 'head' has 3 slices; choose one, such as --slice axial:1"),
        ("all", "One slice is explained at a time"),
    ):  # fmt: skip
        with pytest.raises(MedXAIError, match=words):
            prepare(model, [volume], text)
    with pytest.raises(MedXAIError, match="3-D network and takes the whole volume"):
        prepare(network(), [volume], "axial:1")
    assert parse_slice(volume, " Axial: 2 ") == (0, 2)


def test_one_slice_of_another_plane_is_refused():
    model = network(spatial_dims=2, orientation="PL")
    coronal = numbered((1, 4, 5), affine("LIP"), name="scout")
    with pytest.raises(MedXAIError, match="'scout' is one coronal slice, and 'Net' takes axial slices"):
        prepare(model, [coronal])
    axial = numbered((1, 4, 5), affine("LPS"))
    np.testing.assert_array_equal(prepare(model, [axial]).x[0, 0].numpy(), axial.array[0])
    turned = numbered((4, 1, 5), affine("RSA"))  # one axial slice along j
    assert prepare(model, [turned]).x.shape == (1, 1, 4, 5)


def test_a_resampled_slice_touches_its_slice_only():
    volume = numbered((3, 8, 9), affine("LPS", (1, 1, 5)))
    prepared = prepare(network(spatial_dims=2, orientation="PL", spacing=(2.0, 0.7)), [volume], "axial:1")
    patch = prepared.change(np.ones(prepared.shape, np.float32), (0, 0))
    assert patch.array.shape == (1, 8, 9) and patch.start == (1, 0, 0)
    np.testing.assert_allclose(patch.array, 1)


# ---- channels, masks, starts -----------------------------------------------------------------------------------------


def test_the_number_of_volumes_and_their_voxels_are_checked():
    model = network(channels=["T1", "T2"])
    volume = numbered((3, 3, 3), affine())
    with pytest.raises(MedXAIError, match=r"takes 2 volumes \(T1, T2\), and 1 came"):
        prepare(model, [volume])
    array = volume.array.copy()
    array[1, 2, 0] = np.nan
    with pytest.raises(MedXAIError, match=r"1 NaN or infinite voxels .*IJK 0, 2, 1"):
        prepare(model, [volume, volume.with_array(array)])


def test_channels_are_resampled_to_the_first_in_the_patient():
    matrix = affine("LPS", (1, 1, 2), (0.2, -0.1, 0.15), (4, 5, 6))
    first = numbered((6, 7, 8), matrix)
    other_matrix = affine("RSP", (0.6, 0.9, 0.7), (-0.1, 0.2, 0.1), (-22, 20, -8))
    shape = (50, 40, 60)
    k, j, i = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    ramp = np.einsum(
        "c,c...->...", [2.0, -1.0, 0.5], np.einsum("rc,c...->r...", other_matrix[:3], [i, j, k, np.ones(shape)])
    )
    second = Volume(ramp.astype(np.float32), other_matrix)
    expected = np.array([np.dot([2.0, -1.0, 0.5], first.index_to_ras(v)) for v in np.ndindex(first.shape)])
    corners = np.array([second.ras_to_index(first.index_to_ras(v)) for v in np.ndindex(first.shape)])
    assert ((corners >= 0) & (corners <= np.array(shape) - 1)).all()  # the ramp covers the first volume
    prepared = prepare(network(channels=["a", "b"], orientation=None), [first, second])
    np.testing.assert_array_equal(prepared.x[0, 0].numpy(), first.array)
    np.testing.assert_allclose(prepared.x[0, 1].numpy().ravel(), expected, atol=1e-3)
    assert len(prepared.intensity) == len(prepared.low) == 2


def test_beyond_a_channels_border_is_its_minimum_and_no_overlap_is_refused():
    first = numbered((2, 2, 9), affine("RAS"))
    half = Volume(np.full((2, 2, 4), 5, np.int16), affine("RAS"))
    half.array[0, 0, 0] = -3
    moved = on_grid(half, first).array
    np.testing.assert_allclose(moved[1, 1], [5, 5, 5, 5, -3, -3, -3, -3, -3], atol=1e-5)
    assert on_grid(first, first) is first
    with pytest.raises(MedXAIError, match="do not overlap"):
        on_grid(Volume(half.array, affine("RAS", origin=(500, 0, 0))), first)


def test_masks_are_nearest():
    volume = numbered((1, 1, 8), affine("RAS"))
    prepared = prepare(network(orientation="RAS", spacing=(2.0, 1.0, 1.0)), [volume])
    assert prepared.shape == (4, 1, 1)  # at 0, 2, 4 and 6
    mask = np.zeros(prepared.shape, bool)
    mask[1] = True
    patch = prepared.mask(mask, (0, 0, 0))
    assert patch.array.dtype == np.uint8 and place(patch, volume.shape)[0, 0].tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    seen = prepared.mask_to_network(np.arange(8).reshape(1, 1, 8) == 4)
    assert seen[:, 0, 0].tolist() == [False, False, True, False]


def test_another_start_is_known_in_the_volumes_units():
    volume = numbered((3, 4, 6), affine("LPS"), np.int16)
    prepared = prepare(network(orientation="RAS", intensity={"kind": "minmax"}, multiple_of=3), [volume])
    np.testing.assert_array_equal(prepared.start, volume.array)
    limits = prepared.low, prepared.high
    prepared.replace(torch.ones_like(prepared.x) * 0.5)
    np.testing.assert_allclose(prepared.start, np.full(volume.shape, 35.5), rtol=1e-6)
    assert (prepared.low, prepared.high) == limits and (prepared.x == 0.5).all()
    flat = prepare(network(spatial_dims=2), [volume], "k:1")
    flat.replace(torch.zeros_like(flat.x))
    assert (flat.start[1] == 0).all() and (flat.start[2] == volume.array[2]).all() and volume.array[1].any()
    with pytest.raises(MedXAIError, match="does not fit"):
        flat.replace(torch.zeros(1, 1, 2, 2))


def test_the_record_is_plain():
    volume = numbered((5, 6, 7), affine("LPS"))
    record = prepare(
        network(orientation="RAS", spacing=(1, 2, 1), multiple_of=2, intensity={"kind": "zscore"}), [volume]
    ).record()
    assert json.loads(json.dumps(record)) == record
    assert record["axes"] == ["i", "j", "k"] and record["flipped"] == [True, True, False]
    assert record["resampling"] == "linear" and record["padding"] == [[0, 1], [0, 0], [0, 1]]


def test_whole_numbers_of_every_type_and_views_are_taken():
    for dtype in (np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.int64, np.float32):
        array = np.arange(24, dtype=dtype).reshape(2, 3, 4)[:, ::-1]
        array.flags.writeable = False
        prepared = prepare(network(orientation="LPS"), [Volume(array, affine("RAS"))])
        np.testing.assert_array_equal(prepared.x[0, 0].numpy(), array.T[::-1, ::-1])


# ---- real data -------------------------------------------------------------------------------------------------------


def test_the_conformed_brain_reaches_meshnet_as_it_is(data):
    from MedXAILib.io import read_volume

    package = Package.read(data / "models" / "meshnet-white-grey")
    brain = read_volume(data / "volumes" / "brain_t1" / "spm152_conformed.nii.gz")
    prepared = prepare(SimpleNamespace(package=package, device=torch.device("cpu")), [brain])
    assert prepared.exact and prepared.shape == (256, 256, 256)
    raw = np.asarray(nibabel.load(data / "volumes" / "brain_t1" / "spm152_conformed.nii.gz").dataobj).astype(np.float32)
    low, high = float(raw.min()), float(raw.max())
    np.testing.assert_allclose(prepared.x[0, 0].numpy(), (raw - low) / (high - low), atol=1e-6)  # (i, j, k): L, I, A


def test_the_published_brain_and_the_conformed_one_meet_in_the_network(data):
    from MedXAILib.io import read_volume

    package = Package.read(data / "models" / "meshnet-white-grey")
    model = SimpleNamespace(package=package, device=torch.device("cpu"))
    folder = data / "volumes" / "brain_t1"
    fine = read_volume(folder / "spm152.nii.gz")
    prepared = prepare(model, [fine])
    assert not prepared.exact and prepared.record()["axes"] == ["i", "k", "j"]
    conformed = prepare(model, [read_volume(folder / "spm152_conformed.nii.gz")])
    point = fine.voxel(ras=(-20, -30, 40))
    at = prepared.to_network(point)
    there = conformed.to_network(conformed.volume.voxel(ras=(-20, -30, 40)))
    a, b = (p.x[0, 0][tuple(np.s_[c - 10 : c + 11] for c in q)] for p, q in ((prepared, at), (conformed, there)))
    assert float(np.corrcoef(a.flatten(), b.flatten())[0, 1]) > 0.95


def test_a_resized_radiograph_gives_the_accuracy_it_was_published_with(data):
    import csv

    from MedXAILib.io import read_volume

    package = Package.read(data / "models" / "chest-view")
    network_ = torch.jit.load(str(package.weights_path)).eval()
    model = SimpleNamespace(package=package, device=torch.device("cpu"))
    with (data / "radiographs" / "nih_chest" / "labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    right = 0
    for row in rows:
        x = prepare(model, [read_volume(data / "radiographs" / "nih_chest" / "images" / row["image"])]).x
        with torch.no_grad():
            right += package.output.labels[int(network_(x).argmax())] == row["view"]
    assert len(rows) == 86 and right >= 84  # the README of the data: 0.99
