"""The panels' logic that needs no Qt: rows of a form, the library of models, diagnostics, the environment."""

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from MedXAILib.errors import MedXAIError
from MedXAILib.panel import environment, report, rows
from MedXAILib.panel.library import Library
from MedXAILib.settings import METHODS, DreamSettings, Settings, setting

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Every(Settings):
    """One setting of each kind."""

    flag: bool = setting(True, "A flag.")
    count: int = setting(3, "A small count.", low=0, high=20, unit="voxels")
    big: int = setting(100, "A big count.", low=1, high=100000)
    angle: float = setting(45.0, "An angle.", low=0, high=180, unit="degrees", decimals=1, increment=5.0)
    size: float = setting(1.0, "Any <size> & more.", low=1e-9, high=1e9, decimals=4, increment=0.1)
    way: str = setting("up", "A choice.", choices=("up", "down"))
    text: str = setting("", "Text.", advanced=True)
    names: tuple[str, ...] = setting(("a", "b"), "Names.")
    point: tuple[float, float, float] | None = setting(None, "A point.", unit="mm")
    limit: int | None = setting(None, "A number, or none.")


def by_name(cls):
    return {row.name: row for row in rows.rowsOf(cls)}


def test_each_kind_gets_its_widget():
    found = {name: (row.widget, row.parameter) for name, row in by_name(Every).items()}
    assert found == {
        "flag": ("check", bool), "count": ("slider", int), "big": ("spin", int), "angle": ("slider", float),
        "size": ("spin", float), "way": ("choice", str), "text": ("text", str), "names": ("text", str),
        "point": ("text", str), "limit": ("text", str),
    }  # fmt: skip


def test_spin_box_never_shows_a_lowest_value_it_refuses():
    row = by_name(Every)["size"]
    assert row.low == 1e-4
    assert row.toSetting(row.low) == 1e-4


@pytest.mark.parametrize("cls", [Every, *METHODS.values()])
def test_defaults_survive_the_form(cls):
    """What the form keeps in the scene for a default is read back as that default."""
    values = {row.name: row.default for row in rows.rowsOf(cls)}
    assert all(type(v) is row.parameter for row, v in zip(rows.rowsOf(cls), values.values()))
    assert rows.settingsFrom(cls, values) == cls()


@pytest.mark.parametrize("cls", [Every, *METHODS.values()])
def test_sliders_can_be_aimed(cls):
    for row in rows.rowsOf(cls):
        if row.widget == "slider":
            assert (row.high - row.low) / row.increment <= rows.SLIDER_STEPS
        if row.widget in ("slider", "spin"):
            assert round(row.increment, row.decimals) == row.increment, row.name
            assert rows.decimalsOf(row.default) <= row.decimals, row.name


def test_a_run_fills_the_form_with_just_what_it_had():
    given = Every(flag=False, count=7, size=1e-7, way="down", names=("x",), point=(1.5, -2.25, 1e-3), limit=4)
    values, notes = rows.parametersFrom(Every, json.loads(json.dumps(given.to_json())))
    assert notes == []
    assert rows.settingsFrom(Every, values) == given


def test_an_old_run_says_what_no_longer_fits():
    values, notes = rows.parametersFrom(Every, {"count": 7, "big": 0, "gone": 1})
    assert values == {"count": 7}
    assert len(notes) == 2 and "big" in notes[0] and "'gone'" in notes[1]


@pytest.mark.parametrize("text", ["1, 2", "a, b, c", "1, 2, 3, 4", "nan, 0, 0"])
def test_a_bad_point_is_refused_by_name(text):
    with pytest.raises(MedXAIError, match=r"'point' \(--point\)"):
        by_name(Every)["point"].toSetting(text)


def test_empty_text_means_none_or_nothing():
    row = by_name(Every)
    assert row["point"].toSetting("  ") is None and row["limit"].toSetting("") is None
    assert row["names"].toSetting("") == () and row["names"].toSetting(" a ,b,") == ("a", "b")


