"""From a volume to a network's input and back (DESIGN 3.1, 3.2): orient, resample, intensity, pad; every step undone exactly.

Everything here works along the volume's own axes, so each network axis is one `Axis`: a permutation, a flip, a step and a padding. A box
of the network's grid comes back without touching the rest of the volume.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..errors import MedXAIError
from ..explanation import Patch
from ..volume import PLANES, Volume
from .intensity import Frozen, freeze
from .resample import Axis, backward, forward, on_grid, plain_axis, sized_axis, spaced_axis

_PATIENT = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
_PLANE_OF = {axis: plane for plane, axis in PLANES.items()}
_AXIS_NAMES = "kji"


def prepare(
    model,
    volumes: list[Volume],
    slice: str = "",
    like: Prepared | None = None,
    axes: list[Axis] | None = None,
    frozen: Sequence[Frozen] = (),
) -> Prepared:
    """Make the network's input from one volume per channel.

    Parameters
    ----------
    model : Model
        Its ``package`` says what the network takes, its ``device`` where the input is wanted.
    volumes : list of Volume
        One per channel; the first one's grid is the grid of everything that comes back, the others are resampled to it.
    slice : str
        For 2-D networks: ``axial:57``, ``coronal:3``, ``sagittal:9`` (index along the IJK axis closest to that direction) or
        ``k:57``, ``j:…``, ``i:…``. May be empty for a volume of one slice.
    like : Prepared, optional
        Another slice of the same volumes: what holds for all of them (checks, resampled channels, statistics of the whole volume) is
        taken over.
    axes : list of Axis, optional
        Where the network's grid lies, when it is not by the package's rule on the whole volume (`patch_at`).
    frozen : sequence of Frozen, one per channel, optional
        The intensities, when the volumes are a part of those whose statistics count.

    Raises
    ------
    MedXAIError
        Number of volumes, NaN, plane, slice, size: one sentence each.
    """
    package = model.package
    about = package.input
    if len(volumes) != len(about.channels):
        raise MedXAIError(
            f"'{package.name}' takes {len(about.channels)} volume{'s' if len(about.channels) > 1 else ''}"
            f" ({', '.join(about.channels)}), and {len(volumes)} came; give one per channel, in that order."
        )
    first = volumes[0]
    if like is None:
        for volume in volumes:
            volume.require_finite()
        channels = [first] + [on_grid(volume, first) for volume in volumes[1:]]
    else:
        channels = like.channels
    plane, index = (None, None)
    if about.spatial_dims == 2:
        plane = plane_axis(package, first)
        index = _slice_index(package, first, plane, slice)
    elif slice:
        raise MedXAIError(f"'{package.name}' is a 3-D network and takes the whole volume; leave the slice out.")
    axes = _padded(package, first, _axes(package, first) if axes is None else axes)
    frozen = frozen or [
        freeze(rule, v, _statistics(rule, v, axes, plane, index, package))
        if like is None or rule.per_slice
        else like.intensity[n]
        for n, (rule, v) in enumerate(zip(about.intensity, channels))
    ]
    shape = tuple(one.size for one in axes)
    x = np.empty((1, len(channels), *shape), np.float32)
    valid = tuple(np.s_[one.before : one.before + one.count] for one in axes)
    for out, volume, rule in zip(x[0], channels, frozen):
        array = _to_network_order(forward(_cut(volume.array, plane, index), axes), axes, plane)
        if any(one.before or one.after for one in axes):
            out[...] = rule.of(float(volume.array.min()))
        rule.apply(array, out[valid])
    return Prepared(torch.from_numpy(x).to(model.device), package, channels, axes, plane, index, tuple(frozen))


def patch_at(model, volumes: list[Volume], slice: str, center) -> tuple[Prepared, tuple[int, int, int], bool]:
    """The network's input of its own size around a place, for packages with ``size`` and fit ``pad`` or ``window``: a patch of a physical size.

    Parameters
    ----------
    model, volumes, slice
        As `prepare` takes them; without a slice a 2-D network gets the one through the center.
    center : sequence of float
        Continuous index (k, j, i) in the first volume.

    Returns
    -------
    prepared : Prepared
        Of the volumes cropped to the patch; statistics are those of the whole volume (or slice), as everywhere.
    start : tuple of int
        Where the cropped volumes begin, (k, j, i).
    moved : bool
        Whether the patch was moved, so that it lies inside the volume.

    Raises
    ------
    MedXAIError
        When the patch is larger than the volume, and as `prepare`.
    """
    package, first = model.package, volumes[0]
    about = package.input
    center = [float(np.clip(c, 0, n - 1)) for c, n in zip(center, first.shape)]
    start, stop, moved = [0, 0, 0], list(first.shape), False
    network, plane, index = _axes(package, first), None, None
    if about.spatial_dims == 2:
        plane = plane_axis(package, first)
        index = _slice_index(package, first, plane, slice) if slice else int(np.floor(center[plane] + 0.5))
        start[plane], stop[plane] = index, index + 1
    axes = []
    for n, whole in enumerate(network):
        axis, size = whole.axis, about.size[n]
        ratio = 1.0 if whole.exact else abs(whole.step)
        if size * ratio > whole.length + 0.01:
            steps = [abs(one.step) * first.spacing[2 - one.axis] for one in network]
            mm = " × ".join(f"{edge * step:.4g}" for edge, step in zip(about.size, steps))
            raise MedXAIError(
                f"The patch of '{package.name}', {mm} mm, is larger than '{first.name}'; give a larger image, or leave the center (or segment) out."
            )
        low = center[axis] - ratio * (size - 1) / 2  # of the first voxel's center
        inside = min(max(low, (ratio - 1) / 2), whole.length - 1 - ratio * (size - 1) - (ratio - 1) / 2)
        moved |= abs(inside - low) > 0.5 * ratio + 1e-6
        low = np.floor(inside + 0.5) if ratio == 1 else inside
        high = low + ratio * (size - 1)
        start[axis] = max(0, int(np.floor(low + 1e-6)))
        stop[axis] = min(whole.length, int(np.ceil(high - 1e-6)) + 1)
        at = (high if whole.step < 0 else low) - start[axis]
        axes.append(Axis(axis, stop[axis] - start[axis], size, float(at), ratio if whole.step > 0 else -ratio))
    channels = [on_grid(one, first) for one in volumes]
    frozen = [freeze(rule, one, _statistics(rule, one, network, plane, index, package)) for rule, one in zip(about.intensity, channels)]  # fmt: skip
    cropped = [one.crop(start, stop) for one in channels]
    return prepare(model, cropped, axes=axes, frozen=frozen), tuple(start), moved


class Prepared:
    """A network's input, and the way back from its grid to the first volume's.

    Attributes
    ----------
    x : Tensor, shape (1, C, *shape), float32
        Network units, padded, contiguous, on the model's device.
    channels : list of Volume
        The inputs on the grid of the first.
    volume : Volume
        The first input.
    shape : tuple of int
        Spatial shape of ``x``.
    valid : tuple of slice
        The part of ``x`` that is not padding.
    low, high : tuple of float, one per channel
        Intensity range in network units: the package's clip limits, else the smallest and largest value of ``x``.
    intensity : tuple of Frozen, one per channel
        ``scale``, ``offset``, ``low``, ``high``, frozen at the volumes given.
    slice : str
        For 2-D networks the slice, such as ``k:57``; else empty.
    start : ndarray, shape of the volume, float32
        The image at the start, channel 0, in the volume's units: the volume, or what `replace` put in its place.
    """

    def __init__(
        self, x, package, channels: list[Volume], axes: list[Axis], plane, index, intensity: tuple[Frozen, ...]
    ):
        self.x, self.channels, self.volume, self.axes, self.intensity = x, channels, channels[0], tuple(axes), intensity
        self.orientation = package.input.orientation
        self.shape = tuple(x.shape[2:])
        self.valid = tuple(np.s_[one.before : one.before + one.count] for one in axes)
        self.slice = "" if plane is None else f"{_AXIS_NAMES[plane]}:{index}"
        self._plane, self._index, self._start = plane, index, None
        channels = x[0].flatten(1)
        self.low = tuple(float(c.min()) if f.low is None else f.low for c, f in zip(channels, intensity))
        self.high = tuple(float(c.max()) if f.high is None else f.high for c, f in zip(channels, intensity))

    @property
    def exact(self) -> bool:
        """Whether voxels of the network and of the volume map one to one."""
        return all(one.exact for one in self.axes)

    @property
    def start(self) -> np.ndarray:
        return self.volume.array.astype(np.float32) if self._start is None else self._start

    def replace(self, x) -> None:
        """Start from another image (noise) in network units, same shape as ``x``; the range stays that of the volume."""
        if x.shape != self.x.shape:
            raise MedXAIError(
                f"A start of shape {tuple(x.shape)} does not fit the network's input {tuple(self.x.shape)}."
            )
        self.x = x.to(self.x).contiguous()
        rule, start = self.intensity[0], self.volume.array.astype(np.float32)
        image = self.map((self.x[0, 0] - rule.offset) / rule.scale, (0,) * len(self.shape))
        start[image.box] = image.array
        self._start = start

    def to_network(self, index) -> tuple[int, ...]:
        """The voxel of ``x`` at (or closest to) a voxel (k, j, i) of the volume; refused on another slice."""
        index = tuple(int(v) for v in index)
        if any(v < 0 or v >= n for v, n in zip(index, self.volume.shape)):
            raise MedXAIError(f"The voxel (k, j, i) = {index} lies outside '{self.volume.name}' {self.volume.shape}.")
        if self._plane is not None and index[self._plane] != self._index:
            name = _AXIS_NAMES[self._plane]
            raise MedXAIError(
                f"The point lies on slice {name}:{index[self._plane]}, and the network looks at {self.slice};"
                " choose a point or a slice that fit each other."
            )
        return tuple(int(np.floor(one.network(index[one.axis]) + 0.5)) + one.before for one in self.axes)

    def to_volume(self, index) -> tuple[int, int, int]:
        """The voxel (k, j, i) of the volume at (or closest to) a voxel of ``x``; padding gives the closest border voxel."""
        result = [self._index] * 3
        for one, p in zip(self.axes, index):
            p = min(max(int(p) - one.before, 0), one.count - 1)
            result[one.axis] = int(np.floor(one.array(p) + 0.5))
        return tuple(result)

    def mask_to_network(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the volume's grid, shape (k, j, i), by nearest neighbour on the grid of ``x``; padding is outside."""
        return self.values_to_network(np.asarray(mask, bool))

    def values_to_network(self, values: np.ndarray) -> np.ndarray:
        """As `mask_to_network`, for values of any type; padding is 0."""
        values = _cut(values, self._plane, self._index)
        for one in self.axes:
            at = np.floor(one.array(np.arange(one.count)) + 0.5).astype(np.int64)
            values = np.take(values, np.minimum(at, one.length - 1), one.axis)
        result = np.zeros(self.shape, values.dtype)
        result[self.valid] = _to_network_order(values, self.axes, self._plane)
        return result

    def change(self, delta, start, channel: int = 0) -> Patch:
        """A change in network units on the box at ``start``, in the units and on the grid of the volume.

        Parameters
        ----------
        delta : Tensor or ndarray, shape (*box) or (C, *box)
            Outside the box there is no change.
        start : sequence of int
            Index in ``x`` of its first voxel.

        Returns
        -------
        Patch
            float32. Unresampled: the same numbers divided by the intensity scale, permuted and flipped (a view where the scale is 1);
            resampled: linear interpolation at the voxels that the box touches.
        """
        delta = _numpy(delta)
        if delta.ndim == len(self.shape) + 1:
            delta = delta[channel]
        return self._patch(self.intensity[channel].back(delta.astype(np.float32, copy=False)), start, 1)

    def map(self, values, start, order: int = 1) -> Patch:
        """A map of the network's grid (probabilities, relevances) on the grid of the volume, values as they are; float32."""
        return self._patch(_numpy(values).astype(np.float32, copy=False), start, order)

    def mask(self, mask, start) -> Patch:
        """A mask of the network's grid by nearest neighbour on the grid of the volume; uint8."""
        mask = np.ascontiguousarray(_numpy(mask))
        return self._patch(mask.view(np.uint8) if mask.dtype == bool else (mask != 0).view(np.uint8), start, 0)

    def box_to_volume(self, start, stop) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """The box [start, stop) of the volume, (k, j, i), whose voxels depend on the box [start, stop) of ``x``."""
        low, high = [self._index] * 3, [(self._index or 0) + 1] * 3
        for one, a, b in zip(self.axes, start, stop):
            a, b = max(a - one.before, 0), min(b - one.before, one.count)
            low[one.axis], high[one.axis] = one.touched(a, b, 1) if a < b else (0, 0)
        return tuple(low), tuple(high)

    def record(self) -> dict:
        """What was done to the volume, in plain values, for the provenance."""
        return {
            "orientation": self.orientation,
            "slice": self.slice,
            "shape": list(self.shape),
            "axes": [_AXIS_NAMES[one.axis] for one in self.axes],
            "flipped": [one.step < 0 for one in self.axes],
            "voxels_per_voxel": [abs(one.step) for one in self.axes],
            "resampling": "none" if self.exact else "linear" + ", antialiased" * any(one.smooth for one in self.axes),
            "padding": [[one.before, one.after] for one in self.axes],
            "padding_value": "the network units of the volume's minimum",
            "intensity": [one.record() for one in self.intensity],
        }

    def _patch(self, box: np.ndarray, start, order: int) -> Patch:
        if box.ndim != len(self.axes):
            raise MedXAIError(f"A box of shape {box.shape} does not lie on the network's grid {self.shape}.")
        inner, starts = [], []
        for n, (one, a) in enumerate(zip(self.axes, start)):  # what lies on padding has no place in the volume
            low, high = one.before, one.before + one.count
            inner.append(np.s_[min(max(low - a, 0), box.shape[n]) : max(high - a, 0)])
            starts.append(max(a, low) - low)
        box = box[tuple(inner)]
        if box.size == 0:
            return Patch(np.zeros((0, 0, 0), box.dtype), (0, 0, 0))
        box, touched = backward(box, starts, list(self.axes), order)
        where = {one.axis: low for one, (low, _) in zip(self.axes, touched)}
        if self._plane is not None:
            where[self._plane] = self._index
        order_of = [one.axis for one in self.axes]
        if self._plane is not None:
            box = box[None]
            order_of = [self._plane, *order_of]
        return Patch(box.transpose(np.argsort(order_of)), tuple(where[n] for n in range(3)))


