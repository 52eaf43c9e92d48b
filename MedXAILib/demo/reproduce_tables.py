"""The tables, curves and figures of `medxai reproduce dream`, with what of the paper holds in them."""

from __future__ import annotations

import math

import numpy as np

from ..evaluation.statistics import FEWEST, RESAMPLES, Estimate, estimate, holm, mean, sd, signed_rank, spearman, wilson
from ..explanation import Curve, Explanation, Table
from .liver import KINDS
from .phantom import HELD_OUT

ANGLES = (135, 45, 0, 90)  # of the marking, and those it does not have
MEASURES = {
    "rms": "Root mean squared intensity [HU]", "mean": "Mean intensity [HU]", "diameter": "Maximum diameter [mm]",
    "elongation": "Elongation (1: round, 0: elongated)",
}  # fmt: skip
CLOSE = 0.05  # loss of Dice up to which a network counts as close to the baseline
RELIED = 0.2  # loss of Dice from which a network is said to have relied on the marking
EVOLVED = 3.0  # times the mean rise of the networks of p = 0 from which the feature is said to have evolved
TRAINED = 0.1  # Dice on its own kind below which a network did not train
#: What is compared: feature, first network, second network; the first and the fifth are the paper's statements.
EFFECTS = (
    ("rms", "real-like", "synthetic"), ("mean", "real-like", "synthetic"), ("diameter", "real-like", "synthetic"),
    ("elongation", "real-like", "synthetic"), ("elongation", "elongated", "synthetic"), ("elongation", "elongated", "real-like"),
    ("rms", "elongated", "synthetic"), ("diameter", "elongated", "synthetic"),
)  # fmt: skip


def result_of(networks, done: dict, settings, about: dict) -> Explanation:
    """The explanation of what is ``done``, by (what, name, start); ``about`` tells of the data."""
    result = Explanation("reproduce-dream", "The DeepDream paper's controlled experiments on phantoms")
    if settings.quick:
        result.notes.append(
            "QUICK: fewer networks, shorter trainings and fewer dreams than the figures need; a look at whether it works, not figures to quote."
        )
    rows = {one: done["network", one.name, ""] for one in networks}
    scores = result.scores
    for kind, value in about["threshold"].items():
        scores[f"threshold_dice_{kind}"] = value
    _networks(result, rows)
    if "marking" in settings.experiments:
        _marking(result, rows, done, settings)
        for angle, value in about["marking"].items():
            scores[f"marking_itself_{angle}"] = value
    if "tumours" in settings.experiments:
        for kind, values in about["tumours"].items():
            for name in MEASURES:
                scores[f"held_out_{name}_{kind}"] = values[name]
        _tumours(result, rows, done, settings)
    return result


def _networks(result, rows) -> None:
    columns = {
        name: []
        for name in (
            "network",
            "kind",
            "p",
            "seed",
            "dice",
            *(f"dice_{k}" for k in (*KINDS, "marked")),
            "state",
            "seconds",
        )
    }
    failed = []
    for one, row in rows.items():
        found = {
            name: mean(np.array(row["dice"][name], float)) if name in row["dice"] else math.nan
            for name in (*KINDS, "marked")
        }
        own = found["marked" if one.p == 100 else one.kind]
        if not max(v for v in found.values() if v == v) >= TRAINED:
            failed.append(one.name)
        state = "did not train" if one.name in failed else "trained"
        for name, value in zip(
            columns, (one.name, one.kind, one.p, one.seed, own, *found.values(), state, row["seconds"])
        ):
            columns[name].append(value)
    result.tables["networks"] = Table("Networks, Dice on held-out phantoms", columns)
    result.self_checks["trained"] = {
        "value": len(rows) - len(failed), "passed": not failed,
        "meaning": f"Networks that trained: Dice of {TRAINED} and more on held-out phantoms; those that did not are in networks.csv and left out of the figures.",
    }  # fmt: skip
    if failed:
        result.notes.append(
            f"{len(failed)} of {len(rows)} networks did not train (Dice below {TRAINED}) and are left out of the figures: {', '.join(failed)}."
        )
    base = [
        d
        for d, kind, p in zip(columns["dice_real-like"], columns["kind"], columns["p"])
        if kind == "real-like" and not p
    ]
    value = mean(np.array(base, float))
    result.scores["baseline_dice"] = value
    result.self_checks["task"] = {
        "value": value, "passed": bool(0.75 <= value <= 0.97 and result.scores["threshold_dice_real-like"] < 0.8),
        "meaning": "Mean held-out Dice of the networks without marking: from .75 to .97, and a threshold on intensity that is told the true liver below .8.",
    }  # fmt: skip


