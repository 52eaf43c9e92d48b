"""Before and after in the scene: faded, covered, outlined, begun again in place, saved, removed, on one page."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import scene_examples as examples
from scene_fixtures import host, ids, needed  # noqa: F401

needed()

from test_panel_run import desk as worker_desk  # noqa: E402, F401

from MedXAILib.explanation import Patch  # noqa: E402
from MedXAILib.panel.run_state import RunState  # noqa: E402
from MedXAILib.scene import bundle, colors, impact, layers, pick, read, remove, repeat  # noqa: E402
from MedXAILib.scene.host import HeadlessHost  # noqa: E402
from MedXAILib.scene.nodes import children, find, hierarchy, of_class, run_id, voxels  # noqa: E402
from MedXAILib.scene.write import Run  # noqa: E402
from MedXAILib.worker import wire  # noqa: E402
from MedXAILib.worker.jobs import RunRequest  # noqa: E402

PLACES = {
    "slice of an oblique volume": ((10, 40, 50), None, 6), "oblique volume": ((10, 40, 50), None, None),
    "radiograph": ((1, 60, 50), examples.straight((0.2, 0.2, 1)), None), "volume": ((12, 20, 24), examples.straight(), None),
}  # fmt: skip


@pytest.fixture(params=PLACES)
def desk(request, host):  # noqa: F811
    shape, matrix, at = PLACES[request.param]

    class Desk:
        volume = examples.volume(shape, matrix)
        scene = host.scene
        node = bundle.add_input(host.scene, volume)
        explanation = examples.counterfactual(volume, at)

        @staticmethod
        def finish(explanation=explanation):
            run = Run(host, Desk.node, "Counterfactual")
            run.finish(explanation)
            return run, impact.Impact(host.scene, run.id)

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


def outline(scene, run: str):
    """The region as the segmentation has it, on the input's grid."""
    masks = find(scene, run, "masks", "vtkMRMLSegmentationNode")
    volume = impact.Impact(scene, run).volume_node or of_class(scene, "vtkMRMLScalarVolumeNode")[0]
    return read.segment(masks, impact.REGION, volume).array


def items(scene) -> int:
    return len(children(scene, hierarchy(scene).GetSceneItemID()))


def test_a_role_travels_to_the_worker(tmp_path):
    """`wire.describe_volume` is what a run's segment becomes, `read_volume` what the worker makes of it."""
    volume = examples.volume((3, 6, 7))
    for role in ("organ", "annotation", "start"):
        sent = impact.with_role(volume.with_array(np.full(volume.shape, 0.25, np.float32), "mask", ""), role)
        wire.save_array(tmp_path / "segment.npy", sent.array)
        message = json.loads(json.dumps(wire.describe_volume(sent, tmp_path / "segment.npy")))
        got = wire.read_volume(message)
        assert impact.role(got) == role and got.array.dtype == np.float32 and np.array_equal(got.array, sent.array)
    assert impact.role(volume) == "annotation" and "role" not in volume.attributes


def test_before_and_after_with_the_mask_over_both(desk):
    run, found = desk.finish()
    assert shown(desk.scene) == ["CT liver", "Without the finding", 1.0, [("Deleted share", impact.FAINT)]]
    assert found.volume_node is desk.node and (found.fade, found.opacity) == (1.0, impact.FAINT)
    kept = {name: voxels(found.node(name).GetImageData()) for name in ("mask", "inpainted", "difference")}
    for name, array in kept.items():
        assert np.array_equal(array, desk.explanation.maps[name].volume.array)
    assert np.array_equal(outline(desk.scene, run.id), desk.explanation.masks["region"].array)
    display = found.node("inpainted").GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel()) == (desk.node.GetDisplayNode().GetWindow(), desk.node.GetDisplayNode().GetLevel())  # fmt: skip
    nodes = ids(desk.scene)
    for fade in (0.0, 0.3, 0.75):
        found.fade = fade
        assert shown(desk.scene)[2] == fade and found.fade == pytest.approx(fade)
    found.opacity, found.least = 0.8, 0.4
    assert shown(desk.scene)[3] == [("Deleted share", 0.8)]
    assert found.least == pytest.approx(0.4) and found.node("mask").GetDisplayNode().GetApplyThreshold()
    found.show()
    assert shown(desk.scene) == ["CT liver", "Without the finding", 0.75, [("Deleted share", 0.8)]]
    assert ids(desk.scene) == nodes


