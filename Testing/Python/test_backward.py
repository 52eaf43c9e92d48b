"""Backward rules on graphs: known answers, explicit inversion, every way to write a rectifier."""

from __future__ import annotations

import monai.networks.nets as nets
import pytest
import torch
import torch.nn.functional as F
from classifiers import Head, Written, classifier, exported, scripted, stack
from torch import fx, nn

from MedXAILib.errors import MedXAIError
from MedXAILib.models.backward import Recording
from MedXAILib.models.reading import last_map


def drive(steps):
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def record(model, x, layer=None, **options) -> Recording:
    layer = layer or last_map(model, tuple(x.shape[2:])).output
    with model.frozen():
        recording = Recording(model, x, layer, **options)
        drive(recording.forward())
    return recording


def sent(model, x, filters=(0,), layer=None, **options):
    return drive(record(model, x, layer, **options).send(filters))


def by_autograd(model, x, layer, filters):
    """The true gradient, from the graph as it stands."""
    traced, x = model.graph(x), x.clone().requires_grad_()
    values = {}
    for node in traced.graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.get)
        if node.op == "placeholder":
            values[node] = x.clone()
        elif node.op == "get_attr":
            values[node] = getattr(traced, node.target)
        elif node.op == "call_function":
            values[node] = node.target(*args, **kwargs)
        if node.name == layer:
            out = values[node].clone()
            break
    found = []
    for one in filters:
        seed = torch.zeros_like(out)
        seed[:, one] = out[:, one].detach()
        found.append(torch.autograd.grad(out, x, seed, retain_graph=True)[0][0])
    return torch.stack(found)


