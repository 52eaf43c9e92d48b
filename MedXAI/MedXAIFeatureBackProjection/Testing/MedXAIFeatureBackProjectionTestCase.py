"""The Feature Back-projection panel in Slicer, with a worker that plays (no torch needed), and once with the real one."""

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
    turn,
    waitFor,
    writeModel,
)

ROOT = Path(__file__).resolve().parents[3]


def writeClassifier(folder, name="Played view", dims=3):
    """A classification package for the worker that plays."""
    about = {"spatial_dims": dims, "channels": ["CT"], "orientation": None, "spacing": None, "size": None,
             "multiple_of": None, "intensity": {"kind": "none"}}  # fmt: skip
    output = {"labels": ["PA", "AP", "lateral"], "activation": "softmax"}
    network = {"name": "DenseNet121", "arguments": {}}
    return writeModel(folder, name, task="classification", input=about, output=output, network=network)


class BackprojectCase(PanelCase):
    """The panel with a classifier, and what it shows."""

    module = "MedXAIFeatureBackProjection"

    def setUp(self):
        super().setUp()
        self.use(writeClassifier(self.worker.folder / "classifier"))

    def use(self, folder):
        from MedXAILib.panel.model_picker import library

        self.panel.picker.refresh(str(library().add(folder)))
        self.panel._onModelChosen()
        self.panel._check()

    def landmarks(self, hidden=()):
        """A segmentation with three segments."""
        from MedXAILib.scene import read, segments

        volume = read.volume(self.volume)
        node = segments.add_segmentation(slicer.mrmlScene, "Anatomy", self.volume)
        for n, name in enumerate(("right lung", "left lung", "heart")):
            mask = np.zeros(self.shape, np.uint8)
            mask[:, 4 + 8 * n : 10 + 8 * n, 8:30] = 1
            segments.set_mask(node, name, volume.with_array(mask), volume.ijk_to_ras)
        for name in hidden:
            node.GetDisplayNode().SetSegmentVisibility(name, False)
        return node

    @property
    def results(self):
        return self.panel.results

    def node(self, className, name):
        return next(n for n in self.results.nodes(className) if n.GetAttribute("MedXAI.Name") == name)

    @property
    def heat(self):
        return self.node("vtkMRMLScalarVolumeNode", "heat")

    def foreground(self):
        found = {n.GetForegroundVolumeID() for n in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")}
        self.assertEqual(len(found), 1)
        return slicer.mrmlScene.GetNodeByID(found.pop() or "")

    def rows(self, table):
        return [[table.item(row, n).text() for n in range(table.columnCount)] for row in range(table.rowCount)]


class InputTest(Refusal, BackprojectCase):
    """Why the button can or cannot be pressed, and what is sent."""

    def test_everything_chosen_is_ready(self):
        self.assertEqual(self.control.reason, "")
        self.assertEqual((self.panel.picker.label, self.panel.settings().label), ("", ""))
        self.assertEqual(self.panel.picker.labelCombo.currentText, "what the network answers")
        self.panel.picker.labelCombo.setCurrentIndex(2)
        self.assertEqual(self.panel.settings().label, "AP")
        self.assertEqual(self.panel.settings().filters, 25)

    def test_only_classifiers_here_and_only_segmentation_there(self):
        def names(panel):
            return [panel.picker.combo.itemText(n) for n in range(panel.picker.combo.count)]

        self.assertIn("Played view", names(self.panel))
        self.assertNotIn("Played organ", names(self.panel))
        for module in ("MedXAIDeepDream", "MedXAISegmentationAbility"):
            slicer.util.selectModule(module)
            other = slicer.util.getModuleWidget(module).panel
            other.enter()
            self.assertIn("Played organ", names(other))
            self.assertNotIn("Played view", names(other))

    def test_landmarks_are_the_visible_segments(self):
        node = self.landmarks(hidden=["heart"])
        self.panel.landmarks.selector.setCurrentNode(node)
        self.assertEqual(self.panel.parameters.segmentation, node)
        self.assertEqual(self.panel.landmarks.names, ["right lung", "left lung"])
        for name in ("right lung", "left lung"):
            node.GetDisplayNode().SetSegmentVisibility(name, False)
        self.assertIn("are hidden", self.control.reason)
        node.GetDisplayNode().SetSegmentVisibility("left lung", True)
        self.assertEqual(self.control.reason, "")
        self.assertEqual(self.panel.landmarks.namesLabel.text, "left lung")

    def test_a_network_of_slices_takes_the_one_that_is_shown(self):
        self.use(writeClassifier(self.worker.folder / "flat", "Slices", 2))
        self.assertIn("press Shown", self.control.reason)
        slicer.util.getNode("vtkMRMLSliceNodeRed").SetSliceOffset(-30 + 2.5 * 9)
        self.panel.sliceButton.click()
        self.assertEqual(self.panel.settings().slice, "k:9")
        self.assertEqual(self.control.reason, "")
        self.runToEnd()
        kept = slicer.util.arrayFromVolume(self.heat)
        self.assertEqual(np.flatnonzero(kept.any((1, 2))).tolist(), [9])
        self.results.strip.setCurrentRow(2)
        self.assertEqual(self.foreground().GetImageData().GetDimensions(), (40, 32, 1))


class ResultTest(BackprojectCase):
    """What can be looked at after a run, without a new one."""

    def setUp(self):
        super().setUp()
        self.segmentation = self.landmarks()
        self.panel.landmarks.selector.setCurrentNode(self.segmentation)
        self.runToEnd()

    def test_heat_classes_filters_and_landmarks_are_there(self):
        self.assertIs(self.foreground(), self.heat)
        self.assertEqual(self.rows(self.results.classTable)[0], ["PA", "0.700"])
        self.assertEqual(self.results.strip.count, 25)
        self.assertEqual(self.results.strip.item(0).text(), "0: 6")
        self.assertFalse(self.results.strip.item(0).icon().isNull())
        self.assertEqual(
            [row[0] for row in self.rows(self.results.landmarkTable)], ["right lung", "left lung", "heart", "elsewhere"]
        )
        self.assertIn("of 25", self.rows(self.results.landmarkTable)[0][-1])
        notes = self.results.notesLabel.text
        for words in ("played, not computed", "filters matter: 3 (passed)", "not edges: 0.9 (NOT PASSED)"):
            self.assertIn(words, notes)
        self.assertNotIn("torch", sys.modules)

    def test_a_filter_is_shown_at_once_and_heat_goes_back(self):
        self.results.strip.setCurrentRow(3)
        shown = self.foreground()
        frame = self.node("vtkMRMLSequenceNode", "filters").GetDataNodeAtValue("4")
        self.assertTrue(np.array_equal(slicer.util.arrayFromVolume(shown), slicer.util.arrayFromVolume(frame)))
        self.assertIn("filter 6 (rank 4", self.results.shownLabel.text)
        display = shown.GetDisplayNode()
        self.assertAlmostEqual(display.GetWindowLevelMin(), -display.GetWindowLevelMax())
        turn(0.3)  # the list of runs is made again; what is chosen stays
        self.assertEqual(self.results.strip.currentRow, 3)
        self.results.heatButton.click()
        self.assertIs(self.foreground(), self.heat)
        self.assertEqual(self.results.strip.currentRow, -1)

    def test_the_slider_combines_fewer_filters(self):
        from MedXAILib import landmarks

        node = self.node("vtkMRMLSequenceNode", "filters")
        items = [slicer.util.arrayFromVolume(node.GetNthDataNode(n)) for n in range(25)]
        before = self.rows(self.results.landmarkTable)
        jobs = len(self.control.logEdit.plainText)
        self.results.strip.setCurrentRow(3)
        for n in (24, 7, 1, 8):
            self.results.countSlider.value = n
            expected = landmarks.heat(items[:n], np.full(n, 1 / n))
            np.testing.assert_allclose(slicer.util.arrayFromVolume(self.heat), expected, rtol=1e-5, atol=1e-6)
            self.assertEqual(self.results.countLabel.text, str(n))
            self.assertIn(f"of {n}", self.rows(self.results.landmarkTable)[0][-1])
        self.assertIs(self.foreground(), self.heat)
        self.results.countSlider.value = 25
        self.assertEqual(self.rows(self.results.landmarkTable), before)
        self.assertEqual(len(self.control.logEdit.plainText), jobs)

    def test_repeat_fills_the_panel(self):
        from MedXAILib.scene import repeat

        known = repeat.provenance(slicer.mrmlScene, self.results.folder)
        self.assertEqual((known["segmentation"], known["segment"]), (self.segmentation, ""))
        self.panel.landmarks.selector.setCurrentNode(None)
        self.panel.parameters.filters = 3
        self.segmentation.GetDisplayNode().SetSegmentVisibility("heart", False)
        self.results.repeatButton.click()
        self.assertEqual(self.panel.settings().filters, 25)
        self.assertIs(self.panel.landmarks.selector.currentNode(), self.segmentation)
        self.assertIn("right lung, left lung, heart", self.control.logEdit.plainText)
        self.assertIn("right lung, left lung, heart", self.control.message)
        self.assertEqual(self.panel.settings().slice, known["provenance"]["slice"])  # not the one of the landmarks now

    def test_remove_run_leaves_the_scene_as_it_was(self):
        self.results.strip.setCurrentRow(5)
        self.results.removeButton.click()
        self.assertEqual([n for n in slicer.util.getNodesByClass("vtkMRMLNode") if n.GetAttribute("MedXAI.Run")], [])
        self.assertIsNone(self.foreground())
        self.assertEqual(
            (self.results.folder, self.results.strip.count, self.results.landmarkTable.rowCount), (0, 0, 0)
        )
        self.assertFalse(self.results.countSlider.enabled)

    def test_chart_and_place(self):
        self.results.goButton.click()
        self.results.showButton.click()
        self.assertIs(self.foreground(), self.heat)
        self.results.chartButton.click()
        self.addCleanup(self.results.chartButton.click)
        view = slicer.util.getNodesByClass("vtkMRMLPlotViewNode")[0]
        self.assertEqual(view.GetPlotChartNode().GetTitle(), "Filters by score")

    def test_a_saved_scene_answers_again(self):
        import tempfile

        self.results.countSlider.value = 5
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "scene.mrb")
            self.assertTrue(slicer.util.saveScene(path))
            clearScene()
            self.assertTrue(slicer.util.loadScene(path))
        turn(0.3)
        self.assertEqual((self.results.countSlider.value, self.results.strip.count), (5, 25))
        self.results.strip.setCurrentRow(1)
        self.assertIn("filter 2 (rank 2", self.results.shownLabel.text)


