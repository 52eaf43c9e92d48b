"""`medxai demo`: the main job on a phantom, through the very command that a user gives."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from .. import resources
from ..volume import Volume
from .phantom import HELD_OUT, case

MODEL = "Models/liver-phantom"
PATIENT = HELD_OUT + 27  # the first held-out phantom in whose healthy variant the network sees no lesion at all
REFERENCE = range(500, 508)  # phantoms whose lesions are the reference: not those of the training either
SETTINGS = ["--label", "lesion", "--steps", "60", "--step-size", "0.02"]  # fixed on seeds below 1000


def demo(folder, steps: int | None = None, as_json: bool = False, scene: bool = True) -> int:
    """Write a healthy phantom with its liver and a reference distribution, and dream a lesion into it.

    Parameters
    ----------
    folder : path
        A new folder: ``inputs`` (volume, segmentation, reference) and ``dream`` (what `medxai dream` writes). It is gone again
        when the run fails or is cancelled.
    steps : int, optional
        Steps at most.
    as_json : bool
        Progress as JSON lines.
    scene : bool
        False leaves out ``scene.mrb`` and ``report.png``.

    Returns
    -------
    int
        Exit status, as of the command.
    """
    from .. import cli, files

    files.check_new_folder(folder)
    folder, done = Path(folder), False

    def say(fraction, text):
        if as_json:
            print(json.dumps({"event": "progress", "fraction": fraction, "stage": text, "eta": None}), flush=True)
        else:
            print(text, flush=True)

    try:
        (folder / "inputs").mkdir(parents=True)
        say(0.0, f"Making a phantom abdomen without lesions (seed {PATIENT}).")
        write_patient(folder / "inputs")
        say(0.0, f"Measuring the lesions of {len(REFERENCE)} other phantoms (seeds {REFERENCE[0]} to {REFERENCE[-1]}).")
        write_reference(folder / "inputs" / "reference.json")
        arguments = command(folder)
        if steps is not None:
            arguments += ["--steps", str(steps)]
        if as_json:
            arguments.append("--json")
        if not scene:
            arguments.append("--no-scene")
        say(0.0, "Dreaming a lesion into the healthy liver:\n  medxai " + shlex.join(arguments))
        status = cli.main(arguments)
        done = status == 0
    except OSError as error:
        raise files.disk_error(error, folder) from error
    finally:
        if not done:
            shutil.rmtree(folder, ignore_errors=True)
    if done and not as_json:
        print(where_to_look(folder))
    return status


def command(folder: Path) -> list[str]:
    """What comes after ``medxai``, as a user would write it."""
    inputs = folder / "inputs"
    result = ["dream", "--model", _short(resources.path(MODEL)), "--volume", str(inputs / "volume.nrrd")]
    result += ["--segmentation", str(inputs / "segmentation.seg.nrrd"), "--segment", "liver", *SETTINGS]
    return [*result, "--reference", str(inputs / "reference.json"), "--output", str(folder / "dream")]


def write_patient(folder: Path) -> None:
    """``volume.nrrd`` and ``segmentation.seg.nrrd`` (one segment, liver) of the healthy phantom."""
    from .. import formats, io

    phantom = case(PATIENT, lesions=False)
    io.write_volume(folder / "volume.nrrd", phantom.image)
    keys = {
        "Segment0_ID": "Segment_1", "Segment0_Name": "liver", "Segment0_LabelValue": "1", "Segment0_Layer": "0",
        "Segment0_Color": "0.866667 0.509804 0.396078",
        "Segment0_Extent": " ".join(f"0 {n - 1}" for n in phantom.labels.shape[::-1]),
        "Segmentation_MasterRepresentation": "Binary labelmap",
    }  # fmt: skip
    liver = phantom.mask("organ")
    formats.write_nrrd(folder / "segmentation.seg.nrrd", liver.array, io.lps(liver.ijk_to_ras), keys=keys)


def write_reference(path: Path) -> None:
    """The reference distribution of the phantom's lesions."""
    from ..features import Reference

    Reference.from_cases(reference_cases()).write(path)


def reference_cases(seeds=REFERENCE) -> Iterator[tuple[str, Volume, Volume]]:
    """Name, image and mask of each lesion of some phantoms; the whole image, as the line texture is the whole dream's."""
    for seed in seeds:
        phantom = case(seed)
        components, _ = ndimage.label(phantom.labels.array == 2, structure=np.ones((3, 3, 3)))
        for n, size in enumerate(np.bincount(components.reshape(-1))[1:], start=1):
            if size >= 27:
                mask = phantom.labels.with_array((components == n).astype(np.uint8), f"phantom-{seed} lesion {n}")
                yield f"phantom-{seed}-lesion-{n}", phantom.image, mask


def where_to_look(folder: Path) -> str:
    """The last words of the demonstration."""
    rows = [
        ("report.png", "the dream in slice views beside the feature curves"),
        ("scene.mrb", "the same in 3D Slicer: layers, chart, steps to scrub through (File › Add Data)"),
        ("verdicts.csv", "what became of each feature, against lesions of other phantoms"),
        ("curves.csv", "the response and every feature at every step"),
        ("explanation.json", "settings, self-checks and where everything comes from"),
    ]
    found = [(folder / "dream" / name, about) for name, about in rows if (folder / "dream" / name).exists()]
    width = max((len(str(path)) for path, _ in found), default=0)
    return "Where to look:\n" + "\n".join(f"  {str(path).ljust(width)}  {about}" for path, about in found)


def _short(path: Path) -> str:
    """Relative where that is the shorter way to say it."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return str(path)
    return relative if len(relative) < len(str(path)) else str(path)
