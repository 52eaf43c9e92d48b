"""The passes over a network in which the maps of its layers and units are made and scored (He et al. 2023, section 3)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import MedXAIError
from ..models import memory, reading, sliding_logits
from ..models.graph import Layer, no_autocast
from ..models.tiling import windows
from .prototypes import Interpolation, separation, separation_from, weighed

_AT_ONCE = 1 << 26  # bytes of upsampled maps of units


@dataclass
class Part:
    """One image: the volume, or one slice of it. Masks are bool, on the network's grid and device."""

    prepared: object
    inside: Tensor
    truth: Tensor | None


@dataclass
class Plan:
    """What is to be mapped: layers, those among them whose units are mapped too, and how."""

    model: object
    parts: list[Part]
    label: int
    layers: list[Layer]
    unit_layers: list[Layer]
    interpolation: Interpolation
    per_label: bool
    kept: bool = True
    exclusive: bool = False
    tiles: list = field(default_factory=list)

    def __post_init__(self):
        about = self.model.package.input
        for n, part in enumerate(self.parts):
            shape = part.prepared.shape
            whole = [(tuple(slice(0, size) for size in shape),) * 2]
            self.tiles += [
                (n, *one) for one in (windows(shape, about.size) if about.fit == "window" and about.size else whole)
            ]

    def decide(self, how: str) -> None:
        """Keep the layers' outputs of a pass where the memory suffices, or where ``how`` says so; windows are blended first."""
        have = memory.available(self.model.device)
        shape = self.parts[0].prepared.shape
        need = len(self.parts) * reading.bytes_of(self.layers)
        with contextlib.suppress(MedXAIError):  # a program of one size has no estimate
            need += self.model.estimate_bytes(shape, gradient=False)
        fits = how == "kept" or (how == "auto" and (have is None or need < 0.8 * have))
        self.kept = len(self.tiles) == len(self.parts) and fits

    def soft(self, logits: Tensor) -> Tensor:
        """The soft masks of background and objects, (1, K, *shape): B of eq. 6 and what is left of it."""
        p = self.model.probabilities(logits)
        if not self.per_label:
            p = p[:, self.label : self.label + 1]
            return torch.cat([1 - p, p], 1)
        # Labels that exclude each other have a background, or stand for it, among them.
        self.exclusive = p.shape[1] > 1 and bool(((p.sum(1) - 1).abs() < 1e-3).all())
        return p if self.exclusive else torch.cat([1 - p.amax(1, keepdim=True), p], 1)

    def nearest(self, separation: Tensor) -> Tensor:
        """Which prototype is the nearest, (M, *shape), from (K − 1, M, *shape); eq. 7. A tie is the first one's, the background's."""
        if len(separation) == 1:
            return (separation[0] > 0).to(torch.int16)
        best = separation.max(0)
        return torch.where(best.values > 0, best.indices + 1, 0).to(torch.int16)

    def prototype(self, label: int) -> int:
        """The number of a label's prototype."""
        return (label if self.exclusive else label + 1) if self.per_label else 1


