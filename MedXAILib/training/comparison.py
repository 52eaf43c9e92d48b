"""Training the U-Net of He et al. 2023 without and with the ability loss, and judging both: their Fig. 5, Tables 1 and 3."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np

from ..explanation import Step, part, run
from ..files import check_new_folder, new_folder, write_csv
from ..methods.ability import ability
from ..models import load
from ..settings import AbilitySettings
from .saving import command_of, lift, write_figures
from .segmentation import train
from .settings import LEVELS, SegmentationSettings
from .slices import Cases, folder_cases

DRAWS = 10_000  # of the bootstrap
_TRAININGS = ("without", "with")


def train_segmentation(
    cases: Cases, folder, settings: SegmentationSettings, command: str, more: dict | None = None
) -> Generator[Step, None, dict]:
    """Train on cases, judge on others, and write packages, tables and figures.

    Parameters
    ----------
    cases : Cases
    folder : path
        New. One training: it is the model package, with ``figures.json``, ``layers.csv`` and ``cases.csv``. With
        ``settings.ability_loss`` there are ``without/`` and ``with/`` (``seed-K`` in them for several), ``table1.csv``,
        ``table3.csv`` as well.
    settings : SegmentationSettings
    command : str
        How to do the same again, for the packages and the figures.
    more : dict, optional
        Further entries of the figures.

    Returns
    -------
    dict
        The figures.
    """
    check_new_folder(folder)
    trainings = _TRAININGS if settings.ability_loss else _TRAININGS[:1]
    seeds = range(settings.seed, settings.seed + settings.seeds)
    work = [(training, seed) for training in trainings for seed in seeds]
    rows, seconds = {}, {}
    with new_folder(folder) as new:
        for number, (training, seed) in enumerate(work):
            start, stop = (number / len(work), (number + 0.95) / len(work))
            place = new / training / f"seed-{seed}" if len(seeds) > 1 else new / training
            one = dataclasses.replace(settings, seed=seed, ability_loss=training == "with")
            examples = [pair for case in cases.train for pair in case.pairs]
            began = time.monotonic()
            yield from part(train(examples, place, fields(cases, settings, command), one), start, stop)
            seconds[f"{training}, seed {seed}"] = round(time.monotonic() - began, 1)
            if cases.test:
                judging = judge(place, cases.test, settings.device)
                layers, rows[training, seed] = yield from part(judging, stop, (number + 1) / len(work))
        figures = {
            "command": command,
            "settings": settings.to_json(),
            "cases": {"training": len(cases.train), "training_slices": sum(len(case.pairs) for case in cases.train)}
            | {"test": len(cases.test), "test_slices": sum(len(case.pairs) for case in cases.test)}
            | {"skipped": cases.skipped},
            "seconds_of_training": seconds,
        }
        if rows:
            figures |= summary(rows, layers)
            write_tables(new, rows, layers, cases)
        figures |= more or {}
        write_figures(new, figures)
        if len(work) == 1:
            lift(new / work[0][0])
    return figures


def train_folder(source, folder, settings: SegmentationSettings) -> Generator[Step, None, dict]:
    """`train_segmentation` on the image and mask pairs of a folder (see `folder_cases`)."""
    check_new_folder(folder)
    cases = yield from part(folder_cases(source, settings), 0.0, 0.05)
    return (yield from part(train_segmentation(cases, folder, settings, command_of(settings, "FOLDER")), 0.05, 1.0))


def fields(cases: Cases, settings: SegmentationSettings, command: str) -> dict:
    """What ``model.json`` of a trained network holds."""
    window = settings.window
    intensity = {"kind": "zscore", "per_slice": True}
    if window:
        intensity = {"kind": "window", "low": window[0], "high": window[1]}
    return {
        "name": f"U-Net for {cases.label}",
        "description": "The 18-layer U-Net of He et al. 2023 on 2-D slices; for research, never for patients.",
        "source": command,
        "task": "segmentation",
        "weights": "weights.safetensors",
        "network": {
            "name": "PlainUNet",
            "arguments": {
                "spatial_dims": 2,
                "in_channels": 1,
                "out_channels": 2,
                "filters": settings.filters,
                "levels": LEVELS,
            },
        },
        "input": {
            "spatial_dims": 2,
            "channels": ["image"],
            "orientation": cases.orientation,
            "spacing": list(cases.spacing) if cases.spacing and not settings.size else None,
            "multiple_of": 2 ** (LEVELS - 1),
            "intensity": intensity,
        }
        | ({"size": [settings.size] * 2, "fit": "resize"} if settings.size else {"size": None}),
        "output": {"labels": ["background", cases.label], "activation": "softmax"},
    }


def judge(folder, cases, device="cpu") -> Generator[Step, None, tuple[dict, np.ndarray]]:
    """Dice of the output, of the input's segmentation map and of each layer's, as the method `ability` gives them.

    Parameters
    ----------
    folder : path
        A package of two labels.
    cases : list of Slices

    Returns
    -------
    layers : dict of str to list
        ``number``, ``path``, ``group`` and ``shape`` of the convolution blocks.
    rows : ndarray, shape (cases, 2 + layers)
        Mean over a case's slices of the Dice of B, S_x and S_f1, S_f2…, all with the annotation.
    """
    model, rows = load(folder, device=device), []
    chosen = AbilitySettings(layers=("all",), units=("none",), device=device)
    for number, case in enumerate(cases):
        found = []
        for image, labels in case.pairs:
            result = run(ability(model, [image], chosen, labels))
            table = result.tables["layers"].columns
            found.append([result.scores["output_dice"], *table["dice"]])
        rows.append(np.mean(found, 0))
        yield Step((number + 1) / len(cases), "Judging on cases kept back")
    return {name: table[name][1:] for name in ("number", "path", "group", "shape")}, np.array(rows)


def summary(rows: dict, layers) -> dict:
    """The figures: means, and differences with 95 % intervals, over all seeds.

    Parameters
    ----------
    rows : dict of (training, seed) to ndarray
        As `judge` gives them.

    Notes
    -----
    A difference is taken case by case, averaged over the seeds; the interval is that of its mean when the cases are drawn again
    (bootstrap, percentiles). The spread between seeds stands beside it, seed by seed.
    """
    count = len(layers["number"])
    columns = {"output": [0], "input": [1], "last_layer": [1 + count], "all_layers": list(range(2, 2 + count))}
    groups = {name: [2 + n for n in range(count) if layers["group"][n] == name] for name in ("early", "deep", "late")}
    columns |= {f"{name}_layers": group for name, group in groups.items()}
    seeds = sorted({seed for _, seed in rows})
    result = {}
    for training in dict.fromkeys(training for training, _ in rows):
        values = np.stack([rows[training, seed] for seed in seeds])
        mean = {name: _interval(values[:, :, group].mean(2)) for name, group in columns.items()}
        late = values[:, :, groups["late"]].mean(2) - values[:, :, groups["early"]].mean(2)
        last = values[:, :, columns["last_layer"][0]] - values[:, :, 0]
        result[training] = mean | {"late_minus_early": _interval(late), "last_layer_minus_output": _interval(last)}
    if len(result) == 2:
        apart = np.stack([rows["with", seed] - rows["without", seed] for seed in seeds])
        result["with_minus_without"] = {
            name: _interval(apart[:, :, group].mean(2)) for name, group in columns.items() if name != "input"
        }
    return {"seeds": seeds, **result}


def _interval(values: np.ndarray) -> dict:
    """Mean with 95 % interval of ``values`` (seeds, cases), and the mean of each seed."""
    each = values.mean(0)
    draws = np.random.default_rng(0).integers(len(each), size=(DRAWS, len(each)))
    low, high = np.percentile(each[draws].mean(1), (2.5, 97.5))
    return {"mean": each.mean(), "low": low, "high": high, "by_seed": values.mean(1).tolist()}


def write_tables(folder: Path, rows: dict, layers, cases: Cases) -> None:
    """``layers.csv`` (Fig. 5), ``cases.csv``; and with both trainings ``table1.csv`` and ``table3.csv``. SD over cases and seeds."""
    trainings = list(dict.fromkeys(training for training, _ in rows))
    pooled = {name: np.concatenate([r for (t, _), r in rows.items() if t == name]) for name in trainings}
    table = {"number": layers["number"], "layer": layers["path"], "group": layers["group"], "shape": layers["shape"]}
    for name in trainings:
        table |= {
            f"sa {name}": list(pooled[name][:, 2:].mean(0)),
            f"sd {name}": _sd(pooled[name][:, 2:]),
        }
    write_csv(folder / "layers.csv", table)
    listed = [(training, seed, n, row) for (training, seed), found in rows.items() for n, row in enumerate(found)]
    names = ["output", "input", *(f"layer {number}" for number in layers["number"])]
    write_csv(
        folder / "cases.csv",
        {"training": [t for t, *_ in listed], "seed": [s for _, s, *_ in listed]}
        | {"case": [cases.test[n].name for *_, n, _ in listed]}
        | {"slices": [" ".join(map(str, cases.test[n].k)) for *_, n, _ in listed]}
        | {name: [row[column] for *_, row in listed] for column, name in enumerate(names)},
    )
    if len(trainings) < 2:
        return
    columns = {"training": trainings}
    for name, column in (("output B", 0), ("last layer", -1)):
        columns[name] = [pooled[t][:, column].mean() for t in trainings]
        columns[f"{name} sd"] = [_sd(pooled[t][:, column]) for t in trainings]
    write_csv(folder / "table1.csv", columns)
    means = [(pooled[t][:, 1].mean(), pooled[t][:, 0].mean()) for t in trainings]
    columns = {"training": trainings, "S_x": [s for s, _ in means], "B": [b for _, b in means]}
    write_csv(folder / "table3.csv", columns | {"m(d)": [b - s for s, b in means]})


def _sd(values):
    """Sample standard deviation over the first axis; NaN for one value."""
    return values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)[()]
