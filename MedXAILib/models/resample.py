"""Resampling along an array's own axes, one axis at a time, and from one volume's grid to another's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import MedXAIError
from ..volume import Volume

_SAME = 0.01  # voxels over the whole axis: below this a spacing is the same spacing, written with fewer digits


@dataclass(frozen=True)
class Axis:
    """How one spatial axis of a network's grid lies on one axis of the volume's array.

    Network index p (without padding) sits at array index ``first + step · p``; ``step`` is ±1 where nothing is resampled.
    """

    axis: int  # of the array (0 = k, 1 = j, 2 = i)
    length: int  # voxels of the volume along it
    count: int  # voxels of the network's grid along it, without padding
    first: float
    step: float
    smooth: bool = False  # shrinking to a fixed size: a widened kernel, so that nothing between the samples is lost
    before: int = 0  # padding
    after: int = 0

    @property
    def exact(self) -> bool:
        """Whether voxels map one to one."""
        return abs(self.step) == 1 and self.count == self.length

    @property
    def size(self) -> int:
        """Voxels with padding."""
        return self.before + self.count + self.after

    def network(self, index):
        """Continuous network index (without padding) of an array index, within the grid."""
        return np.clip((np.asarray(index, np.float64) - self.first) / self.step, 0, self.count - 1)

    def array(self, index):
        """Continuous array index of a network index (without padding), within the array."""
        return np.clip(self.first + self.step * np.asarray(index, np.float64), 0, self.length - 1)

    def touched(self, start: int, stop: int, order: int) -> tuple[int, int]:
        """The array indices [low, high) whose value depends on the network voxels [start, stop)."""
        if self.exact:
            ends = sorted((int(self.first + self.step * start), int(self.first + self.step * (stop - 1))))
            return ends[0], ends[1] + 1
        every = self.network(np.arange(self.length))
        inside = (every > start - 1) & (every < stop) if order else (_near(every) >= start) & (_near(every) < stop)
        found = np.nonzero(inside)[0]
        return (int(found[0]), int(found[-1]) + 1) if found.size else (0, 0)


def plain_axis(axis: int, length: int, flip: bool) -> Axis:
    """Every voxel once, in the same or in the opposite order."""
    return Axis(axis, length, length, length - 1.0 if flip else 0.0, -1.0 if flip else 1.0)


def spaced_axis(axis: int, length: int, flip: bool, ratio: float) -> Axis:
    """Voxels ``ratio`` array voxels apart, from the centre of the first (after flipping) one, as MONAI's ``Spacing``."""
    if abs(ratio - 1.0) * length < _SAME:
        return plain_axis(axis, length, flip)
    count = max(1, int(np.round((length - 1) / ratio + 1.0)))
    return Axis(axis, length, count, length - 1.0 if flip else 0.0, -ratio if flip else ratio)


def sized_axis(axis: int, length: int, flip: bool, count: int) -> Axis:
    """``count`` voxels that cover the same extent (half-voxel centres, as torch and MONAI have it)."""
    if count == length:
        return plain_axis(axis, length, flip)
    ratio = length / count
    first = 0.5 * ratio - 0.5
    return Axis(
        axis, length, count, length - 1 - first if flip else first, -ratio if flip else ratio, smooth=count < length
    )


def forward(array: np.ndarray, axes: list[Axis]) -> np.ndarray:
    """The volume's array on the network's grid, axes still in the array's order; a view where nothing is resampled."""
    for one in axes:
        if one.exact:
            array = array if one.step > 0 else np.flip(array, one.axis)
        elif one.smooth:
            array = _smooth(array, one)
        else:
            array = _lines(array, one.axis, one.array(np.arange(one.count)))
    return array


def _lines(array, axis, at):
    """Linear interpolation at continuous indices ``at`` of one axis; float32."""
    low = np.minimum(np.floor(at).astype(np.int64), max(array.shape[axis] - 2, 0))
    weight = (at - low).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(array.ndim)])
    left = np.take(array, low, axis).astype(np.float32)
    right = np.take(array, np.minimum(low + 1, array.shape[axis] - 1), axis).astype(np.float32)
    right -= left
    right *= weight
    left += right
    return left


