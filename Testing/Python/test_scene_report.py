"""The report's slice views show things where they are; the page holds what it must."""

from __future__ import annotations

import numpy as np
import pytest
import scene_examples as examples
from scene_fixtures import host, needed  # noqa: F401

needed()
pytest.importorskip("matplotlib")

from MedXAILib.errors import MedXAIError  # noqa: E402
from MedXAILib.explanation import Explanation, Layer  # noqa: E402
from MedXAILib.scene import bundle, colors, views  # noqa: E402
from MedXAILib.scene.report import _mask_node, _nowhere, report  # noqa: E402
from MedXAILib.volume import Volume  # noqa: E402


def centre(picture):
    weight = np.clip(picture.astype(float).max(-1) - 60, 0, None)
    assert weight.sum() > 0
    rows, columns = np.indices(weight.shape)
    return (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()


@pytest.mark.parametrize("shape", [(25, 61, 71), (1, 61, 71)], ids=["oblique", "single slice"])
def test_input_overlay_mask_and_marker_coincide(host, shape):  # noqa: F811
    """One bright block in the input, the same block as a map, as a mask and as the marker: one place on the screen."""
    at = (shape[0] // 2, 24, 47)
    block = np.zeros(shape, np.float32)
    block[max(0, at[0] - 1) : at[0] + 2, at[1] - 2 : at[1] + 3, at[2] - 2 : at[2] + 3] = 100
    volume = Volume(block, examples.oblique(), "phantom")
    explanation = Explanation("heat", "Phantom")
    explanation.maps["heat"] = Layer(volume.with_array(block, "heat"), "positive", "Heat", 0, 100)
    explanation.maps["signed"] = Layer(volume.with_array(-block, "signed"), "signed", "Signed", -100, 100)
    explanation.masks["mask"] = volume.with_array((block > 0).astype(np.uint8), "mask", "")
    run = bundle.build(host, explanation, [volume])
    black = volume.with_array(block * 0, "black")
    empty = bundle.add_input(host.scene, black, (0, 100))
    mask = _mask_node(host.scene, explanation.masks["mask"])
    point = volume.index_to_ras(at)
    view = views.SliceView(host, 400)
    planes = ["axial"] if shape[0] == 1 else ["axial", "coronal", "sagittal"]
    for plane in planes:
        view.look(plane, run.inputs[0], tuple(np.array(point) + 0.0), 40, True)
        marker = view.pixel(point)
        found = {}
        view.show(run.inputs[0])
        found["input"] = centre(view.picture())
        for name in ("heat", "signed"):
            view.show(empty, run.nodes[name])
            picture = view.picture()
            found[name] = centre(picture)
            assert (picture.reshape(-1, 3).max(1) < 5).mean() > 0.5  # nothing is transparent
        view.show(mask)
        found["mask"] = centre(view.picture())
        for name, place in found.items():
            assert place == pytest.approx(marker, abs=0.8), (plane, name, found)  # a voxel is 8 pixels and more
    view.close()


def test_letters_follow_the_patient(host):  # noqa: F811
    volume = examples.volume((20, 20, 20), examples.straight())
    node = bundle.add_input(host.scene, volume)
    view = views.SliceView(host, 100)
    expected = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
    for plane, letters in expected.items():
        view.look(plane, node, volume.index_to_ras((10, 10, 10)), 30, False)
        found = view.letters()
        assert found["left"] + found["right"] + found["top"] + found["bottom"] == letters
        right = np.array(volume.index_to_ras((10, 10, 10))) + {"R": (5, 0, 0), "A": (0, 5, 0)}[found["left"]]
        assert view.pixel(right)[0] < view.pixel(volume.index_to_ras((10, 10, 10)))[0]  # radiological: R is on the left
    view.close()


def picture(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


def test_report_of_a_volume(tmp_path):
    volume = examples.volume()
    report(examples.dream(volume, features=6), [volume], tmp_path / "report.png")
    page = picture(tmp_path / "report.png")
    assert page.shape == (1430, 2340, 3)
    left, right = page[200:1300, :1140], page[200:1300, 1240:]
    dark = (left.max(-1) < 0.1).mean()
    assert 0.2 < dark < 0.9 and (right.min(-1) > 0.9).mean() > 0.7
    yellow = (left[..., 0] > 0.9) & (left[..., 1] > 0.6) & (left[..., 2] < 0.4)
    assert yellow.sum() > 50  # outline (and the warm end of the change)
    blue = (left[..., 2] > 0.6) & (left[..., 0] < 0.4)
    assert blue.sum() > 1000  # what the dream lowers


def test_report_of_other_shapes(tmp_path):
    """A slice without a reference, a map without image or curves, a single point, a constant and an undefined curve."""
    volume = examples.volume((1, 50, 64), examples.straight(), "picture", "")
    explanation = examples.dream(volume)
    explanation.curves.pop("normalized")
    for column in explanation.curves["curves"].columns.values():
        column[1:] = column[1:] * 0 + np.nan if column is explanation.curves["curves"].columns["glcm_Contrast" if "glcm_Contrast" in explanation.curves["curves"].columns else "line_texture"] else column[1:]  # fmt: skip
    explanation.notes += [
        f"A long sentence number {n} that says what was left out and why it was left out." for n in range(40)
    ]
    report(explanation, [volume], tmp_path / "slice.png")
    bare = Explanation("heat", "Back-projection")
    bare.maps["heat"] = Layer(volume.with_array(np.abs(volume.array), "heat"), "positive")
    report(bare, [volume], tmp_path / "heat.png")
    nothing = Explanation("none", "Nothing")
    report(nothing, [examples.volume((9, 12, 14))], tmp_path / "nothing.png")
    for name in ("slice", "heat", "nothing"):
        assert (picture(tmp_path / f"{name}.png").max(-1) < 0.2).sum() > 5000


def test_report_that_cannot_be_written(tmp_path):
    volume = examples.volume((1, 20, 20))
    with pytest.raises(MedXAIError, match="could not be written") as told:
        report(examples.dream(volume), [volume], tmp_path / "nowhere" / "report.png")
    assert told.value.kind == "disk"


def lightness(rgb):
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, y * (29 / 3) ** 3)


def test_colours_are_even():
    steps = np.diff(lightness(colors.positive()[:, :3]))
    assert (steps > 0).all() and steps.max() < 1.25 * steps.mean()
    table = colors.signed()
    assert len(table) % 2 == 1
    half = len(table) // 2
    for side in (table[half:, :3], table[half::-1, :3]):
        steps = np.diff(lightness(side))
        assert (steps > 0).all() and steps.max() < 1.25 * steps.mean()
    np.testing.assert_allclose(
        lightness(table[:half, :3]), lightness(table[:half:-1, :3]), atol=0.7
    )  # both signs weigh the same
    hidden = np.abs(np.linspace(-1, 1, len(table))) <= colors.NOTHING
    assert np.array_equal(table[:, 3] == 0, hidden)
    assert (table[: half - 40, 2] > table[: half - 40, 0]).all() and (
        table[half + 40 :, 0] > table[half + 40 :, 2]
    ).all()


def test_the_planes_that_say_something():
    """A 2-D network changes one slice of a volume: the other two planes would show a line."""
    from MedXAILib.scene.report import _planes

    volume = examples.volume((9, 20, 24))
    change = np.zeros(volume.shape, np.float32)
    explanation = Explanation("dream", "Dream")
    explanation.maps["change"] = Layer(volume.with_array(change, "change"), "signed")
    assert len(_planes(explanation, volume)) == 3
    change[4, 5:15, 6:12] = 1
    assert _planes(explanation, volume) == ["axial"]
    change[3, 6, 6] = 1
    assert len(_planes(explanation, volume)) == 3
    change[:] = 0
    change[2:7, 5, 6:12] = 1
    assert _planes(explanation, volume) == ["coronal"]
    turned = examples.straight()[:, [2, 1, 0, 3]]  # i along S, k along R
    standing = Volume(np.zeros((1, 20, 24), np.float32), turned, "standing")
    assert _planes(Explanation("none", "None"), standing) == ["sagittal"]


def test_a_few_outliers_do_not_darken_the_rest():
    from MedXAILib.scene.layers import limits

    volume = examples.volume((20, 30, 30))
    array = np.zeros(volume.shape, np.float32)
    array[5:15, 5:25, 5:25] = np.random.default_rng(0).normal(0, 10, (10, 20, 20))
    array[10, 10, 10] = 5000
    low, high = limits(Layer(volume.with_array(array, "change"), "signed"))
    assert low == -high and 20 < high < 40
    assert limits(Layer(volume.with_array(array, "change"), "signed", "", -7.0, 7.0)) == (-7, 7)
    assert limits(Layer(volume.with_array(array * 0, "change"), "signed")) == (-1, 1)


def test_a_ct_is_shown_in_the_window_of_the_tissue_around_the_neuron():
    from MedXAILib.scene.layers import window_of

    volume = examples.volume((20, 60, 70), examples.straight((3.0, 3.0, 3.0)))  # liver 100 ± 12, body 40, air -1000
    changed = volume.array.copy()
    changed[10, 30, 25] -= 60
    explanation = Explanation("dream", "Dream")
    explanation.maps["dream"] = Layer(volume.with_array(changed, "dream"))
    explanation.maps["change"] = Layer(volume.with_array(np.ones_like(changed), "change"), "signed")  # everywhere
    assert window_of(explanation, volume)[0] < -900
    explanation.provenance["neuron_ras"] = volume.index_to_ras((10, 30, 25))
    low, high = window_of(explanation, volume)
    assert 0 < low < 40 and 100 < high < 180 and high - low >= 100
    explanation.provenance["neuron_ras"] = volume.index_to_ras((10, 0, 0))  # in the air: air is what is shown
    assert window_of(explanation, volume)[0] < -900
    picture = Volume(np.abs(volume.array), volume.ijk_to_ras, "MR")
    assert window_of(explanation, picture)[1] > 900


def test_a_picture_without_a_place_has_no_letters_and_no_scale(tmp_path):
    """R, A and millimetres of a PNG would be made up; those of a slice that lies somewhere are told."""
    array = np.zeros((1, 40, 40), np.float32)
    told = []
    for name, matrix in (("png", examples.straight()), ("slice", examples.straight((1, 1, 1), (0, 0, 5)))):
        volume = Volume(array, matrix, name)
        explanation = Explanation("heat", "Dark")
        explanation.maps["heat"] = Layer(volume.with_array(array), "positive", "Heat", 0, 1)
        report(explanation, [volume], tmp_path / f"{name}.png")
        page = picture(tmp_path / f"{name}.png")[200:1200, :1100]
        dark = page[np.flatnonzero((page.max(-1) < 0.1).mean(1) > 0.5)]
        told.append(int((dark.min(-1) > 0.9).sum()))
        assert _nowhere(volume) == (name == "png")
    assert not _nowhere(Volume(np.zeros((2, 4, 4), np.float32), examples.straight(), "volume"))
    assert told[1] > told[0] + 200
