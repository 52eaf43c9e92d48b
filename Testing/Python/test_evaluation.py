"""Cohorts: statistics that can be worked out by hand, a study that is stopped and goes on, cases that cannot be used."""

import csv
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import planted
import pytest
import torch
from safetensors.torch import save_file
from scipy import ndimage, stats
from test_dream import open_package

from MedXAILib import cases, cli, io
from MedXAILib.errors import MedXAIError
from MedXAILib.evaluation import cohort, resumable, vog
from MedXAILib.evaluation.statistics import coverage, estimate, pearson, percentiles, spearman
from MedXAILib.explanation import run
from MedXAILib.methods import REGISTRY
from MedXAILib.models import load
from MedXAILib.resume import Log
from MedXAILib.settings import AbilitySettings
from MedXAILib.volume import Volume

REPOSITORY = Path(__file__).resolve().parents[2]
MATRIX = np.diag([-1.5, -1.5, 2.0, 1.0])


# ---- statistics -----------------------------------------------------------------------------------------------------------


def test_correlations_are_those_of_the_hand_and_of_scipy():
    x, y = [1, 2, 3, 4], [1, 3, 2, 4]
    assert pearson(x, y) == pytest.approx(4 / 5) and spearman(x, y) == pytest.approx(4 / 5)  # 1 − 6·2/(4·15)
    random = np.random.default_rng(0)
    x = random.normal(size=50)
    y = np.round(np.exp(x + random.normal(size=50)))  # skewed, with ties
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
    rows = np.stack([x, x**2]), np.stack([y, -y])
    assert spearman(*rows, axis=1) == pytest.approx([float(spearman(a, b)) for a, b in zip(*rows)])


def test_the_interval_holds_the_truth_about_as_often_as_it_says(monkeypatch):
    """On normal data the truth is known; of 60 intervals of 95 %, fewer than 52 would hold it with a chance below 1 in 100."""
    monkeypatch.setattr("MedXAILib.evaluation.statistics.RESAMPLES", 1999)
    random, held, truth = np.random.default_rng(1), 0, 0.6
    for n in range(60):
        x, e = random.normal(size=(2, 60))
        found = estimate(pearson, x, truth * x + math.sqrt(1 - truth**2) * e, seed=n)
        fisher = np.tanh(np.arctanh(found.value) + np.array([-1.96, 1.96]) / math.sqrt(57))
        assert abs(found.low - fisher[0]) < 0.15 and abs(found.high - fisher[1]) < 0.15
        held += found.low <= truth <= found.high
    assert held >= 52


def test_the_interval_of_a_mean_is_that_of_scipy():
    values = np.random.default_rng(2).gamma(2, size=40)
    found = estimate(lambda v, axis: np.mean(v, axis), values)
    low, high = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    assert found.value == pytest.approx(values.mean()) and found.n == 40
    assert found.low == pytest.approx(low, abs=0.12) and found.high == pytest.approx(high, abs=0.12)


def test_what_is_undefined_is_told_as_such():
    nan = math.nan
    assert math.isnan(estimate(pearson, [1, 2, nan], [1, nan, 3]).value) and estimate(pearson, [1, nan], [2, 1]).n == 1
    flat = estimate(spearman, np.ones(20), np.arange(20))
    assert math.isnan(flat.value) and math.isnan(flat.low) and flat.n == 20
    few = estimate(pearson, [1, 2, 3, 4, nan], [1, 3, 2, 4, 5])
    assert few.value == pytest.approx(0.8) and math.isnan(few.low) and few.n == 4
    line = estimate(pearson, np.arange(9), 2 * np.arange(9))
    assert (line.value, line.low, line.high) == pytest.approx((1, 1, 1))


