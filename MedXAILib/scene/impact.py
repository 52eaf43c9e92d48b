"""The layers of a counterfactual: before and after in one fade, the mask over both, the region's outline. No network is needed."""

from __future__ import annotations

import numpy as np

from ..explanation import Explanation
from ..volume import Volume
from . import layers, pick, read
from .nodes import INPUT, find, of_class, voxels

MASK, INPAINTED, REGION = "mask", "inpainted", "region"
CURVE = "optimisation"
FAINT = 0.25  # opacity of the mask: what lies below it is what is to be seen
#: What the share of a component in the drop may be called.
SHARES = ("share", "drop_share", "share_of_drop")
#: What to do when nothing was deleted by more than θ.
HELP = "lower λ₃ (area) or λ₂ (border), or take more steps"


def of(explanation: Explanation) -> bool:
    """Whether an explanation shows an image before and after."""
    found = explanation.maps.get(INPAINTED)
    return found is not None and found.kind == "image" and MASK in explanation.maps


def role(segment: Volume) -> str:
    """What a segment is to a counterfactual: ``organ``, ``start`` or (where nothing is said) ``annotation``."""
    return str(segment.attributes.get("role") or "annotation")


def with_role(segment: Volume, role: str) -> Volume:
    """The segment as the worker gets it."""
    attributes = {**segment.attributes, "role": role}
    return Volume(segment.array, segment.ijk_to_ras, segment.name, segment.unit, attributes)


def region(mask: np.ndarray, theta: float) -> np.ndarray:
    """What is deleted by more than θ, as uint8."""
    return (mask > theta).astype(np.uint8)


def sentences(known: dict) -> list[tuple[str, bool]]:
    """What a reader must know before looking, and whether it is a warning: what filled the region, and that there is none."""
    found = []
    about = known.get("inpainter")
    if isinstance(about, dict):
        if about.get("fallback"):
            what = {"blur": "its blurred surroundings", "mean": "the mean", "noise": "noise"}.get(about.get("name"))
            told = f" ({what})" if what else ""
            found.append((f"No inpainter: a fall-back{told} took the region's place, which is not what healthy tissue looks like.", True))  # fmt: skip
        else:
            found.append((f"Inpainter: {about.get('name') or ''}", False))
    if known.get("crossed") is False:
        theta = (known.get("settings") or {}).get("theta")
        above = f"θ = {theta:g}" if isinstance(theta, (int, float)) else "θ"
        found.append((f"Nothing was deleted by more than {above}, so there is no region: {HELP}.", True))
    return found


def measures(scores: dict) -> list[tuple[str, str]]:
    """Size of the region and, with an annotation, how far it lies from it: what is measured, and its value with the unit."""
    found = []
    for name, unit in (("area_mm2", "mm²"), ("area_mm3", "mm³")):
        if name in scores:
            share = scores.get("area_share", np.nan)
            told = f" ({100 * share:.2g} % of organ or image)" if _known(share) else ""
            found.append(("Region", f"{_value(scores[name], unit)}{told}"))
    if "components" in scores:
        found.append(("Parts", f"{scores['components']:.0f}" if _known(scores["components"]) else "–"))
    for name, title, unit in (
        ("distance_mm", "Distance D of the centres", "mm"), ("hausdorff_mm", "Hausdorff distance H", "mm"), ("dice", "Dice", ""),
    ):  # fmt: skip
        if name in scores:
            found.append((title, _value(scores[name], unit)))
    if "hit" in scores:
        hit = scores["hit"]
        found.append(("Hit", "–" if not _known(hit) else "yes" if hit else "no"))
    return found


def _known(value) -> bool:
    return isinstance(value, (int, float, np.number)) and bool(np.isfinite(value))


def _value(value, unit: str) -> str:
    if not _known(value):
        return "undefined (no region)"
    return f"{value:.0f} {unit}".strip() if abs(value) >= 100 else f"{value:.3g} {unit}".strip()


