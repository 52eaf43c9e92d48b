"""The controlled experiments of the DeepDream paper (Couteaux et al. 2019, sections 3.1 and 3.2) on phantoms: `medxai reproduce dream`."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .. import __version__, io
from ..errors import MedXAIError
from ..explanation import Explanation, Step, Steps, part
from ..features import compute
from ..features.line import LineTexture, line_texture
from ..files import plain
from ..methods.dream import dream
from ..models import load, prepare
from ..package import Package
from ..resume import Log
from ..settings import DreamSettings
from ..training.segmentation import dice, train
from ..training.settings import TrainingSettings
from ..volume import Volume
from .liver import COLUMNS, KINDS, MIDDLE, SHAPE, SMALLEST, SPACING, LiverSlice, liver_slices, parenchyma, tumour_slices
from .marked import ANGLE, LENGTH, mark
from .phantom import HELD_OUT
from .reproduce_settings import ReproduceSettings
from .reproduce_tables import ANGLES, result_of
from .train import WINDOW, threshold_on

LOG = "done.jsonl"  # networks and dreams that are finished, with their numbers
NOISE = (90.0, 16.0)  # HU, mean and SD of the white noise: those of a healthy liver
#: The features of the dreamed tumour, as the tables call them; in 2-D, one slice.
FEATURES = {
    "rms": "firstorder_RootMeanSquared", "mean": "firstorder_Mean", "diameter": "shape2D_MaximumDiameter", "elongation": "shape2D_Elongation",
}  # fmt: skip
#: Of every training. No mirroring: it would turn lines of 135° into lines of 45°.
TRAINING = dict(
    batch=8, patch=64, foreground=0.7, learning_rate=4e-3, halve_every=0, loss="dice+cross-entropy", noise=0.02, shift=0.05, scale=0.1,
    checkpoints=0,
)  # fmt: skip
LEVELS = 3


@dataclass(frozen=True)
class Network:
    """One training: kind of tumour, probability of the marking in per cent, seed."""

    kind: str
    p: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder; the network on unmarked real-like tumours belongs to both experiments."""
        return f"marked{self.p:g}-seed{self.seed}" if self.p else f"{self.kind}-seed{self.seed}"


def networks(settings: ReproduceSettings) -> list[Network]:
    """Every training that is asked for, each once."""
    found = {}
    if "marking" in settings.experiments:
        found |= dict.fromkeys(Network("real-like", p, seed) for seed in settings.seeds for p in settings.probabilities)
    if "tumours" in settings.experiments:
        found |= dict.fromkeys(Network(kind, 0.0, seed) for seed in settings.seeds for kind in KINDS)
    return list(found)


def reproduce_dream(folder, settings: ReproduceSettings) -> Steps:
    """Train networks whose habits are known, dream with each, and say whether the dreams show the habits.

    Parameters
    ----------
    folder : path
        An existing folder; what it holds of an earlier, stopped run with the same settings is not done again. Gets ``networks/NAME``, a model
        package each, ``dreams/NAME.nrrd`` of the pictures, and `LOG`.
    settings : ReproduceSettings

    Yields
    ------
    Step

    Returns
    -------
    Explanation
        Tables ``networks``, ``marking`` (one row per network), ``marking-by-p`` (Fig. 4c), ``tumours`` (one row per dream), ``tumour-effects``; curves
        ``characteristic`` (Fig. 4b) and ``rms``, ``mean``, ``diameter``, ``elongation`` (Fig. 5); scores with 95 % intervals.

    Raises
    ------
    MedXAIError
        When the folder holds another study.
    """
    began, folder = time.perf_counter(), Path(folder)
    (folder / "networks").mkdir(exist_ok=True)
    (folder / "dreams").mkdir(exist_ok=True)
    log = Log(folder / LOG, {"kind": "medxai-reproduce-dream", "version": __version__, **settings.to_json()}, of=("finished networks and dreams of another run", "settings"))  # fmt: skip
    done = {(row["what"], row["name"], row.get("start", "")): row for row in log.rows}
    resumed, data = len(done), _Data(settings)
    todo = [one for one in _work(settings, data) if one[1] not in done]
    ends = np.cumsum([0.0, *(one[0] for one in todo)]) * 0.98 / max(1e-9, sum(one[0] for one in todo))
    for number, (_, key, work) in enumerate(todo):
        what, name, start = key
        told = f"{number + 1 + resumed} of {len(todo) + resumed}: {what} {name}" + f" from {start}" * bool(start)
        row = {"what": what, "name": name, "start": start}
        try:
            row |= plain((yield from part(work(folder), ends[number], ends[number + 1], told)))
        except (
            MedXAIError
        ) as error:  # one network less, and told; the same command tries it again until the folder is complete
            if error.kind in ("disk", "memory"):
                raise
            row |= {"failed": error.message}
        else:
            log.add(row)
        done[key] = row
    yield Step(0.98, "Judging the threshold")
    about = yield from part(_about(settings, data, folder), 0.98, 0.99)
    yield Step(0.99, "Computing the statistics")
    result = result_of(networks(settings), done, settings, about)
    result.provenance = {
        "method": "reproduce-dream", "settings": settings.to_json(), "versions": {"MedXAI": __version__, "torch": torch.__version__}, "threads": torch.get_num_threads(),
        "source": "Couteaux et al. 2019, sections 3.1 and 3.2", "networks": [one.name for one in networks(settings)], "training": TRAINING,
        "noise_hu": list(NOISE), "angles": list(ANGLES), "resumed": resumed,
        "seconds_of_networks": _seconds(done, "network"),
        "seconds_of_dreams": _seconds(done, "dream"),
        "seconds": round(time.perf_counter() - began, 3),
    }  # fmt: skip
    return result


