"""Gradient ascent on one output voxel, computed where the gradient and the prediction can change and nowhere else."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import MedXAIError
from ..models import sliding_logits
from ..models.crop import Box, aligned, around, tiles, whole
from .components import Component


class Ascent:
    """The image on its way up: x ← x + α ∂z/∂x (Couteaux et al. 2019, section 2.2).

    Parameters
    ----------
    model : Model
        Frozen by the caller (``with model.frozen()``).
    x : Tensor, shape (1, C, *spatial)
        The start, network units; changed in place. For networks of one window, that window of the image.
    label : int
        Output channel.
    point : tuple of int
        The output voxel, on the network's grid.
    foreground : ndarray of bool
        The prediction of the label on the whole grid at the start.
    field : ReceptiveField
        Where it is not exact, everything is computed on the whole grid.
    settings : DreamSettings
        step_size, normalize, clamp, jitter, blur, total_variation, l2, seed.
    limits : (Tensor, Tensor)
        Intensity range per channel in network units, broadcastable to x.
    multiple : int or sequence of int
        Sizes the network takes.
    origin : tuple of int
        Where the first voxel of ``x`` lies on the network's grid.
    valid : Box, optional
        The part of ``x`` that is image and may change; the rest is padding.
    """

    def __init__(
        self, model, x, label, point, foreground, field, settings, limits, multiple=1, origin=None, valid=None
    ):
        self.model, self.x, self.label, self.point = model, x, label, tuple(point)
        self.field, self.settings, self.limits, self.multiple = field, settings, limits, multiple
        self.shape = tuple(x.shape[2:])
        self.origin = (0,) * len(self.shape) if origin is None else origin
        self.near = around(point, field, self.shape, multiple)
        self.voxel = Box(self.point, tuple(p + 1 for p in self.point))
        self.gradient_input = self.near.gradient_input
        if settings.jitter:  # the target moves by as much as the image, so the box needs room for it
            j = [settings.jitter] * len(self.shape)
            self.gradient_input = self.input_for(self.voxel.grown(j, j, self.shape))
        self.change = self.near.gradient if valid is None else self.near.gradient.common(valid)
        self.largest = {}  # voxels of the largest pass so far, without and with a gradient
        self.start = x[self.change.index].clone()
        self.component = Component(foreground, self.near.reach, point)
        self.window = self._around(self.component.find(self.near.reach, foreground[self.near.reach.index[1:]]))
        self.random = torch.Generator().manual_seed(settings.seed)

    def look(self, gradient: bool):
        """Response and predicted component at the present image, and the gradient of the response when asked.

        Only what is needed is computed: the box whose gradient is not zero, and the window around the component. One pass over
        the larger box serves both where that is less work than a pass over each (a backward pass towards the input costs about
        as much as a forward pass); while the voxel is background there is no component to look for.

        Returns
        -------
        response : float
            The logit z at the voxel.
        component : (Box, ndarray of bool) or None
            Its bounding box on the network's grid and the component within it; None while the voxel is background.
        gradient : Tensor or None
            ∂z/∂x on ``change``.
        """
        slope, window, feed = None, self.window, self.input_for(self.window)
        shared = not self.settings.jitter and 2 * self.gradient_input.voxels >= feed.voxels
        if gradient and not shared:
            logits, slope = self._ascend()
            if not self.settings.jitter and not bool(self.model.foreground(logits, self.label)):
                self.window = self._around(None)
                return float(logits[0, self.label].squeeze()), None, slope
        while True:
            logits, more = self._pass(feed, window, gradient and slope is None)
            slope = more if slope is None else slope
            found = self.component.find(window, self.model.foreground(logits, self.label)[0].cpu().numpy())
            if found is not False:
                break
            wider = [max(8, n // 2) for n in window.shape]
            window = window.grown(wider, wider, self.shape).common(self.near.reach)
            feed = self.input_for(window)
        self.window = self._around(found)
        return float(logits[(0, self.label, *self.voxel.within(window).start)]), found, slope

    def _around(self, found) -> Box:
        """Where to look next: the component and a little more; everywhere, when that is fed anyway."""
        window = self.voxel
        if found is not None:
            room = [max(3, n // 8) for n in found[0].shape]
            window = found[0].grown(room, room, self.shape).common(self.near.reach)
        return self.near.reach if self.input_for(window) == self.near.reach_input else window

    def input_for(self, window: Box) -> Box:
        """What must be fed for outputs in ``window``; the whole grid where the receptive field is not exact."""
        if not self.field.exact:
            return whole(self.shape)
        below, above = zip(*self.field.radius)
        return aligned(window.grown(below, above, self.shape), self.field.stride, self.shape, self.multiple)

    def _pass(self, box: Box, window: Box, gradient: bool):
        """Logits in ``window`` computed on ``box``; with the gradient of the voxel's logit when asked."""
        self.require_memory(box, gradient)
        if not gradient:
            with torch.no_grad():
                return self.model.logits(self.x[box.index])[window.within(box).index], None
        feed = self.x[box.index].detach().clone().requires_grad_(True)
        with torch.enable_grad():
            logits = self.model.logits(feed)
            slope = self.model.gradient(logits[(0, self.label, *self.voxel.within(box).start)], feed)
        return logits.detach()[window.within(box).index], slope[self.change.within(box).index]

    def require_memory(self, box: Box, gradient: bool) -> None:
        """Refuse a pass that is larger than any before it where the memory does not suffice."""
        if box.voxels > self.largest.get(gradient, 0):
            self.model.require_memory(box.shape, gradient, lower="the volume's size (crop it)")
            self.largest[gradient] = box.voxels

    def _ascend(self):
        """Logits at the voxel and the gradient, on the gradient's own box; the image shifted at random with ``jitter``."""
        box, j = self.gradient_input, self.settings.jitter
        if not j:
            return self._pass(box, self.voxel, True)
        self.require_memory(box, True)
        drawn = torch.randint(-j, j + 1, (len(self.point),), generator=self.random).tolist()
        shift = [min(max(s, a - p), b - 1 - p) for s, p, a, b in zip(drawn, self.point, box.start, box.stop)]
        axes = tuple(range(2, 2 + len(shift)))
        feed = torch.roll(self.x[box.index], shift, axes).detach().requires_grad_(True)
        target = tuple(p - a + s for p, a, s in zip(self.point, box.start, shift))
        with torch.enable_grad():
            logits = self.model.logits(feed)
            slope = self.model.gradient(logits[(0, self.label, *target)], feed)
        slope = torch.roll(slope, [-s for s in shift], axes)
        return None, slope[self.change.within(box).index]

    def step(self, slope) -> float:
        """Take one step along the gradient; returns the gradient's L2 norm (0: nothing moves)."""
        settings = self.settings
        here = self.x[self.change.index]
        delta = here - self.start
        if settings.total_variation or settings.l2:
            delta = delta.detach().requires_grad_(True)
            with torch.enable_grad():
                cost = settings.total_variation * total_variation(delta) + settings.l2 * (delta**2).sum()
                slope = slope - torch.autograd.grad(cost, delta)[0]
            delta = delta.detach()
        length = float(slope.norm())
        if length == 0:
            return length
        rate = settings.step_size / length if settings.normalize else settings.step_size
        if settings.blur:
            new = self.start + gaussian(delta + rate * slope, settings.blur)
        else:
            new = here + rate * slope
        if settings.clamp:
            new = torch.maximum(torch.minimum(new, self.limits[1]), self.limits[0])
        self.x[self.change.index] = new
        return length

    def delta(self) -> torch.Tensor:
        """The change so far on ``change``, shape (C, *box), network units."""
        return (self.x[self.change.index] - self.start)[0]

    def place(self, start) -> tuple[int, ...]:
        """A voxel of ``x`` on the network's grid."""
        return tuple(a + o for a, o in zip(start, self.origin))

    def check(self, logits) -> float:
        """Largest difference between cropped logits and the whole grid's, relative to the largest logit around; at the start.

        Parameters
        ----------
        logits : Tensor, shape (1, labels, *grid)
            Of the whole grid.
        """
        low, high = torch.aminmax(logits[self.near.reach.index])  # at one voxel all may be close to 0
        scale, worst = max(-float(low), float(high), 1e-12), 0.0
        for window, box in ((self.voxel, self.near.gradient_input), (self.window, self.input_for(self.window))):
            mine, _ = self._pass(box, window, False)
            other = logits[window.index]
            worst = max(worst, float((mine - other).abs().max()) / scale)
        return worst


