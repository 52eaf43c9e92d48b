"""What each operation of a graph makes of signals on their way back to the image (see `backward`)."""

from __future__ import annotations

import math
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from . import graph as graphs

#: Rectifiers and their kin, by ATen name without a trailing underscore.
RECTIFIERS = {
    "relu", "relu6", "hardtanh", "threshold", "clamp", "clamp_min", "leaky_relu", "rrelu", "prelu", "_prelu_kernel", "elu", "selu", "celu",
    "gelu", "silu", "mish", "softplus", "hardswish",
}  # fmt: skip
#: Those that cut at an argument, and its name: rectifiers where it is 0.
_CUTS = {"hardtanh": "min_val", "threshold": "threshold", "clamp": "min", "clamp_min": "min"}
#: What gives constants: no signal comes back through it, and that is right.
_STEPS = {
    "round",
    "floor",
    "ceil",
    "trunc",
    "sign",
    "heaviside",
    "detach",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
}
#: Operations whose way back is the same for every image, beside convolutions, averages and views.
_LINEAR = {
    "add", "sub", "neg", "rsub", "cat", "concat", "stack", "sum", "mean", "linear", "pad", "constant_pad_nd", "clone", "flip", "roll", "getitem",
    "_native_batch_norm_legit_no_training",
} | graphs.VIEWS  # fmt: skip
_CONVOLUTION = {"weight", "stride", "padding", "dilation", "groups"}  # arguments
_CONV, _UNCONV = (
    (None, F.conv1d, F.conv2d, F.conv3d),
    (None, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
)


class CannotSend(Exception):
    """Why signals cannot be followed back through an operation, in words."""


@dataclass
class Signal:
    """What comes back to a node, one row for each filter that was sent.

    ``values`` has shape (n, *shape of the node); with ``channels``, (n, N, 1, *spatial): row m is 0 in all channels but ``channels[m]``.
    """

    values: Tensor
    channels: Tensor | None = None

    def wide(self, shape: Sequence[int]) -> Tensor:
        """The values in all channels, shape (n, *shape)."""
        if self.channels is None:
            return self.values
        full = self.values.new_zeros((len(self.values), *shape))
        full[torch.arange(len(full), device=full.device), :, self.channels] = self.values[:, :, 0]
        return full

    def like(self, per_channel: Tensor) -> Tensor:
        """A tensor (N, channels, *rest) laid out as the values are, to be multiplied with them."""
        if self.channels is None:
            return per_channel[None]
        return per_channel[:, self.channels].transpose(0, 1).unsqueeze(2)


Back = Callable[[Signal], "list[tuple[fx.Node, Signal]]"]


@dataclass
class Rules:
    """How signals go back, and what was met on the way.

    ``rectifiers``, ``derivatives`` and ``stopped`` count the operations that follow the rule, that take their derivative at the image, and that
    let nothing back; ``overlapping`` the max-poolings with windows that share a switch, ``colliding`` the windows that do. ``channelwise`` are the
    nodes whose channels do not mix.
    """

    rule: str = "deconvnet"
    collisions: str = "sum"
    rectifiers: Counter = field(default_factory=Counter)
    derivatives: Counter = field(default_factory=Counter)
    stopped: Counter = field(default_factory=Counter)
    overlapping: int = 0
    colliding: int = 0
    channelwise: set[fx.Node] = field(default_factory=set)
    _transposes: dict = field(default_factory=dict)

    def takes_one_channel(self, node: fx.Node) -> bool:
        """Whether a signal in one channel goes back through a node without the others being written down."""
        transpose = self._transposes.get(node)
        return transpose is not None and transpose.narrow

    def record(self, node: fx.Node, values: dict, moved: Collection[fx.Node]) -> tuple[object, Back | None]:
        """Compute a node, and how signals go back through it.

        Parameters
        ----------
        values : dict
            Node -> value, of everything the node reads.
        moved : collection of nodes
            Those that depend on the image and lead to the layer.

        Returns
        -------
        value, back : object, callable or None
            None where nothing comes back.

        Raises
        ------
        CannotSend
        """
        name = graphs.operation(node).removesuffix("_")
        sources = [one for one in node.all_input_nodes if one in moved]
        if len(sources) == 1 and node.args[:1] == (sources[0],) and isinstance(values[sources[0]], Tensor):
            given = fx.node.map_arg(graphs.arguments(node), values.__getitem__)
            special = self._special(node, name, sources[0], given)
            if special is not None:
                self.channelwise |= {node} - self._transposes.keys()
                return special
        return self._island(node, name or getattr(node.target, "__name__", ""), sources, values)

    def _special(self, node, name, source, given):
        """Operations with a rule of their own; None for others."""
        x = next(iter(given.values()))
        cut = given.get(_CUTS.get(name), 0)
        if name in RECTIFIERS and isinstance(cut, (int, float)) and cut == 0:
            self.rectifiers[name] += 1
            return self._rectifier(node, source, given)
        if name.startswith(("max_pool", "adaptive_max_pool")) and x.ndim == 2 + int(name[name.index("pool") + 4]):
            return self._pooling(node, name, source, given)
        if name == "dropout" and not given["train"]:
            return x, lambda signal: [(source, signal)]
        if name == "batch_norm" and not given["training"]:
            scale = torch.rsqrt(given["running_var"] + given["eps"])
            scale = scale if given["weight"] is None else scale * given["weight"]
            if source in self._transposes and len(source.users) == 1:  # one pass over the signals less
                self._transposes[source].scale(scale)
                return _call(node, given), lambda signal: [(source, signal)]
            scale = scale.reshape(1, -1, *[1] * (x.ndim - 2))
            return _call(node, given), lambda signal: [(source, Signal(signal.values * signal.like(scale), signal.channels))]  # fmt: skip
        if _CONVOLUTION <= given.keys() and not isinstance(given["padding"], str) and x.ndim == given["weight"].ndim:
            back = self._transposes[node] = _Transpose(given, tuple(x.shape), graphs.shape_of(node))
            return _call(node, given), lambda signal: [(source, back(signal))]
        return None

    def _rectifier(self, node, source, given):
        if self.rule == "deconvnet":
            return _call(node, given), lambda signal: [(source, Signal(signal.values.clamp(min=0), signal.channels))]
        with torch.enable_grad():
            first, x = next(iter(given.items()))
            leaf = x.detach().requires_grad_()
            value = _call(node, given | {first: leaf})
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        if self.rule == "guided":
            slope = slope.clamp(min=0)

        def back(signal):
            g = signal.values if self.rule == "gradient" else signal.values.clamp(min=0)
            return [(source, Signal(g * signal.like(slope), signal.channels))]

        return value.detach(), back

    def _pooling(self, node, name, source, given):
        """Max-pooling: a signal goes back to where its window's maximum was."""
        x, size, *rest = given.values()
        kind = "adaptive_max_pool" if name.startswith("adaptive") else "max_pool"
        options = dict(zip(("stride", "padding", "dilation", "ceil_mode"), rest)) if kind == "max_pool" else {}
        options = {key: value for key, value in options.items() if value != []}  # the operation's own "as the kernel"
        value, switches = getattr(F, f"{kind}{x.ndim - 2}d")(x, size, **options, return_indices=True)
        low, number = tuple(x.shape[2:]), math.prod(x.shape[2:])
        at, keep = switches.flatten(2), None
        windows = torch.zeros((*at.shape[:2], number), dtype=torch.int32, device=x.device)
        windows.scatter_add_(2, at, torch.ones_like(at, dtype=torch.int32))
        shared = windows.gather(2, at) > 1
        if shared.any():
            self.overlapping, self.colliding = self.overlapping + 1, self.colliding + int(shared.sum())
            if self.collisions == "overwrite":
                order = torch.arange(at.shape[2], device=x.device).expand(at.shape)
                last = torch.zeros((*at.shape[:2], number), dtype=order.dtype, device=x.device)
                keep = last.scatter_reduce_(2, at, order, "amax").gather(2, at) == order

        def back(signal):
            g = signal.values.flatten(3)
            g = g if keep is None else g * signal.like(keep)
            full = g.new_zeros((*g.shape[:3], number))
            full.scatter_add_(3, signal.like(at).expand(g.shape), g)
            return [(source, Signal(full.unflatten(3, low), signal.channels))]

        several = any(user.target is operator.getitem for user in node.users)
        return ((value, switches), lambda signal: back(signal[0])) if several else (value, back)

    def _island(self, node, name, sources, values):
        """Any other operation: the derivative that autograd knows of this one node."""
        if node.target is operator.getitem:
            (source,), number = sources, node.args[1]
            return values[source][number], lambda signal: [(source, {number: signal})]
        leaves = {one: values[one].detach().requires_grad_() for one in sources if _real(values[one])}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda one: leaves.get(one, values[one]))
        with torch.enable_grad():
            out = pure(node)(*args, **kwargs)
        several = isinstance(out, (tuple, list))
        outs = list(out) if several else [out]
        value = [one.detach() if isinstance(one, Tensor) else one for one in outs]
        value = value if several else value[0]
        if not any(isinstance(one, Tensor) and one.requires_grad for one in outs):
            if leaves and name not in _STEPS and any(_real(one) for one in outs):
                raise CannotSend("torch knows no derivative of it")
            if leaves:
                self.stopped[name] += 1
            return value, None
        moving = [one for one in (*node.args, *node.kwargs.values()) if one in leaves] if name in ("mul", "div") else ()
        linear = name in _LINEAR or (len(moving) == 1 and (name == "mul" or node.args[0] in leaves))
        if not linear and not any(word in name for word in ("conv", "avg_pool", "upsample", "pad")):
            self.derivatives[name] += 1

        def back(signal):
            signals = {n: one.wide(outs[n].shape) for n, one in (signal if several else {0: signal}).items()}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an operation that goes filter by filter is slower, not wrong
                found = torch.autograd.grad(
                    [outs[n] for n in signals], list(leaves.values()), list(signals.values()), retain_graph=True, allow_unused=True,
                    is_grads_batched=True,
                )  # fmt: skip
            return [(one, Signal(g)) for one, g in zip(leaves, found) if g is not None]

        return value, back


