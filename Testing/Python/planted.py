"""Networks with weights set by hand, for which the right explanation can be written down.

All are `MeshNet`s with kernels planted into its dilated 3×3(×3) convolutions, so that one network exists in every weights
format; a kernel has up to 9 voxels along each axis. Exactly linear parts are built from pairs, relu(a) − relu(−a) = a, whose
gradient is a's wherever a is not exactly 0: start from images that are not exactly flat. Within four voxels of the border
parts of a kernel are lost to the padding.
"""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import numpy as np
import torch

from MedXAILib.models.networks import MeshNet
from MedXAILib.package import Package, write_package
from MedXAILib.volume import Volume

FORMATS = ("safetensors", "pt", "ts", "pt2")
LABELS = ("background", "object")
SCALE = 0.01  # network units per unit of the volume (detectors)
RADIUS = 4  # voxels: half the extent of a planted kernel
THRESHOLD = 50.0  # units of the volume: what is brighter is the mask of the mean and the texture detector
RAMP = (0.0, 105.0, 112.0)  # area detector: insensitive below, in the mask above, insensitive above
DETECTORS = ("mean", "texture", "area")


class Planted:
    """A `MeshNet` whose kernels are written one at a time; everything else is 0."""

    def __init__(self, ndim: int, filters: int, dilations, in_channels: int = 1, out_channels: int = 2):
        self.ndim = ndim
        self.arguments = dict(
            spatial_dims=ndim, in_channels=in_channels, out_channels=out_channels, filters=filters, dilations=list(dilations)
        )  # fmt: skip
        self.module = MeshNet(**self.arguments).eval()
        self.blocks = [self.module.features[3 * n : 3 * n + 2] for n in range(len(dilations))]
        self.last = self.module.features[-1]
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.zero_()
            for _, norm in self.blocks:
                norm.weight.fill_(1)
                norm.running_mean.zero_()
                norm.running_var.fill_(1 - norm.eps)

    def tap(self, layer: int, to: int, source: int, kernel, bias: float = 0.0):
        """Add a 3×3(×3) kernel (or a number: its centre) from one channel to another, and a bias."""
        convolution, norm = self.blocks[layer]
        kernel = torch.as_tensor(np.asarray(kernel, np.float32))
        with torch.no_grad():
            if kernel.ndim:
                convolution.weight[to, source] += kernel
            else:
                convolution.weight[(to, source) + (1,) * self.ndim] += kernel
            norm.bias[to] += bias

    def out(self, channel: int, source: int, weight: float):
        """Add a weight of the last layer."""
        with torch.no_grad():
            self.last.weight[(channel, source) + (0,) * self.ndim] += weight

    def kernel(self, first: int, sources, kernel, to: int, pair: bool):
        """Correlate Σ weight·channel over ``sources`` {channel: weight} with a 9×9(×9) kernel, over layers ``first`` and ``first + 1``.

        Filters from 0 of layer ``first`` hold the parts of the kernel; the sum arrives in filter ``to`` of layer ``first + 1``
        (and minus the sum in ``to + 1`` with ``pair``). Returns the number of filters used in layer ``first``.
        """
        parts = np.asarray(kernel, np.float32)
        used = 0
        for block in itertools.product(range(3), repeat=self.ndim):
            part = parts[tuple(slice(3 * b, 3 * b + 3) for b in block)]
            if not part.any():
                continue
            for sign in (1, -1) if pair else (1,):
                for source, weight in sources.items():
                    self.tap(first, used, source, sign * weight * part)
                place = np.zeros((3,) * self.ndim, np.float32)
                place[block] = 1
                self.tap(first + 1, to, used, sign * place)
                if pair:
                    self.tap(first + 1, to + 1, used, -sign * place)
                used += 1
        return used


