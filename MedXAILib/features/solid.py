"""The measurements behind pyradiomics' 3-D shape features, to the same values, without comparing every pair of mesh vertices.

pyradiomics walks its triangle mesh and takes the distance of every pair of vertices: seconds for a large or ragged mask, and
always, whichever feature was asked for. Here each measurement is made when it is first read:

- Area and volume are sums over the 2×2×2 cells of the mask, and a cell has one of 256 patterns. What each pattern adds is asked
  of pyradiomics' own compiled code, once for each voxel size; a mask is then a count of patterns.
- The two most distant vertices are corners of the convex hull. A vertex lies half a voxel from a voxel of the mask, along one
  axis, so the hull of the voxels, slice by slice, is enough to look at.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np


@functools.lru_cache(maxsize=8)
def _cells(spacing: tuple[float, float, float]):
    """What a cell adds, by its pattern: area (256,), volume at the origin (256,), volume per step along each axis (3, 256)."""
    from radiomics import cShape

    def measure(array, size):
        area, volume, _ = cShape.calculate_coefficients(array, np.array(size, float))
        return area, volume

    patterns = [np.array([code >> bit & 1 for bit in range(8)], bool).reshape(2, 2, 2) for code in range(256)]
    code_of = {pattern.tobytes(): code for code, pattern in enumerate(patterns)}
    area = np.array([measure(pattern, spacing)[0] for pattern in patterns])
    volume = np.array([measure(pattern, (1, 1, 1))[1] for pattern in patterns])
    moved = np.zeros((3, 256))
    for axis in range(3):
        for code, pattern in enumerate(patterns):
            # The pattern one step along the axis, behind an empty layer: less the cell between, and the cell unmoved.
            both = np.concatenate([np.zeros_like(pattern.take([0], axis)), pattern], axis)
            between = np.ascontiguousarray(both.take([0, 1], axis))
            moved[axis, code] = measure(both, (1, 1, 1))[1] - volume[code_of[between.tobytes()]] - volume[code]
    return area, volume, moved


def area_and_volume(mask: np.ndarray, spacing) -> tuple[float, float]:
    """Area (mm²) and volume (mm³) of pyradiomics' mesh of a bool mask (k, j, i) with an empty margin; spacing k, j, i in mm."""
    area, volume, moved = _cells(tuple(map(float, spacing)))
    bits = mask.view(np.uint8)
    code = np.zeros([n - 1 for n in mask.shape], np.uint8)
    for bit, (k, j, i) in enumerate(np.ndindex(2, 2, 2)):
        nk, nj, ni = code.shape
        code |= bits[k : k + nk, j : j + nj, i : i + ni] << bit
    at = np.nonzero((code != 0) & (code != 255))
    code = code[at].astype(np.intp)
    count = np.bincount(code, minlength=256)
    total = count @ volume
    for axis in range(3):
        total += np.bincount(code, at[axis], 256) @ moved[axis]
    return float(count @ area), float(total * np.prod(spacing))


class Diameters:
    """Greatest distances between mesh vertices, in mm: in one slice, column or row plane (0, 1, 2), and at all (3)."""

    def __init__(self, mask: np.ndarray, spacing):
        self._mask, self._spacing = mask, np.asarray(spacing, float)

    def __getitem__(self, which: int) -> float:
        if which == 3:
            return _farthest(_corners(self._mask), self._spacing, self._spacing)
        return _in_planes(self._mask, self._spacing, which)


def _in_planes(mask, spacing, axis):
    """The greatest distance of two vertices in one plane across ``axis``: planes of voxels, and half-way between them."""
    others = [a for a in range(3) if a != axis]
    mask, size = np.moveaxis(mask, axis, 0), spacing[others]
    planes = [(plane, size) for plane in mask] + [(a ^ b, 0 * size) for a, b in itertools.pairwise(mask)]
    bounds = []
    for number, (plane, reach) in enumerate(planes):
        rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
        if len(rows):
            extent = np.array([rows[-1] - rows[0], columns[-1] - columns[0]]) * size + reach
            bounds.append((float(np.hypot(*extent)), number))
    best = 0.0
    for bound, number in sorted(bounds, reverse=True):
        if bound <= best:
            break
        plane, reach = planes[number]
        best = max(best, _farthest(_corners(plane[None])[:, 1:], size, reach))
    return best


