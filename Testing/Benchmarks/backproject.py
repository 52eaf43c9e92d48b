"""`backproject`: the 25 strongest filters of the last layer sent back, against one pass per filter and against captum's Deconvolution.

All give the maps of the same filters under the deconvnet rule, and they are compared. The plain ways are what one writes by hand: a rectifier whose
backward pass lets positive signals through, and for each filter a forward and a backward pass, or one forward pass and a backward pass for each
filter. captum is called as its manual has it, with the filter as target. The graph has been traced before the clock starts (it is kept by shape).
"""

from __future__ import annotations

import math
import multiprocessing
import statistics

import torch
from torch import nn

from MedXAILib.methods.returning import batch_of, returned, score
from MedXAILib.models.backward import Recording
from MedXAILib.models.model import Model
from MedXAILib.models.networks import DeeperBNCNN
from MedXAILib.models.reading import last_map
from MedXAILib.package import from_json
from MedXAILib.settings import BackprojectSettings

from .ability import _wait
from .dream import _high_water

N = 25
#: name -> spatial shape
CASES = {"2-D 224², the paper's network": (224, 224), "3-D 64³, ResNet-18": (64, 64, 64)}


def network(shape):
    torch.manual_seed(0)
    if len(shape) == 2:
        return DeeperBNCNN(1, 24, size=shape[0]).eval()
    from monai.networks.nets import resnet18

    return resnet18(spatial_dims=3, n_input_channels=1, num_classes=2).eval()


def model_of(shape, device) -> Model:
    module = network(shape).to(device)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    fields = {
        "schema": 1, "sha256": "0" * 64, "name": "classifier", "task": "classification", "weights": "weights.ts",
        "input": {
            "spatial_dims": len(shape), "channels": ["image"], "orientation": None, "spacing": None, "size": None, "multiple_of": 1,
            "intensity": {"kind": "none"},
        },
        "output": {"labels": [str(n) for n in range(24 if len(shape) == 2 else 2)], "activation": "softmax"},
    }  # fmt: skip
    return Model(from_json(fields, "."), module, device)


def ours(model, x, layer, filters, batch=0):
    """Forward pass and all maps: (n, *spatial)."""
    with torch.no_grad():
        recording = Recording(model, x, layer)
        for _ in recording.forward():
            pass
        batch = batch or batch_of(recording, len(filters), BackprojectSettings())
        maps = [back[1] for _, back in returned(recording, filters, batch) if back is not None]
    _wait(x.device)
    return torch.cat(maps), recording, batch


