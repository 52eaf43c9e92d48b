"""Nodes to volumes and points. What is read is never modified."""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support

from ..errors import MedXAIError
from ..volume import Volume, mask_on_grid
from . import host
from .layers import middle
from .nodes import array_of, hierarchy, of_class, voxels

_HOUNSFIELD = ("[hnsf'U]", "Hounsfield unit", "Hounsfield Unit", "HU")


def volume(node, copy: bool = False) -> Volume:
    """A scalar volume node as a `Volume` in the node's own coordinates.

    Parameters
    ----------
    node : vtkMRMLScalarVolumeNode
        Its parent transform is not applied: results are put under the same transform (``attributes["transform"]`` names it).
    copy : bool
        By default the voxels are a read-only view of the node's, valid until somebody writes into the node.

    Raises
    ------
    MedXAIError
        For a node without voxels, a label map, a colour picture or a tensor volume.
    """
    if node is None:
        raise MedXAIError("No volume is chosen; choose the volume to explain.")
    name = node.GetName() or "volume"
    image = node.GetImageData() if node.IsA("vtkMRMLVolumeNode") else None
    if image is None or image.GetPointData().GetScalars() is None:
        raise MedXAIError(f"'{name}' holds no voxels; load a volume into it or choose another one.")
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise MedXAIError(f"'{name}' is a label map; choose the image it belongs to.")
    if not node.IsA("vtkMRMLScalarVolumeNode") or node.IsA("vtkMRMLDiffusionTensorVolumeNode"):
        raise MedXAIError(f"'{name}' is not a scalar volume; choose an image with one value per voxel.")
    components = image.GetNumberOfScalarComponents()
    if components == 1:
        array = voxels(image)
    else:
        array = _grey(image, components, name)
    if copy and array.base is not None:
        array = array.copy()
    array.flags.writeable = False
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return Volume(array, array_of(matrix), name, _unit(node), _attributes(node))


def _grey(image, components: int, name: str) -> np.ndarray:
    """A radiograph stored as a colour picture holds the same number three times."""
    flat = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    if components in (3, 4) and (flat[:, :1] == flat[:, 1:3]).all():
        return np.ascontiguousarray(flat[:, 0]).reshape(image.GetDimensions()[::-1])
    raise MedXAIError(
        f"'{name}' has {components} values per voxel (a colour picture or several channels); convert it to a scalar volume"
        " with the module Vector to Scalar Volume."
    )


def _unit(node) -> str:
    code = node.GetVoxelValueUnits()
    if code is None:
        return ""
    if code.GetCodeValue() in _HOUNSFIELD or code.GetCodeMeaning() in _HOUNSFIELD:
        return "HU"
    return code.GetCodeMeaning() or code.GetCodeValue() or ""


def _attributes(node) -> dict:
    found = {}
    if node.GetTransformNodeID():
        found["transform"] = node.GetTransformNodeID()
    tree = hierarchy(node.GetScene()) if node.GetScene() else None
    item = tree.GetItemByDataNode(node) if tree else 0
    modality = tree.GetAttributeFromItemAncestor(item, "DICOM.Modality", "") if item else ""
    if modality:
        found["modality"] = modality
    stored = _stored(node)
    if stored is not None:
        found["stored_low"], found["stored_high"] = stored
    return found


def _stored(node) -> tuple[float, float] | None:
    """The smallest and largest value that a volume's file could hold; None where nothing says so.

    Of DICOM, from the bits stored, with slope and intercept; of a PNG of 16 bits, all of them.
    """
    instance = (node.GetAttribute("DICOM.instanceUIDs") or "").split()
    if instance:
        told = [host.dicom(instance[0], tag) for tag in ("0028,0101", "0028,0103", "0028,1053", "0028,1052")]
        try:
            bits, signed, slope, shift = int(told[0]), told[1] == "1", float(told[2] or 1), float(told[3] or 0)
        except ValueError:
            return None
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return tuple(sorted((slope * low + shift, slope * high + shift)))
    file = node.GetStorageNode().GetFileName() if node.GetStorageNode() is not None else ""
    wide = node.GetImageData().GetScalarType() == vtk.VTK_UNSIGNED_SHORT
    return (0, 65535) if wide and (file or "").lower().endswith(".png") else None


def segment(segmentation, segment_id: str, volume_node) -> Volume:
    """A segment as a mask (uint8, 0 and 1) on a volume's grid, nearest neighbour.

    The segment's own lattice and the transforms of both nodes are taken into account.

    Raises
    ------
    MedXAIError
        When there is no such segment, it is empty, or it lies outside the volume.
    """
    grid = volume(volume_node)
    part = segmentation.GetSegmentation().GetSegment(segment_id) if segmentation is not None else None
    if part is None:
        raise MedXAIError("No segment is chosen; choose one, or clear the segmentation.")
    name = part.GetName() or segment_id
    labels = _labelmap(segmentation, segment_id, volume_node)
    if labels is None or labels.GetPointData().GetScalars() is None or 0 in labels.GetDimensions():
        raise MedXAIError(f"The segment '{name}' is empty; draw it or choose another one.")
    between = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        segmentation.GetParentTransformNode(), volume_node.GetParentTransformNode(), between
    )
    linear = vtk.vtkTransform()
    if not slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(between, linear):
        labels, linear = _warped(labels, between, volume_node), vtk.vtkTransform()
    matrix = vtk.vtkMatrix4x4()
    labels.GetImageToWorldMatrix(matrix)
    corner = np.eye(4)
    corner[:3, 3] = labels.GetExtent()[::2]
    to_ras = array_of(linear.GetMatrix()) @ array_of(matrix) @ corner
    mask = Volume(voxels(labels), to_ras, name)
    found = _pasted(mask, grid)
    found = mask_on_grid(mask, grid) if found is None else found
    return grid.with_array(found.view(np.uint8), name, "")


