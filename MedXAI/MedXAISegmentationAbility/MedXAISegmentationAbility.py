"""MedXAI Segmentation Ability: where in a network the object is separated from the rest. The panel itself is `MedXAILib.panel.ability_panel`."""

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


class MedXAISegmentationAbility(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("MedXAI Segmentation Ability")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Analysis")]
        parent.dependencies = []
        parent.contributors = ["The MedXAI developers"]
        parent.helpText = _(
            "Shows how well each layer and each unit of a segmentation network separates a label from everything else: a map and a score"
            " for each of them, the way from the image to the output as a curve, and a mean score that marks outputs to look at. Choose a"
            " volume and a model, press Apply, and pick a layer, a unit or a point of the curve. This is a research tool, not a medical"
            " device."
        )
        parent.acknowledgementText = _(
            "Method: He S, Feng Y, Grant PE, Ou Y. Segmentation ability map: interpret deep features for medical image segmentation. Medical"
            " Image Analysis 84, 2023."
        )


class MedXAISegmentationAbilityLogic(ScriptedLoadableModuleLogic):
    """The panel's settings in the scene. A run itself needs no panel: `MedXAILib.methods` and the `medxai` command do it."""

    def getParameterNode(self):
        """The settings kept in the scene, typed."""
        from MedXAILib.panel.ability_panel import AbilityParameterNode

        return AbilityParameterNode(super().getParameterNode())


class MedXAISegmentationAbilityWidget(ScriptedLoadableModuleWidget):
    """Puts the panel into the module's place and passes on what Slicer tells it."""

    def __init__(self, parent=None):
        self.panel = None
        super().__init__(parent)

    def setup(self):
        """Called when the module is opened for the first time."""
        super().setup()
        from MedXAILib.panel.ability_panel import AbilityPanel

        self.logic = MedXAISegmentationAbilityLogic()
        self.panel = AbilityPanel(self.parent, self.layout, self.logic)

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


class MedXAISegmentationAbilityTest(ScriptedLoadableModuleTest):
    """What `Reload and Test` and `slicer_add_python_unittest` run: the cases in `Testing`."""

    def runTest(self, **_options):
        """Run every case; a source tree is needed, since an installed extension carries no tests."""
        from MedXAILib.panel.reload import runTestCases

        runTestCases(self, Path(__file__).resolve().parent / "Testing")
