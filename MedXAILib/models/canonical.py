"""A classifier's graph with each layer by itself, as layer-wise rules want it: batch normalisation folded, a module for each common rectifier, one output."""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from ..errors import MedXAIError
from . import graph as graphs
from .backward import SWITCHES
from .backward_rules import CannotSend, pure

#: Convolutions and linear layers -> their input, weight and bias among the operation's arguments.
LINEAR = {
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "convolution", "_convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"),
        ("input", "weight", "bias"),
    ),
    "addmm": ("mat1", "mat2", "self"), "mm": ("self", "mat2", None), "matmul": ("self", "other", None),
}  # fmt: skip
_POOLS = {"max_pool1d": nn.MaxPool1d, "max_pool2d": nn.MaxPool2d, "max_pool3d": nn.MaxPool3d}
_CONVOLVE = {3: torch.ops.aten.conv1d.default, 4: torch.ops.aten.conv2d.default, 5: torch.ops.aten.conv3d.default}
_NORMS = {
    "batch_norm": ("input", "weight", "bias", "running_mean", "running_var"),
    "_native_batch_norm_legit_no_training": ("input", "weight", "bias", "running_mean", "running_var"),
}
_KNOWN: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class Clone(nn.Module):
    """The same values in memory of their own: rules that watch a tensor must not watch that of another rule (captum issue 1104)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class Windows(nn.Module):
    """Every window of a max-pooling as a row of its own, shape (N, C · windows, voxels of a window), so that overlapping windows share no switch.

    Captum puts signals back where the maximum was, one over the other where windows overlap, and loses some.
    """

    def __init__(self, kernel, stride, padding):
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        ends = [one for pad in reversed(self.padding) for one in (pad, pad)]
        x = nn.functional.pad(x, ends, value=torch.finfo(x.dtype).min / 4)
        for axis, (size, step) in enumerate(zip(self.kernel, self.stride), 2):
            x = x.unfold(axis, size, step)
        return x.flatten(2 + len(self.kernel)).flatten(1, -2)


def canonical(model, x: Tensor, weights: Sequence[float]) -> fx.GraphModule:
    """The classifier as a graph that computes f = Σ_c weights[c] · z_c, shape (N,), equal to the network's but for rounding.

    Batch normalisation is folded into the convolution or linear layer before it (else it is a convolution of 1); every ``max_pool``, ``relu`` (also
    as ``clamp`` or ``threshold``), ``leaky_relu``, ``elu``, ``softplus``, ``sigmoid`` and ``tanh`` is a module used once, behind a copy of its input, while others
    (``relu6``, ``hardtanh``, ``gelu``, ``silu``, ``prelu``, ``selu``, adaptive poolings) stay operations; nothing changes in place; f belongs to the last layer where
    that is linear. Any network that has a graph will do (programs, functional and reused rectifiers); weights are not copied unless folded.

    Parameters
    ----------
    model : Model
        The caller holds it still (`Model.frozen`).
    x : Tensor, shape (N, C, *spatial)
        Its shape is the one that the graph takes.
    weights : sequence of float
        One per label.

    Raises
    ------
    MedXAIError
        When the network gives probabilities, has no graph at this shape, or changes in place what is read under another name.
    """
    package = model.package
    if package.output.activation == "none":
        raise MedXAIError(
            f"'{package.name}' gives probabilities, and layer-wise rules want logits; export it without its last activation."
        )
    traced, key = model.graph(x), tuple(map(float, weights))
    known = _KNOWN.setdefault(traced, {})
    if key not in known:
        known[key] = _made(model, traced, key)
    return known[key]


def _made(model, traced, weights) -> fx.GraphModule:
    name = model.package.name
    *nodes, _ = traced.graph.nodes
    shared = graphs.shared_change(nodes)
    if shared is not None:
        raise _refusal(name, shared, "it changes in place what is also read under another name")
    graph, copies = fx.Graph(), {}
    graph.graph_copy(traced.graph, copies)
    made = fx.GraphModule(traced, graph)
    answer = copies[graphs.picked(traced, model.package.output.key)]
    for node in reversed(graph.nodes):
        if any(word in str(node.target) for word in SWITCHES):
            graph.erase_node(node)
    try:
        for node in list(graph.nodes):
            if node.op == "call_function" and graphs.operation(node):
                node.target = pure(node)
    except CannotSend as reason:
        raise _refusal(name, node, str(reason)) from None
    graph.output(_head(made, answer, weights))
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        operation = graphs.operation(node)
        if operation in _NORMS:
            _fold(made, node, name)
        elif operation in _POOLS:
            _pool(made, node, operation)
        elif (module := _rectifier(node)) is not None:
            _alone(made, node, module)
    graph.eliminate_dead_code()
    graph.lint()
    made.recompile()
    return made.eval()


def _pool(made, node, operation) -> None:
    """A max-pooling becomes a module, of overlapping windows one over rows that each hold a window."""
    given, dims = graphs.arguments(node), int(operation[8])
    kernel, stride, padding, dilation = (
        list(given[one]) * (dims if len(given[one]) == 1 else 1) for one in ("kernel_size", "stride", "padding", "dilation")
    )  # fmt: skip
    stride = stride or kernel
    if all(a <= b for a, b in zip(kernel, stride)) or given["ceil_mode"] or set(dilation) != {1}:
        _alone(made, node, _POOLS[operation](kernel, stride, padding, dilation, ceil_mode=given["ceil_mode"]))
        return
    with made.graph.inserting_before(node):
        made.add_submodule(f"windows_{node.name}", Windows(kernel, stride, padding))
        rows = made.graph.call_module(f"windows_{node.name}", (node.args[0],))
    _alone(made, node, nn.MaxPool1d(math.prod(kernel)), rows, list(graphs.shape_of(node)))


def _alone(made, node, module, source=None, shape=None) -> None:
    """Put a module, behind a copy of its input (or of ``source``), in a node's place; its output gets the ``shape``."""
    made.add_submodule(f"copy_{node.name}", Clone())
    made.add_submodule(f"layer_{node.name}", module)
    with made.graph.inserting_before(node):
        copy = made.graph.call_module(f"copy_{node.name}", (source or node.all_input_nodes[0],))
        one = made.graph.call_module(f"layer_{node.name}", (copy,))
        if shape:
            one = made.graph.call_function(torch.ops.aten.reshape.default, (one, shape))
    one.meta = dict(node.meta)
    node.replace_all_uses_with(one)
    made.graph.erase_node(node)


