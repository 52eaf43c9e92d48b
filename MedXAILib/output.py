"""An explanation as files: what `medxai METHOD` leaves in its output folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import io
from .errors import MedXAIError
from .explanation import Explanation
from .files import plain, write_csv
from .volume import Volume


def write(
    explanation: Explanation, volumes: list[Volume], segments: Sequence[Volume], folder: Path, scene: bool = True
) -> list[str]:
    """Write every file of an explanation into an existing, empty folder; ``segments`` are the masks it was started with.

    Returns
    -------
    list of str
        The notes of what was left out and why (no `scene.mrb` without slicer-core, and so on).
    """
    files, left_out = {}, []
    for group in (
        {name: layer.volume for name, layer in explanation.maps.items()}, explanation.masks,
    ):  # fmt: skip
        for name, volume in group.items():
            io.write_volume(folder / f"{name}.nrrd", volume)
            files[name] = f"{name}.nrrd"
    for name, sequence in explanation.sequences.items():
        if sequence.names:
            for one, (_, volume) in zip(sequence.names, sequence.items):
                io.write_volume(folder / f"{one}.nrrd", _whole(volume, volumes[0]))
                files[one] = f"{one}.nrrd"
            continue
        io.write_sequence(folder / f"{name}.seq.nrrd", sequence)
        files[name] = f"{name}.seq.nrrd"
    for name, columns in [(n, c.columns) for n, c in explanation.curves.items()] + [
        (n, t.columns) for n, t in explanation.tables.items()
    ]:
        write_csv(folder / f"{name}.csv", columns)
        files[name] = f"{name}.csv"
    if scene:
        from .scene.bundle import save_scene
        from .scene.report import report

        for name, make in (
            ("scene.mrb", lambda path: save_scene(explanation, volumes, segments, path)),
            ("report.png", lambda path: report(explanation, volumes, path, segments)),
        ):
            try:
                make(folder / name)
                files[name.split(".")[0]] = name
            except MedXAIError as error:
                if error.kind != "missing":
                    raise
                left_out.append(f"{name} was not written: {error.message}")
    explanation.notes += left_out
    files["explanation"] = "explanation.json"
    (folder / "explanation.json").write_text(
        json.dumps(
            plain(
                {
                    **explanation.provenance,
                    "title": explanation.title,
                    "scores": explanation.scores,
                    "self_checks": explanation.self_checks,
                    "notes": explanation.notes,
                    "files": files,
                }
            ),
            indent=2,
            allow_nan=False,
            ensure_ascii=False,
        )
        + "\n",
        encoding="utf-8",
    )
    return left_out


def _whole(volume: Volume, grid: Volume) -> Volume:
    """A box of a grid's lattice as a volume of the whole grid, 0 outside the box."""
    if volume.same_grid(grid):
        return volume
    start = np.linalg.solve(grid.ijk_to_ras, volume.ijk_to_ras[:, 3])[2::-1].round().astype(int)
    array = np.zeros(grid.shape, volume.array.dtype)
    array[tuple(slice(a, a + n) for a, n in zip(start, volume.shape))] = volume.array
    return Volume(array, grid.ijk_to_ras, volume.name, volume.unit)