def test_fade_leaves_zoom_and_slice(desk):
    _, found = desk.finish()
    for node in of_class(desk.scene, "vtkMRMLSliceNode"):
        node.SetFieldOfView(33, 33, 1)
    before = [(n.GetFieldOfView(), n.GetSliceOffset()) for n in of_class(desk.scene, "vtkMRMLSliceNode")]
    for fade in np.linspace(0, 1, 5):
        found.fade = fade
    assert [(n.GetFieldOfView(), n.GetSliceOffset()) for n in of_class(desk.scene, "vtkMRMLSliceNode")] == before


def test_live_mask_is_a_map_with_its_region_outlined(desk):
    run = Run(desk.host, desk.node, "Counterfactual")
    run.theta = 0.5
    mask, image = (desk.explanation.maps[name].volume for name in ("mask", "inpainted"))
    run.preview("inpainted", image.with_array(desk.volume.array.copy()))
    run.preview("mask", mask.with_array(0 * mask.array))
    assert shown(desk.scene)[1:] == ["Without the finding", 1.0, [("Deleted share", impact.FAINT)]]
    live = impact.Impact(desk.scene, run.id, desk.node)
    live.fade = 0.25
    nodes = ids(desk.scene)
    run.preview("mask", mask)
    low, high = layers.bounds(mask.array)
    box = tuple(slice(a, b) for a, b in zip(low, high))
    run.preview("inpainted", Patch(image.array[box], tuple(low)))
    run.preview("mask", Patch((mask.array[box] * 0.8).astype(np.float32), tuple(low)))
    assert ids(desk.scene) == nodes and live.fade == 0.25
    np.testing.assert_allclose(voxels(run.nodes["mask"].GetImageData()), 0.8 * mask.array, rtol=1e-6)
    assert np.array_equal(voxels(run.nodes["inpainted"].GetImageData()), image.array)
    assert np.array_equal(outline(desk.scene, run.id), 0.8 * mask.array > 0.5)
    start = live.start()
    assert impact.role(start) == "start" and start.array.dtype == np.float32 and start.same_grid(desk.volume)
    run.point("optimisation", 0, {"probability": 0.9, "area": 0.2})
    run.point("optimisation", 1, {"probability": 0.8, "area": 0.2})
    assert [one.GetYColumnName() for one in run.curves["optimisation"]["series"]] == ["probability", "area"]
    run.finish(desk.explanation)
    assert live.fade == 0.25 and shown(desk.scene)[3] == [("Deleted share", impact.FAINT)]
    run.discard()
    assert ids(desk.scene) == desk.before and shown(desk.scene)[1:] == ["", 0.0, []]


def test_dreams_keep_their_mask_a_segment(host):  # noqa: F811
    volume = examples.volume((8, 20, 24))
    run = Run(host, bundle.add_input(host.scene, volume), "Dream")
    run.preview("mask", Patch(np.ones((2, 3, 4), np.uint8), (1, 1, 1)))
    assert "mask" not in run.nodes and run.masks.GetSegmentation().GetSegment("mask") is not None


def test_what_a_reader_is_told(desk):
    _, found = desk.finish()
    number, count, _size, *place, share = found.components()[0]
    assert (number, share) == ("1", "1") and int(count) == desk.explanation.masks["region"].array.sum()
    assert found.place(0) == pytest.approx([float(v) for v in place])
    told = dict(impact.measures(desk.explanation.scores))
    assert told["Distance D of the centres"] == "4.2 mm" and told["Dice"] == "0.71" and told["Hit"] == "yes"
    assert impact.sentences(desk.explanation.provenance) == [("Inpainter: Healthy tissue", False)]


