"""DeepSHAP, DeepTaylor and LRP: by hand, by their sums, by captum and zennit where these are installed; in any form of network."""

from __future__ import annotations

import copy
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from classifiers import Head, Written, classifier, exported, scripted, stack
from torch import nn

from MedXAILib.errors import MedXAIError
from MedXAILib.methods import attributions
from MedXAILib.methods.attributions import RIVALS, deep_taylor, deepshap, gradient, lrp, target
from MedXAILib.models.canonical import canonical

SHAPES = {2: (1, 1, 24, 20), 3: (1, 1, 12, 16, 8)}


def image(dims=2, count=1, channels=1, seed=1):
    torch.manual_seed(seed)
    return torch.randn(count, channels, *SHAPES[dims][2:])


def unbiased(net):
    for one in net.modules():
        if getattr(one, "bias", None) is not None:
            one.bias.data.zero_()
    return net


@pytest.fixture
def captum():
    return pytest.importorskip("captum.attr")


class Linear(nn.Module):
    """Logits W x + b of an image of 6 voxels."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)
        self.layer.weight.data = torch.tensor([[1.0, 0, 2, -1, 0.5, 0], [2.0, -1, 0, 3, 0.5, 1]])
        self.layer.bias.data = torch.tensor([0.25, -0.5])

    def forward(self, x):
        return self.layer(x.flatten(1))


class Two(nn.Module):
    """h = relu((x1 − x2 + 1, 2 x1 + x2 − 1)), z = (h1 − h2 + 0.25, 4 h1 − 3 h2 + 0.75), so f = 3 h1 − 2 h2 + 0.5."""

    def __init__(self, bias=True):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=bias), nn.Linear(2, 2, bias=bias)
        self.a.weight.data = torch.tensor([[1.0, -1.0], [2.0, 1.0]])
        self.b.weight.data = torch.tensor([[1.0, -1.0], [4.0, -3.0]])
        if bias:
            self.a.bias.data, self.b.bias.data = torch.tensor([1.0, -1.0]), torch.tensor([0.25, 0.75])

    def forward(self, x):
        return self.b(F.relu(self.a(x.flatten(1))))


# ---- by hand ---------------------------------------------------------------------------------------------------------

X6 = torch.tensor([[[[0.5, 1.0, -2.0], [3.0, 0.0, 1.0]]]])
W6 = torch.tensor([[1.0, -1, -2], [4, 0, 1]])  # the second row of the weights minus the first


def test_a_linear_network(captum):
    """f = w·x + b: DeepSHAP w ⊙ (x − mean background), LRP w ⊙ x, DeepTaylor (one layer, z^B) the share of each voxel above its worst value."""
    model = classifier(Linear())
    background = torch.stack([0 * X6[0], 2 * X6[0], torch.ones_like(X6[0])])
    found = deepshap(model, X6, 1, background)
    torch.testing.assert_close(found.map, W6 * (X6 - background.mean(0))[0, 0])
    assert found.explained == pytest.approx(float((W6 * (X6 - background.mean(0))).sum())) and found.holds
    found = lrp(model, X6, 1)
    f = float((W6 * X6).sum()) - 0.75
    torch.testing.assert_close(found.map, W6 * X6[0, 0], rtol=1e-5, atol=1e-5)
    assert found.explained == pytest.approx(f) and found.biases == pytest.approx(-0.75, abs=1e-5) and not found.holds
    assert found.error == pytest.approx(0.75 / f, rel=1e-4)
    found = deep_taylor(model, X6, 1, low=[-2.0], high=[3.0])
    share = W6 * X6[0, 0] + 2 * W6.clamp(min=0) - 3 * W6.clamp(max=0)
    torch.testing.assert_close(found.map, share / share.sum() * f)
    assert found.total == pytest.approx(f) and found.holds and found.map.min() >= 0
    torch.testing.assert_close(gradient(model, X6, 1).map, W6)
    assert gradient(model, X6, 1).holds is None


def test_two_layers(captum):
    """x = (1, 2): a = (0, 3), so h1 is off and f = −2 · 3 + 0.5 = −5.5; x = (2, 0.5): h = (2.5, 3.5), f = 7.5 − 7 + 0.5 = 1."""
    model, x = classifier(Two()), torch.tensor([[[[1.0, 2.0]]]])
    found = lrp(model, x, 1)  # R_h2 = −6, of z = 2 + 2 − 1
    torch.testing.assert_close(found.map, torch.tensor([[-4.0, -4.0]]), rtol=1e-5, atol=1e-5)
    assert found.biases == pytest.approx(0.5 + 2, abs=1e-5) and found.explained == -5.5
    found = deep_taylor(model, x, 1, low=[0.0], high=[4.0])  # of −f = 5.5, all from h2: (1·2 + 2·1) in the box, low 0
    torch.testing.assert_close(found.map, torch.tensor([[-2.75, -2.75]]))
    x = torch.tensor([[[[2.0, 0.5]]]])
    found = lrp(model, x, 1)  # R_h1 = 7.5 of 2 − 0.5 + 1, R_h2 = −7 of 4 + 0.5 − 1
    torch.testing.assert_close(found.map, torch.tensor([[6.0 - 8.0, -1.5 - 1.0]]), rtol=1e-5, atol=1e-5)
    assert found.total + found.biases == pytest.approx(1, abs=1e-5)
    found = deep_taylor(model, x, 1, low=[0.0], high=[4.0])  # all from h1: z^B of x1 2, of x2 −0.5 + 4
    torch.testing.assert_close(found.map, torch.tensor([[2 / 5.5, 3.5 / 5.5]]))
    # Against (0, 0), where a = (1, −1) and f = 3.5: m1 = 1 · 3, m2 = (3.5 − 0) / (3.5 + 1) · (−2).
    found = deepshap(model, x, 1, torch.zeros(1, 1, 1, 2))
    m1, m2 = 3.0, -2 * 3.5 / 4.5
    torch.testing.assert_close(found.map, torch.tensor([[2 * (m1 + 2 * m2), 0.5 * (-m1 + m2)]]))
    assert found.explained == -2.5 and found.holds


def test_what_is_explained():
    assert target(classifier(stack()), 1) == [-1, 1] and target(classifier(stack()), 0) == [1, -1]
    three = classifier(nn.Sequential(*stack()[:-1], Head(6, 3)), labels=3)
    assert target(three, 0) == [1, -0.5, -0.5] and target(three, 0, 2) == [1, 0, -1]
    assert target(classifier(stack(), output={"activation": "sigmoid"}), 1) == [0, 1]
    x = image()
    z = three.logits(x)[0].detach()
    assert lrp(three, x, 0, negative=2).explained == pytest.approx(float(z[0] - z[2]))


# ---- what sums must be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", [False, True])
def test_completeness_and_conservation(dims, norm, captum):
    """Rectifier before pooling, batch normalisation, a background that is not 0."""
    model, x, background = classifier(stack(dims, norm=norm), dims), image(dims), image(dims, 5, seed=2)
    shap = deepshap(model, x, 1, background, at_once=2)
    f = [float(z[1] - z[0]) for z in model.logits(torch.cat([x, background])).detach()]
    assert shap.explained == pytest.approx(f[0] - sum(f[1:]) / 5, abs=1e-6) and shap.holds and shap.error < 1e-4
    assert shap.map.shape == x.shape[2:] and shap.map.abs().max() > 0
    torch.testing.assert_close(deepshap(model, x, 1, background).map, shap.map)
    taylor = deep_taylor(model, x, 1)
    assert taylor.explained == pytest.approx(f[0], abs=1e-5) and taylor.error < 1e-4
    assert (taylor.map * f[0]).min() >= -1e-9
    found = lrp(model, x, 1)
    assert found.total + found.biases == pytest.approx(f[0], abs=1e-4) and found.biases != 0


@pytest.mark.parametrize("dims", [2, 3])
def test_lrp_conserves_without_biases_and_is_gradient_times_x(dims):
    model, x = classifier(unbiased(stack(dims)), dims), image(dims)
    found = lrp(model, x, 1)
    assert found.holds and found.error < 1e-3
    torch.testing.assert_close(found.map, x[0, 0] * gradient(model, x, 1).map, rtol=1e-3, atol=1e-6)
    assert lrp(model, x, 1, epsilon=0.1).total != pytest.approx(found.total, rel=0.05)


@pytest.mark.parametrize("name", RIVALS)
def test_exchanged_classes_change_the_sign(name):
    if name == "deepshap":
        pytest.importorskip("captum")
    net, x, background = stack(norm=True), image(), image(count=3, seed=2)
    one = RIVALS[name](classifier(net), x, 1, background)
    torch.testing.assert_close(RIVALS[name](classifier(net), x, 0, background).map, -one.map)
    negated = copy.deepcopy(net)
    negated[-1].linear.weight.data.neg_()
    negated[-1].linear.bias.data.neg_()
    torch.testing.assert_close(RIVALS[name](classifier(negated), x, 1, background).map, -one.map)


def test_several_channels_are_summed(captum):
    """Two channels of which the network takes the difference."""
    net = stack(channels=2)
    net[0].weight.data[:, 1] = -net[0].weight.data[:, 0]
    one = copy.deepcopy(net)
    one[0] = nn.Conv2d(1, 4, 3, padding=1)
    one[0].weight.data, one[0].bias.data = net[0].weight.data[:, :1], net[0].bias.data
    x, background = image(channels=2), image(count=2, channels=2, seed=3)
    theirs = lrp(classifier(one), x[:, :1] - x[:, 1:], 1)
    torch.testing.assert_close(lrp(classifier(net, channels=2), x, 1).map, theirs.map, rtol=1e-4, atol=1e-6)
    theirs = deepshap(classifier(one), x[:, :1] - x[:, 1:], 1, background[:, :1] - background[:, 1:])
    torch.testing.assert_close(deepshap(classifier(net, channels=2), x, 1, background).map, theirs.map)


# ---- any network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["functional", "in place", "clamp", "reused", "reused in place", "scripted", "exported"]
)
@pytest.mark.parametrize("name", RIVALS)
def test_however_it_is_written(name, how):
    if name == "deepshap":
        pytest.importorskip("captum")
    net, x, background = stack(), image(), image(count=2, seed=2)
    other = {"scripted": lambda: scripted(net), "exported": lambda: exported(net, x.shape)}.get(how, lambda: Written(net, how))()  # fmt: skip
    if (name, how) == ("deepshap", "exported"):  # which takes one image at a time
        with pytest.raises(MedXAIError, match="cannot be traced"):
            deepshap(classifier(other), x, 1, background)
        return
    found = RIVALS[name](classifier(other), x, 1, background)
    torch.testing.assert_close(found.map, RIVALS[name](classifier(net), x, 1, background).map)


@pytest.mark.parametrize("dims", [2, 3])
def test_monai_networks(dims, captum):
    """Residual sums, concatenations, normalisation before the first rectifier of a block: the sums hold."""
    from monai.networks.nets import DenseNet, resnet10

    torch.manual_seed(0)
    x, background = torch.randn(1, 1, *[32] * dims), torch.randn(3, 1, *[32] * dims)
    dense = DenseNet(
        spatial_dims=dims, in_channels=1, out_channels=2, init_features=8, growth_rate=4, block_config=(2, 2)
    )
    residual = resnet10(spatial_dims=dims, n_input_channels=1, num_classes=2, widen_factor=0.125)
    for net in (dense, residual):
        for one in net.modules():
            if hasattr(one, "running_mean"):
                nn.init.normal_(one.running_mean, 0, 0.1)
                nn.init.uniform_(one.running_var, 0.5, 2)
        model = classifier(net, dims)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        shap = deepshap(model, x, 1, background)
        assert shap.error < 2e-3, type(net)
        found = lrp(model, x, 1)
        assert found.total + found.biases == pytest.approx(found.explained, abs=2e-3), type(net)
        assert deep_taylor(model, x, 1).map.isfinite().all()
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert not any(one._forward_hooks or one._backward_hooks for one in net.modules())


def test_the_canonical_form_computes_the_same():
    net, x = stack(norm=True), image()
    network = canonical(classifier(net), x, [0.5, 2.0])
    z = net.eval()(x)[0].detach()
    assert float(network(x).detach()) == pytest.approx(float(0.5 * z[0] + 2 * z[1]), abs=1e-6)
    kinds = [type(one).__name__ for one in network.children()]
    assert kinds.count("ReLU") == 2 == kinds.count("MaxPool2d") and kinds.count("Clone") == 4
    assert "aten.batch_norm" not in network.code


# ---- what cannot be done ---------------------------------------------------------------------------------------------


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), Head(4)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x * torch.sigmoid(x))


def test_refusals_in_one_sentence(monkeypatch):
    x = image()
    with pytest.raises(
        MedXAIError, match=r"'small' cannot be explained by LRP: its node 'layer_sigmoid' .Sigmoid. has no rule"
    ):
        lrp(classifier(Gated()), x, 1)
    normed = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), Head(4))
    with pytest.raises(MedXAIError, match=r"DeepTaylor: its node .*instance_norm.* has no rule"):
        deep_taylor(classifier(normed), x, 1)
    with pytest.raises(MedXAIError, match="gives probabilities"):
        lrp(classifier(nn.Sequential(stack(), nn.Softmax(1)), output={"activation": "none"}), x, 1)
    if pytest.importorskip("captum"):
        with pytest.raises(MedXAIError, match="needs a background"):
            deepshap(classifier(stack()), x, 1, None)
        found = deepshap(classifier(normed), x, 1, image(count=2, seed=2))
        assert not found.holds and found.error > 0.01  # no rule for the statistics: it is not silent
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(MedXAIError, match="needs captum") as refused:
        deepshap(classifier(stack()), x, 1, image())
    assert refused.value.kind == "missing"


class Times(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.conv, self.head, self.how = nn.Conv2d(1, 4, 3), Head(4), how

    def forward(self, x):
        return self.head(self.how(F.relu(self.conv(x)) + 1))


@pytest.mark.parametrize(
    ("how", "named"),
    [
        (lambda x: x * x, r"'mul\w*' .mul"),
        (lambda x: x / x, r"'div\w*' .div"),
        (lambda x: 2 / x, r"'reciprocal' .reciprocal"),
    ],
)
@pytest.mark.parametrize("method", [lrp, deep_taylor])
def test_a_product_with_itself_has_no_rule(method, how, named):
    with pytest.raises(MedXAIError, match=f"its node {named}.* has no rule"):
        method(classifier(Times(how)), image(), 1)


class Shifted(nn.Module):
    """Arithmetic with constants at the image, behind a layer and behind the last one."""

    def __init__(self, first=lambda x: 1 - (x - 0.3) / 2, then=lambda x: x):
        super().__init__()
        self.conv, self.head, self.first, self.then = nn.Conv2d(1, 3, 3), Head(3), first, then
        self.register_buffer("more", torch.tensor([0.4, -0.3]))

    def forward(self, x):
        return self.head(self.then(self.conv(self.first(x)))) + self.more


def test_constants_that_are_added_are_biases():
    x = image()
    for then in (lambda x: F.relu(x), lambda x: 0.7 - F.pad(F.relu(x) + 0.2, (1, 1, 1, 1), value=0.1)):
        model = classifier(Shifted(then=then))
        found = lrp(model, x, 1)
        assert found.total + found.biases == pytest.approx(found.explained, abs=1e-4)
        assert found.biases == pytest.approx(found.explained - float((x[0, 0] * gradient(model, x, 1).map).sum()), abs=1e-3)  # fmt: skip
        found = deep_taylor(model, x, 1)
        assert found.total + found.biases == pytest.approx(found.explained, abs=1e-5) and found.biases != 0


def test_the_box_of_the_image_goes_through_arithmetic():
    """1 − (x − 0.3) / 2 in the network, or in its input: the same network, the same box, the same map."""
    x, then = image(), F.relu
    inside, outside = Shifted(then=then), Shifted(first=lambda x: x, then=then)
    outside.load_state_dict(inside.state_dict())
    moved, low, high = 1 - (x - 0.3) / 2, float(x.min()), float(x.max())
    wanted = deep_taylor(classifier(outside), moved, 1, low=[1 - (high - 0.3) / 2], high=[1 - (low - 0.3) / 2])
    torch.testing.assert_close(deep_taylor(classifier(inside), x, 1).map, wanted.map, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("then", [F.relu6, lambda x: F.hardtanh(x, -0.5, 0.5), lambda x: x.clamp(-0.2, 0.4)])
def test_rectifiers_that_cut_on_both_sides_pass_by_their_share(then):
    x, model = image(), classifier(Shifted(then=then))
    found = lrp(model, x, 1)
    assert found.total + found.biases == pytest.approx(found.explained, abs=1e-4)
    assert deep_taylor(model, x, 1).map.abs().max() > 0
    with pytest.raises(MedXAIError, match=r"its node 'clamp' .clamp. has no rule"):
        lrp(classifier(Shifted(then=lambda x: x.clamp(0.1, 1))), x, 1)


def test_captum_must_be_new_enough(monkeypatch):
    pytest.importorskip("captum")
    for told, there in (("0.8.0", False), ("0.9", True), ("0.10.1", True), ("1.0", True)):
        monkeypatch.setattr(attributions, "version", lambda name, told=told: told)
        if there:
            assert attributions.require_captum()
            continue
        with pytest.raises(MedXAIError, match=r"needs captum 0\.9 or later") as refused:
            attributions.require_captum()
        assert refused.value.kind == "missing"


# ---- beside other libraries ------------------------------------------------------------------------------------------


def flat(dims=2):
    """`stack` with a linear layer of all voxels: other libraries know layers alone, and no mean that is written as a function."""
    return nn.Sequential(*stack(dims)[:-1], nn.Flatten(), nn.Linear(6 * math.prod(SHAPES[dims][2:]) // 4**dims, 2))


def test_lrp_is_captums(captum):
    """Where captum has it, that is in 2-D: ε rule everywhere, the difference of two logits."""
    from captum.attr._utils.lrp_rules import EpsilonRule

    net, x = flat(), image()

    def theirs(label):
        one = copy.deepcopy(net).eval()
        for layer in one.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear, nn.Flatten)):
                layer.rule = EpsilonRule(1e-6)
        return captum.LRP(one).attribute(x.clone().requires_grad_(), target=label).detach()[0, 0]

    torch.testing.assert_close(lrp(classifier(net), x, 1).map, theirs(1) - theirs(0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_lrp_and_deep_taylor_are_zennits(dims):
    pytest.importorskip("zennit", exc_type=ImportError)
    from zennit.composites import SpecialFirstLayerMapComposite
    from zennit.rules import Epsilon, Pass, ZBox, ZPlus

    net, x = flat(dims).eval(), image(dims)

    def difference(sign):
        one, head = copy.deepcopy(net), nn.Linear(net[-1].in_features, 1)
        head.weight.data = sign * (net[-1].weight.data[1:] - net[-1].weight.data[:1])
        head.bias.data = sign * (net[-1].bias.data[1:] - net[-1].bias.data[:1])
        one[-1] = head
        return one

    def theirs(first, rest, sign):
        layers = (nn.Conv2d, nn.Conv3d, nn.Linear)
        composite = SpecialFirstLayerMapComposite([(nn.ReLU, Pass()), (layers, rest)], [(layers, first)])
        network, leaf = difference(sign), x.clone().requires_grad_()
        with composite.context(network) as changed:
            out = changed(leaf)
            (found,) = torch.autograd.grad(out, leaf, out.detach())
        return sign * found[0, 0]

    model = classifier(net, dims)
    ours = lrp(model, x, 1)
    torch.testing.assert_close(ours.map, theirs(Epsilon(1e-6), Epsilon(1e-6), 1), rtol=1e-3, atol=1e-5)
    none = ["bias"]
    box = ZBox(x.min(), x.max(), 1e-9, zero_params=none)
    taylor = theirs(box, ZPlus(1e-9, zero_params=none), 1 if ours.explained >= 0 else -1)
    torch.testing.assert_close(deep_taylor(model, x, 1).map, taylor, rtol=1e-3, atol=1e-6)
