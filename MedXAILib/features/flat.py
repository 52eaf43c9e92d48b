"""Shape features of a 2-D mask as pyradiomics 3.0.1 defines them, in numpy; each is computed only when it is asked for.

The outline joins the points half-way between pixels of the mask and others, by marching squares; pixels that touch by a corner
only are apart. Perimeter and surface are sums over the 2×2 cells of the mask, which have one of 16 patterns.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from .solid import axis_lengths, cells, diameter, measure, ratio

# By pattern (bits: the corners in the order of the array): the number of slanted edges, of edges along the rows and along the
# columns, and eighths of the cell inside. One or three corners: a slanted edge; two on a side: an edge across; two opposite: two.
_SLANTED = np.array([0, 1, 1, 0, 1, 0, 2, 1, 1, 2, 0, 1, 0, 1, 1, 0])
_ALONG_ROWS = np.isin(np.arange(16), (0b0011, 0b1100))
_ALONG_COLUMNS = np.isin(np.arange(16), (0b0101, 0b1010))
_EIGHTHS = np.array([0, 1, 1, 4, 1, 4, 2, 7, 1, 2, 4, 7, 4, 7, 7, 8])


def shape(mask: np.ndarray, spacing, names) -> dict[str, float]:
    """Shape features of a 2-D mask; those of pyradiomics' class ``RadiomicsShape2D``.

    Parameters
    ----------
    mask : (rows, columns) array
        What is not zero is measured. The border of the array counts as the border of the mask.
    spacing : two floats
        Between rows and between columns, in mm.
    names : iterable of str
        Without their class, such as ``Perimeter``.

    Returns
    -------
    dict
        Name -> float: lengths in mm, surfaces in mm². NaN where undefined: everything of an empty mask, elongation of a single
        pixel.

    Raises
    ------
    MedXAIError
        For a mask that is not 2-D, a spacing that is not two positive numbers, or a name that does not exist.
    """
    return measure(_FEATURES, _Flat, mask, spacing, names)


class _Flat:
    ndim = 2

    def __init__(self, mask, spacing):
        self.mask, self.spacing = mask, spacing

    @functools.cached_property
    def outline(self):
        """Perimeter (mm) and surface (mm²)."""
        count = np.bincount(cells(self.mask).ravel(), minlength=16)
        rows, columns = self.spacing
        edges = math.hypot(rows, columns) / 2 * _SLANTED + columns * _ALONG_ROWS + rows * _ALONG_COLUMNS
        return count @ edges, (count @ _EIGHTHS) / 8 * rows * columns

    @functools.cached_property
    def axes(self):
        return axis_lengths(self.mask, self.spacing)


_FEATURES = {
    "MeshSurface": lambda of: of.outline[1],
    "PixelSurface": lambda of: np.count_nonzero(of.mask) * of.spacing.prod(),
    "Perimeter": lambda of: of.outline[0],
    "PerimeterSurfaceRatio": lambda of: ratio(*of.outline),
    "Sphericity": lambda of: 2 * math.sqrt(np.pi * of.outline[1]) / of.outline[0],
    "MaximumDiameter": lambda of: diameter(of.mask, of.spacing),
    "MajorAxisLength": lambda of: of.axes[1],
    "MinorAxisLength": lambda of: of.axes[0],
    "Elongation": lambda of: ratio(of.axes[0], of.axes[1]),
}
