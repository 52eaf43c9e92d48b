"""Training G⁺ and G⁻ against two discriminators and a frozen classifier (Katzmann et al. 2021, section 2.5), to the very same weights also after a stop."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import MedXAIError
from ..explanation import Point, Step
from ..models.generators import GeneratorPair
from ..models.model import Model
from ..models.sides import Sides
from ..resume import Log
from ..settings import CycleTrainingSettings
from .cycle_losses import activation_loss, keeping_losses
from .discriminator import PairDiscriminator
from .saving import read_kept, read_state, save_weights, state_told, weights_of, write_state

STATE, BEST = "state.safetensors", "best.safetensors"
LOSSES = ("generator", "discriminator", "cycle", "similarity", "activation", "adversarial")
JUDGED = ("probability", "probability_positive", "probability_negative", "flip_rate", "cycle_error", "score")


def train_pair(
    model: Model,
    sides: Sides,
    images: Sequence[Tensor],
    kept_back: Tensor,
    state,
    settings: CycleTrainingSettings,
    data_range: float,
    log: Log,
    shape: Sequence[int],
    sample: Callable[[GeneratorPair, int], None] | None = None,
    seeds: tuple[int, int] = (0, 1),
) -> Generator[Step, None, None]:
    """Train until the validation score is no longer better, or the epochs are over.

    Parameters
    ----------
    model : Model
        The classifier; it is held still, and left as it was.
    sides : Sides
    images : sequence of Tensor, shape (C, *spatial) each
        In network units; larger ones than ``shape`` give patches at random places.
    kept_back : Tensor, shape (N, C, *shape)
        To judge each epoch.
    state : path
        A folder for what is needed to go on after a stop (`STATE`) and the weights with the best score (`BEST`). What is there of an earlier start is gone
        on from.
    settings : CycleTrainingSettings
    data_range : float
        Of the images in network units.
    log : Log
        Gets one row for each epoch: epoch, `LOSSES` (means over its images), `JUDGED`, similarity kept back, seconds.
    shape : sequence of int
        Spatial shape of what the networks see.
    sample : callable, optional
        Called with the generators and the epoch at the end of each.
    seeds : (int, int)
        What the weights of G⁺ and its discriminator, and of G⁻ and its own, are drawn with, beside the seed of the settings. With a negated classifier and
        exchanged seeds the generators change places.

    Yields
    ------
    Step
        After each step of the optimiser; at the end of each epoch with points of the curves ``training`` and ``validation``.

    Raises
    ------
    MedXAIError
        When a loss is no longer finite: the weights of the last finished epoch are kept.

    Notes
    -----
    A step (section 2.5: first the discriminators, then the generators) does no pass twice: G±(x) of the generators' step are also what the discriminators are shown,
    since neither has changed in between; both classes go through the classifier in one batch; the statistics of x for SSIM are shared by its four comparisons. The
    classifier computes in 32 bits, and so do all losses; ``bfloat16`` concerns the convolutions of generators and discriminators.

    All that is random in an epoch comes from a generator seeded with the seed and the epoch. So weights, moments and the best weights are all that is
    kept, and on a CPU, with the same number of threads, a training that went on is equal to the bit to one never stopped.
    """
    state = Path(state)
    with model.frozen():
        work = Trainer(model, sides, images, kept_back, settings, data_range, tuple(shape), seeds)
        told = read_state(state / STATE, work.networks, work.adam)
        done, best, since = told.get("epoch", 0), told.get("best"), told.get("since", 0)
        for epoch in range(done + 1, settings.epochs + 1):
            if settings.patience and since >= settings.patience:
                break
            row = yield from work.epoch(epoch)
            since, better = since + 1, best is None or row["score"] < best
            if better:
                best, since = row["score"], 0
            state.mkdir(parents=True, exist_ok=True)  # not before there is something to keep
            log.add(row)
            if better:
                save_weights(weights_of(work.kept, False), state / f"{BEST}.new", {"epoch": epoch})
                (state / f"{BEST}.new").replace(state / BEST)
            now = {"epoch": epoch, "best": best, "since": since}
            write_state(state / STATE, work.networks, work.adam, now)  # last: what it says is finished is there
            if sample:
                with torch.no_grad():
                    sample(work.kept, epoch)
            points = tuple(Point(curve, epoch, {name: row[name] for name in names}) for curve, names in (("training", LOSSES), ("validation", JUDGED)))  # fmt: skip
            text = (
                f"epoch {epoch} of {settings.epochs} at most: flip rate {row['flip_rate']:.2f}, score {row['score']:.3f}"
                + " (best)" * better
            )
            yield Step(epoch / settings.epochs, text, points)


def best_weights(state) -> tuple[dict[str, Tensor], int]:
    """Of the generators, with the best validation score so far, and of which epoch they are.

    Raises
    ------
    MedXAIError
        When the file is damaged.
    """
    path = Path(state) / BEST
    return read_kept(path), state_told(path)["epoch"]


class Shake(NamedTuple):
    """How images are shaken before the classifier looks at them: a shift in voxels, beyond the border its last voxels, and noise added."""

    shift: tuple[int, ...]
    noise: Tensor | None  # (N, C, *spatial), in network units

    def __call__(self, x: Tensor) -> Tensor:
        if any(self.shift):
            reach = [abs(one) for one in self.shift]
            x = functional.pad(x, [n for one in reversed(reach) for n in (one, one)], mode="replicate")
            x = x[
                (..., *(slice(n + s, x.shape[axis] - n + s) for axis, (n, s) in enumerate(zip(reach, self.shift), 2)))
            ]
        return x if self.noise is None else x + self.noise


def generator_losses(model, sides: Sides, x, made, back, settings, data_range: float, shake=None) -> dict[str, Tensor]:
    """``cycle``, ``similarity`` and ``activation`` (eq. 1, 2 and 4), each the sum of both generators' and not yet weighted; see `keeping_losses`."""
    seen = made if shake is None else [shake(one) for one in made]
    up, down = model.logits(torch.cat([one.float() for one in seen])).split([len(one) for one in seen])
    odds = sides.log_odds(model, up), sides.log_odds(model, down, False)
    similarity, cycle = keeping_losses(x, made, back, settings, data_range)
    return {"cycle": cycle, "similarity": similarity, "activation": sum(activation_loss(one, settings.activation) for one in odds)}  # fmt: skip


