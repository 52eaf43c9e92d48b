"""Radiomic features of (image, mask), cropped to the mask's box and computed by the built-in engine or by pyradiomics.

Names, definitions and values are those of pyradiomics 3.0.1 with its default settings.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..errors import MedXAIError, nearest
from ..volume import Volume, mask_on_grid
from .names import BINNED, FIRST_BINNED, LINE, TEXTURE, grouped, resolve, without_line
from .peer import available

#: More grey levels than this, and texture features are NaN: their cost grows with the square of the levels.
MAX_BINS = 1000

ENGINES = ("auto", "builtin", "pyradiomics")
_VOXELS = 1 << 22  # of the line that boxes are laid out on together; on a processor as many as its caches like
_VOXELS_CPU = 1 << 18
_PAIRS = 1 << 24  # entries of co-occurrence matrices that are held at once
_SETTING = threading.Lock()  # of torch's number of threads


class Values(dict):
    """Feature name -> value (NaN where undefined), with ``notes``: one sentence for each thing to be told."""

    def __init__(self, values=(), notes=()):
        super().__init__(values)
        self.notes: tuple[str, ...] = tuple(notes)


def engine_of(choice: str) -> str:
    """The engine that a choice of `ENGINES` means: 'builtin' or 'pyradiomics'.

    Raises
    ------
    MedXAIError
        For another word, and with ``kind="missing"`` when pyradiomics is chosen and not there.
    """
    if choice not in ENGINES:
        raise MedXAIError(f"There is no feature engine '{choice}'{nearest(choice, ENGINES)}; use {', '.join(ENGINES)}.")
    if choice == "pyradiomics":
        there, told = available()
        if not there:
            raise MedXAIError(told, kind="missing")
    return "pyradiomics" if choice == "pyradiomics" else "builtin"


def counting_device(device) -> str:
    """Where features are counted for a device: there, but on the CPU for ``mps``, which has no float64."""
    return "cpu" if str(device).startswith("mps") else str(device)


def compute(
    image: Volume,
    mask: Volume,
    names,
    *,
    bin_width: float = 25.0,
    bin_count: int = 0,
    line_angle: float = 135.0,
    line_length: int = 9,
    ndim: int | None = None,
    max_bins: int = MAX_BINS,
    engine: str = "auto",
    device: str = "cpu",
) -> Values:
    """Features of the voxels of ``image`` where ``mask`` is not zero.

    Parameters
    ----------
    image : Volume
        In its own units. Only spacing matters: values do not depend on position or direction.
    mask : Volume
        Any grid; on the same lattice (for instance a box of it) nothing is resampled.
    names : iterable of str
        As `resolve` takes them.
    bin_width : float
        Width of the grey-level bins of texture features, entropy and uniformity, in units of the image.
    bin_count : int
        Above 0: so many bins between the least and the greatest intensity in the mask, whatever the width.
    line_angle, line_length
        Of ``line_texture``, which is of the whole image, whatever the mask.
    ndim : int, optional
        2 or 3; by default 2 where the image has one slice along some axis.
    max_bins : int
        Where the masked intensities span more bins than this, texture features are NaN, and a note begins with ``capped``. A
        greater ``bin_count`` is refused.
    engine : {'auto', 'builtin', 'pyradiomics'}
        See `engine_of`.
    device : str
        Where the built-in engine counts (see `counting_device`). Shapes are always measured on the CPU.

    Returns
    -------
    Values
        Full name -> float; NaN where undefined: an empty mask, a single voxel or a line of voxels (as in pyradiomics), voxels
        that are not finite, a class that fails (its note begins with ``failed``). Never raises for a bad mask.

    Raises
    ------
    MedXAIError
        For a name that does not exist, bins that cannot be, or an engine that is not there.
    """
    notes: list[str] = []
    if ndim is None:
        ndim = 2 if 1 in image.shape else 3
    names, engine = resolve(names, ndim, notes), engine_of(engine)
    check_bins(bin_width, bin_count, max_bins)
    values = Values({name: np.nan for name in names})
    if without_line(names):
        roi, told = crop(image, mask)
        if roi is None:
            notes.append(told)
        else:
            (found,) = on_rois([roi], names, ndim=ndim, bin_width=bin_width, bin_count=bin_count, max_bins=max_bins, engine=engine, device=device)  # fmt: skip
            values.update(found)
            notes.extend(found.notes)
    if LINE in names:
        from .line import line_texture

        values[LINE] = line_texture(image.array, line_angle, line_length)
    values.notes = tuple(notes)
    return values


def check_bins(bin_width: float, bin_count: int = 0, max_bins: int = MAX_BINS) -> None:
    """Refuse bins that cannot be, and more than are computed."""
    if not (bin_width > 0 and np.isfinite(bin_width)):
        raise MedXAIError(f"The bin width is {bin_width:g}; it must be a positive number, in units of the image.")
    if bin_count < 0 or bin_count != int(bin_count):
        raise MedXAIError(f"The number of bins is {bin_count:g}; use 1 or more, or 0 for bins of a width.")
    if bin_count > max_bins:
        raise MedXAIError(f"The number of bins is {bin_count}, and at most {max_bins} are computed; use fewer.")


@dataclass(frozen=True)
class Roi:
    """The box of a mask: all that the features need."""

    image: np.ndarray  # (k, j, i)
    mask: np.ndarray  # bool
    spacing: tuple[float, float, float]  # i, j, k
    flat: int | None  # the array axis along which the whole image has one slice

    @property
    def plane(self) -> int:
        """In two dimensions, the array axis across the slices."""
        if self.flat is not None:
            return self.flat
        return next((axis for axis, n in enumerate(self.mask.shape) if n == 1), 0)


def crop(image: Volume, mask: Volume) -> tuple[Roi | None, str]:
    """The box of the mask in the image, or None and a sentence that says why the features are undefined."""
    try:
        inside, start = _on_lattice(mask, image)
    except MedXAIError as error:
        return None, error.message
    if inside is None:
        return None, "empty: the mask holds no voxel."
    box = tuple(slice(s, s + n) for s, n in zip(start, inside.shape))
    if any(b.start < 0 or b.stop > n for b, n in zip(box, image.shape)):
        return None, "outside: the mask reaches beyond the image."
    if sum(n > 1 for n in inside.shape) < 2:
        return None, "small: the mask is a single voxel or a line of voxels."
    flat = image.shape.index(1) if 1 in image.shape else None
    return Roi(_plain(image.array[box]), inside, image.spacing, flat), ""


def _on_lattice(mask, image):
    """The mask cropped to its own voxels, with the image's index of its first one; nearest neighbour on another lattice."""
    step = np.linalg.solve(image.ijk_to_ras, mask.ijk_to_ras)
    offset = np.rint(step[:3, 3])
    ideal = np.eye(4)
    ideal[:3, 3] = offset
    corner = np.array([*mask.shape[::-1], 1.0])
    if np.abs((step - ideal) * corner).max() > 1e-3:
        inside, start = _box(mask_on_grid(mask, image))
        return inside, start
    inside, start = _box(mask.array)
    return inside, tuple(int(s + o) for s, o in zip(start, offset[::-1]))


