"""A classifier for slices of the phantom: is there a lesion? Trained on seeds below 1000, judged on seeds from 1000 on."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import MedXAIError
from ..explanation import Step, part
from ..files import check_new_folder
from ..training.classifiers import train_classifiers
from ..training.labelled import Labelled, LabelledCases
from ..training.saving import command_of
from ..training.settings import ClassificationSettings
from .phantom import HELD_OUT, LABELS, case

CLASSES = ("no lesion", "lesion")
WINDOW = (0.0, 160.0)  # HU: a liver window; in a wider one the lesions are too faint to begin to learn from
SMALLEST = 12  # voxels of lesion in a slice that counts as one with a lesion
SLICES = 8  # of each training phantom; a held-out one gives one, so that its cases are independent


def phantom_slices(seed: int) -> list[Labelled]:
    """Slices of one phantom, with and without its lesions: the same places in both, so that nothing but the lesions tells them apart.

    A held-out phantom gives one slice, with lesions where its seed is even; a training phantom `SLICES` of each kind.
    """
    rng = np.random.default_rng([seed, 7])
    ill = case(seed)
    area = (ill.labels.array == LABELS.index("lesion")).sum((1, 2))
    places = rng.permutation(np.flatnonzero(area >= SMALLEST))
    kinds = (True, False) if seed < HELD_OUT else (seed % 2 == 0,)
    found = []
    for lesions in kinds if len(places) else ():
        phantom = ill if lesions else case(seed, lesions=False)
        for k in places[: SLICES if seed < HELD_OUT else 1]:
            box = (int(k), 0, 0), (int(k) + 1, *phantom.image.shape[1:])
            labels = phantom.labels.crop(*box)
            masks = [labels.with_array((labels.array == n).astype(np.uint8), LABELS[n]) for n in (2, 1)]
            masks = tuple(mask for mask in masks if mask.array.any())
            name = f"phantom-{seed}, slice {k}" + ("" if lesions else ", healthy")
            found.append(Labelled(name, phantom.image.crop(*box), CLASSES[lesions], str(seed), landmarks=masks))
    return found


def train_phantom_classifier(folder, settings: ClassificationSettings) -> Generator[Step, None, dict]:
    """`train_classifiers` on axial slices of phantoms; the figures tell as well what a threshold on intensity reaches."""
    check_new_folder(folder)
    settings = replace(settings, window=settings.window or WINDOW)
    seeds = [*range(settings.cases), *range(HELD_OUT, HELD_OUT + settings.test_cases)]
    train, test, skipped = [], [], {}
    for number, seed in enumerate(seeds):
        yield Step(0.2 * number / len(seeds), f"Making phantom {number + 1} of {len(seeds)}")
        found = phantom_slices(seed)
        if not found:
            skipped[f"phantom-{seed}"] = "no slice holds enough of a lesion"
        (train if seed < HELD_OUT else test).extend(found)
    if not train or len({one.label for one in test}) < 2:
        raise MedXAIError("Too few phantoms hold a lesion; give more (--cases, --test-cases).")
    fingerprint = f"phantoms {settings.cases} {settings.test_cases} {SLICES} {SMALLEST}"
    cases = LabelledCases(
        train, test, CLASSES, "PL", skipped, [], "Phantom lesion classifier", "CT", "Apache-2.0", fingerprint
    )
    more = {"threshold": threshold(train, test)}
    command = command_of(settings, "--phantom", "classification")
    figures = yield from part(train_classifiers(cases, folder, settings, command, more), 0.2, 1.0)
    (Path(folder) / "README.md").write_text(told(figures), encoding="utf-8")
    return figures


def told(figures: dict) -> str:
    """The ``README.md`` of a training on phantoms."""
    test, rows = figures["cases"]["test"], []
    for network, found in figures["networks"].items():
        one = found["accuracy"]
        rows.append(f"| accuracy ({network}) | {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}] |")
        for row in found.get("landmarks", []):
            if row["landmark"] != "elsewhere":
                value, low, high = (row[f"heat_share{end}"] for end in ("", "_low", "_high"))
                rows.append(
                    f"| heat in the {row['landmark']}, {row['weights']} weights, {row['cases']} cases (share of the area: {row['area_share']:.3f})"
                    f" | {value:.3f} [{low:.3f}, {high:.3f}] |"
                )
    return f"""# Phantom lesion classifier

Says whether an axial slice of MedXAI's CT-like phantom holds a lesion; for demonstration and tests only, never for patients.

Made by `{figures["command"]}`: {figures["cases"]["training"]} slices of phantoms of seeds below 1000, each place once with and once without its lesions.

On one slice of each of {test} held-out phantoms (seeds from 1000), with 95 % intervals (Wilson for accuracies, BCa bootstrap over cases for heat):

| | |
|---|---|
{chr(10).join(rows)}
| accuracy of a threshold on intensity alone, in the true liver | {figures["threshold"]["accuracy"]:.3f} |

`figures.json` holds the same figures and the settings of the training.
"""


def threshold(known: Sequence[Labelled], held_out: Sequence[Labelled]) -> dict:
    """What intensity alone reaches, and it is told the true liver: the share of it below so many HU, from which share on it counts as a lesion.

    Both numbers are chosen for the best accuracy on ``known``.
    """

    def shares(cases, hu):
        values = []
        for one in cases:
            liver = np.logical_or.reduce([mask.array > 0 for mask in one.landmarks])
            values.append(np.mean(one.volume.array[liver] < hu))
        return np.array(values)

    true, best = np.array([one.label == CLASSES[1] for one in known]), (0.0, 0, 0.0)
    for hu in range(0, 100, 5):
        found = shares(known, hu)
        for share in np.quantile(found, np.linspace(0.02, 0.98, 49)):
            best = max(best, (float(np.mean((found > share) == true)), hu, float(share)))
    _, hu, share = best
    answers = shares(held_out, hu) > share
    right = np.mean(answers == np.array([one.label == CLASSES[1] for one in held_out]))
    return {"accuracy": float(right), "below_hu": hu, "share_of_the_liver": share}
