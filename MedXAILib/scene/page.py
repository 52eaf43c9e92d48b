"""The page of `report.png`: where pictures, curves, verdicts, self-checks and notes stand on it. Drawn with matplotlib."""

from __future__ import annotations

import textwrap
from dataclasses import replace

import numpy as np

from ..explanation import Explanation, Layer
from ..volume import Volume
from . import charts, colors, layers
from .judge import judgement
from .pick import FILL, layer_title

WIDE, HIGH, DPI, RIGHT = 18.0, 11.0, 130, 0.982  # inches, dots per inch, right margin as a share
INK, SOFT, GOOD, WARN, BAD = "#1c2530", "#66717f", "#1f7a4d", "#9a6700", "#b3361b"
VERDICTS = {"entered": GOOD, "overshot": WARN, "left": BAD, "approaching": "#2a5fa5"}
MOST_CURVES, LINES, LINE = 8, 19, 0.0155  # curves in a chart; lines below the charts and their height


def compose(figure, explanation: Explanation, volumes: list[Volume], pictures: dict) -> None:
    """Draw everything; ``pictures`` as `report` makes them."""
    _head(figure, explanation, volumes)
    left = _slices(figure, pictures) + 0.05
    _curves(figure, explanation, left)
    _foot(figure, explanation, left)


def _slices(figure, pictures, across: int = 2) -> float:
    """Lay the pictures out and return where they end on the right; those of a single slice in rows of ``across``."""
    cells = [(row, c, r, c) for r, row in enumerate(pictures["rows"]) for c in range(len(pictures["columns"]))]
    if len(pictures["rows"]) == 1 and len(cells) > 2:  # a single slice: larger
        cells = [(row, c, c // across, c % across) for row, c, _, _ in cells]
    down, across = 1 + max(cell[2] for cell in cells), 1 + max(cell[3] for cell in cells)
    left, top, bottom, gap, title, key = 0.018, 0.885, 0.06, 0.005, 0.021, 0.042
    keys = down if len(pictures["rows"]) == 1 else 1
    room = top - bottom - title * keys - key * keys - gap * WIDE / HIGH * (down - 1)
    size = min(0.62 / across - gap, room / down * HIGH / WIDE)
    tall = size * WIDE / HIGH
    for row, c, r, x in cells:
        extra = r * (title + key) if keys > 1 else 0
        y = top - title - extra - (r + 1) * tall - r * gap * WIDE / HIGH
        axes = figure.add_axes((left + x * (size + gap), y, size, tall))
        axes.imshow(row["pictures"][c], interpolation="antialiased")
        axes.set_axis_off()
        column = pictures["columns"][c]
        if r == 0 or keys > 1:
            axes.set_title(column.title, fontsize=11.5, color=INK, pad=4, fontweight="bold")
        image = column.layer is not None and pictures["layers"][column.layer].kind == "image"
        _annotate(axes, row, pictures, first=c == 0, cross=not (image and row["masks"]))
        for n, one in enumerate(column.outlines):
            width = 2.8 if n + 1 < len(column.outlines) else 1.3  # where two coincide, both are seen
            _outline(axes, row["masks"][one], pictures["colours"][one], width, one == column.filled)
        if r == down - 1 or keys > 1:
            _key(figure, axes, column, pictures)
    if pictures["steps"][1] and len(cells) == 3 and keys == 2:
        y = top - 2 * title - key - 2 * tall - gap * WIDE / HIGH
        _steps(figure, pictures, (left + size + gap, y, size, tall))
    return left + across * (size + gap)


def _steps(figure, pictures, cell) -> None:
    """The way to the result, small, in the cell that is left."""
    x, y, wide, tall = cell
    heading, steps = pictures["steps"]
    for n, (title, picture, inside) in enumerate(steps):
        row, column = divmod(n, 2)
        axes = figure.add_axes((x + column * wide * 0.505, y + (1 - row) * tall * 0.505, wide * 0.495, tall * 0.495))
        axes.imshow(picture, interpolation="antialiased")
        axes.set_axis_off()
        for m, mask in enumerate(inside):
            _outline(
                axes,
                mask,
                colors.DISTINCT[m % len(colors.DISTINCT)],
                0.9,
                fill=any(c.filled for c in pictures["columns"]),
            )
        axes.text(
            0.03, 0.97, title, transform=axes.transAxes, fontsize=9, color="white", va="top", path_effects=_edge()
        )
    figure.text(x + wide / 2, y + tall * 1.0 + 0.006, heading, fontsize=11.5, color=INK, fontweight="bold", ha="center")  # fmt: skip


def _edge(width: float = 2.2) -> list:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground="black")]


