"""dream on networks whose right explanation is known, and dream cropped against dream whole."""

import itertools

import numpy as np
import planted
import pytest
import torch

from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import Patch, run
from MedXAILib.features import Reference
from MedXAILib.methods import REGISTRY
from MedXAILib.models import load
from MedXAILib.package import write_package
from MedXAILib.settings import DreamSettings
from MedXAILib.volume import Volume

dream = REGISTRY["dream"]


def volume(shape, seed=0, matrix=None, scale=1.0):
    array = np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)
    return Volume(array, np.diag([-1.0, -1.0, 1.0, 1.0]) if matrix is None else matrix, "noise")


def settings(**values):
    return DreamSettings(**{"features": ("none",), "tolerance": 0, "step_size": 1.0, **values})


def open_package(package, **options):
    return load(package.folder, device="cpu", trusted={package.sha256}, **options)


def network(tmp_path, name, arguments, seed=0, **about):
    """A package of a MONAI network with random weights (and non-trivial batch statistics)."""
    from monai.networks import nets
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    module = getattr(nets, name)(**arguments).eval()
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.6, 1.5)
    fields = {
        "schema": 1, "name": name, "task": "segmentation", "weights": "weights.safetensors",
        "network": {"name": name, "arguments": arguments},
        "input": {
            "spatial_dims": arguments["spatial_dims"], "channels": ["image"] * arguments["in_channels"], "orientation": None,
            "spacing": None, "size": None, "multiple_of": 1, "intensity": {"kind": "none"}, **about,
        },
        "output": {"labels": ["background", "object"], "activation": "softmax"},
    }  # fmt: skip
    state = {k: v.clone().contiguous() for k, v in module.state_dict().items()}  # some hold a tensor twice
    return write_package(tmp_path / name, fields, lambda path: save_file(state, str(path)))


UNET = dict(
    spatial_dims=2, in_channels=1, out_channels=2, channels=[4, 6, 8], strides=[2, 2], kernel_size=3, up_kernel_size=3, norm="BATCH"
)  # fmt: skip


