"""A mammogram-like phantom made from a seed: the same breast with and without masses, whose places are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..errors import MedXAIError
from ..explanation import Step
from ..files import new_folder, write_csv
from ..volume import Volume
from .phantom import HELD_OUT, checked_seeds

HEIGHT = 172.0  # mm that an image is high
SHAPE = (128, 128)  # rows, columns
CLASSES = ("healthy", "mass")
PATIENT = HELD_OUT  # the seed of the tutorial
_MARGIN = 7.0  # mm of breast that a mass has around it


@dataclass(frozen=True)
class Mammogram:
    """An image (uint8, one slice), the breast and the masses (masks); ``masses`` is empty in a healthy one."""

    image: Volume
    breast: Volume
    masses: Volume


class _Canvas:
    """Millimetres from the middle of the left edge (x to the right, y down), and noise that looks the same at any resolution."""

    def __init__(self, shape):
        self.shape, self.mm = shape, HEIGHT / shape[0]
        self.y = ((np.arange(shape[0]) + 0.5) * self.mm - HEIGHT / 2)[:, None] + np.zeros(shape)
        self.x = ((np.arange(shape[1]) + 0.5) * self.mm)[None] + np.zeros(shape)

    def field(self, rng, scale: float) -> np.ndarray:
        """Smooth noise of mean 0 and SD about 1 whose grain is ``scale`` mm wide."""
        nodes = rng.normal(size=(int(HEIGHT / scale) + 5,) * 2)
        at = [(self.y + HEIGHT / 2) / scale + 1.5, self.x / scale + 1.5]
        return 1.6 * ndimage.map_coordinates(nodes, at, order=3, mode="reflect")

    def edge(self, distance, soft: float) -> np.ndarray:
        """1 inside (distance below 0), 0 outside, over about ``soft`` mm, never sharper than a pixel."""
        return 1 / (1 + np.exp(np.clip(distance / max(soft / 4, 0.25 * self.mm), -50, 50)))

    def line(self, start, stop, width: float) -> np.ndarray:
        """A line with a Gaussian profile, tapering from ``start`` to ``stop`` (x, y)."""
        d = np.subtract(stop, start)
        length = float(np.hypot(*d))
        along = ((self.x - start[0]) * d[0] + (self.y - start[1]) * d[1]) / length
        across = ((self.x - start[0]) * d[1] - (self.y - start[1]) * d[0]) / length
        left = np.clip(1 - along / length, 0, 1)
        wide = np.maximum(width * (0.4 + 0.6 * left), 0.45 * self.mm)
        ends = self.edge(-along, 1.0) * self.edge(along - length, 1.0)
        return ends * (0.4 + 0.6 * left) * np.exp(-0.5 * (across / wide) ** 2)


def mammogram(seed: int, finding: bool = True, shape=SHAPE) -> Mammogram:
    """One phantom.

    Parameters
    ----------
    seed : int
        Everything but the masses is the same for ``finding`` and without.
    finding : bool
        Whether there are masses: one, in a fifth of the phantoms two.
    shape : (int, int)
        Rows and columns; the image is `HEIGHT` mm high at any size, its pixels square.
    """
    rng, canvas = np.random.default_rng([seed, 11]), _Canvas(shape)
    a, b, middle = rng.uniform(95, 125), rng.uniform(68, 82), rng.uniform(-2, 8)
    nipple = np.array([a, middle + rng.uniform(-6, 10)])
    radius = np.hypot(canvas.x / a, (canvas.y - middle) / b) + 0.015 * canvas.field(rng, 45)
    breast = radius < 1
    thick = np.sqrt(np.clip(1.02 - radius**2, 0, 1))
    level = 0.30 * thick**0.6
    # Gland: a cone towards the nipple, lumpy, with ducts; its amount differs from woman to woman.
    cone = 1 - np.hypot((canvas.x - 0.62 * a) / (0.5 * a), (canvas.y - middle) / (0.62 * b))
    lumps = sum(w * canvas.field(rng, s) for w, s in ((0.30, 32), (0.24, 16), (0.16, 8), (0.10, 4)))
    gland = 1 / (1 + np.exp(-4 * (1.1 * cone + lumps + rng.uniform(-0.45, 0.15))))
    level += rng.uniform(0.14, 0.24) * gland * thick
    level += 0.018 * thick * (canvas.field(rng, 5) + 0.7 * canvas.field(rng, 2.5))
    for _ in range(rng.integers(9, 15)):  # ducts and vessels
        stop = nipple + (rng.uniform(-95, -35), rng.uniform(-50, 50))
        level += (
            rng.uniform(0.03, 0.08) * thick * canvas.line(nipple + rng.normal(0, 4, 2), stop, rng.uniform(0.6, 1.4))
        )
    for _ in range(rng.integers(3, 7)):  # islands of gland: as bright and as large as masses, but soft
        at = _place(rng, a, b, middle)
        island = np.hypot((canvas.x - at[0]) / rng.uniform(5, 12), (canvas.y - at[1]) / rng.uniform(5, 12))
        level += rng.uniform(0.10, 0.26) * np.exp(-0.5 * (island + 0.12 * canvas.field(rng, 9)) ** 2)
    for _ in range(rng.integers(2, 5)):  # strands that cross: lines alone do not tell a mass
        at = _place(rng, a, b, middle)
        for turn in rng.uniform(0, np.pi, rng.integers(2, 4)):
            reach = rng.uniform(8, 20) * np.array([np.cos(turn), np.sin(turn)])
            level += rng.uniform(0.04, 0.09) * canvas.line(at - reach, at + reach, rng.uniform(0.6, 1.1))
    muscle = canvas.x / rng.uniform(38, 62) + (canvas.y + HEIGHT / 2) / rng.uniform(75, 120) - 1
    level = level + (0.62 - level) * 0.85 * canvas.edge(muscle * 45 + 1.5 * canvas.field(rng, 14), 5.0) * breast
    skin = np.abs(radius - 0.985) * min(a, b)
    level += 0.10 * np.exp(-0.5 * (skin / 1.2) ** 2)
    noise = np.random.default_rng([seed, 12, *shape]).normal(0, 0.006, shape)
    masses = np.zeros(shape, bool)
    drawn = np.random.default_rng([seed, 13])
    for _ in range(0 if not finding else 2 if drawn.random() < 0.2 else 1):
        added, mask = _mass(canvas, drawn, a, b, middle, masses)
        level, masses = level + added * thick**0.5, masses | mask
    level = level * canvas.edge((radius - 1) * min(a, b), 2.0) + noise
    matrix = np.diag([-canvas.mm, -canvas.mm, 1.0, 1.0])  # as radiographs lie: shown in Slicer as it is here
    image = Volume(np.round(255 * np.clip(level + 0.03, 0, 1)).astype(np.uint8)[None], matrix, f"mammogram-{seed}")
    return Mammogram(image, _mask(image, breast, "breast"), _mask(image, masses, "mass"))


def _mask(image, array, name):
    return Volume(array[None].astype(np.uint8), image.ijk_to_ras, name)


def _place(rng, a, b, middle):
    """A place well inside the breast."""
    turn, far = rng.uniform(-0.5, 0.5) * np.pi, 0.82 * np.sqrt(rng.uniform(0.05, 1))
    return np.array([a * far * np.cos(turn), middle + b * far * np.sin(turn)])


def _mass(canvas, rng, a, b, middle, taken):
    """Density and mask of a mass: lobulated, with a border and spicules, as bright as the islands of gland."""
    for _ in range(50):
        at = _place(rng, a, b, middle)
        size = rng.uniform(5.0, 10.0)
        near = np.hypot(canvas.x - at[0], canvas.y - at[1])
        # Away from the edges, the muscle's corner and another mass.
        free = at[0] > size + _MARGIN and at[1] > -50 + 0.6 * (60 - at[0]) and abs(at[1]) < HEIGHT / 2 - size - _MARGIN
        if free and not (taken & (near < 3 * size)).any():
            break
    turn = np.arctan2(canvas.y - at[1], canvas.x - at[0])
    radius = size * (1 + sum(0.09 * rng.normal() * np.cos(n * turn + rng.uniform(0, 6.3)) for n in (2, 3, 5)))
    inside = canvas.edge(near - radius, 2.0)
    added = rng.uniform(0.15, 0.25) * inside * (0.8 + 0.2 * np.clip(1 - near / radius, 0, 1))
    bright = rng.uniform(0.09, 0.15)
    for spoke in np.arange(rng.integers(7, 12)) * 0.7 + rng.uniform(0, 0.7):
        way = np.array([np.cos(spoke), np.sin(spoke)])
        added += bright * canvas.line(at + 0.8 * size * way, at + size * rng.uniform(1.5, 2.1) * way, 0.8)
    return added, near < radius


def write_mammograms(folder, seeds, shape=SHAPE):
    """Write phantoms as files that every command takes.

    Parameters
    ----------
    folder : path
        New. ``images`` holds every breast twice, healthy and with masses; ``labels.csv`` says which is which (``image``, ``label``, ``patient_id``, ``split``: test for
        seeds of 1000 and above, which figures are made of, DESIGN section 5). ``cohort-train`` and ``cohort-test`` hold those with masses, each beside its mask (1: breast, 2: mass).
    seeds : sequence of int

    Yields
    ------
    Step
    """
    from .. import io

    seeds = checked_seeds(seeds)
    if min(shape) < 16:
        raise MedXAIError(f"--size is {shape[0]} {shape[1]}; a phantom has 16 pixels along each axis at least.")
    rows = {name: [] for name in ("image", "label", "patient_id", "split")}
    with new_folder(folder) as place:
        Path(place, "images").mkdir()
        for number, seed in enumerate(seeds):
            yield Step(number / len(seeds), f"Phantom {number + 1} of {len(seeds)}")
            side, name = "test" if seed >= HELD_OUT else "train", f"mammogram-{seed:04}"
            for finding in (False, True):
                one = mammogram(seed, finding, shape)
                file = f"{name}-{CLASSES[finding]}.nrrd"
                io.write_volume(Path(place, "images", file), one.image)
                for column, value in zip(rows.values(), (file, CLASSES[finding], name, side)):
                    column.append(value)
            cohort = Path(place, f"cohort-{side}")
            cohort.mkdir(exist_ok=True)
            labels = one.image.with_array(one.breast.array + one.masses.array)
            io.write_volume(cohort / f"{name}.nrrd", one.image)
            io.write_volume(cohort / f"{name}_mask.nrrd", labels)
        write_csv(Path(place, "labels.csv"), rows)
