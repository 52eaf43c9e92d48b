"""The command as a person uses it: files, exit status, and each refusal in one line."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import planted
import pytest

from MedXAILib import cli, files, io
from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import Step
from MedXAILib.package import Package
from MedXAILib.volume import Volume

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(tmp_path, linear_package):
    """A folder with a volume, a segmentation and a linear model."""
    package = linear_package(np.random.default_rng(0).normal(size=(3, 3, 3)).astype(np.float32))
    matrix = np.diag([-1.0, -1.0, 2.0, 1.0])
    array = np.random.default_rng(1).normal(0, 10, (10, 11, 12)).astype(np.float32)
    io.write_volume(tmp_path / "ct.nrrd", Volume(array, matrix, "ct"))
    segment = np.zeros(array.shape, np.uint8)
    segment[3:6, 3:6, 3:6] = 1
    io.write_volume(tmp_path / "organ.nrrd", Volume(segment, matrix, "organ"))
    io.write_volume(tmp_path / "empty.nrrd", Volume(segment * 0, matrix, "organ"))
    far = matrix.copy()
    far[0, 3] = 900
    io.write_volume(tmp_path / "far.nrrd", Volume(segment, far, "organ"))
    array[2, 2, 2] = np.nan
    io.write_volume(tmp_path / "holes.nrrd", Volume(array, matrix, "ct"))
    return tmp_path, package


def medxai(study, *more, volume="ct.nrrd", output="out", model=None):
    folder, package = study
    return cli.main(
        ["dream", "--model", str(model or package.folder), "--volume", str(folder / volume), "--output", str(folder / output)]
        + ["--device", "cpu", "--no-scene", "--tolerance", "0", *map(str, more)]
    )  # fmt: skip


def test_a_run_writes_what_the_contract_names(study, capsys):
    folder, package = study
    assert (
        medxai(
            study, "--neuron-ijk", 6, 5, 4, "--steps", 3, "--step-size", 0.5, "--label", "object", "--features", "none"
        )
        == 0
    )
    out = folder / "out"
    about = json.loads((out / "explanation.json").read_text(encoding="utf-8"))
    assert about["method"] == "dream" and about["settings"]["steps"] == 3 and about["settings"]["step_size"] == 0.5
    assert about["model"]["sha256"] == package.sha256 and about["versions"]["torch"] and about["device"] == "cpu"
    assert (
        about["seconds"] > 0
        and about["scores"]["steps"] == 3
        and about["self_checks"]["response_rose"]["passed"] is True
    )
    for name in about["files"].values():
        assert (out / name).stat().st_size > 0, name
    assert {"dream.nrrd", "mask.nrrd", "steps.seq.nrrd", "curves.csv", "verdicts.csv"} <= {
        p.name for p in out.iterdir()
    }
    rows = list(csv.DictReader((out / "curves.csv").open()))
    assert [int(r["step"]) for r in rows] == [0, 1, 2, 3] and list(rows[0])[:2] == ["step", "response"]
    dream, start = io.read_volume(out / "dream.nrrd"), io.read_volume(folder / "ct.nrrd")
    assert dream.same_grid(start, 1e-9)
    assert (dream.array != start.array).sum() == 27
    told = capsys.readouterr().out
    assert "Results are in" in told and "scene.mrb" not in told  # which was left out


def test_json_lines_tell_the_progress(study, capsys):
    assert medxai(study, "--steps", 2, "--features", "none", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    fractions = [line["fraction"] for line in lines if line["event"] == "progress"]
    assert fractions == sorted(fractions) and len(fractions) >= 3
    assert [line["step"] for line in lines if line["event"] == "point"] == [0, 1, 2]
    assert lines[-1]["event"] == "result"


def test_a_segment_by_label_value_gives_the_neuron(study):
    folder, _ = study
    assert (
        medxai(study, "--segmentation", folder / "organ.nrrd", "--segment", 1, "--steps", 1, "--features", "none") == 0
    )
    about = json.loads((folder / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert all(3 <= v < 6 for v in about["neuron_ijk"]) and about["neuron"] == "best in segment"


REFUSALS = {
    "label": (["--label", "objekt"], "did you mean 'object'"),
    "setting": (["--step-size", "fast"], "takes a number"),
    "range": (["--steps", "0"], "from 1"),
    "option": (["--step-sise", "2"], "did you mean '--step-size'"),
    "outside": (["--neuron-ras", "500", "0", "0"], "outside"),
    "outside index": (["--neuron-ijk", "12", "0", "0"], "outside"),
    "feature": (["--features", "firstorder_Meen"], "firstorder_Mean"),
    "reference": (["--reference", "nowhere.json"], "nowhere.json"),
    "channels": (["--volume", "{folder}/ct.nrrd"], "takes 1 volume"),
    "empty segment": (["--segmentation", "{folder}/empty.nrrd", "--segment", "1"], "no segment"),
    "far segment": (["--segmentation", "{folder}/far.nrrd", "--segment", "1"], "overlap"),
    "no such segment": (["--segmentation", "{folder}/organ.nrrd", "--segment", "7"], "7"),
    "segment alone": (["--segment", "1"], "--segmentation"),
    "neuron twice": (["--neuron-ijk", "1", "1", "1", "--neuron-ras", "-1", "-1", "2"], "leave one out"),
    "slice of 3-D": (["--slice", "k:3"], "slice"),
    "device": (["--device", "cuda:99"], "cuda"),
}


def one_line(captured) -> str:
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("medxai: "), captured.err
    return lines[0]


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_one_line_and_leave_nothing(study, capsys, name):
    folder, _ = study
    arguments, words = REFUSALS[name]
    before = sorted(p.name for p in folder.iterdir())
    assert medxai(study, *(str(a).format(folder=folder) for a in arguments)) == 1
    assert words in one_line(capsys.readouterr())
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize("volume,words", [("holes.nrrd", "NaN or infinite"), ("nothing.nrrd", "nothing.nrrd")])
def test_bad_volumes(study, capsys, volume, words):
    assert medxai(study, volume=volume) == 1
    assert words in one_line(capsys.readouterr())


def test_an_output_folder_that_exists_is_refused_before_anything_is_computed(study, capsys):
    folder, _ = study
    (folder / "out").mkdir()
    assert medxai(study) == 1
    assert "exists already" in one_line(capsys.readouterr())
    assert list((folder / "out").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="another limit")
def test_an_output_folder_with_a_long_name(study, capsys):
    assert medxai(study, output="x" * 300) == 1
    assert "too long" in one_line(capsys.readouterr())
    assert medxai(study, "--steps", 1, "--features", "none", output="x" * 255) == 0


def test_points_are_taken_as_programs_print_them(study):
    point = ("--neuron-ras", "-6.0e+00", "-5.", "8.000000001")
    assert medxai(study, *point, "--steps", 1, "--features", "none") == 0
    about = json.loads((study[0] / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert about["neuron_ijk"] == [6, 5, 4] and about["neuron"] == "given"


def test_an_output_folder_that_cannot_be_made(study, capsys):
    (study[0] / "file").write_text("")
    assert medxai(study, output="file/out") == 1
    assert "cannot be" in one_line(capsys.readouterr())


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_an_output_folder_where_one_may_not_look(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        with pytest.raises(MedXAIError, match="cannot be"):
            files.check_new_folder(closed / "run" / "out")
    finally:
        if root:
            os.seteuid(0)
        closed.chmod(0o700)


@pytest.mark.parametrize("ending", [MedXAIError("no"), KeyboardInterrupt()])
def test_the_reason_stands_on_a_line_of_its_own(monkeypatch, capsys, ending):
    def steps():
        yield Step(0.5, "half")
        raise ending

    progress = cli.Progress(False)
    progress.terminal = True
    with pytest.raises(type(ending)):
        progress.drive(steps())
    assert capsys.readouterr().err.endswith("\r")


def test_a_program_needs_trust(study, tmp_path, capsys):
    package = planted.linear_package(tmp_path / "program", np.ones((3, 3, 3)), format="ts")
    assert medxai(study, model=package.folder) == 1
    line = one_line(capsys.readouterr())
    assert "trust" in line and package.sha256 in line
    assert medxai(study, "--trust", "0" * 64, model=package.folder) == 1
    one_line(capsys.readouterr())
    assert medxai(study, "--trust", package.sha256, "--steps", 1, "--features", "none", model=package.folder) == 0


def test_a_weights_file_that_was_changed(study, capsys):
    _, package = study
    path = Path(package.folder) / package.weights
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert medxai(study) == 1
    assert "SHA-256" in one_line(capsys.readouterr())


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda about: about.pop("output"), "output"),
        (lambda about: about.update(outputs={}), "outputs"),
        (lambda about: about["input"].update(spacing=[1, 1]), "spacing"),
    ],
)
def test_a_model_json_with_a_missing_or_unknown_field(study, capsys, change, words):
    _, package = study
    path = Path(package.folder) / "model.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    change(about)
    path.write_text(json.dumps(about))
    assert medxai(study) == 1
    assert words in one_line(capsys.readouterr())


def test_a_pickle_that_carries_code_is_refused(study, tmp_path, capsys):
    import hashlib

    import torch

    class Harm:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/harmed",))

    package = planted.linear_package(tmp_path / "pickle", np.ones((3, 3, 3)), format="pt")
    path = Path(package.folder) / package.weights
    torch.save({"weight": Harm()}, path)
    about = json.loads((Path(package.folder) / "model.json").read_text(encoding="utf-8"))
    about["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (Path(package.folder) / "model.json").write_text(json.dumps(about))
    assert medxai(study, model=package.folder) == 1
    one_line(capsys.readouterr())
    assert not (tmp_path / "harmed").exists()


def test_a_coronal_slice_for_an_axial_network(tmp_path, linear_package, capsys):
    package = linear_package(np.ones((3, 3)), input={"orientation": "PL"})
    array = np.random.default_rng(0).normal(size=(10, 1, 12)).astype(np.float32)
    io.write_volume(tmp_path / "coronal.nrrd", Volume(array, np.diag([-1.0, -1.0, 1.0, 1.0]), "coronal"))
    assert medxai((tmp_path, package), volume="coronal.nrrd") == 1
    assert "axial" in one_line(capsys.readouterr())


def test_memory_that_does_not_suffice_is_told_before(study, monkeypatch, capsys):
    from MedXAILib.models import memory

    monkeypatch.setattr(memory, "available", lambda device: 1000)
    assert medxai(study, "--no-crop") == 1
    line = one_line(capsys.readouterr())
    assert "GiB" in line and "lower" in line


@pytest.mark.skipif(sys.platform == "win32", reason="file-size limits are POSIX")
def test_a_full_disk_leaves_nothing(study):
    folder, package = study
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); from MedXAILib import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "dream", "--model", package.folder, "--volume", folder / "ct.nrrd", "--steps", "1"]
        + ["--features", "none", "--no-scene", "--output", folder / "out"],
        capture_output=True, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "disk is full" in done.stderr
    assert not [p for p in folder.iterdir() if "out" in p.name]


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent another way")
def test_interrupting_leaves_nothing_and_exits_130(study):
    folder, package = study
    process = subprocess.Popen(
        [sys.executable, "-m", "MedXAILib", "dream", "--model", package.folder, "--volume", folder / "ct.nrrd", "--steps", "100000"]
        + ["--tolerance", "0", "--features", "none", "--no-scene", "--json", "--output", folder / "out"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", cwd=REPOSITORY,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )  # fmt: skip
    for line in process.stdout:
        if '"point"' in line:
            break
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and "cancelled" in error
    assert not [p for p in folder.iterdir() if "out" in p.name]


def test_models_describe_and_its_json(study, capsys):
    _, package = study
    assert cli.main(["models", "describe", str(package.folder), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["labels"] == ["background", "object"] and about["layers"] and about["sha256"] == package.sha256
    assert cli.main(["models", "describe", str(package.folder)]) == 0
    assert "object" in capsys.readouterr().out


def test_features_reference_from_a_folder(tmp_path, capsys):
    random = np.random.default_rng(0)
    for n in range(3):
        image = random.normal(100, 10, (8, 9, 10)).astype(np.float32)
        mask = np.zeros(image.shape, np.uint8)
        mask[2:6, 2 : 6 + n, 2:7] = 1
        io.write_volume(tmp_path / f"case{n}.nrrd", Volume(image, np.eye(4), "image"))
        io.write_volume(tmp_path / f"case{n}_mask.nrrd", Volume(mask, np.eye(4), "mask"))
    out = tmp_path / "reference.json"
    assert (
        cli.main(["features", "reference", str(tmp_path), "--features", "firstorder_Mean", "--line-length", "5", "--output", str(out)])
        == 0
    )  # fmt: skip
    assert json.loads(out.read_text(encoding="utf-8"))["options"]["line_length"] == 5
    assert "3 cases, 0 skipped" in capsys.readouterr().out
    assert out.exists()
    assert cli.main(["features", "reference", str(tmp_path), "--output", str(tmp_path / "nowhere" / "r.json")]) == 1
    assert "does not exist" in one_line(capsys.readouterr())
    assert cli.main(["features", "reference", str(tmp_path), "--output", str(out)]) == 1


def test_help_needs_no_torch():
    code = "import sys; from MedXAILib import cli\ntry: cli.main(['dream', '--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=REPOSITORY)


def test_packages_of_the_shared_data_open(data, capsys):
    for folder in sorted((data / "models").iterdir()):
        assert Package.read(folder).name
        assert cli.main(["models", "describe", str(folder), "--trust"]) == 0
    assert "lung" in capsys.readouterr().out
