"""A run in the scene: live, finished, discarded, removed, deleted by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scene_examples as examples
from scene_fixtures import host, ids, needed  # noqa: F401

needed()

import vtk  # noqa: E402

from MedXAILib.errors import MedXAIError  # noqa: E402
from MedXAILib.explanation import Patch, Point  # noqa: E402
from MedXAILib.scene import bundle, charts, layers, read, remove, repeat, segments  # noqa: E402
from MedXAILib.scene.nodes import RUN, array_of, attributes, hierarchy, matrix_of, name_of, of_class, voxels  # noqa: E402
from MedXAILib.scene.write import Run  # noqa: E402


@pytest.fixture
def study(host):  # noqa: F811
    """Two volumes: one to explain, one that the views show before."""

    class Study:
        scene = host.scene
        volume = examples.volume((14, 30, 32))
        explanation = examples.dream(volume)
        node = bundle.add_input(host.scene, volume)
        other = bundle.add_input(host.scene, examples.volume((8, 8, 8), name="other"))

    Study.host = host
    layers.show(host.scene, Study.other, Study.other, 0.3)
    remove.watch(host.scene)
    return Study


def shown(scene):
    return [
        (n.GetBackgroundVolumeID(), n.GetForegroundVolumeID(), n.GetLabelVolumeID(), n.GetForegroundOpacity())
        for n in of_class(scene, "vtkMRMLSliceCompositeNode")
    ]


def looks(scene):
    return [
        (n.GetFieldOfView(), n.GetSliceOffset(), array_of(n.GetSliceToRAS()).tolist(), n.GetUseLabelOutline())
        for n in of_class(scene, "vtkMRMLSliceNode")
    ]


def state(study):
    """Everything of the input that a run must not touch."""
    shown = study.node.GetDisplayNode()
    image = study.node.GetImageData()
    return (
        voxels(image).tobytes(), image.GetMTime(), attributes(study.node), study.node.GetName(), study.node.GetTransformNodeID(),
        shown.GetWindow(), shown.GetLevel(), shown.GetColorNodeID(), shown.GetThreshold() if hasattr(shown, "GetThreshold") else 0,
        study.node.GetNumberOfDisplayNodes(), hierarchy(study.scene).GetItemParent(hierarchy(study.scene).GetItemByDataNode(study.node)),
    )  # fmt: skip


def test_live_layers_change_only_the_box_and_leave_the_view(study):
    before, looked, was = ids(study.scene), looks(study.scene), shown(study.scene)
    kept = state(study)
    run = Run(study.host, study.node, "dream")
    start = study.volume.with_array(study.volume.array.copy(), "dream")
    run.preview("dream", start)
    node = run.nodes["dream"]
    assert all(view[:2] == (study.node.GetID(), node.GetID()) and view[3] == 1 for view in shown(study.scene))
    display, given = node.GetDisplayNode(), study.node.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel()) == (
        given.GetWindow(),
        given.GetLevel(),
    ) and not display.GetAutoWindowLevel()
    image, told = node.GetImageData(), []
    node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: told.append(1))
    patch = Patch(np.full((2, 3, 4), 7.0, np.float32), (5, 6, 7))
    run.preview("dream", patch)
    expected = start.array.copy()
    expected[patch.box] = 7
    assert node.GetImageData() is image and np.array_equal(voxels(image), expected) and len(told) >= 1
    count = len(ids(study.scene))
    run.preview("dream", study.volume.with_array(expected * 2, "dream"))  # whole again: the same node
    assert np.array_equal(voxels(node.GetImageData()), expected * 2) and len(ids(study.scene)) == count
    run.preview("mask", study.volume.with_array((expected > 100).astype(np.uint8), "mask"))
    run.preview("mask", Patch(np.ones((2, 2, 2), np.uint8), (3, 4, 5)))
    mask = read.segment(run.masks, "mask", study.node).array
    assert mask.sum() == 8 and mask[3:5, 4:6, 5:7].all()
    assert looks(study.scene) == looked and state(study) == kept
    run.discard()
    assert ids(study.scene) == before and shown(study.scene) == was and looks(study.scene) == looked
    assert hierarchy(study.scene).GetNumberOfItems() == 2 and state(study) == kept


def test_live_curves_take_late_values(study):
    run = Run(study.host, study.node, "dream")
    run.points([Point("curves", step, {"response": step * 1.5}) for step in range(4)])
    run.point("curves", 1, {"glcm_Contrast": 5.0})
    run.point(Point("curves", 4, {"response": 6.0}))
    run.point("curves", 0, {"glcm_Contrast": 4.0})
    run.point("normalized", 0, {"glcm_Contrast": -2.0})
    assert run.curves["normalized"]["series"] == []  # VTK complains of a line with a single point
    run.point("normalized", 2, {"glcm_Contrast": -1.0})
    titles = [run.curves[name]["chart"].GetTitle() for name in ("curves", "normalized")]
    assert titles == ["Response and features", "Features along the dream"]
    table = run.curves["curves"]["table"].GetTable()
    column = [table.GetColumnByName(n) for n in ("step", "response", "glcm_Contrast")]
    values = [[c.GetValue(r) for r in range(5)] for c in column]
    assert values[0] == [0, 1, 2, 3, 4] and values[1] == [0, 1.5, 3, 4.5, 6]
    assert values[2][:2] == [4, 5] and np.isnan(values[2][2:]).all()
    assert [s.GetYColumnName() for s in run.curves["curves"]["series"]] == ["response"]
    assert {s.GetYColumnName() for s in run.curves["normalized"]["series"]} == {
        "glcm_Contrast", "reference ± 1 SD: -1", "reference ± 1 SD: +1",
    }  # fmt: skip
    ids_before = len(ids(study.scene))
    run.finish(study.explanation)
    assert run.curves["curves"]["table"].GetTable().GetNumberOfRows() == 21
    assert sum(n.IsA("vtkMRMLTableNode") for n in remove.of_run(study.scene, run.id)) == 3
    assert len(ids(study.scene)) > ids_before
    run.discard()


def test_a_finished_run_is_complete(study):
    kept = state(study)
    run = Run(study.host, study.node, "dream")
    run.preview("dream", study.volume.with_array(study.volume.array.copy(), "dream"))
    run.finish(study.explanation)
    scene, tree = study.scene, hierarchy(study.scene)
    assert state(study) == kept
    assert tree.GetItemParent(run.folder) == tree.GetItemParent(tree.GetItemByDataNode(study.node))
    nodes = remove.of_run(scene, run.id)
    for node in nodes:
        if node.IsA("vtkMRMLTransformableNode"):
            assert node.GetTransformNodeID() is None
    dream, change = run.nodes["dream"], run.nodes["change"]
    assert np.array_equal(voxels(dream.GetImageData()), study.explanation.maps["dream"].volume.array)
    assert change.GetDisplayNode().GetColorNode().GetName() == "MedXAI signed"
    low, high = change.GetDisplayNode().GetWindowLevelMin(), change.GetDisplayNode().GetWindowLevelMax()
    assert low == -high and 20 < high <= 90 and change.GetNthDisplayNode(1).GetTitleText() == "Change [HU]"
    mask = read.segment(run.masks, "mask", study.node)
    assert np.array_equal(mask.array, study.explanation.masks["mask"].array)
    assert run.masks.GetNodeReference(run.masks.GetReferenceImageGeometryReferenceRole()) is study.node
    step, label = run.nodes["steps (step)"], run.nodes["mask-steps (step)"]
    assert all(view == (study.node.GetID(), step.GetID(), label.GetID(), 1) for view in shown(scene))
    known = repeat.provenance(scene, run.folder)
    assert known["method"] == "dream" and known["settings"] == examples.PROVENANCE["settings"]
    assert known["inputs"] == [study.node] and known["sha256"] == "0123456789abcdef" * 4
    assert known["provenance"]["versions"] == examples.PROVENANCE["versions"]
    for node in nodes:
        assert json.loads(node.GetAttribute("MedXAI.Settings")) == examples.PROVENANCE["settings"]
        assert repeat.provenance(scene, node)["model"] == "Liver tumour U-Net"
    with pytest.raises(MedXAIError, match="not a finished MedXAI run"):
        repeat.provenance(scene, study.other)


def test_scrubbing_moves_dream_and_mask_on_their_lattice(study):
    run = Run(study.host, study.node, "dream")
    run.finish(study.explanation)
    browser = study.scene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode")
    steps, masks = study.explanation.sequences["steps"].items, study.explanation.sequences["mask-steps"].items
    proxy, label = run.nodes["steps (step)"], run.nodes["mask-steps (step)"]
    assert browser.GetSelectedItemNumber() == len(steps) - 1
    window = proxy.GetDisplayNode().GetWindow(), proxy.GetDisplayNode().GetLevel()
    for n in (3, 0, len(steps) - 1):
        browser.SetSelectedItemNumber(n)
        for node, (step, volume) in ((proxy, steps[n]), (label, masks[n])):
            matrix = vtk.vtkMatrix4x4()
            node.GetIJKToRASMatrix(matrix)
            np.testing.assert_allclose(array_of(matrix), volume.ijk_to_ras, atol=1e-9)
            assert np.array_equal(voxels(node.GetImageData()), volume.array) and str(step)
        assert (proxy.GetDisplayNode().GetWindow(), proxy.GetDisplayNode().GetLevel()) == window
        assert (
            proxy.GetAttribute("MedXAI.SHA256") == "0123456789abcdef" * 4
        )  # a proxy takes over the frame's attributes
        proxy.SetAttribute(RUN, None)  # and a frame read from a file has none, but
        assert remove.run_of(study.scene, proxy) == run.id and name_of(study.scene, proxy) == "steps (step)"
    assert voxels(label.GetImageData()).dtype == np.uint8
    remove.remove(study.scene, proxy)
    assert not remove.of_run(study.scene, run.id)


@pytest.mark.parametrize("linear", [True, False])
def test_results_lie_under_the_inputs_transform(study, linear):
    if linear:
        parent = study.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        parent.SetMatrixTransformToParent(matrix_of([[0, -1, 0, 12], [1, 0, 0, -7], [0, 0, 1, 30], [0, 0, 0, 1]]))
    else:
        parent = study.scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode")
    study.node.SetAndObserveTransformNodeID(parent.GetID())
    run = Run(study.host, study.node, "dream")
    run.preview("dream", study.volume)
    run.finish(study.explanation)
    spatial = [n for n in remove.of_run(study.scene, run.id) if n.IsA("vtkMRMLTransformableNode")]
    assert len(spatial) == 6 and {n.GetTransformNodeID() for n in spatial} == {parent.GetID()}
    matrix = vtk.vtkMatrix4x4()
    run.nodes["change"].GetIJKToRASMatrix(matrix)
    np.testing.assert_allclose(array_of(matrix), study.volume.ijk_to_ras, atol=1e-9)


@pytest.mark.parametrize("how", ["folder", "node", "by hand", "one by one"])
def test_removal_leaves_nothing_and_shows_what_was_before(study, how):
    before, was, kept = ids(study.scene), shown(study.scene), state(study)
    outlines = [look[3] for look in looks(study.scene)]
    run = Run(study.host, study.node, "dream")
    run.finish(study.explanation)
    tree = hierarchy(study.scene)
    view = study.scene.GetFirstNodeByClass("vtkMRMLPlotViewNode")
    assert view.GetPlotChartNode() is not None
    if how == "folder":
        remove.remove(study.scene, run.folder)
    elif how == "node":
        remove.remove(study.scene, run.nodes["change"])
    elif how == "by hand":
        tree.RemoveItem(run.folder)
    else:
        for node in remove.of_run(study.scene, run.id):
            if study.scene.IsNodePresent(node):
                study.scene.RemoveNode(node)
        tree.RemoveItem(run.folder)
    assert ids(study.scene) == before and tree.GetNumberOfItems() == 2
    assert [view[1:] for view in shown(study.scene)] == [view[1:] for view in was]
    assert [look[3] for look in looks(study.scene)] == outlines
    assert view.GetPlotChartNode() is None and state(study) == kept
    assert not [
        views for views, _ in remove._before.values() if views.scene is study.scene
    ]  # other tests have their own


def test_two_runs_do_not_disturb_each_other(study):
    first = Run(study.host, study.node, "dream")
    first.finish(study.explanation)
    was = shown(study.scene)
    chart = study.scene.GetFirstNodeByClass("vtkMRMLPlotViewNode").GetPlotChartNodeID()
    second = Run(study.host, study.node, "dream")
    second.finish(study.explanation)
    tree = hierarchy(study.scene)
    assert tree.GetItemName(first.folder) == "dream" and tree.GetItemName(second.folder) != "dream"
    remove.remove(study.scene, second.folder)
    assert shown(study.scene) == was and len(remove.of_run(study.scene, first.id)) > 15
    assert study.scene.GetFirstNodeByClass("vtkMRMLPlotViewNode").GetPlotChartNodeID() == chart
    assert study.scene.GetSingletonNode("MedXAIsigned", "vtkMRMLColorTableNode") is not None


def test_what_others_put_into_the_folder_stays(study):
    run = Run(study.host, study.node, "dream")
    run.finish(study.explanation)
    tree = hierarchy(study.scene)
    tree.SetItemParent(tree.GetItemByDataNode(study.other), run.folder)
    remove.remove(study.scene, run.folder)
    item = tree.GetItemByDataNode(study.other)
    assert item and tree.GetItemParent(item) == tree.GetSceneItemID()


def test_the_input_may_be_deleted_and_the_scene_closed(study):
    run = Run(study.host, study.node, "dream")
    run.preview("dream", study.volume)
    study.scene.RemoveNode(study.node)
    run.preview("dream", Patch(np.ones((2, 2, 2), np.float32), (0, 0, 0)))
    run.discard()
    assert not remove.of_run(study.scene, run.id)
    again = Run(study.host, study.other, "dream")
    again.finish(examples.dream(read.volume(study.other)))
    study.scene.Clear(0)
    assert not [
        views for views, _ in remove._before.values() if views.scene is study.scene
    ]  # other tests have their own
    again.discard()  # a panel that had not heard of it yet
    node = bundle.add_input(study.scene, study.volume)
    third = Run(study.host, node, "dream")
    third.finish(study.explanation)
    hierarchy(study.scene).RemoveItem(third.folder)  # the observer still watches
    assert not remove.of_run(study.scene, third.id) and not of_class(study.scene, "vtkMRMLPlotSeriesNode")


def test_watching_ends(study):
    observers = study.scene.HasObserver(study.scene.NodeAboutToBeRemovedEvent)
    assert observers
    remove.unwatch(study.scene)
    run_nodes = len(remove._watchers)
    remove.watch(study.scene)
    remove.watch(study.scene)
    assert len(remove._watchers) == run_nodes + 1


def test_a_segment_that_was_used_is_remembered(study):
    segmentation = segments.add_segmentation(study.scene, "organs", study.node)
    segments.set_mask(segmentation, "liver", study.explanation.masks["mask"], study.volume.ijk_to_ras)
    run = Run(study.host, study.node, "dream", segmentation, "liver")
    run.finish(study.explanation)
    known = repeat.provenance(study.scene, run.masks)
    assert (known["segmentation"], known["segment"]) == (segmentation, "liver")
    assert segmentation.GetAttribute(RUN) is None


def test_single_slice(host):  # noqa: F811
    volume = examples.volume((1, 40, 44), name="radiograph", unit="")
    node = bundle.add_input(host.scene, volume)
    run = Run(host, node, "dream")
    run.preview("dream", volume)
    run.preview("dream", Patch(np.zeros((1, 4, 4), np.float32), (0, 3, 3)))
    explanation = examples.dream(volume)
    run.finish(explanation)
    assert np.array_equal(voxels(run.nodes["dream"].GetImageData()), explanation.maps["dream"].volume.array)
    assert np.array_equal(read.segment(run.masks, "mask", node).array, explanation.masks["mask"].array)


def test_maps_of_every_kind(study):
    """Nothing is transparent: below a threshold, or in the middle of the colour table."""
    from MedXAILib.explanation import Explanation, Layer

    array = np.zeros(study.volume.shape, np.float32)
    array[4, 5, 6], array[5, 5, 6] = 0.5, 2.0
    explanation = Explanation("ability", "Maps")
    for kind in ("positive", "probability", "signed"):
        explanation.maps[kind] = Layer(study.volume.with_array(array, kind), kind, kind)
    explanation.maps["given"] = Layer(study.volume.with_array(array, "given"), "positive", "given", 0.0, 8.0)
    run = Run(study.host, study.node, "maps")
    run.finish(explanation)
    looks = {name: node.GetDisplayNode() for name, node in run.nodes.items()}
    assert looks["positive"].GetWindowLevelMax() == pytest.approx(2, abs=0.02)
    assert looks["positive"].GetApplyThreshold() and 0 < looks["positive"].GetLowerThreshold() < 0.1
    assert (looks["probability"].GetWindowLevelMin(), looks["probability"].GetWindowLevelMax()) == (0, 1)
    assert looks["given"].GetWindowLevelMax() == 8
    assert not looks["signed"].GetApplyThreshold()
    assert looks["positive"].GetColorNode().GetName() == "MedXAI positive"
    assert {view[1] for view in shown(study.scene)} == {run.nodes["positive"].GetID()}
    assert {view[3] for view in shown(study.scene)} == {layers.OVERLAY}
    assert not run.curves and charts.shown


def test_what_was_only_on_the_way_goes(study):
    run = Run(study.host, study.node, "dream")
    run.preview("sketch", study.volume.with_array(study.volume.array.copy(), "sketch"))
    run.preview("draft", study.volume.with_array(np.ones(study.volume.shape, np.uint8), "draft"), kind="mask")
    run.point("half", 0, {"x": 1.0})
    run.finish(study.explanation)
    names = {name_of(study.scene, node) for node in remove.of_run(study.scene, run.id)}
    assert not names & {"sketch", "half"} and {"dream", "change", "curves", "normalized", "verdicts"} <= names
    assert run.masks.GetSegmentation().GetSegmentIDs() == ("mask",)
    assert run.nodes["steps (step)"].GetID() in {view[1] for view in shown(study.scene)}


def test_many_features_stay_readable(study):
    from MedXAILib.explanation import Curve

    columns = {"step": np.arange(3.0), **{f"feature_{n}": np.array([0.0, np.nan, n]) for n in range(60)}}
    curve = Curve("Many", "step", columns, bands={"reference ±1 SD": (-1.0, 1.0)})
    run = Run(study.host, study.node, "dream")
    run.point("normalized", 0, {"feature_0": 1.0})
    run._curve("normalized", curve)
    drawn = [series.GetYColumnName() for series in run.curves["normalized"]["series"]]
    assert len(drawn) == charts.MOST + 2
    assert "feature_59" in drawn and "feature_0" not in drawn
    assert run.curves["normalized"]["table"].GetNumberOfColumns() == 63
    chart = run.curves["normalized"]["chart"]
    assert chart.GetNumberOfPlotSeriesNodes() == len(drawn) and chart.GetLegendFontSize() <= 10
    assert not chart.GetXAxisRangeAuto() and chart.GetXAxisRange()[1] > 3  # the legend stands beside the curves
    chart.SetXAxisRange(0.5, 1.0)  # somebody zooms
    run._curve("normalized", curve)
    assert tuple(chart.GetXAxisRange()) == (0.5, 1.0)


def test_the_next_point_somebody_places_is_theirs(study):
    selection = study.scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    theirs = study.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "theirs")
    selection.SetActivePlaceNodeID(theirs.GetID())
    Run(study.host, study.node, "dream").finish(study.explanation)
    assert selection.GetActivePlaceNodeID() == theirs.GetID()
