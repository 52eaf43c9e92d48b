"""The Cycle Explanation panel in Slicer, with a worker that plays (no torch needed), and with the real one."""

import json
import sys
import tempfile
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
from panel_testing_files import writeExplainer

ROOT = Path(__file__).resolve().parents[3]


def writeClassifier(folder, name="Played classifier", dims=3, size=None, weights=b"played classifier"):
    """A classifier for the worker that plays; with a size it looks at patches of 1.5 mm."""
    about = {"spatial_dims": dims, "channels": ["CT"], "orientation": None, "spacing": [1.5] * dims if size else None,
             "size": size and [size] * dims, "multiple_of": None, "intensity": {"kind": "none"}}  # fmt: skip
    if size:
        about["fit"] = "window"
    output = {"labels": ["smooth", "spiculated"], "activation": "softmax"}
    network = {"name": "DenseNet121", "arguments": {}}
    return writeModel(folder, name, weights, task="classification", input=about, output=output, network=network)


class CycleCase(PanelCase):
    """The panel with a classifier and its explainer, and what it shows."""

    module = "MedXAICycleExplanation"
    dims, size = 3, 30

    def setUp(self):
        super().setUp()
        self.classifier = self.use(writeClassifier(self.worker.folder / "models" / "classifier", dims=self.dims, size=self.size))  # fmt: skip
        self.explainer = self.explain("explainer")

    def use(self, folder):
        from MedXAILib.package import Package
        from MedXAILib.panel.model_picker import library

        self.panel.picker.refresh(str(library().add(folder)))
        self.panel._onModelChosen()
        self.panel._check()
        return Package.read(folder)

    def explain(self, name, classifier=None, title="Played explainer"):
        from MedXAILib.panel.model_picker import library

        folder = library().add(writeExplainer(self.worker.folder / name, classifier or self.classifier, title))
        self.panel.enter()
        return folder

    def lesion(self):
        """A segmentation with a lesion around voxel (10, 12, 14)."""
        from MedXAILib.scene import read, segments

        volume = read.volume(self.volume)
        mask = np.zeros(self.shape, np.uint8)
        mask[9:12, 10:15, 12:17] = 1
        node = segments.add_segmentation(slicer.mrmlScene, "Drawn", self.volume)
        segments.set_mask(node, "lesion", volume.with_array(mask), volume.ijk_to_ras)
        return node

    def chooseLesion(self, node=None):
        selector = self.panel.lesion.segmentRow.selector
        selector.setCurrentNode(node or self.lesion())
        selector.setCurrentSegmentID("lesion")

    @property
    def results(self):
        return self.panel.results

    def world(self, k, j, i):
        from MedXAILib.scene import read

        return read.world(self.volume, read.volume(self.volume).index_to_ras((k, j, i)))

    def node(self, name, className="vtkMRMLScalarVolumeNode"):
        nodes = [n for n in slicer.util.getNodesByClass(className) if n.GetAttribute("MedXAI.Run")]
        return next((n for n in nodes if n.GetAttribute("MedXAI.Name") == name), None)

    def known(self):
        return json.loads(self.node("relevance").GetAttribute("MedXAI.Provenance"))

    def views(self):
        """What every slice view shows: background, foreground, opacity, and what lies over them."""
        found = set()
        for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
            at = range(view.Layer_Last, view.Layer_Last + view.GetNumberOfAdditionalLayers())
            over = tuple((view.GetNthLayerVolumeID(n), round(view.GetNthLayerOpacity(n), 3)) for n in at)
            found.add((view.GetBackgroundVolumeID(), view.GetForegroundVolumeID(), view.GetForegroundOpacity(), over))
        self.assertEqual(len(found), 1)
        return found.pop()

    def rows(self, table):
        return [[table.item(row, n).text() for n in range(table.columnCount)] for row in range(table.rowCount)]


