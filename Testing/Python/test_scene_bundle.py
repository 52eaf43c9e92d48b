"""`scene.mrb`, written headless and opened again in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scene_examples as examples
from scene_fixtures import needed

needed()

from MedXAILib.errors import MedXAIError  # noqa: E402
from MedXAILib.scene.bundle import save_scene  # noqa: E402
from MedXAILib.volume import Volume  # noqa: E402

HERE = Path(__file__).resolve().parent


def reopened(path: Path) -> dict:
    facts = path.with_suffix(".json")
    done = subprocess.run(
        [sys.executable, str(HERE / "scene_reopen.py"), str(path), str(facts)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(facts.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    volume = examples.volume(name="CT liver; 100% “ß”")
    second = examples.volume((12, 20, 20), name="second")
    explanation = examples.dream(volume)
    path = tmp_path_factory.mktemp("scene") / "scene.mrb"
    segment = volume.with_array(explanation.masks["mask"].array, "liver", "")
    save_scene(explanation, [volume, second], [segment], path)
    return volume, second, explanation, reopened(path)


def test_folders(saved):
    volume, _, _, facts = saved
    root = facts["tree"]
    assert set(root) == {volume.name, "second", "liver segmentation", "DeepDream analysis: Liver tumour U-Net"}
    folder = root["DeepDream analysis: Liver tumour U-Net"]
    assert {"Dream", "Change", "Masks", "Verdicts", "Neuron", "About this run", "response"} <= set(folder)
    assert {"curves table", "normalized table", "Dream (sequence)", "Dream (step)"} <= set(folder)
    assert facts["layout"] == 36


def test_volumes_keep_grid_voxels_and_looks(saved):
    volume, second, explanation, facts = saved
    expected = {
        volume.name: volume,
        "second": second,
        "Dream": explanation.maps["dream"].volume,
        "Change": explanation.maps["change"].volume,
    }
    expected["Dream (step)"] = explanation.sequences["steps"].items[-1][1]
    expected["Predicted component (step)"] = explanation.sequences["mask-steps"].items[-1][1]
    assert set(facts["volumes"]) == set(expected)
    for name, one in expected.items():
        fact = facts["volumes"][name]
        assert fact["shape"] == list(one.shape) and fact["type"] == str(one.array.dtype)
        np.testing.assert_allclose(fact["matrix"], one.ijk_to_ras, atol=1e-5)
        assert fact["sum"] == pytest.approx(float(one.array.sum(dtype=float)), rel=1e-6, abs=1e-3)
    looks = facts["volumes"]
    assert looks["Change"]["colour"] == "MedXAI signed" and looks["Dream"]["colour"] == "Grey"
    assert looks["Change"]["window"][0] == -looks["Change"]["window"][1] and looks["Change"]["threshold"] is None
    assert looks["Change"]["displays"] == ["vtkMRMLScalarVolumeDisplayNode", "vtkMRMLColorLegendDisplayNode"]
    assert looks["Dream"]["window"] == looks[volume.name]["window"] == looks["Dream (step)"]["window"]
    assert looks["Predicted component (step)"]["class"] == "vtkMRMLLabelMapVolumeNode"
    assert looks["Dream"]["method"] == "dream" and looks[volume.name]["method"] is None


def test_colours(saved):
    table = saved[3]["colours"]
    assert set(table) == {"MedXAI signed", "MedXAI mask"}
    first, middle, last = table["MedXAI signed"]["values"]
    assert table["MedXAI signed"]["n"] == 511 and middle[3] == 0 and first[3] == last[3] == 1
    assert first[2] > first[0] and last[0] > last[2]


def test_views_show_the_last_step_over_the_input_through_the_neuron(saved):
    volume, _, explanation, facts = saved
    assert facts["views"] == [[volume.name, "Dream (step)", "Predicted component (step)", 1.0]] * 3
    np.testing.assert_allclose(facts["neuron"], explanation.provenance["neuron_ras"], atol=1e-3)
    assert max(facts["distance to slices"]) < 0.01


def test_charts_and_tables(saved):
    _, _, explanation, facts = saved
    assert facts["chart shown"] == ["normalized chart"]
    chart = facts["charts"]["normalized chart"]
    names = list(explanation.curves["normalized"].columns)[1:]
    assert list(chart["series"]) == [*names, "reference ±1 SD: -1", "reference ±1 SD: +1"]
    for name, (table, x, style, kind) in chart["series"].items():
        assert (table, x, kind) == ("normalized table", "step", 2)  # a scatter chart: real x
        assert (style == 2) == name.startswith("reference")  # dashed
    assert chart["titles"] == ["Features along the dream", "Step", "Normalized value (0: reference mean, 1: one SD)"]
    assert facts["charts"]["curves chart"]["titles"] == ["Response and features", "Step", "Value [logit]"]
    assert list(facts["charts"]["curves chart"]["series"]) == ["response"] and chart["legend"]
    table = facts["tables"]["curves table"]
    for name, values in explanation.curves["curves"].columns.items():
        np.testing.assert_allclose([float(v) for v in table[name]], values, rtol=1e-4, atol=1e-5)
    assert np.isnan(float(table["shape_MaximumDiameter"][0]))  # undefined stays undefined
    assert set(facts["tables"]["normalized table"]["reference ±1 SD: +1"]) == {"1"}
    assert facts["tables"]["Verdicts"]["verdict"] == ["entered", "overshot", "unmoved", "approaching"]


def test_segments(saved):
    _, _, explanation, facts = saved
    mask = explanation.masks["mask"].array
    low = [int(v.min()) for v in mask.nonzero()]
    assert facts["segments"] == {
        "liver": ["liver segmentation", int(mask.sum()), low],
        "mask": ["Masks", int(mask.sum()), low],
    }


def test_steps_can_be_scrubbed(saved):
    _, _, explanation, facts = saved
    items = explanation.sequences["steps"].items
    assert facts["frames"] == [[str(step), pytest.approx(float(v.array.max()), rel=1e-6)] for step, v in items]
    assert facts["sequences"] == {
        "Dream (sequence)": [len(items), "vtkMRMLScalarVolumeNode", "float"],
        "Predicted component (sequence)": [len(items), "vtkMRMLLabelMapVolumeNode", "unsigned char"],
    }


def test_provenance(saved):
    volume, _, explanation, facts = saved
    known = facts["provenance"]
    assert known["inputs"] == [volume.name, "second"] and known["segmentation"] == "liver segmentation"
    assert known["segment"] == "liver" and known["settings"] == explanation.provenance["settings"]
    assert known["provenance"]["versions"] == explanation.provenance["versions"]
    assert "converged: 0 (NOT PASSED)" in facts["text"] and explanation.notes[0] in facts["text"]


def test_single_slice_and_flipped(tmp_path):
    matrix = examples.straight((0.5, 0.5, 3.0), (10, 20, 30))
    matrix[:, 0] *= -1
    volume = examples.volume((1, 40, 50), matrix, "picture", "")
    explanation = examples.dream(volume)
    explanation.curves.pop("normalized")
    explanation.maps["change"].volume.array[:] = 0  # nothing changed at all
    explanation.masks["mask"].array[:] = 0
    save_scene(explanation, [volume], [], tmp_path / "scene.mrb")
    facts = reopened(tmp_path / "scene.mrb") if explanation.masks["mask"].array.any() else None
    assert facts is None and (tmp_path / "scene.mrb").stat().st_size > 10_000


def test_a_scene_that_cannot_be_written(tmp_path):
    volume = examples.volume((4, 10, 10))
    (tmp_path / "a file").write_text("")
    with pytest.raises(MedXAIError, match="could not be written") as told:
        save_scene(examples.dream(volume), [volume], [], tmp_path / "a file" / "scene.mrb")
    assert told.value.kind == "disk" and [p.name for p in tmp_path.iterdir()] == ["a file"]


def test_names_may_repeat(tmp_path):
    volume = examples.volume((6, 16, 16), examples.straight(), "image")
    twin = Volume(volume.array, volume.ijk_to_ras, "image")
    save_scene(examples.dream(volume), [volume, twin], [], tmp_path / "scene.mrb")
    assert (tmp_path / "scene.mrb").is_file()
