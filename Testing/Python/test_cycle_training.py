"""Training an explainer: what R must be on planted classifiers, that the classifier stays as it was, going on after a stop, the folder and the command."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from classifiers import classifier, exported
from cycle_examples import (
    CPU,
    EDGE,
    INPUT,
    Linear,
    loaded,
    noise_images,
    trained,
    window,
    write_classifier,
    write_noise,
)
from scipy import stats

from MedXAILib import io
from MedXAILib.cli import main
from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import run
from MedXAILib.files import partial_of
from MedXAILib.models.sides import Sides
from MedXAILib.package import Package
from MedXAILib.resume import Log
from MedXAILib.settings import CycleJobSettings, CycleTrainingSettings
from MedXAILib.training.cycle import BEST, STATE, Shake, Trainer, cut, train_pair
from MedXAILib.training.cycles import epochs_kept, train_cycle, training_job
from MedXAILib.training.saving import lift, read_weights
from MedXAILib.volume import Volume

SIDES = Sides(1, 0)
FAST = dict(width=0.05, batch=8, learning_rate=2e-3)


def relevance(pair, x) -> np.ndarray:
    """R of images (N, 1, *spatial)."""
    with torch.no_grad():
        return (pair.positive(x) - pair.negative(x))[:, 0].numpy()


def auc(values, inside) -> float:
    """Area under the ROC curve of |values| for the voxels inside."""
    values = np.abs(values)
    found = stats.mannwhitneyu(values[inside], values[~inside]).statistic
    return float(found / (inside.sum() * (~inside).sum()))


# ---- known answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "epochs"), ((2, 6), (3, 3)))
def test_a_window_classifier_is_explained_by_its_window(dims, epochs, tmp_path):
    network, inside = window(dims)
    images, held = noise_images(48, dims), noise_images(8, dims, seed=1)
    pair, rows = trained(
        classifier(network, dims), SIDES, tmp_path, images, held, **FAST, epochs=epochs, similarity="l1"
    )
    found = relevance(pair, noise_images(4, dims, seed=2))
    assert auc(np.abs(found).mean(0), inside) > 0.95
    assert np.mean(found[:, inside]) > 0  # the window is raised towards the positive class
    best = min(rows, key=lambda row: row["score"])
    assert best["probability_positive"] > best["probability"] + 0.1 > best["probability_negative"] + 0.2
    assert best["flip_rate"] == 1.0


def test_a_constant_classifier_gives_next_to_nothing(tmp_path):
    constant = classifier(Linear(np.zeros((1, EDGE, EDGE)), 0.4))
    pair, _ = trained(
        constant, SIDES, tmp_path / "constant", noise_images(32), noise_images(8, seed=1), **FAST, epochs=2
    )
    network, _ = window(2)
    other, _ = trained(classifier(network), SIDES, tmp_path / "window", noise_images(32), noise_images(8, seed=1), **FAST, epochs=2)  # fmt: skip
    x = noise_images(4, seed=2)
    assert np.abs(relevance(pair, x)).mean() < 0.02 < 0.2 * np.abs(relevance(other, x)).mean()


def test_a_negated_classifier_with_exchanged_seeds_gives_minus_r(tmp_path):
    images, held, x = noise_images(24), noise_images(8, seed=1), noise_images(4, seed=2)
    found = []
    for negated, seeds in ((False, (0, 1)), (True, (1, 0))):
        model = classifier(window(2, negated=negated)[0])
        pair, _ = trained(model, SIDES, tmp_path / str(negated), images, held, seeds, **FAST, epochs=2, tied=True)
        found.append(relevance(pair, x))
    assert np.abs(found[0]).max() > 0.05
    np.testing.assert_allclose(found[0], -found[1], atol=2e-3 * np.abs(found[0]).max())


# ---- the classifier, and going on --------------------------------------------------------------------------------------


def test_the_classifier_and_the_random_state_are_left_as_they_were(tmp_path):
    package = write_classifier(tmp_path / "model")
    model = loaded(package.folder)
    model.module.train()  # however it came
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    flags = [one.training for one in model.module.modules()]
    state = torch.get_rng_state()
    settings = CycleTrainingSettings(device="cpu", **FAST, epochs=1)
    run(train_pair(model, SIDES, list(noise_images(16)), noise_images(4, seed=1), tmp_path / "state", settings, 1.0, Log(None, {}), (EDGE, EDGE)))  # fmt: skip
    after = model.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert flags == [one.training for one in model.module.modules()]
    assert all(p.grad is None and not p.requires_grad for p in model.module.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_one_pass_less_changes_nothing(tmp_path):
    """The step equals the plain loop, in which the discriminators' step and the generators' step each make their own images."""
    from MedXAILib.training.cycle import generator_losses, weighted

    settings, model = CycleTrainingSettings(**CPU, clip=0), classifier(window(2)[0])
    works = [Trainer(model, SIDES, [], None, settings, 1.0, (EDGE, EDGE), (0, 1)) for _ in range(2)]
    swapped = torch.tensor([True, False] * 4)
    for n in range(3):
        x, other = noise_images(8, seed=2 * n), noise_images(8, seed=2 * n + 1)
        ours = works[0].step(x, other, swapped)
        plain = works[1]
        with torch.no_grad():
            fakes = plain.pair.positive(x), plain.pair.negative(x)
        plain.adam.zero_grad()
        judged = sum(judge.loss(judge.features(other), judge.features(fake), swapped) for judge, fake in zip(plain.judges, fakes))  # fmt: skip
        judged.backward()
        plain.adam.step()
        plain.adam.zero_grad()
        made = plain.pair.positive(x), plain.pair.negative(x)
        parts = generator_losses(model, SIDES, x, made, (plain.pair.negative(made[0]), plain.pair.positive(made[1])), settings, 1.0)  # fmt: skip
        parts["adversarial"] = sum(judge.loss(judge.features(other), judge.features(fake), swapped, True) for judge, fake in zip(plain.judges, made))  # fmt: skip
        plain.adam.zero_grad()
        weighted(parts, settings).backward()
        for one in plain.judges.parameters():
            one.grad = None
        plain.adam.step()
        assert float(ours["discriminator"].detach()) == pytest.approx(float(judged.detach()), rel=1e-5)
    for one, two in zip(works[0].networks.parameters(), works[1].networks.parameters()):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-4)


def test_a_running_mean_of_the_weights_is_what_is_judged_and_kept(tmp_path):
    settings, model = CycleTrainingSettings(**CPU, average=0.75), classifier(window(2)[0])
    work = Trainer(model, SIDES, [], noise_images(4, seed=9), settings, 1.0, (EDGE, EDGE), (0, 1))
    wanted = [one.detach().clone() for one in work.pair.parameters()]
    for n in range(3):
        work.step(noise_images(8, seed=n), noise_images(8, seed=n + 5), torch.tensor([True, False] * 4))
        wanted = [0.75 * mean + 0.25 * one.detach() for mean, one in zip(wanted, work.pair.parameters())]
    for mean, one in zip(wanted, work.kept.parameters()):
        torch.testing.assert_close(mean, one.detach(), atol=1e-6, rtol=1e-5)
    judged = work.judged()
    work.pair.load_state_dict({name: 0 * value for name, value in work.pair.state_dict().items()})
    assert work.judged() == judged


@pytest.mark.parametrize("average", (0.0, 0.9))
def test_goes_on_after_a_stop_to_the_same_weights(average, tmp_path):
    images, held, model = noise_images(20), noise_images(4, seed=1), classifier(window(2)[0])
    settings = CycleTrainingSettings(**CPU, epochs=3, flip=True, average=average)

    def steps(folder):
        return train_pair(
            model, SIDES, list(images), held, folder, settings, 1.0, Log(folder / "log", {}), (EDGE, EDGE)
        )

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    run(steps(tmp_path / "whole"))
    stopped = steps(tmp_path / "stopped")
    for _ in range(5):  # into the second epoch
        next(stopped)
    stopped.close()
    run(steps(tmp_path / "stopped"))
    for file in (STATE, BEST):
        one, two = (read_weights(tmp_path / name / file) for name in ("whole", "stopped"))
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_loss_that_is_not_finite_stops_and_keeps_what_is_finished(tmp_path):
    images, held = noise_images(16), noise_images(4, seed=1)
    model = classifier(window(2)[0])
    trained(model, SIDES, tmp_path, images, held, **FAST, epochs=1)
    kept = (tmp_path / STATE).read_bytes()
    images[3] = torch.inf
    with pytest.raises(MedXAIError, match=r"no longer finite in epoch 2; the weights of 1 finished epochs are kept .*--learning-rate"):  # fmt: skip
        trained(model, SIDES, tmp_path, images, held, **FAST, epochs=2)
    assert (tmp_path / STATE).read_bytes() == kept


def test_patience_ends_it_and_the_best_weights_are_kept(tmp_path):
    images, held = noise_images(16), noise_images(4, seed=1)
    settings = CycleTrainingSettings(**CPU, epochs=50, patience=1, learning_rate=0.05)
    model = classifier(window(2)[0])
    log = Log(tmp_path / "log", {})
    run(train_pair(model, SIDES, list(images), held, tmp_path, settings, 1.0, log, (EDGE, EDGE)))
    scores = [row["score"] for row in Log(tmp_path / "log", {}).rows]
    assert len(scores) < 50 and scores[-1] >= min(scores) and int(np.argmin(scores)) == len(scores) - 2


def test_other_classifiers_three_classes_sigmoid_and_programs(tmp_path):
    """Several classes with a pair chosen, a label against its absence, and an exported program, which takes one image at a time."""
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(EDGE * EDGE, 3))
    images, held = noise_images(8), noise_images(4, seed=1)
    for n, (model, sides) in enumerate((
        (classifier(module, labels=3), Sides(2, 0)),
        (classifier(module, labels=3, output={"activation": "sigmoid"}), Sides(1, None)),
        (classifier(exported(module, (1, 1, EDGE, EDGE)), labels=3), Sides(0, 1)),
    )):  # fmt: skip
        _, rows = trained(model, sides, tmp_path / str(n), images, held, **FAST, epochs=1)
        assert np.isfinite(rows[0]["score"])


def test_16_bit_convolutions_come_near_to_32(tmp_path):
    images, held = noise_images(16), noise_images(4, seed=1)
    rows = [
        trained(classifier(window(2)[0]), SIDES, tmp_path / name, images, held, **FAST, epochs=1, precision=name)[1][0]
        for name in ("float32", "bfloat16")
    ]
    assert rows[0]["generator"] != rows[1]["generator"]
    assert rows[0]["generator"] == pytest.approx(rows[1]["generator"], rel=0.05)


def test_jitter_moves_by_whole_voxels_and_noise_is_added():
    x = noise_images(2)
    moved = Shake((2, -1), None)(x)
    assert moved.shape == x.shape
    assert torch.equal(moved[..., :-2, 1:], x[..., 2:, :-1])  # what lies inside
    assert torch.equal(moved[..., -1, 1:], x[..., -1, :-1])  # beyond the border its last voxels
    noise = torch.full_like(x, 0.25)
    assert torch.equal(Shake((0, 0), noise)(x), x + 0.25)
    settings = CycleTrainingSettings(**CPU, jitter=2, noise=0.1)
    work = Trainer(classifier(window(2)[0]), SIDES, [], None, settings, 2.0, (EDGE, EDGE), (0, 1))
    drawn = [work.shake(x, np.random.default_rng(n)) for n in range(40)]
    assert {one.shift[0] for one in drawn} == {-2, -1, 0, 1, 2}
    assert float(torch.stack([one.noise for one in drawn]).std()) == pytest.approx(
        0.2, rel=0.02
    )  # a tenth of the range of 2


def test_gradients_are_shortened_to_the_limit():
    model, x, other = classifier(window(2)[0]), noise_images(8), noise_images(8, seed=1)
    lengths = []
    for clip in (0.0, 1e-3):
        work = Trainer(model, SIDES, [], None, CycleTrainingSettings(**CPU, clip=clip), 1.0, (EDGE, EDGE), (0, 1))
        work.step(x, other, torch.tensor([True, False] * 4))
        # After one step Adam's first moment is (1 − β₁) times the gradient.
        moments = [work.adam.state[p]["exp_avg"] for p in work.pair.parameters() if p in work.adam.state]
        lengths.append(float(torch.stack([(2 * m).square().sum() for m in moments]).sum().sqrt()))
    assert lengths[0] > 2e-3 and lengths[1] == pytest.approx(1e-3, rel=1e-3)


def test_larger_images_give_patches_from_everywhere():
    x, rng = torch.arange(400.0).reshape(1, 20, 20), np.random.default_rng(0)
    corners = {tuple(divmod(int(cut(x, (16, 16), rng)[0, 0, 0]), 20)) for _ in range(400)}
    assert corners == {(a, b) for a in range(5) for b in range(5)}
    assert int(cut(x, (16, 16))[0, 0, 0]) == 2 * 20 + 2


# ---- folders -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A classifier's folder and a folder of images, with a finished training of two epochs."""
    place = tmp_path_factory.mktemp("cycle")
    write_classifier(place / "model")
    write_noise(place / "images")
    explanation = run(train_cycle(loaded(place / "model"), place / "images", place / "done", CycleTrainingSettings(**CPU, epochs=2)))  # fmt: skip
    return place, explanation