class StreamTest(BackprojectCase):
    way = "slow"

    def test_the_heat_is_live_and_cancel_leaves_nothing(self):
        before = sceneState()
        self.press()
        self.assertTrue(waitFor(lambda: self.control.state.value == "running" and self.control._fraction > 0.1))
        node = next(n for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if n.GetAttribute("MedXAI.Run"))
        self.assertIs(self.foreground(), node)
        first = float(slicer.util.arrayFromVolume(node).max())
        self.assertTrue(waitFor(lambda: float(slicer.util.arrayFromVolume(node).max()) != first, 5))
        began = time.monotonic()
        self.press()
        self.assertTrue(waitFor(lambda: not self.control.state.active, 3.5))
        self.assertLess(time.monotonic() - began, 3)
        self.assertEqual(sceneState(), before)


class SpeedTest(BackprojectCase):
    """At 128³ with 25 filters: the slider and a filter answer within 100 ms, drawing included."""

    shape = (128, 128, 128)

    def test_slider_and_filters(self):
        self.panel.landmarks.selector.setCurrentNode(None)
        self.runToEnd(90)
        moved, chosen = [], []
        for n in (24, 23, 22, 21, 20):
            with Stopwatch() as watch:
                self.results.countSlider.value = n
                slicer.app.processEvents()
            moved.append(watch)
        for row in (3, 1, 7):
            with Stopwatch() as watch:
                self.results.strip.setCurrentRow(row)
                slicer.app.processEvents()
            chosen.append(watch)
        with Heartbeat() as heart:
            turn(0.5)
        figures = {"slider_ms": [w.milliseconds for w in moved], "filter_ms": [w.milliseconds for w in chosen], "idle_turn_ms": round(1000 * heart.longest)}  # fmt: skip
        print("MedXAI back-projection 128³:", json.dumps(figures))
        self.assertLess(sorted(watch.seconds for watch in moved[1:])[2], 0.1)
        self.assertLess(sorted(watch.seconds for watch in chosen)[1], 0.1)