def total_variation(delta) -> torch.Tensor:
    """Sum of absolute differences between neighbours, rounded off below a tenth of the largest value (else it flickers)."""
    soft = (0.1 * delta.detach().abs().max()) ** 2 + 1e-12
    return sum((delta.diff(dim=d) ** 2 + soft).sqrt().sum() for d in range(2, delta.ndim))


def gaussian(delta, sigma) -> torch.Tensor:
    """Separable Gaussian smoothing of (1, C, *spatial), zero outside."""
    radius = max(1, int(3 * sigma + 0.5))
    at = torch.arange(-radius, radius + 1, dtype=delta.dtype, device=delta.device)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(2, delta.ndim):
        moved = delta.movedim(axis, -1)
        flat = moved.reshape(-1, 1, moved.shape[-1])
        delta = F.conv1d(flat, kernel[None, None], padding=radius).reshape(moved.shape).movedim(-1, axis)
    return delta


def first_look(model, x, label, field, multiple=1, tile: int = 96):
    """Logit of the label and predicted foreground on the whole grid; in exact tiles where memory is short.

    Returns
    -------
    logit : ndarray of float32, foreground : ndarray of bool
        Shape of the grid.
    logits : Tensor or None
        All channels on the whole grid, when it was one pass or a blend of windows.
    """
    shape = tuple(x.shape[2:])
    sliding = model.package.input.fit == "window"
    try:
        model.require_memory(
            model.package.input.size if sliding else shape, gradient=False, lower="the volume's size (crop it)"
        )
    except MedXAIError:
        if sliding or not field.exact:
            raise
        logit, foreground = np.empty(shape, np.float32), np.empty(shape, bool)
        for out, feed in tiles(field, shape, tile, multiple):
            with torch.no_grad():
                part = model.logits(x[feed.index])[out.within(feed).index]
            logit[out.index[1:]] = part[0, label].cpu().numpy()
            foreground[out.index[1:]] = model.foreground(part, label)[0].cpu().numpy()
        return logit, foreground, None
    with torch.no_grad():
        logits = sliding_logits(model, x)
    return logits[0, label].cpu().numpy(), model.foreground(logits, label)[0].cpu().numpy(), logits


def frame(about, point, shape) -> Box:
    """The part of the grid an ascent works in: all of it, or for networks of one window the window around the voxel."""
    if about.fit != "window":
        return whole(shape)
    start = tuple(min(max(p - n // 2, 0), full - n) for p, n, full in zip(point, about.size, shape))
    return Box(start, tuple(a + n for a, n in zip(start, about.size)))
