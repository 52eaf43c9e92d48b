import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors.torch import load_file
from torch import nn

from MedXAILib import cli
from MedXAILib.errors import MedXAIError
from MedXAILib.evaluation.statistics import wilson
from MedXAILib.explanation import run
from MedXAILib.models import load, prepare
from MedXAILib.models.networks import NETWORKS
from MedXAILib.package import Package, from_json
from MedXAILib.resume import Log
from MedXAILib.training import classifiers
from MedXAILib.training.classification import train_classifier
from MedXAILib.training.classifier_judging import accuracies, confusion, landmark_rows, probabilities
from MedXAILib.training.classifiers import epochs_kept, fields, train_images
from MedXAILib.training.labelled import Labelled, folder_images, split
from MedXAILib.training.saving import new_network
from MedXAILib.training.settings import CLASSIFIERS, PAPER_CLASSIFIERS, ClassificationSettings
from MedXAILib.training.variation import affine, vary, warp
from MedXAILib.volume import Volume

QUICK = dict(size=16, width=0.125, epochs=3, batch=8, heat_cases=0, show_errors=0, learning_rate=0.003, test_share=0.25)
TABLE_3 = [32, 16, "pool", 64, 32, "pool", 128, 128, 64, "pool", 256, 256, 128, "pool", "fc 128", "fc 128", "fc 24"]
TABLES = {
    "shallow": [32, 64, "pool", "dropout 0.25", "fc 128", "dropout 0.25", "fc 24"],
    "deeper": TABLE_3,
    "deeper-bn": [
        *(row for one in TABLE_3[:14] for row in ((one, "norm") if isinstance(one, int) else (one,))), "dropout 0.5",
        "fc 128", "dropout 0.5", "fc 128", "dropout 0.5", "fc 24",
    ],
}  # fmt: skip


# ---- the networks of the paper ---------------------------------------------------------------------------------------


def rows_of(network):
    """The network as the paper's tables write it, checking what every row has in common."""
    rows, last = [], None
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert module.kernel_size == (3, 3) and module.padding == (1, 1) and module.stride == (1, 1)
            rows.append(module.out_channels)
        elif isinstance(module, nn.BatchNorm2d):
            assert isinstance(last, nn.Conv2d)
            rows.append("norm")
        elif isinstance(module, nn.MaxPool2d):
            assert module.kernel_size == module.stride == 2 and isinstance(last, nn.ReLU)
            rows.append("pool")
        elif isinstance(module, nn.Dropout):
            rows.append(f"dropout {module.p:g}")
        elif isinstance(module, nn.Linear):
            rows.append(f"fc {module.out_features}")
        last = module if not list(module.children()) else last
    assert isinstance(last, nn.Linear)  # logits, no softmax
    return rows


@pytest.mark.parametrize("name", PAPER_CLASSIFIERS)
def test_the_networks_are_those_of_the_tables(name):
    with torch.device("meta"):
        network = NETWORKS[CLASSIFIERS[name]](1, 24)
    assert rows_of(network) == TABLES[name]
    rectifiers = sum(isinstance(module, nn.ReLU) for module in network.modules())
    assert rectifiers == sum(isinstance(row, int) for row in TABLES[name]) + sum(str(row).startswith("fc") for row in TABLES[name]) - 1  # fmt: skip
    count, channels, edge = 0, 1, 224
    for row in TABLES[name]:
        if isinstance(row, int):
            count += 9 * channels * row + (2 * row if "norm" in TABLES[name] else row)  # scale and shift, or bias
            channels = row
        elif row == "pool":
            edge //= 2
        elif row.startswith("fc"):
            before, edge, channels = channels * edge**2, 1, int(row[3:])
            count += before * channels + channels
    assert sum(p.numel() for p in network.parameters()) == count
    if name == "shallow":
        assert count == 320 + 18_496 + 112 * 112 * 64 * 128 + 128 + 24 * 129


@pytest.mark.parametrize("name", PAPER_CLASSIFIERS)
def test_width_and_size_make_small_ones_that_begin_to_learn(name):
    torch.manual_seed(0)
    network = NETWORKS[CLASSIFIERS[name]](1, 3, size=50, width=0.25).eval()
    assert network.features[0].out_channels == 8
    logits = network(torch.randn(16, 1, 50, 50))
    assert logits.shape == (16, 3) and logits.std(0).min() > 0.05  # the signal gets through ten layers


