"""The passes over a network in which the maps of its layers and units are made and scored (He et al. 2023, section 3)."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..models import memory, reading, sliding_logits
from ..models.graph import Layer
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
        need = self.model.estimate_bytes(shape, gradient=False) + len(self.parts) * reading.bytes_of(self.layers)
        fits = how == "kept" or (how == "auto" and (have is None or need < 0.8 * have))
        self.kept = len(self.tiles) == len(self.parts) and fits

    def soft(self, logits: Tensor) -> Tensor:
        """The soft masks of background and objects, (1, K, *shape): B of eq. 6 and what is left of it."""
        p = self.model.probabilities(logits)
        if not self.per_label:
            p = p[:, self.label : self.label + 1]
            return torch.cat([1 - p, p], 1)
        if self.model.package.output.activation == "softmax":
            return p
        return torch.cat([1 - p.amax(1, keepdim=True), p], 1)

    def decided(self, separation: Tensor, label: int | None = None) -> Tensor:
        """Where a label's prototype is the nearest, (M, *shape), from (K − 1, M, *shape); eq. 7. By default the plan's label."""
        label, prototype = self.label if label is None else label, 1
        if self.per_label:
            prototype = label + (self.model.package.output.activation != "softmax")
        best = separation.max(0) if len(separation) > 1 else None
        highest = separation[0] if best is None else best.values
        if prototype == 0:
            return highest <= 0
        return highest > 0 if best is None else (highest > 0) & (best.indices == prototype - 1)


class Study:
    """What one set of images gave: counts and maps of layers (key: their number) and units (key: number and unit).

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
    keep : callable
        Whether the map of a key is kept.
    """

    def __init__(self, plan: Plan, images, references, units: bool = True, keep=lambda key: True):
        self.plan, self.images, self.references, self.with_units, self.keep = plan, images, references, units, keep
        self.counts: dict = {}
        self.maps: dict = {}  # key -> one bool array per part
        self.outputs: list[Tensor] = [None] * len(plan.parts)
        self.predicted: list[list[Tensor]] = [[] for _ in plan.parts]  # of every label
        self.reference: list[Tensor] = [None] * len(plan.parts)
        self.totals = np.zeros(4, np.int64)
        self.labels: dict = {}  # with one prototype per label: (layer number, label) -> |S|, |B|, |S∩B| of that label
        self.heat = [np.zeros(part.prepared.shape, np.float32) for part in plan.parts]

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
                _one(self, layer, tile, lambda channels, v=value, w=w: separation(v, w(v), channels)[0])
                del value
                yield done, layer
            return
        sums, offsets = {}, {}
        for done, _, layer, value, w in features():
            offset = offsets.setdefault(layer, value[0].flatten(1).mean(1))
            before = sums.get(layer, (0, 0))
            here = w(value)
            sums[layer] = before[0] + weighed(value, here, offset), before[1] + here[0].flatten(1).sum(1)
            yield done / 2 + 0.25, None
        for done, tile, layer, value, _ in features():

            def separate(channels, v=value, layer=layer):
                return separation_from(v, *sums[layer], offsets[layer], channels)

            _one(self, layer, tile, separate)
            yield done / 2 + 0.5, None

    def settle(self, part: int, logits: Tensor, reference: Tensor | None) -> None:
        """The thresholded output of an image, and what its maps are compared with (None: that output)."""
        inside, model = self.plan.parts[part].inside, self.plan.model
        if self.plan.per_label:
            self.predicted[part] = [model.foreground(logits, n)[0] & inside for n in range(len(model.labels))]
        b = self.outputs[part] = model.foreground(logits, self.plan.label)[0] & inside
        g = self.reference[part] = b if reference is None else reference & inside
        self.totals += [int(torch.count_nonzero(m)) for m in (g, b, g & b, inside)]

    def add(self, key, part: int, own, maps: Tensor) -> None:
        """Take in maps (M, *own shape) of units ``key`` + (0, 1, …), or of a layer."""
        found = maps.cpu().numpy()
        g, b = (m[part][own].cpu().numpy() for m in (self.reference, self.outputs))
        unit = isinstance(key, tuple)
        if unit:
            self.heat[part][own] += found.sum(0, dtype=np.float32)
        for n, each in enumerate(found):
            one = (key[0], key[1] + n) if unit else key
            row = [np.count_nonzero(m) for m in (each, each & g, each & b)]
            self.counts[one] = self.counts.get(one, 0) + np.array(row, np.int64)
            if one not in self.maps and self.keep(one):
                self.maps[one] = [np.zeros(p.prepared.shape, bool) for p in self.plan.parts]
            if one in self.maps:
                self.maps[one][part][own] = each

    def add_labels(self, number: int, part: int, own, separation: Tensor) -> None:
        """Take in how one layer of one tile tells every label, from (K − 1, *own shape)."""
        inside = self.plan.parts[part].inside[own]
        for label, predicted in enumerate(self.predicted[part]):
            found, b = self.plan.decided(separation[:, None], label)[0] & inside, predicted[own]
            row = [int(torch.count_nonzero(m)) for m in (found, b, found & b)]
            self.labels[number, label] = self.labels.get((number, label), 0) + np.array(row, np.int64)

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


def _one(result, layer, tile, separate):
    """Map one layer of one tile, and its units; ``separate(channels)`` gives their `separation`."""
    plan, (n, window, own) = result.plan, tile
    shape = tuple(s.stop - s.start for s in window)
    local = _within(own, window)
    inside = plan.parts[n].inside[own]

    def maps(values):  # (K − 1, M, *low)
        per = max(1, _AT_ONCE // (4 * len(values) * math.prod(shape)))
        for at in range(0, values.shape[1], per):
            part = values[:, at : at + per]
            up = plan.interpolation.up(part.flatten(0, 1)[None], shape)[0].unflatten(0, part.shape[:2])
            yield at, up[(slice(None), slice(None), *local)]

    for _, values in maps(separate(False)[0][:, None]):
        result.add(layer.number, n, own, plan.decided(values) & inside)
        if plan.per_label:
            result.add_labels(layer.number, n, own, values[:, 0])
    if result.with_units and layer in plan.unit_layers:
        for at, values in maps(separate(True)[0]):
            result.add((layer.number, at), n, own, plan.decided(values) & inside)


def _within(own, window):
    return tuple(slice(o.start - w.start, o.stop - w.start) for o, w in zip(own, window))
