"""Gradient ascent on one output voxel, computed where the gradient and the prediction can change and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import MedXAIError
from ..models.crop import Box, aligned, around, tiles


class Ascent:
    """The image on its way up: x ← x + α ∂z/∂x (Couteaux et al. 2019, section 2.2).

    Parameters
    ----------
    model : Model
        Frozen by the caller (``with model.frozen()``).
    x : Tensor, shape (1, C, *spatial)
        The start, network units; changed in place.
    label : int
        Output channel.
    point : tuple of int
        The output voxel, on the network's grid.
    field : ReceptiveField
        Where it is not exact, everything is computed on the whole grid.
    settings : DreamSettings
        step_size, normalize, clamp, jitter, blur, total_variation, l2, seed.
    limits : (Tensor, Tensor)
        Intensity range per channel in network units, broadcastable to x.
    """

    def __init__(self, model, x, label, point, field, settings, limits, multiple=1):
        self.model, self.x, self.label, self.point = model, x, label, tuple(point)
        self.settings, self.limits = settings, limits
        shape = tuple(x.shape[2:])
        near = around(point, field, shape, multiple)
        if settings.jitter:  # the target moves by as much as the image, so the box needs room for it
            j = [settings.jitter] * len(shape)
            room = near.gradient.grown(j, j, shape)
            near = replace(near, gradient_input=aligned(room, field.stride, shape, multiple) if field.exact else room)
        self.near = near
        # One pass over the larger box serves both where that is less work than a pass over each
        # (a backward pass towards the input costs about as much as a forward pass).
        self.together = not settings.jitter and 2 * near.gradient_input.voxels >= near.reach_input.voxels
        self.change = Box(near.gradient.start, near.gradient.stop)
        self.start = x[self.change.index].clone()
        self.random = torch.Generator().manual_seed(settings.seed)
        self.length = float("nan")

    def look(self, gradient: bool):
        """Response and prediction at the present image, and the gradient of the response when asked.

        Returns
        -------
        response : float
            The logit z at the voxel.
        foreground : ndarray of bool
            The prediction of the label on ``near.reach``.
        gradient : Tensor or None
            ∂z/∂x on ``change``.
        """
        near = self.near
        box = near.reach_input if self.together else near.gradient_input
        slope = logits = None
        if gradient:
            shift = self._shift()
            feed = self.x[box.index]
            if shift:
                feed = torch.roll(feed, shift, tuple(range(2, feed.ndim)))
            feed = feed.detach().clone().requires_grad_(True)
            with torch.enable_grad():
                logits = self.model.logits(feed)
                target = tuple(
                    p - a + (shift[n] if shift else 0) for n, (p, a) in enumerate(zip(self.point, box.start))
                )
                z = logits[(0, self.label, *target)]
                (slope,) = torch.autograd.grad(z, feed)
            if shift:
                slope = torch.roll(slope, [-s for s in shift], tuple(range(2, slope.ndim)))
            slope = slope[self.change.within(box).index]
            logits = logits.detach()
        if not (gradient and self.together):
            box = near.reach_input
            with torch.no_grad():
                logits = self.model.logits(self.x[box.index])
        inner = logits[near.reach.within(box).index]
        response = float(inner[(0, self.label, *(p - a for p, a in zip(self.point, near.reach.start)))])
        foreground = self.model.foreground(inner, self.label)[0].cpu().numpy()
        return response, foreground, slope

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

    def _shift(self):
        j = self.settings.jitter
        if not j:
            return None
        drawn = torch.randint(-j, j + 1, (len(self.point),), generator=self.random).tolist()
        box = self.near.gradient_input  # the voxel must stay in the box
        return [min(max(s, a - p), b - 1 - p) for s, p, a, b in zip(drawn, self.point, box.start, box.stop)]

    def check(self, logits) -> float:
        """Largest difference between the crop's logits and the whole grid's, relative to the largest logit; at the start.

        Parameters
        ----------
        logits : Tensor, shape (1, labels, *grid)
            Of the whole grid.
        """
        box = self.near.reach_input
        with torch.no_grad():
            mine = self.model.logits(self.x[box.index])[self.near.reach.within(box).index]
        other = logits[self.near.reach.index]
        return float((mine - other).abs().max()) / max(float(other.abs().max()), 1e-12)


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
        All channels on the whole grid, when it was one pass.
    """
    shape = tuple(x.shape[2:])
    try:
        model.require_memory(shape, gradient=False, lower="the volume's size (crop it)")
    except MedXAIError:
        if not field.exact:
            raise
        logit, foreground = np.empty(shape, np.float32), np.empty(shape, bool)
        for out, feed in tiles(field, shape, tile, multiple):
            with torch.no_grad():
                part = model.logits(x[feed.index])[out.within(feed).index]
            logit[out.index[1:]] = part[0, label].cpu().numpy()
            foreground[out.index[1:]] = model.foreground(part, label)[0].cpu().numpy()
        return logit, foreground, None
    with torch.no_grad():
        logits = model.logits(x)
    return logits[0, label].cpu().numpy(), model.foreground(logits, label)[0].cpu().numpy(), logits
