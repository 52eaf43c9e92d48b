"""Back-projected filters in the scene: looked at one by one, combined anew, told by landmark, saved, removed, on one page."""

from __future__ import annotations

import copy
import time

import numpy as np
import pytest
import scene_examples as examples
from scene_fixtures import host, ids, needed  # noqa: F401

needed()

from MedXAILib import landmarks  # noqa: E402
from MedXAILib.errors import MedXAIError  # noqa: E402
from MedXAILib.explanation import Patch  # noqa: E402
from MedXAILib.scene import bundle, colors, filters, remove, repeat, thumbnails  # noqa: E402
from MedXAILib.scene.host import HeadlessHost  # noqa: E402
from MedXAILib.scene.nodes import of_class, run_id, voxels  # noqa: E402
from MedXAILib.scene.segments import grid_of  # noqa: E402
from MedXAILib.scene.write import Run  # noqa: E402
from MedXAILib.volume import Volume  # noqa: E402

OBLIQUE = ((10, 40, 50), None)
PLACES = {
    "slice of an oblique volume": (*OBLIQUE, 6), "oblique volume": (*OBLIQUE, None),
    "radiograph": ((1, 60, 50), examples.straight((0.2, 0.2, 1)), None), "volume": ((12, 20, 24), examples.straight(), None),
}  # fmt: skip


@pytest.fixture(params=PLACES)
def desk(request, host):  # noqa: F811
    shape, matrix, at = PLACES[request.param]

    class Desk:
        volume = examples.volume(shape, matrix)
        scene = host.scene
        node = bundle.add_input(host.scene, volume)
        segments = examples.landmark_masks(volume)
        explanation = examples.back_projection(volume, at, segments=segments, combine="activation")
        box = (slice(None),) * 3 if at is None else (slice(at, at + 1), slice(None), slice(None))

        @staticmethod
        def finish(explanation=explanation):
            run = Run(host, Desk.node, "Back-projection")
            run.finish(explanation)
            return run, filters.Filters(host.scene, run.id)

    remove.watch(host.scene)
    Desk.before = ids(host.scene)
    return Desk


def shown(scene) -> set:
    found = {node.GetForegroundVolumeID() for node in of_class(scene, "vtkMRMLSliceCompositeNode")}
    return {scene.GetNodeByID(one).GetName() if one else None for one in found}


def items_of(explanation):
    return [item.array for _, item in explanation.sequences["filters"].items]


def test_heat_first_then_each_filter_on_its_own_grid(desk):
    _, found = desk.finish()
    assert shown(desk.scene) == {"Heat"} and found.shown == 0
    nodes = ids(desk.scene)
    for rank, item in desk.explanation.sequences["filters"].items:
        number = desk.explanation.tables["filters"].columns["filter"][rank - 1]
        assert found.show(rank).startswith(f"filter {number} (rank {rank}, score ")
        proxy = found._proxy()
        assert shown(desk.scene) == {proxy.GetName()} and found.shown == rank
        assert np.array_equal(voxels(proxy.GetImageData()), item.array)
        np.testing.assert_allclose(grid_of(proxy), item.ijk_to_ras, atol=1e-9)
        display = proxy.GetDisplayNode()
        assert display.GetColorNode().GetSingletonTag() == "MedXAIsigned"
        magnitude = np.abs(item.array[item.array != 0])
        reach = float(np.percentile(magnitude, 99.5)) if magnitude.size else 1
        assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == pytest.approx((-reach, reach), rel=0.02)
    assert ids(desk.scene) == nodes
    assert found.show() == "heat of 9 filters" and shown(desk.scene) == {"Heat"}
    with pytest.raises(MedXAIError, match="rank 99 is not in the scene"):
        found.show(99)


def test_heat_of_n_filters_is_that_of_the_method(desk):
    run, found = desk.finish()
    node, items, scores = (
        run.nodes["heat"],
        items_of(desk.explanation),
        desk.explanation.tables["filters"].columns["score"],
    )
    np.testing.assert_allclose(grid_of(node), desk.volume.ijk_to_ras, atol=1e-9)
    assert np.array_equal(voxels(node.GetImageData()), desk.explanation.maps["heat"].volume.array)
    memory = node.GetImageData()
    for n in (9, 1, 2, 5, 6, 4, 3, 9, 8, 1, 7):
        found.heat(n)
        expected = np.zeros(desk.volume.shape, np.float32)
        expected[desk.box] = landmarks.heat(items[:n], landmarks.weights(scores[:n], "activation"))
        np.testing.assert_allclose(voxels(node.GetImageData()), expected, rtol=1e-5, atol=1e-6)
        assert node.GetImageData() is memory and found.used == n
        assert filters.Filters(desk.scene, run.id).used == n  # the panel that is opened next
    found.heat(0)
    found.heat(10)
    assert found.used == 7


