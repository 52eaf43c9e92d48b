"""Axial slices of the phantom's liver for 2-D networks: with lesions, healthy, and healthy with tumours put in by code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from ..volume import Volume
from .phantom import case

SPACING = (2.0, 2.0, 3.0)  # mm along i, j, k; finer than the phantom's own, so that a lesion has room for a texture
SHAPE = (7, 96, 144)  # of the slab that is made, k, j, i
COLUMNS = slice(4, 100)  # of it that are kept: the patient's right, where the liver is
MIDDLE = (SHAPE[1] // 2, (COLUMNS.stop - COLUMNS.start) // 2)  # row and column
SLICES = (3, 0, 6)  # of the slab, the middle one first
NOISE = 14.0  # HU, SD of what thin slices have on top of the phantom's noise: without it a threshold does as well as a network
SMALLEST = 20  # pixels of tumour that a slice must show to be trained or judged on
KINDS = ("real-like", "synthetic", "elongated")
RADIUS = (9.0, 22.0)  # mm, as the phantom's lesions
CONTRAST = (34.0, 64.0)  # HU below the liver, as the phantom's lesions
#: Minor over major axis of what is put in: as round as the phantom's lesions, or stretched at the same area.
RATIO = {"synthetic": (0.65, 1.0), "elongated": (0.15, 0.3)}


@dataclass(frozen=True)
class LiverSlice:
    """One slice: ``image`` in HU, ``liver`` (with what lies in it) and ``tumour`` as uint8, volumes of one slice on one grid."""

    name: str
    image: Volume
    liver: Volume
    tumour: Volume

    @property
    def pixels(self) -> int:
        """Of the tumour."""
        return int(self.tumour.array.sum())


def liver_slices(seed: int, lesions: bool = True, most: int = len(SLICES)) -> list[LiverSlice]:
    """Slices of 96 × 96 pixels of 2 mm from the abdomen of one seed, the middle one first; the same patient without ``lesions``."""
    phantom, found = case(seed, lesions, SHAPE, SPACING), []
    for k in SLICES[:most]:
        corners = (k, 0, COLUMNS.start), (k + 1, SHAPE[1], COLUMNS.stop)
        image, labels = phantom.image.crop(*corners), phantom.labels.crop(*corners)
        name = f"{phantom.image.name}, slice {k}"
        noise = ndimage.gaussian_filter(np.random.default_rng([seed, 50, k]).standard_normal(image.shape[1:]), 0.65)
        hu = image.array + (NOISE / noise.std() * noise).astype(np.float32)
        found.append(
            LiverSlice(
                name,
                image.with_array(hu.astype(np.float32), name),
                labels.with_array((labels.array > 0).astype(np.uint8), f"{name}, liver"),
                labels.with_array((labels.array == 2).astype(np.uint8), f"{name}, tumour"),
            )
        )
    return found


def implant(healthy: LiverSlice, rng: np.random.Generator, kind: str = "synthetic") -> LiverSlice:
    """Synthetic tumours: intensities lowered in one to three random areas of a healthy liver (Couteaux et al. 2019, section 3.2).

    Parameters
    ----------
    healthy : LiverSlice
        Not changed.
    rng : numpy Generator
        Places, sizes, outlines and contrasts, the last two sizes from the ranges of the phantom's lesions.
    kind : {'synthetic', 'elongated'}
        Round, or stretched at the same area (`RATIO`).

    Returns
    -------
    LiverSlice
        The liver's noise and texture go on through the tumour; its edge is one pixel wide. Fewer tumours, or none, where there is no room.
    """
    liver = healthy.liver.array[0] > 0
    room = ndimage.distance_transform_edt(liver).astype(np.float32)
    rows, columns = np.indices(liver.shape, np.float32)
    image, tumour, taken = healthy.image.array[0].copy(), np.zeros(liver.shape, bool), np.zeros(liver.shape, bool)
    for _ in range(rng.integers(1, 4)):
        radius = float(np.exp(rng.uniform(*np.log(RADIUS)))) / SPACING[0]
        contrast, ratio, turn = rng.uniform(*CONTRAST), rng.uniform(*RATIO[kind]), rng.uniform(0, np.pi)
        wobble, phase, draw = rng.uniform(0, 0.12, 2), rng.uniform(0, 2 * np.pi, 2), rng.random()
        places = np.flatnonzero((room > 0.6 * radius) & ~taken)
        if not len(places):
            continue
        row, column = np.unravel_index(places[int(draw * len(places))], liver.shape)
        down, right = rows - row, columns - column
        along, across = np.cos(turn) * right - np.sin(turn) * down, np.sin(turn) * right + np.cos(turn) * down
        along, across = along * np.sqrt(ratio), across / np.sqrt(ratio)  # the area stays
        way = np.arctan2(across, along)
        outline = radius * (1 + sum(w * np.sin((n + 2) * way + p) for n, (w, p) in enumerate(zip(wobble, phase))))
        share = np.clip(0.5 + (outline - np.hypot(along, across)) * np.sqrt(ratio), 0, 1) * liver
        inside = share > 0.5
        if inside.sum() < SMALLEST or (ndimage.binary_dilation(inside, iterations=2) & taken).any():
            continue
        image -= np.float32(contrast) * share
        tumour |= inside
        taken |= inside
    name = f"{healthy.name}, {kind}"
    return replace(
        healthy, name=name, image=healthy.image.with_array(image[None], name),
        tumour=healthy.tumour.with_array(tumour[None].astype(np.uint8), f"{name}, tumour"),
    )  # fmt: skip


def tumour_slices(seeds, kind: str = "real-like", most: int = len(SLICES)) -> Iterator[LiverSlice]:
    """The slices of several patients that show a tumour of one of the `KINDS`."""
    for seed in seeds:
        found = liver_slices(seed, kind == "real-like", most)
        if kind != "real-like":
            found = [
                implant(one, np.random.default_rng([seed, n, KINDS.index(kind)]), kind) for n, one in enumerate(found)
            ]
        yield from (one for one in found if one.pixels >= SMALLEST)


def parenchyma(healthy: LiverSlice, below: float = 75.0) -> tuple[int, int, int]:
    """The voxel (k, j, i) of a healthy liver that lies deepest in tissue, away from its border and from dark vessels.

    Vessels are where the smoothed image is ``below`` so many HU.
    """
    smooth = ndimage.gaussian_filter(healthy.image.array[0], 1.0)
    tissue = (healthy.liver.array[0] > 0) & (smooth >= below)
    depth = ndimage.distance_transform_edt(np.pad(tissue, 1))[1:-1, 1:-1]
    return (0, *(int(v) for v in np.unravel_index(depth.argmax(), depth.shape)))