def _annotate(axes, row, pictures, first: bool, cross: bool) -> None:
    """Letters, place, scale and, unless an outline says where to look, the cross on the neuron."""
    size, edge = pictures["size"], _edge()
    light = dict(color="white", path_effects=edge)
    for side, (x, y) in {
        "left": (0.015, 0.5), "right": (0.985, 0.5), "top": (0.5, 0.985), "bottom": (0.5, 0.015),
    }.items():  # fmt: skip
        axes.text(
            x, y, row["letters"][side], transform=axes.transAxes, fontsize=10, fontweight="bold",
            ha={"left": "left", "right": "right"}.get(side, "center"), va={"top": "top", "bottom": "bottom"}.get(side, "center"),
            **light,
        )  # fmt: skip
    if first:
        axes.text(
            0.015, 0.985, row["place"], transform=axes.transAxes, fontsize=9,
            va="top", linespacing=1.3, **light,
        )  # fmt: skip
    if pictures["scale"]:
        _scale(axes, pictures["field"], size, edge)
    if cross and row["pixel"] is not None:
        x, y = row["pixel"]
        near, far = size * 0.018, size * 0.05
        for (x0, x1), (y0, y1) in (
            ((x - far, x - near), (y, y)), ((x + near, x + far), (y, y)),
            ((x, x), (y - far, y - near)), ((x, x), (y + near, y + far)),
        ):  # fmt: skip
            axes.plot([x0, x1], [y0, y1], color="#4dffa1", linewidth=1.3, path_effects=edge[:1])
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)


def _scale(axes, field: float, size: int, edge) -> None:
    """A bar of a round number of millimetres; ``field`` mm are ``size`` pixels."""
    bar = _round(field / 5)
    length = bar / field * size
    y = size * 0.955
    axes.plot(
        [size * 0.03, size * 0.03 + length],
        [y, y],
        color="white",
        linewidth=2,
        path_effects=edge,
        solid_capstyle="butt",
    )
    axes.text(size * 0.03, y - size * 0.02, f"{bar:g} mm", fontsize=8, va="bottom", color="white", path_effects=edge)


def _outline(axes, inside, colour, width: float = 1.3, fill: bool = False) -> None:
    """Outline a mask of the picture's pixels, and fill it."""
    from matplotlib.patheffects import withStroke

    if fill:
        axes.imshow(np.concatenate([inside[..., None] * np.array(colour), FILL * inside[..., None]], -1))
    if inside.any() and not inside.all():
        lines = axes.contour(inside.astype(float), [0.5], colors=[colour], linewidths=width)
        lines.set_path_effects([withStroke(linewidth=width + 1.1, foreground=(0, 0, 0, 0.55))])


def _key(figure, axes, column, pictures) -> None:
    """Below a column: its window and its outlines, or its colour bar."""
    from matplotlib.colors import ListedColormap
    from matplotlib.lines import Line2D

    box, name = axes.get_position(), column.layer
    unit = f" {pictures['unit']}" if pictures["unit"] else ""
    if name is None or pictures["layers"][name].kind == "image":
        low, high = pictures["window"]
        words = f"window {_near(low, high - low)} to {_near(high, high - low)}{unit}"
        if not column.filled:
            figure.text(box.x0, box.y0 - 0.008, words, fontsize=9, color=SOFT, va="top")
        lines = [
            Line2D([], [], color=pictures["colours"][one], linewidth=3, label=one + (" (filled)" if one == column.filled else ""))
            for one in column.outlines
        ]  # fmt: skip
        if lines:
            axes.legend(
                handles=lines, loc="upper left", bbox_to_anchor=(box.x0, box.y0 - (0.006 if column.filled else 0.024)),
                bbox_transform=figure.transFigure, ncols=1 if column.filled else 3, fontsize=9, frameon=False, labelcolor=SOFT,
                handlelength=1.3, handletextpad=0.5, columnspacing=1.2, labelspacing=0.2, borderpad=0, borderaxespad=0,
            )  # fmt: skip
        return
    layer, (low, high) = pictures["layers"][name], pictures["limits"][name]
    table = colors.signed() if layer.kind == "signed" else colors.positive()
    shown = table[:, :3] * table[:, 3:] + 0.93 * (1 - table[:, 3:])
    if layer.kind != "signed":
        shown[: int(len(shown) * (layers.least(layer) - low) / (high - low))] = 0.93
    bar = figure.add_axes((box.x0 + 0.008, box.y0 - 0.014, box.width - 0.016, 0.009))
    bar.imshow(np.linspace(low, high, 512)[None], aspect="auto", extent=(low, high, 0, 1), cmap=ListedColormap(shown))
    bar.set_yticks([])
    bar.set_xticks(np.linspace(low, high, 5), [_short(v) for v in np.linspace(low, high, 5)], fontsize=8, color=SOFT)
    bar.tick_params(length=2, pad=1.5, color=SOFT)
    bar.set_xlabel(_bar_title(layer, name, low, high), fontsize=8.5, color=SOFT, labelpad=0)
    for edge in bar.spines.values():
        edge.set_visible(False)


