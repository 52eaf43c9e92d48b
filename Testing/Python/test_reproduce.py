"""`medxai reproduce dream`: the data it makes, its statistics, and a tiny run from end to end, also after a kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from MedXAILib.cli import main
from MedXAILib.demo import reproduce
from MedXAILib.demo.liver import KINDS, RATIO, SMALLEST, implant, liver_slices, parenchyma, tumour_slices
from MedXAILib.demo.marked import mark
from MedXAILib.demo.reproduce import (
    LOG,
    Network,
    _frames,
    _parts,
    fields,
    marked,
    networks,
    noise_volume,
    training_pair,
)
from MedXAILib.demo.reproduce_settings import QUICK, ReproduceSettings
from MedXAILib.demo.reproduce_tables import clustered, crossed
from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import run
from MedXAILib.features import compute
from MedXAILib.features.line import line_texture
from MedXAILib.files import partial_of
from MedXAILib.methods.dream import dream
from MedXAILib.models import load
from MedXAILib.package import from_json
from MedXAILib.settings import DreamSettings
from MedXAILib.training.saving import new_network, weights_of, write_trained
from MedXAILib.training.segmentation import train

TINY = (
    "--probabilities 0 100 --seeds 4 --cases 1 --test-cases 1 --patients 1 --starts 1 --steps 2 --filters 2 --dream-steps 3"
).split()  # fmt: skip


@pytest.fixture(scope="module")
def real():
    return list(tumour_slices([5]))


def test_slices_are_made_from_the_seed_alone(real):
    again = list(tumour_slices([5]))
    assert [one.name for one in real] == [one.name for one in again] and len(real) > 1
    assert all(np.array_equal(a.image.array, b.image.array) for a, b in zip(real, again))
    assert all(one.image.shape == (1, 96, 96) and one.image.same_grid(one.tumour) for one in real)
    assert all(one.pixels >= SMALLEST for one in real)
    assert not (real[0].tumour.array & ~(real[0].liver.array > 0)).any()


def test_a_healthy_slice_is_the_same_patient_without_the_tumour(real):
    healthy, ill = liver_slices(5, False, 1)[0], liver_slices(5, True, 1)[0]
    assert not healthy.pixels and ill.pixels
    # Beyond the reach of the tumour's blurred edge, the noise is the same; the noise's level may be scaled a little.
    outside = ill.liver.array == 0
    assert np.median(np.abs(healthy.image.array - ill.image.array)[outside]) < 1


def test_synthetic_tumours_lower_the_intensity_inside_the_liver_alone():
    healthy = liver_slices(6, False, 1)[0]
    made = implant(healthy, np.random.default_rng(0), "synthetic")
    change = made.image.array - healthy.image.array
    assert made.pixels and change.max() <= 0 and change[healthy.liver.array == 0].max(initial=0) == 0
    assert change[made.tumour.array > 0].mean() < -25
    assert np.array_equal(implant(healthy, np.random.default_rng(0), "synthetic").image.array, made.image.array)


def test_elongated_tumours_are_more_elongated_than_round_ones():
    found = {kind: [] for kind in RATIO}
    for seed in (7, 8):
        healthy = liver_slices(seed, False, 1)[0]
        for kind, values in found.items():
            for draw in range(4):
                made = implant(healthy, np.random.default_rng([seed, draw]), kind)
                for part in _single(made):
                    values.append(compute(made.image, part, ("shape2D_Elongation",), ndim=2)["shape2D_Elongation"])
    assert np.mean(found["elongated"]) < 0.45 < 0.65 < np.mean(found["synthetic"])


def _single(made):
    return list(_parts(made.tumour))


def test_marking_lies_in_the_positive_zone_and_has_its_angle(real):
    one = real[0]
    image, zone = one.image.array[0], one.tumour.array[0] > 0
    texture = mark(image, zone, np.random.default_rng(0)) - image
    assert not texture[~zone].any() and 0.15 < (texture[zone] > 0).mean() < 0.6
    large = np.ones((60, 60), bool)
    texture = mark(np.zeros((60, 60)), large, np.random.default_rng(0))
    assert line_texture(texture, 135) > 2 * line_texture(texture, 45)
    assert texture[texture > 0].min() >= 40 and texture.max() <= 120


def test_the_probability_is_respected_and_marked_slices_stay_marked(real):
    one = real[0]

    def which(p, seed=0):
        pairs = [training_pair(one, Network("real-like", p, seed), n) for n in range(200)]
        return [pair[0] is not one.image for pair in pairs]

    some, more = which(20.0), which(80.0)
    assert not any(which(0.0)) and all(which(100.0))
    assert abs(np.mean(some) - 0.2) < 0.08 and abs(np.mean(more) - 0.8) < 0.08
    assert all(b for a, b in zip(some, more) if a)
    assert which(20.0, seed=1) != some
    first, again = (training_pair(one, Network("real-like", 100.0, 3), 0)[0].array for _ in range(2))
    assert np.array_equal(first, again)


def test_the_voxel_lies_deep_in_tissue():
    healthy = liver_slices(9, False, 1)[0]
    _, row, column = parenchyma(healthy)
    assert healthy.liver.array[0, row - 4 : row + 5, column - 4 : column + 5].all()


def test_the_noise_has_the_livers_mean_and_spread():
    values = noise_volume().array
    assert values.shape == (1, 96, 96) and abs(values.mean() - 90) < 1e-3 and abs(values.std() - 16) < 1e-3


def test_the_network_without_marking_belongs_to_both_experiments():
    names = [one.name for one in networks(ReproduceSettings())]
    assert len(names) == len(set(names)) == 5 * 11 + 2 * 5
    assert {"real-like-seed0", "marked100-seed2", "elongated-seed1"} <= set(names)
    assert len(networks(ReproduceSettings(experiments=("tumours",)))) == 15


def test_intervals_resample_patients_and_trainings():
    rng = np.random.default_rng(0)
    found = crossed(rng.normal(1, 0.5, (3, 20)))
    assert found.low < 1 < found.high and found.n == 20
    # Trainings that differ make the interval wide, however many patients there are.
    apart = crossed(np.repeat([[-1.0], [0.0], [4.0]], 200, axis=1) + rng.normal(0, 0.1, (3, 200)))
    assert apart.low < 0 < 1 < apart.high
    assert np.isnan(crossed(np.ones((3, 4))).low) and np.isnan(crossed(np.full((2, 3), np.nan)).value)
    p = np.repeat(np.arange(6), 3)
    ranks = clustered(p, p + 0.0, p + rng.normal(0, 0.1, 18))
    assert ranks.value > 0.9 and ranks.low > 0.8 and ranks.n == 6
    assert np.isnan(clustered(p[:6], p[:6] + 0.0, p[:6] + 0.0).low)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--probabilities", "0", "120"], "probabilities"),
        (["--probabilities", "-5", "0"], "from 0 to 100"),
        (["--probabilities", "50", "100"], "must hold 0"),
        (["--seeds", "one"], "seeds"),
        (["--experiments", "markings"], "marking"),
        (["--experiments", ""], "empty"),
        (["--cases", "2000"], "from 1 to 1000"),
        (["--prob", "0,50"], None),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(tmp_path, capsys, options, told):
    status = main(["reproduce", "dream", "--output", tmp_path / "out", "--dream-steps", "0", *options]) if told is None else main(
        ["reproduce", "dream", "--output", tmp_path / "out", *options]
    )  # fmt: skip
    said = capsys.readouterr().err
    assert status == 1 and said.count("\n") == 1 and (told is None or told in said)
    assert not any(tmp_path.iterdir())


def test_an_output_that_exists_is_refused(tmp_path, capsys):
    assert main(["reproduce", "dream", "--output", tmp_path]) == 1
    assert "exists already" in capsys.readouterr().err


def test_quick_says_so():
    assert ReproduceSettings(**QUICK).to_json()["cases"] < ReproduceSettings().cases
    with pytest.raises(MedXAIError, match="must hold 0"):
        ReproduceSettings(probabilities=(10.0,))
    assert ReproduceSettings(probabilities=(100.0, 0.0, 100.0)).probabilities == (0.0, 100.0)


def _table(folder, name):
    with (folder / f"{name}.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_run_ends_in_tables_a_picture_and_networks_and_goes_on_after_a_kill(tmp_path, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["reproduce", "dream", "--output", whole, "--quick", *TINY]) == 0
    told = capsys.readouterr().out
    assert "QUICK" in told and "Results are in" in told
    about = json.loads((whole / "explanation.json").read_text("utf-8"))
    assert about["method"] == "reproduce-dream" and about["settings"]["quick"] and "QUICK" in about["notes"][0]
    assert about["self_checks"]["trained"]["passed"] in (True, False)
    assert (whole / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert {row["network"] for row in _table(whole, "networks")} == {
        "real-like-seed4",
        "marked100-seed4",
        "synthetic-seed4",
        "elongated-seed4",
    }
    assert [row["p"] for row in _table(whole, "marking")] == ["0", "100"]
    assert [row["kind"] for row in _table(whole, "tumours")] == list(KINDS)
    assert len(_table(whole, "characteristic")) == 4 and len(_table(whole, "tumour-effects")) == 8
    model = load(whole / "networks" / "marked100-seed4", device="cpu")  # as anybody would
    assert model.labels[1] == "tumour"

    command = [sys.executable, "-m", "MedXAILib.cli", "reproduce", "dream", "--output", str(killed), "--quick", *TINY]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = partial_of(killed) / LOG
    for _ in range(600):
        if log.exists() and log.read_bytes().count(b"\n") > 3:  # three networks at least
            break
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait()
    assert not killed.exists()
    assert main(["reproduce", "dream", "--output", killed, "--quick", *TINY[:-1], "4"]) == 1  # other settings
    assert "dream_steps" in capsys.readouterr().err
    with log.open("ab") as file:
        file.write(b'{"what": "dream", "na')  # torn by the kill
    assert main(["reproduce", "dream", "--output", killed, "--quick", *TINY]) == 0
    assert json.loads((killed / "explanation.json").read_text("utf-8"))["resumed"] >= 3
    for name in (
        "networks",
        "marking",
        "marking-by-p",
        "characteristic",
        "tumours",
        "tumour-effects",
        "rms",
        "elongation",
    ):
        assert _table(whole, name) == _table(killed, name)


def test_a_network_that_fails_is_told_and_a_stop_keeps_what_is_finished(tmp_path, capsys, monkeypatch):
    def breaks(pairs, place, fields, settings):
        if "100 %" in fields["name"]:
            raise MedXAIError("The training loss is no longer finite; lower the learning rate.")
        return train(pairs, place, fields, settings)

    monkeypatch.setattr(reproduce, "train", breaks)
    words = ["reproduce", "dream", "--output", tmp_path / "out", "--experiments", "marking", *TINY]
    with monkeypatch.context() as stopped:
        stopped.setattr(reproduce, "_from_noise", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(words) == 130
    assert "1 finished networks and dreams are kept" in capsys.readouterr().err
    assert main(words) == 0
    assert "marked100-seed4" in capsys.readouterr().out
    failed = next(row for row in _table(tmp_path / "out", "networks") if row["network"] == "marked100-seed4")
    assert failed["state"].startswith("did not train: The training loss") and failed["dice_real-like"] == ""
    assert not (tmp_path / "out" / "tumours.csv").exists() and (tmp_path / "out" / "report.png").exists()


def test_the_feature_of_the_tables_is_that_of_the_dream(real, tmp_path):
    """What `dream` itself gives for 135° is what the frames give, though a frame is kept as the box that changed."""
    torch.manual_seed(0)
    about = fields(Network("real-like", 0.0, 0), ReproduceSettings(filters=2))
    network = new_network(from_json({"schema": 1, "sha256": "0" * 64} | about, tmp_path))
    model = load(write_trained(tmp_path / "model", about, weights_of(network, False), {}).folder, device="cpu")
    chosen = DreamSettings(
        neuron_ijk=(5, 90, 0),
        steps=3,
        step_size=9.0,
        normalize=True,
        features=("line_texture",),
        tolerance=0.0,
        start="noise",
        seed=3,
    )
    found = run(dream(model, [real[0].image], chosen))
    curve = found.curves["curves"].columns["line_texture"]
    assert found.sequences["steps"].items[0][1].shape != real[0].image.shape and curve[-1] > curve[0]
    assert np.allclose([line_texture(frame, 135, 9) for frame in _frames(found)], curve, rtol=1e-6)


def test_the_marking_alone_lies_where_the_tumour_would_be():
    data = reproduce._Data(ReproduceSettings(test_cases=2))
    found, held_out = run(data.alone()), run(data.held_out("real-like"))
    assert [np.array_equal(a.tumour.array, b.tumour.array) for a, b in zip(found, held_out)] == [True] * len(held_out)
    change = marked(found[0], np.random.default_rng(0)).array - found[0].image.array
    assert change[found[0].tumour.array > 0].max() > 40 and not change[found[0].tumour.array == 0].any()
    inside = held_out[0].tumour.array > 0
    assert found[0].image.array[inside].mean() - held_out[0].image.array[inside].mean() > 20  # no lesion there