def _curve(row, name, length):
    """A curve of a dream; one that ended early goes on with its last value, one that failed is undefined."""
    values = np.array([math.nan if v is None else v for v in row.get(name, [math.nan])], float)
    return np.append(values, np.full(length - len(values), values[-1]))


def _dice(row, name) -> float:
    """Mean over cases; NaN where the network was not judged on them, or failed."""
    return mean(np.array(row.get("dice", {}).get(name, [math.nan]), float))


def _marking(result, rows, done, settings) -> None:
    """Section 3.1: Fig. 4b and 4c, and whether the statement holds."""
    trained = dict(zip(result.tables["networks"].columns["network"], result.tables["networks"].columns["state"]))
    chosen = [one for one in rows if one.kind == "real-like"]
    length = settings.dream_steps + 1
    table = {name: [] for name in ("p", "seed", "network", "dice_unmarked", "dice_marked", "loss")}
    table |= {f"{what}_{angle}": [] for angle in ANGLES for what in ("start", "end")}
    table |= {
        name: [] for name in ("rise", "against_45", "response_start", "response_end", "pixels", "evolved", "state")
    }
    base = mean(
        [_dice(rows[one], "real-like") for one in chosen if not one.p and trained[one.name] == "trained"]
    )
    curves = {}
    for one in sorted(chosen, key=lambda one: (one.p, one.seed)):
        dreams = [done["dream", one.name, f"noise {HELD_OUT + n}"] for n in range(settings.starts)]
        lines = {angle: np.mean([_curve(d, f"line_{angle}", length) for d in dreams], 0) for angle in ANGLES}
        curves[one] = lines
        dice = [_dice(rows[one], name) for name in ("real-like", "marked")]
        start, end = ({angle: float(lines[angle][at]) for angle in ANGLES} for at in (0, -1))
        values = {
            "p": one.p, "seed": one.seed, "network": one.name, "dice_unmarked": dice[0], "dice_marked": dice[1], "loss": base - dice[0],
            **{f"start_{a}": v for a, v in start.items()}, **{f"end_{a}": v for a, v in end.items()}, "rise": end[135] - start[135],
            "against_45": end[135] - start[135] - end[45] + start[45], "response_start": float(np.mean([d["response"][0] for d in dreams])),
            "response_end": float(np.mean([d["response"][-1] for d in dreams])), "pixels": float(np.mean([d["pixels"] for d in dreams])),
            "evolved": "", "state": trained[one.name],
        }  # fmt: skip
        for name, column in table.items():
            column.append(values[name])
    use = np.array([state == "trained" for state in table["state"]])
    p, loss, rise, end = (
        np.where(use, np.array(table[name], float), np.nan) for name in ("p", "loss", "rise", "end_135")
    )
    at_rest = mean(rise[p == 0])
    evolved = rise > EVOLVED * max(at_rest, 0.0)
    table["evolved"] = [("yes" if e else "no") if u else "" for e, u in zip(evolved, use)]
    result.tables["marking"] = Table("Section 3.1: the marking, one row per network", table)
    by_p = {
        name: []
        for name in (
            "p",
            "networks",
            "dice_unmarked",
            "dice_unmarked_sd",
            "dice_marked",
            "loss",
            "start",
            "end",
            "end_sd",
            "end_45",
            "end_0",
            "end_90",
            "evolved",
        )
    }
    steps = np.arange(length, dtype=float)
    series = {angle: {"step": steps} for angle in (135, 45)}
    for value in sorted(set(table["p"])):
        at = np.array(table["p"]) == value
        at &= use
        found = {
            name: np.array(table[name], float)[at]
            for name in ("dice_unmarked", "dice_marked", "loss", "start_135", "end_135", "end_45", "end_0", "end_90")
        }
        row = (
            value, int(at.sum()), mean(found["dice_unmarked"]), sd(found["dice_unmarked"]), mean(found["dice_marked"]), mean(found["loss"]), mean(found["start_135"]),
            mean(found["end_135"]), sd(found["end_135"]), mean(found["end_45"]), mean(found["end_0"]), mean(found["end_90"]), int(evolved[at].sum()),
        )  # fmt: skip
        for name, one in zip(by_p, row):
            by_p[name].append(one)
        for angle, one in series.items():
            some = [lines[angle] for net, lines in curves.items() if net.p == value and trained[net.name] == "trained"]
            one[f"p = {value:g} %"] = np.mean(some, 0) if some else np.full(length, math.nan)
    result.tables["marking-by-p"] = Table("Section 3.1: the marking, means over trainings (Fig. 4c)", by_p)
    for angle, name, title in (
        (135, "characteristic", "Characteristic feature along the dream (Fig. 4b)"),
        (45, "characteristic-45", "The same at 45°, which the marking does not have"),
    ):
        units = {one: "HU" for one in series[angle] if one != "step"}
        result.curves[name] = Curve(
            title, "step", series[angle], "Step", f"Strongest response to a line of {angle}° [HU]", units=units
        )
    _marking_figures(result, settings, p, loss, rise, end, np.array(table["against_45"], float), evolved, use)


