"""Which input voxels an output voxel depends on, found by analysing the graph, and claimed only where a crop is exact.

Every node of the graph is a grid along each spatial axis. `Axis` says, for each of its positions, which interval of input voxels
must be there for the position to have its true value. A position that is shifted by ``period`` has its interval shifted by
``step`` input voxels; so a crop whose origin is a multiple of every node's step sees the same grids as the whole volume. What no
rule covers is refused by name.

Sizes are constants in a graph. The network is therefore traced at two sizes that differ along every axis, and at the size asked
for: where anything but a size differs between them (a size written into the network, a position encoding), there is no crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, equal, fx

from ..errors import MedXAIError
from . import graph

if TYPE_CHECKING:
    from .model import Model


@dataclass(frozen=True)
class ReceptiveField:
    """What an output voxel sees.

    Where ``exact``, an output voxel computed from a crop equals the one of the whole volume if the crop's origin is a multiple
    of ``stride``, its end too or the volume's own, and it holds ``radius`` around the voxel or reaches the volume's border.

    Attributes
    ----------
    exact : bool
        Whether crops are exact.
    reason : str
        Why not, naming the node and its kind; empty where exact.
    radius : tuple of (int, int)
        Per spatial axis, voxels below and above.
    stride : tuple of int
        Per spatial axis, the total stride.
    """

    exact: bool
    reason: str
    radius: tuple[tuple[int, int], ...]
    stride: tuple[int, ...]


class Refused(Exception):
    """No crop is exact, and why."""


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a node: input interval [low[p], high[p]] of position p < ``period``; shifted by ``step`` for p + period.

    ``extra`` is how many more positions it has than the input's size times period/step (negative where a border is lost).
    """

    period: int
    step: int
    low: tuple[int, ...]
    high: tuple[int, ...]
    extra: int = 0

    def interval(self, first: int, last: int) -> tuple[int, int] | None:
        """The input interval of the positions first..last; None when there are none."""
        if last < first:
            return None
        # Beyond one period the bounds only move outwards, so a period at either end holds the extremes.
        below = range(first, min(last, first + self.period - 1) + 1)
        above = range(max(first, last - self.period + 1), last + 1)
        return (
            min(self.low[p % self.period] + p // self.period * self.step for p in below),
            max(self.high[p % self.period] + p // self.period * self.step for p in above),
        )

    def read(self, outputs: int, inputs: int, reads: Callable[[int], tuple[int, int]]) -> Axis:
        """The axis of an operation whose output o reads positions ``reads(o)``; o + outputs reads ``inputs`` further."""
        repeat = self.period // math.gcd(self.period, inputs)
        period, step = outputs * repeat, self.step * (inputs * repeat // self.period)
        found = [self.interval(*reads(o)) for o in range(period)]
        # A position that reads nothing (a gap of a transposed convolution) depends on its own place only.
        places = [o * step // period for o in range(period)]
        low = tuple(place if one is None else one[0] for one, place in zip(found, places))
        high = tuple(place if one is None else one[1] for one, place in zip(found, places))
        return Axis(period, step, low, high)

    def joined(self, other: Axis) -> Axis | None:
        """Both intervals at every position; None where the grids have different resolutions."""
        if self.period * other.step != other.period * self.step:
            return None
        period = math.lcm(self.period, other.period)
        low, high = [], []
        for p in range(period):
            a, b = self.interval(p, p), other.interval(p, p)
            low.append(min(a[0], b[0]))
            high.append(max(a[1], b[1]))
        return Axis(period, period // self.period * self.step, tuple(low), tuple(high))

    def needs(self, size: int) -> int:
        """The smallest input size that gives ``size`` positions."""
        return -(-(size - self.extra) * self.step // self.period)

    def present(self, extra: int) -> Axis:
        """With the intervals widened so that a crop that holds them also has the position itself."""
        places = range(self.period)
        low = tuple(min(v, p * self.step // self.period) for p, v in zip(places, self.low))
        high = tuple(max(v, (p - extra) * self.step // self.period) for p, v in zip(places, self.high))
        return Axis(self.period, self.step, low, high, extra)


#: What is known of a node: one `Axis` per spatial axis; None for a constant.
Grid = tuple[Axis, ...]


@dataclass
class Place:
    """A node in every trace, for a rule: its arguments by name, its shapes, and what is known of its inputs."""

    nodes: tuple[fx.Node, ...]
    dims: int
    grids: dict[fx.Node, Grid | None]
    least: list[int]  # per axis, the smallest input size that the network can compute on; rules raise it
    name: str = ""

    def __post_init__(self):
        self.name = graph.operation(self.nodes[0])
        self.arguments = [graph.arguments(node) for node in self.nodes]

    def get(self, name: str, default=None):
        """An argument of the first trace."""
        return self.arguments[0].get(name, default)

    def each(self, name: str, default=None) -> list:
        """An argument in every trace."""
        return [one.get(name, default) for one in self.arguments]

    def shapes(self, node: fx.Node | None = None) -> list[tuple[int, ...] | None]:
        """The shapes of the node, or of an input of its first trace, in every trace."""
        if node is None:
            return [graph.shape_of(one) for one in self.nodes]
        at = self.nodes[0].all_input_nodes.index(node)
        return [graph.shape_of(one.all_input_nodes[at]) for one in self.nodes]

    @property
    def inputs(self) -> list[fx.Node]:
        """The inputs (of the first trace) that depend on the image."""
        return [node for node in self.nodes[0].all_input_nodes if self.grids[node] is not None]

    def refuse(self, why: str) -> Refused:
        """The refusal, naming this node."""
        return Refused(f"the layer '{self.nodes[0].name}' {why}")

    def require(self, at: int, axis: Axis, size: int) -> None:
        """The operation needs ``size`` positions of ``axis``."""
        self.least[at] = max(self.least[at], axis.needs(size))

    def same(self, *names: str) -> None:
        """Refuse arguments that differ between sizes."""
        for name in names:
            if any(value != self.get(name) for value in self.each(name)):
                raise self.refuse(f"({self.name}) has a '{name}' that depends on the volume's size")


def receptive_field(model: Model, shape: Sequence[int]) -> ReceptiveField:
    """The receptive field of ``model`` for inputs of spatial ``shape``; see `ReceptiveField`."""
    nothing = ((0, 0),) * len(shape), (1,) * len(shape)
    if model.package.task != "segmentation":
        return ReceptiveField(False, "the network gives one answer for the whole image", *nothing)
    try:
        radius, stride = _analyse(model, tuple(shape))
    except Refused as refusal:
        return ReceptiveField(False, str(refusal), *nothing)
    except MedXAIError as error:  # a size could not be traced
        return ReceptiveField(False, error.message, *nothing)
    return ReceptiveField(True, "", radius, stride)


def _analyse(model: Model, shape: tuple[int, ...]):
    from .receptive_rules import RULES

    dims, multiple = len(shape), model.package.input.multiple_of
    key = model.package.output.key

    def traced(size):
        with model.frozen():
            return graph.trace_shapes(
                model.module, (1, len(model.package.input.channels), *size), model.device, model.package.name
            )

    first, size = graph.small(model)
    grids = _walk([first], [size], key, dims, RULES, None, [1] * dims)
    stride = _stride(grids, dims)
    unit = [math.lcm(a, b) for a, b in zip(stride, multiple)]
    # All sizes differ, between axes and between traces, so that no axis can be taken for another.
    largest = max(unit)
    if any(n % u for n, u in zip(size, unit)) or len(set(size)) < dims:
        size = tuple(-(-(n + at * largest) // u) * u for at, (n, u) in enumerate(zip(size, unit)))
        first = traced(size)
    other = tuple(-(-(max(size) + (at + 1) * largest) // u) * u for at, u in enumerate(unit))
    sizes, least = [size, other, shape], [1] * dims
    graphs = [first, traced(other), traced(shape)]
    grids = _walk(graphs, sizes, key, dims, RULES, stride, least)
    if _stride(grids, dims) != stride:
        raise Refused("its total stride depends on the volume's size")
    answer = grids[graph.picked(graphs[0], key)]
    if answer is None:
        raise Refused("its output does not depend on the image")
    for axis, have, want in zip(answer, graph.shape_of(graph.picked(graphs[2], key))[-dims:], shape):
        if axis.period != axis.step or axis.extra or have != want:
            raise Refused("its output does not have the grid of its input")
    radius = tuple(  # at least so large that a crop in a corner can still be computed
        (
            max(need - 1, *(p - v for p, v in enumerate(axis.low))),
            max(need - 1, *(v - p for p, v in enumerate(axis.high))),
        )
        for axis, need in zip(answer, least)
    )
    return radius, stride


def _stride(grids: dict, dims: int) -> tuple[int, ...]:
    return tuple(math.lcm(*(grid[at].step for grid in grids.values() if grid is not None)) for at in range(dims))


def _walk(graphs, sizes, key, dims, rules, stride, least) -> dict[fx.Node, Grid | None]:
    """What is known of every node that the answer needs, in the graphs traced at ``sizes`` together.

    Without ``stride`` (not yet known) sizes are not checked. With it, the first two sizes are multiples of it. ``least`` is
    raised to the smallest size that the network can compute on.
    """
    lists = [list(one.graph.nodes) for one in graphs]
    if len({len(nodes) for nodes in lists}) != 1:
        raise Refused("its layers depend on the volume's size")
    needed = _needed(graphs[0], key)
    grids: dict[fx.Node, Grid | None] = {}
    for nodes in zip(*lists):
        node = nodes[0]
        if any(
            other.op != node.op or (other.op == "call_function" and other.target is not node.target) for other in nodes
        ):
            raise Refused("its layers depend on the volume's size")
        _refuse_aliasing(node, grids, dims)
        if node not in needed or node.op == "output":
            grids[node] = None
        elif node.op == "placeholder":
            grids[node] = (Axis(1, 1, (0,), (0,)),) * dims
        elif node.op == "get_attr":
            _same_constant(nodes, graphs)
            grids[node] = None
        else:
            place = Place(nodes, dims, grids, least)
            if not place.inputs:
                _constant(place)
                grids[node] = None
                continue
            grid = _rule(place, rules)(place)
            grids[node] = _checked(place, grid, sizes, stride)
            if place.name.endswith("_"):  # changed in place: whoever reads the old node reads this one
                grids[node.args[0]] = grids[node]
    return grids


def _rule(place: Place, rules: dict):
    if place.name in rules:
        return rules[place.name]
    if place.name.endswith("_") and place.name[:-1] in rules:
        return rules[place.name[:-1]]
    target = place.nodes[0].target
    if getattr(target, "__name__", "") == "getitem":
        return rules["getitem"]
    tags = {str(tag).rsplit(".", 1)[-1] for tag in getattr(target, "tags", ())}
    if "pointwise" in tags and "nondeterministic_seeded" not in tags:
        return rules["pointwise"]
    raise place.refuse(f"({place.name or target}) is an operation whose reach is not known")


def _checked(place: Place, grid: Grid, sizes, stride) -> Grid:
    """The grid with its extra positions; refused where the node's size does not follow the input's."""
    shapes = place.shapes()
    if shapes[0] is None:  # several outputs: the reader takes one, and that is checked
        return grid
    result = []
    for at, axis in enumerate(grid):
        found = []
        for shape, size in zip(shapes, sizes):
            if len(shape) < place.dims:
                raise place.refuse(f"({place.name}) takes the spatial axes away")
            whole = size[at] if stride is None else size[at] - size[at] % stride[at]
            extra, rest = divmod(shape[at - place.dims] * axis.step - whole * axis.period, axis.step)
            if rest and stride is not None:
                raise place.refuse(f"({place.name}) has a size that does not follow the volume's")
            found.append(extra)
        if stride is not None and (found[0] != found[1] or found[2] < found[0]):
            raise place.refuse(f"({place.name}) has a size that does not follow the volume's")
        result.append(axis.present(found[0]))
        place.require(at, result[-1], 1)
    return tuple(result)


def _needed(traced: fx.GraphModule, key) -> set[fx.Node]:
    answer = graph.picked(traced, key)
    if answer is None:
        raise Refused("its output is not one tensor; name a 'key' in model.json")
    found, waiting = set(), [answer]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
            # What changes a needed array in place is needed too.
            waiting += [user for user in node.users if graph.operation(user).endswith("_") and user.args[0] is node]
    return found


def _refuse_aliasing(node: fx.Node, grids, dims) -> None:
    """An in-place change is followed along its own node only; through views of the same memory it is not."""
    name = graph.operation(node)
    if not name.endswith("_") or name.startswith("_") or not node.args or not isinstance(node.args[0], fx.Node):
        return
    changed = node.args[0]
    if sum(source.op != "get_attr" for source in node.all_input_nodes) > 1:
        wrong = _is_view(changed) or any(_is_view(user) for user in changed.users if user is not node)
    else:  # by its own values only: what sees the same memory keeps its reach, if all of each spatial axis is changed
        wrong, base = False, changed
        while _is_view(base) and base.all_input_nodes and not wrong:
            before, after = graph.shape_of(base.all_input_nodes[0]), graph.shape_of(base)
            wrong = before is None or after is None or before[-dims:] != after[-dims:]
            base = base.all_input_nodes[0]
    if wrong:
        raise Refused(f"the layer '{node.name}' ({name}) changes a part of an array in place")


def _is_view(node: fx.Node) -> bool:
    """Whether the node's output shares the memory of an input, or may."""
    schema = getattr(node.target, "_schema", None)
    if getattr(node.target, "__name__", "") == "getitem":
        return True
    if schema is None or schema.name.endswith("_"):
        return False
    aliased = any(out.alias_info is not None for out in schema.returns)
    return aliased or schema.name.split("::")[-1] in ("reshape", "flatten", "contiguous", "to", "dropout", "type_as")


def _same_constant(nodes, graphs) -> None:
    """Refuse constants that were computed from the size."""
    values = []
    for node, owner in zip(nodes, graphs):
        value = owner
        for part in node.target.split("."):
            value = getattr(value, part)
        values.append(value)
    first = values[0]
    for value in values[1:]:
        if value is first or not isinstance(value, Tensor):
            continue
        if value.shape != first.shape or (value.data_ptr() != first.data_ptr() and not equal(value, first)):
            raise Refused("it holds a constant that depends on the volume's size")


def _constant(place: Place) -> None:
    """A node made of constants only: the same at every size, and the same at every place (checked where it is used)."""
    if any(_plain(node) != _plain(place.nodes[0]) for node in place.nodes):
        raise place.refuse(f"({place.name}) is a constant that depends on the volume's size")


def _plain(node: fx.Node):
    """The arguments of a node that are not nodes."""

    def strip(value):
        if isinstance(value, fx.Node):
            return None
        if isinstance(value, (list, tuple)):
            return [strip(v) for v in value]
        return repr(value) if isinstance(value, float) else value

    return [strip(node.args), {k: strip(v) for k, v in node.kwargs.items()}]
