"""The nodule phantom: the same nodule with and without spicules, so that what makes the class is known; the scan; the files; the shipped classifier."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from MedXAILib import io, resources
from MedXAILib.demo import nodule as made
from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import run
from MedXAILib.models import load, prepare

EDGE = made.EDGE


def far_from(mask):
    """Distance (mm) of every pixel from the nodule; 0 in it."""
    from scipy import ndimage

    return ndimage.distance_transform_edt(mask.array[0] == 0, sampling=made.PIXEL)


def test_nothing_but_the_spicules_tells_the_two_apart():
    for seed in range(8):
        smooth, spiculated = made.nodule(seed, False), made.nodule(seed, True)
        cause = made.cause(seed)
        assert smooth.image.array.dtype == np.int16 and cause.array.dtype == np.float32
        assert smooth.image.same_grid(spiculated.image) and np.array_equal(smooth.mask.array, spiculated.mask.array)
        assert np.array_equal(smooth.image.array + cause.array, spiculated.image.array)
        far = far_from(smooth.mask)
        assert not cause.array[0][far > made.REACH].any()  # lung, vessels, chest wall and noise are the same
        inside = far_from(smooth.mask.with_array(1 - smooth.mask.array)) > 4
        assert np.abs(cause.array[0][inside]).max(initial=0) <= 3
        around = cause.array[0][(far > 1.5) & (far < 6)]
        assert around.mean() > 5 and around.max() > 80 and (np.abs(around) > 100).mean() < 0.4  # lines, not a ring


def test_a_seed_is_always_the_same_patch_of_45_mm_and_seeds_differ():
    one = made.nodule(5)
    assert one.image.shape == (1, 64, 64) and one.image.spacing == (EDGE / 64, EDGE / 64, 1.0)
    assert one.image.orientation == "LPS" and one.image.unit == "HU" and one.spiculated
    assert np.array_equal(one.image.array, made.nodule(5).image.array)
    assert not np.array_equal(one.image.array, made.nodule(6).image.array)
    diameters = [2 * np.sqrt(made.nodule(seed).mask.array.sum() / np.pi) * made.PIXEL for seed in range(40)]
    assert 7 < min(diameters) < 11 and 16 < max(diameters) < 25
    with pytest.raises(MedXAIError, match="use 0 or more"):
        made.nodule(-1)


def test_intensity_alone_hardly_tells_them():
    """The best of many statistics and thresholds, chosen on some and tried on others."""
    known = [made.nodule(seed, kind) for seed in range(40) for kind in (False, True)]
    held_out = [made.nodule(seed, seed % 2 == 0) for seed in range(1000, 1060)]
    found = made.threshold(known, held_out)
    assert found["accuracy"] < 0.8 and found["accuracy_in_training"] < 0.85


def test_a_scan_holds_three_nodules_of_both_kinds_and_its_cause():
    again = made.scan(1006)
    for seed in (1000, 1006):
        scan = made.scan(seed)
        assert scan.image.shape == (1, 256, 256) and scan.image.array.dtype == np.int16
        assert scan.image.spacing == made.nodule(0).image.spacing and scan.image.orientation == "LPS"
        kinds = [name.split("(")[1].rstrip(")") for name in scan.masks]
        assert len(kinds) == 3 and set(kinds) == set(made.CLASSES)
        near = np.zeros(scan.image.shape[1:], bool)
        for kind, mask in zip(kinds, scan.masks.values()):
            rows, columns = np.nonzero(mask.array[0])
            assert 32 <= rows.mean() <= 224 and 32 <= columns.mean() <= 224  # a patch of 45 mm lies in the image
            around = far_from(mask) < made.REACH
            assert scan.cause.array[0][around].any() == (kind == "spiculated")
            near |= around
        assert not scan.cause.array[0][~near].any()
    assert np.array_equal(again.image.array, scan.image.array)


def test_the_nodules_are_written_as_every_training_takes_them(tmp_path):
    steps = list(made.write_nodules(tmp_path / "out", [998, 999, 1000, 1001, 1000]))
    assert len(steps) == 4

    def table(name):
        with (tmp_path / "out" / name).open(encoding="utf-8") as file:
            return list(csv.DictReader(file))

    rows, all_rows = table("labels.csv"), table("pairs.csv")
    assert [row["split"] for row in rows] == ["train"] * 4 + ["test"] * 2 and len(all_rows) == 8
    assert [row["label"] for row in rows] == ["smooth", "spiculated"] * 2 + ["spiculated", "smooth"]
    assert len({row["patient_id"] for row in rows}) == 4 and all(row in all_rows for row in rows)
    smooth, spiculated = (
        io.read_volume(tmp_path / "out/images" / row["image"]) for row in all_rows if row["patient_id"] == "nodule-1000"
    )
    cause = io.read_volume(tmp_path / "out" / rows[4]["cause"])
    assert np.array_equal(spiculated.array, made.nodule(1000).image.array) and spiculated.same_grid(cause)
    assert np.array_equal(cause.array, spiculated.array.astype(np.float32) - smooth.array)
    mask = io.read_volume(tmp_path / "out" / rows[4]["mask"])
    assert np.array_equal(mask.array, made.nodule(1000).mask.array)
    for seeds in ([], [-1]):
        with pytest.raises(MedXAIError, match="FIRST at least 0 and below LAST"):
            run(made.write_nodules(tmp_path / "none", seeds))
    assert not (tmp_path / "none").exists()


def test_the_sample_classifier_is_what_its_figures_say():
    folder = resources.path("Models/nodule-classifier")
    model = load(folder, device="cpu")
    model.package.verify()
    about = model.package.input
    assert model.package.weights_path.stat().st_size < 1_000_000 and model.labels == made.CLASSES
    assert (about.spacing, about.size, about.fit) == ((made.PIXEL,) * 2, (64, 64), "window")
    found = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    one = found["networks"]["strided"]
    assert found["cases"]["test"] >= 60 and found["cases"]["test"] == found["cases"]["test_groups"]
    assert 0.75 < one["accuracy"]["value"] < 0.97 and found["threshold"]["accuracy"] < 0.8
    cases = [made.nodule(seed, seed % 2 == 0) for seed in range(1000, 1030)]
    right = [
        bool(model.logits(prepare(model, [case.image]).x).detach()[0].argmax()) == case.spiculated for case in cases
    ]
    assert np.mean(right) > 0.8
