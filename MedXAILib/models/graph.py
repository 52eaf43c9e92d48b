"""A network as an FX graph of ATen operations: one representation for eager networks, TorchScript and exported programs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ..errors import MedXAIError

if TYPE_CHECKING:
    from .model import Model

#: Kinds of layers, by what the operation's name contains; the first that fits.
_KINDS = (
    ("transposed convolution", ("conv_transpose",)),
    ("convolution", ("conv",)),
    ("normalisation", ("batch_norm", "instance_norm", "group_norm", "layer_norm")),
    ("pooling", ("pool",)),
    ("attention", ("scaled_dot_product",)),
    ("linear", ("linear", "addmm", "matmul", "bmm")),
    ("upsampling", ("upsample", "pixel_shuffle")),
    ("softmax", ("softmax",)),
    ("dropout", ("dropout",)),
    ("activation", ("relu", "elu", "gelu", "silu", "sigmoid", "tanh", "softplus", "mish", "hardswish", "swish", "celu", "glu")),
    ("concatenation", ("cat",)),
    ("addition", ("add",)),
    ("multiplication", ("mul",)),
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One layer: a node of the graph whose output can be read.

    ``shape`` is (channels, *spatial) at the size the graph was traced with; ``operation`` the ATen name.
    """

    name: str
    kind: str
    operation: str
    shape: tuple[int, ...]


def trace(module: nn.Module, x: Tensor, title: str = "the network") -> fx.GraphModule:
    """The graph of ``module`` at the shape of ``x``, which computes the same to the bit.

    The parameters are those of ``module``, not copies. The caller holds the network still (`Model.frozen`).

    Raises
    ------
    MedXAIError
        When the network's control flow depends on voxel values, or the size does not suit it.
    """
    return _traced(module, x, "real", title)


def trace_shapes(module: nn.Module, shape, device, title: str = "the network") -> fx.GraphModule:
    """The graph at an input ``shape`` (N, C, *spatial) without computing it; for shapes and structure only."""
    x = torch.empty(tuple(shape), device=device)
    try:
        return _traced(module, x, "fake", title)
    except MedXAIError:
        return _traced(module, x, "real", title)  # some operations have no shape rule


def _traced(module, x, mode, title) -> fx.GraphModule:
    def call(x):  # make_fx would otherwise look at the module's own attributes
        return module(x)

    try:
        with _quiet(), no_autocast(x.device):
            return make_fx(call, tracing_mode=mode, pre_dispatch=True, _allow_non_fake_inputs=True)(x.detach())
    except Exception as error:  # a traced network may raise anything
        words = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        size = " × ".join(map(str, x.shape[2:]))
        program = isinstance(module, (fx.GraphModule, torch.jit.ScriptModule))
        advice = "export it again so that it takes other sizes" if program else "export it with torch.export instead"
        raise MedXAIError(f"'{title}' cannot be traced at {size} voxels ({words}); {advice}.") from error


def no_autocast(device: torch.device):
    """Full precision, whatever the caller switched on."""
    if device.type in ("cpu", "cuda"):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()  # older versions know no autocast on other devices


@contextlib.contextmanager
def _quiet():
    """Without warnings and torch's own log of a size that does not suit, and without TorchScript's rewriting after first runs."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings(), torch.jit.optimized_execution(False):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of a node's output; None where it is not one tensor."""
    if node.op == "get_attr":
        value = node.graph.owning_module
        for part in node.target.split("."):
            value = getattr(value, part)
    else:
        value = node.meta.get("val")
    return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else None


def operation(node: fx.Node) -> str:
    """The ATen name of a node without overload, such as ``conv3d``; empty for what is not an ATen operation."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1] if schema is not None else ""


def arguments(node: fx.Node) -> dict:
    """Arguments by name, with the defaults of the operation."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    result = {}
    for number, argument in enumerate(schema.arguments):
        if number < len(node.args):
            result[argument.name] = node.args[number]
        elif argument.name in node.kwargs:
            result[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            result[argument.name] = argument.default_value
    return result


def picked(traced: fx.GraphModule, key) -> fx.Node | None:
    """The node whose output is the network's answer: the only one, or the one that ``key`` names."""
    result = next(iter(reversed(traced.graph.nodes))).args[0]
    if isinstance(result, dict):
        result = result.get(key) if key is not None else next(iter(result.values())) if len(result) == 1 else None
    elif isinstance(result, (tuple, list)):
        at = 0 if key is None and len(result) == 1 else key
        result = result[at] if isinstance(at, int) and -len(result) <= at < len(result) else None
    return result if isinstance(result, fx.Node) else None


def layers(traced: fx.GraphModule) -> list[Layer]:
    """The layers of a graph in order of computing."""
    result = []
    for node in traced.graph.nodes:
        name, shape = operation(node), shape_of(node)
        if node.op != "call_function" or shape is None or len(shape) < 2:
            continue
        kind = next((kind for kind, words in _KINDS if any(word in name for word in words)), None)
        if kind == "convolution" and is_transposed(node):
            kind = "transposed convolution"
        if kind is not None:
            result.append(Layer(node.name, kind, name, shape[1:]))
    return result


def is_transposed(node: fx.Node) -> bool:
    """Whether a convolution node is a transposed one."""
    schema = node.target._schema
    for number, argument in enumerate(schema.arguments):
        if argument.name == "transposed":
            return bool(node.args[number])
    return "transpose" in schema.name


def count_parameters(model: Model) -> int:
    """Numbers in the network's weights; where they are constants of a frozen program, those of its graph."""
    count = sum(p.numel() for p in model.module.parameters())
    if count == 0:
        traced, _ = small(model)
        seen = {}
        for node in traced.graph.nodes:
            if node.op == "get_attr":
                value = getattr(traced, node.target)
                seen[value.data_ptr()] = value.numel()
        count = sum(seen.values())
    return count


def small(model: Model) -> tuple[fx.GraphModule, tuple[int, ...]]:
    """The graph at the smallest of a few sizes that the network takes, and that spatial size. Nothing is computed."""
    about = model.package.input
    if model.small_graph is not None:
        return model.small_graph
    if about.size is not None and about.fit != "window":
        sizes = [about.size]
    else:
        # Different along each axis, so that no axis can be taken for another.
        sizes = [tuple(-(-n * (at + 1) // m) * m for at, m in enumerate(about.multiple_of)) for n in (16, 32, 64, 96)]
        sizes = [*dict.fromkeys(sizes), *([about.size] if about.size else [])]
    trouble = None
    with model.frozen():
        for size in sizes:
            shape = (1, len(about.channels), *size)
            try:
                model.small_graph = trace_shapes(model.module, shape, model.device, model.package.name), size
                return model.small_graph
            except MedXAIError as error:
                trouble = error
    raise trouble