def test_coverage_and_percentiles_on_constructed_cases():
    score = np.array([0.9, 0.1, 0.5, 0.3, 0.7, 0.8, -np.inf, 0.2, 0.6, 0.4])
    dice = np.where(np.isfinite(score), score, 0)
    found = coverage(score, dice)
    assert found["coverage"] == [1, 0.9, 0.75, 0.5] and found["cases"] == [10, 9, 8, 5]  # 2.5 cases: two are rejected
    assert found["mean"] == pytest.approx([0.45, 0.5, 0.55, 0.7]) and found["from"][1:] == [0.1, 0.2, 0.5]
    assert found["sd"][-1] == pytest.approx(np.std([0.5, 0.6, 0.7, 0.8, 0.9], ddof=1))
    found = percentiles(score, dice)
    assert found["cases"] == [4, 3, 3] and found["to"] == pytest.approx([100 / 3, 200 / 3, 100])
    assert found["mean"] == pytest.approx([0.15, 0.5, 0.8]) and found["score"] == pytest.approx([0.2, 0.5, 0.8])
    assert percentiles(np.arange(60), np.arange(60))["cases"] == [6] * 10
    assert coverage([], [])["cases"] == [0] * 4 and percentiles([0.5], [1])["cases"] == [1]


# ---- variance of gradients ------------------------------------------------------------------------------------------------


def bright(seed, shape=(1, 30, 34), size=12, level=2.0):
    """An image with a bright square (cube), and that square."""
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(0, 1) if n == 1 else slice(9, 9 + size) for n in shape)] = 1
    image = np.random.default_rng(seed).normal(0, 0.1, shape) + level * mask
    return Volume(image.astype(np.float32), MATRIX, f"case {seed}"), Volume(mask, MATRIX, "mask")


def kept(package, factors, name="epoch-{}"):
    """Checkpoints beside a package of a linear network: its logit times each factor."""
    (package.folder / "checkpoints").mkdir(exist_ok=True)
    state = load(package.folder, device="cpu").module.state_dict()
    last = [name for name in state if name.endswith("weight")][-1]
    for n, factor in enumerate(factors):
        values = {k: v.clone().contiguous() for k, v in state.items()}
        values[last] *= factor
        save_file(values, str(package.folder / "checkpoints" / f"{name.format(n + 1)}.safetensors"))


@pytest.mark.parametrize("ndim", [2, 3])
def test_vog_of_a_linear_network_is_that_of_the_closed_form(linear_package, ndim):
    """The gradient of the mean logit over the region R is the mean of the kernels that lie on R; checkpoint t has a_t times that."""
    weight = np.random.default_rng(4).normal(0.5, 1, (3,) * ndim).astype(np.float32)
    weight *= 2 / weight.sum()
    package = linear_package(weight, bias=-2.0)
    factors = (1, 2, 4, 0.5)
    kept(package, factors)
    model = load(package.folder, device="cpu")
    image, _ = bright(0) if ndim == 2 else bright(0, (20, 21, 22), 5)
    networks = vog.checkpoints(model)
    before = torch.get_rng_state()
    found = vog.variance_of_gradients(model, networks, [image], [""] if ndim == 3 else ["k:0"])
    values = image.array if ndim == 3 else image.array[0]
    region = ndimage.correlate(values, weight, mode="constant") - 2 > 0
    assert (
        20 < region.sum() < 0.3 * region.size and not region[:5].any()
    )  # far from the border, where kernels are cut off
    gradient = ndimage.convolve(region.astype(float), weight.astype(float), mode="constant") / region.sum()
    assert found == pytest.approx(np.std(factors) * np.abs(gradient).mean(), rel=1e-4)
    assert torch.equal(torch.get_rng_state(), before) and len(networks) == 4


