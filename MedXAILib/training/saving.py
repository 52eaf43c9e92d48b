"""What every training shares: the network that a package names, its weights in files, steps that are part of a longer work."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..explanation import Step
from ..files import plain
from ..package import Package, write_package
from ..settings import Settings, about


def part(steps: Generator[Step, None, object], start: float, stop: float) -> Generator[Step, None, object]:
    """The steps of one part of the work, their fraction between ``start`` and ``stop``; ends with what it returns."""
    with contextlib.closing(steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            yield replace(step, fraction=start + (stop - start) * step.fraction)


def new_network(package: Package) -> nn.Module:
    """The network that a package names, with weights drawn from torch's random state."""
    from ..models.loading import build

    return build(package.network, package.name)


def weights_of(network: nn.Module, half: bool) -> dict[str, Tensor]:
    """A copy of the weights on the CPU; ``half``: floating point as 16 bits."""
    dtype = torch.float16 if half else torch.float32
    return {
        name: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().clone().contiguous()
        for name, value in network.state_dict().items()
    }


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write ``.safetensors``."""
    from safetensors.torch import save_file

    save_file(weights, str(path))
    path.chmod(0o644)  # it comes readable by its owner only


def checkpoints_at(units: int, count: int) -> set[int]:
    """The epochs (or steps), from 1, after which weights are kept: ``count`` evenly spaced ones, the last included."""
    return {max(1, round(units * n / count)) for n in range(1, count + 1)}


def write_trained(folder, fields: dict, weights: dict[str, Tensor], kept: dict[str, dict[str, Tensor]]) -> Package:
    """The package of a trained network, with the weights on the way (``kept``, by name) in ``checkpoints/``."""

    def save(path):
        save_weights(weights, path)
        if kept:
            (path.parent / "checkpoints").mkdir()
        for name, values in kept.items():
            save_weights(values, path.parent / "checkpoints" / f"{name}.safetensors")

    return write_package(folder, fields, save)


def write_figures(folder: Path, figures: dict) -> None:
    """``figures.json``."""
    text = json.dumps(plain(figures), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    (folder / "figures.json").write_text(text, encoding="utf-8")


def lift(inner: Path) -> None:
    """Move what a folder holds into the one it lies in: a single training is the package itself."""
    for file in inner.iterdir():
        file.rename(inner.parent / file.name)
    inner.rmdir()


def command_of(settings: Settings, source: str, what: str = "segmentation") -> str:
    """``medxai train …`` with what is not a default, and no path of this computer."""
    words = ["medxai train", what, source]
    for one in about(type(settings)):
        value = getattr(settings, one.name)
        if value == one.default:
            continue
        if one.kind is bool:
            words.append(one.option if value else f"--no-{one.option[2:]}")
        elif one.kind is tuple and one.length:
            words.append(f"{one.option} {' '.join(f'{v:g}' for v in value)}")
        else:
            words.append(f"{one.option} {shlex.quote(','.join(value) if one.kind is tuple else str(value))}")
    return " ".join([*words, "--output FOLDER"])
