"""The cohort of `cycle`: every table by hand on a linear classifier and a pair of generators that adds a known map; stopped and gone on; bad input."""

from __future__ import annotations

import csv
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from test_impact_cohort import opened, packaged
from torch import nn

from MedXAILib import cli, io
from MedXAILib.errors import MedXAIError
from MedXAILib.evaluation import cycle_cases
from MedXAILib.evaluation.cycle_cases import MEASURES, agreement
from MedXAILib.evaluation.cycle_cohort import CycleCohort, cycle_cohort
from MedXAILib.evaluation.cycle_page import cycle_picture
from MedXAILib.evaluation.statistics import holm, signed_rank
from MedXAILib.evaluation.transfer import transfer
from MedXAILib.explanation import run
from MedXAILib.models.explainer import Pair
from MedXAILib.models.sides import Sides
from MedXAILib.models.ssim import dssim
from MedXAILib.package import write_package
from MedXAILib.settings import CycleSettings
from MedXAILib.volume import Volume

EDGE, GAIN, OFFSET = 8, 0.5, 2.0
SCALE = 128  # of the volume's units are one network unit; whole numbers of them, so that sums are exact
W = np.zeros((EDGE, EDGE))
W[2:5, 2:5] = 1  # what the classifier looks at: 9 voxels
MOVE = np.zeros((EDGE, EDGE))
MOVE[2:5, 2:5] = 0.5  # what G⁺ adds and G⁻ takes away
MOVE[6, 6] = -0.25
CAUSE = np.zeros((EDGE, EDGE))
CAUSE[2:4, 3:6] = 100.0  # 6 voxels, 4 of them where the classifier looks; in the volume's units
CAUSE[0, 0] = 5.0  # too little to count
MATRIX = np.diag([-1.0, -1.0, 1.0, 1.0])
SETTINGS = CycleSettings(device="cpu")
NAMES = ("deepshap", "deeptaylor", "lrp", "gradient")


class Plane(nn.Module):
    """z = (0, GAIN Σ W x − OFFSET)."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(EDGE * EDGE, 2)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.weight[1] = GAIN * torch.tensor(W.ravel(), dtype=torch.float32)
            self.linear.bias[:] = torch.tensor([0.0, -OFFSET])

    def forward(self, x):
        return self.linear(x.flatten(1))


class Planted(Pair):
    """G⁺ and G⁻ add and take away the same image; of what comes back G⁻(G⁺(x)) lies 0.125 above x."""

    def __init__(self, positive: str, negative: str, at: int):
        move = torch.tensor(MOVE, dtype=torch.float32)
        self._module = SimpleNamespace(positive=lambda x: x + move, negative=lambda x: x - move)
        self.about = SimpleNamespace(positive=positive, negative=negative, data_range=1.0)
        self.sides, self.labels, self.exchanged = Sides(at, 1 - at), (positive, negative), False

    def back(self, up, down):
        return (up + down) / 2 + 0.125, (up + down) / 2


def generators(positive="mass", negative="healthy", at=1):
    return Planted(positive, negative, at)


def image(n, label):
    """In the volume's units."""
    level = 1.0 if label == "mass" else 0.2
    rng = np.random.default_rng(n)
    return np.round(SCALE * (level * (W > 0) * rng.uniform(0.2, 1.2) + rng.normal(0, 0.1, W.shape))).astype(np.float32)


def write(folder, name, array):
    folder.mkdir(parents=True, exist_ok=True)
    array = array if array.ndim == 3 else array[None]
    io.write_volume(folder / name, Volume(array, MATRIX, name))


def table_of(folder, rows, columns=("image", "label", "patient_id", "split", "cause")):
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, columns, extrasaction="ignore")
        out.writeheader()
        out.writerows(rows)


@pytest.fixture
def folder(tmp_path):
    """Twelve test cases and six training images, half of each class; one cause for all."""
    folder, rows = tmp_path / "cases", []
    for n in range(18):
        name, label = f"case-{n:02}.nrrd", ("healthy", "mass")[n % 2]
        write(folder / "images", name, image(n, label))
        rows.append({"image": name, "label": label, "patient_id": n, "split": "test" if n < 12 else "train", "cause": "cause.nrrd"})  # fmt: skip
    write(folder / "causes", "cause.nrrd", CAUSE.astype(np.float32))
    table_of(folder, rows)
    return folder


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(cycle_cases, "pair_of", lambda *_: (generators(), {"name": "pair", "sha256": "2" * 64}))
    size = {"size": [EDGE, EDGE], "fit": "pad", "intensity": {"kind": "linear", "multiply": 1 / SCALE, "add": 0.0}}
    return opened(packaged(tmp_path / "net", 2, Plane(), input=size))