def test_the_package_is_bound_to_the_classifier(workplace):
    place, explanation = workplace
    package, its = Package.read(place / "done"), Package.read(place / "model")
    about = package.explains
    assert (package.task, about.sha256, about.positive, about.negative) == ("explanation", its.sha256, "spiculated", "smooth")  # fmt: skip
    assert package.input == its.input and package.output.labels == ("spiculated", "smooth")
    assert about.data_range == 1.0 and about.mean[0] < about.mean[1]
    figures = json.loads((place / "done" / "figures.json").read_text("utf-8"))
    rows = (place / "done" / "epochs.csv").read_text("utf-8").splitlines()
    assert (
        figures["epochs"] == 2 == len(rows) - 1 and figures["images"]["training"] + figures["images"]["kept_back"] == 32
    )
    assert figures["command"].startswith("medxai train cycle FOLDER") and "--model model" in figures["command"]
    assert sorted(one.name for one in (place / "done").iterdir()) == ["epochs.csv", "figures.json", "model.json", "samples.png", "weights.safetensors"]  # fmt: skip
    assert not partial_of(place / "done").exists()
    assert explanation.provenance["folder"] == str(place / "done") and list(explanation.curves) == [
        "training",
        "validation",
    ]
    assert len(explanation.curves["validation"].columns["flip_rate"]) == 2


