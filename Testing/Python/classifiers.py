"""Small classifiers for tests, and the ways to write the same one."""

from __future__ import annotations

import io
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from MedXAILib.models.model import Model
from MedXAILib.package import from_json

CONV, POOL, NORM = (None, None, nn.Conv2d, nn.Conv3d), (None, None, nn.MaxPool2d, nn.MaxPool3d), (None, None, nn.BatchNorm2d, nn.BatchNorm3d)  # fmt: skip


def classifier(module: nn.Module, dims: int = 2, channels: int = 1, labels: int = 2, **changes) -> Model:
    """A network as a loaded classification model that takes a volume as it is."""
    fields = {
        "schema": 1, "sha256": "0" * 64, "name": "small", "task": "classification", "weights": "weights.ts",
        "input": {
            "spatial_dims": dims, "channels": [f"image {n}" for n in range(channels)], "orientation": None, "spacing": None, "size": None, "multiple_of": 1,
            "intensity": {"kind": "none"},
        },
        "output": {"labels": [f"label {n}" for n in range(labels)], "activation": "softmax"},
    }  # fmt: skip
    for name, value in changes.items():
        fields[name] = fields[name] | value if isinstance(value, dict) else value
    return Model(from_json(fields, "."), module if isinstance(module, torch.fx.GraphModule) else module.eval(), "cpu")


class Head(nn.Module):
    """Global mean, then a linear layer."""

    def __init__(self, filters: int, labels: int = 2):
        super().__init__()
        self.linear = nn.Linear(filters, labels)

    def forward(self, x):
        return self.linear(x.flatten(2).mean(2))


def stack(dims: int = 2, widths=(4, 6), channels: int = 1, norm: bool = False, seed: int = 0) -> nn.Sequential:
    """Stages of convolution, (normalisation,) rectifier and pooling of 2, then the head; random weights."""
    torch.manual_seed(seed)
    parts = []
    for before, after in zip((channels, *widths), widths):
        parts += [
            CONV[dims](before, after, 3, padding=1),
            *([NORM[dims](after)] if norm else []),
            nn.ReLU(),
            POOL[dims](2),
        ]
    for one in parts:
        if isinstance(one, NORM[dims]):
            nn.init.uniform_(one.weight, -1, 1)
            nn.init.uniform_(one.running_var, 0.5, 2)
            nn.init.normal_(one.running_mean)
    return nn.Sequential(*parts, Head(widths[-1]))


class Written(nn.Module):
    """`stack` of two stages with its rectifiers written in other ways: functional, in place, or one module used twice."""

    def __init__(self, source: nn.Sequential, how: str):
        super().__init__()
        self.a, self.b, self.head, self.how = source[0], source[3], source[-1], how
        self.once = nn.ReLU(inplace=how == "reused in place")

    def forward(self, x):
        if self.how == "functional":
            return self.head(F.max_pool2d(F.relu(self.b(F.max_pool2d(F.relu(self.a(x)), 2))), 2))
        if self.how == "in place":
            return self.head(F.max_pool2d(F.relu_(self.b(F.max_pool2d(self.a(x).relu_(), 2))), 2))
        if self.how == "clamp":
            return self.head(F.max_pool2d(self.b(F.max_pool2d(self.a(x).clamp(min=0), 2)).clamp_(min=0), 2))
        return self.head(F.max_pool2d(self.once(self.b(F.max_pool2d(self.once(self.a(x)), 2))), 2))


def scripted(module: nn.Module) -> nn.Module:
    """As a TorchScript program read back from a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(_file(lambda f: torch.jit.save(torch.jit.script(module.eval()), f)))


def exported(module: nn.Module, shape) -> nn.Module:
    """As an exported program read back from a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(_file(lambda f: torch.export.save(torch.export.export(module.eval(), (torch.randn(shape),)), f))).module()  # fmt: skip


def _file(write):
    file = io.BytesIO()
    write(file)
    file.seek(0)
    return file