def _smooth(array, one: Axis):
    """Weighted means with the linear kernel as wide as the step: the antialiased resize of torch, torchvision and PIL; float32."""
    ratio = abs(one.step)
    distance = (np.arange(one.count)[:, None] + 0.5) * ratio - (np.arange(one.length) + 0.5)
    share = np.clip(1 - np.abs(distance) / ratio, 0, None)
    share /= share.sum(1, keepdims=True)
    share = share[:, ::-1] if one.step < 0 else share
    moved = np.moveaxis(array, one.axis, -1).astype(np.float32) @ share.T.astype(np.float32)
    return np.moveaxis(moved, -1, one.axis)


def backward(box: np.ndarray, starts, axes: list[Axis], order: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """A box of the network's grid (0 outside it), read at the volume's voxels that it touches.

    Parameters
    ----------
    box : ndarray
        Axes in the order of ``axes``.
    starts : sequence of int
        Network index (without padding) of the box's first voxel.
    order : int
        1 linear, 0 nearest.

    Returns
    -------
    box : ndarray
        Axes still in the network's order; a view where nothing is resampled.
    touched : list of (int, int)
        Array indices [low, high) per network axis.
    """
    touched = []
    for n, (one, start) in enumerate(zip(axes, starts)):
        low, high = one.touched(start, start + box.shape[n], order)
        touched.append((low, high))
        if one.exact:
            box = box if one.step > 0 else np.flip(box, n)
            continue
        at = one.network(np.arange(low, high)) - start
        if order == 0:
            box = np.take(box, _near(at), n)
        else:  # one voxel of zeros on either side is all of "outside" that linear interpolation can see
            width = [(1, 1) if m == n else (0, 0) for m in range(box.ndim)]
            box = _lines(np.pad(box, width), n, at + 1)
    return box, touched


def _near(at):
    return np.floor(np.asarray(at) + 0.5).astype(np.int64)


def on_grid(volume: Volume, grid: Volume) -> Volume:
    """Another channel's volume by linear interpolation in the patient on the grid of the first; its minimum where it ends.

    Raises
    ------
    MedXAIError
        When the two do not overlap.
    """
    if volume.same_grid(grid):
        return volume
    there = np.linalg.solve(volume.ijk_to_ras, grid.ijk_to_ras)
    sizes = np.array(volume.shape[::-1], np.float64)
    source = torch.from_numpy(np.ascontiguousarray(volume.array, dtype=np.float32))[None, None]
    lowest = float(source.min())
    source = source - lowest  # so that the zeros beyond the border mean the minimum
    result, any_inside = np.empty(grid.shape, np.float32), False
    j, i = np.meshgrid(np.arange(grid.shape[1]), np.arange(grid.shape[2]), indexing="ij")
    plane = np.stack([i, j, np.zeros_like(i), np.ones_like(i)], -1) @ there.T
    for k in range(grid.shape[0]):
        at = (plane + k * there[:, 2])[..., :3]
        inside = ((at >= -0.5) & (at <= sizes - 0.5)).all(-1)
        if not inside.any():
            result[k] = lowest
            continue
        any_inside = True
        at = np.clip(at, 0, sizes - 1)  # half a voxel beyond the last centre still belongs to the last voxel
        scaled = torch.from_numpy(((2 * at + 1) / sizes - 1).astype(np.float32))[None, None]
        sampled = torch.nn.functional.grid_sample(
            source, scaled, mode="bilinear", padding_mode="border", align_corners=False
        )
        result[k] = np.where(inside, sampled[0, 0, 0].numpy(), 0) + lowest
    if not any_inside:
        raise MedXAIError(
            f"The volumes '{volume.name}' and '{grid.name}' do not overlap; check that they belong to the same study."
        )
    return Volume(result, grid.ijk_to_ras, volume.name, volume.unit, volume.attributes)
