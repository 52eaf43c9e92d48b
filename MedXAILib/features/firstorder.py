"""First-order features of one mask's intensities, in torch, as pyradiomics 3.0.1 defines them."""

from __future__ import annotations

import functools
import math

import torch

from .texture import EPS, ascending


class Common:
    """What hard and soft masks have in common: features made of ``_mean``, ``_share`` (of each bin), ``_percentile``, ``_voxel``."""

    def _TotalEnergy(self):
        return self._Energy() * self._voxel

    def _Entropy(self):
        return -(self._share * torch.log2(self._share + EPS)).sum()

    def _Uniformity(self):
        return self._share.square().sum()

    def _10Percentile(self):
        return self._percentile(10)

    def _90Percentile(self):
        return self._percentile(90)

    def _InterquartileRange(self):
        return self._percentile(75) - self._percentile(25)

    def _Mean(self):
        return self._mean


class FirstOrder(Common):
    """First-order features, each made when it is asked for.

    Parameters
    ----------
    values : Tensor of float64, shape (n,)
        Intensities in the mask, n ≥ 1.
    bins : Tensor of int64, shape (n,), or None
        Which voxels share a bin, for entropy and uniformity.
    voxel : float
        Volume of a voxel in mm³, for the total energy.
    """

    def __init__(self, values, bins=None, voxel: float = 1.0):
        self.values, self._bins, self._voxel = values, bins, voxel

    def feature(self, name: str) -> float:
        """By pyradiomics' name, such as ``Mean``. Where all intensities are equal, skewness and kurtosis are 0."""
        return float(getattr(self, "_" + name)())

    @functools.cached_property
    def _sorted(self):
        return ascending(self.values)

    @functools.cached_property
    def _mean(self):
        return self.values.mean()

    @functools.cached_property
    def _away(self):
        return self.values - self._mean

    @functools.cached_property
    def _share(self):
        count = torch.bincount(self._bins)
        return count[count > 0].double() / len(self._bins)

    def _percentile(self, percent):
        """Linear between the two nearest, as numpy has it."""
        at = percent / 100 * (len(self.values) - 1)
        low = math.floor(at)
        a, b = self._sorted[low], self._sorted[min(low + 1, len(self.values) - 1)]
        return torch.lerp(a, b, at - low)

    @functools.cached_property
    def _flat(self):
        return bool(self.values.min() == self.values.max())

    @functools.cached_property
    def _square(self):
        return self._away * self._away

    def _Energy(self):
        return self.values.square().sum()

    def _Minimum(self):
        return self.values.min()

    def _Maximum(self):
        return self.values.max()

    def _Range(self):
        return self.values.max() - self.values.min()

    def _Median(self):
        n = len(self.values)
        return (self._sorted[(n - 1) // 2] + self._sorted[n // 2]) / 2

    def _MeanAbsoluteDeviation(self):
        return self._away.abs().mean()

    def _RobustMeanAbsoluteDeviation(self):
        low = int(torch.searchsorted(self._sorted, self._percentile(10)))
        inner = self._sorted[low : int(torch.searchsorted(self._sorted, self._percentile(90), right=True))]
        return (inner - inner.mean()).abs().mean()

    def _RootMeanSquared(self):
        return self.values.square().mean().sqrt()

    def _Skewness(self):
        return 0.0 if self._flat else (self._square * self._away).mean() / self._square.mean() ** 1.5

    def _Kurtosis(self):
        return 0.0 if self._flat else (self._square * self._square).mean() / self._square.mean() ** 2

    def _Variance(self):
        return 0.0 if self._flat else self._square.mean()
