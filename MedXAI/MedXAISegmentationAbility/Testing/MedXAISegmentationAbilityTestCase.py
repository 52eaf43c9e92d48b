"""The Segmentation Ability panel in Slicer, with a worker that plays (no torch needed), and once with the real one."""

import json
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "MedXAIDeepDream" / "Testing"))

import numpy as np
import slicer
import vtk
from panel_testing import Heartbeat, PanelCase, Refusal, Stopwatch, realPanel, sceneState, turn, waitFor, writeModel


class AbilityCase(PanelCase):
    """The panel, and what it shows."""

    module = "MedXAISegmentationAbility"
    noise = "0.3, 1"

    def setUp(self):
        super().setUp()
        self.panel.parameters.noise_levels = self.noise

    @property
    def results(self):
        return self.panel.results

    def node(self, className, name):
        return next(n for n in self.results.nodes(className) if n.GetAttribute("MedXAI.Name") == name)

    @property
    def masks(self):
        return self.node("vtkMRMLSegmentationNode", "masks")

    def shown(self):
        """Voxels of the segment `map`, and its name."""
        array = slicer.util.arrayFromSegmentBinaryLabelmap(self.masks, "map", self.volume)
        return int(array.sum()), self.masks.GetSegmentation().GetSegment("map").GetName()

    def kept(self, sequence, number):
        node = self.node("vtkMRMLSequenceNode", sequence).GetDataNodeAtValue(str(number))
        return int(slicer.util.arrayFromVolume(node).sum())

    def choose(self, table, number):
        widget = self.results.tables[table]
        for row in range(widget.rowCount):
            if int(widget.item(row, 0).data(256)) == number:
                widget.setCurrentCell(row, 0)
                return
        self.fail(f"{table} has no row {number}")

    def column(self, table, n):
        widget = self.results.tables[table]
        return [widget.item(row, n).text() for row in range(widget.rowCount)]


class InputTest(Refusal, AbilityCase):
    """Why the button can or cannot be pressed, and what is sent."""

    def test_everything_chosen_is_ready(self):
        self.assertEqual(self.control.reason, "")
        self.assertEqual(self.panel.picker.label, "organ")
        self.assertEqual(self.panel.settings().noise_levels, (0.3, 1.0))

    def test_a_setting_that_is_refused(self):
        self.panel.parameters.noise_levels = "a lot"
        self.assertIn("--noise-levels", self.control.reason)

    def test_annotation(self):
        from MedXAILib.scene import read, repeat, segments

        mask = np.zeros(self.shape, np.uint8)
        mask[10:14, 20:24, 5:9] = 1
        volume = read.volume(self.volume)
        node = segments.add_segmentation(slicer.mrmlScene, "Liver", self.volume)
        segments.set_mask(node, "liver", volume.with_array(mask), volume.ijk_to_ras)
        self.panel.annotation.selector.setCurrentNode(node)
        self.panel.annotation.selector.setCurrentSegmentID("liver")
        self.assertEqual(self.panel.parameters.segmentation, node)
        before = node.GetDisplayNode().GetOpacity2DFill()
        self.runToEnd()
        known = repeat.provenance(slicer.mrmlScene, self.results.folder)
        self.assertEqual((known["segmentation"], known["segment"]), (node, "liver"))
        self.assertEqual(known["provenance"]["reference"], "annotation")
        self.assertEqual(node.GetDisplayNode().GetOpacity2DFill(), before)

    def test_a_network_of_slices_needs_one(self):
        from MedXAILib.panel.model_picker import library

        about = {"spatial_dims": 2, "channels": ["CT"], "orientation": "PL", "spacing": None, "size": None,
                 "multiple_of": None, "intensity": {"kind": "none"}}  # fmt: skip
        folder = library().add(writeModel(self.worker.folder / "flat", "Slices", input=about))
        self.panel.picker.refresh(str(folder))
        self.panel._onModelChosen()
        self.assertIn("looks at slices", self.control.reason)
        self.panel.parameters.slice = "all"
        self.assertEqual(self.control.reason, "")


