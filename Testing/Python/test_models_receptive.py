"""Receptive fields: the claim "a crop gives the same" is checked by cropping, on real, random and treacherous networks."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from MedXAILib.models import load
from MedXAILib.models.model import Model
from MedXAILib.models.networks import MeshNet, PlainUNet
from MedXAILib.package import Input, Intensity, Output, Package, sha256

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "models"
real = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")


def model_of(module: nn.Module, dims: int, labels: int = 2, channels: int = 1, multiple: int = 1) -> Model:
    """A model around a network made here, with weights that let every path count."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    for one in module.modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(one.running_mean, -0.2, 0.2)
            nn.init.uniform_(one.running_var, 0.5, 2)
    intensity = (Intensity("none"),) * channels
    about = Input(dims, tuple("ABCD"[:channels]), None, None, None, None, (multiple,) * dims, intensity)
    output = Output(tuple(f"label {n}" for n in range(labels)), "softmax" if labels > 1 else "sigmoid")
    package = Package(Path("none"), "made here", "segmentation", "weights.pt", "", None, about, output)
    return Model(package, module.eval(), "cpu")


def crop_of(field, voxel, shape):
    """The smallest box that the claim allows for one voxel."""
    start, stop = [], []
    for v, (below, above), stride, n in zip(voxel, field.radius, field.stride, shape):
        start.append(max(0, v - below) // stride * stride)
        stop.append(min(n, -(-(v + above + 1) // stride) * stride))
    return start, stop


def check_crops(model: Model, shape, voxels=12, seed=0):
    """The claim itself: outputs and input gradients of crops equal those of the volume. Returns the field."""
    field = model.receptive_field(shape)
    assert field.exact, field.reason
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((1, len(model.package.input.channels), *shape), generator=generator).requires_grad_()
    with model.frozen():
        full = model.logits(x)
        corners = [[0] * len(shape), [n - 1 for n in shape]]
        random = [[int(torch.randint(n, (), generator=generator)) for n in shape] for _ in range(voxels)]
        for voxel in corners + random:
            at = (0, slice(None), *voxel)
            gradient = torch.autograd.grad(full[at].sum(), x, retain_graph=True)[0]
            start, stop = crop_of(field, voxel, shape)
            box = (..., *(slice(a, b) for a, b in zip(start, stop)))
            part = x.detach()[box].clone().requires_grad_()
            mine = model.logits(part)[(0, slice(None), *(v - a for v, a in zip(voxel, start)))]
            torch.testing.assert_close(mine, full[at], rtol=1e-4, atol=1e-4)
            inner = torch.autograd.grad(mine.sum(), part)[0]
            torch.testing.assert_close(inner, gradient[box], rtol=1e-3, atol=1e-4)
            # No gradient outside the radius: the box without its rounding to the stride.
            outside = gradient.clone()
            outside[(..., *(slice(max(0, v - b), v + a + 1) for v, (b, a) in zip(voxel, field.radius)))] = 0
            assert not outside.any()
    return field


class Net(nn.Module):
    """A forward function with its parts."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def conv(before, after, size=3, dims=2, **rest):
    rest.setdefault("padding", size // 2)
    return (nn.Conv2d if dims == 2 else nn.Conv3d)(before, after, size, **rest)


# ---- the project's, MONAI's and the real networks --------------------------------------------------------------------


def test_plain_unet_and_meshnet():
    field = check_crops(model_of(PlainUNet(2, 1, 2, filters=4, levels=3), 2, multiple=4), (72, 64))
    assert field.stride == (4, 4)
    field = check_crops(model_of(PlainUNet(3, 1, 2, filters=2, levels=2), 3, multiple=2), (32, 36, 30), voxels=4)
    assert field.stride == (2, 2, 2)
    field = check_crops(model_of(MeshNet(3, 2, 3, filters=3, dilations=(1, 2, 4)), 3, 3, 2), (21, 22, 23), voxels=4)
    assert field.radius == ((7, 7),) * 3 and field.stride == (1, 1, 1)


def test_size_that_is_not_a_multiple_of_the_stride():
    """The last rows of an odd size go through other paths; the crop must still be exact, or refused."""
    network = Net(lambda m, x: m.b(F.pad(m.up(m.a(m.pool(x))), (0, x.shape[3] % 2, 0, x.shape[2] % 2), "replicate")),
                  a=conv(1, 3), b=conv(3, 2), pool=nn.MaxPool2d(2), up=nn.ConvTranspose2d(3, 3, 2, stride=2))  # fmt: skip
    check_crops(model_of(network, 2), (33, 41), voxels=30)
    resized = Net(lambda m, x: F.interpolate(m.a(m.pool(x)), size=x.shape[2:]), a=conv(1, 2), pool=nn.MaxPool2d(2))
    assert check_crops(model_of(resized, 2), (32, 40)).stride == (2, 2)
    assert not model_of(resized, 2).receptive_field((33, 41)).exact


@pytest.mark.parametrize("norm", ["batch", "instance", ("group", {"num_groups": 2})])
def test_monai_networks(norm):
    nets = pytest.importorskip("monai.networks.nets")
    cases = {
        "UNet": (nets.UNet(2, 1, 2, (4, 8, 8), (2, 2), num_res_units=1, norm=norm), 2, (56, 48), 4),
        "UNet 3-D": (nets.UNet(3, 1, 2, (2, 4), (2,), norm=norm), 3, (16, 20, 18), 2),
        "BasicUNet": (nets.BasicUNet(2, 1, 2, features=(4, 4, 4, 4, 4, 4), norm=norm), 2, (160, 176), 16),
        "BasicUNet, interpolating": (
            nets.BasicUNet(2, 1, 2, features=(4, 4, 4, 4, 4, 4), norm=norm, upsample="nontrainable"), 2, (176, 160), 16),
        "DynUNet": (
            nets.DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 4, 8], norm_name=norm), 2, (48, 56), 4),
        "SegResNet": (nets.SegResNet(2, 4, 1, 2, norm=norm, blocks_down=(1, 1), blocks_up=(1,)), 2, (32, 40), 2),
        "VNet": (nets.VNet(2, 1, 2), 2, (240, 256), 16),
    }  # fmt: skip
    for name, (network, dims, shape, multiple) in cases.items():
        if norm != "batch" and name not in ("UNet", "DynUNet", "SegResNet"):
            continue
        model = model_of(network, dims, multiple=multiple)
        if name == "BasicUNet, interpolating":  # MONAI interpolates with align_corners there
            assert "align_corners" in model.receptive_field(shape).reason
        elif norm == "batch":
            field = check_crops(model, shape, voxels=3)
            assert max(map(max, field.radius)) > 3, name
        else:
            field = model.receptive_field(shape)
            assert not field.exact and "normalisation" in field.reason, (name, field.reason)


@real
def test_real_networks():
    for name, shape, radius, stride in (
        ("meshnet-white-grey", (12, 13, 110), ((46, 46),) * 3, (1, 1, 1)),
        ("meshnet-18", (64, 64, 64), ((46, 46),) * 3, (1, 1, 1)),
        ("lung-unet", (128, 144), None, (8, 8)),
    ):
        model = load(DATA / name, "cpu", {sha256(DATA / name / "weights.ts")})
        field = model.receptive_field(shape)
        assert field.exact and field.stride == stride
        assert radius is None or field.radius == radius
        if name != "meshnet-18":
            check_crops(model, shape, voxels=2)
    chest = load(DATA / "chest-view", "cpu", {sha256(DATA / "chest-view" / "weights.ts")})
    assert not chest.receptive_field((128, 128)).exact


# ---- random networks -------------------------------------------------------------------------------------------------


@st.composite
def blocks(draw, depth=2):
    """A network that keeps the size, from every operation that there is a rule for; its channels are always 2."""
    kinds = ["conv", "asymmetric", "even", "norm", "act", "pool1", "avg1", "pads", "shift", "residual", "crop"]
    if depth:
        kinds += ["down", "down", "branch"]
    kind = draw(st.sampled_from(kinds))
    return _block(draw, kind, depth)


def _block(draw, kind, depth):
    if kind == "conv":
        size, dilation = draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 3))
        mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate"]))
        return nn.Conv2d(
            2,
            2,
            size,
            padding=dilation * (size // 2),
            dilation=dilation,
            padding_mode=mode,
            groups=draw(st.integers(1, 2)),
        )
    if kind == "asymmetric":
        return nn.Conv2d(2, 2, (3, 1), padding=(1, 0))
    if kind == "even":
        return nn.Conv2d(2, 2, draw(st.sampled_from([2, 4])), padding="same")
    if kind == "norm":
        return nn.BatchNorm2d(2)
    if kind == "act":
        return draw(
            st.sampled_from(
                [nn.PReLU(), nn.ELU(), nn.LeakyReLU(0.2, inplace=True), nn.Tanh(), nn.Hardswish(), nn.PReLU(2)]
            )
        )
    if kind == "pool1":
        return nn.MaxPool2d(3, stride=1, padding=1)
    if kind == "avg1":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=draw(st.booleans()))
    if kind == "pads":  # padded by hand, then without padding
        a, b = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        mode = draw(st.sampled_from(["constant", "reflect", "replicate"]))
        return Net(lambda m, x: m.c(F.pad(x, (a, 2 - a, b, 2 - b), mode)), c=nn.Conv2d(2, 2, 3))
    if kind == "shift":  # moved by padding on one side and cutting on the other
        n = draw(st.integers(-3, 3))
        return Net(lambda m, x: F.pad(x, (n, -n, -n, n)))
    if kind == "crop":
        n = draw(st.integers(1, 3))
        return Net(lambda m, x: F.pad(x[..., n:, :-n], (0, n, n, 0)))
    if kind == "residual":
        inner = draw(blocks(depth=0))
        return Net(lambda m, x: x + m.inner(0.7 * x), inner=inner)
    if kind == "branch":
        one, two = draw(blocks(depth=0)), draw(blocks(depth=depth - 1))
        return Net(lambda m, x: m.c(torch.cat([m.one(x), m.two(x)], 1)), one=one, two=two, c=nn.Conv2d(4, 2, 1))
    stride = draw(st.sampled_from([2, 3]))
    inner = nn.Sequential(*(draw(blocks(depth=depth - 1)) for _ in range(draw(st.integers(0, 2)))))
    down = draw(st.sampled_from([
        nn.MaxPool2d(stride), nn.AvgPool2d(stride), nn.Conv2d(2, 2, 3, stride=stride, padding=1),
        nn.MaxPool2d(3, stride=stride, padding=1), nn.Conv2d(2, 2, stride, stride=stride), nn.MaxPool2d(stride, ceil_mode=True),
    ]))  # fmt: skip
    up = draw(st.sampled_from([
        nn.ConvTranspose2d(2, 2, stride, stride=stride), nn.ConvTranspose2d(2, 2, 3, stride=stride, padding=1, output_padding=stride - 1),
        nn.ConvTranspose2d(2, 2, 1, stride=stride, output_padding=stride - 1),
        nn.Upsample(scale_factor=stride), nn.Upsample(scale_factor=stride, mode="bilinear"),
    ]))  # fmt: skip
    if draw(st.booleans()):
        return Net(lambda m, x: x - m.up(m.inner(m.down(x))), down=down, inner=inner, up=up)
    return nn.Sequential(down, inner, up)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(blocks(), min_size=1, max_size=4), st.integers(0, 10))
def test_random_networks_keep_the_claim(parts, seed):
    model = model_of(nn.Sequential(*parts, nn.Conv2d(2, 2, 1)), 2, channels=2)
    shape = (36 * 2, 36 * 2)
    field = model.receptive_field(shape)
    if field.exact:
        check_crops(model, shape, voxels=4, seed=seed)
    else:  # only refusals that are meant
        assert "factor" in field.reason or "does not follow" in field.reason, field.reason


# ---- networks that see everything, each in its own way ---------------------------------------------------------------


def _unpooled(m, x):
    small, where = F.max_pool2d(m.c(x), 2, return_indices=True)
    return F.max_unpool2d(small * 2, where, 2)


def _assigned(m, x):
    y = m.c(x)
    y[..., :4] = 0
    return y


def _added_to_a_part(m, x):
    y = m.c(x)
    y[:, :1].add_(F.avg_pool2d(x, 9, 1, 4))
    return y


TREACHEROUS = {
    "mean over space": lambda m, x: m.c(x) - m.c(x).mean((2, 3), keepdim=True),
    "squeeze and excitation": lambda m, x: m.c(x) * torch.sigmoid(F.adaptive_avg_pool2d(m.c(x), 1)),
    "softmax over space": lambda m, x: m.c(x).flatten(2).softmax(-1).view(m.c(x).shape),
    "softmax over a row": lambda m, x: m.c(x).softmax(-1),
    "attention": lambda m, x: F.scaled_dot_product_attention(*[m.c(x).flatten(2)] * 3).view(m.c(x).shape),
    "matrix product": lambda m, x: m.c(x) @ x.transpose(2, 3) @ x,
    "instance norm": lambda m, x: F.instance_norm(m.c(x)),
    "batch norm of the image": lambda m, x: F.batch_norm(m.c(x), None, None, training=True),
    "layer norm": lambda m, x: F.layer_norm(m.c(x), x.shape[1:] if x.shape[1] == 2 else (2, *x.shape[2:])),
    "norm by hand": lambda m, x: m.c(x) / m.c(x).std(),
    "largest value": lambda m, x: m.c(x) / m.c(x).amax(),
    "align_corners": lambda m, x: F.interpolate(F.max_pool2d(m.c(x), 2), scale_factor=2, mode="bilinear", align_corners=True),
    "bicubic": lambda m, x: F.interpolate(F.max_pool2d(m.c(x), 2), scale_factor=2, mode="bicubic"),
    "size written down": lambda m, x: F.interpolate(F.interpolate(m.c(x), size=(24, 24)), size=x.shape[2:]),
    "flip": lambda m, x: m.c(x) + m.c(x).flip(-1),
    "roll": lambda m, x: m.c(x) + m.c(x).roll(1, -1),
    "transposed axes": lambda m, x: m.c(m.c(x)[:, :1].transpose(2, 3)).transpose(2, 3),
    "reshaped": lambda m, x: m.c(x).reshape(1, 2, x.shape[3], x.shape[2]).reshape(m.c(x).shape),
    "circular padding": lambda m, x: F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), m.c.weight),
    "position encoding": lambda m, x: m.c(x) + torch.linspace(0, 1, x.shape[3]),
    "position as a channel": lambda m, x: m.c(x) + torch.cat([x * 0 + torch.arange(x.shape[3]), x], 1),
    "running sum": lambda m, x: m.c(x).cumsum(-1),
    "size as a factor": lambda m, x: m.c(x) / x.shape[2],
    "size as a constant": lambda m, x: m.c(x) * torch.tensor(float(x.shape[2])),
    "unpooling": _unpooled,
    "a part assigned": _assigned,
    "a part added to": _added_to_a_part,
    "only a large image": lambda m, x: m.c(x) if x.shape[2] < 90 else m.c(x) + F.avg_pool2d(x, 9, 1, 4),
    "windows that follow the size": lambda m, x: F.interpolate(F.adaptive_max_pool2d(m.c(x), 8), size=x.shape[2:]),
    "cut from the far end": lambda m, x: F.pad(m.c(x)[..., x.shape[3] // 2 :], (0, x.shape[3] // 2)),
    "sampling": lambda m, x: F.grid_sample(m.c(x), F.affine_grid(torch.eye(2, 3)[None], m.c(x).shape)),
    "spectrum": lambda m, x: torch.fft.ifft2(torch.fft.fft2(m.c(x))).real,
    "noise": lambda m, x: m.c(x) + torch.rand_like(m.c(x)),
    "one value for a row": lambda m, x: m.c(x) + x[..., :1],
    "grouped by the size": lambda m, x: F.group_norm(m.c(x), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", TREACHEROUS)
def test_refuses_what_is_not_local(name):
    field = model_of(Net(TREACHEROUS[name], c=conv(1, 2)), 2).receptive_field((96, 104))
    assert not field.exact and len(field.reason) > 15, name
    assert field.radius == ((0, 0), (0, 0))


def test_accepts_what_only_looks_so():
    """Channels may be reshaped, permuted, split, normalised and reduced."""

    def forward(m, x):
        a, b = m.c(x).chunk(2, 1)
        y = torch.stack([a, b], 1).flatten(1, 2)
        y = y.view(1, 2, 2, *x.shape[2:]).transpose(1, 2).reshape(y.shape)
        y = torch.cat([y.softmax(1), y.mean(1, keepdim=True), y[:, 1:2].relu_(), F.pixel_shuffle(m.d(y), 2)], 1)
        return m.e(F.dropout(y, 0.5, False).clone().add_(1))

    network = Net(forward, c=conv(1, 4), d=nn.Conv2d(4, 8, 2, stride=2), e=conv(8, 2))
    field = check_crops(model_of(network, 2), (40, 36))
    assert field.stride == (2, 2)


def test_the_answer_alone_counts():
    """Another output that sees everything does not matter; a missing key is refused."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = conv(1, 2)

        def forward(self, x):
            y = self.c(x)
            return {"seg": y, "class": y.mean((2, 3))}

    model = model_of(Two(), 2)
    assert "key" in model.receptive_field((32, 32)).reason
    object.__setattr__(model.package, "output", Output(("a", "b"), "softmax", "seg"))
    assert Model(model.package, model.module, "cpu").receptive_field((32, 32)).radius == ((1, 1), (1, 1))


def test_programs_give_the_same_field(tmp_path):
    network = PlainUNet(2, 1, 2, filters=2, levels=3)
    eager = model_of(network, 2, multiple=4)
    wanted = eager.receptive_field((64, 80))
    x = torch.rand(1, 1, 32, 48)
    traced = torch.jit.trace(network, x)
    for module in (traced, torch.jit.script(network), torch.jit.freeze(torch.jit.script(network))):
        for _ in range(2):  # TorchScript rewrites a program after its first runs
            assert Model(eager.package, module, "cpu").receptive_field((64, 80)) == wanted
            module(x)
    size = {n: 4 * torch.export.Dim(f"n{n}", min=2, max=99) for n in (2, 3)}
    exported = torch.export.export(network, (x,), dynamic_shapes=(size,)).module()
    assert Model(eager.package, exported, "cpu").receptive_field((64, 80)) == wanted
    fixed = torch.export.export(network, (x,)).module()
    assert not Model(eager.package, fixed, "cpu").receptive_field((32, 48)).exact
