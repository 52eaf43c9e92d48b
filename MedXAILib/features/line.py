"""The characteristic feature of Couteaux et al. 2019 (section 3.1): the strongest response of an image to a line segment."""

from __future__ import annotations

import math

import numpy as np

from ..errors import MedXAIError
from ..explanation import Patch

_BLOCK = (4, 32, 32)  # voxels of a block whose maximum is remembered: along the slices' axis, rows, columns


def segment(angle: float, length: int) -> list[tuple[int, int]]:
    """Offsets (row, column), from 0 to ``length - 1``, of the pixels of a line segment.

    The angle is counter-clockwise from the row direction (in which the column index grows) as the slice is displayed, rows
    downwards, in pixels: 0 is ``—``, 45 ``/``, 90 ``|``, 135 ``\\``. ``length`` pixels are counted along the longer of rows
    and columns.
    """
    turn = math.radians(angle % 180)
    down, right = -math.sin(turn), math.cos(turn)
    longer = max(abs(down), abs(right))
    along = np.arange(length) - (length - 1) / 2
    # Half-way cases are settled in one direction, so that the line has no step more than it needs.
    offsets = [tuple(math.floor(t * d / longer + (length - 1) / 2 + 0.5 + 1e-9) for d in (down, right)) for t in along]
    return offsets


def response(slices: np.ndarray, angle: float, length: int, kernel: str = "contrast") -> np.ndarray:
    """Response to the segment at every place where its square of ``length`` × ``length`` pixels lies within the slice.

    Parameters
    ----------
    slices : ndarray, shape (n, rows, columns)
    angle, length
        As in `segment`.
    kernel : {'contrast', 'plain'}
        ``plain`` is the segment, of sum 1: the mean along the line, as the paper prints it. ``contrast`` has the mean over
        the square taken away, so that its sum is 0: an image that is only brighter does not respond more.

    Returns
    -------
    ndarray of float64, shape (n, rows - length + 1, columns - length + 1)
    """
    n, rows, columns = slices.shape
    height, width = max(rows - length + 1, 0), max(columns - length + 1, 0)
    result = np.empty((n, height, width))
    if not result.size:
        return result
    offsets = segment(angle, length)
    for at in range(n):  # slice by slice, so that the work stays in the cache
        pixels = slices[at].astype(np.float64)
        line = pixels[offsets[0][0] :, offsets[0][1] :][:height, :width].copy()
        for row, column in offsets[1:]:
            line += pixels[row : row + height, column : column + width]
        line /= length
        if kernel == "contrast":
            band = pixels[:height].copy()
            for row in range(1, length):
                band += pixels[row : row + height]
            square = band[:, :width].copy()
            for column in range(1, length):
                square += band[:, column : column + width]
            square /= length * length
            line -= square
        result[at] = line
    return result


def line_texture(
    array: np.ndarray, angle: float = 135.0, length: int = 9, axis: int | None = None, kernel: str = "contrast"
):
    """The greatest response of a whole image to a line segment of the given angle; no mask.

    Parameters
    ----------
    array : ndarray, shape (k, j, i) or (rows, columns)
        In a volume the segment lies in the slices along k, and the greatest response of all slices counts; in a volume of one
        slice, along whichever axis, it lies in that slice, its rows and columns being the two other axes in order.
    angle : float
        Degrees counter-clockwise from the row direction as displayed with rows downwards (135 is ``\\``), in pixels whatever
        the spacing. See `segment`.
    length : int
        Of the segment, in pixels.
    axis : int, optional
        Another axis to count slices along.
    kernel : {'contrast', 'plain'}
        As in `response`.

    Returns
    -------
    float
        In units of the image; NaN where the slices are smaller than the segment, or hold a voxel that is not finite.
    """
    array = np.asarray(array)
    return LineTexture(array if array.ndim == 3 else array[None], angle, length, axis, kernel).value


class LineTexture:
    """`line_texture` of a start image and of what a small change makes of it, at the cost of the change.

    Parameters
    ----------
    array : ndarray, shape (k, j, i), or Volume
        The start image. It is kept, not copied, and must not change.
    angle, length, axis, kernel
        As in `line_texture`.

    Attributes
    ----------
    value : float
        The greatest response of the start image.
    """

    def __init__(self, array, angle: float = 135.0, length: int = 9, axis: int | None = None, kernel: str = "contrast"):
        array = np.asarray(getattr(array, "array", array))
        if kernel not in ("contrast", "plain"):
            raise MedXAIError(f"There is no line kernel '{kernel}'; use contrast or plain.")
        if axis is None:
            axis = array.shape.index(1) if 1 in array.shape else 0
        self._axis, self._angle, self._length, self._kernel = axis, float(angle), int(length), kernel
        self._start = np.moveaxis(array, axis, 0)
        self._places = tuple(max(n - m, 0) for n, m in zip(self._start.shape, (0, self._length - 1, self._length - 1)))
        self._maxima = self._block_maxima()
        self.value = float(self._maxima.max()) if self._maxima.size else math.nan
        self._outside = (None, -math.inf)  # of the last box: its blocks, and the maximum beyond them

    def _block_maxima(self):
        blocks = [math.ceil(n / b) for n, b in zip(self._places, _BLOCK)]
        maxima = np.empty(blocks if all(blocks) else (0, 0, 0))
        for at in range(len(maxima)):
            some = slice(at * _BLOCK[0], (at + 1) * _BLOCK[0])
            flat = response(self._start[some], self._angle, self._length, self._kernel).max(axis=0)
            edges = [range(0, n, b) for n, b in zip(self._places[1:], _BLOCK[1:])]
            maxima[at] = np.maximum.reduceat(np.maximum.reduceat(flat, edges[0], axis=0), edges[1], axis=1)
        return maxima

    def update(self, patch: Patch) -> float:
        """The greatest response of the start image with the box of ``patch`` put in its place; exact.

        Each call is about the start image alone: earlier patches are forgotten.
        """
        if not self._maxima.size:
            return math.nan
        new, start = np.moveaxis(patch.array, self._axis, 0), list(patch.start)
        start.insert(0, start.pop(self._axis))
        # Places whose square touches the box, grown to whole blocks, because beyond these only block maxima are known.
        reach = (0, self._length - 1, self._length - 1)
        first = [max(s - r, 0) // b for s, r, b in zip(start, reach, _BLOCK)]
        last = [math.ceil(min(s + n, p) / b) for s, n, p, b in zip(start, new.shape, self._places, _BLOCK)]
        if any(a >= b for a, b in zip(first, last)):
            return self.value
        blocks = tuple(slice(a, b) for a, b in zip(first, last))
        low = [a * b for a, b in zip(first, _BLOCK)]
        high = [min(a * b, p) + r for a, b, p, r in zip(last, _BLOCK, self._places, reach)]
        around = self._start[tuple(slice(a, b) for a, b in zip(low, high))]
        around = around.astype(np.result_type(around, new))
        to = [(max(s, a), min(s + n, b)) for s, n, a, b in zip(start, new.shape, low, high)]
        there = tuple(slice(a - o, b - o) for (a, b), o in zip(to, low))
        around[there] = new[tuple(slice(a - s, b - s) for (a, b), s in zip(to, start))]
        inside = response(around, self._angle, self._length, self._kernel).max()
        if self._outside[0] != blocks:
            rest = self._maxima.copy()
            rest[blocks] = -math.inf
            self._outside = (blocks, rest.max())
        return float(np.maximum(inside, self._outside[1]))  # np.maximum hands NaN on
