"""The nouns: a volume in the patient, a mask on another grid, and what a method returns."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedXAILib.errors import MedXAIError, nearest
from MedXAILib.explanation import Explanation, Patch, Step, run
from MedXAILib.volume import Volume, mask_on_grid

OBLIQUE = np.array([[0.0, -0.69, 0.4, 7.5], [0.8, 0.05, -0.2, -120.25], [0.06, 0.1, 2.4, 33.125], [0, 0, 0, 1]])


def volume(shape=(3, 4, 5), matrix=OBLIQUE, dtype=np.int16, **more):
    return Volume(np.arange(math.prod(shape)).reshape(shape).astype(dtype), matrix, **more)


# ---- Volume ----------------------------------------------------------------------------------------------------------


def test_index_and_point_are_each_others_inverse():
    v = volume()
    for index in np.ndindex(v.shape):
        point = v.index_to_ras(index)
        k, j, i = index
        np.testing.assert_allclose(point, (OBLIQUE @ [i, j, k, 1])[:3])
        np.testing.assert_allclose(v.ras_to_index(point), index, atol=1e-9)
        assert v.voxel(ras=point) == index == v.voxel(ijk=(i, j, k))


def test_a_voxel_reaches_half_way_to_its_neighbours():
    v = volume(matrix=np.diag([2.0, 3, 4, 1]))
    assert v.voxel(ras=(0.99, 1.49, -1.99)) == (0, 0, 0)
    assert v.voxel(ras=(1.01, 1.51, 2.01)) == (1, 1, 1)
    for told in (dict(ras=(-1.01, 0, 0)), dict(ras=(9.01, 0, 0)), dict(ijk=(5, 0, 0)), dict(ijk=(0, -1, 0))):
        with pytest.raises(MedXAIError, match=r"lies outside 'volume' \(IJK 0–4, 0–3, 0–2\); choose one inside"):
            v.voxel(**told)


def test_orientation_letters_and_planes():
    import itertools

    import nibabel

    codes = [c for axes in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*axes)]
    rng = np.random.default_rng(0)
    for code in codes:
        matrix = np.eye(4)
        matrix[:3, :3] = nibabel.orientations.inv_ornt_aff(nibabel.orientations.axcodes2ornt(code), (2, 2, 2))[:3, :3].T
        turn, _ = np.linalg.qr(np.eye(3) + 0.25 * rng.standard_normal((3, 3)))
        matrix[:3, :3] = (turn * np.sign(np.diag(turn))) @ matrix[:3, :3] * rng.uniform(0.3, 5, 3)
        v = volume(matrix=matrix)
        assert tuple(v.orientation) == nibabel.aff2axcodes(matrix)
        for plane, letters in (("sagittal", "RL"), ("coronal", "AP"), ("axial", "SI")):
            assert v.orientation[2 - v.array_axis(plane)] in letters
        np.testing.assert_allclose(v.spacing, nibabel.affines.voxel_sizes(matrix))
    with pytest.raises(MedXAIError, match="'transverse' is not a plane; use axial, coronal or sagittal"):
        volume().array_axis("transverse")


def test_two_axes_never_share_a_letter():
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[1, 0.9, 0], [0.8, 0.1, 0], [0, 0.4, 1]])  # both i and j point closest to R
    assert sorted(volume(matrix=matrix).patient_axes) == [0, 1, 2]


@pytest.mark.parametrize(
    "array, matrix, words",
    [
        (np.zeros((3, 4)), np.eye(4), "has shape .3, 4.; a volume needs three non-empty axes"),
        (np.zeros((3, 0, 4)), np.eye(4), "needs three non-empty axes"),
        (np.zeros((3, 3, 3)), np.diag([1.0, 1, 0, 1]), "no usable IJK-to-RAS matrix"),
        (np.zeros((3, 3, 3)), np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "no usable"),
        (np.zeros((3, 3, 3)), np.diag([1, 1, np.nan, 1]), "no usable"),
        (np.zeros((3, 3, 3)), np.eye(3), "no usable"),
        (np.zeros((3, 3, 3)), np.diag([1.0, 1, 1, 2]), "no usable"),
    ],
)
def test_what_has_no_place_is_refused(array, matrix, words):
    with pytest.raises(MedXAIError, match=words):
        Volume(array, matrix)


def test_small_voxels_are_voxels():
    assert volume(matrix=np.diag([1e-4, 1e-4, 1e-4, 1])).spacing == pytest.approx((1e-4,) * 3)  # a microscope's, in mm


def test_the_matrix_is_the_volumes_own():
    matrix = np.eye(4)
    v = volume(matrix=matrix)
    matrix[0, 3] = 99
    assert v.ijk_to_ras[0, 3] == 0
    with pytest.raises(ValueError):
        v.ijk_to_ras[0, 3] = 1


def test_crop_stays_on_the_lattice():
    v = volume(unit="HU", attributes={"modality": "CT"})
    part = v.crop((1, 0, 2), (3, 2, 5))
    np.testing.assert_array_equal(part.array, v.array[1:3, 0:2, 2:5])
    for index in np.ndindex(part.shape):
        np.testing.assert_allclose(part.index_to_ras(index), v.index_to_ras(np.add(index, (1, 0, 2))), atol=1e-9)
    assert part.unit == "HU" and part.attributes == v.attributes and np.shares_memory(part.array, v.array)


def test_other_voxels_on_the_same_grid():
    v = volume(name="ct", unit="HU", attributes={"modality": "CT"})
    other = v.with_array(np.zeros(v.shape, np.float32))
    assert (other.name, other.unit, other.attributes) == ("ct", "HU", {"modality": "CT"}) and other.same_grid(v)
    assert (v.with_array(v.array, "m", "").name, v.with_array(v.array, "m", "").unit) == ("m", "")
    with pytest.raises(MedXAIError, match="does not fit the grid"):
        v.with_array(np.zeros((1, 2, 3)))


def test_same_grid_looks_at_every_corner():
    v = volume()
    assert v.same_grid(volume(dtype=np.float32))
    assert not v.same_grid(volume(shape=(3, 4, 6)))
    for row in range(3):
        for column in range(4):
            matrix = OBLIQUE.copy()
            matrix[row, column] += 0.002
            assert not v.same_grid(volume(matrix=matrix)), (row, column)
            matrix[row, column] -= 0.0019
            assert v.same_grid(volume(matrix=matrix))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_and_found(bad):
    array = np.full((3, 4, 5), 3e38, np.float32)  # its sum is beyond float32
    Volume(array, np.eye(4)).require_finite()
    array[1, 2, 3] = array[2, 0, 0] = bad
    with pytest.raises(MedXAIError, match=r"'v' holds 2 NaN or infinite voxels \(the first at IJK 3, 2, 1\)"):
        Volume(array, np.eye(4), "v").require_finite()
    Volume(np.ones((2, 2, 2), np.int32), np.eye(4)).require_finite()


# ---- masks on other grids --------------------------------------------------------------------------------------------


def slow_mask_on_grid(mask, grid):
    result = np.zeros(grid.shape, bool)
    for index in np.ndindex(grid.shape):
        at = tuple(int(np.floor(v + 0.5)) for v in mask.ras_to_index(grid.index_to_ras(index)))
        if all(0 <= v < n for v, n in zip(at, mask.shape)):
            result[index] = mask.array[at] != 0
    return result


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), full=st.floats(0.02, 1))
def test_a_mask_on_any_grid_is_its_nearest_voxels(seed, full):
    rng = np.random.default_rng(seed)

    def geometry():
        turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = turn * rng.uniform(0.5, 2, 3), rng.uniform(-3, 3, 3)
        return tuple(rng.integers(1, 8, 3)), matrix

    shape, matrix = geometry()
    mask = Volume((rng.random(shape) < full).astype(np.uint8) * 7, matrix, "tumour")
    shape, matrix = geometry()
    grid = Volume(np.zeros(shape, np.int16), matrix, "ct")
    expected = slow_mask_on_grid(mask, grid) if mask.array.any() else None
    if expected is not None and expected.any():
        np.testing.assert_array_equal(mask_on_grid(mask, grid), expected)
    else:
        with pytest.raises(MedXAIError, match="'tumour' is empty" if expected is None else "do not overlap"):
            mask_on_grid(mask, grid)


def test_a_mask_on_its_own_grid_is_itself():
    mask = Volume((np.arange(60) % 3 == 0).reshape(3, 4, 5).astype(np.uint8), OBLIQUE)
    np.testing.assert_array_equal(mask_on_grid(mask, volume()), mask.array == 1)


def test_a_mask_of_another_study_is_refused():
    matrix = OBLIQUE.copy()
    matrix[:3, 3] += 500
    with pytest.raises(MedXAIError, match=r"'tumour' and the volume 'ct' do not overlap; check .* same study"):
        mask_on_grid(Volume(np.ones((3, 4, 5)), matrix, "tumour"), volume(name="ct"))


# ---- explanation -----------------------------------------------------------------------------------------------------


def method(log, fail=False):
    try:
        for n in range(3):
            yield Step(n / 3, f"step {n}")
            if fail and n == 1:
                raise MedXAIError("no")
        return Explanation("dream", "done")
    finally:
        log.append("put back")


def test_run_returns_what_the_method_returns():
    log, seen = [], []
    assert run(method(log), seen.append).title == "done"
    assert [s.stage for s in seen] == ["step 0", "step 1", "step 2"] and log == ["put back"]
    assert run(method(log)).method == "dream"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, StopIteration])
def test_run_puts_the_model_back_when_the_watcher_stops_it(error):
    log = []

    def watcher(step):
        if step.fraction > 0.3:
            raise error

    with pytest.raises(error):
        run(method(log), watcher)
    assert log == ["put back"]


def test_run_passes_a_methods_error_on():
    log = []
    with pytest.raises(MedXAIError, match="no"):
        run(method(log, fail=True))
    assert log == ["put back"]


def test_a_patch_knows_its_box():
    whole = np.zeros((4, 5, 6))
    whole[Patch(np.ones((1, 2, 3)), (3, 1, 2)).box] = 1
    assert whole.sum() == 6 and whole[3, 1:3, 2:5].all()


def test_nearest_words():
    assert nearest("livr", ["liver", "spleen"]) == " (did you mean 'liver'?)"
    assert nearest("xyz", ["liver", "spleen"]) == ""
