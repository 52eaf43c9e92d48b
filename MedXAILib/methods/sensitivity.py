"""How much of each step of a dream is one feature: the step against the feature's own gradient.

Couteaux et al. 2019 (section 4) leave open whether the ascent changes first what the network is most sensitive to. The gradient of a
feature, through its intensities and through the predicted mask, says in which direction of image space it grows; the squared
cosine between this direction and the step is the share of the step that lies along it.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from ..explanation import Curve, Table
from ..features.soft import Soft, resolve_soft
from ..models.crop import Box

_ROOM = 3  # voxels around the predicted component in which the mask may grow


class Sensitivity:
    """Follows the gradients of differentiable features along an ascent.

    Parameters
    ----------
    ascent : Ascent
    prepared : Prepared
        Of the volumes; features are those of the network's grid, in the units of the first volume.
    settings : DreamSettings
        ``sensitivity``, ``bin_width``, ``bin_count``.

    Notes
    -----
    The soft mask is the label's probability within `_ROOM` voxels of the predicted component. With g the gradient of feature f
    and δ the change of one step, both on the network's grid in network units: share = (g·δ)² / (|g|² |δ|²). A direction
    drawn at random has 1/n on average, n the number of voxels. That the gradients are right, and the steps small enough for them to
    mean something, is checked by their sum along the path: Σ ½ (gⱼ + gⱼ₊₁)·δⱼ is the change of f.
    """

    def __init__(self, ascent, prepared, settings):
        self.names = resolve_soft(settings.sensitivity)
        self.ascent, self.rule = ascent, prepared.intensity[0]
        self.bins = {"bin_width": settings.bin_width, "bin_count": settings.bin_count}
        volume = prepared.volume
        edges = {axis: volume.spacing[2 - axis] for axis in range(3)}
        for one in prepared.axes:
            edges[one.axis] *= abs(one.step)
        self.voxel = float(np.prod(list(edges.values())))
        self.rows: dict[int, dict[str, float]] = {}  # step -> share of each feature
        self.seen: dict[str, list] = {
            name: [] for name in self.names
        }  # of each step: change by the gradients, change, |value|
        self.along = dict.fromkeys(self.names, 0.0)  # Σ (g·δ)² / |g|²
        self.sign = dict.fromkeys(self.names, 0.0)  # Σ g·δ / |g|
        self.length = 0.0  # Σ |δ|² of the steps with a mask
        self.now = None  # values and gradients at the present image
        self.moved = None  # the last step

    def look(self, found) -> None:
        """Features and their gradients at the present image; ``found`` is the component, as `Ascent.look` gives it."""
        before, self.now = self.now, None if found is None else self._gradients(*found)
        if before is None or self.now is None or self.moved is None:
            return
        for name in self.names:
            (was, slope), (value, new) = before[name], self.now[name]
            self.seen[name].append((float(((slope + new) / 2 * self.moved).sum()), value - was, abs(value)))

    def _gradients(self, component: Box, mask):
        ascent, model = self.ascent, self.ascent.model
        room = [_ROOM + 1] * len(component.shape)
        window = component.grown(room, room, ascent.shape)
        box = ascent._input(window)
        ascent._require_memory(box, True)
        near = np.zeros(window.shape, bool)
        near[component.within(window).index[1:]] = mask
        near = ndimage.binary_dilation(near, iterations=_ROOM)
        feed = ascent.x[box.index].detach().clone().requires_grad_(True)
        inner = window.within(box).index
        found = {}
        with torch.enable_grad():
            chance = model.probabilities(model.logits(feed)[inner])[0, ascent.label]
            image = (feed[inner][0, 0] - self.rule.offset) / self.rule.scale
            soft = Soft(image, chance * torch.from_numpy(near).to(chance), voxel=self.voxel, **self.bins)
            for name in self.names:
                value = soft.feature(name)
                slope = torch.zeros_like(ascent.start[0], dtype=torch.float64)
                if value.requires_grad:
                    (grad,) = torch.autograd.grad(value, feed, retain_graph=True)
                    both = box.common(ascent.change)
                    slope[both.within(ascent.change).index[1:]] = grad[both.within(box).index][0].double()
                found[name] = (float(value.detach()), slope)
        return found

    def step(self, j: int, before, after) -> dict[str, float]:
        """Take in step j, which changed the image from ``before`` to ``after`` (each (1, C, *box) on `Ascent.change`); its shares."""
        self.moved = (after - before)[0].double()
        row = dict.fromkeys(self.names, np.nan)
        if self.now is not None:
            square = float(self.moved.square().sum())
            self.length += square
            for name, (_, slope) in self.now.items():
                norm, product = float(slope.square().sum()), float((slope * self.moved).sum())
                if norm > 0 and square > 0 and np.isfinite(norm):
                    row[name] = product**2 / (norm * square)
                    self.along[name] += product**2 / norm
                    self.sign[name] += product / norm**0.5
        self.rows[j] = row
        return row

    @property
    def discrepancy(self) -> float:
        """The greatest difference, over the features, between the change by the gradients and the change seen.

        Relative to all of a feature's movements along the path, or to a thousandth of its value where it hardly moves.
        """
        worst = []
        for rows in self.seen.values():
            told, seen, value = np.array(rows, float).reshape(-1, 3).T
            size = max(np.abs(seen).sum(), 1e-3 * value.max(initial=0))
            if size > 0:
                worst.append(abs(told.sum() - seen.sum()) / size)
        return float(max(worst)) if worst else np.nan

    def results(self) -> tuple[Curve, Table]:
        """The curve of the shares, one column for each feature, and the table over the whole path."""
        steps = sorted(self.rows)
        columns = {name: np.array([self.rows[j][name] for j in steps]) for name in self.names}
        curve = Curve(
            "How much of each step is this feature", "step", {"step": np.array(steps, float), **columns}, "Step",
            "Share of the step's squared length", limits=(0.0, 1.0),
        )  # fmt: skip
        told = [np.array(self.seen[name], float).reshape(-1, 3).sum(0) for name in self.names]
        table = Table(
            "Sensitivity over the path",
            {
                "feature": list(self.names),
                "share": [self.along[name] / self.length if self.length else np.nan for name in self.names],
                "share_of_a_random_step": [1 / self.ascent.start.numel()] * len(self.names),
                "direction": [
                    ("raised" if s > 0 else "lowered") if (s := self.sign[name]) else "" for name in self.names
                ],
                "change_by_gradient": [float(one[0]) for one in told],
                "change": [float(one[1]) for one in told],
            },
        )
        return curve, table
