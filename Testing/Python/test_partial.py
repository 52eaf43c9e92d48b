"""Partial convolutions, the inpainting network, what is put in place of a hole, and the mask's costs: known answers in 2-D and 3-D."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classifiers import CONV, classifier, stack

from MedXAILib.errors import MedXAIError
from MedXAILib.methods.deletion import Deletion, area, border, grid_holes, surroundings
from MedXAILib.models import prepare
from MedXAILib.models.inpainter import FALLBACKS, Inpainter, fallback
from MedXAILib.models.partial import PartialConv, PartialUNet, levels_for
from MedXAILib.package import write_package
from MedXAILib.volume import Volume

DIMS = pytest.mark.parametrize("dims", (2, 3))


def ones(x):
    return torch.ones_like(x[:, :1])


@DIMS
@pytest.mark.parametrize("kernel, stride", ((3, 1), (7, 2), (5, 2)))
def test_without_holes_it_is_an_ordinary_convolution(dims, kernel, stride):
    torch.manual_seed(0)
    layer, x = PartialConv(dims, 3, 4, kernel, stride), torch.randn(2, 3, *(11, 8, 9)[:dims])
    plain = CONV[dims](3, 4, kernel, stride, kernel // 2)
    plain.load_state_dict(layer.state_dict())
    found, mask = layer([(x, ones(x))])
    torch.testing.assert_close(found, plain(x), rtol=0, atol=1e-6)  # borders included
    assert mask.shape[1] == 1 and (mask == 1).all() and mask.shape[2:] == found.shape[2:]


@DIMS
def test_what_is_in_a_hole_makes_no_difference(dims):
    torch.manual_seed(0)
    layer, x = PartialConv(dims, 2, 3, 3), torch.randn(1, 2, *(9,) * dims)
    mask = (torch.rand(1, 1, *(9,) * dims) > 0.4).float()
    first = layer([(x, mask)])
    for content in (torch.nan, torch.inf, -1e30):
        second = layer([(torch.where(mask > 0, x, content), mask)])
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_the_mean_of_what_is_known_is_scaled_to_the_whole_window():
    layer = PartialConv(2, 1, 1, 3)
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.bias.fill_(10)
    x, mask = torch.full((1, 1, 5, 5), 2.0), torch.zeros(1, 1, 5, 5)
    mask[0, 0, 2, 2] = 1
    found, after = layer([(x, mask)])
    assert found[0, 0, 2, 2] == 2 * 9 + 10  # one tap of nine is known
    assert found[0, 0, 1, 1] == 2 * 9 + 10
    assert found[0, 0, 0, 0] == 0 and after[0, 0, 0, 0] == 0  # nothing known: 0, not the bias
    assert after.sum() == 9
    mask[0, 0, 2, 2], mask[0, 0, 0, 0] = 0, 1
    assert layer([(x, mask)])[0][0, 0, 0, 0] == 2 * 4 + 10  # of the window at the corner four taps lie in the image


def test_masks_of_branches_count_by_their_channels():
    layer = PartialConv(2, 3, 1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1)
    a, b = torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2, 2)
    found, mask = layer([(a, torch.ones(1, 1, 2, 2)), (b, torch.zeros(1, 1, 2, 2))])
    assert torch.equal(found, torch.full((1, 1, 2, 2), 3.0)) and mask.all()  # 1 of 3 channels known: times 3
    found, _ = layer([(a, torch.zeros(1, 1, 2, 2)), (b, torch.ones(1, 1, 2, 2))])
    torch.testing.assert_close(found, torch.full((1, 1, 2, 2), 3.0))  # 2 of 3: 2 · 3/2


@DIMS
def test_it_keeps_nothing_between_calls(dims):
    torch.manual_seed(0)
    network = PartialUNet(dims, 1, 3, 0.1).eval()
    x = torch.randn(1, 1, *(12,) * dims)
    mask = ones(x)
    mask[..., 4:8] = 0
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        whole = network(x, ones(x))
        network(x, mask)
        assert torch.equal(network(x, ones(x)), whole)  # the mask of the last call is not kept
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("shape", ((64, 64), (33, 50), (17, 9), (12, 7, 10), (576, 448)))
def test_any_size_comes_back(shape):
    torch.manual_seed(0)
    network = PartialUNet(len(shape), 2, levels_for(shape), 0.07).eval()
    x = torch.randn(1, 2, *shape)
    mask = ones(x)
    mask[(..., *(slice(2, 6),) * len(shape))] = 0
    with torch.no_grad():
        found = network(torch.where(mask > 0, x, torch.nan), mask)
    assert found.shape == x.shape and torch.isfinite(found).all()


def test_levels_by_the_stated_rule():
    assert [levels_for(shape) for shape in ((576, 448), (128, 128), (64, 64, 64), (3, 99), (2, 2))] == [8, 6, 5, 1, 1]
    assert [len(PartialUNet(2, 1, 8, 0.1).encoder), len(PartialUNet(2, 1, 8, 0.1).decoder)] == [8, 8]
    with pytest.raises(ValueError, match="levels is 9"):
        PartialUNet(2, 1, 9)


# ---- what the mask costs ------------------------------------------------------------------------------------------------


@DIMS
def test_the_same_shape_at_twice_the_resolution_costs_the_same(dims):
    def costs(size, mm):
        organ = torch.zeros((size,) * dims, dtype=torch.bool)
        organ[(slice(size // 8, -size // 8),) * dims] = True
        share = torch.zeros(1, 1, *(size,) * dims)
        share[(0, 0, *(slice(size // 4, size // 2),) * dims)] = 1
        return float(border(share, organ, (mm,) * dims)), float(area(share, organ, False))

    small, large = costs(16, 2.0), costs(32, 1.0)
    assert small == pytest.approx(large, rel=1e-6)
    # A square of edge 1/4 in an organ of edge 3/4: border 4 (6 in 3-D) times the ratio of edges to the power d − 1.
    assert small[0] == pytest.approx(2 * dims * (1 / 3) ** (dims - 1), rel=1e-6)
    assert small[1] == pytest.approx(2 * 0.25**dims / (0.25**dims + 0.75**dims), rel=1e-6)


def test_the_border_is_measured_in_millimetres():
    organ, share = torch.ones((20, 20), dtype=torch.bool), torch.zeros(1, 1, 20, 20)
    share[0, 0, 5:9, 5:15] = 1  # 4 × 10 voxels of 5 × 1 mm: 20 × 10 mm, border 60 mm, in 100 × 20 mm
    assert float(border(share, organ, (5.0, 1.0))) == pytest.approx(60 / np.sqrt(100 * 20), rel=1e-6)
    assert float(area(share, organ, True)) == pytest.approx(0.1)  # no organ: the plain share
    assert float(area(share, organ, False)) == pytest.approx(2 * 40 / (40 + 400))


def test_grid_holes_cover_every_voxel_and_leave_most_of_the_image():
    for shape in ((16, 16), (13, 9), (8, 8, 8)):
        dims = len(shape)
        holes = grid_holes(shape, (4.0,) * dims)
        assert holes.shape == (2 * 2**dims, 1, *shape)
        assert (holes[: 2**dims].sum(0) == 1).all() and (holes[2**dims :].sum(0) == 1).all()
        assert holes[0].float().mean() <= 0.5


def deletion(shape, spacing=None, nodes=32, theta=0.5, starts=1):
    return Deletion(torch.ones(shape, dtype=torch.bool), spacing or (1.0,) * len(shape), nodes, theta, starts, True)


def test_a_fields_start_lies_about_theta_on_a_regular_grid():
    made = deletion((32, 32), theta=0.6)
    share = made.share().detach()
    assert sorted(set(share.flatten().tolist())) == pytest.approx([0.5, 0.7], abs=1e-6)
    assert made.edges == [(4.0, 4.0)] and (share > 0.6).float().mean() == 0.25
    assert deletion((128, 128), starts=3).edges == [(8.0, 8.0), (16.0, 16.0), (32.0, 32.0)]  # a sixteenth to a quarter
    assert deletion((32, 32), nodes=8, starts=2).field.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("shape, spacing", [((128, 1024), (1, 1)), ((8, 128, 128), (5, 1, 1)), ((16, 256, 256), (1, 1, 1)), ((64, 64), (2, 0.5)), ((3, 40, 40), (1, 1, 1))])  # fmt: skip
def test_images_of_any_shape_begin_with_a_grid(shape, spacing):
    for starts in (1, 3):
        made = deletion(shape, spacing, starts=starts)
        share = made.share().detach().flatten(1)
        assert (share.amax(1) > 0.52).all() and (share.amin(1) < 0.48).all()
        for edge in made.edges:
            mm = [one * size for one, size in zip(edge, spacing)]
            assert mm == pytest.approx([mm[0]] * len(mm)) and min(edge) >= 1  # the same length along each axis


def test_nodes_are_spaced_in_millimetres():
    assert deletion((64, 16)).nodes == (32, 8) and deletion((64, 64), (1.0, 2.0)).nodes == (16, 32)
    assert deletion((4, 64), (20.0, 1.0)).nodes == (4, 26)  # the longest axis is 80 mm, and has 4 voxels


@DIMS
@pytest.mark.parametrize("nodes", (8, 11, 32))
def test_a_start_from_a_mask_is_that_mask(dims, nodes):
    """What the nodes can hold comes back, also when it goes through them many times."""
    made = deletion((32,) * dims, nodes=nodes)
    with torch.no_grad():
        made.field.copy_((torch.rand(made.field.shape, generator=torch.Generator().manual_seed(0)) > 0.7).float())
    mask = made.share().detach()[0, 0]
    for _ in range(5):
        made.start_from(made.share().detach()[0, 0])
    again = made.share().detach()[0, 0]
    assert (again - mask).abs().max() < 0.25 and (again - mask).abs().mean() < 0.02
    assert ((again > 0.5) != (mask > 0.5)).float().mean() < 0.02


# ---- inpainters and fall-backs ------------------------------------------------------------------------------------------


def inpainter(folder, dims=2, channels=1, intensity=None, levels=2, seed=0, **changes):
    """A package of an inpainter with random weights."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    network = PartialUNet(dims, channels, levels, 0.1)
    names = [f"image {n}" for n in range(channels)]
    about = {
        "spatial_dims": dims, "channels": names, "orientation": None, "spacing": None, "size": None, "multiple_of": 1, "intensity": intensity or {"kind": "none"},
    } | changes  # fmt: skip
    fields = {
        "name": "inpainter", "task": "inpainting", "weights": "weights.safetensors",
        "network": {"name": "PartialUNet", "arguments": {"spatial_dims": dims, "channels": channels, "levels": levels, "width": 0.1}},
        "input": about, "output": {"labels": names, "activation": "none"},
    }  # fmt: skip
    return write_package(folder, fields, lambda path: save_file(network.state_dict(), str(path))).folder


