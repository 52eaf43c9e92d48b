"""A run in the scene: live while it computes, complete when it ends, gone when it is cancelled."""

from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
import slicer

from ..explanation import Curve, Explanation, Layer, Patch, Point
from ..volume import Volume
from . import charts, colors, cycle, impact, layers, pick, read, remove, repeat, segments, sequences
from .nodes import INPUT, NAME, RUN, drawable, hierarchy, modifying, place, sign, voxels

#: What a preview is when nobody says (by the explanation's name).
KINDS = {"dream": "image", "mask": "mask", "map": "mask", "change": "signed", "heat": "positive", "relevance": "signed"}
#: How a preview is shown, beside its kind.
PREVIEWS = {
    "heat": {"low": 0.0, "least": 1.0},  # of a back-projection: from an even spread on
    impact.MASK: {"title": "Deleted share", "low": 0.0, "high": 1.0, "least": 0.05},
    impact.INPAINTED: {"title": "Without the finding"},
}
#: Colours of masks that are seen together.
COLOURS = {pick.SEGMENT: colors.MASK, "output": colors.OUTPUT, impact.REGION: colors.OUTPUT}
#: What is known of a curve before its explanation is there.
LIVE = {
    "curves": {"title": "Response and features", "shown": ("response",), "units": {"response": "logit"}},
    "normalized": {
        "title": "Features along the dream", "value_title": "Normalized value (0: reference mean, 1: one SD)",
        "bands": {"reference ± 1 SD": (-1.0, 1.0)},
    },
    "sensitivity": {
        "title": "How much of each step is this feature", "value_title": "Share of the step's squared length", "limits": (0.0, 1.0),
    },
    "transition": {
        "title": "From image to output", "index": "layer", "index_title": "Layer (0: input image)",
        "value_title": "SA score (Dice)", "shown": ("SA score",), "limits": (0.0, 1.0),
    },
    impact.CURVE: {
        "title": "Optimisation", "value_title": "Probability of the class, share deleted", "shown": ("probability", "area"),
        "limits": (0.0, 1.0),
    },
}  # fmt: skip