def _farthest(points, spacing, reach):
    """The greatest distance of two vertices, where each point (n, d) has one at half of ``reach`` (mm) either way on each axis."""
    at, reach = (points - points.mean(axis=0)) * spacing, np.asarray(reach, float)
    length, longest, pairs = np.square(at).sum(axis=1), 0.0, []
    for begin in range(0, len(at), 1024):
        some = slice(begin, begin + 1024)
        # Of the points themselves, all pairs in one product.
        square = length[some, None] + length[None, begin:] - 2 * (at[some] @ at[begin:].T)
        longest = max(longest, float(square.max()))
        # Two half steps lengthen a distance by at most one whole step: shorter pairs cannot win. A hair for rounding.
        least = max(longest**0.5 - reach.max(), 0.0) ** 2 * (1 - 1e-9) - 1e-9
        pairs.append(np.stack(np.nonzero(square >= least)) + begin)
    first, second = np.concatenate(pairs, axis=1)
    apart = np.abs(at[first] - at[second])
    # Of the squared distance, by a half step outwards of both along one axis; along two axes it is never more.
    most = (2 * apart * reach + reach**2).max(axis=1)
    return float((np.square(apart).sum(axis=1) + most).max() ** 0.5)


def _corners(mask) -> np.ndarray:
    """Voxels (n, 3) of a mask among which are all corners of its convex hull; few."""
    filled = np.nonzero(mask.any(2))
    rows = mask[filled]
    ends = rows.argmax(1), rows.shape[1] - 1 - rows[:, ::-1].argmax(1)
    points = np.concatenate([np.stack([*filled, end], 1) for end in ends])
    for axis in range(3) if mask.shape[0] > 1 else [0]:
        points = _hull_in_slices(points, axis)
    return points


def _hull_in_slices(points, axis):
    """Of the points, those that are corners of the convex hull of their slice across ``axis``."""
    u, v = (a for a in range(3) if a != axis)
    points = points[np.lexsort((points[:, v], points[:, u], points[:, axis]))]
    kept, cuts = [], np.flatnonzero(np.diff(points[:, axis])) + 1
    for some in np.split(np.arange(len(points)), cuts):
        a, b = points[some, u].tolist(), points[some, v].tolist()
        for turn in (1, -1):  # the lower and the upper chain
            chain: list[int] = []
            for n in range(len(some)):
                while len(chain) > 1:
                    p, q = chain[-2], chain[-1]
                    if turn * ((a[q] - a[p]) * (b[n] - b[p]) - (b[q] - b[p]) * (a[n] - a[p])) > 0:
                        break
                    chain.pop()
                chain.append(n)
            kept.append(some[chain])
    return points[np.unique(np.concatenate(kept))]


def shape_class():
    """pyradiomics' class of 3-D shape features, reading the measurements of this module."""
    import SimpleITK as sitk
    from radiomics.shape import RadiomicsShape

    class Shape(RadiomicsShape):
        __module__ = "radiomics"  # pyradiomics names its loggers so

        def _initSegmentBasedCalculation(self):
            self.pixelSpacing = np.array(self.inputImage.GetSpacing()[::-1])
            self.maskArray = np.pad(sitk.GetArrayFromImage(self.inputMask) == self.label, 1)
            self.labelledVoxelCoordinates = np.nonzero(self.maskArray)
            self.diameters = Diameters(self.maskArray, self.pixelSpacing)

        @functools.cached_property
        def _mesh(self):
            return area_and_volume(self.maskArray, self.pixelSpacing)

        @property
        def SurfaceArea(self):
            return self._mesh[0]

        @property
        def Volume(self):
            return self._mesh[1]

        @functools.cached_property
        def eigenValues(self):
            """Variances (mm²) along the principal axes, from small to large."""
            at = np.stack(self.labelledVoxelCoordinates, axis=1) * self.pixelSpacing
            at -= at.mean(axis=0)
            found = np.linalg.eigvalsh(at.T @ at / len(at))
            return np.where(np.abs(found) < 1e-10, 0.0, found)  # a flat mask has no thickness, whatever the rounding

    return Shape
