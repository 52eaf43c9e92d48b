"""The cohort of `counterfactual`: known answers on a planted classifier, a study that is stopped and goes on, the grid search, the real method."""

from __future__ import annotations

import csv
import json
import math
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_evaluation import stop_at
from torch import nn

from MedXAILib import cli, io
from MedXAILib.errors import MedXAIError
from MedXAILib.evaluation.impact_cohort import impact_cohort
from MedXAILib.evaluation.impact_grid import grid_of, impact_grid
from MedXAILib.evaluation.statistics import signed_rank
from MedXAILib.explanation import Explanation, Step, run
from MedXAILib.methods import REGISTRY
from MedXAILib.models import load
from MedXAILib.package import write_package
from MedXAILib.settings import CounterfactualSettings
from MedXAILib.volume import Volume

MATRIX, SPACING = np.diag([-2.0, -0.5, 4.0, 1.0]), (4.0, 0.5, 2.0)  # mm along k, j, i
SIZE = (1, 24, 32)
BREAST = np.s_[:, 2:22, 2:28]  # 520 voxels in each slice


class Bright(nn.Module):
    """z of ``mass`` grows with what is brighter than 1; CAM and saliency are both where that is."""

    def __init__(self, dims=2, gain=400.0):
        super().__init__()
        self.conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(1, 1, 1)
        self.linear = nn.Linear(1, 2)
        with torch.no_grad():
            self.conv.weight.fill_(1)
            self.conv.bias.fill_(-1)
            self.linear.weight[:] = torch.tensor([[0.0], [gain]])
            self.linear.bias[:] = torch.tensor([0.0, -5.0])

    def forward(self, x):
        return self.linear(F.relu(self.conv(x)).flatten(2).mean(2))


def packaged(folder, dims=2, module=None, **changes):
    """The classifier as a program, to be trusted."""
    fields = {
        "name": "bright", "task": "classification", "weights": "weights.ts",
        "input": {
            "spatial_dims": dims, "channels": ["image"], "orientation": None, "spacing": None, "size": None, "multiple_of": 1,
            "intensity": {"kind": "none"},
        },
        "output": {"labels": ["healthy", "mass"], "activation": "softmax"},
    }  # fmt: skip
    for name, value in changes.items():
        fields[name] = fields[name] | value if isinstance(value, dict) else value

    def save(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script((module or Bright(dims)).eval()), str(path))

    return write_package(folder, fields, save)


def opened(package):
    return load(package.folder, device="cpu", trusted={package.sha256})


def case(folder, name, at=((0, 10, 8),), size=4, level=3.0, noise=0.1, shape=SIZE, organ=True, finding=True):
    """An image with bright squares (in every slice from k on) and its label map: 1 the breast, 2 the masses."""
    seed = sum(map(ord, name))
    labels = np.zeros(shape, np.uint8)
    if organ:
        labels[BREAST] = 1
    image = np.random.default_rng(seed).uniform(-noise, noise, shape)
    for k, j, i in at:
        image[k : k + 2, j : j + size, i : i + size] += level
        if finding:
            labels[k : k + 2, j : j + size, i : i + size] = 2
    folder.mkdir(exist_ok=True)
    io.write_volume(folder / f"{name}.nrrd", Volume(image.astype(np.float32), MATRIX, name))
    io.write_volume(folder / f"{name}_mask.nrrd", Volume(labels, MATRIX, name))