def _rectifier(node) -> nn.Module | None:
    """The module of a rectifier or of one of their kin that rules know; None for anything else."""
    name, given = graphs.operation(node), graphs.arguments(node)
    if name == "relu" or (name == "clamp_min" and given["min"] == 0):
        return nn.ReLU()
    if name == "clamp" and given["min"] == 0 and given["max"] is None:
        return nn.ReLU()
    if name == "threshold" and given["threshold"] == 0 == given["value"]:
        return nn.ReLU()
    if name == "leaky_relu":
        return nn.LeakyReLU(given["negative_slope"])
    if name == "elu" and given["scale"] == 1 == given["input_scale"]:
        return nn.ELU(given["alpha"])
    if name == "softplus":
        return nn.Softplus(given["beta"], given["threshold"])
    return {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh}.get(name, lambda: None)()


def _fold(made, node, name) -> None:
    """A batch normalisation becomes part of the layer before it, or a convolution of 1 by itself."""
    source, *rest = (graphs.arguments(node)[one] for one in _NORMS[graphs.operation(node)])
    if graphs.arguments(node).get("training"):
        raise _refusal(name, node, "it takes the statistics of what it is given")
    gain, shift, mean, var = (None if one is None else _constant(made, one, name, node) for one in rest)
    scale = torch.rsqrt(var.double() + graphs.arguments(node)["eps"]) * (1 if gain is None else gain.double())
    offset = (0 if shift is None else shift.double()) - mean.double() * scale
    users = [node] if graphs.operation(node) == "batch_norm" else [one for one in node.users]
    if any(one is not node and not (one.target is operator.getitem and one.args[1] == 0) for one in users):
        raise _refusal(name, node, "its statistics are read")
    operation, given = graphs.operation(source), graphs.arguments(source) if source.op == "call_function" else {}
    at = 1 if operation.startswith("conv_transpose") else 0
    plain = operation in ("linear", "conv1d", "conv2d", "conv3d") or (at and given.get("groups") == 1)
    with made.graph.inserting_before(node):
        if plain and len(source.users) == 1 and given["weight"].op == "get_attr":
            weight = _constant(made, given["weight"], name, node)
            bias = 0 if given["bias"] is None else _constant(made, given["bias"], name, node).double()
            wide = [1] * weight.ndim
            wide[at] = -1
            weight, bias = weight.double() * scale.reshape(wide), bias * scale + offset
            given |= {"weight": _put(made, node, "weight", weight, mean), "bias": _put(made, node, "bias", bias, mean)}
            one = made.graph.call_function(source.target, tuple(given.values()))
        else:
            dims = len(graphs.shape_of(source))
            if dims not in _CONVOLVE:
                raise _refusal(name, node, "no layer to fold it into stands before it")
            weight = scale.reshape(-1, *[1] * (dims - 1))
            one = made.graph.call_function(
                _CONVOLVE[dims],
                (source, _put(made, node, "weight", weight, mean), _put(made, node, "bias", offset, mean), [1] * (dims - 2), [0] * (dims - 2),
                 [1] * (dims - 2), len(scale)),
            )  # fmt: skip
    one.meta = dict(users[0].meta)
    for user in users:
        user.replace_all_uses_with(one)
        made.graph.erase_node(user)
    if node not in users:
        made.graph.erase_node(node)
    if not source.users:
        made.graph.erase_node(source)


def _head(made, answer, weights):
    """f from the network's answer, in the last layer itself where that is linear; the node is called ``head``."""
    operation, given = graphs.operation(answer), graphs.arguments(answer) if answer.op == "call_function" else {}
    aten, graph = torch.ops.aten, made.graph
    device = next((one.device for one in made.parameters()), next((one.device for one in made.buffers()), None))
    made.register_buffer("head_row", torch.tensor([weights], device=device))
    with graph.inserting_after(next(reversed(graph.nodes))):
        row = graph.get_attr("head_row")
    last = [row]

    def after(target, *arguments):
        with graph.inserting_after(last[-1]):
            last.append(graph.call_function(target, arguments))
        return last[-1]

    if operation == "linear" and len(answer.users) <= 1:
        weight = after(aten.mm.default, row, given["weight"])
        bias = None if given["bias"] is None else after(aten.mv.default, row, given["bias"])
        head = after(aten.linear.default, given["input"], weight, bias)
    else:
        head = after(aten.linear.default, answer, row)
    head.name = "head"
    return after(aten.select.int, head, 1, 0)


def _constant(made, node, name, where) -> Tensor:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        raise _refusal(name, where, "its numbers are computed")
    return getattr(made, node.target).detach()


def _put(made, node, what, value, like) -> fx.Node:
    made.register_buffer(f"{what}_{node.name}", value.to(like))
    return made.graph.get_attr(f"{what}_{node.name}")


def _refusal(name, node, reason) -> MedXAIError:
    return MedXAIError(f"'{name}' cannot be taken apart layer by layer at its node '{node.name}' ({node.target}): {reason}.")  # fmt: skip
