"""Segmentation ability in the scene: maps that are looked up, live, saved, removed; charts by group; the page."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scene_examples as examples
from scene_fixtures import host, ids, needed  # noqa: F401

needed()
pytest.importorskip("torch")

from test_ability import MATRIX, ability, separators, study  # noqa: E402

from MedXAILib.errors import MedXAIError  # noqa: E402
from MedXAILib.explanation import Explanation, Sequence, Table, run  # noqa: E402
from MedXAILib.scene import bundle, charts, colors, layers, pick, read, remove, repeat  # noqa: E402
from MedXAILib.scene.host import HeadlessHost  # noqa: E402
from MedXAILib.scene.judge import judgement  # noqa: E402
from MedXAILib.scene.nodes import BROWSE, name_of, of_class, run_id  # noqa: E402
from MedXAILib.scene.write import Run  # noqa: E402
from MedXAILib.settings import AbilitySettings  # noqa: E402
from MedXAILib.volume import Volume  # noqa: E402

SETTINGS = AbilitySettings(units=("last-1",), noise_levels=(0.3, 1.0), noise_draws=1)
PICKED = [("layers", 0), ("layers", 2), ("units", 3), ("noise-0.3", 1), ("noise-1", 2)]
TITLES = ["input image", "2 features.3", "unit 2 of features.3", "1 features.0, noise 0.3", "2 features.3, noise 1"]


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Volumes, annotation, the steps' previews and points, and the explanation of a planted network."""
    volumes, annotation = study(3)
    model = separators(tmp_path_factory.mktemp("net") / "net", 3)
    seen = []

    def each(step):
        seen.append((step.points, step.previews() if step.previews else {}))

    found = run(ability(model, volumes, SETTINGS, annotation), each)
    return volumes, annotation, seen, found


@pytest.fixture
def desk(host, steps):  # noqa: F811
    class Desk:
        volumes, annotation, seen, explanation = steps
        scene = host.scene
        nodes = tuple(bundle.add_input(host.scene, volume) for volume in volumes)
        other = bundle.add_input(host.scene, examples.volume((8, 8, 8), name="other"))
        before = None

        @staticmethod
        def start():
            return Run(host, Desk.nodes, "Ability")

    layers.show(host.scene, Desk.other, Desk.other, 0.3)
    remove.watch(host.scene)
    Desk.before = ids(host.scene)
    return Desk


def views(scene):
    return [
        (n.GetBackgroundVolumeID(), n.GetForegroundVolumeID(), n.GetLabelVolumeID())
        for n in of_class(scene, "vtkMRMLSliceCompositeNode")
    ]


def test_live_map_and_curve_and_a_cancel_that_leaves_nothing(desk):
    was = views(desk.scene)
    one = desk.start()
    for points, previews in desk.seen:
        one.points(points)
        for name, image in previews.items():
            one.preview(name, image)
    shown = one.masks.GetDisplayNode()
    assert shown.GetOpacity2DFill() == 1 and shown.GetSegmentOpacity2DFill("map") == pick.FILL
    last = dict(desk.explanation.sequences["layers"].items)[2].array
    assert np.array_equal(read.segment(one.masks, "map", desk.nodes[0]).array, last)
    chart = one.curves["transition"]["chart"]
    assert (chart.GetXAxisTitle(), chart.GetYAxisTitle()) == ("Layer (0: input image)", "SA score (Dice)")
    assert chart.GetYAxisRange() == pytest.approx((-0.02, 1.02))
    assert all(view == (desk.nodes[0].GetID(), desk.other.GetID(), None) for view in views(desk.scene))
    one.discard()
    assert ids(desk.scene) == desk.before and views(desk.scene) == was


