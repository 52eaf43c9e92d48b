import json
import shlex

import numpy as np
import pytest

from MedXAILib import cli, io, resources
from MedXAILib.demo import run as demonstration
from MedXAILib.demo.phantom import HELD_OUT, case
from MedXAILib.demo.train import evaluate
from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import run
from MedXAILib.package import Package


@pytest.fixture(scope="module")
def package():
    return Package.read(resources.path(demonstration.MODEL))


def test_train_phantom_trains_judges_and_describes(tmp_path, monkeypatch):
    from MedXAILib.demo import train

    base = {"lesion_dice": 0.5, "below_hu": 60, "smoothing_voxels": 0.0, "rim_voxels": 0}
    monkeypatch.setattr(train, "threshold_baseline", lambda seeds, held_out: base)
    monkeypatch.setattr(train, "case", lambda seed, lesions=True: case(seed, lesions, (32, 48, 48), (6.0, 6.0, 6.0)))
    steps = train.train_phantom(tmp_path / "model", seed=3, steps=2, cases=2, held_out=1, patch=16)
    package = run(steps)
    assert package.folder == tmp_path / "model" and "--preset demo --seed 3 --steps 2 " in package.about["source"]
    assert {f.name for f in package.folder.iterdir()} == {
        "model.json",
        "weights.safetensors",
        "README.md",
        "figures.json",
    }
    package.verify()
    figures = json.loads((package.folder / "figures.json").read_text("utf-8"))
    assert figures["figures"]["cases"] == 1 and figures["figures"]["threshold"] == base
    assert figures["training"]["cases"] == 2 and figures["training"]["seed"] == 3
    assert "2 phantoms of seeds 0 to 1" in (package.folder / "README.md").read_text("utf-8")
    # Stopped while it is judged: nothing is left.
    steps = train.train_phantom(tmp_path / "stopped", steps=1, cases=1, held_out=2, patch=16)
    while next(steps).stage != "Judging on held-out phantoms":
        pass
    steps.close()
    assert [f.name for f in tmp_path.iterdir()] == ["model"]
    with pytest.raises(MedXAIError, match="exists already"):
        run(train.train_phantom(tmp_path / "model"))


@pytest.fixture
def quick(monkeypatch):
    """Fewer reference lesions: each phantom takes a second or two."""
    monkeypatch.setattr(demonstration, "REFERENCE", range(500, 502))


def test_the_package_is_small_whole_and_says_where_it_comes_from(package):
    package.verify()
    assert package.weights_path.stat().st_size < 2e6 and package.format == "safetensors"
    assert package.about["source"].startswith("medxai train segmentation --phantom --preset demo ")
    assert package.output.labels == ("background", "liver", "lesion")


def test_the_recorded_figures_are_what_the_design_asks_for(package):
    figures = json.loads((package.folder / "figures.json").read_text("utf-8"))["figures"]
    assert figures["seeds"][0] >= HELD_OUT and figures["cases"] >= 20
    assert 0.75 <= figures["lesion_dice"] <= 0.97 and figures["threshold"]["lesion_dice"] < 0.8
    readme = (package.folder / "README.md").read_text("utf-8")
    assert package.about["source"] in readme and f"{figures['lesion_dice']:.3f}" in readme


def test_the_package_reaches_its_figures_on_phantoms_it_has_not_seen(package, monkeypatch):
    from MedXAILib.demo import train

    monkeypatch.setattr(train, "threshold_baseline", lambda *_: {})
    figures = run(evaluate(package.folder, [HELD_OUT + 500]))
    assert figures["liver_dice"] > 0.85 and figures["lesion_dice"] > 0.6


def test_demo_end_to_end(tmp_path, quick, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert demonstration.demo("demo", steps=3, scene=False) == 0
    printed = capsys.readouterr().out
    assert "Where to look" in printed and str(tmp_path) not in printed.split("Where to look")[1]
    phantom = case(demonstration.PATIENT, lesions=False)
    volume, liver = (
        io.read_volume("demo/inputs/volume.nrrd"),
        io.read_mask("demo/inputs/segmentation.seg.nrrd", "liver"),
    )
    assert np.array_equal(volume.array, phantom.image.array) and volume.same_grid(phantom.image)
    assert np.array_equal(liver.array, phantom.labels.array) and liver.same_grid(volume)
    explanation = json.loads((tmp_path / "demo/dream/explanation.json").read_text("utf-8"))
    dream = io.read_volume("demo/dream/dream.nrrd")
    assert dream.same_grid(volume) and (dream.array != volume.array).any()
    i, j, k = explanation["neuron_ijk"]
    assert liver.array[k, j, i] and explanation["scores"]["response_end"] > explanation["scores"]["response_start"]
    verdicts = (tmp_path / "demo/dream/verdicts.csv").read_text("utf-8")
    assert "line_texture" in verdicts
    reference = json.loads((tmp_path / "demo/inputs/reference.json").read_text("utf-8"))
    assert len(reference["cases"]) >= 4 and reference["options"]["engine"] == "builtin"
    assert "firstorder_Mean" in verdicts and "no reference" not in verdicts
    # The command it printed is the command: it runs again as it stands.
    (line,) = [line for line in printed.splitlines() if line.startswith("  medxai dream")]
    arguments = shlex.split(line)[1:]
    arguments[arguments.index("--output") + 1] = "again"
    assert cli.main([*arguments, "--steps", "1", "--features", "none"]) == 0
    again = json.loads((tmp_path / "again/explanation.json").read_text("utf-8"))
    assert again["neuron_ijk"] == [i, j, k]
    assert again["scores"]["response_start"] == explanation["scores"]["response_start"]


def test_reference_lesions_are_lesions():
    names = set()
    for name, image, mask in demonstration.reference_cases([500]):
        names.add(name)
        assert image.same_grid(mask) and 27 <= mask.array.sum() < mask.array.size and mask.array.max() == 1
        assert image.array[mask.array > 0].mean() < 80
    assert len(names) >= 2


def test_a_failed_or_cancelled_demo_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(demonstration, "write_reference", lambda path: None)
    for status in (1, 130):
        monkeypatch.setattr(cli, "main", lambda arguments, status=status: status)
        assert demonstration.demo(tmp_path / "demo") == status
        assert not list(tmp_path.iterdir())

    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(demonstration, "write_patient", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demonstration.demo(tmp_path / "demo")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_refused_and_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(MedXAIError, match="exists already"):
        demonstration.demo(tmp_path)
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"
