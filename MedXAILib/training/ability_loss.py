"""Online ProtoSeg: the segmentation ability of deep features as a loss, in anybody's training loop (He et al. 2023, sections 3.2 and 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from ..errors import MedXAIError, nearest
from ..methods.prototypes import Interpolation, separation
from ..models.graph import no_autocast

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
_LINEAR = Interpolation()
_AFTER = (*_NORMS, _DropoutNd, *(vars(nn)[n] for n in nn.modules.activation.__all__ if n != "MultiheadAttention"))


@dataclass
class _Seen:
    """Features that a layer gave; a convolution is a whole block once something has followed it."""

    name: str
    features: Tensor
    whole: bool


class AbilityLoss:
    """(1/N) Σ (1 − soft Dice(m, G)) over N layers; added to the criterion of a training loop, it raises the layers' ability.

    >>> with AbilityLoss(network) as ability:
    ...     for image, labels in loader:
    ...         logits = network(image)
    ...         loss = criterion(logits, labels) + ability(logits, labels)
    ...         loss.backward()

    The paper prints + Σ SA / N, which would lower the ability; what is meant is 1 − SA. m is the softmax over the negative squared
    distances of a voxel's features to the prototypes of background and object (algorithm 1), here the mean over channels in place of the
    sum, and in units of the features' variance where that is above 1: the softmax would otherwise saturate, and its gradient die, with
    many channels or large features. Prototypes are those of each image, from the network's soft output B (eq. 6).

    Parameters
    ----------
    network : Module
        Its forward pass is watched from now on, until `close` or the end of the ``with`` block.
    layers : sequence of str, optional
        Names as in ``network.named_modules()``; each call of a module is a layer. Default: the end of each convolution block, which is
        what the last of the normalisation, activation and dropout modules gives that directly follow a convolution (`PlainUNet`: its 18
        rectifiers). An activation that is a function and no module is not seen: name the module after it.
    activation : str, optional
        ``softmax`` (label 0 is background) or ``sigmoid`` (each label for itself). Default: sigmoid for one channel, else softmax.
    detach : bool
        B is a constant: the loss shapes features and not the output. False lets its gradient through.
    interpolation : Interpolation
        How features are brought to the grid of the labels.

    Attributes
    ----------
    scores : dict of str to float
        Mean soft Dice of each layer at the last call; NaN where no image had an object.

    Notes
    -----
    A module that changes another's output in place (``ReLU(inplace=True)``) changes it for both: the features are those at the end of
    the forward pass. Features are held from a forward pass until the loss has been computed, or the next pass.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str] | None = None,
        activation: str | None = None,
        detach: bool = True,
        interpolation: Interpolation = _LINEAR,
    ):
        if activation not in (None, "softmax", "sigmoid"):
            raise MedXAIError(f"The activation cannot be '{activation}'; it is softmax or sigmoid.")
        modules = {name: module for name, module in network.named_modules() if name}
        for name in layers or ():
            if name not in modules:
                raise MedXAIError(
                    f"The network has no layer '{name}'{nearest(name, modules)}; see network.named_modules()."
                )
        if layers is not None and not layers:
            raise MedXAIError("No layer was named; leave 'layers' out for the end of each convolution block.")
        if layers is None and not any(isinstance(module, _ConvNd) for module in modules.values()):
            raise MedXAIError("The network has no convolution module; name its layers, as in network.named_modules().")
        self.activation, self.detach, self.interpolation = activation, detach, interpolation
        self.scores: dict[str, float] = {}
        self._named = layers is not None
        self._seen: list[_Seen] = []  # of the last forward pass
        self._hooks = [network.register_forward_pre_hook(lambda *_: self._seen.clear())]
        for name, module in modules.items():
            if layers is None and isinstance(module, _AFTER):
                self._hooks.append(module.register_forward_hook(self._go_on))
            elif isinstance(module, _ConvNd) if layers is None else name in layers:
                self._hooks.append(module.register_forward_hook(partial(self._begin, name)))

    def close(self) -> None:
        """Take every hook off the network and let go of its features."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._seen.clear()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of the forward pass that gave ``logits``.

        Parameters
        ----------
        logits : Tensor, shape (N, K, *spatial)
        labels : Tensor
            Softmax: label numbers, (N, *spatial) or (N, 1, *spatial). Sigmoid: 0 or 1 for each label, (N, K, *spatial), or for
            one label (N, *spatial).

        Returns
        -------
        Tensor, a number
            Mean over layers of the mean over the objects that are there: an image without a label says nothing of that label, and is
            left out. 0 where there is none at all.

        Raises
        ------
        MedXAIError
            When no forward pass was watched, a layer has no spatial extent, or the labels do not fit.
        """
        held, self._seen[:] = [one for one in self._seen if one.whole], []
        if not held:
            raise MedXAIError("The ability loss has seen no layer; call network(image) before it, and before close().")
        soft, true = self._masks(logits, labels)
        there = true.flatten(2).any(-1)
        weights, total, self.scores = {}, 0.0, {}
        with no_autocast(logits.device):
            for name, features in zip(_numbered([one.name for one in held]), [one.features for one in held]):
                self._check(name, features, logits)
                low = features.shape[2:]
                if low not in weights:
                    weights[low] = [self.interpolation.adjoint(one, low) for one in soft]
                m = torch.cat([self._soft_map(features, one, true.shape[2:]) for one in weights[low]], 1)
                dice = 2 * (m * true).flatten(2).sum(-1) / (m + true).flatten(2).sum(-1).clamp_min(1e-6)
                loss = (1 - dice)[there].sum() / there.sum().clamp_min(1)
                self.scores[name] = float(1 - loss.detach()) if there.any() else float("nan")
                total = total + loss / len(held)
        return total

    def _masks(self, logits, labels):
        """Soft masks to take prototypes from, each (N, 1 + labels, *spatial) with the background first; and G, (N, labels, *spatial)."""
        size, channels = logits.shape[2:], logits.shape[1]
        given = tuple(labels.shape)
        if labels.ndim == logits.ndim - 1:
            labels = labels[:, None]
        softmax = (self.activation or ("sigmoid" if channels == 1 else "softmax")) == "softmax"
        wanted = 1 if softmax else channels
        if tuple(labels.shape) != (len(logits), wanted, *size):
            raise MedXAIError(
                f"Labels of shape {given} do not fit logits of shape {tuple(logits.shape)};"
                f" the ability loss takes {(len(logits), wanted, *size)}"
                + (", label numbers (labels.argmax(1, keepdim=True)); or activation='sigmoid'." if softmax else ".")
            )
        if softmax and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < max(channels, 2):
            raise MedXAIError(
                f"The labels go from {int(labels.min())} to {int(labels.max())}; the ability loss takes label numbers from 0 to"
                f" {channels - 1}."
            )
        logits = logits.detach() if self.detach else logits
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if softmax:
            if channels < 2:
                raise MedXAIError(
                    "A softmax needs a channel for the background and one for each label; use activation='sigmoid'."
                )
            number = torch.arange(1, channels, device=labels.device).reshape(1, -1, *(1,) * len(size))
            return [logits.softmax(1)], (labels == number).to(logits)
        one = logits.sigmoid()
        return [torch.cat([1 - p, p], 1) for p in one.split(1, 1)], (labels > 0.5).to(logits)

    def _soft_map(self, features, weights, size):
        """m of the objects, (N, objects, *size)."""
        features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
        flat = features.flatten(2)
        variance = (flat - flat.mean(-1, keepdim=True)).square().mean((1, 2))  # of each image
        apart = separation(features, weights.to(features))
        scale = features.shape[1] * variance.clamp_min(1).reshape(-1, *(1,) * (apart.ndim - 1))
        nearer = self.interpolation.up(2 * apart / scale, size)  # separation is half of the difference
        return torch.cat([torch.zeros_like(nearer[:, :1]), nearer], 1).softmax(1)[:, 1:]

    def _check(self, name, features, logits):
        if not isinstance(features, Tensor) or features.ndim != logits.ndim or features.shape[2:].numel() < 2:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise MedXAIError(
                f"The layer '{name}' has no spatial extent ({shape}, wanted (N, C, *spatial) with more than one voxel);"
                " leave it out, or train on larger images."
            )
        if len(features) != len(logits):
            raise MedXAIError(
                f"The layer '{name}' has seen another batch ({len(features)} images) than the logits ({len(logits)})."
            )

    def _begin(self, name, _module, _inputs, output):
        self._seen.append(_Seen(name, output, self._named))

    def _go_on(self, _module, inputs, output):
        """The block that ended with this module's input ends with its output."""
        for block in reversed(self._seen):
            if inputs and block.features is inputs[0]:
                block.features, block.whole = output, True
                return


def _numbered(names):
    """A name that was there before gets a number: a module may be called several times."""
    return [
        name if names[:n].count(name) == 0 else f"{name}#{names[:n].count(name) + 1}" for n, name in enumerate(names)
    ]
