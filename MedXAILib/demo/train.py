"""Networks for the phantom: trained on seeds below 1000, judged on seeds from 1000 on."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..errors import MedXAIError
from ..explanation import Point, Step, part
from ..package import Package
from ..training.comparison import train_segmentation
from ..training.saving import command_of
from ..training.segmentation import dice, train
from ..training.settings import DEMO, SegmentationSettings, TrainingSettings
from ..training.slices import Cases, cut
from .phantom import HELD_OUT, LABELS, SPACING, case

TRAINING_CASES = 40  # of which every fifth is healthy
NETWORK = {
    "name": "PlainUNet",
    "arguments": {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "filters": 8, "levels": 3},
}
WINDOW = (-150.0, 250.0)  # HU; the usual window of the abdomen, wide enough that no tissue of the liver is clipped


def fields(settings: TrainingSettings) -> dict:
    """What the package's ``model.json`` holds."""
    return {
        "name": "Liver phantom U-Net",
        "description": "A small 3-D U-Net that segments liver and lesions of MedXAI's CT-like phantom; for demonstration "
        "and tests only, never for patients.",
        "license": "Apache-2.0",
        "source": "medxai train segmentation --phantom --preset demo"
        f" --seed {settings.seed} --steps {settings.steps} --output FOLDER",
        "task": "segmentation",
        "weights": "weights.safetensors",
        "network": NETWORK,
        "input": {
            "spatial_dims": 3,
            "channels": ["CT"],
            "orientation": "SPL",
            "spacing": list(SPACING),
            "size": None,
            "multiple_of": 4,
            "intensity": {"kind": "window", "low": WINDOW[0], "high": WINDOW[1]},
        },
        "output": {"labels": list(LABELS), "activation": "softmax"},
    }


def train_phantom(folder, cases: int = TRAINING_CASES, held_out: int = 24, **options) -> Generator[Step, None, Package]:
    """Train the network of the demonstration, judge it, and write package, ``README.md`` and ``figures.json``.

    Parameters
    ----------
    folder : path
        The new model folder.
    cases, held_out : int
        Training phantoms (seeds 0 to ``cases`` − 1), held-out phantoms (0: judge later).
    options
        Fields of `TrainingSettings` that are not to be those of `DEMO`.
    """
    if not 0 < cases <= HELD_OUT:
        raise MedXAIError(f"The number of training phantoms is {cases}; use 1 to {HELD_OUT}.")
    from .. import files

    settings = TrainingSettings(**DEMO | options)
    files.check_new_folder(folder)
    with files.new_folder(folder) as new:  # trained, judged and described, or not there
        phantoms = (case(n, lesions=n % 5 != 4) for n in range(cases))
        training = train(((p.image, p.labels) for p in phantoms), new / "model", fields(settings), settings)
        package = yield from part(training, 0.0, 0.9 if held_out else 1.0)
        if held_out:
            figures = yield from evaluate(package.folder, range(HELD_OUT, HELD_OUT + held_out), 0.9)
            record(package, figures, settings, cases)
        for file in package.folder.iterdir():
            file.rename(new / file.name)
        package.folder.rmdir()
    return Package.read(folder)


def evaluate(folder, seeds, done: float = 0.0) -> Generator[Step, None, dict]:
    """Judge a package on phantoms.

    Parameters
    ----------
    folder : path
        A model folder with the labels of the phantom.
    seeds : sequence of int
        `HELD_OUT` and above for figures that are told to anybody.
    done : float
        Fraction done before.

    Returns
    -------
    dict
        ``liver_dice`` (liver with its lesions), ``lesion_dice`` (mean over cases) with their SD, ``lesions_found`` (share of
        lesions met by the output), ``false_components`` per healthy case (components of at least 27 voxels), ``threshold``
        (the baseline, see `threshold_baseline`), and the ``seeds``.
    """
    from ..models import load, prepare

    model = load(folder, device="cpu")
    rows, false, found, seeds = [], [], [], list(seeds)
    for n, seed in enumerate(seeds):
        phantom = case(seed)
        output = segmented(model, prepare, phantom)
        true = phantom.labels.array
        rows.append((dice(output > 0, true > 0), dice(output == 2, true == 2)))
        components, count = ndimage.label(true == 2)
        found += [bool((output[components == c] == 2).any()) for c in range(1, count + 1)]
        healthy = segmented(model, prepare, case(seed, lesions=False)) == 2
        sizes = np.bincount(ndimage.label(healthy)[0].reshape(-1))[1:]
        false.append(int((sizes >= 27).sum()))
        values = {"liver dice": rows[-1][0], "lesion dice": rows[-1][1]}
        yield Step(
            done + (1 - done) * (n + 1) / (len(seeds) + 1), "Judging on held-out phantoms",
            (Point("held-out", seed, values),),
        )  # fmt: skip
    mean, sd = np.nanmean(rows, 0), np.nanstd(rows, 0, ddof=1 if len(rows) > 1 else 0)
    return {
        "seeds": [seeds[0], seeds[-1]],
        "cases": len(seeds),
        "liver_dice": float(mean[0]),
        "liver_dice_sd": float(sd[0]),
        "lesion_dice": float(mean[1]),
        "lesion_dice_sd": float(sd[1]),
        "lesions": len(found),
        "lesions_found": float(np.mean(found)) if found else float("nan"),
        "false_components_per_healthy_case": float(np.mean(false)),
        "threshold": threshold_baseline(range(12), seeds),
    }


def segmented(model, prepare, phantom) -> np.ndarray:
    """The network's label of every voxel of a phantom, on its grid."""
    import torch

    prepared = prepare(model, [phantom.image])
    with model.frozen(), torch.no_grad():
        labels = model.logits(prepared.x).argmax(1)[0].cpu().numpy()
    result = np.zeros(phantom.image.shape, np.uint8)
    for n in (1, 2):
        patch = prepared.mask(labels == n, (0, 0, 0))
        result[patch.box][patch.array > 0] = n
    return result


