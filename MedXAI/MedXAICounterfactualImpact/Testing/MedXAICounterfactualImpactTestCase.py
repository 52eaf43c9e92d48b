"""The Counterfactual Impact panel in Slicer, with a worker that plays (no torch needed), and once with the real one."""

import json
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "MedXAIDeepDream" / "Testing"))

import numpy as np
import slicer
from panel_testing import (
    Heartbeat,
    PanelCase,
    Refusal,
    Stopwatch,
    clearScene,
    realPanel,
    sceneState,
    sliceViews,
    turn,
    waitFor,
    writeModel,
)

ROOT = Path(__file__).resolve().parents[3]


def writeNetwork(folder, name, dims=3, task="classification", channels=("CT",), size=None):
    """A classifier, or an inpainter, for the worker that plays."""
    about = {"spatial_dims": dims, "channels": list(channels), "orientation": None, "spacing": None, "size": size,
             "multiple_of": None, "intensity": {"kind": "none"}}  # fmt: skip
    output = {"labels": ["lesion", "healthy"], "activation": "softmax"}
    network = {"name": "DenseNet121", "arguments": {}}
    if task == "inpainting":
        output = {"labels": list(channels), "activation": "none"}
        network = {
            "name": "PartialUNet",
            "arguments": {"spatial_dims": dims, "channels": len(channels), "levels": 2, "width": 8},
        }
    return writeModel(folder, name, task=task, input=about, output=output, network=network)


class CounterfactualCase(PanelCase):
    """The panel with a classifier, and what it shows."""

    module = "MedXAICounterfactualImpact"

    def setUp(self):
        super().setUp()
        self.use(writeNetwork(self.worker.folder / "classifier", "Played classifier"))

    def use(self, folder):
        from MedXAILib.panel.model_picker import library

        self.panel.picker.refresh(str(library().add(folder)))
        self.panel._onModelChosen()
        self.panel._check()

    def inpainter(self, name="Played tissue", **about):
        from MedXAILib.panel.model_picker import library

        folder = library().add(writeNetwork(self.worker.folder / name, name, task="inpainting", **about))
        self.panel.inpainter.refresh()
        combo = self.panel.inpainter.combo
        combo.setCurrentIndex([combo.itemText(n) for n in range(combo.count)].index(name))
        return folder

    def segments(self):
        """A segmentation with an organ and a finding in it."""
        from MedXAILib.scene import read, segments

        volume = read.volume(self.volume)
        node = segments.add_segmentation(slicer.mrmlScene, "Drawn", self.volume)
        for name, (a, b) in {"organ": (2, 22), "mass": (10, 16)}.items():
            mask = np.zeros(self.shape, np.uint8)
            mask[a:b, a:b, a : b + 4] = 1
            segments.set_mask(node, name, volume.with_array(mask), volume.ijk_to_ras)
        return node

    def choose(self, row, node, segmentId):
        row.selector.setCurrentNode(node)
        row.selector.setCurrentSegmentID(segmentId)

    @property
    def results(self):
        return self.panel.results

    def node(self, name, className="vtkMRMLScalarVolumeNode"):
        nodes = [n for n in slicer.util.getNodesByClass(className) if n.GetAttribute("MedXAI.Run")]
        return next((n for n in nodes if n.GetAttribute("MedXAI.Name") == name), None)

    def mask(self):
        return slicer.util.arrayFromVolume(self.node("mask"))

    def views(self):
        """What every slice view shows: background, foreground, fade, and opacity of the mask."""
        found = set()
        for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
            over = [
                (view.GetNthLayerVolumeID(view.Layer_Last + n), view.GetNthLayerOpacity(view.Layer_Last + n))
                for n in range(view.GetNumberOfAdditionalLayers())
            ]
            found.add(
                (
                    view.GetBackgroundVolumeID(),
                    view.GetForegroundVolumeID(),
                    round(view.GetForegroundOpacity(), 3),
                    tuple(over),
                )
            )
        self.assertEqual(len(found), 1)
        return found.pop()

    def folders(self):
        from MedXAILib.scene.nodes import RUN, children, hierarchy

        tree = hierarchy(slicer.mrmlScene)
        return [
            i
            for i in children(slicer.mrmlScene, tree.GetSceneItemID())
            if tree.GetItemOwnerPluginName(i) == "Folder" and tree.GetItemAttribute(i, RUN)
        ]

    def rows(self, table):
        return [[table.item(row, n).text() for n in range(table.columnCount)] for row in range(table.rowCount)]


