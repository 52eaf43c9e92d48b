"""The page of a counterfactual's `report.png`: the image before and after, the mask with the region, what was changed, and the numbers."""

from __future__ import annotations

import numpy as np

from ..explanation import Explanation
from ..volume import Volume
from . import charts, impact, page, page_filters

GAP = 0.035  # between the pictures and what stands beside them


def compose(figure, explanation: Explanation, volumes: list[Volume], pictures: dict) -> None:
    """Draw everything; ``pictures`` as `report` makes them."""
    page._head(figure, explanation, volumes)
    left = page._slices(figure, pictures) + GAP
    y = _answer(figure, explanation, left, 0.875)
    y = _curve(figure, explanation, left, y)
    y = _tables(figure, explanation, left, y)
    y = page.checks(figure, explanation, left, y)
    page._notes(figure, explanation.notes, left, y)
    page.footer(figure, explanation)


def _answer(figure, explanation: Explanation, left: float, y: float) -> float:
    """What the network answers before and after, in words and as two bars; and what took the region's place."""
    known, scores = explanation.provenance, explanation.scores
    before, after = scores.get("probability_before", np.nan), scores.get("probability_after", np.nan)
    title = f"Probability of {known.get('label') or 'the class'}: {_probability(before)} → {_probability(after)}"
    figure.text(left, y, title, fontsize=14, fontweight="bold", color=page.INK, va="top")
    y -= 0.032
    for words, value, colour in (("before", before, "#66717f"), ("after", after, "#2a5fa5")):
        figure.text(left, y, words, fontsize=8.5, color=page.SOFT, va="top")
        page_filters._bar(
            figure, left + 0.035, y - 0.0115, page.RIGHT - left - 0.035, 0.009, np.nan_to_num(value), colour
        )
        y -= page.LINE
    odds = [scores.get(f"log_odds_{when}", np.nan) for when in ("before", "after")]
    if np.isfinite(odds).all():
        words = f"log-odds {odds[0]:.2f} → {odds[1]:.2f} (the region, S > θ, inpainted; nothing else is changed)"
        figure.text(left, y, words, fontsize=8, color=page.SOFT, va="top")
        y -= page.LINE
    for words, bad in impact.sentences(explanation.provenance):
        for line in page.textwrap.wrap(words, page._letters(page.RIGHT - left, 8.5)):
            style = dict(color=page.BAD, fontweight="bold") if bad else dict(color=page.SOFT)
            figure.text(left, y, line, fontsize=8.5, va="top", **style)
            y -= page.LINE
    return y - 0.012


def _curve(figure, explanation: Explanation, left: float, y: float) -> float:
    """Probability and area along the optimisation."""
    curve = explanation.curves.get(impact.CURVE)
    if curve is None:
        return y
    wide, tall = page.RIGHT - left - 0.02, 0.13
    axes = figure.add_axes((left + 0.02, y - 0.02 - tall, wide, tall))
    names = charts.shown(curve, page.MOST_CURVES)
    page._lines(axes, curve, names)
    axes.set_title(curve.title, **page._TITLE)
    axes.set_xlabel(curve.index_title or curve.index, fontsize=9, color=page.SOFT, labelpad=1)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.005, 0.985), ncols=4, fontsize=8, frameon=False, labelcolor=page.INK, handlelength=1.4
    )  # fmt: skip
    return y - tall - 0.07


def _probability(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "–"


def _tables(figure, explanation: Explanation, left: float, y: float) -> float:
    """The region in numbers and the classes, side by side where there is room, and the parts of the region."""
    wide = page.RIGHT - left > 0.4
    half = left + 0.5 * (page.RIGHT - left)
    below = _numbers(figure, explanation, left, half if wide else page.RIGHT, y)
    y = min(below, _classes(figure, explanation, half if wide else left, y if wide else below))
    return _components(figure, explanation, left, y, 4 if wide else 2)


def _heading(figure, left: float, y: float, words: str) -> float:
    figure.text(left, y, words, fontsize=11, fontweight="bold", color=page.INK, va="top")
    return y - 0.021


def _numbers(figure, explanation: Explanation, left: float, right: float, y: float) -> float:
    rows = impact.measures(explanation.scores)
    if not rows:
        return y
    y = _heading(figure, left, y, "Region" + (" and annotation" if "dice" in explanation.scores else ""))
    for title, value in rows:
        figure.text(left, y, title, fontsize=8.5, color=page.SOFT, va="top")
        figure.text(left + 0.42 * (right - left), y, value, fontsize=8.5, color=page.INK, va="top")
        y -= page.LINE
    return y - 0.012


def _classes(figure, explanation: Explanation, left: float, y: float, most: int = 5) -> float:
    """The classes before and after, the most probable before first."""
    table = explanation.tables.get("classes")
    if table is None:
        return y
    y = _heading(figure, left, y, "What the network answers")
    xs = [left, *(left + share * (page.RIGHT - left) for share in (0.5, 0.75))]
    for x, words in zip(xs, ("class", "before", "after")):
        figure.text(x, y, words, fontsize=8, color=page.SOFT, va="top")
    rows = sorted(
        zip(*(table.columns[n] for n in ("label", "probability", "probability_after"))), key=lambda row: -row[1]
    )
    for label, *values in rows[:most]:
        y -= page.LINE
        bold = "bold" if label == explanation.provenance.get("label") else "normal"
        for x, words in zip(xs, (page._cut(str(label), 30), *map(_probability, values))):
            figure.text(x, y, words, fontsize=8.5, color=page.INK, va="top", fontweight=bold)
    if len(rows) > most:
        y -= page.LINE
        figure.text(left, y, f"… and {len(rows) - most} more in the table", fontsize=8, color=page.SOFT, va="top")
    return y - page.LINE - 0.012


def _components(figure, explanation: Explanation, left: float, y: float, most: int) -> float:
    table = explanation.tables.get("components")
    if table is None or not len(next(iter(table.columns.values()), ())):
        return y
    y = _heading(figure, left, y, "Parts of the region")
    xs = np.linspace(left, page.RIGHT, len(table.columns) + 1)[:-1]
    words = {
        "component": "part",
        "mm2": "mm²",
        "mm3": "mm³",
        "r": "R [mm]",
        "a": "A [mm]",
        "s": "S [mm]",
        "share_of_drop": "drop alone",
    }
    for x, one in zip(xs, table.columns):
        figure.text(x, y, words.get(one, one).replace("_", " "), fontsize=8, color=page.SOFT, va="top")
    rows = list(zip(*table.columns.values()))
    for row in rows[:most]:
        y -= page.LINE
        for x, value in zip(xs, row):
            figure.text(x, y, page._cell(value), fontsize=8.5, color=page.INK, va="top")
    if len(rows) > most:
        y -= page.LINE
        figure.text(left, y, f"… and {len(rows) - most} more in the table", fontsize=8, color=page.SOFT, va="top")
    return y - page.LINE - 0.012
