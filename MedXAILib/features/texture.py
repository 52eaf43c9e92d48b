"""Texture features of many masks at once, in torch, as pyradiomics 3.0.1 defines them (defaults: distance 1, symmetric, no weighting).

Matrices are counted on the line of `grey.Boxes`, all boxes together. The co-occurrence matrix is dense; dependence, run-length and
size-zone matrices are lists of their entries, for a zone can be as large as the mask. Everything is float64; what no feature that
was asked for reads is not made. An angle along which no two voxels of a mask are neighbours does not count for that mask.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from .grey import Boxes, where

EPS = float(np.spacing(1))  # pyradiomics adds it in logarithms and quotients
_EMPHASIS = {"Small": -2, "Short": -2, "Large": 2, "Long": 2, "LowLevel": -2, "HighLevel": 2}
_OWN = ("Entropy", "Percentage", "Variance", "NonUniformity", "NonUniformityNormalized")
_DENSE = 1 << 24  # codes that are counted in an array; more are sorted


def texture(boxes: Boxes, group: str, features) -> dict[str, list[float]]:
    """Features of one class.

    Parameters
    ----------
    boxes : Boxes
    group : {'glcm', 'gldm', 'glrlm', 'glszm', 'ngtdm'}
    features : iterable of str
        Names without the class, such as ``Contrast``.

    Returns
    -------
    dict of str to list of float
        One for each box; NaN where pyradiomics gives NaN, for instance where no two voxels are neighbours.
    """
    return dict(zip(features, _CLASSES[group](boxes).features(features).tolist()))


def _mean(values, counted):
    """Mean over the angles (…, boxes, angles) that count (boxes, angles) and have a value."""
    counted = counted & ~values.isnan()
    return torch.where(counted, values, 0).sum(-1) / counted.sum(-1)  # 0 / 0 is NaN


def _entropy(p, dims):
    return -(p * torch.log2(p + EPS)).sum(dims)


def _cooccurrence(boxes):
    """GLCM: how often two grey levels stand side by side, either way round, along each angle."""
    side = boxes.ranks + 1
    first = boxes.cell * side
    counts = [torch.bincount(first + boxes.beside(s), minlength=boxes.count * boxes.ranks * side) for s in boxes.shifts]
    pairs = torch.stack([one.view(boxes.count, boxes.ranks, side)[..., 1:] for one in counts], 1).double()
    return Cooccurrence(pairs + pairs.transpose(2, 3), boxes.grey)


class Cooccurrence:
    """Features of co-occurrence matrices; differentiable in them, but for `MCC`.

    Parameters
    ----------
    pairs : Tensor of float64, shape (boxes, angles, ranks, ranks)
        Symmetric counts, or weights.
    grey : Tensor of float64, shape (boxes, ranks)
        The grey level of each rank, from 1; 0 for none.
    """

    def __init__(self, pairs, grey):
        total = pairs.sum((2, 3), keepdim=True)
        self.grey, self.most = grey, grey.amax(1)
        self.counted = total[:, :, 0, 0] > 0
        self.p = pairs / torch.where(total > 0, total, 1)

    def features(self, names):
        """By pyradiomics' names: float64, shape (names, boxes)."""
        found = _mean(torch.stack([getattr(self, "_" + name)() for name in names]), self.counted)
        if "MCC" in names:  # of a mask of one level, even one without neighbours: 1
            of = list(names).index("MCC")
            found[of] = torch.where((self.grey > 0).sum(1) == 1, 1.0, found[of])
        return found

    def _MCC(self):
        return maximal_correlation(self.p, self._px)

    @functools.cached_property
    def _level(self):
        return self.grey[:, None, :]  # (boxes, 1, ranks)

    @functools.cached_property
    def _px(self):
        return self.p.sum(3)

    @functools.cached_property
    def _mu(self):
        return (self._px * self._level).sum(2)

    def _by(self, index, length):
        """Probability (boxes, angles, length) of what two levels have in common, such as their difference."""
        boxes, angles = self.p.shape[:2]
        index = index.long().reshape(boxes, 1, -1).expand(-1, angles, -1)
        return self.p.new_zeros(boxes, angles, length).scatter_add_(2, index, self.p.reshape(boxes, angles, -1))

    @functools.cached_property
    def _difference(self):
        apart = self.grey[:, :, None] - self.grey[:, None, :]
        return self._by(apart.abs(), int(self.most.max()) + 1)

    @functools.cached_property
    def _sum(self):
        return self._by(self.grey[:, :, None] + self.grey[:, None, :], 2 * int(self.most.max()) + 1)

    def _k(self, histogram):
        return torch.arange(histogram.shape[2], dtype=torch.float64, device=histogram.device)

    def _over_difference(self, weight):
        return (self._difference * weight(self._k(self._difference))).sum(2)

    @property
    def _most(self):
        return self.most[:, None, None]

    def _cluster(self, power):
        return (self._sum * (self._k(self._sum) - 2 * self._mu[..., None]) ** power).sum(2)

    @functools.cached_property
    def _hxy(self):
        return _entropy(self.p, (2, 3))

    @functools.cached_property
    def _product(self):
        return self._px[..., :, None] * self._px[..., None, :]

    def _Autocorrelation(self):
        return (self.p @ self._level[..., None] * self._level[..., None]).sum((2, 3))

    def _JointAverage(self):
        return self._mu

    def _ClusterProminence(self):
        return self._cluster(4)

    def _ClusterShade(self):
        return self._cluster(3)

    def _ClusterTendency(self):
        return self._cluster(2)

    def _Contrast(self):
        return self._over_difference(lambda k: k**2)

    def _Correlation(self):
        away = self._level - self._mu[..., None]
        variance = (self._px * away**2).sum(2)
        together = ((self.p @ away[..., None])[..., 0] * away).sum(2)
        return torch.where(variance == 0, 1.0, together / (variance + EPS))

    def _DifferenceAverage(self):
        return self._over_difference(lambda k: k)

    def _DifferenceEntropy(self):
        return _entropy(self._difference, 2)

    def _DifferenceVariance(self):
        mean = self._DifferenceAverage()[..., None]
        return self._over_difference(lambda k: (k - mean) ** 2)

    def _JointEnergy(self):
        return (self.p**2).sum((2, 3))

    def _JointEntropy(self):
        return self._hxy

    def _Imc1(self):
        hx = _entropy(self._px, 2)
        hxy1 = -(self.p * torch.log2(self._product + EPS)).sum((2, 3))
        return torch.where(hx == 0, 0.0, (self._hxy - hxy1) / torch.where(hx == 0, 1.0, hx))

    def _Imc2(self):
        square = 1 - torch.exp(-2 * (_entropy(self._product, (2, 3)) - self._hxy))
        root = torch.where(square > 0, square, 1.0).sqrt()  # where it is 0 its slope is infinite
        return torch.where(square > 0, root, torch.where(square == 0, 0.0, torch.nan))

    def _Idm(self):
        return self._over_difference(lambda k: 1 / (1 + k**2))

    def _Idmn(self):
        return self._over_difference(lambda k: 1 / (1 + k**2 / self._most**2))

    def _Id(self):
        return self._over_difference(lambda k: 1 / (1 + k))

    def _Idn(self):
        return self._over_difference(lambda k: 1 / (1 + k / self._most))

    def _InverseVariance(self):
        return self._over_difference(lambda k: torch.where(k > 0, 1 / k**2, 0.0))

    def _MaximumProbability(self):
        return self.p.amax((2, 3))

    def _SumAverage(self):
        return (self._sum * self._k(self._sum)).sum(2)

    def _SumEntropy(self):
        return _entropy(self._sum, 2)

    def _SumSquares(self):
        return (self._px * (self._level - self._mu[..., None]) ** 2).sum(2)


