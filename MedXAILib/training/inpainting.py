"""Training of an inpainter in the two phases of Liu et al. 2018, which goes on after a stop to the very same weights."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MedXAIError
from ..explanation import Point, Step
from ..package import Package, from_json
from ..resume import Log
from .holes import random_holes
from .inpainting_losses import FeatureLoss, inpainting_losses, weighted
from .saving import (
    checkpoints_at,
    new_network,
    read_state,
    read_weights,
    save_weights,
    state_told,
    weights_of,
    write_state,
    write_trained,
)
from .settings import InpainterSettings


class Healthy(NamedTuple):
    """One image (C, *spatial) in network units; ``units`` (4): see `FeatureLoss`, for the network whose features count."""

    x: Tensor
    units: Tensor


def train_inpainter(
    images: Sequence[Healthy],
    kept_back: Sequence[Healthy],
    folder,
    fields: dict,
    settings: InpainterSettings,
    shape: Sequence[int],
    state,
    log: Log,
    features: FeatureLoss | None = None,
) -> Generator[Step, None, Package]:
    """Train one inpainter and write it as a package.

    Parameters
    ----------
    images, kept_back : sequence of Healthy
        To train on, and to judge after each epoch; larger ones than ``shape`` give patches.
    folder : path
        The new model folder.
    fields : dict
        What ``model.json`` is to hold; ``network`` says what is trained.
    settings : InpainterSettings
    shape : sequence of int
        Spatial shape of what the network sees.
    state : path
        A folder for what is needed to go on after a stop. What is there of an earlier start is gone on from.
    log : Log
        Gets one row for each epoch: phase, epoch, loss and its parts over training and over the images kept back, seconds.
    features : FeatureLoss, optional
        Perceptual and style loss.

    Yields
    ------
    Step
        With a point of curve ``training`` at the end of each epoch.

    Returns
    -------
    Package
        With ``checkpoints/epoch-K.safetensors`` (K counts over both phases as they were planned). The random state of torch is put back.

    Notes
    -----
    Phase 2 begins with the weights of phase 1 and a new optimiser; the batch normalisation of the encoder then uses the statistics it has
    and is trained no more. With ``patience`` a phase may end early; phase 2 begins with, and the package holds, the weights with the smallest loss
    on the images kept back. Everything random in an epoch (order, patches, mirroring, holes) comes from generators seeded with the seed, phase, epoch and image. So
    weights, optimiser and the best weights are all that is kept, and on a CPU a training that went on is equal to the bit to one never stopped.
    """
    state, random = Path(state), torch.get_rng_state()
    file, best_file = state / "state.safetensors", state / "best.safetensors"
    try:
        with contextlib.nullcontext() if features is None else features.model.frozen():
            torch.manual_seed(settings.seed)
            about = from_json({"schema": 1, "sha256": "0" * 64} | fields, Path(folder))
            module = new_network(about).to(settings.device)
            told = state_told(file)
            begun, best = told.get("phase", 1), told.get("best")
            planned = settings.epochs + settings.second_epochs
            keep = checkpoints_at(planned, settings.checkpoints)
            work = _Work(module, images, kept_back, settings, tuple(shape), features)
            for phase, (epochs, rate) in enumerate(_phases(settings), 1):
                if phase < begun:
                    continue
                done = since = 0
                adam = work.begin(phase, rate)
                if phase == begun:
                    read_state(file, module, adam)
                    done, since = told.get("epoch", 0), told.get("since", 0)
                elif settings.patience:
                    module.load_state_dict(read_weights(best_file))
                for epoch in range(done + 1, epochs + 1):
                    if settings.patience and since >= settings.patience:
                        break
                    number = epoch + (phase - 1) * settings.epochs
                    row = yield from work.epoch(adam, phase, epoch, (number - 1) / planned, 1 / planned)
                    log.add(row)
                    since, better = since + 1, best is None or row["kept_back_loss"] < best
                    state.mkdir(parents=True, exist_ok=True)  # not before there is something to keep
                    if better:
                        best, since = row["kept_back_loss"], 0
                        if settings.patience:
                            save_weights(weights_of(module, False), best_file)
                    if number in keep:
                        save_weights(weights_of(module, settings.half), state / f"epoch-{number}.safetensors")
                    now = {"phase": phase, "epoch": epoch, "best": best, "since": since}
                    write_state(file, module, adam, now)  # last: what it says is finished is there
                    values = {name: row[name] for name in ("loss", "kept_back_loss", "hole", "kept_back_hole")}
                    text = f"phase {phase}, epoch {epoch} of {epochs}: loss {row['loss']:.3f}, on images kept back {row['kept_back_loss']:.3f}"
                    yield Step(number / planned, text, (Point("training", number, values),))
            if settings.patience:
                module.load_state_dict(read_weights(best_file))
            kept = {path.stem: read_weights(path) for path in sorted(state.glob("epoch-*.safetensors"))}
            return write_trained(folder, fields, weights_of(module, settings.half), kept)
    finally:
        torch.set_rng_state(random)


def _phases(settings):
    """Epochs and learning rate of each phase."""
    found = [(settings.epochs, settings.learning_rate)]
    return found + [(settings.second_epochs, settings.second_learning_rate)] * (settings.second_epochs > 0)


def hold_encoder(module: nn.Module) -> None:
    """Phase 2: the encoder's batch normalisation uses the statistics it has, and its scale and shift are trained no more."""
    for level in module.encoder:
        level.norm.eval().requires_grad_(False)