def _bar_title(layer: Layer, name: str, low: float, high: float) -> str:
    title = layer.title or name
    title += " · blue below 0, red above" if layer.kind == "signed" else ""
    least, most = float(np.nanmin(layer.volume.array)), float(np.nanmax(layer.volume.array))
    if most > high + 0.01 * (high - low) or least < low - 0.01 * (high - low):
        title += f" · extremes {_short(least)} to {_short(most)}"
    return title


def _head(figure, explanation: Explanation, volumes: list[Volume]) -> None:
    known = explanation.provenance
    model = known.get("model") or {}
    model = model if isinstance(model, dict) else {"name": str(model)}
    sha = (model.get("sha256") or known.get("sha256") or "")[:12]
    figure.text(0.018, 0.972, explanation.title, fontsize=20, fontweight="bold", color=INK, va="top")
    words = [model.get("name", ""), f"SHA-256 {sha}…" if sha else ""]
    figure.text(0.018, 0.935, "   ".join(w for w in words if w), fontsize=12.5, color=INK, va="top")
    facts = [f"volume: {', '.join(v.name for v in volumes)}"]
    if known.get("label"):
        facts.append(f"label: {known['label']}")
    if known.get("reference"):
        segment = f" '{known['segment']}'" if known.get("segment") else ""
        facts.append(f"scored against: {known['reference']}{segment}")
    if known.get("neuron_ras") is not None:
        facts.append("neuron: RAS " + ", ".join(f"{v:.1f}" for v in known["neuron_ras"]) + " mm")
    if known.get("neuron_ijk") is not None:
        facts.append("IJK " + ", ".join(str(v) for v in known["neuron_ijk"]))
    figure.text(0.018, 0.911, _cut(" · ".join(facts), 170), fontsize=10, color=SOFT, va="top")
    figure.add_artist(_rule(0.018, RIGHT, 0.895))
    if "mean_sa" in explanation.scores:
        state, words = judgement(explanation.scores["mean_sa"], (known.get("settings") or {}).get("accept", 0.5))
        colour = {"green": GOOD, "amber": WARN, "red": BAD}.get(state, SOFT)
        figure.text(RIGHT, 0.972, words, fontsize=16, fontweight="bold", color=colour, va="top", ha="right")
        told = "mean agreement (Dice) of the last layers' units with the thresholded output"
        figure.text(RIGHT, 0.938, told, fontsize=9, color=SOFT, va="top", ha="right")


def _rule(x0, x1, y):
    from matplotlib.lines import Line2D

    return Line2D([x0, x1], [y, y], color="#d5dae0", linewidth=1)


