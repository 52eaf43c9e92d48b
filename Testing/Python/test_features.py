"""Features: names, values equal to pyradiomics' own, masks that cannot be measured, the line texture and the verdicts."""

import logging
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from MedXAILib import features
from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import Patch
from MedXAILib.features import LineTexture, compute, line_texture, resolve, verdict
from MedXAILib.volume import Volume

ROOT = Path(__file__).resolve().parents[2]
ALL_3D = [name for name in resolve("all", 3) if name != "line_texture"]
ALL_2D = [name for name in resolve("all", 2) if name != "line_texture"]


@pytest.fixture
def radiomics():
    return pytest.importorskip("radiomics")


def oblique(spacing=(0.8, 0.9, 2.0)):
    """A rotated, flipped matrix with the given spacing (i, j, k)."""
    turn, _ = np.linalg.qr(np.array([[3.0, 1, 0.5], [-1, 2, 0.3], [0.2, -0.6, 1.5]]))
    matrix = np.eye(4)
    matrix[:3, :3] = turn * spacing
    matrix[:3, 3] = (10, -20, 30)
    return matrix


def blob(seed, shape, dtype=np.float32, ragged=False):
    """A random image and a random mask that does not touch every border."""
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.normal(size=shape), 1) * 400 + 60
    if ragged:
        mask = rng.random(shape) > 0.6
    else:
        mask = ndimage.gaussian_filter(rng.normal(size=shape), [min(n - 1, 2) for n in shape]) > 0.02
    return image.astype(dtype), mask.astype(np.uint8)


def extractor(image, mask, names, spacing, flat=None, bin_width=25):
    """The values of `RadiomicsFeatureExtractor.execute`, the way they are usually computed."""
    import SimpleITK as sitk
    from radiomics.featureextractor import RadiomicsFeatureExtractor

    settings = {} if flat is None else {"force2D": True, "force2Ddimension": flat}
    engine = RadiomicsFeatureExtractor(binWidth=bin_width, additionalInfo=False, **settings)
    engine.disableAllFeatures()
    groups = {}
    for name in names:
        group, feature = name.split("_", 1)
        groups.setdefault(group, []).append(feature)
    engine.enableFeaturesByName(**groups)
    pair = [sitk.GetImageFromArray(image), sitk.GetImageFromArray(mask)]
    for one in pair:
        one.SetSpacing(spacing)
    level = logging.getLogger("radiomics").level
    logging.getLogger("radiomics").setLevel(logging.CRITICAL)
    try:
        found = engine.execute(*pair)
    finally:
        logging.getLogger("radiomics").setLevel(level)
    return {name: float(np.real(found["original_" + name])) for name in names}


def assert_equal(found, expected, tolerance=1e-9):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=tolerance, abs=1e-9, nan_ok=True), name


# --- names ---


def test_the_table_of_names_is_pyradiomics_own(radiomics):
    from radiomics import getFeatureClasses

    classes = getFeatureClasses()
    assert set(classes) == set(features.CLASSES)
    for group, cls in classes.items():
        current = {f"{group}_{name}" for name, deprecated in cls.getFeatureNames().items() if not deprecated}
        assert current == set(features.CLASSES[group])


def test_sets_classes_and_aliases():
    assert resolve(["none"], 3) == []
    assert len(resolve("paper", 3)) == len(resolve("paper", 2)) == 10
    assert resolve("paper", 3)[-1] == "line_texture"
    assert resolve(["rms", "maximum_diameter", "elongation"], 3) == [
        "firstorder_RootMeanSquared", "shape_Maximum3DDiameter", "shape_Elongation",
    ]  # fmt: skip
    assert resolve("maximum_diameter,elongation", 2) == ["shape2D_MaximumDiameter", "shape2D_Elongation"]
    assert resolve(["firstorder_Mean", "glcm", "firstorder_Mean"], 3)[0] == "firstorder_Mean"
    assert len(resolve(["firstorder_Mean", "glcm", "firstorder_Mean"], 3)) == 25
    assert resolve("shape", 2) == list(features.CLASSES["shape2D"])
    assert not [name for name in resolve("all", 2) if name.startswith("shape_")]
    assert not [name for name in resolve("all", 3) if name.startswith("shape2D")]


def test_a_3d_name_on_a_single_slice_is_replaced_and_told():
    notes = []
    assert resolve(["shape_VoxelVolume"], 2, notes) == ["shape2D_PixelSurface"]
    assert notes == ["'shape_VoxelVolume' is 'shape2D_PixelSurface' on a single slice."]


