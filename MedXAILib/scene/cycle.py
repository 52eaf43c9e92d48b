"""The layers of a cycle explanation: one volume that morphs from G⁻ over the image to G⁺, and R over it. No network is needed."""

from __future__ import annotations

import numpy as np

from ..explanation import Explanation, Layer, Patch
from ..volume import Volume
from . import layers, pick, read, remove, repeat
from .nodes import INPUT, find, modifying, of_class, voxels
from .segments import grid_of

POSITIVE, NEGATIVE, RELEVANCE, UP, DOWN, MORPH = (
    "positive", "negative", "relevance", "delta-positive", "delta-negative", "morph",
)  # fmt: skip
CURVE = "morph"
COVERS = 0.6  # opacity of R: what lies below it is what is to be seen
POSITION = "MedXAI.Position"  # attribute of the morph's node: −1 is G⁻, 0 the image, 1 G⁺
BOX = "MedXAI.Box"  # attribute of the morph's node: its first voxel on the input's grid, as i j k
TITLE = "Morph from G- to G+"


def of(explanation: Explanation) -> bool:
    """Whether an explanation shows an image as either class."""
    return {POSITIVE, NEGATIVE, RELEVANCE, UP, DOWN} <= explanation.maps.keys()


def box(explanation: Explanation, volume: Volume) -> tuple[slice, slice, slice]:
    """The part of the grid that the morph fills: what was looked at and one voxel around it, so that views interpolate as in the whole image."""
    where = layers.looked_at(explanation, volume)
    return tuple(slice(max(0, one.start - 1), min(n, one.stop + 1)) for one, n in zip(where, volume.shape))


def morph_layer(explanation: Explanation, volume: Volume) -> Layer:
    """The morph as it is first shown: the image itself, float32."""
    where = box(explanation, volume)
    part = volume.crop([one.start for one in where], [one.stop for one in where])
    return Layer(part.with_array(part.array.astype(np.float32), MORPH), "image", TITLE)


def _between(x: np.ndarray, up: np.ndarray, down: np.ndarray, at: float) -> np.ndarray:
    """x + max(t, 0) Δ⁺ + max(−t, 0) Δ⁻."""
    change = (up if at > 0 else down) * np.float32(abs(at))
    change += x
    return change


def headline(known: dict, scores: dict) -> str:
    """The class and its probability in the three images, such as ``spiculated: x 0.43 → G⁺ 0.91, G⁻ 0.07``."""
    values = [probability(scores.get(f"probability{which}")) for which in ("", "_positive", "_negative")]
    return f"{known.get('label') or 'The class'}: x {values[0]} → G⁺ {values[1]}, G⁻ {values[2]}"


def looked_at(known: dict) -> str:
    """What was looked at, such as ``45 × 45 mm, k:6``; empty where that is not known."""
    patch = known.get("patch") or {}
    size = [
        mm for mm, a, b in zip(patch.get("size_mm", ()), patch.get("start", ()), patch.get("stop", ())) if b - a > 1
    ]
    if not size:
        return ""
    return " × ".join(f"{mm:.3g}" for mm in size) + " mm" + (f", {known['slice']}" if known.get("slice") else "")


def logistic(odds):
    """A probability of its log-odds, numbers or arrays."""
    return 1 / (1 + np.exp(-np.clip(odds, -700, 700)))


def probability(value) -> str:
    """A probability with two digits, without calling what is not certain 0 or 1; ``–`` where it is not known."""
    if not isinstance(value, (int, float, np.number)) or not np.isfinite(value):
        return "–"
    if value < 0.005 and value > 0:
        return "< 0.01"
    return "> 0.99" if 0.995 <= value < 1 else f"{value:.2f}"