def test_every_map_is_shown_at_once_and_named(desk):
    one = desk.start()
    one.finish(desk.explanation)
    segmentation = one.masks.GetSegmentation()
    assert pick.shown(desk.scene, one.id) == ("layers", 2) and segmentation.GetSegmentIDs() == ("output", "map")
    assert segmentation.GetSegment("map").GetColor() == colors.MASK
    assert segmentation.GetSegment("output").GetColor() == colors.OUTPUT
    assert one.masks.GetDisplayNode().GetSegmentOpacity2DFill("output") == 0
    nodes = ids(desk.scene)
    for (sequence, number), title in zip(PICKED, TITLES):
        assert pick.show(desk.scene, one.id, sequence, number) == title == segmentation.GetSegment("map").GetName()
        mask = dict(desk.explanation.sequences[sequence].items)[number].array
        assert np.array_equal(read.segment(one.masks, "map", desk.nodes[0]).array, mask)
        assert pick.shown(desk.scene, one.id) == (sequence, number)
    output = desk.explanation.masks["output"].array
    assert np.array_equal(read.segment(one.masks, "output", desk.nodes[0]).array, output)
    assert ids(desk.scene) == nodes
    assert pick.numbers(desk.scene, one.id, "units") == [1, 2, 3, 4] and pick.levels(desk.scene, one.id) == [0.3, 1]
    for bad in (("units", 99), ("nothing", 1)):
        with pytest.raises(MedXAIError, match="was not kept"):
            pick.show(desk.scene, one.id, *bad)
    segmentation.RemoveSegment("map")  # somebody deletes it: the next map makes it anew
    pick.show(desk.scene, one.id, "layers", 1)
    assert one.masks.GetDisplayNode().GetSegmentOpacity2DFill("map") == pick.FILL


def test_the_views_show_the_input_and_plain_slicer_can_browse(desk):
    first = desk.start()
    first.finish(examples.dream(read.volume(desk.nodes[0])))
    assert all(view[1] for view in views(desk.scene))
    one = desk.start()
    one.finish(desk.explanation)
    assert views(desk.scene) == [(desk.nodes[0].GetID(), None, None)] * 3  # the dream no longer hides the input
    browsers = [n for n in of_class(desk.scene, "vtkMRMLSequenceBrowserNode") if run_id(desk.scene, n) == one.id]
    assert [name_of(desk.scene, n) for n in browsers] == list(desk.explanation.sequences)[::-1]  # the layers come last
    proxies = [n for n in remove.of_run(desk.scene, one.id) if BROWSE in name_of(desk.scene, n)]
    assert len(proxies) == len(browsers)
    remove.remove(desk.scene, one.folder)
    assert all(view[1] for view in views(desk.scene))


def test_the_output_is_an_outline_after_a_live_run_too(desk):
    one = desk.start()
    for _, previews in desk.seen:
        for name, image in previews.items():
            one.preview(name, image)
    one.finish(desk.explanation)
    shown = one.masks.GetDisplayNode()
    assert [shown.GetSegmentOpacity2DFill(name) for name in ("map", "output")] == [pick.FILL, 0]
    assert one.masks.GetSegmentation().GetSegment("output").GetColor() == colors.OUTPUT


@pytest.mark.parametrize("how", ["folder", "segmentation", "one by one"])
def test_removal_leaves_nothing(desk, how):
    was = [view[1:] for view in views(desk.scene)]
    one = desk.start()
    one.finish(desk.explanation)
    if how == "one by one":
        for node in remove.of_run(desk.scene, one.id):
            if desk.scene.IsNodePresent(node):
                desk.scene.RemoveNode(node)
        remove.hierarchy(desk.scene).RemoveItem(one.folder)
    else:
        remove.remove(desk.scene, one.folder if how == "folder" else one.masks)
    assert ids(desk.scene) == desk.before and [view[1:] for view in views(desk.scene)] == was


