import gc
import weakref

import pytest
import torch
from torch import nn

from MedXAILib.errors import MedXAIError
from MedXAILib.models.networks import MeshNet, PlainUNet
from MedXAILib.training.ability_loss import AbilityLoss


class Given(nn.Module):
    """A network whose layers give the tensors it was made with, and that answers with the logits."""

    def __init__(self, *features):
        super().__init__()
        self.features = features
        self.layers = nn.ModuleList(nn.Identity() for _ in features)

    def forward(self, logits):
        for layer, features in zip(self.layers, self.features):
            layer(features)
        return logits


NAMES = ["layers.0"]


def logits_of(mask, sure=40.0):
    """Softmax logits (N, 2, *spatial) of a mask (N, *spatial) of 0 and 1."""
    return torch.stack([sure * (1 - mask), sure * mask], 1)


def hooks(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def plain(features, soft, true):
    """1 − soft Dice of one image and one object, word for word: distances to both prototypes of the upsampled features."""
    size = true.shape
    f = nn.functional.interpolate(features[None], size, mode="bilinear" if len(size) == 2 else "trilinear")[0].flatten(
        1
    )
    b, g = soft.flatten(), true.flatten().to(f)
    nearer = []
    for weight in (1 - b, b):
        c = (f * weight).sum(1) / weight.sum()
        nearer.append(-((f - c[:, None]) ** 2).mean(0))
    m = torch.stack(nearer).softmax(0)[1]
    return 1 - 2 * (m * g).sum() / (m.sum() + g.sum())


@pytest.mark.parametrize("low", [(6, 8), (3, 4), (3, 4, 2)])
def test_the_loss_is_the_papers_formula(low):
    torch.manual_seed(0)
    size = tuple(n * (2 if low != (6, 8) else 1) for n in low)
    features = 0.4 * torch.randn(2, 5, *low, dtype=torch.float64)
    logits, labels = torch.randn(2, 2, *size, dtype=torch.float64), torch.rand(2, *size) > 0.6
    network = Given(features)
    with AbilityLoss(network, NAMES) as ability:
        found = ability(network(logits), labels.long())
    soft = logits.softmax(1)[:, 1]
    wanted = torch.stack([plain(features[n], soft[n], labels[n]) for n in range(2)]).mean()
    assert torch.allclose(found, wanted, atol=1e-10)
    assert ability.scores["layers.0"] == pytest.approx(1 - float(wanted))


def test_features_that_are_the_object_cost_little_and_features_without_information_much():
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:5, 2:6] = 1
    network = Given(100 * mask[:, None], torch.zeros(1, 1, 8, 8))
    with AbilityLoss(network, ["layers.0", "layers.1"]) as ability:
        loss = ability(network(logits_of(mask)), mask.long())
    # Variance v = p(1 − p)·100² for a share p of object voxels: ±1/(p(1 − p)) in the softmax.
    p = 12 / 64
    m = torch.sigmoid(torch.tensor([1.0, -1.0]) / (p * (1 - p)))
    assert ability.scores["layers.0"] == pytest.approx(float(2 * m[0] * 12 / (m[0] * 12 + m[1] * 52 + 12)), abs=1e-5)
    assert ability.scores["layers.1"] == pytest.approx(2 * 6 / (32 + 12), abs=1e-5)  # m = 1/2 everywhere
    assert float(loss.detach()) == pytest.approx(1 - sum(ability.scores.values()) / 2, abs=1e-5)


def test_several_labels_have_one_prototype_each():
    labels = torch.zeros(1, 6, 6, dtype=torch.long)
    labels[:, :2], labels[:, 4:] = 1, 2
    one_hot = nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    network = Given(30 * one_hot)
    with AbilityLoss(network, NAMES) as ability:
        assert float(ability(network(40 * one_hot), labels)) < 0.1
    # Sigmoid: labels that overlap, each against its own background.
    both = torch.stack([labels == 1, labels >= 1], 1).float()
    network = Given(30 * both)
    with AbilityLoss(network, NAMES, activation="sigmoid") as ability:
        assert float(ability(network(80 * both - 40), both)) < 0.2
    one = both[:, 1:]
    network = Given(30 * one)
    with AbilityLoss(network, NAMES) as ability:
        assert float(ability(network(80 * one - 40), one[:, 0])) < 0.2


@pytest.mark.parametrize("detach", [True, False])
def test_the_gradient_is_that_of_the_formula(detach):
    torch.manual_seed(1)
    labels = torch.rand(2, 4, 6) > 0.5
    labels[1] = False

    def loss(features, logits):
        network = Given(features)
        with AbilityLoss(network, NAMES, detach=detach) as ability:
            return ability(network(logits), labels.long())

    for scale in (0.3, 3.0):  # below and above a variance of 1
        features = (scale * torch.randn(2, 3, 2, 3, dtype=torch.float64)).requires_grad_()
        logits = torch.randn(2, 2, 4, 6, dtype=torch.float64, requires_grad=not detach)
        assert torch.autograd.gradcheck(loss, (features, logits))
    if detach:
        logits = logits.requires_grad_()
        assert torch.autograd.grad(loss(features, logits), logits, allow_unused=True) == (None,)