@pytest.mark.parametrize(
    "name, ndim, words",
    [
        ("firstorder_Meen", 3, "firstorder_Mean"),
        ("glmc", 3, "glcm"),
        ("shape_Flatness", 2, "no meaning on a single slice"),
        ("shape2D_MaximumDiameter", 3, "for single slices"),
        ("glcm_Homogeneity1", 3, "no feature"),
    ],
)
def test_names_that_are_refused(name, ndim, words):
    with pytest.raises(MedXAIError, match=words):
        resolve([name], ndim)


def test_no_name_of_the_package_is_a_module():
    """Importing a module of that name would silently put the module in the function's place."""
    modules = {path.stem for path in (ROOT / "MedXAILib" / "features").glob("*.py")}
    assert not modules & set(features.__all__)
    for name in features.__all__:
        assert getattr(features, name) is not None


def test_the_package_imports_neither_torch_nor_scipy_nor_pyradiomics():
    code = (
        "import sys; import MedXAILib.features as f; [getattr(f, n) for n in f.__all__];"
        "f.line_texture(__import__('numpy').zeros((20, 20)));"
        "print([m for m in ('torch', 'scipy', 'radiomics', 'SimpleITK') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_without_pyradiomics_everything_is_computed_and_the_choice_is_refused():
    code = (
        "import sys; sys.modules['radiomics'] = None\n"
        "import numpy as np\n"
        "from MedXAILib.errors import MedXAIError\n"
        "from MedXAILib.features import available, compute\n"
        "from MedXAILib.volume import Volume\n"
        "there, how = available(); assert not there; print(how)\n"
        "v = Volume(np.random.rand(20, 20, 20), np.eye(4)); m = v.with_array(np.ones(v.shape, 'u1'))\n"
        "found = compute(v, m, 'all', bin_width=0.1)\n"
        "assert len(found) == 108 and all(np.isfinite(value) for value in found.values()) and not found.notes\n"
        "try: compute(v, m, 'all', engine='pyradiomics')\n"
        "except MedXAIError as error: assert error.message == how and error.kind == 'missing'\n"
        "else: raise SystemExit('not refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert not done.returncode, done.stderr
    assert "pyradiomics" in done.stdout and "SlicerRadiomics" in done.stdout and "built-in" in done.stdout


# --- values ---


@pytest.mark.parametrize("engine", ["builtin", "pyradiomics"])
@pytest.mark.parametrize("seed, ragged", [(0, False), (1, False), (2, True)])
def test_every_feature_of_a_volume_equals_the_extractors(radiomics, seed, ragged, engine):
    image, mask = blob(seed, (14, 18, 21), ragged=ragged)
    found = compute(Volume(image, oblique()), Volume(mask, oblique()), ALL_3D, engine=engine)
    assert_equal(found, extractor(image, mask, ALL_3D, Volume(image, oblique()).spacing))
    assert not found.notes and all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("engine", ["builtin", "pyradiomics"])
@pytest.mark.parametrize("seed, ragged", [(3, False), (4, True)])
def test_every_feature_of_a_slice_equals_the_extractors(radiomics, seed, ragged, engine):
    image, mask = blob(seed, (1, 31, 24), ragged=ragged)
    found = compute(Volume(image, oblique()), Volume(mask, oblique()), ALL_2D, engine=engine)
    assert_equal(found, extractor(image, mask, ALL_2D, Volume(image, oblique()).spacing, flat=0))


@pytest.mark.parametrize("axis", [1, 2])
def test_a_slice_along_another_axis_has_the_values_of_the_same_slice_along_k(axis):
    image, mask = blob(5, (1, 22, 25))
    expected = compute(Volume(image, np.diag([2.0, 3, 9, 1])), Volume(mask, np.diag([2.0, 3, 9, 1])), ALL_2D)
    spacing = [2.0, 3.0]  # columns, rows
    spacing.insert(2 - axis, 9.0)
    matrix = np.diag([*spacing, 1.0])
    turned = [Volume(np.moveaxis(one, 0, axis), matrix) for one in (image, mask)]
    assert_equal(compute(*turned, ALL_2D), expected)


@pytest.mark.parametrize("dtype", ["i2", "u1", "i8", "f8", ">f4", "f2", "?"])
def test_every_kind_of_voxel(radiomics, dtype):
    image, mask = blob(6, (9, 12, 10))
    image = (image / 8 + 40).astype(dtype)
    plain = {">f4": "f4", "f2": "f4", "?": "u1"}.get(dtype, dtype)
    names = ["firstorder_Mean", "firstorder_Entropy", "glcm_Contrast", "glszm_ZoneEntropy"]
    found = compute(Volume(image, np.eye(4)), Volume(mask, np.eye(4)), names, bin_width=3)
    assert_equal(found, extractor(image.astype(plain), mask, names, (1, 1, 1), bin_width=3))


def test_only_what_is_asked_for_is_computed_and_has_the_same_value():
    image, mask = (Volume(one, oblique()) for one in blob(7, (12, 12, 12)))
    everything = compute(image, mask, ALL_3D)
    for name in ALL_3D:
        assert_equal(compute(image, mask, [name]), {name: everything[name]}, 1e-13)


def test_a_box_of_the_mask_and_a_shifted_lattice_change_nothing():
    array, inside = blob(8, (12, 14, 16))
    inside[:2] = inside[:, :3] = inside[:, :, 13:] = 0
    image, mask = Volume(array, oblique()), Volume(inside, oblique())
    expected = compute(image, mask, ALL_3D)
    assert_equal(compute(image, mask.crop((1, 2, 0), (12, 14, 14)), ALL_3D), expected)
    assert_equal(compute(image.crop((1, 2, 0), (12, 14, 14)), mask, ALL_3D), expected, 1e-12)


def test_a_mask_on_another_grid_is_taken_by_nearest_neighbour():
    image, mask = blob(9, (10, 10, 10))
    fine = np.repeat(np.repeat(np.repeat(mask, 2, 0), 2, 1), 2, 2)
    matrix = np.diag([0.5, 0.5, 0.5, 1.0])
    matrix[:3, 3] = -0.25
    expected = compute(Volume(image, np.eye(4)), Volume(mask, np.eye(4)), ["glcm"])
    assert_equal(compute(Volume(image, np.eye(4)), Volume(fine, matrix), ["glcm"]), expected)


def test_shape_has_the_extractors_values_for_awkward_masks(radiomics):
    names = list(features.CLASSES["shape"])
    rng = np.random.default_rng(10)
    for number in range(25):
        shape = rng.integers(3, 14, 3)
        mask = np.zeros(shape, np.uint8)
        if number % 3 == 0:  # a few voxels apart
            for _ in range(4):
                mask[tuple(rng.integers(0, n) for n in shape)] = 1
        elif number % 3 == 1:
            mask[:] = rng.random(shape) > rng.random()
        else:  # one slice of a volume
            mask[:, shape[1] // 2] = rng.random((shape[0], shape[2])) > 0.4
        if sum(np.ptp(at) > 0 for at in np.nonzero(mask) if len(at)) < 2:
            continue
        spacing = tuple(rng.uniform(0.3, 4, 3))
        image = rng.normal(size=shape)
        found = compute(Volume(image, np.diag([*spacing, 1])), Volume(mask, np.diag([*spacing, 1])), names)
        expected = extractor(image, mask, names, spacing)
        for name in names:
            assert found[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-5), (number, name)


# --- what cannot be measured ---


def of(mask, image=None, names=("firstorder_Mean", "shape_Sphericity", "glcm_Contrast"), **options):
    image = np.random.default_rng(0).normal(size=mask.shape) * 100 if image is None else image
    return compute(Volume(image, np.eye(4)), Volume(mask, np.eye(4)), names, **options)


@pytest.mark.parametrize("voxels, word", [((), "empty"), (((3, 3, 3),), "small"), (((3, 3, 3), (3, 3, 4)), "small")])
def test_masks_that_are_too_small_give_nan(voxels, word):
    mask = np.zeros((8, 8, 8), np.uint8)
    for voxel in voxels:
        mask[voxel] = 1
    found = of(mask)
    assert all(math.isnan(value) for value in found.values()) and len(found) == 3
    assert found.notes[0].startswith(word)


def test_the_line_texture_needs_no_mask():
    found = of(np.zeros((4, 30, 30), np.uint8), names=("line_texture", "firstorder_Mean"))
    assert found["line_texture"] > 0 and math.isnan(found["firstorder_Mean"])


def test_a_mask_beyond_the_image_or_elsewhere_gives_nan():
    image = Volume(np.ones((8, 8, 8)), np.eye(4))
    mask = Volume(np.ones((10, 8, 8), np.uint8), np.eye(4))
    assert compute(image, mask, ["firstorder_Mean"]).notes[0].startswith("outside")
    far = np.eye(4)
    far[:3, 3] = 100.3
    found = compute(image, Volume(np.ones((8, 8, 8), np.uint8), far), ["firstorder_Mean"])
    assert math.isnan(found["firstorder_Mean"]) and "overlap" in found.notes[0]


def test_voxels_that_are_not_finite_leave_the_shape():
    image, mask = blob(11, (9, 9, 9))
    image[tuple(np.argwhere(mask)[5])] = np.nan
    found = of(mask, image)
    assert math.isnan(found["firstorder_Mean"]) and math.isnan(found["glcm_Contrast"]) and found["shape_Sphericity"] > 0
    assert found.notes[0].startswith("not finite")
    image[mask == 0] = np.inf  # outside the mask nothing is looked at
    image[np.isnan(image)] = 3
    assert math.isfinite(of(mask, image)["glcm_Contrast"])


@pytest.mark.parametrize("engine", ["builtin", "pyradiomics"])
def test_a_class_that_fails_leaves_the_others(monkeypatch, engine):
    def fail(*_, **__):
        raise ValueError("planted")

    if engine == "pyradiomics":
        pytest.importorskip("radiomics")
        from MedXAILib.features import peer

        monkeypatch.setattr(peer.classes()["glcm"], "__init__", fail)
    else:
        from MedXAILib.features import texture

        monkeypatch.setitem(texture._CLASSES, "glcm", fail)
    image, mask = blob(12, (9, 9, 9))
    found = of(mask, image, engine=engine)
    assert math.isnan(found["glcm_Contrast"]) and math.isfinite(found["firstorder_Mean"])
    assert found.notes == ("failed: glcm: planted",)


def test_grey_levels_that_run_away_are_capped_not_computed():
    image, mask = blob(13, (9, 9, 9))
    names = ["firstorder_Mean", "firstorder_Entropy", "shape_Sphericity", "glcm_Contrast", "ngtdm_Busyness"]
    calm = of(mask, image, names)
    wild = of(mask, image * 1e12, names)  # without the cap: hundreds of terabytes of bins
    assert math.isnan(wild["glcm_Contrast"]) and math.isnan(wild["ngtdm_Busyness"])
    assert wild["firstorder_Mean"] == pytest.approx(calm["firstorder_Mean"] * 1e12, rel=1e-6)
    assert wild["firstorder_Entropy"] == pytest.approx(math.log2(mask.sum()))  # every voxel alone in its bin
    assert wild["shape_Sphericity"] == calm["shape_Sphericity"]
    assert len(wild.notes) == 1 and wild.notes[0].startswith("capped: ")
    assert not of(mask, image, names, max_bins=1000).notes
    assert of(mask, image, names, max_bins=10).notes
    counted = of(mask, image * 1e12, names, bin_count=32)
    assert not counted.notes and math.isfinite(counted["glcm_Contrast"])


def test_pyradiomics_is_not_asked_for_more_grey_levels_than_the_cap(radiomics):
    image, mask = blob(13, (9, 9, 9))
    wild = of(mask, image * 1e12, ["firstorder_Mean", "firstorder_Entropy", "glcm_Contrast"], engine="pyradiomics")
    assert math.isfinite(wild["firstorder_Mean"]) and wild.notes[0].startswith("capped: ")
    assert math.isnan(wild["firstorder_Entropy"]) and math.isnan(wild["glcm_Contrast"])


def test_many_grey_levels_have_the_extractors_values(radiomics):
    image, mask = blob(16, (1, 40, 40))
    for width in (30, 8):  # about 50 and 180 bins, many of them empty
        found = compute(Volume(image, np.eye(4)), Volume(mask, np.eye(4)), "glcm", bin_width=width)
        names = list(features.CLASSES["glcm"])
        assert_equal(found, extractor(image, mask, names, (1, 1, 1), flat=0, bin_width=width))


def test_the_maximal_correlation_is_pyradiomics_own_for_any_number_of_levels(radiomics):
    import torch
    from radiomics.glcm import RadiomicsGLCM

    from MedXAILib.features.texture import maximal_correlation

    class Other:
        pass

    rng = np.random.default_rng(0)
    for levels, seen, spread in ((2, 30, 1), (20, 300, 3), (49, 300, 2), (60, 9000, 5), (90, 60, 3), (80, 900, 80)):
        counts = np.zeros((levels, levels, 2))
        for angle in range(2):  # few pairs of many levels: separate groups, levels without a neighbour
            first = rng.integers(0, levels, seen)
            second = np.clip(first + rng.normal(size=seen) * spread, 0, levels - 1).astype(int)
            np.add.at(counts[..., angle], (first, second), 1)
        counts += counts.transpose(1, 0, 2)
        counts /= counts.sum((0, 1))
        other, eps = Other(), np.spacing(1)
        other.P_glcm = counts[None]
        other.coefficients = {
            "px": counts[None].sum(2, keepdims=True),
            "py": counts[None].sum(1, keepdims=True),
            "eps": eps,
        }
        expected = float(np.real(RadiomicsGLCM.getMCCFeatureValue(other))[0])
        p = torch.from_numpy(counts).permute(2, 0, 1)
        assert float(maximal_correlation(p, p.sum(2)).mean()) == pytest.approx(expected, rel=1e-8)


def test_a_flat_region_has_the_extractors_values(radiomics):
    mask = blob(14, (9, 9, 9))[1]
    image = np.full(mask.shape, 50.0)
    assert_equal(of(mask, image, ALL_3D), extractor(image, mask, ALL_3D, (1, 1, 1)))


def test_nothing_is_printed_or_logged_and_the_logger_is_put_back(radiomics, capfd, caplog):
    logger = logging.getLogger("radiomics")
    level = logger.level
    image, mask = blob(15, (9, 9, 9))
    of(mask, image, ALL_3D)  # SumAverage and others warn
    assert capfd.readouterr() == ("", "") and not caplog.records and logger.level == level


# --- line texture ---


def planted(angle, amplitude=100.0, shape=(40, 40), seed=0):
    """Faint noise with one line of 13 pixels at 0, 45, 90 or 135 degrees (counter-clockwise, rows downwards)."""
    image = np.random.default_rng(seed).normal(size=shape)
    down, right = {0: (0, 1), 45: (-1, 1), 90: (-1, 0), 135: (-1, -1)}[angle]
    for step in range(-6, 7):
        image[20 + step * down, 20 + step * right] += amplitude
    return image


@pytest.mark.parametrize("angle", [0, 45, 90, 135])
def test_a_planted_line_is_found_at_its_own_angle(angle):
    found = {a: line_texture(planted(angle), a, 9) for a in (0, 45, 90, 135)}
    assert found[angle] == pytest.approx(100 * (1 - 9 / 81), rel=0.05)
    assert all(found[a] < 0.35 * found[angle] for a in found if a != angle)
    plain = {a: line_texture(planted(angle), a, 9, kernel="plain") for a in (0, 45, 90, 135)}
    assert plain[angle] == pytest.approx(100, rel=0.03) and max(plain, key=plain.get) == angle


def test_135_degrees_falls_to_the_right_as_displayed():
    image = np.zeros((30, 30))
    np.fill_diagonal(image, 1.0)  # rows downwards: from the upper left to the lower right
    assert line_texture(image, 135) > 0.8 > 0.2 > line_texture(image, 45)


def test_brightness_alone_does_not_raise_it_and_contrast_does():
    image = planted(135)
    assert line_texture(image + 1000, 135) == pytest.approx(line_texture(image, 135))
    assert line_texture(image + 1000, 135, kernel="plain") == pytest.approx(
        line_texture(image, 135, kernel="plain") + 1000
    )
    assert line_texture(image * 2, 135) == pytest.approx(2 * line_texture(image, 135))
    smooth = np.add.outer(np.arange(40.0), 3 * np.arange(40.0))
    assert line_texture(smooth, 135) == pytest.approx(0, abs=1e-9)  # a shading is no line


def test_in_a_volume_the_strongest_slice_counts_whichever_axis_is_flat():
    image = planted(45)
    volume = np.random.default_rng(1).normal(size=(7, 40, 40))
    volume[3] = image
    assert line_texture(volume, 45) == line_texture(image, 45)
    for axis in range(3):
        assert line_texture(np.expand_dims(image, axis), 45) == line_texture(image, 45)


@pytest.mark.parametrize("angle", [0, 30, 60, 90, 120, 135, 150, 180])
def test_against_an_ordinary_convolution(angle):
    from MedXAILib.features.line import segment

    for length in (3, 8, 9):
        offsets = segment(angle, length)
        assert (
            len(set(offsets)) == length and min(min(o) for o in offsets) >= 0 and max(max(o) for o in offsets) < length
        )
        kernel = np.zeros((length, length))
        for row, column in offsets:
            kernel[row, column] = 1 / length
        image = np.random.default_rng(2).normal(size=(25, 31))
        windows = np.lib.stride_tricks.sliding_window_view(image, (length, length))
        for name, weights in (("plain", kernel), ("contrast", kernel - 1 / length**2)):
            expected = np.einsum("rcij,ij->rc", windows, weights).max()
            assert line_texture(image, angle, length, kernel=name) == pytest.approx(expected)


def test_too_small_a_slice_or_a_hole_gives_nan():
    assert math.isnan(line_texture(np.ones((8, 40)), 135, 9))
    assert math.isnan(LineTexture(np.ones((3, 8, 40)), 135, 9).update(Patch(np.ones((1, 1, 1)), (0, 0, 0))))
    image = planted(135)
    image[5, 5] = np.nan
    assert math.isnan(line_texture(image, 135))


@pytest.mark.parametrize("axis", [None, 1, 2])
def test_an_update_is_exactly_the_whole_image_measured_again(axis):
    rng = np.random.default_rng(3)
    start = (rng.normal(size=(11, 70, 85)) * 50).astype(np.float32)
    texture = LineTexture(start, 135, 9, axis=axis)
    assert texture.value == line_texture(start, 135, 9, axis=axis)
    corners = [((0, 0, 0), (2, 5, 4)), ((9, 65, 80), (2, 5, 5)), ((3, 31, 31), (6, 2, 2)), ((0, 0, 0), start.shape)]
    for number in range(60):
        if number < len(corners):
            at, size = corners[number]
        else:
            size = [int(rng.integers(1, n + 1)) for n in start.shape]
            if number % 2:  # one bright voxel: the strongest place lies before it or around it
                size = [1, 1, 1]
            at = [int(rng.integers(0, n - s + 1)) for n, s in zip(start.shape, size)]
        patch = Patch((rng.normal(size=size) * rng.choice([1, 50, 900])).astype(np.float32), tuple(at))
        whole = start.copy()
        whole[patch.box] = patch.array
        assert texture.update(patch) == line_texture(whole, 135, 9, axis=axis)


def test_an_update_can_lower_the_maximum():
    start = np.zeros((3, 80, 80))
    start[1] = np.pad(planted(135), 20)
    texture = LineTexture(start, 135)
    erased = texture.update(Patch(np.zeros((1, 40, 40)), (1, 20, 20)))
    assert texture.value > 80 and erased == 0


# --- verdicts ---

NAN = float("nan")


@pytest.mark.parametrize(
    "z, word",
    [
        ([-4, -2, 0.5], "entered"),
        ([4, 1], "entered"),
        ([-1.1, -0.9], "entered"),
        ([NAN, NAN, 5, 3, 0], "entered"),
        ([-0.9, 0.9], "entered"),
        ([0.2, 4, 1.9, -0.9], "entered"),
        ([-3, 3, 0], "entered"),
        ([-3, 0, 2], "overshot"),
        ([-3, 2], "overshot"),
        ([2, NAN, -1.5, NAN], "overshot"),
        ([-3, 3, -2.9], "overshot"),
        ([0, 1.01], "left"),
        ([0.9, -2], "left"),
        ([0, 3, -3], "left"),
        ([0.1, 0.4], "unmoved"),
        ([0, 5, 0.2], "unmoved"),
        ([-3, -2.1], "unmoved"),
        ([-3, 0, -3], "unmoved"),
        ([8, 8.9], "unmoved"),
        ([-5, -2], "approaching"),
        ([5, 0, 4], "approaching"),
        ([3, 2.0], "approaching"),
        ([-3, -4], "receding"),
        ([2, 9], "receding"),
        ([], "undefined"),
        ([NAN, NAN], "undefined"),
        ([NAN, 0.5, NAN], "undefined"),
        ([float("inf"), 4, 2], "approaching"),
    ],
)
def test_verdicts(z, word):
    assert verdict(z) == word
    assert verdict([-value for value in z]) == word  # the band is symmetric
    assert verdict(np.array(z, float)) == word
