"""Colour tables that lie the same way everywhere: our own nodes, computed, one of each per scene.

Slicer's file-backed tables (Inferno…) do not exist headless, and their names are accepted there without a word.
Both maps are drawn in CIELAB so that equal steps of value are equal steps of lightness.
"""

from __future__ import annotations

import numpy as np
import slicer

#: Lightness L*, chroma and hue (degrees) along the map, from 0 to 1.
_POSITIVE = ((12, 30, 305), (30, 56, 318), (46, 66, 5), (60, 68, 38), (76, 70, 66), (94, 46, 102))
_WARM = ((22, 18, 20), (38, 52, 32), (56, 68, 44), (74, 66, 70), (93, 42, 100))
_COOL = ((22, 18, 275), (38, 48, 280), (56, 50, 265), (74, 42, 228), (93, 22, 200))

#: Share of a signed map around 0 that is not drawn at all, and where a positive map begins to be.
NOTHING = 0.04
MASK = (1.0, 0.78, 0.16)
OUTPUT, ANNOTATION = (0.35, 0.75, 1.0), (0.3, 0.85, 0.4)
#: Colours that colour-blind readers tell apart, bright on black.
DISTINCT = (
    MASK,
    OUTPUT,
    (0.95, 0.45, 0.75),
    (0.45, 0.90, 0.60),
    (1.0, 0.50, 0.25),
    (0.75, 0.65, 1.0),
    (0.95, 0.95, 0.55),
)
#: The same for lines on white.
LINES = (
    (0.00, 0.35, 0.70),
    (0.85, 0.37, 0.01),
    (0.00, 0.55, 0.40),
    (0.75, 0.20, 0.55),
    (0.45, 0.30, 0.75),
    (0.60, 0.45, 0.00),
    (0.10, 0.60, 0.80),
    (0.70, 0.10, 0.15),
)


def _srgb(lightness, chroma, hue) -> np.ndarray:
    """CIELAB (D65) in cylinder coordinates to sRGB; chroma is lowered where the screen cannot show it."""
    hue = np.radians(hue)
    scale = np.ones_like(lightness)
    for _ in range(40):
        f = (lightness + 16) / 116
        f = np.stack([f + scale * chroma * np.cos(hue) / 500, f, f - scale * chroma * np.sin(hue) / 200])
        xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [[0.95047], [1.0], [1.08883]]
        linear = _XYZ_TO_RGB @ xyz
        outside = ((linear < -1e-4) | (linear > 1 + 1e-4)).any(0)
        if not outside.any():
            break
        scale = np.where(outside, scale * 0.95, scale)
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).T


_XYZ_TO_RGB = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])


def _along(anchors, t) -> np.ndarray:
    anchors = np.array(anchors, float)
    at = np.linspace(0, 1, len(anchors))
    lightness = anchors[0, 0] + t * (anchors[-1, 0] - anchors[0, 0])  # exactly linear
    return _srgb(lightness, np.interp(t, at, anchors[:, 1]), np.interp(t, at, np.unwrap(anchors[:, 2], period=360)))


def positive(n: int = 256) -> np.ndarray:
    """Dark violet over red to light yellow: (n, 4) RGBA, opaque; what is hidden is the display's threshold."""
    return np.c_[_along(_POSITIVE, np.linspace(0, 1, n)), np.ones(n)]


def signed(n: int = 511) -> np.ndarray:
    """Light cyan over blue to nothing, then over red to light yellow: (n, 4) RGBA, n odd.

    The middle share `NOTHING` has opacity 0: a threshold could not hide it, and slice views know only shown and hidden.
    """
    t = np.linspace(-1, 1, n)
    colour = np.where((t < 0)[:, None], _along(_COOL, np.abs(t)), _along(_WARM, np.abs(t)))
    return np.c_[colour, (np.abs(t) > NOTHING).astype(float)]


def mask() -> np.ndarray:
    """Label 0 is nothing, label 1 the mask's colour."""
    return np.array([[0, 0, 0, 0], [*MASK, 1]])


_TABLES = {
    "positive": ("MedXAI positive", positive, "0 = nothing; equal steps of value are equal steps of lightness"),
    "signed": ("MedXAI signed", signed, "blue below 0, red above, the middle is transparent"),
    "mask": ("MedXAI mask", mask, "the mask of a sequence"),
}
OURS = {f"MedXAI{kind}" for kind in _TABLES}
_KIND = {"probability": "positive"}


def table(scene, kind: str):
    """The scene's colour table for a kind of map (``positive``, ``probability``, ``signed`` or ``mask``), made when missing."""
    kind = _KIND.get(kind, kind)
    tag = f"MedXAI{kind}"
    node = scene.GetSingletonNode(tag, "vtkMRMLColorTableNode")
    if node is not None:
        return node
    name, make, about = _TABLES[kind]
    values = make()
    node = slicer.vtkMRMLColorTableNode()
    node.SetSingletonTag(tag)
    node.SetTypeToUser()
    node.SetName(name)
    node.SetDescription(about)
    node.SetAttribute("Category", "MedXAI")
    node.SetNumberOfColors(len(values))
    lookup = node.GetLookupTable()
    lookup.SetRange(0, len(values) - 1)
    for n, (r, g, b, a) in enumerate(values):
        node.SetColor(n, "nothing" if a == 0 else str(n), r, g, b, a)
    return scene.AddNode(node)