def rows_of(folder, side="test"):
    found = [one for one in csv.DictReader((folder / "labels.csv").open()) if one["split"] == side]
    return [(one, io.read_volume(folder / "images" / one["image"]).array[0] / SCALE) for one in found]


def f(x):
    return GAIN * (W * x).sum() - OFFSET


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_the_measures_are_those_of_the_hand():
    """|map| is 0.5 at 9 voxels, 4 of them caused, 0.25 at one, 0 elsewhere; 6 of 64 are caused."""
    found = agreement(MOVE, CAUSE)
    wins = 4 * (58 - 5 + 5 / 2) + 2 * (52 / 2)  # of the 58 not caused 5 are at 0.5, 1 at 0.25, 52 at 0
    assert found["auc"] == pytest.approx(wins / (6 * 58))
    assert found["average_precision"] == pytest.approx(4 / 6 * 4 / 9 + 2 / 6 * 6 / 64)
    assert found["correlation"] == pytest.approx(np.corrcoef(MOVE.ravel(), CAUSE.ravel())[0, 1])
    assert agreement(-MOVE, CAUSE) == pytest.approx(found | {"correlation": -found["correlation"]})
    assert agreement(CAUSE, CAUSE) == pytest.approx(dict.fromkeys(MEASURES, 1.0))
    flat = agreement(np.ones_like(MOVE), CAUSE)
    assert flat == {"auc": 0.5, "average_precision": pytest.approx(6 / 64), "correlation": 0.0}
    assert all(math.isnan(value) for value in agreement(MOVE, 0 * CAUSE).values())
    inside = (slice(0, 6), slice(0, 6))  # without padding
    assert agreement(MOVE, CAUSE, inside) == pytest.approx(agreement(MOVE[inside], CAUSE[inside]))


def test_the_tables_are_those_of_the_hand(model, folder):
    pytest.importorskip("captum")
    result = run(cycle_cohort(model, folder, SETTINGS))
    assert isinstance(result, CycleCohort) and list(result.tables) == ["classifier", "transfer", "agreement", "tests", "cases"]  # fmt: skip
    cases = result.tables["cases"].columns
    listed, train = rows_of(folder), rows_of(folder, "train")
    assert cases["case"] == [one["image"] for one, _ in listed] and cases["state"] == ["done"] * 12
    # Probabilities: G± move Σ W x by 9 · 0.5.
    odds = np.array([f(x) for _, x in listed])
    shift = GAIN * 4.5
    np.testing.assert_allclose(cases["probability"], 1 / (1 + np.exp(-odds)), rtol=1e-4)
    np.testing.assert_allclose(cases["probability_positive"], 1 / (1 + np.exp(-odds - shift)), rtol=1e-4)
    np.testing.assert_allclose(cases["probability_negative"], 1 / (1 + np.exp(-odds + shift)), rtol=1e-4)
    assert cases["flipped"] == [float(o - shift <= 0 if o > 0 else o + shift > 0) for o in odds]
    true = [one["label"] == "mass" for one, _ in listed]
    metrics = dict(zip(result.tables["classifier"].columns["metric"], result.tables["classifier"].columns["value"]))
    assert metrics["Accuracy"] == np.mean((odds > 0) == true) == result.scores["accuracy"]
    assert metrics["Sensitivity"] == np.mean(odds[true] > 0)
    moved = transfer(cases["probability"], cases["probability_negative"], cases["probability_positive"], odds > 0, cases["flipped"])  # fmt: skip
    assert result.tables["transfer"].columns["t"][4] == moved.up.t == pytest.approx(stats.ttest_rel(cases["probability_positive"], cases["probability"]).statistic)  # fmt: skip
    assert result.scores["flipped"] == moved.flipped.value == np.mean(cases["flipped"])
    images = [torch.tensor(x, dtype=torch.float32)[None, None] for _, x in listed]
    apart = [float(dssim(x, [x + 0.125], 1.0)[0]) for x in images]
    np.testing.assert_allclose(cases["cycle_error"], (0.125 + np.array(apart)) / 4, atol=1e-6)
    assert result.scores["cycle_error"] == pytest.approx(np.mean(cases["cycle_error"]))
    # Maps: R = 2 MOVE; of the linear network every rival is known.
    middle = np.mean([x for _, x in train], 0)
    for at, (_, x) in enumerate(listed):
        maps = {"R": 2 * MOVE, "gradient": GAIN * W, "lrp": GAIN * W * x, "deepshap": GAIN * W * (x - middle)}
        for method, values in maps.items():
            for measure, value in agreement(values, CAUSE).items():
                assert cases[f"{measure}_{method}"][at] == pytest.approx(value, abs=1e-4), (method, measure)
        assert cases["explained_lrp"][at] == pytest.approx(f(x), abs=1e-5)
        assert cases["total_lrp"][at] == pytest.approx(f(x) + OFFSET, abs=1e-4) and cases["biases_lrp"][at] == pytest.approx(-OFFSET, abs=1e-4)  # fmt: skip
        assert cases["explained_deepshap"][at] == pytest.approx(f(x) - f(middle), abs=1e-5) == pytest.approx(cases["total_deepshap"][at], abs=1e-4)  # fmt: skip
        assert cases["total_deeptaylor"][at] == pytest.approx(f(x), abs=1e-4)
    table = result.tables["agreement"].columns
    assert table["method"] == ["R", *NAMES] and table["n"] == [12] * 5
    for measure in MEASURES:
        for at, method in enumerate(table["method"]):
            assert table[measure][at] == pytest.approx(np.mean(cases[f"{measure}_{method}"]))
            assert table[f"{measure}_low"][at] <= table[measure][at] <= table[f"{measure}_high"][at]
    assert table["sums_hold"][1:4] == [1.0, 1.0, 0.0] and math.isnan(table["sums_hold"][0])
    assert result.scores["auc_R"] == table["auc"][0] and (result.scores["cases"], result.scores["skipped"]) == (12, 0)


