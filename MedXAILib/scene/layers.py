"""Maps as volume nodes, how they look, and what the slice views show. Zoom, slice and layout are left alone."""

from __future__ import annotations

import numpy as np
import slicer

from ..explanation import Layer, Patch
from ..volume import Volume
from . import colors
from .nodes import (
    BROWSE,
    STEP,
    drawable,
    image_of,
    matrix_of,
    modifying,
    name_of,
    of_class,
    of_run,
    plain_type,
    run_id,
    voxels,
)

OPAQUE, OVERLAY = 1.0, 0.65
_GREY = "vtkMRMLColorTableNodeGrey"


def add_volume(scene, volume: Volume, name: str, class_name: str = "vtkMRMLScalarVolumeNode"):
    """A new volume node with the volume's voxels (copied once) and matrix; nothing shows it yet. The name is used as it is."""
    node = slicer.vtkMRMLScene.CreateNodeByClass(scene, class_name)
    node.UnRegister(None)
    node.SetName(name)
    node.SetIJKToRASMatrix(matrix_of(volume.ijk_to_ras))
    node.SetAndObserveImageData(image_of(volume.array))
    return scene.AddNode(node)


def tell_unit(node, volume: Volume) -> None:
    """Say on a node what its voxels are measured in, where that is Hounsfield units."""
    if volume.unit == "HU":
        unit = slicer.vtkCodedEntry()
        unit.SetValueSchemeMeaning("[hnsf'U]", "UCUM", "Hounsfield unit")
        node.SetVoxelValueUnits(unit)


def write_voxels(node, data: Volume | Patch) -> None:
    """New voxels for a node that has the same grid: all of them, or a patch's box; its observers look once."""
    image = node.GetImageData()
    box = data.box if isinstance(data, Patch) else ...
    target = voxels(image)
    if plain_type(data.array.dtype) == target.dtype or isinstance(data, Patch):
        np.copyto(target[box], data.array, casting="unsafe")
        image.GetPointData().GetScalars().Modified()
        node.StorableModified()
        node.Modified()
    else:
        node.SetAndObserveImageData(image_of(data.array))


def same_grid(node, volume: Volume) -> bool:
    """Whether the node's voxels can be overwritten by the volume's."""
    return node.GetImageData().GetDimensions() == volume.shape[::-1]


def display(scene, node, layer: Layer, input_node=None):
    """Give a map its window, colours and threshold, and only then a display: a view never sees a wrong frame."""
    shown = node.GetDisplayNode() or slicer.vtkMRMLScalarVolumeDisplayNode()
    low, high = limits(layer)
    given = input_node.GetDisplayNode() if input_node is not None else None
    with modifying(shown):
        shown.SetAutoWindowLevel(False)
        if layer.kind == "image":
            if given is not None:
                shown.SetAndObserveColorNodeID(given.GetColorNodeID() or _GREY)
                shown.SetInterpolate(given.GetInterpolate())
                shown.SetInvertDisplayScalarRange(given.GetInvertDisplayScalarRange())
                given = given if layer.low is None or layer.high is None else None
            else:
                shown.SetAndObserveColorNodeID(_GREY)
            shown.SetApplyThreshold(False)
        else:
            shown.SetAndObserveColorNodeID(colors.table(scene, layer.kind).GetID())
            # A signed map's middle is transparent in its colour table; a threshold hides only one end.
            shown.SetAutoThreshold(False)
            shown.SetThreshold(-3.4e38 if layer.kind == "signed" else least(layer), 3.4e38)
            shown.SetApplyThreshold(layer.kind != "signed")
        if layer.kind == "image" and given is not None:
            shown.SetWindowLevel(given.GetWindow(), given.GetLevel())
        else:
            shown.SetWindowLevelMinMax(low, high)
    if node.GetDisplayNode() is None:
        shown.SetName(f"{node.GetName()} display")
        scene.AddNode(shown)
        node.SetAndObserveDisplayNodeID(shown.GetID())
    if layer.kind != "image":
        _legend(node, layer)
    return shown


