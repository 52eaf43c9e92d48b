"""MedXAI Models: model packages, the worker and its environment. The panel itself is `MedXAILib.panel.models_panel`."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("MedXAILib") is None: sys.path.append(str(Path(__file__).resolve().parents[2]))  # noqa: E701  # fmt: skip

from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)


class MedXAIModels(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("MedXAI Models")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Analysis")]
        parent.dependencies = []
        parent.contributors = ["The MedXAI developers"]
        parent.helpText = _(
            "Lists the networks that MedXAI explains, says what each of them takes and gives, and keeps the background process"
            " that computes: what is installed, on which device, and how to give its memory back."
            " This is a research tool, not a medical device."
        )
        parent.acknowledgementText = _(
            "Networks run with PyTorch and MONAI (Cardoso MJ et al. MONAI: an open-source framework for deep learning in"
            " healthcare. arXiv:2211.02701)."
        )


class MedXAIModelsWidget(ScriptedLoadableModuleWidget):
    """Puts the panel into the module's place and passes on what Slicer tells it."""

    def __init__(self, parent=None):
        self.panel = None
        super().__init__(parent)

    def setup(self):
        """Called when the module is opened for the first time."""
        super().setup()
        from MedXAILib.panel.models_panel import ModelsPanel

        self.panel = ModelsPanel(self.parent, self.layout)

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


class MedXAIModelsTest(ScriptedLoadableModuleTest):
    """What `Reload and Test` and `slicer_add_python_unittest` run: the cases in `Testing`."""

    def runTest(self, **_options):
        """Run every case; a source tree is needed, since an installed extension carries no tests."""
        from MedXAILib.panel.reload import runTestCases

        runTestCases(self, Path(__file__).resolve().parent / "Testing")
