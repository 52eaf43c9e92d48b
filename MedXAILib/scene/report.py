"""An explanation on one page: Slicer's slice views beside the curves, with what a reader must know to judge them."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

from ..errors import MedXAIError
from ..explanation import Explanation, Layer
from ..volume import PLANES, Volume
from . import require_slicer

WIDE, HIGH, DPI, RIGHT = 18.0, 11.0, 130, 0.982
INK, SOFT, GOOD, BAD = "#1c2530", "#66717f", "#1f7a4d", "#b3361b"
VERDICTS = {"entered": GOOD, "overshot": "#9a6700", "left": BAD, "approaching": "#2a5fa5"}
MOST_CURVES, MOST_ROWS = 8, 9


def report(explanation: Explanation, volumes: list[Volume], path) -> None:
    """Write `report.png`.

    Slice views of the input, of image maps and of overlays, through the neuron (or the middle of what changed), drawn off screen
    by Slicer's own libraries; response and feature curves with their reference band; verdicts, self-checks and notes.

    Raises
    ------
    MedXAIError
        ``kind="missing"`` without Slicer's libraries or matplotlib, ``kind="disk"`` when the file cannot be written.
    """
    require_slicer()
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MedXAIError(
            "The report needs matplotlib; install it with 'pip install matplotlib'.", kind="missing"
        ) from None
    figure = Figure(figsize=(WIDE, HIGH), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    pictures = _pictures(explanation, volumes)
    _head(figure, explanation, volumes)
    left = _slices(figure, pictures) + 0.05
    _curves(figure, explanation, left)
    _foot(figure, explanation, pictures, left)
    try:
        figure.savefig(Path(path), dpi=DPI, facecolor="white", metadata={"Title": explanation.title})
    except OSError as error:
        raise MedXAIError(
            f"The report could not be written to '{path}': {error.strerror or error}.", kind="disk"
        ) from error


# Slice views ---------------------------------------------------------------------------------------------------------


def _pictures(explanation: Explanation, volumes: list[Volume], size: int = 560) -> dict:
    """Every picture of the page: rows are planes, columns the input, image maps and overlays."""
    from . import layers, views
    from .bundle import _straight, build
    from .host import HeadlessHost

    volume = volumes[0]
    host = HeadlessHost()
    view = None
    try:
        run = build(host, explanation, volumes)
        point = explanation.provenance.get("neuron_ras") or explanation.provenance.get("point_ras")
        neuron = None if point is None else tuple(float(v) for v in point)
        point = neuron or volume.index_to_ras([(a + b - 1) / 2 for a, b in zip(*_interesting(explanation, volume))])
        planes = [_flat_plane(volume)] if 1 in volume.shape else ["axial", "coronal", "sagittal"]
        images = [n for n, layer in explanation.maps.items() if layer.kind == "image"][:1]
        overlays = [n for n, layer in explanation.maps.items() if layer.kind != "image"][: 3 - len(images)]
        masks = [_mask_node(host.scene, mask) for mask in explanation.masks.values()]
        view = views.SliceView(host, size)
        field = _field(explanation, volume)
        columns = [("Input", None), *((_named(explanation, n), n) for n in (*images, *overlays))]
        rows = []
        for plane in planes:
            view.look(plane, run.inputs[0], point, field, not _straight(run.inputs[0]))
            row = []
            for _, name in columns:
                image = name is None or explanation.maps[name].kind == "image"
                view.show(run.inputs[0], run.nodes[name] if name else None, 1.0 if image else layers.OVERLAY)
                row.append(view.picture())
            inside = []
            for mask in masks:
                view.show(mask)
                inside.append(view.picture()[..., 0] > 127)
            rows.append({
                "plane": plane, "pictures": row, "masks": inside, "letters": view.letters(), "position": view.position(),
                "pixel": None if neuron is None else view.pixel(neuron),
            })  # fmt: skip
        return {
            "columns": columns, "rows": rows, "field": field, "size": size, "layers": {n: explanation.maps[n] for _, n in columns if n},
            "window": layers.window_of(explanation, volume), "unit": volume.unit, "masks": list(explanation.masks),
            "limits": {n: layers.limits(explanation.maps[n]) for _, n in columns if n},
        }  # fmt: skip
    finally:
        if view is not None:
            view.close()
        host.close()


def _mask_node(scene, mask: Volume):
    """A mask as a volume that a view shows white and sharp-edged."""
    from .bundle import add_input

    node = add_input(scene, mask.with_array((mask.array != 0).astype(np.uint8)), (0, 1))
    node.GetDisplayNode().SetInterpolate(False)
    return node


def _named(explanation: Explanation, name: str) -> str:
    layer = explanation.maps[name]
    title = (layer.title or name).split(" [")[0]
    return title if layer.kind == "image" else f"{title} over the input"


def _flat_plane(volume: Volume) -> str:
    """The plane in which a single slice lies."""
    thin = volume.shape.index(1)
    axis = volume.patient_axes[2 - thin]
    return next(name for name, across in PLANES.items() if across == axis)


def _interesting(explanation: Explanation, volume: Volume):
    """The box of what an explanation changed or marked."""
    from .layers import bounds

    for array in (
        *(layer.volume.array for layer in explanation.maps.values() if layer.kind != "image"),
        *(mask.array for mask in explanation.masks.values()),
    ):
        if array.shape == volume.shape and array.any():
            return bounds(array)
    return (0, 0, 0), volume.shape


def _field(explanation: Explanation, volume: Volume) -> float:
    """Millimetres across a picture: all of the volume, or nearer when little of it changed."""
    spacing = np.array(volume.spacing[::-1])
    whole = float((np.array(volume.shape) * spacing).max())
    low, high = _interesting(explanation, volume)
    box = float(((np.array(high) - low) * spacing).max())
    return 1.02 * min(whole, max(2.2 * box, 0.4 * whole))


def _slices(figure, pictures) -> float:
    """Lay the pictures out and return where they end on the right."""
    cells = [(row, c, r, c) for r, row in enumerate(pictures["rows"]) for c in range(len(pictures["columns"]))]
    if len(pictures["rows"]) == 1 and len(cells) > 2:  # a single slice: two by two, larger
        cells = [(row, c, c // 2, c % 2) for row, c, _, _ in cells]
    down, across = 1 + max(cell[2] for cell in cells), 1 + max(cell[3] for cell in cells)
    left, top, bottom, gap, title, key = 0.018, 0.885, 0.052, 0.005, 0.021, 0.042
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
        heading, name = pictures["columns"][c]
        if r == 0 or keys > 1:
            axes.set_title(heading, fontsize=11.5, color=INK, pad=4, fontweight="bold")
        _annotate(axes, row, pictures, first=c == 0)
        if c:
            _outline(axes, row)
        if r == down - 1 or keys > 1:
            _key(figure, axes, name, pictures)
    return left + across * (size + gap)


def _annotate(axes, row, pictures, first: bool) -> None:
    from matplotlib.patheffects import withStroke

    size, edge = pictures["size"], [withStroke(linewidth=2.2, foreground="black")]
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
            0.015, 0.985, f"{row['plane'].capitalize()}\n{row['position']}", transform=axes.transAxes, fontsize=9,
            va="top", linespacing=1.3, **light,
        )  # fmt: skip
    bar = _round(pictures["field"] / 5)
    length = bar / pictures["field"] * size
    y = size * 0.955
    axes.plot(
        [size * 0.03, size * 0.03 + length],
        [y, y],
        color="white",
        linewidth=2,
        path_effects=edge,
        solid_capstyle="butt",
    )
    axes.text(size * 0.03, y - size * 0.02, f"{bar:g} mm", fontsize=8, va="bottom", **light)
    if row["pixel"] is not None:
        x, y = row["pixel"]
        near, far = size * 0.018, size * 0.05
        for (x0, x1), (y0, y1) in (
            ((x - far, x - near), (y, y)), ((x + near, x + far), (y, y)),
            ((x, x), (y - far, y - near)), ((x, x), (y + near, y + far)),
        ):  # fmt: skip
            axes.plot([x0, x1], [y0, y1], color="#4dffa1", linewidth=1.3, path_effects=edge[:1])
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)


def _outline(axes, row) -> None:
    from matplotlib.patheffects import withStroke

    from . import colors

    for n, inside in enumerate(row["masks"]):
        if inside.any() and not inside.all():
            colour = colors.DISTINCT[n % len(colors.DISTINCT)]
            lines = axes.contour(inside.astype(float), [0.5], colors=[colour], linewidths=1.3)
            lines.set_path_effects([withStroke(linewidth=2.4, foreground=(0, 0, 0, 0.55))])


def _key(figure, axes, name, pictures) -> None:
    """Below a column: its window, or its colour bar."""
    from matplotlib.colors import ListedColormap

    from . import colors

    box = axes.get_position()
    unit = f" {pictures['unit']}" if pictures["unit"] else ""
    if name is None or pictures["layers"][name].kind == "image":
        low, high = pictures["window"]
        words = f"window {_short(low)} to {_short(high)}{unit}"
        if name is not None and pictures["masks"]:
            words += f" · outline: {', '.join(pictures['masks'])}"
        figure.text(box.x0, box.y0 - 0.008, words, fontsize=9, color=SOFT, va="top")
        return
    layer, (low, high) = pictures["layers"][name], pictures["limits"][name]
    table = colors.signed() if layer.kind == "signed" else colors.positive()
    shown = table[:, :3] * table[:, 3:] + 0.93 * (1 - table[:, 3:])
    if layer.kind != "signed":
        shown[: int(len(shown) * colors.NOTHING)] = 0.93
    bar = figure.add_axes((box.x0 + 0.008, box.y0 - 0.014, box.width - 0.016, 0.009))
    bar.imshow(np.linspace(low, high, 512)[None], aspect="auto", extent=(low, high, 0, 1), cmap=ListedColormap(shown))
    bar.set_yticks([])
    bar.set_xticks(np.linspace(low, high, 5), [_short(v) for v in np.linspace(low, high, 5)], fontsize=8, color=SOFT)
    bar.tick_params(length=2, pad=1.5, color=SOFT)
    bar.set_xlabel(_bar_title(layer, name), fontsize=8.5, color=SOFT, labelpad=0)
    for edge in bar.spines.values():
        edge.set_visible(False)


def _bar_title(layer: Layer, name: str) -> str:
    title = layer.title or name
    return title + (" · blue lowers, red raises" if layer.kind == "signed" else "")


# Text and curves -----------------------------------------------------------------------------------------------------


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
    if known.get("neuron_ras") is not None:
        facts.append("neuron: RAS " + ", ".join(f"{v:.1f}" for v in known["neuron_ras"]) + " mm")
    if known.get("neuron_ijk") is not None:
        facts.append("IJK " + ", ".join(str(v) for v in known["neuron_ijk"]))
    figure.text(0.018, 0.911, _cut(" · ".join(facts), 170), fontsize=10, color=SOFT, va="top")
    figure.add_artist(_rule(0.018, RIGHT, 0.895))


def _rule(x0, x1, y):
    from matplotlib.lines import Line2D

    return Line2D([x0, x1], [y, y], color="#d5dae0", linewidth=1)


def _curves(figure, explanation: Explanation, left: float) -> None:
    from . import charts

    curves = explanation.curves
    raw, normal = curves.get("curves"), curves.get("normalized")
    raw = raw or next(iter(curves.values()), None)
    width = RIGHT - left
    if raw is None:
        return
    axes = figure.add_axes((left, 0.715, width, 0.145))
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

    from . import colors

    x = np.asarray(curve.columns[curve.index], float)
    for n, name in enumerate(names):
        y = np.asarray(curve.columns[name], float)
        style = dict(color=colors.LINES[n % len(colors.LINES)], linewidth=1.9, label=name.replace("_", " "))
        axes.plot(x, y, marker="o" if len(x) == 1 else None, **style)
        finite = np.flatnonzero(np.isfinite(y))
        if len(finite):
            axes.plot(x[finite[-1]], y[finite[-1]], "o", color=style["color"], markersize=4)
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


def _foot(figure, explanation: Explanation, pictures, left: float) -> None:
    y = _verdicts(figure, explanation, left, 0.345)
    y = _checks(figure, explanation, left, y)
    notes = list(explanation.notes)
    _notes(figure, notes, left, y)
    known = explanation.provenance
    settings = known.get("settings") or {}
    words = "settings: " + " · ".join(f"{k}={_setting(v)}" for k, v in settings.items() if v not in (None, "", [], ()))
    figure.add_artist(_rule(0.018, RIGHT, 0.046))
    figure.text(
        0.018, 0.039, "\n".join(textwrap.wrap(words, 250)[:2]), fontsize=7.5, color=SOFT, va="top", linespacing=1.4
    )
    versions = " · ".join(f"{k} {v}" for k, v in (known.get("versions") or {}).items() if v)
    seconds = known.get("seconds")
    facts = [versions, str(known.get("device") or ""), f"{seconds:.1f} s" if isinstance(seconds, (int, float)) else "", str(known.get("date") or "")]  # fmt: skip
    figure.text(0.018, 0.011, _cut(" · ".join(f for f in facts if f), 200), fontsize=7.5, color=SOFT)
    figure.text(RIGHT, 0.011, "MedXAI · research software, not a medical device", fontsize=7.5, color=SOFT, ha="right")


def _verdicts(figure, explanation: Explanation, left: float, y: float) -> float:
    table = explanation.tables.get("verdicts") or next(iter(explanation.tables.values()), None)
    if table is None or not table.columns:
        return y
    names = list(table.columns)[:6]
    rows = list(zip(*(table.columns[name] for name in names)))
    xs = np.linspace(left, RIGHT, len(names) + 1)[:-1]
    if names[0] == "feature" and len(names) > 2:  # names are long, numbers short
        xs = np.array([left, *np.linspace(left + 0.4 * (RIGHT - left), RIGHT - 0.06, len(names) - 1)])
    figure.text(left, y, table.title or "Verdicts", fontsize=11, fontweight="bold", color=INK, va="top")
    y -= 0.021
    for x, name in zip(xs, names):
        figure.text(x, y, name.replace("_", " "), fontsize=8.5, color=SOFT, va="top")
    for row in rows[:MOST_ROWS]:
        y -= 0.0155
        for x, name, value in zip(xs, names, row):
            colour = VERDICTS.get(value, INK) if name == "verdict" else INK
            weight = "bold" if name == "verdict" and value in VERDICTS else "normal"
            figure.text(x, y, _cell(value, name), fontsize=8.5, color=colour, va="top", fontweight=weight)
    if len(rows) > MOST_ROWS:
        y -= 0.0155
        figure.text(left, y, f"… and {len(rows) - MOST_ROWS} more in the table", fontsize=8.5, color=SOFT, va="top")
    return y - 0.03


def _checks(figure, explanation: Explanation, left: float, y: float) -> float:
    if not explanation.self_checks:
        return y
    figure.text(left, y, "Self-checks", fontsize=11, fontweight="bold", color=INK, va="top")
    y -= 0.021
    for name, check in explanation.self_checks.items():
        if y < 0.075:
            break
        passed = check.get("passed")
        sign, colour = {True: ("✓", GOOD), False: ("✗", BAD)}.get(passed, ("·", SOFT))
        value = check.get("value")
        told = f"{name.replace('_', ' ')}: {_cell(value, '')}"
        figure.text(left, y, sign, fontsize=10, color=colour, va="top", fontweight="bold")
        figure.text(left + 0.012, y, _cut(told, 46), fontsize=8.5, color=INK, va="top")
        at = left + 0.4 * (RIGHT - left)
        meaning = check.get("meaning", "").split(";")[0].rstrip(".")
        figure.text(at, y, _cut(meaning, _letters(RIGHT - at, 7.5)), fontsize=7.5, color=SOFT, va="top")
        y -= 0.0165
    return y - 0.012


def _notes(figure, notes: list[str], left: float, y: float) -> None:
    if not notes or y < 0.075:
        return
    figure.text(left, y, "Notes", fontsize=11, fontweight="bold", color=INK, va="top")
    y -= 0.021
    for note in notes:
        for n, line in enumerate(textwrap.wrap(note, _letters(RIGHT - left - 0.006, 8))):
            if y < 0.056:
                return
            figure.text(
                left if n == 0 else left + 0.006, y, ("• " if n == 0 else "") + line, fontsize=8, color=INK, va="top"
            )
            y -= 0.0145


def _cell(value, name: str) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, float, np.number)):
        return "–" if not np.isfinite(value) else _short(float(value))
    return _cut("–" if value is None else str(value).replace("_", " "), 30)


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
