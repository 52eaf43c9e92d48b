"""Where the body is: an optional mask that leaves the air around the patient out of prototypes and scores (He et al. 2023's tissue mask)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from ..errors import MedXAIError
from ..volume import Volume, mask_on_grid


def body_mask(how: str, volume: Volume) -> np.ndarray | None:
    """The body on a volume's grid, bool (k, j, i); None for all of it.

    Parameters
    ----------
    how : str
        Empty, ``auto`` (above Otsu's threshold, the largest connected part, holes filled slice by slice), or a mask file.
    """
    if not how:
        return None
    if how != "auto":
        from .. import io

        if not Path(how).exists():
            raise MedXAIError(f"The body mask '{how}' does not exist; give a mask file, 'auto', or leave it out.")
        return mask_on_grid(io.read_mask(how), volume)
    import SimpleITK as sitk

    above = sitk.GetArrayFromImage(
        sitk.OtsuThreshold(sitk.GetImageFromArray(volume.array.astype(np.float32)), 0, 1)
    ).astype(bool)
    parts, count = ndimage.label(above)
    if not count:
        raise MedXAIError(f"'{volume.name}' has one value only, so no body can be found; leave the body mask out.")
    body = parts == np.bincount(parts.reshape(-1))[1:].argmax() + 1
    axis = int(np.argmin(volume.shape)) if 1 in volume.shape else 0
    filled = [ndimage.binary_fill_holes(one) for one in np.moveaxis(body, axis, 0)]
    return np.moveaxis(np.stack(filled), 0, axis)