def full_kernel(weight) -> np.ndarray:
    """A kernel of odd size up to 9 along each axis, in the middle of one of 9×9(×9)."""
    weight = np.asarray(weight, np.float32)
    if any(n % 2 == 0 or n > 9 for n in weight.shape):
        raise ValueError(f"planted kernels have an odd size up to 9, not {weight.shape}")
    return np.pad(weight, [((9 - n) // 2,) * 2 for n in weight.shape])


def linear(weight, bias: float = 0.0) -> Planted:
    """A linear neuron: the logit of ``object`` at voxel v is Σ weight[u] · x[v + u − centre] + bias; ``background`` is 0."""
    weight = np.asarray(weight, np.float32)
    net = Planted(weight.ndim, 2 * 3**weight.ndim, (1, 3))
    net.kernel(0, {0: 1.0}, full_kernel(weight), to=0, pair=True)
    net.out(1, 0, 1)
    net.out(1, 1, -1)
    with torch.no_grad():
        net.last.bias[1] = bias
    return net


def ball(ndim: int, radius: float = RADIUS) -> np.ndarray:
    """1 within ``radius`` voxels of the middle of a 9×9(×9) kernel, else 0."""
    grid = np.indices((9,) * ndim) - 4
    return ((grid**2).sum(0) <= radius**2).astype(np.float32)


def detector_kernel(kind: str, ndim: int) -> np.ndarray:
    """The gradient of a detector's logit (the area detector's: on its ramp) around the neuron, in network units."""
    kernel = ball(ndim)
    if kind == "texture":  # a checkerboard that does not change the mean
        kernel = kernel * (-1.0) ** np.indices(kernel.shape).sum(0)
        kernel -= kernel.sum() / ball(ndim).sum() * ball(ndim)
    return kernel.astype(np.float32)


def detector(kind: str, ndim: int) -> Planted:
    """A network that reacts to one thing in a ball (disk) of radius 4 around each voxel, and to nothing else.

    ``mean``: the sum of the voxels. ``texture``: the amplitude of a checkerboard. ``area``: how many voxels are bright, however
    bright they are. The mask does not depend on it: it is every voxel above `THRESHOLD` (``area``: above the middle of `RAMP`).
    """
    if kind not in DETECTORS:
        raise ValueError(kind)
    parts = 3**ndim * (1 if kind == "area" else 2)
    net = Planted(ndim, max(parts, 3) + 2, (1, 1, 3))
    a, b = net.arguments["filters"] - 2, net.arguments["filters"] - 1  # carry the voxel itself, as a pair
    low, middle, high = (SCALE * v for v in RAMP)
    if kind == "area":
        net.tap(0, 0, 0, 1, bias=-low)
        net.tap(0, 1, 0, 1, bias=-high)
        net.tap(0, a, 0, 1, bias=-middle)
        net.tap(0, b, 0, -1, bias=middle)
        net.kernel(1, {0: 1.0, 1: -1.0}, detector_kernel(kind, ndim), to=0, pair=False)
    else:
        net.tap(0, 0, 0, 1)
        net.tap(0, 1, 0, -1)
        net.tap(0, a, 0, 1, bias=-SCALE * THRESHOLD)
        net.tap(0, b, 0, -1, bias=SCALE * THRESHOLD)
        net.kernel(1, {0: 1.0, 1: -1.0}, detector_kernel(kind, ndim), to=0, pair=True)
    for layer in (1, 2):
        net.tap(layer, a, a, 1)
        net.tap(layer, b, b, 1)
    for channel in (0, 1):
        net.out(channel, 0, 1)
        if kind != "area":
            net.out(channel, 1, -1)
    net.out(0, a, -1000)  # background is the object's logit − 1000 (voxel − threshold)
    net.out(0, b, 1000)
    return net


def detector_start(kind: str, ndim: int = 3, size: int = 25, seed: int = 0) -> tuple[Volume, tuple[int, int, int]]:
    """A start for a detector, and the neuron as IJK.

    ``mean`` and ``texture``: a ball of radius 4 at about 112 (SD 2; the middle of a grey level of 25) in a noise of about 0 (SD 2): the mask is the ball at
    every step, as long as no voxel of it falls below 50. ``area``: a cone that reaches into the mask at its tip only. In 2-D
    a volume of one slice.
    """
    shape = (size,) * ndim if ndim == 3 else (1, size, size)
    middle = [n // 2 for n in shape]
    away = np.sqrt(sum((g - m) ** 2.0 for g, m in zip(np.indices(shape), middle)))
    noise = np.random.default_rng(seed).normal(0, 2, shape)
    array = 110 - 16 * away if kind == "area" else np.where(away <= RADIUS, 112, 0) + noise
    if kind == "area":
        array = np.where(away <= RADIUS, array, -20) + 0.1 * noise
    matrix = np.diag([-1.5, -1.5, 2.0, 1.0])
    return Volume(array.astype(np.float32), matrix, f"{kind} start"), tuple(middle[::-1])


def planted_package(folder, net: Planted, format: str = "safetensors", **changes) -> Package:
    """Write a planted network as a package.

    ``changes`` go into ``model.json``: ``input`` and ``output`` are merged into what is there, other fields replaced.
    Programs (``ts``, ``pt2``) are trusted with ``load(package.folder, trusted={package.sha256})``.
    """
    fields = {
        "name": "planted",
        "task": "segmentation",
        "weights": f"weights.{format}",
        "input": {
            "spatial_dims": net.ndim, "channels": ["image"], "orientation": None, "spacing": None, "size": None,
            "multiple_of": 1, "intensity": {"kind": "none"},
        },
        "output": {"labels": list(LABELS), "activation": "softmax"},
    }  # fmt: skip
    if format in ("safetensors", "pt"):
        fields["network"] = {"name": "MeshNet", "arguments": net.arguments}
    for name, value in changes.items():
        fields[name] = fields[name] | value if name in ("input", "output") else value
    return write_package(folder, fields, lambda path: save(net, path))


def save(net: Planted, path: Path, size: int = 16) -> None:
    """Write the weights in the format that the file's ending says; programs take any size."""
    module, channels = net.module, net.arguments["in_channels"]
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    example = torch.randn(1, channels, *(size,) * net.ndim)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, str(path))
    elif path.suffix == ".pt":
        torch.save(state, path)
    elif path.suffix == ".ts":
        with warnings.catch_warnings():  # deprecated for writing; people have such files
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.save(torch.jit.script(module), str(path))
    elif path.suffix == ".pt2":
        sizes = {axis + 2: torch.export.Dim(f"n{axis}", min=4, max=512) for axis in range(net.ndim)}
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=(sizes,)), str(path))
    else:
        raise ValueError(path)


def linear_package(folder, weight, format: str = "safetensors", bias: float = 0.0, **changes) -> Package:
    """A package of `linear`: 2-D or 3-D as ``weight`` is."""
    return planted_package(folder, linear(weight, bias), format, **changes)


def detector_package(folder, kind: str, ndim: int = 3, format: str = "safetensors", **changes) -> Package:
    """A package of `detector`; a volume's units are 100 to a network unit."""
    changes = {"input": {"intensity": {"kind": "linear", "multiply": SCALE, "add": 0.0}}} | changes
    return planted_package(folder, detector(kind, ndim), format, **changes)