def test_finish_makes_the_explainer_of_the_best_weights_so_far(workplace, tmp_path):
    place, _ = workplace
    model, settings = loaded(place / "model"), CycleTrainingSettings(**CPU, epochs=5)
    with pytest.raises(MedXAIError, match="nothing to finish"):
        run(train_cycle(model, place / "images", tmp_path / "out", settings, finish=True))
    steps = train_cycle(model, place / "images", tmp_path / "out", settings)
    while not any(point.step == 2 for point in next(steps).points):
        pass
    steps.close()
    assert epochs_kept(tmp_path / "out") == 2 and (partial_of(tmp_path / "out") / "samples.png").exists()
    best = read_weights(partial_of(tmp_path / "out") / ".state" / BEST)
    run(train_cycle(model, place / "images", tmp_path / "out", settings, finish=True))
    weights = read_weights(tmp_path / "out" / "weights.safetensors")
    assert all(torch.equal(best[name], weights[name]) for name in best)
    done = read_weights(place / "done" / "weights.safetensors")  # two epochs without a stop
    assert all(torch.equal(done[name], weights[name]) for name in done)


def test_a_training_may_go_on_for_longer_but_not_with_other_settings_or_images(workplace, tmp_path):
    place, _ = workplace
    model, images = loaded(place / "model"), write_noise(tmp_path / "images")
    steps = train_cycle(model, images, tmp_path / "out", CycleTrainingSettings(**CPU, epochs=2))
    while not next(steps).points:
        pass
    steps.close()
    with pytest.raises(MedXAIError, match=r"settings differ.*same settings, images and classifier"):
        run(train_cycle(model, images, tmp_path / "out", CycleTrainingSettings(**CPU, epochs=2, seed=3)))
    (images / "image-000.nrrd").unlink()
    with pytest.raises(MedXAIError, match="images differ"):
        run(train_cycle(model, images, tmp_path / "out", CycleTrainingSettings(**CPU, epochs=2)))
    assert epochs_kept(tmp_path / "out") == 1