def _curves(figure, explanation: Explanation, left: float) -> None:
    curves = explanation.curves
    if "transition" in curves:
        _charts(figure, explanation, left)
        return
    raw, normal = curves.get("curves"), curves.get("normalized")
    raw = raw or next(iter(curves.values()), None)
    width = RIGHT - left
    if raw is None:
        return
    share, half = curves.get("sensitivity"), width
    if share is not None:
        half = (width - 0.045) / 2
        axes = figure.add_axes((left + width - half, 0.715, half, 0.145))
        names = charts.shown(share, MOST_CURVES)
        _lines(axes, share, names)
        axes.set_title(share.title, **_TITLE)
        axes.set_xlabel(share.index_title, fontsize=9, color=SOFT, labelpad=1)
        axes.legend(fontsize=7.5, frameon=False, labelcolor=INK, handlelength=1.2, borderpad=0.2, labelspacing=0.2)
    axes = figure.add_axes((left, 0.715, half, 0.145))
    columns = charts.shown(raw, MOST_CURVES)
    _lines(axes, raw, columns)
    axes.set_title(raw.title if len(columns) > 1 else columns[0].replace("_", " ").capitalize(), **_TITLE)
    unit = {raw.units.get(name, "") for name in columns}
    axes.set_ylabel(unit.pop() if len(unit) == 1 else raw.value_title, fontsize=9, color=SOFT)
    axes.set_xlabel(raw.index_title or raw.index, fontsize=9, color=SOFT, labelpad=1)
    if len(columns) > 1:
        _legend(axes, 2)
    axes = figure.add_axes((left, 0.445, width, 0.2))
    features = normal
    title = "Features, normalized by the reference"
    if features is None:
        others = {n: v for n, v in raw.columns.items() if n not in columns and n != raw.index}
        features = None if not others else _scaled(raw, others)
        title = "Features, each scaled to its own range (no reference given)"
    if features is None:
        axes.remove()
        return
    names = charts.shown(features, MOST_CURVES)
    axes.set_title(title + (f" · {len(names)} of {len(features.columns) - 1}" if len(names) < len(features.columns) - 1 else ""), **_TITLE)  # fmt: skip
    for band, (low, high) in features.bands.items():
        axes.axhspan(low, high, color="#e3efe6", zorder=0, label=band)
        axes.axhline(low, color="#8aa894", linewidth=0.9, linestyle="--", zorder=1)
        axes.axhline(high, color="#8aa894", linewidth=0.9, linestyle="--", zorder=1)
    _lines(axes, features, names)
    finite = [v[np.isfinite(v)] for v in (np.asarray(features.columns[n], float) for n in names)]
    if normal is not None and max((np.abs(v).max() for v in finite if len(v)), default=0) > 12:
        axes.set_yscale("symlog", linthresh=3)  # the band stays readable beside a feature that runs away
        axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.set_ylabel("z (reference SD)" if normal is not None else "share of range", fontsize=9, color=SOFT)
    axes.set_xlabel(features.index_title or features.index, fontsize=9, color=SOFT, labelpad=1)
    _legend(axes, 3, below=True)


def _charts(figure, explanation: Explanation, left: float) -> None:
    """The first curve across, the next two below it."""
    order = ("transition", "ranking", "noise-effect")
    names = [name for name in order if name in explanation.curves]
    gap = 0.045
    half = (RIGHT - left - gap) / 2
    rest = [(left, half), (left + half + gap, half)] if len(names) > 2 else [(left, RIGHT - left)]
    for name, place in zip(names, [(left, 0.67, RIGHT - left, 0.185), *((x, 0.42, w, 0.17) for x, w in rest)]):
        curve = charts.grouped(explanation, name)
        axes = figure.add_axes(place)
        shown = charts.shown(curve, MOST_CURVES)
        _lines(axes, curve, shown)
        axes.set_title(curve.title, **_TITLE)
        axes.set_ylabel(
            "Change of the SA score" if name == "noise-effect" else curve.value_title, fontsize=9, color=SOFT
        )
        axes.set_xlabel(curve.index_title or curve.index, fontsize=9, color=SOFT, labelpad=1)
        if len(shown) + len(curve.dots) > 1:
            axes.legend(
                loc="lower right", bbox_to_anchor=(1.005, 0.985), ncols=6, fontsize=8, frameon=False, labelcolor=INK, handlelength=1.2,
                handletextpad=0.4, columnspacing=1.0, borderpad=0.2,
            )  # fmt: skip


_TITLE = dict(fontsize=11, fontweight="bold", color=INK, loc="left", pad=5)


def _scaled(raw, others: dict):
    import dataclasses

    columns = {raw.index: raw.columns[raw.index]}
    for name, values in others.items():
        values = np.asarray(values, float)
        low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0.0, 0.0)
        columns[name] = (values - low) / (high - low) if high > low else values * 0 + 0.5
    return dataclasses.replace(raw, columns=columns, shown=(), bands={})


