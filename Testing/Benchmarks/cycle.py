"""`cycle`: an explanation against the two passes of the generators, and a step of the training against its arithmetic and the plain loop.

The arithmetic of a step is what its definition asks of the networks and nothing else: four passes of generators and the way back through all of them, each
discriminator's pass on a real and a made image with the way back, its pass on both once more with the way back to the made one, and the classifier's pass on
both made images with the way back to them. The plain loop is the usual one: the discriminators' step makes its own images, each generator asks the classifier by
itself, SSIM is MONAI's, one call a comparison and scale. It gets the same weights, images and order, and the weights after two steps are compared.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from MedXAILib.explanation import run as drive
from MedXAILib.methods.cycle import cycle
from MedXAILib.models import load
from MedXAILib.models.explainer import pair_of
from MedXAILib.models.generators import GeneratorPair
from MedXAILib.models.networks import StridedCNN
from MedXAILib.models.sides import Sides
from MedXAILib.models.ssim import scales_of
from MedXAILib.package import write_package
from MedXAILib.settings import CycleSettings, CycleTrainingSettings
from MedXAILib.training.cycle import Trainer
from MedXAILib.training.saving import save_weights, weights_of
from MedXAILib.volume import Volume

from .ability import _wait

SIDES = Sides(1, 0)
#: name -> edge, dimensions, width of the generators, images per step
CASES = {
    "2-D 64², width 1": (64, 2, 1.0, 4),
    "2-D 64², width ¼": (64, 2, 0.25, 16),
    "3-D 32³, width ¼": (32, 3, 0.25, 2),
}


def packages(place, edge, dims, width, device):
    """The paper's classifier and generators with random weights, as packages; the classifier loaded."""
    torch.manual_seed(0)
    classifier, pair = StridedCNN(dims, 1, 2, edge), GeneratorPair(dims, 1, width)
    for one in (pair.positive, pair.negative):
        nn.init.normal_(one.last.weight, 0, 0.01)
    about = {
        "spatial_dims": dims, "channels": ["image"], "orientation": None, "spacing": None, "size": [edge] * dims, "fit": "pad", "multiple_of": 1,
        "intensity": {"kind": "window", "low": 0, "high": 1},
    }  # fmt: skip
    fields = {"task": "classification", "weights": "weights.safetensors", "input": about}
    arguments = {"spatial_dims": dims, "in_channels": 1, "out_channels": 2, "size": edge}
    package = write_package(
        Path(place, "classifier"),
        fields | {"name": "classifier", "network": {"name": "StridedCNN", "arguments": arguments}, "output": {"labels": ["a", "b"], "activation": "softmax"}},
        lambda path: save_weights(weights_of(classifier, False), path),
    )  # fmt: skip
    arguments = {"spatial_dims": dims, "channels": 1, "width": width}
    its = {
        "sha256": package.sha256,
        "name": "classifier",
        "positive": "b",
        "negative": "a",
        "labels": ["a", "b"],
        "data_range": 1.0,
        "mean": [0, 1],
        "sd": [0, 1],
    }
    write_package(
        Path(place, "explainer"),
        fields | {"name": "pair", "task": "explanation", "network": {"name": "GeneratorPair", "arguments": arguments}, "output": {"labels": ["b", "a"], "activation": "none"}, "explains": its},
        lambda path: save_weights(weights_of(pair, False), path),
    )  # fmt: skip
    return load(package.folder, device)


def arithmetic(work, x, other):
    """The passes of one step, with nothing between them."""
    pair, count = work.pair, len(x)
    made = pair.positive(x), pair.negative(x)
    back = pair.negative(made[0]), pair.positive(made[1])
    image = torch.cat([one.detach() for one in made]).requires_grad_()
    torch.autograd.grad(work.model.module(image).sum(), image)
    for judge, fake in zip(work.judges, made):
        sum(f.sum() for f in judge.features(torch.cat([other, fake.detach()]))).backward()
        judge.requires_grad_(False)
        with torch.no_grad():
            judge.features(other)
        image = fake.detach().requires_grad_()
        torch.autograd.grad(sum(f.sum() for f in judge.features(image)), image)
        judge.requires_grad_(True)
    sum(one.sum() for one in back).backward()
    work.adam.zero_grad(set_to_none=True)
    _wait(x.device)
    return count < 0