def test_a_folder_that_changes_during_the_training_is_told(workplace, tmp_path):
    place, _ = workplace
    images = write_noise(tmp_path / "images")
    steps = train_cycle(loaded(place / "model"), images, tmp_path / "out", CycleTrainingSettings(**CPU, epochs=1))
    while "epoch 1" not in next(steps).stage:
        pass
    (images / "image-000.nrrd").unlink()
    found = run(steps)
    assert any("changed while this was trained" in note for note in found.notes)
    assert found.scores["images"] == run(train_cycle(loaded(place / "model"), write_noise(tmp_path / "again"), tmp_path / "two", CycleTrainingSettings(**CPU, epochs=1))).scores["images"]  # fmt: skip


def test_as_a_job_of_the_worker(workplace, tmp_path):
    place, explanation = workplace
    settings = CycleJobSettings(**CPU, epochs=2, source=str(place / "images"), output=str(tmp_path / "job"))
    found = run(training_job(loaded(place / "model"), settings))
    assert found.provenance["folder"] == str(tmp_path / "job")
    assert found.scores["score"] == explanation.scores["score"]
    with pytest.raises(MedXAIError, match="choose both"):
        training_job(loaded(place / "model"), CycleJobSettings(**CPU, source="x"))


def stopped_after(steps, epochs: int) -> None:
    """Drive a training to the end of so many epochs, and stop it."""
    while not any(point.step == epochs for point in next(steps).points):
        pass
    steps.close()


