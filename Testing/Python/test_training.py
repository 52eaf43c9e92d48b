import json
import shlex

import numpy as np
import pytest
import torch

from MedXAILib import cli, io
from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import run
from MedXAILib.models import load, prepare
from MedXAILib.package import Package
from MedXAILib.training.comparison import train_folder, train_segmentation
from MedXAILib.training.saving import command_of
from MedXAILib.training.segmentation import dice, train
from MedXAILib.training.settings import DEMO, SegmentationSettings, TrainingSettings
from MedXAILib.training.slices import Cases, cut, folder_cases
from MedXAILib.volume import Volume

FIELDS = {
    "name": "balls",
    "task": "segmentation",
    "weights": "weights.safetensors",
    "network": {
        "name": "PlainUNet",
        "arguments": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "filters": 4, "levels": 2},
    },
    "input": {
        "spatial_dims": 3, "channels": ["CT"], "orientation": "SPL", "spacing": [2.0, 2.0, 2.0], "size": None, "multiple_of": 2,
        "intensity": {"kind": "linear", "multiply": 0.01, "add": 0.0},
    },
    "output": {"labels": ["background", "ball"], "activation": "softmax"},
}  # fmt: skip
QUICK = DEMO | dict(steps=60, patch=16, learning_rate=0.01)
SMALL = dict(filters=2, epochs=2, checkpoints=2, learning_rate=0.01, size=32)  # an 18-layer network in a second


def ball(seed, flip=False):
    """A bright ball in noise; ``flip`` stores the same patient with i and k running the other way."""
    rng = np.random.default_rng(seed)
    shape = (20, 22, 24)
    middle = [rng.uniform(8, n - 8) for n in shape]
    inside = sum((g - m) ** 2 for g, m in zip(np.indices(shape), middle)) <= 6**2
    array = (rng.normal(0, 60, shape) + 100 * inside).astype(np.float32)
    labels, matrix = inside.astype(np.uint8), np.diag([-2.0, -2.0, 2.0, 1.0])
    if flip:
        array, labels = array[::-1, :, ::-1].copy(), labels[::-1, :, ::-1].copy()
        matrix = matrix @ np.diag([-1.0, 1.0, -1.0, 1.0])
    return Volume(array, matrix, f"ball {seed}"), Volume(labels, matrix, f"ball {seed} labels")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, losses = tmp_path_factory.mktemp("train") / "balls", []
    cases = (ball(n, flip=n % 2 == 1) for n in range(4))
    state = torch.get_rng_state()
    package = run(
        train(cases, folder, FIELDS, TrainingSettings(**QUICK)),
        lambda step: losses.extend(point.values["loss"] for point in step.points),
    )
    assert torch.equal(torch.get_rng_state(), state)
    return package, losses


def test_the_loss_falls(trained):
    _, losses = trained
    assert len(losses) == QUICK["steps"] and np.mean(losses[-8:]) < 0.5 * np.mean(losses[:8])


@pytest.mark.parametrize("flip", [False, True])
def test_the_package_segments_a_case_it_has_not_seen(trained, flip):
    package, _ = trained
    assert package.weights_path.stat().st_size < 100_000
    model = load(package.folder, device="cpu")
    image, labels = ball(100, flip)
    prepared = prepare(model, [image])
    with model.frozen(), torch.no_grad():
        found = model.logits(prepared.x).argmax(1)[0].numpy() == 1
    patch = prepared.mask(found, (0, 0, 0))
    output = np.zeros(image.shape, bool)
    output[patch.box] = patch.array > 0
    true = labels.array > 0
    assert dice(image.array > 50, true) < 0.7  # the best threshold, as the noise is symmetric
    assert dice(output, true) > 0.8


def test_a_training_is_a_generator_that_can_be_stopped(tmp_path):
    steps = train([ball(0)], tmp_path / "model", FIELDS, TrainingSettings(**QUICK))
    state = torch.get_rng_state()
    fractions = [next(steps).fraction for _ in range(6)]
    assert fractions == sorted(fractions) and 0 < fractions[-1] < 1
    steps.close()
    assert torch.equal(torch.get_rng_state(), state) and not list(tmp_path.iterdir())


def test_the_same_seed_gives_the_same_weights(tmp_path):
    packages = [
        run(train([ball(0)], tmp_path / str(n), FIELDS, TrainingSettings(**QUICK | {"steps": 3, "seed": seed})))
        for n, seed in enumerate((5, 5, 6))
    ]
    assert packages[0].sha256 == packages[1].sha256 != packages[2].sha256


