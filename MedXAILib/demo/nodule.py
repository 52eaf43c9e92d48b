"""CT-like patches of lung nodules made from a seed: the same nodule with a smooth and with a spiculated border, so that the cause of the class is known."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..errors import MedXAIError
from ..explanation import Step
from ..files import new_folder, write_csv
from ..volume import Volume
from .phantom import HELD_OUT, checked_seeds

EDGE, SIZE = 45.0, 64  # mm and pixels of a patch: Katzmann et al. 2021, section 3.1
PIXEL = EDGE / SIZE  # mm
SCAN = 256  # pixels of a scan's edge, of the same size as a patch's
CLASSES = ("smooth", "spiculated")
PATIENT = HELD_OUT  # the seed of the tutorial
REACH = 12.0  # mm beyond the nodule's border within which the two variants differ
_FINE = 2  # drawn with so many points along a pixel's edge
_PARTS = ("lung", "vessels", "nodule", "touching", "spicules", "wall", "noise")


@dataclass(frozen=True)
class Nodule:
    """A patch: ``image`` (int16, HU, one axial slice) and ``mask`` (uint8), the nodule without spicules, the same for both classes."""

    image: Volume
    mask: Volume
    spiculated: bool


@dataclass(frozen=True)
class Scan:
    """A slice with several nodules: ``masks`` by name, such as ``nodule 1 (spiculated)``; ``cause`` (float32, HU), the slice less the same one with smooth nodules alone."""

    image: Volume
    masks: dict[str, Volume]
    cause: Volume


@dataclass(frozen=True)
class _Shape:
    """What a nodule is apart from its class: mm, HU, and the harmonics of its border (amplitude, phase; the first is that of two per turn)."""

    at: tuple[float, float]
    radius: float
    level: float
    soft: float
    waves: tuple[tuple[float, float], ...]


class _Canvas:
    """HU on a fine grid; millimetres from the middle (x to the patient's left, y to the back)."""

    def __init__(self, size: int, lung: np.random.Generator):
        count = size * _FINE
        self.mm, self.half = PIXEL / _FINE, size * PIXEL / 2
        self.axis = (np.arange(count) + 0.5) * self.mm - self.half
        self.y, self.x = np.meshgrid(self.axis, self.axis, indexing="ij")
        tilt = lung.normal(0, 0.4, 2)  # HU per mm
        level = lung.normal(-850, 22) + np.clip(tilt[0] * self.x + tilt[1] * self.y, -40, 40)
        for scale, height in ((14.0, 12.0), (5.0, 14.0), (2.2, 16.0)):
            level = level + height * self.field(lung, scale)
        self.hu = level

    def field(self, rng, scale: float) -> np.ndarray:
        """Smooth noise of mean 0 and SD about 1 whose grain is ``scale`` mm wide."""
        nodes = rng.normal(size=(int(2 * self.half / scale) + 5,) * 2)
        at = (self.axis + self.half) / scale + 1.5
        return 1.6 * ndimage.map_coordinates(nodes, np.meshgrid(at, at, indexing="ij"), order=3, mode="reflect")

    def paint(self, share, level) -> None:
        """Cover ``share`` (0 to 1) of what is there with ``level`` HU."""
        self.hu = self.hu + share * (level - self.hu)

    def stroke(self, points, radii, shares, level: float) -> None:
        """Paint a bent line through ``points`` (n, 2); half width (mm) and share from the first to the last point."""
        points = np.asarray(points, float)
        margin = max(radii) + 2.0
        (x0, y0), (x1, y1) = points.min(0) - margin, points.max(0) + margin
        rows, columns = (slice(*np.searchsorted(self.axis, ends)) for ends in ((y0, y1), (x0, x1)))
        x, y = self.x[rows, columns], self.y[rows, columns]
        nearest, along = np.full(x.shape, np.inf), np.zeros(x.shape)
        for n, (a, b) in enumerate(pairwise(points)):
            d = b - a
            t = np.clip(((x - a[0]) * d[0] + (y - a[1]) * d[1]) / max(d @ d, 1e-9), 0, 1)
            far = np.hypot(x - a[0] - t * d[0], y - a[1] - t * d[1])
            closer = far < nearest
            nearest, along = np.where(closer, far, nearest), np.where(closer, (n + t) / (len(points) - 1), along)
        radius, share = (ends[0] + (ends[1] - ends[0]) * along for ends in (radii, shares))
        box = self.hu[rows, columns]
        self.hu[rows, columns] = box + share * _edge(nearest - radius, 0.2) * (level - box)

    def image(self, noise: np.random.Generator) -> np.ndarray:
        """HU of the pixels: blurred as by a scanner, with noise that has the reconstruction's grain; int16."""
        count = len(self.axis) // _FINE
        blurred = ndimage.gaussian_filter(self.hu, 0.45 / self.mm, mode="nearest")
        pixels = blurred.reshape(count, _FINE, count, _FINE).mean((1, 3))
        height = noise.uniform(20, 40)
        grain = ndimage.gaussian_filter(noise.normal(size=(count, count)), 0.55, mode="wrap")
        return np.clip(np.round(pixels + height * grain / 0.54), -1024, 3071).astype(np.int16)


def _edge(distance, soft: float) -> np.ndarray:
    """1 inside (distance in mm below 0), 0 outside, over about four times ``soft`` mm."""
    return 1 / (1 + np.exp(np.clip(distance / soft, -50, 50)))


def nodule(seed: int, spiculated: bool = True) -> Nodule:
    """One patch of 64 × 64 pixels, 45 × 45 mm.

    Parameters
    ----------
    seed : int
        Lung, vessels (some of which end at the nodule), chest wall, noise, and the nodule's place, size, density and lobulation: all the same for both classes.
    spiculated : bool
        Whether fine lines radiate from the nodule's border, which is then a little rough as well.

    Raises
    ------
    MedXAIError
        For a seed below 0.
    """
    rng = _streams(seed)
    canvas, shape = _Canvas(SIZE, rng["lung"]), _shape(rng["nodule"])
    _vessels(canvas, rng["vessels"])
    _nodule(canvas, shape, rng, spiculated)
    _wall(canvas, rng["wall"], shape)
    image = _volume(canvas.image(rng["noise"]), f"nodule-{seed}-{CLASSES[spiculated]}", "HU")
    return Nodule(image, _mask(image, shape, "nodule"), bool(spiculated))


def cause(seed: int) -> Volume:
    """What makes a nodule spiculated: that image less the smooth one; float32, HU."""
    smooth, spiculated = (nodule(seed, kind).image for kind in (False, True))
    return smooth.with_array(spiculated.array.astype(np.float32) - smooth.array, f"nodule-{seed}-cause")


def scan(seed: int) -> Scan:
    """A slice through a right lung, 256 × 256 pixels of the size of a patch's (180 × 180 mm), with three nodules, at least one of each class.

    The nodules lie so far apart, and from the edge of the image, that a patch of 45 × 45 mm around one holds no other; lung, vessels and chest wall are the same
    whatever the nodules are.
    """
    rng = _streams(seed)
    kinds = rng["nodule"].permutation([True, False, rng["nodule"].random() < 0.5])
    half = SCAN * PIXEL / 2
    chest = _Chest(np.random.default_rng([seed, 22, 0]), half)
    shapes = _apart(rng["nodule"], chest, half)
    pictures = []
    for drawn in (kinds, [False] * len(kinds)):
        rng = _streams(seed)
        canvas = _Canvas(SCAN, rng["lung"])
        _vessels(canvas, rng["vessels"], share=9.0)
        chest.vessels(canvas)
        for number, (shape, kind) in enumerate(zip(shapes, drawn)):
            own = {name: np.random.default_rng([seed, 22, number + 1, n]) for n, name in enumerate(_PARTS)}
            _nodule(canvas, shape, own, bool(kind))
        chest.paint(canvas)
        pictures.append(canvas.image(rng["noise"]))
    image = _volume(pictures[0], f"lung-{seed}", "HU")
    planted = pictures[0].astype(np.float32) - pictures[1]
    masks = {}
    for number, (shape, kind) in enumerate(zip(shapes, kinds), 1):
        name = f"nodule {number} ({CLASSES[int(kind)]})"
        masks[name] = _mask(image, shape, name)
    return Scan(image, masks, image.with_array(planted[None], f"lung-{seed}-cause"))


def _apart(rng, chest, half: float) -> list[_Shape]:
    """Three nodules, each with room for its patch in the image, away from each other and from the hilum."""
    found: list[_Shape] = []
    for _ in range(2000):
        at = rng.uniform(-half, half, 2)
        shape = _shape(rng, at)
        clear = chest.depth(*at) > shape.radius + 2 and np.hypot(*(at - chest.hilum)) > 40
        inside = np.abs(at).max() < half - EDGE / 2 - 1
        if clear and inside and all(np.hypot(*np.subtract(at, one.at)) > EDGE for one in found):
            found.append(shape)
        if len(found) == 3:
            break
    return found


class _Chest:
    """What surrounds the lung of a scan, and the vessels that spread in it from the hilum; drawn anew it is the same."""

    def __init__(self, rng, half: float):
        self.half, self.seed = half, int(rng.integers(2**32))
        self.middle = np.array([rng.uniform(-8, -2), rng.uniform(-3, 5)])
        self.axes = np.array([rng.uniform(70, 76), rng.uniform(78, 84)])
        self.hilum = self.middle + (0.80 * self.axes[0], rng.uniform(-10, 8))
        self.heart = self.middle + (1.02 * self.axes[0], rng.uniform(-34, -20))

    def depth(self, x, y):
        """Millimetres from the lung's border, about; above 0 in the lung."""
        u, v = (x - self.middle[0]) / self.axes[0], (y - self.middle[1]) / self.axes[1]
        wall = (1 - (np.abs(u) ** 2.4 + np.abs(v) ** 2.4) ** (1 / 2.4)) * self.axes.min()
        return np.minimum(wall, np.hypot(x - self.heart[0], (y - self.heart[1]) / 1.2) - 30)

    def vessels(self, canvas) -> None:
        """Tapering trees from the hilum outwards, and a fissure."""
        rng = np.random.default_rng([self.seed, 1])
        for turn in np.linspace(np.pi - 1.25, np.pi + 1.25, 9) + rng.normal(0, 0.12, 9):
            wide = rng.uniform(1.6, 3.2)
            stop = self.hilum + rng.uniform(55, 105) * np.array([np.cos(turn), np.sin(turn)])
            stem = _bent(self.hilum, stop, rng.normal(0, 0.06), 13)
            canvas.stroke(stem, (wide, 0.4), (0.95, 0.6), 35)
            for place in (3, 5, 7, 9):
                way = turn + rng.choice([-1, 1]) * rng.uniform(0.4, 0.9)
                last = stem[place] + rng.uniform(14, 34) * np.array([np.cos(way), np.sin(way)])
                first = (wide + (0.4 - wide) * place / 12) * 0.7
                canvas.stroke(_bent(stem[place], last, rng.normal(0, 0.1)), (first, 0.3), (0.9, 0.5), 35)
        across = self.middle + self.axes * ((-1.0, rng.uniform(-0.5, -0.1)), (0.8, rng.uniform(0.0, 0.4)))
        canvas.stroke(_bent(*across, 0.06, 13), (0.3, 0.3), (0.3, 0.3), -100)

    def paint(self, canvas) -> None:
        """Muscle, fat and ribs, and the mediastinum with the vessels of the hilum."""
        rng = np.random.default_rng([self.seed, 2])
        grain = canvas.field(rng, 9.0)
        depth = self.depth(canvas.x, canvas.y) + 0.6 * canvas.field(rng, 14.0)
        turn = np.arctan2(canvas.y - self.middle[1], canvas.x - self.middle[0])
        medial = np.exp(-0.5 * (turn / 0.75) ** 2)  # no ribs between lung and heart
        canvas.paint(_edge(depth, 0.3), 45 + 10 * grain)
        canvas.paint((1 - medial) * _edge(np.abs(depth + 3.5) - 1.2, 0.4), -90 + 10 * grain)
        ribs = _edge(np.abs(depth + 9.0) - 3.6, 0.4) * _edge(0.25 - np.cos(5 * turn + rng.uniform(0, 6.3)), 0.05)
        canvas.paint((1 - medial) * ribs, 380 + 60 * grain)
        canvas.paint((1 - medial) * _edge(depth + 19 + 2 * grain, 0.6), -100 + 10 * grain)
        near = np.hypot((canvas.x - self.hilum[0] - 4) / 1.1, (canvas.y - self.hilum[1]) / 1.6)
        canvas.paint(_edge(near - 7 - grain, 0.5), 40)


def _streams(seed: int) -> dict[str, np.random.Generator]:
    if seed < 0:
        raise MedXAIError(f"The phantom's seed is {seed}; use 0 or more.")
    return {name: np.random.default_rng([seed, 21, n]) for n, name in enumerate(_PARTS)}


def _volume(array, name, unit=""):
    """One axial slice: i to the patient's left, j to the back, the middle of the image at 0."""
    matrix = np.diag([-PIXEL, -PIXEL, 1.0, 1.0])
    matrix[:2, 3] = PIXEL * (len(array) - 1) / 2
    return Volume(array[None], matrix, name, unit)


def _shape(rng, at=None) -> _Shape:
    """A nodule of 8 to 22 mm; near the middle unless its place is given."""
    place = np.clip(rng.normal(0, 1.4, 2), -3, 3)
    radius = 0.5 * np.exp(rng.uniform(np.log(8), np.log(22)))
    level, soft = rng.uniform(-140, 70), rng.uniform(0.25, 0.55)
    lobes = rng.uniform(0.2, 1.0)
    waves = [(lobes * height * rng.normal(), rng.uniform(0, 2 * np.pi)) for height in (0.10, 0.055, 0.045, 0.03)]
    return _Shape(tuple(place if at is None else at), radius, level, soft, tuple(waves))


def _border(shape: _Shape, turn) -> np.ndarray:
    """Distance of the border from the nodule's middle (mm) in a direction (radians)."""
    return shape.radius * (1 + sum(a * np.cos(n * turn + b) for n, (a, b) in enumerate(shape.waves, 2)))


def _polar(shape: _Shape, x, y):
    return np.arctan2(y - shape.at[1], x - shape.at[0]), np.hypot(x - shape.at[0], y - shape.at[1])


def _mask(image, shape, name):
    axis = (np.arange(image.shape[-1]) + 0.5) * PIXEL - image.shape[-1] * PIXEL / 2
    turn, far = _polar(shape, *np.meshgrid(axis, axis))
    return image.with_array((far < _border(shape, turn)).astype(np.uint8)[None], name)


def _bent(start, stop, bow: float, count: int = 9) -> np.ndarray:
    """Points from ``start`` to ``stop`` on an arc whose middle lies ``bow`` (share of the length) to the side."""
    start, stop = np.asarray(start, float), np.asarray(stop, float)
    t = np.linspace(0, 1, count)[:, None]
    side = np.array([start[1] - stop[1], stop[0] - start[0]])
    return start + t * (stop - start) + 4 * bow * t * (1 - t) * side


def _vessels(canvas, rng, share: float = 1.0) -> None:
    """Vessels and bronchial walls that cross the picture, and round cross-sections."""
    half, level = canvas.half, rng.uniform(-20, 50)
    for _ in range(round(share * rng.integers(3, 8))):
        start = rng.uniform(-half, half, 2)
        turn, length = rng.uniform(0, 2 * np.pi), rng.uniform(8, 40)
        stop = start + length * np.array([np.cos(turn), np.sin(turn)])
        wide = np.exp(rng.uniform(np.log(0.3), np.log(1.3)))
        points = _bent(start, stop, rng.normal(0, 0.08))
        canvas.stroke(points, (wide, 0.5 * wide), (rng.uniform(0.6, 0.95), 0.4), level)
        if rng.random() < 0.5:  # a branch
            way = turn + rng.choice([-1, 1]) * rng.uniform(0.4, 1.0)
            first = points[rng.integers(2, 7)]
            last = first + rng.uniform(0.3, 0.6) * length * np.array([np.cos(way), np.sin(way)])
            canvas.stroke(_bent(first, last, rng.normal(0, 0.08)), (0.6 * wide, 0.3 * wide), (0.7, 0.3), level)
    for _ in range(round(share * rng.integers(1, 6))):
        at, wide = rng.uniform(-half, half, 2), np.exp(rng.uniform(np.log(0.5), np.log(2.0)))
        canvas.stroke([at, at + rng.normal(0, 0.6, 2)], (wide, wide), (0.9, 0.9), level)


def _nodule(canvas, shape: _Shape, rng: dict, spiculated: bool) -> None:
    """Vessels that end at the nodule, its spicules, and the nodule over both."""
    _touching(canvas, shape, rng["touching"])
    rough = _spicules(canvas, shape, rng["spicules"], spiculated)
    turn, far = _polar(shape, canvas.x, canvas.y)
    border = _border(shape, turn) + (rough(turn) if spiculated else 0)
    inside = rng["nodule"].uniform(10, 25) * canvas.field(rng["nodule"], 3.0)
    canvas.paint(_edge(far - border, shape.soft), shape.level + inside)


def _touching(canvas, shape, rng) -> None:
    """Up to three vessels, thin ones too, that end in the nodule: a line at its border alone tells nothing."""
    level = rng.uniform(-60, 40)
    for _ in range(rng.choice(4, p=(0.25, 0.35, 0.25, 0.15))):
        turn = rng.uniform(0, 2 * np.pi)
        start = shape.at + 0.7 * shape.radius * np.array([np.cos(turn), np.sin(turn)])
        way = turn + rng.normal(0, 0.5)
        stop = start + rng.uniform(8, 26) * np.array([np.cos(way), np.sin(way)])
        wide = np.exp(rng.uniform(np.log(0.3), np.log(1.1)))
        canvas.stroke(_bent(start, stop, rng.normal(0, 0.1)), (wide, 0.7 * wide), (rng.uniform(0.5, 0.95), 0.5), level)


def _spicules(canvas, shape, rng, drawn: bool):
    """Fine tapering lines that radiate from the border, and the border's roughness as a function of direction (mm)."""
    degree, count = rng.uniform(0.4, 1.0), int(rng.integers(10, 20))
    turns = (np.arange(count) + rng.uniform(-0.7, 0.7, count)) * 2 * np.pi / count + rng.uniform(0, 2 * np.pi)
    for turn in turns:
        way = turn + rng.normal(0, 0.15)
        length = rng.uniform(2.5, 9.0) * (0.4 + 0.6 * degree)
        border = float(_border(shape, turn))
        start = shape.at + (border - 1.0) * np.array([np.cos(turn), np.sin(turn)])
        stop = start + (length + 1.0) * np.array([np.cos(way), np.sin(way)])
        bow, wide, share = rng.normal(0, 0.05), rng.uniform(0.35, 0.6), degree * rng.uniform(0.7, 1.0)
        if drawn:
            canvas.stroke(_bent(start, stop, bow, 5), (wide, 0.4 * wide), (share, 0.5 * share), shape.level)
    waves = [(n, 0.22 * degree * rng.normal(), rng.uniform(0, 2 * np.pi)) for n in (9, 12, 15, 19)]
    return lambda turn: sum(height * np.cos(n * turn + phase) for n, height, phase in waves)


def _wall(canvas, rng, shape) -> None:
    """In a third of the patches: pleura and chest wall, at times at the nodule itself, with fat and a rib."""
    there, turn, gap = rng.random() < 0.33, rng.uniform(0, 2 * np.pi), rng.uniform(-1.0, 9.0)
    level, thick, bow = rng.uniform(20, 60), rng.uniform(1.5, 5.0), rng.uniform(60, 140)
    grain, rib = canvas.field(rng, 9.0), rng.random() < 0.6
    if not there:
        return
    away = shape.radius + gap - bow  # the wall's circle, seen from within
    centre = np.array(shape.at) + away * np.array([np.cos(turn), np.sin(turn)])
    depth = np.hypot(canvas.x - centre[0], canvas.y - centre[1]) - bow + 0.4 * grain
    canvas.paint(_edge(-depth, 0.3), level + 12 * grain)
    canvas.paint(_edge(np.abs(depth - 2.0 - thick / 2) - thick / 2, 0.4), -95 + 10 * grain)
    if rib:
        canvas.paint(_edge(np.abs(depth - 8.0 - thick) - 3.5, 0.4), 320 + 60 * grain)


def simple_statistics(image: Volume) -> dict[str, float]:
    """What can be said of a patch without looking at shapes: mean, SD, percentiles and shares of pixels by HU, in all of it and in its middle quarter."""
    found, quarter = {}, SIZE // 4
    for place, array in (("patch", image.array[0]), ("middle", image.array[0, quarter:-quarter, quarter:-quarter])):
        found |= {f"{place}: mean": float(array.mean()), f"{place}: SD": float(array.std())}
        shares = (1, 5, 10, 25, 50, 75, 90, 95, 99)
        found |= {f"{place}: percentile {q}": float(v) for q, v in zip(shares, np.percentile(array, shares))}
        for hu in range(-900, 101, 100):
            found[f"{place}: share above {hu} HU"] = float((array > hu).mean())
            found[f"{place}: share from {hu} to {hu + 200} HU"] = float(((array > hu) & (array < hu + 200)).mean())
    return found


def threshold(known: list[Nodule], held_out: list[Nodule]) -> dict:
    """What a threshold on one of `simple_statistics` reaches on held-out patches; statistic, threshold and direction are the best ones on those that are known."""
    sides = [[simple_statistics(one.image) for one in side] for side in (known, held_out)]
    true, best = np.array([one.spiculated for one in known]), (0.0, "", 0.0, 1)
    for name in sides[0][0]:
        values = np.array([row[name] for row in sides[0]])
        for cut in np.unique(np.quantile(values, np.linspace(0.01, 0.99, 99))):
            for sign in (1, -1):
                best = max(best, (float(np.mean((sign * values > sign * cut) == true)), name, float(cut), sign))
    _, name, cut, sign = best
    answers = np.array([sign * row[name] > sign * cut for row in sides[1]])
    right = float(np.mean(answers == [one.spiculated for one in held_out]))
    return {"accuracy": right, "accuracy_in_training": best[0], "statistic": name, "threshold": cut, "above": sign > 0}


def write_nodules(folder, seeds):
    """Write patches as a folder that every training and evaluation takes.

    Parameters
    ----------
    folder : path
        New. ``images`` holds both variants of every seed, ``masks`` the nodule, ``causes`` what makes it spiculated (float32, HU: the spiculated image less
        the smooth one). ``labels.csv`` has columns ``image``, ``label``, ``patient_id``, ``split`` (test for seeds of 1000 and above, which figures are made
        of, DESIGN section 5), ``mask`` and ``cause``: both variants of a training seed, one of a held-out seed (spiculated where it is even), so that its cases
        are independent. ``pairs.csv`` has the same columns and both variants of every seed.
    seeds : sequence of int

    Yields
    ------
    Step
    """
    from .. import io

    seeds = checked_seeds(seeds)
    columns = ("image", "label", "patient_id", "split", "mask", "cause")
    tables = {name: {column: [] for column in columns} for name in ("labels", "pairs")}
    with new_folder(folder) as place:
        for inner in ("images", "masks", "causes"):
            Path(place, inner).mkdir()
        for number, seed in enumerate(seeds):
            yield Step(number / len(seeds), f"Phantom {number + 1} of {len(seeds)}")
            held_out, name = seed >= HELD_OUT, f"nodule-{seed:04}"
            both = [nodule(seed, kind) for kind in (False, True)]
            for one in both:
                file = f"{name}-{CLASSES[one.spiculated]}.nrrd"
                io.write_volume(Path(place, "images", file), one.image)
                side = "test" if held_out else "train"
                row = (file, CLASSES[one.spiculated], name, side, f"masks/{name}.nrrd", f"causes/{name}.nrrd")
                there = ["pairs"] + ["labels"] * (not held_out or one.spiculated == (seed % 2 == 0))
                for table in there:
                    for column, value in zip(columns, row):
                        tables[table][column].append(value)
            smooth, spiculated = (one.image for one in both)
            planted = spiculated.array.astype(np.float32) - smooth.array
            io.write_volume(Path(place, "masks", f"{name}.nrrd"), both[0].mask)
            io.write_volume(Path(place, "causes", f"{name}.nrrd"), smooth.with_array(planted, f"{name}-cause"))
        for name, rows in tables.items():
            write_csv(Path(place, f"{name}.csv"), rows)
