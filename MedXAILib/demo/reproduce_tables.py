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
MOSTLY = 90.0  # per cent of the images from which the paper's networks relied on it
REACTS = 0.5  # share of a marked zone of healthy liver that a network has to take for tumour to be said to react to the marking alone
EVOLVED = 3.0  # times the mean rise of the networks of p = 0 beyond which the feature is said to have evolved
TRAINED = 0.1  # Dice, on any held-out set, below which a network did not train
#: What is compared: feature, first network, second network; the first and the fifth are the paper's statements.
EFFECTS = (
    ("rms", "real-like", "synthetic"), ("mean", "real-like", "synthetic"), ("diameter", "real-like", "synthetic"),
    ("elongation", "real-like", "synthetic"), ("elongation", "elongated", "synthetic"), ("elongation", "elongated", "real-like"),
    ("rms", "elongated", "synthetic"), ("diameter", "elongated", "synthetic"),
)  # fmt: skip


def result_of(networks, done: dict, settings, about: dict) -> Explanation:
    """The explanation of a run, all but its provenance.

    Parameters
    ----------
    networks : list of Network
    done : dict
        Rows by (what, name, start), as `reproduce.LOG` keeps them; one that failed has ``failed`` in place of numbers.
    settings : ReproduceSettings
    about : dict
        Of the data: ``threshold`` and ``tumours`` by kind, ``marking`` by angle.
    """
    result = Explanation("reproduce-dream", "The DeepDream paper's controlled experiments on phantoms")
    if settings.quick:
        result.notes.append(
            "QUICK: fewer networks, shorter trainings and fewer dreams than the figures need; a look at whether it works, not figures to quote."
        )
    rows = {one: done["network", one.name, ""] for one in networks}
    for kind, value in about["threshold"].items():
        result.scores[f"threshold_dice_{kind}"] = value
    trained = _networks(result, rows)
    failed = [
        f"{row['name']} from {row['start']} ({row['failed']})"
        for row in done.values()
        if row["what"] == "dream" and "failed" in row
    ]
    if failed:
        result.notes.append(
            f"{len(failed)} dreams failed and are left out: {'; '.join(failed[:3])}{'; …' * (len(failed) > 3)}."
        )
    if "marking" in settings.experiments:
        for angle, value in about["marking"].items():
            result.scores[f"marking_itself_{angle}"] = value
        _marking(result, rows, done, settings, trained)
    if "tumours" in settings.experiments:
        for kind, values in about["tumours"].items():
            for name in MEASURES:
                result.scores[f"held_out_{name}_{kind}"] = values[name]
        _tumours(result, rows, done, settings, trained)
    return result


def _table(title, rows) -> Table:
    return Table(title, {name: [row[name] for row in rows] for name in rows[0]})


def _column(rows, name, where=None):
    return np.array([row[name] for row in rows if where is None or where(row)], float)


def _curve(row, name, length):
    """A curve of a dream; one that ended early goes on with its last value, one that failed is undefined."""
    values = np.array([math.nan if v is None else v for v in row.get(name, [math.nan])], float)
    return np.append(values, np.full(length - len(values), values[-1]))


def _dice(row, name) -> float:
    """Mean over cases; NaN where the network was not judged on them, or failed."""
    return mean(np.array(row.get("dice", {}).get(name, [math.nan]), float))


def _networks(result, rows) -> set:
    """The table of all networks; returns those that trained."""
    found, trained = [], set()
    for one, row in rows.items():
        dice = {f"dice_{name}": _dice(row, name) for name in (*KINDS, "marked")}
        if max((v for v in dice.values() if v == v), default=0.0) >= TRAINED:
            trained.add(one)
        state = "trained" if one in trained else f"did not train{': ' * ('failed' in row)}{row.get('failed', '')}"
        found.append(
            {"network": one.name, "kind": one.kind, "p": one.p, "seed": one.seed, **dice, "state": state, "seconds": row.get("seconds", math.nan)}
        )  # fmt: skip
    result.tables["networks"] = _table("Networks, Dice on held-out phantoms", found)
    failed = [row["network"] for row in found if row["state"] != "trained"]
    result.self_checks["trained"] = {
        "value": len(trained), "passed": not failed,
        "meaning": f"Networks that trained: Dice of {TRAINED} and more on held-out phantoms; those that did not are in networks.csv and left out of the figures.",
    }  # fmt: skip
    if failed:
        result.notes.append(
            f"{len(failed)} of {len(rows)} networks did not train (Dice below {TRAINED}) and are left out of the figures: {', '.join(failed)}."
        )
    base = mean(_column(found, "dice_real-like", lambda row: row["kind"] == "real-like" and not row["p"]))
    result.scores["baseline_dice"] = base
    result.self_checks["task"] = {
        "value": base, "passed": bool(0.75 <= base <= 0.97 and result.scores["threshold_dice_real-like"] < 0.8),
        "meaning": "Mean held-out Dice of the networks without marking: from .75 to .97, and a threshold on intensity that is told the true liver below .8.",
    }  # fmt: skip
    return trained


