"""Reading the outputs of layers while a network computes, from its graph: the same for eager networks and programs."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from ..errors import MedXAIError, nearest
from . import graph as graphs


def choose(model, names: Sequence[str], shape: Sequence[int]) -> list[graphs.Layer]:
    """The layers that ``names`` mean, in order of computing, for an input of spatial ``shape``.

    Parameters
    ----------
    names : sequence of str
        Each a layer's name, its number, or the path of its module (where that is not a number); ``all`` for every block, ``last-K`` for
        the last K of them. A layer that is no block gets a number after theirs.

    Raises
    ------
    MedXAIError
        When there is no such layer (names the nearest) or it has no spatial extent.
    """
    layers = model.layers(shape)
    blocks = [one for one in layers if one.number]
    layers = [one if one.number else replace(one, number=len(blocks) + at) for at, one in enumerate(layers, 1)]
    if not names:
        raise MedXAIError("No layer was named; say which, or 'all'.")
    if not blocks:
        raise MedXAIError(
            f"'{model.package.name}' has no convolution whose output could be read; name a layer of another kind."
        )
    paths = {one.path: one for one in reversed(layers)} | {one.path: one for one in reversed(blocks)}
    by_name = {path: one for path, one in paths.items() if path and not path.isdigit()}  # a number is a number
    by_name |= {one.name: one for one in layers} | {str(one.number): one for one in layers}
    found = {}
    for name in names:
        if name == "all":
            some = blocks
        elif name.startswith("last-") and name[5:].isdigit() and int(name[5:]):
            some = blocks[-int(name[5:]) :]
        elif name in by_name:
            some = [by_name[name]]
        else:
            raise MedXAIError(
                f"'{model.package.name}' has no layer '{name}'{nearest(name, by_name)};"
                " see 'medxai models describe' for its layers."
            )
        for one in some:
            if not one.output:
                raise MedXAIError(
                    f"The layer '{one.name}' ({one.kind}) is computed on another batch than the image, so it has no map; choose another."
                )
            if len(one.shape) != 1 + len(shape) or math.prod(one.shape[1:]) == 1 < math.prod(shape):
                raise MedXAIError(
                    f"The layer '{one.name}' ({one.kind}) has no spatial extent: its output is"
                    f" {' × '.join(map(str, one.shape))}; choose a layer whose output is a map."
                )
            found[one.name] = one
    return [one for one in layers if one.name in found]


def last_map(model, shape: Sequence[int]) -> graphs.Layer:
    """The last map of a network before its answer: what its pooling, flattening or linear layers read.

    It is the output of the last convolution's block, after normalisation, activation and residual addition; of a DenseNet, all channels
    that its blocks have put together.

    Raises
    ------
    MedXAIError
        When the network has no convolution, or no such map.
    """
    shape, key, name = tuple(shape), model.package.output.key, model.package.name
    traced = model.graph(torch.empty((1, len(model.package.input.channels), *shape), device=model.device))
    known = {one.name: one for one in graphs.layers(traced, model.module, key)}
    source = next(node for node in traced.graph.nodes if node.op == "placeholder")
    image, answer = graphs.shape_of(source), graphs.picked(traced, key)
    own, waiting = graphs.answering(answer), {answer}
    convolutions = [one for one in known.values() if one.kind in graphs.CONVOLUTIONS]
    if not convolutions:
        raise MedXAIError(f"'{name}' has no convolution, so it has no filters to send back.")
    if not any(one.output for one in convolutions):
        raise MedXAIError(
            f"The convolutions of '{name}' are computed on another batch than the image, so they have no maps of it to send back."
        )
    moving = graphs.following(traced.graph.nodes, source)
    for node in reversed(traced.graph.nodes):
        if node not in waiting or node is source:
            continue
        waiting.remove(node)
        one, size = known.get(node.name), graphs.shape_of(node) or ()
        spatial = len(size) == len(image) and size[0] == image[0] and math.prod(size[2:]) > 1
        whole = one is not None and one.kind not in ("pooling", "dropout", "softmax", "attention")
        if not waiting and spatial and whole and not (one.kind in graphs.CONVOLUTIONS and node in own):
            block = next((b for b in known.values() if b.number and b.output == node.name), one)
            return replace(block, shape=size[1:], output=node.name)
        waiting |= {n for n in node.all_input_nodes if n in moving}
    blocks = [one for one in known.values() if one.number and math.prod(one.shape[1:]) > 1]
    if blocks:
        return blocks[-1]
    raise MedXAIError(f"'{name}' has no map between its convolutions and its answer; choose a layer (--layer).")


def bytes_of(layers: Collection[graphs.Layer]) -> int:
    """What the outputs of ``layers`` take for one image, float32."""
    return 4 * sum(math.prod(one.shape) for one in layers)


def read(model, x: Tensor, layers: Collection[graphs.Layer]) -> Generator[tuple[graphs.Layer | None, Tensor]]:
    """Compute the network, and give each layer's output as soon as it is there.

    Parameters
    ----------
    x : Tensor, shape (N, C, *spatial)
        In network units, on the model's device. The caller holds the network still (`Model.frozen`).
    layers : collection of Layer
        As `choose` gives them for this size.

    Yields
    ------
    layer, output : Layer, Tensor (N, channels, *low)
        In order of computing; then (None, logits), as `Model.logits`. An output that is not kept is freed when the network no longer
        needs it; one that the network goes on to change in place is a copy.
    """
    traced = model.graph(x)
    wanted = {}
    for one in layers:
        wanted.setdefault(one.output, []).append(one)
    nodes = list(traced.graph.nodes)
    last, root = graphs.last_uses(nodes), graphs.memory(nodes)
    changed = {root[node]: position for position, node in enumerate(nodes) if graphs.changes_in_place(node)}
    values = {}
    try:
        for position, node in enumerate(nodes):
            try:
                with graphs.no_autocast(x.device):
                    value = values[node] = _value(traced, node, values, x)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise model.refusal(error, x) from error
            if node.op == "output":
                yield None, model.answer(value, x)
            for one in wanted.get(node.name, ()):  # float32 whatever the network computes in
                yield one, value.float().clone() if position < changed.get(root[node], -1) else value.float()
            value = None
            for source in last.get(position, ()):
                del values[source]
    finally:
        values.clear()


def _value(traced, node, values, x):
    if node.op == "placeholder":
        return x.clone()  # some networks change their input in place
    if node.op == "get_attr":
        return getattr(traced, node.target)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    return args[0] if node.op == "output" else node.target(*args, **kwargs)
