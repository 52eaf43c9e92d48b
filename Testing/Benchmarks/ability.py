"""`ability` for all layers of the 18-layer U-Net of He et al. 2023 (Fig. 4), against the plain form and against one forward pass.

Plain form: what the authors' public code does with a feature map: every channel upsampled to the image, prototypes and squared distances
at full resolution, softmax, largest. Both are given the layers' outputs of one pass and end with a map and its Dice for each layer.
The weights are random; the last layer is scaled so that the output is a decided one with about a tenth foreground.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import tempfile
import time

import numpy as np
import torch
from torch.nn import functional

from MedXAILib.explanation import run as drive
from MedXAILib.methods import REGISTRY
from MedXAILib.methods.ability_maps import INPUT, Part, Plan, Study
from MedXAILib.methods.prototypes import Interpolation
from MedXAILib.models import load, prepare
from MedXAILib.models.networks import PlainUNet
from MedXAILib.models.reading import bytes_of, choose, read
from MedXAILib.package import write_package
from MedXAILib.settings import AbilitySettings
from MedXAILib.volume import Volume

from .dream import _high_water

#: name -> spatial shape, filters of the first level
CASES = {"2-D 512²": ((512, 512), 64), "3-D 96³": ((96, 96, 96), 16)}


def image(shape) -> Volume:
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.normal(size=(1, 1, *(n // 8 for n in shape))).astype(np.float32))
    array = Interpolation().up(coarse, shape)[0, 0].numpy() + 0.1 * random.normal(size=shape)
    return Volume(array.astype(np.float32).reshape((1,) * (3 - len(shape)) + shape), np.diag([-1.0, -1, 1, 1]), "image")


def network(folder, shape, filters: int, device: str):
    """The U-Net as a package."""
    torch.manual_seed(0)
    arguments = dict(spatial_dims=len(shape), in_channels=1, out_channels=2, filters=filters, levels=5)
    module = PlainUNet(**arguments).eval()
    fields = {
        "name": "18-layer U-Net", "task": "segmentation", "weights": "weights.safetensors",
        "network": {"name": "PlainUNet", "arguments": arguments},
        "input": {
            "spatial_dims": len(shape), "channels": ["image"], "orientation": None, "spacing": None, "size": None, "multiple_of": 16,
            "intensity": {"kind": "none"},
        },
        "output": {"labels": ["background", "object"], "activation": "softmax"},
    }  # fmt: skip
    with torch.no_grad():
        x = torch.from_numpy(image(shape).array.reshape(1, 1, *shape))
        logits = module(x)
        apart = (logits[:, 1] - logits[:, 0]).flatten()
        module.last.weight *= 4 / apart.std()
        module.last.bias *= 4 / apart.std()
        module.last.bias[1] -= 4 * apart.kthvalue(int(0.9 * apart.numel())).values / apart.std()

    def save(path):
        from safetensors.torch import save_file

        save_file(module.state_dict(), str(path))

    package = write_package(folder, fields, save)
    return load(package.folder, device=device)


def plan_of(model, volume) -> Plan:
    prepared = prepare(model, [volume])
    part = Part(prepared, torch.ones(prepared.shape, dtype=torch.bool, device=model.device), None)
    return Plan(model, [part], 1, choose(model, ["all"], prepared.shape), [], Interpolation(), False)


def ours(plan):
    """Study, and the seconds from the end of its forward pass to the last score."""
    study = Study(plan, [plan.parts[0].prepared.x], [None])
    with torch.no_grad():
        for _, layer in study.run():
            if layer is None:
                _wait(plan.model.device)
                began = time.perf_counter()
    _wait(plan.model.device)
    return study, time.perf_counter() - began


def plain(plan, held, dtype=torch.float32):
    """Maps and Dice of the plain form, from the layers' outputs and the logits."""
    p = torch.softmax(held[None], 1)[:, 1:]
    truth = p[0, 0] > 0.5
    mode = "bilinear" if truth.ndim == 2 else "trilinear"
    found = {}
    for layer, features in held.items():
        if layer is None:
            continue
        f = functional.interpolate(features.to(dtype), truth.shape, mode=mode, align_corners=False)
        axes = tuple(range(2, f.ndim))
        objects = (f * p).sum(axes, keepdim=True) / p.sum(axes, keepdim=True)
        background = (f * (1 - p)).sum(axes, keepdim=True) / (1 - p).sum(axes, keepdim=True)
        distances = torch.cat([((f - c) ** 2).sum(1, keepdim=True) for c in (background, objects)], 1)
        mask = torch.softmax(-distances, 1).argmax(1)[0] > 0
        found[layer.name] = mask, 2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum())
    return found