@pytest.mark.parametrize("place", PLACES)
def test_no_region_and_a_fallback_are_told(host, place):  # noqa: F811
    shape, matrix, at = PLACES[place]
    volume = examples.volume(shape, matrix)
    explanation = examples.counterfactual(volume, at, crossed=False, fallback=True)
    run = Run(host, bundle.add_input(host.scene, volume), "Counterfactual")
    run.finish(explanation)
    found = impact.Impact(host.scene, run.id)
    assert found.components() == [] and found.place(0) is not None
    (filled, one), (nothing, two) = impact.sentences(repeat.provenance(host.scene, run.folder)["provenance"])
    assert one and two and "fall-back (its blurred surroundings)" in filled
    assert "θ = 0.5" in nothing and "lower λ₃ (area) or λ₂ (border), or take more steps" in nothing
    assert dict(impact.measures(explanation.scores))["Hausdorff distance H"] == "undefined (no region)"
    assert "Inpainter: none, fall-back blur" in repeat.words(explanation)


@pytest.mark.parametrize("how", ["folder", "one by one"])
def test_removal_leaves_nothing(desk, how):
    run, found = desk.finish()
    found.fade = 0.5
    if how == "folder":
        remove.remove(desk.scene, run.folder)
    else:
        for node in remove.of_run(desk.scene, run.id):
            if desk.scene.IsNodePresent(node):
                desk.scene.RemoveNode(node)
        hierarchy(desk.scene).RemoveItem(run.folder)
    assert ids(desk.scene) == desk.before and shown(desk.scene)[1] == "" and shown(desk.scene)[3] == []


def test_two_runs_do_not_lie_over_each_other(desk):
    _, first = desk.finish()
    first.fade = 0.4
    second, _ = desk.finish()
    assert [name for name, _ in shown(desk.scene)[3]] == [second.nodes["mask"].GetName()]
    remove.remove(desk.scene, second.folder)
    assert shown(desk.scene)[1:] == ["Without the finding", 0.4, [("Deleted share", impact.FAINT)]]
    heat = Run(desk.host, desk.node, "Back-projection")
    heat.preview("heat", desk.explanation.maps["mask"].volume)
    assert shown(desk.scene)[1] == "heat" and shown(desk.scene)[3] == []
    heat.discard()
    assert shown(desk.scene)[3] == [("Deleted share", impact.FAINT)]


def test_a_run_begins_again_in_place_and_can_go_back(desk):
    from MedXAILib.scene import write

    run, found = desk.finish()
    run.done = write.light(desk.explanation)
    found.fade = 0.6
    nodes, count, texts = ids(desk.scene), items(desk.scene), run.about.GetText()
    arrays = {name: voxels(node.GetImageData()).copy() for name, node in run.nodes.items()}
    curve = voxels_of_curve(run)
    before = run.begin_again()
    run.theta = 0.5
    weaker = examples.counterfactual(desk.volume, crossed=False)
    for name in ("mask", "inpainted"):
        run.preview(name, weaker.maps[name].volume)
    run.point("optimisation", 0, {"probability": 0.5, "area": 0.2, "loss": 1.0})
    assert np.array_equal(voxels_of_curve(run), curve)  # one point is no curve: the old one stays
    run.point("optimisation", 1, {"probability": 0.4, "area": 0.2, "loss": 1.0})
    assert len(voxels_of_curve(run)) == 2
    run.finish(weaker)
    assert ids(desk.scene) == nodes and items(desk.scene) == count and found.fade == pytest.approx(0.6)
    assert np.array_equal(voxels(run.nodes["mask"].GetImageData()), weaker.maps["mask"].volume.array)
    assert found.components() == [] and run.about.GetText() != texts and run.whole
    run.finish(before)
    for name, array in arrays.items():
        assert np.array_equal(voxels(run.nodes[name].GetImageData()), array)
    assert np.array_equal(outline(desk.scene, run.id), desk.explanation.masks["region"].array)
    assert ids(desk.scene) == nodes and run.about.GetText() == texts and len(found.components()) == 1
    assert np.array_equal(voxels_of_curve(run), curve)
    desk.scene.RemoveNode(run.nodes["difference"])
    assert not run.whole


def voxels_of_curve(run) -> np.ndarray:
    table = run.curves["optimisation"]["table"].GetTable()
    return np.array([table.GetValueByName(n, "probability").ToDouble() for n in range(table.GetNumberOfRows())])


