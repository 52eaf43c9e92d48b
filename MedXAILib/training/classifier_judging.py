"""How a trained classifier does on images kept back: what it answers, and where the back-projection of its strongest filters falls."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch

from ..evaluation.statistics import estimate, wilson
from ..explanation import Step, run
from ..models import prepare
from ..models.model import Model
from ..settings import BackprojectSettings
from .labelled import Labelled
from .saving import new_network

SHOWN = 9  # filter maps of a misclassified image: the paper's Fig. 4


def probabilities(model: Model, cases: Sequence[Labelled]) -> np.ndarray:
    """What the network answers, (cases, labels)."""
    with model.frozen(), torch.no_grad():
        found = [model.probabilities(model.logits(prepare(model, [one.volume]).x)) for one in cases]
    return torch.cat(found).double().cpu().numpy()


def confusion(true: Sequence[int], predicted: Sequence[int], count: int) -> np.ndarray:
    """How often each class (rows) was taken for each (columns), (count, count)."""
    found = np.zeros((count, count), int)
    np.add.at(found, (np.asarray(true), np.asarray(predicted)), 1)
    return found


def accuracies(matrix: np.ndarray, labels: Sequence[str]) -> dict:
    """Accuracy overall, of each class (its recall), their mean, and what always naming the commonest class would reach; from a `confusion`."""
    hits, counts = np.diag(matrix), matrix.sum(1)
    each = {label: _told(wilson(int(h), int(n))) for label, h, n in zip(labels, hits, counts)}
    there = [one["value"] for one in each.values() if one["n"]]
    return {
        "accuracy": _told(wilson(int(hits.sum()), int(counts.sum()))),
        "by_class": each,
        "mean_over_classes": float(np.mean(there)),
        "commonest_class": float(counts.max() / counts.sum()),
        "confusion": matrix.tolist(),
    }


def _told(one) -> dict:
    return {"value": one.value, "low": one.low, "high": one.high, "n": one.n}


def random_weights(model: Model, seed: int) -> Model:
    """The same architecture before any training, for comparison; torch's random state is put back."""
    state = torch.get_rng_state()
    try:
        torch.manual_seed(seed)
        module = new_network(model.package).eval().requires_grad_(False)
    finally:
        torch.set_rng_state(state)
    return Model(model.package, module.to(model.device), model.device)


def heat_shares(model: Model, cases: Sequence[Labelled], filters: int) -> Generator[Step, None, list[dict]]:
    """For each case the share of area and of heat in each landmark, (area, heat) by name.

    The landmarks are the case's own (and ``elsewhere``); where it has none, corners, borders and centre, which are not anatomical.
    """
    rows = []
    for number, case in enumerate(cases):
        columns = _explained(model, case, filters).tables["landmarks"].columns
        shares = zip(columns["area_share"], columns["heat_share"])
        rows.append(dict(zip(columns["landmark"], shares)))
        yield Step((number + 1) / len(cases), f"Heat of case {number + 1} of {len(cases)}")
    return rows


def filter_maps(model: Model, case: Labelled) -> list[tuple[str, np.ndarray]]:
    """Name and back-projection (H, W) of the `SHOWN` strongest filters."""
    sequence = _explained(model, case, SHOWN).sequences["filters"]
    return [(name, volume.array[0]) for name, (_, volume) in zip(sequence.names, sequence.items)]


def _explained(model, case, filters):
    from ..methods.backproject import backproject

    there = [module.out_channels for module in model.module.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    chosen = BackprojectSettings(filters=min(filters, there), device=str(model.device))
    return run(backproject(model, [case.volume], chosen, case.landmarks))


def landmark_rows(trained: list[dict], drawn: list[dict]) -> dict[str, list]:
    """Mean share of the heat in each landmark over cases, with the trained and with random weights.

    Parameters
    ----------
    trained, drawn : list of dict
        As `heat_shares` gives them, of the same cases.

    Returns
    -------
    dict
        Columns ``landmark``, ``weights`` (trained, random), ``cases``, ``area_share``, ``heat_share`` with ``low`` and ``high``, ``ratio`` (heat share
        by area share), ``more`` (heat share less area share) and ``over_random`` (heat share less that with random weights), each with its
        interval. Intervals are BCa bootstraps over cases; a case in which nothing came back counts for neither.
    """
    names = list(dict.fromkeys(name for row in trained for name in row))
    table: dict[str, list] = {"landmark": [], "weights": [], "cases": [], "area_share": []}
    table |= {f"{name}{end}": [] for name in ("heat_share", "more", "over_random") for end in ("", "_low", "_high")}
    table["ratio"] = []
    for name in names:
        pairs = [(row[name], other[name][1]) for row, other in zip(trained, drawn) if name in row]
        area, heat, random = np.array([(a, h, r) for (a, h), r in pairs], float).T
        for weights, values, apart in (
            ("trained", heat, heat - random),
            ("random", random, np.full(len(heat), np.nan)),
        ):
            found = {"heat_share": values, "more": values - area, "over_random": apart}
            there = np.isfinite(values)
            row = {"landmark": name, "weights": weights, "cases": int(there.sum()), "area_share": float(area.mean())}
            for title, numbers in found.items():
                row |= estimate(np.mean, numbers).named(title)
            row["ratio"] = row["heat_share"] / float(area[there].mean()) if there.any() else np.nan
            for title, value in row.items():
                table[title].append(value)
    return table
