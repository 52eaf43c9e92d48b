"""A cohort: whether the mean SA score tells good segmentations from bad ones without an annotation (He et al. 2023, sections 4.6, 4.7)."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import __version__, io
from ..cases import incomplete, pairs
from ..errors import MedXAIError
from ..explanation import Curve, Explanation, Point, Step, Steps, Table
from ..methods.ability import ability
from ..methods.provenance import provenance
from ..package import sha256
from ..resume import Log, each_case, none_used
from ..settings import AbilitySettings
from . import vog
from .statistics import RESAMPLES, coverage, estimate, mean, pearson, percentiles, sd, spearman

_SCORES = ("mean_sa", "separableness", "gain", "output_voxels", "reference_voxels")


def cohort(model, folder, settings: AbilitySettings, segment: str | None = None, log=None) -> Steps:
    """Run `ability` on every case of a folder, and compare the Dice of the outputs with what needs no annotation.

    Parameters
    ----------
    model : Model
        A segmentation network that takes one channel.
    folder : path
        Image and mask pairs, in any of `MedXAILib.cases.LAYOUTS`.
    settings : AbilitySettings
        Those of each run. The layers of ``units`` alone are computed, which changes no figure.
    segment : str, optional
        Name or label value of the segment in the masks; may be left out where each holds one.
    log : path, optional
        A file that finished cases are added to, one by one. Those that it holds, with the same files (path, size, time of change), are not
        computed again; skipped ones are tried again.

    Yields
    ------
    Step
        With a point of curve ``dice-by-mean-sa`` after each case.

    Returns
    -------
    Explanation
        Tables ``cases``, ``ranking`` (Fig. 12, from the lowest μ), ``coverage`` (Table 2), ``percentiles`` (Fig. 11); curves ``dice-by-mean-sa``
        (Fig. 10), ``dice-by-separableness`` (Fig. 15), ``accuracy-by-percentile`` (Fig. 11) and, with checkpoints, ``dice-by-vog``. Scores:
        means over cases, among them ``gain`` (m(d), Table 3); ``pearson`` and ``spearman``, the correlations of μ with Dice, the same of VoG and
        of the output's size (``vog_``, ``size_``), and by how much μ's is larger (``_beyond_``); each with its 95 % interval (``_low``, ``_high``;
        `statistics.estimate`).

    Raises
    ------
    MedXAIError
        When network or settings do not suit a cohort, the folder holds no pair, no case could be used, or ``log`` is of another study. A bad
        case alone is skipped, and told.
    """
    began = time.perf_counter()
    _check(model, settings)
    label, folder = model.label_index(settings.label), Path(folder)
    yield Step(0.0, "Looking for cases")
    listed, untried = pairs(folder), incomplete(folder)
    skipped = dict(untried)
    try:
        networks, why = vog.checkpoints(model), ""
    except MedXAIError as error:
        networks, why = [], error.message
    log = Log(log, {
        "kind": "medxai-cohort", "version": __version__, "model": model.package.sha256 or model.package.verify(),
        "segment": segment or "", "checkpoints": [sha256(path) for path in vog.files(model.package)] if networks else [],
        **settings.to_json(),
    })  # fmt: skip
    rows, resumed = yield from each_case(
        listed, log, skipped,
        lambda paths: _case(model, paths, settings, segment, networks, label),
        lambda row, n: (Point("dice-by-mean-sa", n, {"mean SA score": row["mean_sa"], "Dice": row["dice"]}),),
    )  # fmt: skip
    if not rows:
        raise none_used(skipped, untried, folder)
    yield Step(1.0, "Computing the statistics")
    result = _result(rows, skipped, settings, why)
    result.provenance = provenance(
        "ability-cohort", settings, model, [], folder=str(folder), segment=segment or None, label=model.labels[label],
        cases=len(rows), skipped=skipped, resumed=resumed, checkpoints=len(networks),
        intervals=f"95 %, BCa bootstrap of cases, {RESAMPLES} resamples, seed 0", seconds=round(time.perf_counter() - began, 3),
    )  # fmt: skip
    return result


def _check(model, settings) -> None:
    package, default = model.package, AbilitySettings()
    model.require_task("segmentation", "ability")
    if len(package.input.channels) > 1:
        raise MedXAIError(
            f"'{package.name}' takes {len(package.input.channels)} channels ({', '.join(package.input.channels)}), and a case of a cohort is "
            "one image with its mask; run its cases one by one."
        )
    if settings.units in ((), ("none",)):
        raise MedXAIError("A cohort needs the units that μ is the mean of; name their layers (--units last-2).")
    for name in ("layers", "noise_levels"):
        if getattr(settings, name) != getattr(default, name):
            raise MedXAIError(
                f"--{name.replace('_', '-')} means nothing in a cohort, which is judged by its units; leave it out."
            )


def _case(model, paths, settings, segment, networks, label):
    """One case: steps, and at the end its row."""
    began = time.perf_counter()
    yield Step(0.0, "Reading")
    image, mask = io.read_volume(paths[0]), io.read_mask(paths[1], segment)
    # μ, S_x and Dice come from the units, the input image and the output; other layers and maps kept would cost time alone.
    alone = replace(settings, layers=settings.units, memory_budget=1)
    found = yield from ability(model, [image], alone, mask)
    row = {name: found.scores[name] for name in _SCORES} | {
        "dice": found.scores["output_dice"], "present": found.self_checks["output_present"]["passed"],
        "slices": found.provenance["slices"], "vog": None, "note": "",
    }  # fmt: skip
    if networks:
        yield Step(0.99, "Gradients of the checkpoints")
        try:
            row["vog"] = vog.variance_of_gradients(model, networks, [image], row["slices"], label)
        except MedXAIError as error:
            row["note"] = f"no VoG score: {error.message}"
    return row | {"seconds": round(time.perf_counter() - began, 3)}


def _result(rows, skipped, settings, why) -> Explanation:
    def column(name):
        return np.array([math.nan if row[name] is None else row[name] for row in rows], float)

    dice, mu, image, gain, vogs = (column(name) for name in ("dice", "mean_sa", "separableness", "gain", "vog"))
    present = column("present") > 0
    # Where an output is empty or full μ is 0 or 1 by convention: such a case comes first of those to look at.
    sure = np.where(present, mu, -np.inf)
    ease = np.where(np.isfinite(vogs), -vogs, -np.inf)
    result = Explanation("ability-cohort", "Segmentation ability of a cohort")
    names = [row["case"] for row in rows]
    order = np.argsort(sure, kind="stable")
    rank = np.empty(len(rows), int)
    rank[order] = np.arange(1, len(rows) + 1)
    spread = np.nanstd(vogs) if np.isfinite(vogs).sum() > 1 else math.nan
    blank = [math.nan] * len(skipped)
    columns = {
        "dice": dice, "mean_sa": mu, "separableness": image, "gain": gain, "vog": vogs,
        "vog_normalized": (vogs - mean(vogs)) / spread if spread else vogs * math.nan, "rank": rank,
        "output_voxels": column("output_voxels"), "reference_voxels": column("reference_voxels"), "seconds": column("seconds"),
    }  # fmt: skip
    result.tables["cases"] = Table("Cases", {
        "case": names + list(skipped),
        "state": [("done" if here else "output empty or full") for here in present] + ["skipped"] * len(skipped),
        **{name: list(map(float, values)) + blank for name, values in columns.items()},
        "slice": [_shown(row["slices"]) for row in rows] + [""] * len(skipped),
        "note": [row["note"] for row in rows] + list(skipped.values()),
    })  # fmt: skip
    result.tables["ranking"] = Table("Cases, those to look at first", {
        "rank": list(range(1, len(rows) + 1)), "case": [names[n] for n in order], "mean_sa": [float(mu[n]) for n in order],
        "dice": [float(dice[n]) for n in order],
        "verdict": ["accepted" if sure[n] >= settings.accept else "look at it" for n in order],
    })  # fmt: skip
    _figures(result, dice, mu, image, vogs, present, sure, ease)
    _scores(result, dice, mu, image, gain, vogs, columns["output_voxels"], present, len(skipped))
    if np.isfinite(vogs).any():
        result.notes.append(
            "VoG is that of the mean logit over the voxels predicted by the trained network; its sign is turned round where it is compared with μ "
            "(low: easy)."
        )
    else:
        result.notes.append(f"There is no VoG score: {why or 'no case has one; see the notes in cases.csv.'}")
    if not present.all():
        told = ", ".join(one for one, here in zip(names, present) if not here)
        with_them = estimate(pearson, mu, dice).value
        result.notes.append(
            f"The output of {int((~present).sum())} cases is empty or full ({told}): their μ is 0 or 1 by convention, so they are ranked first and left out of "
            f"the correlations (with them Pearson's would be {with_them:.3f})."
        )
    empty = int((columns["reference_voxels"] == 0).sum())
    if empty:
        result.notes.append(
            f"The annotation of {empty} cases is empty where the network looks: their Dice is 0 or 1 by convention."
        )
    if skipped:
        told = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        result.notes.append(
            f"{len(skipped)} of {len(rows) + len(skipped)} cases were skipped ({told}{'; more in cases.csv' if len(skipped) > 3 else ''})."
        )
    return result


def _figures(result, dice, mu, image, vogs, present, sure, ease) -> None:
    by_mu, by_vog = coverage(sure, dice), coverage(ease, dice)
    best = coverage(dice, dice)
    have = np.isfinite(vogs).any()
    result.tables["coverage"] = Table("Dice of what is kept", {
        "coverage": by_mu["coverage"], "cases": by_mu["cases"], "mean_sa_from": [_number(v) for v in by_mu["from"]],
        "dice": by_mu["mean"], "dice_sd": by_mu["sd"],
        "dice_by_vog": by_vog["mean"] if have else [math.nan] * len(best["mean"]),
        "dice_sd_by_vog": by_vog["sd"] if have else [math.nan] * len(best["mean"]),
        "dice_at_best": best["mean"],
    })  # fmt: skip
    rows, other = percentiles(sure, dice), percentiles(-ease, dice)
    result.tables["percentiles"] = Table("Dice by percentile", {
        "from": rows["from"], "to": rows["to"], "cases": rows["cases"], "mean_sa": rows["score"], "dice": rows["mean"], "dice_sd": rows["sd"],
        "vog": other["score"] if have else [math.nan] * len(rows["from"]),
        "dice_by_vog": other["mean"] if have else [math.nan] * len(rows["from"]),
    })  # fmt: skip
    middle = (np.array(rows["from"]) + np.array(rows["to"])) / 2
    series = {"percentile": middle, "by mean SA score": np.array(rows["mean"])}
    if have:
        series["by VoG score"] = np.array(other["mean"])
    result.curves["accuracy-by-percentile"] = Curve(
        "Dice by percentile", "percentile", series, "Percentile of the score", "Mean Dice of the output"
    )
    for name, title, x, some in (
        ("dice-by-mean-sa", "mean SA score", mu, present),
        ("dice-by-separableness", "separableness", image, np.ones(len(mu), bool)),
        ("dice-by-vog", "VoG score", vogs, np.isfinite(vogs)),
    ):
        if some.any():
            at = np.flatnonzero(some)[np.argsort(x[some], kind="stable")]
            shown = f"{title[0].upper()}{title[1:]}"
            result.curves[name] = Curve(
                f"Dice by {title}", title, {title: x[at], "Dice": dice[at]}, shown, "Dice of the output"
            )


def _scores(result, dice, mu, image, gain, vogs, size, present, skipped) -> None:
    mu = np.where(present, mu, np.nan)  # `estimate` leaves these cases out
    ease = np.where(present, -vogs, np.nan)
    scores = result.scores
    scores.update(
        cases=len(dice), skipped=skipped, without_output=int((~present).sum()), dice=mean(dice), dice_sd=sd(dice)
    )
    scores.update(
        mean_sa=mean(mu), mean_sa_sd=sd(mu), separableness=mean(image), **estimate(np.mean, gain).named("gain")
    )
    linear, ranks = estimate(pearson, mu, dice), estimate(spearman, mu, dice)
    scores.update(**linear.named("pearson"), **ranks.named("spearman"))
    # The plainest rival that needs no annotation: small objects are hard, and scores follow their size.
    rivals = {"size": np.where(present, size, np.nan)} | ({"vog": ease} if np.isfinite(vogs).any() else {})
    for rival, values in rivals.items():
        for name, statistic in (("pearson", pearson), ("spearman", spearman)):
            scores.update(estimate(statistic, -values if rival == "vog" else values, dice).named(f"{rival}_{name}"))

            def beyond(one, other, value, axis, statistic=statistic):
                return statistic(one, value, axis) - statistic(other, value, axis)

            scores.update(estimate(beyond, mu, values, dice).named(f"{name}_beyond_{rival}"))
    known = math.isfinite(ranks.low)
    result.self_checks.update(
        mean_sa_ranks={
            "value": ranks.low, "passed": ranks.low > 0 if known else None,
            "meaning": "Lower end of the 95 % interval of Spearman's correlation of μ with Dice: above 0, a low μ marks a bad output in this cohort.",
        },
        all_cases={
            "value": len(dice), "passed": not skipped,
            "meaning": "Cases used; those that were skipped are in cases.csv, each with its reason.",
        },
    )  # fmt: skip
    if not known:
        result.notes.append(
            f"{linear.n} cases have a μ that says something"
            + (", and all have the same μ or Dice" if linear.n >= 8 else "; an interval needs 8") + "."
        )  # fmt: skip


def _number(value) -> float:
    """−inf, of a case whose μ says nothing, as undefined."""
    return value if math.isfinite(value) else math.nan


def _shown(slices) -> str:
    return ", ".join(slices) if len(slices) < 4 else f"{slices[0]} to {slices[-1]}"
