"""A cohort of `counterfactual`: how far its regions lie from the findings, against CAM and gradient saliency (Major et al. 2020, section 3)."""

from __future__ import annotations

import math
import time

import numpy as np

from ..errors import MedXAIError
from ..explanation import Explanation, Step, Steps, Table
from ..methods.provenance import provenance
from ..methods.rivals import cam, saliency
from ..settings import CounterfactualSettings
from .impact_cases import EMPTY, Case, Study, counts, number
from .localisation import at_percentile, hit, overlap
from .statistics import RESAMPLES, estimate, holm, mean, sd, signed_rank, wilson

PERCENTILES = (50, 75, 90)  # at which rivals are thresholded: 50, 25 and 10 % of the organ are left
RIVALS = ("cam", "sal")
#: What is tested, and its name among the scores.
MEASURES = {"D": "distance_mm", "H": "hausdorff_mm", "A": "area_share"}


def impact_cohort(
    model, folder, settings: CounterfactualSettings, segment: str | None = None, organ: str | None = None, log=None, ablation: bool = True
) -> Steps:  # fmt: skip
    """Run `counterfactual` on every case of a folder, and compare where it points with CAM, gradient saliency and the ablation (λ₂ = λ₃ = 0).

    Rivals look at the same network input; their maps are brought to the volume's grid and thresholded at `PERCENTILES` of their values in the organ
    (in the whole image, of a 2-D network the whole slice, without one). Every region is measured in the same way, by `localisation`.

    Parameters
    ----------
    model : Model
        A classifier that takes one channel.
    folder : path
        Image and mask pairs, in any of `MedXAILib.cases.LAYOUTS`.
    settings : CounterfactualSettings
        Those of each run. An empty ``label`` is the last label of the model: what is explained must be the same class in every case.
    segment : str, optional
        Name or label value of the finding in the masks; may be left out where each holds nothing else, the organ apart.
    organ : str, optional
        Name or label value of the organ in the masks. The finding belongs to it (a label map cannot hold both in one voxel).
    log : path, optional
        As for `cohort`.
    ablation : bool
        Whether to run the ablation too, which takes as long again.

    Yields
    ------
    Step
        With a point of curve ``distances`` after each case.

    Returns
    -------
    Explanation
        Tables ``table1`` (D and H), ``table2`` (A and O): mean and standard deviation (n − 1) of the paper's tables, and of how many cases; ``tests``
        (paired differences ours − rival with 95 % interval, Wilcoxon's p, the same after Holm over all rows, pairs and pairs left out);
        ``methods`` (every method at each threshold with intervals, Dice and hit rate; ``D_penalised`` is the mean D in which an empty region counts as
        much as the largest D of any method in any case); ``cases``. Scores: ours, with intervals (`statistics`); counts
        of cases, of those skipped, in which the network does not answer the class (``not_predicted``), and without a region (``without_region``).

    Raises
    ------
    MedXAIError
        When network or settings do not suit a cohort, the folder holds no pair, no case could be used, or ``log`` is of another study. A bad case
        alone is skipped, and told.
    """
    began = time.perf_counter()
    study = Study(model, folder, settings, segment, organ, {"ablation": ablation}, "medxai-impact-cohort", log)
    rows, skipped, resumed = yield from study.each(lambda case: _compared(case, ablation))
    yield Step(1.0, "Computing the statistics")
    result = Explanation("counterfactual-cohort", "Counterfactual impact of a cohort")
    done = [row for row in rows if row["state"] == "done"]
    _tables(result, done, ablation)
    _cases(result, rows, skipped)
    _scores(result, done, rows, skipped)
    study.notes(result, rows, skipped)
    result.notes.append(EMPTY)
    named = sorted({row["cam"] for row in done})
    result.notes.append(f"The class activation map of this network is {' or '.join(named)}, rectified.")
    result.provenance = provenance(
        "counterfactual-cohort", study.settings, model, [], **study.record(rows, skipped, resumed), cam=named, ablation=ablation,
        percentiles=list(PERCENTILES), intervals=f"95 %, BCa bootstrap of cases, {RESAMPLES} resamples, seed 0; shares after Wilson",
        tests="Wilcoxon signed-rank, two-sided, zeros after Pratt; Holm over all rows", seconds=round(time.perf_counter() - began, 3),
    )  # fmt: skip
    return result


