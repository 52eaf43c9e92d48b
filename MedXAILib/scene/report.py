"""An explanation on one page: Slicer's slice views beside the curves, with what a reader must know to judge them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import MedXAIError
from ..explanation import Explanation
from ..volume import PLANES, Volume
from . import require_slicer


def report(explanation: Explanation, volumes: list[Volume], path, segments: Sequence[Volume] = ()) -> None:
    """Write `report.png`.

    Slice views of the input, of image maps and of overlays, through the neuron (or the middle of what was changed or marked), drawn off
    screen by Slicer's own libraries, with the outlines of masks and of ``segments``, the masks the run was started with; curves with their
    reference band (of a back-projection: its strongest filters and its landmarks); verdicts, self-checks and notes.

    Raises
    ------
    MedXAIError
        ``kind="missing"`` without Slicer's libraries or matplotlib, ``kind="disk"`` when the file cannot be written.
    """
    require_slicer()
    from . import cycle, impact, page, page_cycle, page_filters, page_impact
    from .filters import of as filters_of

    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MedXAIError(
            "The report needs matplotlib; install it with 'pip install matplotlib'.", kind="missing"
        ) from None
    figure = Figure(figsize=(page.WIDE, page.HIGH), dpi=page.DPI, facecolor="white")
    FigureCanvasAgg(figure)
    pictures = _pictures(explanation, volumes, segments)
    own = page_filters if filters_of(explanation) else page_impact if impact.of(explanation) else page
    own = page_cycle if cycle.of(explanation) else own
    own.compose(figure, explanation, volumes, pictures)
    try:
        figure.savefig(Path(path), dpi=page.DPI, facecolor="white", metadata={"Title": explanation.title})
    except OSError as error:
        raise MedXAIError(
            f"The report could not be written to '{path}': {error.strerror or error}.", kind="disk"
        ) from error


@dataclass(frozen=True)
class Column:
    """Pictures of one kind: a map (None: the input), the outlines drawn on it, and which of them is filled."""

    title: str
    layer: str | None
    outlines: tuple[str, ...] = ()
    filled: str = ""


def _pictures(explanation: Explanation, volumes: list[Volume], segments: Sequence[Volume], size: int = 560) -> dict:
    """Every picture of the page: rows are planes, columns the input, image maps and overlays."""
    from . import cycle, impact, layers, views
    from .bundle import build, straight
    from .filters import of as filters_of
    from .host import HeadlessHost

    volume = volumes[0]
    host = HeadlessHost()
    view = None
    try:
        run = build(host, explanation, volumes)
        point = explanation.provenance.get("neuron_ras") or explanation.provenance.get("point_ras")
        neuron = None if point is None else tuple(float(v) for v in point)
        point = layers.place_of(explanation, volume)
        planes = _planes(explanation, volume)
        images = [n for n, layer in explanation.maps.items() if layer.kind == "image"][:1]
        overlays = [n for n, layer in explanation.maps.items() if layer.kind != "image"][: 3 - len(images)]
        if impact.of(explanation):
            images, overlays = [impact.INPAINTED], [n for n in (impact.MASK, "difference") if n in explanation.maps]
        either = cycle.of(explanation)
        if either:
            images, overlays = [cycle.NEGATIVE, cycle.POSITIVE], [cycle.DOWN, cycle.RELEVANCE, cycle.UP]
        columns, outlines = _columns(explanation, run, segments, [*images, *overlays])
        if either and len(planes) > 1:
            columns = columns[:3] + [one for one in columns if one.layer == cycle.RELEVANCE]
        masks = {name: _mask_node(host.scene, mask) for name, (mask, _) in outlines.items()}
        view = views.SliceView(host, size)
        flat = impact.of(explanation) and len(planes) == 1  # before and after are looked at as one looks at a picture
        field = 1.02 * _widest(volume) if flat else _field(explanation, volume)
        whole = filters_of(explanation) is not None or flat or (either and field >= _widest(volume))
        rows = []
        for plane in planes:
            at = _centred(volume, plane, point) if whole else point
            view.look(plane, run.inputs[0], at, field, not straight(run.inputs[0]))
            row = []
            for name in (column.layer for column in columns):
                image = name is None or explanation.maps[name].kind == "image"
                view.show(run.inputs[0], run.nodes[name] if name else None, 1.0 if image else layers.OVERLAY)
                row.append(view.picture())
            inside = {}
            for name, mask in masks.items():
                view.show(mask)
                inside[name] = view.picture()[..., 0] > 127
            letters, place = view.letters(), f"{plane.capitalize()}\n{view.position()}"
            if _nowhere(volume):
                letters, place = dict.fromkeys(letters, ""), ""
            rows.append({
                "place": place, "pictures": row, "masks": inside, "letters": letters,
                "whole": _overview(view, plane, run.inputs[0], volume, point, masks) if either and not whole and not rows else None,
                "pixel": None if neuron is None else view.pixel(neuron),
            })  # fmt: skip
        return {
            "steps": _way(host, explanation, run, view) if len(planes) == 1 else ("", []),
            "columns": columns, "rows": rows, "field": field, "scale": not (_nowhere(volume) and volume.spacing[:2] == (1, 1)), "size": size, "layers": {n: explanation.maps[n] for n in (*images, *overlays)},
            "window": layers.window_of(explanation, volume), "unit": volume.unit,
            "colours": {name: colour for name, (_, colour) in outlines.items()},
            "limits": {n: layers.limits(explanation.maps[n]) for n in (*images, *overlays)},
        }  # fmt: skip
    finally:
        if view is not None:
            view.close()
        host.close()


def _nowhere(volume: Volume) -> bool:
    """Whether a single slice has no place in the patient: its file (a PNG, a plain radiograph) told nothing, and R or A would be made up."""
    spacing = volume.spacing
    return 1 in volume.shape and np.array_equal(volume.ijk_to_ras, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]))


def _centred(volume: Volume, plane: str, point) -> tuple[float, float, float]:
    """The slice through a point, with the middle of the volume in the middle of the picture."""
    index = [(n - 1) / 2 for n in volume.shape]
    axis = volume.array_axis(plane)
    index[axis] = volume.ras_to_index(point)[axis]
    return volume.index_to_ras(index)


def _columns(explanation: Explanation, run, segments: Sequence[Volume], maps: list[str]):
    """The columns of pictures, and the masks outlined in them: name to mask and colour."""
    from . import colors, cycle, impact, pick, sequences
    from .filters import of as filters_of

    if impact.of(explanation):
        return _before_and_after(explanation, segments)
    if cycle.of(explanation):
        return _as_either_class(explanation, segments, run)
    outlines = {
        name: (mask, colors.DISTINCT[n % len(colors.DISTINCT)])
        for n, (name, mask) in enumerate(explanation.masks.items())
    }
    if filters_of(explanation):
        outlines = {one.name: (one, colors.DISTINCT[n % len(colors.DISTINCT)]) for n, one in enumerate(segments)}
        return [Column("Input", None), *(Column(_named(explanation, n), n, tuple(outlines)) for n in maps)], outlines
    names = tuple(outlines)
    title, last = next(iter(sequences.picked(explanation).items()), ("", None))
    if last is None:
        return [Column("Input", None), *(Column(_named(explanation, n), n, names) for n in maps)], outlines
    # Maps of layers are looked at beside the output and the annotation, so these are outlined in the input as well.
    number, mask = last.items[-1]
    shown = f"map of {pick.title_of(run.scene, run.id, title, number)}"
    outlines = {name: (one, colors.OUTPUT) for name, (one, _) in outlines.items()}
    if segments:
        outlines = {"annotation": (segments[0], colors.ANNOTATION)} | outlines
    names = tuple(outlines)
    outlines[shown] = (mask, colors.MASK)
    columns = [Column("Input", None, names), *(Column("Units that see the label", n, names) for n in maps)]
    return [*columns, Column("The last layer's map", None, (*names[:1], shown), shown)], outlines


def _before_and_after(explanation: Explanation, segments: Sequence[Volume]):
    """The columns of a counterfactual: before, after, the mask over the input, and what was changed; organ and annotation where there are."""
    from . import colors, impact

    given = {impact.role(one): one for one in segments}
    shown = {"organ": colors.DISTINCT[5], "annotation": colors.ANNOTATION}
    outlines = {role: (given[role], colour) for role, colour in shown.items() if role in given}
    first, known = tuple(outlines), tuple(one for one in ("annotation",) if one in outlines)
    if impact.REGION in explanation.masks:
        outlines[impact.REGION] = (explanation.masks[impact.REGION], colors.OUTPUT)
    region = tuple(one for one in (impact.REGION,) if one in outlines)
    columns = [
        Column("Before: the input", None, first),
        Column("After: the region inpainted", impact.INPAINTED, region),
        Column("Deleted share over the input", impact.MASK, (*known, *region)),
    ]
    if "difference" in explanation.maps:
        columns.append(Column("After minus before", "difference", region))
    return columns, outlines


def _as_either_class(explanation: Explanation, segments: Sequence[Volume], run):
    """The columns of a cycle explanation: the image between its two versions, below them what is added to it, and R; the patch and the lesion in the image."""
    from . import colors, cycle, layers

    outlines = {one.name: (one, colors.ANNOTATION) for one in segments[:1]}
    volume = explanation.maps[cycle.RELEVANCE].volume
    where = layers.looked_at(explanation, volume, likeliest=True)
    if any(part.stop - part.start < n for part, n in zip(where, volume.shape) if part.stop - part.start > 1):
        patch = np.zeros(volume.shape, np.uint8)
        patch[where] = 1
        outlines["patch"] = (volume.with_array(patch, "patch", ""), colors.MASK)
    known = explanation.provenance
    lower, higher = (f": as {known[name]}" if known.get(name) else "" for name in ("negative", "label"))
    columns = [
        Column(f"G⁻{lower}", cycle.NEGATIVE), Column("x: the image", None, tuple(outlines)), Column(f"G⁺{higher}", cycle.POSITIVE),
        Column("Δ⁻ = G⁻ − x", cycle.DOWN), Column("R = G⁺ − G⁻ over the image", cycle.RELEVANCE), Column("Δ⁺ = G⁺ − x", cycle.UP),
    ]  # fmt: skip
    return columns, outlines


def _overview(view, plane: str, volume_node, volume: Volume, point, masks: dict):
    """The whole slice, small, and where the patch lies in it (None without one); the view looks elsewhere afterwards."""
    from .bundle import straight

    if "patch" not in masks:
        return None
    view.look(plane, volume_node, _centred(volume, plane, point), 1.02 * _widest(volume), not straight(volume_node))
    view.show(volume_node)
    picture = view.picture()
    view.show(masks["patch"])
    return picture, view.picture()[..., 0] > 127


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


def _planes(explanation: Explanation, volume: Volume) -> list[str]:
    """The planes worth showing: one where the volume, or everything that changed in it, is a single slice."""
    low, high = _box(explanation, volume)
    thick = volume.shape if 1 in volume.shape else [b - a for a, b in zip(low, high)]
    if list(thick).count(1) != 1:
        return ["axial", "coronal", "sagittal"]
    axis = volume.patient_axes[2 - list(thick).index(1)]
    return [name for name, across in PLANES.items() if across == axis]


def _way(host, explanation: Explanation, run, view, count: int = 4) -> tuple[str, list]:
    """A heading, and pictures of a few steps or layers on the way: (title, picture, masks)."""
    from . import pick, sequences
    from .nodes import STEP

    for name, sequence in sequences.picked(explanation).items():
        if len(sequence.items) >= count:
            found = []
            view.show(run.inputs[0])
            picture = view.picture()
            for n in np.linspace(0, len(sequence.items) - 1, count).round().astype(int):
                number, mask = sequence.items[n]
                view.show(_mask_node(host.scene, mask))
                found.append((pick.title_of(host.scene, run.id, name, number), picture, [view.picture()[..., 0] > 127]))
            return "From image to output", found
    images = [n for n in run.nodes if STEP in n and not run.nodes[n].IsA("vtkMRMLLabelMapVolumeNode")]
    labels = [n for n in run.nodes if STEP in n and run.nodes[n].IsA("vtkMRMLLabelMapVolumeNode")]
    browser = host.scene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode")
    if not images or browser is None or browser.GetNumberOfItems() < count:
        return "", []
    found, sequence = [], browser.GetMasterSequenceNode()
    for item in np.linspace(0, browser.GetNumberOfItems() - 1, count).round().astype(int):
        browser.SetSelectedItemNumber(int(item))
        view.show(run.inputs[0], run.nodes[images[0]])
        picture = view.picture()
        masks = []
        for name in labels:
            view.show(run.nodes[name])
            masks.append(view.picture()[..., 0] > 127)
        found.append((f"{sequence.GetIndexName()} {sequence.GetNthIndexValue(int(item))}", picture, masks))
    return "The way there", found


def _box(explanation: Explanation, volume: Volume):
    """The box of what an explanation changed or marked; the whole volume when there is nothing."""
    from .layers import bounds, interesting, looked_at

    if explanation.method == "cycle":
        where = looked_at(explanation, volume, likeliest=True)
        return [one.start for one in where], [one.stop for one in where]
    array = interesting(explanation, volume)
    return bounds(array) if array is not None else ((0, 0, 0), volume.shape)


def _widest(volume: Volume) -> float:
    """The longest side of a volume in mm."""
    return float((np.array(volume.shape) * volume.spacing[::-1]).max())


def _field(explanation: Explanation, volume: Volume) -> float:
    """Millimetres across a picture: all of the volume, or nearer when little of it changed."""
    spacing = np.array(volume.spacing[::-1])
    whole = _widest(volume)
    low, high = _box(explanation, volume)
    box = float(((np.array(high) - low) * spacing).max())
    if explanation.method == "cycle":
        return min(1.02 * whole, 1.3 * box)
    return 1.02 * min(whole, max(2.2 * box, 0.4 * whole))
