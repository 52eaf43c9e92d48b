"""The rivals of Katzmann et al. 2021 (section 3.4), to compare with: DeepSHAP, DeepTaylor, LRP, and the plain gradient.

All explain the same number f of a classifier: z_positive − z_negative, the logits' difference (with softmax of two classes the log-odds), or z_positive where each label stands
for itself. Positive relevance speaks for the positive class. Maps lie on the network's grid, summed over channels.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor, fx, nn

from ..errors import MedXAIError
from ..models import graph as graphs
from ..models.backward_rules import RECTIFIERS
from ..models.canonical import LINEAR, Clone, Windows, canonical

TOLERANCE = 0.01  # of the explained output, by which sums of relevance may miss it
LEAST = 0.1  # logits: an explained output nearer to 0 counts as this much
#: Operations that relevance goes back through in the shares of their inputs' values: what they do is a sum of these with fixed factors, and of constants.
_SUMS = {
    "add", "sub", "neg", "rsub", "cat", "concat", "stack", "sum", "mean", "pad", "constant_pad_nd", "clone", "flip", "roll", "mul", "div",
} | graphs.VIEWS  # fmt: skip
_POINTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Tanh)  # with f(0) = 0
#: What the image's box is followed through, where nothing else that depends on the image comes in.
_TRAIL = graphs.VIEWS | {"clone", "pad", "constant_pad_nd", "add", "sub", "rsub", "neg", "mul", "div"}


@dataclass(frozen=True)
class Attribution:
    """A map with what it must add up to.

    Attributes
    ----------
    map : Tensor, shape (*spatial), float32
        Signed relevance of each voxel for the positive class.
    explained : float
        What it ought to sum to: f(x); for DeepSHAP f(x) minus the mean of f over the background. NaN for the gradient, which sums to nothing.
    total : float
        What it sums to.
    biases : float
        Relevance that biases keep, so that total + biases is f(x): of LRP those of layers, of LRP and DeepTaylor the constants that the network adds by itself.
    """

    map: Tensor
    explained: float
    total: float
    biases: float = 0.0

    @property
    def error(self) -> float:
        """|total − explained| as a share of |explained| (at least `LEAST`): 0 where completeness (DeepSHAP) or conservation (LRP, DeepTaylor) holds."""
        return abs(self.total - self.explained) / max(abs(self.explained), LEAST)

    @property
    def holds(self) -> bool | None:
        """Whether it does within `TOLERANCE`; None for the gradient."""
        return None if math.isnan(self.explained) else self.error <= TOLERANCE


def target(model, label: int, negative: int | None = None) -> list[float]:
    """The factors of the logits in f: 1 for ``label`` and −1 for ``negative``; without one the other of two classes, or minus the others' mean (softmax)."""
    count = len(model.labels)
    factors = [0.0] * count
    if negative is not None:
        factors[negative] = -1.0
    elif model.package.output.activation == "softmax" and count > 1:
        factors = [-1.0 / (count - 1)] * count
    factors[label] = 1.0
    return factors


def gradient(model, x: Tensor, label: int, background=None, negative: int | None = None) -> Attribution:
    """∂f/∂x with its sign (Simonyan et al. 2014, without the magnitude). Parameters as `lrp`; ``background`` means nothing here."""
    with model.frozen(), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        f = model.logits(x)[0] @ torch.tensor(target(model, label, negative), device=x.device)
        found = model.gradient(f, x)[0].sum(0)
    return Attribution(found, math.nan, float(found.double().sum()))