class Study:
    """What one set of images gave: counts and maps of layers (key: their name) and units (key: name and unit).

    ``counts[key]`` is |S|, |S∩G|, |S∩B| over all images, with G the reference and B the thresholded output; ``totals`` is |G|, |B|, |G∩B|
    and the number of voxels. ``heat`` is how many unit maps hold a voxel, float32 per part.

    Parameters
    ----------
    plan : Plan
    images : list of Tensor, each (1, C, *shape)
        One per part, in network units.
    references : list of Tensor or None, each bool (*shape)
        What the maps are compared with; None: the image's own thresholded output.
    units : bool
        Whether the units of the unit layers are mapped.
    keep : bool
        Whether the maps of layers are kept.
    room : int
        How many maps of units are kept: those with the best scores.
    """

    def __init__(self, plan: Plan, images, references, units: bool = True, keep: bool = True, room: int = 1 << 30):
        self.plan, self.images, self.references, self.with_units = plan, images, references, units
        self.keep, self.room, self.dropped = keep, room, set()
        self.counts: dict = {}
        self.maps: dict = {}  # key -> one bool array per part
        self.outputs: list[np.ndarray] = [None] * len(plan.parts)
        self.reference: list[np.ndarray] = [None] * len(plan.parts)
        self.predicted: list[Tensor] = [None] * len(plan.parts)  # of every label
        self.totals = np.zeros(4, np.int64)
        self.labels: dict = {}  # with one prototype per label: (layer, label) -> |S|, |B|, |S∩B| of that label
        self.heat = [np.zeros(part.prepared.shape, np.float32) for part in plan.parts] if units else []

    def run(self) -> Generator[tuple[float, Layer | None], None, None]:
        """Map and score the input image, every layer, and the units of the unit layers.

        Yields
        ------
        fraction, layer : float, Layer or None
            The layer whose map is complete now.

        Notes
        -----
        Layers that fit into memory take one pass. Otherwise the output comes first (one pass more), and several tiles or slices, which
        share their prototypes, take another for the sums.
        """
        steps = self._run()
        try:
            while True:
                # While it computes, not while the caller has the word.
                with torch.no_grad(), no_autocast(self.plan.model.device):
                    try:
                        found = next(steps)
                    except StopIteration:
                        return
                yield found
        finally:
            steps.close()

    def _run(self):
        plan = self.plan
        soft, held = [], []
        for n, image in enumerate(self.images):
            if plan.kept:
                held.append([])
                for layer, value in _features(plan, image):
                    held[n].append((layer, value))
                    yield 0.5 * (n + len(held[n]) / (2 + len(plan.layers))) / len(self.images), None
                _, logits = held[n].pop()
            else:
                logits = sliding_logits(plan.model, image)
                yield 0.5 * (n + 1) / len(self.images), None
            soft.append(plan.soft(logits))
            self.settle(n, logits, self.references[n])
            del logits

        def features():
            """Every layer of every tile, with its weights: those of the tile's own part of the image."""
            for number, (n, window, own) in enumerate(plan.tiles):
                inside = torch.zeros_like(plan.parts[n].inside)
                inside[own] = plan.parts[n].inside[own]
                at = (slice(None), slice(None), *window)
                weights = _Weights(plan, soft[n][at], inside[window])
                count = 0
                for layer, value in held[n] if plan.kept else _features(plan, self.images[n][at]):
                    if layer is not None:
                        count += 1
                        done = 0.5 + 0.5 * (number + count / (1 + len(plan.layers))) / len(plan.tiles)
                        yield done, (n, window, own), layer, value, weights
                    del value  # freed before the network computes on

        if len(plan.tiles) == 1:
            for done, tile, layer, value, w in features():

                def separate(some, channels, w=w):
                    return separation(some, w(some), channels is not None)

                _one(self, layer, tile, value, separate)
                del value
                yield done, layer
            return
        sums, offsets = {}, {}
        for done, _, layer, value, w in features():
            if layer not in offsets:
                offsets[layer] = value[0].flatten(1).mean(1)
            before, here = sums.get(layer, (0, 0)), w(value)
            sums[layer] = before[0] + weighed(value, here, offsets[layer]), before[1] + here[0].flatten(1).sum(1)
            del value
            yield done / 2 + 0.25, None
        for done, tile, layer, value, _ in features():
            total, count = sums[layer]

            def separate(some, channels, total=total, count=count, at=offsets[layer]):
                chosen = channels if channels is not None else slice(None)
                return separation_from(some, total[:, chosen], count, at[chosen], channels is not None)

            _one(self, layer, tile, value, separate)
            del value
            yield done / 2 + 0.5, layer if tile == plan.tiles[-1] else None

    def settle(self, part: int, logits: Tensor, reference: Tensor | None) -> None:
        """The thresholded output of an image, and what its maps are compared with (None: that output)."""
        inside, model = self.plan.parts[part].inside, self.plan.model
        if self.plan.per_label:
            several = model.package.output.activation == "softmax"
            self.predicted[part] = logits.argmax(1)[0] if several else logits[0] > 0
        b = model.foreground(logits, self.plan.label)[0] & inside
        g = b if reference is None else reference & inside
        self.totals += [int(torch.count_nonzero(m)) for m in (g, b, g & b, inside)]
        self.outputs[part], self.reference[part] = b.cpu().numpy(), g.cpu().numpy()

    def add(self, key, part: int, own, maps: Tensor) -> None:
        """Take in maps (M, *own shape) of units ``key`` + (0, 1, …), or of a layer."""
        found = maps.cpu().numpy()
        g, b = self.reference[part][own], self.outputs[part][own]
        unit = isinstance(key, tuple)
        if unit:
            self.heat[part][own] += found.sum(0, dtype=np.float32)
        for n, each in enumerate(found):
            one = (key[0], key[1] + n) if unit else key
            row = [np.count_nonzero(m) for m in (each, each & g, each & b)]
            self.counts[one] = self.counts.get(one, 0) + np.array(row, np.int64)
            if one not in self.maps and one not in self.dropped and (unit or self.keep):
                self.maps[one] = [np.zeros(p.prepared.shape, bool) for p in self.plan.parts]
            if one in self.maps:
                self.maps[one][part][own] = each
        if unit:
            kept = [k for k in self.maps if isinstance(k, tuple)][::-1]
            for one in sorted(kept, key=lambda k: self.scores(k)["dice"])[: max(0, len(kept) - self.room)]:
                self.dropped.add(one)
                del self.maps[one]

    def add_labels(self, layer: str, part: int, own, nearest: Tensor) -> None:
        """Take in how one layer of one tile tells every label, from the nearest prototypes (*own shape)."""
        inside, predicted = self.plan.parts[part].inside[own], self.predicted[part]
        for label in range(len(self.plan.model.labels)):
            b = predicted[own] == label if predicted.dtype != torch.bool else predicted[label][own]
            found = (nearest == self.plan.prototype(label)) & inside
            row = [int(torch.count_nonzero(m)) for m in (found, b & inside, found & b)]
            self.labels[layer, label] = self.labels.get((layer, label), 0) + np.array(row, np.int64)

    def scores(self, key) -> dict[str, float]:
        """Dice (the SA score, eq. 8), Jaccard, accuracy, sensitivity, specificity, and Dice with the output."""
        s, both, with_output = (int(v) for v in self.counts[key])
        g, b, _, n = (int(v) for v in self.totals)
        return overlap(s, g, both, n) | {"dice_output": overlap(s, b, with_output, n)["dice"]}


