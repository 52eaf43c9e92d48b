"""ability on units whose SA score is known, and ability against the plain form of the paper."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import planted
import pytest
import torch
from test_dream import UNET, network, open_package

from MedXAILib import cli, io, output
from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import run
from MedXAILib.methods import REGISTRY
from MedXAILib.methods.body import body_mask
from MedXAILib.methods.prototypes import Interpolation, separation
from MedXAILib.models import prepare
from MedXAILib.models.reading import choose, read
from MedXAILib.package import write_package
from MedXAILib.settings import AbilitySettings
from MedXAILib.volume import Volume

ability = REGISTRY["ability"]
MATRIX = np.diag([-1.5, -1.5, 2.0, 1.0])
UNITS = ("mask", "its complement", "gauss", "coin")
DISTANCE = 1.5  # between the means of the Gaussian unit, in standard deviations


def study(ndim=3, seed=0):
    """Volumes for `separators`: object (0/1), Gaussian with a mean that differs by `DISTANCE`, fair coin; and the object as annotation."""
    random = np.random.default_rng(seed)
    shape = (40, 44, 48) if ndim == 3 else (1, 240, 250)
    grid = [g - n / 2 for g, n in zip(np.indices(shape), shape)]
    inside = sum((g / n) ** 2 for g, n in zip(grid, shape) if n > 1) <= 0.3**2
    arrays = inside, DISTANCE * inside + random.normal(size=shape), random.integers(0, 2, shape)
    volumes = [Volume(a.astype(np.float32), MATRIX, n) for a, n in zip(arrays, ("object", "gauss", "coin"))]
    return volumes, Volume(inside.astype(np.uint8), MATRIX, "annotation")


def separators(folder, ndim=3, format="safetensors", **changes):
    """A network whose units are the object, its complement, the Gaussian image and the coin, and whose output is the object."""
    net = planted.Planted(ndim, 4, (1, 1), in_channels=3)
    net.tap(0, 0, 0, 1)
    net.tap(0, 1, 0, -1, bias=1)
    net.tap(0, 2, 1, 1, bias=20)
    net.tap(0, 3, 2, 1)
    for n in range(4):
        net.tap(1, n, n, 1)
    net.out(1, 0, 40)
    with torch.no_grad():
        net.last.bias[1] = -20
    changes = {"input": {"channels": ["object", "gauss", "coin"], "intensity": [{"kind": "none"}] * 3}} | changes
    return open_package(planted.planted_package(folder, net, format, **changes))


def units(explanation):
    table = explanation.tables["units"].columns
    return {
        (layer, unit): {name: table[name][n] for name in table}
        for n, (layer, unit) in enumerate(zip(table["layer"], table["unit"]))
    }


# ---- known answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", planted.FORMATS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_units_have_the_score_that_can_be_derived(tmp_path, ndim, format):
    volumes, annotation = study(ndim)
    model = separators(tmp_path / "net", ndim, format)
    found = run(ability(model, volumes, AbilitySettings(units=("last-1",)), annotation))
    share = annotation.array.mean()
    gauss = dice_of(DISTANCE, share)
    coin = share / (share + 0.5)
    for unit, expected, tolerance in ((0, 1, 0), (1, 1, 0), (2, gauss, 0.02), (3, coin, 0.02)):
        scores = next(one for (_, n), one in units(found).items() if n == unit)
        assert scores["dice"] == pytest.approx(expected, abs=tolerance), UNITS[unit]
        assert scores["dice"] == scores["dice_output"]  # the output is the object
    assert [one["state"] for one in units(found).values()] == ["active", "active", "inert", "inert"]
    assert found.scores["mean_sa"] == np.mean([one["dice"] for one in units(found).values()])
    separableness = dice_of((1 + DISTANCE**2) / DISTANCE, share)  # the image: the object's 0 or 1 beside the Gaussian
    assert found.scores["separableness"] == pytest.approx(separableness, abs=0.02)
    assert found.scores["output_dice"] == 1 and found.scores["gain"] == 1 - found.scores["separableness"]
    assert found.scores["chance_sa"] == pytest.approx(coin)
    heat = found.maps["heat"].volume.array
    assert np.allclose(heat, np.mean([v.array for _, v in found.sequences["units"].items], 0))
    assert found.curves["ranking"].columns["SA score"].tolist() == sorted(found.tables["units"].columns["dice"])[::-1]


def dice_of(distance, share):
    """Expected Dice of two Gaussians of SD 1, halved in the middle: each side errs by Q(distance / 2)."""
    q = 0.5 * math.erfc(distance / 2 / math.sqrt(2))
    return 2 * share * (1 - q) / (share * (1 - q) + (1 - share) * q + share)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("sizes", [((31, 45), (8, 12)), ((12, 17, 20), (3, 9, 10)), ((8, 9, 10), (8, 9, 10))])
def test_the_native_resolution_equals_upsampled_features(sizes, mode, align_corners):
    size, low = sizes
    torch.manual_seed(0)
    features = torch.randn(2, 6, *low, dtype=torch.float64) * 3 + 1000
    soft = torch.rand(2, 3, *size, dtype=torch.float64).pow(4)
    interpolation = Interpolation(mode, align_corners)
    plain = plain_separation(features, soft, interpolation)
    found = separation(features, interpolation.adjoint(soft, low))
    assert torch.allclose(interpolation.up(found, size), plain, rtol=0, atol=1e-10 * float(plain.abs().max()))
    with torch.no_grad():  # in parts
        assert torch.allclose(separation(features, interpolation.adjoint(soft, low)), found, rtol=0, atol=1e-9)


def plain_separation(features, soft, interpolation):
    """The paper's form: every channel upsampled, prototypes and distances at full resolution (eq. 6 and 7)."""
    full = interpolation.up(features, soft.shape[2:]).flatten(2)
    weights = soft.flatten(2)
    c = torch.einsum("nkv,ncv->nkc", weights, full) / weights.sum(-1, keepdim=True)
    distances = (full[:, None] - c[..., None]).square().sum(2).unflatten(-1, soft.shape[2:])
    return (distances[:, :1] - distances[:, 1:]) / 2


