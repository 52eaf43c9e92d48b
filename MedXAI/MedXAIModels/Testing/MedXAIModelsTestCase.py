"""The Models panel in Slicer, with a worker that plays (no torch needed)."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "MedXAIDeepDream" / "Testing"))

import slicer
from panel_testing import PlayedWorker, addVolume, group, sceneState, waitFor, writeModel


class ModelsPanelTest(unittest.TestCase):
    """Add, describe, test, remove; environment; worker."""

    def setUp(self):
        slicer.mrmlScene.Clear()
        self.worker = PlayedWorker()
        self.addCleanup(self.worker.stop)
        slicer.util.selectModule("MedXAIModels")
        self.panel = slicer.util.getModuleWidget("MedXAIModels").panel
        self.model = writeModel(self.worker.folder / "played")
        self.panel.enter()

    def titles(self):
        return [self.panel.list.item(n).text() for n in range(self.panel.list.count)]

    def test_add_and_remove(self):
        self.panel.add(self.model)
        self.assertIn("Played organ", self.titles())
        self.assertEqual(self.panel.entry.package.name, "Played organ")
        self.assertIn("background, liver, organ", self.panel.details.toPlainText())
        self.assertIn(self.panel.entry.package.sha256[:16], self.panel.details.toPlainText())
        self.panel.removeButton.click()
        self.assertNotIn("Played organ", self.titles())
        self.assertTrue((self.model / "weights.safetensors").exists())
        self.assertIn("still in", self.panel.message.text)

    def test_a_folder_without_a_model_is_refused_in_line(self):
        (self.worker.folder / "empty").mkdir()
        self.panel.add(self.worker.folder / "empty")
        self.assertIn("model.json", self.panel.message.text)

    def test_describe(self):
        self.panel.add(self.model)
        self.panel.describeButton.click()
        self.assertTrue(waitFor(lambda: "It loads" in self.panel.message.text), self.panel.message.text)
        self.assertIn("1,234 parameters", self.panel.message.text)
        self.assertEqual(self.panel.layers.topLevelItem(0).text(0), "conv")

    def test_test_on_a_volume_keeps_nothing(self):
        volume = addVolume()
        before = sceneState()
        self.panel.add(self.model)
        self.panel.testVolume.setCurrentNode(volume)
        self.panel.testButton.click()
        self.assertTrue(waitFor(lambda: "It works" in self.panel.message.text), self.panel.message.text)
        self.assertEqual(sceneState(), before)

    def test_a_classifier_is_tested_on_the_slice_that_is_shown(self):
        about = {"spatial_dims": 2, "channels": ["CR"], "orientation": None, "spacing": None, "size": None,
                 "multiple_of": None, "intensity": {"kind": "none"}}  # fmt: skip
        network = {"name": "DenseNet121", "arguments": {}}
        folder = writeModel(self.worker.folder / "view", "View", task="classification", input=about, network=network)
        self.panel.add(folder)
        self.assertEqual(self.panel.entry.package.task, "classification")
        volume = addVolume()
        before = sceneState()
        self.panel.testVolume.setCurrentNode(volume)
        self.panel.testButton.click()
        self.assertTrue(waitFor(lambda: "It works" in self.panel.message.text), self.panel.message.text)
        self.assertEqual(sceneState(), before)

    def test_program_cannot_be_loaded_before_it_is_trusted(self):
        folder = writeModel(self.worker.folder / "program", "A program", suffix=".ts")
        self.panel.add(folder)
        self.assertFalse(self.panel.testButton.enabled)
        self.panel.trust.button.click()
        self.assertTrue(self.panel.testButton.enabled)
        told = []
        self.panel._showLayers = told.append
        self.panel.describeButton.click()
        self.assertTrue(waitFor(lambda: told), self.panel.message.text)
        self.assertEqual(told[0]["trusted"], list(self.panel.trust.trusted))
        self.assertTrue(told[0]["trusted"])

    def test_environment_is_listed_without_importing_it(self):
        self.assertTrue(waitFor(lambda: self.panel.environment.packages.topLevelItemCount >= 6))
        names = [
            self.panel.environment.packages.topLevelItem(n).text(0)
            for n in range(self.panel.environment.packages.topLevelItemCount)
        ]
        self.assertIn("torch", names)
        self.assertNotIn("torch", sys.modules)
        self.assertNotIn("monai", sys.modules)

    def test_worker_state_release_and_stop(self):
        from MedXAILib.panel import worker_session

        self.assertIn("not running", self.panel.worker.label.text)
        self.panel.worker.startButton.click()
        self.assertTrue(waitFor(lambda: "Fake CPU" in self.panel.worker.label.text), self.panel.worker.label.text)
        pid = worker_session.client().environment["pid"]
        self.panel.worker.releaseButton.click()
        self.assertTrue(waitFor(lambda: "released" in self.panel.worker.label.text), self.panel.worker.label.text)
        self.panel.worker.stopButton.click()
        self.assertTrue(waitFor(lambda: not group(pid), 3))
        self.assertIn("not running", self.panel.worker.label.text)


if __name__ == "__main__":
    unittest.main()