def _pasted(mask: Volume, grid: Volume) -> np.ndarray | None:
    """The mask on the grid when it lies on the same lattice (the usual case, and ten times faster); None otherwise."""
    shift = np.linalg.solve(grid.ijk_to_ras, mask.ijk_to_ras)
    start = np.rint(shift[:3, 3][::-1]).astype(int)
    apart = np.abs(shift - np.eye(4))
    apart[:3, 3] = np.abs(shift[:3, 3] - start[::-1])
    if (apart[:3, :3] @ mask.shape[::-1] + apart[:3, 3]).max() > 0.01 or not mask.array.any():
        return None
    low, high = np.maximum(start, 0), np.minimum(start + mask.shape, grid.shape)
    if (low >= high).any():
        return None
    found = np.zeros(grid.shape, bool)
    target = tuple(slice(a, b) for a, b in zip(low, high))
    source = tuple(slice(a, b) for a, b in zip(low - start, high - start))
    np.not_equal(mask.array[source], 0, out=found[target])
    return found if found.any() else None


def _labelmap(segmentation, segment_id: str, volume_node):
    """The segment's binary labelmap, 0 and 1, in the segmentation's coordinates; made in a copy when it has none."""
    kind = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    labels = slicer.vtkOrientedImageData()
    if segmentation.GetSegmentation().ContainsRepresentation(kind):
        return labels if segmentation.GetBinaryLabelmapRepresentation(segment_id, labels) else None
    other = slicer.vtkSegmentation()
    other.SetSourceRepresentationName(segmentation.GetSegmentation().GetSourceRepresentationName())
    other.CopySegmentFromSegmentation(segmentation.GetSegmentation(), segment_id)
    geometry = slicer.vtkSegmentationConverter.SerializeImageGeometry(_reference(volume_node))
    other.SetConversionParameter(slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName(), geometry)
    if not other.CreateRepresentation(kind):
        return None
    labels.DeepCopy(other.GetSegment(segment_id).GetRepresentation(kind))
    return labels


def _reference(volume_node):
    """The volume's grid, without voxels, in the volume's own coordinates."""
    grid = slicer.vtkOrientedImageData()
    grid.SetDimensions(*volume_node.GetImageData().GetDimensions())
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    grid.SetGeometryFromImageToWorldMatrix(matrix)
    return grid


def _warped(labels, between, volume_node):
    """A labelmap resampled through a transform that is not linear, onto the volume's grid."""
    grid = _reference(volume_node)
    grid.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    result = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        labels, grid, result, False, False, between
    )
    return result


def visible_segments(segmentation) -> list[str]:
    """The IDs of the segments that are not hidden one by one; whether the segmentation as a whole is shown does not matter."""
    shown = segmentation.GetDisplayNode()
    names = segmentation.GetSegmentation().GetSegmentIDs()
    return [name for name in names if shown is None or shown.GetSegmentVisibility(name)]


def slice_shown(scene, volume_node, orientation: str | None = None) -> str:
    """The slice of a volume that the slice views show, such as ``k:57``; for a network that looks at slices.

    Parameters
    ----------
    orientation : str, optional
        Two letters as in `package.Input`: they fix the plane. Without them slices are counted along k.
    """
    grid = volume(volume_node)
    axis = 0
    if orientation:
        across = {"RAS".find(one) if one in "RAS" else "LPI".find(one) for one in orientation}
        axis = 2 - grid.patient_axes.index(({0, 1, 2} - across).pop())
    direction = np.subtract(world(volume_node, grid.ijk_to_ras[:3, 2 - axis]), world(volume_node, (0, 0, 0)))
    views = [array_of(node.GetSliceToRAS()) for node in of_class(scene, "vtkMRMLSliceNode")]
    if not views:
        return ""
    view = max(views, key=lambda one: abs(float(one[:3, 2] @ direction)))
    at = round(grid.ras_to_index(position(volume_node, view[:3, 3]))[axis])
    return f"{'kji'[axis]}:{min(max(at, 0), grid.shape[axis] - 1)}"


def inside(segmentation, segment_id: str, volume_node) -> tuple[float, float, float] | None:
    """A world position in the middle of a segment, to go to; None when there is no such segment or it is empty."""
    try:
        mask = segment(segmentation, segment_id, volume_node)
    except MedXAIError:
        return None
    return world(volume_node, mask.index_to_ras(middle(mask.array)))


def position(node, world) -> tuple[float, float, float]:
    """A world position (RAS, mm) in the coordinates of a node that may have a parent transform."""
    local = [0.0, 0.0, 0.0]
    node.TransformPointFromWorld([float(v) for v in world], local)
    return tuple(local)


def world(node, local) -> tuple[float, float, float]:
    """A position in the node's own coordinates as a world position."""
    result = [0.0, 0.0, 0.0]
    node.TransformPointToWorld([float(v) for v in local], result)
    return tuple(result)


def crosshair(scene, volume_node) -> tuple[float, float, float]:
    """The crosshair's position in the volume's own coordinates (RAS, mm)."""
    node = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    return position(volume_node, node.GetCrosshairRAS())


def control_point(markups, index: int, volume_node) -> tuple[float, float, float]:
    """The position of a markups control point in the volume's own coordinates (RAS, mm)."""
    if markups is None or not 0 <= index < markups.GetNumberOfControlPoints():
        raise MedXAIError("There is no such point; place one in a slice view.")
    return position(volume_node, markups.GetNthControlPointPositionWorld(index))
