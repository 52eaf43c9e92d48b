"""`cycle`: maps, scores and self-checks, where it looks, which explainer it takes, bad input, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from cycle_examples import EDGE, INPUT, loaded, noise_images, write_classifier, write_explainer

from MedXAILib import io
from MedXAILib.cli import main
from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import run
from MedXAILib.methods import explain
from MedXAILib.methods.cycle import POSITIONS, cycle
from MedXAILib.models import prepare
from MedXAILib.models.explainer import Explainer, find_explainer, pair_of
from MedXAILib.models.geometry import patch_at
from MedXAILib.models.sides import Sides
from MedXAILib.models.ssim import dssim
from MedXAILib.models.tiling import windows
from MedXAILib.package import Package
from MedXAILib.settings import CycleSettings
from MedXAILib.volume import Volume

AXIAL = np.diag([-1.0, -1.0, 2.0, 1.0])
OBLIQUE = np.array([[-0.8, 0.1, 0, 10], [0.1, -0.9, 0, -20], [0, 0.05, 2, 5], [0, 0, 0, 1]], float)
CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A classifier of 16 × 16 patches of 16 × 16 mm, with an explainer beside it."""
    place = tmp_path_factory.mktemp("cycle")
    write_explainer(place / "nodules-cycle", write_classifier(place / "nodules"))
    return place


@pytest.fixture(scope="module")
def model(place):
    return loaded(place / "nodules")


def volume(shape=(1, EDGE, EDGE), matrix=AXIAL, seed=0) -> Volume:
    """Noise of 20 to 80, inside the network's window."""
    rng = np.random.default_rng(seed)
    return Volume((20 + 60 * rng.random(shape)).astype(np.float32), matrix, "scan", "HU")


def explained(model, image, lesion=None, **settings):
    return run(cycle(model, [image], CycleSettings(**(CPU | settings)), lesion))


def networks_own(model, image):
    """x, G⁺(x), G⁻(x) and their log-odds, by the networks themselves."""
    pair, _ = pair_of(model, "")
    x = prepare(model, [image]).x
    up, down = pair.images(x)
    with torch.no_grad():
        return x, up, down, model.log_odds(model.logits(torch.cat([x, up, down])), 1)


# ---- what is found -----------------------------------------------------------------------------------------------------


def test_maps_are_the_generators_in_the_units_of_the_volume(model):
    image = volume()
    x, up, down, odds = networks_own(model, image)
    found = explained(model, image)
    maps = {name: layer.volume.array[0] for name, layer in found.maps.items()}
    assert set(maps) == {"positive", "negative", "relevance", "delta-positive", "delta-negative"}
    np.testing.assert_allclose(maps["delta-positive"], 100 * (up - x)[0, 0].numpy(), atol=1e-3)
    np.testing.assert_allclose(maps["delta-negative"], 100 * (down - x)[0, 0].numpy(), atol=1e-3)
    np.testing.assert_allclose(maps["relevance"], 100 * (up - down)[0, 0].numpy(), atol=1e-3)
    np.testing.assert_allclose(maps["positive"], image.array[0] + maps["delta-positive"], atol=1e-4)
    np.testing.assert_allclose(maps["negative"], image.array[0] + maps["delta-negative"], atol=1e-4)
    wanted = torch.sigmoid(odds).tolist()
    names = ("probability", "probability_positive", "probability_negative")
    assert [found.scores[name] for name in names] == pytest.approx(wanted, abs=1e-6)
    layer = found.maps["relevance"]
    assert layer.kind == "signed" and layer.low == -layer.high and layer.title == "R = G⁺ − G⁻ [HU]"
    assert layer.high == pytest.approx(np.percentile(np.abs(maps["relevance"]), 99.5), rel=1e-6)
    assert all(one.volume.same_grid(image) and one.volume.unit == "HU" for one in found.maps.values())
    about = found.provenance
    assert (about["label"], about["negative"]) == ("spiculated", "smooth") and about["explainer"]["name"] == "small explainer"  # fmt: skip
    assert about["patch"] == {"start": [0, 0, 0], "stop": [1, EDGE, EDGE], "size_mm": [2.0, 16.0, 16.0]}


