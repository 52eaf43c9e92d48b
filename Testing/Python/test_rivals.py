"""Gradient saliency and class activation maps: written by hand, by autograd and by captum; in any form of network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from classifiers import Head, Written, classifier, exported, scripted, stack
from torch import nn

from MedXAILib.errors import MedXAIError
from MedXAILib.methods.rivals import cam, saliency

SHAPES = {2: (1, 1, 24, 20), 3: (1, 1, 12, 16, 8)}


def image(dims=2, channels=1, seed=1):
    torch.manual_seed(seed)
    return torch.randn(1, channels, *SHAPES[dims][2:])


def upsampled(low, x):
    return F.interpolate(low[None, None], x.shape[2:], mode="bilinear" if x.ndim == 4 else "trilinear")[0, 0]


class Deeper(nn.Module):
    """Two linear layers with a rectifier after the pooling: no CAM."""

    def __init__(self, module):
        super().__init__()
        self.features, self.a, self.b = module[:-1], nn.Linear(6, 5), nn.Linear(5, 2)
        for one in (self.a, self.b):
            one.weight.data.abs_()  # so that the maps speak for the class

    def forward(self, x):
        return self.b(F.relu(self.a(self.features(x).flatten(2).mean(2))))


class Flat(nn.Module):
    """Linear after flattening, so every voxel has its own weight: no CAM."""

    def __init__(self, module):
        super().__init__()
        self.features, self.a = module[:-1], nn.Linear(6 * 6 * 5, 2)

    def forward(self, x):
        return self.a(self.features(x).flatten(1))


class Pooled(nn.Module):
    """`stack` with its head written in another way."""

    def __init__(self, module, how):
        super().__init__()
        self.features, self.linear, self.how = module[:-1], module[-1].linear, how

    def forward(self, x):
        maps = self.features(x)
        if self.how == "adaptive":
            return self.linear(F.dropout(F.adaptive_avg_pool2d(maps, 1).flatten(1), training=self.training))
        if self.how == "average":
            return self.linear(F.avg_pool2d(maps, maps.shape[2:])[:, :, 0, 0])
        if self.how == "matmul":
            return maps.mean((2, 3)) @ self.linear.weight.t() + self.linear.bias
        if self.how == "convolution":
            return F.conv2d(maps.mean((2, 3), keepdim=True), self.linear.weight[:, :, None, None], self.linear.bias).flatten(1)  # fmt: skip
        return self.linear(maps.amax((2, 3)))  # no average


# ---- class activation maps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("label", [0, 1])
def test_cam_is_that_of_the_hand(dims, label):
    """Zhou et al.: M_c = Σ_k w_k^c A_k, with the weights of the linear layer; ours is 1/Z of it, Z the voxels of the map, rectified."""
    net, x = stack(dims), image(dims)
    found, name = cam(classifier(net, dims), x, label)
    assert name == "Grad-CAM" and found.shape == x.shape[2:]  # a max-pooling stands between map and average
    net = nn.Sequential(*net[:-2], Head(6))
    head = net[-1].linear.weight.detach()
    found, name = cam(classifier(net, dims), x, label)
    with torch.no_grad():
        maps = net[:-1](x)[0]
    low = torch.einsum("k,k...->...", head[label], maps).clamp(min=0)
    torch.testing.assert_close(found * maps[0].numel(), upsampled(low, x), rtol=1e-4, atol=1e-5)
    assert name == "CAM" and low.max() > 0


@pytest.mark.parametrize("dims", [2, 3])
def test_grad_cam_is_that_of_autograd(dims):
    net = Deeper(stack(dims)).eval()
    x = image(dims)
    found, name = cam(classifier(net, dims), x, 1)
    maps = net.features[:-1](x).detach().requires_grad_()
    score = net.b(F.relu(net.a(net.features[-1](maps).flatten(2).mean(2))))[0, 1]
    (slope,) = torch.autograd.grad(score, maps)
    low = torch.einsum("k,k...->...", slope[0].flatten(1).mean(1), maps[0].detach()).clamp(min=0)
    torch.testing.assert_close(found, upsampled(low, x), rtol=1e-4, atol=1e-7)
    assert name == "Grad-CAM" and found.max() > 0


@pytest.mark.parametrize("how", ["adaptive", "average", "matmul", "convolution"])
def test_it_is_called_cam_however_the_head_is_written(how):
    net = nn.Sequential(*stack()[:-2], Head(6))
    plain, _ = cam(classifier(net), image(), 1)
    found, name = cam(classifier(Pooled(net, how)), image(), 1)
    assert name == "CAM"
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("net", [Deeper, Flat, lambda net: Pooled(net, "maximum")])
def test_it_is_not_called_cam_where_more_follows(net):
    net = net(stack())
    assert cam(classifier(net), image(), 1)[1] == "Grad-CAM"
    mean = nn.Sequential(*stack()[:-2], Head(6))
    odds = nn.Sequential(mean, nn.Softmax(1))  # z is log p − log(1 − p), which is not linear in the average
    assert cam(classifier(odds, output={"activation": "none"}), image(), 1)[1] == "Grad-CAM"


@pytest.mark.parametrize("how", ["functional", "in place", "reused in place", "scripted", "exported"])
@pytest.mark.parametrize("rival", [saliency, lambda *a: cam(*a)[0]])
def test_any_form_of_a_network_gives_the_same(how, rival):
    net, x = stack(), image()
    made = {"scripted": scripted, "exported": lambda net: exported(net, x.shape)}
    other = made[how](net) if how in made else Written(net, how)
    expected = rival(classifier(net), x, 1)
    assert expected.max() > 0
    torch.testing.assert_close(rival(classifier(other), x, 1), expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_captum_agrees(dims):
    attr = pytest.importorskip("captum.attr")
    net, x = stack(dims, norm=True).eval(), image(dims)
    net[-1].linear.weight.data.abs_()
    layer = attr.LayerGradCam(net, net[-3])  # the rectifier before the last pooling
    theirs = layer.attribute(x, target=1, relu_attributions=True).detach()[0, 0]
    found, _ = cam(classifier(net, dims), x, 1)
    torch.testing.assert_close(found, upsampled(theirs, x), rtol=1e-4, atol=1e-7)
    theirs = attr.Saliency(net).attribute(x.clone().requires_grad_(), target=1)
    assert found.max() > 0 and theirs.max() > 0
    torch.testing.assert_close(saliency(classifier(net, dims), x, 1), theirs[0, 0])


# ---- gradient saliency -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_saliency_of_a_linear_network_is_its_weight(dims):
    """z = Σ w x: the slope of a voxel is |w|, the largest over the two channels."""
    torch.manual_seed(3)
    weight = torch.randn(2, 2, *SHAPES[dims][2:])
    net = nn.Sequential(nn.Flatten(), nn.Linear(weight[0].numel(), 2, bias=False))
    net[1].weight.data[:] = weight.flatten(1)
    found = saliency(classifier(net, dims, channels=2), image(dims, channels=2), 1)
    torch.testing.assert_close(found, weight[1].abs().amax(0))


# ---- what is left behind, and what cannot be done --------------------------------------------------------------------


def test_the_network_is_left_as_it_was():
    net = stack(norm=True).train()
    model = classifier(net)
    net.train()
    for one in net.parameters():
        one.grad = torch.ones_like(one)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    x = image()
    before = x.clone()
    with torch.no_grad():  # as a caller that holds it may be
        saliency(model, x, 0)
        cam(model, x, 0)
    assert torch.equal(x, before) and not x.requires_grad and net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(one.requires_grad and torch.equal(one.grad, torch.ones_like(one)) for one in net.parameters())
    assert not any(one._forward_hooks or one._backward_hooks for one in net.modules())


def test_refusals():
    linear = classifier(nn.Sequential(nn.Flatten(), nn.Linear(24 * 20, 2)))
    with pytest.raises(MedXAIError, match="has no convolution"):
        cam(linear, image(), 0)

    class Detached(nn.Module):
        def forward(self, x):
            return x.detach().mean((2, 3)).repeat(1, 2)

    with pytest.raises(MedXAIError, match="small"):
        saliency(classifier(Detached()), image(), 0)
