"""The picture of `medxai reproduce dream`: like Fig. 4 and 5 of Couteaux et al. 2019."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ..evaluation.figure import new_figure
from .liver import KINDS, MIDDLE
from .reproduce_tables import EVOLVED

COLORS = {"real-like": "#2f6db3", "synthetic": "#d98a1f", "elongated": "#2a9d4a"}
GREY = "#777777"
WINDOW = (-50.0, 230.0)  # HU, of the pictures


def reproduce_picture(result, path) -> None:
    """Write the picture; the dreams are read from ``dreams/`` beside it.

    Raises
    ------
    MedXAIError
        ``kind="missing"`` without matplotlib.
    """
    path = Path(path)
    marking, tumours = "marking" in result.tables, "tumours" in result.tables
    figure = new_figure(16, 5.4 * (marking + tumours) + 0.5, "report")
    quick = "QUICK LOOK, no figures to quote.  " if result.provenance["settings"]["quick"] else ""
    figure.suptitle(
        f"{quick}DeepDream's controlled experiments (Couteaux et al. 2019) on liver phantoms; baseline Dice {result.scores['baseline_dice']:.2f}, "
        f"threshold on intensity {result.scores['threshold_dice_real-like']:.2f}",
        fontsize=11, color="#b03020" if quick else "black",
    )  # fmt: skip
    parts = np.atleast_1d(figure.subfigures(marking + tumours, 1))
    if marking:
        _marking(result, parts[0], path.parent / "dreams")
    if tumours:
        _tumours(result, parts[-1], path.parent / "dreams")
    figure.savefig(path)


def _shown(ax, folder, name, start, title, neuron, color="black") -> None:
    """The surroundings of the pixel whose logit was raised (row, column): the dream, and the outline of what the network sees."""
    from .. import io

    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=9, color=color)
    files = [folder / f"{name}-{start}-{what}.nrrd" for what in ("dream", "mask")]
    if not all(file.exists() for file in files):  # of a network or a dream that failed
        ax.text(0.5, 0.5, "no dream", transform=ax.transAxes, ha="center", fontsize=9)
        return
    dream, mask = (io.read_volume(file).array[0] for file in files)
    ax.imshow(dream, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1], interpolation="nearest")
    if not mask.any():
        ax.set_title(f"{title}: no tumour", fontsize=9, color=color)
    else:
        ax.contour(mask, [0.5], colors="#ffd000", linewidths=0.9)
    row, column = neuron
    ax.plot(column, row, "+", color="red", markersize=9, markeredgewidth=1.0)
    ax.set(xlim=(column - 30.5, column + 30.5), ylim=(row + 30.5, row - 30.5), facecolor="black")


def _marking(result, figure, folder) -> None:
    from matplotlib import colormaps

    table, by_p = result.tables["marking"].columns, result.tables["marking-by-p"].columns
    pictures, rest = figure.subfigures(1, 2, width_ratios=(1.0, 2.4))
    values = by_p["p"]
    shades = {p: colormaps["viridis"](0.92 * n / max(1, len(values) - 1)) for n, p in enumerate(values)}
    seed = min(table["seed"])
    axes = np.atleast_1d(pictures.subplots(2, 1))
    for ax, p in zip(axes, (values[0], values[-1])):
        n = next(i for i, (a, b) in enumerate(zip(table["p"], table["seed"])) if (a, b) == (p, seed))
        _shown(
            ax,
            folder,
            table["network"][n],
            "noise",
            f"(a) dream from white noise, p = {p:g} %, training {seed}",
            MIDDLE,
        )
    axes[1].set_xlabel(
        "red cross: the pixel whose logit is raised\nyellow: what the network then sees (61 × 61 of 96 × 96 pixels)",
        fontsize=8,
    )
    one, two = rest.subplots(1, 2)
    curve, other = result.curves["characteristic"], result.curves["characteristic-45"].columns
    for p in values:
        name = f"p = {p:g} %"
        one.plot(curve.columns["step"], curve.columns[name], color=shades[p], label=f"{p:g}", linewidth=2)
        one.plot(other["step"], other[name], ":", color=shades[p], linewidth=1)
    one.set(xlabel="Step", ylabel="Strongest response to a line segment [HU]", ylim=(0, None))
    one.set_title(
        "(b) characteristic feature along the dream\n(full: 135°, the marking's; dotted: 45°, the control)", fontsize=9
    )
    one.legend(title="p [%]", fontsize=8, ncols=2)
    at, jitter = np.arange(len(values)), np.random.default_rng(0)
    place = {p: n for n, p in enumerate(values)}
    right = two.twinx()
    for ax, column, average, color, mark, label in (
        (two, "dice_unmarked", "dice_unmarked", "#2f6db3", "o", "Dice, unmarked test set"), (two, "dice_marked", "dice_marked", "#9bb9dd", "v", "Dice, marked test set"),
        (two, "marking_alone", "marking_alone", "#2a9d4a", "^", "marking alone, on healthy liver: share taken for tumour"),
        (right, "end", "end", "#c0392b", "s", "feature at the end, 135°"), (right, "end_45", "end_45", "#e6a79f", "D", "the same, 45° (control)"),
    ):  # fmt: skip
        x = np.array([place[p] for p in table["p"]]) + jitter.uniform(-0.1, 0.1, len(table["p"]))
        ax.plot(x, table[column], mark, color=color, alpha=0.6, markersize=4)
        ax.plot(
            at,
            by_p[average],
            "-",
            color=color,
            label=label,
            linewidth=2 if average in ("dice_unmarked", "end", "marking_alone") else 1,
        )
    two.set_xticks(at, [f"{p:g}" for p in values])
    two.set(xlabel="Probability p of the marking [%]", ylim=(0, 1.02))
    two.set_ylabel("Dice, or share", color="#2f6db3")
    right.set_ylabel("Characteristic feature at the end [HU]", color="#c0392b")
    right.set_ylim(0, None)
    handles = [h for ax in (two, right) for h in ax.get_legend_handles_labels()[0]]
    two.legend(
        handles,
        [h.get_label() for h in handles],
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
        ncols=2,
        frameon=False,
    )
    scores = result.scores
    two.set_title(
        "(c) points: trainings, lines: means. Spearman of the feature with\n"
        f"lost Dice {_told(scores, 'spearman_loss_end')}, with the share of the marking alone {_told(scores, 'spearman_alone_end')}",
        fontsize=9,
    )
    figure.suptitle(
        f"Section 3.1, Fig. 4: tumours marked with lines of 135° with probability p in training. The feature evolved (rise > {EVOLVED:g} × that of p = 0) in "
        f"{_hits(scores, 'relied_evolved')} networks that relied on it, stayed in {_hits(scores, 'close_unmoved')} marked ones close to the baseline", fontsize=10,
    )  # fmt: skip


def _hits(scores, name) -> str:
    n = scores[f"{name}_of"]
    return f"{round(scores[name] * n) if n else 0} of {n}"


def _told(scores, name) -> str:
    value, low, high = (scores[name + end] for end in ("", "_low", "_high"))
    if math.isnan(value):
        return "–"
    return f"{value:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low == low else "")


def _tumours(result, figure, folder) -> None:
    table = result.tables["tumours"].columns
    seed = min(table["seed"])
    pictures, rest = figure.subfigures(1, 2, width_ratios=(1.0, 3.1))
    for ax, kind in zip(pictures.subplots(3, 1), KINDS):
        n = next(i for i, (a, b) in enumerate(zip(table["kind"], table["seed"])) if (a, b) == (kind, seed))
        neuron = [v if v == v else m for v, m in zip((table["neuron_j"][n], table["neuron_i"][n]), MIDDLE)]
        title = f"{kind}, training {seed}, phantom {table['patient'][n]}"
        _shown(ax, folder, table["network"][n], "liver", title, neuron, COLORS[kind])
    axes = rest.subplots(1, 3)
    for ax, name, letter in zip(axes, ("rms", "diameter", "elongation"), "abc"):
        curve = result.curves[name]
        for kind in KINDS:
            x, middle, spread, dreams = (curve.columns[one] for one in ("step", kind, f"{kind} SD", f"{kind} dreams"))
            enough = dreams >= max(1, dreams.max() / 2)  # a mean over few dreams jumps with each that joins in
            x, middle, spread = x[enough], middle[enough], spread[enough]
            ax.plot(x, middle, color=COLORS[kind], label=kind, linewidth=2)
            ax.fill_between(x, middle - spread, middle + spread, color=COLORS[kind], alpha=0.15, linewidth=0)
            ax.axhline(result.scores[f"held_out_{name}_{kind}"], color=COLORS[kind], linewidth=1, linestyle=":")
        ax.set(xlabel="Step", ylabel=curve.value_title, xlim=(0, curve.columns["step"][-1]))
        first, second = ("real-like", "synthetic") if name != "elongation" else ("elongated", "synthetic")
        ax.set_title(
            f"({letter}) {first} − {second}, last step:\n{_told(result.scores, f'{name}_{first}_minus_{second}')}",
            fontsize=9,
        )
    axes[0].legend(title="trained on tumours that are", fontsize=8, loc="upper right")
    settings = result.provenance["settings"]
    figure.suptitle(
        f"Section 3.2, Fig. 5: dreams from {settings['patients']} healthy livers × {len(settings['seeds'])} trainings; mean ± SD, [95 % interval] over patients and trainings; "
        "dotted: true held-out tumours; from the step at which half of the dreams show a tumour", fontsize=10,
    )  # fmt: skip
