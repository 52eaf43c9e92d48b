"""The mammogram-like phantom: the same breast with and without masses, at any resolution; the files it is written to."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy import ndimage

from MedXAILib import io
from MedXAILib.cases import pairs
from MedXAILib.cli import main
from MedXAILib.demo.mammogram import HEIGHT, mammogram


def test_nothing_but_the_masses_tells_the_two_apart():
    for seed in range(6):
        healthy, ill = mammogram(seed, False), mammogram(seed)
        assert not healthy.masses.array.any() and ill.masses.array.any()
        assert np.array_equal(healthy.breast.array, ill.breast.array)
        change = ill.image.array.astype(int) - healthy.image.array
        near = ndimage.binary_dilation(ill.masses.array, iterations=16)
        assert not change[~near].any() and change[ill.masses.array > 0].mean() > 15
        assert (ill.masses.array <= ill.breast.array).all()
        assert np.array_equal(mammogram(seed).image.array, ill.image.array)


def test_it_is_the_same_breast_at_any_resolution():
    small, large = mammogram(3, shape=(128, 128)), mammogram(3, shape=(512, 512))
    assert small.image.spacing[0] == HEIGHT / 128 and large.image.spacing[0] == HEIGHT / 512
    reduced = large.image.array[0].reshape(128, 4, 128, 4).mean((1, 3))
    assert np.abs(reduced - small.image.array[0]).mean() < 3
    for one in ("breast", "masses"):
        area = [getattr(case, one).array.sum() * case.image.spacing[0] ** 2 for case in (small, large)]
        assert area[0] == pytest.approx(area[1], rel=0.1)
    assert mammogram(3, shape=(576, 448)).image.shape == (1, 576, 448)


def test_brightness_alone_hardly_tells_them():
    """The best threshold on the brightest hundredth of the breast, chosen with knowledge of the answer."""
    cases = [mammogram(seed, finding) for seed in range(40) for finding in (False, True)]
    values = np.array([np.percentile(one.image.array[one.breast.array > 0], 99) for one in cases])
    ill = np.array([bool(one.masses.array.any()) for one in cases])
    assert max(np.mean((values > cut) == ill) for cut in values) < 0.8


def test_it_is_written_as_every_command_takes_it(tmp_path, capsys):
    assert main(["phantoms", "--seeds", 998, 1001, "--size", 64, 48, "--output", tmp_path / "out"]) == 0
    with (tmp_path / "out" / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["train"] * 4 + ["test"] * 2
    assert {row["label"] for row in rows} == {"healthy", "mass"} and len({row["patient_id"] for row in rows}) == 3
    assert [name for name, *_ in pairs(tmp_path / "out" / "cohort-train")] == ["mammogram-0998", "mammogram-0999"]
    ((_, image, mask),) = pairs(tmp_path / "out" / "cohort-test")
    made = mammogram(1000, shape=(64, 48))
    assert np.array_equal(io.read_volume(image).array, made.image.array)
    assert np.array_equal(io.read_mask(mask, "2").array, made.masses.array)
    assert main(["phantoms", "--seeds", 5, 5, "--output", tmp_path / "none"]) == 1
    assert "no seed" in capsys.readouterr().err and not (tmp_path / "none").exists()