def test_refusals(tmp_path):
    def refused(cases, fields=FIELDS, folder=tmp_path / "model", **options):
        with pytest.raises(MedXAIError) as told:
            run(train(cases, folder, fields, TrainingSettings(**QUICK | options)))
        assert not (tmp_path / "model").exists()
        return told.value.message

    image, labels = ball(0)
    assert "exists already" in refused([ball(0)], folder=tmp_path)
    assert "no case" in refused([])
    assert "not on the grid" in refused([(image, Volume(labels.array, np.eye(4), "labels"))])
    assert "holds the values 0, 3" in refused([(image, labels.with_array(labels.array * 3))])
    assert "softmax" in refused([ball(0)], FIELDS | {"output": {"labels": ["ball"], "activation": "sigmoid"}})
    wrong = json.loads(json.dumps(FIELDS))
    wrong["network"]["arguments"]["out_channels"] = 5
    assert "gives 5 channels and the package names 2 labels" in refused([ball(0)], wrong)


def test_checkpoints_are_evenly_spaced_and_the_last_is_the_network(tmp_path):
    from safetensors.torch import load_file

    settings = TrainingSettings(epochs=6, batch=2, checkpoints=3, learning_rate=0.01)
    points = []
    package = run(
        train([ball(0), ball(1), ball(2)], tmp_path / "model", FIELDS, settings),
        lambda step: points.extend(step.points),
    )
    assert len(points) == 6 * 2  # three images in batches of two
    names = sorted(p.name for p in (package.folder / "checkpoints").iterdir())
    assert names == ["epoch-2.safetensors", "epoch-4.safetensors", "epoch-6.safetensors"]
    first, last = (load_file(package.folder / "checkpoints" / names[n]) for n in (0, -1))
    final = load_file(package.weights_path)
    assert all(torch.equal(final[name], last[name]) for name in final)
    assert not all(torch.equal(final[name], first[name]) for name in final)
    network = load(package.folder, device="cpu").module
    network.load_state_dict(first)
    package.verify()
    settings = TrainingSettings(**QUICK | {"steps": 4, "checkpoints": 2})
    package = run(train([ball(0)], tmp_path / "steps", FIELDS, settings))
    assert {p.name for p in (package.folder / "checkpoints").iterdir()} == {"step-2.safetensors", "step-4.safetensors"}


