import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import nn

from MedXAILib import cli
from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import run
from MedXAILib.models import load
from MedXAILib.models.networks import NETWORKS
from MedXAILib.package import Package, write_package
from MedXAILib.resume import Log
from MedXAILib.training.holes import _cluster, blocks, random_holes
from MedXAILib.training.images import kept_back
from MedXAILib.training.inpainter_judging import auc, components, covered, judge_inpainter, roc
from MedXAILib.training.inpainters import epochs_kept, healthy_images, levels_of, train_folder
from MedXAILib.training.inpainting import Healthy, train_inpainter
from MedXAILib.training.inpainting_losses import FeatureLoss, dilated, gram, inpainting_losses, weighted
from MedXAILib.training.settings import InpainterSettings

QUICK = dict(width=0.1, epochs=2, second_epochs=2, learning_rate=0.003, second_learning_rate=0.001, checkpoints=4, batch=4)  # fmt: skip


def pixels(seed, shape=(32, 32), smooth=6.0):
    """A smooth image, uint8."""
    array = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth)
    return np.round((array - array.min()) / np.ptp(array) * 255).astype(np.uint8)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def write_images(folder, count=12, shape=(32, 32)):
    for n in range(count):
        write(folder / f"{n:02}.{'png' if len(shape) == 2 else 'nrrd'}", pixels(n, shape))
    return folder


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


# ---- holes -----------------------------------------------------------------------------------------------------------


def test_as_many_blocks_as_in_the_paper_and_fewer_in_small_images():
    settings = InpainterSettings()
    assert blocks((576, 448), settings) == (8, 400)
    assert blocks((256, 256), settings) == (8, 256)  # a quarter of the image
    assert blocks((32, 32), settings) == (8, 4)
    assert blocks((12, 12), settings) == (6, 1)  # a block of 8 would exceed a quarter
    assert blocks((64, 64, 64), settings) == (8, 128)
    shares = [random_holes((576, 448), settings, np.random.default_rng(n)).sum() for n in range(40)]
    assert max(shares) <= 400 * 64 and max(shares) > 200 * 64 and min(shares) < 80 * 64


@pytest.mark.parametrize("shape", [(32, 32), (12, 9), (576, 40), (20, 24, 28), (2, 2)])
def test_holes_never_exceed_their_share_and_follow_the_seed(shape):
    settings = InpainterSettings()
    for seed in range(60):
        hole = random_holes(shape, settings, np.random.default_rng(seed))
        assert hole.dtype == bool and hole.shape == shape and 0 < hole.mean() <= settings.largest
        assert np.array_equal(hole, random_holes(shape, settings, np.random.default_rng(seed)))
    several = {random_holes(shape, settings, np.random.default_rng(n)).tobytes() for n in range(60)}
    assert len(several) > 3


def test_blocks_lie_anywhere_the_borders_included():
    settings = InpainterSettings(holes=1)
    seen = sum(random_holes((40, 40), settings, np.random.default_rng(n)).astype(int) for n in range(2000))
    assert seen.min() > 0 and seen[0, 0] < seen[20, 20]
    assert random_holes((40, 40), settings, np.random.default_rng(0)).sum() == 64


@pytest.mark.parametrize("shape", [(160, 128), (60, 64, 72)])
def test_clusters_touch_and_keep_to_their_reach(shape):
    reach, touch = (32 if len(shape) == 2 else 16), np.ones((3,) * len(shape))

    def parts(seed, **options):
        hole = random_holes(shape, InpainterSettings(**options), np.random.default_rng(seed))
        return hole.sum(), ndimage.find_objects(ndimage.label(hole, touch)[0])

    seen = [parts(seed, holes=2, clusters=1) for seed in range(60)]  # one block, or a cluster of two
    assert all(len(boxes) == 1 for _, boxes in seen)
    assert {int(count) for count, _ in seen} == {8 ** len(shape), 2 * 8 ** len(shape)}  # side by side, none on another
    assert {b.stop - b.start for _, boxes in seen for b in boxes[0]} == {8, 16}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        free = np.array(shape) - 8
        placed = np.array(_cluster(rng.integers(0, free + 1), 6, 8, reach, free, rng))
        steps = (placed[:, None] - placed) / 8
        assert (
            len(placed) > 1 and (placed >= 0).all() and (placed <= free).all() and np.ptp(placed, 0).max() <= reach - 8
        )
        assert all((np.abs(steps[n, :n]).sum(1) == 1).any() for n in range(1, len(placed)))  # beside an earlier one
        assert len(np.unique(placed, axis=0)) == len(placed)
    alone, together = ([len(parts(n, holes=12, clusters=c)[1]) for n in range(40)] for c in (0, 1))
    assert np.mean(alone) > 2 * np.mean(together)


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_losses_against_a_hand_count():
    true = torch.zeros(1, 1, 4, 4)
    hole = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    hole[..., 0, 0] = True
    made = torch.full_like(true, 0.5)
    made[..., 0, 0] = -2.0
    found = inpainting_losses(made, true, hole)
    assert float(found["valid"]) == pytest.approx(15 * 0.5 / 16) and float(found["hole"]) == pytest.approx(2 / 16)
    # dilated: the 2 × 2 in the corner; filled is -2 in the corner and 0 else: one step of 2 to the right, one down
    assert dilated(hole).nonzero().tolist() == [[0, 0, a, b] for a in (0, 1) for b in (0, 1)]
    assert float(found["tv"]) == pytest.approx(4 / 16)
    settings = InpainterSettings()
    assert float(weighted(found, settings)) == pytest.approx(15 / 32 + 6 * 2 / 16 + 0.1 * 4 / 16)
    assert [getattr(settings, f"{n}_weight") for n in ("perceptual", "style")] == [0.05, 120]


