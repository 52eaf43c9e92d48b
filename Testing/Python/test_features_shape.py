"""Shape features of 3-D and 2-D masks: known answers, pyradiomics' values, awkward masks, refusals."""

import math
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import example, given, settings
from hypothesis import strategies as st

from MedXAILib.errors import MedXAIError
from MedXAILib.features import flat, solid
from MedXAILib.features.names import CLASSES

NAMES = {3: [name.split("_")[1] for name in CLASSES["shape"]], 2: [name.split("_")[1] for name in CLASSES["shape2D"]]}


@pytest.fixture(scope="module")
def reference():
    """``reference(mask, spacing)``: every value of pyradiomics' own class for the very same array."""
    pytest.importorskip("radiomics")
    import logging

    import SimpleITK as sitk
    from radiomics.shape import RadiomicsShape
    from radiomics.shape2D import RadiomicsShape2D

    logger = logging.getLogger("radiomics")
    level = logger.level
    logger.setLevel(logging.CRITICAL)

    def values(mask, spacing):
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing([float(size) for size in spacing[::-1]])
        measures = (RadiomicsShape if mask.ndim == 3 else RadiomicsShape2D)(image, image, label=1)
        measures.enableAllFeatures()
        with np.errstate(all="ignore"):
            return {name: float(value) for name, value in measures.execute().items()}

    yield values
    logger.setLevel(level)


def measured(mask, spacing, names=None):
    return (solid if mask.ndim == 3 else flat).shape(mask, spacing, names or NAMES[mask.ndim])


def assert_same(found, expected, of):
    if (
        found.get("MeshVolume") == 0
    ):  # holes in the surface: in pyradiomics zero, or a rounding error that it divides by
        assert abs(expected.pop("MeshVolume")) < 1e-12 * expected["VoxelVolume"]
        assert expected.pop("Sphericity") < 1e-8 and found["Sphericity"] == 0
        del expected["SurfaceVolumeRatio"]
        assert math.isnan(found["SurfaceVolumeRatio"])
    for name in expected:
        # Where a mask has no thickness, the root of pyradiomics' rounding error stands in place of zero.
        none = 1e-6 * expected["MajorAxisLength"] if found[name] == 0 else 1e-15
        assert found[name] == pytest.approx(expected[name], rel=1e-9, abs=none, nan_ok=True), (name, of)


def mask_of(shape, seed, filled, smooth):
    """A random mask, ragged or (of blurred noise) smooth; at least one voxel."""
    noise = np.random.default_rng(seed).normal(size=[n + 4 for n in shape])
    for axis in range(noise.ndim if smooth else 0):
        noise = sum(np.roll(noise, step, axis) for step in (-2, -1, 0, 1, 2))
    noise = noise[tuple(slice(2, 2 + n) for n in shape)]
    return noise >= np.quantile(noise, 1 - filled)


def masks(ndim, longest):
    sizes = st.tuples(*[st.integers(1, longest)] * ndim)
    return st.builds(mask_of, sizes, st.integers(0, 10**6), st.floats(0, 1), st.booleans())


def spacings(ndim):
    return st.tuples(*[st.floats(0.5, 4)] * ndim)


# --- known answers ---


def test_one_voxel_is_an_octahedron():
    a, b, c = 2.0, 3.0, 0.5
    found = measured(np.ones((1, 1, 1), bool), (a, b, c))
    face = math.sqrt((a * b / 4) ** 2 + (b * c / 4) ** 2 + (c * a / 4) ** 2) / 2
    assert found["SurfaceArea"] == pytest.approx(8 * face, rel=1e-14)
    assert found["MeshVolume"] == pytest.approx(a * b * c / 6, rel=1e-14)
    assert found["VoxelVolume"] == a * b * c
    assert found["SurfaceVolumeRatio"] == pytest.approx(8 * face / (a * b * c / 6))
    assert found["Maximum3DDiameter"] == found["Maximum2DDiameterSlice"] == found["Maximum2DDiameterRow"] == 3.0
    assert found["Maximum2DDiameterColumn"] == 2.0
    assert found["MajorAxisLength"] == found["MinorAxisLength"] == found["LeastAxisLength"] == 0
    assert math.isnan(found["Elongation"]) and math.isnan(found["Flatness"])