class InputTest(Refusal, CounterfactualCase):
    """Why the button can or cannot be pressed, and what is sent."""

    def test_everything_chosen_is_ready(self):
        self.assertEqual(self.control.reason, "")
        self.assertEqual(self.panel.picker.labelCombo.currentText, "what the network answers")
        settings = self.panel.settings()
        self.assertEqual((settings.label, settings.inpainter, settings.lambda_score), ("", "", 0.1))
        self.assertIn("Without an inpainter", self.panel.inpainter.aboutLabel.text)
        self.assertTrue(self.panel.followCheck.checked)

    def test_inpainters_here_and_not_among_classifiers(self):
        def names(combo):
            return [combo.itemText(n) for n in range(combo.count)]

        folder = self.inpainter()
        self.assertEqual(self.panel.settings().inpainter, str(folder))
        self.assertEqual(self.control.reason, "")
        self.panel.enter()
        self.assertEqual(self.panel.settings().inpainter, str(folder))
        self.assertNotIn("Played tissue", names(self.panel.picker.combo))
        self.assertNotIn("Played classifier", names(self.panel.inpainter.combo))
        for module in ("MedXAIDeepDream", "MedXAIFeatureBackProjection"):
            slicer.util.selectModule(module)
            other = slicer.util.getModuleWidget(module).panel
            other.enter()
            self.assertNotIn("Played tissue", names(other.picker.combo))

    def test_an_inpainter_that_does_not_fit_is_refused(self):
        self.inpainter("Flat tissue", dims=2)
        self.assertIn("'Flat tissue' takes 2-D images, and the classifier 3-D images", self.control.reason)
        self.inpainter("Coloured tissue", channels=("a", "b"))
        self.assertIn("2 channel(s), and the classifier 1 channel(s)", self.control.reason)
        self.panel.inpainter.combo.setCurrentIndex(0)
        self.assertEqual(self.control.reason, "")

    def test_roles_are_sent(self):
        node = self.segments()
        self.choose(self.panel.organ, node, "organ")
        self.choose(self.panel.annotation, node, "mass")
        self.assertEqual(self.control.reason, "")
        sent = self.panel.masks(self.volume)
        self.assertEqual(
            [(one.name, one.attributes["role"]) for one in sent], [("organ", "organ"), ("mass", "annotation")]
        )
        self.runToEnd()
        known = json.loads(self.node("mask").GetAttribute("MedXAI.Provenance"))
        self.assertEqual(known["roles"], ["annotation", "organ"])

    def test_presets_set_the_sliders(self):
        from MedXAILib.settings import CounterfactualSettings

        combo = self.panel.presetCombo
        self.assertEqual(combo.currentText, "fitted")
        index = [combo.itemText(n) for n in range(combo.count)].index("paper")
        combo.setCurrentIndex(index)
        combo.activated(index)
        paper = CounterfactualSettings.PRESETS["paper"]
        settings = self.panel.settings()
        self.assertEqual({name: getattr(settings, name) for name in paper}, paper)
        self.assertAlmostEqual(self.panel.sliders["lambda_tv"].value, paper["lambda_tv"])
        self.panel.sliders["lambda_area"].value *= 2.5
        self.assertEqual(combo.currentText, "own")
        self.panel.parameters.lambda_area = 555.0  # beyond the slider: kept, not cut
        self.assertEqual((self.panel.settings().lambda_area, self.panel.sliders["lambda_area"].value), (555.0, 555.0))
        combo.activated(0)
        self.assertEqual(combo.currentText, "fitted")

    def test_a_network_of_slices_takes_the_one_that_is_shown(self):
        self.use(writeNetwork(self.worker.folder / "flat", "Slices", 2))
        self.assertIn("press Shown", self.control.reason)
        slicer.util.getNode("vtkMRMLSliceNodeRed").SetSliceOffset(-30 + 2.5 * 9)
        self.panel.sliceButton.click()
        self.assertEqual((self.panel.settings().slice, self.control.reason), ("k:9", ""))
        self.runToEnd()
        self.assertEqual(np.flatnonzero(self.mask().any((1, 2))).tolist(), [9])
        self.panel.parameters.slice = ""
        self.choose(self.panel.annotation, self.segments(), "mass")
        self.assertEqual(self.control.reason, "")