def volume(shape=(1, 16, 16), low=0.0, high=100.0, seed=0):
    return Volume(np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32), np.eye(4), "image")


def test_units_are_taken_from_the_inpainter_to_the_classifier(tmp_path):
    model = classifier(stack(), input={"intensity": {"kind": "window", "low": 20, "high": 80}})
    image = volume()
    prepared = prepare(model, [image])
    bound = Inpainter(inpainter(tmp_path / "i", intensity={"kind": "linear", "multiply": 0.1, "add": -3}), "cpu").bind(model, prepared, [image])  # fmt: skip
    np.testing.assert_allclose(
        bound.image[0, 0], image.array[0] * 0.1 - 3, rtol=1e-5, atol=1e-5
    )  # not clipped at 20 and 80
    bound.model.module.forward = lambda x, mask: x  # gives back what it gets, in its own units
    filled = bound.fill(torch.zeros(1, 1, 16, 16, dtype=torch.bool))
    torch.testing.assert_close(filled, prepared.x, rtol=0, atol=1e-5)


@DIMS
def test_a_hole_is_filled_from_what_is_around_it_alone(tmp_path, dims):
    shape = (1, 16, 16) if dims == 2 else (8, 16, 16)
    model, image = classifier(stack(dims), dims), volume(shape)
    prepared = prepare(model, [image])
    hole = torch.zeros(1, 1, *prepared.shape, dtype=torch.bool)
    hole[..., 4:9, 5:11] = True
    organ = torch.ones(prepared.shape, dtype=torch.bool)
    fills = [fallback(kind, prepared, organ, 0) for kind in FALLBACKS]
    for fill in (*fills, Inpainter(inpainter(tmp_path / "i", dims), "cpu").bind(model, prepared, [image])):
        first, second = fill.fill(hole), fill.without(hole).fill(hole)
        assert torch.equal(torch.where(hole, first, 0), torch.where(hole, second, 0)), fill
        assert torch.isfinite(first[hole]).all() and fill.bytes(2) == 2 * fill.bytes(1) > 0
        assert torch.isfinite(fill.image).all()  # the one that was asked is as it was