def test_the_tests_are_those_of_the_pairs(model, folder):
    result = run(cycle_cohort(model, folder, SETTINGS, rivals=("lrp", "gradient")))
    tests, cases = result.tables["tests"].columns, result.tables["cases"].columns
    assert list(zip(tests["measure"], tests["rival"])) == [(m, r) for m in MEASURES for r in ("lrp", "gradient")]
    for at, (measure, rival) in enumerate(zip(tests["measure"], tests["rival"])):
        difference = np.array(cases[f"{measure}_R"]) - np.array(cases[f"{measure}_{rival}"])
        assert tests["difference"][at] == pytest.approx(difference.mean(), abs=1e-9)
        assert tests["p"][at] == signed_rank(cases[f"{measure}_R"], cases[f"{measure}_{rival}"]).p
        assert tests["low"][at] <= tests["difference"][at] + 1e-12 and tests["n"][at] == 12
    assert tests["p_holm"] == holm(tests["p"])
    checks = result.self_checks
    lows = [low for measure, low in zip(tests["measure"], tests["low"]) if measure == "auc"]
    assert checks["nearer_than_rivals"]["value"] == min(lows) and checks["nearer_than_rivals"]["passed"] is (min(lows) > 0)  # fmt: skip
    assert checks["moves_both_ways"]["passed"] is True and checks["all_cases"]["passed"] is True
    assert checks["rivals_add_up"]["value"] == 0 and checks["rivals_add_up"]["passed"] is False
    assert any("Conservation of LRP fails in 12 of 12" in note and "biases keep the rest" in note for note in result.notes)  # fmt: skip


def test_what_the_provenance_says(model, folder):
    pytest.importorskip("captum")
    result = run(cycle_cohort(model, folder, SETTINGS, background=4))
    about = result.provenance
    assert (about["label"], about["negative"], about["cases"], about["skipped"]) == ("mass", "healthy", 12, {})
    drawn = about["background"]["images"]
    assert len(drawn) == 4 and set(drawn) < {one["image"] for one, _ in rows_of(folder, "train")}
    assert about["explainer"]["name"] == "pair" and about["rivals"] == list(NAMES)
    again = run(cycle_cohort(model, folder, SETTINGS, background=4))
    assert again.provenance["background"] == about["background"]
    assert again.tables["agreement"].columns["auc"] == result.tables["agreement"].columns["auc"]


