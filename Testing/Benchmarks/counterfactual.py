"""`counterfactual`: 100 steps against their own arithmetic, against the same search written out plainly, and against captum's Occlusion.

The arithmetic of a step is a pass through inpainter and classifier and the way back to the input, with one start. The plain search asks the inpainter
at every step; it gets the same start and surroundings, and its mask is compared. Occlusion moves a window of the mask's nodes over the
image, one forward pass each (and 16 at once), as its manual has it.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from MedXAILib.explanation import run as drive
from MedXAILib.methods.counterfactual import _Run, counterfactual
from MedXAILib.models.model import Model
from MedXAILib.models.networks import PartialUNet
from MedXAILib.models.partial import levels_for
from MedXAILib.package import from_json, write_package
from MedXAILib.settings import CounterfactualSettings
from MedXAILib.volume import Volume

from .ability import _wait

STEPS, NODES = 100, 32
#: name -> spatial shape, width of the inpainter
CASES = {"2-D 128²": ((128, 128), 0.25), "2-D 576×448": ((576, 448), 0.25), "3-D 64³": ((64, 64, 64), 0.125)}


def model_of(shape, device) -> Model:
    """The residual network of `medxai train classification --network resnet`, in 2-D or 3-D, random weights."""
    from monai.networks.nets import ResNet

    torch.manual_seed(0)
    module = ResNet(
        "basic", [1, 1, 1, 1], [16, 32, 64, 128], spatial_dims=len(shape), n_input_channels=1, num_classes=2, conv1_t_size=5, conv1_t_stride=1, no_max_pool=True,
    ).eval().to(device)  # fmt: skip
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return Model(
        from_json({"schema": 1, "sha256": "0" * 64, **_fields("classification", shape, ["a", "b"])}, "."),
        module,
        device,
    )


def _fields(task, shape, labels) -> dict:
    return {
        "name": task, "task": task, "weights": "weights.ts",
        "input": {"spatial_dims": len(shape), "channels": ["image"], "orientation": None, "spacing": None, "size": None, "multiple_of": 1, "intensity": {"kind": "none"}},
        "output": {"labels": labels, "activation": "softmax"},
    }  # fmt: skip


def inpainter(shape, width, folder) -> Path:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    about = {"spatial_dims": len(shape), "channels": 1, "levels": levels_for(shape), "width": width}
    fields = _fields("inpainting", shape, ["image"]) | {
        "weights": "weights.safetensors",
        "network": {"name": "PartialUNet", "arguments": about},
    }
    fields["output"] = {"labels": ["image"], "activation": "none"}
    return write_package(folder, fields, lambda path: save_file(PartialUNet(**about).state_dict(), str(path))).folder


def begun(model, volume, settings):
    """A run with its surroundings, ready to be optimised."""
    steps = _Run.begin(model, [volume], settings, None, None, None)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made = end.value
            break
    for _ in made.neighbourhoods():
        pass
    return made


def ours(made, start):
    with torch.no_grad():
        made.deletion.field.copy_(start)
    for _ in made.optimise():
        pass
    _wait(made.organ.device)
    return made.share


def plain(made, start):
    """The same search written out: everything at every step."""
    settings, x, theta = made.settings, made.prepared.x, made.settings.theta
    field = start.clone().requires_grad_()
    adam = torch.optim.Adam([field], lr=settings.learning_rate)
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    whole = float(made.organ.sum())
    for step in range(settings.steps + 1):
        share = functional.interpolate(field, x.shape[2:], mode=mode, align_corners=False)
        hole = share.detach() > theta
        with torch.no_grad():
            target = torch.where(
                hole, made.fill.model.module(x.expand(len(hole), *x.shape[1:]), (~hole).float()), made.guess
            )
        logits = made.model.module(torch.lerp(x, target, share))
        odds = logits[:, made.label] - logits[:, 1 - made.label]
        tv = sum(share.diff(dim=axis).abs().flatten(1).sum(1) for axis in range(2, x.ndim)) / whole ** (
            1 - 1 / (x.ndim - 2)
        )
        loss = (
            settings.lambda_score * (functional.softplus(odds) + odds)
            + settings.lambda_tv * tv
            + settings.lambda_area * share.flatten(1).sum(1) / whole
        )
        if step < settings.steps:
            adam.zero_grad()
            loss.sum().backward()
            adam.step()
            with torch.no_grad():
                field.clamp_(0, 1)
    _wait(x.device)
    return share.detach()


def arithmetic(made, both: bool):
    """Passes through inpainter and classifier and back to the input; ``both``: back through the inpainter too, else through the classifier alone."""
    x, hole = made.prepared.x, made.share[:1] > made.settings.theta
    for _ in range(STEPS):
        image = x.detach().clone().requires_grad_()
        with torch.set_grad_enabled(both):
            filled = made.fill.model.module(image, (~hole).float())
        logits = made.model.module(torch.where(hole, filled, image))
        torch.autograd.grad(logits[0, made.label], image)
    _wait(x.device)


def occlusion(made, at_once: int):
    from captum.attr import Occlusion

    x = made.prepared.x
    window = tuple(max(1, round(n / count)) for n, count in zip(x.shape[2:], made.deletion.nodes))
    found = Occlusion(made.model.module).attribute(
        x,
        (1, *window),
        strides=(1, *window),
        target=made.label,
        baselines=float(x.mean()),
        perturbations_per_eval=at_once,
    )
    _wait(x.device)
    return found


def run(options, interleaved, row) -> dict:
    rows, notes = [], []
    for name, (shape, width) in CASES.items():
        if options.case not in name:
            continue
        array = np.random.default_rng(0).normal(0, 1, shape if len(shape) == 3 else (1, *shape)).astype(np.float32)
        volume, model = Volume(array, np.eye(4), "noise"), model_of(shape, options.device)
        with tempfile.TemporaryDirectory() as place, model.frozen():
            settings = CounterfactualSettings(
                inpainter=str(inpainter(shape, width, Path(place, "inpainter"))),
                steps=STEPS,
                restarts=1,
                mask_nodes=NODES,
                device=options.device,
            )
            made = begun(model, volume, settings)
            start = made.deletion.field.detach().clone()
            apart = float((ours(made, start) - plain(made, start)).abs().max())
            assert apart < 0.05, f"the masks differ by {apart:.2g}"
            contenders = {
                f"{name}: {STEPS} × inpainter and classifier, forward and back": lambda made=made: arithmetic(made, True),
                f"{name}: {STEPS} × the same, back through the classifier alone": lambda made=made: arithmetic(made, False),
                f"{name}: counterfactual, {STEPS} steps": lambda made=made, start=start: ours(made, start) is None,
                f"{name}: counterfactual, whole run with self-checks": lambda m=model, v=volume, s=settings: drive(counterfactual(m, [v], s)) is None,
                f"{name}: written out plainly": lambda made=made, start=start: plain(made, start) is None,
            }  # fmt: skip
            try:
                occlusion(made, 16)
                contenders[f"{name}: captum's Occlusion, one at a time"] = lambda made=made: occlusion(made, 1) is None
                contenders[f"{name}: captum's Occlusion, 16 at once"] = lambda made=made: occlusion(made, 16) is None
            except ImportError:
                notes.append("captum is not installed (pip install captum), so it was not measured")
            seconds = interleaved(contenders, options.runs)
        limit, _, mine, *_ = seconds
        rows += [row(what, values, seconds[limit]) for what, values in seconds.items()]
        share = statistics.median(a / b for a, b in zip(seconds[mine], seconds[limit]))
        nodes = " × ".join(map(str, made.deletion.nodes))
        notes.append(f"{name}: {STEPS} steps take {share:.2f} of the arithmetic; masks of the plain search within {apart:.1e}; {nodes} nodes; memory stated {made.need / 2**20:.0f} MiB")  # fmt: skip
    return {"rows": rows, "notes": notes}