def maximal_correlation(p, px):
    """Root of the second largest eigenvalue of Q(i, j) = Σₖ p(i, k) p(j, k) / (p_x(i) p_x(k) + ε), for symmetric p.

    But for ε, Q is similar to the square of S(i, j) = p(i, j) / √(p_x(i) p_x(j)), which is symmetric. What ε changes of the square of its
    eigenvalue λ with eigenvector v, −ε λ Σᵢₖ vᵢ Sᵢₖ vₖ / (p_x(i) p_x(k)) in first order, is added.

    Parameters
    ----------
    p : Tensor, shape (..., ranks, ranks)
    px : Tensor, shape (..., ranks)
        Its marginal; 0 for levels without a neighbour.
    """
    if p.shape[-1] == 1:
        return torch.ones_like(px[..., 0])
    inverse = torch.where(px > 0, 1 / px, 0.0)
    back = inverse.sqrt()
    s = back[..., :, None] * p * back[..., None, :]
    values, vectors = torch.linalg.eigh(s)
    second = values.abs().argsort(-1)[..., -2:-1]
    value = values.gather(-1, second)[..., 0]
    v = vectors.gather(-1, second[..., None, :].expand(*vectors.shape[:-1], 1))[..., 0] * inverse
    square = value**2 - EPS * value * (v * (s @ v[..., None])[..., 0]).sum(-1)
    return square.clamp(min=0).sqrt()