def test_a_saved_scene_has_it_all(tmp_path):
    volume = examples.volume((10, 40, 50))
    explanation = examples.counterfactual(volume, 4)
    segments = examples.organ_and_finding(volume)
    start = impact.with_role(explanation.maps["mask"].volume, "start")
    bundle.save_scene(explanation, [volume], [*segments, start], tmp_path / "scene.mrb")
    again = HeadlessHost()
    try:
        again.open(tmp_path / "scene.mrb")
        scene = again.scene
        mask = next(n for n in of_class(scene, "vtkMRMLScalarVolumeNode") if n.GetName() == "Deleted share")
        found = impact.Impact(scene, run_id(scene, mask))
        assert np.array_equal(voxels(mask.GetImageData()), explanation.maps["mask"].volume.array)
        assert found.fade == 1.0 and found.volume_node.GetName() == volume.name
        assert shown(scene)[:2] == ["CT liver", "Without the finding"]
        known = repeat.provenance(scene, mask)
        segmentation = known["segmentation"].GetSegmentation()
        names = [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())]
        assert names == ["right lung", "mass"] and known["segment"] == "mass"
        assert known["parts"] == {"organ": (known["segmentation"], "right lung")}
        assert len(found.components()) == 1 and np.array_equal(
            outline(scene, found.run), explanation.masks["region"].array
        )
        assert next(pick.rows(scene, found.run, "classes", ("label", "probability"))) == ("lesion", "0.93")
        found.opacity, found.fade = 0.5, 0.2
        assert shown(scene)[2:] == [0.2, [("Deleted share", 0.5)]]
        remove.remove(scene, mask)
        assert not remove.of_run(scene, found.run) and shown(scene)[3] == []
    finally:
        again.close()


# -- with a worker that plays ------------------------------------------------------------------------------------------


def begin(desk, way_segments=(), **settings):
    request = RunRequest("counterfactual", str(desk.model), [read.volume(desk.node)], settings, way_segments)
    volume = read.volume(desk.node)
    first = {"inpainted": volume, "mask": volume.with_array(0 * volume.array, "mask")}
    desk.live._keeps = True
    desk.live.start(desk.client, request, [desk.node], "Counterfactual", first=first)
    desk.live.run.theta = 0.5
    return request


def again(desk, request, **settings):
    import dataclasses

    run = desk.live.restartable
    start = impact.Impact(desk.scene, run.id, desk.node).start()
    segments = [*request.segments, *([start] if start is not None else [])]
    desk.live.restart(desk.client, dataclasses.replace(request, settings=settings, segments=segments))
    return run


def classifier(desk):
    path = desk.model / "model.json"
    package = json.loads(path.read_text())
    path.write_text(json.dumps({**package, "task": "classification"}))


def test_sliders_restart_a_running_run_from_its_mask(worker_desk):  # noqa: F811
    desk = worker_desk("slow")
    classifier(desk)
    nothing = desk.state()
    request = begin(desk)
    run = desk.live.run
    desk.wait(lambda: any(fraction > 0.2 for fraction, *_ in desk.control.stages))
    folders = items(desk.scene)
    mask = voxels(run.nodes["mask"].GetImageData())
    reached = float(mask.max())
    assert reached > 0.1
    desk.way = "slow"
    assert again(desk, request, lambda_score=1.5) is run and desk.live.run is run
    began = len(desk.control.stages)
    desk.wait(lambda: any(fraction > 0.05 for fraction, *_ in desk.control.stages[began:]))
    assert float(mask.max()) >= 0.9 * reached  # it went on, not back to nothing
    assert items(desk.scene) == folders and desk.live.active
    desk.live.cancel()
    desk.wait(lambda: desk.control.state is RunState.CANCELLED)
    assert desk.state() == nothing and desk.live.restartable is None