def test_morph_goes_from_g_minus_over_x_to_g_plus(model):
    image = volume()
    x, up, down, odds = networks_own(model, image)
    curve = explained(model, image).curves["morph"].columns
    assert tuple(curve["position"]) == POSITIONS == (-1.0, -0.5, 0.0, 0.5, 1.0)
    with torch.no_grad():
        half = model.log_odds(model.logits(torch.cat([x + 0.5 * (down - x), x + 0.5 * (up - x)])), 1)
    wanted = [float(v) for v in (odds[2], half[0], odds[0], half[1], odds[1])]
    np.testing.assert_allclose(curve["log_odds"], wanted, atol=1e-5)
    np.testing.assert_allclose(curve["probability"], 1 / (1 + np.exp(-np.array(wanted))), atol=1e-6)


def test_the_other_label_exchanges_both(model):
    image = volume()
    one, two = explained(model, image), explained(model, image, label="smooth")
    np.testing.assert_array_equal(one.maps["relevance"].volume.array, -two.maps["relevance"].volume.array)
    np.testing.assert_array_equal(one.maps["positive"].volume.array, two.maps["negative"].volume.array)
    assert two.scores["probability_positive"] == pytest.approx(1 - one.scores["probability_negative"], abs=1e-6)
    assert two.provenance["label"] == "smooth"


def test_self_checks_say_what_they_mean(model):
    image = volume()
    x, up, down, odds = networks_own(model, image)
    found = explained(model, image, cycle_check=True)
    checks = {name: check["value"] for name, check in found.self_checks.items()}
    gain, loss = float(odds[1] - odds[0]), float(odds[0] - odds[2])
    assert checks["both_ways"] == pytest.approx(min(gain, loss), abs=1e-5)
    assert found.self_checks["both_ways"]["passed"] == (min(gain, loss) > 0)
    flipped = (odds[2] <= 0) if odds[0] > 0 else (odds[1] > 0)
    assert checks["flipped"] == int(flipped)
    assert checks["written_image"] < 1e-4  # nothing was clipped or resampled
    assert checks["known_intensities"] == pytest.approx(max(0.0, (float(x.std()) - 0.3) / 0.2, (0.1 - float(x.std())) / 0.2), abs=1e-5)  # fmt: skip
    pair, _ = pair_of(model, "")
    back = pair.back(up, down)
    wanted = [0.5 * float((b - x).abs().mean() + d) for b, d in zip(back, dssim(x, back, 1.0))]
    assert checks["cycle"] == pytest.approx(max(wanted), abs=1e-5)
    size, other = (up - down).abs().flatten(), ((down if odds[0] > 0 else up) - x).flatten()
    order, many = size.argsort(descending=True, stable=True), round(0.1 * len(size))
    drawn = order[torch.randperm(len(order) - many, generator=torch.Generator().manual_seed(0))[:many] + many]
    shares, whole = [], float((odds[2] if odds[0] > 0 else odds[1]) - odds[0])
    for chosen in (order[:many], drawn):
        part = torch.zeros_like(other)
        part[chosen] = other[chosen]
        with torch.no_grad():
            shares.append((float(model.log_odds(model.logits(x + part.reshape(x.shape)), 1)) - float(odds[0])) / whole)
    assert checks["more_than_elsewhere"] == pytest.approx(shares[0] - shares[1], abs=1e-4) and shares[1] != 0
    assert found.self_checks["more_than_elsewhere"]["passed"] == (checks["more_than_elsewhere"] > 0)


def test_an_image_unlike_those_of_the_training_is_told(model):
    image = volume()
    found = explained(model, image.with_array(image.array / 20))
    assert found.self_checks["known_intensities"]["passed"] is False
    assert any("intensities differ" in note for note in found.notes)


def test_what_the_window_cuts_off_is_told_by_the_written_image(model):
    image = volume()
    found = explained(model, image.with_array(2.5 * image.array - 80))
    assert found.self_checks["written_image"]["value"] > 2e-4