def test_tool_tip_has_help_unit_and_option():
    tip = by_name(Every)["angle"].toolTip
    assert "An angle." in tip and "degrees" in tip and "--angle" in tip and "0 to 180" in tip
    assert "&lt;size&gt; &amp; more" in by_name(Every)["size"].toolTip


@pytest.mark.parametrize("value, decimals", [(1.0, 0), (0.5, 1), (1e-3, 3), (1e-7, 7), (0.1 + 0.2, 12), (25.0, 0)])
def test_decimals_of(value, decimals):
    assert rows.decimalsOf(value) == decimals


# -- library -----------------------------------------------------------------------------------------------------------


class MemorySettings:
    """QSettings as PythonQt gives it back: None when absent, one string for a list of one, else a tuple."""

    def __init__(self):
        self.kept = {}

    def value(self, key):
        found = self.kept.get(key)
        return found[0] if found is not None and len(found) == 1 else (tuple(found) if found else None)

    def setValue(self, key, value):
        self.kept[key] = list(value)


def write_model(folder, **changes):
    import hashlib

    folder.mkdir(parents=True)
    (folder / "weights.ts").write_bytes(b"not a network")
    fields = {
        "schema": 1, "name": folder.name.title(), "task": "segmentation", "weights": "weights.ts",
        "sha256": hashlib.sha256(b"not a network").hexdigest(),
        "input": {"spatial_dims": 3, "channels": ["CT"], "orientation": "RAS", "spacing": None, "size": None,
                  "multiple_of": None, "intensity": {"kind": "none"}},
        "output": {"labels": ["background", "organ"], "activation": "softmax"},
    }  # fmt: skip
    fields.update(changes)
    (folder / "model.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture
def shelf(tmp_path):
    write_model(tmp_path / "samples" / "sample")
    return Library(MemorySettings(), tmp_path / "samples")


def test_models_are_added_listed_and_taken_off(shelf, tmp_path):
    first, second = write_model(tmp_path / "one"), write_model(tmp_path / "two")
    for folder in (first, second, first):
        shelf.add(folder)
    assert [e.title for e in shelf.entries()] == ["Sample", "One", "Two"]
    shelf.remove(first)
    assert [e.title for e in shelf.entries()] == ["Sample", "Two"]
    shelf.remove(second)
    assert [e.title for e in shelf.entries()] == ["Sample"]
    assert (first / "model.json").exists() and (second / "weights.ts").exists()  # only the list forgets


def test_samples_stay(shelf):
    with pytest.raises(MedXAIError, match="came with MedXAI"):
        shelf.remove(shelf.samples[0])


def test_a_folder_without_a_model_is_not_added(shelf, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedXAIError, match=r"model\.json"):
        shelf.add(tmp_path / "empty")
    with pytest.raises(MedXAIError):
        shelf.add(tmp_path / "nowhere")
    assert shelf.added == []


def test_a_model_that_went_away_is_still_listed_and_says_why(shelf, tmp_path):
    import shutil

    folder = write_model(tmp_path / "one")
    shelf.add(folder)
    shutil.rmtree(folder)
    entry = shelf.entries()[-1]
    assert entry.package is None and "one" in entry.title and "no model folder" in entry.problem


def test_trust_is_for_one_program(shelf):
    one, two = "a" * 64, "b" * 64
    shelf.trust(one)
    shelf.trust(two)
    shelf.trust(one)
    assert shelf.trusted == {one, two}
    shelf.distrust(two)
    assert shelf.trusted == {one}
    with pytest.raises(MedXAIError, match="SHA-256"):
        shelf.trust("model")
    assert shelf.trusted == {one}


# -- report ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seconds, text",
    [(None, ""), (float("nan"), ""), (float("inf"), ""), (-1, ""), (3, "a few seconds left"), (44, "about 45 s left"),
     (200, "about 3 min left"), (7200, "about 2.0 h left")],
)  # fmt: skip
def test_time_left(seconds, text):
    assert report.timeLeft(seconds) == text