@pytest.mark.parametrize("margin", [0, 3])
def test_a_box_has_chamfered_edges(margin):
    n, s = np.array([3, 4, 6]), np.array([2.0, 0.7, 1.3])
    found = measured(np.pad(np.ones(n, bool), margin), s)
    d = (n - 1) * s  # between the outer voxels
    corner = math.sqrt(sum((s[a] * s[b] / 4) ** 2 for a, b in ((0, 1), (1, 2), (2, 0)))) / 2
    area, volume = 8 * corner, d.prod() + s.prod() / 6
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        area += 2 * d[a] * d[b] + 4 * d[c] * math.hypot(s[a], s[b]) / 2
        volume += d[a] * d[b] * s[c] + d[c] * s[a] * s[b] / 2
    assert found["SurfaceArea"] == pytest.approx(area, rel=1e-13)
    assert found["MeshVolume"] == pytest.approx(volume, rel=1e-13)
    assert found["VoxelVolume"] == pytest.approx(n.prod() * s.prod(), rel=1e-15)
    assert found["Sphericity"] == pytest.approx((36 * math.pi * volume**2) ** (1 / 3) / area, rel=1e-13)
    lengths = np.sort(4 * s * np.sqrt((n**2 - 1) / 12))
    for name, length in zip(("Least", "Minor", "Major"), lengths):
        assert found[f"{name}AxisLength"] == pytest.approx(length, rel=1e-13)
    assert found["Elongation"] == pytest.approx(lengths[1] / lengths[2], rel=1e-13)
    assert found["Flatness"] == pytest.approx(lengths[0] / lengths[2], rel=1e-13)
    # A vertex stands half a voxel out of a corner voxel along one axis, its counterpart on the other side.
    expected = max(np.linalg.norm(d + np.eye(3)[a] * s) for a in range(3))
    assert found["Maximum3DDiameter"] == pytest.approx(expected, rel=1e-14)
    for name, out in (("Slice", 0), ("Column", 1), ("Row", 2)):
        a, b = (axis for axis in range(3) if axis != out)
        expected = max(math.hypot(d[a] + s[a], d[b]), math.hypot(d[a], d[b] + s[b]))
        assert found[f"Maximum2DDiameter{name}"] == pytest.approx(expected, rel=1e-14)


