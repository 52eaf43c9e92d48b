"""The parts of the dream by themselves: boxes, the followed component, kept frames."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from MedXAILib.explanation import Patch
from MedXAILib.methods.components import Component
from MedXAILib.methods.frames import Frames, Waiting
from MedXAILib.models.crop import Box, aligned, around, tiles
from MedXAILib.volume import Volume


class Field:
    exact = True

    def __init__(self, radius, stride):
        self.radius, self.stride = radius, stride


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.3, 0.75), st.integers(2, 3))
def test_component_equals_labelling_everything(seed, density, ndim):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(3, 9, ndim))
    start = tuple(int(random.integers(0, n)) for n in shape)
    stop = tuple(int(random.integers(a + 1, n + 1)) for a, n in zip(start, shape))
    point = tuple(int(random.integers(a, b)) for a, b in zip(start, stop))
    box = Box(start, stop)
    first = random.random(shape) < density
    component = Component(first, box, point)
    for _ in range(3):
        whole = first.copy()
        whole[box.index[1:]] = random.random(box.shape) < density
        labels, _ = ndimage.label(whole)
        expected = (labels == labels[point]) & whole
        window = Box(point, tuple(p + 1 for p in point))
        for _ in range(20):  # as the ascent does: a window that grows until the component is whole
            found = component.find(window, whole[window.index[1:]])
            if found is not False:
                break
            window = window.grown((1,) * ndim, (1,) * ndim, shape).common(box)
        if not whole[point]:
            assert found is None
            continue
        got = np.zeros(shape, bool)
        got[found[0].index[1:]] = found[1]
        np.testing.assert_array_equal(got, expected)
        where = np.nonzero(expected)
        assert found[0].start == tuple(w.min() for w in where)
        assert found[0].stop == tuple(w.max() + 1 for w in where)


def test_boxes_around_a_voxel_in_the_middle_and_at_the_border():
    field = Field(((3, 2), (1, 1)), (2, 1))
    near = around((10, 5), field, (40, 11))
    assert near.gradient == Box((7, 4), (13, 7))
    assert near.gradient_input == Box((6, 4), (14, 7))  # origin and end on multiples of the stride
    assert near.reach == Box((5, 3), (16, 8))  # a change reaches as far above as an output sees below
    assert near.reach_input == Box((2, 2), (18, 9))
    edge = around((0, 10), field, (40, 11))
    assert edge.gradient == Box((0, 9), (3, 11)) and edge.reach_input.start[0] == 0 and edge.reach_input.stop[1] == 11


def test_boxes_are_the_whole_grid_where_no_crop_is_exact():
    field = Field(((1, 1),), (1,))
    field.exact = False
    near = around((3,), field, (9,))
    assert near.gradient == near.reach == near.gradient_input == near.reach_input == Box((0,), (9,))


@pytest.mark.parametrize("shape,size", [((17, 9), 5), ((8, 8, 9), 4)])
def test_tiles_cover_every_output_once_with_enough_input(shape, size):
    field = Field(((2, 3),) * len(shape), (2,) * len(shape))
    count = np.zeros(shape, int)
    for out, feed in tiles(field, shape, size):
        count[out.index[1:]] += 1
        for a, b, c, d, n in zip(out.start, out.stop, feed.start, feed.stop, shape):
            assert c <= max(0, a - 2) and d >= min(n, b + 3) and c % 2 == 0 and (d % 2 == 0 or d == n)
    assert (count == 1).all()


def test_alignment_follows_the_sizes_a_network_takes():
    assert aligned(Box((5,), (9,)), (2,), (64,), 8) == Box((0,), (16,))
    assert aligned(Box((5,), (63,)), (4,), (63,), 1) == Box((4,), (63,))


def _frames(budget, steps):
    volume = Volume(np.zeros((4, 5, 6), np.float32), np.diag([2.0, 3.0, 4.0, 1.0]))
    frames = Frames(volume, budget)
    for j in range(steps):
        image = Patch(np.full((2, 2, 2), j, np.float32), (1, 2, 3))
        mask = None if j == 0 else Patch(np.ones((1, 1, min(j, 3)), np.uint8), (1, 2, 4 - min(j, 3)))
        frames.add(j, image, mask)
    return frames.sequences()


def test_every_frame_is_kept_within_the_budget():
    found = _frames(10**6, 12)
    assert [j for j, _ in found["steps"].items] == list(range(12)) and found["steps"].thinned == 0
    first = found["steps"].items[0][1]
    np.testing.assert_allclose(first.ijk_to_ras[:3, 3], [6, 6, 4])  # the box's corner, on the volume's lattice
    masks = [v for _, v in found["mask-steps"].items]
    assert {m.shape for m in masks} == {(1, 1, 3)} and {m.array.dtype for m in masks} == {np.dtype(np.uint8)}
    assert [int(m.array.sum()) for m in masks[:5]] == [0, 1, 2, 3, 3]


def test_frames_are_thinned_evenly_and_keep_first_and_last():
    found = _frames(200, 12)  # 32 bytes a frame and up to 3 of mask
    kept = [j for j, _ in found["steps"].items]
    assert kept[0] == 0 and kept[-1] == 11 and len(kept) <= 7
    assert len(set(np.diff(kept[:-1]))) == 1
    assert found["steps"].thinned == 12 - len(kept)
    assert [float(v.array[0, 0, 0]) for _, v in found["steps"].items] == kept


@pytest.mark.parametrize("budget", [10**6, 1000, 0])
def test_what_waits_for_its_features_comes_back_from_memory_and_from_disk(budget):
    waiting, random = Waiting(budget), np.random.default_rng(0)
    given = {}
    for step in (1, 2, 5, 9):
        image = Volume(random.normal(size=(3, 4, step)).astype(np.float32), np.diag([2.0, 3.0, 4.0, 1.0]), "ct", "HU")
        given[step] = image, image.with_array(random.integers(0, 2, image.shape, np.uint8))
        waiting.add(step, *given[step])
    assert 5 in waiting and 3 not in waiting
    held = sum(v.array.nbytes for pair in waiting.kept.values() for v in pair if isinstance(v, Volume))
    assert held <= budget
    for _ in range(2):
        found = {step: pair for step, *pair in waiting}
        assert list(found) == list(given)
        for step, pair in found.items():
            for mine, theirs in zip(pair, given[step]):
                np.testing.assert_array_equal(mine.array, theirs.array)
                assert mine.array.dtype == theirs.array.dtype and (mine.ijk_to_ras == theirs.ijk_to_ras).all()


def test_what_waits_stays_in_memory_where_the_disk_is_full(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    waiting = Waiting(0)
    image = Volume(np.ones((2, 2, 2), np.float32), np.eye(4))
    waiting.add(3, image, image)
    assert [step for step, *_ in waiting] == [3]