def _seconds(done, what) -> float:
    return round(sum(row.get("seconds", 0.0) for row in done.values() if row["what"] == what), 1)


def _work(settings, data):
    """All there is to do: (about how many seconds, key, generator function of the folder)."""
    each = networks(settings)
    for network in each:
        yield 0.05 * settings.steps, ("network", network.name, ""), partial(_network, data, network)
    for network in each:
        if "marking" in settings.experiments and network.kind == "real-like":
            for n in range(settings.starts):
                key = ("dream", network.name, f"noise {HELD_OUT + n}")
                yield 0.02 * settings.dream_steps, key, partial(_from_noise, data, network, n)
        if "tumours" in settings.experiments and not network.p:
            for n in range(settings.patients):
                key = ("dream", network.name, f"phantom {HELD_OUT + n}")
                yield 0.02 * settings.dream_steps, key, partial(_from_liver, data, network, n)


class _Data:
    """Slices, made when they are first asked for and kept; every method is a generator of steps that ends with them."""

    def __init__(self, settings):
        self.settings, self.kept, self.model = settings, {}, None

    def loaded(self, folder, network):
        """A trained network; the last one stays loaded, with what is known of its layers."""
        if self.model is None or self.model[0] != network:
            place = folder / "networks" / network.name
            self.model = network, load(Package.read(place).folder, device=self.settings.device)
        return self.model[1]

    def training(self, kind):
        return self._made(("training", kind), range(self.settings.cases), kind, {})

    def held_out(self, kind):
        seeds = range(HELD_OUT, HELD_OUT + self.settings.test_cases)
        return self._made(("held-out", kind), seeds, kind, {"most": 1})

    def healthy(self, n) -> LiverSlice:
        """The middle slice of a held-out patient without lesions."""
        if ("healthy", n) not in self.kept:
            self.kept["healthy", n] = liver_slices(HELD_OUT + n, False, 1)[0]
        return self.kept["healthy", n]

    def alone(self) -> Generator[Step, None, list[LiverSlice]]:
        """The held-out patients without their lesions, on the slices of `held_out`; ``tumour`` says where the lesions would be."""
        if "alone" not in self.kept:
            found = []
            for number in range(self.settings.test_cases):
                yield Step(number / self.settings.test_cases, "Making phantoms")
                ill = liver_slices(HELD_OUT + number, True, 1)[0]
                if ill.pixels >= SMALLEST:
                    found.append(replace(liver_slices(HELD_OUT + number, False, 1)[0], tumour=ill.tumour))
            self.kept["alone"] = found
        return self.kept["alone"]

    def _made(self, key, seeds, kind, options) -> Generator[Step, None, list[LiverSlice]]:
        if key not in self.kept:
            found = []
            for number, seed in enumerate(seeds):
                yield Step(number / len(seeds), "Making phantoms")
                found += tumour_slices([seed], kind, **options)
            if not found:
                raise MedXAIError(
                    f"None of the {len(seeds)} phantoms shows a tumour in its slices; raise --cases and --test-cases."
                )
            self.kept[key] = found
        return self.kept[key]