class Run:
    """One run: a folder in the subject hierarchy, beside its first input.

    Parameters
    ----------
    host : Host
        `host.ApplicationHost` or `host.HeadlessHost`.
    inputs : node or list of nodes
        The volumes that are explained, the first one the grid of everything that comes. They are never modified.
    title : str
        The folder's name.
    segmentation, segment_id : node, str
        The segment (or, without an ID, the segments) that was used, where there is one; for "Repeat this run".
    show : bool
        Whether the slice views show the layers. Zoom, slice and layout stay as they are.
    """

    def __init__(self, host, inputs, title="Explanation", segmentation=None, segment_id="", show=True):
        self.host, self.scene = host, host.scene
        self.inputs = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        self.segmentation, self.segment_id = segmentation, segment_id
        self.id = uuid.uuid4().hex
        self.shows = show
        self.views, self.charts = (
            layers.Views(self.scene, self.inputs[0].GetID() if show else None),
            charts.Charts(self.scene),
        )
        tree = hierarchy(self.scene)
        item = tree.GetItemByDataNode(self.inputs[0])
        beside = tree.GetItemParent(item) if item else tree.GetSceneItemID()
        self.folder = tree.CreateFolderItem(beside, tree.GenerateUniqueItemName(title))
        tree.SetItemAttribute(self.folder, RUN, self.id)
        self.nodes: dict[str, object] = {}  # maps by name
        self.masks = self.about = None
        self.tables: dict[str, object] = {}
        self.parts: dict[str, tuple] = {}  # other segments that were used: role to (segmentation node, segment ID)
        self.theta: float | None = None  # of a mask of shares: its region is outlined as it comes
        self.done: Explanation | None = None  # as `light` gives it: what was finished, for a run that begins again
        self.curves: dict[str, dict] = {}
        self.live: dict[str, charts.Live] = {}
        remove.remember(self)
        remove.watch(self.scene)

    # Live --------------------------------------------------------------------------------------------------------

    def preview(self, name: str, data: Volume | Patch, kind: str | None = None, title: str = "") -> None:
        """Show a map as it is at this step: made the first time (from a `Volume`), afterwards written in place."""
        kind = kind or KINDS.get(name, "image")
        if kind == "mask" and data.array.dtype.kind == "f":
            kind = "probability"  # how much of each voxel, not which voxels
        if kind == "mask":
            self._mask(name, data)
            return
        node = self.nodes.get(name)
        if node is not None and (isinstance(data, Patch) or layers.same_grid(node, data)):
            layers.write_voxels(node, data)
        elif isinstance(data, Patch):
            return  # a patch of something that was never shown whole
        else:
            self._map(name, Layer(**{"volume": data, "kind": kind, "title": title, **PREVIEWS.get(name, {})}))
        if kind == "probability" and self.theta is not None:
            now = impact.region(voxels(self.nodes[name].GetImageData()), self.theta)
            self._mask(impact.REGION, Volume(now, segments.grid_of(self.inputs[0]), impact.REGION))

    def point(self, curve: str | Point, step: int = 0, values: dict | None = None, **about) -> None:
        """Add values to a curve; table and chart follow. ``about``: fields of `Curve` (title, bands, shown…)."""
        self.points([curve if isinstance(curve, Point) else Point(curve, step, values)], **about)

    def points(self, points, **about) -> None:
        """Add many values at once; each table and chart is updated once."""
        changed = {}
        for point in points:
            if point.curve not in self.live:
                known = LIVE.get(point.curve, {"title": point.curve.replace("_", " ").capitalize()})
                fields = {"index": "step", "index_title": "Step", **known, **about}
                self.live[point.curve] = charts.Live(Curve(columns={}, **fields))
            self.live[point.curve].add(point.step, point.values)
            changed[point.curve] = True
        for name in changed:
            if name not in self.curves or len(self.live[name].steps) > 1:  # a chart that is begun again is not emptied
                self._curve(name, self.live[name].now())

    def begin_again(self) -> Explanation | None:
        """The same run computes anew, and what comes replaces what is there.

        Returns what was finished, for `finish` to put it back; None where nothing was.
        """
        self.live.clear()
        before, self.done = self.done, None
        if before is None:
            return None
        now = {name: voxels(self.nodes[name].GetImageData()).copy() for name in before.maps}
        maps = {n: replace(layer, volume=layer.volume.with_array(now[n])) for n, layer in before.maps.items()}
        return replace(before, maps=maps)

    @property
    def whole(self) -> bool:
        """Whether nobody has removed anything of it."""
        charts_ = [one["chart"] for one in self.curves.values()] + [one["table"] for one in self.curves.values()]
        nodes = [*self.inputs, *self.nodes.values(), *self.tables.values(), *charts_, self.masks, self.about]
        return all(self.scene.IsNodePresent(node) for node in nodes if node is not None)

    # The end -----------------------------------------------------------------------------------------------------

    def finish(self, explanation: Explanation) -> int:
        """Put everything in place and return the folder's item."""
        tree = hierarchy(self.scene)
        known = repeat.stamps(explanation, self)
        looked_up = sequences.picked(explanation)
        first = next(iter(looked_up), None)
        for name, layer in explanation.maps.items():
            self._map(name, layer, show=first is None)
        for name, mask in explanation.masks.items():
            self._mask(name, mask, explanation.provenance)
        for name in explanation.curves:
            self._curve(name, charts.grouped(explanation, name))
        for name, table in explanation.tables.items():
            if name in self.tables:
                charts.fill(self.tables[name], table.columns)
            else:
                self.tables[name] = self._keep(charts.add_plain_table(self.scene, table, name), name)
        self._sequences(explanation, known)
        self._neuron(explanation.provenance)
        self._words(explanation)
        self._drop(explanation)
        if cycle.of(explanation):
            self._morph(explanation)
        if first is not None:
            pick.show(self.scene, self.id, first, looked_up[first].items[-1][0])
        for node in remove.nodes_of(self.scene, self.id):
            with modifying(node):
                for key, value in known.items():
                    node.SetAttribute(key, value)
                if not node.IsA("vtkMRMLDisplayNode") and not node.IsA("vtkMRMLStorageNode"):
                    for volume in self.inputs:
                        if not node.HasNodeReferenceID(INPUT, volume.GetID()):
                            node.AddNodeReferenceID(INPUT, volume.GetID())
                    if self.segmentation is not None:
                        node.SetNodeReferenceID(repeat.SEGMENTATION, self.segmentation.GetID())
                    for role, (other, _) in self.parts.items():
                        if self.scene.IsNodePresent(other):
                            node.SetNodeReferenceID(f"{repeat.SEGMENTATION}.{role}", other.GetID())
        for key, value in known.items():
            tree.SetItemAttribute(self.folder, key, value)
        self.views.input = None  # from now on the views' background is the person's own
        if self.shows:
            if first is not None:
                self.views.show_alone(self.inputs[0])
            elif impact.of(explanation):
                impact.Impact(self.scene, self.id, self.inputs[0]).show()
            elif cycle.of(explanation):
                cycle.Cycle(self.scene, self.id).show(True)
            else:
                layers.show_again(self.scene, self.id, self.inputs[0] if self.nodes else None)
            for name in ("normalized", "transition", *self.curves):
                if name in self.curves and self.curves[name]["series"]:
                    charts.show_chart(self.scene, self.curves[name]["chart"])
                    break
        return self.folder

    def discard(self) -> None:
        """Leave the scene as it was before the run."""
        remove.remove(self.scene, self.folder)

    # Parts -------------------------------------------------------------------------------------------------------

    def _keep(self, node, name: str, spatial: bool = False):
        """Sign a node of this run and put it into the folder, under the input's transform where it lies in space."""
        item = 0 if node.GetHideFromEditors() else place(self.scene, node, self.folder)
        sign(self.scene, node, item, self.id, name)
        if spatial:
            node.SetAndObserveTransformNodeID(self.inputs[0].GetTransformNodeID())
            for n in range(node.GetNumberOfDisplayNodes()):
                node.GetNthDisplayNode(n).SetAttribute(RUN, self.id)
        return node

    def _drop(self, explanation: Explanation) -> None:
        """What was shown on the way but is no part of the result goes."""
        known = {*explanation.maps, *(f"{name} {sequences.mark(one)}" for name, one in explanation.sequences.items())}
        masks = {*explanation.masks, *(pick.SEGMENT for _ in sequences.picked(explanation))}
        gone = [self.nodes.pop(name) for name in list(self.nodes) if name not in known]
        for name in [name for name in self.curves if name not in explanation.curves]:
            made = self.curves.pop(name)
            gone += [*made["series"], made["chart"], made["table"]]
        if self.masks is not None:
            for name in self.masks.GetSegmentation().GetSegmentIDs():
                if name not in masks:
                    self.masks.GetSegmentation().RemoveSegment(name)
        for node in gone:
            self.scene.RemoveNode(node)  # views and displays follow, as when somebody deletes it by hand

    def _map(self, name: str, layer: Layer, show: bool = True) -> None:
        node = self.nodes.get(name)
        if node is not None and layers.same_grid(node, layer.volume):
            layers.write_voxels(node, layer.volume)
        else:
            node = layers.add_volume(self.scene, layer.volume, self.scene.GenerateUniqueName(_title(name, layer.title)))
        layers.display(self.scene, node, layer, self.inputs[0])
        fresh = name not in self.nodes
        self.nodes[name] = self._keep(node, name, spatial=True)
        if self.shows and show and fresh and len(self.nodes) == 1:
            opacity = layers.OPAQUE if layer.kind == "image" else layers.OVERLAY
            layers.show(self.scene, self.inputs[0], node, opacity)
        if self.shows and show and fresh and {impact.MASK, impact.INPAINTED} <= self.nodes.keys():
            impact.Impact(self.scene, self.id, self.inputs[0]).show()

    def _morph(self, explanation: Explanation) -> None:
        """The volume that the morph's slider writes, in the box that was looked at."""
        volume = read.volume(self.inputs[0])
        self._map(cycle.MORPH, cycle.morph_layer(explanation, volume), show=False)
        node = self.nodes[cycle.MORPH]
        where = cycle.box(explanation, volume)
        node.SetAttribute(cycle.BOX, " ".join(str(one.start) for one in where[::-1]))
        node.SetAttribute(cycle.POSITION, "0")
        layers.legend_of_another(self.scene, node, explanation.maps[cycle.RELEVANCE])
        self._keep(node, cycle.MORPH, spatial=True)

    def _mask(self, name: str, data: Volume | Patch, provenance: dict | None = None) -> None:
        if self.masks is None:
            self.masks = segments.add_segmentation(self.scene, "Masks", self.inputs[0])
            self._keep(self.masks, "masks", spatial=True)
            if self.shows and not self.nodes:
                self.views.show_alone(self.inputs[0])
        grid = data.ijk_to_ras if isinstance(data, Volume) else segments.grid_of(self.inputs[0])
        terminology = (provenance or {}).get("terminology") or ""
        if isinstance(terminology, dict):
            terminology = terminology.get(name, "")
        fresh = self.masks.GetSegmentation().GetSegment(name) is None
        segments.set_mask(self.masks, name, data, grid, COLOURS.get(name), terminology)
        if fresh and self.masks.GetSegmentation().GetSegment(pick.SEGMENT) is not None:
            segments.fill(self.masks, pick.SEGMENT, pick.FILL)

    def _curve(self, name: str, curve: Curve) -> None:
        if name in self.curves:
            new = charts.update_curve(self.scene, self.curves[name], curve)
        else:
            made = self.curves[name] = charts.add_curve(self.scene, name)
            new = charts.update_curve(self.scene, made, curve)
            self._keep(made["table"], name)
            self._keep(made["chart"], name)
        if self.shows and new and len(new) == len(self.curves[name]["series"]):  # an empty chart would be a black view
            charts.show_chart(self.scene, self.curves[name]["chart"])
        for series in new:
            self._keep(series, name)

    def _sequences(self, explanation: Explanation, known: dict[str, str]) -> None:
        steps, rest = [], []
        for name, sequence in explanation.sequences.items():
            if sequence.items:
                browsed = sequences.browsed(sequence)
                sequence = sequences.cropped(sequence) if browsed and sequence.kind == "mask" else sequence
                marks = {**known, RUN: self.id, NAME: f"{name} {sequences.mark(sequence)}"}
                node = sequences.add_sequence(self.scene, sequence, name, marks)
                if sequence.thinned:
                    node.SetAttribute("MedXAI.Thinned", str(sequence.thinned))
                (rest if browsed else steps).append((sequence, name, self._keep(node, name)))
        # What is played moves together; what is looked up has a browser each (Slicer's toolbar offers the one that came last).
        for name, items in [("steps", steps), *((one[1], [one]) for one in reversed(rest))]:
            if not items:
                continue
            title = f"{hierarchy(self.scene).GetItemName(self.folder)} {name}"
            browser, proxies = sequences.add_browser(self.scene, self.host, title, items, self.inputs[0])
            self._keep(browser, name)
            for proxy, (sequence, one, _) in zip(proxies, items):
                self.nodes[f"{one} {sequences.mark(sequence)}"] = proxy
                self._keep(proxy, f"{one} {sequences.mark(sequence)}", spatial=True)

    def _neuron(self, provenance: dict) -> None:
        point = provenance.get("neuron_ras") or provenance.get("point_ras")
        if point is None:
            return
        selection = self.scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
        active = selection.GetActivePlaceNodeID() if selection is not None else None
        node = slicer.vtkMRMLMarkupsFiducialNode()
        node.SetName(self.scene.GenerateUniqueName("Neuron"))
        self.scene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        node.AddControlPoint([float(v) for v in point])
        node.SetNthControlPointLabel(0, "neuron")
        node.SetNthControlPointLocked(0, True)
        node.SetLocked(True)
        shown = node.GetDisplayNode()
        shown.SetGlyphTypeFromString("Cross2D")
        shown.SetGlyphScale(2.5)
        shown.SetTextScale(2.5)
        shown.SetSelectedColor(0.2, 1.0, 0.5)
        shown.SetPointLabelsVisibility(False)
        self._keep(node, "neuron", spatial=True)
        if selection is not None:
            selection.SetActivePlaceNodeID(active)  # the next point somebody places is not ours

    def _words(self, explanation: Explanation) -> None:
        if self.about is None:
            node = slicer.vtkMRMLTextNode()
            node.SetName(self.scene.GenerateUniqueName("About this run"))
            self.about = self._keep(self.scene.AddNode(node), "about")
        self.about.SetText(repeat.words(explanation))


def light(explanation: Explanation) -> Explanation:
    """An explanation without the voxels of its maps, which the run's nodes hold, and with nothing in the worker's files."""
    empty = {n: np.broadcast_to(np.float32(0), layer.volume.shape) for n, layer in explanation.maps.items()}
    return replace(
        explanation,
        maps={n: replace(one, volume=one.volume.with_array(empty[n])) for n, one in explanation.maps.items()},
        masks={n: one.with_array(np.array(one.array)) for n, one in explanation.masks.items()},
        curves={
            n: replace(one, columns={k: np.array(v) for k, v in one.columns.items()})
            for n, one in explanation.curves.items()
        },
        sequences={},
    )


def _title(name: str, title: str) -> str:
    """A node's name: what a person calls it, without the unit."""
    return drawable((title.split(" [")[0] or name).strip())