def test_of_three_classes_only_the_pairs_other_one_counts_as_flipped(tmp_path):
    """The sign of the positive class's log-odds is not enough: a third class may be the answer."""
    three = loaded(write_classifier(tmp_path / "three", labels=("a", "b", "c")).folder)
    sides = Sides(2, 0)
    for x, up, down, flipped in (
        ((0, 1, 2), (0, 0, 3), (1, 3, 2), False),  # G⁻ is answered with b
        ((0, 1, 2), (0, 0, 3), (3, 1, 2), True),
        ((2, 3, 1), (0, 1, 2), (3, 0, 0), True),  # on the side of a: G⁺ must be c
        ((2, 3, 1), (0, 2, 1), (3, 0, 0), False),
    ):
        logits = [torch.tensor([one], dtype=torch.float32) for one in (x, up, down)]
        assert bool(sides.flipped(three, *logits)) is flipped
        assert bool(sides.exchanged.flipped(three, logits[0], logits[2], logits[1])) is flipped
    write_explainer(tmp_path / "three-cycle", Package.read(tmp_path / "three"), positive="c", negative="a")
    found, image = explained(three, volume()), volume()
    _, up, down, _ = networks_own(three, image)
    with torch.no_grad():
        odds = three.log_odds(three.logits(torch.cat([prepare(three, [image]).x, down])), 0)
    raised = found.scores["log_odds_positive"] - found.scores["log_odds"]
    assert found.self_checks["both_ways"]["value"] == pytest.approx(min(raised, float(odds[1] - odds[0])), abs=1e-5)


# ---- where it looks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", (AXIAL, OBLIQUE))
def test_a_patch_of_16_mm_lies_around_the_middle_of_the_lesion(model, matrix):
    """Its size is that of the model card in millimetres, whatever the voxels are; outside of it nothing changes."""
    image = volume((6, 50, 60), matrix)
    mask = np.zeros(image.shape, np.uint8)
    mask[3:5, 20:27, 30:41] = 1
    mask[0, 2, 2] = 1  # a speck elsewhere
    found = explained(model, image, image.with_array(mask, "lesion"))
    box = found.provenance["patch"]
    size = [n * mm for n, mm in zip(np.subtract(box["stop"], box["start"]), image.spacing[::-1])]
    assert box["stop"][0] - box["start"][0] == 1 and box["start"][0] in (3, 4)
    assert size[1:] == pytest.approx([16, 16], abs=2 * max(image.spacing[:2]))
    middle = np.add(box["start"], box["stop"])[1:] / 2 - 0.5
    np.testing.assert_allclose(middle, (23, 35), atol=0.75)
    inside = np.zeros(image.shape, bool)
    inside[tuple(slice(a, b) for a, b in zip(box["start"], box["stop"]))] = True
    relevance = found.maps["relevance"].volume.array
    assert not relevance[~inside].any() and relevance[inside].any()
    np.testing.assert_array_equal(found.maps["positive"].volume.array[~inside], image.array[~inside])
    np.testing.assert_allclose(found.provenance["center_ras"], image.index_to_ras((3.5, 23, 35)), atol=1e-6)


def test_a_patch_of_the_same_voxels_is_cut_out_exactly(model):
    image = volume((3, 40, 40))
    prepared, start, moved = patch_at(model, [image], "", (1, 20.4, 18.6))
    assert start == (1, 13, 11) and not moved and prepared.exact
    np.testing.assert_allclose(prepared.x[0, 0].numpy(), image.array[1, 13:29, 11:27] / 100, atol=1e-6)
    crop = image.crop((1, 13, 11), (2, 29, 27))
    one = explained(model, image, center_ras=image.index_to_ras((1, 20.4, 18.6)))
    two = explained(model, crop)
    np.testing.assert_array_equal(one.maps["relevance"].volume.array[1, 13:29, 11:27], two.maps["relevance"].volume.array[0])  # fmt: skip
    assert one.scores == two.scores


def test_a_patch_at_the_border_is_moved_inside_and_told(model):
    image = volume((1, 40, 40))
    found = explained(model, image, center_ras=image.index_to_ras((0, 2, 39)))
    assert found.provenance["patch"]["start"] == [0, 0, 24] and any("moved" in note for note in found.notes)