def test_diagnostics_hold_no_names():
    home = str(Path.home())
    log = ["Reading 'DOE^JOHN CT'", f"from {home}/studies/doe.nrrd", "the segment 'lesion' is empty"]
    text = report.diagnostics({"torch": "2.9", "device": ""}, log, ["DOE^JOHN CT", "lesion", "", None])
    assert "DOE" not in text and "lesion" not in text
    assert home + "/" not in text
    assert "torch: 2.9" in text and "device" not in text and "is empty" in text


def test_diagnostics_keep_the_end_of_the_log():
    text = report.diagnostics({}, [f"line {n}" for n in range(200)])
    assert "line 199" in text and "line 149" not in text


def test_names_inside_words_are_left_alone():
    assert report.withoutNames("a CT and actual", ["CT"]) == "a <name 1> and actual"


# -- environment -------------------------------------------------------------------------------------------------------


def test_needed_packages_are_those_of_the_wheel():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    line = re.search(r"^dependencies = \[(.*?)\]", text, re.MULTILINE | re.DOTALL).group(1)
    wheel = dict(re.findall(r'"([\w-]+)>=([\d.]+)', line))
    wheel.pop("numpy")  # comes with every Slicer
    assert wheel == {p.name: p.needs for p in environment.NEEDED if not p.optional}


def test_versions_are_compared_as_numbers():
    package = dataclasses.replace(environment.NEEDED[0], needs="2.2")
    for version, good in [("2.10.0+cu128", True), ("2.2", True), ("2.1.2", False), ("", False), ("2.2.0rc1", True)]:
        assert dataclasses.replace(package, version=version).satisfied is good, version


def test_what_is_missing_is_said_in_one_sentence():
    have = {p.name: "99" for p in environment.NEEDED}
    assert environment.missing(environment.withVersions(have)) == ""
    have["torch"] = ""
    assert "lacks torch;" in environment.missing(environment.withVersions(have))
    have["pyradiomics"] = ""
    packages = environment.withVersions(have)
    assert "pyradiomics" not in environment.missing(packages)
    for engine in ("auto", "builtin"):
        assert environment.withoutEngine(packages, engine) == ""
    told = environment.withoutEngine(packages, "pyradiomics")
    assert "choose auto" in told and "SlicerRadiomics" in told and "pip install" in told
    assert environment.withoutEngine(environment.withVersions({"pyradiomics": "3.0.1"}), "pyradiomics") == ""
    assert environment.withoutEngine([], "pyradiomics") == ""  # nobody has looked yet


def test_the_probe_answers_without_importing_what_it_looks_for():
    names = [p.name for p in environment.NEEDED] + ["not-a-package"]
    code = environment.PROBE + "\nassert not {'torch', 'monai', 'scipy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["packages"]["not-a-package"] == "" and answer["packages"]["torch"]
    assert environment.missing(environment.withVersions(answer["packages"])) == ""


def test_looking_at_this_python_is_done_at_once():
    done = []
    one = environment.Environment(lambda: None)
    one.refresh(lambda: done.append(True))
    assert done == [True] and one.packages and one.pythonVersion == sys.version.split()[0]


def test_nothing_is_installed_into_somebody_elses_python():
    one = environment.Environment(lambda: "/opt/python")
    one.packages = environment.withVersions({})
    with pytest.raises(MedXAIError, match="/opt/python -m pip install") as caught:
        one.install()
    assert caught.value.kind == "missing" and "pyradiomics" not in caught.value.message


def test_torch_without_the_pytorch_extension_is_one_clear_sentence():
    one = environment.Environment(lambda: None)
    one.packages = environment.withVersions({"monai": "1.5"})
    with pytest.raises(MedXAIError, match="PyTorch extension") as caught:
        one.install()
    assert "Extensions Manager" in caught.value.hint


def test_dream_settings_have_a_row_each():
    assert [row.name for row in rows.rowsOf(DreamSettings)] == [f.name for f in dataclasses.fields(DreamSettings)]
