"""`backproject`: known answers on planted classifiers, landmarks, self-checks, bad input, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from classifiers import Head, classifier, stack
from torch import nn

from MedXAILib import io
from MedXAILib.cli import main
from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import run
from MedXAILib.landmarks import coarse_parts, heat, landmark_table, shares, spread, weights, with_rest
from MedXAILib.methods import REGISTRY, explain
from MedXAILib.methods.filter_checks import sampled
from MedXAILib.models import load, prepare
from MedXAILib.package import Package, write_package
from MedXAILib.settings import BackprojectSettings
from MedXAILib.volume import Volume

MATRIX = np.array([[-0.8, 0.1, 0, 10], [0.1, -0.9, 0, -20], [0, 0.05, 2, 5], [0, 0, 0, 1]], float)


def image(shape=(1, 16, 16), seed=0, matrix=MATRIX) -> Volume:
    return Volume(np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32), matrix, "image")


def backproject(model, volume, landmarks=(), **settings):
    return run(REGISTRY["backproject"](model, [volume], BackprojectSettings(**{"filters": 2} | settings), landmarks))


class Looks(nn.Module):
    """Filter 0 looks at the upper left quarter, filter 1 at the lower right one, filter 2 nowhere; the answer is filter 0 against filter 1."""

    def __init__(self, size=16):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 1, bias=False), Head(3)
        gate = torch.zeros(1, 3, size, size)
        gate[0, 0, : size // 2, : size // 2] = 1
        gate[0, 1, size // 2 :, size // 2 :] = 1
        self.register_buffer("gate", gate)
        with torch.no_grad():
            self.conv.weight[:] = torch.tensor([2.0, 1.0, 1.0]).reshape(3, 1, 1, 1)
            self.head.linear.weight[:] = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
            self.head.linear.bias.zero_()

    def forward(self, x):
        return self.head(F.relu(self.conv(x) * self.gate))


def quarter(volume, rows, columns, name) -> Volume:
    array = np.zeros(volume.shape, np.uint8)
    array[:, rows, columns] = 1
    return volume.with_array(array, name)


# ---- known answers ---------------------------------------------------------------------------------------------------


def test_each_filter_is_told_by_itself():
    volume = image()
    result = backproject(classifier(Looks()), volume)
    x = volume.array.astype(np.float64)
    table = result.tables["filters"].columns
    upper, lower = x[:, :8, :8].max() * 2, x[:, 8:, 8:].max()
    assert table["filter"] == [0, 1] and table["rank"] == [1, 2] and table["name"] == ["filter-0", "filter-1"]
    assert table["score"] == pytest.approx([upper, lower], rel=1e-6)
    maps = dict(zip(result.sequences["filters"].names, (v.array for _, v in result.sequences["filters"].items)))
    expected = np.zeros_like(volume.array)
    expected[:, :8, :8] = 4 * np.clip(
        volume.array[:, :8, :8], 0, None
    )  # the activation 2x, through the weight 2 once more
    np.testing.assert_allclose(maps["filter-0"], expected, rtol=1e-6)
    expected = np.zeros_like(volume.array)
    expected[:, 8:, 8:] = np.clip(volume.array[:, 8:, 8:], 0, None)
    np.testing.assert_allclose(maps["filter-1"], expected, rtol=1e-6)
    mean = (spread(maps["filter-0"]) + spread(maps["filter-1"])) / 2
    np.testing.assert_allclose(result.maps["heat"].volume.array, mean, rtol=1e-5)
    assert result.maps["heat"].volume.array.mean() == pytest.approx(1, abs=1e-5)
    assert result.provenance["layer"]["shape"] == [3, 16, 16] and result.provenance["rectifiers"] == {"relu": 1}


def test_landmarks_are_told_against_their_area():
    volume = image()
    seen, half, dark = (
        quarter(volume, slice(0, 8), slice(0, 8), "seen"), quarter(volume, slice(0, 16), slice(0, 8), "left half"),
        quarter(volume, slice(8, 16), slice(0, 8), "dark"),
    )  # fmt: skip
    table = backproject(classifier(Looks()), volume, (seen, half, dark)).tables["landmarks"].columns
    assert table["landmark"] == ["seen", "left half", "dark", "elsewhere"]
    assert table["area_share"] == [0.25, 0.5, 0.25, 0.5]
    assert table["heat_share"] == pytest.approx([0.5, 0.5, 0, 0.5], abs=1e-6)
    assert table["ratio"] == pytest.approx([2, 1, 0, 1], abs=1e-6)
    assert table["filters"] == [1, 1, 0, 1] and table["of"] == [2] * 4
    assert np.isnan(table["low"]).all()  # two filters are too few for an interval


def test_combine_by_activation_weighs_by_score():
    volume = image()
    result = backproject(classifier(Looks()), volume, combine="activation")
    a, b = result.tables["filters"].columns["score"]
    maps = [v.array for _, v in result.sequences["filters"].items]
    expected = (a * spread(maps[0]) + b * spread(maps[1])) / (a + b)
    np.testing.assert_allclose(result.maps["heat"].volume.array, expected, rtol=1e-5)


@pytest.mark.parametrize("score", ["max", "sum", "mean"])
def test_filters_are_ranked_by_the_stated_score(score):
    model, volume = classifier(stack(widths=(4, 12))), image((1, 24, 24))
    result = backproject(model, volume, filters=5, score=score)
    maps = F.relu(model.module[3](F.max_pool2d(F.relu(model.module[0](torch.from_numpy(volume.array[None]))), 2)))[0].detach().flatten(1)  # fmt: skip
    found = {"max": maps.amax(1), "sum": maps.sum(1), "mean": maps.mean(1)}[score]
    assert result.tables["filters"].columns["filter"] == found.argsort(descending=True)[:5].tolist()
    np.testing.assert_allclose(result.curves["ranking"].columns["score"], found.sort(descending=True).values, rtol=1e-5)


def test_any_list_of_filters():
    model, volume = classifier(stack(widths=(4, 12))), image((1, 24, 24))
    whole = backproject(model, volume, filters=12)
    some = backproject(model, volume, only=(7, 2, 7))
    assert sorted(some.tables["filters"].columns["filter"]) == [2, 7]
    each = dict(zip(whole.sequences["filters"].names, (v.array for _, v in whole.sequences["filters"].items)))
    for name, (_, volume) in zip(some.sequences["filters"].names, some.sequences["filters"].items):
        np.testing.assert_allclose(volume.array, each[name], atol=1e-6)


def test_batches_change_nothing_and_show_the_map_as_it_grows():
    model, volume = classifier(stack(widths=(4, 12))), image((1, 24, 24))
    whole = backproject(model, volume, filters=9)
    previews, steps = [], REGISTRY["backproject"](model, [volume], BackprojectSettings(filters=9, batch=2))
    result = run(steps, lambda step: previews.append(step.previews()["heat"]) if step.previews else None)
    assert result.provenance["batch"] == 2 and len(previews) == 5
    assert isinstance(previews[0], Volume) and previews[0].same_grid(volume)
    np.testing.assert_allclose(previews[-1].array, whole.maps["heat"].volume.array, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.maps["heat"].volume.array, whole.maps["heat"].volume.array, rtol=1e-4, atol=1e-5)


def test_the_layer_can_be_chosen():
    model, volume = classifier(stack(widths=(4, 12))), image((1, 24, 24))
    assert backproject(model, volume).provenance["layer"]["path"] == "3"
    first = backproject(model, volume, layer="1", filters=4)
    assert first.provenance["layer"]["shape"] == [4, 24, 24] and first.provenance["rectifiers"] == {"relu": 1}
    assert first.self_checks["filters_matter"]["passed"] is None  # a convolution follows
    assert np.isnan(first.tables["filters"].columns["effect"]).all()


def test_class_score():
    model, volume = classifier(stack(), labels=2), image()
    with torch.no_grad():
        expected = torch.softmax(model.module(torch.from_numpy(volume.array[None])), 1)[0]
    best = int(expected.argmax())
    result = backproject(model, volume)
    assert result.provenance["label"] == result.provenance["predicted"] == f"label {best}"
    assert result.scores["probability"] == pytest.approx(float(expected[best]), rel=1e-5)
    other = backproject(model, volume, label=f"label {1 - best}")
    assert other.scores["probability"] == pytest.approx(float(expected[1 - best]), rel=1e-5)
    assert other.scores["log_odds"] == pytest.approx(-result.scores["log_odds"], rel=1e-5)
    assert other.tables["classes"].columns["probability"] == pytest.approx(expected.tolist(), rel=1e-5)


# ---- geometry --------------------------------------------------------------------------------------------------------


def test_one_slice_of_an_oblique_volume():
    volume = image((5, 16, 16))
    result = backproject(classifier(Looks()), volume, slice="k:3")
    alone = backproject(classifier(Looks()), Volume(volume.array[3:4], MATRIX, "slice"))
    heat_map = result.maps["heat"].volume
    assert heat_map.same_grid(volume) and not heat_map.array[[0, 1, 2, 4]].any()
    np.testing.assert_array_equal(heat_map.array[3], alone.maps["heat"].volume.array[0])
    _, one = result.sequences["filters"].items[0]
    assert one.shape == (1, 16, 16)
    np.testing.assert_allclose(one.index_to_ras((0, 2, 1)), volume.index_to_ras((3, 2, 1)))
    table = result.tables["landmarks"].columns
    assert sum(table["voxels"]) == 16 * 16 and result.tables["landmarks"].title == "Coarse parts (not anatomical)"


def test_landmarks_choose_the_slice():
    volume = image((5, 16, 16))
    array = np.zeros(volume.shape, np.uint8)
    array[1, :2], array[4, :5] = 1, 1
    result = backproject(classifier(Looks()), volume, (volume.with_array(array, "bone"),))
    assert result.provenance["slice"] == "k:4"


def test_three_dimensions_flipped_and_cropped_to_order():
    model = classifier(stack(3, (3, 4)), 3, input={"orientation": "RAS"})
    volume = image((8, 12, 16))
    result = backproject(model, volume, filters=4)
    flipped = Volume(volume.array[:, ::-1].copy(), MATRIX @ np.array([[1, 0, 0, 0], [0, -1, 0, 11], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "image")  # fmt: skip
    other = backproject(model, flipped, filters=4)
    assert result.maps["heat"].volume.shape == volume.shape
    np.testing.assert_allclose(other.maps["heat"].volume.array[:, ::-1], result.maps["heat"].volume.array, rtol=1e-4, atol=1e-5)  # fmt: skip
    assert set(result.tables["landmarks"].columns["landmark"]) == {"corners", "borders", "centre"}


def test_resized_input_comes_back_on_the_grid_of_the_volume():
    model = classifier(Looks(), input={"size": [16, 16], "fit": "resize"})
    array = np.zeros((1, 32, 48), np.float32)
    array[:, :16, :24] = 3  # the upper left quarter
    volume = Volume(array, MATRIX, "image")
    heat_map = backproject(model, volume, filters=1).maps["heat"].volume
    assert heat_map.same_grid(volume)
    assert (
        heat_map.array[:, :14, :21].min() > 2
        and heat_map.array[:, 18:].max() == 0
        and heat_map.array[:, :, 27:].max() == 0
    )


def test_channels_are_summed():
    torch.manual_seed(0)
    model = classifier(stack(widths=(3, 4), channels=2), channels=2)
    one, two = image(seed=1), image(seed=2)
    result = run(REGISTRY["backproject"](model, [one, two], BackprojectSettings(filters=1)))
    from test_backward import sent

    x = torch.from_numpy(np.stack([one.array[0], two.array[0]])[None])
    expected = sent(model, x, result.tables["filters"].columns["filter"])[0].sum(0)
    np.testing.assert_allclose(result.sequences["filters"].items[0][1].array[0], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_budget_leaves_maps_out_and_says_so():
    volume = image((1, 512, 600))
    result = backproject(classifier(stack(widths=(2, 4))), volume, filters=4, memory_budget=3)
    assert len(result.sequences["filters"].items) == 2 and result.sequences["filters"].thinned == 2
    assert any("not kept" in note for note in result.notes)
    everything = backproject(classifier(stack(widths=(2, 4))), volume, filters=4)
    np.testing.assert_allclose(
        result.maps["heat"].volume.array, everything.maps["heat"].volume.array, rtol=1e-4, atol=1e-5
    )


# ---- how far to trust it ---------------------------------------------------------------------------------------------


def test_silencing_filters_is_told_exactly():
    volume = image()
    result = backproject(classifier(Looks()), volume)
    x = np.clip(volume.array.astype(np.float64), 0, None)
    up, low = 2 * x[:, :8, :8].sum() / 256, x[:, 8:, 8:].sum() / 256  # the two logits
    sign = 1 if up > low else -1
    assert result.scores["log_odds"] == pytest.approx(sign * (up - low), rel=1e-5)
    assert result.tables["filters"].columns["effect"] == pytest.approx([sign * up, -sign * low], rel=1e-4)
    assert result.self_checks["filters_matter"]["value"] == pytest.approx(sign * (up - low), rel=1e-4)


def test_filters_that_do_not_matter_do_not_pass():
    network = stack(widths=(4, 30))
    with torch.no_grad():
        network[3].bias[:5] += 100  # the strongest by far, and the head does not read them
        network[-1].linear.weight[:, :5] = 0
    check = backproject(classifier(network), image(), filters=5).self_checks["filters_matter"]
    assert check["value"] == pytest.approx(0, abs=1e-4) and check["passed"] is False


def test_filters_that_show_the_same_are_recognised():
    different = backproject(classifier(Looks()), image()).self_checks["filters_differ"]
    assert different["value"] < 0.1 and different["passed"] is True
    network = stack(widths=(4, 6))
    with torch.no_grad():
        network[3].weight[1:], network[3].bias[1:] = network[3].weight[:1].clone(), network[3].bias[:1].clone()
    same = backproject(classifier(network), image(), filters=4).self_checks["filters_differ"]
    assert same["value"] == pytest.approx(1) and same["passed"] is False
    assert backproject(classifier(network), image(), filters=1).self_checks["filters_differ"]["passed"] is None


def test_edges_are_recognised():
    class Edges(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1, bias=False), Head(4)
            with torch.no_grad():
                self.conv.weight[:] = torch.tensor([[[[0.0, 0, 0], [-1, 0, 1], [0, 0, 0]]]])
                self.conv.weight[1::2] = self.conv.weight[1::2].flip(3).clone()
                self.conv.weight[2:] = self.conv.weight[2:].transpose(2, 3).clone()

        def forward(self, x):
            return self.head(F.relu(self.conv(x)))

    grid = np.indices((64, 64))
    smooth = np.exp(-((grid[0] - 30) ** 2 + (grid[1] - 28) ** 2) / 200)[None].astype(np.float32)
    check = backproject(classifier(Edges()), Volume(smooth, MATRIX, "blob"), filters=4).self_checks["not_edges"]
    assert check["value"] > 0.8 and check["passed"] is False


def test_randomisation_is_reported_as_it_comes_out():
    model, volume = classifier(stack(widths=(4, 6, 8), seed=4)), image((1, 32, 32))
    weight = model.module[0].weight.clone()
    result = backproject(model, volume, filters=4, randomise=True, seed=3)
    table = result.tables["randomisation"].columns
    assert table["layers"] == [0, 1, 2, 3] and table["spearman"][0] == 1
    assert table["layer"][1:] == ["conv2d_2", "conv2d_1", "conv2d"]
    assert all(-1 <= value < 0.999 for value in table["spearman"][1:])
    check = result.self_checks["randomisation"]
    assert check["value"] == table["spearman"][-1] and check["passed"] is (check["value"] < 0.5)
    assert torch.equal(model.module[0].weight, weight)
    assert "randomisation" not in backproject(model, volume).self_checks
    again = backproject(model, volume, filters=4, randomise=True, seed=3).tables["randomisation"].columns
    assert again == table


def test_randomisation_that_changes_nothing_does_not_pass():
    model = classifier(Looks())  # one convolution of kernel 1: shuffled weights only scale the maps
    result = backproject(model, image(), only=(0, 1), randomise=True)
    assert result.self_checks["randomisation"]["value"] == pytest.approx(1)
    assert result.self_checks["randomisation"]["passed"] is False


def test_notes_tell_what_a_reader_must_know():
    volume = image()
    assert any("silent" in note for note in backproject(classifier(Looks()), volume, filters=3).notes)

    class Swish(nn.Sequential):
        pass

    torch.manual_seed(0)
    swish = Swish(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.MaxPool2d(3, 1), nn.Conv2d(4, 4, 3), Head(4))
    notes = " ".join(backproject(classifier(swish), volume).notes)
    assert "not rectified" in notes and "tanh (1)" in notes and "no rectifier between" in notes
    assert "overlap and share switches" in notes and "added" in notes
    overwritten = backproject(classifier(swish), volume, collisions="overwrite")
    assert "last window" in " ".join(overwritten.notes) and overwritten.provenance["collisions"] == "overwrite"


def test_stopping_puts_the_network_back():
    network = stack().train()
    model = classifier(network)
    network.train()
    steps = REGISTRY["backproject"](model, [image()], BackprojectSettings(filters=2))
    next(steps), next(steps)
    assert not network.training
    steps.close()
    assert network.training and all(p.requires_grad for p in network.parameters())


def test_the_checks_judge_what_the_answer_reads():
    class Two(nn.Module):  # a decoder beside the classes
        def __init__(self):
            super().__init__()
            self.conv, self.decoder, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3), Head(4)

        def forward(self, x):
            y = F.relu(self.conv(x))
            return {"image": self.decoder(y), "classes": self.head(y)}

    model = classifier(Two(), output={"key": "classes"})
    result = backproject(model, image())
    assert not np.isnan(result.tables["filters"].columns["effect"]).any()
    assert result.self_checks["filters_matter"]["value"] is not None


def test_log_odds_of_three_labels():
    network = stack()
    network[-1] = Head(6, 3)
    result = backproject(classifier(network, labels=3), image(), label="label 1")
    p = result.tables["classes"].columns["probability"][1]
    assert result.scores["log_odds"] == pytest.approx(np.log(p / (1 - p)), rel=1e-5)


def test_weights_behind_another_operation_are_shuffled_too():
    torch.manual_seed(0)
    norm = torch.nn.utils.parametrizations.weight_norm
    network = nn.Sequential(
        norm(nn.Conv2d(1, 6, 3, bias=False)), nn.ReLU(), norm(nn.Conv2d(6, 8, 3, bias=False)), nn.ReLU(), Head(8)
    )
    table = (
        backproject(classifier(network), image((1, 24, 24)), filters=3, randomise=True).tables["randomisation"].columns
    )
    assert table["layers"] == [0, 1, 2] and max(table["spearman"][1:]) < 0.99


def test_randomisation_keeps_to_the_filters_that_were_named():
    model = classifier(stack(widths=(4, 12), seed=2))
    named = backproject(model, image((1, 24, 24)), only=(3, 5), randomise=True).tables["randomisation"].columns
    assert named["same_filters"] == [1.0] * 3
    strongest = backproject(model, image((1, 24, 24)), filters=2, randomise=True).tables["randomisation"].columns
    assert min(strongest["same_filters"]) < 1


def test_samples_keep_to_no_column():
    for shape in ((512, 512), (800, 1000), (64, 64, 64), (30, 20)):
        columns = sampled(np.broadcast_to(np.arange(shape[-1]), shape).copy(), 20_000)
        assert len(np.unique(columns)) == shape[-1] and len(columns) <= 20_000


def test_half_of_the_heat_and_its_range():
    result = backproject(classifier(Looks()), image(), only=(0,))
    ordered = np.sort(np.clip(image().array, 0, None).astype(float)[:, :8, :8].ravel())[::-1]
    needed = int(np.searchsorted(ordered.cumsum(), ordered.sum() / 2)) + 1
    assert result.scores["half_heat_area"] == pytest.approx(needed / 256)
    layer = result.maps["heat"]
    assert (layer.low, layer.least) == (0, 1) and layer.high == pytest.approx(np.percentile(layer.volume.array, 99.5))


def test_the_batch_is_what_the_budget_and_the_caches_allow():
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 40, 3, padding=1), nn.ReLU(), Head(40)
    )
    model, volume = classifier(network), image((1, 256, 256))
    each = 2 * 4 * 16 * 256 * 256  # bytes: 8 MB
    for budget, expected in ((1, 1), (20, 20 * 2**20 // each), (1024, 64 * 2**20 // each)):
        assert backproject(model, volume, filters=30, memory_budget=budget).provenance["batch"] == expected


def test_what_is_not_finite_is_refused():
    network = stack()
    with torch.no_grad():
        network[0].weight *= 1e30
        network[3].weight *= 1e30
    with pytest.raises(
        MedXAIError, match="gives values that are not finite on 'image'; look at the volume's intensities"
    ):
        backproject(classifier(network), image())
    torch.manual_seed(0)
    root = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.LPPool2d(2, 2), nn.Conv2d(4, 4, 3), nn.ReLU(), Head(4))
    with torch.no_grad():
        root[0].bias -= 100  # 0 everywhere: the root's slope is infinite
        root[3].bias += 1
    with pytest.raises(MedXAIError, match=r"What came back of filter \d is not finite; choose a later layer"):
        backproject(classifier(root), image())
    assert np.isfinite(spread(np.full((1, 8, 8), 1e-40, np.float32))).all()


def test_what_arrives_on_padding_is_told():
    model = classifier(stack(), input={"size": [64, 64], "fit": "pad"})
    result = backproject(model, image((1, 12, 12)))
    assert result.scores["heat_on_padding"] > 0.3
    assert any("arrived on the padding" in note for note in result.notes)
    assert "heat_on_padding" not in backproject(classifier(stack()), image()).scores


def test_a_finer_grid_of_the_network_loses_nothing():
    class Corner(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 1, 4, stride=4, bias=False), Head(1)
            with torch.no_grad():
                self.conv.weight.zero_()
                self.conv.weight[0, 0, 0, 0] = 1

        def forward(self, x):
            return self.head(F.relu(self.conv(x)))

    array = np.ones((1, 16, 16), np.float32)
    array[:, :8] = 3
    result = backproject(
        classifier(Corner(), input={"size": [64, 64], "fit": "resize"}), Volume(array, MATRIX, "steps"), filters=1
    )
    found = result.maps["heat"].volume.array[0]
    assert not any("nothing reached" in note for note in result.notes)
    assert found[:6].mean() / found[10:].mean() == pytest.approx(3, rel=0.15)  # linear interpolation, borders
    assert np.ptp(found[:6, 2:-2]) < 0.5 * found[:6].mean()  # spread over the voxels, not in every fourth


def test_notes_of_what_was_lost():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), Head(4))
    with torch.no_grad():
        network[2].weight.abs_()
        network[2].weight[1] *= -1  # lives from its bias: the deconvnet lets no negative signal through
        network[2].bias[:] = 50
    result = backproject(classifier(network), image(), filters=4)
    assert any("Of 1 filters nothing reached the image" in note for note in result.notes)
    assert result.tables["landmarks"].columns["of"] == [3] * 3
    volume = image((5, 16, 16))
    bone = np.zeros(volume.shape, np.uint8)
    bone[1] = 1
    result = backproject(classifier(Looks()), volume, (volume.with_array(bone, "bone"),), slice="k:3")
    assert any("No voxel of these landmarks" in note and "bone" in note for note in result.notes)


def test_an_empty_heat_map_is_explained():
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), Head(2))
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias[:] = torch.tensor([50.0, -90.0])
        network[0].weight[1, 0, 1, 1] = 1
    result = backproject(classifier(network), image(), combine="activation")
    assert not result.maps["heat"].volume.array.any()
    assert any("The heat map is empty" in note for note in result.notes)


def test_less_precision_in_the_network_is_told():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), Head(4)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = F.relu(self.conv(x))
            return self.head(y.float())

    assert any("less precision" in note for note in backproject(classifier(Half()), image()).notes)


def test_a_landmark_may_have_any_name():
    volume = image()
    given = [quarter(volume, slice(0, 8), slice(0, 8), name) for name in ("elsewhere", "rank", "elsewhere")]
    table = backproject(classifier(Looks()), volume, given).tables["landmarks"].columns
    assert table["landmark"] == ["elsewhere (2)", "rank (2)", "elsewhere (3)", "elsewhere"]
    assert table["area_share"] == [0.25, 0.25, 0.25, 0.75]


# ---- landmarks -------------------------------------------------------------------------------------------------------


def test_coarse_parts_cover_everything_once():
    for shape in ((1, 60, 90), (30, 60, 90), (1, 1, 12)):
        parts = coarse_parts(shape)
        assert (sum(part.astype(int) for part in parts.values()) == 1).all()
    parts = coarse_parts((1, 60, 90))
    assert parts["corners"].sum() == 4 * 10 * 15 and parts["centre"].sum() == 40 * 60
    assert parts["corners"][0, 9, 14] and parts["borders"][0, 9, 15] and parts["centre"][0, 10, 15]


def test_intervals_come_from_the_filters():
    rng = np.random.default_rng(0)
    parts = {"a": np.arange(100).reshape(1, 10, 10) < 30, "b": np.arange(100).reshape(1, 10, 10) >= 30}
    each = np.stack([p := rng.uniform(0.2, 0.6, 40), 1 - p], 1)
    table = landmark_table(each, weights([1.0] * 40, "equal"), parts).columns
    assert table["heat_share"][0] == pytest.approx(p.mean()) and table["filters"][0] == (p > 0.3).sum()
    half = 1.96 * p.std() / np.sqrt(40)
    assert table["low"][0] == pytest.approx(p.mean() - half, abs=0.01)
    assert table["high"][0] == pytest.approx(p.mean() + half, abs=0.01)
    lost = landmark_table([[np.nan, np.nan], [0.5, 0.5]], [0.5, 0.5], parts).columns
    assert lost["heat_share"] == [0.5, 0.5] and lost["of"] == [1, 1]


def test_weights_and_spread_of_nothing():
    assert weights([0.0, -1.0], "activation").tolist() == [0.5, 0.5]
    assert weights([3.0, 1.0], "activation").tolist() == [0.75, 0.25]
    nothing = np.zeros((1, 2, 2), np.float32)
    assert not spread(nothing).any() and np.isnan(shares(nothing, {"a": nothing == 0})).all()
    one = np.array([[[1.0, -3.0]]], np.float32)
    assert spread(one).tolist() == [[[0.5, 1.5]]]
    assert heat([nothing[:, :1], one], [0.5, 0.5]).tolist() == [[[0.5, 1.5]]]
    assert list(with_rest({"all": np.ones((1, 2), bool)})) == ["all"]


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"filters": 4}, r"layer 'relu' of 'small' has 3 filters, and 4 were asked for; ask for 3 or fewer \(--filters 3\)"),
        ({"only": (1, 5)}, r"has 3 filters, numbered from 0 to 2; there is no filter 5 \(--only\)"),
        ({"layer": "conf"}, "has no layer 'conf' — did you mean 'conv'|has no layer 'conf'.*conv"),
        ({"layer": "head.linear"}, "has no spatial extent"),
        ({"label": "label 7"}, "has no label 'label 7'"),
    ],
)  # fmt: skip
def test_refusals_of_settings(settings, words):
    with pytest.raises(MedXAIError, match=words):
        backproject(classifier(Looks()), image(), **settings)


def test_refusals_of_networks_and_volumes():
    from planted import linear

    segmentation = classifier(linear(np.ones((3, 3))).module, task="segmentation", output={"labels": ["a", "b"]})
    with pytest.raises(MedXAIError, match="is a segmentation network; backproject explains classification networks"):
        backproject(segmentation, image())
    flat = classifier(nn.Sequential(nn.Flatten(), nn.Linear(256, 2)))
    with pytest.raises(MedXAIError, match="'small' has no convolution, so it has no filters to send back"):
        backproject(flat, image())
    two = classifier(stack(channels=2), channels=2)
    with pytest.raises(MedXAIError, match=r"takes 2 volumes \(image 0, image 1\), and 1 came"):
        backproject(two, image())
    windows = classifier(Looks(), input={"size": [16, 16], "fit": "window"})
    with pytest.raises(MedXAIError, match="answers for windows of 16 × 16 voxels; crop the volume"):
        backproject(windows, image((1, 40, 40)))
    with pytest.raises(MedXAIError, match="takes one segment, and 2 came"):
        list(explain("dream", segmentation, [image()], None, (image(), image())))


def test_refusals_of_landmarks():
    volume = image()
    with pytest.raises(MedXAIError, match="None of the landmarks lies in the volume"):
        backproject(classifier(Looks()), volume, (volume.with_array(np.zeros(volume.shape, np.uint8), "nothing"),))
    other = Volume(np.ones((1, 5, 5), np.uint8), MATRIX @ np.diag([3.1, 3.1, 1, 1]), "other")
    with pytest.raises(MedXAIError, match="lies on another grid"):
        backproject(classifier(Looks()), volume, (other,))


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path):
    network = stack(widths=(4, 6))
    fields = {
        "name": "small", "task": "classification", "weights": "weights.ts",
        "input": {"spatial_dims": 2, "channels": ["image"], "orientation": None, "spacing": None, "size": None, "multiple_of": 1, "intensity": {"kind": "none"}},
        "output": {"labels": ["no", "yes"], "activation": "softmax"},
    }  # fmt: skip
    return write_package(tmp_path / "model", fields, lambda path: torch.jit.save(torch.jit.trace(network.eval(), torch.randn(1, 1, 16, 16)), path))  # fmt: skip


def test_command(tmp_path, package, capsys):
    volume = image((1, 20, 24))
    io.write_volume(tmp_path / "image.nrrd", volume)
    labels = np.zeros(volume.shape, np.uint8)
    labels[:, :10], labels[:, 10:, :12] = 1, 2
    io.write_volume(tmp_path / "labels.nrrd", volume.with_array(labels))
    words = [
        "backproject",
        "--model",
        package.folder,
        "--trust",
        "--volume",
        tmp_path / "image.nrrd",
        "--filters",
        "3",
        "--no-scene",
    ]
    assert main([*words, "--segmentation", tmp_path / "labels.nrrd", "--output", tmp_path / "out"]) == 0
    said = capsys.readouterr().out
    assert "check filters matter" in said and "the network answers" in said
    about = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert about["method"] == "backproject" and about["landmarks"] == ["labels 1", "labels 2"]
    filters = (tmp_path / "out" / "filters.csv").read_text().splitlines()
    assert filters[0].split(",")[:2] == ["filter", "score"] and len(filters) == 4
    for line in filters[1:]:
        assert (tmp_path / "out" / f"filter-{line.split(',')[0]}.nrrd").exists()
    assert io.read_volume(tmp_path / "out" / "heat.nrrd").same_grid(volume)
    assert (tmp_path / "out" / "landmarks.csv").read_text().startswith("landmark,voxels,area_share,heat_share,low,high")
    assert (
        main([*words, "--segmentation", tmp_path / "labels.nrrd", "--segment", "2", "--output", tmp_path / "two"]) == 0
    )
    assert json.loads((tmp_path / "two" / "explanation.json").read_text())["landmarks"] == ["labels 2"]


def test_command_refuses_in_one_line(tmp_path, package, capsys):
    io.write_volume(tmp_path / "image.nrrd", image())
    words = [
        "backproject",
        "--model",
        package.folder,
        "--trust",
        "--volume",
        tmp_path / "image.nrrd",
        "--output",
        tmp_path / "out",
    ]
    assert main([*words, "--filters", "25"]) == 1
    said = capsys.readouterr().err
    assert "6 filters" in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_program_and_its_source_give_the_same(package):
    model = load(package.folder, trusted={package.sha256})
    volume = image((1, 20, 24))
    a, b = backproject(model, volume), backproject(classifier(stack(widths=(4, 6))), volume)
    np.testing.assert_allclose(a.maps["heat"].volume.array, b.maps["heat"].volume.array, atol=1e-5)


# ---- real networks ---------------------------------------------------------------------------------------------------

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data: ../shared/data is absent")
@pytest.mark.parametrize("name", ["chest-view", "chest-pneumonia"])
def test_real_classifiers_on_a_real_radiograph(name):
    from test_backward import by_autograd

    package = Package.read(REAL / "models" / name)
    model = load(package.folder, trusted={package.sha256})
    volume = io.read_volume(REAL / "radiographs" / "nih_chest" / "images" / "00000165_001.png")
    result = backproject(model, volume, filters=5, rule="gradient")
    x = prepare(model, [volume]).x
    expected = by_autograd(model, x, "relu_3", result.tables["filters"].columns["filter"])
    found = [item.array[0] for _, item in result.sequences["filters"].items]
    for one, other in zip(found, expected):  # twice as fine as the network's grid, which the even voxels straddle
        mean = (one[::2, ::2] + one[1::2, ::2] + one[::2, 1::2] + one[1::2, 1::2]) / 4
        assert np.corrcoef(mean.ravel(), other[0].numpy().ravel())[0, 1] > 0.9
    assert result.tables["classes"].columns["logit"] == pytest.approx(model.logits(x)[0].tolist(), rel=1e-5)
    assert result.provenance["layer"]["shape"] == [128, 16, 16] and result.provenance["rectifiers"] == {"relu": 4}