def test_classes_exchanged(model, folder, monkeypatch):
    """The other class as the positive one: maps and cause change their sign, so the agreement stays; probabilities are those of the other class."""
    one = run(cycle_cohort(model, folder, SETTINGS, rivals=("lrp", "deeptaylor")))
    other = run(cycle_cohort(model, folder, CycleSettings(device="cpu", label="healthy"), rivals=("lrp", "deeptaylor")))
    for measure in MEASURES:
        assert other.tables["agreement"].columns[measure] == pytest.approx(one.tables["agreement"].columns[measure], abs=1e-5)  # fmt: skip
    assert other.scores["probability"] == pytest.approx(1 - one.scores["probability"])
    assert other.scores["probability_positive"] == pytest.approx(1 - one.scores["probability_negative"])
    assert other.scores["accuracy"] == one.scores["accuracy"] and other.scores["flipped"] == one.scores["flipped"]
    assert other.provenance["label"] == "healthy"
    assert other.tables["cases"].columns["explained_lrp"] == pytest.approx([-v for v in one.tables["cases"].columns["explained_lrp"]])  # fmt: skip
    # Against all else, as of a network whose labels each stand for themselves.
    pair = generators(negative="not mass")
    pair.sides = Sides(pair.sides.positive, None)
    monkeypatch.setattr(cycle_cases, "pair_of", lambda *_: (pair, {"name": "pair", "sha256": "2" * 64}))
    alone = run(cycle_cohort(model, folder, SETTINGS, rivals=()))
    assert alone.scores["accuracy"] == one.scores["accuracy"] and alone.provenance["negative"] == "not mass"
    assert run(cycle_cohort(model, folder, CycleSettings(device="cpu", label="not mass"), rivals=())).scores["accuracy"] == one.scores["accuracy"]  # fmt: skip


def test_of_three_classes_only_the_pairs_other_one_counts_as_flipped(tmp_path, folder, monkeypatch):
    """G± move the odds across, but where a third class is the likeliest, nothing is flipped: as of a single image."""
    pair = generators()
    monkeypatch.setattr(cycle_cases, "pair_of", lambda *_: (pair, {"name": "pair", "sha256": "2" * 64}))
    size = {"size": [EDGE, EDGE], "fit": "pad", "intensity": {"kind": "linear", "multiply": 1 / SCALE, "add": 0.0}}
    net = nn.Sequential(nn.Flatten(), nn.Linear(EDGE * EDGE, 3))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight[1] = GAIN * torch.tensor(W.ravel(), dtype=torch.float32)
        net[1].bias[:] = torch.tensor([0.0, -OFFSET, 0.3])
    model = opened(packaged(tmp_path / "net", 2, net, input=size, output={"labels": ["healthy", "mass", "cyst"]}))
    shift, odds = GAIN * 4.5, np.array([f(x) for _, x in rows_of(folder)])
    flipped = np.where(odds > 0, False, odds + shift > 0.3)  # below 0.3 'cyst' is the likeliest, never 'healthy'
    assert 0 < flipped.sum() < 12 and (odds > 0).any()
    for label, share in (("", "flipped_to_positive"), ("healthy", "flipped_to_negative")):
        result = run(cycle_cohort(model, folder, CycleSettings(device="cpu", label=label), rivals=()))
        assert result.tables["cases"].columns["flipped"] == list(flipped)
        assert result.scores["flipped"] == flipped.mean()
        assert result.scores[share] == pytest.approx(flipped[odds <= 0].mean())


# ---- where the network looks -----------------------------------------------------------------------------------------


def test_larger_images_are_looked_at_around_their_masks(model, folder, tmp_path):
    """The same cases in the corner of larger volumes of three slices: the same figures."""
    rows = [one for one, _ in rows_of(folder)]
    large = tmp_path / "large"
    for row in rows:
        small = io.read_volume(folder / "images" / row["image"]).array
        whole, cause, mask = (np.zeros((3, 20, 24), np.float32) for _ in range(3))
        whole[1, 9:17, 10:18], cause[1, 9:17, 10:18], mask[1, 9:17, 10:18] = small[0], CAUSE, 1
        mask[2, 0, 0] = 1  # a speck elsewhere
        write(large / "images", row["image"], whole)
        write(large / "causes", row["image"], cause)
        write(large / "masks", row["image"], mask.astype(np.uint8))
        row |= {"cause": row["image"], "mask": row["image"]}
    table_of(large, rows, ("image", "label", "split", "cause", "mask"))
    found = run(cycle_cohort(model, large, SETTINGS, rivals=("lrp",)))
    wanted = run(cycle_cohort(model, folder, SETTINGS, rivals=("lrp",)))
    for name in ("auc_R", "auc_lrp", "probability", "probability_positive"):
        assert found.scores[name] == pytest.approx(wanted.scores[name]), name
    assert found.tables["cases"].columns["slice"] == ["k:0"] * 12  # of what was cut out
    centered = CycleSettings(device="cpu", center_ras=tuple(MATRIX[:3, :3] @ (13.5, 12.5, 1.0)))
    assert run(cycle_cohort(model, large, centered, rivals=())).scores["auc_R"] == pytest.approx(wanted.scores["auc_R"])
    table_of(large, rows, ("image", "label", "split", "cause"))
    with pytest.raises(MedXAIError, match=r"too large|larger than the patch"):
        run(cycle_cohort(model, large, SETTINGS, rivals=()))


