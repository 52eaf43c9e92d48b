"""MedXAI Counterfactual Impact: the image without the finding a classifier sees. The panel itself is `MedXAILib.panel.counterfactual_panel`."""

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


class MedXAICounterfactualImpact(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("MedXAI Counterfactual Impact")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Analysis")]
        parent.dependencies = []
        parent.contributors = ["The MedXAI developers"]
        parent.helpText = _(
            "Finds the smallest region of an image whose inpainting makes a class vanish for a classifier, and shows the image without it beside the"
            " image as it is, to fade between them. Choose a volume, a classifier and, where you have them, an inpainter, the organ and an"
            " annotation; press Apply, and move the λ sliders: the run goes on from where it is. This is a research tool, not a medical device."
        )
        parent.acknowledgementText = _(
            "Method: Major D, Lenis D, Wimmer M, et al. Interpreting medical image classifiers by optimization based counterfactual impact"
            " analysis. ISBI 2020: 1096–1100."
        )


class MedXAICounterfactualImpactLogic(ScriptedLoadableModuleLogic):
    """The panel's settings in the scene. A run itself needs no panel: `MedXAILib.methods` and the `medxai` command do it."""

    def getParameterNode(self):
        """The settings kept in the scene, typed."""
        from MedXAILib.panel.counterfactual_panel import CounterfactualParameterNode

        return CounterfactualParameterNode(super().getParameterNode())


class MedXAICounterfactualImpactWidget(ScriptedLoadableModuleWidget):
    """Puts the panel into the module's place and passes on what Slicer tells it."""

    def __init__(self, parent=None):
        self.panel = None
        super().__init__(parent)

    def setup(self):
        """Called when the module is opened for the first time."""
        super().setup()
        from MedXAILib.panel.counterfactual_panel import CounterfactualPanel

        self.logic = MedXAICounterfactualImpactLogic()
        self.panel = CounterfactualPanel(self.parent, self.layout, self.logic)

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


class MedXAICounterfactualImpactTest(ScriptedLoadableModuleTest):
    """What `Reload and Test` and `slicer_add_python_unittest` run: the cases in `Testing`."""

    def runTest(self, **_options):
        """Run every case; a source tree is needed, since an installed extension carries no tests."""
        from MedXAILib.panel.reload import runTestCases

        runTestCases(self, Path(__file__).resolve().parent / "Testing")