class InputTest(Refusal, CycleCase):
    """Why the button can or cannot be pressed, and what is sent."""

    def names(self):
        combo = self.panel.explainer.combo
        return [combo.itemText(n) for n in range(combo.count)]

    def test_the_only_explainer_is_taken(self):
        self.assertEqual(self.control.reason, "")
        self.assertEqual(self.panel.settings().explainer, str(self.explainer))
        self.assertIn("G⁺: spiculated; G⁻: smooth", self.panel.explainer.aboutLabel.text)
        self.assertEqual(self.panel.picker.labelCombo.currentText, "as the explainer was trained")
        self.assertIn("45 × 45 × 45 mm", self.panel.lesion.infoLabel.text)

    def test_of_several_one_must_be_chosen_and_others_are_not_offered(self):
        second = self.explain("second", title="Another explainer")
        self.assertEqual(self.panel.settings().explainer, str(self.explainer))  # what was chosen stays
        self.panel.parameters.explainer = ""
        self.assertEqual(self.control.reason, "Choose an explainer.")
        self.panel.explainer.combo.setCurrentIndex(self.names().index("Another explainer"))
        self.assertEqual((self.panel.settings().explainer, self.control.reason), (str(second), ""))
        other = self.use(writeClassifier(self.worker.folder / "other" / "other", "Other classifier", weights=b"others"))
        self.assertEqual(self.names(), ["none: train one below"])
        self.assertIn("No explainer of 'Other classifier' is listed. Train one below.", self.control.reason)
        self.explain("third", other, "Of the other")
        self.assertEqual((self.names()[1:], self.control.reason), (["Of the other"], ""))

    def test_one_beside_the_classifier_is_found(self):
        classifier = self.use(writeClassifier(self.worker.folder / "beside" / "one", "Third", weights=b"third"))
        folder = writeExplainer(self.worker.folder / "beside" / "one-cycle", classifier, "Beside it")
        self.panel.enter()
        self.assertEqual((self.panel.settings().explainer, self.control.reason), (str(folder.resolve()), ""))

    def test_explainers_are_no_classifiers(self):
        for module in ("MedXAIFeatureBackProjection", "MedXAICycleExplanation"):
            combo = slicer.util.getModuleWidget(module).panel.picker.combo
            self.assertNotIn("Played explainer", [combo.itemText(n) for n in range(combo.count)])

    def test_a_class_the_explainer_does_not_know_is_refused(self):
        self.panel.parameters.label = "smooth"
        self.assertEqual(self.control.reason, "")
        self.assertEqual(self.panel.settings().label, "smooth")

    def test_a_segment_is_sent(self):
        self.chooseLesion()
        self.assertEqual(self.control.reason, "")
        self.assertIsNone(self.panel.settings().center_ras)
        self.assertEqual([one.name for one in self.panel.masks(self.volume)], ["lesion"])
        self.runToEnd()
        self.assertEqual(self.known()["segments"], 1)
        self.assertEqual(self.known()["patch"]["start"], [4, 6, 8])

    def test_a_point_is_followed_and_a_segment_excludes_it(self):
        points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Lesion point")
        self.panel.lesion.placeSelector.setCurrentNode(points)
        self.assertIn("'Lesion point' has no point yet", self.control.reason)
        points.AddControlPointWorld(self.world(12, 15, 20))
        self.assertEqual(self.control.reason, "")
        first = self.panel.settings().center_ras
        points.SetNthControlPointPositionWorld(0, *self.world(12, 15, 22))
        self.assertNotEqual(self.panel.settings().center_ras, first)
        self.runToEnd()
        self.assertEqual(self.known()["patch"]["start"], [6, 9, 16])
        points.SetNthControlPointPositionWorld(0, 9999, 0, 0)
        self.assertIn("outside", self.control.reason)
        self.chooseLesion()
        self.assertEqual((self.panel.settings().center_ras, self.control.reason), (None, ""))
        self.assertIsNone(self.panel.lesion.placeSelector.currentNode())

    def test_a_region_of_interest_gives_its_middle(self):
        roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
        roi.SetCenterWorld(*self.world(11, 14, 19))
        roi.SetSize(20, 20, 20)
        self.panel.lesion.placeSelector.setCurrentNode(roi)
        np.testing.assert_allclose(self.panel.settings().center_ras, self.world(11, 14, 19), atol=0.01)
        roi.SetCenterWorld(*self.world(11, 14, 21))
        np.testing.assert_allclose(self.panel.settings().center_ras, self.world(11, 14, 21), atol=0.01)
        self.panel.lesion.goButton.click()
        self.assertAlmostEqual(slicer.util.getNode("vtkMRMLSliceNodeRed").GetSliceOffset(), self.world(11, 14, 21)[2], 2)  # fmt: skip
        self.panel.lesion.clearButton.click()
        self.assertEqual((self.panel.settings().center_ras, self.panel.lesion.chosen), (None, False))

    def test_under_a_transform_the_center_is_the_volumes_own(self):
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        import vtk

        matrix = vtk.vtkMatrix4x4()
        matrix.SetElement(0, 3, 40.0)
        transform.SetMatrixTransformToParent(matrix)
        self.volume.SetAndObserveTransformNodeID(transform.GetID())
        points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
        points.AddControlPointWorld(self.world(12, 15, 20))
        self.panel.lesion.placeSelector.setCurrentNode(points)
        self.runToEnd()
        self.assertEqual(self.known()["patch"]["start"], [6, 9, 14])
        self.results.goButton.click()
        matrix = slicer.util.getNode("vtkMRMLSliceNodeYellow").GetSliceToRAS()
        self.assertAlmostEqual(matrix.GetElement(0, 3), self.world(11.5, 14.5, 19.5)[0], 2)

    def test_the_center_follows_the_transforms_of_point_and_volume(self):
        import vtk

        def moved(node, by):
            matrix = vtk.vtkMatrix4x4()
            matrix.SetElement(0, 3, by)
            transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
            transform.SetMatrixTransformToParent(matrix)
            node.SetAndObserveTransformNodeID(transform.GetID())
            return transform

        for name in ("vtkMRMLMarkupsFiducialNode", "vtkMRMLMarkupsROINode"):
            node = slicer.mrmlScene.AddNewNodeByClass(name)
            place = np.array(self.world(12, 15, 20))
            if name.endswith("ROINode"):
                node.SetCenterWorld(*place)
                node.SetSize(20, 20, 20)
            else:
                node.AddControlPointWorld(*place)
            self.panel.lesion.placeSelector.setCurrentNode(node)
            np.testing.assert_allclose(self.panel.settings().center_ras, place, atol=0.01)
            its = moved(node, 3.0)
            np.testing.assert_allclose(self.panel.settings().center_ras, place + (3, 0, 0), atol=0.01)
            its.SetMatrixTransformToParent(vtk.vtkMatrix4x4())
            np.testing.assert_allclose(self.panel.settings().center_ras, place, atol=0.01)
            moved(self.volume, 5.0)
            np.testing.assert_allclose(self.panel.settings().center_ras, place - (5, 0, 0), atol=0.01)
            self.volume.SetAndObserveTransformNodeID(None)
            np.testing.assert_allclose(self.panel.settings().center_ras, place, atol=0.01)

    def test_a_deleted_point_leaves_no_center(self):
        points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Lesion point")
        points.AddControlPointWorld(self.world(12, 15, 20))
        self.panel.lesion.placeSelector.setCurrentNode(points)
        self.assertEqual(self.control.reason, "")
        points.RemoveNthControlPoint(0)
        self.assertIsNone(self.panel.settings().center_ras)
        self.assertIn("'Lesion point' has no point yet: click on the lesion", self.control.reason)

    def test_an_explainer_that_is_not_listed_stays(self):
        from MedXAILib.panel.model_picker import library

        away = writeExplainer(self.worker.folder / "away" / "away", self.classifier, "Not listed")
        self.panel.parameters.explainer = str(away)
        self.panel.enter()
        self.assertEqual((self.panel.settings().explainer, self.control.reason), (str(away), ""))
        self.panel.parameters.explainer = str(self.worker.folder / "nowhere")
        self.panel.enter()
        self.assertEqual(self.panel.settings().explainer, str(self.worker.folder / "nowhere"))
        self.assertEqual(self.control.reason, library().entry(self.worker.folder / "nowhere").problem)
        other = writeClassifier(self.worker.folder / "other" / "other", "Other classifier", weights=b"others")
        self.panel.parameters.explainer = str(away)
        self.use(other)
        self.assertEqual(self.panel.parameters.explainer, "")

    def test_place_takes_the_list_that_is_left_empty(self):
        before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLMarkupsFiducialNode")
        for _n in range(3):
            self.panel.lesion.placeButton.click()
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        interaction.SetCurrentInteractionMode(interaction.ViewTransform)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLMarkupsFiducialNode"), before + 1)

    def test_place_makes_a_point(self):
        self.panel.lesion.placeButton.click()
        node = self.panel.lesion.placeSelector.currentNode()
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        self.assertEqual(interaction.GetCurrentInteractionMode(), interaction.Place)
        interaction.SetCurrentInteractionMode(interaction.ViewTransform)
        node.AddControlPointWorld(self.world(12, 15, 20))
        self.assertIsNotNone(self.panel.settings().center_ras)


