"""Radiomic features of one (image, mask), cropped to the mask's box and computed by pyradiomics' feature classes directly.

The values are those of ``RadiomicsFeatureExtractor.execute`` with the same settings: it crops to the same box, but first copies
and measures the whole image. What is saved here: the image is binned once for all classes, only the features asked for are
computed, and coefficients of the co-occurrence matrix that no such feature reads are not made.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import sys
import warnings
from dataclasses import dataclass

import numpy as np

from ..errors import MedXAIError
from ..volume import Volume, mask_on_grid
from .names import LINE, resolve, without_line

#: More grey levels than this, and texture features are NaN: their cost grows with the square to the cube of the levels.
MAX_BINS = 1000

_TEXTURE = ("glcm", "gldm", "glrlm", "glszm", "ngtdm")
_BINNED = ("firstorder_Entropy", "firstorder_Uniformity")


class Values(dict):
    """Feature name -> value (NaN where undefined), with ``notes``: one sentence for each thing to be told."""

    def __init__(self, values=(), notes=()):
        super().__init__(values)
        self.notes: tuple[str, ...] = tuple(notes)


def available() -> tuple[bool, str]:
    """Whether pyradiomics is there; if not, also one sentence that says how to get it."""
    try:
        _classes()
    except ImportError as reason:
        if sys.version_info < (3, 12):
            how = (
                "install it with 'pip install --no-build-isolation pyradiomics==3.0.1', which needs numpy and a C compiler"
                " (Python 3.11; in 3D Slicer the SlicerRadiomics extension brings it)"
            )
        else:
            how = "in 3D Slicer install the SlicerRadiomics extension; elsewhere use Python 3.11, as no release of it installs on 3.12"
        return False, f"Radiomic features need pyradiomics, which cannot be imported ({reason}): {how}."
    return True, ""


def compute(
    image: Volume,
    mask: Volume,
    names,
    *,
    bin_width: float = 25.0,
    line_angle: float = 135.0,
    line_length: int = 9,
    ndim: int | None = None,
    max_bins: int = MAX_BINS,
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
    line_angle, line_length
        Of ``line_texture``, which is of the whole image, whatever the mask.
    ndim : int, optional
        2 or 3; by default 2 where the image has one slice along some axis.
    max_bins : int
        Where the masked intensities span more bins than this, texture features are NaN, and a note begins with ``capped``.

    Returns
    -------
    Values
        Full name -> float; NaN where undefined: an empty mask, a single voxel or a line of voxels (as in pyradiomics), voxels
        that are not finite, a class that fails. Never raises for a bad mask.

    Raises
    ------
    MedXAIError
        For a name that does not exist.
    """
    notes: list[str] = []
    if ndim is None:
        ndim = 2 if 1 in image.shape else 3
    names = resolve(names, ndim, notes)
    values = Values({name: np.nan for name in names})
    if without_line(names):
        roi, told = crop(image, mask)
        if roi is None:
            notes.append(told)
        else:
            found = on_roi(roi, names, ndim=ndim, bin_width=bin_width, max_bins=max_bins)
            values.update(found)
            notes.extend(found.notes)
    if LINE in names:
        from .line import line_texture

        values[LINE] = line_texture(image.array, line_angle, line_length)
    values.notes = tuple(notes)
    return values


@dataclass(frozen=True)
class Roi:
    """The box of a mask: all that the features need."""

    image: np.ndarray  # (k, j, i)
    mask: np.ndarray  # bool
    spacing: tuple[float, float, float]  # i, j, k
    flat: int | None  # the array axis along which the whole image has one slice


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
        return array.astype(np.uint8)
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        return array.astype(np.float32 if array.dtype.itemsize < 4 else np.float64)
    return array.astype(array.dtype.newbyteorder("="))