def test_two_voxels_that_touch_by_a_corner():
    mask = np.zeros((2, 2, 2), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    found = measured(mask, (1, 1, 1), ["MeshVolume", "Maximum3DDiameter", "MajorAxisLength", "Elongation", "Flatness"])
    assert found["MeshVolume"] == pytest.approx(2 / 6)
    assert found["Maximum3DDiameter"] == pytest.approx(math.sqrt(4 + 1 + 1))
    assert found["MajorAxisLength"] == pytest.approx(4 * math.sqrt(3) / 2)
    assert found["Elongation"] == found["Flatness"] == 0


def test_a_rectangle_has_cut_corners():
    n, s = np.array([5, 8]), np.array([0.8, 1.9])
    found = measured(np.ones(n, bool), s)
    d = (n - 1) * s
    perimeter, surface = 2 * d.sum() + 2 * np.hypot(*s), d.prod() + d[0] * s[1] + d[1] * s[0] + s.prod() / 2
    assert found["Perimeter"] == pytest.approx(perimeter, rel=1e-14)
    assert found["MeshSurface"] == pytest.approx(surface, rel=1e-14)
    assert found["PixelSurface"] == pytest.approx(40 * 0.8 * 1.9, rel=1e-15)
    assert found["PerimeterSurfaceRatio"] == pytest.approx(perimeter / surface, rel=1e-14)
    assert found["Sphericity"] == pytest.approx(2 * math.sqrt(math.pi * surface) / perimeter, rel=1e-14)
    assert found["MaximumDiameter"] == pytest.approx(math.hypot(d[0], d[1] + s[1]), rel=1e-14)
    assert found["MajorAxisLength"] == pytest.approx(4 * 1.9 * math.sqrt(63 / 12), rel=1e-14)
    assert found["MinorAxisLength"] == pytest.approx(4 * 0.8 * math.sqrt(24 / 12), rel=1e-14)


def test_one_pixel_is_a_diamond_and_pixels_that_touch_by_a_corner_are_two():
    one = measured(np.ones((1, 1), bool), (3, 4))
    assert one["Perimeter"] == 10 and one["MeshSurface"] == 6 and one["MaximumDiameter"] == 4
    assert one["MajorAxisLength"] == 0 and math.isnan(one["Elongation"])
    two = measured(np.eye(2, dtype=bool), (3, 4))
    assert two["Perimeter"] == 20 and two["MeshSurface"] == 12 and two["Elongation"] == 0


def test_a_sphere_is_nearly_round():
    at = np.indices((61, 61, 61)) - 30
    found = measured((at**2).sum(axis=0) <= 30**2, (1, 1, 1))
    assert found["MeshVolume"] == pytest.approx(4 / 3 * math.pi * 30**3, rel=2e-3)
    assert 0.9 < found["Sphericity"] < 1
    assert found["Elongation"] == pytest.approx(1, abs=1e-12)
    assert found["MajorAxisLength"] == pytest.approx(4 * 30 / math.sqrt(5), rel=1e-3)
    assert found["Maximum3DDiameter"] == found["Maximum2DDiameterSlice"] == 61


# --- against the definition, pair by pair ---


def vertices(mask):
    """Every point half-way between a voxel of the mask and a neighbour outside of it, in voxels."""
    mask = np.pad(mask, 1)
    found = []
    for axis in range(mask.ndim):
        step = np.eye(mask.ndim)[axis] / 2
        found.append(np.argwhere(np.diff(mask, axis=axis)) + step)
    return np.concatenate(found)


@settings(max_examples=80)
@given(masks(3, 9), spacings(3))
def test_diameters_are_those_of_every_pair_of_vertices(mask, spacing):
    at = vertices(mask)
    apart = np.linalg.norm((at[:, None] - at[None]) * spacing, axis=2)
    found = measured(mask, spacing)
    assert found["Maximum3DDiameter"] == pytest.approx(apart.max(), rel=1e-12)
    for name, axis in (("Slice", 0), ("Column", 1), ("Row", 2)):
        plane = at[:, None, axis] == at[None, :, axis]
        assert found[f"Maximum2DDiameter{name}"] == pytest.approx(apart[plane].max(), rel=1e-12)


@settings(max_examples=80)
@given(masks(2, 16), spacings(2))
def test_the_diameter_of_an_outline_is_that_of_every_pair_of_vertices(mask, spacing):
    at = vertices(mask)
    apart = np.linalg.norm((at[:, None] - at[None]) * spacing, axis=2)
    assert measured(mask, spacing)["MaximumDiameter"] == pytest.approx(apart.max(), rel=1e-12)


def test_an_outline_that_thins_out_slowly():
    """A convex arc that ends in a drop: each round of thinning takes one point; the answer does not wait for the last."""
    mask = np.zeros((200, 401), bool)
    for x in range(200):
        mask[199 - (x * x) // 400, x] = True
    mask[199, 400] = True
    at = vertices(mask)
    expected = max(np.linalg.norm(at - one, axis=1).max() for one in at)
    assert measured(mask, (1, 1), ["MaximumDiameter"])["MaximumDiameter"] == pytest.approx(expected, rel=1e-13)
    found = measured(mask[None], (1, 1, 1), ["Maximum2DDiameterSlice"])
    assert found["Maximum2DDiameterSlice"] == pytest.approx(expected, rel=1e-13)


# --- pyradiomics' values ---


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2.5, 0.7, 1.1)])
def test_each_of_the_256_patterns_adds_what_it_does_in_pyradiomics(spacing):
    measures = pytest.importorskip("radiomics").cShape.calculate_coefficients
    size = np.array(spacing, float)
    _, volumes, steps = solid._patterns()
    for number in range(256):
        pattern = np.array([number >> bit & 1 for bit in range(8)], bool).reshape(2, 2, 2)
        assert solid.cells(pattern)[1, 1, 1] == number
        area, volume, _ = measures(pattern, size)  # one cell: there is no margin here
        assert solid._areas(tuple(size))[number] == pytest.approx(area, rel=1e-12, abs=1e-12), number
        assert volumes[number] / 48 * size.prod() == pytest.approx(volume, rel=1e-12, abs=1e-12), number
        # The same cell elsewhere, seen from the corner of the array, with whatever cells lie between.
        moved = np.pad(pattern, ((2, 0), (1, 0), (3, 0)))
        code = solid.cells(moved)[1:-1, 1:-1, 1:-1]
        expected = sum(volumes[code[at]] + steps[code[at]] @ at for at in np.ndindex(code.shape))
        assert expected / 48 * size.prod() == pytest.approx(measures(moved, size)[1], rel=1e-12, abs=1e-12), number


HOLES = np.zeros(
    (2, 5, 4), bool
)  # two voxels that share an edge, where the two cells between do not join their surfaces
HOLES[0, 2, 3] = HOLES[1, 2, 2] = True


