"""Small pictures of maps over their input, in numpy alone: for the list in the panel and for the report."""

from __future__ import annotations

import numpy as np

from ..volume import Volume
from . import colors

_TABLE = (colors.positive()[:, :3] * 255).astype(np.float32)
#: Where a view's columns and rows grow, as Slicer shows a plane: the patient axis across it, and the letters to the right and below.
_VIEWS = {"S": ("L", "P"), "A": ("L", "I"), "R": ("P", "I")}
_SAME = {"R": "R", "L": "R", "A": "A", "P": "A", "S": "S", "I": "S"}


def picture(item: Volume, image: np.ndarray | None, window: tuple[float, float], size: int = 96) -> np.ndarray:
    """A map's magnitude in colour over the grey input, in the slice that holds most of it, turned as Slicer shows it.

    The colours end at the 99.5th percentile of that slice; opacity grows with the value, so that nothing is transparent.

    Parameters
    ----------
    item : Volume
        Signed or positive; one slice, or a volume (then of its slices across the axis that is nearest to axial).
    image : ndarray or None
        The input's voxels on the same box.
    window : (float, float)
        Of the input.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)
    """
    thin = [axis for axis, n in enumerate(item.shape) if n == 1]
    letters = item.orientation[::-1]  # of k, j, i
    axis = thin[0] if thin else next(n for n in range(3) if _SAME[letters[n]] == "S")
    size_ = np.abs(item.array)
    at = 0 if thin else int(size_.sum(axis=tuple(n for n in range(3) if n != axis), dtype=np.float64).argmax())
    flat = np.take(size_, at, axis)
    grey = np.zeros(flat.shape, np.float32) if image is None else np.take(image, at, axis).astype(np.float32)
    rest = [n for n in range(3) if n != axis]
    right, down = _VIEWS[_SAME[letters[axis]]]
    if _SAME[letters[rest[0]]] == _SAME[right]:  # the first of the two axes runs across the view
        flat, grey, rest = flat.T, grey.T, rest[::-1]
    turn = tuple(slice(None, None, 1 if letters[n] == to else -1) for n, to in zip(rest, (down, right)))
    flat, grey = flat[turn], grey[turn]
    spacing = [item.spacing[2 - n] for n in rest]
    return _square(grey, flat, window, spacing, size)


def _square(grey, flat, window, spacing, size) -> np.ndarray:
    extent = np.array(flat.shape) * spacing
    shape = np.maximum(1, np.rint(size * extent / extent.max())).astype(int)
    grey, flat = _resampled(grey, shape), _resampled(flat, shape)
    found = flat[flat > 0]
    high = float(np.percentile(found, 99.5)) if found.size else 0.0
    t = np.clip(flat / high, 0, 1) if high else flat * 0
    low, top = window
    base = 255 * np.clip((grey - low) / max(top - low, 1e-9), 0, 1)[..., None]
    opacity = np.clip((t - colors.NOTHING) * 2, 0, 0.85)[..., None]
    inner = base * (1 - opacity) + _TABLE[(t * 255).astype(int)] * opacity
    result = np.zeros((size, size, 3), np.uint8)
    top, left = (size - shape) // 2
    result[top : top + shape[0], left : left + shape[1]] = inner
    return result


def _resampled(array: np.ndarray, shape) -> np.ndarray:
    """The mean over each new pixel; the nearest where pixels grow."""
    for axis, count in enumerate(shape):
        edges = (np.arange(count + 1) * array.shape[axis] / count).astype(int)
        sizes = np.maximum(np.diff(edges), 1).reshape([-1 if n == axis else 1 for n in range(2)])
        array = np.add.reduceat(array, edges[:-1], axis, dtype=np.float32) / sizes
    return array


def ppm(pixels: np.ndarray) -> bytes:
    """(height, width, 3) uint8 as a PPM file, which every Qt reads."""
    return b"P6\n%d %d\n255\n" % pixels.shape[1::-1] + np.ascontiguousarray(pixels).tobytes()