def _compared(case: Case, ablation: bool):
    """Ours, the ablation and the rivals on one case: steps, and at the end what the row holds."""
    share = 0.45 if ablation else 0.9
    region, ours = yield from case.explained(0, share)
    row = {"ours": ours}
    if ablation:
        _, row["ablation"] = yield from case.explained(share, 2 * share, lambda_tv=0.0, lambda_area=0.0)
    yield Step(0.9, "Asking the rivals")
    found, row["cam"] = cam(case.model, case.prepared.x, case.label)
    row["rivals"], row["overlap"], row["maximum_hit"] = {}, {}, {}
    for rival, values in (("cam", found), ("sal", saliency(case.model, case.prepared.x, case.label))):
        values = case.on_grid(values)
        if not np.isfinite(values).all():
            raise MedXAIError(f"The map of a rival ({rival}) is not finite.")
        row["maximum_hit"][rival] = hit(np.where(case.organ, values, -np.inf), case.truth)
        for percentile in PERCENTILES:
            mask = at_percentile(values, case.organ, percentile)
            row["rivals"][f"{rival}_{percentile}"] = case.measured(mask)
            row["overlap"][f"{rival}_{percentile}"] = overlap(region, mask)
    return row


# ---- tables ----------------------------------------------------------------------------------------------------------


def _figures(row, method) -> dict:
    return row[method] if method in ("ours", "ablation") else row["rivals"][method]


def _column(rows, method, name) -> np.ndarray:
    """Over cases, NaN where undefined."""
    return np.array([number(_figures(row, method)[name]) for row in rows], float)


def _names(ablation) -> list[str]:
    return ["ours", *["ablation"] * ablation, *(f"{rival}_{p}" for rival in RIVALS for p in PERCENTILES)]


def _tables(result, done, ablation) -> None:
    def told(columns, name, values):
        for end, value in (("", mean(values)), ("_sd", sd(values)), ("_n", int(np.isfinite(values).sum()))):
            columns.setdefault(name + end, []).append(value)

    nothing = np.full(len(done), math.nan)
    first = {"P": [*map(str, PERCENTILES), *["Ablation"] * ablation]}
    for measure in ("D", "H"):
        for shown in first["P"]:
            told(first, f"{measure}_ours", _column(done, "ours" if shown != "Ablation" else "ablation", measure))
            for rival in RIVALS:
                told(first, f"{measure}_{rival}", nothing if shown == "Ablation" else _column(done, f"{rival}_{shown}", measure))  # fmt: skip
    result.tables["table1"] = Table("Distances between regions and findings [mm]", first)
    second = {"P": list(PERCENTILES)}
    for p in PERCENTILES:
        for method in ("ours", *(f"{rival}_{p}" for rival in RIVALS)):
            told(second, f"A_{method.split('_')[0]}", _column(done, method, "A"))
        for rival in RIVALS:
            told(second, f"O_{rival}", np.array([number(row["overlap"][f"{rival}_{p}"]) for row in done], float))
    result.tables["table2"] = Table("Share of the organ, and overlap with ours", second)
    result.tables["tests"] = _tests(done, ablation)
    summary = {}
    every = np.array([_column(done, method, "D") for method in _names(ablation)])
    worst = np.nanmax(every) if np.isfinite(every).any() else math.nan
    for method in _names(ablation):
        empty = sum(math.isnan(number(_figures(row, method)["A"])) for row in done)
        row = {"method": method, "n": len(done), "empty": empty}
        for measure in (*MEASURES, "dice"):
            row |= estimate(np.mean, _column(done, method, measure)).named(measure)
        row |= wilson(int(np.nansum(_column(done, method, "hit"))), len(done)).named("hit")
        row["D_penalised"] = mean(np.nan_to_num(_column(done, method, "D"), nan=worst))
        for name, value in row.items():
            summary.setdefault(name, []).append(value)
    result.tables["methods"] = Table("Every method", summary)