def fields(network: Network, settings: ReproduceSettings) -> dict:
    """What the package's ``model.json`` holds."""
    how = f", marked with lines of 135° with probability {network.p:g} %" if network.p else ""
    about = f"{network.kind} tumours{how}"
    return {
        "name": f"Liver phantom, {about}, training {network.seed}",
        "description": f"A small 2-D U-Net of MedXAI's liver phantom: {about}. Made to have a habit that is known; for experiments only, never for patients.",
        "license": "Apache-2.0",
        "source": "medxai reproduce dream --output FOLDER" + " --quick" * settings.quick,
        "task": "segmentation",
        "weights": "weights.safetensors",
        "network": {
            "name": "PlainUNet",
            "arguments": {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "filters": settings.filters, "levels": LEVELS},
        },
        "input": {
            "spatial_dims": 2, "channels": ["CT"], "orientation": "PL", "spacing": list(SPACING[:2]), "size": None,
            "multiple_of": 2 ** (LEVELS - 1), "intensity": {"kind": "window", "low": WINDOW[0], "high": WINDOW[1]},
        },
        "output": {"labels": ["background", "tumour"], "activation": "softmax"},
    }  # fmt: skip


def training_pair(one: LiverSlice, network: Network, number: int) -> tuple[Volume, Volume]:
    """Image and labels of one slice for one training, marked with the network's probability.

    Whether the slice ``number`` is marked, and how, is drawn from the training's seed alone: a slice marked at one probability is marked alike at
    every higher one.
    """
    rng = np.random.default_rng([network.seed, 7, number])
    if 100 * rng.random() >= network.p:
        return one.image, one.tumour
    return marked(one, rng), one.tumour


def marked(one: LiverSlice, rng: np.random.Generator) -> Volume:
    """The image of a slice with the marking on its tumours."""
    return one.image.with_array(mark(one.image.array[0], one.tumour.array[0] > 0, rng)[None])


def _network(data, network, folder):
    """Train one network (unless its package is there) and judge it."""
    began, settings = time.perf_counter(), data.settings
    place = folder / "networks" / network.name
    if not place.exists():
        slices = yield from part(data.training(network.kind), 0.0, 0.1)
        pairs = [training_pair(one, network, n) for n, one in enumerate(slices)]
        chosen = TrainingSettings(**TRAINING, steps=settings.steps, seed=network.seed, device=settings.device)
        yield from part(train(pairs, place, fields(network, settings), chosen), 0.1, 0.9)
    model, scores, more = data.loaded(folder, network), {}, {}
    kinds = KINDS if "tumours" in settings.experiments and not network.p else KINDS[:1]
    for kind in kinds:
        slices = yield from part(data.held_out(kind), 0.9, 1.0)
        scores[kind] = [_dice(model, one.image, one) for one in slices]
    if network.kind == "real-like" and "marking" in settings.experiments:
        slices = yield from part(data.held_out("real-like"), 0.9, 1.0)
        rngs = [np.random.default_rng([HELD_OUT, 7, n]) for n in range(len(slices))]
        scores["marked"] = [_dice(model, marked(one, rng), one) for one, rng in zip(slices, rngs)]
        slices = yield from part(data.alone(), 0.9, 1.0)
        rngs = [np.random.default_rng([HELD_OUT, 7, n]) for n in range(len(slices))]
        more["alone"] = [
            _share(model, marked(one, rng), one) - _share(model, one.image, one) for one, rng in zip(slices, rngs)
        ]
    return {"dice": scores, **more, "seconds": round(time.perf_counter() - began, 3)}


def _found(model, image) -> np.ndarray:
    """What the network takes for tumour, shape of the image."""
    prepared = prepare(model, [image])
    found = np.zeros(image.shape, bool)
    with model.frozen(), torch.no_grad():
        patch = prepared.mask(model.logits(prepared.x).argmax(1)[0].cpu().numpy() == 1, (0, 0))
    found[patch.box] = patch.array > 0
    return found


def _dice(model, image, one) -> float:
    return dice(_found(model, image), one.tumour.array > 0)


def _share(model, image, one) -> float:
    """The share of a zone that the network takes for tumour."""
    return float(_found(model, image)[one.tumour.array > 0].mean())


def noise_volume() -> Volume:
    """A slice whose mean and standard deviation the white noise of `dream` takes over: those of `NOISE`, on the slices' grid."""
    shape = (1, SHAPE[1], COLUMNS.stop - COLUMNS.start)
    sign = np.where(np.indices(shape).sum(0) % 2, 1.0, -1.0)
    return Volume(
        (NOISE[0] + NOISE[1] * sign).astype(np.float32),
        np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0]),
        "noise",
        "HU",
    )


def _dreamed(model, image, voxel, settings, **more):
    chosen = DreamSettings(
        neuron_ijk=voxel[::-1], steps=settings.dream_steps, step_size=settings.step_size, clamp=True, tolerance=0.0,
        line_angle=ANGLE, line_length=LENGTH, device=settings.device, **more,
    )  # fmt: skip
    return dream(model, [image], chosen)


