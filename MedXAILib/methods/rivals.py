"""What other methods say of a classifier's answer, to compare with: gradient saliency and class activation maps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ..models import graph as graphs
from ..models.backward import SWITCHES
from ..models.reading import last_map

#: Operations that a global average pooling and a linear layer may be written with beside views; sums with what does not depend on the map.
_POOLING = ("mean", "adaptive_avg_pool", "avg_pool")
_LINEAR = ("linear", "addmm", "mm", "matmul")


def saliency(model, x: Tensor, label: int) -> Tensor:
    """|∂z_c/∂x|, the largest over channels (Simonyan et al. 2014, section 3.1).

    Parameters
    ----------
    model : Model
        A classifier; it is left as it was.
    x : Tensor, shape (1, C, *spatial)
        In network units, on the model's device.
    label : int
        The class c, whose logit z_c is followed.

    Returns
    -------
    Tensor, shape (*spatial), float32

    Raises
    ------
    MedXAIError
        As `Model.logits` and `Model.gradient`.
    """
    with model.frozen(), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        return model.gradient(model.logits(x)[0, label], x)[0].abs().amax(0)


def cam(model, x: Tensor, label: int) -> tuple[Tensor, str]:
    """Grad-CAM (Selvaraju et al. 2017) at the network's last map: relu(Σ_k a_k A_k), a_k the mean of ∂z_c/∂A_k, brought to the input's grid linearly.

    Where only a global average pooling and one linear layer (or convolution of 1) follow the map, a_k is that layer's weight up to one positive
    factor, so it is CAM (Zhou et al. 2016), rectified. Parameters as in `saliency`; any network that has a graph will do (programs, functional and
    in-place operations).

    Returns
    -------
    map, name : Tensor, shape (*spatial), float32; str
        ``CAM`` or ``Grad-CAM``.

    Raises
    ------
    MedXAIError
        When the network has no convolution or no map (`last_map`), and as `Model.logits` and `Model.gradient`.
    """
    with model.frozen(), torch.enable_grad():
        tap = _Tap(model.graph(x), last_map(model, x.shape[2:]).output)
        try:
            with graphs.no_autocast(x.device):
                output = tap.run(x.detach().clone())
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise model.refusal(error, x) from error
        slope = model.gradient(model.answer(output, x)[0, label], tap.map)
        seen = tap.map.detach()
    spatial = tuple(range(2, x.ndim))
    found = (slope.mean(spatial, keepdim=True) * seen).sum(1, keepdim=True).clamp(min=0)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(spatial)]
    found = F.interpolate(found.float(), x.shape[2:], mode=mode, align_corners=False)[0, 0]
    return found, "CAM" if _pooled_linear(tap, model) else "Grad-CAM"


class _Tap(fx.Interpreter):
    """Runs a graph as it stands, in full precision, and cuts it at a node: ``map`` is the node's output, which gradients can be taken of."""

    def __init__(self, traced, at: str):
        super().__init__(traced)
        self.extra_traceback = False
        self.at, self.map = next(node for node in traced.graph.nodes if node.name == at), None

    def run_node(self, node):
        if any(word in str(node.target) for word in SWITCHES):
            return None
        value = super().run_node(node)
        if node is self.at:
            self.map = value.detach().clone().requires_grad_()
            return self.map.clone()  # which the network may change in place
        return value


def _pooled_linear(tap, model) -> bool:
    """Whether the answer is the linear layer of the map's global average, whatever operations that is written with."""
    traced = tap.module
    nodes = list(traced.graph.nodes)
    after = graphs.following(nodes, tap.at)
    later = (after - {tap.at}) & graphs.leading(graphs.picked(traced, model.package.output.key))
    pools = linears = 0
    for node in later:
        name, shape, first = graphs.operation(node), graphs.shape_of(node), graphs.shape_of(node.all_input_nodes[0])
        if name.startswith(_POOLING):
            pools += 1
            if shape[:2] != first[:2] or math.prod(shape[2:]) > 1:
                return False
        elif name in _LINEAR or (
            name.startswith("conv") and math.prod(graphs.shape_of(node.all_input_nodes[1])[2:]) == 1
        ):
            linears += 1
        elif name in ("add", "add_"):
            if sum(one in after for one in node.all_input_nodes) > 1:
                return False
        elif name not in (*graphs.VIEWS, "clone", "dropout_"):
            return False
    return (pools, linears) == (1, 1) and model.package.output.activation != "none"