def test_a_finished_run_begins_again_and_comes_back_on_cancel(worker_desk):  # noqa: F811
    desk = worker_desk("slow_warm")
    classifier(desk)
    segment = examples.landmark_masks(read.volume(desk.node))[0]
    request = begin(desk, [impact.with_role(segment, "annotation")])
    desk.wait(lambda: desk.control.state is RunState.DONE)
    run = desk.live.restartable
    found = impact.Impact(desk.scene, run.id)
    found.fade = 0.3
    state, mask = desk.state(), voxels(run.nodes["mask"].GetImageData()).copy()
    again(desk, request, lambda_score=0.05)
    desk.wait(lambda: not np.array_equal(voxels(run.nodes["mask"].GetImageData()), mask))
    assert desk.state() == state
    desk.live.cancel()
    desk.wait(lambda: desk.control.state is RunState.CANCELLED)
    assert "from before is back" in desk.control.message
    assert np.array_equal(voxels(run.nodes["mask"].GetImageData()), mask) and desk.state() == state
    assert found.fade == pytest.approx(0.3) and desk.live.restartable is run
    again(desk, request, lambda_score=0.05)
    desk.wait(lambda: desk.control.state is RunState.DONE)
    known = repeat.provenance(desk.scene, run.folder)["provenance"]
    assert known["roles"] == ["annotation", "start"] and known["warm"] == pytest.approx(float(mask.max()))
    assert known["settings"]["lambda_score"] == 0.05 and desk.state() == state
    assert voxels(run.nodes["mask"].GetImageData()).sum() < mask.sum()
    remove.remove(desk.scene, run.folder)
    assert desk.live.restartable is None


def test_a_failed_restart_gives_the_result_back(worker_desk):  # noqa: F811
    desk = worker_desk("error_warm")
    classifier(desk)
    request = begin(desk)
    desk.wait(lambda: desk.control.state is RunState.DONE)
    run, state = desk.live.restartable, desk.state()
    mask = voxels(run.nodes["mask"].GetImageData()).copy()
    again(desk, request, lambda_score=0.05)
    desk.wait(lambda: desk.control.state is RunState.FAILED)
    assert np.array_equal(voxels(run.nodes["mask"].GetImageData()), mask) and desk.state() == state
    assert repeat.provenance(desk.scene, run.folder)["settings"]["lambda_score"] == 0.1


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_page(tmp_path, place):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from MedXAILib.scene.report import report

    shape, matrix, at = PLACES[place]
    volume = examples.volume(shape, matrix)
    segments = examples.organ_and_finding(volume)
    report(examples.counterfactual(volume, at), [volume], tmp_path / "report.png", segments)
    page = imread(tmp_path / "report.png")[..., :3]

    def near(colour, share=0.1):
        return np.abs(page - colour).max(-1) < share

    assert near(colors.OUTPUT)[150:1300, :1500].sum() > 100  # the region's outline
    assert near(colors.ANNOTATION)[150:1300, :1500].sum() > 100
    assert near((0x2A / 255, 0x5F / 255, 0xA5 / 255), 0.03)[150:300, 1000:].sum() > 300  # the bar of what is left
    line = np.abs(page - colors.LINES[0]).max(-1) < 0.08
    assert line[300:700, 1000:].sum() > 200  # the curve


def test_page_without_a_region(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from MedXAILib.scene.report import report

    volume = examples.volume((1, 60, 50), examples.straight((0.2, 0.2, 1)))
    explanation = examples.counterfactual(volume, annotated=False, crossed=False, fallback=True)
    report(explanation, [volume], tmp_path / "report.png")
    page = imread(tmp_path / "report.png")[..., :3]
    red = np.abs(page - (0xB3 / 255, 0x36 / 255, 0x1B / 255)).max(-1) < 0.1
    assert red[150:500, 1000:].sum() > 500  # both warnings, bold


# -- time --------------------------------------------------------------------------------------------------------------


def test_the_fade_is_quick(host):  # noqa: F811
    volume = examples.volume((96, 128, 128), examples.straight())
    explanation = examples.counterfactual(volume)
    run = Run(host, bundle.add_input(host.scene, volume), "time")
    run.theta = 0.5
    run.finish(explanation)
    found, spent = impact.Impact(host.scene, run.id), {"fade": [], "preview": []}
    for n in range(20):
        began = time.thread_time()
        found.fade = n / 20
        spent["fade"].append(1000 * (time.thread_time() - began))
    for _ in range(3):
        began = time.thread_time()
        run.preview("mask", explanation.maps["mask"].volume)
        spent["preview"].append(1000 * (time.thread_time() - began))
    print({name: f"{np.median(values):.2f} ms" for name, values in spent.items()})
    assert np.median(spent["fade"]) < 20 and np.median(spent["preview"]) < 200