def _box(array):
    """The non-zero voxels of ``array`` cropped to their box, as a bool copy, and the box's first index."""
    inside, start = np.asarray(array) != 0, []
    for axis in range(3):
        filled = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(filled):
            return None, (0, 0, 0)
        start.append(int(filled[0]))
        inside = inside[(slice(None),) * axis + (slice(filled[0], filled[-1] + 1),)]
    return np.ascontiguousarray(inside), tuple(start)


def _plain(array):
    """A contiguous copy in the machine's byte order, in a type that SimpleITK takes and arithmetic can be done in."""
    if array.dtype == bool:
        return array.astype(np.uint8, order="C")
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        return array.astype(np.float32 if array.dtype.itemsize < 4 else np.float64, order="C")
    return array.astype(array.dtype.newbyteorder("="), order="C")


def on_rois(
    rois,
    names,
    *,
    ndim: int,
    bin_width: float,
    bin_count: int = 0,
    max_bins: int = MAX_BINS,
    engine: str = "builtin",
    device="cpu",
    stop=None,
) -> list[Values]:
    """The radiomic features of cropped boxes, all together.

    Parameters
    ----------
    rois : list of Roi
    names : iterable of str
        Full names; ``line_texture`` among them is passed over.
    ndim, bin_width, bin_count, max_bins, device
        As in `compute`.
    engine : {'builtin', 'pyradiomics'}
    stop : callable, optional
        Asked between the classes; where it says True, the features not yet computed stay NaN.

    Returns
    -------
    list of Values
        One for each box, in order.
    """
    names = without_line(names)
    check_bins(bin_width, bin_count, max_bins)
    found = [_Box(roi, names, bin_width, bin_count, max_bins, engine) for roi in rois]
    if engine == "pyradiomics":
        from . import peer

        for box in found:
            if stop is None or not stop():
                values, notes = peer.features(box.roi, box.names, ndim, bin_width, bin_count, box.capped)
                box.values.update(values)
                box.notes += notes
    else:
        with _one_thread():
            _builtin(found, ndim, bin_width, bin_count, counting_device(device), stop)
    for box in found:
        box.values.notes = tuple(box.notes)
    return [box.values for box in found]


