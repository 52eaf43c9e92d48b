"""Shape features of a 3-D mask as pyradiomics 3.0.1 defines them, in numpy; each is computed only when it is asked for.

- Area and volume are of a mesh by marching cubes (Lorensen & Cline 1987) with the vertices half-way between voxels. They are sums
  over the 2×2×2 cells of the mask, and a cell has one of 256 patterns: a mask is a count of patterns.
- The two most distant vertices are corners of the convex hull. A vertex lies half a voxel from a voxel of the mask, along one
  axis, so corners of the hull of the voxels are enough to look at; pyradiomics compares every pair of vertices.
- Axis lengths are of the population covariance of the voxels' places, whose sums are whole numbers: a flat mask or a line is
  known exactly, where pyradiomics has the root of a rounding error (about 1e-8 of the major axis) in place of zero.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ..errors import MedXAIError, nearest

# The table of triangles is Bourke's, with the changes of pyradiomics 3.0.1 (radiomics/src/cshape.c): the letters a to l are the
# edges of a cell, three to a triangle. A pattern with the last corner in the mask is the one with all corners exchanged, with its
# triangles turned over. So where voxels touch by an edge only, the surface may have holes, and the volume depends on the place of
# the mask in the array: pyradiomics' extractor, and so MedXAI, crops it to its box first.
_CORNERS = "000 001 011 010 100 101 111 110"  # k, j, i, in the order of the bits of a pattern
_EDGES = "01 12 23 03 45 56 67 47 04 15 26 37"  # which two corners each joins
_TRIANGLES = (
    "- aid bja bidbji bck aidbck jckacj cidckikji lcd lcaail bjalcd lcbbjljil dkblkd kbaaikilk jaddljlkj jiklki "
    "ehi aedehd bjaehi bjebehbhd bckehi dehdaebck jckjacehi ckjcjhchdehj ehilcd lehlcecae bjaehilcd ehljellcjbjc "
    "dkblkdehi lkbbelbaeehl ehijaddljlkj ehleljjlk jfe jfeaid afeabf ifeidfdbf bckjfe aidbckjfe ckffeccea "
    "ckfdcfdfeide jfelcd lcaailjfe afeabflcd cbfcfilcifei dkblkdjfe fejkbaaikilk feafalkfllad feikfilki hijfhj "
    "dajfdjdfh hiaabhhbf bfhbhd hijfhjbck bckdajdjfdfh aciicfifhckf ckfcfddfh fhjhijlcd fhjjhccajlch lcdabibhibfh "
    "cblbhlbfh hijfhjdkblkd fhafajhlakbalka lkaadlkfaahifha lkffhl gfk aidgfk bjagfk bidbjigfk bgfbcg bgfbcgaid "
    "jgfjagacg fjificfcgidc lcdgfk lcaailgfk bjalcdgfk lcbbjljilgfk gdlgfdfbd ailalfafbflg gdladgagfafj gfjgjllji "
    "ehigfk aedehdgfk bjaehigfk bjebehbhdgfk ehibgfbcg aedehdbgfbcg ehijgfjagacg hdjehjdcjfjgcgj lcdehigfk "
    "lehlcecaegfk bjalcdehigfk ehljellcjbjcgfk ehigdlgfdfbd fblflgbalehlael ehigdladgagfafj gfjgjlehjhlj kejgek "
    "kejgekaid abkkgagea bidbgiigegbk bejbcecge bejbcecgeaid aceecg idciceecg lcdkejgek lcaailkejgek lcdabkkgagea "
    "gebgbkbeilcbbil jgedgjbdjlgd bilaiblgbbejgeb gdladggea igegil ghkhikijk ghkakhajkahd ghkbkhbhiabi ghkbkhbhd "
    "bcgbgibijghi cgjbcjghjdajhdj ahihaggac chdcgh lcdghkhikijk cahlchajhghkjkh ghkbkhbhiabilcd lcbbhlkgbbgh "
    "ijgghibgjlgdbdg ajbghl ahihagadllga ghl"
)

_HALF_TURN = np.pi * np.arange(16) / 16
_DIRECTIONS = np.stack([np.cos(_HALF_TURN), np.sin(_HALF_TURN)])


def shape(mask: np.ndarray, spacing, names) -> dict[str, float]:
    """Shape features of a 3-D mask; those of pyradiomics' class ``RadiomicsShape`` given the same array.

    Parameters
    ----------
    mask : (k, j, i) array
        What is not zero is measured. The border of the array counts as the border of the mask.
    spacing : three floats
        Of k, j and i, in mm.
    names : iterable of str
        Without their class, such as ``Sphericity``.

    Returns
    -------
    dict
        Name -> float: lengths in mm, areas in mm², volumes in mm³. NaN where undefined: everything of an empty mask, elongation
        and flatness of a single voxel, the surface to volume ratio where the mesh has no volume.

    Raises
    ------
    MedXAIError
        For a mask that is not 3-D, a spacing that is not three positive numbers, or a name that does not exist.
    """
    return measure(_FEATURES, _Solid, mask, spacing, names)


def measure(features, measures, mask, spacing, names) -> dict[str, float]:
    """The features ``names``, from a table of what each is of ``measures(mask, spacing)``."""
    mask, spacing, ndim = np.asarray(mask), np.asarray(spacing, float), measures.ndim
    if mask.ndim != ndim:
        raise MedXAIError(f"The mask has {mask.ndim} dimensions; give one of {ndim}.")
    if spacing.shape != (ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise MedXAIError(f"The spacing is {spacing.tolist()}; give {ndim} positive numbers, in mm.")
    names = list(names)
    for name in names:
        if name not in features:
            raise MedXAIError(
                f"There is no {ndim}-D shape feature '{name}'{nearest(name, features)};"
                f" use one of {', '.join(sorted(features))}."
            )
    mask = np.ascontiguousarray(mask if mask.dtype == bool else mask != 0)
    if not mask.any():
        return dict.fromkeys(names, math.nan)
    found = measures(mask, spacing)
    return {name: float(features[name](found)) for name in names}


class _Solid:
    ndim = 3

    def __init__(self, mask, spacing):
        self.mask, self.spacing = mask, spacing

    @functools.cached_property
    def mesh(self):
        return area_and_volume(self.mask, self.spacing)

    @functools.cached_property
    def axes(self):
        return axis_lengths(self.mask, self.spacing)


_FEATURES = {
    "MeshVolume": lambda of: of.mesh[1],
    "VoxelVolume": lambda of: np.count_nonzero(of.mask) * of.spacing.prod(),
    "SurfaceArea": lambda of: of.mesh[0],
    "SurfaceVolumeRatio": lambda of: ratio(*of.mesh),
    "Sphericity": lambda of: (36 * np.pi * of.mesh[1] ** 2) ** (1 / 3) / of.mesh[0],
    "Maximum3DDiameter": lambda of: _farthest(_corners(of.mask), of.spacing, of.spacing),
    "Maximum2DDiameterSlice": lambda of: _in_planes(of.mask, of.spacing, 0),
    "Maximum2DDiameterColumn": lambda of: _in_planes(of.mask, of.spacing, 1),
    "Maximum2DDiameterRow": lambda of: _in_planes(of.mask, of.spacing, 2),
    "MajorAxisLength": lambda of: of.axes[2],
    "MinorAxisLength": lambda of: of.axes[1],
    "LeastAxisLength": lambda of: of.axes[0],
    "Elongation": lambda of: ratio(of.axes[1], of.axes[2]),
    "Flatness": lambda of: ratio(of.axes[0], of.axes[2]),
}


def ratio(part, whole) -> float:
    """``part / whole``, NaN where ``whole`` is zero."""
    return part / whole if whole else math.nan


# --- the mesh ---


def cells(mask) -> np.ndarray:
    """The pattern of each cell of a bool mask with a margin of one: the bits are its corners, in the order of the array."""
    code = np.pad(mask, 1).view(np.uint8)
    for bits, axis in enumerate(reversed(range(mask.ndim))):
        low, high = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        code = code[low] | code[high] << (1 << bits)
    return code


@functools.cache
def _patterns():
    """Of voxels of 1 mm, by pattern: each triangle's area vector (256, 5, 3), the volume seen from the cell (256,), and by how
    much that grows for each step of the cell along each axis (256, 3), as the volume is seen from the corner of the array.

    Volumes are in 1/48 of a voxel, where they are whole numbers: what cancels, cancels exactly."""
    corners = np.array([[int(n) for n in word] for word in _CORNERS.split()])
    middles = np.array([corners[[int(n) for n in pair]].mean(axis=0) for pair in _EDGES.split()])
    table = np.zeros((128, 5, 3, 3))
    for number, word in enumerate(_TRIANGLES.replace("-", "").split(" ")):
        edges = [ord(letter) - ord("a") for letter in word]
        table[number, : len(edges) // 3] = middles[edges].reshape(-1, 3, 3)
    bits = np.arange(256)[:, None] >> (corners @ [4, 2, 1]) & 1  # by the number that `cells` gives a pattern
    number = bits @ (1 << np.arange(8))
    turned = np.where(number < 128, 1.0, -1.0)
    a, b, c = np.moveaxis(table[np.minimum(number, 255 - number)], 2, 0)
    normals = np.cross(b - a, c - a) / 2 * turned[:, None, None]
    volumes, steps = ((16 * part).astype(int) for part in ((a * normals).sum(axis=(1, 2)), normals.sum(axis=1)))
    return normals, volumes, steps


@functools.lru_cache(maxsize=8)
def _areas(spacing: tuple[float, ...]):
    """The area of each pattern (256,), in mm²."""
    size = np.array(spacing)
    return np.linalg.norm(_patterns()[0] * (size.prod() / size), axis=2).sum(axis=1)


def area_and_volume(mask: np.ndarray, spacing) -> tuple[float, float]:
    """Area (mm²) and volume (mm³) of the mesh of a bool mask (k, j, i); spacing of k, j, i in mm."""
    code = cells(mask)
    _, volumes, steps = _patterns()
    at = np.flatnonzero((code != 0) & (code != 255))
    some = code.ravel()[at]
    count = np.bincount(some, minlength=256)
    total = count @ volumes
    for step, index in zip(steps.T, np.unravel_index(at, code.shape)):
        total += step[some] @ index
    return float(count @ _areas(tuple(map(float, spacing)))), float(total / 48 * np.prod(spacing))


# --- the axes ---


def axis_lengths(mask: np.ndarray, spacing) -> np.ndarray:
    """Four times the standard deviation of the voxels' places along each principal axis, in mm, from small to large."""
    ndim, total = mask.ndim, int(np.count_nonzero(mask))
    at = [np.arange(n) for n in mask.shape]
    moments = [[0] * ndim for _ in range(ndim)]  # total² times the covariance, in whole numbers however large
    for a in range(ndim):
        for b in range(a + 1, ndim):
            count = np.count_nonzero(mask, axis=tuple(n for n in range(ndim) if n not in (a, b)))
            sums = [int(count.sum(axis=1) @ at[a]), int(count.sum(axis=0) @ at[b])]
            moments[a][b] = moments[b][a] = total * int(at[a] @ count @ at[b]) - sums[0] * sums[1]
            moments[a][a] = total * int(count.sum(axis=1) @ at[a] ** 2) - sums[0] ** 2
            moments[b][b] = total * int(count.sum(axis=0) @ at[b] ** 2) - sums[1] ** 2
    scaled = np.array([[float(one / total**2) for one in row] for row in moments]) * np.outer(spacing, spacing)
    found = np.maximum(np.linalg.eigvalsh(scaled), 0)
    found[: ndim - _rank(moments)] = 0
    return 4 * np.sqrt(found)