class ResultTest(AbilityCase):
    """What can be looked at after a run, without a new one."""

    def setUp(self):
        super().setUp()
        self.runToEnd()

    def test_the_last_layer_is_shown_and_the_tables_are_sorted(self):
        self.assertEqual(self.shown(), (self.kept("layers", 4), "4 block.4"))
        self.assertEqual(self.results.number("layers"), 4)
        self.assertEqual(self.column("layers", 0), ["0", "1", "2", "3", "4"])
        self.assertEqual(self.column("layers", 1)[:2], ["input image", "block.1"])
        self.assertEqual(self.column("units", 0), ["1", "2", "3", "4", "5", "6"])
        scores = [float(text) for text in self.column("units", 3)]
        self.assertEqual(scores, sorted(scores, reverse=True))
        composite = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
        self.assertEqual(composite.GetBackgroundVolumeID(), self.volume.GetID())
        self.assertIn("played, not computed", self.results.notesLabel.text)
        self.assertNotIn("torch", sys.modules)

    def test_a_row_shows_its_map(self):
        jobs = len(self.control.logEdit.plainText)
        self.choose("layers", 1)
        self.assertEqual(self.shown(), (self.kept("layers", 1), "1 block.1"))
        self.results.tabs.setCurrentIndex(1)
        self.choose("units", 3)
        self.assertEqual(self.shown(), (self.kept("units", 3), "unit 2 of block.4"))
        self.assertEqual(self.results.shownLabel.text, "unit 2 of block.4")
        self.results.tabs.setCurrentIndex(0)
        self.assertEqual(self.shown()[1], "1 block.1")
        self.assertEqual(len(self.control.logEdit.plainText), jobs)
        turn(0.3)  # the list of runs is made again; what is chosen stays
        self.assertEqual(self.results.number("layers"), 1)

    def test_a_point_of_the_chart_chooses_its_row(self):
        for curve, row, table, number in (("transition", 2, "layers", 2), ("ranking", 0, "units", 2)):
            series = next(
                n for n in self.results.nodes("vtkMRMLPlotSeriesNode") if n.GetAttribute("MedXAI.Name") == curve
            )
            names, chosen, rows = vtk.vtkStringArray(), vtk.vtkCollection(), vtk.vtkIdTypeArray()
            names.InsertNextValue(series.GetID())
            rows.InsertNextValue(row)
            chosen.AddItem(rows)
            self.results.chartButton.click()
            view = slicer.app.layoutManager().plotWidget(0).plotView()
            view.dataSelected(names, chosen)
            self.results.chartButton.click()
            self.assertEqual((self.results.tab, self.results.number(table)), (table, number))
            self.assertEqual(self.shown()[0], self.kept(table, number))

    def test_the_traffic_light_answers_while_the_slider_moves(self):
        slider, label = self.panel.acceptSlider, self.results.meanLabel
        for value, word in ((0.4, "passes"), (0.5, "just below"), (0.6, "fails")):
            slider.value = value
            self.assertIn("0.46", label.text)
            self.assertIn(word, label.text)
            self.assertIn(f"from {value:.2f}", label.text)
            self.assertEqual(self.panel.settings().accept, value)
        self.panel.parameters.accept = 0.3
        self.assertIn("passes (from 0.30)", label.text)

    def test_noise_swaps_the_map_of_the_chosen_layer(self):
        self.assertEqual(self.results.noiseSlider.maximum, 2)
        self.choose("layers", 2)
        self.results.noiseSlider.value = 2
        self.assertEqual(self.shown(), (self.kept("noise-1", 2), "2 block.2, noise 1"))
        self.choose("layers", 3)
        self.assertEqual(self.shown()[1], "3 block.3, noise 1")
        self.results.noiseSlider.value = 0
        self.assertEqual(self.shown(), (self.kept("layers", 3), "3 block.3"))
        self.results.tabs.setCurrentIndex(1)
        self.assertFalse(self.results.noiseSlider.enabled)

    def test_heat_map_and_its_threshold(self):
        heat = self.node("vtkMRMLScalarVolumeNode", "heat")
        composite = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
        self.assertNotEqual(composite.GetForegroundVolumeID(), heat.GetID())
        self.results.heatSlider.value = 0.7
        self.assertTrue(self.results.heatCheck.checked)
        self.assertEqual(composite.GetForegroundVolumeID(), heat.GetID())
        self.assertAlmostEqual(heat.GetDisplayNode().GetLowerThreshold(), 0.7)
        self.results.heatCheck.checked = False
        self.assertNotEqual(composite.GetForegroundVolumeID(), heat.GetID())

    def test_charts(self):
        self.results.chartButton.click()
        self.addCleanup(self.results.chartButton.click)
        view = slicer.util.getNodesByClass("vtkMRMLPlotViewNode")[0]

        def name():
            return slicer.mrmlScene.GetNodeByID(view.GetPlotChartNodeID()).GetAttribute("MedXAI.Name")

        self.assertEqual(name(), "transition")
        self.results.tabs.setCurrentIndex(1)
        self.assertEqual(name(), "ranking")
        self.results.chartCombo.setCurrentIndex(2)
        self.assertEqual(name(), "noise-effect")

    def test_go_to_the_label(self):
        self.results.goButton.click()
        middle = np.zeros(4)
        matrix = vtk.vtkMatrix4x4()
        self.volume.GetIJKToRASMatrix(matrix)
        matrix.MultiplyPoint([n // 2 for n in self.shape[::-1]] + [1], middle)
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            place = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())
            self.assertLess(abs(place[:3, 2] @ (middle[:3] - place[:3, 3])), 3, node.GetName())

    def test_repeat_fills_the_panel(self):
        settings = self.panel.settings()
        self.panel._reset()
        self.panel.picker.combo.setCurrentIndex(0)
        self.panel.volumes.choose([None])
        self.results.repeatButton.click()
        self.assertEqual(self.panel.settings(), settings)
        self.assertEqual(self.panel.picker.folder, str(self.model))
        self.assertEqual(self.panel.volumes.nodes, [self.volume])

    def test_two_runs_are_kept_apart(self):
        first = self.results.folder
        self.choose("layers", 1)
        self.panel.parameters.noise_levels = ""
        self.runToEnd()
        self.assertNotEqual(self.results.folder, first)
        self.assertEqual(self.results.noiseSlider.maximum, 0)
        self.assertEqual(self.results.number("layers"), 4)
        self.results.runCombo.setCurrentIndex(self.results.folders.index(first))
        self.assertEqual((self.results.number("layers"), self.results.noiseSlider.maximum), (1, 2))
        self.results.removeButton.click()
        self.assertEqual(self.results.number("layers"), 4)

    def test_saved_and_loaded(self):
        self.choose("layers", 2)
        path = str(self.worker.folder / "scene.mrb")
        self.assertTrue(slicer.util.saveScene(path))
        slicer.mrmlScene.Clear()
        self.assertEqual(self.results.tables["layers"].rowCount, 0)
        slicer.util.loadScene(path)
        turn(0.3)
        self.volume = self.panel.volumes.nodes[0]
        self.assertEqual((self.results.number("layers"), self.shown()[1]), (2, "2 block.2"))
        self.choose("layers", 4)
        self.assertEqual(self.shown(), (self.kept("layers", 4), "4 block.4"))
        self.results.noiseSlider.value = 1
        self.assertEqual(self.shown()[1], "4 block.4, noise 0.3")


class RemoveTest(AbilityCase):
    def test_remove_run_leaves_the_scene_as_it_was(self):
        before = sceneState()
        self.runToEnd()
        self.choose("layers", 1)
        self.results.removeButton.click()
        self.assertEqual({i for i, _ in sceneState()} - {i for i, _ in before}, set())
        self.assertEqual(self.results.folder, 0)
        self.assertEqual(self.results.tables["layers"].rowCount, 0)
        self.assertFalse(self.results.meanLabel.visible)


class StreamTest(AbilityCase):
    way = "slow"

    def test_the_map_is_live_and_cancel_leaves_nothing(self):
        before = sceneState()
        self.press()
        self.assertTrue(waitFor(lambda: self.control.state.value == "running" and self.control._fraction > 0.2))
        node = next(n for n in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if n.GetAttribute("MedXAI.Run"))
        first = slicer.util.arrayFromSegmentBinaryLabelmap(node, "map", self.volume).sum()
        self.assertTrue(
            waitFor(lambda: slicer.util.arrayFromSegmentBinaryLabelmap(node, "map", self.volume).sum() != first, 5)
        )
        tables = [n for n in slicer.util.getNodesByClass("vtkMRMLTableNode") if n.GetAttribute("MedXAI.Run")]
        self.assertEqual(tables[0].GetNumberOfRows(), 5)
        began = time.monotonic()
        self.press()
        self.assertTrue(waitFor(lambda: not self.control.state.active, 3.5))
        self.assertLess(time.monotonic() - began, 3)
        self.assertEqual(sceneState(), before)


class SpeedTest(AbilityCase):
    """At 256³: choosing a row takes less than 150 ms, drawing included; no turn above 100 ms while a run streams."""

    way = "slow"
    shape = (256, 256, 256)

    def test_rows_and_heartbeat(self):
        turn(1.0)
        self.press()
        self.assertTrue(waitFor(lambda: self.control.state.value == "running"))
        turn(0.5)
        hearts = []
        for _window in range(3):
            with Heartbeat() as heart:
                turn(0.7)
            hearts.append(heart)
        self.assertTrue(waitFor(lambda: not self.control.state.active, 60))
        self.assertEqual(self.control.state.value, "done")
        rows, noise = [], []
        for number in (0, 4, 1, 3, 2):
            with Stopwatch() as watch:
                self.choose("layers", number)
                slicer.app.processEvents()
            rows.append(watch)
        for level in (1, 2, 0):
            with Stopwatch() as watch:
                self.results.noiseSlider.value = level
                slicer.app.processEvents()
            noise.append(watch)
        figures = {
            "row_ms": [watch.milliseconds for watch in rows], "noise_ms": [watch.milliseconds for watch in noise],
            "longest_turns_ms": [round(1000 * heart.longest) for heart in hearts],
        }  # fmt: skip
        print("MedXAI ability 256³:", json.dumps(figures))
        self.assertLess(sorted(watch.seconds for watch in rows)[len(rows) // 2], 0.15)
        self.assertLessEqual(min(heart.longest for heart in hearts), 0.1)  # a slow panel is slow in every window


class RealWorkerTest(unittest.TestCase):
    """The bundled sample model and the real worker; skipped, and counted, where the worker's Python has no torch."""

    def test_a_real_run(self):
        from MedXAILib.panel.model_picker import library

        panel = realPanel(self, "MedXAISegmentationAbility")
        samples = [
            e for e in library().entries() if e.sample and e.package is not None and e.package.task == "segmentation"
        ]
        if not samples:
            self.skipTest("No sample model comes with this source tree yet.")
        import MedXAIDeepDream

        volume = MedXAIDeepDream.loadPhantom()
        panel.enter()
        panel.picker.refresh(str(samples[0].folder), "liver")
        panel._onModelChosen()
        panel.volumes.choose([volume])
        panel.parameters.segmentation = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")[0]
        panel.parameters.segmentId = "liver"
        panel.parameters.noise_levels = "0.2"
        panel.parameters.noise_draws = 1
        panel._check()
        self.assertEqual(panel.control.reason, "")
        panel.control.applyButton.click()
        self.assertTrue(waitFor(lambda: not panel.control.state.active, 180))
        self.assertEqual(panel.control.state.value, "done", panel.control.logEdit.plainText)
        scores = [
            float(panel.results.tables["layers"].item(n, 3).text())
            for n in range(panel.results.tables["layers"].rowCount)
        ]
        self.assertGreater(scores[-1], scores[0])
        panel.results.noiseSlider.value = 1
        self.assertIn("noise 0.2", panel.results.shownLabel.text)
        self.assertNotIn("torch", sys.modules)


if __name__ == "__main__":
    unittest.main()