def pure(node: fx.Node) -> Callable:
    """The operation of a node, the one that gives a new tensor where it would change its input in place."""
    target, schema = node.target, getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return target
    name = schema.name.split("::")[-1]
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    overload = getattr(packet, schema.overload_name or "default", None)
    if overload is None:
        raise CannotSend("it changes its input in place")
    return overload


def _call(node, given):
    schema = pure(node)._schema
    plain = {a.name: given[a.name] for a in schema.arguments if not a.kwarg_only}
    return pure(node)(*plain.values(), **{a.name: given[a.name] for a in schema.arguments if a.kwarg_only})


def _real(value) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


class _Transpose:
    """The way back through a convolution from an input of ``shape`` to an output of shape ``out``: itself a convolution."""

    def __init__(self, given, shape, out):
        self.weight, self.groups, self.shape, self.out = given["weight"], given["groups"], shape, out
        self.upward: bool = given.get(
            "transposed", "output_padding" in given
        )  # the convolution is itself a transposed one
        self.narrow = self.groups == 1 and not self.upward
        dims = self.dims = len(shape) - 2
        self.stride, self.padding, self.dilation = (
            list(given[name]) * (dims if len(given[name]) == 1 else 1) for name in ("stride", "padding", "dilation")
        )
        sizes = zip(shape[2:], out[2:], self.stride, self.padding, self.dilation, self.weight.shape[2:])
        self.more = [n - ((o - 1) * s - 2 * p + d * (k - 1) + 1) for n, o, s, p, d, k in sizes]

    def scale(self, factors: Tensor) -> None:
        """Take a factor for each output channel into the weights."""
        if self.upward:
            groups = factors.reshape(self.groups, 1, -1).expand(-1, len(self.weight) // self.groups, -1)
            factors = groups.flatten(0, 1)
        self.weight = self.weight * factors.reshape(*factors.shape, *[1] * (self.weight.ndim - factors.ndim))

    def __call__(self, signal: Signal) -> Signal:
        more = (self.stride, self.padding, self.more)
        if self.upward:
            g = signal.wide(self.out)
            found = _CONV[self.dims](g.flatten(0, 1), self.weight, None, *more[:2], self.dilation, self.groups)
            inside = (slice(None), slice(None), *(slice(n) for n in self.shape[2:]))
            return Signal(found[inside].unflatten(0, g.shape[:2]))
        if signal.channels is not None and self.narrow:  # each row needs the weights of one filter only
            rows = zip(signal.values, signal.channels.tolist())
            return Signal(
                torch.stack(
                    [_UNCONV[self.dims](g, self.weight[c : c + 1], None, *more, 1, self.dilation) for g, c in rows]
                )
            )
        g = signal.wide(self.out)
        found = _UNCONV[self.dims](g.flatten(0, 1), self.weight, None, *more, self.groups, self.dilation)
        return Signal(found.unflatten(0, g.shape[:2]))