def _tests(done, ablation) -> Table:
    names = ("measure", "rival", "percentile", "difference", "low", "high", "p", "p_holm", "n", "left_out")
    rows = {name: [] for name in names}
    for measure in MEASURES:
        ours = _column(done, "ours", measure)
        for method in _names(ablation)[1:]:
            other = _column(done, method, measure)
            found, test = estimate(np.mean, ours - other), signed_rank(ours, other)
            rival, _, p = method.partition("_")
            for name, value in zip(rows, (measure, rival, float(p or "nan"), found.value, found.low, found.high, test.p, 0.0, test.n, test.dropped)):  # fmt: skip
                rows[name].append(value)
    rows["p_holm"] = holm(rows["p"])
    return Table("Ours against the others, pair by pair", rows)


def _cases(result, rows, skipped) -> None:
    """Every case; what is not known of it is empty."""
    columns = {
        "case": [row["case"] for row in rows] + list(skipped),
        "state": [row["state"] if row["state"] != "done" else "no region" if math.isnan(number(row["ours"]["A"])) else "done" for row in rows]
        + ["skipped"] * len(skipped),
        "slice": [row["slice"] for row in rows] + [""] * len(skipped),
        "probability_before": [row["probability_before"] for row in rows],
        "probability_after": [number(row.get("ours", {}).get("probability_after")) for row in rows],
        "drop_kept_passed": [number(row.get("ours", {}).get("drop_kept_passed")) for row in rows],
        "seconds": [row["seconds"] for row in rows],
    }  # fmt: skip
    done = [row for row in rows if row["state"] == "done"]
    for method in _names("ablation" in done[0]):
        for name in (*MEASURES, "dice", "hit"):
            columns[f"{name}_{method}"] = [number(_figures(row, method)[name]) if row["state"] == "done" else math.nan for row in rows]  # fmt: skip
        if method in done[0]["overlap"]:
            columns[f"O_{method}"] = [number(row["overlap"][method]) if row["state"] == "done" else math.nan for row in rows]  # fmt: skip
    for values in columns.values():
        values.extend([math.nan] * (len(rows) + len(skipped) - len(values)))
    columns["note"] = [""] * len(rows) + list(skipped.values())
    result.tables["cases"] = Table("Cases", columns)


def _scores(result, done, rows, skipped) -> None:
    scores, tests = result.scores, result.tables["tests"].columns
    hits, kept = _column(done, "ours", "hit"), _column(done, "ours", "drop_kept_passed")
    scores.update(counts(rows, skipped), without_region=int(np.isnan(_column(done, "ours", "A")).sum()))
    for measure, name in MEASURES.items():
        scores.update(estimate(np.mean, _column(done, "ours", measure)).named(name))
    scores.update(estimate(np.mean, _column(done, "ours", "dice")).named("dice"))
    scores.update(wilson(int(np.nansum(hits)), len(done)).named("hit"))
    for rival in RIVALS:
        scores[f"{rival}_maximum_hit"] = mean(np.array([number(row["maximum_hit"][rival]) for row in done], float))
    scores.update(wilson(int(np.nansum(kept)), int(np.isfinite(kept).sum())).named("drop_kept_passed"))
    scores["probability_before"] = mean(np.array([row["probability_before"] for row in done]))
    scores["probability_after"] = mean(_column(done, "ours", "probability_after"))
    ends = [high for measure, rival, high in zip(tests["measure"], tests["rival"], tests["high"]) if measure == "D" and rival in RIVALS]  # fmt: skip
    known = all(map(math.isfinite, ends))
    result.self_checks.update(
        closer_than_rivals={
            "value": max(ends) if known else None, "passed": max(ends) < 0 if known else None,
            "meaning": "Largest upper end of the 95 % intervals of D ours − rival [mm]: below 0, the regions lie closer to the findings than every rival's at"
            " every percentile.",
        },
        all_cases={
            "value": scores["cases"], "passed": not skipped,
            "meaning": "Cases used; those that were skipped are in cases.csv, each with its reason.",
        },
    )  # fmt: skip
    if not known:
        result.notes.append(f"{len(done)} cases were compared; an interval needs 8 pairs in which both have a region.")