@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_gradient_lives_with_many_channels_of_any_scale_and_an_image_without_object(size, scale):
    torch.manual_seed(2)
    mask = torch.zeros(3, *size)
    mask[:2, 2:6, 3:7] = 1
    low = nn.functional.interpolate(mask[:, None], scale_factor=0.5)
    features = (scale * (torch.randn(3, 256, *low.shape[2:]).relu() + low)).requires_grad_()
    network = Given(features)
    with AbilityLoss(network, NAMES) as ability:
        loss = ability(network(logits_of(mask)), mask.long())
    loss.backward()
    gradient = features.grad
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    assert (gradient[:2].flatten(1).norm(dim=1) > 0).all() and (gradient[2] == 0).all()
    # The image without object says nothing: alone it costs nothing, and beside others it is left out.
    assert 0 < float(loss.detach()) < 1
    network = Given(features[:2])
    with AbilityLoss(network, NAMES) as ability:
        assert torch.allclose(loss, ability(network(logits_of(mask[:2])), mask[:2].long()))
    alone = features[2:].detach().requires_grad_()
    network = Given(alone)
    with AbilityLoss(network, NAMES) as ability:
        empty = ability(network(logits_of(mask[2:])), mask[2:].long())
    empty.backward()
    assert float(empty.detach()) == 0 and torch.isfinite(alone.grad).all()


def test_the_layers_of_the_papers_network_are_found_in_order():
    network = PlainUNet(2, 1, 2, filters=2, levels=5)
    image, labels = torch.rand(2, 1, 32, 32), (torch.rand(2, 32, 32) > 0.5).long()
    rectified = []
    spies = [
        m.register_forward_hook(lambda m, i, o: rectified.append(o.detach().clone()))
        for m in network.modules()
        if isinstance(m, nn.ReLU)
    ]
    with AbilityLoss(network) as ability:
        logits = network(image)
        assert all(torch.equal(a.features, b) for a, b in zip([s for s in ability._seen if s.whole], rectified))
        (nn.functional.cross_entropy(logits, labels) + ability(logits, labels)).backward()
    assert len(rectified) == len(ability.scores) == 18 and list(ability.scores)[:3] == [
        "down.0.0",
        "down.0.3",
        "down.1.0",
    ]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.down.parameters())
    for spy in spies:
        spy.remove()


def test_a_rectifier_that_is_used_twice_ends_two_blocks():
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.act = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1), nn.ReLU()
            self.bare = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.bare(self.act(self.two(self.act(self.one(x)))))

    network, labels = Reused(), torch.ones(1, 8, 8, dtype=torch.long)
    for layers, wanted in ((None, ["one", "two"]), (["act"], ["act", "act#2"]), (["bare", "one"], ["one", "bare"])):
        with AbilityLoss(network, layers) as ability:
            ability(network(torch.rand(1, 1, 8, 8)), labels)
        assert list(ability.scores) == wanted


def test_nothing_is_left_on_the_network_or_in_memory():
    network = PlainUNet(2, 1, 2, filters=2, levels=2)
    with pytest.raises(ZeroDivisionError), AbilityLoss(network):
        assert hooks(network)
        raise ZeroDivisionError
    assert hooks(network) == 0
    ability = AbilityLoss(network)
    logits = network(torch.rand(1, 1, 8, 8))
    held = [weakref.ref(one) for one in ability._seen]
    loss = ability(logits, torch.ones(1, 8, 8, dtype=torch.long))
    assert held and not ability._seen
    del loss, logits
    gc.collect()
    assert not any(ref() for ref in held)
    network(torch.rand(1, 1, 8, 8))
    first = len(ability._seen)
    network(torch.rand(1, 1, 8, 8))  # a pass without a loss lets go of the one before
    assert len(ability._seen) == first
    ability.close()
    ability.close()
    assert hooks(network) == 0 and not ability._seen


def test_refusals():
    network = PlainUNet(2, 1, 2, filters=2, levels=2)
    labels = torch.ones(1, 8, 8, dtype=torch.long)

    def refused(*arguments, image=(1, 1, 8, 8), labels=labels, forward=True, network=network, **options):
        with pytest.raises(MedXAIError) as told:
            with AbilityLoss(network, *arguments, **options) as ability:
                logits = network(torch.rand(image)) if forward else torch.rand(1, 2, 8, 8)
                ability(logits, labels)
        assert hooks(network) == 0
        return told.value.message

    assert "no layer 'down.0.9' (did you mean 'down.0.5'?)" in refused(["down.0.9"])
    assert "No layer was named" in refused([])
    assert "no convolution module" in refused(network=nn.Identity())
    assert "has seen no layer" in refused(forward=False)
    assert "cannot be 'none'" in refused(activation="none")
    assert "(1, 8, 8) do not fit logits of shape (2, 2, 8, 8)" in refused(image=(2, 1, 8, 8))
    assert "'down.1.0' has no spatial extent" in refused(image=(2, 1, 2, 2), labels=labels.expand(2, 8, 8)[:, :2, :2])
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Upsample((8, 8)))
    assert "'1' has no spatial extent" in refused(["1"], network=pooled)


def test_a_training_step_in_3d_raises_the_ability():
    torch.manual_seed(0)
    network = MeshNet(3, 1, 2, filters=4, dilations=(1, 1))
    mask = torch.zeros(2, 8, 8, 8)
    mask[:, 2:6, 2:6, 2:6] = 1
    image = mask[:, None] + 0.5 * torch.randn(2, 1, 8, 8, 8)
    adam, losses = torch.optim.Adam(network.parameters(), 0.02), []
    with AbilityLoss(network) as ability:
        for _ in range(30):
            logits = network(image)
            extra = ability(logits, mask.long())
            loss = nn.functional.cross_entropy(logits, mask.long()) + extra
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(float(extra.detach()))
    assert losses[-1] < losses[0] - 0.2