class SliceTest(CycleCase):
    """A network that looks at patches of slices."""

    dims, size = 2, 30

    def test_the_lesion_chooses_the_slice(self):
        self.assertIn("press Shown", self.control.reason)
        self.chooseLesion()
        self.assertEqual(self.control.reason, "")
        self.runToEnd()
        self.assertEqual(self.known()["patch"], {"start": [10, 6, 8], "stop": [11, 18, 20], "size_mm": self.known()["patch"]["size_mm"]})  # fmt: skip
        morph = self.node("morph")
        self.assertEqual(morph.GetImageData().GetDimensions(), (14, 14, 3))
        self.assertEqual(self.panel.parameters.slice, "")

    def test_all_slices_are_listed_and_gone_to(self):
        self.panel.parameters.slice = "all"
        self.runToEnd()
        table = self.results.partTable
        self.assertTrue(table.rowCount == self.shape[0] and not table.isHidden())
        table.setCurrentCell(5, 0)
        self.assertAlmostEqual(slicer.util.getNode("vtkMRMLSliceNodeRed").GetSliceOffset(), -30 + 2.5 * 5, 3)


class ResultTest(CycleCase):
    """What can be looked at after a run, without a new one."""

    def setUp(self):
        super().setUp()
        self.chooseLesion()
        self.runToEnd()

    def test_layers_headline_and_tables(self):
        from MedXAILib.scene import cycle

        r = self.node("relevance")
        self.assertEqual(self.views(), (self.volume.GetID(), self.node("morph").GetID(), 1.0, ((r.GetID(), cycle.COVERS),)))  # fmt: skip
        self.assertEqual(self.results.headlineLabel.text, "spiculated: x 0.43 → G⁺ 0.85, G⁻ 0.09")
        self.assertIn("The network answers smooth; G⁺ changes that.", self.results.flipLabel.text)
        self.assertEqual(self.rows(self.results.classTable), [["smooth", "0.91", "0.57", "0.15"], ["spiculated", "0.09", "0.43", "0.85"]])  # fmt: skip
        self.assertIn("known intensities: 0.6 (NOT PASSED)", self.results.notesLabel.text)
        self.assertIn("both ways: 2 (passed)", self.results.notesLabel.text)
        self.assertIn("was played, not computed", self.results.notesLabel.text)
        self.assertTrue(self.results.partTable.isHidden())
        window = [self.node(name).GetDisplayNode().GetWindow() for name in ("positive", "negative", "morph")]
        self.assertEqual(window, [self.volume.GetDisplayNode().GetWindow()] * 3)
        self.assertEqual(r.GetDisplayNode().GetColorNode().GetSingletonTag(), "MedXAIsigned")
        from MedXAILib.scene import layers

        legend = layers.legends(self.node("morph"))[0]
        self.assertEqual((legend.GetTitleText(), legend.GetVisibility()), ("R = G+ - G- [HU]", 1))
        self.assertNotIn("torch", sys.modules)

    def test_the_slider_morphs_in_place_and_tells_the_probability(self):
        red = slicer.util.getNode("vtkMRMLSliceNodeRed")
        red.SetFieldOfView(50, 50, 1)
        before, state = sliceViews(), sceneState()
        node, array = self.node("morph"), slicer.util.arrayFromVolume(self.node("morph"))
        box = np.s_[3:17, 5:19, 7:21]
        x = slicer.util.arrayFromVolume(self.volume)[box]
        inside = np.zeros(array.shape)
        inside[1:-1, 1:-1, 1:-1] = 1
        self.assertEqual(self.results.positionLabel.text, "The image itself: probability of spiculated <b>0.43</b>")
        for value in (100, -40, 25, 0):
            self.results.morphSlider.value = value
            want = x + inside * (value if value > 0 else value / 2)
            np.testing.assert_allclose(slicer.util.arrayFromVolume(node), want, atol=1e-3)
            p = 1 / (1 + np.exp(-(2 * value / 100 - 0.3)))
            self.assertIn(f"<b>{p:.2f}</b>", self.results.positionLabel.text)
        self.results.morphSlider.value = 60
        self.assertIn("60 % of the way to G⁺", self.results.positionLabel.text)
        self.results.imageButton.click()
        self.assertEqual(self.results.morphSlider.value, 0)
        self.assertEqual((sliceViews(), sceneState()), (before, state))
        self.results.morphSlider.value = -30
        turn(0.3)  # the list of runs is made again; the position stays
        self.assertEqual(self.results.morphSlider.value, -30)

    def test_r_is_hidden_and_shown(self):
        self.assertTrue(self.results.relevanceCheck.checked)
        self.results.relevanceCheck.click()
        self.assertEqual(self.views()[3], ())
        turn(0.3)
        self.assertFalse(self.results.relevanceCheck.checked)
        self.results.showButton.click()
        self.assertEqual(self.views()[3], ())
        self.results.relevanceCheck.click()
        self.results.opacitySlider.value = 0.35
        self.assertEqual([opacity for _, opacity in self.views()[3]], [0.35])

    def test_repeat_fills_the_panel(self):
        self.panel.lesion.clearButton.click()
        self.panel.parameters.overlap = 0.1
        self.results.repeatButton.click()
        self.assertEqual(self.panel.settings().overlap, 0.5)
        self.assertEqual([one.name for one in self.panel.masks(self.volume)], ["lesion"])
        self.assertEqual(self.panel.settings().explainer, str(self.explainer))
        self.panel.lesion.centerEdit.text = ", ".join(f"{v:.2f}" for v in self.world(12, 15, 20))
        self.runToEnd()
        self.panel.lesion.clearButton.click()
        self.results.repeatButton.click()
        self.assertIsNotNone(self.panel.settings().center_ras)
        self.assertEqual(self.panel.masks(self.volume), [])

    def test_remove_run_leaves_the_scene_as_it_was(self):
        self.results.morphSlider.value = 50
        self.results.removeButton.click()
        turn(0.3)
        self.assertEqual([n for n in slicer.util.getNodesByClass("vtkMRMLNode") if n.GetAttribute("MedXAI.Run")], [])
        self.assertEqual(self.views()[1:], (None, 0.0, ()))
        self.assertFalse(self.results.morphSlider.enabled or self.results.headlineLabel.text)

    def test_a_removed_map_is_said(self):
        slicer.mrmlScene.RemoveNode(self.node("delta-positive"))
        self.results._cycle = None
        self.results.update()
        self.assertFalse(self.results.morphSlider.enabled)
        self.assertIn("nothing to morph", self.results.positionLabel.text)

    def test_chart_is_shown(self):
        self.results.chartButton.click()
        self.addCleanup(self.results.chartButton.click)
        chart = slicer.util.getNodesByClass("vtkMRMLPlotViewNode")[0].GetPlotChartNode()
        self.assertEqual((chart.GetTitle(), chart.GetYAxisTitle()), ("From smooth to spiculated", "Probability of spiculated"))  # fmt: skip

    def test_a_saved_scene_morphs_again(self):
        self.results.morphSlider.value = 40
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "scene.mrb")
            self.assertTrue(slicer.util.saveScene(path))
            clearScene()
            self.assertTrue(slicer.util.loadScene(path))
        turn(0.3)
        self.assertEqual(self.results.headlineLabel.text, "spiculated: x 0.43 → G⁺ 0.85, G⁻ 0.09")
        self.assertEqual(self.results.morphSlider.value, 40)
        x = slicer.util.arrayFromVolume(self.node("morph"))[5, 5, 5]
        self.results.morphSlider.value = 100
        self.assertAlmostEqual(float(slicer.util.arrayFromVolume(self.node("morph"))[5, 5, 5] - x), 60, 2)


