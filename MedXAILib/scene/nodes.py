"""Small steps with nodes, the same in the application and headless."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support

RUN = "MedXAI.Run"  # attribute of every node and of the folder: which run it belongs to
NAME = "MedXAI.Name"  # attribute: the explanation's name of the map, curve…
STEP = "(step)"  # ends the name of a sequence's proxy
BROWSE = "(browse)"  # the same where the items are looked up by number, not played
INPUT = "MedXAI.Input"  # node reference: the volumes that were explained


def matrix_of(array) -> vtk.vtkMatrix4x4:
    """A 4×4 numpy matrix as VTK's."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(array, dtype=np.float64).ravel())
    return matrix


def array_of(matrix) -> np.ndarray:
    """VTK's 4×4 matrix as numpy's."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def plain_type(dtype) -> np.dtype:
    """The nearest voxel type that Slicer shows and stores (it has no bool, half or 64-bit integer volumes)."""
    dtype = np.dtype(dtype).newbyteorder("=")
    return np.dtype({"b1": "u1", "f2": "f4", "f16": "f8", "i8": "f8", "u8": "f8"}.get(dtype.str[1:], dtype))


def image_of(array: np.ndarray) -> vtk.vtkImageData:
    """A (k, j, i) array as image data; the voxels are copied once."""
    kind = plain_type(array.dtype)
    image = vtk.vtkImageData()
    image.SetDimensions(*array.shape[::-1])
    image.AllocateScalars(numpy_support.get_vtk_array_type(kind), 1)
    np.copyto(voxels(image), array, casting="unsafe")
    return image


def voxels(image) -> np.ndarray:
    """The image's voxels, (k, j, i), not copied."""
    shape = image.GetDimensions()[::-1]
    return numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape)


def drawable(text: str) -> str:
    """A text as the views can draw it: their fonts have no superscript signs."""
    return text.translate({ord("⁺"): "+", ord("⁻"): "-", ord("−"): "-"})


@contextmanager
def modifying(node):
    """Tell the node's observers once, at the end."""
    before = node.StartModify()
    try:
        yield node
    finally:
        node.EndModify(before)


@contextmanager
def batch(scene):
    """Many nodes at once: the scene's observers look once, at the end."""
    scene.StartState(slicer.vtkMRMLScene.BatchProcessState)
    try:
        yield
    finally:
        scene.EndState(slicer.vtkMRMLScene.BatchProcessState)


def of_class(scene, name: str) -> list:
    """Every node of a class."""
    return [scene.GetNthNodeByClass(n, name) for n in range(scene.GetNumberOfNodesByClass(name))]


def hierarchy(scene):
    """The scene's subject hierarchy node (made when there is none)."""
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)


def place(scene, node, folder: int) -> int:
    """Put a node into a folder of the subject hierarchy and return its item."""
    tree = hierarchy(scene)
    item = tree.GetItemByDataNode(node)
    if item:
        if tree.GetItemParent(item) != folder:
            tree.SetItemParent(item, folder)
    else:
        item = tree.CreateItem(folder, node)
    return item


def children(scene, item: int) -> list[int]:
    """Every item below an item, at any depth."""
    found = vtk.vtkIdList()
    hierarchy(scene).GetItemChildren(item, found, True)
    return [found.GetId(n) for n in range(found.GetNumberOfIds())]


def attributes(node) -> dict[str, str]:
    """A node's attributes."""
    names = vtk.vtkStringArray()
    node.GetAttributeNames(names)
    return {
        names.GetValue(n): node.GetAttribute(names.GetValue(n)) for n in range(names.GetNumberOfValues())
    }  # fmt: skip


def sign(scene, node, item: int, run: str, name: str) -> None:
    """Say on a node and on its item which run it belongs to and what it is called there.

    A sequence's proxy loses its own attributes each time somebody scrubs; its item keeps them.
    """
    for key, value in ((RUN, run), (NAME, name)):
        node.SetAttribute(key, value)
        if item:
            hierarchy(scene).SetItemAttribute(item, key, value)


def _read(scene, node, key: str) -> str:
    value = node.GetAttribute(key)
    if value is None:
        item = hierarchy(scene).GetItemByDataNode(node)
        value = hierarchy(scene).GetItemAttribute(item, key) if item else ""
    return value or ""


def run_id(scene, node) -> str:
    """The run a node belongs to; empty for others."""
    return _read(scene, node, RUN)


def name_of(scene, node) -> str:
    """What an explanation calls a node's map, curve or table; empty for others."""
    return _read(scene, node, NAME)


def find(scene, run: str, name: str, kind: str):
    """A run's node of a class by its name; None when it has none."""
    nodes = (node for node in of_class(scene, kind) if run_id(scene, node) == run)
    return next((node for node in nodes if name_of(scene, node) == name), None)


def of_run(scene, run: str) -> list:
    """Every node that belongs to a run, wherever it now lies."""
    return [node for n in range(scene.GetNumberOfNodes()) if run_id(scene, node := scene.GetNthNode(n)) == run]
