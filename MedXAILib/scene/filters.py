"""The filters of a back-projection: looked at one by one, combined anew for any number of them, told by landmark. No network is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import landmarks
from ..errors import MedXAIError
from ..explanation import Explanation, Layer, Patch, Sequence, Table
from ..volume import Volume
from . import layers, pick, read, remove, repeat, thumbnails
from .nodes import BROWSE, find, of_class, voxels
from .segments import grid_of

SEQUENCE, HEAT, SHARES = "filters", "heat", "shares"
USED = "MedXAI.Filters"  # attribute of the heat node: how many filters are in it


@dataclass(frozen=True)
class _Part:
    """What `landmarks.landmark_table` asks of a mask; the mask itself is not kept in the scene."""

    voxels: float
    area: float

    def sum(self) -> float:
        return self.voxels

    def mean(self) -> float:
        return self.area


def of(explanation: Explanation) -> Sequence | None:
    """The sequence of filters of an explanation; None where it has none."""
    found = explanation.sequences.get(SEQUENCE)
    return found if found is not None and found.kind == "signed" and found.items else None


def _box(part, grid, shape) -> tuple[slice, slice, slice]:
    """Index of a box of a grid's lattice in the grid, from the two IJK-to-RAS matrices."""
    start = np.linalg.solve(grid, part[:, 3])[2::-1].round().astype(int)
    return tuple(slice(int(a), int(a) + n) for a, n in zip(start, shape))


