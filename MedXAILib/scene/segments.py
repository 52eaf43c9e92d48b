"""Masks as segments. Only the box that holds the mask is stored."""

from __future__ import annotations

import numpy as np
import slicer
import vtk

from ..explanation import Patch
from ..volume import Volume
from . import colors
from .layers import bounds
from .nodes import array_of, matrix_of, modifying, voxels


def add_segmentation(scene, name: str, reference):
    """An empty segmentation node with the geometry of a volume node."""
    node = slicer.vtkMRMLSegmentationNode()
    node.SetName(scene.GenerateUniqueName(name))
    scene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    shown = node.GetDisplayNode()
    shown.SetOpacity2DFill(0.0)
    shown.SetOpacity2DOutline(1.0)
    shown.SetSliceIntersectionThickness(2)
    if reference is not None:
        node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    return node


def set_mask(node, segment_id: str, data: Volume | Patch, grid: np.ndarray, colour=None, terminology: str = "") -> None:
    """Write a mask into a segment (made when there is none of that id).

    Parameters
    ----------
    data : Volume or Patch
        Non-zero is inside; a patch says nothing about the rest of the grid but that it is outside.
    grid : ndarray, shape (4, 4)
        IJK-to-RAS of the whole grid.
    terminology : str
        Slicer's serialized terminology entry; empty where unknown.
    """
    segmentation = node.GetSegmentation()
    if segmentation.GetSegment(segment_id) is None:
        segment = slicer.vtkSegment()
        segment.SetName(segment_id)
        segment.SetColor(*(colour or colors.DISTINCT[segmentation.GetNumberOfSegments() % len(colors.DISTINCT)]))
        if terminology:
            segment.SetTag(segment.GetTerminologyEntryTagName(), terminology)
        segmentation.AddSegment(segment, segment_id)
    labels = _labels(data, grid)
    replace = slicer.vtkSlicerSegmentationsModuleLogic.MODE_REPLACE
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(labels, node, segment_id, replace)


def fill(node, segment_id: str, opacity: float) -> None:
    """Fill one segment in the slice views; the others are outlines."""
    shown = node.GetDisplayNode()
    with modifying(shown):
        shown.SetOpacity2DFill(1.0)
        for one in node.GetSegmentation().GetSegmentIDs():
            shown.SetSegmentOpacity2DFill(one, opacity if one == segment_id else 0.0)


def _labels(data: Volume | Patch, grid: np.ndarray):
    """The smallest labelmap that holds the mask, on the grid's lattice; one outside voxel when the mask is empty."""
    start = data.start if isinstance(data, Patch) else (0, 0, 0)
    low, high = bounds(data.array)
    box = data.array[tuple(slice(a, b) for a, b in zip(low, high))]
    low = [a + b for a, b in zip(low, start)]
    labels = slicer.vtkOrientedImageData()
    extent = [v for a, n in zip(low[::-1], box.shape[::-1]) for v in (a, a + n - 1)]
    labels.SetExtent(*extent)
    labels.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    labels.SetImageToWorldMatrix(matrix_of(grid))
    np.not_equal(box, 0, out=voxels(labels).view(bool))
    return labels


def grid_of(volume_node) -> np.ndarray:
    """IJK-to-RAS of a volume node's grid."""
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    return array_of(matrix)
