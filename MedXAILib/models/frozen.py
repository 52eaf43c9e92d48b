"""A network held still for a run, and put back exactly as it was."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


class Frozen:
    """What a network and the random state were; `hold` sets evaluation without parameter gradients, `put_back` restores.

    Parameters
    ----------
    module : torch.nn.Module
        Eager, scripted, or the module of an exported program.
    device : torch.device
        Where it lies; the random state of that device is kept too.
    """

    def __init__(self, module: nn.Module, device: torch.device):
        self.device = device
        self.modules = [(one, getattr(one, "training", None), _hooks_of(one)) for one in module.modules()]
        self.parameters = [
            (p, p.requires_grad, p.grad, None if p.grad is None else p.grad.clone(), dict(p._backward_hooks or {}))
            for p in module.parameters()
        ]
        self.buffers = [
            (owner, name, buffer, buffer.detach().clone())
            for owner in module.modules()
            for name, buffer in owner.named_buffers(recurse=False)
        ]
        self.random = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        self.device_random = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        if device.type == "mps":
            self.device_random = torch.mps.get_rng_state()
        self.tf32 = torch.backends.cudnn.allow_tf32

    def hold(self) -> None:
        """Evaluation mode module by module (an exported program has no such switch), and no gradient for parameters."""
        for module, training, _ in self.modules:
            if training:
                module.training = False
        for parameter, *_ in self.parameters:
            parameter.requires_grad_(False)
        torch.backends.cudnn.allow_tf32 = False  # its 10-bit products differ from box to box by more than a crop may

    def put_back(self) -> None:
        """Everything as it was, by value where it was changed in place and by identity where it was replaced."""
        torch.backends.cudnn.allow_tf32 = self.tf32
        for module, training, hooks in self.modules:
            if training is not None and module.training != training:
                module.training = training
            for name, before in hooks.items():
                now = getattr(module, name)
                if list(now.items()) != list(before.items()):
                    now.clear()
                    now.update(before)
        for parameter, wanted, grad, value, hooks in self.parameters:
            parameter.requires_grad_(wanted)
            if parameter.grad is not grad:
                parameter.grad = grad
            if grad is not None and not torch.equal(grad, value):
                grad.data.copy_(value)
            if parameter._backward_hooks is not None and dict(parameter._backward_hooks) != hooks:
                parameter._backward_hooks.clear()
                parameter._backward_hooks.update(hooks)
        with torch.no_grad():
            for owner, name, buffer, value in self.buffers:
                if not _same(buffer, value):
                    buffer.copy_(value)
                if not isinstance(owner, torch.jit.ScriptModule) and owner._buffers.get(name) is not buffer:
                    owner._buffers[name] = buffer
        python, array, state = self.random
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002
        torch.set_rng_state(state)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.device_random, self.device)
        elif self.device.type == "mps":
            torch.mps.set_rng_state(self.device_random)


def _hooks_of(module: nn.Module) -> dict[str, dict]:
    return {name: dict(getattr(module, name)) for name in _HOOKS if isinstance(getattr(module, name, None), dict)}


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, NaN in the same places included."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