def test_losses_are_nothing_for_the_image_itself_and_ignore_what_does_not_count():
    true, hole = torch.randn(2, 1, 6, 7, 8), torch.rand(2, 1, 6, 7, 8) < 0.3
    found = inpainting_losses(true, true, hole)
    assert found["valid"] == found["hole"] == 0 and found["tv"] > 0
    full = inpainting_losses(true + 1, true, torch.ones_like(hole))
    assert full["valid"] == 0 and float(full["hole"]) == pytest.approx(1)
    steps = sum(float(true.diff(dim=axis).abs().sum()) for axis in (2, 3, 4))
    assert float(full["tv"]) == pytest.approx(steps / true.numel(), rel=1e-5)
    none = inpainting_losses(true + 1, true, torch.zeros_like(hole))
    assert none["hole"] == none["tv"] == 0 and float(none["valid"]) == pytest.approx(1)


def test_gram_matrix():
    features = torch.randn(3, 4, 5)
    expected = [[float((a * b).sum()) / 60 for b in features] for a in features]
    assert torch.allclose(gram(features), torch.tensor(expected), atol=1e-6)


class Twice(nn.Module):
    """A convolution by hand: its block gives relu(2 x) and relu(−x), then the class scores."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.head = nn.Conv2d(2, 2, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([2.0, -1.0]).reshape(2, 1, 1, 1))

    def forward(self, x):
        return self.head(torch.relu(self.conv(x))).mean((2, 3))


INPUT = {
    "spatial_dims": 2, "channels": ["image"], "orientation": None, "spacing": None, "size": None, "multiple_of": 1, "intensity": {"kind": "none"},
}  # fmt: skip


def program(folder, module, **changes):
    """A TorchScript package, which has to be trusted."""
    fields = {
        "name": folder.name, "task": "classification", "weights": "weights.ts", "input": INPUT | changes,
        "output": {"labels": ["no finding", "finding"], "activation": "softmax"},
    }  # fmt: skip
    return write_package(folder, fields, lambda path: torch.jit.save(torch.jit.script(module), str(path)))


def test_perceptual_and_style_loss_by_hand_through_a_program(tmp_path):
    package = program(tmp_path / "twice", Twice())
    model = load(package.folder, "cpu", {package.sha256})
    loss = FeatureLoss(model, ("1",), (2, 2))
    assert [one.path for one in loss.layers] == [one.path for one in FeatureLoss(model, (), (2, 2)).layers] == ["conv"]
    true, hole = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    hole[..., 0, 0] = True
    made = (true + 1).requires_grad_()
    same = torch.tensor([[1.0, 0.0, -np.inf, np.inf]])
    found = loss(made, true, hole, same)
    # features: made (4, 0), filled 4 in the hole and 2 else, true 2. L1 of all 8 values: made 2·4 / 8, filled 2 / 8
    assert float(found["perceptual"].detach()) == pytest.approx(1 + 0.25)
    # Gram: K = 1 / 8; made 64 / 8, filled (16 + 12) / 8, true 16 / 8; L1 over 4 entries
    assert float(found["style"].detach()) == pytest.approx((48 + 12) / 8 / 4)
    (slope,) = torch.autograd.grad(found["perceptual"], made)
    assert slope.flatten().tolist() == pytest.approx([0.5, 0.25, 0.25, 0.25])
    other = loss(
        made.detach(), true, hole, torch.tensor([[-1.0, 0.0, -1.5, np.inf]])
    )  # −2 is clipped at −1.5, and the second filter sees it
    assert float(other["perceptual"]) == pytest.approx(4 * 0.5 / 8 + 0.5 / 8)
    one = loss(torch.cat([made.detach(), true]), torch.cat([true] * 2), torch.cat([hole] * 2), same.repeat(2, 1))
    assert float(one["perceptual"]) == pytest.approx(1.25 / 2)  # a mean over images


# ---- training --------------------------------------------------------------------------------------------------------


def small(**options):
    settings = InpainterSettings(**QUICK | options)
    images = [Healthy(torch.from_numpy(pixels(n, (16, 16)).astype(np.float32) / 64 - 2)[None], torch.tensor([1.0, 0.0, -np.inf, np.inf])) for n in range(10)]  # fmt: skip
    fields = {
        "name": "small", "task": "inpainting", "weights": "weights.safetensors",
        "network": {"name": "PartialUNet", "arguments": {"spatial_dims": 2, "channels": 1, "levels": 3, "width": 0.1}},
        "input": INPUT, "output": {"labels": ["image"], "activation": "none"},
    }  # fmt: skip
    return images, fields, settings


def train_small(folder, state, log=None, stop=None, shape=(16, 16), **options):
    images, fields, settings = small(**options)
    steps = train_inpainter(images[:8], images[8:], folder, fields, settings, shape, state, log or Log(None, {}))
    if stop is None:
        return run(steps)
    for _ in range(stop):
        next(steps)
    return steps.close()


@pytest.mark.parametrize("options", [{}, {"patience": 1, "flip": True}])
@pytest.mark.parametrize(
    "stop", [2, 3, 5, 6, 7, 11]
)  # each epoch has 2 batches and a step at its end; phase 2 from the 7th
def test_a_stopped_training_ends_with_the_very_same_weights(tmp_path, stop, options):
    options = options | dict(epochs=2 if not options else 6)
    whole = train_small(tmp_path / "whole", tmp_path / "state", first := Log(tmp_path / "log1", {}), **options)
    before = torch.get_rng_state()
    train_small(tmp_path / "stopped", tmp_path / "state2", Log(tmp_path / "log2", {}), stop, **options)
    assert not (tmp_path / "stopped").exists() and torch.equal(torch.get_rng_state(), before)
    torch.rand(7)  # what else is drawn in between does not matter
    again = train_small(tmp_path / "stopped", tmp_path / "state2", log := Log(tmp_path / "log3", {}), **options)
    assert whole.sha256 == again.sha256
    for path in (whole.folder / "checkpoints").iterdir():
        one, other = load_file(path), load_file(again.folder / "checkpoints" / path.name)
        assert all(torch.equal(one[key], other[key]) for key in one)
    rows, later = ([json.loads(line) for line in one.path.read_text().splitlines()[1:]] for one in (first, log))
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in some] for some in (rows, later)]
    assert strip[0][-len(later) :] == strip[1] and len(later) == len(rows) - stop // 3, "only what is missing is done"


def test_the_second_phase_leaves_the_encoders_normalisation_alone(tmp_path):
    package = train_small(tmp_path / "model", tmp_path / "state", epochs=1, checkpoints=3)
    first, last = (load_file(package.folder / f"checkpoints/epoch-{n}.safetensors") for n in (1, 3))
    assert all(torch.equal(load_file(package.weights_path)[name], value) for name, value in last.items())
    held = [name for name in first if name.startswith("encoder") and ".norm." in name]
    assert len(held) == 2 * 5 and all(torch.equal(first[name], last[name]) for name in held)
    moved = [name for name in first if not torch.equal(first[name], last[name])]
    assert {"decoder.0.norm.weight", "decoder.0.norm.running_mean", "encoder.1.conv.weight"} <= set(moved)
    assert not torch.equal(first["encoder.1.norm.running_mean"], torch.zeros_like(first["encoder.1.norm.running_mean"]))


def test_with_patience_a_phase_ends_early_and_the_best_weights_count(tmp_path):
    settings = dict(epochs=40, second_epochs=3, patience=2, learning_rate=0.3, checkpoints=43)
    package = train_small(tmp_path / "model", tmp_path / "state", log := Log(tmp_path / "log", {}), **settings)
    rows = [json.loads(line) for line in log.path.read_text().splitlines()[1:]]
    losses = [row["kept_back_loss"] for row in rows]
    phases = [row["phase"] for row in rows]
    assert phases.count(1) < 40 and set(phases) == {1, 2}
    best = rows[int(np.argmin(losses))]
    kept = load_file(package.folder / f"checkpoints/epoch-{best['epoch'] + 40 * (best['phase'] - 1)}.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in load_file(package.weights_path).items())


def test_seed_half_precision_and_no_second_phase(tmp_path):
    one, same, other = (train_small(tmp_path / f"m{n}", tmp_path / f"s{n}", seed=s, epochs=1) for n, s in enumerate((1, 1, 2)))  # fmt: skip
    assert one.sha256 == same.sha256 != other.sha256
    half = train_small(tmp_path / "half", tmp_path / "s9", seed=1, epochs=1, half=True)
    first, second = (load_file(p.weights_path) for p in (one, half))
    assert all(torch.equal(first[n].half() if first[n].is_floating_point() else first[n], second[n]) for n in first)
    train_small(tmp_path / "one", tmp_path / "s8", log := Log(tmp_path / "log", {}), second_epochs=0, epochs=2)
    assert [json.loads(line)["phase"] for line in log.path.read_text().splitlines()[1:]] == [1, 1]


def test_a_damaged_state_and_a_loss_that_is_not_finite_are_told(tmp_path):
    train_small(tmp_path / "model", tmp_path / "state", stop=4)
    (tmp_path / "state/state.safetensors").write_bytes(b"\x08torn")
    with pytest.raises(MedXAIError, match="is damaged; remove"):
        train_small(tmp_path / "model", tmp_path / "state")
    images, fields, settings = small()
    images = [one._replace(x=one.x * torch.nan) for one in images]
    steps = train_inpainter(images, images, tmp_path / "m", fields, settings, (16, 16), tmp_path / "s", Log(None, {}))
    with pytest.raises(MedXAIError, match="training loss is no longer finite; lower the learning rate"):
        run(steps)
    steps = train_inpainter(small()[0], images, tmp_path / "m", fields, settings, (16, 16), tmp_path / "s", Log(None, {}))  # fmt: skip
    with pytest.raises(MedXAIError, match="loss on the images kept back is no longer finite"):
        run(steps)


def test_levels_leave_more_than_one_pixel():
    def levels(*shape, **options):
        return levels_of(shape, InpainterSettings(**options))

    assert levels(576, 448) == 8 and levels(256, 256) == 7 and levels(32, 32) == 4 and levels(64, 32) == 4
    assert levels(32, 32, 32) == 4 and levels(8, 8) == 2 and levels(32, 32, levels=3) == 3 and levels(2, 2) == 1
    with pytest.raises(MedXAIError, match="--levels is 5, which leaves one pixel of images of 32 × 32; give at most 4"):
        levels(32, 32, levels=5)


# ---- a folder --------------------------------------------------------------------------------------------------------


def test_it_learns_to_fill_smooth_images_better_than_their_mean(tmp_path):
    folder = write_images(tmp_path / "healthy")
    settings = InpainterSettings(width=0.125, epochs=30, second_epochs=5, batch=2, learning_rate=0.003, second_learning_rate=0.0005, validation_share=0.25)  # fmt: skip
    figures = run(train_folder(folder, tmp_path / "out", settings))
    made, mean = (figures["hole_error"][name] for name in ("inpainted", "mean"))
    assert made["n"] == 3 and made["value"] < 0.6 * mean["value"]
    names = {p.name for p in (tmp_path / "out").iterdir()} - {"examples.png"}
    assert names == {"model.json", "weights.safetensors", "checkpoints", "figures.json", "epochs.csv"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["healthy", "out"]
    package = Package.read(tmp_path / "out")
    assert package.task == "inpainting" and package.input.size is None and "9 images of 32 × 32" in package.about["description"]  # fmt: skip
    assert package.network.arguments == {"spatial_dims": 2, "channels": 1, "levels": 4, "width": 0.125}
    assert package.input.intensity[0].range == "uint8" and package.output.labels == ("image",)
    rows = rows_of(tmp_path / "out/epochs.csv")
    assert [row["phase"] for row in rows] == ["1"] * 30 + ["2"] * 5 and float(rows[-1]["loss"]) < float(rows[0]["loss"])
    written = json.loads((tmp_path / "out/figures.json").read_text())
    assert written["images"] == {"training": 9, "kept_back": 3, "kept_back_groups": 3, "skipped": {}}
    assert "last epoch" in written["policy"] and written["command"].startswith("medxai train inpainter FOLDER --width 0.125 --epochs 30")  # fmt: skip


def test_the_picture_of_examples(tmp_path):
    pytest.importorskip("matplotlib")
    run(train_folder(write_images(tmp_path / "healthy"), tmp_path / "out", InpainterSettings(**QUICK)))
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out/examples.png")))
    assert picture.shape[1] == 600 and picture.std() > 10


def test_a_stopped_training_of_a_folder_is_kept_and_another_is_refused(tmp_path):
    folder = write_images(tmp_path / "healthy")
    settings = InpainterSettings(**QUICK)
    run(train_folder(folder, tmp_path / "whole", settings))
    steps = train_folder(folder, tmp_path / "out", settings)
    while epochs_kept(tmp_path / "out") < 3:
        next(steps)
    steps.close()
    with pytest.raises(MedXAIError, match=r"3 finished epochs of another training \(settings differ\)"):
        run(train_folder(folder, tmp_path / "out", InpainterSettings(**QUICK | {"holes": 3})))
    run(train_folder(folder, tmp_path / "out", settings))
    one, other = (Package.read(tmp_path / name) for name in ("whole", "out"))
    assert one.sha256 == other.sha256 and not (tmp_path / "out/.state").exists()
    assert [row["epoch"] for row in rows_of(tmp_path / "out/epochs.csv")] == ["1", "2", "1", "2"]


def test_what_is_skipped_and_what_volumes_give(tmp_path):
    folder = write_images(tmp_path / "healthy", 7)
    (folder / "broken.png").write_bytes(b"no image")
    write(folder / "flat.png", np.full((32, 32), 7, np.uint8))
    thick = np.stack([pixels(n) for n in range(4)])
    thick[2] = 9
    write(folder / "deep" / "thick.nrrd", thick)
    found = run(healthy_images(folder, InpainterSettings()))
    assert set(found.skipped) == {"broken.png", "flat.png"} and found.skipped["flat.png"] == "it has one value only"
    names = [one.name for one in found.images]
    assert len(names) == 10 and [one.slice for one in found.images if one.slice] == ["k:0", "k:1", "k:3"]
    back = kept_back(found.images, InpainterSettings(validation_share=0.3))
    thick = {bool(b) for one, b in zip(found.images, back) if one.slice}
    assert len(thick) == 1 and 3 <= back.sum() <= 5  # slices of a volume stay together
    alone = found.images[-3:]
    assert len({one.group for one in found.images if one.slice}) == 1 and alone
    assert kept_back([one for one in found.images if one.slice], InpainterSettings()).sum() == 1


def table(folder, count=12):
    rows = ["image,finding,patient_id,split"]
    for n in range(2 * count):
        write(folder / "images" / f"{n:02}.png", pixels(n))
        rows.append(f"{n:02}.png,{'No Finding' if n % 2 else 'Mass'},p{n // 4},{'TEST' if n >= 20 else 'train'}")
    (folder / "labels.csv").write_text("\n".join([*rows, "missing.png,No Finding,p99,train"]) + "\n")
    return folder


def test_a_table_selects_rows(tmp_path):
    folder = table(tmp_path / "data")
    settings = InpainterSettings(where=("finding=No Finding",), split_column="split")
    found = run(healthy_images(folder, settings))
    assert [one.name for one in found.images] == [f"{n:02}.png" for n in range(1, 20, 2)]
    assert found.skipped == {"missing.png": "there is no such file"} and not found.notes
    assert {one.group for one in found.images} == {f"p{n}" for n in range(5)}
    everything = run(healthy_images(folder, InpainterSettings()))
    assert len(everything.images) == 20 and "--where" in everything.notes[0] and "split=train" in everything.notes[1]


def refused(words, folder, **options):
    with pytest.raises(MedXAIError) as told:
        run(train_folder(folder, folder.parent / "new", InpainterSettings(**QUICK | options)))
    assert words in told.value.message and "\n" not in told.value.message, told.value.message
    assert not (folder.parent / "new").exists() and not (folder.parent / ".new.partial").exists()


def test_refusals(tmp_path):
    refused("There is no folder", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    refused("holds no image", tmp_path / "empty")
    refused("no table (labels.csv)", tmp_path / "empty", where=("a=b",))
    folder = write_images(tmp_path / "few", 7)
    refused("7 images can be used; an inpainter needs at least 8", folder)
    (folder / "broken.png").write_bytes(b"no image")
    refused("7 images can be used (the first skipped: broken.png:", folder)
    write(folder / "other.png", pixels(9, (32, 40)))
    refused("different sizes (00.png: 32 × 32, other.png: 32 × 40); bring them to one with --size", folder)
    refused("--levels is 8", write_images(tmp_path / "some"), levels=8)
    refused("There is no folder", tmp_path / "none", dims=3)
    refused("an inpainter in 3-D takes volumes", tmp_path / "some", dims=3)
    colour = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), str(folder / "colour.png"))
    refused("1 of the images are colour pictures (the first: colour.png)", folder)
    data = table(tmp_path / "data")
    refused("has no column 'findings' (--where)", data, where=("findings=x",))
    refused("has finding=Nothing and split=train; see its columns", data, where=("finding=Nothing",), split_column="split")  # fmt: skip
    refused("no column 'splt' (did you mean 'split'?)", data, split_column="splt")
    refused("There is no table 'else.csv'", data, table="else.csv")
    refused("There is no model folder", data, match=str(tmp_path / "nowhere"))
    for wrong, words in (
        (dict(size=4), "--size is 4; it takes 0 or at least 8"),
        (dict(where=("finding",)), "it takes COLUMN=VALUE"),
        (dict(window=(5, 1)), "first value must be the smaller one"),
        (dict(dims=4), "it takes a whole number from 2 to 3"),
    ):
        with pytest.raises(MedXAIError, match=words):
            InpainterSettings(**wrong)


def test_sizes_of_several_kinds_are_brought_to_one(tmp_path):
    folder = write_images(tmp_path / "healthy", 8)
    write(folder / "other.png", pixels(9, (48, 40)))
    figures = run(train_folder(folder, tmp_path / "out", InpainterSettings(**QUICK | dict(size=24, epochs=1, second_epochs=0))))  # fmt: skip
    assert figures["shape"] == [24, 24] and Package.read(tmp_path / "out").input.size == (24, 24)
    wide = write_images(tmp_path / "wide", 8, (24, 40))
    figures = run(train_folder(wide, tmp_path / "out2", InpainterSettings(**QUICK | dict(epochs=1, second_epochs=0))))
    assert figures["shape"] == [24, 40] and Package.read(tmp_path / "out2").input.size is None


def test_three_dimensions_are_trained_on_patches(tmp_path):
    folder = write_images(tmp_path / "healthy", 8, (20, 24, 28))
    write(folder / "thin.nrrd", pixels(9, (12, 24, 28)))
    settings = InpainterSettings(**QUICK | dict(dims=3, size=16, epochs=2, second_epochs=1, width=0.05))
    figures = run(train_folder(folder, tmp_path / "out", settings))
    assert figures["shape"] == [12, 16, 16] and np.isfinite(figures["hole_error"]["inpainted"]["value"])
    package = Package.read(tmp_path / "out")
    assert package.input.spatial_dims == 3 and package.input.size is None and not package.input.intensity[0].per_slice
    assert "patches of 12 × 16 × 16 from 8 images" in package.about["description"]
    model = load(tmp_path / "out", "cpu")
    with torch.no_grad():
        assert model.module(torch.randn(1, 1, 20, 20, 20), torch.ones(1, 1, 20, 20, 20)).shape == (1, 1, 20, 20, 20)


# ---- a classifier to fit, and a network for features -----------------------------------------------------------------


def classifier(folder, seed=0, **changes):
    torch.manual_seed(seed)
    arguments = {"in_channels": 1, "out_channels": 2, "size": 24, "width": 0.125}
    fields = {
        "name": folder.name, "task": "classification", "weights": "weights.safetensors",
        "network": {"name": "ShallowCNN", "arguments": arguments},
        "input": INPUT | {"size": [24, 24], "fit": "resize", "channels": ["MR"], "intensity": {"kind": "window", "low": 0, "high": 200}} | changes,
        "output": {"labels": ["no finding", "finding"], "activation": "softmax"},
    }  # fmt: skip
    weights = NETWORKS["ShallowCNN"](**arguments).state_dict()
    return write_package(folder, fields, lambda path: save_file(weights, str(path)))


def test_an_inpainter_fits_the_classifier_it_is_made_for(tmp_path):
    match = classifier(tmp_path / "clf")
    folder = write_images(tmp_path / "healthy")
    figures = run(train_folder(folder, tmp_path / "out", InpainterSettings(**QUICK, match=str(match.folder))))
    package = Package.read(tmp_path / "out")
    assert package.input == match.input and package.output.labels == ("MR",) and figures["shape"] == [24, 24]
    assert package.name == "Inpainter for clf" and "--match clf " in figures["command"] and str(tmp_path) not in figures["command"]  # fmt: skip
    refused("'clf' takes images of 24 × 24, which --match brings along; leave --size out", folder, match=str(match.folder), size=32)  # fmt: skip
    two = classifier(tmp_path / "two", channels=["a", "b"])
    refused("'two' takes 2 channels, and an inpainter is trained on images of one", folder, match=str(two.folder))


def test_features_of_another_network_count_and_those_of_the_classifier_are_refused(tmp_path):
    clf, other = (classifier(tmp_path / name, seed) for seed, name in enumerate(("clf", "other")))
    folder = write_images(tmp_path / "healthy")
    options = QUICK | dict(epochs=1, second_epochs=1, match=str(clf.folder))
    settings = InpainterSettings(**options, perceptual=str(other.folder), perceptual_layers=("1",))
    figures = run(train_folder(folder, tmp_path / "out", settings))
    rows = rows_of(tmp_path / "out/epochs.csv")
    weights = {name: getattr(settings, f"{name}_weight") for name in ("valid", "hole", "perceptual", "style", "tv")}
    for row in rows:
        assert float(row["perceptual"]) > 0 and float(row["kept_back_style"]) > 0
        assert float(row["loss"]) == pytest.approx(sum(w * float(row[n]) for n, w in weights.items()), rel=1e-4)
    assert figures["features_of"]["sha256"] == other.sha256 and len(figures["features_of"]["layers"]) == 1
    refused("the very classifier to be explained, which would be circular", folder, **options | {"perceptual": str(clf.folder)})  # fmt: skip
    judge = {"classifier": other.folder, "findings": tmp_path, "healthy": tmp_path}
    with pytest.raises(MedXAIError, match="circular"):
        run(train_folder(folder, tmp_path / "new", settings, judge=judge))
    refused("takes 2-D images, and the inpainter 3-D ones", write_images(tmp_path / "solid", 8, (8, 16, 16)), dims=3, perceptual=str(other.folder))  # fmt: skip
    refused("has no layer 'conv9'", folder, perceptual=str(other.folder), perceptual_layers=("conv9",))


def test_units_of_the_network_for_features(tmp_path):
    from MedXAILib.training.inpainters import _network_input, fields

    other = classifier(tmp_path / "other", intensity={"kind": "percentile", "low": 0, "high": 100, "clip": True})
    images = run(healthy_images(write_images(tmp_path / "healthy"), InpainterSettings()))
    about = fields(images, InpainterSettings(), "", [one.volume for one in images.images])
    one = _network_input(images.images[0], about, load(other.folder, "cpu"))
    factor, addend, low, high = one.units
    image = torch.from_numpy(images.images[0].volume.array[0].astype(np.float32))
    assert torch.allclose((one.x[0] * factor + addend).clamp(low, high), image / 255, atol=1e-5)


# ---- judging ---------------------------------------------------------------------------------------------------------


def test_roc_and_auc_against_a_hand_count():
    ill, well = np.array([3.0, 2.0, 2.0, 0.0]), np.array([2.0, 1.0, -1.0])
    fpr, tpr = roc(ill, well)
    assert fpr.tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 2 / 3, 1])
    assert tpr.tolist() == pytest.approx([0, 0.25, 0.75, 0.75, 1, 1])
    a, b = components(ill, well)
    assert a.tolist() == pytest.approx([1, 2.5 / 3, 2.5 / 3, 1 / 3]) and a.mean() == pytest.approx(b.mean())
    assert np.trapezoid(tpr, fpr) == pytest.approx(a.mean())
    assert np.isnan(auc(a, b).low) and auc(a, b).value == pytest.approx(0.75)


def test_the_interval_of_an_auc_holds_the_truth_as_often_as_it_says():
    rng, hits, widths = np.random.default_rng(0), 0, []
    for _ in range(300):
        ill, well = rng.normal(1, 1, 40), rng.normal(0, 1, 60)
        one = auc(*components(ill, well))
        hits += one.low <= 0.7602 <= one.high  # Φ(1 / √2)
        widths.append(one.high - one.low)
    assert 0.9 < hits / 300 < 0.985 and 0.15 < np.mean(widths) < 0.22


def test_a_covering_hole_holds_the_finding_and_wavers():
    finding = np.zeros((40, 40), bool)
    finding[15:22, 18:26] = True
    holes = [covered(finding, 3, np.random.default_rng(n)) for n in range(5)]
    wide = ndimage.distance_transform_edt(~finding) <= 3
    assert all((hole >= finding).all() and (hole <= wide).all() for hole in holes)
    assert len({hole.tobytes() for hole in holes}) == 5 and all(finding.sum() < h.sum() < wide.sum() for h in holes)
    assert np.array_equal(covered(finding, 0, np.random.default_rng(0)), finding)


class Middle(nn.Module):
    """The finding's score is the mean of the middle of the image."""

    def forward(self, x):
        score = x[:, :, 12:20, 12:20].mean((1, 2, 3)) * 10
        return torch.stack([torch.zeros_like(score), score], 1)