def test_a_surface_with_holes_has_a_volume_that_depends_on_its_place():
    """As pyradiomics' has, down to zero; the box of the mask must be what it takes."""
    names = ["MeshVolume", "SurfaceVolumeRatio", "Sphericity"]
    found = measured(HOLES, (1.3, 0.7, 0.9), names)
    assert found["MeshVolume"] == found["Sphericity"] == 0 and math.isnan(found["SurfaceVolumeRatio"])
    box = measured(HOLES[:, 2:3, 2:], (1, 1, 1), names)
    assert box["MeshVolume"] == pytest.approx(1 / 3) and box["SurfaceVolumeRatio"] > 0


@settings(max_examples=150)
@given(masks(3, 10), spacings(3))
@example(HOLES, (1.0, 1.0, 1.0))
@example(HOLES, (1.3, 0.7, 0.9))
@example(np.ones((1, 1, 1), bool), (1.0, 1.0, 1.0))
@example(np.ones((1, 1, 7), bool), (1.0, 2.0, 0.7))
@example(np.ones((1, 5, 6), bool), (1.0, 2.0, 0.7))
@example(np.ones((5, 1, 6), bool), (1.0, 2.0, 0.7))
@example(np.ones((4, 5, 6), bool), (1.0, 1.0, 1.0))
@example(np.eye(6, dtype=bool)[None], (1.3, 0.9, 0.9))
def test_a_solid_has_pyradiomics_values(reference, mask, spacing):
    assert_same(measured(mask, spacing), reference(mask, spacing), (mask.shape, spacing))


@settings(max_examples=150)
@given(masks(2, 24), spacings(2))
@example(np.ones((1, 1), bool), (1.0, 1.0))
@example(np.ones((1, 7), bool), (1.1, 0.7))
@example(np.eye(9, dtype=bool), (1.1, 0.7))
@example(np.indices((9, 8)).sum(axis=0) % 2 == 1, (1.1, 0.7))
def test_an_outline_has_pyradiomics_values(reference, mask, spacing):
    assert_same(measured(mask, spacing), reference(mask, spacing), (mask.shape, spacing))


def awkward():
    """Holes, several components, one slice of many, touching the border, an oblique plane, a large ragged blob."""
    ball = ((np.indices((11, 11, 11)) - 5) ** 2).sum(axis=0) <= 27
    hollow = ball & ~(((np.indices((11, 11, 11)) - 5) ** 2).sum(axis=0) <= 8)
    apart = np.zeros((9, 12, 15), bool)
    apart[:3, :4, :5] = apart[5:, 9:, 8] = apart[8, 0, 14] = True
    slice_ = np.zeros((7, 12, 12), bool)
    slice_[3, 2:9, 4:] = True
    oblique = np.indices((9, 9, 9))[0] == np.indices((9, 9, 9))[1]
    line = np.zeros((9, 9, 9), bool)
    line[np.arange(9), np.arange(9), 4] = True
    blob = mask_of((30, 34, 26), 3, 0.3, True) ^ mask_of((30, 34, 26), 4, 0.05, False)
    return {
        "hollow": hollow,
        "apart": apart,
        "slice": slice_,
        "oblique": oblique,
        "line": line,
        "blob": blob,
        "ball": ball,
    }


@pytest.mark.parametrize("name", awkward())
@pytest.mark.parametrize("spacing", [(1, 1, 1), (5, 0.7, 0.7), (0.31, 1.7, 0.9)])
def test_awkward_solids_have_pyradiomics_values(reference, name, spacing):
    mask = awkward()[name]
    assert_same(measured(mask, spacing), reference(mask, spacing), name)


@pytest.mark.parametrize("name", awkward())
def test_awkward_outlines_have_pyradiomics_values(reference, name):
    mask = awkward()[name]
    layer = mask[mask.sum(axis=(1, 2)).argmax()]
    assert_same(measured(layer, (0.6, 1.7)), reference(layer, (0.6, 1.7)), name)


# --- what has no thickness ---


