"""pyradiomics' own feature classes on the box of a mask: the reference that the built-in engine is held against, and a choice.

The values are those of ``RadiomicsFeatureExtractor.execute``, which crops to the same box after copying and measuring the whole image.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import warnings

import numpy as np

from .names import grouped


def available() -> tuple[bool, str]:
    """Whether pyradiomics is there; if not, also one sentence that says how to get it."""
    try:
        classes()
    except ImportError as reason:
        if sys.version_info < (3, 12):
            how = (
                "install it with 'pip install --no-build-isolation pyradiomics==3.0.1', which needs numpy and a C compiler"
                " (Python 3.11; in 3D Slicer the SlicerRadiomics extension brings it)"
            )
        else:
            how = "in 3D Slicer install the SlicerRadiomics extension; elsewhere use Python 3.11, as no release of it installs on 3.12"
        return False, f"pyradiomics cannot be imported ({reason}): choose the built-in engine, or {how}."
    return True, ""


@functools.cache
def classes() -> dict[str, type]:
    """Feature class name -> pyradiomics' class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from radiomics import getFeatureClasses

        return getFeatureClasses()


def features(roi, names, ndim: int, bin_width: float, bin_count: int, capped: bool) -> tuple[dict, list[str]]:
    """Full name -> value of what pyradiomics has for a box, and one note for each class that failed.

    Parameters
    ----------
    roi : Roi
    names : list of str
        Full names; where ``capped``, none that looks at bins.
    """
    import SimpleITK as sitk

    values, notes = {}, []
    # Its first-order class bins whatever is asked for; one bin where there would be too many.
    settings = {"binCount": bin_count or 1} if bin_count or capped else {"binWidth": bin_width}
    if ndim == 2:
        settings |= {"force2D": True, "force2Ddimension": roi.plane}
    image, mask = sitk.GetImageFromArray(roi.image), sitk.GetImageFromArray(roi.mask.astype(np.uint8))
    for one in (image, mask):
        one.SetSpacing(roi.spacing)
    with _quiet():
        for group, wanted in grouped(names).items():
            try:
                engine = classes()[group](image, mask, **settings)
                for feature in wanted:
                    engine.enableFeatureByName(feature)
                found = engine.execute()
            except Exception as error:  # whatever a feature class makes of an odd mask, the other classes go on
                notes.append(f"failed: {group}: {error}")
                continue
            for feature in wanted:
                values[f"{group}_{feature}"] = complex(np.asarray(found[feature]).reshape(-1)[0]).real
    return values, notes


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