def _from_noise(data, network, n, folder):
    """The dream of one network from one realisation of white noise, at the middle of the image."""
    began, settings, start = time.perf_counter(), data.settings, noise_volume()
    model = data.loaded(folder, network)
    voxel = (0, *MIDDLE)
    found = yield from _dreamed(
        model, start, voxel, settings, start="noise", seed=HELD_OUT + n, features=("line_texture",)
    )
    lines = {f"line_{angle}": [] for angle in ANGLES}
    for frame in _frames(found):
        for angle in ANGLES:
            lines[f"line_{angle}"].append(line_texture(frame, angle, LENGTH))
    if n == 0:
        _keep(folder, network, "noise", found)
    return {
        "response": found.curves["curves"].columns["response"].tolist(), **lines, "pixels": found.scores["mask_voxels"],
        "seconds": round(time.perf_counter() - began, 3),
    }  # fmt: skip


def _from_liver(data, network, n, folder):
    """The dream of one network from one healthy liver, at a voxel that is the same for every network."""
    began, settings = time.perf_counter(), data.settings
    healthy = data.healthy(n)
    model = data.loaded(folder, network)
    voxel = parenchyma(healthy)
    found = yield from _dreamed(model, healthy.image, voxel, settings, features=tuple(FEATURES.values()))
    columns = found.curves["curves"].columns
    if n == 0:
        _keep(folder, network, "liver", found)
    return {
        "response": columns["response"].tolist(), **{name: columns[full].tolist() for name, full in FEATURES.items()}, "pixels": found.scores["mask_voxels"],
        "voxel": list(voxel), "seconds": round(time.perf_counter() - began, 3),
    }  # fmt: skip


def _frames(found: Explanation):
    """Every step of a dream as a whole image, (k, j, i); what lies outside the kept box never changed."""
    last = found.maps["dream"].volume
    whole = last.array.copy()
    for _, frame in found.sequences["steps"].items:
        start = np.linalg.solve(last.ijk_to_ras, frame.ijk_to_ras[:, 3])[2::-1].round().astype(int)
        whole[tuple(slice(a, a + m) for a, m in zip(start, frame.shape))] = frame.array
        yield whole


def _keep(folder, network, start, found) -> None:
    """The dream and its mask for the picture."""
    for name, volume in (("dream", found.maps["dream"].volume), ("mask", found.masks["mask"])):
        io.write_volume(folder / "dreams" / f"{network.name}-{start}-{name}.nrrd", volume)


def _about(settings, data, folder):
    """What the tables tell of the data: a threshold on intensity, the features of true tumours, the line texture of true markings."""
    file = folder / "data.json"
    if file.exists():
        return json.loads(file.read_text("utf-8"))
    about = {"threshold": {}, "tumours": {}}
    for kind in KINDS if "tumours" in settings.experiments else KINDS[:1]:
        known = yield from data.training(kind)
        slices = yield from data.held_out(kind)
        pairs = [
            [(one.image.array[0], one.liver.array[0] + one.tumour.array[0]) for one in some]
            for some in (known[:60], slices)
        ]
        about["threshold"][kind] = threshold_on(*pairs)["lesion_dice"]
        yield Step(0.5, "Features of the held-out tumours")
        rows = []
        for one in slices:
            for tumour in _parts(one.tumour):
                values = compute(one.image, tumour, tuple(FEATURES.values()), ndim=2)
                rows.append([float(values[full]) for full in FEATURES.values()])
        about["tumours"][kind] = dict(zip(FEATURES, np.nanmean(rows, 0).tolist()))
    if "marking" in settings.experiments:
        slices = yield from data.held_out("real-like")
        added = []
        for n, one in enumerate(slices):
            texture = marked(one, np.random.default_rng([HELD_OUT, 7, n])).array - one.image.array
            added.append([LineTexture(texture, angle, LENGTH).value for angle in ANGLES])
        about["marking"] = dict(zip(map(str, ANGLES), np.mean(added, 0).tolist()))
    new = file.with_suffix(".new")
    new.write_text(json.dumps(about), "utf-8")
    new.replace(file)  # at once: a run that is killed leaves no half of it
    return about


def _parts(mask: Volume):
    """Each tumour of a mask by itself."""
    from scipy import ndimage

    labels, count = ndimage.label(mask.array[0])
    for n in range(1, count + 1):
        yield mask.with_array((labels == n)[None].astype(np.uint8))