def planted(folder, bright):
    """Images that are 102 in the middle, plus what ``bright`` says in those with the finding; an inpainter that fills with 102; the classifier."""
    for n, more in enumerate(bright):
        image = pixels(n)
        image[10:22, 10:22] = 102
        write(folder / "healthy" / f"{n:02}.png", image)
        mask = np.zeros_like(image)
        mask[12:20, 12:20] = 2
        mask[24:, :] = 1
        image[mask == 2] += more
        write(folder / "findings" / f"{n:02}.png", image)
        write(folder / "findings" / f"{n:02}_mask.png", mask)
    arguments = {"spatial_dims": 2, "channels": 1, "levels": 3, "width": 0.05}
    state = {name: torch.zeros_like(v) for name, v in NETWORKS["PartialUNet"](**arguments).state_dict().items()}
    state["decoder.2.conv.bias"] += 0.4
    window = {"intensity": {"kind": "window", "low": 0, "high": 255}}
    fields = {
        "name": "constant", "task": "inpainting", "weights": "weights.safetensors", "network": {"name": "PartialUNet", "arguments": arguments},
        "input": INPUT | window, "output": {"labels": ["image"], "activation": "none"},
    }  # fmt: skip
    inpainter = write_package(folder / "inpainter", fields, lambda path: save_file(state, str(path)))
    return inpainter, program(folder / "middle", Middle(), **window)


