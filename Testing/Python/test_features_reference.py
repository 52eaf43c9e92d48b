"""Reference distributions: from folders and from memory, exact over their own cases, honest about what is missing."""

import contextlib
import errno
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_features_queue import alive, gone

from MedXAILib import cli, io, resume
from MedXAILib.cases import pairs
from MedXAILib.errors import MedXAIError
from MedXAILib.features import Reference, available, children, compute, reference
from MedXAILib.volume import Volume

ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="signals of a POSIX system")

NAMES = ["firstorder_Mean", "glcm_Contrast", "shape_Sphericity", "line_texture"]
LINE = ["line_texture"]  # of the whole image


def case(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    matrix = np.diag([1.0, 1.5, 2.0, 1.0])
    shape = rng.integers(10, 16, 3)
    image = Volume((rng.normal(size=shape) * 60 * scale + seed).astype(np.float32), matrix, unit="HU")
    mask = np.zeros(shape, np.uint8)
    mask[2:-2, 2:-2, 2:-2] = rng.random([n - 4 for n in shape]) > 0.2
    return image, Volume(mask, matrix)


def cases(number):
    return [(f"case-{seed}", *case(seed)) for seed in range(number)]


@pytest.fixture
def write():
    def to(path, volume):
        path.parent.mkdir(parents=True, exist_ok=True)
        io.write_volume(path, volume)

    return to


def last(steps):
    """The steps of a generator, and what it returns."""
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            return seen, end.value


def test_its_own_cases_have_mean_0_and_sd_1():
    found = Reference.from_cases(cases(7), NAMES, bin_width=20)
    assert found.names == NAMES and found.cases == [f"case-{n}" for n in range(7)] and not found.skipped
    for name in NAMES:
        own = [compute(*case(seed), NAMES, bin_width=20)[name] for seed in range(7)]
        assert found.values[name] == own and found.n[name] == 7
        z = found.z(name, np.array(own))
        assert abs(statistics.fmean(z)) < 1e-12 and abs(statistics.stdev(z) - 1) < 1e-12
        assert found.z(name, own[0]) == z[0]
    assert found.options["bin_width"] == 20 and found.options["ndim"] == 3 and found.options["unit"] == "HU"


def test_hard_numbers_keep_their_digits():
    """A large mean with a small spread: the one-pass formula would lose every digit."""
    image, mask = case(0)
    offsets = (1e9, 1e9 + 1, 1e9 + 2)
    found = Reference.from_cases(
        [(str(v), image.with_array(np.full(image.shape, v)), mask) for v in offsets], ["line_texture"]
    )
    assert found.unusable == {"line_texture": "the same value in every case"}  # a flat image has no line
    found = Reference.from_cases(
        [(str(v), image.with_array(np.full(image.shape, v)), mask) for v in offsets], ["firstorder_Mean"]
    )
    assert found.mean["firstorder_Mean"] == 1e9 + 1 and found.sd["firstorder_Mean"] == 1
    assert [found.z("firstorder_Mean", v) for v in offsets] == [-1, 0, 1]


def test_written_and_read_again_it_is_the_same(tmp_path):
    found = Reference.from_cases(cases(3), LINE, line_angle=45, line_length=5)
    found.mean["x"], found.sd["x"], found.n["x"], found.values["x"] = math.nan, math.nan, 0, [math.nan] * 3
    found.skipped["bad"] = "no reason"
    path = tmp_path / "reference.json"
    found.write(path)
    again = Reference.read(path)
    assert again.options == found.options and again.options["line_angle"] == 45
    assert again.cases == found.cases and again.skipped == found.skipped and again.notes == found.notes
    assert again.mean["line_texture"] == found.mean["line_texture"] and math.isnan(again.mean["x"])
    assert again.sd["line_texture"] == found.sd["line_texture"] and again.n == found.n
    assert again.values["line_texture"] == found.values["line_texture"]
    assert "NaN" not in path.read_text(encoding="utf-8") and [p.name for p in tmp_path.iterdir()] == ["reference.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "medxai-reference", "schema": 1}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(MedXAIError, match="not a reference distribution"):
        Reference.read(tmp_path / "other.json")


def test_refusals_name_what_is_wrong(tmp_path):
    with pytest.raises(MedXAIError, match="cannot be read"):
        Reference.read(tmp_path / "absent.json")
    (tmp_path / "later.json").write_text('{"kind": "medxai-reference", "schema": 99}')
    with pytest.raises(MedXAIError, match="another version"):
        Reference.read(tmp_path / "later.json")
    with pytest.raises(MedXAIError, match="no folder"):
        last(reference(tmp_path / "absent"))
    with pytest.raises(MedXAIError, match="holds no image and mask pair"):
        last(reference(tmp_path))
    with pytest.raises(MedXAIError, match="firstorder_Mean"):
        Reference.from_cases(cases(2), ["firstorder_Meen"])
    with pytest.raises(MedXAIError, match="without features"):
        Reference.from_cases(cases(2), "none")
    with pytest.raises(MedXAIError, match="cannot be written"):
        Reference.from_cases(cases(2), LINE).write(tmp_path / "absent" / "reference.json")


def test_one_case_or_no_spread_gives_nan_and_is_told():
    one = Reference.from_cases(cases(1), LINE)
    assert (
        one.n == {"line_texture": 1} and math.isnan(one.sd["line_texture"]) and math.isnan(one.z("line_texture", 1.0))
    )
    assert one.unusable == {"line_texture": "1 case with a value; two are needed"}
    same = Reference.from_cases([(name, *case(3)) for name in "abc"], LINE)
    assert same.sd["line_texture"] == 0 and math.isnan(same.z("line_texture", 1.0))
    assert same.unusable == {"line_texture": "the same value in every case"}
    assert same.notes == ["'line_texture' cannot normalise: the same value in every case."]
    assert math.isnan(same.z("unknown", 3.0)) and np.isnan(same.z("unknown", np.zeros(4))).all()


def test_bad_cases_are_skipped_counted_and_told():
    image, mask = case(9)
    empty = mask.with_array(np.zeros_like(mask.array))
    flat, flat_mask = (one.crop((3, 0, 0), (4, *image.shape[1:])) for one in (image, mask))
    given = [*cases(3), ("empty", image, empty), ("flat", flat, flat_mask)]
    found = Reference.from_cases(given, NAMES)
    assert found.cases == ["case-0", "case-1", "case-2"] and set(found.skipped) == {"empty", "flat"}
    assert found.skipped["empty"].startswith("empty") and "2 dimensions" in found.skipped["flat"]
    given = [("flat", flat, flat_mask), ("empty", flat, empty.crop((3, 0, 0), (4, *image.shape[1:]))), *cases(1)]
    found = Reference.from_cases(given, NAMES)
    assert found.cases == ["flat"] and found.skipped["empty"] == "empty: the mask holds no voxel."
    with pytest.raises(MedXAIError, match="None of 1 cases could be used"):
        Reference.from_cases([("empty", image, empty)], NAMES)
    wild = [(name, *case(seed, 1e9)) for seed, name in enumerate("ab")]
    found = Reference.from_cases([*cases(2), *wild], NAMES)
    assert found.n["glcm_Contrast"] == 2 and found.n["firstorder_Mean"] == 4
    assert any(note.startswith("capped") and "cases: a, b" in note for note in found.notes)


def test_features_made_otherwise_are_told_apart():
    found = Reference.from_cases(cases(2), LINE)
    assert found.differences({"bin_width": 25.0, "ndim": 3, "line_angle": 135.0, "line_length": 9, "unit": "HU"}) == []
    told = found.differences({"bin_width": 10.0, "ndim": 2})
    assert len(told) == 2 and "bin width 25, this run has bin width 10." in told[1]


def test_bins_that_are_counted_are_compared_by_their_number():
    found = Reference.from_cases(cases(2), ["glcm_Contrast"], bin_count=32)
    assert found.options["bin_count"] == 32 and found.options["engine"] == "builtin"
    assert found.values["glcm_Contrast"][0] == compute(*case(0), ["glcm_Contrast"], bin_count=32)["glcm_Contrast"]
    run = {"bin_width": 10.0, "bin_count": 32, "engine": "pyradiomics", "ndim": 3}
    assert found.differences(run) == []  # the width does not matter then, and every engine gives the same values
    assert found.differences(run | {"bin_count": 0}) == [
        "The reference was made with 32 bins, this run has bin width 10."
    ]
    assert found.differences(run | {"bin_count": 64}) == ["The reference was made with 32 bins, this run has 64 bins."]
    found = Reference.from_cases(cases(2), ["glcm_Contrast"])
    assert found.differences(run) == ["The reference was made with bin width 25, this run has 32 bins."]


def test_pyradiomics_gives_the_same_reference(folder):
    if not available()[0]:
        pytest.skip("pyradiomics is not installed")
    ours, theirs = (Reference.from_folder(folder, NAMES, engine=one) for one in ("auto", "pyradiomics"))
    assert (ours.options["engine"], theirs.options["engine"]) == ("builtin", "pyradiomics")
    assert "pyradiomics" in theirs.options["versions"] and "pyradiomics" not in ours.options["versions"]
    for name in NAMES:
        assert ours.values[name] == pytest.approx(theirs.values[name], rel=1e-6)
    assert ours.differences(theirs.options) == []


def test_the_layouts_of_a_folder(tmp_path, write):
    image, mask = case(0)
    layouts = {
        "beside": [
            "a.nii.gz",
            "a_mask.nii.gz",
            "b_image.nrrd",
            "b_label.nrrd",
            "c.nrrd",
            "c_seg.nii.gz",
            "lonely.nrrd",
        ],
        "folders": ["one/image.nrrd", "one/mask.nrrd", "two/image.nii.gz", "two/label.nii.gz", "three/image.nrrd"],
        "across": ["images/x.nrrd", "masks/x.nii.gz", "images/y.nrrd", "masks/y_mask.nrrd", "images/z.nrrd"],
        "labels": ["images/x.nrrd", "labels/x.nrrd"],
    }
    for folder, files in layouts.items():
        for name in files:
            path = tmp_path / folder / name
            masked = any(word in name for word in ("_mask", "_label", "_seg", "/mask", "/label", "masks", "labels"))
            write(path, mask if masked else image)
    names = {folder: [name for name, _, _ in pairs(tmp_path / folder)] for folder in layouts}
    assert names == {"beside": ["a", "b", "c"], "folders": ["one", "two"], "across": ["x", "y"], "labels": ["x"]}
    _, first, second = pairs(tmp_path / "beside")[1]
    assert (first.name, second.name) == ("b_image.nrrd", "b_label.nrrd")


def test_a_folder_gives_the_reference_of_its_cases_step_by_step(tmp_path, write):
    for seed in range(4):
        image, mask = case(seed)
        write(tmp_path / f"p{seed}.nrrd", image)
        labels = mask.array * 3
        labels[0, 0, 0] = 1  # another label, which is not asked for
        write(tmp_path / f"p{seed}_mask.nrrd", mask.with_array(labels))
    (tmp_path / "p2.nrrd").write_bytes(b"NRRD0004\nbroken")
    steps, found = last(reference(tmp_path, NAMES, segment="3", bin_width=20))
    assert found.cases == ["p0", "p1", "p3"] and list(found.skipped) == ["p2"]
    assert steps[0].stage == "4 cases"
    assert [step.stage.split(":")[0] for step in steps[1:-1]] == [f"Case {n} of 4" for n in range(1, 5)]
    assert {step.stage.split(": ")[1] for step in steps[1:-1]} == {"p0", "p1", "p2", "p3"}
    assert steps[-1].fraction == 1.0 and "3 cases, 1 skipped" in steps[-1].stage
    memory = Reference.from_cases([(f"p{seed}", *case(seed)) for seed in (0, 1, 3)], NAMES, bin_width=20)
    for name in NAMES:
        assert found.mean[name] == pytest.approx(memory.mean[name], rel=1e-6)
    assert Reference.from_folder(tmp_path, NAMES, segment="3", bin_width=20).mean == found.mean
    with pytest.raises(MedXAIError, match="None of 4 cases"):
        last(reference(tmp_path, NAMES, segment="7"))


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "reference.json"
    found = Reference.from_cases(cases(2), LINE)
    found.write(path)
    before = path.read_text(encoding="utf-8")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dump", stop)
    with pytest.raises(KeyboardInterrupt):
        found.write(path)
    assert path.read_text(encoding="utf-8") == before and len(list(tmp_path.iterdir())) == 1


# ---- side by side, and going on after a stop ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, write):
    return fill(tmp_path / "cohort", write, 6)


def fill(folder, write, number, size=0):
    for seed in range(number):
        image, mask = case(seed)
        if size:
            rng = np.random.default_rng(seed)
            image = Volume((rng.normal(size=(size,) * 3) * 100).astype(np.float32), np.eye(4))
            mask = image.with_array((rng.random((size,) * 3) > 0.2).astype(np.uint8))
        write(folder / f"p{seed}.nrrd", image)
        write(folder / f"p{seed}_mask.nrrd", mask)
    return folder


def command(folder, output, *more):
    return ["features", "reference", str(folder), "--features", ",".join(NAMES), "--output", str(output), *more]


def test_numbers_and_order_do_not_depend_on_the_jobs(folder, tmp_path, write, capsys):
    write(folder / "p1_mask.nrrd", (mask := case(1)[1]).with_array(np.zeros_like(mask.array)))
    (folder / "p4.nrrd").write_bytes(b"NRRD0004\nbroken")
    for jobs in "13":
        assert cli.main(command(folder, tmp_path / f"{jobs}.json", "--jobs", jobs)) == 0
    one, three = ((tmp_path / f"{jobs}.json").read_bytes() for jobs in "13")
    assert one == three
    found = json.loads(one)
    assert found["cases"] == ["p0", "p2", "p3", "p5"] and list(found["skipped"]) == ["p1", "p4"]
    assert found["skipped"]["p1"] == "'p1_mask.nrrd' holds no segment; draw one first."
    printed = capsys.readouterr()
    assert "skipped p1: 'p1_mask.nrrd' holds" in printed.err and "4 cases, 2 skipped" in printed.out
    assert {p.name for p in tmp_path.iterdir()} == {"cohort", "1.json", "3.json"}  # nothing hidden is left


def test_cases_that_cannot_be_used_say_why(folder, write):
    image, mask = case(0)
    elsewhere = mask.ijk_to_ras.copy()
    elsewhere[:3, 3] = 1000
    write(folder / "p1.nrrd", image)
    write(folder / "p1_mask.nrrd", Volume(mask.array, elsewhere))
    (folder / "p2_mask.nrrd").unlink()
    (folder / "p2_mask.nrrd").mkdir()
    write(folder / "p3.nrrd", image.crop((3, 0, 0), (4, *image.shape[1:])))
    write(folder / "p3_mask.nrrd", mask.crop((3, 0, 0), (4, *image.shape[1:])))
    write(folder / "p4_mask.nrrd", mask.with_array(mask.array * np.random.default_rng(0).integers(1, 3, mask.shape)))
    _, found = last(reference(folder, NAMES))
    assert found.cases == ["p0", "p5"]
    assert set(found.skipped) == {"p1", "p3", "p4"}  # p2 is no pair any more
    assert "2 dimensions, the cases before it 3" in found.skipped["p3"]
    assert all(reason and "Traceback" not in reason for reason in found.skipped.values())


@posix
def test_after_kill_9_the_same_command_goes_on_to_the_same_file(tmp_path, write):
    folder = fill(tmp_path / "cohort", write, 12, size=40)
    assert cli.main(command(folder, tmp_path / "whole.json", "--features", "all", "--jobs", "2")) == 0
    output, log = tmp_path / "r.json", tmp_path / ".r.json.partial" / "cases.jsonl"
    given = command(folder, output, "--features", "all", "--jobs", "2")
    process = subprocess.Popen([sys.executable, "-m", "MedXAILib", *given], cwd=ROOT, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not log.exists() or log.read_bytes().count(b"\n") < 4:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    born = descendants(process.pid)
    process.kill()
    process.wait()
    assert gone(born) and not output.exists()
    with log.open("ab") as file:
        file.write(b'{"case": "p11", "files": [["/co')  # torn
    kept = [json.loads(line)["case"] for line in log.read_bytes().splitlines()[1:-1]]
    assert 3 <= len(kept) < 12
    assert cli.main(given) == 0
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"cohort", "whole.json", "r.json"}


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(one) for one in children.read_text().split()] if children.exists() else []


@posix
def test_ctrl_c_keeps_what_is_finished_and_says_so(tmp_path, write):
    folder = fill(tmp_path / "cohort", write, 12, size=40)
    log = tmp_path / ".r.json.partial" / "cases.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "MedXAILib", *command(folder, tmp_path / "r.json", "--features", "all", "--jobs", "2")],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not log.exists() or log.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.005)
    born = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "finished cases are kept in" in told and "the same command goes on" in told
    assert gone(born) and log.exists() and not (tmp_path / "r.json").exists()
    assert not log.parent.with_name(".r.json.partial.lock").exists()


def test_changed_files_are_computed_anew_and_others_are_not(folder, tmp_path, write, monkeypatch):
    log, done = tmp_path / "cases.jsonl", []
    plain = children.side_by_side

    def side_by_side(tasks, *rest):
        done.append([Path(task["case"]["image"]).stem for task in tasks])
        return plain(tasks, *rest)

    monkeypatch.setattr("MedXAILib.features.references.side_by_side", side_by_side)
    _, first = last(reference(folder, NAMES, log=log, jobs=1))
    image, _ = case(50)
    write(folder / "p3.nrrd", case(3)[0].with_array(case(3)[0].array + 100))
    write(folder / "p6.nrrd", image)
    write(folder / "p6_mask.nrrd", case(50)[1])
    _, again = last(reference(folder, NAMES, log=log, jobs=1))
    assert done == [[f"p{n}" for n in range(6)], ["p3", "p6"]]
    assert again.cases == [f"p{n}" for n in range(7)]
    mean = "firstorder_Mean"
    assert again.values[mean][3] == pytest.approx(first.values[mean][3] + 100)
    assert [v for n, v in enumerate(again.values[mean][:6]) if n != 3] == [
        v for n, v in enumerate(first.values[mean]) if n != 3
    ]
    assert Reference.from_folder(folder, NAMES).values == again.values


def test_other_settings_are_refused_by_name(folder, tmp_path, capsys):
    log = tmp_path / ".r.json.partial" / "cases.jsonl"
    log.parent.mkdir()
    last(reference(folder, NAMES, log=log, jobs=2))
    given = command(folder, tmp_path / "r.json", "--bin-width", "10")
    for more, word in (
        ([], "bin_width"),
        (["--segment", "1"], "bin_width, segment"),
        (["--features", "glcm"], "bin_width, features"),
    ):
        assert cli.main([*given, *more]) == 1
        told = capsys.readouterr().err
        assert f"6 finished cases of another reference ({word} differ)" in told and "the same settings" in told
    assert cli.main(command(folder, tmp_path / "r.json")) == 0
    assert not log.parent.exists()


def test_a_log_of_any_name_is_named_and_held(folder, tmp_path):
    log = tmp_path / "mine.jsonl"
    last(reference(folder, LINE, log=log))
    with pytest.raises(MedXAIError, match=r"'[^']*mine.jsonl' holds 6 finished cases .* choose another file, or remove that one"):  # fmt: skip
        last(reference(folder, LINE, log=log, line_angle=45))
    log.unlink()
    with contextlib.closing(reference(folder, LINE, log=log)) as steps:
        next(steps), next(steps)
        with pytest.raises(MedXAIError, match=r"Another run is adding to '[^']*mine.jsonl'; wait for it"):
            last(reference(folder, LINE, log=log))
    last(reference(folder, LINE, log=log))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cohort", "mine.jsonl"]
    with pytest.raises(MedXAIError, match=r"absent.*cannot be written: No such file"):
        last(reference(folder, LINE, log=tmp_path / "absent" / "mine.jsonl"))


@pytest.mark.parametrize("line", ["7", "null", '"x"', "[1]", '{"a": 1}', '{"case": "p0", "files": 3}', '{"case": "p0", "files": [4]}', "{"])  # fmt: skip
def test_a_damaged_line_is_refused_in_a_sentence(folder, tmp_path, line):
    log = tmp_path / "cases.jsonl"
    last(reference(folder, LINE, log=log))
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([*lines[:3], line.encode(), *lines[3:], b""]))
    with pytest.raises(MedXAIError) as refused:
        last(reference(folder, LINE, log=log))
    assert str(refused.value) == f"'{log}' is not a list of finished cases; remove '{log}'."