def test_what_belongs_to_the_cause():
    """A tenth of the largest |cause| and more: 100 and −15 of these four."""
    cause, values = np.array([100.0, -15.0, 9.0, 0.0]), np.array([1.0, 4.0, 3.0, 2.0])
    assert agreement(values, cause)["auc"] == 0.5  # of the two the first beats none of the others, the second both


def test_padding_is_left_out(model, folder):
    """Images of 6 rows of which the network sees 8: the agreement is that of the 6."""
    rows = [one for one, _ in rows_of(folder)]
    for row in rows:
        write(folder / "images", row["image"], io.read_volume(folder / "images" / row["image"]).array[0, :6])
    write(folder / "causes", "cause.nrrd", CAUSE[:6].astype(np.float32))
    result = run(cycle_cohort(model, folder, SETTINGS, rivals=()))
    wanted = agreement(2 * MOVE[1:7], CAUSE[:6])  # padded by a row on either side
    assert wanted != pytest.approx(agreement(2 * MOVE, np.pad(CAUSE[:6], ((1, 1), (0, 0)))))
    for measure in MEASURES:
        assert result.tables["cases"].columns[f"{measure}_R"] == pytest.approx([wanted[measure]] * 12)


@pytest.mark.parametrize("masked", [False, True])
def test_a_volume_is_looked_at_where_most_of_its_cause_is(model, folder, masked, tmp_path, monkeypatch):
    """Of three slices the one with most of the mask, else of the cause."""
    if masked:
        model = opened(packaged(tmp_path / "any", 2, Plane(), input={"size": [EDGE, EDGE], "fit": "resize"}))
    rows = [one for one, _ in rows_of(folder)]
    for row in rows:
        write(folder / "images", row["image"], np.repeat(io.read_volume(folder / "images" / row["image"]).array, 3, 0))
        mask = np.zeros((3, EDGE, EDGE), np.uint8)
        mask[0, 2, 2], mask[2, 2:4, 2] = 1, 1
        write(folder / "masks", row["image"], mask)
        row["mask"] = row["image"]
    write(folder / "causes", "cause.nrrd", np.stack([0.05 * CAUSE, CAUSE, 2 * CAUSE * (CAUSE == 100) * (np.arange(EDGE) < 4)]).astype(np.float32))  # fmt: skip
    table_of(folder, rows, ("image", "label", "cause", *["mask"] * masked))
    result = run(cycle_cohort(model, folder, SETTINGS, rivals=()))
    assert result.tables["cases"].columns["slice"] == ["k:2" if masked else "k:1"] * 12


