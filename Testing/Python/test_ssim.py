"""DSSIM: against scikit-image, by hand, and its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from MedXAILib.models.ssim import dssim, scales_of

DIMS = pytest.mark.parametrize("dims", (2, 3))


def pair(dims, edge=24, seed=0, level=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, level, (2, 2, *(edge,) * dims)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(x + rng.normal(0, 0.5 * level, x.shape).astype(np.float32))


@DIMS
@pytest.mark.parametrize(("data_range", "offset"), ((1.0, 0), (4.0, 0), (1.0, 1000)))
def test_is_scikit_image_where_the_window_lies_inside(dims, data_range, offset):
    """Gaussian window of SD 1.5 with 11 taps, no sample covariance, the mean over what the border does not reach; also far from 0."""
    metrics = pytest.importorskip("skimage.metrics")
    x, y = (one + offset for one in pair(dims))
    (found,) = dssim(x, [y], data_range, scales=1)
    for n in range(2):
        wanted = []
        for c in range(2):
            _, values = metrics.structural_similarity(
                x[n, c].double().numpy(), y[n, c].double().numpy(), gaussian_weights=True, sigma=1.5, truncate=3.4, use_sample_covariance=False,
                data_range=data_range, full=True,
            )  # fmt: skip
            wanted.append(values[(slice(5, -5),) * dims].mean())
        assert float(found[n]) == pytest.approx((1 - np.mean(wanted)) / 2, abs=1e-6 if not offset else 1e-4)


@DIMS
def test_several_images_are_what_each_gives_alone(dims):
    x, y = pair(dims)
    z = y.flip(-1)
    both = dssim(x, [y, z], 2.0)
    assert torch.equal(both[0], dssim(x, [y], 2.0)[0]) and torch.equal(both[1], dssim(x, [z], 2.0)[0])


def test_scales_are_as_many_as_the_window_fits():
    assert [scales_of((n, 64)) for n in (10, 11, 21, 22, 43, 44, 64, 88)] == [1, 1, 1, 2, 2, 3, 3, 3]
    x, y = pair(2, 44)
    single = [dssim(*(torch.nn.functional.avg_pool2d(t, 2**n) if n else t for t in (x,)), [torch.nn.functional.avg_pool2d(y, 2**n) if n else y], 1.0, scales=1)[0] for n in range(3)]  # fmt: skip
    assert torch.allclose(dssim(x, [y], 1.0)[0], torch.stack(single).mean(0), atol=1e-6)


@DIMS
def test_equal_images_are_not_apart_and_have_no_gradient(dims):
    x, _ = pair(dims)
    y = x.clone().requires_grad_()
    (found,) = dssim(x, [y], 1.0)
    assert float(found.detach().abs().max()) < 1e-6
    (slope,) = torch.autograd.grad(found.sum(), y)
    assert float(slope.abs().max()) < 1e-4
    (paper,) = dssim(x, [x], 1.0, "paper")
    assert torch.allclose(paper, torch.full((2,), 0.5), atol=1e-6)


def test_paper_is_equation_1_as_printed():
    """1 − SSIM / 2 with c₁ = .01 and c₂ = .03, whatever the range; written out on one window."""
    rng = np.random.default_rng(1)
    x, y = rng.random((2, 11)), rng.random((2, 11))
    x, y = np.outer(x[0], x[1]), np.outer(y[0], y[1])
    taps = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    w = np.outer(taps, taps) / taps.sum() ** 2
    mx, my = (w * x).sum(), (w * y).sum()
    vx, vy, vxy = (w * x * x).sum() - mx**2, (w * y * y).sum() - my**2, (w * x * y).sum() - mx * my
    wanted = 1 - (2 * mx * my + 0.01) * (2 * vxy + 0.03) / (2 * (mx**2 + my**2 + 0.01) * (vx + vy + 0.03))
    (found,) = dssim(*(torch.from_numpy(t).float()[None, None] for t in (x,)), [torch.from_numpy(y).float()[None, None]], 7.0, "paper")  # fmt: skip
    assert float(found) == pytest.approx(wanted, abs=1e-6)


def test_opposite_structure_is_near_one_and_16_bits_are_computed_in_32():
    x, _ = pair(2, level=1.0)
    (found,) = dssim(3 + x, [3 - x], 0.01)
    assert 0.95 < float(found.min()) and float(found.max()) <= 1
    a, b = pair(2)
    (narrow,) = dssim(a.bfloat16(), [b.bfloat16()], 1.0)
    (wide,) = dssim(a.bfloat16().float(), [b.bfloat16().float()], 1.0)
    assert narrow.dtype == torch.float32 and torch.equal(narrow, wide)


@DIMS
def test_small_images_get_a_smaller_window(dims):
    x, y = pair(dims, 6)
    (found,) = dssim(x, [y], 1.0)
    assert torch.isfinite(found).all() and float(found.min()) > 0.05