def deepshap(model, x: Tensor, label: int, background: Tensor, negative: int | None = None, at_once: int = 0) -> Attribution:  # fmt: skip
    """DeepSHAP (Lundberg & Lee 2017): DeepLIFT's rescale rule (Shrikumar et al. 2017), the mean over the images of a background; by captum.

    Captum sees the network in its canonical form (`models.canonical`), without which it refuses rectifiers that are used twice, overlooks functional ones, and is
    wrong where a rectifier stands before a max-pooling. What it knows no rule for takes the gradient: completeness then fails, and ``error`` says so.

    Parameters
    ----------
    model, x, label, negative
        As `lrp`.
    background : Tensor, shape (n, C, *spatial)
        Images to compare with, in network units.
    at_once : int
        Images of the background in one pass; 0: 16 in 2-D, 4 in 3-D.

    Raises
    ------
    MedXAIError
        ``missing`` without captum 0.9 or later; as `canonical`; when the memory does not suffice.
    """
    captum = require_captum()
    if background is None or not len(background) or background.shape[1:] != x.shape[1:]:
        raise MedXAIError("DeepSHAP needs a background: images of the same shape to compare with.")
    weights = target(model, label, negative)
    parts = -(-len(background) // (at_once or (16 if x.ndim == 4 else 4)))
    found, explained = 0.0, 0.0
    with model.frozen(), torch.enable_grad():
        for some in background.detach().tensor_split(parts):
            network = _checked(model, torch.cat([x.detach(), some]), weights, 2 * len(some))
            try:
                with graphs.no_autocast(x.device), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that it sets hooks, which it takes away again
                    pairs = x.detach().expand_as(some).contiguous(), some.contiguous()
                    values = captum.DeepLift(network).attribute(*pairs)  # DeepLiftShap refuses one image alone
            except (RuntimeError, AssertionError) as error:
                raise model.refusal(error, x) from error
            found = found + values.detach().sum((0, 1)) / len(background)
            logits = torch.cat([model.logits(one.detach()[None]) for one in (*x, *some)]).detach().double()
            f = logits @ torch.tensor(weights, dtype=torch.double, device=x.device)
            explained += float((f[0] - f[1:]).sum()) / len(background)
    return Attribution(found, explained, float(found.double().sum()))


def lrp(model, x: Tensor, label: int, background=None, negative: int | None = None, epsilon: float = 1e-6) -> Attribution:  # fmt: skip
    """Layer-wise relevance propagation by the ε rule (Bach et al. 2015, eq. 58): R_i = Σ_j z_ij / (z_j + ε sign z_j) R_j in every layer.

    z_j holds the bias, so biases (and constants that the network adds by itself) keep their share: f = total + biases, but for ε. With ε this small and rectifiers alone it is the gradient times x (Ancona et al. 2018).

    Parameters
    ----------
    model : Model
        A classifier that gives logits; it is left as it was. Any format; 2-D and 3-D.
    x : Tensor, shape (1, C, *spatial)
        In network units, on the model's device.
    label, negative : int
        See `target`.
    background
        Means nothing here.
    epsilon : float
        ε, in the units of the layers' outputs.

    Raises
    ------
    MedXAIError
        As `canonical`; naming the node that has no rule.
    """
    return _propagated(model, x, target(model, label, negative), "LRP", epsilon, None)


def deep_taylor(model, x: Tensor, label: int, background=None, negative: int | None = None, low=None, high=None) -> Attribution:  # fmt: skip
    """Deep Taylor decomposition (Montavon et al. 2017): the z⁺ rule in hidden layers (LRP's α = 1, β = 0), the z^B rule at the image's box; no biases.

    The z^B rule holds in layers that get the image itself, also behind views, padding and arithmetic with constants; behind anything else, such as a pooling, z⁺ does.

    It decomposes what the network answers, so it explains f where f ≥ 0 and −f where f < 0, the map then with a minus. Of convolutions, linear layers, rectifiers
    and poolings all of a map has one sign, and it sums to f where every layer that has relevance has a positive part; a constant that is added anywhere else than
    as a layer's bias or at the image keeps its share (``biases``).

    Parameters
    ----------
    model, x, label, background, negative
        As `lrp`.
    low, high : sequence of float, one per channel, optional
        Least and largest value that a voxel can have, in network units (`models.geometry.Prepared`); by default those of ``x``.
    """
    values = x.detach()[0].flatten(1)
    box = [
        (torch.as_tensor(given, dtype=x.dtype, device=x.device) if given is not None else found).reshape(1, -1, *[1] * (x.ndim - 2))
        for given, found in ((low, values.amin(1)), (high, values.amax(1)))
    ]  # fmt: skip
    return _propagated(model, x, target(model, label, negative), "DeepTaylor", 0.0, box)


#: By name, in the paper's order; the gradient is ours.
RIVALS = {"deepshap": deepshap, "deeptaylor": deep_taylor, "lrp": lrp, "gradient": gradient}
TITLES = {"deepshap": "DeepSHAP", "deeptaylor": "DeepTaylor", "lrp": "LRP", "gradient": "Gradient"}


def require_captum():
    """Captum's attributions; refused (``missing``) where it is not there, or older than 0.9."""
    try:
        from captum import attr

        new = tuple(map(int, re.findall(r"\d+", version("captum"))[:2])) >= (0, 9)
    except ImportError:
        new = False
    if not new:
        raise MedXAIError(
            "DeepSHAP needs captum 0.9 or later; install it with 'pip install --upgrade captum'.", kind="missing"
        )
    return attr


def _checked(model, x, weights, number: int) -> fx.GraphModule:
    """The canonical network for ``number`` images of the shape of ``x``; refused where it does not compute what the network does."""
    network = canonical(model, x[:1].expand(number, *x.shape[1:]), weights)
    if network.meta.get("checked"):
        return network
    with torch.no_grad(), graphs.no_autocast(x.device):
        given = torch.cat([x, x[:1].expand(number - len(x), *x.shape[1:])]) if number > len(x) else x[:number]
        ours, theirs = network(given.clone()), model.logits(x[:1])[0].double() @ torch.tensor(weights).to(x.device, torch.double)  # fmt: skip
    if not abs(float(ours[0]) - float(theirs)) <= 1e-3 * max(1.0, abs(float(theirs))):
        raise MedXAIError(
            f"'{model.package.name}' cannot be taken apart layer by layer: so it gives {float(ours[0]):.6g}, not {float(theirs):.6g}."
        )
    network.meta["checked"] = True
    return network


def _propagated(model, x, weights, title, epsilon, box) -> Attribution:
    with model.frozen(), torch.enable_grad(), graphs.no_autocast(x.device):
        network = _checked(model, x.detach(), weights, 1)
        with torch.no_grad():
            f = float(network(x.detach().clone()))
        sign = -1.0 if box is not None and f < 0 else 1.0
        leaves = [x.detach().clone(), *(one.expand_as(x).clone() for one in box or ())]
        leaves = [one.requires_grad_() for one in leaves]
        walk = _Relevance(network, model.package.name, title, epsilon, sign, leaves[1:])
        try:
            out = walk.run(leaves[0])
            wanted = leaves + walk.biases
            slopes = torch.autograd.grad(out.sum(), wanted, allow_unused=True)
        except (RuntimeError, ValueError) as error:
            raise model.refusal(error, x) from error
        parts = [torch.zeros_like(a) if g is None else a.detach() * g for a, g in zip(wanted, slopes)]
    found = sign * sum(parts[: len(leaves)])[0].sum(0)
    kept = sign * sum(float(one.double().sum()) for one in parts[len(leaves) :])
    return Attribution(found, f, float(found.double().sum()), kept)


class _Passed(torch.autograd.Function):
    """A layer's output whose backward pass is that of ``base``, by a factor for each of its values."""

    @staticmethod
    def forward(ctx, base, value, factor):
        ctx.save_for_backward(factor)
        return value.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None, None


class _Relevance(fx.Interpreter):
    """Runs a canonical network so that the backward pass carries c = R/value to each value, whose relevance then is R = value · c.

    Sums, views and poolings need no rule of their own in these terms: what c a sum gets, its terms get, and so each its share.
    """

    def __init__(self, network, name, title, epsilon, sign, box):
        super().__init__(network)
        self.extra_traceback = False
        self.name, self.title, self.epsilon, self.sign, self.box = name, title, epsilon, sign, box
        self.source = next(node for node in network.graph.nodes if node.op == "placeholder")
        self.moving = graphs.following(list(network.graph.nodes), self.source)
        self.low, self.high = ({self.source: one} for one in box) if box else ({}, {})
        self.biases: list[Tensor] = []

    def run_node(self, node):
        if node not in self.moving or node.op in ("placeholder", "output"):
            return super().run_node(node)
        operation = graphs.operation(node)
        if operation in LINEAR:
            return self._linear(node, operation)
        moved = [one for one in node.all_input_nodes if one in self.moving]
        module = self.module.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, _POINTWISE) or (operation in RECTIFIERS and len(moved) == 1 and not self._at_zero(node).any()):  # fmt: skip
            x, value = self.env[moved[0]], super().run_node(node)
            x, found = x.detach(), value.detach()
            return _Passed.apply(self.env[moved[0]], found, torch.where(x.abs() > 1e-12, found / x, 0))
        product = False
        if operation in ("mul", "div"):  # x · x, too, is no multiple of x
            first, second = (graphs.arguments(node)[one] in self.moving for one in ("self", "other"))
            product = second and (first or operation == "div")
        if product or not (
            isinstance(module, (Clone, Windows, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d))
            or operation in _SUMS or "avg_pool" in operation or "max_pool" in operation or operation.startswith("upsample")
            or (node.op == "call_function" and not operation)  # picks of several outputs
        ):  # fmt: skip
            raise MedXAIError(f"'{self.name}' cannot be explained by {self.title}: its node '{node.name}' ({operation or type(module).__name__}) has no rule.")  # fmt: skip
        added = self._at_zero(node) if operation in _SUMS - graphs.VIEWS else None
        if self.box and operation in _TRAIL and len(moved) == 1 and moved[0] in self.low:
            a, b = (self._counted(self._run(node, ends), added) for ends in (self.low, self.high))
            picks = isinstance(a, (tuple, list))  # several outputs, of a view
            self.low[node], self.high[node] = (a, b) if picks else (torch.minimum(a, b), torch.maximum(a, b))
        return self._counted(super().run_node(node), added)

    def _run(self, node, values):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda one: values.get(one, self.env.get(one)))
        return node.target(*args, **kwargs)

    def _at_zero(self, node) -> Tensor:
        """What an operation gives where all that depends on the image is 0: the constants that it adds."""
        with torch.no_grad():
            return self._run(node, {one: torch.zeros_like(self.env[one]) for one in node.all_input_nodes if one in self.moving})  # fmt: skip

    def _counted(self, value, added):
        """The value, its constants among the biases."""
        if added is None or not added.any():
            return value
        self.biases.append(added.detach().clone().requires_grad_())
        return value + (self.biases[-1] - added)

    def _linear(self, node, operation):
        names, given = LINEAR[operation], graphs.arguments(node)
        source, weight, bias = (given.get(one) for one in names)
        if any(isinstance(one, fx.Node) and one in self.moving for one in (weight, bias)):
            raise MedXAIError(f"'{self.name}' cannot be explained by {self.title}: its node '{node.name}' ({operation}) multiplies two layers.")  # fmt: skip
        given = fx.node.map_arg(given, self.env.__getitem__)
        x, weight, bias = (given.get(one) for one in names)
        if node.name == "head" and self.sign < 0:
            weight, bias = -weight, None if bias is None else -bias

        def layer(x, weight, bias=None):
            values = given | {names[0]: x, names[1]: weight}
            if operation == "addmm" and bias is None:
                values |= {"beta": 0}
            elif names[2]:
                values[names[2]] = bias
            named = node.target._schema.arguments
            return node.target(*(values[one.name] for one in named if not one.kwarg_only), **{one.name: values[one.name] for one in named if one.kwarg_only})  # fmt: skip

        if not self.box:  # ε
            if bias is not None:
                bias = bias.detach().clone().requires_grad_()
                self.biases.append(bias)
            base = layer(x, weight, bias)
            value = base.detach()
            return _Passed.apply(base, value, value / (value + self.epsilon * torch.where(value < 0, -1.0, 1.0)))
        with torch.no_grad():
            value = layer(x, weight, bias)
        positive, negative = weight.clamp(min=0), weight.clamp(max=0)
        if source in self.low:
            base = layer(x, weight) - layer(self.low[source], positive) - layer(self.high[source], negative)
        else:
            base = layer(x.clamp(min=0), positive) + layer(x.clamp(max=0), negative)
        there = base.detach()
        return _Passed.apply(base, value, torch.where(there.abs() > 1e-12, value / there, 0))
