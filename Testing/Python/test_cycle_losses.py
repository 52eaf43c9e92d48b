"""What the generators minimise, and the pair discriminator: answers that can be written down."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from classifiers import classifier
from cycle_examples import Linear, noise_images
from torch import nn

from MedXAILib.models.generators import Generator, GeneratorPair, widths
from MedXAILib.models.sides import Sides
from MedXAILib.models.ssim import dssim
from MedXAILib.settings import CycleTrainingSettings
from MedXAILib.training.cycle import generator_losses, weighted
from MedXAILib.training.cycle_losses import activation_loss, keeping_losses
from MedXAILib.training.discriminator import PairDiscriminator

DIMS = pytest.mark.parametrize("dims", (2, 3))
SIDES = Sides(1, 0)


def free_images(model, x, settings) -> tuple[torch.Tensor, torch.Tensor]:
    """G⁺(x) and G⁻(x) when any image may be taken: the minimum itself."""
    made = [x.clone().requires_grad_() for _ in range(2)]
    solver = torch.optim.LBFGS(made, max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        solver.zero_grad()
        loss = weighted(generator_losses(model, SIDES, x, made, (x, x), settings, 1.0), settings)
        loss.backward()
        return loss

    solver.step(closure)
    return tuple(one.detach() for one in made)


@DIMS
def test_linear_activation_gives_w_over_lambda(dims):
    """−z + λ‖G − x‖²: R = w / λ. The loss takes the mean square, so λ is the weight over the number of voxels."""
    w = np.random.default_rng(0).normal(0, 0.3, (1, *(6,) * dims))
    x, count = noise_images(1, dims, 6), 6**dims
    settings = CycleTrainingSettings(similarity="l2", similarity_weight=2.0 * count, activation="linear")
    up, down = free_images(classifier(Linear(w, 0.3), dims), x, settings)
    assert torch.allclose(up - down, torch.from_numpy(w / 2.0).float()[None], atol=1e-4)


@DIMS
def test_cross_entropy_gives_w_times_what_is_left_to_gain(dims):
    """R = w (σ(−z⁺) + σ(z⁻)) / (2 λ), z± the log-odds at G±(x)."""
    w = np.random.default_rng(1).normal(0, 0.5, (1, *(6,) * dims))
    x, count, network = noise_images(1, dims, 6, 3), 6**dims, Linear(w, 0.2)
    settings = CycleTrainingSettings(similarity="l2", similarity_weight=1.5 * count)
    model = classifier(network, dims)
    up, down = free_images(model, x, settings)
    z = [float(model.log_odds(model.logits(one), 1)) for one in (up, down)]
    left = 1 / (1 + math.exp(z[0])) + 1 / (1 + math.exp(-z[1]))
    assert torch.allclose(up - down, torch.from_numpy(w).float()[None] * left / (2 * 1.5), atol=1e-4)
    assert z[0] > float(model.log_odds(model.logits(x), 1)) > z[1]


@DIMS
def test_a_constant_classifier_gives_nothing(dims):
    up, down = free_images(classifier(Linear(np.zeros((1, *(6,) * dims)), 0.7), dims), noise_images(1, dims, 6), CycleTrainingSettings(similarity="l2"))  # fmt: skip
    assert torch.equal(up, down)


def test_cross_entropy_of_several_classes_is_against_all_others():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    model = classifier(nn.Flatten(), labels=3)
    wanted = nn.functional.cross_entropy(logits, torch.tensor([2]))
    assert float(activation_loss(model.log_odds(logits, 2), "cross-entropy")) == pytest.approx(float(wanted), abs=1e-6)


def test_not_a_label_is_the_other_side_of_a_sigmoid():
    model = classifier(nn.Flatten(), labels=2, output={"activation": "sigmoid"})
    x = torch.tensor([[[[0.7, -1.2]]]])
    sides, logits = Sides(1, None), model.logits(x)
    up, down = sides.log_odds(model, logits), sides.log_odds(model, logits, False)
    assert float(up) == pytest.approx(-1.2) and float(down) == pytest.approx(1.2)


def test_identity_costs_nothing_and_parts_are_the_equations():
    x = noise_images(3, 2, 24)
    settings = CycleTrainingSettings()
    similarity, cycle = keeping_losses(x, (x, x), (x, x), settings, 1.0)
    assert abs(float(similarity)) < 1e-5 and abs(float(cycle)) < 1e-5
    made, back = (noise_images(3, 2, 24, 1), noise_images(3, 2, 24, 2)), (noise_images(3, 2, 24, 4), noise_images(3, 2, 24, 5))  # fmt: skip
    similarity, cycle = keeping_losses(x, made, back, settings, 1.0)
    apart = [float(one.mean()) for one in dssim(x, [*made, *back], 1.0)]
    plain = [float((one - x).abs().mean()) for one in (*made, *back)]
    assert float(similarity) == pytest.approx(apart[0] + apart[1], abs=1e-6)
    assert float(cycle) == pytest.approx(0.5 * (apart[2] + apart[3] + plain[2] + plain[3]), abs=1e-6)
    for name, wanted in (("l1", sum(plain[:2])), ("dssim+l1", 0.5 * (sum(plain[:2]) + sum(apart[:2])))):
        found, again = keeping_losses(x, made, back, CycleTrainingSettings(similarity=name), 1.0)
        assert float(found) == pytest.approx(wanted, abs=1e-6) and float(again) == pytest.approx(float(cycle), abs=1e-6)


# ---- networks --------------------------------------------------------------------------------------------------------


@DIMS
def test_generators_begin_as_identity_and_take_any_size(dims):
    pair = GeneratorPair(dims, 2, 0.05)
    x = torch.rand(2, 2, *(11, 16, 9)[:dims])
    assert torch.equal(pair(x), torch.cat([x, x], 1))
    plain = Generator(dims, 2, 0.05, residual=False)
    assert plain(x).shape == x.shape and not torch.allclose(plain(x), x)


def test_the_papers_generator_has_its_filters_and_convolutions():
    one = Generator(2, 1)
    shapes = [tuple(m.weight.shape[:2]) for m in one.modules() if isinstance(m, nn.Conv2d)]
    assert widths(1.0) == [48, 96, 192, 384]
    down = [(a, b) for a, b in shapes[:12]]
    assert down == [(48, 1), (48, 48), (48, 48), (96, 48), (96, 96), (96, 96), (192, 96), (192, 192), (192, 192), (384, 192), (384, 384), (384, 384)]  # fmt: skip
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in one.modules()) and shapes[-1] == (1, 48)


def test_windows_that_overlap_give_what_the_whole_image_gives():
    """Nothing is normalised over the image, so a voxel depends on its surroundings alone."""
    torch.manual_seed(0)
    one = Generator(2, 1, 0.05)
    nn.init.normal_(one.last.weight)
    x = torch.rand(1, 1, 160, 160)
    with torch.no_grad():
        whole, part = one(x), one(x[..., :128, :128])
    assert torch.allclose(whole[..., :48, :48], part[..., :48, :48], atol=1e-5)


@DIMS
def test_tied_discriminator_exchanges_its_answers_with_the_images(dims):
    torch.manual_seed(0)
    judge = PairDiscriminator(dims, 1, 0.05, tied=True)
    a, b = (judge.features(noise_images(2, dims, 16, seed)) for seed in (0, 1))
    for one, other in zip(judge(a, b), judge(b, a)):
        assert one.shape == (2, 2, *one.shape[2:]) and torch.equal(one, other.flip(1))
    swapped = torch.tensor([True, False])
    assert torch.allclose(judge.loss(a, b, swapped), judge.loss(a, b, ~swapped), atol=1e-6)
    free = PairDiscriminator(dims, 1, 0.05)
    a, b = (free.features(noise_images(2, dims, 16, seed)) for seed in (0, 1))
    assert not torch.allclose(free(a, b)[0], free(b, a)[0].flip(1))


def test_scales_are_stages_2_and_3():
    judge = PairDiscriminator(2, 1, 1.0)
    features = judge.features(torch.rand(1, 1, 32, 32))
    assert [tuple(one.shape[1:]) for one in features] == [(192, 8, 8), (384, 4, 4)]


def test_the_pair_loss_is_the_cross_entropy_of_which_is_real():
    judge = PairDiscriminator(2, 1, 0.05)
    for head in judge.heads:
        nn.init.zeros_(head.weight)
        with torch.no_grad():
            head.bias.copy_(torch.tensor([2.0, 0.0]))  # it always says that the first one is real
    real, fake = (judge.features(noise_images(2, 2, 16, seed)) for seed in (0, 1))
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    for swapped, inverted, wanted in (([False, False], False, right), ([True, True], False, wrong), ([True, True], True, right), ([True, False], False, (right + wrong) / 2)):  # fmt: skip
        assert float(judge.loss(real, fake, torch.tensor(swapped), inverted)) == pytest.approx(wanted, abs=1e-5)