def test_solid_volumes(tmp_path, monkeypatch):
    """A 3-D network: the same maps in four slices; a picture shows the slice with most of the cause."""
    deep = np.zeros((4, EDGE, EDGE))
    deep[1:3] = MOVE
    cause = np.zeros_like(deep)
    cause[2], cause[1] = CAUSE, CAUSE / 2
    move = torch.tensor(deep, dtype=torch.float32)
    pair = generators()
    pair.images = lambda x: (x + move, x - move)
    monkeypatch.setattr(cycle_cases, "pair_of", lambda *_: (pair, {"name": "pair", "sha256": "2" * 64}))
    net = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4 * EDGE * EDGE, 2))
    size = {"size": [4, EDGE, EDGE], "fit": "pad", "intensity": {"kind": "linear", "multiply": 1 / SCALE, "add": 0.0}}
    model, rows = opened(packaged(tmp_path / "net", 3, net, input=size)), []
    for n in range(8):
        array = np.stack([image(4 * n + k, "mass") for k in range(4)])
        write(tmp_path / "cases" / "images", f"{n}.nrrd", array)
        rows.append({"image": f"{n}.nrrd", "label": ("healthy", "mass")[n % 2], "cause": "cause.nrrd"})
    write(tmp_path / "cases" / "causes", "cause.nrrd", cause.astype(np.float32))
    table_of(tmp_path / "cases", rows, ("image", "label", "cause"))
    result = run(cycle_cohort(model, tmp_path / "cases", SETTINGS, rivals=("deeptaylor", "lrp", "gradient")))
    assert result.scores["auc_R"] == pytest.approx(agreement(deep, cause)["auc"])
    assert result.tables["agreement"].columns["method"] == ["R", "deeptaylor", "lrp", "gradient"]
    assert result.examples[0].maps["R"].shape == (EDGE, EDGE)
    np.testing.assert_allclose(result.examples[0].cause, CAUSE, rtol=1e-5)


# ---- stopped, and gone on --------------------------------------------------------------------------------------------


def test_a_stopped_study_goes_on_where_it_stopped(model, folder, tmp_path, monkeypatch):
    log, done = tmp_path / "cases.jsonl", []

    def stop(step):
        done.extend(step.points)
        if len(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cycle_cohort(model, folder, SETTINGS, log, rivals=("lrp",)), stop)
    assert len(log.read_text().splitlines()) == 6
    asked = []
    before = cycle_cases.Study._row
    monkeypatch.setattr(cycle_cases.Study, "_row", lambda self, one: (asked.append(one.name), before(self, one))[1])
    result = run(cycle_cohort(model, folder, SETTINGS, log, rivals=("lrp",)))
    assert len(asked) == 7 and result.provenance["resumed"] == 5
    whole = run(cycle_cohort(model, folder, SETTINGS, rivals=("lrp",)))

    def plain(result):
        return {name: column for name, column in result.tables["cases"].columns.items() if "seconds" not in name}

    assert repr(plain(result)) == repr(plain(whole))  # NaN and all
    assert result.tables["tests"].columns == whole.tables["tests"].columns
    with pytest.raises(MedXAIError, match=r"12 finished cases of another study \(rivals differ\)"):
        run(cycle_cohort(model, folder, SETTINGS, log, rivals=("gradient",)))
    table_of(folder, [dict(one, label="mass") for one, _ in rows_of(folder)])
    with pytest.raises(MedXAIError, match=r"another study \(table differ\)"):
        run(cycle_cohort(model, folder, SETTINGS, log, rivals=("lrp",)))


# ---- what may be missing or bad --------------------------------------------------------------------------------------


def test_without_captum(model, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    result = run(cycle_cohort(model, folder, SETTINGS))
    assert result.tables["agreement"].columns["method"] == ["R", "deeptaylor", "lrp", "gradient"]
    assert any("DeepSHAP was left out: it needs captum" in note for note in result.notes)
    assert result.provenance["background"]["images"] == []


def test_a_rival_without_a_rule_is_left_out_and_told(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(cycle_cases, "pair_of", lambda *_: (generators(), {"name": "pair", "sha256": "2" * 64}))
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2), nn.Flatten(), nn.Linear(2 * EDGE * EDGE, 2))
    size = {"size": [EDGE, EDGE], "fit": "pad", "intensity": {"kind": "linear", "multiply": 1 / SCALE, "add": 0.0}}
    model = opened(packaged(tmp_path / "net", 2, net, input=size))
    result = run(cycle_cohort(model, folder, SETTINGS, rivals=("lrp", "gradient")))
    assert result.tables["agreement"].columns["method"] == ["R", "gradient"]
    assert any("LRP failed in 12 of 12 cases" in note and "has no rule" in note for note in result.notes)
    assert "has no rule" in result.tables["cases"].columns["note"][0]


def test_without_causes_or_split(model, folder):
    rows = [one for one, _ in rows_of(folder)]
    table_of(folder, rows, ("image", "label", "patient_id"))
    result = run(cycle_cohort(model, folder, SETTINGS, rivals=("lrp",)))
    assert "tests" not in result.tables and all(math.isnan(v) for v in result.tables["agreement"].columns["auc"])
    assert any("agreement was not measured" in note for note in result.notes) and result.scores["cases"] == 12
    assert "nearer_than_rivals" not in result.self_checks
    if pytest.importorskip("captum"):
        drawn = run(cycle_cohort(model, folder, SETTINGS, rivals=("deepshap",), background=3))
        assert any("no train side" in note for note in drawn.notes)
        assert len(drawn.provenance["background"]["images"]) == 3