class ResultTest(CounterfactualCase):
    """What can be looked at after a run, without a new one."""

    def setUp(self):
        super().setUp()
        self.drawn = self.segments()
        self.choose(self.panel.organ, self.drawn, "organ")
        self.choose(self.panel.annotation, self.drawn, "mass")
        self.runToEnd()

    def test_layers_gauge_tables_and_warnings_are_there(self):
        from MedXAILib.scene import impact

        background, foreground, fade, over = self.views()
        self.assertEqual((background, foreground, fade), (self.volume.GetID(), self.node("inpainted").GetID(), 1.0))
        self.assertEqual(
            [(name, round(opacity, 3)) for name, opacity in over], [(self.node("mask").GetID(), impact.FAINT)]
        )
        self.assertIn("No inpainter: a fall-back (its blurred surroundings)", self.results.warningLabel.text)
        self.assertEqual((self.results.beforeBar.text, self.results.nowBar.text), ("0.950", "0.150"))
        self.assertEqual(self.rows(self.results.classTable)[0], ["lesion", "0.950", "0.150"])
        measures = dict(self.rows(self.results.measureTable))
        self.assertEqual(
            (measures["Distance D of the centres"], measures["Dice"], measures["Hit"]), ("1.5 mm", "0.6", "yes")
        )
        self.assertIn("drop kept: 0.9 (passed)", self.results.notesLabel.text)
        region = self.node("masks", "vtkMRMLSegmentationNode").GetSegmentation().GetSegment("region")
        self.assertIsNotNone(region)
        self.assertNotIn("torch", sys.modules)

    def test_the_fade_follows_at_once_and_zoom_stays(self):
        slicer.util.getNode("vtkMRMLSliceNodeRed").SetFieldOfView(50, 50, 1)
        before = sliceViews()
        for value in (0, 250, 900):
            self.results.fadeSlider.value = value
            self.assertAlmostEqual(self.views()[2], value / 1000, 3)
        self.results.opacitySlider.value = 0.7
        self.assertAlmostEqual(self.views()[3][0][1], 0.7)
        self.results.leastSlider.value = 0.3
        self.assertAlmostEqual(self.node("mask").GetDisplayNode().GetLowerThreshold(), 0.3)
        self.assertEqual(sliceViews(), before)
        turn(0.3)  # the list of runs is made again; what is chosen stays
        self.assertEqual((self.results.fadeSlider.value, round(self.results.opacitySlider.value, 2)), (900, 0.7))

    def test_a_component_is_gone_to(self):
        table = self.results.componentTable
        self.assertEqual(table.rowCount, 1)
        slicer.util.getNode("vtkMRMLSliceNodeRed").SetSliceOffset(-30)
        table.cellClicked(0, 0)
        volume = self.results.impact.components()[0]
        self.assertAlmostEqual(slicer.util.getNode("vtkMRMLSliceNodeRed").GetSliceOffset(), float(volume[5]), 3)
        slicer.util.getNode("vtkMRMLSliceNodeRed").SetSliceOffset(-30)
        self.results.goButton.click()
        self.assertAlmostEqual(slicer.util.getNode("vtkMRMLSliceNodeRed").GetSliceOffset(), float(volume[5]), 3)

    def test_repeat_fills_the_panel_and_starts_nothing(self):
        self.choose(self.panel.organ, None, "")
        self.choose(self.panel.annotation, None, "")
        self.panel.followCheck.checked = False
        self.panel.parameters.lambda_score = 0.7
        self.panel.followCheck.checked = True
        self.results.repeatButton.click()
        turn(0.6)
        self.assertFalse(self.control.state.active)
        self.assertEqual(self.panel.settings().lambda_score, 0.1)
        self.assertEqual(
            [(one.name, one.attributes["role"]) for one in self.panel.masks(self.volume)],
            [("organ", "organ"), ("mass", "annotation")],
        )

    def test_remove_run_leaves_the_scene_as_it_was(self):
        self.results.fadeSlider.value = 300
        self.results.removeButton.click()
        turn(0.3)
        self.assertEqual([n for n in slicer.util.getNodesByClass("vtkMRMLNode") if n.GetAttribute("MedXAI.Run")], [])
        self.assertEqual(self.views()[1:], (None, 0.0, ()))
        self.assertEqual((self.results.folder, self.results.classTable.rowCount), (0, 0))
        self.assertFalse(self.results.fadeSlider.enabled)
        self.panel.sliders["lambda_score"].value = 2.0
        turn(0.7)
        self.assertFalse(self.control.state.active)

    def test_chart_is_shown(self):
        self.results.chartButton.click()
        self.addCleanup(self.results.chartButton.click)
        view = slicer.util.getNodesByClass("vtkMRMLPlotViewNode")[0]
        self.assertEqual(view.GetPlotChartNode().GetTitle(), "Probability and area")

    def test_a_saved_scene_answers_again(self):
        import tempfile

        self.results.fadeSlider.value = 400
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "scene.mrb")
            self.assertTrue(slicer.util.saveScene(path))
            clearScene()
            self.assertTrue(slicer.util.loadScene(path))
        turn(0.3)
        self.assertEqual((self.results.nowBar.text, self.results.componentTable.rowCount), ("0.150", 1))
        self.results.showButton.click()
        self.results.fadeSlider.value = 200
        self.assertAlmostEqual(self.views()[2], 0.2)
        self.panel.sliders["lambda_score"].value = 2.0  # nothing to begin again from another session
        turn(0.7)
        self.assertFalse(self.control.state.active)

    def test_nothing_crossed_is_said_with_what_to_do(self):
        self.panel.sliders["lambda_area"].value = 4 * self.panel.settings().lambda_area
        self.assertTrue(waitFor(lambda: self.control.state.active, 3))
        self.assertTrue(waitFor(lambda: not self.control.state.active))
        self.assertIn(
            "so there is no region: lower λ₃ (area) or λ₂ (border), or take more steps", self.results.warningLabel.text
        )
        self.assertEqual(self.results.componentTable.rowCount, 0)
        self.assertFalse(self.results.componentTable.visible)
        self.results.goButton.click()