def weighted(parts: dict[str, Tensor], settings) -> Tensor:
    """What the generators minimise, or, without the discriminators' part, what the validation goes by."""
    return sum(getattr(settings, f"{name}_weight") * value for name, value in parts.items())


class Trainer:
    """The networks, their optimiser and images, and one epoch."""

    def __init__(self, model, sides, images, kept_back, settings, data_range, shape, seeds):
        self.model, self.sides, self.settings, self.range, self.shape = model, sides, settings, data_range, shape
        self.images, self.kept_back, self.device = images, kept_back, model.device
        about = model.package.input
        dims, channels = about.spatial_dims, len(about.channels)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            self.pair = GeneratorPair(dims, channels, settings.width, settings.residual)
            self.judges = nn.ModuleList()
            for seed, generator in zip(seeds, (self.pair.positive, self.pair.negative)):
                torch.manual_seed(int(np.random.default_rng([settings.seed, 9, seed]).integers(2**63)))
                generator.draw()
                self.judges.append(PairDiscriminator(dims, channels, settings.width, settings.tied))
        self.networks = nn.ModuleDict({"pair": self.pair, "judges": self.judges})
        self.kept = self.pair  # the generators that are judged and kept
        if settings.average:
            self.kept = self.networks["average"] = copy.deepcopy(self.pair).requires_grad_(False)
        layout = torch.channels_last if dims == 2 else torch.channels_last_3d
        self.networks.to(self.device, memory_format=layout)
        groups = [
            {"params": [*self.pair.parameters()], "lr": settings.learning_rate},
            {"params": [*self.judges.parameters()], "lr": settings.discriminator_rate},
        ]
        self.adam = torch.optim.Adam(groups, betas=(0.5, 0.999))
        self.narrow = settings.precision == "bfloat16" or (settings.precision == "auto" and self.device.type == "cuda")

    def _autocast(self):
        if not self.narrow:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def epoch(self, epoch):
        """Every image once, and the validation; the row for the log."""
        settings, count = self.settings, len(self.images)
        rng = np.random.default_rng([settings.seed, 3, epoch])
        began, total, steps = time.monotonic(), dict.fromkeys(LOSSES, 0.0), -(-count // settings.batch)
        order, others = rng.permutation(count), rng.permutation(count)
        self.networks.train()
        for step in range(steps):
            chosen = slice(step * settings.batch, (step + 1) * settings.batch)
            x, other = (self._batch(numbers[chosen], rng) for numbers in (order, others))
            swapped = torch.from_numpy(rng.random(len(x)) < 0.5).to(self.device)
            parts = self.step(x, other, swapped, self.shake(x, rng))
            values = torch.stack([parts[name].detach() for name in LOSSES]).tolist()
            if not all(map(math.isfinite, values)):
                kept = (
                    f"; the weights of {epoch - 1} finished epochs are kept (--finish makes an explainer of the best)"
                    if epoch > 1
                    else ""
                )
                raise MedXAIError(
                    f"A loss is no longer finite in epoch {epoch}{kept}. Begin anew with another --output and lower learning rates (--learning-rate, --discriminator-rate)"
                    + (", or in 32 bits (--precision float32)." if self.narrow else ".")
                )
            for name, value in zip(LOSSES, values):
                total[name] += value * len(x) / count
            yield Step((epoch - 1 + step / steps) / settings.epochs, f"epoch {epoch}")
        return {"epoch": epoch} | total | self.judged() | {"seconds": round(time.monotonic() - began, 3)}

    def _batch(self, numbers, rng):
        found = [cut(self.images[n], self.shape, rng) for n in numbers]
        if self.settings.flip:
            found = [one.flip([axis for axis in range(1, one.ndim) if rng.random() < 0.5]) for one in found]
        return torch.stack(found).to(self.device)

    def shake(self, x: Tensor, rng) -> Shake | None:
        """How a batch is shaken before the classifier looks at it; None: not at all."""
        settings = self.settings
        if not settings.jitter and not settings.noise:
            return None
        shift = tuple(int(rng.integers(-settings.jitter, settings.jitter + 1)) for _ in self.shape)
        noise = (
            rng.standard_normal(x.shape, np.float32) * np.float32(settings.noise * self.range)
            if settings.noise
            else None
        )
        return Shake(shift, None if noise is None else torch.from_numpy(noise).to(self.device))

    def step(self, x: Tensor, other: Tensor, swapped: Tensor, shake: Shake | None = None) -> dict[str, Tensor]:
        """One step of the discriminators and one of the generators; their losses."""
        settings, pair, adam = self.settings, self.pair, self.adam
        adversarial = settings.adversarial_weight > 0
        with self._autocast():
            made = pair.positive(x), pair.negative(x)
        fooled = judged = torch.zeros((), device=x.device)
        if adversarial:
            judged = self._judges_step(made, other, swapped)
        with self._autocast():
            back = pair.negative(made[0]), pair.positive(made[1])
        parts = generator_losses(self.model, self.sides, x, made, back, settings, self.range, shake)
        if adversarial:
            self.judges.requires_grad_(False)
            with self._autocast():
                for judge, fake in zip(self.judges, made):
                    with torch.no_grad():
                        real = judge.features(other)
                    fooled = fooled + judge.loss(real, judge.features(fake), swapped, inverted=True)
            self.judges.requires_grad_(True)
            parts = parts | {"adversarial": fooled}
        loss = weighted(parts, settings)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        self._clip(self.pair)
        adam.step()
        adam.zero_grad(set_to_none=True)
        if settings.average:
            with torch.no_grad():
                for mean, value in zip(self.kept.parameters(), pair.parameters()):
                    mean.lerp_(value, 1 - settings.average)
        return {"generator": loss, "discriminator": judged, "adversarial": fooled} | parts

    def _judges_step(self, made, other, swapped):
        loss = 0.0
        self.adam.zero_grad(set_to_none=True)
        with self._autocast():
            for judge, fake in zip(self.judges, made):
                features = judge.features(torch.cat([other, fake.detach()]))
                real, fakes = zip(*(one.split([len(other), len(fake)]) for one in features))
                loss = loss + judge.loss(real, fakes, swapped)
        loss.backward()
        for judge in self.judges:
            self._clip(judge)
        self.adam.step()  # the generators have no gradients now, so they stay
        self.adam.zero_grad(set_to_none=True)
        return loss

    def _clip(self, network):
        if self.settings.clip:
            nn.utils.clip_grad_norm_(network.parameters(), self.settings.clip)

    def judged(self) -> dict[str, float]:
        """What the generators do to the images kept back."""
        model, sides, settings = self.model, self.sides, self.settings
        total, count = {}, len(self.kept_back)
        self.networks.eval()
        with torch.no_grad():
            for x in self.kept_back.split(settings.batch):
                x = x.to(self.device)
                made = self.kept.positive(x), self.kept.negative(x)
                back = self.kept.negative(made[0]), self.kept.positive(made[1])
                parts = generator_losses(model, sides, x, made, back, settings, self.range)
                logits = model.logits(torch.cat([x, *made]))
                odds = sides.log_odds(model, logits).reshape(3, -1)
                found = {
                    **dict(zip(JUDGED, torch.sigmoid(odds).mean(1))),
                    "flip_rate": sides.flipped(model, *logits.split(len(x))).float().mean(),
                    "cycle_error": parts["cycle"] / 2,
                    "score": weighted(parts, settings),
                    "kept_back_similarity": parts["similarity"] / 2,
                }
                for name, value in found.items():
                    total[name] = total.get(name, 0.0) + float(value) * len(x) / count
        if not math.isfinite(total["score"]):
            raise MedXAIError("What the generators make of the images kept back is not finite; lower the learning rate (--learning-rate).")  # fmt: skip
        return total


def cut(x: Tensor, shape: Sequence[int], rng=None) -> Tensor:
    """A patch (C, *shape) of an image: at a random place, or without ``rng`` in the middle."""
    places = [n - s for n, s in zip(x.shape[1:], shape)]
    starts = [n // 2 if rng is None else int(rng.integers(n + 1)) for n in places]
    return x[(slice(None), *(slice(a, a + s) for a, s in zip(starts, shape)))]