class RealWorkerTest(unittest.TestCase):
    """A real classifier and the real worker; skipped, and counted, where there is none or the worker's Python has no torch."""

    def asNrrd(self, picture) -> str:
        """A copy of a picture in a format that every build reads."""
        import tempfile

        import SimpleITK

        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        copy = Path(folder.name) / f"{picture.stem}.nrrd"
        image = SimpleITK.ReadImage(str(picture))
        SimpleITK.WriteImage(SimpleITK.JoinSeries(image) if image.GetDimension() == 2 else image, str(copy))
        return str(copy)

    def test_a_real_run(self):
        from MedXAILib.package import Package
        from MedXAILib.panel.model_picker import library

        panel = realPanel(self, "MedXAIFeatureBackProjection")
        model = ROOT.parent / "shared" / "data" / "models" / "chest-view"
        images = sorted((ROOT.parent / "shared" / "data" / "radiographs" / "nih_chest" / "images").glob("*.png"))
        if not model.is_dir() or not images:
            self.skipTest("There is no classifier with its radiographs beside this source tree.")
        library().add(model)
        self.addCleanup(lambda: library().remove(model))
        library().trust(Package.read(model).sha256)
        volume = slicer.util.loadVolume(self.asNrrd(images[0]))  # builds without Slicer's PNG reader run this too
        panel.enter()
        panel.picker.refresh(str(model))
        panel._onModelChosen()
        panel.volumes.choose([volume])
        panel._check()
        self.assertEqual(panel.control.reason, "")
        panel.control.applyButton.click()
        self.assertTrue(waitFor(lambda: not panel.control.state.active, 180))
        self.assertEqual(panel.control.state.value, "done", panel.control.logEdit.plainText)
        self.assertEqual(panel.results.strip.count, 25)
        panel.results.strip.setCurrentRow(0)
        self.assertIn("rank 1", panel.results.shownLabel.text)
        self.assertNotIn("torch", sys.modules)


if __name__ == "__main__":
    unittest.main()
