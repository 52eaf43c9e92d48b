"""A grid search over settings of `counterfactual` on the cases of a folder."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

import numpy as np

from ..errors import MedXAIError
from ..explanation import Explanation, Steps, Table
from ..methods.provenance import provenance
from ..settings import CounterfactualSettings, about
from .impact_cases import EMPTY, Case, Study, counts, number
from .statistics import mean


def impact_grid(model, folder, settings: CounterfactualSettings, values: dict[str, Sequence], segment: str | None = None, organ: str | None = None, log=None
) -> Steps:  # fmt: skip
    """Run `counterfactual` on every case with every combination of some settings, and say which is best.

    The best has the lowest D averaged over cases among the combinations after which the class has vanished: those with a mean probability below 0.5 (among all, where
    there is none). An empty region counts as much as the largest D that any combination had in any case. So what does not remove the finding does not win by a small region
    in the right place, and none gains by leaving hard cases empty. Of equal ones the smallest region (A) is best. What a grid search chose must be judged on other cases.

    Parameters
    ----------
    values : dict of str to sequence
        Settings by name (`grid_of`), each with the values to try.
    model, folder, settings, segment, organ, log
        As `impact_cohort`.

    Returns
    -------
    Explanation
        Tables ``grid`` (one row per combination, the best first; ``D_penalised`` is the criterion, ``H_penalised`` the same of H) and ``cases`` (one row per case and combination). Scores: ``best_`` and the setting's
        name; ``criterion`` of the best, in mm.

    Raises
    ------
    MedXAIError
        As `impact_cohort`, and when the combination would change nothing.
    """
    began = time.perf_counter()
    if not values:
        raise MedXAIError("A grid search needs settings to try (--grid lambda_tv=0.01,0.1).")
    names, tried = list(values), [dict(zip(values, some)) for some in itertools.product(*values.values())]
    study = Study(model, folder, settings, segment, organ, {"grid": values}, "medxai-impact-grid", log)
    rows, skipped, resumed = yield from study.each(lambda case: _tried(case, tried))
    result = Explanation("counterfactual-grid", "Grid search of counterfactual impact")
    done = [row for row in rows if row["state"] == "done"]
    result.tables["grid"], best = _grid(done, tried)
    result.tables["cases"] = Table("Cases", {
        "case": [row["case"] for row in rows for _ in tried], "state": [row["state"] for row in rows for _ in tried],
        **{name: [one[name] for _ in rows for one in tried] for name in names},
        **{name: [number(run.get(name)) for row in rows for run in row.get("runs", [{}] * len(tried))]
           for name in ("D", "H", "A", "dice", "hit", "probability_after", "seconds")},
    })  # fmt: skip
    columns = result.tables["grid"].columns
    result.scores.update(
        {f"best_{name}": columns[name][0] for name in names} if best else {},
        criterion=columns["D_penalised"][0], combinations=len(tried), **counts(rows, skipped),
    )  # fmt: skip
    rule = (
        "the lowest mean D over cases among those with a mean probability below 0.5 afterwards (among all, if none), an empty region counting as the largest D of any case and"
        " combination; of equal ones the smallest A"
    )
    result.notes.append(
        f"The best by {rule}: {_said(best)} ({columns['D_penalised'][0]:.4g} mm). Judge it on other cases."
        if best else "No combination is best: none gave a region in any case."
    )  # fmt: skip
    study.notes(result, rows, skipped)
    result.notes.append(EMPTY)
    result.provenance = provenance(
        "counterfactual-grid", study.settings, model, [], **study.record(rows, skipped, resumed), grid={n: list(v) for n, v in values.items()},
        best=best, criterion=rule, seconds=round(time.perf_counter() - began, 3),
    )  # fmt: skip
    return result


def grid_of(options: Sequence[str]) -> dict[str, tuple]:
    """What ``--grid NAME=A,B,…`` asks for, each setting a number; refused in one sentence."""
    known, found = {one.name: one for one in about(CounterfactualSettings) if one.kind in (int, float)}, {}
    for text in options:
        name, _, values = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if name not in known or name == "seed":
            raise MedXAIError(f"'{text}' is no grid of a setting; write --grid NAME=A,B,… with one of {', '.join(n for n in known if n != 'seed')}.")  # fmt: skip
        if name in found:
            raise MedXAIError(f"The setting '{name}' has two grids; put its values into one.")
        found[name] = tuple(dict.fromkeys(known[name].check(one.strip()) for one in values.split(",") if one.strip()))
        if not found[name]:
            raise MedXAIError(f"'{text}' names no value; write --grid {name}=A,B,….")
    return found


def _tried(case: Case, tried):
    """One case with every combination."""
    runs = []
    for at, changes in enumerate(tried):
        _, figures = yield from case.explained(at / len(tried), (at + 1) / len(tried), **changes)
        runs.append(figures)
    return {"runs": runs}


def _grid(done, tried) -> tuple[Table, dict]:
    """One row per combination, the best first; and the best, empty where no combination gave a region."""
    runs = [[row["runs"][n] for row in done] for n in range(len(tried))]

    def column(some, name):
        return np.array([number(run[name]) for run in some], float)

    def penalised(some, name):
        every = np.array([column(one, name) for one in runs])
        worst = np.nanmax(every) if np.isfinite(every).any() else math.nan
        return float(np.nan_to_num(column(some, name), nan=worst).mean())

    found = []
    for changes, some in zip(tried, runs):
        a = column(some, "A")
        found.append(changes | {
            "D_penalised": penalised(some, "D"), "H_penalised": penalised(some, "H"), "D": mean(column(some, "D")), "H": mean(column(some, "H")), "A": mean(a),
            "dice": mean(column(some, "dice")), "hit": mean(column(some, "hit")), "empty": float(np.isnan(a).mean()),
            "drop_kept_passed": mean(column(some, "drop_kept_passed")), "probability_after": mean(column(some, "probability_after")),
            "seconds": mean(column(some, "seconds")), "n": len(done),
        })  # fmt: skip
    found.sort(
        key=lambda one: (
            [one["probability_after"] >= 0.5]
            + [math.inf if math.isnan(one[name]) else one[name] for name in ("D_penalised", "A")]
        )
    )
    best = {} if math.isnan(found[0]["D_penalised"]) else {name: found[0][name] for name in tried[0]}
    return Table("Combinations, the best first", {name: [one[name] for one in found] for name in found[0]}), best


def _said(best) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in best.items())
