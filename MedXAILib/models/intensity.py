"""Voxel values to network units and back: one affine map and a clip per channel, frozen at the volume it was made for."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from ..errors import MedXAIError
from ..volume import Volume


@dataclass(frozen=True)
class Frozen:
    """``clip(scale · v + offset, low, high)``; ``zero`` is the value that stays 0 (``zscore`` of non-zero voxels), else None."""

    kind: str
    scale: float
    offset: float
    low: float | None = None
    high: float | None = None
    zero: float | None = None

    def apply(self, values: np.ndarray, out: np.ndarray) -> None:
        """Write the network units of ``values`` into ``out`` (float32, same shape); rounded once, from float64."""
        rows = max(
            1, 2**20 // max(1, values[0].size)
        )  # slabs: the float64 copy of a whole volume would cost 8 bytes a voxel
        for start in range(0, len(values), rows):
            part, result = values[start : start + rows], out[start : start + rows]
            wide = np.multiply(part, self.scale, dtype=np.float64)
            wide += self.offset
            if self.low is not None or self.high is not None:
                np.clip(wide, self.low, self.high, out=wide)
            if self.zero is not None:
                wide[part == self.zero] = 0.0
            result[...] = wide

    def of(self, value: float) -> float:
        """The network units of one value."""
        out = np.empty((1, 1), np.float32)
        self.apply(np.array([[value]], np.float64), out)
        return float(out[0, 0])

    def back(self, change: np.ndarray) -> np.ndarray:
        """A change in network units as a change in the volume's units; the array itself where the scale is 1."""
        return change if self.scale == 1.0 else change / np.float32(self.scale)

    def to(self, other: Frozen) -> tuple[float, float, float, float]:
        """Factor, offset, least and largest value by which these network units become those of another network."""
        factor = other.scale / self.scale
        low, high = (-math.inf if other.low is None else other.low), (math.inf if other.high is None else other.high)
        return factor, other.offset - self.offset * factor, low, high

    def record(self) -> dict:
        """Plain values, for the provenance."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def freeze(rule, volume: Volume, values) -> Frozen:
    """The map that ``rule`` (`package.Intensity`) means for one channel.

    Parameters
    ----------
    rule : Intensity
        From the package.
    volume : Volume
        The channel's volume, for its name and its stored range.
    values : callable
        Gives the array whose statistics count (called only when ``rule`` needs statistics): the whole volume, resampled as
        the package asks, or the slice alone for ``per_slice``.

    Raises
    ------
    MedXAIError
        When ``range`` is ``uint8`` and the volume's stored range is not known.
    """
    first, shift = _to_uint8(volume) if rule.range == "uint8" else (1.0, 0.0)
    low = high = zero = None
    if rule.kind == "window":
        scale, offset = _unit(rule.low, rule.high)
        low, high = 0.0, 1.0
    elif rule.kind == "linear":
        scale, offset, low, high = rule.multiply, rule.add, rule.low, rule.high
    elif rule.kind == "none":
        scale, offset = 1.0, 0.0
    elif rule.kind == "minmax":
        array = values()
        scale, offset = _unit(*(first * float(v) + shift for v in (array.min(), array.max())))
    elif rule.kind == "percentile":
        cuts = np.percentile(values(), [rule.low, rule.high])
        scale, offset = _unit(*(first * float(v) + shift for v in cuts))
        low, high = (0.0, 1.0) if rule.clip else (None, None)
    elif rule.kind == "zscore":
        array = values()
        if rule.nonzero:
            zero = -shift / first
            array = array[array != zero]
        mean, deviation = (
            (float(array.mean(dtype=np.float64)), float(array.std(dtype=np.float64))) if array.size else (0, 0)
        )
        mean, deviation = first * mean + shift, abs(first) * deviation
        scale = 1.0 / deviation if deviation > 1e-12 * max(1.0, abs(mean)) else 1.0
        offset = -mean * scale
    else:
        raise MedXAIError(f"The intensity '{rule.kind}' is unknown; correct model.json.")
    scale, offset = scale * first, scale * shift + offset
    if not (math.isfinite(scale) and math.isfinite(offset)):
        raise MedXAIError(f"'{volume.name}' has values too extreme for '{rule.kind}' scaling; check the volume.")
    return Frozen(rule.kind, scale, offset, low, high, zero)


def _unit(low, high) -> tuple[float, float]:
    """Scale and offset of low..high → 0..1; an image of one value becomes 0."""
    scale = 1.0 / (high - low) if high > low else 1.0
    return scale, -low * scale


def _to_uint8(volume: Volume) -> tuple[float, float]:
    """Scale and offset from a radiograph's stored range to 8 bits' 0–255; an 8-bit image is left as it is."""
    stored = volume.attributes.get("stored_low"), volume.attributes.get("stored_high")
    if None in stored and volume.array.dtype == np.uint8:
        stored = (0, 255)
    if None in stored:
        low, high = float(volume.array.min()), float(volume.array.max())
        if low < 0 or high > 255:
            raise MedXAIError(
                f"The network takes 8-bit values (0–255), and '{volume.name}' holds {low:g} to {high:g} without saying how many"
                " bits were stored; give the DICOM file, or an 8-bit PNG."
            )
        stored = (0, 255)
    low, high = (float(v) for v in stored)
    scale = 255.0 / (high - low)
    return scale, -low * scale