def standin(made):
    """`counterfactual` to be known by hand: what is brighter than 1, moved along i by ten times λ₂ voxels; the organ where λ₂ = λ₃ = 0; nothing where
    λ₃ > 5 and the case's number is even. What it was given is added to ``made``."""

    def counterfactual(model, volumes, settings, organ=None, annotation=None, start=None):
        yield Step(0.5, "Half")
        image = volumes[0]
        made.append((image.name, settings, organ, annotation))
        aside = 1 if settings.lambda_tv == CounterfactualSettings().lambda_tv else round(10 * settings.lambda_tv)
        region = np.roll(image.array > 1, aside, 2)
        if settings.lambda_tv == 0 == settings.lambda_area:
            region = organ.array > 0
        if settings.lambda_area > 5 and image.name[-1] in "02468":
            region = np.zeros_like(region)
        result = Explanation("counterfactual", "Counterfactual impact")
        result.masks["region"] = image.with_array(region.astype(np.uint8), "region")
        result.scores["probability_after"] = 0.25
        result.self_checks["drop_kept"] = {"value": 0.9, "passed": image.name != "case-1", "meaning": ""}
        return result

    return counterfactual


@pytest.fixture
def calls(monkeypatch):
    """The stand-in takes the method's place; what its runs were given."""
    made = []
    monkeypatch.setitem(REGISTRY, "counterfactual", standin(made))
    return made


@pytest.fixture
def room(tmp_path):
    """The classifier and ten cases, the finding of each in another place; case 9 has two."""
    for n in range(9):
        case(tmp_path / "cases", f"case-{n}", ((0, 4 + n, 6 + 2 * (n % 3)),))
    case(tmp_path / "cases", "case-9", ((0, 5, 6), (0, 15, 20)))
    return packaged(tmp_path / "net"), tmp_path / "cases"


def medxai(room, *more, output="out"):
    package, folder = room
    return cli.main(
        ["counterfactual", "--model", str(package.folder), "--trust", "--cohort", str(folder), "--output", str(folder.parent / output)]
        + ["--device", "cpu", *map(str, more)]
    )  # fmt: skip


def table(path):
    return list(csv.DictReader(path.open(encoding="utf-8")))


def report(folder):
    return json.loads((folder / "explanation.json").read_text(encoding="utf-8"))


# ---- known answers ---------------------------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_hand(room, calls, capsys):
    """Ours lies one voxel (2 mm) beside each finding; what CAM and saliency show above any percentile is the finding itself."""
    assert medxai(room, "--organ", 1, "--no-scene") == 0
    out = room[1].parent / "out"
    one, two = table(out / "table1.csv"), table(out / "table2.csv")
    assert [row["P"] for row in one] == ["50", "75", "90", "Ablation"] and [row["P"] for row in two] == [
        "50",
        "75",
        "90",
    ]
    # Two squares 10 voxels of 0.5 mm and 14 of 2 mm apart: of the four pairs two are 2 mm, two about as far apart as the squares.
    far = [math.hypot(5, 2 * di) for di in (13, 15)]
    d = [2.0] * 9 + [float(np.median([2, 2, *far]))]
    h = [2.0] * 9 + [float(np.mean(far))]  # from the one finding to the farthest voxel of the other region
    for row in one[:3]:
        assert float(row["D_ours"]) == pytest.approx(np.mean(d)) and float(row["D_ours_sd"]) == pytest.approx(
            np.std(d, ddof=1)
        )
        assert row["D_ours_n"] == "10" and float(row["H_cam"]) == pytest.approx(float(row["H_sal"]))
        assert float(row["D_cam"]) == pytest.approx(
            math.hypot(5, 28) / 2 / 10
        )  # 0 but for the two: of 0, 0, r, r the median
        assert float(row["D_sal"]) == pytest.approx(float(row["D_cam"]))
        assert float(row["H_ours"]) == pytest.approx(np.mean(h))
    assert one[3]["D_cam"] == "" and one[3]["D_cam_n"] == "0" and float(one[3]["D_ours"]) > 5
    area = np.array([16 / 520] * 9 + [32 / 520])
    for row in two:
        for method in ("ours", "cam", "sal"):
            assert float(row[f"A_{method}"]) == pytest.approx(area.mean())
        assert float(row["O_cam"]) == pytest.approx(0.75) == float(row["O_sal"])  # 12 of 16 voxels
    about = report(out)
    scores, checks = about["scores"], about["self_checks"]
    assert scores["distance_mm"] == pytest.approx(np.mean(d)) and scores["area_share"] == pytest.approx(area.mean())
    assert scores["dice"] == pytest.approx(0.75) and scores["hit"] == 1 and scores["cam_maximum_hit"] == 1
    assert (scores["cases"], scores["skipped"], scores["not_predicted"], scores["without_region"]) == (10, 0, 0, 0)
    assert scores["drop_kept_passed"] == 0.9 and scores["probability_after"] == 0.25 and scores["hit_low"] < 1
    assert checks["closer_than_rivals"]["passed"] is False and checks["all_cases"]["passed"] is True
    assert about["label"] == "mass" and about["cam"] == ["CAM"] and about["inpainter"]["fallback"] is True
    assert any("fall-back 'blur'" in note for note in about["notes"])
    assert about["command"][:2] == ["medxai", "counterfactual"] and not (out / "report.png").exists()
    assert "hit: 1 [" in capsys.readouterr().out