def _lines(axes, curve, names: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.ticklabel_format(axis="y", useOffset=False)
    x = np.asarray(curve.columns[curve.index], float)
    for n, name in enumerate(names):
        y = np.asarray(curve.columns[name], float)
        style = dict(color=colors.LINES[n % len(colors.LINES)], linewidth=1.9, label=name.replace("_", " "))
        axes.plot(x, y, marker="o" if len(x) == 1 else None, **style)
        finite = np.flatnonzero(np.isfinite(y))
        if len(finite):
            axes.plot(x[finite[-1]], y[finite[-1]], "o", color=style["color"], markersize=4)
    for n, name in enumerate(curve.dots, len(names)):
        axes.plot(
            x, curve.columns[name], "o", color=colors.LINES[n % len(colors.LINES)], markersize=4.5, label=name, zorder=3
        )
    if curve.limits:
        low, high = curve.limits
        axes.set_ylim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=bool(np.all(x == np.round(x)))))
    axes.grid(color="#e8ebef", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.015)
    axes.tick_params(labelsize=8.5, colors=SOFT, length=2.5)
    for side, edge in axes.spines.items():
        edge.set_visible(side in ("left", "bottom"))
        edge.set_color("#c3cad2")


def _legend(axes, columns: int, below: bool = False) -> None:
    place = dict(loc="upper left", bbox_to_anchor=(-0.01, -0.17)) if below else dict(loc="best")
    axes.legend(ncols=columns, fontsize=8, frameon=False, labelcolor=INK, handlelength=1.6, columnspacing=1.2, **place)


def _foot(figure, explanation: Explanation, left: float) -> None:
    notes = explanation.notes
    lines = sum(len(told) for *_, told in _told(explanation, left))
    rows = LINES - 3 - (min(lines, 8) + 2 if lines else 0) - (min(2 * len(notes), 4) + 2 if notes else 0)
    y = _verdicts(figure, explanation, left, 0.345, max(rows, 3))
    y = checks(figure, explanation, left, y)
    _notes(figure, notes, left, y)
    footer(figure, explanation)


def footer(figure, explanation: Explanation) -> None:
    """Settings, versions and what this is not, along the bottom."""
    known = explanation.provenance
    settings = known.get("settings") or {}
    words = "settings: " + " · ".join(f"{k}={_setting(v)}" for k, v in settings.items() if v not in (None, "", [], ()))
    figure.add_artist(_rule(0.018, RIGHT, 0.05))
    for n, line in enumerate(textwrap.wrap(words, _letters(RIGHT - 0.018, 7.2))[:2]):
        figure.text(0.018, 0.044 - n * 0.013, line, fontsize=7.2, color=SOFT, va="top")
    versions = " · ".join(f"{k} {v}" for k, v in (known.get("versions") or {}).items() if v)
    seconds = known.get("seconds")
    seconds = f"{seconds:.1f} s" if isinstance(seconds, (int, float)) else ""
    facts = [versions, str(known.get("device") or ""), seconds, str(known.get("date") or "")]
    figure.text(0.018, 0.008, _cut(" · ".join(f for f in facts if f), 200), fontsize=7.2, color=SOFT)
    figure.text(RIGHT, 0.008, "MedXAI · research software, not a medical device", fontsize=7.2, color=SOFT, ha="right")


def _verdicts(figure, explanation: Explanation, left: float, y: float, most: int) -> float:
    tables = explanation.tables
    table = tables.get("verdicts") or tables.get("layers") or next(iter(tables.values()), None)
    if table is None or not table.columns:
        return y
    if table is tables.get("layers"):
        titles = map(layer_title, *(table.columns[name] for name in ("number", "layer", "path")))
        table = replace(table, columns={**table.columns, "layer": list(titles)})
    names = [name for name, column in table.columns.items() if not len(column) or any(map(_known, column))][:6]
    rows = list(zip(*(table.columns[name] for name in names)))
    xs = np.linspace(left, RIGHT, len(names) + 1)[:-1]
    if names[:1] == ["feature"] and len(names) > 2:  # names are long, numbers short
        xs = np.array([left, *np.linspace(left + 0.4 * (RIGHT - left), RIGHT - 0.06, len(names) - 1)])
    figure.text(left, y, table.title or "Verdicts", fontsize=11, fontweight="bold", color=INK, va="top")
    y -= 0.021
    for x, name in zip(xs, names):
        figure.text(x, y, name.replace("_", " "), fontsize=8.5, color=SOFT, va="top")
    for row in rows[: most if len(rows) <= most else most - 1]:
        y -= LINE
        for x, name, value in zip(xs, names, row):
            judged = name == "verdict" and value in VERDICTS
            style = dict(color=VERDICTS[value], fontweight="bold") if judged else dict(color=INK)
            figure.text(x, y, _cell(value, name != "layer"), fontsize=8.5, va="top", **style)
    if len(rows) > most:
        y -= LINE
        figure.text(left, y, f"… and {len(rows) - most + 1} more in the table", fontsize=8.5, color=SOFT, va="top")
    return y - 0.028


