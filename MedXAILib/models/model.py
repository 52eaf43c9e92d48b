"""A loaded network: logits, labels and probabilities, held still while it is explained."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import MedXAIError, nearest
from ..package import Package
from . import graph as graphs
from . import memory
from .frozen import Frozen
from .receptive import ReceptiveField, receptive_field

#: Probabilities of networks with activation ``none`` are kept this far from 0 and 1 before their log-odds are taken.
CLAMP = 1e-6


class Model:
    """A network with its package.

    Parameters
    ----------
    package : Package
        What the network takes and gives.
    module : torch.nn.Module
        Eager, scripted, or the module of an exported program; already on ``device``.
    device : torch.device
        Where it computes.
    """

    def __init__(self, package: Package, module: nn.Module, device: torch.device | str = "cpu"):
        self.package = package
        self.module = module
        self.device = torch.device(device)
        self._holders, self._before, self._lock = 0, None, threading.Lock()
        self.small_graph = None
        self.companions: dict = {}  # what was loaded to explain this network, by file
        self._graphs: dict = {}
        self._fields: dict = {}
        self._costs: dict = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """One per output channel."""
        return self.package.output.labels

    def label_index(self, name: str) -> int:
        """Output channel of a label by name; the last one for an empty name."""
        if name == "":
            return len(self.labels) - 1
        if name not in self.labels:
            raise MedXAIError(
                f"'{self.package.name}' has no label '{name}'{nearest(name, self.labels)}; it has {', '.join(self.labels)}."
            )
        return self.labels.index(name)

    def require_task(self, task: str, method: str) -> None:
        """Refuse a network of another task than ``method`` explains."""
        if self.package.task != task:
            raise MedXAIError(
                f"'{self.package.name}' is {'an' if self.package.task[0] in 'aeiou' else 'a'} {self.package.task} network; {method} explains {task} networks."
            )

    # ---- computing ---------------------------------------------------------------------------------------------------

    def logits(self, x: Tensor) -> Tensor:
        """The network's logits, differentiable with respect to ``x``.

        Parameters
        ----------
        x : Tensor, shape (N, C_in, *spatial), float32
            In network units, on this model's device.

        Returns
        -------
        Tensor, shape (N, labels, *spatial) for segmentation and (N, labels) for classification, float32
            For activation ``none``, log p − log(1 − p) with p kept within [`CLAMP`, 1 − `CLAMP`].

        Raises
        ------
        MedXAIError
            When the channels or the size do not suit the network, its output is not what ``model.json`` says, or (kind
            ``memory``) the memory does not suffice.
        """
        about = self.package.input
        if x.ndim != 2 + about.spatial_dims or x.shape[1] != len(about.channels):
            raise MedXAIError(
                f"'{self.package.name}' takes {len(about.channels)} channel(s) in {about.spatial_dims}-D, not an array of shape "
                f"{tuple(x.shape)}; give it one volume per channel."
            )
        if len(x) > 1 and isinstance(
            self.module, torch.fx.GraphModule
        ):  # an exported program takes as many as it was exported with
            return torch.cat([self.logits(one) for one in x.split(1)])
        try:
            with graphs.no_autocast(x.device):
                output = self.module(x.clone())  # some networks change their input in place
        except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
            raise self.refusal(error, x) from error
        return self.answer(output, x)

    def answer(self, output, x: Tensor) -> Tensor:
        """The logits in the raw ``output`` that the network, or its graph, gave for ``x``; as `logits`."""
        output = self._checked(self._pick(output).float(), x)
        if self.package.output.activation == "none":
            p = output.clamp(CLAMP, 1 - CLAMP)
            return torch.log(p) - torch.log1p(-p)
        return output

    def gradient(self, score: Tensor, x: Tensor) -> Tensor:
        """∂score/∂x for an ``x`` that `logits` was computed on; same shape as ``x``.

        Raises
        ------
        MedXAIError
            As `logits`: the backward pass is where memory runs out first.
        """
        try:
            (slope,) = torch.autograd.grad(score, x)
        except RuntimeError as error:
            raise self.refusal(error, x) from error
        return slope

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities by the package's activation, same shape (sigmoid for ``none``, which undoes the log-odds)."""
        return torch.softmax(logits, 1) if self.package.output.activation == "softmax" else torch.sigmoid(logits)

    def log_odds(self, logits: Tensor, label: int) -> Tensor:
        """log p − log(1 − p) of a label's probability, from logits (N, labels); shape (N,)."""
        if self.package.output.activation != "softmax":
            return logits[:, label]
        others = torch.cat([logits[:, :label], logits[:, label + 1 :]], 1)
        return logits[:, label] - torch.logsumexp(others, 1)

    def foreground(self, logits: Tensor, label: int | str) -> Tensor:
        """Where the label is predicted: the largest logit (softmax), or a probability above 0.5.

        Returns
        -------
        Tensor of bool, shape (N, *spatial)
        """
        label = self.label_index(label) if isinstance(label, str) else label
        if self.package.output.activation == "softmax":
            # As argmax, which takes the first of equals, but in one pass over voxels and not voxel by voxel over labels.
            found = torch.ones_like(logits[:, label], dtype=torch.bool)
            if label:
                found &= logits[:, label] > logits[:, :label].amax(1)
            if label + 1 < logits.shape[1]:
                found &= logits[:, label] >= logits[:, label + 1 :].amax(1)
            return found
        return logits[:, label] > 0

    def _pick(self, output) -> Tensor:
        """The tensor among several outputs that ``key`` names."""
        key, name = self.package.output.key, self.package.name
        if isinstance(output, Tensor):
            if key is not None:
                raise MedXAIError(f"'{name}' gives one output, so 'key' in model.json has nothing to pick; remove it.")
            return output
        entries = (
            output if isinstance(output, dict) else dict(enumerate(output)) if isinstance(output, (tuple, list)) else {}
        )
        if key is None and len(entries) == 1:
            output = next(iter(entries.values()))
        elif key in entries:
            output = entries[key]
        else:
            there = ", ".join(map(str, entries)) or "nothing that can be picked"
            asked = "'output' in model.json names no 'key'" if key is None else f"the key '{key}' is not among them"
            raise MedXAIError(f"'{name}' gives several outputs ({there}) and {asked}; name the one with the logits.")
        if not isinstance(output, Tensor):
            raise MedXAIError(
                f"The output of '{name}' is a {type(output).__name__}, not a tensor; name another 'key' in model.json."
            )
        return output

    def _checked(self, output: Tensor, x: Tensor) -> Tensor:
        name, shape = self.package.name, tuple(output.shape)
        segmentation = self.package.task == "segmentation"
        if output.ndim != (x.ndim if segmentation else 2):
            kind = "one channel per label with the input's axes" if segmentation else "one number per label"
            raise MedXAIError(
                f"'{name}' gives an output of shape {shape}, not {kind}; correct 'task' or 'key' in model.json."
            )
        if shape[1] != len(self.labels):
            raise MedXAIError(
                f"'{name}' gives {shape[1]} output channel(s), but model.json names {len(self.labels)} label(s); correct 'labels'."
            )
        if segmentation and shape[2:] != tuple(x.shape[2:]):
            raise MedXAIError(
                f"'{name}' gives a grid of {_by(shape[2:])} for an input of {_by(x.shape[2:])}; "
                "MedXAI explains segmentation networks whose output has the input's grid (check 'multiple_of' and 'size')."
            )
        return output

    def refusal(self, error: Exception, x: Tensor) -> MedXAIError:
        """What to tell a person when computing on ``x`` failed."""
        words = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200].rstrip(".")
        size = _by(x.shape[2:])
        if (
            isinstance(error, torch.cuda.OutOfMemoryError)
            or "out of memory" in str(error)
            or "can't allocate" in str(error)
        ):
            need = ""
            with contextlib.suppress(MedXAIError):  # a network that cannot be traced has no estimate
                need = f" (about {self.estimate_bytes(x.shape[2:], x.requires_grad) / 2**30:.1f} GiB)"
            return MedXAIError(
                f"The memory of {x.device} does not suffice for '{self.package.name}' on {size} voxels{need};"
                " use a smaller volume or crop it.",
                kind="memory",
            )
        multiple = self.package.input.multiple_of
        advice = (
            f"its sizes must be multiples of {_by(multiple)}" if any(n % m for n, m in zip(x.shape[2:], multiple))
            else "use a larger one, or correct 'multiple_of' or 'size' in model.json"
        )  # fmt: skip
        return MedXAIError(f"'{self.package.name}' cannot compute on {size} voxels ({words}); {advice}.")

    @contextlib.contextmanager
    def frozen(self):
        """Hold the network still: evaluation mode module by module, no gradients of parameters.

        On exit, also after an error or when a generator is closed, every flag, gradient, buffer and hook and the random
        state (Python, numpy, torch, device) are what they were. Nested uses count as one: the last to leave puts back.
        """
        with self._lock:
            if self._holders == 0:
                self._before = Frozen(self.module, self.device)
                self._before.hold()
            self._holders += 1
        try:
            yield self
        finally:
            with self._lock:
                self._holders -= 1
                if self._holders == 0:
                    before, self._before = self._before, None
                    before.put_back()

    # ---- looking inside ----------------------------------------------------------------------------------------------

    def graph(self, x: Tensor) -> torch.fx.GraphModule:
        """The network as an ATen graph for the shape of ``x``, which gives the network's raw output; cached by shape."""
        key = tuple(x.shape), x.dtype
        if key not in self._graphs:
            with self.frozen():
                traced = graphs.trace(self.module, x, self.package.name)
            while len(self._graphs) >= 4:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[key] = traced
        return self._graphs[key]

    def receptive_field(self, shape: Sequence[int]) -> ReceptiveField:
        """Which input voxels an output voxel depends on, for inputs of spatial ``shape``; cached."""
        shape = tuple(int(n) for n in shape)
        if shape not in self._fields:
            self._fields[shape] = receptive_field(self, shape)
        return self._fields[shape]

    def layers(self, shape: Sequence[int] | None = None) -> list[graphs.Layer]:
        """The network's layers in order of computing, for an input of spatial ``shape``; by default at a small size."""
        if shape is None:
            traced = graphs.small(self)[0]
        else:
            traced = self.graph(torch.empty((1, len(self.package.input.channels), *shape), device=self.device))
        return graphs.layers(traced, self.module, self.package.output.key)

    def parameters(self) -> int:
        """How many weights the network has."""
        return graphs.count_parameters(self)

    # ---- memory ------------------------------------------------------------------------------------------------------

    def estimate_bytes(self, shape: Sequence[int], gradient: bool) -> int:
        """Peak memory in bytes of a forward pass on (1, C, *shape), or of one with the backward pass to the input."""
        if not self._costs:
            self._costs = memory.costs(self)
        return memory.estimate(self._costs, shape, gradient)

    def require_memory(self, shape: Sequence[int], gradient: bool, lower: str) -> None:
        """Refuse (kind ``memory``) when the estimated need exceeds what is available.

        Parameters
        ----------
        lower : str
            What a person can lower, such as ``the volume's size (crop it)``.
        """
        try:
            need = self.estimate_bytes(shape, gradient)
        except MedXAIError:  # a program of one size cannot be looked at in a small one: no estimate
            return
        have = memory.available(self.device)
        if have is not None and need > have:
            raise MedXAIError(
                f"'{self.package.name}' needs about {need / 2**30:.1f} GiB for {_by(shape)} voxels, but {have / 2**30:.1f} GiB "
                f"of {self.device} memory are available; lower {lower}.",
                kind="memory",
            )

    def record(self) -> dict:
        """What an explanation's provenance says of the model."""
        output = self.package.output
        return {
            "name": self.package.name,
            "sha256": self.package.sha256,
            "format": self.package.format,
            "activation": output.activation,
            "probability_clamp": CLAMP if output.activation == "none" else None,
        }


def _by(shape) -> str:
    return " × ".join(str(int(n)) for n in shape)