def test_the_tests_are_those_of_the_pairs(room, calls):
    assert medxai(room, "--organ", 1, "--no-scene") == 0
    out = room[1].parent / "out"
    rows, cases = table(out / "tests.csv"), table(out / "cases.csv")
    assert len(rows) == 3 * 7 and [row["rival"] for row in rows[:7]] == ["ablation", *["cam"] * 3, *["sal"] * 3]

    def column(name):
        return np.array([float(row[name]) for row in cases])

    for row in rows:
        method = row["rival"] + (f"_{row['percentile']}" if row["percentile"] else "")
        difference = column(f"{row['measure']}_ours") - column(f"{row['measure']}_{method}")
        assert float(row["difference"]) == pytest.approx(difference.mean())
        assert (
            float(row["p"]) == pytest.approx(signed_rank(difference, 0 * difference).p)
            and row["n"] == "10"
            and row["left_out"] == "0"
        )
        assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])
    # Nearer than the ablation in nine; between the two findings of the tenth the organ's centre is as good: the smallest rank, alone or not at all.
    assert float(rows[0]["p"]) == 2 * 2 / 2**10
    p = np.array([float(row["p"]) for row in rows])
    adjusted = np.array([float(row["p_holm"]) for row in rows])
    assert adjusted.min() == pytest.approx(min(1, 21 * p.min())) and (adjusted >= p).all()
    methods = {row["method"]: row for row in table(out / "methods.csv")}
    assert list(methods) == ["ours", "ablation", *(f"{r}_{q}" for r in ("cam", "sal") for q in (50, 75, 90))]
    assert float(methods["cam_50"]["dice"]) == 1 and float(methods["ablation"]["A"]) == 1


def test_an_empty_region_is_left_out_and_counted(room, calls):
    assert medxai(room, "--organ", 1, "--no-ablation", "--no-scene", "--lambda-area", 6, "--lambda-tv", 0.3) == 0
    out = room[1].parent / "out"
    about, cases = report(out), {row["case"]: row for row in table(out / "cases.csv")}
    assert [name for name, row in cases.items() if row["state"] == "no region"] == [
        f"case-{n}" for n in (0, 2, 4, 6, 8)
    ]
    assert cases["case-2"]["D_ours"] == "" and cases["case-2"]["A_ours"] == "" and cases["case-2"]["O_cam_50"] == ""
    assert (
        cases["case-2"]["dice_ours"] == "0" == cases["case-2"]["hit_ours"] and float(cases["case-2"]["D_cam_50"]) == 0
    )
    assert about["scores"]["without_region"] == 5 and about["scores"]["hit"] == 0  # three voxels beside the finding
    assert about["scores"]["dice"] == pytest.approx(0.25 / 2)
    (row,) = [row for row in table(out / "methods.csv") if row["method"] == "ours"]
    worst = (6 + math.hypot(5, 22)) / 2  # of case 9: of 6, 6 and the distances to the other finding the median
    assert float(row["D_penalised"]) == pytest.approx((4 * 6 + 6 * worst) / 10)
    assert row["n"] == "10" and row["empty"] == "5" and "ablation" not in {r["rival"] for r in table(out / "tests.csv")}
    assert {(r["n"], r["left_out"]) for r in table(out / "tests.csv")} == {("5", "5")}
    assert table(out / "table1.csv")[0]["D_ours_n"] == "5" and len(table(out / "table1.csv")) == 3
    assert about["scores"]["distance_mm_low"] is None and any("needs 8 pairs" in note for note in about["notes"])
    assert any("Dice 0 and is no hit" in note for note in about["notes"]) and len(calls) == 10


