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
from ..features.radiomic import counting_device
from ..features.soft import Soft, resolve_soft
from ..models.crop import Box

_ROOM = 3  # voxels around the predicted component in which the mask may grow


class Sensitivity:
    """Follows the gradients of differentiable features along an ascent.

    Parameters
    ----------
    ascent : Ascent
    prepared : Prepared
        Of the volumes. Features are those of the network's grid and of what the network sees of the first volume, in its units: resampled,
        and clipped where the package clips.
    settings : DreamSettings
        ``sensitivity``, ``bin_width``, ``bin_count``.

    Notes
    -----
    The soft mask is the label's probability within `_ROOM` voxels of the predicted component. With δ the change of one step and g the
    gradient of feature f on the n voxels that the step moves, in network units: share = (g·δ)² / (|g|² |δ|²). A direction
    drawn at random among these voxels has 1/n on average. That the gradients are right, and the steps small enough for them to
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
        self.paths = {name: _Along() for name in self.names}
        self.at_random: list[float] = []  # 1 / n of each step
        self.capped = False
        self.now = None  # values and gradients at the present image
        self.moved = None  # the last step

    def look(self, found) -> None:
        """Features and their gradients at the present image; ``found`` is the component, as `Ascent.look` gives it."""
        before, self.now = self.now, None if found is None else self._gradients(*found)
        if before is None or self.now is None or self.moved is None:
            return
        for name, path in self.paths.items():
            (was, slope), (value, new) = before[name], self.now[name]
            path.pair(float(((slope + new) / 2 * self.moved).sum()), value - was, abs(value))

    def _gradients(self, component: Box, mask):
        ascent, model = self.ascent, self.ascent.model
        room = [_ROOM + 1] * len(component.shape)
        window = component.grown(room, room, ascent.shape)
        box = ascent.input_for(window)
        ascent.require_memory(box, True)
        near = np.zeros(window.shape, bool)
        near[component.within(window).index[1:]] = mask
        near = ndimage.binary_dilation(near, iterations=_ROOM)
        feed = ascent.x[box.index].detach().clone().requires_grad_(True)
        inner = window.within(box).index
        found = {}
        where = counting_device(feed.device)
        with torch.enable_grad():
            chance = model.probabilities(model.logits(feed)[inner])[0, ascent.label].to(where)
            image = (feed[inner][0, 0].to(where) - self.rule.offset) / self.rule.scale
            soft = Soft(image, chance * torch.from_numpy(near).to(chance), voxel=self.voxel, **self.bins)
            for name in self.names:
                value = soft.feature(name)
                slope = torch.zeros(ascent.start[0].shape, dtype=torch.float64, device=where)
                if value.requires_grad:
                    (grad,) = torch.autograd.grad(value, feed, retain_graph=True)
                    both = box.common(ascent.change)
                    slope[both.within(ascent.change).index] = grad[both.within(box).index][0].to(where).double()
                found[name] = (float(value.detach()), slope)
            self.capped |= soft.capped
        return found

    def step(self, j: int, before, after) -> dict[str, float]:
        """Take in step j, which changed the image from ``before`` to ``after`` (each (1, C, *box) on `Ascent.change`); its shares."""
        self.moved = (after - before)[0].to(counting_device(after.device)).double()
        row = dict.fromkeys(self.names, np.nan)
        if self.now is not None:
            there = self.moved != 0
            square = float(self.moved.square().sum())
            if square:
                self.at_random.append(1 / int(there.sum()))
            for name, (_, slope) in self.now.items():
                norm, product = float(slope[there].square().sum()), float((slope * self.moved).sum())
                if norm > 0 and square > 0 and np.isfinite(norm):
                    row[name] = product**2 / (norm * square)
                    self.paths[name].step(row[name], square, product / norm**0.5)
        self.rows[j] = row
        return row

    @property
    def discrepancy(self) -> float:
        """The greatest difference, over the features, between the change by the gradients and the change seen; NaN for none."""
        found = [one.discrepancy for one in self.paths.values() if np.isfinite(one.discrepancy)]
        return max(found, default=np.nan)

    def results(self) -> tuple[Curve, Table]:
        """The curve of the shares, one column for each feature, and the table over the whole path."""
        steps = sorted(self.rows)
        columns = {name: np.array([self.rows[j][name] for j in steps]) for name in self.names}
        curve = Curve(
            "How much of each step is this feature", "step", {"step": np.array(steps, float), **columns}, "Step",
            "Share of the step's squared length", limits=(0.0, 1.0),
        )  # fmt: skip
        paths = self.paths.values()
        table = Table(
            "Sensitivity over the path",
            {
                "feature": list(self.names),
                "share": [one.share for one in paths],
                "share_of_a_random_step": [float(np.mean(self.at_random)) if self.at_random else np.nan]
                * len(self.names),
                "direction": [("raised" if one.sign > 0 else "lowered") if one.sign else "" for one in paths],
                "change_by_gradient": [one.told for one in paths],
                "change": [one.seen for one in paths],
                "steps": [len(one.shares) for one in paths],
            },
        )
        return curve, table


class _Along:
    """One feature along the path: the steps at which it has a gradient, the pairs of steps at which it has two values."""

    def __init__(self):
        self.shares, self.squares, self.sign, self.pairs = [], [], 0.0, []

    def step(self, share, square, product):
        self.shares.append(share)
        self.squares.append(square)
        self.sign += product

    def pair(self, told, seen, size):
        if np.isfinite(told) and np.isfinite(seen):
            self.pairs.append((told, seen, size))

    @property
    def share(self) -> float:
        """Mean of the shares, each step weighed by its squared length."""
        return float(np.average(self.shares, weights=self.squares)) if self.shares else np.nan

    @property
    def told(self) -> float:
        return sum(one[0] for one in self.pairs) if self.pairs else np.nan

    @property
    def seen(self) -> float:
        return sum(one[1] for one in self.pairs) if self.pairs else np.nan

    @property
    def discrepancy(self) -> float:
        """Of `told` and `seen`, relative to all of the feature's movements, or to a thousandth of its value where it hardly moves."""
        size = max(sum(abs(one[1]) for one in self.pairs), 1e-3 * max((one[2] for one in self.pairs), default=0.0))
        return abs(self.told - self.seen) / size if size else np.nan
