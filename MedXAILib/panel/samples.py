"""Made-up volumes of Sample Data, with their segments."""

from __future__ import annotations

import slicer

from ..scene import host, layers, segments

COLOURS = {
    "liver": (0.87, 0.51, 0.40),
    "lesion": (0.56, 0.93, 0.56),
    "breast": (0.87, 0.71, 0.60),
    "mass": (0.56, 0.93, 0.56),
    "smooth": (0.27, 0.55, 0.85),
    "spiculated": (0.93, 0.55, 0.18),
}


def show(image, masks: dict, title: str, window: tuple[float, float]):
    """Put an image and its masks (by name, such as ``liver`` or ``nodule 1 (smooth)``) into the scene and into the slice views; gives the volume node."""
    scene = host.current().scene
    node = layers.add_volume(scene, image, title)
    layers.tell_unit(node, image)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevelMinMax(*window)
    segmentation = segments.add_segmentation(scene, f"{title} segmentation", node)
    for name, mask in masks.items():
        kind = name.rpartition("(")[2].rstrip(")")
        segments.set_mask(segmentation, name, mask, mask.ijk_to_ras, colour=COLOURS[kind])
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node