class StreamTest(CycleCase):
    way = "slow"

    def test_cancel_leaves_nothing(self):
        before = sceneState()
        self.press()
        self.assertTrue(waitFor(lambda: self.control.state.value == "running" and self.node("relevance") is not None))
        self.press()
        self.assertTrue(waitFor(lambda: not self.control.state.active, 3.5))
        turn(0.3)
        self.assertEqual(sceneState(), before)


class SpeedTest(CycleCase):
    """The slider at 512 × 512 × 100, drawing included."""

    shape, dims, size = (100, 512, 512), 2, 64

    def test_morph(self):
        self.panel.lesion.centerEdit.text = ", ".join(f"{v:.2f}" for v in self.world(50, 250, 260))
        self.runToEnd(120)
        self.results.goButton.click()
        slicer.app.processEvents()
        moved, data = [], []
        for n in range(1, 21):
            with Stopwatch() as watch:
                self.results.morphSlider.value = 5 * n
            data.append(watch)
            with Stopwatch() as drawn:
                slicer.app.processEvents()
            moved.append({key: watch.milliseconds[key] + drawn.milliseconds[key] for key in ("wall", "own")})
        with Heartbeat() as heart:
            turn(1)
        print("MedXAI cycle 512 × 512 × 100:", json.dumps({
            "write_ms": [w.milliseconds["own"] for w in data], "with_drawing_ms": moved, "turn_ms": round(1000 * heart.longest),
        }))  # fmt: skip
        self.assertLess(sorted(watch.seconds for watch in data)[10], 0.03)