def plain(work, x, other, swapped):
    """The same step written out: separate passes, the library's SSIM."""
    from monai.losses import SSIMLoss

    settings, pair, model, adam = work.settings, work.pair, work.model, work.adam
    library = SSIMLoss(x.ndim - 2, data_range=work.range, win_size=11, k1=0.01, k2=0.03)
    pool = functional.avg_pool2d if x.ndim == 4 else functional.avg_pool3d

    def apart(one, two):
        total, scales = 0.0, scales_of(x.shape[2:])
        for scale in range(scales):
            one, two = (pool(t, 2) if scale else t for t in (one, two))
            total = total + library(one, two) / 2 / scales
        return total

    adam.zero_grad()
    for judge, generator in zip(work.judges, (pair.positive, pair.negative)):
        with torch.no_grad():
            fake = generator(x)
        judge.loss(judge.features(other), judge.features(fake), swapped).backward()
        nn.utils.clip_grad_norm_(judge.parameters(), settings.clip)
    adam.step()
    adam.zero_grad()
    loss = 0.0
    sides = ((pair.positive, pair.negative, 1), (pair.negative, pair.positive, 0))
    for judge, (generator, opposite, label) in zip(work.judges, sides):
        made = generator(x)
        again = opposite(made)
        loss = loss + 0.5 * ((again - x).abs().mean() + apart(again, x)) + apart(made, x)
        loss = loss + functional.cross_entropy(model.module(made), torch.full((len(x),), label, device=x.device))
        loss = loss + judge.loss(judge.features(other), judge.features(made), swapped, True)
    loss.backward()
    for one in work.judges.parameters():
        one.grad = None
    nn.utils.clip_grad_norm_(pair.parameters(), settings.clip)
    adam.step()
    adam.zero_grad()
    _wait(x.device)
    assert settings.activation == "cross-entropy"
    return loss.detach()


def ours(work, x, other, swapped):
    found = work.step(x, other, swapped)["generator"].detach()
    _wait(x.device)
    return found


def unchecked(steps):
    """An explanation up to G±, R and the probabilities; the self-checks and the morph's curve come after that."""
    for step in steps:
        if step.stage == "Checking":
            break
    steps.close()


def run(options, interleaved, row) -> dict:
    rows, notes = [], []
    for name, (edge, dims, width, batch) in CASES.items():
        if options.case not in name:
            continue
        shape, rng = (edge,) * dims, np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as place:
            model = packages(place, edge, dims, width, options.device)
            volume = Volume(rng.random((1,) * (3 - dims) + shape).astype(np.float32), np.eye(4), "noise")
            settings = CycleSettings(explainer=str(Path(place, "explainer")), device=options.device)
            pair, _ = pair_of(model, settings.explainer)
            x = torch.rand(1, 1, *shape, device=options.device)
            contenders = {
                f"{name}: two passes of the generators": lambda pair=pair, x=x: _wait(pair.images(x)[0].device),
                f"{name}: cycle, up to R and the three probabilities": lambda m=model, v=volume, s=settings: unchecked(
                    cycle(m, [v], s)
                ),
                f"{name}: cycle, with self-checks": lambda m=model, v=volume, s=settings: (
                    drive(cycle(m, [v], s)) is None
                ),
            }
            seconds = interleaved(contenders, max(options.runs, 15))
            limit, short, mine = seconds
            rows += [row(what, values, seconds[limit]) for what, values in seconds.items()]
            less, share = (
                statistics.median(a / b for a, b in zip(seconds[one], seconds[limit])) for one in (short, mine)
            )
            notes.append(
                f"{name}: an explanation takes {less:.2f} times the two passes, with self-checks {share:.2f} times"
            )
            chosen = CycleTrainingSettings(width=width, batch=batch, device=options.device, precision="float32")
            with model.frozen():
                works = [Trainer(model, SIDES, [], None, chosen, 1.0, shape, (0, 1)) for _ in range(2)]
                works[1].networks.to(memory_format=torch.contiguous_format)  # as networks come
                x, other = (torch.rand(batch, 1, *shape, device=options.device) for _ in range(2))
                swapped = torch.arange(batch, device=options.device) % 2 == 0
                for _ in range(2):
                    both = [step(work, x, other, swapped) for step, work in zip((ours, plain), works)]
                apart = abs(float(both[0] - both[1])) / float(both[1])
                assert apart < 2e-3, f"the losses differ by {apart:.2g}"
                contenders = {
                    f"{name}: arithmetic of a step of {batch} images": lambda w=works[0], x=x, o=other: arithmetic(w, x, o),
                    f"{name}: our step": lambda w=works[0], x=x, o=other, s=swapped: ours(w, x, o, s) is None,
                    f"{name}: plain loop": lambda w=works[1], x=x, o=other, s=swapped: plain(w, x, o, s) is None,
                }  # fmt: skip
                seconds = interleaved(contenders, options.runs)
        limit, mine, loop = seconds
        rows += [row(what, values, seconds[limit]) for what, values in seconds.items()]
        share, ratio = (statistics.median(a / b for a, b in zip(seconds[mine], seconds[one])) for one in (limit, loop))
        notes.append(
            f"{name}: a step takes {share:.2f} of its arithmetic and {ratio:.2f} of the plain loop, whose loss is within {apart:.1e} after two steps"
        )
    return {"rows": rows, "notes": notes}