def test_a_stop_says_what_is_kept_only_where_something_is(tmp_path):
    log = tmp_path / "cases.jsonl"
    for text, told in (("", ""), ("{}\n", ""), ("{}\n{}\n{}\n", "2 things are kept, and the same command goes on from there")):  # fmt: skip
        if text:
            log.write_text(text)
        with pytest.raises(KeyboardInterrupt) as stopped, resume.kept(log, "things", where=False):
            raise KeyboardInterrupt
        assert str(stopped.value) == told


def test_the_options_are_those_of_a_dream(capsys):
    from MedXAILib import settings

    with pytest.raises(SystemExit):
        cli.main(["features", "reference", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for one in settings.about(settings.DreamSettings):
        if one.name in ("engine", "bin_width", "bin_count", "line_angle", "line_length"):
            assert one.option in shown and f"[{one.default}]" in shown


def test_two_at_once_are_refused(folder, tmp_path, capsys):
    with resume.resumable_file(tmp_path / "r.json"):
        code = "import sys; from MedXAILib.cli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, *command(folder, tmp_path / "r.json")],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1 and "Another process is working on" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["cohort"]


@posix
def test_a_full_disk_keeps_what_is_finished(folder, tmp_path, monkeypatch, capsys):
    plain, given = resume.Log._write, command(folder, tmp_path / "r.json", "--jobs", "1")

    def write(self, data, mode):
        if b'"p3"' in data:
            plain(self, data[:20], mode)  # as much as there was room for
            raise resume.disk_error(OSError(errno.ENOSPC, "No space left on device"), self.path)
        plain(self, data, mode)

    monkeypatch.setattr(resume.Log, "_write", write)
    assert cli.main(given) == 1
    told = capsys.readouterr().err
    assert "The disk is full" in told and "the same command goes on from there" in told
    monkeypatch.undo()
    assert cli.main(given) == 0
    assert json.loads((tmp_path / "r.json").read_text("utf-8"))["cases"] == [f"p{n}" for n in range(6)]
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["cohort", "r.json"]


@posix
def test_a_child_killed_once_costs_nothing(tmp_path, write, monkeypatch):
    folder = fill(tmp_path / "cohort", write, 4, size=30)
    born, plain = [], children.Child

    class Child(plain):
        def __init__(self, *given):
            super().__init__(*given)
            born.append(self)

    monkeypatch.setattr(children, "Child", Child)
    with contextlib.closing(reference(folder, ["all"], jobs=1)) as steps:
        next(steps)
        stages = [next(steps).stage]
        first = born[0].pid
        os.kill(first, signal.SIGKILL)
        _, found = last(steps)
    assert stages == ["Case 1 of 4: p0"] and not found.skipped and len(found.cases) == 4
    assert len(born) == 1 and born[0].pid != first
    assert found.values == Reference.from_folder(folder, ["all"], jobs=1).values


@posix
def test_a_case_that_ends_every_process_is_told_and_the_others_go_on(folder, monkeypatch):
    start = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from MedXAILib.features import children, references\n"
        "import os\nplain = references.measure\n"
        "def measure(image, **rest):\n    if image.endswith('p2.nrrd'): os.abort()\n    return plain(image, **rest)\n"
        "references.measure = measure\nchildren.serve(sys.argv[2])"
    )
    monkeypatch.setattr(children, "_START", start)
    _, found = last(reference(folder, NAMES, jobs=2))
    assert found.cases == ["p0", "p1", "p3", "p4", "p5"] and list(found.skipped) == ["p2"]
    assert "ended twice" in found.skipped["p2"] and "--jobs" in found.skipped["p2"]


@posix
def test_closing_the_generator_ends_the_processes(tmp_path, write, monkeypatch):
    folder = fill(tmp_path / "cohort", write, 8, size=40)
    born, plain = [], children.Child._begin
    monkeypatch.setattr(children.Child, "_begin", lambda self: (plain(self), born.append(self.pid))[0])
    steps = reference(folder, ["all"], jobs=2)
    next(steps), next(steps)
    assert len(born) == 2 and all(alive(pid) for pid in born)
    began = time.monotonic()
    steps.close()
    assert time.monotonic() - began < 1.0 and not any(alive(pid) for pid in born) and len(set(born)) == 2


def test_where_no_process_can_be_started_the_cases_are_computed_here(folder, monkeypatch):
    expected = Reference.from_folder(folder, NAMES)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    found = Reference.from_folder(folder, NAMES)
    assert found.cases == expected.cases and not found.skipped
    for name in NAMES:
        assert found.values[name] == pytest.approx(expected.values[name], rel=1e-12)


def test_what_is_wrong_is_refused_before_a_case_is_read(folder, tmp_path, capsys):
    for more, word in (
        (["--jobs", "0"], "--jobs"), (["--jobs", "x"], "--jobs"), (["--engine", "radiomics"], "radiomics"),
        (["--bin-count", "-1"], "-1"), (["--bin-count", "2000"], "1000"), (["--features", "none"], "without features"),
        (["--bin-width", "0"], "bin width"), (["--features", "glcm_Contrst"], "glcm_Contrast"),
    ):  # fmt: skip
        assert cli.main(command(folder, tmp_path / "r.json", *more)) == 1
        told = capsys.readouterr().err
        assert word in told and told.count("\n") == 1, told
    assert [p.name for p in tmp_path.iterdir()] == ["cohort"]


def test_what_other_bins_or_another_line_make_of_a_feature_is_named():
    mean = {name: 1.0 for name in ("glcm_Contrast", "firstorder_Entropy", "firstorder_Mean", "line_texture")}
    made = {"bin_width": 25.0, "bin_count": 0, "line_angle": 135.0, "line_length": 9}
    found = Reference(mean, dict(mean), dict.fromkeys(mean, 3), {}, [], options=made)
    assert found.unlike(made) == [] and found.unlike(made | {"line_angle": 45.0}) == ["line_texture"]
    assert (
        found.unlike(made | {"bin_count": 32})
        == found.unlike(made | {"bin_width": 5.0})
        == ["glcm_Contrast", "firstorder_Entropy"]
    )
    assert found.unlike(made | {"ndim": 3}) == []