def test_the_learning_rate_is_halved_every_so_many_epochs(tmp_path, monkeypatch):
    rates, step = [], torch.optim.Adam.step

    def spied(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", spied)
    settings = TrainingSettings(epochs=3, batch=1, halve_every=1, learning_rate=0.01, checkpoints=0)
    run(train([ball(0), ball(1)], tmp_path / "model", FIELDS, settings))
    assert rates == [0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025] and not (tmp_path / "model/checkpoints").exists()


def test_the_defaults_are_the_papers():
    one = SegmentationSettings()
    assert (one.learning_rate, one.halve_every, one.epochs, one.batch, one.filters) == (1e-4, 20, 50, 10, 64)
    assert one.loss == "cross-entropy" and not one.patch and not one.flip and not one.noise


def test_the_ability_loss_is_part_of_the_training(tmp_path):
    settings = TrainingSettings(**QUICK | {"steps": 3, "ability_loss": True, "layers": ("down.0.5",)})
    points = []
    run(train([ball(0)], tmp_path / "model", FIELDS, settings), lambda step: points.extend(step.points))
    assert all(0 < point.values["ability loss"] < point.values["loss"] for point in points)
    with pytest.raises(MedXAIError, match=r"no layer 'down.0.55' .did you mean"):
        settings = TrainingSettings(**QUICK | {"ability_loss": True, "layers": ("down.0.55",)})
        run(train([ball(0)], tmp_path / "other", FIELDS, settings))


def write_folder(folder, cases=5):
    """Balls as NIfTI pairs; one stored the other way round, one whose mask is empty, one too small, one that is no image."""
    folder.mkdir()
    for n in range(cases):
        image, labels = ball(n, flip=n == 1)
        io.write_volume(folder / f"case{n}.nii.gz", image)
        io.write_volume(folder / f"case{n}_mask.nii.gz", labels)
    image, labels = ball(9)
    io.write_volume(folder / "empty.nii.gz", image)
    io.write_volume(folder / "empty_mask.nii.gz", labels.with_array(labels.array * 0))
    io.write_volume(folder / "small.nii.gz", image.crop((0, 0, 0), (20, 15, 24)))
    io.write_volume(folder / "small_mask.nii.gz", labels.crop((0, 0, 0), (20, 15, 24)))
    (folder / "broken.nii.gz").write_bytes(b"no image")
    io.write_volume(folder / "broken_mask.nii.gz", labels)
    return folder


def test_slices_hold_the_object_and_come_from_one_side_of_the_split(tmp_path):
    folder = write_folder(tmp_path / "cases")
    cases = run(folder_cases(folder, SegmentationSettings(slices=3, test_share=0.4)))
    assert len(cases.train) == 3 and len(cases.test) == 2 and set(cases.skipped) == {"empty", "broken", "small"}
    assert all(cases.skipped.values()) and cases.orientation == "PL"
    assert len({case.name for case in cases.train + cases.test}) == 5
    for case in cases.train + cases.test:
        areas = [int(labels.array.sum()) for _, labels in case.pairs]
        assert len(areas) == 3 and min(areas) > 0 and areas == sorted(areas, reverse=True)
        assert all(image.same_grid(labels) and image.shape[0] == 1 for image, labels in case.pairs)
    whole = ball(0)
    (one,) = [case for case in cases.train + cases.test if case.name == "case0"]
    assert np.allclose(one.pairs[0][0].array[0], whole[0].array[one.k[0]])
    assert np.allclose(one.pairs[0][0].index_to_ras((0, 2, 3)), whole[0].index_to_ras((one.k[0], 2, 3)))


def test_train_folder_compares_without_and_with(tmp_path):
    folder = write_folder(tmp_path / "cases", cases=4)  # and the small one, which is resized
    settings = SegmentationSettings(**SMALL, slices=2, ability_loss=True, seeds=2, test_share=0.4, batch=3)
    figures = run(train_folder(folder, tmp_path / "out", settings))
    for training in ("without", "with"):
        for seed in (0, 1):
            place = tmp_path / "out" / training / f"seed-{seed}"
            package = Package.read(place)
            package.verify()
            assert package.output.labels == ("background", "object") and len(list(place.glob("checkpoints/*"))) == 2
            assert str(tmp_path) not in (place / "model.json").read_text("utf-8")
    lines = {
        name: (tmp_path / "out" / f"{name}.csv").read_text("utf-8").splitlines()
        for name in ("layers", "cases", "table1", "table3")
    }
    assert len(lines["layers"]) == 19 and len(lines["cases"]) == 1 + 2 * 2 * 2
    assert [line.split(",")[0] for line in lines["table1"]] == ["training", "without", "with"]
    header, without, _ = (line.split(",") for line in lines["table3"])
    row = dict(zip(header[1:], map(float, without[1:])))
    assert row["m(d)"] == pytest.approx(row["B"] - row["S_x"])
    assert json.loads((tmp_path / "out/figures.json").read_text("utf-8"))["cases"]["skipped"].keys() == {
        "empty",
        "broken",
    }
    for name in ("output", "last_layer", "all_layers"):
        difference = figures["with_minus_without"][name]
        assert difference["low"] <= difference["mean"] <= difference["high"] and len(difference["by_seed"]) == 2
        assert difference["mean"] == pytest.approx(figures["with"][name]["mean"] - figures["without"][name]["mean"])


def test_sa_scores_are_those_of_the_last_rectifier(tmp_path):
    from MedXAILib.methods.prototypes import Interpolation, separation

    image, labels = (  # 32 × 32: nothing is padded
        Volume(one.array.repeat(2, 1).repeat(2, 2), one.ijk_to_ras).crop((0, 6, 8), (20, 38, 40)) for one in ball(0)
    )
    case = cut("ball", image, labels.array > 0, 1)
    settings = SegmentationSettings(**SMALL | {"size": 0})
    figures = run(train_segmentation(Cases([case], [case], "PL"), tmp_path / "model", settings, "medxai"))
    model = load(tmp_path / "model", device="cpu")
    x, true = prepare(model, [case.pairs[0][0]]).x, case.pairs[0][1].array[0] > 0
    outputs = []
    hook = model.module.merge[-1][-1].register_forward_hook(lambda m, i, o: outputs.append(o.clone()))
    with model.frozen(), torch.no_grad():
        soft = model.module(x).softmax(1)
        features = outputs[0]
        apart = separation(features, Interpolation().adjoint(soft, features.shape[2:]))
    hook.remove()
    assert figures["without"]["last_layer"]["mean"] == pytest.approx(dice(apart[0, 0].numpy() > 0, true), abs=0.01)
    assert figures["without"]["output"]["mean"] == pytest.approx(dice(soft[0, 1].numpy() > 0.5, true))
    names = {p.name for p in (tmp_path / "model").iterdir()}
    assert names == {"model.json", "weights.safetensors", "checkpoints", "figures.json", "layers.csv", "cases.csv"}


def test_a_comparison_that_is_stopped_leaves_nothing(tmp_path):
    case = cut("ball", ball(0)[0], ball(0)[1].array > 0, 1)
    settings = SegmentationSettings(**SMALL, ability_loss=True)
    steps = train_segmentation(Cases([case], [case], "PL"), tmp_path / "out", settings, "medxai")
    fractions = []
    for step in steps:
        fractions.append(step.fraction)
        if step.fraction > 0.6:
            break
    steps.close()
    assert fractions == sorted(fractions) and not list(tmp_path.iterdir())


def test_refusals_of_slices(tmp_path, capsys):
    folder = write_folder(tmp_path / "cases", cases=1)
    with pytest.raises(
        MedXAIError, match=r"1 of the 4 cases in .* can be used .the first skipped: .*at least 2 are needed"
    ):
        run(folder_cases(folder, SegmentationSettings()))
    one, other = (
        cut("a", ball(0)[0], ball(0)[1].array > 0),
        cut("b", ball(0)[0].crop((0, 0, 0), (20, 16, 16)), np.ones((20, 16, 16))),
    )
    with pytest.raises(MedXAIError, match=r"different sizes \(16 × 16, 32 × 32\)"):
        run(
            train_segmentation(
                Cases([one, other], [], "PL"), tmp_path / "out", SegmentationSettings(filters=1), "medxai"
            )
        )
    for arguments, told in (
        (["--phantom", str(folder)], "either a folder"),
        ([], "either a folder"),
        (["--phantom", "--test-share", "0.1"], "--test-share means nothing with --phantom"),
        (["--phantom", "--preset", "demo", "--filters", "4"], "--filters means nothing with --preset demo"),
        ([str(folder), "--preset", "demo"], "trains on --phantom alone"),
        ([str(folder), "--cases", "4"], "--cases means nothing with a folder"),
        ([str(folder), "--epoch", "4"], "1 of the 4 cases"),
        (["--phantom", "--segment", "spleen"], "no label 'spleen'"),
        (["--phantom", "--size", "24"], "--size is 24"),
    ):
        assert cli.main(["train", "segmentation", *arguments, "--output", str(tmp_path / "out")]) == 1, arguments
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_phantom_slices_train_by_the_command(tmp_path, monkeypatch, capsys):
    from MedXAILib.demo import phantom, train

    monkeypatch.setattr(train, "case", lambda seed: phantom.case(seed, True, (32, 48, 48), (6.0, 6.0, 6.0)))
    out = tmp_path / "out"
    command = "--phantom --cases 2 --test-cases 2 --slices 1 --epochs 1 --filters 2 --size 32 --checkpoints 1".split()
    assert cli.main(["train", "segmentation", *command, "--output", str(out)]) == 0
    assert "mean Dice on test cases" in capsys.readouterr().out
    figures = json.loads((out / "figures.json").read_text("utf-8"))
    assert figures["cases"]["test"] == 2 and 0 < figures["threshold"]["lesion_dice"] < 1
    assert "phantom-1001" in (out / "cases.csv").read_text("utf-8")
    package = Package.read(out)
    assert package.output.labels == ("background", "lesion") and package.about["source"] == figures["command"]


def test_the_command_that_is_recorded_is_the_command():
    settings = SegmentationSettings(
        layers=("down.0.5", "down.1.5"), window=(-150, 250), ability_loss=True, epochs=3, segment="a lesion"
    )
    told = command_of(settings, "--phantom")
    options = cli._parse(shlex.split(told)[1:])
    names = [one.name for one in cli.settings.about(SegmentationSettings)]
    assert SegmentationSettings(**{k: v for k, v in vars(options).items() if k in names}) == settings


def test_dice():
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert dice(a, b) == 0.5 and dice(a, a) == 1 and np.isnan(dice(a & ~a, b & ~b))
