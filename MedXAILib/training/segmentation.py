"""Training of a segmentation network on cases, ending in a model package."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ..errors import MedXAIError
from ..explanation import Point, Step
from ..package import Package, from_json
from ..volume import Volume
from .ability_loss import AbilityLoss
from .saving import checkpoints_at, new_network, weights_of, write_trained
from .settings import TrainingSettings

Case = tuple[Volume, Volume]  # image, and labels (0 = background) on the same grid


def train(cases: Iterable[Case], folder, fields: dict, settings: TrainingSettings) -> Generator[Step, None, Package]:
    """Train a segmentation network and write it as a package.

    Parameters
    ----------
    cases : iterable of (image, labels)
        `Volume` pairs on one grid, prepared as the package says. Every voxel of ``labels`` is an index into
        ``output.labels``. For a 2-D network volumes of one slice. Read once, and kept in memory in network units.
    folder : path
        The new model folder.
    fields : dict
        What ``model.json`` is to hold (``weights`` a ``.safetensors``); ``network`` says what is trained.
    settings : TrainingSettings

    Yields
    ------
    Step
        With a point of curve ``training`` (``loss``, ``ability loss`` where it is part of it, and ``dice`` of each foreground
        label over the last batch).

    Returns
    -------
    Package
        As written; ``checkpoints/epoch-K.safetensors`` beside it (``step-K`` where `steps` says how long) hold the weights on the way.
        The random state of torch is put back, also after a stop.
    """
    folder = Path(folder)
    if folder.exists():
        raise MedXAIError(f"The model folder '{folder}' exists already; choose another name or remove it first.")
    about = from_json({"schema": 1, "sha256": "0" * 64} | fields, folder)
    if about.task != "segmentation" or about.output.activation != "softmax" or about.network is None:
        raise MedXAIError("Training needs a segmentation package with softmax output that names its network.")
    state = torch.get_rng_state()
    try:
        yield Step(0.0, "Reading cases")
        held = []
        for image, labels in cases:
            held.append(network_input(image, labels, about))
            yield Step(0.0, f"Reading cases ({len(held)})")
        if not held:
            raise MedXAIError("There is no case to train on; give at least one image with its labels.")
        torch.manual_seed(settings.seed)
        network = new_network(about).to(settings.device)
        kept = {}
        yield from _optimise(network, held, about, settings, kept)
        weights = weights_of(network, settings.half)
    finally:
        torch.set_rng_state(state)

    package = write_trained(folder, fields, weights, kept)
    yield Step(1.0, "Trained")
    return package


def network_input(image: Volume, labels: Volume, about: Package):
    """One case as the network sees it: image (C, *spatial) float32 in network units, labels (*spatial) int64, padding 0."""
    from ..models import prepare

    if not image.same_grid(labels):
        raise MedXAIError(f"'{labels.name}' is not on the grid of '{image.name}'; resample it first.")
    values = np.unique(labels.array)
    if values[0] < 0 or values[-1] >= len(about.output.labels) or (values != values.astype(int)).any():
        raise MedXAIError(
            f"'{labels.name}' holds the values {', '.join(f'{v:g}' for v in values[:8])}; they must be indices into the labels "
            f"{', '.join(about.output.labels)}, from 0."
        )
    prepared = prepare(SimpleNamespace(package=about, device="cpu"), [image])
    target = np.zeros(prepared.shape, np.uint8)
    for value in values[values > 0]:
        target[prepared.mask_to_network(labels.array == value)] = value
    return prepared.x[0], torch.from_numpy(target)


def _optimise(network, cases, about, settings, kept):
    """Train; ``kept`` is filled with the weights on the way, by name."""
    classes = len(about.output.labels)
    loss_of = _loss(settings)
    adam = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    epoch = -(-len(cases) // settings.batch)  # steps
    steps = settings.steps or settings.epochs * epoch
    rates = (
        torch.optim.lr_scheduler.StepLR(adam, settings.halve_every * epoch, 0.5)
        if settings.halve_every
        else torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=settings.learning_rate / 100)
    )
    unit, word = (1, "step") if settings.steps else (epoch, "epoch")
    units = steps // unit
    keep = checkpoints_at(units, settings.checkpoints)
    batches = _Batches(cases, about, settings)
    network.train()
    with (
        AbilityLoss(network, settings.layers or None) if settings.ability_loss else contextlib.nullcontext() as ability
    ):
        for step in range(1, steps + 1):
            image, labels = (t.to(settings.device) for t in batches.next())
            adam.zero_grad(set_to_none=True)
            logits = network(image)
            if logits.shape[1] != classes:
                raise MedXAIError(
                    f"The network gives {logits.shape[1]} channels and the package names {classes} labels; make them agree."
                )
            loss, values = loss_of(logits, labels), {}
            if ability:
                extra = ability(logits, labels)
                loss, values["ability loss"] = loss + extra, float(extra.detach())
            loss.backward()
            adam.step()
            rates.step()
            if not torch.isfinite(loss):
                raise MedXAIError("The training loss is no longer finite; lower the learning rate.")
            found, true = logits.detach().argmax(1), labels[:, 0]
            values = {"loss": float(loss.detach())} | values
            for n in range(1, classes):
                values[f"dice {about.output.labels[n]}"] = dice(found == n, true == n)
            if step % unit == 0 and step // unit in keep:
                kept[f"{word}-{step // unit}"] = weights_of(network, settings.half)
            yield Step(step / (steps + 1), f"Training, loss {values['loss']:.3f}", (Point("training", step, values),))
    network.eval()


def _loss(settings):
    """Of logits (N, labels, *spatial) and label numbers (N, 1, *spatial)."""
    if settings.loss == "cross-entropy":
        return lambda logits, labels: torch.nn.functional.cross_entropy(logits, labels[:, 0])
    from monai.losses import DiceCELoss

    return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)


class _Batches:
    """Whole images, each once an epoch; or random patches, centred on a foreground label with a given probability (each label equally often)."""

    def __init__(self, cases, about, settings):
        self.cases, self.settings = cases, settings
        self.rng, self.left = np.random.default_rng([settings.seed, 1]), []
        if not settings.patch:
            shapes = sorted({tuple(image.shape[1:]) for image, _ in cases})
            if len(shapes) > 1:
                one, other = (" × ".join(map(str, shape)) for shape in (shapes[0], shapes[-1]))
                raise MedXAIError(
                    f"The images have different sizes ({one}, {other}); give them one size, or train on patches."
                )
            return
        self.places = []  # per label: (case, flat index of its voxels), for cases that have any
        for n in range(1, len(about.output.labels)):
            found = [(c, np.flatnonzero(labels.numpy().reshape(-1) == n)) for c, (_, labels) in enumerate(cases)]
            found = [(c, at.astype(np.int32)) for c, at in found if len(at)]
            if found:
                self.places.append(found)
        multiple = about.input.multiple_of
        shape = [min(image.shape[axis + 1] for image, _ in cases) for axis in range(len(multiple))]
        self.size = [max(m, min(settings.patch, n) // m * m) for m, n in zip(multiple, shape)]

    def next(self):
        if self.settings.patch:
            chosen = [self._patch() for _ in range(self.settings.batch)]
        else:
            self.left = self.left or list(self.rng.permutation(len(self.cases)))
            now, self.left = self.left[: self.settings.batch], self.left[self.settings.batch :]
            chosen = [self._varied(self.cases[n][0], self.cases[n][1][None]) for n in now]
        images, labels = zip(*chosen)
        return torch.stack(images), torch.stack(labels)

    def _patch(self):
        rng = self.rng
        if self.places and rng.random() < self.settings.foreground:
            places = self.places[rng.integers(len(self.places))]
            which, at = places[rng.integers(len(places))]
            centre = np.unravel_index(at[rng.integers(len(at))], self.cases[which][1].shape)
        else:
            which = int(rng.integers(len(self.cases)))
            centre = [rng.integers(n) for n in self.cases[which][1].shape]
        image, labels = self.cases[which]
        box = []
        for c, size, n in zip(centre, self.size, labels.shape):
            # The chosen voxel lies anywhere in the middle half of the patch.
            start = int(c) - size // 2 + int(rng.integers(-(size // 4), size // 4 + 1))
            start = min(max(start, 0), n - size)
            box.append(slice(start, start + size))
        return self._varied(image[(slice(None), *box)], labels[tuple(box)][None])

    def _varied(self, image, labels):
        rng = self.rng
        if self.settings.flip:
            axes = [axis for axis in range(1, labels.ndim) if rng.random() < 0.5]
            image, labels = image.flip(axes), labels.flip(axes)
        scale = 1 + self.settings.scale * rng.uniform(-1, 1)
        image = image * scale + self.settings.shift * rng.uniform(-1, 1)
        noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(self.settings.noise * rng.random())
        return image + torch.from_numpy(noise), labels.long()


def dice(a, b) -> float:
    """Dice of two boolean arrays or tensors; NaN where both are empty."""
    total = float(a.sum() + b.sum())
    return 2 * float((a & b).sum()) / total if total else float("nan")
