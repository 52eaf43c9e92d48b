"""A network is the same after a run as before it: flags, gradients, buffers, hooks, random state; also after an error or a stop."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from MedXAILib.models.model import Model
from MedXAILib.package import Input, Intensity, Output, Package


class Restless(nn.Module):
    """Changes what it can: a buffer in place, a buffer by replacement, the random state."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.last = nn.Conv2d(4, 2, 1)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("seen", torch.full((3,), float("nan")))

    def forward(self, x):
        self.count += 1
        self.seen = self.seen + x.detach().mean()
        return self.last(self.first(x)) + 0 * torch.rand(()) * np.random.rand() * random.random()  # noqa: NPY002


def model_of(module) -> Model:
    about = Input(2, ("CT",), None, None, None, None, (1, 1), (Intensity("none"),))
    package = Package(Path("none"), "restless", "segmentation", "w.pt", "", None, about, Output(("a", "b"), "softmax"))
    return Model(package, module, "cpu")


@pytest.fixture
def module():
    """In a state that is easy to lose: modes and gradients mixed, hooks of several kinds."""
    torch.manual_seed(1)
    made = Restless().train()
    made.first[1].eval()
    made.last.bias.requires_grad_(False)
    made.first[0].weight.grad = torch.ones_like(made.first[0].weight)
    made.last.register_forward_hook(lambda *a: None)
    made.first[0].register_full_backward_hook(lambda *a: None)
    made.first[0].register_forward_pre_hook(lambda *a, **k: None, with_kwargs=True)
    made.first[0].weight.register_hook(lambda g: g)
    return made


def state_of(module):
    """Everything that a person could notice, by value and by identity."""
    random_state = random.getstate(), [str(part) for part in np.random.get_state()], torch.get_rng_state().tolist()  # noqa: NPY002
    modules = [
        (one.training, {k: [(n, id(h)) for n, h in v.items()] for k, v in vars(one).items() if k.endswith("hooks") and isinstance(v, dict)})
        for one in module.modules()
    ]  # fmt: skip
    parameters = [
        (id(p), p.requires_grad, p.detach().tolist(), id(p.grad), None if p.grad is None else p.grad.tolist(), len(p._backward_hooks or {}))
        for p in module.parameters()
    ]  # fmt: skip
    buffers = [(name, id(b), str(b.tolist())) for name, b in module.named_buffers()]
    switches = torch.is_grad_enabled(), torch.is_autocast_cpu_enabled()
    return random_state, modules, parameters, buffers, switches


def run(model):
    """What a method does, and a few things that it should not."""
    with model.frozen():
        assert not any(one.training for one in model.module.modules())
        assert not any(p.requires_grad for p in model.module.parameters())
        x = torch.rand(1, 1, 8, 8, requires_grad=True)
        torch.autograd.grad(model.logits(x)[0, 1, 4, 4], x)
        yield 1
        model.module.register_forward_hook(lambda *a: None)
        model.module.last.register_full_backward_pre_hook(lambda *a: None)
        model.module.first[0].weight._backward_hooks.clear()
        model.module.first[0].weight.grad += 1
        model.module.last.weight.grad = torch.ones_like(model.module.last.weight)
        model.module.first[1].running_mean.fill_(float("nan"))
        model.module.last.train()
        yield 2
        raise ValueError("the run failed")


def test_put_back_after_the_end_an_error_and_a_stop(module):
    model, before = model_of(module), state_of(module)
    for steps in (0, 1, 2):
        generator = run(model)
        for _ in range(steps):
            next(generator)
        generator.close()
        assert state_of(module) == before, f"stopped after {steps}"
    with pytest.raises(ValueError, match="the run failed"):
        list(run(model))
    assert state_of(module) == before
    generator = run(model)
    next(generator)
    del generator  # forgotten rather than closed
    assert state_of(module) == before


def test_forward_in_the_outside_mode_would_have_changed_it(module):
    """The check above can fail: the same forward pass without `frozen` leaves traces everywhere."""
    before = state_of(module)
    model_of(module).logits(torch.rand(1, 1, 8, 8)).sum().backward()
    after = state_of(module)
    assert before[0] != after[0] and before[2] != after[2] and before[3] != after[3]


def test_nested_and_overlapping_runs(module):
    model, before = model_of(module), state_of(module)
    first, second = run(model), run(model)
    next(first), next(second)
    first.close()  # the first to begin leaves first
    assert not any(one.training for one in module.modules()), "the other run still needs it held"
    second.close()
    assert state_of(module) == before
    with model.frozen(), model.frozen():
        model.logits(torch.rand(1, 1, 8, 8))
    assert state_of(module) == before


def test_looking_inside_leaves_no_trace(module):
    model, before = model_of(module), state_of(module)
    x = torch.zeros(1, 1, 8, 8)
    model.graph(x), model.layers(), model.parameters(), model.estimate_bytes((8, 8), True)
    model.receptive_field((8, 8))
    assert state_of(module) == before


@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.zeros(1, 1, 8, 8), check_trace=False), "pt2"]
)
def test_programs_are_put_back_too(make):
    made = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2))
    made = (
        torch.export.export(made.eval(), (torch.zeros(1, 1, 8, 8),)).module() if make == "pt2" else make(made.train())
    )
    parameter = next(iter(made.parameters()))
    parameter.grad = torch.ones_like(parameter)
    modes, buffers = [one.training for one in made.modules()], [b.clone() for b in made.buffers()]
    model = model_of(made)
    with pytest.raises(KeyError), model.frozen():
        assert not any(one.training for one in made.modules())
        model.logits(torch.rand(1, 1, 8, 8))
        for buffer in made.buffers():
            buffer.zero_()
        parameter.grad += 1
        raise KeyError
    assert [one.training for one in made.modules()] == modes and all(p.requires_grad for p in made.parameters())
    assert all(torch.equal(a, b) for a, b in zip(made.buffers(), buffers)) and parameter.grad.eq(1).all()


@pytest.mark.parametrize("before", [True, False])
def test_convolutions_keep_their_full_precision_during_a_run_only(module, before, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    with model_of(module).frozen():
        assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cudnn.allow_tf32 is before