def test_a_saved_scene_is_looked_through_as_before(tmp_path, steps):
    volumes, annotation, _, explanation = steps
    bundle.save_scene(explanation, volumes, [annotation], tmp_path / "scene.mrb")
    again = HeadlessHost()
    try:
        again.open(tmp_path / "scene.mrb")
        scene = again.scene
        masks = next(n for n in of_class(scene, "vtkMRMLSegmentationNode") if run_id(scene, n))
        run_ = run_id(scene, masks)
        volume = next(n for n in of_class(scene, "vtkMRMLScalarVolumeNode") if n.GetName() == volumes[0].name)
        assert pick.shown(scene, run_) == ("layers", 2) and pick.levels(scene, run_) == [0.3, 1]
        for (sequence, number), title in zip(PICKED, TITLES):
            assert pick.show(scene, run_, sequence, number) == title
            mask = dict(explanation.sequences[sequence].items)[number].array
            assert np.array_equal(read.segment(masks, "map", volume).array, mask)
        assert masks.GetDisplayNode().GetSegmentOpacity2DFill("map") == pick.FILL
        known = repeat.provenance(scene, masks)
        assert known["method"] == "ability" and known["settings"]["noise_levels"] == [0.3, 1.0]
        assert [n.GetName() for n in known["inputs"]] == [v.name for v in volumes]
        remove.remove(scene, masks)
        assert not remove.of_run(scene, run_)
    finally:
        again.close()


def test_groups_have_a_colour_each_and_the_scale_is_fixed(desk):
    one = desk.start()
    one.finish(desk.explanation)
    series = {name: {s.GetYColumnName(): s for s in made["series"]} for name, made in one.curves.items()}
    assert set(series["transition"]) == {"SA score", "input", "early", "late"}
    assert set(series["ranking"]) == {"SA score", "active", "inert"}
    dots = series["transition"]["early"]
    assert dots.GetLineStyle() == dots.LineStyleNone and dots.GetMarkerStyle() == dots.MarkerStyleCircle
    assert len({s.GetColor() for s in series["transition"].values()}) == 4
    for name in ("transition", "ranking"):
        assert one.curves[name]["chart"].GetYAxisRange() == pytest.approx((-0.02, 1.02))
    column = one.curves["transition"]["table"].GetTable().GetColumnByName("early")
    values = desk.explanation.tables["layers"].columns["dice"]
    assert [column.GetValue(n) for n in range(3)] == pytest.approx([np.nan, values[1], np.nan], nan_ok=True)
    view = desk.scene.GetFirstNodeByClass("vtkMRMLPlotViewNode")
    assert view.GetPlotChartNode() is one.curves["transition"]["chart"]
    plain = desk.explanation.curves["noise-effect"]
    assert charts.grouped(desk.explanation, "noise-effect") is plain


@pytest.mark.parametrize(
    "mean_sa, accept, state, words",
    [
        (0.62, 0.5, "green", "μ = 0.62: passes (from 0.50)"),
        (0.5, 0.5, "green", "μ = 0.50: passes (from 0.50)"),
        (0.4996, 0.5, "amber", "μ = 0.4996: just below, look at this output (from 0.5000)"),
        (0.4, 0.5, "amber", "μ = 0.40: just below, look at this output (from 0.50)"),
        (0.39, 0.5, "red", "μ = 0.39: fails, look at this output (from 0.50)"),
        (float("nan"), 0.5, "", "No units were mapped, so there is no mean SA score μ."),
        (None, 0.5, "", "No units were mapped, so there is no mean SA score μ."),
    ],
)
def test_traffic_light_in_words(mean_sa, accept, state, words):
    assert judgement(mean_sa, accept) == (state, words)


def test_without_units_and_without_annotation(host, tmp_path):  # noqa: F811
    volumes, _ = study(2)
    found = run(ability(separators(tmp_path / "net", 2), volumes, AbilitySettings(units=("none",))))
    made = bundle.build(host, found, volumes)
    assert pick.levels(host.scene, made.id) == [] and pick.numbers(host.scene, made.id, "units") == []
    assert pick.show(host.scene, made.id, "layers", 0) == "input image"


