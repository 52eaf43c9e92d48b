"""Features that can be differentiated, of an image and a soft mask: how a feature would change if every voxel changed a little.

With a mask of zeros and ones the first-order features are those of `firstorder`, but for entropy and uniformity. These two and the
co-occurrence features are a variant: an intensity between the centres of two bins belongs to both, the more to the nearer (linear), and
pairs count by the product of their weights. Co-occurrence features that ask for the number of a grey level, or for how many there are, are
left out: which level is called 1 jumps with the least intensity in the mask. ``soft_volume`` is the sum of the mask's weights in mm³.
"""

from __future__ import annotations

import functools
import math

import torch

from ..errors import MedXAIError, nearest
from .firstorder import Common
from .grey import directions
from .names import ALIASES, CLASSES
from .radiomic import MAX_BINS
from .texture import Cooccurrence

VOLUME = "soft_volume"
#: Full names of what can be differentiated.
SOFT = (
    VOLUME,
    *CLASSES["firstorder"],
    *(
        n
        for n in CLASSES["glcm"]
        if n.split("_")[1] not in ("MCC", "Autocorrelation", "JointAverage", "SumAverage", "Idn", "Idmn")
    ),
)


def resolve_soft(names) -> list[str]:
    """Full names of differentiable features, each once.

    Parameters
    ----------
    names : iterable of str
        Names of `SOFT`, ``firstorder`` or ``glcm`` for all of a class, the alias ``rms``, or ``none``.

    Raises
    ------
    MedXAIError
        For a name that is not one of `SOFT`, or a class of them.
    """
    found: dict[str, None] = {}
    for asked in names:
        name = ALIASES.get(asked.strip(), asked.strip())
        if name in ("", "none"):
            continue
        some = [one for one in SOFT if one == name or (name in CLASSES and one.startswith(name + "_"))]
        if not some:
            known = any(name in group for group in CLASSES.values()) or name in CLASSES
            near = "" if known else nearest(name, SOFT)
            raise MedXAIError(
                f"'{asked.strip()}' {'has no gradient to follow' if known else 'is no feature with a gradient'}{near}; use {VOLUME}, 'firstorder', 'glcm', or names of these"
                " classes (of glcm all but MCC, Autocorrelation, JointAverage, SumAverage, Idn and Idmn)."
            )
        found.update(dict.fromkeys(some))
    return list(found)