class Filters:
    """The filters of one run, read from the scene.

    Nothing of the network is needed: a saved scene answers as the run did. Let go of it before the run is removed.

    Parameters
    ----------
    scene : vtkMRMLScene
    run : str
        As `remove.run_of` gives it.
    """

    def __init__(self, scene, run: str):
        self.scene, self.run = scene, run
        self.known = repeat.provenance(scene, remove.folder_of(scene, run))
        node = self._node(SEQUENCE, "vtkMRMLSequenceNode")
        count = node.GetNumberOfDataNodes() if node is not None else 0
        self.items = [voxels(node.GetNthDataNode(n).GetImageData()) for n in range(count)]
        self.matrix = grid_of(node.GetNthDataNode(0)) if count else np.eye(4)
        self.ranks = [int(float(node.GetNthIndexValue(n))) for n in range(count)]
        known = {int(row[0]): row[1:] for row in pick.rows(scene, run, SEQUENCE, ("rank", "filter", "score", "effect"))}
        rows = [known.get(rank, (str(rank), "nan", "nan")) for rank in self.ranks]
        self.total = len(known)  # filters of the run's own heat map; fewer of them may be kept
        self.numbers = [int(row[0]) for row in rows]
        self.scores, self.effects = ([float(row[n]) for row in rows] for n in (1, 2))
        self.combine = self.known["settings"].get("combine", "equal")
        self._raw = self._factors = None
        self._sum, self._summed = None, 0  # of the first filters, float64: forth and back leaves nothing behind

    def _node(self, name: str, kind: str):
        return find(self.scene, self.run, name, kind)

    def __len__(self) -> int:
        return len(self.items)

    # -- the heat map --------------------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """How many filters are in the heat map as it is now."""
        node = self._node(HEAT, "vtkMRMLScalarVolumeNode")
        told = node.GetAttribute(USED) if node is not None else None
        return int(told) if told else self.total

    @property
    def heatDisplay(self):
        """The heat map's display node; None when somebody removed it."""
        node = self._node(HEAT, "vtkMRMLScalarVolumeNode")
        return node.GetDisplayNode() if node is not None else None

    def combined(self, n: int) -> np.ndarray:
        """`landmarks.heat` of the first ``n`` filters, from a running sum: one filter more or less is one addition."""
        weight = landmarks.weights(self.scores[:n], self.combine)
        if self._raw is None:
            self._raw = landmarks.weights(self.scores, self.combine)
            totals = [float(np.abs(item).sum(dtype=np.float64)) for item in self.items]
            self._factors = [item.size / total if total else 0.0 for item, total in zip(self.items, totals)]
        if not (self._raw[:n] > 0).any():  # no weight in proportion to nothing: all alike, which no running sum holds
            return landmarks.heat(self.items[:n], weight)
        if self._sum is None or n < abs(n - self._summed):
            self._sum, self._summed = np.zeros(self.items[0].shape), 0
        for k in range(self._summed, n):
            self._add(k, 1.0)
        for k in range(n, self._summed):
            self._add(k, -1.0)
        self._summed = n
        total = sum(w for w, factor in zip(self._raw[:n], self._factors) if factor)
        return (np.clip(self._sum, 0, None) / (total or 1.0)).astype(np.float32)

    def _add(self, k: int, sign: float) -> None:
        self._sum += np.abs(self.items[k]) * np.float32(sign * self._raw[k] * self._factors[k])

    def heat(self, n: int) -> None:
        """Write the heat map of the first ``n`` filters into the run's heat node, in place."""
        node = self._node(HEAT, "vtkMRMLScalarVolumeNode")
        if node is None or not 1 <= n <= len(self):
            return
        node.SetAttribute(USED, str(n))
        layers.write_voxels(node, Patch(self.combined(n), tuple(s.start for s in self._box_in(node))))

    def _box_in(self, node):
        return _box(self.matrix, grid_of(node), self.items[0].shape)

    # -- what is shown -------------------------------------------------------------------------------------------------

    def title(self, rank: int) -> str:
        """What a person calls a filter: ``filter 12 (rank 1, score 3.41; without it the label's log-odds fall by 0.11)``."""
        n = self.ranks.index(rank)
        effect = self.effects[n]
        words = f"filter {self.numbers[n]} (rank {rank}, score {self.scores[n]:.3g}"
        if not np.isnan(effect):
            words += f"; without it the label's log-odds {'fall' if effect >= 0 else 'rise'} by {abs(effect):.2g}"
        return words + ")"

    def show(self, rank: int = 0) -> str:
        """Lay a filter's map over the input, or the heat map (0).

        Each filter has a window of its own, to the 99.5th percentile of its magnitude: filters differ by orders of magnitude, and how
        strong one is, its score says.

        Raises
        ------
        MedXAIError
            When somebody removed that map.
        """
        node = self._proxy() if rank else self._node(HEAT, "vtkMRMLScalarVolumeNode")
        browser = self._node(SEQUENCE, "vtkMRMLSequenceBrowserNode")
        if node is None or (rank and (browser is None or rank not in self.ranks)):
            raise MedXAIError(f"The map of {'rank ' + str(rank) if rank else 'the heat'} is not in the scene any more.")
        if rank:
            n = self.ranks.index(rank)
            browser.SetSelectedItemNumber(n)
            title = f"Filter {self.numbers[n]} [network units]"
            layers.display(self.scene, node, Layer(Volume(self.items[n], self.matrix, title), "signed", title))
        layers.show(self.scene, None, node, layers.OVERLAY)
        for other in (node, self._proxy(), self._node(HEAT, "vtkMRMLScalarVolumeNode")):
            layers.legend_follows(other)
        return self.title(rank) if rank else f"heat of {self.used} filters"

    @property
    def shown(self) -> int | None:
        """The rank whose map the slice views show, 0 for the heat map, None for neither."""
        foreground = {node.GetForegroundVolumeID() for node in of_class(self.scene, "vtkMRMLSliceCompositeNode")}
        proxy, heat = self._proxy(), self._node(HEAT, "vtkMRMLScalarVolumeNode")
        browser = self._node(SEQUENCE, "vtkMRMLSequenceBrowserNode")
        if proxy is not None and browser is not None and proxy.GetID() in foreground:
            return self.ranks[browser.GetSelectedItemNumber()]
        return 0 if heat is not None and heat.GetID() in foreground else None

    def _proxy(self):
        return self._node(f"{SEQUENCE} {BROWSE}", "vtkMRMLScalarVolumeNode")

    # -- tables --------------------------------------------------------------------------------------------------------

    def landmarks(self, n: int) -> Table | None:
        """`landmarks.landmark_table` for the first ``n`` filters; None where the shares of the filters are not known."""
        told = list(pick.rows(self.scene, self.run, "landmarks", ("landmark", "voxels", "area_share")))
        names = tuple(row[0] for row in told)
        each = [[float(v) for v in row] for row in pick.rows(self.scene, self.run, SHARES, names)] if names else []
        if len(each) < max(1, len(self)):
            return None
        parts = {name: _Part(float(count), float(area)) for name, count, area in told}
        weight = landmarks.weights(self.scores[:n], self.combine)
        return landmarks.landmark_table(each[:n], weight, parts)

    # -- small pictures ------------------------------------------------------------------------------------------------

    def thumbnail(self, rank: int, size: int = 96) -> np.ndarray:
        """A filter's magnitude in colour over the input: (size, size, 3) uint8. See `thumbnails.picture`."""
        inputs = self.known["inputs"]
        n = self.ranks.index(rank)
        item = Volume(self.items[n], self.matrix)
        if not inputs:
            return thumbnails.picture(item, None, (0, 1), size)
        node = inputs[0]
        shown = node.GetDisplayNode()
        window = (shown.GetWindowLevelMin(), shown.GetWindowLevelMax()) if shown is not None else None
        image = read.volume(node).array
        return thumbnails.picture(item, image[self._box_in(node)], window or layers.window(image), size)
