"""An image as either class in the scene: morphed in place, R over it, saved, removed, repeated, on one page."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scene_examples as examples
from scene_fixtures import host, ids, needed  # noqa: F401

needed()

from MedXAILib.scene import bundle, colors, cycle, layers, pick, read, remove, repeat  # noqa: E402
from MedXAILib.scene.host import HeadlessHost  # noqa: E402
from MedXAILib.scene.nodes import NAME, find, of_class, run_id, voxels  # noqa: E402
from MedXAILib.scene.segments import grid_of  # noqa: E402
from MedXAILib.scene.write import Run  # noqa: E402

PLACES = {  # shape, matrix, slice, patch
    "patch of a slice": ((10, 60, 66), None, 6, True), "patch of a volume": ((24, 30, 36), None, None, True),
    "slice": ((10, 40, 50), examples.straight((1, 1, 3)), 3, False), "volume": ((12, 20, 24), examples.straight(), None, False),
    "single image": ((1, 60, 50), examples.straight((0.2, 0.2, 1)), 0, False),
}  # fmt: skip
R = "R = G+ - G-"


@pytest.fixture(params=PLACES)
def desk(request, host):  # noqa: F811
    shape, matrix, at, patch = PLACES[request.param]

    class Desk:
        volume = examples.volume(shape, matrix)
        scene = host.scene
        node = bundle.add_input(host.scene, volume)
        explanation = examples.cycle(volume, at, patch)
        box = cycle.box(explanation, volume)
        seen = layers.looked_at(explanation, volume)

        @staticmethod
        def finish():
            run = Run(host, Desk.node, "Cycle")
            run.finish(Desk.explanation)
            return run, cycle.Cycle(host.scene, run.id)

    remove.watch(host.scene)
    Desk.host, Desk.before = host, ids(host.scene)
    return Desk


def shown(scene) -> list:
    """What every slice view shows: background, foreground with opacity, what lies over them with opacity."""
    found = []
    for view in of_class(scene, "vtkMRMLSliceCompositeNode"):
        names = [
            getattr(scene.GetNodeByID(one or ""), "GetName", str)()
            for one in (view.GetBackgroundVolumeID(), view.GetForegroundVolumeID())
        ]
        over = [(scene.GetNodeByID(one).GetName(), round(opacity, 6)) for one, opacity in layers._over(view)]
        found.append((*names, round(view.GetForegroundOpacity(), 6), over))
    assert found and all(one == found[0] for one in found)
    return list(found[0])


def test_the_image_with_r_over_it(desk):
    _, found = desk.finish()
    assert shown(desk.scene) == ["CT liver", cycle.TITLE, 1.0, [(R, cycle.COVERS)]]
    for name, layer in desk.explanation.maps.items():
        assert np.array_equal(voxels(found.node(name).GetImageData()), layer.volume.array)
        assert np.allclose(grid_of(found.node(name)), desk.volume.ijk_to_ras)
    window = desk.node.GetDisplayNode()
    for name in (cycle.POSITIVE, cycle.NEGATIVE, cycle.MORPH):
        display = found.node(name).GetDisplayNode()
        assert (display.GetWindow(), display.GetLevel()) == (window.GetWindow(), window.GetLevel())
        assert not display.GetAutoWindowLevel()
    for name in (cycle.RELEVANCE, cycle.UP, cycle.DOWN):
        display = found.node(name).GetDisplayNode()
        assert display.GetColorNode().GetSingletonTag() == "MedXAIsigned" and not display.GetApplyThreshold()
        assert display.GetWindowLevelMin() == pytest.approx(-display.GetWindowLevelMax())
        assert display.GetWindowLevelMax() == pytest.approx(desk.explanation.maps[cycle.RELEVANCE].high, rel=1e-5)
    assert found.volume_node is desk.node and found.opacity == cycle.COVERS
    assert "HU" in desk.explanation.maps["relevance"].title
    legend = layers.legends(found.node(cycle.MORPH))[0]  # views draw none of what lies over their layers
    assert legend.GetTitleText() == "R = G+ - G- [HU]" and legend.GetVisibility()
    colours = legend.GetPrimaryDisplayNode()
    assert colours.GetColorNode().GetSingletonTag() == "MedXAIsigned"
    assert colours.GetWindowLevelMax() == pytest.approx(
        found.node(cycle.RELEVANCE).GetDisplayNode().GetWindowLevelMax()
    )
    assert found.node(cycle.MORPH).GetDisplayNode().GetColorNodeID() == window.GetColorNodeID()


def test_the_morph_is_one_volume_written_in_place(desk):
    _, found = desk.finish()
    node = found.node(cycle.MORPH)
    array, nodes = voxels(node.GetImageData()), ids(desk.scene)
    x = desk.volume.array[desk.box].astype(np.float32)
    up, down = (desk.explanation.maps[name].volume.array[desk.box] for name in (cycle.UP, cycle.DOWN))
    place = desk.volume.crop([b.start for b in desk.box], [b.stop for b in desk.box])
    assert np.allclose(grid_of(node), place.ijk_to_ras) and array.shape == place.shape
    assert found.position == 0 and np.array_equal(array, x)
    for at in (1.0, -0.5, 0.25, -1.0, 0.0):
        found.position = at
        assert found.position == at and voxels(node.GetImageData()) is not None
        np.testing.assert_allclose(array, x + max(at, 0) * up + max(-at, 0) * down, rtol=1e-5, atol=1e-3)
    assert np.array_equal(array, x)  # back to the very image
    found.position = 7
    assert found.position == 1.0
    np.testing.assert_allclose(array, desk.explanation.maps["positive"].volume.array[desk.box], rtol=1e-5, atol=1e-3)
    assert ids(desk.scene) == nodes and np.array_equal(voxels(desk.node.GetImageData()), desk.volume.array)
    assert cycle.Cycle(desk.scene, found.run).position == 1.0  # whoever looks next finds it there


def test_the_morph_in_a_view_is_the_image_around_it(host):  # noqa: F811
    """At 0 the view shows what it shows without us; at ±1 only the patch differs."""
    from MedXAILib.scene.views import SliceView

    volume = examples.volume((10, 60, 66), examples.straight((1, 1, 3)))
    node = bundle.add_input(host.scene, volume)
    explanation = examples.cycle(volume, 6, True)
    run = Run(host, node, "Cycle")
    run.finish(explanation)
    found, view = cycle.Cycle(host.scene, run.id), SliceView(host, 128)
    view.look("axial", node, found.place(), 80.0, False)
    view.show(node)
    plain = view.picture()
    view.show(node, found.node(cycle.MORPH))
    seam = np.abs(view.picture().astype(int) - plain).max(-1)  # half a voxel around the box is not interpolated
    assert seam.max() <= 6 and (seam > 1).mean() < 0.02
    found.position = 1
    apart = np.abs(view.picture().astype(int) - plain).max(-1) > 2
    assert 50 < apart.sum() < 0.25 * apart.size
    view.close()


def test_probability_is_linear_in_log_odds(desk):
    _, found = desk.finish()
    curve = desk.explanation.curves["morph"].columns
    for at, p in zip(curve["position"], curve["probability"]):
        assert found.probability(at) == pytest.approx(p, abs=1e-9)
    half = 0.5 * (curve["log_odds"][4] + curve["log_odds"][5])
    assert found.probability(0.125) == pytest.approx(1 / (1 + np.exp(-half)), abs=1e-9)
    assert cycle.Cycle(desk.scene, "nobody").position is None and np.isnan(cycle.Cycle(desk.scene, "nobody").probability(0))  # fmt: skip


def test_words():
    known = {"label": "spiculated"}
    scores = {"probability": 0.43, "probability_positive": 0.9991, "probability_negative": 0.0712}
    assert cycle.headline(known, scores) == "spiculated: x 0.43 → G⁺ > 0.99, G⁻ 0.07"
    patch = {"start": [6, 0, 0], "stop": [7, 12, 14], "size_mm": [3, 12, 14.04]}
    assert cycle.looked_at({"patch": patch, "slice": "k:6"}) == "12 × 14 mm, k:6" and cycle.looked_at({}) == ""
    assert [cycle.probability(v) for v in (0, 0.001, 1.0, float("nan"), None)] == ["0.00", "< 0.01", "1.00", "–", "–"]


def test_r_is_shown_or_hidden_and_zoom_stays(desk):
    _, found = desk.finish()
    for node in of_class(desk.scene, "vtkMRMLSliceNode"):
        node.SetFieldOfView(33, 33, 1)
    before = [(n.GetFieldOfView(), n.GetSliceOffset()) for n in of_class(desk.scene, "vtkMRMLSliceNode")]
    found.opacity = None
    assert shown(desk.scene)[1:] == [cycle.TITLE, 1.0, []] and found.opacity is None
    assert not layers.legends(found.node(cycle.MORPH))[0].GetVisibility()
    found.show()
    assert shown(desk.scene)[3] == []  # hidden stays hidden
    found.opacity = 0.4
    found.position = 0.5
    found.show()
    assert shown(desk.scene)[3] == [(R, 0.4)] and found.position == 0.5
    assert [(n.GetFieldOfView(), n.GetSliceOffset()) for n in of_class(desk.scene, "vtkMRMLSliceNode")] == before


def test_places_to_go_to(desk):
    _, found = desk.finish()
    middle = [(b.start + b.stop - 1) / 2 for b in desk.seen]
    assert found.place() == pytest.approx(desk.volume.index_to_ras(middle))
    index = [(n - 1) / 2 for n in desk.volume.shape]
    index[0] = 0
    assert found.slice("k:0") == pytest.approx(desk.volume.index_to_ras(index))
    assert found.slice("at 3, 4") is None


def test_a_changed_input_does_not_change_the_morph(desk):
    _, found = desk.finish()
    voxels(desk.node.GetImageData())[:] = 0
    found.position = -1
    made = voxels(found.node(cycle.MORPH).GetImageData())
    want = desk.explanation.maps["negative"].volume.array[desk.box]
    np.testing.assert_allclose(made, want, rtol=1e-4, atol=1e-2)
    desk.scene.RemoveNode(desk.node)
    again = cycle.Cycle(desk.scene, found.run)
    again.position = 0.5
    again.show()
    assert again.position == 0.5


def test_without_input_and_positive_it_still_morphs(desk):
    _, found = desk.finish()
    desk.scene.RemoveNode(desk.node)
    desk.scene.RemoveNode(found.node(cycle.POSITIVE))
    again = cycle.Cycle(desk.scene, found.run)
    again.position = -1
    made = voxels(again.node(cycle.MORPH).GetImageData())
    want = desk.explanation.maps["negative"].volume.array[desk.box]
    np.testing.assert_allclose(made, want, rtol=1e-4, atol=1e-2)


def test_a_changed_input_without_positive_does_not_change_the_morph(desk):
    _, found = desk.finish()
    voxels(desk.node.GetImageData())[:] = 0
    desk.scene.RemoveNode(found.node(cycle.POSITIVE))
    again = cycle.Cycle(desk.scene, found.run)
    again.position = 0
    made = voxels(again.node(cycle.MORPH).GetImageData())
    np.testing.assert_allclose(made, desk.volume.array[desk.box], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("how", ["folder", "one by one", "a delta"])
def test_removal_leaves_nothing(desk, how):
    run, found = desk.finish()
    found.position = 0.5
    if how == "folder":
        remove.remove(desk.scene, run.folder)
    elif how == "one by one":
        for node in remove.of_run(desk.scene, run.id):
            if desk.scene.IsNodePresent(node):
                desk.scene.RemoveNode(node)
    else:
        desk.scene.RemoveNode(found.node(cycle.UP))
        again = cycle.Cycle(desk.scene, run.id)
        again.position = 1
        assert again.position is None and shown(desk.scene)[1] == cycle.TITLE
        remove.remove(desk.scene, run.folder)
    if how == "one by one":
        from MedXAILib.scene.nodes import hierarchy

        hierarchy(desk.scene).RemoveItem(run.folder)
    assert ids(desk.scene) == desk.before and shown(desk.scene)[1] == "" and shown(desk.scene)[3] == []


def test_two_runs_do_not_lie_over_each_other(desk):
    _, first = desk.finish()
    first.opacity = 0.3
    second, _ = desk.finish()
    assert [name for name, _ in shown(desk.scene)[3]] == [second.nodes["relevance"].GetName()]
    remove.remove(desk.scene, second.folder)
    assert shown(desk.scene)[1:] == [cycle.TITLE, 1.0, [(R, 0.3)]]


def test_chart_tables_and_words(desk):
    run, found = desk.finish()
    chart = run.curves["morph"]["chart"]
    assert chart.GetTitle() == "From smooth to spiculated" and chart.GetXAxisTitle() == "G- (-1), x (0), G+ (1)"
    assert chart.GetYAxisTitle() == "Probability of spiculated"
    assert [one.GetYColumnName() for one in run.curves["morph"]["series"]] == ["probability"]
    rows = list(pick.rows(desk.scene, run.id, "classes", ("label", "probability", "probability_positive")))
    assert [row[0] for row in rows] == ["smooth", "spiculated"]
    known = found.known
    assert known["provenance"]["explainer"]["name"].startswith("Phantom nodules") and known["method"] == "cycle"
    words = repeat.words(desk.explanation)
    assert "Explainer: Phantom nodules" in words and "known intensities: 0.6 (NOT PASSED)" in words


def test_live_relevance_of_many_slices(host):  # noqa: F811
    volume = examples.volume((8, 30, 36))
    explanation = examples.cycle(volume, several=5)
    node = bundle.add_input(host.scene, volume)
    before = ids(host.scene)
    run = Run(host, node, "Cycle")
    r = explanation.maps["relevance"].volume
    run.preview("relevance", r.with_array(0 * r.array))
    run.preview("relevance", r)
    assert shown(host.scene)[1] == "relevance"
    live = run.nodes["relevance"]
    run.finish(explanation)
    assert run.nodes["relevance"] is live and shown(host.scene)[1] == cycle.TITLE
    assert next(pick.rows(host.scene, run.id, "slices", ("slice",))) == ("k:0",)
    assert cycle.Cycle(host.scene, run.id).slice("k:2") is not None
    run.discard()
    assert ids(host.scene) == before


def test_a_saved_scene_morphs_again(tmp_path):
    volume = examples.volume((10, 60, 66))
    explanation = examples.cycle(volume, 6, True)
    lesion = examples.organ_and_finding(volume)[1]
    bundle.save_scene(explanation, [volume], [lesion], tmp_path / "scene.mrb")
    again = HeadlessHost()
    try:
        again.open(tmp_path / "scene.mrb")
        scene = again.scene
        node = next(n for n in of_class(scene, "vtkMRMLScalarVolumeNode") if n.GetName() == cycle.TITLE)
        found = cycle.Cycle(scene, run_id(scene, node))
        assert shown(scene)[:2] == ["CT liver", cycle.TITLE] and [n for n, _ in shown(scene)[3]] == [R]
        box = cycle.box(explanation, volume)
        found.position = 1
        want = explanation.maps["positive"].volume.array[box]
        np.testing.assert_allclose(voxels(node.GetImageData()), want, rtol=1e-4, atol=1e-2)
        assert found.probability(1) == pytest.approx(explanation.scores["probability_positive"], abs=1e-6)
        known = repeat.provenance(scene, node)
        assert known["segment"] == "mass" and known["segmentation"] is not None
        assert find(scene, found.run, "about", "vtkMRMLTextNode").GetAttribute(NAME) == "about"
        remove.remove(scene, node)
        assert not remove.of_run(scene, found.run)
    finally:
        again.close()


def test_under_a_transform(host):  # noqa: F811
    import slicer

    volume = examples.volume((10, 40, 50))
    node = bundle.add_input(host.scene, volume)
    transform = host.scene.AddNode(slicer.vtkMRMLLinearTransformNode())
    import vtk

    shift = vtk.vtkMatrix4x4()
    shift.SetElement(0, 3, 25.0)
    transform.SetMatrixTransformToParent(shift)
    node.SetAndObserveTransformNodeID(transform.GetID())
    explanation = examples.cycle(read.volume(node), 6, True)
    run = Run(host, node, "Cycle")
    run.finish(explanation)
    found = cycle.Cycle(host.scene, run.id)
    assert found.node(cycle.MORPH).GetTransformNodeID() == transform.GetID()
    middle = [(b.start + b.stop - 1) / 2 for b in layers.looked_at(explanation, volume)]
    assert found.place() == pytest.approx(np.add(volume.index_to_ras(middle), (25, 0, 0)))


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_page(tmp_path, place):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from MedXAILib.scene.report import report

    shape, matrix, at, patch = PLACES[place]
    volume = examples.volume(shape, matrix)
    report(examples.cycle(volume, at, patch), [volume], tmp_path / "report.png", examples.organ_and_finding(volume)[1:])
    page = imread(tmp_path / "report.png")[..., :3]

    def near(colour, share=0.06):
        return np.abs(page - np.array(colour)).max(-1) < share

    assert (near(colors.MASK)[150:1300, :1520].sum() > 200) == patch  # the patch's outline
    assert near(colors.ANNOTATION)[150:1300, :1520].sum() > 50  # the lesion
    assert near((0xC2 / 255, 0x57 / 255, 0x1A / 255), 0.03)[150:330, 1000:].sum() > 300  # the bar of G⁺
    assert near(colors.LINES[0], 0.08)[330:750, 1000:].sum() > 200  # the curve
    left = page[150:1300, :1520]
    assert ((left[..., 0] > 0.6) & (left[..., 2] < 0.35)).sum() > 300  # red raises


def test_page_of_many_slices(tmp_path):
    pytest.importorskip("matplotlib")
    from MedXAILib.scene.report import report

    volume = examples.volume((8, 30, 36))
    report(examples.cycle(volume, several=8), [volume], tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 50_000


# -- time --------------------------------------------------------------------------------------------------------------


def test_the_morph_is_quick(host):  # noqa: F811
    volume = examples.volume((100, 512, 512), examples.straight((0.7, 0.7, 2)))
    explanation = examples.cycle(volume, 50, True)
    assert explanation.provenance["patch"]["stop"][1] - explanation.provenance["patch"]["start"][1] == 170
    run = Run(host, bundle.add_input(host.scene, volume), "time")
    run.finish(explanation)
    found, spent = cycle.Cycle(host.scene, run.id), []
    for n in range(21):
        began = time.thread_time()
        found.position = n / 10 - 1
        spent.append(1000 * (time.thread_time() - began))
    print(f"morph, first and median of the rest: {spent[0]:.2f} and {np.median(spent[1:]):.2f} ms")
    assert np.median(spent) < 30
