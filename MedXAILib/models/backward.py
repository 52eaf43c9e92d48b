"""Sending the activations of a layer back to the image, through any network's graph, by the rule of a deconvnet.

Zeiler & Fergus 2014 invert a network stage by stage: unpooling with the switches of the forward pass, the rectifier applied to the signal, and the
transposed filters. That is the backward pass of the network in which every rectifier lets the positive part of the signal through; written so, it
holds for any graph (skip connections, concatenations, normalisation).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Generator, Mapping, Sequence

import torch
from torch import Tensor, fx

from ..errors import MedXAIError
from . import graph as graphs
from .backward_rules import RECTIFIERS, CannotSend, Rules, Signal, pure

SWITCHES = (
    "set_grad_enabled",
    "enter_autocast",
    "exit_autocast",
    "inference_mode",
)  # of a program: nothing to compute


class Recording:
    """One forward pass of a network, from which signals can be sent back from a layer to the image.

    Parameters
    ----------
    model : Model
        The caller holds it still (`Model.frozen`).
    x : Tensor, shape (1, C, *spatial)
        In network units, on the model's device.
    layer : str
        Name of the node whose channels are the filters; its output has shape (1, filters, *low).
    rule : str
        What a rectifier f (ReLU and its kin: leaky, parametric, ELU, GELU, SiLU…) at input a makes of a signal g on its way back: ``deconvnet``
        max(g, 0); ``gradient`` f′(a) g; ``guided`` max(f′(a), 0) max(g, 0). Everything else is transposed, or takes its derivative at x.
    collisions : str
        Max-pooling puts a signal back where its window's maximum was. Where overlapping windows share it: ``sum`` (the transpose), or
        ``overwrite`` (the last window in reading order counts, as in an unpooling that writes one after another).
    weights : mapping of str to Tensor, optional
        Weights to use in place of the graph's, by target.

    Attributes
    ----------
    rules : Rules
        What was met between image and layer.
    activation : Tensor, shape (1, filters, *low)
        The layer's output; after `forward`.
    logits : Tensor, shape (1, labels)
        The network's answer, in full precision throughout; after `forward`.
    rectified, autocast : bool
        Whether the layer is itself a rectifier (or of their kin), which the rule applies to first; whether the network asks for less
        precision somewhere.
    """

    def __init__(
        self, model, x: Tensor, layer: str, rule: str = "deconvnet", collisions: str = "sum", weights: Mapping[str, Tensor] | None = None
    ):  # fmt: skip
        self.model, self.x, self.weights, self.rules = model, x, weights or {}, Rules(rule, collisions)
        self.traced = model.graph(x)
        *self.nodes, self.out = self.traced.graph.nodes
        self.layer = next(node for node in self.nodes if node.name == layer)
        self.source = next(node for node in self.nodes if node.op == "placeholder")
        leading, moving = graphs.leading(self.layer), graphs.following(self.nodes, self.source)
        answer = graphs.picked(self.traced, model.package.output.key)
        self.later = (graphs.following(self.nodes, self.layer) - {self.layer}) & graphs.leading(answer)
        self.rectified = graphs.operation(self.layer).removesuffix("_") in RECTIFIERS
        self.autocast = any("enter_autocast" in str(node.target) for node in self.nodes)
        self.path = [node for node in self.nodes if node in moving and node in leading]
        if not self.path:
            raise MedXAIError(
                f"The layer '{layer}' of '{model.package.name}' does not depend on the image; choose another."
            )
        self._back: dict = {}
        self._beside: dict = {}  # what the rest of the network reads beside the layer
        self._refuse_shared_changes()

    # ---- there -------------------------------------------------------------------------------------------------------

    def forward(self) -> Generator[float, None, None]:
        """Compute the network once and keep what the way back needs; yields the share that is done."""
        values, path, last = {}, set(self.path), graphs.last_uses([*self.nodes, self.out])
        for position, node in enumerate(self.nodes):
            values[node] = self._value(node, values, path)
            if node in self.later:
                beside = (n for n in node.all_input_nodes if n not in self.later and n is not self.layer)
                self._beside.update({n: values[n] for n in beside})
            if node is self.layer:
                self.activation = values[node]
            for gone in last.get(position, ()):
                del values[gone]
            yield (position + 1) / len(self.nodes)
        self.logits = self._answer(values)

    def answer_with(self, activation: Tensor) -> Tensor:
        """The logits, shape (1, labels), if this were the layer's output: only what comes after it is computed."""
        values = {**self._beside, self.layer: activation}
        for node in self.nodes:
            if node in self.later:
                values[node] = self._value(node, values, ())
        return self._answer(values)

    def _answer(self, values) -> Tensor:
        return self.model.answer(fx.node.map_arg(self.out.args[0], values.get), self.x)

    def _value(self, node, values, path):
        if node.op == "placeholder":
            return self.x
        if node.op == "get_attr":
            replaced = self.weights.get(node.target)
            return getattr(self.traced, node.target) if replaced is None else replaced
        if any(word in str(node.target) for word in SWITCHES):
            return None
        if node.op != "call_function" or not (graphs.operation(node) or node.target is operator.getitem):
            raise self._refusal(node, "it is not a plain operation")
        try:
            with torch.no_grad(), graphs.no_autocast(self.x.device):
                if node in path:
                    value, self._back[node] = self.rules.record(node, values, path)
                    return value
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                return pure(node)(*args, **kwargs)
        except CannotSend as reason:
            raise self._refusal(node, str(reason)) from None
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
            if node not in path or "memory" in str(error):
                raise self.model.refusal(error, self.x) from error
            raise self._refusal(node, str(error).splitlines()[0][:200]) from error

    # ---- and back ----------------------------------------------------------------------------------------------------

    def send(self, filters: Sequence[int]) -> Generator[float, None, Tensor]:
        """Send the activation map of each filter back, all in one backward pass; yields the share that is done.

        Parameters
        ----------
        filters : sequence of int
            Channels of the layer, from 0.

        Returns
        -------
        Tensor, shape (n, C, *spatial)
            What arrives at the image, signed: the first convolution has no rectifier before it.
        """
        channels = torch.as_tensor(list(filters), device=self.x.device)
        waiting = {self.layer: Signal(self.activation[:, channels].transpose(0, 1).unsqueeze(2), channels)}
        for position, node in enumerate(reversed(self.path)):
            signal = waiting.pop(node, None)
            if node is self.source:
                break
            back = self._back[node]
            if signal is not None and back is not None:
                try:
                    with torch.no_grad(), graphs.no_autocast(self.x.device):
                        for source, one in back(signal):
                            waiting[source] = self._sum(waiting.get(source), one, source)
                except RuntimeError as error:
                    if "memory" in str(error):
                        raise self.model.refusal(error, self.x) from error
                    raise self._refusal(node, str(error).splitlines()[0][:200]) from error
            signal = None
            yield (position + 1) / len(self.path)
        if signal is None:  # nothing leads back
            return self.x.new_zeros((len(channels), *self.x.shape[1:]))
        return signal.wide(self.x.shape)[:, 0]

    def _sum(self, there, one, node):
        """Signals that come back to a node from two sides; to one that gives several tensors, by number."""
        if isinstance(one, dict):
            shapes = node.meta["val"]
            return (there or {}) | {n: _added((there or {}).get(n), value, shapes[n].shape) for n, value in one.items()}
        return _added(there, one, graphs.shape_of(node))

    def bytes_per_filter(self) -> int:
        """About the most memory that one filter takes on its way back, float32: its signals, and as much again for what makes them."""
        waiting, most, narrow = {self.layer}, 0, {self.layer}  # narrow: in one channel still

        def size(node):
            shape = graphs.shape_of(node) or (0,)
            return 8 * math.prod(shape) // (shape[1] if node in narrow else 1)

        for node in reversed(self.path):
            sources = {one for one in node.all_input_nodes if one in self._back or one is self.source}
            if node in narrow and node in self.rules.channelwise:
                narrow |= sources
            elif node in narrow and not self.rules.takes_one_channel(node):
                narrow.remove(node)
            waiting |= sources
            most = max(most, sum(map(size, waiting)))
            waiting.discard(node)
        return most

    # ---- what cannot be done -----------------------------------------------------------------------------------------

    def _refusal(self, node, reason: str) -> MedXAIError:
        return MedXAIError(
            f"'{self.model.package.name}' cannot be followed back through its node '{node.name}' ({node.target}): {reason};"
            " choose a layer before it (--layer), or export the network without it."
        )

    def _refuse_shared_changes(self) -> None:
        """A change in place that another name of the same memory shows too: the graph does not tell who reads what."""
        node = graphs.shared_change(self.nodes)
        if node is not None:
            raise self._refusal(node, "it changes in place what is also read under another name")


def _added(there: Signal | None, one: Signal, shape) -> Signal:
    return one if there is None else Signal(there.wide(shape) + one.wide(shape))