class Cycle:
    """The layers of one finished run.

    Parameters
    ----------
    scene : vtkMRMLScene
    run : str
        As `remove.run_of` gives it.
    """

    def __init__(self, scene, run: str):
        self.scene, self.run = scene, run
        self._parts = self._odds = None

    def node(self, name: str):
        """The run's map of that name; None where somebody removed it."""
        return find(self.scene, self.run, name, "vtkMRMLScalarVolumeNode")

    @property
    def volume_node(self):
        """The volume that is explained; None when it is not in the scene any more."""
        node = self.node(MORPH) or self.node(RELEVANCE)
        return node.GetNthNodeReference(INPUT, 0) if node is not None else None

    # -- what is shown -------------------------------------------------------------------------------------------------

    def show(self, relevance: bool | None = None) -> None:
        """Put the image, the morph and R into the slice views; whether R is shown stays, unless it is said."""
        morph = self.node(MORPH)
        if morph is None:
            return
        seen = any(v.GetForegroundVolumeID() == morph.GetID() for v in of_class(self.scene, "vtkMRMLSliceCompositeNode"))  # fmt: skip
        if relevance is None:
            relevance = self.opacity is not None or not seen
        covers = self.opacity or COVERS
        layers.show(self.scene, self.volume_node, morph, layers.OPAQUE)
        self.opacity = covers if relevance else None

    @property
    def opacity(self) -> float | None:
        """Of R over the images; None when the slice views do not show it."""
        node = self.node(RELEVANCE)
        return layers.opacity_over(self.scene, node) if node is not None else None

    @opacity.setter
    def opacity(self, value: float | None) -> None:
        node = self.node(RELEVANCE)
        if node is None:
            return
        if value is None:
            for view in of_class(self.scene, "vtkMRMLSliceCompositeNode"):
                layers.clear(view, {node.GetID()})
        else:
            layers.lay_over(self.scene, node, value)
        layers.legend_follows(node)
        morph = self.node(MORPH)
        for legend in layers.legends(morph) if morph is not None else ():
            legend.SetVisibility(value is not None)

    # -- the morph -----------------------------------------------------------------------------------------------------

    @property
    def position(self) -> float | None:
        """Where the morph is, −1 to 1; None when it cannot be moved: something of it was removed."""
        node = self.node(MORPH)
        if node is None or not self._read():
            return None
        return float(node.GetAttribute(POSITION) or 0)

    @position.setter
    def position(self, at: float) -> None:
        node = self.node(MORPH)
        if node is None or not self._read():
            return
        at = min(max(float(at), -1.0), 1.0)
        with modifying(node):  # its observers look once
            node.SetAttribute(POSITION, f"{at:g}")
            layers.write_voxels(node, Patch(_between(*self._parts, at), (0, 0, 0)))

    def _read(self) -> bool:
        """The image, Δ⁺ and Δ⁻ in the box; kept, so that a move is one sum."""
        if self._parts is None:
            node = self.node(MORPH)
            changes = [self.node(name) for name in (UP, DOWN)]
            if node is None or None in changes:
                return False
            start = [int(n) for n in (node.GetAttribute(BOX) or "0 0 0").split()][::-1]
            where = tuple(slice(a, a + n) for a, n in zip(start, node.GetImageData().GetDimensions()[::-1]))
            up, down = (voxels(one.GetImageData())[where] for one in changes)
            # From the run itself: the input may have been changed, or removed.
            made = ((self.node(name), change) for name, change in ((POSITIVE, up), (NEGATIVE, down)))
            x = next((voxels(one.GetImageData())[where] - change for one, change in made if one is not None), None)
            source = self.volume_node
            if source is not None and source.GetImageData() is not None:
                image = read.volume(source).array
                same = image.shape == voxels(changes[0].GetImageData()).shape
                if same and (x is None or np.allclose(image[where], x, atol=1e-3 * (float(np.abs(x).max()) + 1e-6))):
                    x = image[where].astype(np.float32)
            if x is None:
                return False
            self._parts = (x, up, down)
        return True

    def probability(self, at: float) -> float:
        """Of the positive class at a position, linear in log-odds between the positions that were computed; NaN where nothing is known."""
        if self._odds is None:
            rows = [[float(v) for v in row] for row in pick.rows(self.scene, self.run, CURVE, ("position", "log_odds"))]
            self._odds = np.array(sorted(rows)).T if rows else np.full((2, 1), np.nan)
        odds = float(np.interp(at, *self._odds))
        return float(logistic(odds))

    # -- what is known -------------------------------------------------------------------------------------------------

    @property
    def known(self) -> dict:
        """What `repeat.provenance` tells of the run."""
        return repeat.provenance(self.scene, remove.folder_of(self.scene, self.run))

    def place(self) -> tuple[float, float, float] | None:
        """World position of the middle of what was looked at."""
        node = self.node(RELEVANCE)
        if node is None:
            return None
        told = self.known["provenance"].get("patch") or {}
        start, stop = told.get("start") or (0, 0, 0), told.get("stop") or node.GetImageData().GetDimensions()[::-1]
        return self._world([(a + b - 1) / 2 for a, b in zip(start, stop)])

    def slice(self, name: str) -> tuple[float, float, float] | None:
        """World position of the middle of a slice, such as ``k:12``; None for other names."""
        node = self.node(RELEVANCE)
        axis, number = "kji".find(name[:1]), name[2:].split(" ")[0]
        if node is None or axis < 0 or not number.isdigit():
            return None
        index = [(n - 1) / 2 for n in node.GetImageData().GetDimensions()[::-1]]
        index[axis] = int(number)
        return self._world(index)

    def _world(self, index) -> tuple[float, float, float]:
        node = self.node(RELEVANCE)
        matrix = grid_of(node)
        return read.world(node, (matrix @ [*index[::-1], 1.0])[:3])
