"""A volume: an array in (k, j, i) order with the matrix that places it in the patient."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .errors import MedXAIError

#: The array axis order is (k, j, i), the matrix's column order (i, j, k).
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # the patient axis (R, A, S) a plane is perpendicular to


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """An image, a map or a mask in patient space.

    Parameters
    ----------
    array : ndarray, shape (k, j, i)
        Voxels; any real or integer type. A 2-D image is a volume of one slice.
    ijk_to_ras : ndarray, shape (4, 4), float64
        From voxel index (i, j, k, 1) to RAS position in mm.
    name : str
        What a person calls it.
    unit : str
        Unit of the voxel values, such as ``HU``; empty where unknown.
    attributes : dict
        What a reader knows beside the voxels (modality, photometric interpretation…); numbers and text only, so that they can be sent.

    Raises
    ------
    MedXAIError
        When the array is not three-dimensional or the matrix cannot be inverted.
    """

    array: np.ndarray
    ijk_to_ras: np.ndarray
    name: str = "volume"
    unit: str = ""
    attributes: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.array.ndim != 3 or 0 in self.array.shape:
            raise MedXAIError(f"'{self.name}' has shape {self.array.shape}; a volume needs three non-empty axes.")
        matrix = np.array(self.ijk_to_ras, dtype=np.float64)
        usable = matrix.shape == (4, 4) and np.isfinite(matrix).all()
        if usable:  # flatness is a matter of directions, not of how small the voxels are
            lengths = np.linalg.norm(matrix[:3, :3], axis=0)
            usable = lengths.min() > 0 and abs(np.linalg.det(matrix[:3, :3] / lengths)) > 1e-6
        if not usable or not np.array_equal(matrix[3], [0, 0, 0, 1]):
            raise MedXAIError(
                f"'{self.name}' has no usable IJK-to-RAS matrix; load it again from a file with geometry."
            )
        matrix.flags.writeable = False
        object.__setattr__(self, "ijk_to_ras", matrix)

    def __repr__(self):
        return f"Volume('{self.name}', {self.array.dtype}, shape {self.shape}, spacing {self.spacing})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (k, j, i)."""
        return self.array.shape

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along (i, j, k)."""
        return tuple(float(s) for s in np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0))

    @property
    def patient_axes(self) -> tuple[int, int, int]:
        """For each index i, j, k the closest patient axis (0 = R, 1 = A, 2 = S), each used once."""
        direction = np.abs(self.ijk_to_ras[:3, :3] / self.spacing)
        best = max(_PERMUTATIONS, key=lambda axes: sum(direction[axis, column] for column, axis in enumerate(axes)))
        return best

    @property
    def orientation(self) -> str:
        """For i, j, k in order, the patient direction in which the index grows, such as ``LPS`` or ``RAS``."""
        letters = ""
        for column, axis in enumerate(self.patient_axes):
            letters += "RAS"[axis] if self.ijk_to_ras[axis, column] > 0 else "LPI"[axis]
        return letters

    def array_axis(self, plane: str) -> int:
        """Array axis (0 = k, 1 = j, 2 = i) that ``axial``, ``coronal`` or ``sagittal`` slices are counted along."""
        if plane not in PLANES:
            raise MedXAIError(f"'{plane}' is not a plane; use axial, coronal or sagittal.")
        return 2 - self.patient_axes.index(PLANES[plane])

    def ras_to_index(self, ras) -> tuple[float, float, float]:
        """Continuous array index (k, j, i) of a RAS position in mm."""
        ijk = np.linalg.solve(self.ijk_to_ras, [*map(float, ras), 1.0])[:3]
        return tuple(float(v) for v in ijk[::-1])

    def index_to_ras(self, index) -> tuple[float, float, float]:
        """RAS position in mm of an array index (k, j, i)."""
        k, j, i = index
        return tuple(float(v) for v in (self.ijk_to_ras @ [i, j, k, 1.0])[:3])

    def voxel(self, ras=None, ijk=None) -> tuple[int, int, int]:
        """Array index (k, j, i) of the voxel that holds a RAS point, or of the IJK index; refused outside the volume."""
        if ijk is not None:
            index = tuple(int(v) for v in ijk)[::-1]
            told = "IJK (" + ", ".join(map(str, index[::-1])) + ")"
        else:
            index = tuple(int(np.floor(v + 0.5)) for v in self.ras_to_index(ras))
            told = "RAS (" + ", ".join(f"{v:.1f}" for v in ras) + ")"
        if any(v < 0 or v >= n for v, n in zip(index, self.shape)):
            i, j, k = self.shape[::-1]
            raise MedXAIError(
                f"The point {told} lies outside '{self.name}' (IJK 0–{i - 1}, 0–{j - 1}, 0–{k - 1}); choose one inside."
            )
        return index

    def with_array(self, array: np.ndarray, name: str | None = None, unit: str | None = None) -> Volume:
        """The same grid with other voxels; refused when the shape differs."""
        if array.shape != self.shape:
            raise MedXAIError(f"An array of shape {array.shape} does not fit the grid {self.shape} of '{self.name}'.")
        attributes = dict(self.attributes)
        if self.array.dtype == np.uint8:  # other voxels in the same unit: what 8 bits could hold stays known
            attributes = {"stored_low": 0, "stored_high": 255} | attributes
        name, unit = self.name if name is None else name, self.unit if unit is None else unit
        return Volume(array, self.ijk_to_ras, name, unit, attributes)

    def crop(self, start, stop) -> Volume:
        """The box [start, stop) in (k, j, i), on the same lattice: its matrix is moved along."""
        matrix = self.ijk_to_ras.copy()
        matrix[:3, 3] = self.index_to_ras(start)
        box = tuple(slice(a, b) for a, b in zip(start, stop))
        return Volume(self.array[box], matrix, self.name, self.unit, dict(self.attributes))

    def same_grid(self, other: Volume, tolerance: float = 1e-3) -> bool:
        """Whether the other volume has the same shape and every voxel within ``tolerance`` mm."""
        if self.shape != other.shape:
            return False
        corner = np.array([*(n - 1 for n in self.shape[::-1]), 1.0])
        corners = np.array([[c[0] * a, c[1] * b, c[2] * d, 1] for c in [corner] for a, b, d in np.ndindex(2, 2, 2)]).T
        return bool(np.abs((self.ijk_to_ras - other.ijk_to_ras) @ corners).max() <= tolerance)

    def require_finite(self) -> None:
        """Refuse NaN and infinite voxels, saying how many there are and where the first one is."""
        if np.issubdtype(self.array.dtype, np.floating):
            # A sum is finite only if every voxel is; one pass, and the slow look only when it is not.
            with np.errstate(over="ignore", invalid="ignore"):
                if np.isfinite(self.array.sum(dtype=np.float64)):
                    return
            bad = ~np.isfinite(self.array)
            if bad.any():
                k, j, i = (int(v[0]) for v in np.nonzero(bad))
                raise MedXAIError(
                    f"'{self.name}' holds {int(bad.sum())} NaN or infinite voxels (the first at IJK {i}, {j}, {k});"
                    " replace them before asking for an explanation."
                )


_PERMUTATIONS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


def mask_on_grid(mask: Volume, volume: Volume) -> np.ndarray:
    """A mask (non-zero = inside) by nearest neighbour on another volume's grid.

    Returns
    -------
    ndarray of bool, shape ``volume.shape``

    Raises
    ------
    MedXAIError
        When the mask is empty, or none of it lies inside the volume.
    """
    if not mask.array.any():
        raise MedXAIError(f"The segment '{mask.name}' is empty; draw it or choose another one.")
    if mask.same_grid(volume):
        return mask.array.astype(bool)
    # Only the box of the mask is resampled, one slice of the volume at a time.
    to_mask = np.linalg.solve(mask.ijk_to_ras, volume.ijk_to_ras)
    spans = [np.nonzero(mask.array.any(axis=tuple(m for m in range(3) if m != n)))[0] for n in (2, 1, 0)]
    ends = [(span[0] - 0.5, span[-1] + 0.5) for span in spans]
    corners = np.array([[ends[n][b] for n, b in enumerate(bits)] + [1] for bits in np.ndindex(2, 2, 2)]).T
    box = (np.linalg.inv(to_mask) @ corners)[:3]
    start = np.clip(np.floor(box.min(1)), 0, None).astype(int)
    stop = np.minimum(np.ceil(box.max(1)).astype(int) + 1, volume.shape[::-1])
    result = np.zeros(volume.shape, bool)
    if (start < stop).all():
        i, j = np.arange(start[0], stop[0])[None, :], np.arange(start[1], stop[1])[:, None]
        plane = [row[0] * i + row[1] * j + row[3] for row in to_mask[:3]]
        for k in range(start[2], stop[2]):
            at = [np.floor(p + row[2] * k + 0.5).astype(np.int64) for p, row in zip(plane, to_mask)]
            inside = np.logical_and.reduce([(a >= 0) & (a < n) for a, n in zip(at, mask.shape[::-1])])
            at = [np.clip(a, 0, n - 1) for a, n in zip(at, mask.shape[::-1])]
            result[k, start[1] : stop[1], start[0] : stop[0]] = inside & (mask.array[at[2], at[1], at[0]] != 0)
    if not result.any():
        raise MedXAIError(
            f"The segment '{mask.name}' and the volume '{volume.name}' do not overlap;"
            " check that they belong to the same study."
        )
    return result