def test_rotation_and_offset_of_the_features_change_nothing():
    torch.manual_seed(0)
    features, weights = torch.randn(1, 5, 9, 11, dtype=torch.float64), torch.rand(1, 2, 9, 11, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    turned = torch.einsum("ab,nbij->naij", rotation, features) + 100 * torch.randn(1, 5, 1, 1, dtype=torch.float64)
    assert torch.allclose(separation(turned, weights), separation(features, weights), atol=1e-11)


def test_single_precision_keeps_its_digits_far_from_zero():
    torch.manual_seed(0)
    features, weights = torch.randn(1, 8, 30, 31), torch.rand(1, 2, 30, 31)
    shifted = (features.double() + 1000).float()
    exact = separation(shifted.double(), weights.double())
    assert (separation(shifted, weights) - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("value", [0, 1])
def test_without_an_object_or_a_background_everything_is_one_class(value):
    soft = torch.full((1, 1, 6, 7), float(value))
    found = separation(torch.randn(1, 3, 6, 7), torch.cat([1 - soft, soft], 1))
    assert ((found > 0) == bool(value)).all()


@pytest.mark.parametrize("what", ["empty", "full"])
def test_an_empty_or_full_mask_is_defined_and_told(tmp_path, what):
    volumes, annotation = study(2)
    level = -20 if what == "empty" else 20
    model = separators(tmp_path / "net", 2)
    with torch.no_grad():
        model.module.features[-1].weight.zero_()
        model.module.features[-1].bias[1] = 10 * level  # soft output exactly 0 or 1
    truth = annotation.with_array(np.full_like(annotation.array, what == "full"))
    for segment in (None, annotation, truth):
        found = run(ability(model, volumes, AbilitySettings(noise_levels=(0.1,), noise_draws=2), segment))
        assert any(f"The output is {what}" in note for note in found.notes)
        assert not found.self_checks["output_present"]["passed"]
        for table in ("layers", "units", "noise"):
            for name, column in found.tables[table].columns.items():
                assert not any(isinstance(v, float) and math.isnan(v) for v in column), (table, name)
        assert all(math.isfinite(v) for v in found.scores.values())
    assert found.scores["output_dice"] == 1 and found.tables["layers"].columns["dice"][0] == 1


# ---- against the plain form, on real architectures ----------------------------------------------------------------------

ARCHITECTURES = {
    "UNet": UNET,
    "SegResNet": dict(spatial_dims=3, in_channels=1, out_channels=2, init_filters=8),
    "DynUNet": dict(
        spatial_dims=2, in_channels=1, out_channels=2, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2],
        filters=[4, 6, 8],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_is_what_the_plain_form_gives(tmp_path, name):
    """Features by hooks on the modules, prototypes and distances at full resolution, scores counted voxel by voxel."""
    arguments = ARCHITECTURES[name]
    model = open_package(network(tmp_path, name, arguments, multiple_of=8))
    shape = (1, 40, 48) if arguments["spatial_dims"] == 2 else (16, 24, 32)
    random = np.random.default_rng(3)
    volume = Volume(random.normal(size=shape).astype(np.float32), MATRIX, "noise")
    annotation = Volume((random.random(shape) < 0.2).astype(np.uint8), MATRIX, "dots")
    found = run(ability(model, [volume], AbilitySettings(), annotation))
    x = prepare(model, [volume]).x
    seen = []  # what any module gave

    def keep(_module, _inputs, output):  # returns nothing: what a hook returns would take the output's place
        if isinstance(output, torch.Tensor):
            seen.append(output.clone())

    hooks = [module.register_forward_hook(keep) for module in model.module.modules()]
    with torch.no_grad():
        logits = model.logits(x)
    for hook in hooks:
        hook.remove()
    soft = torch.softmax(logits, 1)[:, 1:]
    truth = torch.from_numpy(annotation.array.reshape(x.shape[2:]) > 0)
    layers, checked = found.tables["layers"].columns, 0
    by_number = dict(found.sequences["layers"].items)
    ends = {one.number: one for one in model.layers(x.shape[2:]) if one.number}
    for number, path, dice in zip(layers["number"], layers["path"], layers["dice"]):
        if number == 0:
            features = x
        else:
            with model.frozen(), torch.no_grad():
                features = next(v for one, v in read(model, x, [ends[number]]) if one is not None)
            assert any(torch.equal(features, one) for one in seen if one.shape == features.shape), path
        plain = plain_separation(features.double(), torch.cat([1 - soft, soft], 1).double(), Interpolation())[0, 0] > 0
        ours = torch.from_numpy(by_number[number].array.reshape(x.shape[2:]) > 0)
        assert (plain == ours).float().mean() > 0.998, path  # in single precision; ties and near-ties only
        checked += 1
        counted = 2 * (ours & truth).sum() / (ours.sum() + truth.sum())
        assert dice == pytest.approx(float(counted), abs=1e-6)
    assert checked == len(layers["layer"]) > 4


def test_layers_are_read_as_modules_give_them(tmp_path):
    """The blocks of the project's U-Net end at its rectifiers, which compute in place and are read as they leave them."""
    from MedXAILib.models.model import Model
    from MedXAILib.models.networks import PlainUNet
    from MedXAILib.package import from_json

    fields = {
        "schema": 1, "sha256": "0" * 64, "name": "paper", "task": "segmentation", "weights": "w.safetensors",
        "network": {"name": "PlainUNet", "arguments": {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "filters": 2, "levels": 5}},
        "input": {
            "spatial_dims": 2, "channels": ["a"], "orientation": None, "spacing": None, "size": None, "multiple_of": 16,
            "intensity": {"kind": "none"},
        },
        "output": {"labels": ["background", "object"], "activation": "softmax"},
    }  # fmt: skip
    torch.manual_seed(0)
    model = Model(from_json(fields, tmp_path), PlainUNet(2, 1, 2, 2, 5).eval())
    x = torch.randn(1, 1, 64, 32)
    layers = choose(model, ["all"], (64, 32))
    assert [one.group for one in layers] == ["early"] * 4 + ["deep"] * 10 + ["late"] * 4  # Fig. 4
    assert [one.number for one in layers] == list(range(1, 19)) and layers[-1].path == "merge.3.3"
    seen = []
    hooks = [
        m.register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
        for m in model.module.modules()
        if isinstance(m, torch.nn.ReLU)
    ]
    with torch.no_grad():
        logits = model.logits(x)
    for hook in hooks:
        hook.remove()
    with model.frozen(), torch.no_grad():
        found = list(read(model, x, layers))
        raw = dict(read(model, x, [one for one in model.layers((64, 32)) if one.kind == "normalisation"]))
    assert torch.equal(found.pop()[1], logits)
    assert len(found) == len(seen) == 18 and all(torch.equal(a, b) for (_, a), b in zip(found, seen))
    assert any((v < 0).any() for v in list(raw.values())[:-1])  # a copy from before the rectifier changed it in place


@pytest.mark.parametrize("format", ["ts", "pt2"])
def test_programs_agree_with_the_eager_network(tmp_path, format):
    volumes, annotation = study(2)
    eager, program = separators(tmp_path / "a", 2), separators(tmp_path / "b", 2, format)
    one, other = (run(ability(m, volumes, AbilitySettings(), annotation)) for m in (eager, program))
    assert one.tables["units"].columns["dice"] == other.tables["units"].columns["dice"]
    assert one.tables["layers"].columns["dice"] == other.tables["layers"].columns["dice"]


# ---- ways of computing --------------------------------------------------------------------------------------------------


def same(a, b, but=(), tolerance=0.0):
    """Equal tables and maps; with a ``tolerance`` a share of voxels may differ (near-ties, summed in another order)."""
    for name in ("layers", "units"):
        one, other = a.tables[name].columns, b.tables[name].columns
        assert set(one) == set(other)
        for column in set(one) - set(but):
            if column.startswith("dice") and tolerance:
                assert one[column] == pytest.approx(other[column], abs=4 * tolerance), column
            elif tolerance == 0 or not isinstance(one[column][0], float):
                assert one[column] == other[column], column
    for (_, one), (_, other) in zip(a.sequences["layers"].items, b.sequences["layers"].items):
        assert np.mean(one.array != other.array) <= tolerance
    difference = a.maps["heat"].volume.array - b.maps["heat"].volume.array
    assert np.mean(difference != 0) <= 8 * tolerance


def test_streamed_and_kept_layers_give_the_same(tmp_path):
    model = open_package(network(tmp_path, "UNet", UNET, multiple_of=4))
    volume = Volume(np.random.default_rng(0).normal(size=(1, 36, 44)).astype(np.float32), MATRIX, "noise")
    found = [run(ability(model, [volume], AbilitySettings(reading=how))) for how in ("kept", "streamed")]
    assert [one.provenance["reading"] for one in found] == ["kept", "streamed"]
    same(*found)


def test_windows_share_their_prototypes(tmp_path):
    """A network that takes one size sees the volume in windows; far from their borders its features are those of the whole."""
    volumes, annotation = study(3)
    whole = run(ability(separators(tmp_path / "whole", 3), volumes, AbilitySettings(), annotation))
    about = {
        "size": [16, 20, 24],
        "fit": "window",
        "channels": ["object", "gauss", "coin"],
        "intensity": [{"kind": "none"}] * 3,
    }
    found = run(ability(separators(tmp_path / "parts", 3, input=about), volumes, AbilitySettings(), annotation))
    assert found.provenance["tiles"] > 8
    same(whole, found, ("shape", "rank"), 1e-3)


def test_all_slices_are_one_image(tmp_path):
    volumes, annotation = study(3)
    model = separators(tmp_path / "net", 2)
    found = run(ability(model, volumes, AbilitySettings(slice="all"), annotation))
    alone = run(ability(separators(tmp_path / "solid", 3), volumes, AbilitySettings(), annotation))
    same(found, alone, ("shape", "rank", "layer"), 1e-3)
    middle = run(ability(model, volumes, AbilitySettings(), annotation))  # the slice with most of the annotation
    assert middle.provenance["slices"] == [f"k:{int(annotation.array.sum((1, 2)).argmax())}"]
    assert middle.masks["output"].array.any((1, 2)).sum() == 1
    item = middle.sequences["layers"].items[0][1]  # of the slice alone; the command writes it on the whole grid
    assert item.shape == (1, *annotation.shape[1:])
    (tmp_path / "files").mkdir()
    output.write(middle, volumes, [annotation], tmp_path / "files", scene=False)
    written = io.read_volume(tmp_path / "files" / "map-input.nrrd")
    k = int(annotation.array.sum((1, 2)).argmax())
    assert written.same_grid(annotation) and np.array_equal(written.array[k], item.array[0])
    assert written.array.any((1, 2)).sum() == 1


def test_one_prototype_per_label(tmp_path):
    """Three labels in three grey values: the middle one lies on no side of a plane between label and rest."""
    net = planted.Planted(2, 3, (1, 1), out_channels=3)
    for n, bias in enumerate((0, -1)):
        net.tap(0, n, 0, 1, bias=bias)
        net.tap(1, n, n, 1)
    for channel, (a, b, bias) in enumerate(((0, 0, 0), (40, -80, -20), (0, 40, -20))):
        net.out(channel, 0, a)
        net.out(channel, 1, b)
        with torch.no_grad():
            net.last.bias[channel] = bias
    model = open_package(
        planted.planted_package(tmp_path / "net", net, output={"labels": ["none", "middle", "bright"]})
    )
    image = np.zeros((1, 30, 90), np.float32)
    image[..., 30:60], image[..., 60:] = 1, 2
    volume = Volume(image, MATRIX, "steps")
    truth = Volume((image == 1).astype(np.uint8), MATRIX, "middle")
    settings = dict(label="middle", units=("none",), layers=("1",))
    two = run(ability(model, [volume], AbilitySettings(**settings), truth))
    three = run(ability(model, [volume], AbilitySettings(**settings, prototypes="labels"), truth))
    assert three.tables["layers"].columns["dice"] == [1, 1] and max(two.tables["layers"].columns["dice"]) < 0.9
    assert three.tables["labels"].columns["label"] == ["none", "middle", "bright"] * 2
    assert three.tables["labels"].columns["dice_output"] == [1.0] * 6
    assert three.maps == {} and "units" not in three.tables and math.isnan(three.scores["mean_sa"])


def test_noise_study(tmp_path):
    volumes, annotation = study(2)
    model = separators(tmp_path / "net", 2)
    settings = AbilitySettings(noise_levels=(4.0, 0.001, 1.0), noise_draws=3, seed=5, units=("none",))
    found, again = (run(ability(model, volumes, settings, annotation)) for _ in range(2))
    table = found.tables["noise"].columns
    assert table == again.tables["noise"].columns and set(table["draws"]) == {3}
    levels = np.array(table["level"])
    assert sorted(set(levels)) == [0.001, 1, 4]
    difference = np.array(table["difference"])
    assert np.abs(difference[levels == 0.001]).max() < 1e-3 and difference[levels == 4].min() < -0.2
    assert all(sd > 0 for sd, level in zip(table["sd"], levels) if level == 4)
    assert list(found.sequences) == ["layers", "noise-0.001", "noise-1", "noise-4"]
    noisy = dict(found.sequences["noise-0.001"].items)[2].array
    assert np.mean(noisy != dict(found.sequences["layers"].items)[2].array) < 1e-3
    small = AbilitySettings(noise_levels=(1.0,), memory_budget=1, noise_draws=1)
    volumes = [Volume(np.tile(v.array, (1, 5, 4)), MATRIX, v.name) for v in volumes]  # over a million voxels
    told = run(ability(model, volumes, small))
    assert "noise-1" not in told.sequences and any("--memory-budget" in note for note in told.notes)
    assert "units" not in told.sequences and len(told.tables["units"].columns["unit"]) == 8
    some = run(ability(model, volumes, AbilitySettings(memory_budget=3)))
    table = some.tables["units"].columns
    best = sorted(n for n, rank in zip(table["number"], table["rank"]) if rank <= 2)
    assert [n for n, _ in some.sequences["units"].items] == best and some.sequences["units"].thinned == 6


def test_a_body_mask_leaves_the_air_out(tmp_path):
    volumes, annotation = study(2)
    model = separators(tmp_path / "net", 2)
    body = np.zeros(annotation.shape, np.uint8)
    body[:, 40:200, 45:205] = 1
    io.write_volume(tmp_path / "body.nrrd", annotation.with_array(body))
    found = run(ability(model, volumes, AbilitySettings(body=str(tmp_path / "body.nrrd")), annotation))
    share = annotation.array.sum() / body.sum()
    assert found.scores["chance_sa"] == pytest.approx(share / (share + 0.5))
    assert not any((v.array & ~body.astype(bool)).any() for _, v in found.sequences["layers"].items)
    air = Volume(np.where(body, 100 + volumes[1].array, 0).astype(np.float32), MATRIX, "in air")
    air.array[0, 100:110, 100:110] = 0  # a hole
    air.array[0, 5:9, 5:9] = 100  # a thing beside the patient
    assert np.array_equal(body_mask("auto", air), body.astype(bool))
    with pytest.raises(MedXAIError, match="does not exist; give a mask file"):
        run(ability(model, volumes, AbilitySettings(body="nowhere.nrrd"), annotation))


def test_the_network_is_put_back_also_after_a_stop(tmp_path):
    volumes, annotation = study(2)
    model = separators(tmp_path / "net", 2)
    model.module.train()
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    state = torch.get_rng_state()
    steps = ability(model, volumes, AbilitySettings(noise_levels=(1.0,)), annotation)
    for _ in range(4):
        next(steps)
    steps.close()
    assert model.module.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())


# ---- what only looks the same ---------------------------------------------------------------------------------------------


def test_scores_with_an_annotation_that_the_output_misses(tmp_path):
    """Every figure against one counted by hand; μ is with the output, all else with the annotation."""
    volumes, annotation = study(2)
    other = annotation.with_array(np.roll(annotation.array, 40, 2))
    found = run(ability(separators(tmp_path / "net", 2), volumes, AbilitySettings(units=("last-1",)), other))
    g, b = other.array > 0, annotation.array > 0
    maps = dict(found.sequences["units"].items)
    table = found.tables["units"].columns
    for n, number in enumerate(table["number"]):
        s = maps[number].array > 0
        tp, fp, fn, tn = (s & g).sum(), (s & ~g).sum(), (~s & g).sum(), (~s & ~g).sum()
        expected = {
            "dice": 2 * tp / (2 * tp + fp + fn), "jaccard": tp / (tp + fp + fn), "accuracy": (tp + tn) / s.size,
            "sensitivity": tp / (tp + fn), "specificity": tn / (tn + fp), "dice_output": 2 * (s & b).sum() / (s.sum() + b.sum()),
        }  # fmt: skip
        for name, value in expected.items():
            assert table[name][n] == pytest.approx(value, abs=1e-12), name
    own = 2 * (b & g).sum() / (b.sum() + g.sum())
    assert 0.3 < own < 0.7 and found.scores["output_dice"] == pytest.approx(own)
    assert found.scores["mean_sa"] == pytest.approx(np.mean(table["dice_output"])) != np.mean(table["dice"])
    assert found.scores["gain"] == pytest.approx(own - found.tables["layers"].columns["dice"][0])
    states = ["active" if dice >= 0.8 * own else "inert" for dice in table["dice"]]
    assert table["state"] == states and states[:2] == ["active", "active"]
    assert set(found.curves["transition"].columns) == {"layer", "SA score", "with the output"}


@pytest.mark.parametrize("how", ["padding", "body"])
def test_what_lies_outside_weighs_nothing(tmp_path, how):
    """The surroundings would move the prototypes: padding with the minimum, or air that is brighter than anything."""
    volumes, annotation = study(2)
    about = {"channels": ["object", "gauss", "coin"], "intensity": [{"kind": "none"}] * 3}
    plain = run(ability(separators(tmp_path / "plain", 2), volumes, AbilitySettings(), annotation))
    if how == "padding":
        model = separators(tmp_path / "padded", 2, input=about | {"multiple_of": 64})  # 240 × 250 -> 256 × 256
        found = run(ability(model, volumes, AbilitySettings(), annotation))
    else:
        rim = ((0, 0), (30, 30), (20, 20))
        wide = [Volume(np.pad(v.array, rim, constant_values=50), MATRIX, v.name) for v in volumes]
        truth = Volume(np.pad(annotation.array, rim), MATRIX, "annotation")
        inside = np.pad(np.ones(annotation.shape, np.uint8), rim)
        io.write_volume(tmp_path / "inside.nrrd", truth.with_array(inside))
        body = AbilitySettings(body=str(tmp_path / "inside.nrrd"))
        found = run(ability(separators(tmp_path / "padded", 2), wide, body, truth))
    for name in ("layers", "units"):
        one, other = plain.tables[name].columns, found.tables[name].columns
        for column in ("dice", "accuracy", "specificity"):
            assert one[column] == pytest.approx(other[column], abs=2e-3), (name, column)


def test_resampled_flipped_and_oblique(tmp_path):
    """Maps come back on the volume's own grid, whatever the network's is."""
    volumes, annotation = study(3)
    turn = np.deg2rad(20)
    matrix = np.array(
        [[np.cos(turn), -np.sin(turn), 0, 5], [np.sin(turn), np.cos(turn), 0, -3], [0, 0, -1, 7], [0, 0, 0, 1]]
    )
    matrix = matrix @ np.diag([1.5, 1.5, 2.0, 1])
    volumes = [Volume(v.array, matrix, v.name) for v in volumes]
    annotation = Volume(annotation.array, matrix, "annotation")
    about = {
        "channels": ["object", "gauss", "coin"], "intensity": [{"kind": "none"}] * 3, "orientation": "RAS", "spacing": [2, 2, 2],
        "multiple_of": 4,
    }  # fmt: skip
    found = run(ability(separators(tmp_path / "net", 3, input=about), volumes, AbilitySettings(), annotation))
    best = dict(found.sequences["units"].items)[1].array > 0
    truth = annotation.array > 0
    assert 2 * (best & truth).sum() / (best.sum() + truth.sum()) > 0.93  # a voxel of 2 mm at the rim
    assert found.sequences["layers"].items[0][1].same_grid(annotation) and found.masks["output"].same_grid(annotation)


def test_sigmoid_and_probabilities(tmp_path):
    """One label with sigmoid, and the same network that gives probabilities, are the network with softmax."""
    volumes, annotation = study(2)
    wanted = run(ability(separators(tmp_path / "softmax", 2), volumes, AbilitySettings(), annotation))
    net = separators(tmp_path / "again", 2).module

    class Probability(torch.nn.Module):
        def __init__(self, exclusive):
            super().__init__()
            self.net, self.exclusive = net, exclusive

        def forward(self, x):
            logits = self.net(x)
            return torch.softmax(logits, 1) if self.exclusive else logits[:, 1:]

    for name, exclusive, labels, activation in (
        ("one", False, ["object"], "sigmoid"),
        ("two", True, list(planted.LABELS), "none"),
    ):
        fields = {
            "name": name, "task": "segmentation", "weights": "weights.ts",
            "input": {
                "spatial_dims": 2, "channels": ["object", "gauss", "coin"], "orientation": None, "spacing": None, "size": None,
                "multiple_of": 1, "intensity": [{"kind": "none"}] * 3,
            },
            "output": {"labels": labels, "activation": activation},
        }  # fmt: skip
        script = torch.jit.trace(Probability(exclusive), torch.zeros(1, 3, 16, 16), check_trace=False)
        model = open_package(
            write_package(tmp_path / name, fields, lambda path, s=script: torch.jit.save(s, str(path)))
        )
        found = run(ability(model, volumes, AbilitySettings(), annotation))
        assert len(found.tables["units"].columns["unit"]) == 8, "the answer's own convolution is no layer"
        assert found.tables["units"].columns["dice"] == pytest.approx(wanted.tables["units"].columns["dice"], abs=2e-3)
        per_label = run(ability(model, volumes, AbilitySettings(prototypes="labels"), annotation))
        assert per_label.tables["units"].columns["dice"] == pytest.approx(
            wanted.tables["units"].columns["dice"], abs=2e-3
        )


def test_a_layer_that_is_no_block(tmp_path):
    """A pooling layer has a map and a number of its own; only the numbers of blocks are the paper's."""
    model = open_package(network(tmp_path, "UNet", UNET, multiple_of=4))
    names = [one.name for one in model.layers((40, 48)) if one.kind == "normalisation"][:2]
    volume = Volume(np.random.default_rng(0).normal(size=(1, 40, 48)).astype(np.float32), MATRIX, "noise")
    found = run(ability(model, [volume], AbilitySettings(layers=("1", *names), units=("none",))))
    table = found.tables["layers"].columns
    assert table["layer"] == ["input", "conv2d", *names] and len(set(table["number"])) == 4
    assert all(0 <= value <= 1 for column in ("dice", "accuracy", "specificity") for value in table[column])
    assert [n for n, _ in found.sequences["layers"].items] == table["number"]


class Crowded(torch.nn.Module):
    """Blocks whose reading is easily mistaken: another head, another batch, halves changed in place, half precision inside."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head, self.seg = (
            torch.nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, 4), (4, 4), (4, 1), (4, 2))
        )
        self.norm, self.low = torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 4, 1)

    def forward(self, x):
        pair = self.first(torch.cat([x, -x]))  # a batch of two
        y = self.second(pair[:1])
        a, _ = y.chunk(2, 1)
        torch.relu_(a)
        y = torch.relu(self.norm(y))
        half = torch.nn.functional.conv2d(y.bfloat16(), self.low.weight.bfloat16())
        y = y + half.float()
        return {"seg": self.seg(y), "reconstruction": self.head(y)}


@pytest.mark.parametrize("decomposed", [False, True])
def test_networks_that_are_easily_misread(tmp_path, decomposed):
    fields = {
        "name": "crowded", "task": "segmentation", "weights": "weights.pt2",
        "input": {
            "spatial_dims": 2, "channels": ["image"], "orientation": None, "spacing": None, "size": [16, 18], "fit": "resize",
            "multiple_of": 1, "intensity": {"kind": "none"},
        },
        "output": {"labels": ["background", "object"], "activation": "softmax", "key": "seg"},
    }  # fmt: skip
    torch.manual_seed(0)
    module = Crowded().eval().requires_grad_(False)
    program = torch.export.export(module, (torch.zeros(1, 1, 16, 18),))
    if decomposed:
        program = program.run_decompositions()
    model = open_package(write_package(tmp_path / "net", fields, lambda path: torch.export.save(program, str(path))))
    x = torch.randn(1, 1, 16, 18)
    layers = model.layers((16, 18))
    blocks = [one for one in layers if one.number]
    assert len(blocks) == 2  # the second convolution and the half-precision one: not the other batch's, not the heads
    first = next(one for one in layers if one.kind == "convolution")
    with pytest.raises(MedXAIError, match="is computed on another batch than the image"):
        choose(model, [first.name], (16, 18))
    with model.frozen(), torch.no_grad():
        second = next(
            one for one in layers if one.path == "second" or one is [o for o in layers if "conv" in o.kind][1]
        )
        found = dict(read(model, x, [replace(second, output=second.name), *blocks]))
        expected = module.second(module.first(torch.cat([x, -x]))[:1])
    assert torch.allclose(
        next(v for k, v in found.items() if k is not None and k.output == second.name), expected, atol=1e-6
    )
    assert all(value.dtype == torch.float32 for value in found.values())
    volume = Volume(x[0].numpy(), MATRIX, "noise")
    assert len(run(ability(model, [volume], AbilitySettings())).tables["layers"].columns["layer"]) == 3


def test_gradients_and_autocast_stay_the_callers(tmp_path):
    volumes, annotation = study(2)
    model = separators(tmp_path / "net", 2)
    wanted = run(ability(model, volumes, AbilitySettings(), annotation))
    first, second = (ability(model, volumes, AbilitySettings(), annotation) for _ in range(2))
    for steps in (first, second):
        for _ in range(3):
            next(steps)
            assert torch.is_grad_enabled()
    first.close(), second.close()
    assert torch.is_grad_enabled()
    with torch.autocast("cpu", torch.bfloat16):
        found = run(ability(model, volumes, AbilitySettings(reading="kept"), annotation))
        assert torch.is_autocast_enabled("cpu")
    assert found.tables["units"].columns["dice"] == wanted.tables["units"].columns["dice"]


def test_too_little_memory_is_met_by_computing_twice(tmp_path, monkeypatch):
    volumes, annotation = study(2)
    model = separators(tmp_path / "net", 2)
    monkeypatch.setattr(
        "MedXAILib.models.memory.available", lambda device: model.estimate_bytes((240, 250), False) + 2**20
    )
    found = run(ability(model, volumes, AbilitySettings(), annotation))
    assert found.provenance["reading"] == "streamed"
    monkeypatch.setattr("MedXAILib.models.memory.available", lambda device: 2**20)
    with pytest.raises(MedXAIError, match="lower the volume's size") as error:
        run(ability(model, volumes, AbilitySettings(), annotation))
    assert error.value.kind == "memory"


def test_one_slice_without_body_is_no_reason_to_stop(tmp_path):
    volumes, annotation = study(3)
    body = np.zeros(annotation.shape, np.uint8)
    body[5:30, 4:40, 4:44] = 1
    io.write_volume(tmp_path / "body.nrrd", annotation.with_array(body))
    settings = AbilitySettings(slice="all", body=str(tmp_path / "body.nrrd"), units=("none",))
    found = run(ability(separators(tmp_path / "net", 2), volumes, settings, annotation))
    assert found.scores["output_dice"] == 1
    outside = int((annotation.array.astype(bool) & ~body.astype(bool)).sum())
    assert (outside > 0) == any(f"{outside} voxels of the annotation lie outside the body" in n for n in found.notes)


# ---- bad input ----------------------------------------------------------------------------------------------------------


def test_bad_input(tmp_path):
    volumes, annotation = study(2)
    model = separators(tmp_path / "net", 2)
    moved = Volume(
        annotation.array, MATRIX @ np.array([[1, 0, 0, 0.4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "moved"
    )
    coarse = Volume(annotation.array[:, ::2, ::2], MATRIX @ np.diag([2, 2, 1, 1.0]), "coarse")
    for wrong, words in (
        (dict(layers=("conv2d_11",)), "has no layer 'conv2d_11' (did you mean 'conv2d_1'?)"),
        (dict(layers=("last-x",)), "has no layer 'last-x'"),
        (dict(label="objekt"), "has no label 'objekt' (did you mean 'object'?)"),
        (dict(noise_levels=(-1.0,)), "it takes numbers from 0"),
        (dict(prototypes="all"), "cannot be 'all'"),
    ):
        with pytest.raises(MedXAIError) as error:
            run(ability(model, volumes, AbilitySettings(**wrong), annotation))
        assert words in error.value.message
    for segment in (moved, coarse):
        with pytest.raises(MedXAIError, match="lies on another grid than 'object'"):
            run(ability(model, volumes, AbilitySettings(), segment))
    cropped = annotation.crop((0, 40, 40), (1, 220, 230))  # on the volume's own lattice
    whole, part = (run(ability(model, volumes, AbilitySettings(), s)) for s in (annotation, cropped))
    assert whole.tables["units"].columns["dice"] == part.tables["units"].columns["dice"]


class Squeezing(torch.nn.Module):
    """A convolution whose channels are weighed by their means (squeeze and excitation)."""

    def __init__(self):
        super().__init__()
        self.first, self.weigh, self.last = (torch.nn.Conv2d(a, b, k) for a, b, k in ((1, 4, 1), (4, 4, 1), (4, 2, 1)))

    def forward(self, x):
        x = self.first(x)
        return self.last(x * torch.sigmoid(self.weigh(x.mean([2, 3], keepdim=True))))


def test_a_layer_without_spatial_extent(tmp_path):
    fields = {
        "name": "squeezing", "task": "segmentation", "weights": "weights.ts",
        "input": {
            "spatial_dims": 2, "channels": ["image"], "orientation": None, "spacing": None, "size": None, "multiple_of": 1,
            "intensity": {"kind": "none"},
        },
        "output": {"labels": ["background", "object"], "activation": "softmax"},
    }  # fmt: skip
    torch.manual_seed(0)
    script = torch.jit.script(Squeezing().eval())
    model = open_package(write_package(tmp_path / "net", fields, lambda path: torch.jit.save(script, str(path))))
    weigh = model.layers((8, 9))[1]
    volume = Volume(np.random.default_rng(0).normal(size=(1, 8, 9)).astype(np.float32), MATRIX, "noise")
    with pytest.raises(
        MedXAIError, match=f"'{weigh.name}' \\(convolution\\) has no spatial extent: its output is 4 × 1 × 1"
    ):
        run(ability(model, [volume], AbilitySettings(layers=(weigh.name,))))
    assert run(ability(model, [volume], AbilitySettings())).tables["layers"].columns["number"] == [0, 1]


# ---- the command --------------------------------------------------------------------------------------------------------


def test_command(tmp_path, capsys):
    volumes, annotation = study(3)
    model = separators(tmp_path / "net", 3)
    for volume in volumes:
        io.write_volume(tmp_path / f"{volume.name}.nrrd", volume)
    io.write_volume(tmp_path / "truth.nrrd", annotation)
    inputs = [word for v in volumes for word in ("--volume", tmp_path / f"{v.name}.nrrd")]
    out = tmp_path / "out"
    arguments = ["ability", "--model", model.package.folder, *inputs, "--segmentation", tmp_path / "truth.nrrd", "--segment", "1",
                 "--layers", "last-1,1", "--noise-levels", "0.5", "--noise-draws", "1", "--no-scene", "--output", out]  # fmt: skip
    assert cli.main(arguments) == 0, capsys.readouterr().err
    about = json.loads((out / "explanation.json").read_text("utf-8"))
    assert about["scores"]["mean_sa"] > 0.5 and about["reference"] == "annotation"
    rows = list(csv.DictReader((out / "layers.csv").open(encoding="utf-8")))
    wanted = ["layer", "group", "shape", "dice", "jaccard", "accuracy", "sensitivity", "specificity"]
    assert list(rows[0])[:8] == wanted and len(rows) == 3
    for row in rows:
        written = io.read_volume(out / f"map-{row['layer']}.nrrd")
        both = ((written.array > 0) & (annotation.array > 0)).sum()
        assert float(row["dice"]) == pytest.approx(2 * both / ((written.array > 0).sum() + annotation.array.sum()))
        assert written.same_grid(annotation)
    assert len(list(csv.DictReader((out / "units.csv").open(encoding="utf-8")))) == 8
    assert (out / "heat.nrrd").exists() and (out / "noise-0.5-input.nrrd").exists()