def test_judging_a_planted_inpainter(tmp_path):
    pytest.importorskip("matplotlib")
    inpainter, middle = planted(tmp_path, [30] * 9 + [0] * 3)  # three findings cannot be seen
    (tmp_path / "findings/broken.png").write_bytes(b"")
    (tmp_path / "findings/broken_mask.png").write_bytes(b"")
    settings = InpainterSettings(segment="2", organ="1", draws=3, margin=2)
    (tmp_path / "out").mkdir()
    found = run(
        judge_inpainter(
            inpainter.folder, middle.folder, tmp_path / "findings", tmp_path / "healthy", settings, {middle.sha256}, tmp_path / "out"
        )
    )  # fmt: skip
    values = {name: one["value"] for name, one in found["auc"].items()}
    assert values == {"original": 0.875, "healthy": 0.875, "finding": 0.5}  # nine seen, three ties; then ties alone
    assert found["less"]["finding"]["value"] == 0.375 and found["less"]["finding"]["low"] > 0.2
    assert found["less"]["healthy"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 24}
    assert found["auc"]["original"]["low"] < 0.875 < found["auc"]["original"]["high"] <= 1
    assert found["auc"]["finding"]["draws"] == [0.5] * 3 and found["auc"]["original"]["draws"] == [0.875]
    assert 64 / 1024 < found["share_inpainted"]["finding"] < 0.15 and found["share_inpainted"]["healthy"] > 0
    assert found["cases"]["finding"] == found["cases"]["healthy"] == 12 and set(found["cases"]["skipped"]) == {"broken"}
    assert found["label"] == "finding" and found["inpainter"]["sha256"] == inpainter.sha256
    rows = rows_of(tmp_path / "out/roc.csv")
    for condition, draw, value in (("original", "0", 0.875), ("finding", "2", 0.5)):
        curve = [(float(r["fpr"]), float(r["tpr"])) for r in rows if (r["condition"], r["draw"]) == (condition, draw)]
        assert np.trapezoid(*np.array(curve).T[::-1]) == pytest.approx(value) and curve[-1] == (1, 1)
    assert (tmp_path / "out/roc.png").stat().st_size > 5000
    other = InpainterSettings(segment="2", finding_label="no finding", draws=1)
    found = run(judge_inpainter(inpainter.folder, middle.folder, tmp_path / "findings", tmp_path / "healthy", other, {middle.sha256}))  # fmt: skip
    assert found["auc"]["original"]["value"] == 0.125