def test_one_folder_per_class(model, tmp_path):
    for n in range(8):
        label = ("healthy", "mass")[n % 2]
        write(tmp_path / "classes" / label, f"{n}.nrrd", image(n, label))
    result = run(cycle_cohort(model, tmp_path / "classes", SETTINGS, rivals=()))
    assert result.scores["cases"] == 8 and result.tables["cases"].columns["case"][0] == "healthy/0.nrrd"
    assert sum(result.tables["cases"].columns["true"]) == 4


def test_bad_cases_are_skipped_and_told(model, folder):
    rows = [one for one, _ in rows_of(folder)]
    rows[1]["cause"] = "nowhere.nrrd"
    rows[2]["label"] = "cyst"
    rows[3]["label"] = ""
    rows[5]["split"] = "later"
    rows.append(dict(rows[0]))
    (folder / "images" / rows[4]["image"]).write_bytes(b"no image")
    write(folder / "images", rows[6]["image"], np.full((EDGE, EDGE), np.nan, np.float32))
    write(folder / "images", rows[7]["image"], np.zeros((EDGE, 2 * EDGE), np.float32))
    (folder / "images" / rows[8]["image"]).unlink()
    table_of(folder, rows)
    result = run(cycle_cohort(model, folder, SETTINGS, rivals=()))
    cases = result.tables["cases"].columns
    notes = dict(zip(cases["case"], cases["note"]))
    for n, words in {1: "its cause 'nowhere.nrrd' is not there", 2: "neither 'mass' nor 'healthy'", 3: "no class", 4: rows[4]["image"], 5: "neither train nor test", 6: "finite|NaN",
                     7: "grid of the image", 8: "no such file"}.items():  # fmt: skip
        assert any(word in notes[rows[n]["image"]] for word in words.split("|")), (n, notes[rows[n]["image"]])
    assert notes[rows[0]["image"] + " (again)"] == "the table has it twice"
    assert (result.scores["cases"], result.scores["skipped"]) == (4, 9)
    assert result.self_checks["all_cases"]["passed"] is False and any("9 of 13 cases were skipped" in note for note in result.notes)  # fmt: skip
    assert any("an interval needs 8" in note for note in result.notes)
    assert math.isnan(result.scores["accuracy_low"]) and all(len(column) == 13 for column in cases.values())


def test_refusals_in_one_sentence(model, folder, tmp_path):
    with pytest.raises(MedXAIError, match="was trained for 'mass' against 'healthy', not for 'cyst'"):
        run(cycle_cohort(model, folder, CycleSettings(device="cpu", label="cyst")))
    with pytest.raises(MedXAIError, match="There is no folder"):
        run(cycle_cohort(model, tmp_path / "nowhere", SETTINGS))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedXAIError, match="holds no image with a class"):
        run(cycle_cohort(model, tmp_path / "empty", SETTINGS))
    (tmp_path / "empty" / "labels.csv").write_text("image,class\na,b\n")
    with pytest.raises(MedXAIError, match="has no column 'label'"):
        run(cycle_cohort(model, tmp_path / "empty", SETTINGS))
    with pytest.raises(MedXAIError, match="compares with at least one image, not with 0"):
        run(cycle_cohort(model, folder, SETTINGS, background=0))
    table_of(folder, [dict(one, split="train") for one, _ in rows_of(folder)])
    with pytest.raises(MedXAIError, match="no image on the test side"):
        run(cycle_cohort(model, folder, SETTINGS))
    two = opened(packaged(tmp_path / "two", input={"channels": ["a", "b"]}))
    with pytest.raises(MedXAIError, match="takes 2 channels"):
        run(cycle_cohort(two, folder, SETTINGS))


# ---- the explainer itself, the page ----------------------------------------------------------------------------------