def test_cases_that_are_not_of_the_class_or_cannot_be_used(room, calls):
    _, folder = room
    case(folder, "dark", level=0.5)  # the finding is there, the network does not answer it
    case(folder, "healthy", finding=False)
    case(folder, "outside", organ=False)
    (folder / "case-3.nrrd").write_bytes((folder / "case-3.nrrd").read_bytes()[:300])
    (folder / "case-5_mask.nrrd").unlink()
    assert medxai(room, "--segment", 2, "--organ", 1, "--no-scene", "--no-ablation") == 0
    rows = {row["case"]: row for row in table(folder.parent / "out" / "cases.csv")}
    assert rows["dark"]["state"] == "not predicted" and float(rows["dark"]["probability_before"]) < 0.5
    assert rows["dark"]["D_ours"] == "" == rows["dark"]["D_cam_50"]
    for name, words in {"healthy": "no segment '2'", "outside": "no segment '1'", "case-3": "case-3.nrrd", "case-5.nrrd": "no mask"}.items():  # fmt: skip
        assert rows[name]["state"] == "skipped" and words in rows[name]["note"], name
    about = report(folder.parent / "out")
    scores = about["scores"]
    assert (scores["cases"], scores["skipped"], scores["not_predicted"]) == (8, 4, 1)
    assert any("does not answer 'mass' (dark)" in note for note in about["notes"])
    assert (
        about["self_checks"]["all_cases"]["passed"] is False
        and table(folder.parent / "out" / "table1.csv")[0]["D_cam_n"] == "8"
    )


def test_what_a_run_is_given(room, calls):
    """The class by name, the organ with the finding in it, the annotation; the slice that the rivals look at too."""
    package, folder = room
    result = run(impact_cohort(opened(package), folder, CounterfactualSettings(device="cpu"), None, "1"))
    assert len(calls) == 20 and len(result.tables["cases"].columns["case"]) == 10
    name, settings, organ, annotation = calls[0]
    assert (name, settings.label, settings.slice, settings.lambda_tv) == (
        "case-0",
        "mass",
        "k:0",
        CounterfactualSettings().lambda_tv,
    )
    assert organ.attributes["role"] == "organ" and annotation.attributes["role"] == "annotation"
    assert organ.array.sum() == 520 and annotation.array.sum() == 16 and (organ.array >= annotation.array).all()
    assert (calls[1][1].lambda_tv, calls[1][1].lambda_area, calls[1][1].lambda_score) == (
        0,
        0,
        CounterfactualSettings().lambda_score,
    )
    assert "one organ" not in " ".join(result.notes) and result.provenance["segment"] is None


@pytest.mark.parametrize("dims", [2, 3])
def test_solid_volumes(tmp_path, calls, dims):
    """A 3-D network takes the volume; a 2-D one the slice with most of the finding, to which measures and organ keep."""
    shape = (5, 24, 32)
    for n in range(3):
        case(tmp_path / "cases", f"case-{n}", ((2, 6 + n, 10),), shape=shape)
    package = packaged(tmp_path / "net", dims, Bright(dims, 800.0))
    result = run(impact_cohort(opened(package), tmp_path / "cases", CounterfactualSettings(device="cpu"), "2", "1"))
    cases = result.tables["cases"].columns
    assert cases["slice"] == ["k:2" if dims == 2 else ""] * 3
    assert cases["D_ours"] == pytest.approx([2.0] * 3) and cases["H_ours"] == pytest.approx([2.0] * 3)
    assert cases["A_ours"] == pytest.approx([16 / 520 if dims == 2 else 32 / 2600] * 3)
    assert cases["D_cam_90"] == pytest.approx([0] * 3) and cases["dice_sal_50"] == pytest.approx([1] * 3)
    assert math.isnan(result.tables["tests"].columns["low"][0])  # three cases have no interval


