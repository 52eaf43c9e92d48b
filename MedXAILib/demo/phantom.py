"""A CT-like abdomen made by code from a seed: liver with dark vessels, and hypodense lesions where they are asked for.

The picture is that of an early arterial phase: the aorta and the renal cortex are bright, the vessels of the liver are not
yet filled and as dark as a lesion. Intensity alone therefore does not tell a lesion from a vessel; shape does. Each part of
the body draws from its own stream of random numbers, so the healthy variant of a seed is the same patient without lesions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..errors import MedXAIError
from ..volume import Volume

LABELS = ("background", "liver", "lesion")
HELD_OUT = 1000  # seeds below: settings and training; from here on: figures
SHAPE = (64, 96, 96)  # k, j, i
SPACING = (3.0, 3.0, 3.0)  # mm along i, j, k

_PARTS = ("body", "skeleton", "organs", "liver", "vessels", "lesions", "noise")


@dataclass(frozen=True)
class Lesion:
    """One lesion: RAS position of its centre (mm), mean radius (mm) and how much darker than the liver it is (HU)."""

    ras: tuple[float, float, float]
    radius: float
    contrast: float


@dataclass(frozen=True)
class Phantom:
    """One case.

    ``image`` is int16 in HU; ``labels`` is uint8 on the same grid, 0 background, 1 liver, 2 lesion (see `LABELS`).
    """

    image: Volume
    labels: Volume
    seed: int
    lesions: tuple[Lesion, ...]

    def mask(self, label: str) -> Volume:
        """One label as a uint8 mask; ``organ`` is the liver with its lesions."""
        if label == "organ":
            return self.labels.with_array((self.labels.array > 0).astype(np.uint8), "liver")
        if label not in LABELS:
            raise MedXAIError(f"The phantom has no label '{label}'; it has {', '.join(LABELS)} and organ.")
        return self.labels.with_array((self.labels.array == LABELS.index(label)).astype(np.uint8), label)


def case(seed: int, lesions: bool = True, shape=SHAPE, spacing=SPACING) -> Phantom:
    """The abdomen of one seed.

    Parameters
    ----------
    seed : int
        At least 0; below `HELD_OUT` for settings and training, from there on for figures.
    lesions : bool
        False: the same patient without lesions.
    shape : tuple of int
        Voxels (k, j, i).
    spacing : tuple of float
        Millimetres along (i, j, k). The body is about 270 × 190 mm and goes on above and below the volume.
    """
    seed = int(seed)
    if seed < 0:
        raise MedXAIError(f"The phantom's seed is {seed}; use 0 or more.")
    rng = {name: np.random.default_rng([seed, n]) for n, name in enumerate(_PARTS)}
    canvas = _Canvas(shape, spacing, rng["body"])
    body = _body(canvas, rng["body"])
    _organs(canvas, rng["organs"], body)
    organ, tissue = _liver(canvas, rng["liver"], body)
    _vessels(canvas, rng["vessels"], organ, tissue)
    found, lesion = _lesions(canvas, rng["lesions"], organ, tissue) if lesions else ([], None)
    _around_liver(canvas, rng["organs"], organ)
    _skeleton(canvas, rng["skeleton"], body)
    hu = _acquire(canvas, rng["noise"])
    labels = (organ > 0.5).astype(np.uint8)
    if lesion is not None:
        labels[(lesion > 0.5) & (labels > 0)] = 2
    matrix = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # i to the left, j to the back, k to the head
    matrix[:3, 3] = [s * (n - 1) / 2 * d for s, n, d in zip(spacing, shape[::-1], (1, 1, -1))]
    name = f"phantom-{seed}" + ("" if lesions else "-healthy")
    return Phantom(Volume(hu, matrix, name, "HU"), Volume(labels, matrix, name + "-labels"), seed, tuple(found))


class _Canvas:
    """HU values and coordinates in mm: x to the left, y to the back, z to the head, 0 in the middle, gently warped."""

    def __init__(self, shape, spacing, rng):
        self.shape, self.spacing = shape, spacing
        axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * s for n, s in zip(shape, spacing[::-1])]
        z, y, x = np.meshgrid(*axes, indexing="ij")
        self.straight = (x, y, z)
        size, turn = rng.uniform(0.95, 1.05), np.deg2rad(rng.uniform(-4, 4))
        x, y, z = x / size + rng.uniform(-4, 4), y / size + rng.uniform(-4, 4), z / size + rng.uniform(-12, 12)
        x, y = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
        self.x, self.y, self.z = (c + np.float32(3.5) * self.field(rng, 28) for c in (x, y, z))
        self.hu = np.full(shape, -1000, np.float32)

    def field(self, rng, mm):
        """Smooth noise, mean 0 and SD 1, with a correlation length in mm."""
        coarse = [max(4, int(np.ceil(n * s / mm)) + 4) for n, s in zip(self.shape, self.spacing[::-1])]
        knots = rng.standard_normal(coarse).astype(np.float32)
        at = [np.arange(n, dtype=np.float32) * s / mm + 1 for n, s in zip(self.shape, self.spacing[::-1])]
        for axis, where in enumerate(at):  # cubic B-spline, one axis after the other
            knots = np.moveaxis(knots, axis, 0)
            first, t = where.astype(int), (where - where.astype(int)).astype(np.float32)
            weights = (
                (1 - t) ** 3 / 6,
                (3 * t**3 - 6 * t**2 + 4) / 6,
                (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
                t**3 / 6,
            )
            knots = sum(
                w.reshape(-1, 1, 1) * knots[np.clip(first + n - 1, 0, len(knots) - 1)] for n, w in enumerate(weights)
            )
            knots = np.moveaxis(knots, 0, axis)
        return (knots - knots.mean()) / max(float(knots.std()), 1e-6)

    def ellipsoid(self, centre, radii):
        """About the signed distance in mm (negative inside); a radius of None is an endless cylinder."""
        near = [(c - m) / r for c, m, r in zip((self.x, self.y, self.z), centre, radii) if r is not None]
        slope = [n / r for n, r in zip(near, [r for r in radii if r is not None])]
        size = np.sqrt(sum(n * n for n in near))
        return size * (size - 1) / np.maximum(np.sqrt(sum(s * s for s in slope)), 1e-6)

    def tube(self, distance, a, b, radius_a, radius_b):
        """Lower ``distance`` to that of a capsule from a to b (mm), in the box around it only."""
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        # The warp moves points by up to about 12 mm, so the box is found on the straight coordinates with that margin.
        reach = max(radius_a, radius_b) + 24
        box = []
        for axis, (coordinate, low, high) in enumerate(
            zip(self.straight[::-1], np.minimum(a, b)[::-1] - reach, np.maximum(a, b)[::-1] + reach)
        ):
            line = np.moveaxis(coordinate, axis, 0)[:, 0, 0]
            box.append(slice(*np.searchsorted(line, [low, high])))
        box = tuple(box)
        p = np.stack([self.x[box], self.y[box], self.z[box]], -1) - a
        along = np.clip(p @ (b - a) / max(float((b - a) @ (b - a)), 1e-6), 0, 1)
        away = np.sqrt(((p - along[..., None] * (b - a)) ** 2).sum(-1)) - (radius_a + along * (radius_b - radius_a))
        distance[box] = np.minimum(distance[box], away)

    def cover(self, distance, edge=None):
        """The share of each voxel inside (partial volume), from a signed distance; ``edge`` is the width of the border in mm."""
        edge = float(np.mean(self.spacing)) if edge is None else edge
        return np.clip(0.5 - distance / edge, 0, 1)

    def paint(self, share, hu):
        """Fill ``share`` of each voxel with a tissue."""
        self.hu += share * (hu - self.hu)


def _smooth_union(a, b, mm):
    """Smooth minimum of two distances."""
    h = np.clip(0.5 + 0.5 * (b - a) / mm, 0, 1)
    return b + h * (a - b) - mm * h * (1 - h)


def _body(canvas, rng):
    """Table, skin, fat, muscle wall and lungs; returns the distances that the rest is fitted into."""
    x, y, z = canvas.x, canvas.y, canvas.z
    width, depth = rng.uniform(126, 134), rng.uniform(88, 97)
    outer = canvas.ellipsoid((0, 0, 0), (width, depth, None))
    table = np.abs(canvas.straight[1] - 118 + canvas.straight[0] ** 2 / 900) - 2.5
    canvas.paint(canvas.cover(table) * 0.5, -300.0)
    fat = rng.uniform(9, 18) + 3 * canvas.field(rng, 60) + np.where(y < 0, 3, 0)
    wall = outer + fat
    cavity = wall + rng.uniform(9, 13)
    canvas.paint(canvas.cover(outer), 10.0)
    canvas.paint(canvas.cover(outer + 3), -105 + 6 * canvas.field(rng, 12))
    canvas.paint(canvas.cover(wall), 55 + 8 * canvas.field(rng, 10))
    canvas.paint(canvas.cover(np.abs(wall + 5) - 0.8) * 0.6, -80.0)  # fat between the muscle layers
    canvas.paint(canvas.cover(cavity), -98 + 7 * canvas.field(rng, 10))
    # Diaphragm: two domes, lower towards the back and the sides where the lungs reach down.
    right = rng.uniform(58, 72) - (x + 58) ** 2 / 95 - (y + 5) ** 2 / 110
    left = rng.uniform(48, 60) - (x - 62) ** 2 / 85 - (y + 5) ** 2 / 110
    dome = -_smooth_union(-right, -left, 25)
    return {"outer": outer, "wall": wall, "cavity": cavity, "dome": np.maximum(dome, -60) - z}


def _organs(canvas, rng, body):
    """Lungs, heart, bowel, stomach, spleen, kidneys, pancreas."""
    field, inside = canvas.field, np.maximum(body["cavity"], -body["dome"])
    lung = np.maximum(body["cavity"] + 2, body["dome"] + 4)
    canvas.paint(canvas.cover(lung), -850 + 40 * np.maximum(field(rng, 9), -0.5) ** 2)
    heart = np.maximum(canvas.ellipsoid((14, -28, 86), (55, 42, 36)), body["cavity"] + 4)
    canvas.paint(canvas.cover(heart), 110 + 8 * field(rng, 25))
    for _ in range(9):  # loops of bowel, some with gas
        centre = np.array([rng.uniform(-75, 75), rng.uniform(-62, 5), rng.uniform(-110, -45)])
        loop = np.maximum(canvas.ellipsoid(centre, rng.uniform(13, 24, 3)) + 2.5 * field(rng, 16), inside + 3)
        canvas.paint(canvas.cover(loop), 70.0)
        canvas.paint(canvas.cover(loop + 3), rng.uniform(5, 40))
        if rng.random() < 0.5:
            gas = np.maximum(loop + 4, canvas.y - centre[1] + rng.uniform(0, 6))
            canvas.paint(canvas.cover(gas), -750.0)
    middle = np.array([52, -30, 22]) + rng.uniform(-6, 6, 3)
    stomach = _smooth_union(
        canvas.ellipsoid(middle, (32, 26, 40)), canvas.ellipsoid(middle + [-28, -8, -38], (34, 17, 17)), 12
    )
    stomach = np.maximum(stomach + 3 * field(rng, 22), inside + 4)
    canvas.paint(canvas.cover(stomach), 85.0)
    canvas.paint(canvas.cover(stomach + 4), 20 + 8 * field(rng, 8))
    canvas.paint(canvas.cover(np.maximum(stomach + 4.5, canvas.y - middle[1] + rng.uniform(4, 14))), -870.0)
    spleen = canvas.ellipsoid(np.array([88, 32, 22]) + rng.uniform(-5, 5, 3), (24, 40, 44) * rng.uniform(0.85, 1.1, 3))
    spleen = np.maximum(
        np.maximum(spleen, -canvas.ellipsoid((58, 18, 20), (24, 30, 40))) + 2 * field(rng, 18), inside + 3
    )
    # Early arterial: the spleen takes up contrast in bands.
    canvas.paint(canvas.cover(spleen), 118 + 22 * np.sin(field(rng, 18) * 2.5))
    for side in (-1, 1):
        at = np.array([side * 58, 42, -38 if side < 0 else -24]) + rng.uniform(-5, 5, 3)
        kidney = np.maximum(
            canvas.ellipsoid(at, (26, 24, 50) * rng.uniform(0.9, 1.08, 3)),
            -canvas.ellipsoid(at + [-side * 26, -6, 0], (16, 13, 20)),
        )
        canvas.paint(canvas.cover(kidney - 8), -100.0)
        canvas.paint(canvas.cover(kidney + 1.5 * field(rng, 14)), rng.uniform(165, 195))
        canvas.paint(canvas.cover(kidney + 8 + 2.5 * field(rng, 9)), rng.uniform(85, 105))
        canvas.paint(canvas.cover(kidney + 17), -40.0)
    pancreas = canvas.field(rng, 11) * 2.5 + np.maximum(
        np.abs(canvas.y - 12 - 0.004 * canvas.x**2) - 10, np.abs(canvas.z + 12 - 0.3 * canvas.x) - 13
    )
    canvas.paint(canvas.cover(np.maximum(pancreas, np.abs(canvas.x - 20) - 52)), 100.0)


def _liver(canvas, rng, body):
    """Right and left lobe; returns the share of liver in each voxel and the HU of its tissue."""
    jitter = rng.uniform(-6, 6, (2, 3))
    scale = rng.uniform(0.92, 1.08, (2, 3))
    right = canvas.ellipsoid(np.array([-60, 2, 5]) + jitter[0], np.array([62, 72, 76]) * scale[0])
    left = canvas.ellipsoid(np.array([8, -42, 26]) + jitter[1], np.array([62, 34, 38]) * scale[1])
    shape = _smooth_union(right, left, 25)
    shape = shape + 2.2 * canvas.field(rng, 32) + 0.9 * canvas.field(rng, 14)
    kidney = canvas.ellipsoid((-52, 50, -40), (36, 33, 58))  # the renal and the caudate impressions
    middle = canvas.ellipsoid((4, 34, 0), (40, 44, None))
    hilum = canvas.ellipsoid((-6, -4, -34), (30, 26, 30))
    for dent in (kidney, middle, hilum):
        shape = -_smooth_union(-shape, dent, 10)
    fissure = np.maximum(
        np.abs(canvas.x - 4 - 0.25 * canvas.y + 3 * canvas.field(rng, 30)) - 1.2, canvas.z - rng.uniform(8, 30)
    )
    shape = np.maximum(shape, -fissure)  # fat of the ligamentum teres
    shape = np.maximum(shape, np.maximum(body["cavity"] + 3, -body["dome"]))
    tissue = (
        rng.uniform(84, 100) + rng.uniform(2, 5) * canvas.field(rng, 40) + rng.uniform(1, 3) * canvas.field(rng, 10)
    )
    share = canvas.cover(shape)
    canvas.paint(share, tissue)
    return share, tissue


def _branch(canvas, rng, distance, at, way, length, radius, depth):
    for _ in range(3):
        way = way + rng.normal(0, 0.16, 3)
        way /= np.linalg.norm(way)
        to = at + way * length / 3
        canvas.tube(distance, at, to, radius, radius * 0.93)
        at, radius = to, radius * 0.93
    if depth:
        side = np.cross(way, rng.normal(size=3))
        side /= np.linalg.norm(side)
        for sign in (1, -1):
            turn = np.deg2rad(rng.uniform(22, 48)) * sign
            _branch(
                canvas, rng, distance, at, np.cos(turn) * way + np.sin(turn) * side,
                length * rng.uniform(0.65, 0.9), radius * rng.uniform(0.75, 0.95), depth - 1,
            )  # fmt: skip


def _vessels(canvas, rng, organ, tissue):
    """Hepatic veins and portal branches, not yet filled: dark, as dark as lesions."""
    veins = np.full(canvas.shape, 99, np.float32)
    top = np.array([-14, 22, 48]) + rng.uniform(-3, 3, 3)
    for target in ([-105, 20, 0], [-70, -40, 10], [-5, -50, 25], [-95, -5, 40]):
        way = np.array(target) + rng.uniform(-15, 15, 3) - top
        _branch(canvas, rng, veins, top, way / np.linalg.norm(way), rng.uniform(32, 42), rng.uniform(6.0, 7.5), 3)
    portal = np.full(canvas.shape, 99, np.float32)
    gate = np.array([-22, 4, -14]) + rng.uniform(-3, 3, 3)
    for target in ([-90, 10, -30], [-75, 0, 25], [-20, -45, 15], [-80, -35, -20]):
        way = np.array(target) + rng.uniform(-12, 12, 3) - gate
        _branch(canvas, rng, portal, gate, way / np.linalg.norm(way), rng.uniform(26, 36), rng.uniform(5.5, 7.0), 3)
    canvas.paint(organ * canvas.cover(portal), tissue - rng.uniform(28, 42))
    canvas.paint(organ * canvas.cover(veins), tissue - rng.uniform(36, 50))


def _lesions(canvas, rng, organ, tissue):
    """Two to six hypodense lesions of varied size, contrast, outline and margin; never touching each other."""
    room = ndimage.distance_transform_edt(organ > 0.5, sampling=canvas.spacing[::-1]).astype(np.float32)
    total, found = np.zeros(canvas.shape, np.float32), []
    x, y, z = canvas.straight
    for _ in range(rng.integers(2, 7)):
        radius = float(np.exp(rng.uniform(np.log(9), np.log(22))))
        contrast = float(rng.uniform(34, 64))
        draw = rng.random()
        outline = 0.18 * canvas.field(rng, 1.1 * radius) + 0.08 * canvas.field(rng, 0.6 * radius)
        stretch, edge, core = rng.uniform(0.8, 1.25, 3), rng.uniform(3, 7), rng.uniform(0, 18)
        places = np.flatnonzero(room > 0.6 * radius)
        if not len(places):
            continue
        k, j, i = np.unravel_index(places[int(draw * len(places))], canvas.shape)
        centre = np.array([x[k, j, i], y[k, j, i], z[k, j, i]])
        stretch = stretch / np.cbrt(stretch.prod())
        away = np.sqrt(sum(((c - m) / s) ** 2 for c, m, s in zip((x, y, z), centre, stretch)))
        distance = away - radius * (1 + outline)
        share = organ * canvas.cover(distance, edge)
        if (share[total > 0.02] > 0.02).any() or (share > 0.5).sum() < 27:
            continue
        room[away < radius * 1.6 + 8] = 0
        inner = canvas.cover(distance + 0.45 * radius, 6)  # the middle may be darker still
        canvas.paint(share, tissue - contrast - core * inner * (radius > 12))
        total = np.maximum(total, share)
        found.append(Lesion((-float(centre[0]), -float(centre[1]), float(centre[2])), radius, contrast))
    return found, total


def _around_liver(canvas, rng, organ):
    """What lies against the liver: gallbladder, inferior vena cava, aorta."""
    bladder = canvas.ellipsoid(
        np.array([-34, -28, -30]) + rng.uniform(-5, 5, 3), np.array([11, 20, 22]) * rng.uniform(0.8, 1.1, 3)
    )
    gall = canvas.cover(bladder)
    canvas.paint(gall, 60.0)
    canvas.paint(canvas.cover(bladder + 2), 8.0)
    cava = canvas.cover(canvas.ellipsoid((-17, 29, 0), (12, 9, None)))
    canvas.paint(cava, 58.0)
    aorta = canvas.cover(canvas.ellipsoid((13, 31, 0), (10, 10, None)))
    canvas.paint(aorta, rng.uniform(250, 300))
    organ *= (1 - gall) * (1 - cava) * (1 - aorta)


def _skeleton(canvas, rng, body):
    """Spine with discs and canal, back muscles, ribs."""
    x, y, z = canvas.x, canvas.y, canvas.z
    for side in (-1, 1):
        back = canvas.ellipsoid((side * 28, 74, 0), (23, 17, None))
        canvas.paint(canvas.cover(np.maximum(back, body["wall"])), 58 + 10 * canvas.field(rng, 7))
        psoas = np.maximum(canvas.ellipsoid((side * 30, 54, 0), (13, 15, None)), z + 25)
        canvas.paint(canvas.cover(psoas), 60.0)
    spine = canvas.ellipsoid((0, 59, 0), (21, 16, None))
    pitch, phase = rng.uniform(30, 34), rng.uniform(0, 30)
    level = np.abs((z + phase) % pitch - pitch / 2)  # 0 in the middle of a vertebra
    canvas.paint(canvas.cover(spine), 100.0)
    bone = np.maximum(spine, level - (pitch / 2 - 3))
    canvas.paint(canvas.cover(bone), 330.0)
    canvas.paint(canvas.cover(bone + 3), 185 + 25 * canvas.field(rng, 5))
    arch = np.maximum(canvas.ellipsoid((0, 78, 0), (17, 12, None)), level - 11)
    spinous = np.maximum(np.maximum(np.abs(x) - 3.5, np.abs(y - 93) - 11), level - 8)
    process = np.maximum(np.maximum(np.abs(x) - 34, np.abs(y - 71) - 4), level - 5)
    canvas.paint(canvas.cover(np.minimum(np.minimum(arch, spinous), process)), 330.0)
    canvas.paint(canvas.cover(canvas.ellipsoid((0, 78, 0), (9, 8, None))), 25.0)
    # Ribs run down from back to front: a shell of the wall, cut by tilted planes.
    pitch, tilt = rng.uniform(25, 29), rng.uniform(0.5, 0.65)
    along = np.abs((z + tilt * (60 - y) * -1 + 4 * np.sign(x) + phase) % pitch - pitch / 2)
    rib = np.maximum(np.abs(body["wall"] + 6) - 4.5, along - 6)
    rib = np.maximum(rib, np.maximum(-(y + 45 - 0.4 * np.abs(z)), -z - 75))
    canvas.paint(canvas.cover(rib), 380.0)
    canvas.paint(canvas.cover(rib + 3), 230.0)


def _acquire(canvas, rng):
    """Point spread, streaks, correlated noise, rounding to int16."""
    hu = ndimage.gaussian_filter(canvas.hu, (0.45, 0.55, 0.55), mode="nearest")
    x, y, z = canvas.straight
    inside = canvas.hu > -400
    for _ in range(10):  # streaks from dense bone
        angle, offset, height = rng.uniform(0, np.pi), rng.uniform(-60, 60), rng.uniform(z.min(), z.max())
        across = np.cos(angle) * x + np.sin(angle) * y - offset
        strength = rng.normal(0, 9) * np.exp(-(((z - height) / 5) ** 2))
        hu += inside * strength * np.exp(-((across / 4) ** 2))
    noise = rng.standard_normal(canvas.shape).astype(np.float32)
    noise = ndimage.gaussian_filter(noise, (0.35, 0.65, 0.65), mode="wrap")
    depth = 1 + 0.25 * np.exp(-((x / 70) ** 2 + (y / 50) ** 2))  # noisier in the middle of the body
    hu += noise / noise.std() * depth * rng.uniform(7, 10)
    return np.clip(np.rint(hu), -1024, 1500).astype(np.int16)


def checked_seeds(seeds) -> list[int]:
    """The seeds of phantoms to be written, each once; refused where there are none, or one is negative."""
    seeds = list(dict.fromkeys(seeds))
    if not seeds or min(seeds) < 0:
        raise MedXAIError(
            "There is no seed to make a phantom of; give --seeds FIRST LAST, FIRST at least 0 and below LAST."
        )
    return seeds