def test_finished_figures_are_those_of_the_weights_wherever_it_was_killed(workplace, tmp_path, monkeypatch):
    """Killed after an epoch was written down and before its weights were: the best of the one before count."""
    place, _ = workplace
    model, settings = loaded(place / "model"), CycleTrainingSettings(**CPU, epochs=4)
    stopped_after(train_cycle(model, place / "images", tmp_path / "out", settings), 1)
    kept = read_weights(partial_of(tmp_path / "out") / ".state" / BEST)
    from MedXAILib.training import cycle as module

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    monkeypatch.setattr(module, "save_weights", kill)
    with pytest.raises(Killed):
        run(train_cycle(model, place / "images", tmp_path / "out", settings))
    monkeypatch.undo()
    assert epochs_kept(tmp_path / "out") == 2
    found = run(train_cycle(model, place / "images", tmp_path / "out", settings, finish=True))
    weights = read_weights(tmp_path / "out" / "weights.safetensors")
    assert found.scores["epoch"] == 1 and all(torch.equal(kept[name], weights[name]) for name in kept)
    assert len(found.curves["validation"].columns["epoch"]) == 1


def test_killed_at_the_very_end_nothing_is_lost(workplace, tmp_path, monkeypatch):
    place, _ = workplace
    model, settings = loaded(place / "model"), CycleTrainingSettings(**CPU, epochs=1)
    from MedXAILib.training import cycles as module

    class Killed(BaseException):
        pass

    def kill(inner):
        lift(inner)
        raise Killed

    monkeypatch.setattr(module, "lift", kill)
    with pytest.raises(Killed):
        run(train_cycle(model, place / "images", tmp_path / "out", settings))
    monkeypatch.undo()
    before = read_weights(partial_of(tmp_path / "out") / "weights.safetensors")
    seen = []
    run(train_cycle(model, place / "images", tmp_path / "out", settings), lambda step: seen.append(step.stage))
    assert not any(stage.startswith("epoch") for stage in seen)  # nothing was trained again
    after = read_weights(tmp_path / "out" / "weights.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["epochs.csv", "figures.json", "model.json", "samples.png", "weights.safetensors"]  # fmt: skip


def test_finishing_needs_the_settings_and_not_the_very_images(workplace, tmp_path):
    place, _ = workplace
    model, images, settings = loaded(place / "model"), write_noise(tmp_path / "images"), CycleTrainingSettings(**CPU, epochs=3)  # fmt: skip
    stopped_after(train_cycle(model, images, tmp_path / "out", settings), 1)
    os.utime(images / "image-003.nrrd")  # a new time alone changes nothing
    stopped_after(train_cycle(model, images, tmp_path / "out", settings), 2)
    shutil.rmtree(images)
    found = run(train_cycle(model, images, tmp_path / "out", settings, finish=True))
    assert (
        found.scores["images"] == 29
        and any("answers 'spiculated' in" in note for note in found.notes)
        and Package.read(tmp_path / "out").explains is not None
    )


def test_stopped_in_the_first_epoch_nothing_is_left(workplace, tmp_path):
    place, _ = workplace
    steps = train_cycle(
        loaded(place / "model"), place / "images", tmp_path / "out", CycleTrainingSettings(**CPU, epochs=2)
    )
    while "epoch 1" not in next(steps).stage:
        pass
    steps.close()
    assert not list(tmp_path.iterdir())


def test_two_processes_do_not_train_into_one_folder(workplace, tmp_path):
    place, _ = workplace
    settings = CycleTrainingSettings(**CPU, epochs=1)
    first = train_cycle(loaded(place / "model"), place / "images", tmp_path / "out", settings)
    while "epoch 1" not in next(first).stage:
        pass
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom MedXAILib.resume import resumable\nfrom MedXAILib.errors import MedXAIError\n"
        "try:\n    with resumable(sys.argv[2]): pass\nexcept MedXAIError as error: print(error.message)"
    )
    told = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parents[2]), str(tmp_path / "out")], capture_output=True, text=True)  # fmt: skip
    assert "Another process is working on" in told.stdout
    run(first)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out"]