# ---- a study that is stopped -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--grid", "lambda_tv=0,0.2")])
def test_a_stopped_study_goes_on_where_it_stopped(room, calls, capsys, monkeypatch, more):
    _, folder = room
    monkeypatch.setattr(cli.Progress, "say", stop_at(4))
    assert medxai(room, "--organ", 1, "--no-scene", *more) == 130
    partial = folder.parent / ".out.partial"
    assert f"4 finished cases are kept in '{partial}'" in capsys.readouterr().err
    before = len(calls)
    monkeypatch.undo()  # of calls, too
    monkeypatch.setitem(REGISTRY, "counterfactual", standin(calls))
    assert medxai(room, "--organ", 1, "--no-scene", "--lambda-score", 2, *more) == 1
    assert "4 finished cases of another study (lambda_score differ)" in capsys.readouterr().err
    assert medxai(room, "--organ", 1, "--no-scene", *more) == 0
    assert before == 8 and len(calls) == 20 and not partial.exists()
    assert medxai(room, "--organ", 1, "--no-scene", *more, output="whole") == 0
    assert report(folder.parent / "out")["resumed"] == 4

    def plain(name):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in table(folder.parent / name / "cases.csv")]

    assert plain("out") == plain("whole") and len(calls) == 40


# ---- grid search -----------------------------------------------------------------------------------------------------


def test_the_best_of_a_grid(room, calls, capsys):
    """Moved by 10 λ₂ voxels of 2 mm: 0 is best for the nine of one finding; without half of the regions the largest D counts for them."""
    assert medxai(room, "--organ", 1, "--grid", "lambda_tv=0.3,0,0.1", "--grid", "lambda-area=6,1") == 0
    out = room[1].parent / "out"
    rows = {(row["lambda_tv"], row["lambda_area"]): row for row in table(out / "grid.csv")}
    assert len(rows) == 6 and len(calls) == 60 and next(iter(rows)) == ("0", "1")
    far = [math.hypot(5, 2 * di) for di in (11, 14, 17)]
    assert (
        float(rows["0", "1"]["D"])
        == pytest.approx(far[1] / 2 / 10)
        == pytest.approx(float(rows["0", "1"]["D_penalised"]))
    )
    worst = (6 + far[0]) / 2  # case 9 at λ₂ = 0.3: the median of 6, 6 and the two others
    half = rows["0.3", "6"]
    assert half["empty"] == "0.5" and float(half["D"]) == pytest.approx((4 * 6 + worst) / 5)
    assert float(half["D_penalised"]) == pytest.approx((4 * 6 + worst + 5 * worst) / 10)
    assert float(rows["0.1", "1"]["dice"]) == pytest.approx(0.75) and rows["0.1", "1"]["hit"] == "1"
    assert float(rows["0.1", "1"]["probability_after"]) == 0.25 and float(rows["0.1", "1"]["drop_kept_passed"]) == 0.9
    criteria = [float(row["D_penalised"]) for row in table(out / "grid.csv")]
    assert criteria == sorted(criteria)
    about = report(out)
    assert about["scores"]["best_lambda_tv"] == 0 and about["scores"]["best_lambda_area"] == 1
    assert any(
        "--lambda-tv 0 --lambda-area 1" in note and "counting as the largest D" in note for note in about["notes"]
    )
    cases = table(out / "cases.csv")
    assert (
        len(cases) == 60
        and [row["D"] for row in cases if row["case"] == "case-2" and row["lambda_area"] == "6"] == [""] * 3
    )
    assert not (out / "report.png").exists() and "best lambda tv: 0" in capsys.readouterr().out