def _marking(result, rows, done, settings, trained) -> None:
    """Section 3.1: Fig. 4b and 4c, and whether the statement holds."""
    length, found, curves = settings.dream_steps + 1, [], {}
    chosen = sorted((one for one in rows if one.kind == "real-like"), key=lambda one: (one.p, one.seed))
    base = mean(
        np.array([_dice(rows[one], "real-like") for one in chosen if not one.p and one in trained] or [math.nan])
    )
    for one in chosen:
        dreams = [done["dream", one.name, f"noise {HELD_OUT + n}"] for n in range(settings.starts)]
        lines = {angle: np.mean([_curve(d, f"line_{angle}", length) for d in dreams], 0) for angle in ANGLES}
        start, end = ({angle: float(line[at]) for angle, line in lines.items()} for at in (0, -1))
        response = np.mean([_curve(d, "response", length) for d in dreams], 0)
        unmarked = _dice(rows[one], "real-like")
        found.append({
            "p": one.p, "seed": one.seed, "network": one.name, "dice_unmarked": unmarked, "dice_marked": _dice(rows[one], "marked"), "loss": base - unmarked,
            "marking_alone": mean(np.array(rows[one].get("alone", [math.nan]), float)),
            "start": start[135], "end": end[135], "rise": end[135] - start[135], **{f"end_{angle}": end[angle] for angle in ANGLES[1:]},
            "rise_45": end[45] - start[45], "response_start": float(response[0]), "response_end": float(response[-1]),
            "pixels": float(np.mean([d.get("pixels", math.nan) for d in dreams])), "evolved": "", "state": "trained" if one in trained else "did not train",
        })  # fmt: skip
        curves[one] = lines
    good = [row for row, one in zip(found, chosen) if one in trained and row["end"] == row["end"]]
    at_rest = mean(_column(good, "rise", lambda row: not row["p"]))
    for row in good:
        row["evolved"] = "yes" if row["rise"] > EVOLVED * max(at_rest, 0.0) else "no"
    result.tables["marking"] = _table("Section 3.1: the marking, one row per network", found)

    values, means = sorted({one.p for one in chosen}), []
    series = {angle: {"step": np.arange(length, dtype=float)} for angle in (135, 45)}
    for p in values:
        some = [row for row in good if row["p"] == p]
        row = {"p": p, "networks": len(some)}
        for name in (
            "dice_unmarked",
            "dice_marked",
            "loss",
            "marking_alone",
            "start",
            "end",
            "end_45",
            "end_0",
            "end_90",
        ):
            row[name] = mean(_column(some, name))
            if name in ("dice_unmarked", "end"):
                row[f"{name}_sd"] = sd(_column(some, name))
        means.append(row | {"evolved": sum(one["evolved"] == "yes" for one in some)})
        for angle, columns in series.items():
            lines = [curves[one][angle] for one in chosen if one.p == p and one in trained]
            columns[f"p = {p:g} %"] = np.mean(lines, 0) if lines else np.full(length, math.nan)
    result.tables["marking-by-p"] = _table("Section 3.1: the marking, means over trainings (Fig. 4c)", means)
    for angle, name, title in (
        (135, "characteristic", "Characteristic feature along the dream (Fig. 4b)"),
        (45, "characteristic-45", "The same at 45°, which the marking does not have"),
    ):
        units = dict.fromkeys(list(series[angle])[1:], "HU")
        told = f"Strongest response to a line of {angle}° [HU]"
        result.curves[name] = Curve(title, "step", series[angle], "Step", told, units=units)
    _marking_figures(result, settings, good, at_rest)