class _Entries:
    """A matrix of grey level against size as a list of its entries, for each mask or for each of its angles.

    ``groups`` (boxes × angles): how many; entries have ``group``, ``level`` (grey), ``size`` and ``count``.
    """

    def __init__(self, boxes, code, count, sizes, angles=1, counted=None):
        """``code``: (group · ranks + rank) · (sizes + 1) + size of each entry; ``count``: how often it occurs."""
        self.boxes, self.angles, self.groups = boxes, angles, boxes.count * angles
        self.count, self._row = count.double(), code // (sizes + 1)
        self.size = (code % (sizes + 1)).double()
        self.group = self._row // boxes.ranks
        self.level = boxes.grey[self.group // angles, self._row % boxes.ranks]
        self._column = self.group * (sizes + 1) + code % (sizes + 1)
        self.n = self._total(self.count)
        self._counted = counted
        self._powers: dict[tuple, torch.Tensor] = {}
        self._squared: dict[bool, torch.Tensor] = {}

    def _total(self, weights):
        return torch.bincount(self.group, weights, self.groups)

    def _squares(self, along):
        """Sum over rows (or columns) of the square of their counts."""
        keys, at = along.unique(return_inverse=True)
        count = torch.bincount(at, self.count)
        group = torch.empty_like(keys).scatter_(0, at, self.group)
        return torch.bincount(group, count**2, self.groups)

    def _variance(self, values):
        mean = self._total(self.count * values) / self.n
        return self._total(self.count * (values - mean[self.group]) ** 2) / self.n

    def _power(self, of_level, power):
        known = (of_level, power)
        if known not in self._powers:
            self._powers[known] = (self.level if of_level else self.size) ** power
        return self._powers[known]

    def features(self, names):
        """By pyradiomics' names: float64, shape (names, boxes)."""
        found = self.count.new_empty(len(names), self.groups)
        weights, emphasis = [], []
        for at, (kind, of_level, powers) in enumerate(map(_meaning, names)):
            if kind in _OWN:
                found[at] = self._value(kind, of_level)
                continue
            weight = self.count
            for power in powers:
                weight = weight * self._power(*power)
            weights.append(weight)
            emphasis.append(at)
        if weights:  # all in one sum
            total = found.new_zeros(len(weights), self.groups).index_add_(1, self.group, torch.stack(weights))
            found[emphasis] = total / self.n
        return found if self._counted is None else _mean(found.view(len(names), -1, self.angles), self._counted)

    def _value(self, kind, of_level):
        values, along = (self.level, self._row) if of_level else (self.size, self._column)
        match kind:
            case "Entropy":
                p = self.count / self.n[self.group]
                return -self._total(p * torch.log2(p + EPS))
            case "Percentage":
                return self.n / self._total(self.count * self.size)
            case "Variance":
                return self._variance(values)
        if of_level not in self._squared:
            self._squared[of_level] = self._squares(along)
        return self._squared[of_level] / (self.n**2 if kind.endswith("Normalized") else self.n)


@functools.cache
def _meaning(name):
    """What pyradiomics' name asks of a matrix; its words for a size (dependence, run, zone, area) mean the same here."""
    plain = name.replace("GrayLevel", "Level")
    for word in ("Dependence", "RunLength", "SizeZone", "Run", "Zone", "Area"):
        plain = plain.replace(word, "Size")
    powers = tuple((word.endswith("Level"), power) for word, power in _EMPHASIS.items() if word in plain)
    return plain.removeprefix("Level").removeprefix("Size"), plain.startswith("Level"), powers


def _dependence(boxes):
    """GLDM: of each voxel, itself and its neighbours of the same grey level (α = 0)."""
    here = boxes.here
    alike = torch.ones_like(here)
    for shift in boxes.shifts:
        alike += boxes.beside(shift) == here
        alike += boxes.beside(-shift) == here
    sizes = 2 * len(boxes.shifts) + 1
    code = boxes.cell * (sizes + 1) + alike
    return _Entries(boxes, *_tally(code, boxes.count * boxes.ranks * (sizes + 1)), sizes)


def _tally(code, space):
    """The codes that occur, below ``space``, and how often each does."""
    if space > _DENSE:
        return code.unique(return_counts=True)
    count = torch.bincount(code, minlength=space)
    code = where(count)
    return code, count[code]


def _runs(boxes):
    """GLRLM: stretches of one grey level along each angle.

    In the order of the straight lines along an angle, voxels whose numbers follow each other are neighbours along it.
    """
    line, angles, sizes = boxes.line, len(boxes.shifts), boxes.longest
    cells = boxes.ranks * (sizes + 1)
    codes, counts = [], []
    counted = torch.zeros(boxes.count, angles, dtype=torch.bool, device=line.device)
    for angle, (shift, step) in enumerate(zip(boxes.shifts, boxes.steps)):
        tag, length, item, several = _stretches(boxes, shift)
        code = (tag - 1) * (sizes + 1) + length + item * cells
        code, count = _tally(code, boxes.count * cells)
        codes.append(code + (code // cells * (angles - 1) + angle) * cells)  # of a box, then of an angle
        counts.append(count)
        # Two voxels of a mask on one line make an angle count. Mostly they are neighbours; if not, the lines are looked at.
        counted[several, angle] = True
        if not bool(counted[:, angle].all()):
            _, of, many = boxes.line_of(step).unique(return_inverse=True, return_counts=True)
            counted[boxes.item[many[of] > 1], angle] = True
    return _Entries(boxes, torch.cat(codes), torch.cat(counts), sizes, angles, counted)


def _stretches(boxes, shift):
    """Of each stretch along a shift: 1 + rank, length and box; and the boxes in which two voxels are neighbours along it."""
    line, at = boxes.line, boxes.near
    per = -(-len(line) // shift)
    # Cut into pieces as long as the shift and read by columns, all lines along it follow each other.
    if len(line) < 8 * len(at):
        columns = torch.nn.functional.pad(line, (0, per * shift - len(line))).view(per, shift).t().reshape(-1)
        number = where(columns)
        tag = columns.index_select(0, number)
    else:
        number = ascending((at % shift) * per + at // shift)
        tag = line.index_select(0, number % per * shift + number // per)
    follows = number[1:] - number[:-1] == 1
    first = torch.ones(len(at), dtype=torch.bool, device=line.device)
    torch.logical_or(tag[1:] != tag[:-1], ~follows, out=first[1:])
    start = where(first)
    length = torch.diff(start, append=start.new_tensor([len(at)]))
    if boxes.count == 1:
        return tag.index_select(0, start), length, 0, slice(int(follows.any()))
    item = boxes.item_of(number % per * shift + number // per)
    return tag.index_select(0, start), length, item.index_select(0, start), item[1:][follows].unique()


def ascending(values):
    """Sorted; on the CPU by numpy, which is several times faster at it."""
    return torch.from_numpy(np.sort(values.numpy())) if values.device.type == "cpu" else values.sort()[0]


def _zones(boxes):
    """GLSZM: connected parts (26 neighbours, 8 in a slice) of one grey level."""
    line, at = boxes.line, boxes.at
    members = torch.arange(len(at), device=line.device)
    number = torch.zeros(len(line), dtype=torch.long, device=line.device).scatter_(0, at, members)
    first, second = [], []
    for shift in boxes.shifts:
        same = where(boxes.beside(shift) == boxes.here)
        first.append(same)
        second.append(number.index_select(0, at.index_select(0, same) + shift))
    part = components(torch.cat(first), torch.cat(second), len(at))
    size = torch.bincount(part)
    parts, size = where(size), size[size > 0]
    member = torch.zeros(len(at), dtype=torch.long, device=line.device).scatter_(0, part, members)[parts]  # any one
    largest = int(size.max())
    code = boxes.cell[member] * (largest + 1) + size
    return _Entries(boxes, *_tally(code, boxes.count * boxes.ranks * (largest + 1)), largest)


def components(first, second, count: int):
    """Which connected component each of ``count`` points belongs to, given edges: int64 below ``count``, shape (count,)."""
    if first.device.type != "cpu":
        return hang(first, second, count)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(first)), (first.numpy(), second.numpy())), (count, count))
    return torch.from_numpy(connected_components(edges, directed=False)[1].astype(np.int64))


def hang(first, second, count: int):
    """`components` in torch alone, for a graphics card: each is called by its least member."""
    parent = torch.arange(count, device=first.device)
    while True:  # each edge hangs the greater root below the lesser, then every path is halved
        a, b = parent[first], parent[second]
        apart = a != b
        if not bool(apart.any()):
            return parent
        first, second, a, b = first[apart], second[apart], a[apart], b[apart]
        parent.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while True:
            above = parent[parent]
            if torch.equal(above, parent):
                break
            parent = above


class _Neighbourhood:
    """NGTDM: ``n``, ``s`` (boxes, ranks): voxels of a grey level, and how far it is from the mean of their neighbours in the mask, summed."""

    def __init__(self, boxes):
        own = boxes.grey.view(-1).index_select(0, boxes.cell)
        one = 2.0**32  # levels and their number in one sum, exactly
        level = boxes.grey.new_zeros(len(boxes.line)).scatter_(0, boxes.at, own + one)
        both = torch.zeros_like(own)
        for shift in boxes.shifts:
            both += boxes.beside(shift, level)
            both += boxes.beside(-shift, level)
        count = (both / one).floor()
        away = torch.where(count > 0, (own - (both - count * one) / count).abs(), 0.0)
        code, shape = boxes.cell, (boxes.count, boxes.ranks)
        self.n = torch.bincount(code, minlength=shape[0] * shape[1]).view(shape).double()
        self.s = torch.bincount(code, away, shape[0] * shape[1]).view(shape)
        self.i, self.voxels = boxes.grey, boxes.size
        self.p = self.n / self.voxels[:, None]

    def features(self, names):
        """By pyradiomics' names: float64, shape (names, boxes)."""
        return torch.stack([getattr(self, "_" + name)() for name in names])

    @functools.cached_property
    def _both(self):
        """Where both levels occur (boxes, ranks, ranks)."""
        there = self.p > 0
        return there[:, :, None] & there[:, None, :]

    @functools.cached_property
    def _apart(self):
        return self.i[:, :, None] - self.i[:, None, :]

    def _pairs(self, values):
        return torch.where(self._both, values, 0.0).sum((1, 2))

    @functools.cached_property
    def _coarse(self):
        return (self.p * self.s).sum(1)

    def _Coarseness(self):
        return torch.where(self._coarse == 0, 1e6, 1 / self._coarse)

    def _Contrast(self):
        levels = (self.p > 0).sum(1).double()
        spread = (self.p[:, :, None] * self.p[:, None, :] * self._apart**2).sum((1, 2))
        found = spread * self.s.sum(1) / self.voxels / (levels * (levels - 1))
        return torch.where(levels > 1, found, 0.0)

    def _Busyness(self):
        ip = self.i * self.p
        apart = self._pairs((ip[:, :, None] - ip[:, None, :]).abs())
        return torch.where(apart == 0, 0.0, self._coarse / apart)

    def _Complexity(self):
        ps, p = self.p * self.s, self.p
        share = (ps[:, :, None] + ps[:, None, :]) / (p[:, :, None] + p[:, None, :])
        return self._pairs(self._apart.abs() * share) / self.voxels

    def _Strength(self):
        strength = self._pairs((self.p[:, :, None] + self.p[:, None, :]) * self._apart**2)
        total = self.s.sum(1)
        return torch.where(total == 0, 0.0, strength / total)


_CLASSES = {
    "glcm": _cooccurrence, "gldm": _dependence, "glrlm": _runs, "glszm": _zones, "ngtdm": _Neighbourhood,
}  # fmt: skip