def test_judging_refuses_what_it_cannot_judge(tmp_path):
    inpainter, middle = planted(tmp_path, [30] * 3)
    healthy, findings, settings = tmp_path / "healthy", tmp_path / "findings", InpainterSettings(draws=1, segment="2")

    def no(words, inpainter=inpainter, classifier=middle, findings=findings, healthy=healthy, settings=settings):
        with pytest.raises(MedXAIError) as told:
            run(judge_inpainter(inpainter.folder, classifier.folder, findings, healthy, settings, {middle.sha256}))
        assert words in told.value.message, told.value.message

    no("There is no folder", healthy=tmp_path / "none")
    no("holds no image and mask pair", findings=healthy)
    no("judging an inpainter explains classification networks", classifier=inpainter)
    no("not an inpainter", inpainter=classifier(tmp_path / "clf"))
    no("has no label 'mass'", settings=InpainterSettings(finding_label="mass"))
    no("0 images with a finding can be used (the first skipped: 00: ", settings=InpainterSettings(draws=1, segment="7"))
    for path in sorted(healthy.iterdir())[1:]:
        path.unlink()
    no("1 images without a finding can be used")


def test_a_stop_while_judging_goes_on_with_the_trained_inpainter(tmp_path):
    _, middle = planted(tmp_path, [30] * 8)
    judge = {"classifier": middle.folder, "findings": tmp_path / "findings", "healthy": tmp_path / "healthy"}
    settings = InpainterSettings(**QUICK, segment="2", draws=1)
    steps = train_folder(tmp_path / "healthy", tmp_path / "out", settings, {middle.sha256}, judge)
    while "Case 3" not in next(steps).stage:
        pass
    steps.close()
    assert epochs_kept(tmp_path / "out") == 4 and not (tmp_path / "out").exists()
    stages = []
    for step in train_folder(tmp_path / "healthy", tmp_path / "out", settings, {middle.sha256}, judge):
        stages.append(step.stage)
    assert not any(stage.startswith("phase") for stage in stages) and (tmp_path / "out/roc.csv").exists()
    run(train_folder(tmp_path / "healthy", tmp_path / "whole", settings))
    assert Package.read(tmp_path / "out").sha256 == Package.read(tmp_path / "whole").sha256


