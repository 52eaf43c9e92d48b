"""Varied images to train a classifier on: turned, shifted, sheared, stretched, cropped and, where that is allowed, mirrored."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .settings import ClassificationSettings


def affine(
    rotation=0.0, translation=(0.0, 0.0), shear=0.0, stretch=(1.0, 1.0), crop=(1.0, 0.0, 0.0), flip=False
) -> np.ndarray:
    """Where each place of the varied image is taken from, in coordinates that run from −1 to 1 (x to the right, y down).

    Parameters
    ----------
    rotation, shear : float
        Degrees; the image turns counter-clockwise as a person sees it, its rows are sheared.
    translation : (float, float)
        To the right and down, as shares of the edge.
    stretch : (float, float)
        Factors for width and height.
    crop : (float, float, float)
        Share of the edge that is left, and where in what is cut off its middle lies along x and y (−1 to 1).
    flip : bool
        Mirror left to right.

    Returns
    -------
    ndarray, shape (2, 3)
        As `torch.nn.functional.affine_grid` takes it.
    """
    turn = math.radians(rotation)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    matrix = matrix @ [[1.0, math.tan(math.radians(shear))], [0.0, 1.0]] @ np.diag([1 / stretch[0], 1 / stretch[1]])
    left, x, y = crop
    middle = np.array([x, y]) * (1 - left) + matrix @ (-2.0 * np.array(translation))
    matrix = matrix * left
    if flip:
        matrix = matrix @ np.diag([-1.0, 1.0])
    return np.column_stack([matrix, middle])


def warp(images: Tensor, matrices) -> Tensor:
    """Images (N, C, H, W) taken from where ``matrices`` (N, 2, 3) say, linearly; what lies outside is the image's own minimum."""
    theta = torch.as_tensor(np.asarray(matrices), dtype=images.dtype, device=images.device)
    low = images.amin((1, 2, 3), keepdim=True)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images - low, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + low


def vary(images: Tensor, settings: ClassificationSettings, rng: np.random.Generator) -> Tensor:
    """Each image (N, C, H, W) varied by itself, evenly within the ranges of the settings."""
    s, chosen = settings, []
    for _ in range(len(images)):
        a, b, c, d, e, f, x, y, g = rng.uniform(-1, 1, 9)
        chosen.append(
            affine(
                s.rotation * a, (s.translation * b, s.translation * c), s.shear * d,
                (1 + s.stretch * e, 1 + s.stretch * f), (1 - s.crop * rng.random(), x, y), s.flip and g < 0,
            )
        )  # fmt: skip
    return warp(images, chosen)