class _Work:
    """The network, its images, and one epoch over them."""

    def __init__(self, module, images, kept_back, settings, shape, features):
        self.module, self.images, self.kept_back = module, images, kept_back
        self.settings, self.shape, self.features = settings, shape, features
        self.phase = 1

    def begin(self, phase, rate):
        self.phase = phase
        self._training()
        return torch.optim.Adam([p for p in self.module.parameters() if p.requires_grad], lr=rate)

    def _training(self):
        self.module.train()
        if self.phase == 2:
            hold_encoder(self.module)

    def epoch(self, adam, phase, epoch, start, share):
        """Every image once; the row for the log."""
        settings, count = self.settings, len(self.images)
        began, total = time.monotonic(), {}
        order = np.random.default_rng([settings.seed, 3, phase, epoch]).permutation(count)
        steps = -(-count // settings.batch)
        self._training()
        for step in range(steps):
            chosen = order[step * settings.batch : (step + 1) * settings.batch]
            rngs = [np.random.default_rng([settings.seed, 6, phase, epoch, int(n)]) for n in chosen]
            drawn = [drawn_case(self.images[n].x, self.shape, settings, rng) for n, rng in zip(chosen, rngs)]
            true, hole = (torch.stack(some).to(settings.device) for some in zip(*drawn))
            adam.zero_grad(set_to_none=True)
            parts = self._parts(true, hole, torch.stack([self.images[n].units for n in chosen]))
            loss = weighted(parts, settings)
            _require_finite(float(loss.detach()), "training loss")
            loss.backward()
            adam.step()
            _add(total, {"loss": loss} | parts, len(chosen) / count)
            yield Step(start + share * step / steps, f"phase {phase}, epoch {epoch}")
        held = {f"kept_back_{name}": value for name, value in self._judged().items()}
        seconds = round(time.monotonic() - began, 3)
        return {"phase": phase, "epoch": epoch} | total | held | {"seconds": seconds}

    def _judged(self):
        """Loss and its parts over the images kept back, always with the same holes."""
        total = {}
        self.module.eval()
        with torch.no_grad():
            for n, one in enumerate(self.kept_back):
                true, hole = (
                    t[None].to(self.settings.device) for t in kept_back_case(one.x, self.shape, self.settings, n)
                )
                parts = self._parts(true, hole, one.units[None])
                _add(total, {"loss": weighted(parts, self.settings)} | parts, 1 / len(self.kept_back))
        _require_finite(total["loss"], "loss on the images kept back")
        return total

    def _parts(self, true, hole, units):
        made = self.module(true, (~hole).float())
        parts = inpainting_losses(made, true, hole)
        return parts if self.features is None else parts | self.features(made, true, hole, units)


def drawn_case(x: Tensor, shape, settings: InpainterSettings, rng, vary: bool = True) -> tuple[Tensor, Tensor]:
    """A patch (C, *shape) of an image, mirrored where the settings say so and ``vary``, and its holes (1, *shape), bool."""
    x = x[(slice(None), *(slice(a, a + s) for a, s in ((int(rng.integers(n - s + 1)), s) for n, s in zip(x.shape[1:], shape))))]  # fmt: skip
    if vary and settings.flip:
        x = x.flip([axis for axis in range(1, x.ndim) if rng.random() < 0.5])
    return x, torch.from_numpy(random_holes(shape, settings, rng))[None]


def kept_back_case(x: Tensor, shape, settings: InpainterSettings, number: int) -> tuple[Tensor, Tensor]:
    """As `drawn_case`, the same every time."""
    return drawn_case(x, shape, settings, np.random.default_rng([settings.seed, 5, number]), vary=False)


def hole_errors(module: nn.Module, kept_back: Sequence[Healthy], shape, settings: InpainterSettings) -> dict[str, list]:
    """Mean absolute error in the holes of each image kept back, in network units: inpainted, and filled with the mean of what is known of it."""
    found = {"inpainted": [], "mean": []}
    module.eval()
    with torch.no_grad():
        for n, one in enumerate(kept_back):
            true, hole = (t[None].to(settings.device) for t in kept_back_case(one.x, shape, settings, n))
            made = module(true, (~hole).float())
            inside = hole.expand_as(true)
            mean = torch.stack([c[~h].mean() for c, h in zip(true[0], inside[0])]).reshape(1, -1, *(1,) * len(shape))
            for name, values in (("inpainted", made), ("mean", mean)):
                error = float((values - true).abs()[inside].mean())
                found[name].append(error if math.isfinite(error) else math.nan)
    return found


def _require_finite(loss, what):
    if not math.isfinite(loss):
        raise MedXAIError(f"The {what} is no longer finite; lower the learning rate (--learning-rate).")


def _add(total, parts, share):
    for name, value in parts.items():
        total[name] = total.get(name, 0.0) + float(value.detach()) * share