class TrainTest(CycleCase):
    """Training: begun, paused, gone on, used, discarded; what is finished outlives all of it."""

    def setUp(self):
        super().setUp()
        self.second = self.use(writeClassifier(self.worker.folder / "fresh" / "fresh", "Fresh classifier", weights=b"fresh"))  # fmt: skip
        self.images = self.worker.folder / "images"
        self.images.mkdir()
        self.train = self.panel.train
        self.train._proposed = ""
        self.train.outputEdit.currentPath = str(self.worker.folder / "fresh" / "fresh-cycle")
        self.train.sourceEdit.currentPath = str(self.images)
        self.train._parameters.epochs = 4
        self.train.button.collapsed = False
        self.addCleanup(lambda: setattr(self.train.button, "collapsed", True))
        self.addCleanup(lambda: self.current().train.run._job and self.current().train.run._job.cancel())
        self.addCleanup(lambda: setattr(self.train, "confirm", lambda text: True))

    @property
    def run_(self):
        return self.train.run

    def epochs(self, n, seconds=20):
        self.assertTrue(waitFor(lambda: len(self.run_.rows) >= n, seconds), self.train.statusLabel.text)

    def idle(self, seconds=20):
        self.assertTrue(waitFor(lambda: not self.run_.phase.active, seconds), self.train.statusLabel.text)

    def test_a_folded_section_shows_nothing_until_it_is_opened(self):
        self.train.button.collapsed = True
        shown = []
        self.train.chart.show = lambda *given: shown.append(given)
        self.addCleanup(lambda: self.train.chart.__dict__.pop("show"))
        self.panel._check()
        self.assertEqual(shown, [])
        self.train.button.collapsed = False
        self.assertEqual(len(shown), 1)

    def test_use_now_needs_a_classifier(self):
        self.run_.rows = {1: {"epoch": 1}}
        self.train._changed()
        self.assertTrue(self.train.useButton.enabled)
        for given in ((None, (), "auto", ""), (self.second, (), "auto", "A program is not trusted.")):
            self.train._classifier, known = lambda given=given: given, self.train._classifier
            self.train._changed()
            self.train._classifier = known
            self.assertFalse(self.train.useButton.enabled)
        self.run_.look(self.train.output)

    def test_a_training_into_a_linked_folder_is_chosen(self):
        (self.worker.folder / "real").mkdir()
        link = self.worker.folder / "link"
        link.symlink_to(self.worker.folder / "real", target_is_directory=True)
        self.train.outputEdit.currentPath = str(link / "fresh-cycle")
        self.train._parameters.epochs = 1
        self.train.trainButton.click()
        self.idle()
        want = str((self.worker.folder / "real" / "fresh-cycle").resolve())
        self.assertEqual((self.panel.settings().explainer, self.control.reason), (want, ""))

    def test_the_worker_that_trains_ends_by_itself_and_by_stop(self):
        from MedXAILib.panel import worker_session

        models = slicer.util.getModuleWidget("MedXAIModels").panel.worker
        models.enter()
        self.addCleanup(models.stop)
        self.train.trainButton.click()
        self.epochs(1)
        pid = worker_session.trainingClient().environment["pid"]
        self.assertIn(f"A training goes on in process {pid}.", models.label.text)
        self.idle()
        self.assertEqual(worker_session.trainingClient().phase, "stopped")
        self.assertNotIn("A training", models.label.text)
        self.train._parameters.epochs = 60
        self.train.outputEdit.currentPath = str(self.worker.folder / "fresh" / "again")
        self.train.trainButton.click()
        self.epochs(1)
        self.assertTrue(models.stopButton.enabled)
        models.stopButton.click()
        self.idle(3)
        self.assertEqual([one.phase for one in worker_session.clients()], ["stopped", "stopped"])
        self.assertTrue(self.run_.rows)

    def test_reasons_and_the_proposed_folder(self):
        self.assertTrue(self.train.trainButton.enabled, self.train.reasonLabel.text)
        self.train.outputEdit.currentPath = ""
        self.train.update()
        self.assertEqual(Path(self.train.output), (self.worker.folder / "fresh" / "fresh-cycle").absolute())
        self.train.sourceEdit.currentPath = ""
        self.train.update()
        self.assertEqual(self.train.reasonLabel.text, "Choose a folder of images.")
        self.train.outputEdit.currentPath = str(self.images)
        self.train.sourceEdit.currentPath = str(self.images)
        self.assertIn("'images' exists already", self.train.reasonLabel.text)
        self.assertFalse(self.train.trainButton.enabled)
        shown = set(self.train.form.labels)
        self.assertTrue({"epochs", "width", "patience", "flip"} <= shown)

    def test_to_the_end_and_the_explainer_is_chosen(self):
        self.assertIn("Train one below", self.control.reason)
        state = sceneState()
        self.train.trainButton.click()
        self.assertFalse(self.train.trainButton.enabled or self.train.form.widgets["epochs"].enabled)
        self.epochs(2)
        self.assertFalse(self.train.chart.label.isHidden() or self.train.pictureLabel.isHidden())
        self.assertIn("Epoch", self.train.statusLabel.text)
        self.idle()
        self.assertIn("The explainer of epoch 4 is ready", self.train.statusLabel.text)
        self.assertEqual(self.panel.settings().explainer, str(Path(self.worker.folder / "fresh" / "fresh-cycle").resolve()))  # fmt: skip
        self.assertEqual(self.control.reason, "")
        self.assertEqual(sceneState(), state)  # a training leaves nothing in the scene

    def test_a_run_need_not_wait_for_a_training(self):
        self.train._parameters.epochs = 40
        self.train.trainButton.click()
        self.epochs(1)
        self.use(self.classifier.folder)
        self.chooseLesion()
        self.runToEnd(10)
        self.assertTrue(self.run_.phase.active)
        self.train.pauseButton.click()
        self.idle()

    def test_pause_go_on_and_use_now(self):
        self.train._parameters.epochs = 60
        self.train.trainButton.click()
        self.epochs(1)
        self.train.pauseButton.click()
        self.idle(3.5)
        kept = len(self.run_.rows)
        self.assertEqual(self.train.statusLabel.text, f"Paused. Finished epochs kept: {kept}.")
        self.assertEqual(self.train.trainButton.text, "Go on")
        self.train.trainButton.click()
        self.epochs(kept + 1)
        self.assertEqual(sorted(self.run_.rows)[:kept], list(range(1, kept + 1)))
        self.assertTrue(self.train.useButton.enabled)
        self.train.useButton.click()
        self.assertTrue(waitFor(lambda: "is ready" in self.train.statusLabel.text, 15), self.train.statusLabel.text)
        self.assertIn("fresh-cycle", self.panel.settings().explainer)

    def test_discard_asks(self):
        self.train._parameters.epochs = 60
        self.train.trainButton.click()
        self.epochs(1)
        self.train.pauseButton.click()
        self.idle()
        asked = []
        self.train.confirm = lambda text: asked.append(text)
        self.train.discardButton.click()
        self.assertIn("finished epochs of this training", asked[0])
        self.assertTrue(self.run_.rows)
        self.train.confirm = lambda text: True
        self.train.discardButton.click()
        self.assertEqual((self.run_.rows, self.train.trainButton.text), ({}, "Train"))
        self.assertFalse((self.worker.folder / "fresh" / ".fresh-cycle.partial").exists())

    def test_a_killed_worker_loses_no_finished_epoch(self):
        import os
        import signal

        from MedXAILib.panel import worker_session

        self.train._parameters.epochs = 60
        self.train.trainButton.click()
        self.epochs(2)
        os.kill(worker_session.trainingClient().environment["pid"], signal.SIGKILL)
        self.idle()
        self.assertIn("; press Go on", self.train.statusLabel.text)
        self.assertGreaterEqual(len(self.run_.rows), 2)
        self.train.outputEdit.currentPath = str(self.worker.folder / "elsewhere")
        self.assertEqual(self.run_.rows, {})
        self.train.outputEdit.currentPath = str(self.worker.folder / "fresh" / "fresh-cycle")  # as after a restart
        self.assertGreaterEqual(len(self.run_.rows), 2)
        self.assertIn("Go on, use the best of them now, or discard them", self.train.statusLabel.text)
        self.train.useButton.click()
        self.assertTrue(waitFor(lambda: "is ready" in self.train.statusLabel.text, 15), self.train.statusLabel.text)

    def test_bad_input_is_one_sentence(self):
        self.train.sourceEdit.currentPath = "/nowhere/at/all"
        self.train.trainButton.click()
        self.idle()
        self.assertIn("There is no folder '/nowhere/at/all'", self.train.statusLabel.text)
        self.assertTrue(self.train.trainButton.enabled)

    def test_closing_the_scene_leaves_the_training_alone(self):
        self.train._parameters.epochs = 60
        self.train.trainButton.click()
        self.epochs(1)
        clearScene()
        turn(0.3)
        kept = len(self.run_.rows)
        self.epochs(kept + 1)
        self.train.pauseButton.click()
        self.idle()