def _known(value) -> bool:
    return not (value is None or (isinstance(value, (float, np.floating)) and np.isnan(value)))


def _told(explanation: Explanation, left: float) -> list:
    """For each self-check (sign, colour, name with value, lines of what it means); what failed comes first: it must not fall off the page."""
    found = []
    for name, check in sorted(explanation.self_checks.items(), key=lambda item: item[1].get("passed") is not False):
        sign, colour = {True: ("✓", GOOD), False: ("✗", BAD)}.get(check.get("passed"), ("·", SOFT))
        told = f"{name.replace('_', ' ')}: {_cell(check.get('value'))}"
        lines = textwrap.wrap(check.get("meaning", ""), _letters(0.95 * (RIGHT - _second(left)), 7.5))
        found.append((sign, colour, _cut(told, _letters(_second(left) - left - 0.012, 8.5)), lines or [""]))
    return found


def _second(left: float) -> float:
    """Where the meaning of a self-check begins."""
    return left + 0.4 * (RIGHT - left)


def checks(figure, explanation: Explanation, left: float, y: float) -> float:
    """The self-checks, each with its whole meaning; returns where the next thing may begin."""
    if not explanation.self_checks:
        return y
    figure.text(left, y, "Self-checks", fontsize=11, fontweight="bold", color=INK, va="top")
    y -= 0.021
    for sign, colour, told, lines in _told(explanation, left):
        if y - (len(lines) - 1) * 0.0125 < 0.068:
            figure.text(left, y, "… more in explanation.json", fontsize=7.5, color=SOFT, va="top")
            break
        figure.text(left, y, sign, fontsize=10, color=colour, va="top", fontweight="bold")
        figure.text(left + 0.012, y, told, fontsize=8.5, color=INK, va="top")
        for n, line in enumerate(lines):
            figure.text(_second(left), y - n * 0.0125, line, fontsize=7.5, color=SOFT, va="top")
        y -= LINE + (len(lines) - 1) * 0.0125
    return y - 0.012


def _notes(figure, notes: list[str], left: float, y: float) -> None:
    if not notes or y < 0.075:
        return
    figure.text(left, y, "Notes", fontsize=11, fontweight="bold", color=INK, va="top")
    lines = []
    for note in notes:
        wrapped = textwrap.wrap(note, _letters(RIGHT - left - 0.006, 8))
        lines += [(left if n == 0 else left + 0.006, ("• " if n == 0 else "") + line) for n, line in enumerate(wrapped)]
    room = max(1, int((y - 0.021 - 0.06) / 0.0145) + 1)
    if len(lines) > room:
        lines = [*lines[: room - 1], (left, "… more in the scene's text and in explanation.json")]
    for n, (x, line) in enumerate(lines):
        figure.text(x, y - 0.021 - n * 0.0145, line, fontsize=8, color=INK, va="top")


def _cell(value, words: bool = True) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, float, np.number)):
        return "–" if not np.isfinite(value) else _short(float(value))
    value = "–" if value is None else str(value)
    return _cut(value.replace("_", " ") if words else value, 32)


def _near(value: float, width: float) -> str:
    """A number to three digits of the range it is a limit of."""
    digits = max(0, 2 - int(np.floor(np.log10(width))))
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _setting(value) -> str:
    return ",".join(map(_setting, value)) if isinstance(value, (list, tuple)) else _short(value) if isinstance(value, float) else str(value)  # fmt: skip


def _letters(width: float, points: float) -> int:
    """About how many letters of a size fit into a share of the page's width."""
    return int(width * WIDE * 72 / (0.53 * points))


def _short(value: float) -> str:
    if abs(value) < 1e-12:
        return "0"
    return f"{value:.0f}" if 100 <= abs(value) < 1e5 or value == 0 else f"{value:.3g}"


def _round(value: float) -> float:
    """The round number (1, 2 or 5 times a power of ten) just below."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(step * power for step in (1, 2, 5) if step * power <= value))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
