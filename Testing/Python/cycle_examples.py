"""Classifiers, images and packages that the tests of `cycle` share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from MedXAILib import io
from MedXAILib.models import load
from MedXAILib.models.generators import GeneratorPair
from MedXAILib.models.networks import StridedCNN
from MedXAILib.package import Package, write_package
from MedXAILib.resume import Log
from MedXAILib.settings import CycleTrainingSettings
from MedXAILib.training.cycle import BEST, train_pair
from MedXAILib.training.saving import read_weights, save_weights, weights_of
from MedXAILib.volume import Volume

EDGE = 16
CPU = dict(device="cpu", width=0.05, batch=8)
INPUT = {
    "spatial_dims": 2, "channels": ["CT"], "orientation": None, "spacing": [1.0, 1.0], "size": [EDGE, EDGE], "fit": "window", "multiple_of": 1,
    "intensity": {"kind": "window", "low": 0, "high": 100},
}  # fmt: skip


class Linear(nn.Module):
    """Two classes whose log-odds are Σ w · x + b; ``negated`` exchanges them."""

    def __init__(self, w, b: float = 0.0, negated: bool = False):
        super().__init__()
        self.register_buffer("w", torch.as_tensor(np.asarray(w), dtype=torch.float32))
        self.b, self.sign = b, -1.0 if negated else 1.0

    def forward(self, x):
        z = self.sign * ((x * self.w).flatten(1).sum(1) + self.b)
        return torch.stack([-z / 2, z / 2], 1)


def window(dims: int, gain: float = 8.0, negated: bool = False, edge: int = EDGE):
    """The mean of a window against ½, and where the window lies."""
    inside = np.zeros((edge,) * dims, bool)
    inside[(slice(4, 10), slice(6, 12), slice(5, 11))[-dims:]] = True
    return Linear(gain * inside / inside.sum(), -0.5 * gain, negated), inside


def noise_images(count: int, dims: int = 2, edge: int = EDGE, seed: int = 0) -> torch.Tensor:
    """Images (count, 1, *spatial) in 0..1, brighter and darker ones."""
    rng = np.random.default_rng(seed)
    levels = 0.4 * rng.random((count, *(1,) * (dims + 1)))
    return torch.from_numpy((0.6 * rng.random((count, 1, *(edge,) * dims)) + levels).astype(np.float32))


def trained(model, sides, tmp, images, held, seeds=(0, 1), data_range=1.0, **settings) -> tuple[GeneratorPair, list]:
    """A pair trained on images (N, C, *spatial), with the best weights; and the rows of its log."""
    chosen = CycleTrainingSettings(**(CPU | settings))
    log = Log(Path(tmp) / "log", {"test": 1})
    for _ in train_pair(
        model, sides, list(images), held, tmp, chosen, data_range, log, tuple(images.shape[2:]), seeds=seeds
    ):
        pass
    about = model.package.input
    pair = GeneratorPair(about.spatial_dims, len(about.channels), chosen.width, chosen.residual)
    pair.load_state_dict(read_weights(Path(tmp) / BEST))
    return pair.eval(), Log(Path(tmp) / "log", {"test": 1}).rows


def write_classifier(folder, seed: int = 0, labels=("smooth", "spiculated"), **changes):
    """The package of a small strided classifier, with a bias by which it answers noise images with either class."""
    torch.manual_seed(seed)
    network = StridedCNN(2, 1, len(labels), EDGE, width=0.1).eval()
    with torch.no_grad():
        network.load_state_dict(
            {n: v * 3 if n.endswith("weight") and v.ndim == 2 else v for n, v in network.state_dict().items()}
        )
        logits = network(noise_images(64))
        last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
        last.bias -= logits.median(0).values
    fields = {
        "name": "small nodules", "task": "classification", "weights": "weights.safetensors",
        "network": {"name": "StridedCNN", "arguments": {"spatial_dims": 2, "in_channels": 1, "out_channels": len(labels), "size": EDGE, "width": 0.1}},
        "input": INPUT, "output": {"labels": list(labels), "activation": "softmax"},
    }  # fmt: skip
    return write_package(folder, fields | changes, lambda path: save_weights(weights_of(network, False), path))


def write_explainer(folder, classifier: Package, seed: int = 0, strength: float = 0.02, positive="spiculated", negative="smooth"):  # fmt: skip
    """The package of a pair that was never trained, for a classifier."""
    torch.manual_seed(seed)
    dims = classifier.input.spatial_dims
    pair = GeneratorPair(dims, len(classifier.input.channels), 0.05)
    for one in (pair.positive, pair.negative):
        nn.init.normal_(one.last.weight, 0, strength)
    about = classifier.to_json()["input"]
    if not about["size"]:
        about.pop("fit")
    fields = {
        "name": "small explainer", "task": "explanation", "weights": "weights.safetensors",
        "network": {"name": "GeneratorPair", "arguments": {"spatial_dims": dims, "channels": len(classifier.input.channels), "width": 0.05}},
        "input": about, "output": {"labels": [positive, negative], "activation": "none"},
        "explains": {
            "sha256": classifier.sha256, "name": classifier.name, "positive": positive, "negative": negative, "labels": list(classifier.output.labels), "data_range": 1.0, "mean": [0.3, 0.7], "sd": [0.1, 0.3],
        },
    }  # fmt: skip
    return write_package(folder, fields, lambda path: save_weights(weights_of(pair, False), path))


def write_noise(folder, count: int = 32, edge: int = EDGE, seed: int = 0) -> Path:
    """Image files of values from 0 to 100."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    for n, one in enumerate(noise_images(count, edge=edge, seed=seed)):
        io.write_volume(folder / f"image-{n:03}.nrrd", Volume(100 * one.numpy(), np.eye(4), f"image-{n:03}", "HU"))
    return folder


def loaded(folder):
    """A classifier on the CPU."""
    return load(folder, "cpu")