def plane_axis(package, volume: Volume) -> int:
    """The array axis (0 = k, 1 = j, 2 = i) along which a 2-D network's slices of this volume are counted.

    Raises
    ------
    MedXAIError
        When the volume is one slice of another plane than the network's.
    """
    letters = package.input.orientation
    if letters is None:
        return 0
    ((patient, _),) = [v for k, v in _PATIENT.items() if v[1] > 0 and v[0] not in {_PATIENT[n][0] for n in letters}]
    axis = 2 - volume.patient_axes.index(patient)
    if volume.shape[axis] > 1 and 1 in volume.shape:
        thin = volume.shape.index(1)
        has = _PLANE_OF[volume.patient_axes[2 - thin]]
        raise MedXAIError(
            f"'{volume.name}' is one {has} slice, and '{package.name}' takes {_PLANE_OF[patient]} slices; give it one of those."
        )
    return axis


def slice_of(package, volume: Volume, voxel) -> str:
    """The slice that holds a voxel (k, j, i), as `prepare` takes it."""
    axis = plane_axis(package, volume)
    return f"{_AXIS_NAMES[axis]}:{int(voxel[axis])}"


def fullest_slice(package, volume: Volume, mask: np.ndarray) -> str:
    """The slice, for a 2-D network, with most voxels of a mask (k, j, i)."""
    axis = plane_axis(package, volume)
    best = int(mask.sum(axis=tuple(n for n in range(3) if n != axis)).argmax())
    return slice_of(package, volume, [best] * 3)


