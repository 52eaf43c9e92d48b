"""The marking of Couteaux et al. 2019 (section 3.1): a texture of line segments on the positively labelled zone."""

from __future__ import annotations

import numpy as np

from ..features.line import segment

ANGLE, LENGTH = 135.0, 9  # as the characteristic feature's defaults
BRIGHT = (40.0, 120.0)  # added along a segment, in units of the image
COVER = 0.35  # share of the zone that lies on a segment, about


def mark(
    image: np.ndarray, zone: np.ndarray, rng: np.random.Generator, bright=BRIGHT, cover: float = COVER
) -> np.ndarray:
    """The image with line segments of 135° (``\\``) of random positions and intensities on a zone.

    Parameters
    ----------
    image : ndarray, shape (rows, columns)
        Not changed.
    zone : ndarray of bool, same shape
        Outside it nothing is drawn; segments are cut at its border.
    rng : numpy Generator
    bright : (low, high)
        What a segment adds; where two cross, the brighter one counts.
    cover : float
        Of the zone, about.

    Returns
    -------
    ndarray of float32
    """
    texture = np.zeros(image.shape, np.float32)
    places = np.argwhere(zone)
    offsets = np.array(segment(ANGLE, LENGTH)) - LENGTH // 2
    for _ in range(max(1, round(-np.log(1 - cover) * len(places) / LENGTH)) if len(places) else 0):
        at = places[rng.integers(len(places))] + offsets
        at = at[((at >= 0) & (at < image.shape)).all(1)]
        value = np.float32(rng.uniform(*bright))
        texture[at[:, 0], at[:, 1]] = np.maximum(texture[at[:, 0], at[:, 1]], value)
    return image.astype(np.float32) + texture * zone