class _Deconvnet(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        return g.clamp(min=0)


class Rectifier(nn.Module):
    """By hand."""

    def forward(self, x):
        return _Deconvnet.apply(x)


class Filters(nn.Module):
    """A network up to its last map; the answer is half the squared norm of each filter's map, whose gradient there is the map itself."""

    def __init__(self, shape, rectifier):
        super().__init__()
        self.network = network(shape)
        for module in list(self.network.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.ReLU):  # one module for each use, which captum and its hooks need
                    setattr(module, name, rectifier())
        if len(shape) == 2:
            self.body = nn.Sequential(*list(self.network.features)[:-2])
        else:
            for block in [one for one in self.network.modules() if type(one).__name__ == "ResNetBlock"]:
                block.second = rectifier()
                block.forward = _block(block)
            n = self.network
            self.body = nn.Sequential(n.conv1, n.bn1, n.act, n.maxpool, n.layer1, n.layer2, n.layer3, n.layer4)

    def forward(self, x):
        return 0.5 * self.body(x).square().flatten(2).sum(2)


def _block(block):
    def forward(x):
        out = block.bn2(block.conv2(block.act(block.bn1(block.conv1(x)))))
        return block.second(out + (x if block.downsample is None else block.downsample(x)))

    return forward


def per_filter(form, x, filters, together: bool):
    """A backward pass for each filter; the forward pass once (``together``) or as often."""
    found, leaf = [], x.detach().requires_grad_()
    scores = form(leaf) if together else None
    for one in filters:
        if not together:
            scores = form(leaf)
        found.append(torch.autograd.grad(scores[0, one], leaf, retain_graph=together)[0][0, 0])
    _wait(x.device)
    return torch.stack(found)


def by_captum(form, x, filters):
    from captum.attr import Deconvolution

    explain, leaf = Deconvolution(form), x.detach().requires_grad_()
    found = torch.stack([explain.attribute(leaf, target=one).detach()[0, 0] for one in filters])
    _wait(x.device)
    return found


def _peak(shape, batch, pipe):
    model, x = model_of(shape, "cpu"), torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    layer = last_map(model, shape).output
    with torch.no_grad():
        model.module(torch.zeros(1, 1, 32, 32, 32) if len(shape) == 3 else x)  # what the first call alone takes
    before = _high_water()
    recording = None
    if batch is None:
        with torch.no_grad():
            model.module(x)
    else:
        _, recording, _ = ours(model, x, layer, list(range(N)), batch)
    each = recording.bytes_per_filter() / 2**20 if recording else 0
    pipe.send((_high_water() - before, each))


def peak(shape, batch) -> tuple[float, float]:
    """Megabytes that a run adds to its own process at the highest point, and those of one filter's signals."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(shape, batch, theirs))
    process.start()
    theirs.close()
    try:
        return mine.recv()
    except EOFError:
        return math.nan, math.nan
    finally:
        process.join()


def run(options, interleaved, row) -> dict:
    rows, notes, memory = [], [], {}
    for name, shape in CASES.items():
        if options.case not in name:
            continue
        model = model_of(shape, options.device)
        x = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0)).to(options.device)
        layer = last_map(model, shape).output
        hand, plain = Filters(shape, Rectifier).to(options.device).eval(), Filters(shape, nn.ReLU).to(options.device).eval()  # fmt: skip
        for parameter in [*hand.parameters(), *plain.parameters()]:
            parameter.requires_grad_(False)
        with model.frozen():
            _, recording, _ = ours(model, x, layer, [0])
            filters = score(recording.activation, "max").argsort()[::-1][:N].tolist()
            maps, recording, batch = ours(model, x, layer, filters)
            expected = per_filter(hand, x, filters, True)
            off = float((maps - expected).abs().max() / expected.abs().max())
            assert off < 1e-4, f"the maps differ by {off:.2g} of their largest value"
            contenders = {
                f"{name}: one forward, one backward": lambda hand=hand, x=x, f=filters: per_filter(hand, x, f[:1], True),
                f"{name}: backproject, {N} filters": lambda m=model, x=x, layer=layer, f=filters: ours(m, x, layer, f),
                f"{name}: by hand, one forward, {N} backward": lambda hand=hand, x=x, f=filters: per_filter(hand, x, f, True),
                f"{name}: by hand, {N} × (forward + backward)": lambda hand=hand, x=x, f=filters: per_filter(hand, x, f, False),
            }  # fmt: skip
            try:
                other = by_captum(plain, x, filters)
                apart = float((maps - other).abs().max() / expected.abs().max())
                contenders[f"{name}: captum's Deconvolution, {N} times"] = lambda p=plain, x=x, f=filters: by_captum(p, x, f)  # fmt: skip
                notes.append(f"{name}: captum's maps differ by at most {apart:.1e} of the largest value, those by hand by {off:.1e}")  # fmt: skip
            except ImportError:
                notes.append("captum is not installed (pip install captum), so it was not measured")
            seconds = interleaved({key: _quiet(call) for key, call in contenders.items()}, options.runs)
        first, mine, *_ = seconds
        rows += [row(what, values, seconds[first]) for what, values in seconds.items()]
        for what in list(seconds)[2:]:
            times = statistics.median(b / a for a, b in zip(seconds[mine], seconds[what]))
            notes.append(f"{what} takes {times:.2f} times as long as backproject (median of the ratios round by round)")
        share = statistics.median(a / (N * b) for a, b in zip(seconds[mine], seconds[first]))
        notes.append(f"{name}: backproject takes {share:.2f} of {N} × (forward + backward); {N + 1}/{2 * N} is the limit where a backward pass costs a forward pass; batch {batch}")  # fmt: skip
        if options.device == "cpu":
            found = {"forward pass": peak(shape, None), f"backproject, batch {batch}": peak(shape, batch), f"backproject, batch {N}": peak(shape, N)}  # fmt: skip
            memory[name] = {kind: None if mb != mb else round(mb) for kind, (mb, _) in found.items()}
            each = found[f"backproject, batch {batch}"][1]
            told = ", ".join(f"{kind} {mb} MB" for kind, mb in memory[name].items())
            notes.append(f"{name}: peak memory added: {told}; signals of one filter {each:.1f} MB")
    return {"rows": rows, "memory_mb": memory, "notes": notes}


def _quiet(call):
    """Timed as a whole."""

    def once():
        call()

    return once