def test_a_grid_without_a_region_has_no_best(tmp_path, calls):
    case(tmp_path / "cases", "case-2")
    model, settings = opened(packaged(tmp_path / "net")), CounterfactualSettings(device="cpu")
    result = run(impact_grid(model, tmp_path / "cases", settings, {"lambda_area": (6.0, 7.0)}, "2", "1"))
    assert "best_lambda_area" not in result.scores and any("No combination is best" in note for note in result.notes)
    assert np.isnan(result.tables["grid"].columns["D_penalised"]).all()


def test_what_a_grid_is_made_of():
    assert grid_of(["lambda_tv=0.01, 0.1,0.1", "--restarts=2,3"]) == {"lambda_tv": (0.01, 0.1), "restarts": (2, 3)}
    for text, words in {
        "lambda=1": "is no grid of a setting", "fill=blur,mean": "is no grid of a setting", "lambda_tv": "names no value", "lambda_tv=": "names no value",
        "lambda_tv=a": "cannot be 'a'", "theta=0.5,2": "it takes a number from 0.01", "seed=1,2": "is no grid of a setting",
    }.items():  # fmt: skip
        with pytest.raises(MedXAIError, match=words):
            grid_of([text])
    with pytest.raises(MedXAIError, match="has two grids"):
        grid_of(["theta=0.5", "theta=0.6"])


# ---- the page, refusals ----------------------------------------------------------------------------------------------


def test_the_figures_on_one_page(room, calls, monkeypatch):
    pytest.importorskip("matplotlib")
    assert medxai(room, "--organ", 1, "--lambda-area", 6) == 0
    from matplotlib.image import imread

    picture = imread(room[1].parent / "out" / "report.png")[..., :3]
    assert picture.shape[0] > 400 and picture.std() > 0.05
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert medxai(room, "--organ", 1, "--no-ablation", output="without") == 0
    assert any("report.png was not written" in note for note in report(room[1].parent / "without")["notes"])


def test_refusals_in_one_sentence(room, calls, tmp_path, capsys):
    package, folder = room

    def refused(*more):
        status = medxai(room, *more)
        told = capsys.readouterr().err.strip()
        assert status == 1 and told.count("\n") == 0 and "Traceback" not in told, told
        assert not list(folder.parent.glob(".out*")) and not (folder.parent / "out").exists()
        return told

    assert "not allowed with argument" in refused("--volume", folder / "case-0.nrrd")
    assert "leave --segmentation out" in refused("--segmentation", folder / "case-0_mask.nrrd")
    assert "leave --start out" in refused("--start", folder / "case-0.nrrd")
    assert "None of the 10 cases" in refused() and "holds 2 segments" in refused()
    assert "has no segment '7'" in refused("--organ", 7)
    assert "has no label 'tumour'" in refused("--label", "tumour")
    assert "is no grid of a setting" in refused("--grid", "steps_=1")
    told = refused("--organ", 1, "--label", "healthy")
    assert "answers 'healthy' in none of the 10 cases" in told and "choose another class" in told
    assert cli.main(["counterfactual", "--model", str(package.folder), "--volume", str(folder / "case-0.nrrd"), "--output", str(tmp_path / "o")] + ["--grid", "theta=0.5"]) == 1  # fmt: skip
    assert "--grid belongs to --cohort" in capsys.readouterr().err
    assert "nowhere" in refused("--organ", 1, "--inpainter", tmp_path / "nowhere")
    two = packaged(tmp_path / "two", input={"channels": ["a", "b"]})
    with pytest.raises(MedXAIError, match="takes 2 channels"):
        run(impact_cohort(opened(two), folder, CounterfactualSettings()))


# ---- the method itself -----------------------------------------------------------------------------------------------