def _marking_figures(result, settings, good, at_rest) -> None:
    scores = result.scores
    p, loss, rise, end, rise_45, alone = (
        _column(good, name) for name in ("p", "loss", "rise", "end", "rise_45", "marking_alone")
    )
    evolved = np.array([row["evolved"] == "yes" for row in good], bool)
    ranks, mostly = estimate(spearman, loss, end), p >= MOSTLY
    scores.update(**ranks.named("spearman_loss_end"), **clustered(p, loss, end).named("spearman_loss_end_by_p"))
    specific = estimate(np.mean, (rise - rise_45)[mostly])
    scores.update(rise_without_marking=at_rest, **estimate(np.mean, rise[mostly]).named("rise_from_90"))
    scores.update(specific.named("rise_135_beyond_45_from_90"))
    scores.update(
        **estimate(spearman, alone, end).named("spearman_alone_end"),
        **clustered(p, alone, end).named("spearman_alone_end_by_p"),
    )
    reacts = alone >= REACTS
    agrees = wilson(int((reacts == evolved).sum()), len(good))
    scores.update(**agrees.named("reaction_agrees"), reaction_agrees_of=len(good))
    close, relied = (loss <= CLOSE) & (p > 0), loss >= RELIED
    for name, group, hits in (("close_unmoved", close, close & ~evolved), ("relied_evolved", relied, relied & evolved)):
        scores.update(**wilson(int(hits.sum()), int(group.sum())).named(name), **{f"{name}_of": int(group.sum())})
    result.self_checks.update(
        dream_ranks_reliance={
            "value": ranks.value, "passed": bool(ranks.low > 0) if ranks.low == ranks.low else None,
            "meaning": "Spearman's correlation of the Dice lost without marking and the characteristic feature at the end, over networks: 95 % interval above 0.",
        },
        relied_evolved={
            "value": scores["relied_evolved"], "passed": bool(evolved[relied].all()) if relied.any() else None,
            "meaning": f"Paper: networks that relied on the marking (loss of Dice from {RELIED}) saw the feature evolve (rise beyond {EVOLVED:g} times that of p = 0).",
        },
        close_unmoved={
            "value": scores["close_unmoved"], "passed": bool(not evolved[close].any()) if close.any() else None,
            "meaning": f"Paper: networks close to the baseline (loss up to {CLOSE}, p above 0) did not see the feature evolve.",
        },
        reaction={
            "value": agrees.value, "passed": bool(agrees.low > 0.5) if good else None,
            "meaning": f"Not in the paper: share of the networks in which the feature evolved exactly if they take at least {REACTS:.0%} of a marked zone of healthy liver for tumour"
            " (beyond what they take without the marking); 95 % interval above one half.",
        },
        angle={
            "value": specific.value, "passed": bool(specific.low > 0) if specific.low == specific.low else None,
            "meaning": f"Control: with p from {MOSTLY:g} % the response at 135° rises more than that at 45°, which the marking does not have; 95 % interval above 0.",
        },
    )  # fmt: skip
    told = [f"{int((group & evolved).sum())} of {int(group.sum())}" for group in (relied, close)]
    result.notes.append(
        f"Marking (paper, Fig. 4): the feature evolved in {told[0]} networks that lost {RELIED} of Dice or more without the marking, and in {told[1]} marked networks that lost at most {CLOSE}."
        f" Put on healthy liver alone, the marking is taken for tumour by {int(reacts.sum())} of {len(good)} networks, of which the feature evolved in {int((reacts & evolved).sum())},"
        f" and not by {int((~reacts).sum())}, of which it evolved in {int((~reacts & evolved).sum())}."
    )  # fmt: skip
    result.notes.append(
        f"Of each network {settings.starts} dream{'s' * (settings.starts > 1)} from white noise of mean 90 and SD 16 HU, the same for all, at the middle pixel; the mean counts. Every dream has "
        f"{settings.dream_steps} steps and stays within the window of the network (-150 to 250 HU), so that the feature cannot grow without end. "
        "The bootstrap resamples networks as if they were independent; spearman_loss_end_by_p resamples the values of p, each with its trainings."
    )


