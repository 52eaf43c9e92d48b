"""What every training shares: the network that a package names, its weights in files, steps that are part of a longer work."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MedXAIError
from ..files import partial_of, plain
from ..package import Package, write_package
from ..settings import Settings, about
from ..volume import Volume


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


def save_weights(weights: dict[str, Tensor], path: Path, told: dict | None = None) -> None:
    """Write ``.safetensors``; ``told`` are plain values kept beside, which `state_told` gives."""
    from safetensors.torch import save_file

    save_file(weights, str(path), told and {name: json.dumps(value) for name, value in told.items()})
    path.chmod(0o644)  # it comes readable by its owner only


def read_weights(path: Path) -> dict[str, Tensor]:
    """What `save_weights` wrote."""
    from safetensors.torch import load_file

    return load_file(path)


def read_kept(path: Path) -> dict[str, Tensor]:
    """As `read_weights`, for what a training keeps; refused in one sentence where it is damaged."""
    from safetensors import SafetensorError

    try:
        return read_weights(path)
    except (SafetensorError, OSError):
        raise _damaged(path) from None


def write_state(path: Path, network: nn.Module, adam, told: dict) -> None:
    """Weights, optimiser and plain values (how far the training is), replacing the last ones at once."""
    tensors = {f"network.{name}": value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    for number, values in adam.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": value.cpu().contiguous() for name, value in values.items()}
    new = path.with_suffix(".new")
    save_weights(tensors, new, told)
    os.replace(new, path)


def state_told(path: Path) -> dict:
    """The plain values of `write_state`; empty where nothing is kept."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return {}
    try:
        with safe_open(str(path), "pt") as file:
            return {name: json.loads(value) for name, value in file.metadata().items()}
    except (SafetensorError, OSError, AttributeError, ValueError):
        raise _damaged(path) from None


def read_state(path: Path, network: nn.Module, adam) -> dict:
    """Put weights and optimiser back; the plain values that were kept with them, empty where nothing is kept."""
    from safetensors import SafetensorError

    told = state_told(path)
    if not told:
        return told
    try:
        tensors, moments = read_weights(path), {}
        network.load_state_dict({n.removeprefix("network."): v for n, v in tensors.items() if n.startswith("network.")})
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, number, what = name.split(".")
                moments.setdefault(int(number), {})[what] = value
        adam.load_state_dict({"state": moments, "param_groups": adam.state_dict()["param_groups"]})
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError):
        raise _damaged(path) from None
    return told


def _damaged(path):
    return MedXAIError(f"'{path}' is damaged; remove '{path.parent}' to train this network anew.")


def epoch_rows(path: Path, of: str) -> list[dict]:
    """The epochs in a log, each once: of one that was done again, by its number and what it is ``of`` (network, phase), the last."""
    rows = [json.loads(line) for line in path.read_bytes().splitlines()[1:]]
    return list({(row[of], row["epoch"]): row for row in rows}.values())


def finished(folder, name: str) -> int:
    """Finished epochs in the log ``name`` of a training that was stopped before ``folder`` was complete."""
    path = partial_of(folder) / name
    return max(0, len(path.read_bytes().splitlines()) - 1) if path.exists() else 0


def intensity_of(settings, volumes: Iterable[Volume], per_slice: bool = True) -> dict:
    """The ``intensity`` of a package, by the settings ``intensity`` and ``window``; auto: ``uint8`` where every volume is 8-bit."""
    if settings.window:
        return {"kind": "window", "low": settings.window[0], "high": settings.window[1]}
    kind = settings.intensity
    if kind == "auto":
        kind = "uint8" if all(one.array.dtype == np.uint8 for one in volumes) else "zscore"
    if kind == "uint8":  # as is usual for radiographs: about mean 0 and SD 1
        return {"kind": "linear", "multiply": 1 / (0.25 * 255), "add": -2.0, "range": "uint8"}
    return {"kind": "zscore", "per_slice": True} if per_slice else {"kind": "zscore"}


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
        file.replace(inner.parent / file.name)
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