def legend_of_another(scene, node, layer: Layer) -> None:
    """A map's colour legend where another volume is shown: views draw legends of background and foreground only, not of what lies over them."""
    colours = slicer.vtkMRMLScalarVolumeDisplayNode()
    colours.SetName(f"{node.GetName()} legend")
    colours.SetAndObserveColorNodeID(colors.table(scene, layer.kind).GetID())
    colours.SetAutoWindowLevel(False)
    colours.SetWindowLevelMinMax(*limits(layer))
    scene.AddNode(colours)
    node.AddAndObserveDisplayNodeID(colours.GetID())
    _legend(colours, layer)


def legends(node) -> list:
    """The colour legends of a volume."""
    shown = (node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes()))
    return [one for one in shown if one is not None and one.IsA("vtkMRMLColorLegendDisplayNode")]


def _legend(node, layer: Layer) -> None:
    legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(node)
    with modifying(legend):
        legend.SetTitleText(drawable(layer.title or node.GetName()))
        legend.SetUseColorNamesForLabels(False)
        legend.SetMaxNumberOfColors(256)
        legend.SetNumberOfLabels(5)
        legend.SetLabelFormat("%.3g")
        legend.SetSize(0.08, 0.3)
        for text in (legend.GetTitleTextProperty(), legend.GetLabelTextProperty()):
            text.SetFontSize(12)
        legend.SetPosition(0.97, 0.5)


def legend_follows(node) -> None:
    """Tell a map's colour legend that the views' layers have changed: it looks at them when it is modified itself."""
    for n in range(node.GetNumberOfDisplayNodes() if node is not None else 0):
        node.GetNthDisplayNode(n).Modified()


def least(layer: Layer) -> float:
    """What is below it in a map of one sign is shown as nothing."""
    low, high = limits(layer)
    return low + colors.NOTHING * (high - low) if layer.least is None else float(layer.least)


def limits(layer: Layer) -> tuple[float, float]:
    """The display range of a map: as given, else from its voxels (a few outliers do not darken the rest)."""
    if layer.low is not None and layer.high is not None and layer.low < layer.high:
        return float(layer.low), float(layer.high)
    if layer.kind == "probability":
        low, high = 0.0, 1.0
    elif layer.kind == "image":
        low, high = window(layer.volume.array)
    else:
        values = _some(layer.volume.array, nonzero=True)
        reach = float(np.percentile(np.abs(values), 99.5)) if len(values) else 0.0
        reach = reach or 1.0
        low, high = (-reach, reach) if layer.kind == "signed" else (0.0, reach)
    low = low if layer.low is None else float(layer.low)
    high = high if layer.high is None else float(layer.high)
    return (low, high) if low < high else (low, low + 1.0)


def window(array: np.ndarray) -> tuple[float, float]:
    """A window for an image: from its 0.5th to its 99.5th percentile."""
    values = _some(array)
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5))) if len(values) else (0.0, 1.0)
    return (low, high) if low < high else (low, low + 1.0)