def features(plan) -> dict:
    x = plan.parts[0].prepared.x
    with torch.no_grad():
        return {INPUT: x} | dict(read(plan.model, x, plan.layers))


def equal(study, exact, single) -> float:
    """Ours is the plain form's answer in double precision; returns the largest share of voxels that single precision costs that form."""
    lost = 0.0
    for name, (mask, dice) in exact.items():
        mask = mask.cpu().numpy()
        differ = np.mean(study.maps[name][0] != mask)
        assert differ < 2e-3, f"{name}: {differ:.2%} of the voxels differ"
        assert abs(study.scores(name)["dice"] - dice) < 5e-3, f"{name}: {study.scores(name)['dice']} and {dice}"
        lost = max(lost, np.mean(single[name][0].cpu().numpy() != mask))
    return float(lost)


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(kind, name, folder, device, pipe):
    model, volume = load(folder, device=device), image(CASES[name][0])  # nothing has been computed before
    plan = plan_of(model, volume)
    before = _high_water()
    with model.frozen(), torch.no_grad():
        if kind == "forward pass":
            model.logits(plan.parts[0].prepared.x)
        elif kind == "plain form":
            plain(plan, features(plan))
        else:
            how = "streamed" if "streamed" in kind else "kept"
            drive(REGISTRY["ability"](model, [volume], AbilitySettings(reading=how, units=("none",))))
    pipe.send((_high_water() - before, max(bytes_of([one]) for one in plan.layers) / 2**20))


def peak(kind, name, device) -> tuple[float, float]:
    """Megabytes that a run adds to its own process at the highest point, and those of the largest layer."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        network(f"{folder}/net", *CASES[name], device)
        process = context.Process(target=_peak, args=(kind, name, f"{folder}/net", device, theirs))
        process.start()
        theirs.close()
        try:
            return mine.recv()
        except EOFError:  # the plain form may need more than there is
            return math.nan, math.nan
        finally:
            process.join()


def run(options, interleaved, row) -> dict:
    rows, notes, memory = [], [], {}
    for name, (shape, filters) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            model = network(f"{folder}/net", shape, filters, options.device)
        plan = plan_of(model, image(shape))
        with model.frozen():
            held = features(plan)
            lost = equal(ours(plan)[0], plain(plan, held, torch.float64), plain(plan, held))

            def forward(plan=plan):
                with torch.no_grad():
                    plan.model.logits(plan.parts[0].prepared.x)
                _wait(plan.model.device)

            def loop(plan=plan, held=held):
                with torch.no_grad():
                    plain(plan, held)
                _wait(plan.model.device)

            def streamed(plan=plan):
                plan.kept = False
                try:
                    with torch.no_grad():
                        for _ in Study(plan, [plan.parts[0].prepared.x], [None]).run():
                            pass
                    _wait(plan.model.device)
                finally:
                    plan.kept = True

            mine, low = f"{name}: ability, layers kept", f"{name}: ability, streamed, with its two passes"
            seconds = interleaved(
                {
                    f"{name}: forward pass": forward, mine: lambda plan=plan, key=mine: {key: ours(plan)[1]}, low: streamed,
                    f"{name}: plain form": loop,
                },
                options.runs,
            )  # fmt: skip
        base = seconds[f"{name}: forward pass"]
        rows += [row(what, values, base) for what, values in seconds.items()]
        faster = statistics.median(b / a for a, b in zip(seconds[mine], seconds[f"{name}: plain form"]))
        notes.append(
            f"{name}, {filters} filters, {sum(one.shape[0] for one in plan.layers)} channels, {bytes_of(plan.layers) / 2**20:.0f} MB of"
            f" features: the plain form takes {faster:.0f} times as long (median of the ratios round by round)"
            f" and, summed in single precision, gets up to {lost:.1%} of a layer's voxels wrong"
        )
        del held
        if options.device == "cpu":
            kinds = ("forward pass", "ability, kept", "ability, streamed", "plain form")
            memory[name] = {
                kind: [round(mb) if mb == mb else None for mb in peak(kind, name, options.device)] for kind in kinds
            }
            told = ", ".join(
                f"{kind} {'more than there is' if mb is None else f'{mb} MB'}" for kind, (mb, _) in memory[name].items()
            )
            notes.append(f"{name}: peak memory added: {told}; largest layer {memory[name]['forward pass'][1]} MB")
    return {"rows": rows, "memory_mb": memory, "notes": notes}