def test_dropout_can_be_weakened_for_narrow_networks():
    network = NETWORKS["DeeperBNCNN"](1, 2, size=32, width=0.25, dropout=0.5)
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.25] * 3


@pytest.mark.parametrize("dims", [2, 3])
def test_the_strided_network_is_that_of_the_paper(dims):
    with torch.device("meta"):
        network = NETWORKS["StridedCNN"](dims, 1, 2)
    blocks = [module for module in network.modules() if not list(module.children())]
    kinds = ["Conv", "BatchNorm", "ReLU"] * 4 + ["Flatten", "Linear"]
    assert [type(one).__name__.rstrip("23d") for one in blocks] == kinds
    convolutions = blocks[:12:3]
    assert [one.out_channels for one in convolutions] == [32, 64, 128, 256]
    assert [one.stride[0] for one in convolutions] == [1, 2, 2, 2] and blocks[-1].in_features == 256 * 8**dims
    for size in (16, 21):  # also an edge that 8 does not divide
        torch.manual_seed(0)
        small = NETWORKS["StridedCNN"](dims, 1, 3, size=size, width=0.125).eval()
        assert small(torch.randn(2, 1, *[size] * dims)).shape == (2, 3) and small.features[0].out_channels == 4


# ---- images of a physical size ---------------------------------------------------------------------------------------

SPACED = QUICK | dict(network="strided", size=32, spacing=0.5, window=(-1000, 400), class_weights=True, width=0.25)


def write_patches(folder, count=12, seed=0):
    """CT-like patches of 16 mm in two classes; at 1 mm, at 0.5 mm, and one too large of each class."""
    rng = np.random.default_rng(seed)
    for label in ("faint", "dense"):
        (folder / label).mkdir(parents=True)
        for n in range(count):
            edge = 16 if n % 2 else 32  # of 1 mm (resampled to 31 pixels of 0.5 mm) or of 0.5 mm
            array = rng.normal(-850, 30, (1, edge, edge))
            array[0, edge // 4 : edge // 2, edge // 4 : edge // 2] += 800 if label == "dense" else 300
            image = sitk.GetImageFromArray(array.astype(np.int16))
            image.SetSpacing((16 / edge, 16 / edge, 1.0))
            sitk.WriteImage(image, str(folder / label / f"{n:02}.nrrd"))
    return folder


def test_images_with_a_spacing_have_a_physical_size_and_others_are_skipped(tmp_path):
    folder = write_patches(tmp_path / "images")
    settings = ClassificationSettings(**SPACED | dict(heat_cases=3, filters=4, epochs=2))
    figures = run(train_images(folder, tmp_path / "out", settings))
    skipped = figures["cases"]["skipped"]
    assert len(skipped) == 12 and all(int(name[-7:-5]) % 2 or int(name[-6]) % 2 for name in skipped)
    assert next(iter(skipped.values())) == "it has 31 × 31 pixels of 0.5 mm, and the network takes 32 × 32 (16 mm)"
    assert figures["cases"]["training"] + figures["cases"]["test"] == 12
    about = load(tmp_path / "out", device="cpu").package
    assert about.network.name == "StridedCNN" and "Katzmann et al. 2021" in about.about["description"]
    assert (about.input.spacing, about.input.size, about.input.fit) == ((0.5, 0.5), (32, 32), "window")
    assert about.network.arguments == {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "size": 32,
        "width": 0.25,
    }
    shares = [one for one in figures["networks"]["strided"]["landmarks"] if one["weights"] == "trained"]
    assert sum(one["heat_share"] for one in shares) == pytest.approx(1)  # back-projection takes them as well
    with pytest.raises(
        MedXAIError, match=r"No image of the class 'dense' of 20 × 20 mm is left to train on .*31 × 31 pixels"
    ):
        run(train_images(folder, tmp_path / "other", ClassificationSettings(**SPACED | {"size": 40})))
    assert not (tmp_path / "other").exists()


def test_a_strided_training_with_spacing_goes_on_to_the_same_weights(tmp_path):
    folder = write_patches(tmp_path / "images")
    settings = ClassificationSettings(**SPACED)
    run(train_images(folder, tmp_path / "whole", settings))
    steps = train_images(folder, tmp_path / "out", settings)
    while epochs_kept(tmp_path / "out") < 2:
        next(steps)
    steps.close()
    with pytest.raises(MedXAIError, match="settings differ"):
        run(train_images(folder, tmp_path / "out", ClassificationSettings(**SPACED | {"spacing": 0.499})))
    run(train_images(folder, tmp_path / "out", settings))
    assert Package.read(tmp_path / "out").sha256 == Package.read(tmp_path / "whole").sha256


# ---- the split -------------------------------------------------------------------------------------------------------


def test_a_split_is_stratified_keeps_groups_together_and_is_deterministic():
    rng = np.random.default_rng(0)
    groups = rng.integers(120, size=400)
    labels = (rng.random(400) < 0.3).astype(int) + (groups < 10)
    tests = split(labels, groups, 0.1, seed=3)
    assert not set(groups[tests]) & set(groups[~tests])
    for label in range(3):
        assert tests[labels == label].mean() == pytest.approx(0.1, abs=0.04)
    assert np.array_equal(tests, split(labels, groups, 0.1, seed=3))
    assert not np.array_equal(tests, split(labels, groups, 0.1, seed=4))


def test_a_split_without_groups_is_exact_and_leaves_every_class_on_both_sides():
    labels = [0] * 100 + [1] * 20 + [2] * 2
    tests = split(labels, range(122), 0.1, seed=0)
    assert np.bincount(np.array(labels)[tests]).tolist() == [10, 2, 1]
    assert split([0, 0, 1, 1], ["a", "a", "b", "c"], 0.5, 0)[:2].tolist() == [
        False,
        False,
    ]  # its only group stays to train on


# ---- variation -------------------------------------------------------------------------------------------------------


def picture(seed=0, size=8):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 1, size, size)).astype(np.float32))


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, lambda x: x),
        ({"flip": True}, lambda x: x.flip(3)),
        ({"rotation": 90}, lambda x: torch.rot90(x, 1, (2, 3))),
        ({"rotation": 180}, lambda x: x.flip(2, 3)),
        ({"translation": (0.25, 0)}, lambda x: torch.nn.functional.pad(x - x.min(), (2, -2, 0, 0)) + x.min()),
        ({"translation": (0, -0.25)}, lambda x: torch.nn.functional.pad(x - x.min(), (0, 0, -2, 2)) + x.min()),
        ({"crop": (0.5, -1, 1)}, lambda x: None),
    ],
)
def test_variations_with_known_answers(options, expected):
    x = picture()
    found = warp(x, [affine(**options)])
    if "crop" in options:  # the lower left quarter, twice as large: pixel centres fall between those of the quarter
        quarter = torch.nn.functional.interpolate(x[..., 4:, :4], scale_factor=2, mode="bilinear")
        assert torch.allclose(found[..., 1:-1, 1:-1], quarter[..., 1:-1, 1:-1], atol=1e-5)
    else:
        assert torch.allclose(found, expected(x), atol=1e-5)