# ---- known answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_delta_kernel_gives_the_activation_back(dims):
    conv = (None, None, nn.Conv2d, nn.Conv3d)[dims](1, 2, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[(0, 0) + (1,) * dims], conv.weight[(1, 0) + (1,) * dims] = 1, -2
    model = classifier(nn.Sequential(conv, nn.ReLU(), Head(2)), dims)
    x = torch.randn(1, 1, *(6, 7, 8)[:dims])
    back = sent(model, x, (0, 1))
    assert torch.equal(back[0], x[0].clamp(min=0))  # the activation itself
    assert torch.equal(
        back[1], -2 * (-2 * x[0]).clamp(min=0)
    )  # the kernel's sign is kept: nothing rectifies at the image


@pytest.mark.parametrize("dims", [2, 3])
def test_two_poolings_send_everything_to_the_switch(dims):
    conv = (None, None, nn.Conv2d, nn.Conv3d)[dims](1, 1, 1, bias=False)
    nn.init.ones_(conv.weight)
    pool = (None, None, nn.MaxPool2d, nn.MaxPool3d)[dims](2)
    model = classifier(nn.Sequential(conv, nn.ReLU(), pool, conv, nn.ReLU(), pool, nn.ReLU(), Head(1)), dims)
    x = torch.rand(1, 1, *(8,) * dims)
    for place in ((1,) * dims, (6,) + (2,) * (dims - 1)):
        x[(0, 0, *place)] += 5
    back = sent(model, x, layer="relu_2")[0, 0]
    windows = x
    windows = (F.max_pool2d if dims == 2 else F.max_pool3d)(x, 4)
    assert torch.count_nonzero(back) == windows.numel()
    assert torch.equal(back[back > 0].sort().values, windows.flatten().sort().values)
    assert torch.equal(back[back > 0], x[0, 0][back > 0])  # at the very voxels whose value it is


def inverted(parts, x, one):
    """Zeiler & Fergus 2014, stage by stage, of modules before the head: transposed filters, unpooling with switches, rectifier on the signal."""
    values, switches = x, []
    for part in parts:
        if isinstance(part, (nn.MaxPool2d, nn.MaxPool3d)):
            pool = F.max_pool2d if x.ndim == 4 else F.max_pool3d
            before = values.shape
            values, at = pool(values, part.kernel_size, part.stride, return_indices=True)
            switches.append((at, before))
        else:
            values = part(values)
    signal = torch.zeros_like(values)
    signal[:, one] = values[:, one]
    for part in reversed(parts):
        if isinstance(part, (nn.MaxPool2d, nn.MaxPool3d)):
            at, before = switches.pop()
            unpool = F.max_unpool2d if x.ndim == 4 else F.max_unpool3d
            signal = unpool(signal, at, part.kernel_size, part.stride, output_size=before[2:])
        elif isinstance(part, nn.ReLU):
            signal = signal.clamp(min=0)
        elif isinstance(part, (nn.Conv2d, nn.Conv3d)):
            transpose = F.conv_transpose2d if x.ndim == 4 else F.conv_transpose3d
            signal = transpose(signal, part.weight, None, part.stride, part.padding)
        else:
            scale = part.weight / torch.sqrt(part.running_var + part.eps)
            signal = signal * scale.reshape(1, -1, *[1] * (x.ndim - 2))
    return signal.detach()


@pytest.mark.parametrize("dims, norm", [(2, False), (2, True), (3, True)])
def test_equals_the_explicit_inversion(dims, norm):
    network = stack(dims, (4, 6, 5), norm=norm).eval()
    model, x = classifier(network, dims), torch.randn(1, 1, *(16, 24, 8)[:dims])
    parts = list(network)[:-2]  # up to the last rectifier, where the layer is read
    recording = record(model, x)
    for one in range(5):
        expected = inverted(parts, x, one)
        found = drive(recording.send([one]))
        torch.testing.assert_close(found, expected, atol=1e-6 * float(expected.abs().max()), rtol=0)
    assert recording.rules.colliding == 0 and recording.rules.rectifiers == {"relu": 3}


def test_overlapping_pooling_sums_or_overwrites():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(3, 2, 3), nn.ReLU(), Head(2)).eval()  # fmt: skip
    model, x = classifier(network), torch.randn(1, 1, 21, 21)
    layer = last_map(model, (21, 21)).output
    summed, overwritten = (sent(model, x, (0, 1), collisions=how) for how in ("sum", "overwrite"))
    torch.testing.assert_close(sent(model, x, (0, 1), rule="gradient"), by_autograd(model, x, layer, (0, 1)))
    for one in (0, 1):  # this machine's unpooling writes in reading order
        torch.testing.assert_close(overwritten[one : one + 1], inverted(list(network)[:-1], x, one))
    assert (summed - overwritten).norm() > 0.1 * summed.norm()
    assert record(model, x).rules.overlapping == 1 and record(model, x).rules.colliding > 0


@pytest.mark.parametrize("how", ["functional", "in place", "reused", "reused in place", "clamp", "script", "script in place", "export"])  # fmt: skip
@pytest.mark.parametrize("rule", ["deconvnet", "gradient", "guided"])
def test_every_way_to_write_a_rectifier_gives_the_same_map(how, rule):
    modules, x = stack(), torch.randn(1, 1, 16, 16)
    other = {
        "script": lambda: scripted(Written(modules, "functional")), "script in place": lambda: scripted(Written(modules, "reused in place")),
        "export": lambda: exported(Written(modules, "in place"), x.shape),
    }.get(how, lambda: Written(modules, how))()  # fmt: skip
    filters = (5, 0, 3)
    expected = sent(classifier(modules), x, filters, rule=rule)
    recording = record(classifier(other), x, rule=rule)
    assert torch.equal(recording.logits, modules(x))
    assert torch.equal(drive(recording.send(filters)), expected)
    assert sum(recording.rules.rectifiers.values()) == 2


def test_shift_by_the_total_stride_shifts_the_map():
    torch.manual_seed(0)
    model, x = classifier(stack(widths=(4, 6))), torch.zeros(1, 1, 64, 64)
    x[..., 20:36, 20:36] = torch.rand(16, 16)
    moved = torch.roll(x, (4, 8), (2, 3))
    inner = (..., slice(12, 52), slice(12, 52))  # away from the padding at the border
    there, back = sent(model, moved, (0, 1, 2)), sent(model, x, (0, 1, 2))
    torch.testing.assert_close(there[inner], torch.roll(back, (4, 8), (2, 3))[inner])
    assert there[inner].abs().max() > 0


