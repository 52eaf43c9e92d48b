"""An explanation as `scene.mrb`: what a run would leave in Slicer, written without Slicer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..explanation import Explanation
from ..volume import Volume
from . import require_slicer


def save_scene(explanation: Explanation, volumes: list[Volume], segments: Sequence[Volume], path) -> None:
    """Write the inputs and everything an explanation says as one file that opens in 3D Slicer.

    Parameters
    ----------
    explanation : Explanation
    volumes : list of Volume
        The inputs; the first one is the grid of the maps. They keep their names.
    segments : sequence of Volume
        The masks the run was started with, on any grid: one segmentation.
    path : str or Path
        The `.mrb` file.

    Raises
    ------
    MedXAIError
        ``kind="missing"`` without Slicer's libraries, ``kind="disk"`` when the file cannot be written.
    """
    require_slicer()
    from .host import HeadlessHost

    host = HeadlessHost()
    build(host, explanation, volumes, segments)
    host.save(Path(path))


def build(host, explanation: Explanation, volumes: list[Volume], segments: Sequence[Volume] = ()):
    """The same in a headless host's scene, unsaved; returns the `write.Run`."""
    from . import impact
    from .layers import place_of, window_of
    from .write import Run

    scene = host.scene
    windows = [window_of(explanation, volume) if n == 0 else None for n, volume in enumerate(volumes)]
    inputs = [add_input(scene, volume, window) for volume, window in zip(volumes, windows)]
    roles = {}
    if impact.of(explanation):  # the mask of an earlier run is no segment
        segments = [one for one in segments if impact.role(one) != "start"]
        roles = {impact.role(one): one.name for one in segments}
    segmentation = _segmentation(scene, inputs[0], segments, "Segments" if roles else "Landmarks") if segments else None
    segment_id = roles.get("annotation", "") if roles else segments[0].name if len(segments) == 1 else ""
    run = Run(host, inputs, title_of(explanation), segmentation, segment_id)
    if "organ" in roles:
        run.parts["organ"] = (segmentation, roles["organ"])
    run.finish(explanation)
    aim(host, inputs[0], place_of(explanation, volumes[0]))
    return run


def _segmentation(scene, volume_node, masks: Sequence[Volume], title: str):
    """The masks as one segmentation node: one annotation, or several under a title."""
    from . import colors, segments
    from .nodes import place

    alone = len(masks) == 1
    node = segments.add_segmentation(scene, f"{masks[0].name} segmentation" if alone else title, volume_node)
    for mask in masks:
        name = node.GetSegmentation().GenerateUniqueSegmentID(mask.name)  # two landmarks may have one name
        segments.set_mask(node, name, mask, mask.ijk_to_ras, colors.ANNOTATION if alone else None)
        node.GetSegmentation().GetSegment(name).SetName(mask.name)
    if alone:
        node.GetDisplayNode().SetSliceIntersectionThickness(4)  # still seen below the outline of an output that agrees
    place(scene, node, _top(scene))
    return node


def title_of(explanation: Explanation) -> str:
    """The folder's name: method and model."""
    model = explanation.provenance.get("model") or ""
    model = model.get("name", "") if isinstance(model, dict) else model
    return f"{explanation.title}: {model}" if model else explanation.title


def add_input(scene, volume: Volume, window: tuple[float, float] | None = None):
    """A volume as an input node, in a window that shows it."""
    import slicer

    from . import layers
    from .nodes import place

    node = layers.add_volume(scene, volume, volume.name)
    shown = slicer.vtkMRMLScalarVolumeDisplayNode()
    shown.SetName(f"{volume.name} display")
    shown.SetAutoWindowLevel(False)
    shown.SetWindowLevelMinMax(*(window or layers.window(volume.array)))
    shown.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    scene.AddNode(shown)
    node.SetAndObserveDisplayNodeID(shown.GetID())
    layers.tell_unit(node, volume)
    place(scene, node, _top(scene))
    return node


def aim(host, node, point_ras=None) -> None:
    """Turn a headless host's slice views along the volume, fit them, and put them on a point (the volume's own RAS)."""
    from . import read

    for logic in host.slices.values():
        if not straight(node):
            logic.RotateSliceToLowestVolumeAxes(False)
        logic.FitSliceToBackground()
        logic.SnapSliceOffsetToIJK()
        if point_ras is not None:
            logic.GetSliceNode().JumpSliceByOffsetting(*read.world(node, point_ras))


def straight(node) -> bool:
    """Whether the volume's axes are those of the world."""
    import vtk

    from .nodes import array_of

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASDirectionMatrix(matrix)
    between = vtk.vtkMatrix4x4()
    if node.GetParentTransformNode() is not None and node.GetParentTransformNode().IsTransformToWorldLinear():
        node.GetParentTransformNode().GetMatrixTransformToWorld(between)
    direction = np.abs((array_of(between) @ array_of(matrix))[:3, :3])
    return bool(np.all((direction < 1e-3) | (direction > 0.999)))


def _top(scene) -> int:
    from .nodes import hierarchy

    return hierarchy(scene).GetSceneItemID()