def test_statistics_are_those_of_the_whole_volume_also_for_a_patch(tmp_path):
    package = write_classifier(tmp_path / "model", input=INPUT | {"intensity": {"kind": "zscore"}})
    write_explainer(tmp_path / "model-cycle", package)
    model, image = loaded(tmp_path / "model"), volume((1, 40, 40))
    image = image.with_array(image.array + 100 * (np.arange(40) > 20).astype(np.float32))
    prepared, _, _ = patch_at(model, [image], "", (0, 10.5, 10.5))
    whole = prepare(model, [image]).x
    np.testing.assert_allclose(prepared.x.numpy(), whole[..., 3:19, 3:19].numpy(), atol=1e-6)
    assert abs(float(prepared.x.mean())) > 0.5
    found = explained(model, image, center_ras=image.index_to_ras((0, 10.5, 10.5)))
    assert found.self_checks["written_image"]["value"] < 1  # prepared anew with the written volume's statistics


def test_larger_images_are_looked_at_in_windows(model):
    image = volume((1, 30, 44))
    found = explained(model, image)
    rows = found.tables["windows"].columns
    assert len(rows["window"]) == found.scores["images"] > 4
    assert found.scores["probability"] == pytest.approx(max(rows["probability"]), abs=1e-6)
    # Every window's changes, blended with weights that fall off from its middle.
    pair, _ = pair_of(model, "")
    x, total, weights = prepare(model, [image]).x, np.zeros((30, 44)), np.zeros((30, 44))
    at = np.exp(-0.5 * ((np.arange(EDGE) - (EDGE - 1) / 2) / (EDGE / 8)) ** 2).clip(1e-3)
    for box, _ in windows(x.shape[2:], (EDGE, EDGE), 0.5):
        up, down = pair.images(x[(..., *box)])
        total[box] += np.outer(at, at) * (up - down)[0, 0].numpy()
        weights[box] += np.outer(at, at)
    np.testing.assert_allclose(found.maps["relevance"].volume.array[0], 100 * total / weights, atol=1e-3)
    assert any("windows were looked at" in note for note in found.notes)
    assert found.self_checks["written_image"]["value"] < 1e-3  # the probabilities are those of the blended images
    wide = explained(model, image, overlap=0.9)
    assert wide.scores["images"] > found.scores["images"]


def test_all_slices_or_one(model):
    image = volume((3, EDGE, EDGE))
    every = explained(model, image, slice="all")
    assert every.provenance["slice"] == "all" and len(every.tables["slices"].columns["slice"]) == 3
    for k in range(3):
        one = explained(model, image, slice=f"axial:{k}")
        np.testing.assert_allclose(one.maps["relevance"].volume.array[k], every.maps["relevance"].volume.array[k], atol=1e-4)  # fmt: skip
        assert every.tables["slices"].columns["probability"][k] == pytest.approx(one.scores["probability"], abs=1e-6)
        assert not np.delete(one.maps["relevance"].volume.array, k, 0).any()


def test_3_d(tmp_path):
    """A network that looks at whole volumes, of any size."""
    from MedXAILib.models.networks import StridedCNN
    from MedXAILib.package import write_package
    from MedXAILib.training.saving import save_weights, weights_of

    network = StridedCNN(3, 1, 2, 12, width=0.1)
    about = INPUT | {"spatial_dims": 3, "spacing": None, "size": [12, 12, 12], "fit": "pad"}
    package = write_package(
        tmp_path / "model",
        {
            "name": "3-D", "task": "classification", "weights": "weights.safetensors", "input": about, "output": {"labels": ["smooth", "spiculated"], "activation": "softmax"},
            "network": {"name": "StridedCNN", "arguments": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "size": 12, "width": 0.1}},
        },
        lambda path: save_weights(weights_of(network, False), path),
    )  # fmt: skip
    write_explainer(tmp_path / "model-cycle", package)
    model, image = loaded(tmp_path / "model"), volume((12, 12, 12))
    _, up, down, _ = networks_own(model, image)
    found = explained(model, image)
    np.testing.assert_allclose(found.maps["relevance"].volume.array, 100 * (up - down)[0, 0].numpy(), atol=1e-3)
    large = volume((20, 18, 30))
    around = explained(model, large, center_ras=large.index_to_ras((10, 9, 15)))
    assert around.provenance["patch"]["start"] == [5, 4, 10] and around.provenance["patch"]["stop"] == [17, 16, 22]


