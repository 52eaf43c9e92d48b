"""Training of a classifier that goes on after a stop, ending with the very same weights as if there had been none."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MedXAIError
from ..explanation import Point, Step
from ..package import Package, from_json
from ..resume import Log
from .labelled import Labelled
from .saving import (
    checkpoints_at,
    new_network,
    read_state,
    read_weights,
    save_weights,
    weights_of,
    write_state,
    write_trained,
)
from .settings import ClassificationSettings
from .variation import vary


def images_of(cases: Sequence[Labelled], fields: dict) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) float32 in network units, as `medxai backproject` will make them of the same files, and classes (N) int64."""
    from ..models import prepare

    about = from_json({"schema": 1, "sha256": "0" * 64} | fields, Path("."))
    model = SimpleNamespace(package=about, device="cpu")
    images = torch.cat([prepare(model, [one.volume]).x for one in cases])
    return images, torch.tensor([about.output.labels.index(one.label) for one in cases])


def train_classifier(
    images: Tensor,
    labels: Tensor,
    folder,
    fields: dict,
    settings: ClassificationSettings,
    network: str,
    state,
    log: Log,
) -> Generator[Step, None, Package]:
    """Train one network and write it as a package; the weights are those after the last epoch, never chosen by a score.

    Parameters
    ----------
    images, labels : Tensor
        As `images_of` gives them.
    folder : path
        The new model folder.
    fields : dict
        What ``model.json`` is to hold; ``network`` says what is trained.
    settings : ClassificationSettings
    network : str
        Its name among `settings.networks`: for the log, and whether its images are varied.
    state : path
        A folder for what is needed to go on after a stop. What is there of an earlier start is gone on from.
    log : Log
        Gets one row for each epoch: network, epoch, loss, accuracy (of the training, on the fly), seconds.

    Yields
    ------
    Step
        With a point of curve ``training`` at the end of each epoch.

    Returns
    -------
    Package
        With ``checkpoints/epoch-K.safetensors``. The random state of torch is put back, also after a stop.

    Notes
    -----
    All that is random in an epoch (order, variation, dropout) comes from a generator seeded with the seed and the number of the epoch, and the
    learning rate from the step alone. So the weights and the optimiser's state are all that must be kept, and on a CPU a training that went on is
    equal to the bit to one that was never stopped.
    """
    state, random = Path(state), torch.get_rng_state()
    try:
        torch.manual_seed(settings.seed)
        about = from_json({"schema": 1, "sha256": "0" * 64} | fields, Path(folder))
        module = new_network(about).to(settings.device)
        adam = torch.optim.Adam(module.parameters(), lr=settings.learning_rate)
        done = read_state(state / "state.safetensors", module, adam).get("epoch", 0)
        keep = checkpoints_at(settings.epochs, settings.checkpoints)
        loss_of = nn.CrossEntropyLoss(_class_weights(labels).to(settings.device) if settings.class_weights else None)
        module.train()
        for epoch in range(done + 1, settings.epochs + 1):
            row = yield from _epoch(module, adam, images, labels, loss_of, settings, network, epoch)
            log.add(row)
            state.mkdir(parents=True, exist_ok=True)  # not before there is something to keep
            if epoch in keep:
                save_weights(weights_of(module, settings.half), state / f"epoch-{epoch}.safetensors")
            write_state(
                state / "state.safetensors", module, adam, {"epoch": epoch}
            )  # last: what it says is finished is there
            values = {name: row[name] for name in ("loss", "accuracy")}
            told = (
                f"{network}: epoch {epoch} of {settings.epochs}, loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f}"
            )
            yield Step(epoch / settings.epochs, told, (Point("training", epoch, values),))
        kept = {f"epoch-{epoch}": read_weights(state / f"epoch-{epoch}.safetensors") for epoch in sorted(keep)}
        return write_trained(folder, fields, weights_of(module, settings.half), kept)
    finally:
        torch.set_rng_state(random)


def _epoch(module, adam, images, labels, loss_of, settings, network, epoch):
    """Every image once; the row for the log."""
    began, count = time.monotonic(), len(images)
    rng = np.random.default_rng([settings.seed, 3, epoch])
    torch.manual_seed(int(rng.integers(2**63)))  # of dropout
    order = rng.permutation(count)
    steps = -(-count // settings.batch)
    total = right = 0.0
    for step in range(steps):
        chosen = torch.from_numpy(order[step * settings.batch : (step + 1) * settings.batch])
        batch = images[chosen]
        if settings.varied(network):
            batch = vary(batch, settings, rng)
        batch, true = batch.to(settings.device), labels[chosen].to(settings.device)
        gone = ((epoch - 1) * steps + step) / (settings.epochs * steps)
        for group in adam.param_groups:
            group["lr"] = settings.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * gone)) / 2)
        adam.zero_grad(set_to_none=True)
        logits = module(batch)
        loss = loss_of(logits, true)
        if not torch.isfinite(loss):
            raise MedXAIError("The training loss is no longer finite; lower the learning rate (--learning-rate).")
        loss.backward()
        adam.step()
        total += float(loss.detach()) * len(chosen)
        right += int((logits.detach().argmax(1) == true).sum())
        yield Step(gone, f"{network}: epoch {epoch} of {settings.epochs}")
    seconds = round(time.monotonic() - began, 3)
    return {"network": network, "epoch": epoch, "loss": total / count, "accuracy": right / count, "seconds": seconds}


def _class_weights(labels: Tensor) -> Tensor:
    """Inverse of how often each class comes, 1 in the mean over the images."""
    counts = torch.bincount(labels).double()
    return (len(labels) / (len(counts) * counts)).float()