def clustered(cluster, x, y, seed: int = 0) -> Estimate:
    """Spearman's correlation with a 95 % percentile interval by bootstrap of whole clusters; none for fewer than five. ``n`` counts clusters."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y, cluster = x[known], y[known], cluster[known]
    names = np.unique(cluster)
    if len(x) < 3 or len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return Estimate(math.nan, math.nan, math.nan, len(names))
    value, groups = float(spearman(x, y)), [np.flatnonzero(cluster == name) for name in names]
    if len(names) < 5:
        return Estimate(value, math.nan, math.nan, len(names))
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(2000):
        at = np.concatenate([groups[n] for n in rng.integers(len(names), size=len(names))])
        if len(np.unique(x[at])) > 1 and len(np.unique(y[at])) > 1:
            drawn.append(float(spearman(x[at], y[at])))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(value, float(low), float(high), len(names))


def crossed(differences, seed: int = 0) -> Estimate:
    """The mean of a matrix (trainings, patients) with a 95 % percentile interval: trainings and patients are resampled independently.

    No interval for fewer than `FEWEST` patients; of a single training the patients alone are resampled. ``n`` counts patients.
    """
    differences = np.asarray(differences, float)
    differences = differences[:, np.isfinite(differences).any(0)]
    rows, n = differences.shape
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = mean(differences)
    if n < FEWEST:
        return Estimate(value, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    times = [
        rng.multinomial(m, np.full(m, 1 / m), RESAMPLES).astype(float) for m in (rows, n)
    ]  # how often each is drawn
    known = np.isfinite(differences)
    total, count = (
        ((times[0] @ one) * times[1]).sum(1) for one in (np.where(known, differences, 0.0), known.astype(float))
    )
    low, high = np.nanquantile(np.where(count > 0, total / np.maximum(count, 1), np.nan), (0.025, 0.975))
    return Estimate(value, float(low), float(high), n)


def _tumours(result, rows, done, settings, trained) -> None:
    """Section 3.2: Fig. 5, and the differences between the networks."""
    length, found = settings.dream_steps + 1, []
    shape = (len(settings.seeds), settings.patients, length)
    paths = {kind: {name: np.full(shape, math.nan) for name in MEASURES} for kind in KINDS}
    for one in rows:
        for n in range(0 if one.p else settings.patients):
            row = done["dream", one.name, f"phantom {HELD_OUT + n}"]
            features = {name: _curve(row, name, length) for name in MEASURES}
            response, voxel = _curve(row, "response", length), row.get("voxel", [math.nan] * 3)
            found.append({
                "network": one.name, "kind": one.kind, "seed": one.seed, "patient": HELD_OUT + n, "neuron_j": voxel[1], "neuron_i": voxel[2], "response_start": response[0],
                "response_end": response[-1], **{name: values[-1] for name, values in features.items()}, "pixels": row.get("pixels", math.nan),
            })  # fmt: skip
            if one in trained:
                for name, values in features.items():
                    paths[one.kind][name][settings.seeds.index(one.seed), n] = values
    result.tables["tumours"] = _table("Section 3.2: dreamed tumours, one row per dream, last step", found)
    for name, title in MEASURES.items():
        series = {"step": np.arange(length, dtype=float)}
        for kind in KINDS:
            by_step = paths[kind][name].reshape(-1, length).T
            series |= {
                kind: np.array([mean(v) for v in by_step]),
                f"{kind} SD": np.array([sd(v) for v in by_step]),
                f"{kind} dreams": np.isfinite(by_step).sum(1).astype(float),
            }
        result.curves[name] = Curve(title.split(" [")[0], "step", series, "Step", title, shown=KINDS)
    effects = []
    for name, first, second in EFFECTS:
        a, b = (paths[kind][name][:, :, -1] for kind in (first, second))
        one = crossed(a - b)
        result.scores.update(one.named(f"{name}_{first}_minus_{second}"))
        by_patient = ([mean(column) for column in side.T] for side in (a, b))
        effects.append({
            "feature": name, "first": first, "second": second, "mean_first": mean(a), "mean_second": mean(b), "difference": one.value, "low": one.low,
            "high": one.high, "patients": one.n, "by_training": " ".join(f"{mean(row):.3g}" for row in a - b), "p": signed_rank(*by_patient).p,
        })  # fmt: skip
    for row, p in zip(effects, holm([row["p"] for row in effects])):
        row["p_holm"] = p
    result.tables["tumour-effects"] = _table(
        "Section 3.2: differences between the dreams of two networks, last step", effects
    )
    for key, index, told in (
        ("intensity", 0, "Fig. 5a: the network of real-like tumours dreams a lower root mean squared intensity than that of synthetic ones"),
        ("elongation", 4, "Fig. 5c: the network of elongated tumours dreams more elongated ones (a lower value) than that of synthetic round ones"),
    ):  # fmt: skip
        one = effects[index]
        result.self_checks[key] = {
            "value": one["difference"], "passed": bool(one["high"] < 0) if one["high"] == one["high"] else None,
            "meaning": f"Paper, {told}; 95 % interval below 0.",
        }  # fmt: skip
    result.notes.append(
        f"Tumours (paper, Fig. 5): every network dreams from the same {settings.patients} healthy livers at the same pixel, the deepest in tissue. The intervals resample the "
        f"{settings.patients} patients and the {len(settings.seeds)} trainings independently; p is Wilcoxon's over patients (each the mean over trainings), adjusted after Holm for "
        f"{len(EFFECTS)} comparisons, and says nothing about other trainings."
    )
    lost = [row["kind"] for row in found if row["elongation"] != row["elongation"]]
    if lost:
        told = ", ".join(f"{lost.count(kind)} {kind}" for kind in KINDS if kind in lost)
        result.notes.append(
            f"{len(lost)} of {len(found)} dreams ended without a tumour at the pixel, or with one too small for a shape ({told}): their features are empty and left out."
        )