def test_several_channels(tmp_path):
    package = write_classifier(tmp_path / "model")
    about = package.to_json()
    from MedXAILib.models.networks import StridedCNN
    from MedXAILib.package import write_package
    from MedXAILib.training.saving import save_weights, weights_of

    network = StridedCNN(2, 2, 2, EDGE, width=0.1)
    fields = about | {"input": about["input"] | {"channels": ["T1", "T2"]}, "network": {"name": "StridedCNN", "arguments": {"spatial_dims": 2, "in_channels": 2, "out_channels": 2, "size": EDGE, "width": 0.1}}}  # fmt: skip
    package = write_package(tmp_path / "two", fields, lambda path: save_weights(weights_of(network, False), path))
    write_explainer(tmp_path / "two-cycle", package)
    images = [volume(seed=n) for n in (0, 1)]
    found = run(cycle(loaded(tmp_path / "two"), images, CycleSettings(**CPU)))
    assert {"relevance", "relevance-2", "positive-2", "delta-negative-2"} <= set(found.maps)
    np.testing.assert_allclose(found.maps["positive-2"].volume.array, images[1].array + found.maps["delta-positive-2"].volume.array, atol=1e-4)  # fmt: skip


# ---- the explainer and bad input -----------------------------------------------------------------------------------------


def test_the_explainer_beside_the_model_is_found_by_its_sha256(place, tmp_path):
    package = Package.read(place / "nodules")
    assert find_explainer(place / "nodules", package.sha256) == place / "nodules-cycle"
    write_classifier(tmp_path / "alone", seed=3)
    with pytest.raises(MedXAIError, match="No explainer of this model lies beside 'alone'; train one"):
        explained(loaded(tmp_path / "alone"), volume())
    for name in ("one", "two"):
        write_explainer(tmp_path / name, Package.read(tmp_path / "alone"))
    with pytest.raises(MedXAIError, match=r"2 explainers of this model lie beside it \(one, two\)"):
        explained(loaded(tmp_path / "alone"), volume())
    with pytest.raises(MedXAIError, match=r"was trained for 'small nodules' \(SHA-256 [0-9a-f]{12}…\), not for"):
        explained(loaded(tmp_path / "alone"), volume(), explainer=str(place / "nodules-cycle"))


@pytest.mark.parametrize(
    ("change", "words"),
    (
        ({"output": {"labels": ["spiculated", "smooth"], "activation": "softmax"}}, "another 'labels'"),
        ({"output": {"labels": ["round", "spiculated"], "activation": "softmax"}}, "another 'labels'"),
        ({"input": INPUT | {"intensity": {"kind": "window", "low": 0, "high": 50}}}, "another 'input'"),
        ({"input": INPUT | {"spacing": [2.0, 2.0]}}, "another 'input'"),
    ),
)
def test_an_explainer_of_the_same_weights_described_otherwise_is_refused(change, words, tmp_path):
    package = write_classifier(tmp_path / "model")
    write_explainer(tmp_path / "model-cycle", package)
    fields = json.loads((tmp_path / "model" / "model.json").read_text("utf-8"))
    (tmp_path / "model" / "model.json").write_text(json.dumps(fields | change), "utf-8")
    with pytest.raises(MedXAIError, match=words):
        explained(loaded(tmp_path / "model"), volume())


def test_an_explainer_is_loaded_once_and_again_when_it_changed(place, model):
    one, _ = pair_of(model, str(place / "nodules-cycle"))
    assert pair_of(model, str(place / "nodules-cycle"))[0] is one
    path = place / "nodules-cycle" / "model.json"
    path.write_text(path.read_text("utf-8") + " ", "utf-8")
    assert pair_of(model, str(place / "nodules-cycle"))[0] is not one


def test_the_model_is_left_as_it_was_also_when_stopped(model):
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    model.module.train()
    state = torch.get_rng_state()
    steps = cycle(model, [volume((1, 40, 40))], CycleSettings(**CPU))
    next(steps)
    steps.close()
    explained(model, volume())
    assert all(one.training for one in model.module.modules()) and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, model.module.state_dict()[name]) for name, value in before.items())
    model.module.eval()