def _rank(rows):
    """The rank of a matrix of Python's whole numbers, by elimination without division."""
    if not rows or not rows[0]:
        return 0
    pivot = next((row for row in rows if row[0]), None)
    if pivot is None:
        return _rank([row[1:] for row in rows])
    others = [row for row in rows if row is not pivot]
    return 1 + _rank([[pivot[0] * y - row[0] * x for x, y in zip(pivot[1:], row[1:])] for row in others])


# --- the diameters ---


def diameter(mask: np.ndarray, spacing) -> float:
    """The greatest distance between two vertices of the outline of a 2-D bool mask, in mm."""
    return _farthest(_corners(mask[None])[:, 1:], spacing, spacing)


def _in_planes(mask, spacing, axis):
    """The greatest distance of two vertices in one plane across ``axis``: planes of voxels, and half-way between them."""
    size = spacing[[a for a in range(3) if a != axis]]
    layers = np.moveaxis(mask, axis, 0)
    planes = np.empty((2 * len(layers) - 1, *layers.shape[1:]), bool)
    planes[::2] = layers
    np.not_equal(layers[1:], layers[:-1], out=planes[1::2])  # half-way, a vertex is where the layers differ
    points = _hull_in_slices(_row_ends(planes), 0)
    points = points[np.argsort(points[:, 0], kind="stable")]
    begin = np.flatnonzero(np.diff(points[:, 0], prepend=-1))
    number = points[begin, 0]
    reach = np.where(number[:, None] % 2, 0.0, size)
    # The widths in some directions bound the diameter from below, and with the angle between the directions from above.
    along = (points[:, 1:] * size) @ _DIRECTIONS
    widths = np.maximum.reduceat(along, begin) - np.minimum.reduceat(along, begin)
    widths += (np.abs(_DIRECTIONS)[None] * reach[:, :, None]).max(axis=1)
    least = widths.max(axis=1)
    most = least / np.cos(np.pi / 2 / len(_HALF_TURN)) * (1 + 1e-9)
    end, best = np.append(begin[1:], len(points)), 0.0
    for one in np.argsort(-most):
        if most[one] < max(best, least.max()):
            break
        best = max(best, _farthest(points[begin[one] : end[one], 1:], size, reach[one]))
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
        least = max(math.sqrt(longest) - reach.max(), 0.0) ** 2 * (1 - 1e-9) - 1e-9 * length.max()
        pairs.append(np.stack(np.nonzero(square >= least)) + begin)
    first, second = np.concatenate(pairs, axis=1)
    apart = np.abs(at[first] - at[second])
    # Of the squared distance, by a half step outwards of both along one axis; along two axes it is never more.
    more = (2 * apart * reach + reach**2).max(axis=1)
    return math.sqrt((np.square(apart).sum(axis=1) + more).max())