def parse_slice(volume: Volume, text: str) -> tuple[int, int]:
    """Array axis and index that ``axial:57`` or ``k:57`` means in a volume; refused where there is no such slice."""
    name, _, number = text.strip().lower().partition(":")
    if name not in (*PLANES, *_AXIS_NAMES) or not number.strip().isdigit():
        raise MedXAIError(f"'{text}' is not a slice; write axial:57, coronal:57, sagittal:57 or k:57 (from 0).")
    axis = _AXIS_NAMES.index(name) if name in _AXIS_NAMES else volume.array_axis(name)
    index = int(number)
    if index >= volume.shape[axis]:
        raise MedXAIError(f"'{volume.name}' has no slice {text}; {name} slices go from 0 to {volume.shape[axis] - 1}.")
    return axis, index


def _slice_index(package, volume, plane, text):
    plane_name = _AXIS_NAMES[plane] if package.input.orientation is None else _PLANE_OF[volume.patient_axes[2 - plane]]
    if not text:
        if volume.shape[plane] == 1:
            return 0
        raise MedXAIError(
            f"'{package.name}' is a 2-D network and '{volume.name}' has {volume.shape[plane]} slices;"
            f" choose one, such as --slice {plane_name}:{volume.shape[plane] // 2}."
        )
    if text.strip().lower() == "all":
        raise MedXAIError(f"One slice is explained at a time; choose one, such as --slice {plane_name}:0.")
    axis, index = parse_slice(volume, text)
    if axis != plane:
        raise MedXAIError(
            f"'{package.name}' takes {plane_name} slices, and {text} is not one;"
            f" choose one from {plane_name}:0 to {plane_name}:{volume.shape[plane] - 1}."
        )
    return index


