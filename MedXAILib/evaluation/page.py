"""A cohort on one page: correlation, coverage and accuracy by percentile."""

from __future__ import annotations

import numpy as np

from ..explanation import Explanation
from .figure import new_figure

GREEN, GREY = "#2a9d4a", "#888888"  # μ and VoG, as in the paper's figures


def picture(explanation: Explanation, path) -> None:
    """Write the figures of a cohort as a picture.

    Raises
    ------
    MedXAIError
        ``kind="missing"`` without matplotlib.
    """
    figure = new_figure(11, 8, "report")
    axes = figure.subplots(2, 2).flat
    scores = explanation.scores
    for name, ax, prefix in (
        ("dice-by-mean-sa", axes[0], ""),
        ("dice-by-separableness", axes[1], None),
    ):
        curve = explanation.curves.get(name)
        if curve is None:
            ax.axis("off")
            continue
        x, y = curve.columns.values()
        ax.scatter(x, y, s=14, color=GREEN, alpha=0.7)
        ax.set(xlabel=curve.index_title, ylabel=curve.value_title, title=curve.title)
        if prefix is None:
            ends = [0, 1]
            ax.plot(ends, ends, color=GREY, linewidth=0.8)
        else:
            ax.set_title(f"{curve.title}\n{_told(scores, 'pearson', 'Pearson')}, {_told(scores, 'spearman', 'Spearman')}", fontsize=9)  # fmt: skip
    table = explanation.tables["coverage"].columns
    share = 100 * np.array(table["coverage"])
    for name, title, color, style in (
        ("dice", "lowest mean SA scores rejected", GREEN, "o-"),
        ("dice_by_vog", "highest VoG scores rejected", GREY, "o-"),
        ("dice_at_best", "lowest Dice rejected (the best there can be)", "black", ":"),
    ):
        if np.isfinite(table[name]).any():
            axes[2].plot(share, table[name], style, color=color, label=title)
    axes[2].invert_xaxis()
    axes[2].set(xlabel="Coverage (%)", ylabel="Mean Dice of what is kept", title="Coverage")
    curve = explanation.curves["accuracy-by-percentile"]
    for name, color in zip(list(curve.columns)[1:], (GREEN, GREY)):
        axes[3].plot(curve.columns["percentile"], curve.columns[name], "o-", color=color, label=name)
    axes[3].set(xlabel=curve.index_title, ylabel=curve.value_title, title=curve.title)
    for ax in (axes[2], axes[3]):
        ax.legend(fontsize=8)
    about = explanation.provenance
    figure.suptitle(
        f"{about['model']['name']}, {about['label']}: {scores['cases']} cases, Dice {scores['dice']:.3f} ± {scores['dice_sd']:.3f}, "
        f"{_told(scores, 'gain', 'm(d)')}"
    )  # fmt: skip
    figure.savefig(path)


def _told(scores, name, title) -> str:
    return f"{title} {scores[name]:.2f} [{scores[name + '_low']:.2f}, {scores[name + '_high']:.2f}]"