class Impact:
    """The layers of one run, finished or under way.

    Parameters
    ----------
    scene : vtkMRMLScene
    run : str
        As `remove.run_of` gives it.
    volume_node : node, optional
        The volume that is explained; of a finished run it is known.
    """

    def __init__(self, scene, run: str, volume_node=None):
        self.scene, self.run = scene, run
        self._volume = volume_node

    def node(self, name: str):
        """The run's map of that name; None where somebody removed it."""
        return find(self.scene, self.run, name, "vtkMRMLScalarVolumeNode")

    @property
    def volume_node(self):
        """The volume that is explained; None when it is not in the scene any more."""
        node = self.node(INPAINTED) if self._volume is None else None
        return self._volume if node is None else node.GetNthNodeReference(INPUT, 0)

    # -- what is shown -------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Put the layers into the slice views; a fade and an opacity that somebody has chosen stay."""
        after = self.node(INPAINTED)
        if after is None:
            return
        fade, opacity = self.fade, self.opacity
        layers.show(self.scene, self.volume_node, after, layers.OPAQUE if fade is None else fade)
        self.opacity = FAINT if opacity is None else opacity

    @property
    def fade(self) -> float | None:
        """0: the image as it is, 1: without the finding; None when the slice views do not show it."""
        node = self.node(INPAINTED)
        views = of_class(self.scene, "vtkMRMLSliceCompositeNode") if node is not None else ()
        return next((v.GetForegroundOpacity() for v in views if v.GetForegroundVolumeID() == node.GetID()), None)

    @fade.setter
    def fade(self, value: float) -> None:
        node = self.node(INPAINTED)
        if node is not None:
            layers.show(self.scene, self.volume_node, node, value)

    @property
    def opacity(self) -> float | None:
        """Of the mask over the images; None when the slice views do not show it."""
        node = self.node(MASK)
        return layers.opacity_over(self.scene, node) if node is not None else None

    @opacity.setter
    def opacity(self, value: float) -> None:
        node = self.node(MASK)
        if node is not None:
            layers.lay_over(self.scene, node, value)
            layers.legend_follows(node)

    @property
    def least(self) -> float:
        """What is deleted by less than this is not coloured."""
        node = self.node(MASK)
        return node.GetDisplayNode().GetLowerThreshold() if node is not None and node.GetDisplayNode() else 0.0

    @least.setter
    def least(self, value: float) -> None:
        node = self.node(MASK)
        if node is not None and node.GetDisplayNode() is not None and self.least != value:
            node.GetDisplayNode().SetLowerThreshold(value)

    # -- what is known -------------------------------------------------------------------------------------------------

    def start(self) -> Volume | None:
        """The mask as it is now, for a run that begins from it; None where there is none, or nothing in it yet."""
        node = self.node(MASK)
        if node is None:
            return None
        grid = read.volume(node)
        mask = np.clip(grid.array.astype(np.float32), 0, 1)
        return with_role(Volume(mask, grid.ijk_to_ras, "start"), "start") if mask.any() else None

    def components(self) -> list[tuple[str, ...]]:
        """The components of the region: number, voxels, size with its unit, r, a, s (mm), and share of the drop, as text."""
        columns = ("component", "voxels", "r", "a", "s")
        for unit, told in (("mm2", "mm²"), ("mm3", "mm³")):
            rows = list(pick.rows(self.scene, self.run, "components", (unit, *columns)))
            if rows:
                shares = [one for name in SHARES for one in pick.rows(self.scene, self.run, "components", (name,))]
                shares = shares or [("nan",)] * len(rows)
                return [
                    (number, voxels_, _value(float(size), told), *place, *share)
                    for (size, number, voxels_, *place), share in zip(rows, shares)
                ]
        return []

    def place(self, n: int = 0) -> tuple[float, float, float] | None:
        """World position of a component's centre, to go to; where there is none, the place most is deleted."""
        node, rows = self.node(MASK), self.components()
        if node is None:
            return None
        if n < len(rows):
            return read.world(node, [float(v) for v in rows[n][3:6]])
        grid = read.volume(node)
        return read.world(node, layers.hottest(grid)) if voxels(node.GetImageData()).any() else None
