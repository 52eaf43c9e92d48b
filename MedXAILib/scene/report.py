"""An explanation on one page: Slicer's slice views beside the curves, with what a reader must know to judge them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import MedXAIError
from ..explanation import Explanation
from ..volume import PLANES, Volume
from . import require_slicer


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
    from . import page

    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MedXAIError(
            "The report needs matplotlib; install it with 'pip install matplotlib'.", kind="missing"
        ) from None
    figure = Figure(figsize=(page.WIDE, page.HIGH), dpi=page.DPI, facecolor="white")
    FigureCanvasAgg(figure)
    page.compose(figure, explanation, volumes, _pictures(explanation, volumes))
    try:
        figure.savefig(Path(path), dpi=page.DPI, facecolor="white", metadata={"Title": explanation.title})
    except OSError as error:
        raise MedXAIError(
            f"The report could not be written to '{path}': {error.strerror or error}.", kind="disk"
        ) from error


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
        planes = _planes(explanation, volume)
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
            "steps": _way(host, run, view) if len(planes) == 1 else [],
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


def _planes(explanation: Explanation, volume: Volume) -> list[str]:
    """The planes worth showing: one where the volume, or everything that changed in it, is a single slice."""
    low, high = _interesting(explanation, volume)
    thick = volume.shape if 1 in volume.shape else [b - a for a, b in zip(low, high)]
    if list(thick).count(1) != 1:
        return ["axial", "coronal", "sagittal"]
    axis = volume.patient_axes[2 - list(thick).index(1)]
    return [name for name, across in PLANES.items() if across == axis]


def _way(host, run, view, count: int = 4) -> list:
    """Pictures of a few steps on the way, with their masks: (title, picture, masks)."""
    from .nodes import STEP

    images = [n for n in run.nodes if STEP in n and not run.nodes[n].IsA("vtkMRMLLabelMapVolumeNode")]
    labels = [n for n in run.nodes if STEP in n and run.nodes[n].IsA("vtkMRMLLabelMapVolumeNode")]
    browser = host.scene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode")
    if not images or browser is None or browser.GetNumberOfItems() < count:
        return []
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
    return found


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