def _axes(package, volume: Volume) -> list[Axis]:
    """The network's axes on the volume's array, resampled, not yet padded."""
    about = package.input
    if about.orientation is None:
        axes, flips = list(range(3 - about.spatial_dims, 3)), [False] * about.spatial_dims
    else:
        axes, flips = [], []
        for letter in about.orientation:
            patient, sign = _PATIENT[letter]
            column = volume.patient_axes.index(patient)
            axes.append(2 - column)
            flips.append((volume.ijk_to_ras[patient, column] > 0) != (sign > 0))
    result = []
    for n, (axis, flip) in enumerate(zip(axes, flips)):
        length = volume.shape[axis]
        if about.size is not None and about.fit == "resize":
            result.append(sized_axis(axis, length, flip, about.size[n]))
        elif about.spacing is not None:
            result.append(spaced_axis(axis, length, flip, about.spacing[n] / volume.spacing[2 - axis]))
        else:
            result.append(plain_axis(axis, length, flip))
    return result


def _padded(package, volume: Volume, axes: list[Axis]) -> list[Axis]:
    """Padding: to ``size`` on both sides (as MONAI's ``SpatialPad``), to ``multiple_of`` at the end, where index 0 stays 0."""
    from dataclasses import replace

    about = package.input
    counts = " × ".join(str(one.count) for one in axes)
    result = []
    for n, one in enumerate(axes):
        multiple = about.multiple_of[n]
        before = after = 0
        if about.size is not None and about.fit == "resize":
            pass
        elif about.size is not None:
            missing = about.size[n] - one.count
            if missing < 0 and about.fit == "pad":
                raise MedXAIError(
                    f"'{volume.name}' is too large for '{package.name}': {counts} voxels on the network's grid, and it takes"
                    f" {' × '.join(map(str, about.size))}; crop the volume."
                )
            before = max(0, missing) // 2
            after = max(0, missing) - before
        else:
            if one.count < multiple:
                raise MedXAIError(
                    f"'{volume.name}' is too small for '{package.name}': {counts} voxels on the network's grid, and it needs at"
                    f" least {' × '.join(map(str, about.multiple_of))}; give a larger volume."
                )
            after = -one.count % multiple
        result.append(replace(one, before=before, after=after))
    return result


def _statistics(rule, volume, axes, plane, index, package):
    """A callable for the array whose statistics `freeze` wants: after resampling, before padding."""
    if rule.per_slice and plane is None:
        raise MedXAIError(
            f"'{package.name}' asks for statistics per slice, which only a 2-D network can; correct model.json."
        )

    def values():
        return forward(_cut(volume.array, plane, index) if rule.per_slice else volume.array, axes)

    return values


def _cut(array, plane, index):
    """The slice of a 2-D network as an array that still has three axes."""
    return array if plane is None else np.take(array, [index], plane)


def _to_network_order(array, axes, plane):
    order = [one.axis for one in axes]
    if plane is None:
        return array.transpose(order)
    return array.transpose([plane, *order])[0]


def _numpy(values) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