def _marking_figures(result, settings, p, loss, rise, end, against, evolved, use) -> None:
    scores = result.scores
    ranks = estimate(spearman, loss, end)
    scores.update(**ranks.named("spearman_loss_end"), **clustered(p, loss, end).named("spearman_loss_end_by_p"))
    marked = use & (p >= 90)
    scores.update(rise_without_marking=mean(rise[p == 0]), **estimate(np.mean, rise[marked]).named("rise_from_90"))
    specific = estimate(np.mean, against[marked])
    scores.update(specific.named("rise_135_beyond_45_from_90"))
    close, relied = use & (loss <= CLOSE) & (p > 0), use & (loss >= RELIED)
    for name, group, hits in (("close_unmoved", close, ~evolved & close), ("relied_evolved", relied, evolved & relied)):
        scores.update(**wilson(int(hits.sum()), int(group.sum())).named(name), **{f"{name}_of": int(group.sum())})
    known = ranks.low == ranks.low
    result.self_checks.update(
        dream_ranks_reliance={
            "value": ranks.value, "passed": bool(ranks.low > 0) if known else None,
            "meaning": "Spearman's correlation of the Dice lost without marking and the characteristic feature at the end, over networks: lower end of the 95 % interval above 0.",
        },
        relied_evolved={
            "value": scores["relied_evolved"], "passed": bool(evolved[relied].all()) if relied.any() else None,
            "meaning": f"Paper: networks that relied on the marking (loss of Dice from {RELIED}) saw the feature evolve (rise at least {EVOLVED:g} times that of p = 0).",
        },
        close_unmoved={
            "value": scores["close_unmoved"], "passed": bool(not evolved[close].any()) if close.any() else None,
            "meaning": f"Paper: networks close to the baseline (loss up to {CLOSE}, p above 0) did not see the feature evolve.",
        },
        angle={
            "value": specific.value, "passed": bool(specific.low > 0) if specific.low == specific.low else None,
            "meaning": "Control: with p from 90 % the response at 135° rises more than that at 45°, which the marking does not have.",
        },
    )  # fmt: skip
    lows = {"close": close, "relied": relied}
    told = {name: f"{int(evolved[group].sum())} of {int(group.sum())}" for name, group in lows.items()}
    result.notes.append(
        f"Marking (paper, Fig. 4): the feature evolved in {told['relied']} networks that lost {RELIED} of Dice or more without the marking, and in "
        f"{told['close']} marked networks that lost at most {CLOSE}"
        + (
            ", which had no need of it: Dice without marking does not tell that a network also reacts to the marking, the dream does."
            if evolved[close].any()
            else "."
        )
    )
    result.notes.append(
        f"Of each network {settings.starts} dream{'s' * (settings.starts > 1)} from white noise of mean 90 and SD 16 HU, the same for all, at the middle pixel; their mean counts. Every dream has "
        f"{settings.dream_steps} steps and stays within the window of the network (-150 to 250 HU), so that the feature cannot grow without end. "
        f"The bootstrap resamples networks; spearman_loss_end_by_p resamples the values of p, each with its trainings."
    )