class FollowTest(CounterfactualCase):
    """λ sliders: the run begins again from its mask, in its own place."""

    way = "slow_warm"

    def test_a_finished_run_follows_the_sliders_in_place(self):
        self.runToEnd()
        state, folders, node = sceneState(), self.folders(), self.node("mask")
        most = float(self.mask().max())
        self.results.fadeSlider.value = 600
        slider, job = self.panel.sliders["lambda_score"], self.panel.live.job
        self.assertIsNone(job)
        for value in (0.9, 0.8, 0.6):  # one run for many moves
            slider.value = value
        self.assertFalse(self.control.state.active)
        self.assertTrue(waitFor(lambda: self.control.state.value == "running", 5))
        self.assertEqual(self.panel.live.job.command["settings"]["lambda_score"], 0.6)
        roles = [one["attributes"].get("role") for one in self.panel.live.job.command["segments"]]
        self.assertEqual(roles, ["start"])
        self.assertTrue(waitFor(lambda: self.control._fraction > 0.05))
        self.assertIs(self.node("mask"), node)
        self.assertGreater(float(self.mask().max()), 0.9 * most)
        self.assertEqual((sceneState(), self.folders(), self.views()[2]), (state, folders, 0.6))
        self.results.fadeSlider.value = 250
        self.assertEqual(self.views()[2], 0.25)
        self.assertTrue(waitFor(lambda: not self.control.state.active, 20))
        self.assertEqual(self.control.state.value, "done", self.control.logEdit.plainText)
        turn(0.3)
        self.assertEqual((sceneState(), self.folders(), self.views()[2]), (state, folders, 0.25))
        known = json.loads(node.GetAttribute("MedXAI.Provenance"))
        self.assertEqual(known["settings"]["lambda_score"], 0.6)
        self.assertGreater(known["warm"], 0.5)

    def test_cancel_brings_the_result_back(self):
        self.runToEnd()
        before, state = self.mask().copy(), sceneState()
        self.panel.sliders["lambda_score"].value = 0.5
        self.assertTrue(
            waitFor(lambda: self.control.state.value == "running" and not np.array_equal(self.mask(), before), 8)
        )
        self.press()
        self.assertTrue(waitFor(lambda: not self.control.state.active, 3.5))
        self.assertIn("from before is back", self.control.statusLabel.text)
        self.assertTrue(np.array_equal(self.mask(), before))
        turn(0.3)
        self.assertEqual(sceneState(), state)

    def test_apply_makes_a_new_run_and_the_older_one_stays(self):
        self.runToEnd()
        first, before = self.folders(), self.mask().copy()
        self.panel.followCheck.checked = False
        self.panel.sliders["lambda_score"].value = 0.5
        turn(0.6)
        self.assertFalse(self.control.state.active)
        self.panel.followCheck.checked = True
        self.runToEnd()
        self.assertEqual(len(self.folders()), 2)
        self.assertTrue(np.array_equal(self.mask(), before))
        self.results.runCombo.setCurrentIndex(self.results.folders.index(first[0]))
        self.panel.sliders["lambda_score"].value = 0.8  # the chosen run is not the one that ended last
        turn(0.7)
        self.assertFalse(self.control.state.active)