def test_the_method_finds_what_was_planted(tmp_path):
    """The real `counterfactual`, its fall-back filling with the mean: regions on the finding, the drop kept, the figures those of a single run."""
    for n in range(2):
        case(tmp_path / "cases", f"case-{n}", ((0, 6 + 6 * n, 8 + 8 * n),), noise=0.02)
    model = opened(packaged(tmp_path / "net"))
    settings = CounterfactualSettings(device="cpu", steps=40, restarts=1, fill="mean", mask_nodes=16)
    result = run(impact_cohort(model, tmp_path / "cases", settings, "2", "1"))
    cases = result.tables["cases"].columns
    assert cases["state"] == ["done", "done"] and all(d < 8 for d in cases["D_ours"]) and cases["hit_ours"] == [1, 1]
    assert all(p < 0.5 < q for p, q in zip(cases["probability_after"], cases["probability_before"]))
    assert all(a < 0.3 for a in cases["A_ours"]) and all(a > b for a, b in zip(cases["A_ablation"], cases["A_ours"]))
    image, mask = (
        io.read_volume(tmp_path / "cases" / "case-0.nrrd"),
        io.read_mask(tmp_path / "cases" / "case-0_mask.nrrd", "2"),
    )
    organ = io.read_mask(tmp_path / "cases" / "case-0_mask.nrrd", "1")
    organ = organ.with_array(organ.array | mask.array)
    organ.attributes["role"] = "organ"
    from MedXAILib.evaluation.judged import explain

    alone = run(explain("counterfactual", model, [image], settings, [mask, organ]))
    for name, column in (
        ("distance_mm", "D"),
        ("hausdorff_mm", "H"),
        ("area_share", "A"),
        ("dice", "dice"),
        ("hit", "hit"),
    ):
        assert cases[f"{column}_ours"][0] == pytest.approx(alone.scores[name]), name
    assert cases["probability_after"][0] == pytest.approx(alone.scores["probability_after"], abs=1e-6)


def test_another_inpainter_is_another_study(tmp_path, capsys, monkeypatch):
    """An inpainter (of random weights) by its SHA-256: what it filled is not mixed with what another one did."""
    from safetensors.torch import save_file

    from MedXAILib.models.partial import PartialUNet

    about = {"spatial_dims": 2, "channels": 1, "levels": 2, "width": 0.1}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        state = {key: value.contiguous() for key, value in PartialUNet(**about).state_dict().items()}
        fields = {
            "name": name, "task": "inpainting", "weights": "weights.safetensors", "network": {"name": "PartialUNet", "arguments": about},
            "input": {
                "spatial_dims": 2, "channels": ["image"], "orientation": None, "spacing": None, "size": None, "multiple_of": 1, "intensity": {"kind": "none"},
            },
            "output": {"labels": ["image"], "activation": "none"},
        }  # fmt: skip
        write_package(tmp_path / name, fields, lambda path, state=state: save_file(state, str(path)))
    for n in range(2):
        case(tmp_path / "cases", f"case-{n}")
    room = packaged(tmp_path / "net"), tmp_path / "cases"
    options = ["--organ", 1, "--no-scene", "--no-ablation", "--steps", 2, "--label", "mass", "--inpainter"]
    monkeypatch.setattr(cli.Progress, "say", stop_at(1))
    assert medxai(room, *options, tmp_path / "one") == 130
    monkeypatch.undo()
    assert medxai(room, *options, tmp_path / "two") == 1
    assert "another study (inpainter differ)" in capsys.readouterr().err
    (tmp_path / "one").rename(tmp_path / "moved")  # the same one at another place
    assert medxai(room, *options, tmp_path / "moved") == 0
    found = report(tmp_path / "out")
    assert found["resumed"] == 1 and found["inpainter"]["name"] == "one" and found["inpainter"]["fallback"] is False
    assert not any("fall-back" in note or "No class was named" in note for note in found["notes"])