def test_vog_where_nothing_is_predicted_or_little_is_kept(tmp_path, linear_package):
    package = linear_package(np.eye(1, dtype=np.float32) - 0, bias=-1.0)
    model = load(package.folder, device="cpu")
    with pytest.raises(MedXAIError, match="holds 0 checkpoints of its training and 3 are needed"):
        vog.checkpoints(model)
    kept(package, (1, 2, 3))
    assert [p.name for p in vog.files(package)] == [f"epoch-{n}.safetensors" for n in (1, 2, 3)]
    kept(package, (1,), "epoch-{}0")
    assert vog.files(package)[-1].name == "epoch-10.safetensors"  # by number, not by letter
    dark = Volume(np.zeros((1, 9, 9), np.float32), MATRIX, "dark")
    assert math.isnan(vog.variance_of_gradients(model, vog.checkpoints(model), [dark], ["k:0"]))
    (package.folder / "checkpoints" / "epoch-2.safetensors").write_bytes(b"no weights")
    with pytest.raises(MedXAIError, match=r"'epoch-2.safetensors' does not hold weights of 'planted'"):
        vog.checkpoints(model)
    program = open_package(planted.linear_package(tmp_path / "program", np.eye(1), "ts"))
    (program.package.folder / "checkpoints").mkdir()
    for n in range(3):
        (program.package.folder / "checkpoints" / f"epoch-{n}.safetensors").touch()
    with pytest.raises(MedXAIError, match="is a program, which cannot take the weights"):
        vog.checkpoints(program)


# ---- a cohort -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def room(tmp_path):
    """A network of two noisy units whose output is what is brighter than 1, and a folder of ten cases, the later the harder."""
    net = planted.Planted(2, 2, (1, 1))
    for n in range(2):
        net.tap(0, n, 0, 1, bias=10)
        net.tap(1, n, n, 1)
    net.tap(1, 1, 1, np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]))
    net.out(1, 0, 8)
    with torch.no_grad():
        net.last.bias[1] = -88
    package = planted.planted_package(tmp_path / "net", net)
    folder = tmp_path / "cases"
    folder.mkdir()
    for n in range(10):
        image, mask = bright(n, level=2.0)
        noise = np.random.default_rng(n).normal(0, 0.15 * n, image.shape)
        io.write_volume(folder / f"case-{n}.nrrd", image.with_array((image.array + noise).astype(np.float32)))
        io.write_volume(folder / f"case-{n}_mask.nrrd", mask)
    return package, folder


def medxai(room, *more, output="out"):
    package, folder = room
    return cli.main(
        ["ability", "--model", str(package.folder), "--cohort", str(folder), "--output", str(folder.parent / output)]
        + ["--device", "cpu", "--no-scene", *map(str, more)]
    )  # fmt: skip


def table(path):
    return list(csv.DictReader(path.open(encoding="utf-8")))