def threshold_baseline(seeds, held_out) -> dict:
    """What `threshold_on` reaches on whole phantoms; it is chosen on ``seeds`` (below `HELD_OUT`)."""

    def cases(seeds):
        for phantom in map(case, seeds):
            yield phantom.image.array, phantom.labels.array

    return threshold_on(cases(seeds), cases(held_out))


def threshold_on(known: Iterable, held_out: Iterable) -> dict:
    """What a threshold on intensity alone reaches for the lesions, and it is told the true liver.

    Smoothing within the liver, the rim left out (partial volume is dark too) and the threshold itself are chosen for the best mean
    Dice on ``known``; both hold (image in HU, labels), 2-D or 3-D.
    """

    def smooth(hu, organ, sigma):
        hu = hu.astype(np.float32)
        if not sigma:
            return hu
        inside = organ.astype(np.float32)
        weight = ndimage.gaussian_filter(inside, sigma)
        return ndimage.gaussian_filter(hu * inside, sigma) / np.maximum(weight, 1e-3)

    def eroded(organ, rim):
        return ndimage.binary_erosion(organ, iterations=rim) if rim else organ

    thresholds, chosen = np.arange(30, 96, 3), (-1.0, 0.0, 0, 0)
    known = [(hu, labels > 0, labels == 2) for hu, labels in known]
    for sigma in (0.0, 0.7, 1.0, 1.5):
        smoothed = [smooth(hu, organ, sigma) for hu, organ, _ in known]
        for rim in (0, 1, 2):
            scores = []
            for values, (_, organ, lesion) in zip(smoothed, known):
                room = eroded(organ, rim)
                scores.append([dice(room & (values < t), lesion) for t in thresholds])
            mean = np.nanmean(scores, 0)
            chosen = max(chosen, (float(mean.max()), sigma, rim, int(thresholds[mean.argmax()])))
    _, sigma, rim, threshold = chosen
    scores = []
    for hu, labels in held_out:
        organ, lesion = labels > 0, labels == 2
        scores.append(dice(eroded(organ, rim) & (smooth(hu, organ, sigma) < threshold), lesion))
    return {
        "lesion_dice": float(np.nanmean(scores)), "below_hu": threshold, "smoothing_voxels": sigma, "rim_voxels": rim
    }  # fmt: skip


def record(package: Package, figures: dict, settings: TrainingSettings, cases: int = TRAINING_CASES) -> None:
    """Write ``figures.json`` and ``README.md`` beside the weights."""
    folder = Path(package.folder)
    (folder / "figures.json").write_text(
        json.dumps({"figures": figures, "training": settings.to_json() | {"cases": cases}}, indent=2) + "\n", "utf-8"
    )
    base = figures["threshold"]
    (folder / "README.md").write_text(
        f"""# {package.name}

{package.about["description"]}

Made by `{package.about["source"]}` ({cases} phantoms of seeds 0 to {cases - 1}, every fifth without lesions).

On {figures["cases"]} held-out phantoms (seeds {figures["seeds"][0]}–{figures["seeds"][1]}), mean ± standard deviation over cases:

| | |
|---|---|
| Dice, lesions | {figures["lesion_dice"]:.3f} ± {figures["lesion_dice_sd"]:.3f} |
| Dice, liver with its lesions | {figures["liver_dice"]:.3f} ± {figures["liver_dice_sd"]:.3f} |
| lesions met by the output | {figures["lesions_found"]:.1%} of {figures["lesions"]} |
| false lesions (27 voxels and more) in the same patients without lesions | {figures["false_components_per_healthy_case"]:.2f} per case |
| Dice of a threshold on intensity alone, in the true liver | {base["lesion_dice"]:.3f} (below {base["below_hu"]} HU, smoothed by {base["smoothing_voxels"]:g} voxels, rim of {base["rim_voxels"]} left out) |

`figures.json` holds the same figures and the settings of the training.
""",
        "utf-8",
    )


def train_slices(folder, settings: SegmentationSettings) -> Generator[Step, None, dict]:
    """`train_segmentation` on axial slices of phantoms; the figures tell as well what a threshold reaches for the lesions."""
    from .. import files

    files.check_new_folder(folder)
    settings = replace(settings, segment=settings.segment or "lesion", window=settings.window or WINDOW)
    cases, shown = Cases([], [], "PL", SPACING[:2], settings.segment), {}
    seeds = [*range(settings.cases), *range(HELD_OUT, HELD_OUT + settings.test_cases)]
    for number, seed in enumerate(seeds):
        yield Step(0.2 * number / len(seeds), f"Making phantom {number + 1} of {len(seeds)}")
        phantom = case(seed)
        try:
            one = cut(f"phantom-{seed}", phantom.image, phantom.mask(settings.segment).array > 0, settings.slices)
        except MedXAIError as error:
            if settings.segment not in (*LABELS[1:], "organ"):
                raise
            cases.skipped[f"phantom-{seed}"] = error.message
            continue
        (cases.train if seed < HELD_OUT else cases.test).append(one)
        shown[one.name] = [(phantom.image.array[k], phantom.labels.array[k]) for k in one.k]
    more = {}
    if settings.segment == "lesion" and cases.train and cases.test:
        known, held_out = (
            [pair for one in some for pair in shown[one.name]] for some in (cases.train[:40], cases.test)
        )
        more["threshold"] = threshold_on(known, held_out)
    training = train_segmentation(cases, folder, settings, command_of(settings, "--phantom"), more)
    return (yield from part(training, 0.2, 1.0))