def on_roi(roi: Roi, names, *, ndim: int, bin_width: float, max_bins: int = MAX_BINS) -> Values:
    """The radiomic features of a cropped box; ``names`` are full names, ``line_texture`` among them is passed over."""
    names = without_line(names)
    values, notes = Values({name: np.nan for name in names}), []
    groups: dict[str, list[str]] = {}
    for name in names:
        group, feature = name.split("_", 1)
        groups.setdefault(group, []).append(feature)
    try:
        classes = _classes()
    except ImportError:
        values.notes = (available()[1],)
        return values
    import SimpleITK as sitk

    with _quiet():
        inner = roi.image[roi.mask]
        if not np.isfinite(inner).all():
            notes.append("not finite: the image holds NaN or infinite voxels in the mask.")
            groups = {group: features for group, features in groups.items() if group.startswith("shape")}
        grey, settings = {}, {"binWidth": bin_width}
        if any(group in _TEXTURE for group in groups) or any(name in _BINNED for name in names):
            if not groups.keys() <= {"shape", "shape2D"}:
                grey = _grey_levels(roi, inner, bin_width, max_bins)
        if grey.get("capped"):
            capped = [group for group in groups if group in _TEXTURE]
            if capped:
                notes.append(
                    f"capped: the intensities in the mask span {grey['capped']} bins of {bin_width:g}, more than {max_bins};"
                    " texture features are left out (choose a larger bin width)."
                )
            groups = {group: features for group, features in groups.items() if group not in capped}
        if ndim == 2:
            flat = roi.flat if roi.flat is not None else next((a for a, n in enumerate(roi.mask.shape) if n == 1), None)
            settings |= {"force2D": True, "force2Ddimension": 0 if flat is None else flat}
        image, mask = sitk.GetImageFromArray(roi.image), sitk.GetImageFromArray(roi.mask.astype(np.uint8))
        for one in (image, mask):
            one.SetSpacing(roi.spacing)
        for group, features in groups.items():
            try:
                found = _run(classes[group], features, image, mask, {**settings, "grey": grey})
            except Exception as error:  # whatever a feature class makes of an odd mask, the other classes go on
                notes.append(f"failed: {group}: {error}")
                continue
            for feature in features:
                values[f"{group}_{feature}"] = _number(found.get(feature, np.nan))
    values.notes = tuple(notes)
    return values


def _run(cls, features, image, mask, settings):
    one = cls(image, mask, **settings)
    for feature in features:
        one.enableFeatureByName(feature)
    return one.execute()


def _number(value) -> float:
    value = complex(np.asarray(value).reshape(-1)[0])
    return value.real


def _grey_levels(roi, inner, bin_width, max_bins) -> dict:
    """pyradiomics' own bins, made once: ``binned`` (image shape) and ``levels``; or ``capped``, the number of bins."""
    from radiomics.imageoperations import getBinEdges

    extremes = np.array([inner.min(), inner.max()])
    span = (float(extremes[1]) - float(extremes[0])) / bin_width
    binned = np.zeros(roi.image.shape, dtype=int)
    if not span <= max_bins:
        # Entropy and uniformity ask only which voxels share a bin, so they stay defined.
        shared = np.unique(np.floor(inner.astype(np.float64) / bin_width), return_inverse=True)[1]
        binned[roi.mask] = shared.reshape(-1) + 1
        return {"binned": binned, "levels": np.arange(1, binned.max() + 1), "capped": int(min(span, 1e18)) + 1}
    binned[roi.mask] = np.digitize(inner, getBinEdges(extremes, binWidth=bin_width))
    return {"binned": binned, "levels": np.unique(binned[roi.mask])}


@contextlib.contextmanager
def _quiet():
    """No log line ("GLCM is symmetrical…"), no warning; pyradiomics' logger is put back as it was."""
    logger = logging.getLogger("radiomics")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@functools.cache