@pytest.mark.parametrize("turn", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_a_plane_a_line_and_a_voxel_have_no_thickness_exactly(turn):
    """pyradiomics gives the root of a rounding error here, about 1e-8 of the major axis."""
    spacing = (0.1, 0.7, 1.3)
    plane = np.transpose(np.indices((20, 20, 20))[0] == np.indices((20, 20, 20))[1], turn)
    found = measured(plane, spacing)
    assert found["LeastAxisLength"] == found["Flatness"] == 0 < found["Elongation"]
    line = np.zeros((20, 20, 20), bool)
    line[np.arange(20), np.arange(20), 19 - np.arange(20)] = True
    found = measured(np.transpose(line, turn), (1e4, 7e4, 1.3e5))
    assert found["LeastAxisLength"] == found["MinorAxisLength"] == found["Flatness"] == found["Elongation"] == 0
    assert found["MajorAxisLength"] == pytest.approx(4 * np.linalg.norm([1e4, 7e4, 1.3e5]) * math.sqrt(399 / 12))


def test_one_voxel_out_of_a_plane_gives_it_thickness():
    mask = np.zeros((2, 40, 40), bool)
    mask[0] = mask[1, 20, 20] = True
    assert measured(mask, (0.01, 1, 1))["LeastAxisLength"] == pytest.approx(4 * 0.01 / math.sqrt(1601), rel=1e-3)


def test_an_empty_mask_has_no_value():
    assert all(math.isnan(value) for value in measured(np.zeros((3, 4, 5), bool), (1, 1, 1)).values())
    assert all(math.isnan(value) for value in measured(np.zeros((0, 4)), (1, 1)).values())


# --- how it is asked ---


def test_only_what_is_asked_for_is_computed(monkeypatch):
    mask = mask_of((6, 7, 8), 0, 0.4, True)
    everything = measured(mask, (1, 2, 3))

    def planted(*_):
        raise AssertionError("not asked for")

    parts = {
        "area_and_volume": ["MeshVolume", "SurfaceArea", "SurfaceVolumeRatio", "Sphericity"],
        "axis_lengths": ["MajorAxisLength", "MinorAxisLength", "LeastAxisLength", "Elongation", "Flatness"],
        "_in_planes": ["Maximum2DDiameterSlice", "Maximum2DDiameterColumn", "Maximum2DDiameterRow"],
        "_corners": ["Maximum3DDiameter"],
        "": ["VoxelVolume"],
    }
    assert sorted(name for names in parts.values() for name in names) == sorted(NAMES[3])
    for part, names in parts.items():
        with monkeypatch.context() as others:
            for other in parts:
                if other not in ("", part):
                    others.setattr(solid, other, planted)
            assert measured(mask, (1, 2, 3), names) == {name: everything[name] for name in names}
    assert solid.shape(mask, (1, 2, 3), []) == {}


@pytest.mark.parametrize("kind", ["u1", "i4", "f8", "?"])
def test_any_kind_of_array_in_any_order_is_a_mask_and_stays_as_it_is(kind):
    mask = mask_of((6, 7, 8), 1, 0.4, False)
    expected = measured(mask, (1, 2, 3))
    for array in (mask.astype(kind) * 3, np.asfortranarray(mask.astype(kind)), mask[::-1].astype(kind)[::-1]):
        array.flags.writeable = False
        assert measured(array, (1, 2, 3)) == expected


@pytest.mark.parametrize(
    "module, shape, spacing, names, words",
    [
        (solid, (4, 4), (1, 1, 1), ["MeshVolume"], "2 dimensions; give one of 3"),
        (flat, (1, 4, 4), (1, 1), ["Perimeter"], "3 dimensions; give one of 2"),
        (solid, (4, 4, 4), (1, 1), ["MeshVolume"], "3 positive numbers"),
        (solid, (4, 4, 4), (1, 0, 1), ["MeshVolume"], "positive"),
        (flat, (4, 4), (1, math.nan), ["Perimeter"], "positive"),
        (solid, (4, 4, 4), (1, 1, 1), ["Sphericty"], "did you mean 'Sphericity'"),
        (flat, (4, 4), (1, 1), ["Flatness"], "no 2-D shape feature 'Flatness'"),
    ],
)
def test_what_cannot_be_measured_is_refused(module, shape, spacing, names, words):
    with pytest.raises(MedXAIError, match=words):
        module.shape(np.ones(shape, bool), spacing, names)


def test_the_names_are_all_of_pyradiomics():
    assert sorted(solid._FEATURES) == sorted(NAMES[3]) and sorted(flat._FEATURES) == sorted(NAMES[2])


def test_neither_pyradiomics_nor_scipy_nor_torch_is_needed():
    code = (
        "import sys, numpy as np\n"
        "for name in ('radiomics', 'SimpleITK', 'scipy', 'torch'): sys.modules[name] = None\n"
        "from MedXAILib.features import flat, solid\n"
        "print(solid.shape(np.ones((2, 2, 2)), (1, 1, 1), solid._FEATURES)['VoxelVolume'],\n"
        "      flat.shape(np.ones((2, 2)), (1, 1), flat._FEATURES)['PixelSurface'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.split() == ["8.0", "4.0"]