def test_every_case_is_what_a_single_run_gives(room, capsys):
    package, folder = room
    kept(package, (1, 2, 3))
    assert medxai(room, "--accept", 0.7) == 0
    out = folder.parent / "out"
    rows, model = {row["case"]: row for row in table(out / "cases.csv")}, load(package.folder, device="cpu")
    assert list(rows) == [f"case-{n}" for n in range(10)]
    for name, row in rows.items():
        image, mask = io.read_volume(folder / f"{name}.nrrd"), io.read_mask(folder / f"{name}_mask.nrrd")
        alone = run(REGISTRY["ability"](model, [image], AbilitySettings(device="cpu"), mask))
        for column, score in (
            ("dice", "output_dice"),
            ("mean_sa", "mean_sa"),
            ("separableness", "separableness"),
            ("gain", "gain"),
        ):
            assert float(row[column]) == alone.scores[score], (name, column)
        assert row["slice"] == "k:0" and row["state"] == "done" and float(row["vog"]) > 0
    dice, mu, vogs = (np.array([float(row[c]) for row in rows.values()]) for c in ("dice", "mean_sa", "vog"))
    assert dice[0] > 0.99 and dice[-1] < 0.8
    about = json.loads((out / "explanation.json").read_text(encoding="utf-8"))
    scores = about["scores"]
    assert scores["cases"] == 10 and scores["pearson"] == pytest.approx(stats.pearsonr(mu, dice)[0])
    assert scores["spearman"] == pytest.approx(stats.spearmanr(mu, dice)[0]) and scores["pearson_low"] < scores["pearson"] < scores["pearson_high"]  # fmt: skip
    assert scores["vog_pearson"] == pytest.approx(stats.pearsonr(vogs, dice)[0])
    assert scores["pearson_beyond_vog"] == pytest.approx(scores["pearson"] + scores["vog_pearson"])
    assert scores["gain"] == pytest.approx(np.mean([float(row["gain"]) for row in rows.values()]))
    normal = np.array([float(row["vog_normalized"]) for row in rows.values()])
    assert normal.mean() == pytest.approx(0, abs=1e-4) and normal.std() == pytest.approx(1)
    ranking = table(out / "ranking.csv")
    assert [float(r["mean_sa"]) for r in ranking] == sorted(mu)
    assert [r["verdict"] == "accepted" for r in ranking] == [float(r["mean_sa"]) >= 0.7 for r in ranking]
    assert all(rows[r["case"]]["rank"] == r["rank"] for r in ranking)
    assert [r["cases"] for r in table(out / "coverage.csv")] == ["10", "9", "8", "5"]
    assert [r["cases"] for r in table(out / "percentiles.csv")] == ["4", "3", "3"]
    assert about["command"][:2] == ["medxai", "ability"] and about["checkpoints"] == 3 and about["resumed"] == 0
    for name in ("dice-by-mean-sa", "dice-by-separableness", "dice-by-vog"):
        assert len(table(out / f"{name}.csv")) == 10
    assert not list(folder.parent.glob(".out*"))
    told = capsys.readouterr().out
    assert (
        re.search(r"^  pearson: 0\.\d+ \[-?[\d.]+, [\d.]+\]$", told, re.M)
        and "pearson low" not in told
        and "Results are in" in told
    )


def test_without_checkpoints_the_score_is_empty_and_the_reason_told(room):
    assert medxai(room) == 0
    out = room[1].parent / "out"
    assert {row["vog"] for row in table(out / "cases.csv")} == {""}
    about = json.loads((out / "explanation.json").read_text(encoding="utf-8"))
    assert "vog_pearson" not in about["scores"] and any("3 are needed" in note for note in about["notes"])


