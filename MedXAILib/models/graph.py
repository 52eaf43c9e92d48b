"""A network as an FX graph of ATen operations: one representation for eager networks, TorchScript and exported programs."""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import warnings
from dataclasses import dataclass, replace
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
    ("upsampling", ("upsample", "pixel_shuffle")),
    ("linear", ("linear", "addmm", "matmul", "bmm")),
    ("softmax", ("softmax",)),
    ("dropout", ("dropout",)),
    ("activation", ("relu", "elu", "gelu", "silu", "sigmoid", "tanh", "softplus", "mish", "hardswish", "swish", "celu", "glu", "hardtanh", "threshold", "clamp")),
    ("concatenation", ("cat",)),
    ("addition", ("add",)),
    ("multiplication", ("mul",)),
)  # fmt: skip


CONVOLUTIONS = ("convolution", "transposed convolution")
#: Operations that give no new memory.
VIEWS = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "expand",
    "slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind", "detach", "alias", "contiguous", "dropout",
    "to", "t", "view_as", "reshape_as", "expand_as", "movedim", "swapaxes", "tensor_split", "as_strided", "diagonal",
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One layer: a node of the graph whose output can be read.

    ``shape`` is (channels, *spatial) at the size the graph was traced with; ``operation`` the ATen name; ``path`` the module that holds
    its weights, such as ``down.0.3``, empty where the network does not tell (a frozen program). ``group`` is ``early``, ``deep`` or
    ``late`` and ``number`` counts from 1 for the blocks on the way to the answer; ``output`` names the node that is read, for a block the
    one where it ends; empty where it is computed on another batch than the image.
    """

    name: str
    kind: str
    operation: str
    shape: tuple[int, ...]
    path: str = ""
    group: str = ""
    number: int = 0
    output: str = ""


def trace(module: nn.Module, x: Tensor, title: str = "the network") -> fx.GraphModule:
    """The graph of ``module`` at the shape of ``x``, which computes the same to the bit.

    Nothing is computed unless an operation has no shape rule. The parameters are those of ``module``, not copies. The caller holds
    the network still (`Model.frozen`).

    Raises
    ------
    MedXAIError
        When the network's control flow depends on voxel values, or the size does not suit it.
    """
    try:
        return _traced(module, x, "fake", title)
    except MedXAIError:
        return _traced(module, x, "real", title)  # some operations have no shape rule


def trace_shapes(module: nn.Module, shape, device, title: str = "the network") -> fx.GraphModule:
    """The graph at an input ``shape`` (N, C, *spatial); see `trace`."""
    return trace(module, torch.empty(tuple(shape), device=device), title)


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


def layers(traced: fx.GraphModule, module: nn.Module | None = None, key=None) -> list[Layer]:
    """The layers of a graph in order of computing, the blocks among them with number, group and end.

    ``module`` is the network that was traced, for the paths; ``key`` picks its answer among several outputs.
    """
    paths = _paths(traced, module)
    found = []
    batch, _, *size = next(shape_of(n) for n in traced.graph.nodes if n.op == "placeholder")
    for node in traced.graph.nodes:
        shape, kind = shape_of(node), _kind(node)
        if kind and shape is not None and len(shape) >= 2:
            output = node.name if shape[0] == batch else ""
            found.append(Layer(node.name, kind, operation(node), shape[1:], paths.get(node, ""), output=output))
    ends = _block_ends(traced, key)
    groups = iter(enumerate(_groups([shape_of(end)[2:] for end in ends.values()], size), 1))
    for at, one in enumerate(found):
        if one.name in ends:
            (number, group), end = next(groups), ends[one.name]
            found[at] = replace(one, shape=shape_of(end)[1:], group=group, number=number, output=end.name)
    return found


def _kind(node: fx.Node) -> str:
    name = operation(node)
    if node.op != "call_function" or not name:
        return ""
    kind = next((kind for kind, words in _KINDS if any(word in name for word in words)), "")
    return "transposed convolution" if kind == "convolution" and is_transposed(node) else kind


def _paths(traced, module) -> dict[fx.Node, str]:
    """Node -> path of the module whose weights it uses; the graph holds the very tensors of the module."""
    if module is None:
        return {}
    known = {id(value): name.rpartition(".")[0] for name, value in module.named_parameters()}
    known |= {id(value): name.rpartition(".")[0] for name, value in module.named_buffers()}
    found = {}
    for node in traced.graph.nodes:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and id(getattr(traced, source.target, None)) in known:
                found.setdefault(node, known[id(getattr(traced, source.target))])
    return found


def _block_ends(traced, key) -> dict[str, fx.Node]:
    """Each layer of He et al. 2023, section 4.3: a convolution -> where its block ends, after normalisation and activation.

    Left out: what gives the answer itself or does not lead to it, what has no spatial extent or another batch, and upsampling by a
    transposed convolution alone.
    """
    answer = picked(traced, key)
    image = shape_of(next(n for n in traced.graph.nodes if n.op == "placeholder"))
    own, leads = answering(answer), leading(answer)
    found = {}
    for node in traced.graph.nodes:
        kind = _kind(node)
        if kind not in CONVOLUTIONS or node in own or node not in leads:
            continue
        end = node
        while True:
            # Programs keep outputs of a normalisation that nobody reads.
            users = [one for one in end.users if one.users or one.op == "output"]
            passes = len(users) == 1 and (
                users[0].target is operator.getitem or _kind(users[0]) in ("normalisation", "activation", "dropout")
            )
            if not passes or users[0].all_input_nodes[0] is not end:
                break
            end = users[0]
        shape = shape_of(end)
        if shape is None or len(shape) != len(image) or shape[0] != image[0]:
            continue
        if math.prod(shape[2:]) == 1 < math.prod(image[2:]):
            continue
        if kind == "convolution" or end is not node:
            found[node.name] = end
    return found


def leading(answer) -> set[fx.Node]:
    """The nodes that the answer depends on."""
    found, waiting = set(), [answer] if answer is not None else []
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def following(nodes, start) -> set[fx.Node]:
    """``start`` and the nodes that depend on it."""
    found = {start}
    for node in nodes:
        if any(one in found for one in node.all_input_nodes):
            found.add(node)
    return found


def last_uses(nodes) -> dict[int, list[fx.Node]]:
    """Position in ``nodes`` -> those whose outputs none of them reads after it."""
    at, found = {node: position for position, node in enumerate(nodes)}, {}
    for node in nodes:
        found.setdefault(max((at[user] for user in node.users), default=at[node]), []).append(node)
    return found


def changes_in_place(node: fx.Node) -> bool:
    """Whether an operation writes into its first input."""
    name = operation(node)
    return name.endswith("_") and not name.endswith("__") and bool(node.all_input_nodes)


def memory(nodes) -> dict[fx.Node, fx.Node]:
    """Node -> the one whose memory its output lies in: itself, unless it is a view or changes its input in place."""
    found = {}
    for node in nodes:
        views = operation(node) in VIEWS or node.target is operator.getitem
        shares = node.all_input_nodes and (views or changes_in_place(node))
        found[node] = found[node.all_input_nodes[0]] if shares else node
    return found


def shared_change(nodes) -> fx.Node | None:
    """The first node that changes in place what is read later under another name too (the graph does not tell who reads what); None where there is none."""
    at, root, named = {node: position for position, node in enumerate(nodes)}, memory(nodes), {}
    for node in nodes:
        names = named.setdefault(root[node], [])
        if changes_in_place(node) and any(at.get(user, len(at)) > at[node] for one in names for user in one.users):
            return node
        names.append(node)
    return None


def answering(answer) -> set[fx.Node]:
    """The nodes from which the answer comes without another convolution in between, the last convolutions included."""
    found, waiting = set(), [answer] if answer is not None else []
    while waiting:
        node = waiting.pop()
        if node in found or node.op != "call_function":
            continue
        found.add(node)
        if _kind(node) not in (*CONVOLUTIONS, "linear", "attention"):
            waiting += node.all_input_nodes
    return found


def _groups(shapes, size) -> list[str]:
    """Early, deep or late (Fig. 4): deep is between the first and the last layer at less than half of the finest resolution.

    Where no layer goes that deep, the paper's shares: 4 of 18 layers each are early and late.
    """
    steps = [max(round(n / m) for n, m in zip(size, shape)) for shape in shapes]
    deep = [at for at, step in enumerate(steps) if step > 2 * min(steps)]
    share = max(1, round(len(steps) * 4 / 18))
    first, last = (deep[0], deep[-1]) if deep else (share, len(steps) - share - 1)
    return ["early" if at < first else "late" if at > last else "deep" for at in range(len(steps))]


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
