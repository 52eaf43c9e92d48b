"""The planted networks are what they say."""

import numpy as np
import planted
import pytest
import torch
from scipy import ndimage


@pytest.mark.parametrize("shape", [(5, 9), (3, 9, 5)])
def test_a_linear_neuron_is_a_correlation(shape):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=shape).astype(np.float32)
    x = rng.normal(size=(12,) * len(shape)).astype(np.float32)
    net = planted.linear(weight, bias=0.5).module
    image = torch.from_numpy(x)[None, None].requires_grad_()
    logits = net(image)[0]
    expected = ndimage.correlate(x.astype(np.float64), weight.astype(np.float64), mode="constant") + 0.5
    inside = (slice(4, -4),) * len(shape)  # parts of a kernel whose own middle lies outside are lost to the padding
    assert np.abs(logits[1].detach().numpy() - expected)[inside].max() < 1e-4
    assert not logits[0].any()
    middle = (6,) * len(shape)
    gradient = torch.autograd.grad(logits[(1, *middle)], image)[0][0, 0].numpy()
    box = tuple(slice(m - n // 2, m + n // 2 + 1) for m, n in zip(middle, shape))
    assert np.allclose(gradient[box], weight, rtol=1e-6, atol=0)
    gradient[box] = 0
    assert not gradient.any()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", planted.DETECTORS)
def test_a_detector_moves_one_thing(kind, ndim):
    net = planted.detector(kind, ndim).module
    volume, ijk = planted.detector_start(kind, ndim, size=15)
    x = torch.from_numpy(volume.array * planted.SCALE)[None]
    x = (x[:, :1, ...] if ndim == 2 else x[None]).requires_grad_()
    middle = ijk[::-1][3 - ndim :]
    mask = lambda x: net(x).argmax(1)[0].bool()  # noqa: E731
    step = {"mean": 0.05, "texture": 0.03, "area": 0.05}[kind]
    before, masks = x.detach().clone(), [mask(x)]
    for _ in range(12):
        gradient = torch.autograd.grad(net(x)[(0, 1, *middle)], x)[0]
        x = (x.detach() + step * gradient).requires_grad_()
        masks.append(mask(x))
    change = (x - before).detach()[0, 0].numpy()
    size, inside = [int(m.sum()) for m in masks], masks[-1].numpy()
    disk = planted.ball(ndim).astype(bool)
    roll = np.where(inside)  # the mask at the end is the ball around the neuron
    assert all(len(np.unique(r)) == 9 for r in roll) and size[-1] == disk.sum()
    values = x.detach()[0, 0].numpy()[inside]
    was = before[0, 0].numpy()[inside]
    if kind == "area":
        assert size[0] <= 1 and size == sorted(size) and len(set(size)) > 3
        assert values.min() >= 1.05 and values.max() <= 1.12 + step + 1e-6  # one grey level, of 25
        return
    assert set(size) == {int(disk.sum())}
    assert not change[~inside].any()
    if kind == "mean":
        assert np.allclose(change[inside], 12 * 0.05, atol=1e-5)
    else:
        assert values.mean() == pytest.approx(was.mean(), abs=1e-5)
        assert values.std() > 10 * was.std()


@pytest.mark.parametrize("format", planted.FORMATS)
def test_every_format_is_the_same_network(tmp_path, format):
    from MedXAILib.models import load

    weight = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    package = planted.linear_package(tmp_path / "linear", weight, format)
    model = load(package.folder, device="cpu", trusted={package.sha256})
    x = torch.randn(1, 1, 11, 14, generator=torch.Generator().manual_seed(0))
    with model.frozen():
        assert torch.allclose(model.logits(x), planted.linear(weight).module(x), atol=1e-6)