def test_a_real_explainer(tmp_path, folder, capsys):
    """A package of generators that add and take away 0.5 everywhere: R is 1 in network units."""
    from safetensors.torch import save_file

    from MedXAILib.models.generators import GeneratorPair

    size = {"size": [EDGE, EDGE], "fit": "pad", "intensity": {"kind": "linear", "multiply": 1 / SCALE, "add": 0.0}}
    package = packaged(tmp_path / "net", 2, Plane(), input=size)
    about = {"spatial_dims": 2, "channels": 1, "width": 0.1, "residual": True}
    pair = GeneratorPair(**about)
    pair.positive.last.bias.data.fill_(0.5)
    pair.negative.last.bias.data.fill_(-0.5)
    fields = {
        "name": "pair", "task": "explanation", "weights": "weights.safetensors", "network": {"name": "GeneratorPair", "arguments": about},
        "input": {"spatial_dims": 2, "channels": ["image"], "orientation": None, "spacing": None, "multiple_of": 1, **size},
        "output": {"labels": ["mass", "healthy"], "activation": "none"},
        "explains": {"sha256": package.sha256, "name": "net", "positive": "mass", "negative": "healthy", "labels": ["healthy", "mass"], "data_range": 1.0, "mean": [0.0, 1.0], "sd": [0.0, 1.0]},
    }  # fmt: skip
    state = {name: value.contiguous() for name, value in pair.state_dict().items()}
    write_package(tmp_path / "net-cycle", fields, lambda path: save_file(state, str(path)))
    result = run(cycle_cohort(opened(package), folder, SETTINGS, rivals=("gradient",)))
    assert result.provenance["explainer"]["name"] == "pair" and result.scores["auc_R"] == 0.5
    odds = np.array([f(x) for _, x in rows_of(folder)])
    np.testing.assert_allclose(result.tables["cases"].columns["probability_positive"], 1 / (1 + np.exp(-odds - GAIN * 4.5)), rtol=1e-4)  # fmt: skip
    assert result.examples[0].maps["R"] == pytest.approx(SCALE, rel=1e-5)  # in the volume's units
    # And as a person does it.
    out = tmp_path / "out"
    options = ["--cohort", str(folder), "--output", str(out), "--device", "cpu", "--background", "3", "--trust"]
    assert cli.main(["cycle", "--model", str(package.folder), *options]) == 0
    about = json.loads((out / "explanation.json").read_text(encoding="utf-8"))
    assert about["explainer"]["name"] == "pair" and about["scores"]["cases"] == 12 and about["command"][1] == "cycle"
    with (out / "agreement.csv").open(encoding="utf-8") as file:
        assert next(csv.DictReader(file))["auc"] == "0.5"
    assert {"classifier.csv", "transfer.csv", "tests.csv", "cases.csv", "cases.jsonl"} <= {
        one.name for one in out.iterdir()
    }
    assert (out / "report.png").is_file() or any("report.png was not written" in note for note in about["notes"])
    assert cli.main(["cycle", "--model", str(package.folder), *options[:2], "--label", "cyst", "--output", str(tmp_path / "no"), "--trust"]) == 1  # fmt: skip
    assert "not for 'cyst'" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_the_examples_and_the_page(model, folder, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    result = run(cycle_cohort(model, folder, SETTINGS, rivals=("deeptaylor", "lrp")))
    assert [one.name for one in result.examples] == [f"case-{n:02}.nrrd" for n in range(6)]
    first = result.examples[0]
    np.testing.assert_allclose(first.images[0], rows_of(folder)[0][1] * SCALE, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(first.maps["R"], 2 * SCALE * MOVE, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(first.cause, CAUSE, rtol=1e-5)
    np.testing.assert_allclose(first.images[2] - first.images[1], first.maps["R"], rtol=1e-3, atol=1e-2)
    cycle_picture(result, tmp_path / "page.png")
    picture = imread(tmp_path / "page.png")[..., :3]
    assert picture.shape[0] > 900 and picture.shape[1] > 1100 and picture.std() > 0.05
    del result.examples[0].maps["lrp"], result.examples[1].maps["deeptaylor"]  # a rival may fail in some cases
    result.examples[2].cause = None
    cycle_picture(result, tmp_path / "apart.png")
    assert (tmp_path / "apart.png").stat().st_size > 10000
    result.examples = result.examples[:2]
    cycle_picture(result, tmp_path / "two.png")  # none has all
    assert (tmp_path / "two.png").stat().st_size > 10000
    table_of(folder, [one for one, _ in rows_of(folder)], ("image", "label"))
    few = run(cycle_cohort(model, folder, SETTINGS, rivals=()))  # neither causes nor rivals
    cycle_picture(few, tmp_path / "few.png")
    assert (tmp_path / "few.png").stat().st_size > 10000