@pytest.mark.parametrize("ndim", [2, 3])
def test_page(tmp_path, steps, ndim):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from MedXAILib.scene.report import report

    volumes, annotation, _, found = steps
    if ndim == 2:
        volumes, annotation = study(2)
        found = run(ability(separators(tmp_path / "net", 2), volumes, SETTINGS, annotation))
    report(found, volumes, tmp_path / "report.png", [annotation])
    page = imread(tmp_path / "report.png")[150:1300, :1100, :3]
    amber = np.abs(page - colors.MASK).max(-1) < 0.15
    green = np.abs(page - colors.ANNOTATION).max(-1) < 0.15
    assert amber.sum() > 200 and green.sum() > 200


@pytest.mark.parametrize("size, most", [(96, 0.05), (256, 0.15)])
def test_a_map_is_shown_in_time(host, size, most):  # noqa: F811
    random = np.random.default_rng(0)
    grid = np.ogrid[:size, :size, :size]
    ball = (sum((g - size / 2) ** 2 for g in grid) < (size / 4) ** 2).astype(np.uint8)
    noise = (random.random((size,) * 3) > 0.5).astype(np.uint8)  # an early layer: everywhere
    volume = Volume(np.zeros((size,) * 3, np.float32), MATRIX, "volume")
    found = Explanation("ability", "Time")
    found.masks["output"] = volume.with_array(ball, "output")
    found.sequences["layers"] = Sequence(
        "Layers", [(n, volume.with_array(m)) for n, m in enumerate([noise, ball] * 2)], "mask", "layer"
    )
    found.tables["layers"] = Table("Layers", {"number": [0, 1, 2, 3], "layer": list("abcd"), "path": [""] * 4})
    one = Run(host, bundle.add_input(host.scene, volume), "time")
    one.finish(found)
    spent = []
    for number in (0, 1, 2, 3) * 2:
        began = time.thread_time()
        pick.show(host.scene, one.id, "layers", number)
        spent.append(time.thread_time() - began)
    print(f"{size}³: {[round(1000 * s, 1) for s in spent]} ms")
    assert np.median(spent) < most


def test_points_of_charts_and_the_heat_map(desk):
    one = desk.start()
    one.finish(desk.explanation)
    series = {(name, s.GetYColumnName()): s.GetID() for name, made in one.curves.items() for s in made["series"]}
    units = desk.explanation.tables["units"].columns
    best = units["number"][units["rank"].index(1)]
    for (curve, column), row, expected in (
        (("transition", "SA score"), 1, ("layers", 1)),
        (("transition", "late"), 2, ("layers", 2)),
        (("ranking", "SA score"), 0, ("units", best)),
        (("noise-effect", "noise 0.3"), 1, ("noise-0.3", 1)),
    ):
        assert pick.point(desk.scene, series[curve, column], row) == expected
        assert pick.row_of(desk.scene, series[curve, column], *expected) == row
        pick.show(desk.scene, one.id, *expected)
    assert pick.point(desk.scene, series["ranking", "SA score"], 99) is None
    assert pick.point(desk.scene, "nothing", 0) is None
    assert pick.row_of(desk.scene, series["transition", "early"], "layers", 2) is None  # another group's
    assert pick.row_of(desk.scene, series["transition", "SA score"], "units", 2) is None
    assert pick.row_of(desk.scene, "nothing", "units", 2) is None
    heat = one.nodes["heat"]
    pick.heat(desk.scene, one.id, True, 0.5)
    assert {view[1] for view in views(desk.scene)} == {
        heat.GetID()
    } and heat.GetDisplayNode().GetLowerThreshold() == 0.5
    pick.heat(desk.scene, one.id, False)
    assert {view[1] for view in views(desk.scene)} == {None}
    place = np.array(read.inside(one.masks, "output", desk.nodes[0]))
    k, j, i = desk.volumes[0].voxel(place)
    assert desk.explanation.masks["output"].array[k, j, i] == 1
    assert read.inside(one.masks, "nothing", desk.nodes[0]) is None