KIN = {
    "relu": F.relu, "leaky": lambda a: F.leaky_relu(a, 0.2), "elu": F.elu, "selu": F.selu, "celu": F.celu, "gelu": F.gelu, "silu": F.silu,
    "mish": F.mish, "softplus": F.softplus, "relu6": F.relu6, "hardswish": F.hardswish,
    "prelu": lambda a: F.prelu(a, torch.tensor([0.1, 0.2])),
}  # fmt: skip


@pytest.mark.parametrize("kin", KIN)
def test_rules_of_the_rectifiers(kin):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False), Head(2)

        def forward(self, x):
            return self.head(self.second(KIN[kin](self.first(x))))

    torch.manual_seed(3)
    net = Net()
    model, x = classifier(net), 2 * torch.randn(1, 1, 9, 9)
    a = net.first(x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(KIN[kin](a).sum(), a)
    z = net.second(KIN[kin](a)).detach()
    for one in (0, 1):
        g = z[:, one : one + 1] * net.second.weight[one].reshape(1, 2, 1, 1)
        rules = {"deconvnet": g.clamp(min=0), "gradient": g * slope, "guided": g.clamp(min=0) * slope.clamp(min=0)}
        for rule, signal in rules.items():
            expected = (signal * net.first.weight.reshape(1, 2, 1, 1)).sum(1, keepdim=True)
            recording = record(model, x, "conv2d_1", rule=rule)
            torch.testing.assert_close(drive(recording.send([one])), expected.detach())
            assert sum(recording.rules.rectifiers.values()) == 1 and not recording.rules.derivatives


def test_a_clamp_that_is_no_rectifier_takes_its_derivative():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Conv2d(1, 2, 1), Head(2)

        def forward(self, x):
            return self.head(self.first(x.clamp(min=-0.5, max=0.5)))

    model, x = classifier(Net()), torch.randn(1, 1, 9, 9)
    recording = record(model, x, "conv2d")
    assert recording.rules.derivatives == {"clamp": 1} and not recording.rules.rectifiers
    assert (drive(recording.send([0]))[0, 0][x[0, 0].abs() > 0.5] == 0).all()


# ---- other people's networks -----------------------------------------------------------------------------------------


class Parts(nn.Module):
    """What is seen in the field: several outputs of one operation, attention to channels, transposed and grouped convolutions, 'same' padding."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding="same", dilation=2)
        self.uneven = nn.Conv2d(8, 8, 2, padding="same")
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4)
        self.up, self.norm = (
            nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
            nn.BatchNorm2d(6),
        )
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.valid = nn.Conv2d(6, 5, 3, padding="valid")
        self.head = Head(5)
        with torch.no_grad():  # so that the signals neither die nor explode
            for one in (self.first, self.uneven, self.grouped, self.up, self.valid):
                one.weight *= 3

    def forward(self, x):
        y = F.relu(self.uneven(F.relu(self.first(x))))
        a, b = y.chunk(2, 1)
        y = torch.cat([F.relu(a) * torch.sigmoid(b), a - b], 1)
        with torch.no_grad():
            gate = (y > 0).float()
        y = y + 0.5 * gate
        y = F.relu(self.norm(self.up(F.relu(self.grouped(y)))), inplace=True)
        y = F.interpolate(F.avg_pool2d(y, 2), scale_factor=2, mode="bilinear")
        return self.head(F.relu(self.valid(F.dropout(y, 0.5, self.training))))


def monai_net(name):
    torch.manual_seed(0)
    return {
        "resnet18 3-D": lambda: (nets.resnet18(spatial_dims=3, n_input_channels=2, num_classes=2), (1, 2, 32, 32, 32)),
        "densenet121": lambda: (nets.DenseNet121(spatial_dims=2, in_channels=1, out_channels=2), (1, 1, 64, 64)),
        "densenet 3-D": lambda: (nets.DenseNet(3, 1, 2, block_config=(2, 2), init_features=8, growth_rate=4), (1, 1, 24, 24, 24)),
        "efficientnet": lambda: (nets.EfficientNetBN("efficientnet-b0", spatial_dims=2, in_channels=1, num_classes=2, pretrained=False), (1, 1, 64, 64)),
        "senet": lambda: (nets.SEResNet50(spatial_dims=2, in_channels=1, num_classes=2), (1, 1, 64, 64)),
        "classifier": lambda: (nets.Classifier((1, 32, 32), 2, (4, 8), (2, 2)), (1, 1, 32, 32)),
        "parts": lambda: (Parts(), (1, 1, 24, 20)),
    }[name]()  # fmt: skip


@pytest.mark.parametrize("name", ["resnet18 3-D", "densenet121", "densenet 3-D", "efficientnet", "senet", "classifier", "parts"])  # fmt: skip
def test_the_gradient_rule_is_the_true_gradient(name):
    network, shape = monai_net(name)
    model, x = classifier(network, len(shape) - 2, shape[1]), torch.randn(shape)
    layer = last_map(model, shape[2:])
    filters = (0, 4, 2)
    recording = record(model, x, rule="gradient")
    found = drive(recording.send(filters))
    expected = by_autograd(model, x, layer.output, filters)
    assert torch.equal(recording.logits, network(x).detach())
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    one_by_one = torch.cat([drive(recording.send([one])) for one in filters])
    torch.testing.assert_close(found, one_by_one, atol=1e-6 * float(found.abs().max()), rtol=1e-4)


def test_what_was_met_is_counted():
    network, shape = monai_net("parts")
    rules = record(classifier(network), torch.randn(shape)).rules
    assert rules.rectifiers == {"relu": 6}
    assert rules.derivatives == {"sigmoid": 1, "mul": 1}
    assert rules.stopped == {"gt": 1}


@pytest.mark.parametrize(
    "name, kind, filters",
    [("resnet18 3-D", "activation", 512), ("densenet121", "activation", 1024), ("efficientnet", "convolution", 1280), ("senet", "activation", 2048)],
)  # fmt: skip
def test_the_last_map_is_what_the_pooling_reads(name, kind, filters):
    network, shape = monai_net(name)
    layer = last_map(classifier(network, len(shape) - 2, shape[1]), shape[2:])
    assert (layer.kind, layer.shape[0]) == (kind, filters)


def test_the_rest_of_the_network_alone():
    model, x = classifier(monai_net("parts")[0]), torch.randn(1, 1, 24, 20)
    recording = record(model, x, "relu_2")  # in the middle: what comes later also reads what came before it
    assert torch.equal(recording.answer_with(recording.activation), recording.logits)
    assert not torch.equal(recording.answer_with(0 * recording.activation), recording.logits)


def test_the_network_is_left_alone():
    network, x = stack(norm=True), torch.randn(1, 1, 16, 16)
    before, network.training = {k: v.clone() for k, v in network.state_dict().items()}, True
    image = x.clone()
    sent(classifier(network), x, (0, 1), rule="guided")
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items()) and torch.equal(x, image)
    assert all(p.grad is None for p in network.parameters())


# ---- what cannot be done ---------------------------------------------------------------------------------------------


def test_a_change_through_another_name_is_refused():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), Head(4)

        def forward(self, x):
            y = self.conv(x)
            y[:, :2].relu_()
            return self.head(y)

    with pytest.raises(MedXAIError, match=r"node 'relu_' .*changes in place what is also read under another name"):
        record(classifier(Shared()), torch.randn(1, 1, 8, 8))


def test_an_operation_without_derivative_is_refused():
    @torch.library.custom_op("medxai_test::halved", mutates_args=())
    def halved(x: torch.Tensor) -> torch.Tensor:
        return x / 2

    halved.register_fake(lambda x: torch.empty_like(x))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), Head(4)

        def forward(self, x):
            return self.head(F.relu(self.conv(halved(x))))

    with pytest.raises(MedXAIError, match=r"node 'halved' \(medxai_test.halved.default\): .*autograd formula"):
        sent(classifier(Net()), torch.randn(1, 1, 8, 8))


def test_a_layer_beside_the_image_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.own, self.conv, self.head = nn.Parameter(torch.ones(1, 4, 6, 6)), nn.Conv2d(1, 4, 3), Head(4)

        def forward(self, x):
            return self.head(F.relu(self.conv(x)) * torch.tanh(self.own))

    with pytest.raises(MedXAIError, match="does not depend on the image"):
        record(classifier(Net()), torch.randn(1, 1, 8, 8), "tanh")


# ---- found by a stern reader -----------------------------------------------------------------------------------------


class Fourier(nn.Module):
    """Complex numbers on the way, beside a residual."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), Head(4)

    def forward(self, x):
        y = F.relu(self.a(x))
        return self.head(F.relu(self.b(y + 2 * torch.fft.irfft2(torch.fft.rfft2(y), s=y.shape[2:]))))


class Unpooled(nn.Module):
    """Switches that the network itself reads."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), Head(4)

    def forward(self, x):
        y, at = F.max_pool2d(F.relu(self.a(x)), 2, return_indices=True)
        return self.head(F.relu(self.b(F.max_unpool2d(3 * y, at, 2))))


class Cut(nn.Module):
    """A cut at a tensor, and a square."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(1, 4, 3, padding=1), Head(4)

    def forward(self, x):
        y = torch.clamp(self.a(x), min=torch.full((4, 1, 1), -0.1))
        return self.head(F.relu(y * y))


@pytest.mark.parametrize("net", [Fourier, Unpooled, Cut])
def test_rare_operations_keep_their_true_gradient(net):
    torch.manual_seed(0)
    model, x = classifier(net()), torch.randn(1, 1, 12, 12)
    layer = last_map(model, (12, 12)).output
    found, expected = sent(model, x, (0, 1, 2, 3), rule="gradient"), by_autograd(model, x, layer, (0, 1, 2, 3))
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)
    if net is Cut:
        assert record(model, x).rules.derivatives == {"clamp": 1, "mul": 1}


