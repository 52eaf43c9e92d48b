"""The page of a cycle explanation's `report.png`: the image between its two versions, what was added, R, and the numbers."""

from __future__ import annotations

import numpy as np

from ..explanation import Explanation
from ..volume import Volume
from . import colors, cycle, page, page_filters

GAP = 0.035  # between the pictures and what stands beside them
WORDS = (("G⁻", "_negative", "#2a7fb8"), ("x", "", "#66717f"), ("G⁺", "_positive", "#c2571a"))


def compose(figure, explanation: Explanation, volumes: list[Volume], pictures: dict) -> None:
    """Draw everything; ``pictures`` as `report` makes them."""
    page._head(figure, explanation, volumes)
    left = page._slices(figure, pictures, across=3) + GAP
    y = _answer(figure, explanation, pictures, left, 0.875)
    y = _curve(figure, explanation, left, y)
    y = _table(figure, explanation, left, y)
    y = page.checks(figure, explanation, left, y)
    page._notes(figure, explanation.notes, left, y)
    page.footer(figure, explanation)


def _answer(figure, explanation: Explanation, pictures: dict, left: float, y: float) -> float:
    """What the network answers to the three images, in words and as bars; beside them where the patch lies."""
    known, scores = explanation.provenance, explanation.scores
    right = page.RIGHT
    overview = next((row["whole"] for row in pictures["rows"] if row.get("whole")), None)
    if overview is not None:
        size = 0.085
        _overview(
            figure, overview, (right - size, y - size * page.WIDE / page.HIGH, size, size * page.WIDE / page.HIGH)
        )
        right -= size + 0.015
    title = f"Probability of {known.get('label') or 'the class'}"
    figure.text(left, y, page._cut(title, 48), fontsize=14, fontweight="bold", color=page.INK, va="top")
    y -= 0.032
    for words, which, colour in WORDS:
        value = scores.get(f"probability{which}", np.nan)
        figure.text(left, y, words, fontsize=9.5, color=page.SOFT, va="top")
        wide = right - left - 0.06
        page_filters._bar(figure, left + 0.02, y - 0.0115, wide, 0.009, np.nan_to_num(value), colour)
        told = cycle.probability(value)
        figure.text(right, y, told, fontsize=9.5, fontweight="bold", color=page.INK, va="top", ha="right")
        y -= 0.02
    y -= 0.006
    odds = [scores.get(f"log_odds{which}", np.nan) for _, which, _ in WORDS]
    lines = []
    if np.isfinite(odds).all():
        lines.append("log-odds: G⁻ {:.2f}, x {:.2f}, G⁺ {:.2f}".format(*odds))
    about, place = known.get("explainer") or {}, cycle.looked_at(known)
    if about.get("name"):
        lines.append(f"explainer: {about['name']} (SHA-256 {str(about.get('sha256'))[:12]}…)")
    if place and pictures["scale"]:
        lines.append(f"looked at: {place}")
    for line in lines:
        for part in page.textwrap.wrap(line, page._letters(right - left, 8.5)):
            figure.text(left, y, part, fontsize=8.5, color=page.SOFT, va="top")
            y -= page.LINE
    return y - 0.012


def _overview(figure, overview, place) -> None:
    """The whole slice with the patch outlined."""
    picture, inside = overview
    axes = figure.add_axes(place)
    axes.imshow(picture, interpolation="antialiased")
    page._outline(axes, inside, colors.MASK, 1.2)
    axes.set_axis_off()


def _curve(figure, explanation: Explanation, left: float, y: float) -> float:
    """Probability along the morph from G⁻ over the image to G⁺."""
    curve = explanation.curves.get(cycle.CURVE)
    if curve is None:
        return y
    wide, tall = page.RIGHT - left - 0.02, 0.14
    axes = figure.add_axes((left + 0.02, y - 0.02 - tall, wide, tall))
    x, p = (np.asarray(curve.columns[name], float) for name in ("position", "probability"))
    odds = np.asarray(curve.columns["log_odds"], float)
    fine = np.linspace(x.min(), x.max(), 201)
    between = cycle.logistic(np.interp(fine, x, odds))
    axes.plot(fine, between, color=colors.LINES[0], linewidth=1.9)
    axes.plot(x, p, "o", color=colors.LINES[0], markersize=4.5)
    axes.axhline(0.5, color="#8a95a2", linewidth=0.9, linestyle="--")
    axes.axvline(0, color="#c3cad2", linewidth=0.9)
    axes.set_title(curve.title, **page._TITLE)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["G⁻", "half way", "x", "half way", "G⁺"])
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel(page._cut(curve.value_title, 30), fontsize=9, color=page.SOFT)
    axes.grid(color="#e8ebef", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.tick_params(labelsize=8.5, colors=page.SOFT, length=2.5)
    for side, edge in axes.spines.items():
        edge.set_visible(side in ("left", "bottom"))
        edge.set_color("#c3cad2")
    return y - tall - 0.062


def _table(figure, explanation: Explanation, left: float, y: float, most: int = 6) -> float:
    """Slices or windows, where there are several, likeliest first; else the classes where there are more than two."""
    tables = explanation.tables
    name = next((one for one in ("slices", "windows") if one in tables), "classes")
    table = tables.get(name)
    if table is None or (name == "classes" and len(table.columns["label"]) < 3):
        return y
    first = next(iter(table.columns))
    rows = list(
        zip(*(table.columns[n] for n in (first, "probability_negative", "probability", "probability_positive")))
    )
    rows.sort(key=lambda row: -row[2])
    figure.text(left, y, "What the network answers" if name == "classes" else table.title, fontsize=11, fontweight="bold", color=page.INK, va="top")  # fmt: skip
    y -= 0.021
    xs = [left, *(left + share * (page.RIGHT - left) for share in (0.55, 0.7, 0.85))]
    for x, words in zip(xs, ("class" if name == "classes" else first, "G⁻", "x", "G⁺")):
        figure.text(x, y, words, fontsize=8, color=page.SOFT, va="top")
    for label, *values in rows[:most]:
        y -= page.LINE
        for x, words in zip(xs, (page._cut(str(label), 34), *map(cycle.probability, values))):
            figure.text(x, y, words, fontsize=8.5, color=page.INK, va="top")
    if len(rows) > most:
        y -= page.LINE
        figure.text(left, y, f"… and {len(rows) - most} more in the table", fontsize=8, color=page.SOFT, va="top")
    return y - page.LINE - 0.012