def test_fall_backs_are_what_they_say():
    image = Volume(np.full((1, 20, 20), 7.0, np.float32), np.eye(4), "flat")
    prepared = prepare(classifier(stack()), [image])
    organ = torch.zeros(20, 20, dtype=torch.bool)
    organ[:10] = True
    prepared.x[..., 10:, :] = 99
    hole = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    hole[..., 2:6, 2:6] = True
    for kind in ("mean", "noise"):  # of the organ alone: flat there
        torch.testing.assert_close(fallback(kind, prepared, organ, 0).fill(hole)[hole], torch.full((16,), 7.0))
    blurred = fallback("blur", prepared, organ, 0).fill(hole)[hole]
    assert (blurred >= 7 - 1e-4).all() and (blurred < 30).all()
    wide = torch.ones_like(hole)
    wide[..., 0, :] = False  # nothing is known near the middle: the mean, not 0
    torch.testing.assert_close(
        fallback("blur", prepared, organ, 0).fill(wide)[..., -4:, :], torch.full((1, 1, 4, 20), 7.0)
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(dims=3), "trained on 3-D images, and the classifier takes 2-D"),
        (dict(channels=2), "2 channel.s., and the classifier takes 1"),
        (dict(size=[8, 8], fit="resize"), "images of 8 × 8, and the classifier looks at 16 × 16"),
        (dict(spacing=[3.0, 3.0]), "3.0.* mm, and the classifier's are .*1.0"),
        (dict(orientation="PR"), "lie as PR, and the classifier takes PL"),
    ],
)
def test_an_inpainter_of_other_images_is_refused(tmp_path, changes, words):
    model, image = classifier(stack(), input={"spacing": [1.0, 1.0], "orientation": "PL"}), volume()
    one = Inpainter(inpainter(tmp_path / "i", **changes), "cpu")
    with pytest.raises(MedXAIError, match=words):
        one.bind(model, prepare(model, [image]), [image])


def test_another_network_is_no_inpainter():
    from MedXAILib import resources

    with pytest.raises(MedXAIError, match="is a classification network, not an inpainter"):
        Inpainter(resources.path("Models/lesion-classifier"), "cpu")


def test_surroundings_never_look_at_the_voxel_itself():
    image = volume((1, 32, 32))
    prepared = prepare(classifier(stack()), [image])
    organ = torch.ones(32, 32, dtype=torch.bool)
    fill = fallback("blur", prepared, organ, 0)

    def around():
        steps = surroundings(fill, (32, 32), (8.0, 8.0), organ, 3)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    first = around()
    fill.image = fill.image.clone()
    fill.image[..., 13, 14] += 1000
    second = around()
    assert first[0, 0, 13, 14] == second[0, 0, 13, 14]
    assert (first != second).any()  # but its neighbours in other blocks do