def overlap(s: int, g: int, both: int, n: int) -> dict[str, float]:
    """How a mask of ``s`` voxels agrees with one of ``g`` of which it holds ``both``, among ``n`` voxels.

    A ratio of nothing to nothing is 1: two empty masks agree, and nothing was missed where there was nothing to find.
    """

    def ratio(a, b):
        return a / b if b else 1.0

    return {
        "dice": ratio(2 * both, s + g),
        "jaccard": ratio(both, s + g - both),
        "accuracy": ratio(n - s - g + 2 * both, n),
        "sensitivity": ratio(both, g),
        "specificity": ratio(n - s - g + both, n - g),
    }


class _Weights:
    """Uᵀ of the soft masks at each resolution, made once for each."""

    def __init__(self, plan, soft, inside):
        self.plan, self.soft, self.made = plan, soft * inside, {}

    def __call__(self, features: Tensor) -> Tensor:
        low = tuple(features.shape[2:])
        if low not in self.made:
            self.made[low] = self.plan.interpolation.adjoint(self.soft, low)
        return self.made[low]


def _features(plan, x):
    """The input image as a layer of its own (section 4.7), the layers, and the logits."""
    yield INPUT, x
    yield from reading.read(plan.model, x, plan.layers)


INPUT = Layer("input", "input image", "", (), group="input")


def _one(result, layer, tile, value, separate):
    """Map one layer of one tile, and its units a few at a time; ``separate(features, channels)`` gives their `separation`.

    ``channels`` is the slice of the layer's channels that ``features`` are, for units; None for the layer as a whole.
    """
    plan, (n, window, own) = result.plan, tile
    shape = tuple(s.stop - s.start for s in window)
    local = _within(own, window)
    inside = plan.parts[n].inside[own]
    wanted = plan.prototype(plan.label)

    def nearest(some, channels=None):
        values = separate(some, channels)[0]  # (K − 1, M, *low)
        values = values if channels is not None else values[:, None]
        up = plan.interpolation.up(values.flatten(0, 1)[None], shape)[0].unflatten(0, values.shape[:2])
        return plan.nearest(up[(slice(None), slice(None), *local)])

    found = nearest(value)
    result.add(layer.name, n, own, (found == wanted) & inside)
    if plan.per_label:
        result.add_labels(layer.name, n, own, found[0])
    if result.with_units and layer in plan.unit_layers:
        count = len(plan.model.labels) if plan.per_label else 1
        per = max(1, _AT_ONCE // (4 * count * math.prod(shape)))
        for at in range(0, value.shape[1], per):
            some = value[:, at : at + per]
            maps = nearest(some, slice(at, at + some.shape[1])) == wanted
            result.add((layer.name, at), n, own, maps & inside)


def _within(own, window):
    return tuple(slice(o.start - w.start, o.stop - w.start) for o, w in zip(own, window))