class _Box:
    """A box with what of it can be computed: ``names``, the others stay NaN and are told in ``notes``."""

    def __init__(self, roi, names, bin_width, bin_count, max_bins, engine):
        self.roi, self.notes, self.names = roi, [], names
        self.inner = roi.image[roi.mask]
        self.values = Values({name: np.nan for name in names})
        self.capped = False
        if not np.isfinite(self.inner).all():
            self.notes.append("not finite: the image holds NaN or infinite voxels in the mask.")
            self.names = [name for name in names if name.startswith("shape")]
        elif not bin_count:
            span = (float(self.inner.max()) - float(self.inner.min())) / bin_width
            self.capped = not span <= max_bins
        if self.capped and grouped(names).keys() & {*TEXTURE}:
            self.notes.append(
                f"capped: the intensities in the mask span {int(min(span, 1e18)) + 1} bins of {bin_width:g}, more than"
                f" {max_bins}; texture features are left out (choose a larger bin width, or a number of bins)."
            )
        if self.capped:
            # Of entropy and uniformity the built-in engine asks only which voxels share a bin.
            lost = BINNED if engine == "pyradiomics" else TEXTURE
            self.names = [name for name in names if not name.startswith(lost)]

    @contextlib.contextmanager
    def trying(self, group):
        """Whatever goes wrong with a class is told, and the other classes go on."""
        try:
            yield
        except Exception as error:
            self.notes.append(_failed(group, error))


def _failed(group, error):
    return f"failed: {group}: {str(error) or type(error).__name__}"


def set_own_threads(number: int) -> None:
    """Set torch's number of threads for the calling thread alone.

    `torch.set_num_threads` also sets what every thread begins with that starts later. Here it is put back at once; only a thread that
    calls torch for the first time in that instant (about .1 ms) begins with ``number``, and keeps it.
    """
    import torch

    torch.get_num_threads()  # the first look of a thread takes what all begin with, and would undo what is set before it
    with _SETTING, ThreadPoolExecutor(1) as fresh:
        others = fresh.submit(torch.get_num_threads).result()
        torch.set_num_threads(number)
        if others != number:
            fresh.submit(torch.set_num_threads, others).result()


@contextlib.contextmanager
def _one_thread():
    """One of torch's threads for the calling thread: more would wait for each other, and for other work's, at every small operation.

    What it had before comes back at the end; other threads keep theirs, and those that begin meanwhile begin with that.
    """
    import torch

    with _SETTING:  # as `set_own_threads`, with a thread that is there already
        threads = torch.get_num_threads()
        if threads > 1:
            torch.set_num_threads(1)
            _helper().submit(torch.set_num_threads, threads).result()
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


@functools.cache
def _helper():
    return ThreadPoolExecutor(1, "medxai-threads")


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_helper.cache_clear)