def _classes() -> dict[str, type]:
    """Feature class name -> pyradiomics' class, taught to take grey levels that were made once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = {name: importlib.import_module(f"radiomics.{name}") for name in (*_TEXTURE, "firstorder", "shape2D")}

    from .solid import shape_class

    class Shared:
        def _applyBinning(self, matrix):
            grey = self.settings["grey"]
            if not grey:  # nothing that was asked for looks at bins
                self.coefficients["grayLevels"], self.coefficients["Ng"] = np.ones(1, int), 1
                return self.maskArray.astype(int)
            self.coefficients["grayLevels"], self.coefficients["Ng"] = grey["levels"], int(grey["levels"][-1])
            return grey["binned"].copy()

    class FirstOrder(Shared, modules["firstorder"].RadiomicsFirstOrder):
        pass

    class Glcm(Shared, modules["glcm"].RadiomicsGLCM):
        def _calculateCoefficients(self):
            self.coefficients = _Cooccurrence(self.P_glcm, self.coefficients)

        def getMCCFeatureValue(self):
            return _maximal_correlation(self.P_glcm[0])

    found = {"firstorder": FirstOrder, "glcm": Glcm}
    for name in ("gldm", "glrlm", "glszm", "ngtdm"):
        found[name] = type(name, (Shared, getattr(modules[name], "Radiomics" + name.upper())), {})
    for cls in found.values():
        cls.__module__ = "radiomics"  # pyradiomics names its loggers so; ours would not be silenced
    found["shape"], found["shape2D"] = shape_class(), modules["shape2D"].RadiomicsShape2D
    return found


class _Cooccurrence(dict):
    """What pyradiomics derives from its normalised co-occurrence matrices P (1, level, level, angle), each when first read."""

    def __init__(self, matrices, known):
        super().__init__(known, eps=np.spacing(1))
        levels = known["grayLevels"].astype(float)
        self["i"], self["j"] = levels[:, None], levels[None, :]
        self["kValuesSum"], self["kValuesDiff"] = np.arange(2.0, 2 * known["Ng"] + 1), np.arange(0.0, known["Ng"])
        self._matrices = matrices

    def __missing__(self, key):
        p = self._matrices
        if key in ("px", "py"):
            value = p.sum(2 if key == "px" else 1, keepdims=True)
        elif key in ("ux", "uy"):
            value = np.sum(self["i" if key == "ux" else "j"][None, :, :, None] * p, (1, 2), keepdims=True)
        elif key == "HXY":
            value = -np.sum(p * np.log2(p + self["eps"]), (1, 2))
        elif key == "pxAddy":
            value = self._by(self["i"] + self["j"] - 2, len(self["kValuesSum"]))
        elif key == "pxSuby":
            value = self._by(np.abs(self["i"] - self["j"]), len(self["kValuesDiff"]))
        else:
            raise KeyError(key)
        self[key] = value
        return value

    def _by(self, index, length):
        """Probability by sum or difference of the levels: (1, length, angle)."""
        index = index.astype(np.intp).reshape(-1)
        angles = range(self._matrices.shape[3])
        columns = [np.bincount(index, self._matrices[0, :, :, a].reshape(-1), length) for a in angles]
        return np.stack(columns, axis=-1)[None]


def _maximal_correlation(matrices):
    """Root of the second largest eigenvalue of Q(i, j) = Σ_k p(i, k) p(j, k) / (p_x(i) p_y(k)), mean over the angles.

    Same as pyradiomics, with its epsilon; Q is one matrix product for each angle in place of a loop over the levels. But for
    the epsilon, Q is similar to the square of a symmetric matrix, whose leading eigenvectors are quick to find; Q itself is
    then solved among these alone, which is exact to the square of what the epsilon changes.
    """
    if matrices.shape[0] < 2:
        return 1.0
    found = []
    for p in np.moveaxis(matrices, -1, 0):
        px = p.sum(1)
        q = (p / (px[:, None] * p.sum(0)[None, :] + np.spacing(1))) @ p.T
        if len(q) > 48:
            root = np.sqrt(px)
            back = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
            values, vectors = np.linalg.eigh(back[:, None] * p * back[None, :])
            size = np.sort(np.abs(values))
            leading = vectors[:, np.abs(values) >= min(size[-2] - 0.1, size[-16])]
            q = (leading * root[:, None]).T @ q @ (leading * back[:, None])
        found.append(np.sqrt(np.sort(np.linalg.eigvals(q))[-2]))
    return np.nanmean(np.array(found)).real