def test_a_stopped_cohort_goes_on_where_it_stopped(room, capsys, monkeypatch):
    _, folder = room
    partial = folder.parent / ".out.partial"
    monkeypatch.setattr(cli.Progress, "say", stop_at(4))
    before = counting(monkeypatch)
    assert medxai(room) == 130
    told = capsys.readouterr().err
    assert f"4 finished cases are kept in '{partial}'" in told and "same command goes on" in told
    assert [p.name for p in partial.iterdir()] == ["cases.jsonl"] and not (folder.parent / "out").exists()
    monkeypatch.undo()
    with (partial / "cases.jsonl").open("ab") as file:
        file.write(b'{"case": "case-4", "fil')  # killed while it wrote
    os.utime(folder / "case-1.nrrd", ns=(1, 1))  # another file now
    again = counting(monkeypatch)
    assert medxai(room) == 0
    assert before == [f"case-{n}" for n in range(4)] and again == ["case-1", *(f"case-{n}" for n in range(4, 10))]
    whole = table(folder.parent / "out" / "cases.csv")
    assert not partial.exists() and len(whole) == 10
    assert medxai(room, output="whole") == 0
    for one, other in zip(whole, table(folder.parent / "whole" / "cases.csv")):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}
    about = json.loads((folder.parent / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert about["resumed"] == 3


def stop_at(number):
    """Progress that interrupts once so many cases are finished."""
    seen = []

    def say(self, fraction, stage, points=()):
        seen.extend(points)
        if len(seen) == number:
            raise KeyboardInterrupt

    return say


def counting(monkeypatch):
    """The names of the cases computed, in order."""
    module, names = sys.modules["MedXAILib.evaluation.cohort"], []
    plain = module._case

    def counted(model, paths, *others):
        names.append(paths[0].stem)
        return (yield from plain(model, paths, *others))

    monkeypatch.setattr(module, "_case", counted)
    return names


def test_a_killed_cohort_keeps_its_cases(room):
    package, folder = room
    process = subprocess.Popen(
        [sys.executable, "-m", "MedXAILib", "ability", "--model", str(package.folder), "--cohort", str(folder), "--json"]
        + ["--output", str(folder.parent / "out"), "--device", "cpu", "--no-scene"],
        stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    for line in process.stdout:
        if '"point"' in line:
            break
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.communicate(timeout=30)
    lines = (folder.parent / ".out.partial" / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 2 and medxai(room) == 0
    about = json.loads((folder.parent / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert 1 <= about["resumed"] <= len(lines) - 1 and about["scores"]["cases"] == 10


def test_another_model_or_setting_is_not_mixed_in(room, capsys, monkeypatch):
    package, folder = room
    monkeypatch.setattr(cli.Progress, "say", stop_at(2))
    assert medxai(room) == 130
    monkeypatch.undo()
    capsys.readouterr()
    for more, word in ((("--units", "1"), "units"), (("--segment", 1), "segment")):
        assert medxai(room, *more) == 1
        told = capsys.readouterr().err
        assert f"2 finished cases of another study ({word} differ)" in told and "choose another output folder" in told
    about = json.loads((package.folder / "model.json").read_text(encoding="utf-8"))
    state = load(package.folder, device="cpu").module.state_dict()
    save_file({k: 2 * v.float() for k, v in state.items()}, str(package.weights_path))
    from MedXAILib.package import sha256

    about["sha256"] = sha256(package.weights_path)
    (package.folder / "model.json").write_text(json.dumps(about), encoding="utf-8")
    assert medxai(room) == 1 and "(model differ)" in capsys.readouterr().err
    (folder.parent / ".out.partial" / "cases.jsonl").write_text("[1]\n", encoding="utf-8")
    assert medxai(room) == 1 and "is not a list of finished cases; remove" in capsys.readouterr().err


def test_bad_cases_are_reported_and_skipped(room, capsys):
    _, folder = room
    (folder / "case-1.nrrd").write_bytes((folder / "case-1.nrrd").read_bytes()[:300])
    (folder / "case-2_mask.nrrd").unlink()
    (folder / "case-3.nrrd").unlink()
    (folder / "case-3.nrrd").symlink_to(folder / "gone.nrrd")
    mask = io.read_mask(folder / "case-4_mask.nrrd")
    io.write_volume(folder / "case-4_mask.nrrd", Volume(mask.array, MATRIX @ np.diag([1.1, 1.1, 1, 1]), "mask"))
    image = io.read_volume(folder / "case-5.nrrd")
    image.array[0, 3, 3] = np.nan
    io.write_volume(folder / "case-5.nrrd", image)
    (folder / "case-6.nrrd").unlink()
    assert medxai(room) == 0
    rows = {row["case"]: row for row in table(folder.parent / "out" / "cases.csv")}
    assert [name for name, row in rows.items() if row["state"] == "done"] == ["case-0", "case-7", "case-8", "case-9"]
    for name, words in {
        "case-1": "case-1.nrrd", "case-2.nrrd": "no mask belongs to it", "case-3": "case-3.nrrd", "case-4": "another grid", "case-5": "NaN",
        "case-6_mask.nrrd": "no image belongs to it",
    }.items():  # fmt: skip
        assert (
            rows[name]["state"] == "skipped"
            and words.lower() in rows[name]["note"].lower()
            and rows[name]["dice"] == ""
        )
    about = json.loads((folder.parent / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert about["scores"]["skipped"] == 6 and about["self_checks"]["all_cases"]["passed"] is False
    assert any(note.startswith("6 of 10 cases were skipped (") for note in about["notes"])
    assert about["scores"]["pearson_low"] is None and any("an interval needs 8" in note for note in about["notes"])


@pytest.mark.parametrize("slices", ["", "all"])
def test_slices_of_solid_cases_are_those_of_a_single_run(room, slices):
    package, folder = room
    kept(package, (1, 2, 3))
    for n in range(10):
        (folder / f"case-{n}.nrrd").unlink()
        (folder / f"case-{n}_mask.nrrd").unlink()
    image, mask = bright(3, (5, 30, 34), 12)
    mask.array[:] = 0
    mask.array[1, 9:21, 9:12], mask.array[3, 9:21, 9:21] = 1, 1
    image = image.with_array(
        (0.1 * np.random.default_rng(0).normal(size=mask.shape) + 2 * mask.array).astype(np.float32)
    )
    io.write_volume(folder / "solid.nrrd", image)
    io.write_volume(folder / "solid_label.nrrd", mask)
    model, settings = load(package.folder, device="cpu"), AbilitySettings(slice=slices, device="cpu")
    alone = run(REGISTRY["ability"](model, [image], settings, mask))
    found = run(cohort(model, folder, settings)).tables["cases"].columns
    assert found["dice"] == [alone.scores["output_dice"]] and found["mean_sa"] == [alone.scores["mean_sa"]]
    assert found["slice"] == ["k:3" if not slices else "k:0 to k:4"]
    # The region's share of the voxels of the one slice, or of all five; the gradient within it is 1 over its size (times 8: the last layer).
    expected = np.std((1, 2, 3)) * 8 / (30 * 34 * (5 if slices else 1))
    assert found["vog"][0] == pytest.approx(expected, rel=1e-4)


def test_the_figures_on_one_page(room, monkeypatch):
    pytest.importorskip("matplotlib")
    package, folder = room
    options = ["ability", "--model", package.folder, "--cohort", folder, "--device", "cpu", "--output"]
    assert cli.main([*options, folder.parent / "out"]) == 0
    assert (folder.parent / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main([*options, folder.parent / "without"]) == 0
    about = json.loads((folder.parent / "without" / "explanation.json").read_text(encoding="utf-8"))
    assert any("report.png was not written: The report needs matplotlib" in note for note in about["notes"])


def test_an_empty_output_is_ranked_first_and_left_out_of_the_correlation(room):
    _, folder = room
    dark, mask = bright(50, level=0)
    io.write_volume(folder / "case-x.nrrd", dark)
    io.write_volume(folder / "case-x_mask.nrrd", mask)
    assert medxai(room) == 0
    out = folder.parent / "out"
    first = table(out / "ranking.csv")[0]
    assert (
        first["case"] == "case-x"
        and float(first["mean_sa"]) == 0
        and first["dice"] == "0"
        and first["verdict"] == "look at it"
    )
    rows = table(out / "cases.csv")
    dice, mu = (np.array([float(r[c]) for r in rows if r["case"] != "case-x"]) for c in ("dice", "mean_sa"))
    about = json.loads((out / "explanation.json").read_text(encoding="utf-8"))
    assert (
        about["scores"]["pearson"] == pytest.approx(stats.pearsonr(mu, dice)[0])
        and about["scores"]["without_output"] == 1
    )
    assert table(out / "coverage.csv")[0]["cases"] == "11" and any("case-x" in note for note in about["notes"])


def test_refusals_in_one_sentence(room, tmp_path, capsys):
    package, folder = room

    def refused(*more):
        status = medxai(room, *more)
        told = capsys.readouterr().err.strip()
        assert status == 1 and told.count("\n") == 0 and "Traceback" not in told, told
        assert not list(folder.parent.glob(".out*")) and not (folder.parent / "out").exists()
        return told

    assert "not allowed with argument" in refused("--volume", folder / "case-0.nrrd")
    assert "bring their own masks" in refused("--segmentation", folder / "case-0_mask.nrrd")
    assert "--layers means nothing in a cohort" in refused("--layers", "last-1")
    assert "--noise-levels means nothing in a cohort" in refused("--noise-levels", "0.1")
    assert "needs the units" in refused("--units", "none")
    assert "has no label 'tumour'" in refused("--label", "tumour")
    assert "None of the 10 cases" in refused("--segment", 7) and "no layer 'last'" in refused("--units", "last")
    (tmp_path / "empty").mkdir()
    assert "holds no image and mask pair" in refused("--cohort", tmp_path / "empty")
    assert "There is no folder" in refused("--cohort", tmp_path / "nowhere")
    assert cli.main(["ability", "--model", str(package.folder), "--output", str(tmp_path / "out")]) == 1
    assert "--volume --cohort is required" in capsys.readouterr().err
    assert (
        cli.main(["dream", "--model", str(package.folder), "--cohort", str(folder), "--output", str(tmp_path / "o")])
        == 1
    )
    several = dataclasses.replace(package, input=dataclasses.replace(package.input, channels=("a", "b")))
    model = load(package.folder, device="cpu")
    for field, value, words in (("package", several, "takes 2 channels"), ("package", dataclasses.replace(package, task="classification"), "classification network")):  # fmt: skip
        setattr(model, field, value)
        with pytest.raises(MedXAIError, match=words):
            run(cohort(model, folder, AbilitySettings()))


# ---- what outlives a stop -------------------------------------------------------------------------------------------------


def test_a_resumable_folder(tmp_path):
    with pytest.raises(MedXAIError, match="no"), resumable(tmp_path / "a" / "out"):
        raise MedXAIError("no")
    assert not (tmp_path / "a").exists()
    with pytest.raises(MedXAIError) as error, resumable(tmp_path / "out") as folder:
        (folder / "one").touch()
        raise MedXAIError("full", kind="disk")
    assert str(folder) in error.value.hint
    with resumable(tmp_path / "out") as again:
        assert (again / "one").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "one").exists()
    with pytest.raises(MedXAIError, match="exists already"), resumable(tmp_path / "out"):
        pass


def test_the_log_drops_a_torn_line_only(tmp_path):
    path, about = tmp_path / "log", {"model": "a", "layers": ("x",)}
    log = Log(path, about)
    log.add({"case": "ä\u2028", "value": 0.1 + 0.2, "none": math.nan})
    log.add({"case": "b"})
    whole = path.read_bytes()
    for n in range(len(whole) + 1):
        path.write_bytes(whole[:n])
        rows = Log(path, about).rows
        assert (
            rows
            == [{"case": "ä\u2028", "value": 0.1 + 0.2, "none": None}, {"case": "b"}][
                : max(0, whole[:n].count(b"\n") - 1)
            ]
        )
        assert path.read_bytes() == whole[: whole[:n].rfind(b"\n") + 1]
    Log(None, about).add({})


def test_files_without_a_partner_are_told(tmp_path):
    for name in ("a.nrrd", "a_mask.nrrd", "b.nii.gz", "c_seg.nrrd", "images/d.png", "masks/d.png", "masks/e.png", "f/image.nrrd", "g/mask.nrrd", ".h.nrrd", "notes.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [name for name, *_ in cases.pairs(tmp_path)] == ["a", "d"]
    image, mask = "no image belongs to it", "no mask belongs to it"
    found = {name.replace("\\", "/"): why for name, why in cases.incomplete(tmp_path).items()}
    assert found == {"b.nii.gz": mask, "c_seg.nrrd": image, "masks/e.png": image, "f/image.nrrd": mask, "g/mask.nrrd": image}  # fmt: skip