def test_stretch_and_shear_go_where_they_should():
    dot = torch.zeros(1, 1, 33, 33)
    dot[..., 16, 24] = 1.0  # half way to the right edge
    wide = warp(dot, [affine(stretch=(1.5, 1))])
    assert wide[0, 0].amax(0).argmax() == 28 and wide[0, 0].amax(1).argmax() == 16
    dot = torch.zeros(1, 1, 33, 33)
    dot[..., 8, 16] = 1.0
    sheared = warp(dot, [affine(shear=45)])
    assert sheared[0, 0].amax(1).argmax() == 8 and abs(int(sheared[0, 0].amax(0).argmax()) - 16) == 8


def test_variation_follows_its_seed_and_flips_only_when_told():
    x = torch.cat([picture(n) for n in range(40)])
    still = dict(rotation=0, translation=0, shear=0, stretch=0, crop=0)
    assert torch.allclose(vary(x, ClassificationSettings(**still), np.random.default_rng(0)), x, atol=1e-5)
    flipped = vary(x, ClassificationSettings(**still, flip=True), np.random.default_rng(0))
    mirrored = [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(flipped, x)]
    assert 8 < sum(mirrored) < 32 and all(m or torch.allclose(a, b, atol=1e-5) for m, a, b in zip(mirrored, flipped, x))
    one, same, other = (vary(x, ClassificationSettings(), np.random.default_rng(n)) for n in (1, 1, 2))
    assert torch.equal(one, same) and not torch.allclose(one, other) and one.shape == x.shape
    assert not ClassificationSettings().flip
    assert [ClassificationSettings().varied(n) for n in CLASSIFIERS] == [False, False, True, True, False]