@pytest.mark.parametrize("scores", [[0.0] * 9, [3, 2, 1, 0, 0, 0, 0, 0, 0], [-1.0] * 9])
def test_scores_that_weigh_nothing(desk, scores):
    desk.explanation.tables["filters"].columns["score"] = scores
    _, found = desk.finish()
    for n in (1, 9, 4):
        expected = landmarks.heat(items_of(desk.explanation)[:n], landmarks.weights(scores[:n], "activation"))
        np.testing.assert_allclose(found.combined(n), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", [True, False])
def test_landmarks_of_n_filters_are_those_of_the_method(desk, given):
    segments = desk.segments if given else []
    explanation = examples.back_projection(
        desk.volume, None if desk.box[0] == slice(None) else desk.box[0].start, segments=segments, combine="activation"
    )
    _, found = desk.finish(explanation)
    for n in (9, 5, 1):
        again = examples.back_projection(
            desk.volume, None if desk.box[0] == slice(None) else desk.box[0].start, n, segments, "activation"
        )
        told, expected = found.landmarks(n).columns, again.tables["landmarks"].columns
        assert list(told) == list(expected) and told["landmark"] == expected["landmark"]
        assert (
            told["voxels"] == expected["voxels"]
            and told["filters"] == expected["filters"]
            and told["of"] == expected["of"]
        )
        for name in ("area_share", "heat_share", "low", "high", "ratio"):
            np.testing.assert_allclose(told[name], expected[name], rtol=1e-6, atol=1e-9)
    assert ("elsewhere" in told["landmark"]) == given


def test_without_the_shares_of_the_filters_there_is_no_new_table(desk):
    explanation = copy.deepcopy(desk.explanation)
    del explanation.tables["shares"]
    _, found = desk.finish(explanation)
    assert found.landmarks(3) is None
    found.heat(3)
    assert found.used == 3


def test_live_heat_and_a_cancel_that_leaves_nothing(desk):
    run = Run(HostOf(desk), desk.node, "Back-projection")
    half = desk.explanation.maps["heat"].volume
    run.preview("heat", half.with_array(half.array / 2))
    assert shown(desk.scene) == {"heat"}
    box = half.array[desk.box]
    run.preview("heat", Patch(box, tuple(s.start or 0 for s in desk.box)))
    node = run.nodes["heat"]
    assert np.array_equal(voxels(node.GetImageData())[desk.box], box)
    assert node.GetDisplayNode().GetApplyThreshold() and node.GetDisplayNode().GetLowerThreshold() > 0
    run.discard()
    assert ids(desk.scene) == desk.before and shown(desk.scene) == {None}


class HostOf:
    """Any host's scene; nothing of a logic is asked for before the end."""

    def __init__(self, desk):
        self.scene = desk.scene


@pytest.mark.parametrize("how", ["folder", "one by one"])
def test_removal_leaves_nothing(desk, how):
    run, found = desk.finish()
    found.show(3)
    if how == "folder":
        remove.remove(desk.scene, run.folder)
    else:
        for node in remove.of_run(desk.scene, run.id):
            if desk.scene.IsNodePresent(node):
                desk.scene.RemoveNode(node)
        remove.hierarchy(desk.scene).RemoveItem(run.folder)
    assert ids(desk.scene) == desk.before and shown(desk.scene) == {None}


def test_a_saved_scene_answers_as_before(tmp_path):
    volume = examples.volume((10, 40, 50))
    segments = examples.landmark_masks(volume)
    segments.append(Volume(segments[0].array, segments[0].ijk_to_ras, "right lung"))  # two of one name
    explanation = examples.back_projection(volume, 4, segments=segments[:3])
    bundle.save_scene(explanation, [volume], segments, tmp_path / "scene.mrb")
    again = HeadlessHost()
    try:
        again.open(tmp_path / "scene.mrb")
        scene = again.scene
        kept = next(node for node in of_class(scene, "vtkMRMLSegmentationNode"))
        names = [kept.GetSegmentation().GetNthSegment(n).GetName() for n in range(4)]
        assert (kept.GetName(), names) == ("Landmarks", ["right lung", "left lung", "heart", "right lung"])
        heat = next(n for n in of_class(scene, "vtkMRMLScalarVolumeNode") if n.GetName() == "Heat")
        assert shown(scene) == {"Heat"}
        found = filters.Filters(scene, run_id(scene, heat))
        assert len(found) == 9
        for rank in (2, 9):
            found.show(rank)
            assert np.array_equal(voxels(found._proxy().GetImageData()), items_of(explanation)[rank - 1])
        found.heat(4)
        expected = landmarks.heat(items_of(explanation)[:4], np.full(4, 0.25))
        np.testing.assert_allclose(voxels(heat.GetImageData())[4:5], expected, rtol=1e-5, atol=1e-6)
        assert not voxels(heat.GetImageData())[[3, 5]].any()
        table = found.landmarks(9).columns
        np.testing.assert_allclose(
            table["heat_share"], explanation.tables["landmarks"].columns["heat_share"], rtol=1e-4
        )
        known = repeat.provenance(scene, heat)
        assert known["settings"] == explanation.provenance["settings"] and known["segment"] == ""
        assert known["segmentation"] is kept and [n.GetName() for n in known["inputs"]] == [volume.name]
        remove.remove(scene, heat)
        assert not remove.of_run(scene, found.run) and kept.GetScene() is scene
    finally:
        again.close()


# -- small pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("axes, plane", [((0, 1, 2), "axial"), ((0, 2, 1), "coronal"), ((1, 2, 0), "sagittal")])
def test_thumbnails_lie_as_slicer_shows_them(host, flip, axes, plane):  # noqa: F811
    """However the voxels are stored, a spot in the patient is where Slicer's own slice view has it."""
    from MedXAILib.scene.views import SliceView

    matrix = np.eye(4)
    matrix[:3, :3] = 0
    for column, (axis, sign) in enumerate(zip(axes, flip)):
        matrix[axis, column] = sign * (2.0 if column == 1 else 1.0)
    array = np.zeros((1, 20, 40), np.float32)
    array[0, 4:7, 28:32] = 5
    item = Volume(array, matrix, "spot")
    small = thumbnails.picture(item, None, (0, 1), 80)
    view = SliceView(host, 80)
    view.look(plane, bundle.add_input(host.scene, item, (0, 5)), item.index_to_ras([0, 9.5, 19.5]), 40, True)
    big = view.picture()
    view.close()
    places = [np.argwhere(picture.max(-1) > 100).mean(0) for picture in (small, big)]
    assert places[0] == pytest.approx(places[1], abs=1.5)
    assert small.shape == (80, 80, 3) and small.dtype == np.uint8


def test_thumbnail_has_the_input_below_and_nothing_where_nothing_came_back():
    array = np.zeros((3, 30, 30), np.float32)
    array[1, 10:14, 10:14] = -7
    item = Volume(array, examples.straight(), "f")
    grey = np.full(array.shape, 50, np.int16)
    grey[1] = 75
    picture = thumbnails.picture(item, grey, (0, 100), 60)
    assert (picture[0, 0] == 191).all()  # the slice that holds most of it
    assert picture[24, 24].tolist() != [191] * 3 and np.ptp(picture[24, 24]) > 20
    assert (thumbnails.picture(item.with_array(array * 0), grey, (0, 100), 60) == 127).all()
    assert thumbnails.ppm(picture).startswith(b"P6\n60 60\n255\n") and len(thumbnails.ppm(picture)) == 13 + 60 * 60 * 3


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_page(tmp_path, place):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from MedXAILib.scene.report import report

    shape, matrix, at = PLACES[place]
    volume = examples.volume(shape, matrix)
    segments = examples.landmark_masks(volume)
    explanation = examples.back_projection(volume, at, 25, segments)
    report(explanation, [volume], tmp_path / "report.png", segments)
    page = imread(tmp_path / "report.png")[..., :3]
    outline = np.abs(page - colors.DISTINCT[1]).max(-1) < 0.1  # of the second landmark, and its sign in the table
    assert outline[150:1300, :700].sum() > 30 and outline[:, 1500:].sum() > 30
    bars = np.abs(page - (0xE0 / 255, 0x8A / 255, 0x2E / 255)).max(-1) < 0.05
    assert bars[:, 1500:].sum() > 300
    hot = (page[..., 0] > 0.9) & (page[..., 2] < 0.75) & (page[..., 1] > 0.3)
    assert hot[200:1300, 700:1500].sum() > 2000  # the filters


# -- time --------------------------------------------------------------------------------------------------------------


def test_moving_the_slider_is_quick(host):  # noqa: F811
    random = np.random.default_rng(0)
    volume = Volume(random.normal(0, 1, (128,) * 3).astype(np.float32), np.eye(4), "128")
    segments = examples.landmark_masks(volume)
    explanation = examples.back_projection(volume, None, 25, segments)
    run = Run(host, bundle.add_input(host.scene, volume), "time")
    began = time.perf_counter()
    run.finish(explanation)
    finished = time.perf_counter() - began
    found = filters.Filters(host.scene, run.id)
    spent = {"heat": [], "table": [], "jump": [], "filter": [], "thumbnail": []}

    def measured(name, call, *given):
        began = time.thread_time()
        call(*given)
        spent[name].append(1000 * (time.thread_time() - began))

    found.heat(25)
    for n in (*range(24, 14, -1), *range(15, 25)):
        measured("heat", found.heat, n)
        measured("table", found.landmarks, n)
    for n in (1, 25, 12, 25):
        measured("jump", found.heat, n)
    for rank in (3, 9, 12):
        measured("filter", found.show, rank)
        measured("thumbnail", found.thumbnail, rank)
    print(f"finish {1000 * finished:.0f} ms;", {name: f"{np.median(values):.1f} (at most {max(values):.1f}) ms" for name, values in spent.items()})  # fmt: skip
    assert np.median(spent["heat"]) < 60 and np.median(spent["table"]) < 60 and np.median(spent["filter"]) < 120


# -- what the method itself gives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_the_method_and_the_scene_agree(host, dims):  # noqa: F811
    """A network's filters, live and finished; landmarks of one name, and one that the slice does not meet."""
    pytest.importorskip("torch")
    from classifiers import classifier, stack

    from MedXAILib.explanation import run as driven
    from MedXAILib.methods import explain
    from MedXAILib.settings import BackprojectSettings

    volume = examples.volume((12, 24, 32))
    segments = examples.landmark_masks(volume)
    above = np.zeros(volume.shape, np.uint8)
    above[9:] = 1
    segments += [volume.with_array(segments[0].array, "left lung", ""), volume.with_array(above, "above", "")]
    settings = BackprojectSettings(filters=5, combine="activation", slice="k:4" if dims == 2 else "", batch=2)
    made = Run(host, bundle.add_input(host.scene, volume), "real")
    seen = []

    def each(step):
        for name, data in (step.previews() if step.previews else {}).items():
            made.preview(name, data)
            seen.append(voxels(made.nodes["heat"].GetImageData()).copy())

    explanation = driven(
        explain("backproject", classifier(stack(dims, (4, 8)), dims), [volume], settings, segments), each
    )
    assert len(seen) > 1
    np.testing.assert_allclose(seen[-1], explanation.maps["heat"].volume.array, rtol=1e-5)
    made.finish(explanation)
    found = filters.Filters(host.scene, made.id)
    assert len(found) == found.used == 5
    node, told = made.nodes["heat"], explanation.tables["landmarks"].columns
    assert told["landmark"][3:] == ["left lung (2)", "above", "elsewhere"]
    for n in (2, 5):
        found.heat(n)
        table = found.landmarks(n).columns
        assert table["landmark"] == told["landmark"] and table["voxels"] == told["voxels"]
    np.testing.assert_allclose(voxels(node.GetImageData()), explanation.maps["heat"].volume.array, rtol=1e-5, atol=1e-6)
    for name in ("heat_share", "low", "high", "ratio", "filters"):
        np.testing.assert_allclose(table[name], told[name], rtol=1e-6, atol=1e-9)
    for rank in (1, 5):
        found.show(rank)
        assert np.array_equal(voxels(found._proxy().GetImageData()), items_of(explanation)[rank - 1])
        assert found.thumbnail(rank).shape == (96, 96, 3)
    remove.remove(host.scene, made.folder)
    assert not remove.of_run(host.scene, made.id)