def clustered(cluster, x, y, seed: int = 0) -> Estimate:
    """Spearman's correlation with a 95 % percentile interval by bootstrap of whole clusters; none for fewer than five."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y, cluster = x[known], y[known], cluster[known]
    names = np.unique(cluster)
    if len(names) < 2 or len(x) < 3:
        return Estimate(math.nan, math.nan, math.nan, len(names))
    value, groups = float(spearman(x, y)), [np.flatnonzero(cluster == name) for name in names]
    if len(names) < 5:
        return Estimate(value, math.nan, math.nan, len(names))
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(RESAMPLES // 5):
        at = np.concatenate([groups[n] for n in rng.integers(len(names), size=len(names))])
        if len(np.unique(x[at])) > 1 and len(np.unique(y[at])) > 1:
            drawn.append(float(spearman(x[at], y[at])))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(value, float(low), float(high), len(names))


def crossed(differences, seed: int = 0) -> Estimate:
    """The mean of a matrix (trainings, patients) with a 95 % percentile interval: trainings and patients are resampled independently.

    No interval for fewer than `FEWEST` patients; of a single training the patients alone are resampled.
    """
    differences = np.asarray(differences, float)
    patients = np.isfinite(differences).any(0)
    differences = differences[:, patients]
    n = differences.shape[1]
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = mean(differences)
    if n < FEWEST:
        return Estimate(value, math.nan, math.nan, n)
    rng, (rows, n) = np.random.default_rng(seed), differences.shape
    times = [
        rng.multinomial(m, np.full(m, 1 / m), RESAMPLES).astype(float) for m in (rows, n)
    ]  # how often each is drawn
    known = np.isfinite(differences)
    total, count = (
        ((times[0] @ one) * times[1]).sum(1) for one in (np.where(known, differences, 0.0), known.astype(float))
    )
    drawn = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Estimate(value, float(low), float(high), n)


def _tumours(result, rows, done, settings) -> None:
    """Section 3.2: Fig. 5, effects between the networks."""
    trained = dict(zip(result.tables["networks"].columns["network"], result.tables["networks"].columns["state"]))
    length = settings.dream_steps + 1
    table = {
        name: []
        for name in ("network", "kind", "seed", "patient", "response_start", "response_end", *MEASURES, "pixels")
    }
    paths = {
        kind: {name: np.full((len(settings.seeds), settings.patients, length), math.nan) for name in MEASURES}
        for kind in KINDS
    }
    lost = 0
    for one in rows:
        if one.p:
            continue
        for n in range(settings.patients):
            row = done["dream", one.name, f"phantom {HELD_OUT + n}"]
            for name in MEASURES:
                found = _padded([_array(row[name])], length)[0]
                if trained[one.name] == "trained":
                    paths[one.kind][name][settings.seeds.index(one.seed), n] = found
            lost += row["pixels"] == 0
            last = [_array(row[name])[-1] for name in MEASURES]
            for name, value in zip(
                table,
                (
                    one.name,
                    one.kind,
                    one.seed,
                    HELD_OUT + n,
                    row["response"][0],
                    row["response"][-1],
                    *last,
                    row["pixels"],
                ),
            ):
                table[name].append(value)
    result.tables["tumours"] = Table("Section 3.2: dreamed tumours, one row per dream, last step", table)
    steps = np.arange(length, dtype=float)
    for name, title in MEASURES.items():
        series = {"step": steps}
        for kind in KINDS:
            flat = paths[kind][name].reshape(-1, length)
            series[kind] = np.array([mean(v) for v in flat.T])
            series[f"{kind} SD"] = np.array([sd(v) for v in flat.T])
        result.curves[name] = Curve(title.split(" [")[0], "step", series, "Step", title, shown=KINDS)
    effects = {
        name: []
        for name in (
            "feature",
            "first",
            "second",
            "mean_first",
            "mean_second",
            "difference",
            "low",
            "high",
            "patients",
            "by_training",
            "p",
            "p_holm",
        )
    }
    ends = {kind: {name: values[:, :, -1] for name, values in some.items()} for kind, some in paths.items()}
    for name, first, second in EFFECTS:
        a, b = ends[first][name], ends[second][name]
        found = crossed(a - b)
        by_patient = [np.array([mean(column) for column in side.T]) for side in (a, b)]
        each = " ".join(f"{mean(row):.3g}" for row in a - b)
        row = (
            name,
            first,
            second,
            mean(a),
            mean(b),
            found.value,
            found.low,
            found.high,
            found.n,
            each,
            signed_rank(*by_patient).p,
            0.0,
        )
        for column, value in zip(effects.values(), row):
            column.append(value)
        scores_name = f"{name}_{first}_minus_{second}"
        result.scores.update(found.named(scores_name))
    effects["p_holm"] = holm(effects["p"])
    result.tables["tumour-effects"] = Table(
        "Section 3.2: differences between the dreams of two networks, last step", effects
    )
    for key, index, told in (
        (
            "intensity",
            0,
            "Paper, Fig. 5a: the network of real tumours dreams a lower root mean squared intensity than that of synthetic ones",
        ),
        (
            "elongation",
            4,
            "Paper, Fig. 5c: the network of elongated tumours dreams a lower elongation than that of synthetic round ones",
        ),
    ):
        low, high = effects["low"][index], effects["high"][index]
        result.self_checks[key] = {
            "value": effects["difference"][index], "passed": bool(high < 0) if low == low else None, "meaning": f"{told}: 95 % interval below 0.",
        }  # fmt: skip
    result.notes.append(
        f"Tumours (paper, Fig. 5): every network dreams from the same {settings.patients} healthy livers at the same pixel, the deepest in tissue. The "
        f"intervals resample the {settings.patients} patients and the {len(settings.seeds)} trainings independently; p is Wilcoxon's over patients (each the mean over trainings), adjusted after "
        f"Holm for {len(EFFECTS)} comparisons, and says nothing about other trainings."
    )
    if lost:
        result.notes.append(
            f"{lost} of {len(table['kind'])} dreams ended without a tumour at the pixel: their features are empty and left out."
        )