def test_the_residual_network_ends_in_average_pooling_and_one_linear_layer():
    cases = SimpleNamespace(
        train=[], test=[], labels=("a", "b", "c"), title="", channel="image", license="", orientation=None
    )
    settings = ClassificationSettings(network="resnet", width=0.5, intensity="zscore")
    about = from_json({"schema": 1, "sha256": "0" * 64} | fields(cases, settings, "", "resnet"), ".")
    network = new_network(about).eval()
    assert sum(isinstance(one, nn.Conv2d) for one in network.modules()) == 12 and network.fc.out_features == 3
    x = torch.randn(1, 1, 40, 40)
    assert network(x).shape == (1, 3)
    assert ClassificationSettings(network="all").networks == tuple(PAPER_CLASSIFIERS)


# ---- a folder --------------------------------------------------------------------------------------------------------


def write_images(folder, count=12, size=20, table=False):
    """8-bit pictures: a bright square on the left or on the right; with a table they lie in one folder, two to a patient."""
    folder.mkdir(parents=True)
    rows = []
    for n in range(2 * count):
        rng, side = np.random.default_rng(n), ("left", "right")[n % 2]
        array = rng.integers(20, 90, (size, size)).astype(np.uint8)
        x = rng.integers(1, 4) + (size // 2 if side == "right" else 0)
        array[6:12, x : x + 6] += 120
        place = folder / "images" if table else folder / side
        place.mkdir(exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(place / f"{n:02}.png"))
        rows.append((f"{n:02}.png", side, f"p{n // 4}", "TEST" if n < 8 else "train"))
    if table:
        with (folder / "labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("image", "side", "patient_id", "part"), *rows])
    return folder


def test_a_folder_with_a_folder_for_each_class(tmp_path):
    folder = write_images(tmp_path / "images")
    (folder / "left" / "broken.png").write_bytes(b"no image")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 20, 20), np.uint8)), str(folder / "right" / "thick.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((1, 20, 20), np.uint8)), str(folder / "right" / "thin.nii.gz"))
    cases = run(folder_images(folder, ClassificationSettings(**QUICK)))
    assert cases.labels == ("left", "right") and len(cases.train) + len(cases.test) == 25
    assert set(cases.skipped) == {"left/broken.png", "right/thick.nrrd"}
    assert "3 slices" in cases.skipped["right/thick.nrrd"] and cases.orientation is None
    assert sorted(one.label for one in cases.test) == ["left"] * 3 + ["right"] * 3


def test_a_table_with_patients_and_a_given_split(tmp_path):
    folder = write_images(tmp_path / "images", table=True)
    with (folder / "labels.csv").open("a") as file:
        file.write("missing.png,left,p9,train\n00.png,left,p0,train\n01.png,,p0,train\n")
    settings = ClassificationSettings(**QUICK, label_column="side")
    cases = run(folder_images(folder, settings))
    assert not {one.group for one in cases.train} & {one.group for one in cases.test}
    assert {one.label for one in cases.test} == {"left", "right"} and not cases.notes
    assert sorted(cases.skipped.values()) == ["it has no class", "the table has it twice", "there is no such file"]
    given = run(folder_images(folder, ClassificationSettings(**QUICK, label_column="side", split_column="part")))
    assert sorted(one.name for one in given.test) == [f"{n:02}.png" for n in range(8)]
    text = (folder / "labels.csv").read_text().replace(",TEST", ",val")
    (folder / "labels.csv").write_text(text)
    refused(folder, "No image of the class 'left' is on the test side", label_column="side", split_column="part")


def refused(folder, words, **options):
    with pytest.raises(MedXAIError) as told:
        run(folder_images(folder, ClassificationSettings(**QUICK | options)))
    assert words in told.value.message, told.value.message


def test_refusals(tmp_path):
    refused(tmp_path / "none", "There is no folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no folder with images")
    folder = write_images(tmp_path / "images")
    refused(folder, "no table (labels.csv)", group_column="patient")
    refused(folder, "There is no table 'else.csv'", table="else.csv")
    for path in sorted((folder / "left").iterdir())[1:]:
        path.unlink()
    refused(folder, "The class 'left' has 1 image")
    next((folder / "left").iterdir()).unlink()
    refused(folder, "of one class alone, 'right'")
    table = write_images(tmp_path / "table", table=True)
    refused(table, "no column 'label'")
    refused(table, "no column 'sid' (did you mean 'side'?)", label_column="sid")
    mixed = write_images(tmp_path / "mixed")
    colour = np.random.default_rng(0).integers(0, 255, (20, 20, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), str(mixed / "left" / "colour.png"))
    refused(mixed, "1 of the images are colour pictures and 24 are grey (the first: left/colour.png)")
    with pytest.raises(MedXAIError, match="first value must be the smaller one"):
        ClassificationSettings(window=(5, 1))


# ---- training --------------------------------------------------------------------------------------------------------


def small(network="deeper-bn", seed=0, **options):
    """Images, classes and the fields of a package for `train_classifier`."""
    settings = ClassificationSettings(**QUICK | dict(network=network, checkpoints=2, seed=seed) | options)
    images = torch.cat([picture(n, 16) for n in range(20)])
    labels = torch.arange(20) % 2
    images[labels == 1, :, 4:8, 4:8] += 3
    fields = {
        "name": "small", "task": "classification", "weights": "weights.safetensors",
        "network": {"name": CLASSIFIERS[network], "arguments": {"in_channels": 1, "out_channels": 2, "size": 16, "width": 0.125}},
        "input": {"spatial_dims": 2, "channels": ["image"], "orientation": None, "spacing": None, "size": [16, 16], "fit": "resize", "multiple_of": 1, "intensity": {"kind": "none"}},
        "output": {"labels": ["a", "b"], "activation": "softmax"},
    }  # fmt: skip
    return images, labels, fields, settings


def train_small(folder, state, log=None, stop=None, **options):
    images, labels, fields, settings = small(**options)
    steps = train_classifier(images, labels, folder, fields, settings, settings.network, state, log or Log(None, {}))
    if stop is None:
        return run(steps)
    for _ in range(stop):
        next(steps)
    return steps.close()


@pytest.mark.parametrize("stop", [2, 4, 7, 11])  # of 3 epochs of 3 batches and a step at the end of each
def test_a_stopped_training_ends_with_the_very_same_weights(tmp_path, stop):
    whole = train_small(tmp_path / "whole", tmp_path / "state")
    before = torch.get_rng_state()
    train_small(tmp_path / "stopped", tmp_path / "state2", Log(tmp_path / "log", {}), stop)
    assert not (tmp_path / "stopped").exists() and torch.equal(torch.get_rng_state(), before)
    assert (tmp_path / "state2/state.safetensors").exists() == (stop >= 4)
    torch.rand(7)  # what else is drawn in between does not matter
    again = train_small(tmp_path / "stopped", tmp_path / "state2", log := Log(tmp_path / "log2", {}))
    assert whole.sha256 == again.sha256
    for name in ("epoch-2", "epoch-3"):
        one, other = (load_file(p.folder / f"checkpoints/{name}.safetensors") for p in (whole, again))
        assert all(torch.equal(one[key], other[key]) for key in one)
    epochs = [json.loads(line)["epoch"] for line in log.path.read_text().splitlines()[1:]]
    assert epochs == list(range(1 + stop // 4, 4)), "only what is missing is done"


def test_what_the_seed_and_the_half_precision_change(tmp_path):
    one, same, other = (
        train_small(tmp_path / f"m{n}", tmp_path / f"s{n}", seed=seed) for n, seed in enumerate((1, 1, 2))
    )
    assert one.sha256 == same.sha256 != other.sha256
    half = train_small(tmp_path / "half", tmp_path / "s9", seed=1, half=True)
    first, second = (load_file(p.weights_path) for p in (one, half))
    assert all(torch.equal(first[n].half() if first[n].is_floating_point() else first[n], second[n]) for n in first)


def test_the_package_is_the_trained_network(tmp_path):
    images, labels, *_ = small()
    options = dict(network="shallow", epochs=12)
    package = train_small(tmp_path / "model", tmp_path / "state", Log(tmp_path / "log", {}), **options)
    kept = load_file(tmp_path / "state/state.safetensors")
    weights = load_file(package.weights_path)
    assert weights and all(torch.equal(kept[f"network.{name}"], value) for name, value in weights.items())
    model = load(package.folder, device="cpu")
    with model.frozen(), torch.no_grad():
        assert (model.logits(images).argmax(1) == labels).float().mean() > 0.9
    rows = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()[1:]]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


def test_a_damaged_state_is_told(tmp_path):
    train_small(tmp_path / "model", tmp_path / "state", stop=6)
    (tmp_path / "state/state.safetensors").write_bytes(b"\x08torn")
    with pytest.raises(MedXAIError, match="is damaged; remove"):
        train_small(tmp_path / "model", tmp_path / "state")


def test_a_loss_that_is_not_finite_is_refused(tmp_path):
    images, labels, fields, settings = small()
    steps = train_classifier(
        images * torch.inf, labels, tmp_path / "m", fields, settings, "deeper", tmp_path / "s", Log(None, {})
    )
    with pytest.raises(MedXAIError, match="no longer finite; lower the learning rate"):
        run(steps)


def test_class_weights_count_rare_classes_more():
    from MedXAILib.training.classification import _class_weights

    labels = torch.tensor([0] * 9 + [1] * 3)
    weights = _class_weights(labels)
    assert weights[1] == pytest.approx(3 * float(weights[0])) and float(weights[labels].mean()) == pytest.approx(1)


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_confusion_and_accuracy_against_a_hand_count():
    matrix = confusion([0, 0, 0, 1, 1, 2], [0, 1, 0, 1, 1, 0], 3)
    assert matrix.tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    found = accuracies(matrix, ["a", "b", "c"])
    assert found["accuracy"]["value"] == pytest.approx(4 / 6) and found["accuracy"]["n"] == 6
    assert [one["value"] for one in found["by_class"].values()] == pytest.approx([2 / 3, 1, 0])
    assert found["mean_over_classes"] == pytest.approx(5 / 9) and found["commonest_class"] == 0.5


def test_wilsons_interval():
    one = wilson(8, 10)  # textbook value
    assert (one.low, one.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 5).low == 0 and wilson(5, 5).high == 1 and np.isnan(wilson(0, 0).value)


def test_landmark_shares_of_cases_against_a_hand_count():
    rng = np.random.default_rng(0)
    trained = [{"corners": (0.1, h), "centre": (0.4, 1 - h)} for h in rng.uniform(0.2, 0.4, 12)]
    drawn = [{"corners": (0.1, 0.1), "centre": (0.4, 0.9)} for _ in range(12)]
    trained[3]["lesion"], drawn[3]["lesion"] = (0.02, 0.1), (0.02, np.nan)  # in one case only
    table = landmark_rows(trained, drawn)
    assert table["landmark"] == ["corners", "corners", "centre", "centre", "lesion", "lesion"]
    heat = np.mean([row["corners"][1] for row in trained])
    assert table["weights"][:2] == ["trained", "random"] and table["cases"][0] == 12 and table["cases"][4:] == [1, 0]
    assert table["heat_share"][0] == pytest.approx(heat) and table["ratio"][0] == pytest.approx(heat / 0.1)
    assert table["over_random"][0] == pytest.approx(heat - 0.1) and np.isnan(table["over_random"][1])
    assert table["heat_share_low"][0] < heat < table["heat_share_high"][0]


# ---- the whole -------------------------------------------------------------------------------------------------------


def test_one_network_is_one_package_with_its_figures(tmp_path):
    folder = write_images(tmp_path / "images", table=True)
    settings = ClassificationSettings(**QUICK | dict(network="shallow", label_column="side", epochs=12, checkpoints=2))
    figures = run(train_images(folder, tmp_path / "out", settings))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "model.json", "weights.safetensors", "checkpoints", "figures.json", "cases.csv", "confusion.csv", "epochs.csv",
    }  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "out"]
    model = load(tmp_path / "out", device="cpu")
    assert model.package.input.intensity[0].range == "uint8" and model.labels == ("left", "right")
    cases = run(folder_images(folder, settings))
    with model.frozen(), torch.no_grad():
        answers = [int(model.logits(prepare(model, [one.volume]).x).argmax()) for one in cases.test]
    right = np.mean([model.labels[a] == one.label for a, one in zip(answers, cases.test)])
    assert figures["networks"]["shallow"]["accuracy"]["value"] == pytest.approx(right) and right > 0.7
    with (tmp_path / "out/cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == [model.labels[a] for a in answers]
    assert [row["group"] for row in rows] == [one.group for one in cases.test]
    assert all(abs(float(row["p left"]) + float(row["p right"]) - 1) < 1e-5 for row in rows)
    written = json.loads((tmp_path / "out/figures.json").read_text())
    assert "last epoch" in written["policy"] and written["cases"]["training"] == len(cases.train)
    assert written["command"].startswith("medxai train classification FOLDER --network shallow")


def test_a_stopped_training_is_kept_and_another_is_refused(tmp_path):
    folder = write_images(tmp_path / "images")
    settings = ClassificationSettings(**QUICK)
    whole = run(train_images(folder, tmp_path / "whole", settings))
    steps = train_images(folder, tmp_path / "out", settings)
    while epochs_kept(tmp_path / "out") < 2:
        next(steps)
    steps.close()
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.partial").is_dir()
    for other in (QUICK | {"epochs": 4}, QUICK | {"seed": 1}):
        with pytest.raises(MedXAIError, match=r"2 finished epochs of another training \((images, )?settings differ\)"):
            run(train_images(folder, tmp_path / "out", ClassificationSettings(**other)))
    again = run(train_images(folder, tmp_path / "out", settings))
    assert Package.read(tmp_path / "out").sha256 == Package.read(tmp_path / "whole").sha256
    assert again["networks"]["deeper-bn"]["confusion"] == whole["networks"]["deeper-bn"]["confusion"]
    with (tmp_path / "out/epochs.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    assert not (tmp_path / ".out.partial").exists() and not (tmp_path / "out/.state").exists()


def test_other_images_do_not_go_on_with_it(tmp_path):
    folder = write_images(tmp_path / "images")
    steps = train_images(folder, tmp_path / "out", ClassificationSettings(**QUICK))
    while epochs_kept(tmp_path / "out") < 1:
        next(steps)
    steps.close()
    next((folder / "left").iterdir()).unlink()
    with pytest.raises(MedXAIError, match=r"1 finished epochs of another training \(images differ\)"):
        run(train_images(folder, tmp_path / "out", ClassificationSettings(**QUICK)))


def test_three_networks_with_heat_and_misclassified_cases(tmp_path):
    pytest.importorskip("matplotlib")
    folder = write_images(tmp_path / "images")
    settings = ClassificationSettings(**QUICK | dict(network="all", epochs=1, heat_cases=3, filters=4, show_errors=2))
    figures = run(train_images(folder, tmp_path / "out", settings))
    assert list(figures["networks"]) == ["shallow", "deeper", "deeper-bn"]
    with (tmp_path / "out/landmarks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 * 2 and {row["landmark"] for row in rows} == {"corners", "borders", "centre"}
    for network in figures["networks"]:
        shares = [float(r["heat_share"]) for r in rows if r["network"] == network and r["weights"] == "trained"]
        assert sum(shares) == pytest.approx(1)
        wrong = 1 - figures["networks"][network]["accuracy"]["value"]
        page = tmp_path / "out" / network / "misclassified.png"
        assert page.exists() == (wrong > 0)
        load(tmp_path / "out" / network, device="cpu")
    assert any((tmp_path / "out" / n / "misclassified.png").exists() for n in figures["networks"])
    with (tmp_path / "out/cases.csv").open() as file:
        told = [row["heat centre"] for row in csv.DictReader(file)]
    assert len(told) == 18 and sum(bool(cell) for cell in told) == 9


def test_what_the_package_says_of_intensities(tmp_path):
    folder = write_images(tmp_path / "images")
    cases = run(folder_images(folder, ClassificationSettings(**QUICK)))

    def kind(**options):
        return classifiers.fields(cases, ClassificationSettings(**QUICK | options), "", "deeper")["input"]["intensity"]

    assert kind() == {"kind": "linear", "multiply": 1 / 63.75, "add": -2.0, "range": "uint8"}
    assert kind(intensity="zscore") == {"kind": "zscore", "per_slice": True}
    assert kind(window=(-150, 250)) == {"kind": "window", "low": -150, "high": 250}
    cases.train[0].volume.array.dtype = np.int8
    assert kind()["kind"] == "zscore"


# ---- the phantom -----------------------------------------------------------------------------------------------------


def test_slices_of_a_phantom_differ_by_its_lesions_alone():
    from MedXAILib.demo.classifier import SLICES, SMALLEST, phantom_slices

    both = phantom_slices(1)
    ill, healthy = both[:SLICES], both[SLICES:]
    assert [one.label for one in both] == ["lesion"] * SLICES + ["no lesion"] * SLICES
    assert {one.group for one in both} == {"1"} and len({one.name for one in both}) == 2 * SLICES
    for one, other in zip(ill, healthy):
        lesion, liver = (mask.array > 0 for mask in one.landmarks)
        assert lesion.sum() >= SMALLEST and not (lesion & liver).any() and len(other.landmarks) == 1
        differs = one.volume.array != other.volume.array
        assert one.volume.same_grid(other.volume) and differs[lesion].mean() > 0.9 and differs[~lesion].mean() < 0.2
    (held_out,) = phantom_slices(1001)
    assert held_out.label == "no lesion"


def test_training_on_phantoms_writes_what_intensity_alone_reaches(tmp_path, monkeypatch):
    from MedXAILib.demo import classifier

    def made(seed):
        rng, found = np.random.default_rng(seed), []
        for ill in (True, False) if seed < 1000 else (seed % 2 == 0,):
            array = rng.normal(90, 8, (1, 24, 24)).astype(np.float32)
            mask = np.zeros(array.shape, np.uint8)
            mask[0, 8:14, 8:14] = 1
            array[mask > 0] -= 60 * ill
            matrix = np.diag([-1.0, -1.0, 1.0, 1.0])
            masks = [Volume(mask, matrix, "lesion")] * ill + [Volume(1 - mask if ill else mask | 1, matrix, "liver")]
            found.append(
                Labelled(
                    f"{seed} {ill}", Volume(array, matrix), classifier.CLASSES[ill], str(seed), landmarks=tuple(masks)
                )
            )
        return found

    monkeypatch.setattr(classifier, "phantom_slices", made)
    settings = ClassificationSettings(
        **QUICK | dict(network="shallow", cases=12, test_cases=8, heat_cases=8, filters=4)
    )
    figures = run(classifier.train_phantom_classifier(tmp_path / "out", settings))
    assert figures["threshold"]["accuracy"] == 1 and figures["cases"]["test_by_class"] == {"no lesion": 4, "lesion": 4}
    about = load(tmp_path / "out", device="cpu").package
    assert about.name == "Phantom lesion classifier (shallow)" and about.input.orientation == "PL"
    rows = [(r["landmark"], r["weights"], r["cases"]) for r in figures["networks"]["shallow"]["landmarks"]]
    assert ("lesion", "trained", 4) in rows and ("liver", "random", 8) in rows
    text = (tmp_path / "out/README.md").read_text()
    assert "| heat in the lesion, trained weights, 4 cases (share of the area: 0.062) |" in text and "1.000 |" in text


def test_the_sample_classifier_is_what_its_figures_say():
    from MedXAILib import resources
    from MedXAILib.demo.classifier import phantom_slices

    folder = resources.path("Models/lesion-classifier")
    model = load(folder, device="cpu")
    model.package.verify()
    assert model.package.weights_path.stat().st_size < 400_000 and model.labels == ("no lesion", "lesion")
    found = json.loads((folder / "figures.json").read_text())
    one = found["networks"]["deeper-bn"]
    assert found["cases"]["test"] >= 60 and 0.75 < one["accuracy"]["value"] < 0.97
    assert found["threshold"]["accuracy"] < 0.8 and found["command"] == model.package.about["source"]
    lesion = next(row for row in one["landmarks"] if (row["landmark"], row["weights"]) == ("lesion", "trained"))
    assert lesion["heat_share_low"] > lesion["area_share"] and lesion["over_random_low"] > 0
    answers = probabilities(model, [*phantom_slices(1000), *phantom_slices(1001)])
    assert answers[0, 1] > 0.5 > answers[1, 1]


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    folder = write_images(tmp_path / "images")
    (folder / "left" / "broken.png").write_bytes(b"no image")
    words = ["train", "classification", folder, "--output", tmp_path / "out", "--network", "shallow"]
    words += [w for name, value in QUICK.items() for w in (f"--{name.replace('_', '-')}", value)]
    assert cli.main(words) == 0
    told = capsys.readouterr()
    assert (
        "skipped left/broken.png" in told.err
        and "shallow: accuracy" in told.out
        and "on 6 images kept back" in told.out
    )
    assert cli.main(words) == 1 and "exists already" in capsys.readouterr().err
    assert cli.main(["train", "classification", "--output", tmp_path / "new"]) == 1
    assert "Give either a folder of images or --phantom" in capsys.readouterr().err
    assert cli.main(["train", "classification", "--phantom", "--table", "x.csv", "--output", tmp_path / "new"]) == 1
    assert "--table means nothing with --phantom" in capsys.readouterr().err
    assert cli.main(["train", "classification", folder, "--network", "deep", "--output", tmp_path / "new"]) == 1
    assert "deeper" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_an_interrupt_says_what_is_kept(tmp_path, capsys, monkeypatch):
    folder = write_images(tmp_path / "images")
    words = ["train", "classification", folder, "--output", tmp_path / "out", "--network", "shallow"]
    words += [w for name, value in QUICK.items() for w in (f"--{name.replace('_', '-')}", value)]
    add = Log.add

    def interrupted(self, row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt
        add(self, row)

    monkeypatch.setattr(Log, "add", interrupted)
    assert cli.main(words) == 130
    assert "2 finished epochs are kept" in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.main(words) == 0 and (tmp_path / "out/model.json").exists()