def _builtin(boxes, ndim, bin_width, bin_count, device, stop):
    import torch

    from . import flat, solid
    from .firstorder import FirstOrder
    from .grey import grey_levels, shared_bins

    def stopped():
        return stop is not None and stop()

    textured = []
    for box in boxes:
        if stopped():
            return
        groups, roi, levels = grouped(box.names), box.roi, None
        if any(name.startswith(BINNED) for name in box.names):
            with box.trying("grey levels"):
                capped = box.capped
                levels = shared_bins(box.inner, bin_width) if capped else grey_levels(box.inner, bin_width, bin_count)
        if "firstorder" in groups:
            with box.trying("firstorder"):
                values = torch.from_numpy(box.inner.astype(np.float64)).to(device)
                bins = None if levels is None else torch.from_numpy(levels).to(device)
                wanted = [
                    one for one in groups["firstorder"] if bins is not None or f"firstorder_{one}" not in FIRST_BINNED
                ]
                with torch.inference_mode():
                    first = FirstOrder(values, bins, float(np.prod(roi.spacing)))
                    box.values.update({f"firstorder_{name}": first.feature(name) for name in wanted})
        if "shape" in groups:
            with box.trying("shape"):
                box.values.update(_named("shape", solid.shape(roi.mask, roi.spacing[::-1], groups["shape"])))
        if "shape2D" in groups:
            with box.trying("shape2D"):
                if roi.mask.shape[roi.plane] > 1:
                    raise MedXAIError("the mask has more than one slice.")
                mask, spacing = roi.mask.squeeze(roi.plane), np.delete(roi.spacing[::-1], roi.plane)
                box.values.update(_named("shape2D", flat.shape(mask, spacing, groups["shape2D"])))
        if groups.keys() & {*TEXTURE} and levels is not None:
            mask = roi.mask
            if ndim == 2 and roi.plane:  # the slices along k
                grid = np.zeros(mask.shape, levels.dtype)
                grid[mask] = levels
                grid, mask = np.moveaxis(grid, roi.plane, 0), np.moveaxis(mask, roi.plane, 0)
                levels = grid[mask]
            textured.append((box, mask, levels, {group: groups[group] for group in TEXTURE if group in groups}))
    for some in _batches(textured, device):
        if stopped():
            return
        _texture(some, ndim, device, stopped)


def _named(group, values):
    return {f"{group}_{name}": value for name, value in values.items()}


def _batches(textured, device):
    """Boxes to be laid out together, like with like, as each slice is padded to the largest: bounded in voxels of the line and in co-occurrence."""
    batch, size, ranks = [], (0, 0, 0), 0
    most = _VOXELS_CPU if str(device) == "cpu" else _VOXELS
    for one in sorted(textured, key=lambda one: one[1].shape[1:]):
        own, here = [n + 1 for n in one[1].shape], int(one[2].max())
        wider = (size[0] + own[0], max(size[1], own[1]), max(size[2], own[2]))
        if batch and (math.prod(wider) > most or 13 * max(ranks, here) ** 2 * (len(batch) + 1) > _PAIRS):
            yield batch
            batch, wider, ranks = [], own, 0
        batch.append(one)
        size, ranks = wider, max(ranks, here)
    if batch:
        yield batch


def _texture(batch, ndim, device, stopped):
    import torch

    from .grey import Boxes
    from .texture import texture

    groups = batch[0][3]

    def of(group):
        if stopped():
            return None
        try:
            with torch.inference_mode():  # of the thread
                return texture(laid, group, groups[group])
        except Exception as error:  # such as memory: the other classes go on
            return _failed(group, error)

    try:
        laid = Boxes([one[1] for one in batch], [one[2] for one in batch], ndim, device)
    except Exception as error:
        found = {group: _failed(group, error) for group in groups}
    else:
        found = {group: of(group) for group in groups}
    laid, failed = None, {group: groups[group] for group in groups if isinstance(found[group], str)}
    for n, (box, mask, levels, _) in enumerate(batch):
        for group, values in found.items():
            if group not in failed and values is not None:
                box.values.update({f"{group}_{feature}": one[n] for feature, one in values.items()})
        if len(batch) == 1:
            box.notes += [found[group] for group in failed]
        elif failed and not stopped():  # one of them may be the reason, or their number
            _texture([(box, mask, levels, failed)], ndim, device, stopped)