def test_damaged_weights_are_told(workplace, tmp_path):
    place, _ = workplace
    model, settings = loaded(place / "model"), CycleTrainingSettings(**CPU, epochs=2)
    stopped_after(train_cycle(model, place / "images", tmp_path / "out", settings), 1)
    (partial_of(tmp_path / "out") / ".state" / BEST).write_bytes(b"torn")
    with pytest.raises(MedXAIError, match="is damaged; remove"):
        run(train_cycle(model, place / "images", tmp_path / "out", settings, finish=True))


def test_images_larger_than_the_patch_are_asked_about_in_every_window(tmp_path):
    """The lesion lies in a corner: in the middle the classifier would see none."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for n in range(24):
        array = (40 * rng.random((1, 3 * EDGE, 3 * EDGE))).astype(np.float32)
        if n % 2:
            array[0, 4:10, 6:12] = 100
        io.write_volume(folder / f"image-{n:02}.nrrd", Volume(array, np.eye(4), "image", "HU"))
    about = {"size": [EDGE, EDGE], "fit": "window", "intensity": {"kind": "window", "low": 0, "high": 100}}
    model = classifier(window(2, gain=40.0)[0], input=about)
    found = run(train_cycle(model, folder, tmp_path / "out", CycleTrainingSettings(**CPU, epochs=1)))
    assert any("in 12 and 'label 0' in 24 images" in note for note in found.notes)
    assert any("judged at their middle" in note for note in found.notes)
    explains = Package.read(tmp_path / "out").explains
    assert explains.mean[0] < 0.22 and explains.sd[1] < 0.4


def test_padding_belongs_to_the_image_where_the_classifier_pads(tmp_path):
    images = write_noise(tmp_path / "images", edge=12)
    padded = loaded(write_classifier(tmp_path / "pad", input=INPUT | {"fit": "pad", "spacing": None}).folder)
    found = run(train_cycle(padded, images, tmp_path / "out", CycleTrainingSettings(**CPU, epochs=1)))
    assert found.scores["images"] + 3 >= 28
    any_size = classifier(window(2)[0], input={"multiple_of": 8, "intensity": {"kind": "window", "low": 0, "high": 100}})  # fmt: skip
    run(train_cycle(any_size, write_noise(tmp_path / "more", edge=13), tmp_path / "two", CycleTrainingSettings(**CPU, epochs=1)))  # fmt: skip
    assert json.loads((tmp_path / "two" / "figures.json").read_text("utf-8"))["shape"] == [16, 16]


def test_of_a_table_with_a_split_the_train_side_is_taken(workplace, tmp_path):
    place, _ = workplace
    images = write_noise(tmp_path / "images")
    rows = ["image,split", *(f"image-{n:03}.nrrd,{'test' if n < 8 else 'train'}" for n in range(32))]
    (images / "labels.csv").write_text("\n".join(rows) + "\n", "utf-8")
    found = run(train_cycle(loaded(place / "model"), images, tmp_path / "out", CycleTrainingSettings(**CPU, epochs=1)))
    assert any("Of 32 rows of labels.csv the 24 with split=train were taken" in note for note in found.notes)


def test_both_labels_of_a_sigmoid_classifier_are_asked_about(tmp_path):
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(EDGE * EDGE, 2))
    with torch.no_grad():
        module[1].weight[1] = -1.0
        module[1].bias.copy_(torch.tensor([0.0, -1000.0]))  # the second label is never seen
    model = classifier(module, output={"activation": "sigmoid", "labels": ["a", "b"]}, input={"intensity": {"kind": "window", "low": 0, "high": 100}})  # fmt: skip
    with pytest.raises(MedXAIError, match="answers 'b' in none of 32 images"):
        run(train_cycle(model, write_noise(tmp_path / "images"), tmp_path / "out", CycleTrainingSettings(**CPU, positive="a", negative="b")))  # fmt: skip


def refusal(place, images, words, tmp_path, model=None, **settings):
    model = loaded(place / "model") if model is None else model
    with pytest.raises(MedXAIError, match=words):
        run(train_cycle(model, images, tmp_path / "refused", CycleTrainingSettings(**(CPU | settings))))
    assert not (tmp_path / "refused").exists() and not partial_of(tmp_path / "refused").exists()


def test_bad_input_is_refused_in_one_sentence(workplace, tmp_path):
    place, _ = workplace
    images = place / "images"
    refusal(place, write_noise(tmp_path / "small", edge=12), r"patch of 16 × 16 voxels is larger than every image \(the largest: 12 × 12\); give larger images", tmp_path)  # fmt: skip
    refusal(place, images, "has no label 'round'", tmp_path, positive="round")
    refusal(place, images, "Both classes are 'smooth'", tmp_path, positive="smooth", negative="smooth")
    refusal(place, images, "takes 16 × 16 voxels, so --patch cannot be 8", tmp_path, patch=8)
    refusal(place, tmp_path / "nowhere", "There is no folder", tmp_path)
    refusal(place, write_noise(tmp_path / "few", 4), "an explainer needs at least 8", tmp_path)
    one_sided = write_classifier(tmp_path / "one-sided")
    model = loaded(one_sided.folder)
    with torch.no_grad():
        model.module.classifier[-1].bias[0] += 1000
    refusal(
        place, images, r"answers 'spiculated' in none of 32 images .* give images of 'spiculated' too", tmp_path, model
    )
    three = loaded(write_classifier(tmp_path / "three", labels=("a", "b", "c")).folder)
    refusal(place, images, r"has 3 classes \(a, b, c\); name the one of G⁺", tmp_path, three)
    refusal(place, images, "name the one of G⁻ too", tmp_path, three, positive="a")
    flat = loaded(write_classifier(tmp_path / "flat").folder)
    with torch.no_grad():
        flat.module.classifier[-1].weight.zero_()
    refusal(place, images, "no usable gradient", tmp_path, flat)


def test_images_of_another_class_and_small_ones_are_left_out_and_told(tmp_path):
    images = write_noise(tmp_path / "images", 48)
    write_noise(tmp_path / "small", 2, edge=10)
    for file in (tmp_path / "small").iterdir():
        file.rename(images / f"small-{file.name}")
    three = loaded(write_classifier(tmp_path / "three", labels=("a", "b", "c")).folder)
    found = run(train_cycle(three, images, tmp_path / "out", CycleTrainingSettings(**CPU, epochs=1, positive="a", negative="b")))  # fmt: skip
    skipped = json.loads((tmp_path / "out" / "figures.json").read_text("utf-8"))["images"]["skipped"]
    assert any("answers neither 'a' nor 'b'" in why for why in skipped.values())
    assert found.scores["images_skipped"] == len(skipped) and 0 < len(skipped) < 48


# ---- the command ---------------------------------------------------------------------------------------------------------


def test_the_command_writes_beside_the_model(workplace, tmp_path, capsys):
    place, _ = workplace
    write_classifier(tmp_path / "mine")
    assert main(["train", "cycle", place / "images", "--model", tmp_path / "mine", "--epochs", "1", "--width", ".05", "--device", "cpu"]) == 0  # fmt: skip
    assert Package.read(tmp_path / "mine-cycle").task == "explanation"
    told = capsys.readouterr().out
    assert "flip rate" in told and "check transfer" in told
    assert main(["train", "cycle", place / "images", "--model", tmp_path / "mine"]) == 1
    assert "exists already" in capsys.readouterr().err


def test_killed_and_started_again_it_ends_with_the_same_weights(workplace, tmp_path):
    place, _ = workplace
    command = [sys.executable, "-m", "MedXAILib", "train", "cycle", str(place / "images"), "--model", str(place / "model"), "--width", ".05", "--batch", "8", "--device", "cpu", "--json"]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    process = subprocess.Popen([*command, "--epochs", "40", "--output", str(tmp_path / "killed")], stdout=subprocess.PIPE, env=environment, text=True)  # fmt: skip
    for line in process.stdout:
        if re.search(r'"curve": "validation", "step": 2,', line):
            break
    time.sleep(0.05)  # somewhere in the third epoch, or while it is being kept
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = epochs_kept(tmp_path / "killed")
    assert 2 <= done < 40
    epochs = str(done + 1)
    subprocess.run([*command, "--epochs", epochs, "--output", str(tmp_path / "killed")], check=True, stdout=subprocess.DEVNULL, env=environment)  # fmt: skip
    subprocess.run([*command, "--epochs", epochs, "--output", str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL, env=environment)  # fmt: skip
    one, two = (read_weights(tmp_path / name / "weights.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(one[name], two[name]) for name in one)