class Soft(Common):
    """Differentiable features of one image and soft mask, each made when it is asked for.

    Parameters
    ----------
    image : Tensor, shape (*spatial), two or three axes
        Intensities, in the units of ``bin_width``.
    weight : Tensor, same shape
        How much of each voxel belongs to the mask, 0 to 1.
    voxel : float
        Volume of a voxel in mm³.
    bin_width, bin_count
        As in `compute`. The range that a count divides is that of the voxels above half of the mask's greatest weight; it is not
        differentiated.
    """

    def __init__(self, image, weight, *, voxel: float = 1.0, bin_width: float = 25.0, bin_count: int = 0):
        self._grid = image.double()
        self._inside = weight > 1e-6
        self._x, self._w, self._voxel = self._grid[self._inside], weight.double()[self._inside], voxel
        self._bins = (float(bin_width), int(bin_count))

    def feature(self, name: str):
        """A feature of `SOFT`: a tensor of one number that can be differentiated.

        NaN where it is undefined: nothing in the mask, or more than `MAX_BINS` bins (see `capped`).
        """
        if not len(self._x):
            return self._grid.new_tensor(float("nan"))
        group, _, feature = name.partition("_")
        if name == VOLUME:
            return self._w.sum() * self._voxel
        if group == "glcm":
            return self._pairs.features([feature])[0, 0]
        return getattr(self, "_" + feature)()

    @property
    def capped(self) -> bool:
        """Whether there are too many bins for what is binned."""
        return bool(len(self._x)) and self._memberships is None

    def _average(self, values):
        return (self._w * values).sum() / self._w.sum()

    @functools.cached_property
    def _mean(self):
        return self._average(self._x)

    def _moment(self, power):
        return self._average((self._x - self._mean) ** power)

    @functools.cached_property
    def _body(self):
        """Intensities where the mask is above half of its greatest weight."""
        return self._x[self._w > 0.5 * self._w.max()]

    @functools.cached_property
    def _ordered(self):
        x, order = self._x.sort()
        w = self._w[order]
        return x, w.cumsum(0) - w  # the weight below each: with ones, its number

    def _percentile(self, percent):
        x, below = self._ordered
        at = percent / 100 * (self._w.sum() - 1).clamp(min=0)
        upper = int(torch.searchsorted(below.detach(), at.detach(), right=True).clamp(1, max(len(x) - 1, 1)))
        if len(x) == 1:
            return x[0]
        share = (at - below[upper - 1]) / (below[upper] - below[upper - 1])
        return x[upper - 1] + share.clamp(0, 1) * (x[upper] - x[upper - 1])

    @functools.cached_property
    def _memberships(self):
        """Of each voxel in the mask: the lower of its two bins (from 0) and the share of the upper one; and the number of bins."""
        width, count = self._bins
        x = (self._body if count else self._x).detach()
        low, high = float(x.min()), float(x.max())
        if count:
            low, width = (low, (high - low) / count) if high > low else (low - 0.5, 1.0)
        elif (high - low) / width < MAX_BINS:  # all bins that anything belongs to
            low = math.floor(low / width - 0.5) * width
            count = math.ceil((high - low) / width - 0.5) + 1
        else:
            return None
        at = ((self._x - low) / width - 0.5).clamp(0, max(count - 1, 0))
        lower = at.detach().floor().clamp(max=max(count - 2, 0))
        return lower.long(), at - lower, count

    @functools.cached_property
    def _share(self):
        found = self._memberships
        if found is None:
            return self._grid.new_full((1,), float("nan"))
        lower, upper, count = found
        histogram = self._grid.new_zeros(count + 1)
        histogram = histogram.index_add(0, lower, (1 - upper) * self._w).index_add(0, lower + 1, upper * self._w)
        return histogram / self._w.sum()

    @functools.cached_property
    def _pairs(self):
        found, grid = self._memberships, self._grid
        if found is None:
            return Cooccurrence(grid.new_full((1, 1, 1, 1), float("nan")), grid.new_ones(1, 1))
        lower, upper, count = found
        shape = grid.shape if grid.ndim == 3 else (1, *grid.shape)
        number = torch.full(shape, -1, device=grid.device)
        number[self._inside.reshape(shape)] = torch.arange(len(self._x), device=grid.device)
        side, matrices = count + 1, []
        for step in directions(grid.ndim):
            here, there = zip(
                *((slice(max(-s, 0), n - max(s, 0)), slice(max(s, 0), n - max(-s, 0))) for s, n in zip(step, shape))
            )
            both = (number[here] >= 0) & (number[there] >= 0)
            u, v = number[here][both], number[there][both]
            weight, matrix = self._w[u] * self._w[v], grid.new_zeros(side * side)
            for a in (0, 1):
                for b in (0, 1):
                    share = (upper[u] if a else 1 - upper[u]) * (upper[v] if b else 1 - upper[v])
                    matrix = matrix.index_add(0, (lower[u] + a) * side + lower[v] + b, weight * share)
            matrices.append(matrix.view(side, side)[:count, :count])
        pairs = torch.stack(matrices)[None]
        grey = torch.arange(1, count + 1, dtype=torch.float64, device=grid.device)[None]
        return Cooccurrence(pairs + pairs.transpose(2, 3), grey)

    def _Energy(self):
        return (self._w * self._x**2).sum()

    def _RootMeanSquared(self):
        return self._average(self._x**2).sqrt()

    def _Minimum(self):
        return self._body.min()

    def _Maximum(self):
        return self._body.max()

    def _Range(self):
        return self._body.max() - self._body.min()

    def _Median(self):
        return self._percentile(50)

    def _MeanAbsoluteDeviation(self):
        return self._average((self._x - self._mean).abs())

    def _RobustMeanAbsoluteDeviation(self):
        low, high = self._percentile(10).detach(), self._percentile(90).detach()
        inner = (self._x >= low) & (self._x <= high)
        x, w = self._x[inner], self._w[inner]
        mean = (w * x).sum() / w.sum()
        return (w * (x - mean).abs()).sum() / w.sum()

    @property
    def _flat(self):
        return bool(self._x.min() == self._x.max())

    def _Skewness(self):
        return 0 * self._mean if self._flat else self._moment(3) / self._moment(2) ** 1.5

    def _Kurtosis(self):
        return 0 * self._mean if self._flat else self._moment(4) / self._moment(2) ** 2

    def _Variance(self):
        return self._moment(2)
