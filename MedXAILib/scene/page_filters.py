"""The page of a back-projection's `report.png`: the input, the heat over it, the strongest filters, the landmarks."""

from __future__ import annotations

import textwrap

import numpy as np

from ..explanation import Explanation
from ..volume import Volume
from . import filters, page, thumbnails

MOST, PIXELS = 25, 220  # filters that are drawn, and the width of one in the file
BARS = 14  # landmarks that are drawn
WIDE = 0.43  # share of the page for the filters


def compose(figure, explanation: Explanation, volumes: list[Volume], pictures: dict) -> None:
    """Draw everything; ``pictures`` as `report` makes them."""
    page._head(figure, explanation, volumes)
    _views(figure, pictures)
    left = 0.25 if len(pictures["rows"]) == 1 else 0.3
    _filters(figure, explanation, volumes[0], pictures, left)
    left += WIDE + 0.025
    y = _classes(figure, explanation, left, 0.875)
    y = _landmarks(figure, explanation, left, y, pictures["colours"])
    y = _randomisation(figure, explanation, left, y)
    y = page.checks(figure, explanation, left, y)
    page._notes(figure, explanation.notes, left, y)
    page.footer(figure, explanation)


def _views(figure, pictures) -> None:
    """The input and the heat over it: one below the other for a single slice, else side by side for each plane."""
    rows, columns = pictures["rows"], pictures["columns"]
    single = len(rows) == 1
    cells = [(rows[0], c, c, 0) for c in range(len(columns))] if single else [
        (row, c, r, c) for r, row in enumerate(rows) for c in range(len(columns))
    ]  # fmt: skip
    left, wide, top = 0.018, 0.25, 0.885
    size = wide if single else (wide - 0.005) / len(columns)
    tall = size * page.WIDE / page.HIGH
    if single:
        tall = min(tall, 0.345)
        size = tall * page.HIGH / page.WIDE
    for row, c, r, x in cells:
        y = top - 0.021 - (r + 1) * tall - r * (0.072 if single else 0.006)
        axes = figure.add_axes((left + x * (size + 0.005), y, size, tall))
        axes.imshow(row["pictures"][c], interpolation="antialiased")
        axes.set_axis_off()
        column = columns[c]
        if single or r == 0:
            axes.set_title(column.title, fontsize=11.5, color=page.INK, pad=4, fontweight="bold")
        page._annotate(axes, row, pictures, first=c == 0, cross=False)
        for one in column.outlines:
            page._outline(axes, row["masks"][one], pictures["colours"][one], 1.5)
        if single or r == len(rows) - 1:
            page._key(figure, axes, column, pictures)