def window_of(explanation, volume: Volume) -> tuple[float, float]:
    """A window for an input that shows what an explanation changed: from the voxels around the change, before and after.

    A chest CT in a window of everything from air to bone would hide what happens in the liver.
    """
    if explanation.method == "cycle" and volume.array.size:
        box = looked_at(explanation, volume)
        images = [volume.array] + [layer.volume.array for layer in explanation.maps.values() if layer.kind == "image"]
        values = np.concatenate([_some(image[box]) for image in images if image.shape == volume.shape])
        low, high = (float(v) for v in np.percentile(values, (0.5, 99.5))) if len(values) else (0.0, 0.0)
        return (low, high) if low < high else window(volume.array)
    known = explanation.provenance.get("neuron_ras") is not None or any(
        m.array.any() for m in explanation.masks.values()
    )
    point = place_of(explanation, volume) if known else None
    if point is not None and volume.array.size and (volume.unit == "HU" or float(volume.array.min()) < -500):
        return _tissue(explanation, volume, point)
    changed = next((layer.volume for layer in explanation.maps.values() if layer.kind == "signed"), None)
    whole = explanation.method == "counterfactual"  # the image is looked at, not the change in it alone
    if whole or changed is None or changed.shape != volume.shape or not changed.array.any():
        return window(volume.array)
    low, high = bounds(changed.array)
    box = tuple(slice(max(0, a - (b - a) // 4 - 2), b + (b - a) // 4 + 2) for a, b in zip(low, high))
    images = [volume.array] + [layer.volume.array for layer in explanation.maps.values() if layer.kind == "image"]
    values = np.concatenate([_some(image[box]) for image in images if image.shape == volume.shape])
    if not len(values):
        return window(volume.array)
    low, high = (float(v) for v in np.percentile(values, (1, 99)))
    return (low, high) if low < high else window(volume.array)


def _tissue(explanation, volume: Volume, point, reach: float = 40.0, narrowest: float = 100.0) -> tuple[float, float]:
    """A window for a CT: the tissue within ``reach`` mm of a point, before and after; without air and bone where they are less.

    Less than ``narrowest`` HU would show noise.
    """
    at = np.asarray(volume.ras_to_index(point), float)
    half = reach / np.asarray(volume.spacing[::-1], float)
    box = tuple(slice(max(0, int(c - h)), max(1, int(c + h) + 2)) for c, h in zip(at, half))
    axes = [np.arange(*s.indices(n)) for s, n in zip(box, volume.shape)]
    near = sum((((a - c) / h) ** 2).reshape([-1 if n == m else 1 for m in range(3)]) for n, (a, c, h) in enumerate(zip(axes, at, half)))  # fmt: skip
    images = [volume.array] + [layer.volume.array for layer in explanation.maps.values() if layer.kind == "image"]
    values = np.concatenate([_some(image[box][near <= 1]) for image in images if image.shape == volume.shape])
    soft = values[(values > -200) & (values < 400)]
    values = soft if len(soft) > len(values) / 2 else values
    if not len(values):
        return window(volume.array)
    low, high = (float(v) for v in np.percentile(values, (2, 98)))
    more = max(0.0, narrowest - (high - low)) / 2
    return low - more, high + more


def place_of(explanation, volume: Volume) -> tuple[float, float, float]:
    """Where to look (RAS, mm): at the neuron, else where most of the heat is, else at a voxel that was changed or marked, in the slice with most of them."""
    point = explanation.provenance.get("neuron_ras") or explanation.provenance.get("point_ras")
    if point is not None:
        return tuple(float(v) for v in point)
    if explanation.method == "cycle":
        return volume.index_to_ras([(one.start + one.stop - 1) / 2 for one in looked_at(explanation, volume, likeliest=True)])  # fmt: skip
    heat = next((layer.volume.array for layer in explanation.maps.values() if layer.kind == "positive"), None)
    if heat is not None and heat.shape == volume.shape and heat.any():
        return hottest(volume.with_array(heat))
    array = interesting(explanation, volume)
    if array is None:
        return volume.index_to_ras([n // 2 for n in volume.shape])
    return volume.index_to_ras(middle(array))


def looked_at(explanation, volume: Volume, likeliest: bool = False) -> tuple[slice, slice, slice]:
    """The part of a volume's grid that the networks looked at; all of it where nothing is told. ``likeliest``: of several windows or slices the one whose figures are told."""
    known = explanation.provenance
    told = (known.get("likeliest") if likeliest else None) or known.get("patch") or {}
    start, stop = told.get("start") or (0, 0, 0), told.get("stop") or volume.shape
    return tuple(slice(int(a), int(b)) for a, b in zip(start, stop))


def hottest(heat: Volume) -> tuple[float, float, float]:
    """Where the slices with most heat meet (RAS, mm)."""
    sums = [heat.array.sum(tuple(m for m in range(3) if m != n), dtype=np.float64) for n in range(3)]
    return heat.index_to_ras([int(one.argmax()) for one in sums])


def middle(array: np.ndarray) -> tuple[int, int, int]:
    """A voxel that is not zero, in the middle of the row with most of them of the slice with most of them."""
    low, high = bounds(array)
    box = array[tuple(slice(a, b) for a, b in zip(low, high))] != 0
    k = _middle(box.sum((1, 2)))
    j = _middle(box[k].sum(1))
    return low[0] + k, low[1] + j, low[2] + _middle(box[k, j])


def _middle(counts: np.ndarray) -> int:
    """Of the places with the largest count the middle one: of a map that is everywhere, its middle and not its border."""
    found = np.flatnonzero(counts == counts.max())
    return int(found[len(found) // 2])


def interesting(explanation, volume: Volume) -> np.ndarray | None:
    """What an explanation changed or marked: its first signed map, else mask, else map that is not empty; None: nothing."""
    maps = [layer for layer in explanation.maps.values() if layer.kind != "image"]
    arrays = [layer.volume.array for layer in maps if layer.kind == "signed"]
    arrays += [mask.array for mask in explanation.masks.values()] + [layer.volume.array for layer in maps]
    return next((array for array in arrays if array.shape == volume.shape and array.any()), None)


def bounds(array: np.ndarray) -> tuple[list[int], list[int]]:
    """First and one past the last index of the box that holds all non-zero voxels; the first voxel when there is none."""
    low, high = [0, 0, 0], list(array.shape)
    for axis in range(3):
        box = array[tuple(slice(a, b) for a, b in zip(low, high))]
        found = np.flatnonzero(box.any(axis=tuple(n for n in range(3) if n != axis)))
        if not len(found):
            return [0, 0, 0], [1, 1, 1]
        low[axis], high[axis] = low[axis] + int(found[0]), low[axis] + int(found[-1]) + 1
    return low, high


def _some(array: np.ndarray, nonzero: bool = False, enough: int = 500_000) -> np.ndarray:
    """A fair share of the finite voxels; all of them where a small spot might be missed."""
    for step in (max(1, array.size // enough), 1):
        values = array.reshape(-1)[::step] if array.flags.c_contiguous else array.ravel()[::step]
        values = values[np.isfinite(values) & ((values != 0) if nonzero else True)]
        if len(values) > 1000:
            break
    return values[:: max(1, len(values) // enough)].astype(np.float64)


class Views:
    """What the slice views showed before a run, so that it can be put back.

    ``input`` is the run's volume as long as the run may still be cancelled: then the background goes back as well.
    """

    def __init__(self, scene, input_id: str | None = None):
        self.scene, self.input, self.alone = scene, input_id, False
        self.before = {node.GetID(): _layers(node) for node in of_class(scene, "vtkMRMLSliceCompositeNode")}
        self.outlines = {n.GetID(): n.GetUseLabelOutline() for n in of_class(scene, "vtkMRMLSliceNode")}

    def show_alone(self, node) -> None:
        """The input, without another run's maps over it: what this run shows is a segment."""
        self.alone = True
        show(self.scene, node)
        others = {one.GetID() for one in of_class(self.scene, "vtkMRMLScalarVolumeNode") if run_id(self.scene, one)}
        for composite in of_class(self.scene, "vtkMRMLSliceCompositeNode"):
            clear(composite, others - {node.GetID()})

    def put_back(self, gone: set[str]) -> None:
        """Where a view shows one of the nodes ``gone``, show what it showed before."""
        for node in of_class(self.scene, "vtkMRMLSliceCompositeNode"):
            before = self.before.get(node.GetID())
            found = clear(node, gone, before)
            for one, opacity in before["over"] if found and before else ():
                if one not in gone and self.scene.GetNodeByID(one):
                    _lay(node, one, opacity)
            if self.alone and before:
                for layer in ("Foreground", "Label"):
                    old = before[layer]
                    if (
                        old
                        and old not in gone
                        and self.scene.GetNodeByID(old)
                        and not getattr(node, f"Get{layer}VolumeID")()
                    ):
                        getattr(node, f"Set{layer}VolumeID")(old)
            if (found or self.alone) and before and self.input and node.GetBackgroundVolumeID() == self.input:
                old = before["Background"]
                node.SetBackgroundVolumeID(old if old and self.scene.GetNodeByID(old) else None)
        for node in of_class(self.scene, "vtkMRMLSliceNode"):
            if node.GetID() in self.outlines:
                node.SetUseLabelOutline(self.outlines[node.GetID()])


def _layers(node) -> dict:
    return {
        "Background": node.GetBackgroundVolumeID(), "Foreground": node.GetForegroundVolumeID(),
        "Label": node.GetLabelVolumeID(), "foreground": node.GetForegroundOpacity(), "label": node.GetLabelOpacity(),
        "over": _over(node),
    }  # fmt: skip


def _over(node) -> list[tuple[str, float]]:
    """The layers of a slice view above background, foreground and label, with their opacity (none before Slicer 5.10)."""
    if not hasattr(node, "GetNumberOfAdditionalLayers"):
        return []
    at = range(node.Layer_Last, node.Layer_Last + node.GetNumberOfAdditionalLayers())
    return [(node.GetNthLayerVolumeID(n) or "", node.GetNthLayerOpacity(n)) for n in at]


def _lay(node, volume_id: str, opacity: float) -> None:
    if hasattr(node, "GetNumberOfAdditionalLayers"):
        known = [one for one, _ in _over(node)]
        n = node.Layer_Last + (known.index(volume_id) if volume_id in known else len(known))
        with modifying(node):
            if volume_id not in known:
                node.SetNthLayerVolumeID(n, volume_id)
            node.SetNthLayerOpacity(n, opacity)


def lay_over(scene, node, opacity: float) -> None:
    """Lay a map over background and foreground of every slice view; their fade does not touch it."""
    for composite in of_class(scene, "vtkMRMLSliceCompositeNode"):
        _lay(composite, node.GetID(), opacity)


def opacity_over(scene, node) -> float | None:
    """The opacity of a map that lies over a slice view's other layers; None where none has it."""
    views = of_class(scene, "vtkMRMLSliceCompositeNode")
    return next((opacity for view in views for one, opacity in _over(view) if one == node.GetID()), None)


def clear(node, gone: set[str], before: dict | None = None) -> bool:
    """Take nodes out of a slice view's layers; put back what was there, if it still is, else nothing.

    Returns whether the view showed any of them.
    """
    scene, before, found = node.GetScene(), before or {}, False
    with modifying(node):
        for layer in ("Background", "Foreground", "Label"):
            if getattr(node, f"Get{layer}VolumeID")() in gone:
                found = True
                old = before.get(layer)
                old = old if old and old not in gone and scene.GetNodeByID(old) else None
                getattr(node, f"Set{layer}VolumeID")(old)
                if layer != "Background" and layer.lower() in before:
                    getattr(node, f"Set{layer}Opacity")(before[layer.lower()])
        if hasattr(node, "GetNumberOfAdditionalLayers"):
            for n in reversed(range(node.GetNumberOfAdditionalLayers())):
                if node.GetNthLayerVolumeID(node.Layer_Last + n) in gone:
                    found = True
                    node.SetNthLayerVolumeID(node.Layer_Last + n, None)
    return found


def show(scene, background=None, foreground=None, opacity: float | None = None, label=None) -> None:
    """Choose layers in every slice view; None leaves a layer as it is."""
    for node in of_class(scene, "vtkMRMLSliceCompositeNode"):
        with modifying(node):
            if background is not None and node.GetBackgroundVolumeID() != background.GetID():
                node.SetBackgroundVolumeID(background.GetID())
            if foreground is not None and node.GetForegroundVolumeID() != foreground.GetID():
                others = [scene.GetNodeByID(one) for one, _ in _over(node)]
                ours = {"", run_id(scene, foreground)}
                clear(node, {one.GetID() for one in others if one is not None and run_id(scene, one) not in ours})
                node.SetForegroundVolumeID(foreground.GetID())
            if opacity is not None:
                node.SetForegroundOpacity(opacity)
            if label is not None:
                node.SetLabelVolumeID(label.GetID())
                node.SetLabelOpacity(1.0)
    if label is not None:
        for node in of_class(scene, "vtkMRMLSliceNode"):
            node.SetUseLabelOutline(True)


def show_again(scene, run: str, background=None) -> None:
    """Put a finished run's layers into the views as they were when it ended: steps (or image, or first map) and step masks."""
    nodes = [n for n in of_run(scene, run) if n.IsA("vtkMRMLScalarVolumeNode") and n.GetDisplayNode() is not None]
    nodes = [n for n in nodes if BROWSE not in name_of(scene, n)]
    labels = [n for n in nodes if n.IsA("vtkMRMLLabelMapVolumeNode")]
    steps = {n.GetID() for n in nodes if STEP in name_of(scene, n)}
    ours = {f"vtkMRMLColorTableNode{tag}" for tag in colors.OURS}
    maps = [n for n in nodes if n not in labels]
    maps.sort(key=lambda n: (n.GetDisplayNode().GetColorNodeID() in ours, n.GetID() not in steps))
    if maps:
        image = maps[0].GetDisplayNode().GetColorNodeID() not in ours
        show(scene, background, maps[0], OPAQUE if image else OVERLAY, labels[0] if labels else None)
