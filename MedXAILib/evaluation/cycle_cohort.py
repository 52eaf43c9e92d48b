"""A cohort of `cycle` (Katzmann et al. 2021, sections 3.3 and 4): the classifier, the transfer, and how near R and its rivals come to a planted cause."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np

from ..explanation import Explanation, Step, Steps, Table, part
from ..methods.attributions import RIVALS, TITLES, TOLERANCE
from ..methods.provenance import provenance
from ..settings import CycleSettings
from .classifier_table import classifier_figures, classifier_table
from .cycle_cases import CAUSED, MEASURES, OURS, Example, Study, probability
from .impact_cases import number
from .statistics import RESAMPLES, estimate, holm, mean, signed_rank
from .transfer import transfer, transfer_table

EXAMPLES = 6  # cases, the first by name, that the page shows


@dataclass
class CycleCohort(Explanation):
    """The explanation of a cohort, with the cases that its page shows."""

    examples: list[Example] = field(default_factory=list)


def cycle_cohort(
    model, folder, settings: CycleSettings, log=None, rivals: Sequence[str] = tuple(RIVALS), background: int = 32
) -> Steps:
    """Judge a classifier, its explainer and the rivals of the paper on every image of a folder; on the test side alone where its table has a split.

    All look at the same network input, and maps are compared on the network's grid. Where the table names causes (a map of what makes the positive class: the image of
    that class minus the same image of the other), the agreement with them is measured by `cycle_cases.agreement`.

    Parameters
    ----------
    model : Model
        A classifier that takes one channel.
    folder : path
        Images with classes: see `cases.labelled_images`.
    settings : CycleSettings
        ``label``, ``explainer``, ``center_ras`` and ``slice`` count. A center holds for every image; by default an image larger than the patch is looked at around its mask.
    log : path, optional
        Finished cases are kept there, and a study that was stopped goes on from them.
    rivals : sequence of str
        Of `methods.attributions.RIVALS`. What is not installed is left out, and told.
    background : int
        Images of the train side that DeepSHAP compares with, at most and at least 1; drawn with seed 0.

    Yields
    ------
    Step
        With a point of curve ``agreement`` after each case.

    Returns
    -------
    CycleCohort
        Tables ``classifier``, ``transfer``, ``agreement`` (a row for R and for each rival), ``tests`` (paired differences R − rival with 95 % interval, Wilcoxon's p, and
        the same after Holm over all rows) and ``cases``. Scores: figures of the classifier and of the transfer, the cycle error (eq. 2, in network
        units), AUC of every method, counts.

    Raises
    ------
    MedXAIError
        When network, explainer or settings do not suit a cohort, no image can be used, or ``log`` is of another study. A bad case alone is skipped, and told.
    """
    began = time.perf_counter()
    study = Study(model, folder, settings, log, rivals, background)
    rows, skipped, resumed = yield from part(study.each(), 0.0, 0.95)
    yield Step(0.95, "Computing the statistics")
    result = CycleCohort("cycle-cohort", "Cycle-consistent activation maximization of a cohort")
    methods = [OURS, *(name for name in study.rivals if any(name in row["methods"] for row in rows))]
    odds = np.array([row["odds"] for row in rows], float)
    p = probability(odds)
    true, predicted, flipped = (np.array([row[name] for row in rows], float) for name in ("true", "predicted", "flipped"))  # fmt: skip
    figures, moved = classifier_figures(true, p[:, 0], predicted), transfer(*p.T, predicted, flipped)
    result.tables["classifier"], result.tables["transfer"] = classifier_table(figures), transfer_table(moved)
    caused = bool(np.isfinite(_column(rows, OURS, "auc")).any())
    result.tables["agreement"] = _methods(rows, methods)
    if caused:
        result.tables["tests"] = _tests(rows, methods)
    result.tables["cases"] = _cases(rows, p, methods, skipped)
    _scores(result, rows, skipped, figures, moved, methods, caused)
    result.notes += study.notes
    _notes(result, study, rows, skipped, methods, caused)
    known = {one.name: one for one in study.cases}
    for n, name in enumerate(sorted(row["case"] for row in rows)[:EXAMPLES]):
        if name in known:
            result.examples.append((yield from part(study.example(known[name]), 0.96 + 0.04 * n / EXAMPLES, 1.0, "Drawing")))  # fmt: skip
    result.provenance = provenance(
        "cycle-cohort", settings, model, [], folder=str(study.folder), label=study.positive, negative=study.negative, explainer=study.explainer,
        cases=len(rows), skipped=skipped, resumed=resumed, rivals=methods[1:], background={"images": [one.name for one in study.drawn], "seed": 0},
        target="z_positive − z_negative" if None not in study.trained else "z_positive", caused_from=CAUSED,
        intervals=f"95 %, BCa bootstrap of cases, {RESAMPLES} resamples, seed 0; shares after Wilson",
        tests="paired t, two-sided, d_z = mean / SD of the differences; Wilcoxon signed-rank, two-sided, zeros after Pratt, Holm over all rows",
        seconds=round(time.perf_counter() - began, 3),
    )  # fmt: skip
    if "deepshap" in methods:
        result.provenance["versions"]["captum"] = version("captum")
    return result


def _column(rows, method, name) -> np.ndarray:
    """Over cases, NaN where undefined."""
    return np.array([number(row["methods"].get(method, {}).get(name)) for row in rows], float)


def _methods(rows, methods) -> Table:
    columns = {}
    for method in methods:
        row = {"method": method, "n": sum(method in one["methods"] for one in rows)}
        for measure in MEASURES:
            row |= estimate(np.mean, _column(rows, method, measure)).named(measure)
        holds = _column(rows, method, "holds")
        error, seconds = _column(rows, method, "error"), _column(rows, method, "seconds")
        row |= {
            "sums_hold": mean(holds), "sum_error": _median(error), "seconds": _median(seconds),
        }  # fmt: skip
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return Table("Agreement with the cause", columns)


def _median(values) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else math.nan


def _tests(rows, methods) -> Table:
    columns = {name: [] for name in ("measure", "rival", "difference", "low", "high", "p", "p_holm", "n", "left_out")}
    for measure in MEASURES:
        ours = _column(rows, OURS, measure)
        for rival in methods[1:]:
            other = _column(rows, rival, measure)
            found, test = estimate(np.mean, ours - other), signed_rank(ours, other)
            for name, value in zip(columns, (measure, rival, found.value, found.low, found.high, test.p, 0.0, test.n, test.dropped)):  # fmt: skip
                columns[name].append(value)
    columns["p_holm"] = holm(columns["p"])
    return Table("R against the rivals, case by case", columns)


def _cases(rows, p, methods, skipped) -> Table:
    """Every case; what is not known of it is empty."""
    columns = {
        "case": [row["case"] for row in rows] + list(skipped), "state": ["done"] * len(rows) + ["skipped"] * len(skipped),
        "label": [row["label"] for row in rows], "true": [row["true"] for row in rows], "predicted": [row["predicted"] for row in rows],
        "slice": [row["slice"] for row in rows], "probability": p[:, 0].tolist(), "probability_negative": p[:, 1].tolist(),
        "probability_positive": p[:, 2].tolist(), "flipped": [float(row["flipped"]) for row in rows],
        "cycle_error": [number(row["cycle_error"]) for row in rows],
    }  # fmt: skip
    for method in methods:
        names = ("seconds",) if method == OURS else ("explained", "total", "biases", "error", "seconds")
        for name in (*MEASURES, *names):
            columns[f"{name}_{method}"] = _column(rows, method, name).tolist()
    columns["seconds"] = [row["seconds"] for row in rows]
    text = ("label", "slice")
    for name, values in columns.items():
        values.extend(["" if name in text else math.nan] * (len(rows) + len(skipped) - len(values)))
    reasons = ["; ".join(f"{name}: {why}" for name, why in row["failed"].items()) for row in rows]
    columns["note"] = reasons + list(skipped.values())
    return Table("Cases", columns)


def _scores(result, rows, skipped, figures, moved, methods, caused) -> None:
    scores = result.scores
    scores.update(cases=len(rows), skipped=len(skipped))
    for name, one in (("accuracy", figures["accuracy"]), ("classifier_auc", figures["auc"]), ("probability", moved.images["x"]),
                      ("probability_negative", moved.images["G⁻(x)"]), ("probability_positive", moved.images["G⁺(x)"]), ("flipped", moved.flipped),
                      ("flipped_to_positive", moved.to_positive), ("flipped_to_negative", moved.to_negative), ("ordered", moved.ordered),
                      ("effect_positive", moved.up.effect), ("effect_negative", moved.down.effect)):  # fmt: skip
        scores.update(one.named(name))
    scores.update(estimate(np.mean, np.array([number(row["cycle_error"]) for row in rows], float)).named("cycle_error"))
    ends = [moved.up.difference.low, moved.down.difference.low]
    sure = all(map(math.isfinite, ends))
    result.self_checks["moves_both_ways"] = {
        "value": min(ends) if sure else None, "passed": min(ends) > 0 if sure else None,
        "meaning": "Smaller lower end of the 95 % intervals of G⁺(x) − x and x − G⁻(x) (mean probability of the positive class): above 0, the generators move the cases both ways.",
    }  # fmt: skip
    if caused:
        for method in methods:
            scores.update(estimate(np.mean, _column(rows, method, "auc")).named(f"auc_{method}"))
        tests = result.tables["tests"].columns
        lows = [low for measure, low in zip(tests["measure"], tests["low"]) if measure == "auc"]
        sure = bool(lows) and all(map(math.isfinite, lows))
        result.self_checks["nearer_than_rivals"] = {
            "value": min(lows) if sure else None, "passed": min(lows) > 0 if sure else None,
            "meaning": "Smallest lower end of the 95 % intervals of the AUC R − rival: above 0, R shows the cause better than every rival.",
        }  # fmt: skip
    holds = np.concatenate([_column(rows, method, "holds") for method in methods])
    holds = holds[np.isfinite(holds)]
    result.self_checks["rivals_add_up"] = {
        "value": float(holds.mean()) if len(holds) else None, "passed": bool(holds.all()) if len(holds) else None,
        "meaning": f"Share of the rivals' maps that sum to what they explain within {TOLERANCE:.0%} (completeness of DeepSHAP, conservation of DeepTaylor and LRP); passed when all do.",
    }  # fmt: skip
    result.self_checks["all_cases"] = {
        "value": len(rows), "passed": not skipped,
        "meaning": "Cases used; those that were skipped are in cases.csv, each with its reason.",
    }  # fmt: skip


def _notes(result, study, rows, skipped, methods, caused) -> None:
    notes = result.notes
    if not caused:
        notes.append("No case names a cause (column 'cause' of labels.csv): the agreement was not measured.")
    elif len(rows) < 8:
        notes.append(f"{len(rows)} cases were used; an interval needs 8.")
    for method in methods[1:]:
        error, biases = _column(rows, method, "error"), _column(rows, method, "biases")
        explained, total = _column(rows, method, "explained"), _column(rows, method, "total")
        known = np.isfinite(error)
        missed = int((error[known] > TOLERANCE).sum())
        if missed:
            rest = np.abs(total + biases - explained)[known].max()
            kept = f"; biases keep the rest (with them at most {rest:.1g} is missing)" if np.nanmax(np.abs(biases)) > 0 else ""  # fmt: skip
            what = "Completeness" if method == "deepshap" else "Conservation"
            notes.append(
                f"{what} of {TITLES[method]} fails in {missed} of {int(known.sum())} cases: its map misses what it explains by {np.median(error[known]):.0%} in the median{kept}."
            )
    for name in study.rivals:
        why = [row["failed"][name] for row in rows if name in row["failed"]]
        if why:
            notes.append(f"{TITLES[name]} failed in {len(why)} of {len(rows)} cases ({why[0]})" + (" and is left out." if name not in methods else "."))  # fmt: skip
    if skipped:
        told = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        notes.append(f"{len(skipped)} of {len(rows) + len(skipped)} cases were skipped ({told}{'; and more' if len(skipped) > 3 else ''}).")  # fmt: skip