def _filters(figure, explanation: Explanation, volume: Volume, pictures, left: float) -> None:
    """The strongest filters, five (up to nine of them, three) in a row, each with its number and score."""
    sequence, table = filters.of(explanation), explanation.tables["filters"].columns
    known = {rank: (number, score) for rank, number, score in zip(table["rank"], table["filter"], table["score"])}
    items = sequence.items[:MOST]
    first = items[0][1]
    image = volume.array[filters._box(first.ijk_to_ras, volume.ijk_to_ras, first.shape)]
    across = 5 if len(items) > 9 else 3
    down = -(-len(items) // across)
    label, gap, room = 0.0185, 0.004, 0.885 - 0.045 - 0.075
    size = min(WIDE / across - gap, (room / max(down, 3) - label) * page.HIGH / page.WIDE)
    tall = size * page.WIDE / page.HIGH
    kept = f", {len(items)} of {len(sequence.items)}" if len(items) < len(sequence.items) else ""
    figure.text(left, 0.883, f"The strongest filters{kept}", fontsize=11.5, fontweight="bold", color=page.INK, va="top")
    told = (
        "magnitude of each filter's back-projection, each in a window of its own; number of the filter, and its score"
    )
    figure.text(left, 0.861, told, fontsize=8, color=page.SOFT, va="top")
    for n, (rank, item) in enumerate(items):
        row, column = divmod(n, across)
        x, y = left + column * (size + gap), 0.845 - (row + 1) * (tall + label)
        axes = figure.add_axes((x, y, size, tall))
        axes.imshow(thumbnails.picture(item, image, pictures["window"], PIXELS), interpolation="antialiased")
        axes.set_axis_off()
        number, score = known.get(rank, (rank, np.nan))
        if not item.array.any():
            axes.text(0.5, 0.03, "nothing came back", transform=axes.transAxes, fontsize=7, color="white", ha="center",
                path_effects=page._edge())  # fmt: skip
        figure.text(x, y + tall + 0.002, f"{number}", fontsize=8.5, fontweight="bold", color=page.INK)
        figure.text(x + size, y + tall + 0.002, page._short(float(score)), fontsize=8, color=page.SOFT, ha="right")


def _heading(figure, left: float, y: float, words: str) -> float:
    figure.text(left, y, words, fontsize=11, fontweight="bold", color=page.INK, va="top")
    return y - 0.024


def _small(figure, left: float, y: float, words: str) -> float:
    for line in textwrap.wrap(words, page._letters(page.RIGHT - left, 8)):
        figure.text(left, y, line, fontsize=8, color=page.SOFT, va="top")
        y -= 0.0145
    return y


def _classes(figure, explanation: Explanation, left: float, y: float, most: int = 5) -> float:
    """The classes with their probability, the most probable first."""
    table = explanation.tables.get("classes")
    if table is None:
        return y
    y = _heading(figure, left, y, "What the network answers")
    rows = sorted(zip(table.columns["label"], table.columns["probability"]), key=lambda row: -row[1])
    explained = explanation.provenance.get("label")
    for label, probability in rows[:most]:
        style = dict(color=page.INK, fontsize=8.5, va="top", fontweight="bold" if label == explained else "normal")
        figure.text(left, y, page._cut(str(label), 34), **style)
        figure.text(left + 0.16, y, f"{probability:.3f}", ha="right", **style)
        _bar(figure, left + 0.17, y - 0.0115, page.RIGHT - left - 0.17, 0.009, probability, "#2a5fa5")
        y -= page.LINE
    if len(rows) > most:
        figure.text(left, y, f"… and {len(rows) - most} more", fontsize=8.5, color=page.SOFT, va="top")
        y -= page.LINE
    return y - 0.015


def _randomisation(figure, explanation: Explanation, left: float, y: float, most: int = 8) -> float:
    """How much of the heat stays when the weights of the top layers are replaced, one layer more in each row."""
    table = explanation.tables.get("randomisation")
    if table is None:
        return y
    y = _heading(figure, left, y, "Heat when weights are shuffled")
    told = "rank correlation with the heat above, shuffled from the last layer down to this one"
    y = _small(figure, left, y + 0.003, told) - 0.002
    rows = list(zip(*(table.columns[name] for name in ("layer", "spearman"))))
    for layer, correlation in rows[:most]:
        figure.text(left, y, page._cut(str(layer), 34), color=page.INK, fontsize=8.5, va="top")
        figure.text(left + 0.16, y, page._short(float(correlation)), color=page.INK, fontsize=8.5, va="top", ha="right")
        _bar(figure, left + 0.17, y - 0.0115, page.RIGHT - left - 0.17, 0.009, correlation, "#66717f")
        y -= page.LINE
    if len(rows) > most:
        figure.text(left, y, f"… and {len(rows) - most} more in the table", fontsize=8.5, color=page.SOFT, va="top")
        y -= page.LINE
    return y - 0.015


def _bar(figure, x, y, wide, tall, share, colour) -> None:
    from matplotlib.patches import Rectangle

    figure.add_artist(Rectangle((x, y), wide, tall, color="#eceff2", linewidth=0))
    figure.add_artist(Rectangle((x, y), wide * float(np.clip(share, 0, 1)), tall, color=colour, linewidth=0))


def _landmarks(figure, explanation: Explanation, left: float, y: float, colours: dict) -> float:
    """The share of the heat in each landmark with its interval, against the landmark's share of the area."""
    table = explanation.tables.get("landmarks")
    if table is None or not table.columns["landmark"]:
        return y
    order = range(len(table.columns["landmark"]))
    if len(order) > BARS:  # those with most heat
        order = sorted(order, key=lambda n: -np.nan_to_num(table.columns["heat_share"][n]))[:BARS]
    columns = {name: [values[n] for n in order] for name, values in table.columns.items()}
    names, count = [page._cut(str(name), 23) for name in columns["landmark"]], len(columns["landmark"])
    y = _heading(figure, left, y, f"{table.title}: share of the heat")
    tall = 0.0195 * count
    axes = figure.add_axes((left + 0.09, y - tall, page.RIGHT - left - 0.09 - 0.032, tall))
    at = np.arange(count)
    heat, area = np.array(columns["heat_share"], float), np.array(columns["area_share"], float)
    low, high = np.array(columns["low"], float), np.array(columns["high"], float)
    axes.barh(at, heat, 0.62, color="#e08a2e", label="heat (95 % interval over filters)")
    known = np.isfinite(low)
    axes.hlines(at[known], low[known], high[known], color=page.INK, linewidth=1.3)
    axes.vlines(area, at - 0.42, at + 0.42, color="#2a5fa5", linewidth=2.2, label="area, what chance would give")
    most = float(np.nanmax([*heat, *area, *high[known], 0.05]))
    for n, ratio in enumerate(np.array(columns["ratio"], float)):
        axes.text(
            most * 1.08, n, "–" if not np.isfinite(ratio) else f"× {ratio:.2g}", fontsize=8, color=page.INK, va="center"
        )
    for n, name in enumerate(columns["landmark"]):  # the colour of its outline over the heat
        if name in colours:
            figure.text(left, y - (n + 0.5) * tall / count, "■", fontsize=8, color=colours[name], va="center")
    axes.set_xlim(0, most * 1.04)
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_yticks(at, names, fontsize=8.5, color=page.INK)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7.5, colors=page.SOFT, length=2.5, pad=1.5)
    for side, edge in axes.spines.items():
        edge.set_visible(side == "bottom")
        edge.set_color("#c3cad2")
    axes.legend(
        loc="upper left", bbox_to_anchor=(left, y - tall - 0.018), bbox_transform=figure.transFigure, ncols=2, fontsize=8, frameon=False,
        labelcolor=page.SOFT, handlelength=1.2, borderpad=0, borderaxespad=0, columnspacing=1.2,
    )  # fmt: skip
    y -= tall + 0.036
    more = len(table.columns["landmark"]) - count
    words = (
        f"… and {more} more in the table. " if more else ""
    ) + "×: heat share by area share; 1 is no more than by chance."
    return _small(figure, left, y, words) - 0.015