def test_bad_input_is_refused_in_one_sentence(place, model):
    def refused(words, image, *more, **settings):
        with pytest.raises(MedXAIError, match=words):
            explained(model, image, *more, **settings)

    image, large = volume(), volume((5, 40, 40))
    refused("trained for 'spiculated' against 'smooth', not for 'round'|has no label 'round'", image, label="round")
    refused(r"The patch of 'small nodules', 16 × 16 mm, is larger than 'scan'", volume((1, 12, 40)), center_ras=(-5.0, -5.0, 0.0))  # fmt: skip
    refused("lies outside", large, center_ras=(300.0, 0.0, 0.0))
    refused("has 5 slices", large)
    refused("leave --slice or the center out", large, slice="all", center_ras=large.index_to_ras((2, 20, 20)))
    refused("The center lies on slice axial:2, and axial:1 was asked for", large, slice="axial:1", center_ras=large.index_to_ras((2, 20, 20)))  # fmt: skip
    refused("The segment 'lesion' is empty", large, large.with_array(np.zeros(large.shape, np.uint8), "lesion"))
    broken = image.array.copy()
    broken[0, 3, 3] = np.nan
    refused("1 NaN", image.with_array(broken))
    with pytest.raises(MedXAIError, match="not an explainer"):
        Explainer(place / "nodules", "cpu")
    with pytest.raises(MedXAIError, match="cycle takes one segment"):
        explain("cycle", model, [image], CycleSettings(), [image, image])


def test_an_explainers_package_says_what_it_explains(place, tmp_path):
    fields = json.loads((place / "nodules-cycle" / "model.json").read_text("utf-8"))
    from MedXAILib.package import from_json

    assert from_json(fields, tmp_path).to_json() == fields
    for change, words in (
        ({"task": "classification"}, "and no other, has the field 'explains'"),
        ({"explains": fields["explains"] | {"sha256": "12"}}, "SHA-256 of the weights"),
        ({"explains": fields["explains"] | {"data_range": 0}}, "a positive number"),
        ({"explains": fields["explains"] | {"negative": "round"}}, "one of 'labels'"),
        ({"explains": fields["explains"] | {"mean": [2, 1]}}, "two numbers, the smaller one first"),
        ({"explains": {k: v for k, v in fields["explains"].items() if k != "positive"}}, "lacks the field 'positive'"),
    ):
        with pytest.raises(MedXAIError, match=words):
            from_json(fields | change, tmp_path)


def test_describing_tells_what_is_explained(place, capsys):
    assert main(["models", "describe", place / "nodules-cycle"]) == 0
    assert f"explains     small nodules (SHA-256 {Package.read(place / 'nodules').sha256}): spiculated against smooth" in capsys.readouterr().out  # fmt: skip


# ---- the command -----------------------------------------------------------------------------------------------------------


def test_the_command(place, tmp_path, capsys):
    image = volume((3, 40, 40))
    mask = np.zeros(image.shape, np.uint8)
    mask[1, 18:24, 15:20] = 1
    io.write_volume(tmp_path / "scan.nrrd", image)
    io.write_volume(tmp_path / "mask.nrrd", image.with_array(mask))
    common = [
        "cycle",
        "--model",
        place / "nodules",
        "--volume",
        tmp_path / "scan.nrrd",
        "--device",
        "cpu",
        "--no-scene",
    ]
    assert main([*common, "--segmentation", tmp_path / "mask.nrrd", "--output", tmp_path / "out"]) == 0
    told = capsys.readouterr().out
    assert "probability positive" in told and "label: spiculated" in told
    files = {one.name for one in (tmp_path / "out").iterdir()}
    assert {"positive.nrrd", "negative.nrrd", "relevance.nrrd", "delta-positive.nrrd", "morph.csv", "classes.csv", "explanation.json"} <= files  # fmt: skip
    about = json.loads((tmp_path / "out" / "explanation.json").read_text("utf-8"))
    assert {"probability", "probability_positive", "probability_negative"} <= set(about["scores"])
    relevance = io.read_volume(tmp_path / "out" / "relevance.nrrd")
    assert relevance.same_grid(image) and relevance.array[1].any() and not relevance.array[[0, 2]].any()
    ras = [f"{v:g}" for v in image.index_to_ras((1, 20.5, 17))]
    assert main([*common, "--center-ras", *ras, "--output", tmp_path / "again"]) == 0
    again = io.read_volume(tmp_path / "again" / "relevance.nrrd")
    np.testing.assert_array_equal(again.array, relevance.array)
    assert main([*common, "--label", "round", "--output", tmp_path / "no"]) == 1 and not (tmp_path / "no").exists()
    assert noise_images(1).shape == (1, 1, EDGE, EDGE)