# ---- the command -----------------------------------------------------------------------------------------------------


def options_of(settings):
    return [w for name, value in settings.items() for w in (f"--{name.replace('_', '-')}", value)]


def test_the_command(tmp_path, capsys):
    _, middle = planted(tmp_path, [30] * 8)
    (tmp_path / "healthy/broken.png").write_bytes(b"no image")
    judge = ["--classifier", middle.folder, "--findings", tmp_path / "findings", "--healthy", tmp_path / "healthy", "--segment", 2]  # fmt: skip
    words = ["train", "inpainter", tmp_path / "healthy", "--output", tmp_path / "out", *options_of(QUICK), "--draws", 2]
    assert cli.main([*words, *judge]) == 1 and "has not been trusted" in capsys.readouterr().err
    assert cli.main([*words, *judge, "--trust"]) == 0
    told = capsys.readouterr()
    assert "skipped broken.png" in told.err and "error in holes of 1 images kept back" in told.out
    assert "AUC as they are: 1.000" in told.out and (tmp_path / "out/roc.csv").exists()
    assert json.loads((tmp_path / "out/figures.json").read_text())["roc"]["draws"] == 2
    assert cli.main(words) == 1 and "exists already" in capsys.readouterr().err
    again = ["train", "inpainter", "--judge", tmp_path / "out", "--output", tmp_path / "judged", "--draws", 2]
    assert cli.main([*again, *judge, "--trust", middle.sha256]) == 0
    assert "AUC inpainted in the finding" in capsys.readouterr().out
    one, other = (json.loads((tmp_path / name / "figures.json").read_text()) for name in ("out", "judged"))
    assert one["roc"]["auc"] == other["auc"] and (tmp_path / "judged/roc.csv").exists()
    for wrong, reason in (
        (["train", "inpainter", "--output", tmp_path / "new"], "either a folder of healthy images"),
        (["train", "inpainter", tmp_path, "--judge", tmp_path, "--output", tmp_path / "new"], "either a folder"),
        ([*again[:-3], tmp_path / "new"], "--classifier is missing"),
        ([*words[:4], tmp_path / "new", "--healthy", tmp_path], "--classifier is missing"),
        ([*words[:4], tmp_path / "new", "--hols", "3"], "did you mean '--holes'"),
    ):
        assert cli.main(wrong) == 1 and reason in capsys.readouterr().err, reason
    assert not (tmp_path / "new").exists()


def test_an_interrupt_says_what_is_kept(tmp_path, capsys, monkeypatch):
    folder = write_images(tmp_path / "healthy")
    words = ["train", "inpainter", folder, "--output", tmp_path / "out", *options_of(QUICK)]
    add = Log.add

    def interrupted(self, row):
        if row["phase"] == 2:
            raise KeyboardInterrupt
        add(self, row)

    monkeypatch.setattr(Log, "add", interrupted)
    assert cli.main(words) == 130
    assert "2 finished epochs are kept" in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.main(words) == 0 and (tmp_path / "out/model.json").exists()
