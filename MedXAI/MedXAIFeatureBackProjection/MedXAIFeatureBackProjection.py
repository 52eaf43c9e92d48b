"""MedXAI Feature Back-projection: what in the image the strongest filters of a classifier react to. The panel itself is `MedXAILib.panel.backproject_panel`."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("MedXAILib") is None: sys.path.append(str(Path(__file__).resolve().parents[2]))  # noqa: E701  # fmt: skip

from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)


class MedXAIFeatureBackProjection(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("MedXAI Feature Back-projection")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Analysis")]
        parent.dependencies = []
        parent.contributors = ["The MedXAI developers"]
        parent.helpText = _(
            "Shows what in an image the strongest filters of a classifier react to: each filter's answer is sent back through the network to"
            " the image (deconvnet), one map for each of them and a heat map of all, with the share of the heat in each landmark. Choose a"
            " volume and a classifier, press Apply, and pick a filter, or say how many of them count. This is a research tool, not a medical"
            " device."
        )
        parent.acknowledgementText = _(
            "Method: Kumar D, Menkovski V. Understanding anatomy classification through visualization. NIPS Workshop on Machine Learning for"
            " Health, 2016."
        )


class MedXAIFeatureBackProjectionLogic(ScriptedLoadableModuleLogic):
    """The panel's settings in the scene. A run itself needs no panel: `MedXAILib.methods` and the `medxai` command do it."""

    def getParameterNode(self):
        """The settings kept in the scene, typed."""
        from MedXAILib.panel.backproject_panel import BackprojectParameterNode

        return BackprojectParameterNode(super().getParameterNode())


class MedXAIFeatureBackProjectionWidget(ScriptedLoadableModuleWidget):
    """Puts the panel into the module's place and passes on what Slicer tells it."""

    def __init__(self, parent=None):
        self.panel = None
        super().__init__(parent)

    def setup(self):
        """Called when the module is opened for the first time."""
        super().setup()
        from MedXAILib.panel.backproject_panel import BackprojectPanel

        self.logic = MedXAIFeatureBackProjectionLogic()
        self.panel = BackprojectPanel(self.parent, self.layout, self.logic)

    def enter(self):
        """Called each time the module is opened."""
        if self.panel is not None:
            self.panel.enter()

    def exit(self):
        """Called each time another module is opened."""
        if self.panel is not None:
            self.panel.exit()

    def cleanup(self):
        """Called when the module goes away, at the end or for a reload."""
        if self.panel is not None:
            self.panel.cleanup()
            self.panel = None

    def onReload(self):
        """Reload all of MedXAI, not this file alone."""
        from MedXAILib.panel.reload import reloadPanels

        reloadPanels()


class MedXAIFeatureBackProjectionTest(ScriptedLoadableModuleTest):
    """What `Reload and Test` and `slicer_add_python_unittest` run: the cases in `Testing`."""

    def runTest(self, **_options):
        """Run every case; a source tree is needed, since an installed extension carries no tests."""
        from MedXAILib.panel.reload import runTestCases

        runTestCases(self, Path(__file__).resolve().parent / "Testing")
