"""For each ATen operation, which positions of its input an output position reads. What is not here is refused."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from torch import fx

from . import graph
from .receptive import Axis, Grid, Place, _plain

RULES: dict = {}


def rule(*names: str):
    """Register a rule for ATen operations (their in-place forms too)."""

    def register(function):
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def refused(why: str, *names: str) -> None:
    """Operations that are known, and known to see the whole image."""

    def refuse(place: Place) -> Grid:
        raise place.refuse(why)

    RULES.update(dict.fromkeys(names, refuse))


refused("is an instance normalisation, whose statistics are those of the whole image", "instance_norm")
refused("is a group normalisation, whose statistics are those of the whole image", "group_norm", "native_group_norm")
refused("is a layer normalisation, whose statistics may be those of the whole image", "layer_norm", "native_layer_norm")
refused(
    "is an attention, which sees the whole image",
    "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
)
refused("is a matrix product, which may mix places", "matmul", "mm", "bmm", "addmm", "baddbmm", "linear", "einsum")
for _dims in (1, 2, 3):
    refused(
        "is an adaptive pooling, whose windows depend on the volume's size",
        *(f"{start}adaptive_{kind}_pool{_dims}d" for start in ("", "_") for kind in ("avg", "max")),
    )


def _entries(value, dims: int) -> list[int]:
    """One number per spatial axis."""
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    return value * dims if len(value) == 1 else value


def _image(place: Place, name: str) -> fx.Node:
    """The argument that is the image; the others must be constants."""
    node = place.get(name)
    if place.inputs != [node]:
        raise place.refuse(f"({place.name}) has weights that depend on the image")
    return node


def _is_space(place: Place, node: fx.Node, dim: int) -> bool:
    ndim = len(graph.shape_of(node))
    return dim % ndim >= ndim - place.dims


def _unchanged(place: Place, *sizes: str) -> None:
    """Refuse any plain argument that differs between the traces, but for those named."""
    if not sizes:
        if any(_plain(node) != _plain(place.nodes[0]) for node in place.nodes):
            raise place.refuse(f"({place.name}) has an argument that depends on the volume's size")
        return
    place.same(*(n for n, v in place.arguments[0].items() if n not in sizes and not isinstance(v, fx.Node)))


def _same_space(place: Place, node: fx.Node) -> None:
    """Refuse where the last axes of the output are not those of the input."""
    for before, after in zip(place.shapes(node), place.shapes()):
        if after is not None and before[-place.dims :] != after[-place.dims :]:
            raise place.refuse(f"({place.name}) rearranges the spatial axes")


# ---- pointwise -------------------------------------------------------------------------------------------------------


@rule(
    "pointwise", "where", "masked_fill", "rsub", "floor_divide", "true_divide",
    # Older versions of torch do not mark all of these as pointwise.
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "prelu", "_prelu_kernel", "sigmoid", "tanh", "hardtanh",
    "hardswish", "hardsigmoid", "softplus", "softsign", "log_sigmoid", "threshold", "clamp",
)  # fmt: skip
def pointwise(place: Place) -> Grid:
    """Every output position reads its own place in every input."""
    _unchanged(place)
    result = None
    for node in place.nodes[0].all_input_nodes:
        for shape, answer in zip(place.shapes(node), place.shapes()):
            per_channel = place.name in ("prelu", "_prelu_kernel") and len(shape) == 1
            space = (1,) * place.dims if per_channel else shape[-place.dims :]
            if place.grids[node] is None and any(n != 1 for n in space):
                raise place.refuse(f"({place.name}) has a constant for every place")
            if place.grids[node] is not None and (len(shape) < place.dims or space != answer[-place.dims :]):
                raise place.refuse(f"({place.name}) spreads one value over an axis")
        if place.grids[node] is not None:
            result = join(place, result, place.grids[node])
    return result


def join(place: Place, one: Grid | None, other: Grid) -> Grid:
    """Both; refused where their resolutions differ."""
    if one is None:
        return other
    both = tuple(a.joined(b) for a, b in zip(one, other))
    if None in both:
        raise place.refuse(f"({place.name}) joins grids of different resolution")
    return both


@rule("cat", "concat", "concatenate", "stack")
def joins(place: Place) -> Grid:
    """Joining along channels reads the same place of each."""
    _unchanged(place)
    first = place.get("tensors")[0]
    ndim = len(graph.shape_of(first)) + (place.name == "stack")
    if place.get("dim", 0) % ndim >= ndim - place.dims:
        raise place.refuse(f"({place.name}) joins along a spatial axis")
    result = None
    for node in place.get("tensors"):
        if place.grids[node] is None:
            raise place.refuse(f"({place.name}) joins the image with a constant for every place")
        _same_space(place, node)
        result = join(place, result, place.grids[node])
    return result


@rule(
    "clone",
    "contiguous",
    "detach",
    "alias",
    "to",
    "_to_copy",
    "lift_fresh",
    "type_as",
    "zeros_like",
    "ones_like",
    "full_like",
)
def passes(place: Place) -> Grid:
    _unchanged(place)
    return place.grids[place.inputs[0]]


@rule("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout")
def dropout(place: Place) -> Grid:
    if place.get("train"):
        raise place.refuse("is a dropout that was exported in training mode")
    return place.grids[_image(place, "input")]


@rule(
    "batch_norm", "_batch_norm_impl_index", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
)  # fmt: skip
def batch_norm(place: Place) -> Grid:
    """In evaluation a scale and a shift per channel."""
    _unchanged(place)
    if place.get("training") or place.get("running_mean") is None:
        raise place.refuse("is a batch normalisation that takes the statistics of the image itself")
    return place.grids[_image(place, "input")]


@rule("instance_norm")
def instance_norm(place: Place) -> Grid:
    if place.get("use_input_stats"):
        raise place.refuse("is an instance normalisation, whose statistics are those of the whole image")
    return place.grids[_image(place, "input")]


@rule(
    "mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin", "softmax", "_softmax", "log_softmax", "_log_softmax",
    "logsumexp", "var", "std", "glu", "linalg_vector_norm", "norm",
)  # fmt: skip
def over_channels(place: Place) -> Grid:
    """Allowed over channels, not over space."""
    _unchanged(place)
    node = place.inputs[0]
    if len(place.inputs) > 1:
        return pointwise(place)  # max(a, b)
    dims = place.get("dim")
    dims = dims if isinstance(dims, (list, tuple)) else [] if dims is None else [dims]
    if not dims or any(_is_space(place, node, dim) for dim in dims):
        raise place.refuse(f"({place.name}) is taken over space")
    _same_space(place, node)
    return place.grids[node]


# ---- axes ------------------------------------------------------------------------------------------------------------


@rule(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "repeat", "tile", "permute", "transpose", "movedim",
    "swapaxes",
)  # fmt: skip
def rearranges(place: Place) -> Grid:
    """Allowed where the last axes stay the spatial ones. The traced sizes differ between axes, so a look at them tells."""
    node = place.inputs[0]
    _same_space(place, node)
    ndim = len(graph.shape_of(node))
    if (
        place.name == "permute"
        and [d % ndim for d in place.get("dims")][-place.dims :] != list(range(ndim))[-place.dims :]
    ):
        raise place.refuse("(permute) rearranges the spatial axes")
    if place.name in ("transpose", "swapaxes", "movedim"):
        named = [v for k, v in place.arguments[0].items() if k != "self"]
        if not all(isinstance(v, int) for v in named) or any(_is_space(place, node, v) for v in named):
            raise place.refuse(f"({place.name}) rearranges the spatial axes")
    return place.grids[node]


@rule(
    "split",
    "split_with_sizes",
    "chunk",
    "unbind",
    "tensor_split",
    "select",
    "index_select",
    "unsafe_chunk",
    "unsafe_split",
)
def parts(place: Place) -> Grid:
    _unchanged(place)
    node = place.inputs[0]
    if len(place.inputs) > 1 or _is_space(place, node, place.get("dim", 0)):
        raise place.refuse(f"({place.name}) takes a part of a spatial axis")
    return place.grids[node]


@rule("flip", "roll")
def flips(place: Place) -> Grid:
    _unchanged(place)
    node = place.inputs[0]
    if not place.get("dims") or any(_is_space(place, node, dim) for dim in place.get("dims")):
        raise place.refuse(f"({place.name}) moves places to the other end of the image")
    return place.grids[node]


@rule("getitem")
def getitem(place: Place) -> Grid:
    source, number = place.nodes[0].args
    if graph.operation(source).endswith("with_indices") and number == 1:
        raise place.refuse("takes the places of maxima, which are counted from the corner of the image")
    return place.grids[source]


@rule("slice", "narrow")
def slices(place: Place) -> Grid:
    """A part of an axis: the start must not depend on the size."""
    node, dim = place.inputs[0], place.get("dim", 0)
    if not _is_space(place, node, dim):
        _unchanged(place)
        return place.grids[node]
    place.same("step", "dim")
    starts = []
    for start, shape in zip(place.each("start"), place.shapes(node)):
        start = 0 if start is None else start
        starts.append(min(start + shape[dim] if start < 0 else start, shape[dim]))
    if len(set(starts)) != 1:
        raise place.refuse(f"({place.name}) begins at a place that depends on the volume's size")
    step, start = place.get("step", 1) or 1, starts[0]
    at = dim % len(graph.shape_of(node)) - len(graph.shape_of(node)) + place.dims
    grid = list(place.grids[node])
    grid[at] = grid[at].read(1, step, lambda o: (start + o * step,) * 2)
    return tuple(grid)


@rule("constant_pad_nd", "pad", *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)))
def pads(place: Place) -> Grid:
    """Padding. A border that repeats or reflects the image reads up to its own width further inwards."""
    node = place.inputs[0]
    mode = place.get("mode", "constant") if place.name == "pad" else place.name.split("_")[0]
    place.same("mode", "value")
    if mode not in ("constant", "reflect", "reflection", "replicate", "replication"):
        raise place.refuse(f"is a {mode} padding, which joins the two ends of the image")
    name = (
        "pad"
        if place.name != "pad" and "pad" in place.arguments[0]
        else "padding"
        if "padding" in place.arguments[0]
        else "pad"
    )
    every = [list(pad) for pad in place.each(name)]
    if any(pad[2 * place.dims :] != every[0][2 * place.dims :] for pad in every):
        raise place.refuse(f"({place.name}) pads channels by an amount that depends on the volume's size")
    grid = list(place.grids[node])
    for at in range(place.dims):
        entry = 2 * (place.dims - 1 - at)  # the last axis comes first
        pairs = [(pad[entry], pad[entry + 1]) if entry < len(pad) else (0, 0) for pad in every]
        left = pairs[0][0]
        if any(pair[0] != left for pair in pairs):
            raise place.refuse(f"({place.name}) pads by an amount that depends on the volume's size")
        right = max(0, *(pair[1] for pair in pairs))
        reach = {"c": 0, "r": 2 if mode.startswith("refl") else 1}[mode[0]]
        below, above = reach * right, reach * max(0, left)
        # A reflection needs more voxels than it repeats, and a cut more than it takes away.
        inside = max(left, right) + 1 if reach == 2 else 1
        place.require(at, grid[at], inside + sum(max(0, -n) for n in (left, min(pair[1] for pair in pairs))))
        grid[at] = grid[at].read(1, 1, lambda o, a=left, b=below, c=above: (o - a - b, o - a + c))
    return tuple(grid)


# ---- convolution and pooling -----------------------------------------------------------------------------------------


def _windows(axis: Axis, stride: int, pad: int, dilation: int, size: int) -> Axis:
    return axis.read(1, stride, lambda o: (o * stride - pad, o * stride - pad + dilation * (size - 1)))


def _gaps(axis: Axis, stride: int, pad: int, dilation: int, size: int) -> Axis:
    """A transposed convolution: output o receives from i where o = i·stride − pad + dilation·t, 0 ≤ t < size."""
    return axis.read(stride, 1, lambda o: (-((dilation * (size - 1) - o - pad) // stride), (o + pad) // stride))


@rule("convolution", "_convolution", *(f"conv{n}d" for n in (1, 2, 3)), *(f"conv_transpose{n}d" for n in (1, 2, 3)))
def convolution(place: Place) -> Grid:
    _unchanged(place)
    node, dims = _image(place, "input"), place.dims
    size = graph.shape_of(place.get("weight"))[2:]
    if len(size) != dims or len(graph.shape_of(node)) != dims + 2:
        raise place.refuse(f"({place.name}) does not run over the image's own axes")
    stride, dilation = _entries(place.get("stride"), dims), _entries(place.get("dilation"), dims)
    padding = place.get("padding")
    if padding == "valid":
        padding = 0
    if padding == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, size)]  # the odd voxel of padding comes last
    window = _gaps if graph.is_transposed(place.nodes[0]) else _windows
    return tuple(map(window, place.grids[node], stride, _entries(padding, dims), dilation, size))


@rule(
    *(f"{kind}_pool{n}d{end}" for kind, end in (("max", ""), ("max", "_with_indices"), ("avg", "")) for n in (1, 2, 3))
)
def pooling(place: Place) -> Grid:
    _unchanged(place)
    node, dims = _image(place, "self"), place.dims
    if not place.name.startswith(("max_pool", "avg_pool")) or f"{dims}d" not in place.name:
        raise place.refuse(f"({place.name}) does not run over the image's own axes")
    size = _entries(place.get("kernel_size"), dims)
    stride = _entries(place.get("stride") or size, dims)
    return tuple(
        map(
            _windows,
            place.grids[node],
            stride,
            _entries(place.get("padding", 0), dims),
            _entries(place.get("dilation", 1), dims),
            size,
        )
    )


# ---- resampling ------------------------------------------------------------------------------------------------------


@rule(
    "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", *(f"upsample_nearest{n}d" for n in (1, 2, 3)),
    *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
)  # fmt: skip
def interpolation(place: Place) -> Grid:
    """Resampling by a factor. The traces tell a factor from a size written into the network."""
    if place.get("align_corners"):
        raise place.refuse("is an interpolation with align_corners, whose spacing depends on the volume's size")
    node = _image(place, "self" if "self" in place.arguments[0] else "input")
    place.same("scale_factors", "scales", "scales_d", "scales_h", "scales_w")
    factors = place.get("scale_factors")
    if factors is None:
        factors = [
            place.get(name) for name in ("scales", "scales_d", "scales_h", "scales_w") if name in place.arguments[0]
        ]
    result = []
    for at in range(place.dims):
        where = at - place.dims
        ratios = {Fraction(after[where], before[where]) for before, after in zip(place.shapes(node), place.shapes())}
        if len(ratios) != 1:
            raise place.refuse(f"({place.name}) resizes to a size that does not follow the volume's")
        ratio = ratios.pop()
        if len(factors) == place.dims and factors[at] is not None and Fraction(factors[at]) != ratio:
            raise place.refuse(f"({place.name}) resizes by a factor that is not kept exactly")
        result.append(_resampled(place, place.grids[node][at], ratio))
    return tuple(result)


def _resampled(place: Place, axis: Axis, ratio: Fraction) -> Axis:
    half = Fraction(1, 2)
    if "linear" in place.name:

        def reads(o):
            low = math.floor((o + half) / ratio - half)
            return low, low + 1
    else:
        shift = half if "exact" in place.name else 0
        places = np.arange(8192, dtype=np.float32) + np.float32(shift)
        computed = np.floor(places * np.float32(1 / ratio)).astype(int)
        wanted = (2 * np.arange(8192) + int(2 * shift)) * ratio.denominator // (2 * ratio.numerator)
        if (computed != wanted).any():  # torch computes places in single precision
            raise place.refuse(f"({place.name}) resizes by a factor whose places are rounded")

        def reads(o):
            return (math.floor((o + shift) / ratio),) * 2

    return axis.read(ratio.numerator, ratio.denominator, reads)


@rule("pixel_shuffle", "pixel_unshuffle")
def shuffles(place: Place) -> Grid:
    _unchanged(place)
    node, factor = place.inputs[0], place.get("upscale_factor") or place.get("downscale_factor")
    if place.dims != 2:
        raise place.refuse(f"({place.name}) does not run over the image's own axes")
    if place.name == "pixel_shuffle":
        return tuple(axis.read(factor, 1, lambda o: (o // factor,) * 2) for axis in place.grids[node])
    return tuple(axis.read(1, factor, lambda o: (o * factor, o * factor + factor - 1)) for axis in place.grids[node])