class RealWorkerTest(unittest.TestCase):
    """The sample classifier, the nodule phantom and the real worker; skipped, and counted, where the worker's Python has no torch."""

    def test_a_real_training_and_a_real_run(self):
        panel = realPanel(self, "MedXAICycleExplanation")
        from MedXAICycleExplanation import loadNodules

        from MedXAILib import resources
        from MedXAILib.panel.model_picker import library

        volume = loadNodules()
        segmentation = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
        panel.enter()
        panel.picker.refresh(str(resources.path("Models") / "nodule-classifier"))
        panel._onModelChosen()
        panel.volumes.choose([volume])
        selector = panel.lesion.segmentRow.selector
        selector.setCurrentNode(segmentation)
        selector.setCurrentSegmentID(segmentation.GetSegmentation().GetNthSegmentID(0))
        folder = Path(tempfile.mkdtemp(prefix="MedXAI-train-"))
        self.addCleanup(lambda: __import__("shutil").rmtree(folder, ignore_errors=True))
        images = folder / "images"
        images.mkdir()
        array, spacing = slicer.util.arrayFromVolume(volume), volume.GetSpacing()
        for n in range(16):
            part = np.ascontiguousarray(array[:, 12 * n : 12 * n + 64, 10 * n : 10 * n + 64])
            if n % 2:  # around a nodule the classifier answers otherwise
                _k, j, i = (int(v.mean()) for v in np.nonzero(self._mask(segmentation, n // 2 % 3, volume)))
                j, i = (min(max(v - 32 + n % 5, 0), 256 - 64) for v in (j, i))
                part = np.ascontiguousarray(array[:, j : j + 64, i : i + 64])
            node = slicer.util.addVolumeFromArray(part, name=f"image-{n}")
            node.CopyOrientation(volume)
            node.SetSpacing(spacing)
            slicer.util.saveNode(node, str(images / f"image-{n:02}.nrrd"))
            slicer.mrmlScene.RemoveNode(node)
        before = library().added
        self.addCleanup(lambda: [library().remove(f) for f in library().added if f not in before])
        train = panel.train
        train.button.collapsed = False
        self.addCleanup(lambda: setattr(train.button, "collapsed", True))
        train.sourceEdit.currentPath, train.outputEdit.currentPath = str(images), str(folder / "nodules-cycle")
        train._parameters.epochs, train._parameters.width, train._parameters.batch = 2, 0.05, 4
        train._changed()
        self.assertTrue(train.trainButton.enabled, train.reasonLabel.text)
        train.trainButton.click()
        self.assertTrue(waitFor(lambda: not train.run.phase.active, 200))
        self.assertIn("is ready", train.statusLabel.text)
        self.assertFalse(train.pictureLabel.isHidden())
        self.assertEqual(panel.settings().explainer, str((folder / "nodules-cycle").resolve()))
        self.assertEqual(panel.control.reason, "")
        panel.control.applyButton.click()
        self.assertTrue(waitFor(lambda: not panel.control.state.active, 120))
        self.assertEqual(panel.control.state.value, "done", panel.control.logEdit.plainText)
        self.assertTrue(panel.results.headlineLabel.text.startswith("spiculated: x "))
        panel.results.morphSlider.value = 80
        known = panel.results.cycle.known["provenance"]
        self.assertEqual([b - a for a, b in zip(known["patch"]["start"], known["patch"]["stop"])], [1, 64, 64])
        self.assertNotIn("torch", sys.modules)

    @staticmethod
    def _mask(segmentation, n, volume):
        segmentId = segmentation.GetSegmentation().GetNthSegmentID(n)
        return slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segmentId, volume)


if __name__ == "__main__":
    unittest.main()