class StreamTest(CounterfactualCase):
    way = "slow"

    def test_live_fade_slider_restart_and_cancel_leaves_nothing(self):
        before = sceneState()
        self.press()
        self.assertTrue(waitFor(lambda: self.control.state.value == "running" and self.control._fraction > 0.2))
        mask = self.mask()
        first = float(mask.max())
        self.assertTrue(waitFor(lambda: float(mask.max()) > first, 5))
        self.assertNotEqual(self.results.nowBar.text, "–")
        self.results.fadeSlider.value = 100
        self.assertEqual(self.views()[1:3], (self.node("inpainted").GetID(), 0.1))
        folders, reached = self.folders(), float(mask.max())
        self.panel.sliders["lambda_score"].value = 1.5
        self.assertTrue(waitFor(lambda: self.panel.live.job.command["settings"]["lambda_score"] == 1.5, 3))
        self.assertTrue(waitFor(lambda: self.control.state.value == "running" and self.control._fraction > 0.03))
        self.assertGreater(float(self.mask().max()), 0.9 * reached)
        self.assertEqual((self.folders(), self.views()[2]), (folders, 0.1))
        began = time.monotonic()
        self.press()
        self.assertTrue(waitFor(lambda: not self.control.state.active, 3.5))
        self.assertLess(time.monotonic() - began, 3)
        turn(0.7)
        self.assertEqual(sceneState(), before)
        self.assertFalse(self.control.state.active)


class SpeedTest(CounterfactualCase):
    """At 128³: the fade follows the drag within 50 ms, drawing included, also while the run is going."""

    way, shape = "slow", (128, 128, 128)

    def test_fade(self):
        self.press()
        self.assertTrue(waitFor(lambda: self.control._fraction > 0.05, 60))
        moved = []
        for n in range(1, 9):
            with Stopwatch() as watch:
                self.results.fadeSlider.value = 120 * n
                slicer.app.processEvents()
            moved.append(watch)
        with Heartbeat() as heart:
            turn(2)
        print(
            "MedXAI counterfactual 128³:",
            json.dumps({"fade_ms": [w.milliseconds for w in moved], "turn_ms": round(1000 * heart.longest)}),
        )
        self.assertLess(sorted(watch.seconds for watch in moved)[4], 0.1)


class RealWorkerTest(unittest.TestCase):
    """The sample classifier, the sample inpainter and the real worker; skipped, and counted, where the worker's Python has no torch."""

    def test_a_real_run_and_a_slider(self):
        panel = realPanel(self, "MedXAICounterfactualImpact")
        from MedXAIDeepDream import loadMammogram

        volume = loadMammogram()
        segmentation = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
        models = ROOT / "Resources" / "Models"
        panel.enter()
        panel.picker.refresh(str(models / "mammogram-classifier"))
        panel._onModelChosen()
        panel.volumes.choose([volume])
        panel.parameters.inpainter = str(models / "mammogram-inpainter")
        for row, name in ((panel.organ, "breast"), (panel.annotation, "mass")):
            row.selector.setCurrentNode(segmentation)
            row.selector.setCurrentSegmentID(name)
        panel.parameters.steps, panel.parameters.restarts, panel.parameters.label = 12, 1, ""
        panel._check()
        self.assertEqual(panel.control.reason, "")
        panel.control.applyButton.click()
        self.assertTrue(waitFor(lambda: not panel.control.state.active, 240))
        self.assertEqual(panel.control.state.value, "done", panel.control.logEdit.plainText)
        self.assertNotEqual(panel.results.beforeBar.text, "–")
        self.assertIn("Inpainter: Phantom mammogram inpainter", panel.results.warningLabel.text)
        folder = panel.results.folder
        panel.sliders["lambda_area"].value = panel.sliders["lambda_area"].value / 2 + 0.01
        self.assertTrue(waitFor(lambda: panel.control.state.active, 5))
        self.assertTrue(waitFor(lambda: not panel.control.state.active, 240))
        self.assertEqual(panel.control.state.value, "done", panel.control.logEdit.plainText)
        self.assertEqual(panel.results.folder, folder)
        self.assertNotIn("torch", sys.modules)


if __name__ == "__main__":
    unittest.main()