# ---- the linear neuron ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", planted.FORMATS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_linear_neuron_moves_along_its_weights_exactly(linear_package, format, ndim):
    random = np.random.default_rng(1)
    weight = random.normal(size=(5, 3) if ndim == 2 else (3, 5, 3)).astype(np.float32)
    model = open_package(linear_package(weight, format=format))
    start = volume((1, 20, 21) if ndim == 2 else (18, 19, 20))
    ijk, alpha, steps = ((9, 10, 0), 0.5, 7) if ndim == 2 else ((9, 10, 8), 0.5, 7)
    found = run(dream(model, [start], settings(label="object", neuron_ijk=ijk, steps=steps, step_size=alpha)))
    full = weight if ndim == 3 else weight[None]
    expected = np.zeros(start.shape)
    box = tuple(slice(p - n // 2, p + n // 2 + 1) for p, n in zip(ijk[::-1], full.shape))
    expected[box] = steps * alpha * full
    change = found.maps["dream"].volume.array - start.array.astype(np.float64)
    np.testing.assert_allclose(change, expected, atol=2e-5)
    untouched = expected == 0
    assert (found.maps["dream"].volume.array[untouched] == start.array[untouched]).all()  # to the bit
    z = found.curves["curves"].columns["response"]
    first = float((start.array[box] * full).sum())
    np.testing.assert_allclose(z, first + np.arange(steps + 1) * alpha * (full**2).sum(), rtol=1e-4, atol=1e-3)
    assert found.scores["steps"] == steps and not found.scores["converged"]


def test_normalized_steps_have_the_length_alpha(linear_package):
    weight = np.random.default_rng(2).normal(size=(3, 3, 3)).astype(np.float32)
    model = open_package(linear_package(weight))
    found = run(
        dream(model, [volume((12, 12, 12))], settings(neuron_ijk=(6, 6, 6), steps=4, step_size=0.3, normalize=True))
    )
    change = found.maps["change"].volume.array
    np.testing.assert_allclose(change[5:8, 5:8, 5:8], 4 * 0.3 * weight / np.linalg.norm(weight), atol=1e-5)
    frames = [v.array for _, v in found.sequences["steps"].items]
    lengths = [np.linalg.norm(b.astype(float) - a) for a, b in itertools.pairwise(frames)]
    np.testing.assert_allclose(lengths, 0.3, rtol=1e-4)


def test_clamp_keeps_the_networks_range_and_is_recorded(linear_package):
    model = open_package(
        linear_package(np.ones((3, 3, 3)), input={"intensity": {"kind": "window", "low": -100.0, "high": 100.0}})
    )
    start = volume((10, 10, 10), scale=30.0)
    options = dict(neuron_ijk=(5, 5, 5), steps=5, step_size=0.5)
    free = run(dream(model, [start], settings(**options)))
    held = run(dream(model, [start], settings(**options, clamp=True)))
    assert free.maps["dream"].volume.array.max() > 300
    np.testing.assert_allclose(held.maps["dream"].volume.array[4:7, 4:7, 4:7], 100, atol=1e-3)
    assert held.provenance["settings"]["clamp"] is True
    # what the window cuts off cannot be seen again by a network that reads the file
    assert not free.self_checks["response_of_written_volume"]["passed"]
    assert held.self_checks["response_of_written_volume"]["passed"]


def test_a_saturating_response_converges(detector_package):
    model = open_package(detector_package("area"))
    start, ijk = planted.detector_start("area")
    found = run(dream(model, [start], settings(neuron_ijk=ijk, steps=200, step_size=0.05, tolerance=1e-3)))
    assert found.scores["converged"] or any("gradient is zero" in note for note in found.notes)
    assert found.scores["steps"] < 200
    assert found.scores["response_end"] > found.scores["response_start"]


# ---- planted detectors move their own curve and leave the others flat ---------------------------------------------------

CURVES = {
    "mean": "firstorder_Mean",
    "texture": "glcm_Contrast",
    "area": ("shape_VoxelVolume", "shape2D_PixelSurface"),
}


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", planted.DETECTORS)
def test_a_detector_moves_its_own_curve_only(detector_package, kind, ndim):
    # The mean detector's step is one grey-level bin, so that a shift of the whole mask leaves the texture as it is.
    pytest.importorskip("radiomics")
    model = open_package(detector_package(kind, ndim=ndim))
    start, ijk = planted.detector_start(kind, ndim=ndim)
    volume_name = "shape_VoxelVolume" if ndim == 3 else "shape2D_PixelSurface"
    names = ("firstorder_Mean", "glcm_Contrast", volume_name)
    found = run(
        dream(
            model, [start],
            settings(neuron_ijk=ijk, steps=40 if kind == "area" else 12, step_size={"mean": 0.05, "texture": 0.02, "area": 0.01}[kind], features=names, bin_width=5.0),
        )
    )  # fmt: skip
    curves = found.curves["curves"].columns
    moved = {}
    for name in names:
        values = curves[name]
        assert np.isfinite(values).sum() >= 2, (name, values)
        known = values[np.isfinite(values)]
        moved[name] = (known[-1] - known[0]) / max(abs(known[0]), 1e-6)
    mine = CURVES[kind] if isinstance(CURVES[kind], str) else volume_name
    assert moved[mine] > 0.1, moved
    for name in names:
        if name != mine and not (kind == "area"):
            assert abs(moved[name]) < 0.1 * moved[mine], moved
    if kind == "area":  # the detector is blind to brightness above its ramp: the mean of what it sees stays in it
        assert curves["firstorder_Mean"][-1] < planted.RAMP[2] + 10


# ---- cropped equals whole ------------------------------------------------------------------------------------------------


def compare(model, start, chosen):
    cropped = run(dream(model, [start], settings(**chosen)))
    whole = run(dream(model, [start], settings(**chosen, crop=False)))
    assert not whole.provenance["crop"]["exact"]
    a, b = cropped.curves["curves"].columns["response"], whole.curves["curves"].columns["response"]
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert len(cropped.sequences["steps"].items) == chosen["steps"] + 1
    assert whole.masks["mask"].array.any(), "a case without a mask compares nothing"
    for kind in ("steps", "mask-steps"):
        for (i, mine), (j, theirs) in zip(cropped.sequences[kind].items, whole.sequences[kind].items):
            assert i == j
            full = start.array.copy() if kind == "steps" else np.zeros(start.shape, np.float32)
            for patch, target in ((mine, full.copy()), (theirs, full.copy())):
                corner = tuple(round(v) for v in start.ras_to_index(patch.ijk_to_ras[:3, 3]))
                target[Patch(patch.array, corner).box] = patch.array
                full, target = target, full
            mine_full, theirs_full = target, full
            if kind == "steps":
                np.testing.assert_allclose(mine_full, theirs_full, atol=1e-4)
            else:
                assert (mine_full != theirs_full).sum() == 0
    return cropped


@pytest.mark.parametrize("ijk", [(20, 22, 0), (1, 46, 0), (45, 2, 0)])
def test_cropped_dream_equals_whole_with_strides(tmp_path, ijk):
    model = open_package(network(tmp_path, "UNet", UNET, multiple_of=4))
    found = compare(model, volume((1, 48, 48)), dict(neuron_ijk=ijk, steps=6, step_size=8.0, normalize=True))
    assert found.provenance["crop"]["exact"] and found.self_checks["crop"]["passed"]
    gradient = found.provenance["crop"]["gradient"]
    assert gradient[0] < 48 and gradient[1] < 48  # there was something to save


@pytest.mark.parametrize("ijk", [(12, 13, 11), (0, 23, 5)])
def test_cropped_dream_equals_whole_in_3d(tmp_path, ijk):
    arguments = {**UNET, "spatial_dims": 3, "channels": [2, 3], "strides": [2]}
    model = open_package(network(tmp_path, "UNet", arguments, multiple_of=2))
    found = compare(model, volume((24, 24, 24)), dict(neuron_ijk=ijk, steps=4, step_size=10.0, normalize=True))
    assert found.provenance["crop"]["exact"]


def test_cropped_dream_equals_whole_with_dilations(linear_package):
    model = open_package(linear_package(np.random.default_rng(5).normal(size=(9, 9)).astype(np.float32)))
    found = compare(model, volume((1, 40, 41)), dict(neuron_ijk=(20, 3, 0), steps=5, step_size=0.1))
    assert found.provenance["crop"]["exact"]


def test_the_mask_joins_a_component_that_reaches_out_of_the_box(detector_package):
    model = open_package(detector_package("mean", ndim=2))
    start, ijk = planted.detector_start("mean", ndim=2, size=61)
    array = start.array.copy()
    array[0, 30, :] = 100  # a bright line through everything, far beyond twice the receptive field
    start = start.with_array(array)
    found = compare(model, start, dict(neuron_ijk=ijk, steps=3, step_size=0.02))
    assert found.masks["mask"].array[0, 30].all()


def test_a_spatial_normalization_refuses_to_crop_and_says_so(tmp_path):
    model = open_package(network(tmp_path, "UNet", {**UNET, "norm": "INSTANCE"}, multiple_of=4))
    found = run(dream(model, [volume((1, 32, 32))], settings(neuron_ijk=(9, 20, 0), steps=3, step_size=0.5)))
    assert not found.provenance["crop"]["exact"]
    assert any("Computed on the whole volume" in note for note in found.notes)
    assert (found.maps["change"].volume.array != 0).mean() > 0.9  # the gradient reaches everywhere


def test_a_network_of_one_window_dreams_in_the_window_around_the_voxel(tmp_path):
    arguments = {**UNET, "norm": "INSTANCE"}  # its answer depends on the whole window
    package = network(tmp_path, "UNet", arguments, multiple_of=4, size=[16, 16], fit="window")
    model = open_package(package)
    start = volume((1, 40, 36))
    found = run(dream(model, [start], settings(neuron_ijk=(20, 25, 0), steps=4, step_size=6.0, normalize=True)))
    change = found.maps["change"].volume.array[0]
    rows, columns = np.nonzero(change)
    assert (rows.min(), rows.max() + 1) == (17, 33) and (columns.min(), columns.max() + 1) == (12, 28)
    window = start.array[0, 17:33, 12:28]
    with model.frozen(), torch.enable_grad():
        x = torch.from_numpy(window.copy())[None, None].requires_grad_(True)
        z = model.logits(x)[0, 1, 8, 8]
        (slope,) = torch.autograd.grad(z, x)
    assert found.curves["curves"].columns["response"][0] == pytest.approx(z.item(), rel=1e-4)
    first = found.sequences["steps"].items[1][1].array[0] - window
    np.testing.assert_allclose(first, (6 * slope / slope.norm())[0, 0].numpy(), atol=1e-4)
    assert any("windows of (16, 16)" in note for note in found.notes)
    assert found.masks["mask"].array[0, 17:33, 12:28].any() == found.masks["mask"].array.any()


@pytest.mark.parametrize("norm", ["INSTANCE", "BATCH"])
def test_no_work_is_done_twice(tmp_path, monkeypatch, norm):
    """Voxels fed per step: the whole grid once where nothing can be cropped, else the two small boxes at most."""
    model = open_package(network(tmp_path, "UNet", {**UNET, "norm": norm}, multiple_of=4))
    fed = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda x: (fed.append(x[0, 0].numel()), logits(x))[1])
    found = run(
        dream(model, [volume((1, 96, 96))], settings(neuron_ijk=(48, 48, 0), steps=8, step_size=8.0, normalize=True))
    )
    assert found.masks["mask"].array.any()
    first = fed.index(96 * 96)  # the first look
    ascent = fed[first + (1 if norm == "INSTANCE" else 3) : -1]  # without the checks of the crop and of the end
    if norm == "INSTANCE":
        assert ascent == [96 * 96] * 9
    else:
        gradient = np.prod(found.provenance["crop"]["gradient"])
        prediction = np.prod(found.provenance["crop"]["prediction"])
        assert sum(ascent) <= 9 * (gradient + prediction) and max(ascent) <= prediction


def test_a_logit_near_zero_does_not_give_up_the_crop(linear_package):
    weight = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    model, start = open_package(linear_package(weight)), volume((30, 31, 32), scale=1000)
    with torch.no_grad():
        z = model.logits(torch.from_numpy(start.array)[None, None])[0, 1].abs().numpy()[8:-8, 8:-8, 8:-8]
    k, j, i = (int(v) + 8 for v in np.unravel_index(z.argmin(), z.shape))
    assert z.min() < 1e-4 * z.max()
    found = run(dream(model, [start], settings(neuron_ijk=(i, j, k), steps=1)))
    assert found.provenance["crop"]["exact"] and found.self_checks["crop"]["passed"]


@pytest.mark.parametrize("start", ["volume", "noise"])
def test_only_the_image_moves_not_its_padding(linear_package, start):
    model = open_package(linear_package(np.ones((3, 3, 3)), input={"multiple_of": 8}))
    found = run(
        dream(model, [volume((12, 12, 12))], settings(neuron_ijk=(11, 6, 6), steps=3, step_size=1.0, start=start))
    )
    z = found.curves["curves"].columns["response"]
    np.testing.assert_allclose(np.diff(z), 18, rtol=1e-4)  # 18 of the 27 voxels that it sees are image
    assert found.self_checks["response_of_written_volume"]["value"] == pytest.approx(z[-1], abs=1e-3)


def test_the_line_texture_of_a_2d_network_is_that_of_its_slice(linear_package):
    from MedXAILib.features import line_texture

    for orientation, ijk, axis in (("PL", (15, 14, 3), 0), ("IP", (5, 14, 12), 2)):
        model = open_package(linear_package(np.eye(9), input={"orientation": orientation}))
        start = volume((24, 30, 31))
        loud = start.array.copy()
        np.moveaxis(loud, axis, 0)[0] *= 100  # another slice, with stronger lines
        start = start.with_array(loud)
        found = run(
            dream(model, [start], settings(neuron_ijk=ijk, steps=4, features=("line_texture",), line_angle=135))
        )
        dreamed = found.maps["dream"].volume.array.take([ijk[::-1][axis]], axis)
        curve = found.curves["curves"].columns["line_texture"]
        assert curve[-1] == pytest.approx(line_texture(dreamed, 135, 9)) and curve[-1] > curve[0] + 0.1


@pytest.mark.parametrize("features", ["none", "firstorder_Mean"])
def test_a_component_between_the_voxels_of_the_volume_is_said_and_no_end(linear_package, features):
    weight = np.zeros((3, 3, 3), np.float32)
    weight[1, 1, 1] = 1
    model = open_package(linear_package(weight, bias=-10, input={"orientation": "RAS", "spacing": [1.0, 1.0, 1.0]}))
    start = volume((8, 20, 20), matrix=np.diag([1.0, 1.0, 5.0, 1.0]))
    found = run(dream(model, [start], settings(start="noise", steps=15, features=(features,))))
    assert found.scores["response_end"] > 0 and not found.masks["mask"].array.any()
    assert any("between the voxels" in note for note in found.notes)


def test_a_probability_that_is_cut_off_is_told_apart_from_a_flat_network(linear_package):
    model = open_package(
        linear_package(np.ones((3, 3, 3)), output={"labels": ["object", "other"], "activation": "none"})
    )
    found = run(dream(model, [volume((9, 9, 9))], settings(label="object", neuron_ijk=(4, 4, 4), steps=3)))
    assert found.scores["steps"] == 0 and any("activation none" in note for note in found.notes)


def test_what_the_reference_lacks_is_said(linear_package, tmp_path):
    model, start = open_package(linear_package(np.ones((3, 3, 3)))), volume((12, 12, 12))
    cases = [(str(n), volume((12, 12, 12), n), start.with_array(np.ones(start.shape, np.uint8))) for n in range(3)]
    Reference.from_cases(cases, ["line_texture"]).write(tmp_path / "reference.json")
    chosen = dict(neuron_ijk=(4, 4, 4), steps=2, reference=str(tmp_path / "reference.json"))
    found = run(dream(model, [start], settings(**chosen, features=("line_texture", "firstorder_Mean"))))
    assert [n for n in found.notes if "reference has no" in n] == [
        "The reference has no firstorder_Mean: these curves are not normalised."
    ]
    assert np.isfinite(found.curves["normalized"].columns["line_texture"]).all()


def test_features_that_were_put_off_are_the_same(detector_package, monkeypatch):
    pytest.importorskip("radiomics")
    from MedXAILib.features import FeatureQueue
    from MedXAILib.methods.frames import Waiting

    model = open_package(detector_package("mean"))
    start, ijk = planted.detector_start("mean")
    chosen = settings(neuron_ijk=ijk, steps=6, step_size=0.05, features=("firstorder_Mean", "shape_VoxelVolume"))
    beside = run(dream(model, [start], chosen))
    monkeypatch.setattr(FeatureQueue, "offer", lambda *_: False)
    monkeypatch.setattr(Waiting, "__init__", lambda self, _, init=Waiting.__init__: init(self, 0))
    late = run(dream(model, [start], chosen))
    assert late.provenance["features"]["filled_in_afterwards"] == 7
    for name, column in beside.curves["curves"].columns.items():
        np.testing.assert_array_equal(column, late.curves["curves"].columns[name])
        assert np.isfinite(column).all()


def test_memory_that_runs_out_on_the_way_back_is_said(linear_package, monkeypatch):
    model = open_package(linear_package(np.ones((3, 3, 3))))

    def full(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(torch.autograd, "grad", full)
    with pytest.raises(MedXAIError, match="GiB") as caught:
        run(dream(model, [volume((9, 9, 9))], settings(neuron_ijk=(4, 4, 4), steps=1)))
    assert caught.value.kind == "memory"


def test_memory_is_asked_for_before_every_larger_pass(tmp_path, monkeypatch):
    model = open_package(network(tmp_path, "UNet", UNET, multiple_of=4))
    asked, fed = {False: 0, True: 0}, []
    require, logits = model.require_memory, model.logits

    def watch(shape, gradient, lower):
        asked[gradient] = max(asked[gradient], int(np.prod(shape)))
        return require(shape, gradient, lower)

    def count(x):
        assert x[0, 0].numel() <= asked[x.requires_grad]
        fed.append(x[0, 0].numel())
        return logits(x)

    monkeypatch.setattr(model, "require_memory", watch)
    monkeypatch.setattr(model, "logits", count)
    run(dream(model, [volume((1, 96, 96))], settings(neuron_ijk=(48, 48, 0), steps=8, step_size=8.0, normalize=True)))
    assert fed


# ---- geometry --------------------------------------------------------------------------------------------------------------

ROTATION = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("orientation", ["RAS", "LIA", None])
def test_results_lie_on_exactly_the_grid_of_the_volume(linear_package, flip, orientation):
    matrix = np.eye(4)
    matrix[:3, :3] = ROTATION @ np.diag(np.array([0.7, 1.1, 2.5]) * flip)
    matrix[:3, 3] = [11.0, -70.25, 33.5]
    start = volume((12, 13, 14), matrix=matrix)
    model = open_package(linear_package(np.ones((3, 3, 3)), input={"orientation": orientation}))
    ras = start.index_to_ras((6, 5, 7))
    found = run(dream(model, [start], settings(neuron_ras=ras, steps=2, step_size=1.0)))
    for result in (found.maps["dream"].volume, found.maps["change"].volume, found.masks["mask"]):
        assert result.shape == start.shape and (result.ijk_to_ras == start.ijk_to_ras).all()
    change = found.maps["change"].volume.array
    np.testing.assert_allclose(change[5:8, 4:7, 6:9], 2, atol=1e-4)
    assert (change != 0).sum() == 27
    assert found.provenance["neuron_ijk"] == [7, 5, 6]


def test_a_2d_network_dreams_on_its_slice_only(linear_package):
    model = open_package(linear_package(np.ones((3, 3)), input={"orientation": "PL"}))
    start = volume((9, 20, 22))  # LPS: axial slices along k
    found = run(dream(model, [start], settings(neuron_ijk=(8, 11, 4), steps=2)))
    change = found.maps["change"].volume.array
    assert (change[4, 10:13, 7:10] != 0).all() and (change != 0).sum() == 9
    assert found.provenance["preparation"]["slice"] == "k:4"


def test_a_resampled_network_gives_back_the_grid(linear_package):
    model = open_package(linear_package(np.ones((3, 3, 3)), input={"orientation": "RAS", "spacing": [2.0, 2.0, 2.0]}))
    start = volume((20, 22, 24))
    found = run(dream(model, [start], settings(neuron_ijk=(12, 11, 10), steps=2, step_size=0.5)))
    change = found.maps["change"].volume
    assert change.shape == start.shape and (change.ijk_to_ras == start.ijk_to_ras).all()
    k, j, i = np.nonzero(change.array)
    assert abs(k.mean() - 10) <= 1 and abs(j.mean() - 11) <= 1 and abs(i.mean() - 12) <= 1
    assert change.array.max() <= 1.0 + 1e-5 and 4**3 <= len(k) <= 9**3


@pytest.mark.parametrize("channel,file", [("b", "change-b"), ("../b = 1000", "change-.._b_1000")])
def test_several_channels_change_together(tmp_path, channel, file):
    net = planted.Planted(3, 4, (1, 1), in_channels=2)
    for sign, filter in ((1, 0), (-1, 1)):
        net.tap(0, filter, 0, sign * 1.0)
        net.tap(0, filter, 1, sign * 2.0)
        net.tap(1, filter, filter, 1.0)
        net.out(1, filter, sign)
    package = planted.planted_package(
        tmp_path / "two", net, input={"channels": ["a", channel], "intensity": {"kind": "none"}}
    )
    model = open_package(package)
    found = run(dream(model, [volume((8, 8, 8)), volume((8, 8, 8), 1)], settings(neuron_ijk=(4, 4, 4), steps=3)))
    assert found.maps["change"].volume.array[4, 4, 4] == pytest.approx(3.0)
    assert found.maps[file].volume.array[4, 4, 4] == pytest.approx(6.0)
    check = found.self_checks["response_of_written_volume"]  # with the change of both
    assert check["passed"] and check["value"] == pytest.approx(found.scores["response_end"], rel=1e-4)
    noise = run(
        dream(model, [volume((8, 8, 8)), volume((8, 8, 8), 1)], settings(neuron_ijk=(4, 4, 4), steps=1, start="noise"))
    )
    assert noise.self_checks["response_of_written_volume"]["passed"] is None


# ---- where to start ----------------------------------------------------------------------------------------------------------


def test_best_in_segment_is_the_highest_logit_there(linear_package):
    weight = np.zeros((3, 3, 3), np.float32)
    weight[1, 1, 1] = 1
    model = open_package(linear_package(weight))
    start = volume((10, 11, 12))
    segment = np.zeros(start.shape, np.uint8)
    segment[2:5, 3:8, 4:9] = 1
    found = run(dream(model, [start], settings(steps=1), segment=start.with_array(segment, "organ")))
    inside = np.where(segment, start.array, -np.inf)
    assert found.provenance["neuron_ijk"] == [int(v) for v in np.unravel_index(inside.argmax(), inside.shape)][::-1]
    anywhere = run(dream(model, [start], settings(steps=1)))
    best = np.unravel_index(start.array.argmax(), start.shape)
    assert anywhere.provenance["neuron_ijk"] == [int(v) for v in best][::-1]


def test_white_noise_is_a_seed(linear_package):
    model = open_package(linear_package(np.ones((3, 3, 3)), input={"intensity": {"kind": "zscore"}}))
    start = volume((14, 14, 14), scale=50.0)
    first, again, other = (
        run(dream(model, [start], settings(start="noise", seed=seed, neuron_ijk=(7, 7, 7), steps=2)))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.maps["dream"].volume.array, again.maps["dream"].volume.array)
    assert (first.maps["dream"].volume.array != other.maps["dream"].volume.array).mean() > 0.9
    noise = first.maps["dream"].volume.array
    assert abs(np.corrcoef(noise.ravel(), start.array.ravel())[0, 1]) < 0.1
    assert noise.std() == pytest.approx(start.array.std(), rel=0.1)


@pytest.mark.parametrize("option", [dict(jitter=2), dict(blur=1.0), dict(total_variation=0.001), dict(l2=0.01)])
def test_options_change_the_dream_and_stay_repeatable(tmp_path, option):
    model = open_package(network(tmp_path, "UNet", UNET, multiple_of=4))
    start = volume((1, 32, 32))
    chosen = dict(neuron_ijk=(15, 16, 0), steps=5, step_size=0.5)
    bare = run(dream(model, [start], settings(**chosen)))
    one, two = (run(dream(model, [start], settings(**chosen, **option))) for _ in range(2))
    np.testing.assert_array_equal(one.maps["dream"].volume.array, two.maps["dream"].volume.array)
    assert not np.array_equal(one.maps["dream"].volume.array, bare.maps["dream"].volume.array)
    if "jitter" not in option:  # what smooths or holds back the change makes it smaller or flatter
        rough = [np.abs(np.diff(f.maps["change"].volume.array, axis=n)).sum() for f in (one, bare) for n in (1, 2)]
        assert sum(rough[:2]) < sum(rough[2:])


def test_l2_of_a_linear_neuron_has_a_closed_form(linear_package):
    weight = np.random.default_rng(4).normal(size=(3, 3, 3)).astype(np.float32)
    model = open_package(linear_package(weight))
    found = run(dream(model, [volume((9, 9, 9))], settings(neuron_ijk=(4, 4, 4), steps=3, step_size=0.1, l2=0.5)))
    factor = sum(0.1 * (1 - 2 * 0.5 * 0.1) ** k for k in range(3))  # δ ← δ + α (w − 2 λ δ)
    np.testing.assert_allclose(found.maps["change"].volume.array[3:6, 3:6, 3:6], factor * weight, atol=1e-5)


def test_a_response_that_swings_is_told(linear_package):
    model = open_package(linear_package(np.random.default_rng(4).normal(size=(3, 3, 3)).astype(np.float32)))
    chosen = dict(neuron_ijk=(4, 4, 4), steps=16, step_size=0.1)
    swings, climbs = (run(dream(model, [volume((9, 9, 9))], settings(**chosen, l2=l2))) for l2 in (9.5, 0.5))
    assert any("smaller step size" in note for note in swings.notes)
    assert not any("smaller step size" in note for note in climbs.notes)


# ---- nothing is left behind ----------------------------------------------------------------------------------------------------


def state(model):
    module = model.module
    return {
        "training": [m.training for m in module.modules()],
        "grad": [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in module.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        "buffers": [b.clone() for b in module.buffers()],
        "random": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002 - the state in question
    }


def same(a, b):
    assert a["training"] == b["training"] and a["hooks"] == b["hooks"]
    assert a["random"] == b["random"] and a["numpy"] == b["numpy"]
    for (f, g), (h, i) in zip(a["grad"], b["grad"]):
        assert f == h and ((g is None and i is None) or torch.equal(g, i))
    assert all(torch.equal(x, y) for x, y in zip(a["buffers"], b["buffers"]))


@pytest.mark.parametrize("ending", ["run", "cancel", "error", "error outside"])
def test_the_model_is_the_same_after_a_run_an_error_and_a_cancel(tmp_path, ending):
    model = open_package(network(tmp_path, "UNet", UNET, multiple_of=4))
    for n, part in enumerate(model.module.modules()):
        part.training = n % 2 == 0  # a mixture, to be put back module by module
    for n, parameter in enumerate(model.module.parameters()):
        parameter.requires_grad_(n % 3 != 0)
        parameter.grad = torch.ones_like(parameter) * n
    before = state(model)
    start = volume((1, 32, 32))
    chosen = settings(neuron_ijk=(9, 9, 0), steps=4, jitter=1)
    if ending == "run":
        run(dream(model, [start], chosen))
    elif ending == "cancel":
        steps = dream(model, [start], chosen)
        for _ in range(5):
            next(steps)
        steps.close()
    elif ending == "error":
        with pytest.raises(MedXAIError, match="infinite"):
            huge = start.with_array(start.array * np.float32(1e38))
            run(dream(model, [huge], settings(neuron_ijk=(9, 9, 0), steps=4)))
    else:
        with pytest.raises(ZeroDivisionError):
            run(dream(model, [start], chosen), each=lambda step: 1 / (step.fraction < 0.5))
    same(before, state(model))


def test_inputs_are_never_changed(linear_package):
    start = volume((9, 9, 9))
    kept = start.array.copy()
    run(dream(open_package(linear_package(np.ones((3, 3, 3)))), [start], settings(neuron_ijk=(4, 4, 4), steps=3)))
    np.testing.assert_array_equal(start.array, kept)


def test_previews_add_up_to_the_result(detector_package):
    model = open_package(detector_package("area", ndim=2))
    start, ijk = planted.detector_start("area", ndim=2)
    layers = {}

    def watch(step):
        for name, seen in (step.previews() if step.previews else {}).items():
            if isinstance(seen, Volume):
                layers[name] = seen.array.copy()
            else:
                layers[name][seen.box] = seen.array

    found = run(dream(model, [start], settings(neuron_ijk=ijk, steps=6, step_size=0.02)), each=watch)
    np.testing.assert_array_equal(layers["dream"], found.maps["dream"].volume.array)
    np.testing.assert_array_equal(layers["mask"], found.masks["mask"].array)


# ---- refusals ------------------------------------------------------------------------------------------------------------------


def test_refusals(linear_package, tmp_path):
    model = open_package(linear_package(np.ones((3, 3, 3))))
    start = volume((9, 9, 9))
    holes = start.array.copy()
    holes[1, 2, 3] = np.nan
    far = np.eye(4)
    far[0, 3] = 900
    for volumes, chosen, segment, words in [
        ([start], dict(label="objekt"), None, "did you mean 'object'"),
        ([start, start], {}, None, "takes 1 volume"),
        ([start], dict(neuron_ijk=(9, 0, 0)), None, "outside"),
        ([start], dict(neuron_ras=(500, 0, 0)), None, "outside"),
        ([start.with_array(holes)], {}, None, "NaN or infinite"),
        ([start], {}, start.with_array(np.zeros(start.shape, np.uint8), "organ"), "'organ' is empty"),
        ([start], {}, Volume(np.ones((4, 4, 4), np.uint8), far, "organ"), "do not overlap"),
        ([start], dict(slice="k:3"), None, "leave the slice out"),
    ]:  # fmt: skip
        with pytest.raises(MedXAIError, match=words):
            run(dream(model, volumes, settings(**chosen), segment=segment))
