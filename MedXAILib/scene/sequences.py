"""Steps that can be scrubbed and played: sequences, one browser, and the proxies that the views show."""

from __future__ import annotations

import dataclasses

import numpy as np
import slicer

from ..explanation import Explanation, Layer, Sequence
from . import colors, layers
from .nodes import BROWSE, STEP, image_of, matrix_of, modifying


def add_sequence(scene, sequence: Sequence, name: str, marks: dict[str, str]):
    """A sequence node with one volume per kept step. Each frame's voxels are copied once.

    ``marks`` are the attributes of every frame: a proxy takes over those of the frame it shows.
    """
    label = sequence.kind == "mask"
    node = slicer.vtkMRMLSequenceNode()
    node.SetName(scene.GenerateUniqueName(f"{sequence.title or name} (sequence)"))
    node.SetIndexName(sequence.index)
    node.SetIndexUnit("")
    node.SetIndexTypeFromString("numeric")
    scene.AddNode(node)
    frame = slicer.vtkMRMLLabelMapVolumeNode() if label else slicer.vtkMRMLScalarVolumeNode()
    frame.SetName(name)
    for key, value in marks.items():
        frame.SetAttribute(key, value)
    with modifying(node):
        for step, volume in sequence.items:
            # The sequence copies what it is given: give it the empty frame, then hand the voxels to its copy.
            kept = node.SetDataNodeAtValue(frame, str(int(step)))
            kept.SetIJKToRASMatrix(matrix_of(volume.ijk_to_ras))
            kept.SetAndObserveImageData(image_of(volume.array))
    return node


def browsed(sequence: Sequence) -> bool:
    """Whether its items are looked up by number or name (layers, units, filters) instead of played."""
    return bool(sequence.names) or (sequence.kind == "mask" and sequence.index != "step")


def picked(explanation: Explanation) -> dict[str, Sequence]:
    """The sequences whose masks are looked up, each shown as the segment `map` of its run."""
    found = explanation.sequences.items()
    return {name: one for name, one in found if browsed(one) and one.kind == "mask" and one.items}


def mark(sequence: Sequence) -> str:
    """What ends the name of the sequence's proxy."""
    return BROWSE if browsed(sequence) else STEP


def cropped(sequence: Sequence) -> Sequence:
    """The same without the margin that is empty in every one of its masks; one lattice, so that they are saved as one file."""
    shape = sequence.items[0][1].shape
    low, high = shape, (0, 0, 0)
    for _, mask in sequence.items:
        start, stop = layers.bounds(mask.array)
        low, high = tuple(map(min, low, start)), tuple(map(max, high, stop))
        if (low, high) == ((0, 0, 0), shape):
            return sequence
    return dataclasses.replace(sequence, items=[(number, mask.crop(low, high)) for number, mask in sequence.items])


def add_proxy(scene, sequence: Sequence, name: str, input_node, browser, node):
    """The volume a view shows while somebody scrubs, with the display of its kind."""
    volume = sequence.items[-1][1]
    class_name = "vtkMRMLLabelMapVolumeNode" if sequence.kind == "mask" else "vtkMRMLScalarVolumeNode"
    proxy = layers.add_volume(
        scene, volume, scene.GenerateUniqueName(f"{sequence.title or name} {mark(sequence)}"), class_name
    )
    if sequence.kind == "mask":
        shown = slicer.vtkMRMLLabelMapVolumeDisplayNode()
        shown.SetName(f"{proxy.GetName()} display")
        shown.SetAndObserveColorNodeID(colors.table(scene, "mask").GetID())
        scene.AddNode(shown)
        proxy.SetAndObserveDisplayNodeID(shown.GetID())
    else:
        largest = max(sequence.items, key=lambda item: float(np.abs(item[1].array).max(initial=0)))[1]
        chosen = largest if sequence.kind != "image" else volume
        layers.display(scene, proxy, Layer(chosen, sequence.kind, sequence.title), input_node)
    browser.AddProxyNode(proxy, node, False)
    return proxy


def add_browser(scene, host, name: str, items: list[tuple[Sequence, str, object]], input_node):
    """One browser that moves all sequences of a run together, standing at the last step.

    Parameters
    ----------
    items : list of (Sequence, name, sequence node)
        The first one leads.

    Returns
    -------
    browser, proxies : node, list of nodes
    """
    browser = slicer.vtkMRMLSequenceBrowserNode()
    browser.SetName(scene.GenerateUniqueName(name))
    scene.AddNode(browser)
    proxies = []
    with modifying(browser):
        browser.SetAndObserveMasterSequenceNodeID(items[0][2].GetID())
        for sequence, title, node in items:
            if not browser.IsSynchronizedSequenceNode(node, True):
                browser.AddSynchronizedSequenceNodeID(node.GetID())
            browser.SetSaveChanges(node, False)
            browser.SetOverwriteProxyName(node, False)
            browser.SetPlayback(node, True)
            proxies.append(add_proxy(scene, sequence, title, input_node, browser, node))
        browser.SetIndexDisplayMode(browser.IndexDisplayAsIndexValue)
        browser.SetIndexDisplayFormat("%.0f")
        browser.SetPlaybackLooped(False)
        browser.SetSelectedItemNumber(items[0][2].GetNumberOfDataNodes() - 1)
    host.logic("Sequences").UpdateProxyNodesFromSequences(browser)
    return browser, proxies