def _corners(mask) -> np.ndarray:
    """Voxels (n, 3) of a 3-D bool mask among which are all corners of its convex hull; few."""
    points = _row_ends(mask)
    for axis in range(3) if len(mask) > 1 else [0]:
        points = _hull_in_slices(points, axis)
    return points


def _row_ends(mask):
    """The first and the last voxel (n, 3) of each row of a 3-D bool mask."""
    filled = np.nonzero(mask.any(axis=2))
    rows = mask[filled]
    ends = rows.argmax(axis=1), rows.shape[1] - 1 - rows[:, ::-1].argmax(axis=1)
    return np.concatenate([np.stack([*filled, end], axis=1) for end in ends])


def _hull_in_slices(points, axis):
    """Of the points, those that are corners of the convex hull of their slice across ``axis``, some of them twice; a few others."""
    u, v = (a for a in range(3) if a != axis)
    high, kept = points.max(axis=0) + 1, []
    row = points[:, axis] * high[u] + points[:, u]
    for turn in (1, -1):  # the lower and the upper chain of all slices at once
        order = np.argsort(row * (2 * high[v]) + turn * points[:, v])
        chain = points[order[np.diff(row[order], prepend=-1) != 0]]  # the outermost of each row
        for _ in range(64):  # enough for all but contrived outlines, where some points that are no corners stay
            x, y = chain[:, u], turn * chain[:, v]
            above = (x[1:-1] - x[:-2]) * (y[2:] - y[:-2]) <= (y[1:-1] - y[:-2]) * (x[2:] - x[:-2])
            # No corner lies on or above the line between its neighbours.
            above &= chain[2:, axis] == chain[:-2, axis]
            if not above.any():
                break
            chain = chain[np.concatenate([[True], ~above, [True]])[: len(chain)]]
        kept.append(chain)
    return np.concatenate(kept)