class Headed(nn.Module):
    """A residual map under heads that read it in more than one way."""

    def __init__(self, head):
        super().__init__()
        self.a, self.b, self.norm, self.how = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            head,
        )
        self.linear = nn.Linear(8 if head == "both poolings" else 4, 2)

    def forward(self, x):
        y = F.relu(self.a(x))
        y = F.relu(y + self.norm(self.b(y)))
        mean = y.mean((2, 3))
        if self.how == "both poolings":
            return self.linear(torch.cat([mean, y.amax((2, 3))], 1))
        if self.how == "cosine":
            return self.linear(mean / mean.norm(dim=1, keepdim=True))
        return self.linear(mean + y.std((2, 3)))


@pytest.mark.parametrize("head", ["both poolings", "cosine", "mean and spread"])
def test_the_last_map_under_heads_that_read_it_twice(head):
    assert last_map(classifier(Headed(head)), (12, 12)).output == "relu_1"


def test_the_last_map_before_the_scores_of_a_convolutional_answer():
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layer = last_map(classifier(network), (12, 12))
    assert layer.shape == (6, 10, 10) and layer.output == "relu"


def test_convolutions_on_another_batch_are_told_apart_from_none():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x):  # four quarters as a batch
            y = x.reshape(4, 1, 6, 6)
            return self.linear(F.relu(self.conv(y)).mean((2, 3)).mean(0, keepdim=True))

    with pytest.raises(MedXAIError, match="computed on another batch than the image"):
        last_map(classifier(Folded()), (12, 12))


def test_memory_of_one_filter_is_that_of_its_largest_signals():
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(), Head(4))
    recording = record(classifier(network), torch.randn(1, 1, 32, 32))
    # the rectifier's signal and the one before it, 8 channels each, and as much again
    assert recording.bytes_per_filter() == 2 * 4 * (8 + 8) * 32 * 32
