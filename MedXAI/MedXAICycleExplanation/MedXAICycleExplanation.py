"""MedXAI Cycle Explanation: what an image would look like as either class of a classifier. The panel itself is `MedXAILib.panel.cycle_panel`."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("MedXAILib") is None: sys.path.append(str(Path(__file__).resolve().parents[2]))  # noqa: E701  # fmt: skip

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)


class MedXAICycleExplanation(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("MedXAI Cycle Explanation")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Analysis")]
        parent.dependencies = []
        parent.contributors = ["The MedXAI developers"]
        parent.helpText = _(
            "Shows what an image would look like as either class of a classifier: two trained generators change it towards one class (G⁺) and towards the"
            " other (G⁻), a slider morphs between them, and R = G⁺ − G⁻ shows where they differ. Choose a volume, a classifier, its explainer and, in a"
            " larger image, the lesion, and press Apply. An explainer is trained once for each classifier, in the section Train. This is a research tool,"
            " not a medical device."
        )
        parent.acknowledgementText = _(
            "Method: Katzmann A, Taubmann O, Ahmad S, Mühlberg A, Sühling M, Groß HM. Explaining clinical decision support systems in medical imaging"
            " using cycle-consistent activation maximization. Neurocomputing 458 (2021): 141–156."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """Offer the tutorial's volume in Sample Data: computed on this computer, nothing is downloaded."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="MedXAI",
        sampleName="MedXAINodulePhantom",
        thumbnailFileName=str(Path(__file__).resolve().parent / "Resources" / "Icons" / "MedXAICycleExplanation.png"),
        uris="",
        fileNames="",
        nodeNames="",
        customDownloader=loadNodules,
    )


def loadNodules(_source=None):
    """Put a made-up slice of a lung, and its nodules as segments, into the scene; gives the volume node."""
    from MedXAILib.demo import nodule
    from MedXAILib.panel import samples

    with slicer.util.WaitCursor():
        made = nodule.scan(nodule.PATIENT)
        return samples.show(made.image, made.masks, "Nodule phantom", (-1000, 400))


class MedXAICycleExplanationLogic(ScriptedLoadableModuleLogic):
    """The panel's settings in the scene. A run itself needs no panel: `MedXAILib.methods` and the `medxai` command do it."""

    def getParameterNode(self):
        """The settings kept in the scene, typed."""
        from MedXAILib.panel.cycle_panel import CycleParameterNode

        return CycleParameterNode(super().getParameterNode())


class MedXAICycleExplanationWidget(ScriptedLoadableModuleWidget):
    """Puts the panel into the module's place and passes on what Slicer tells it."""

    def __init__(self, parent=None):
        self.panel = None
        super().__init__(parent)

    def setup(self):
        """Called when the module is opened for the first time."""
        super().setup()
        from MedXAILib.panel.cycle_panel import CyclePanel

        self.logic = MedXAICycleExplanationLogic()
        self.panel = CyclePanel(self.parent, self.layout, self.logic)

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


class MedXAICycleExplanationTest(ScriptedLoadableModuleTest):
    """What `Reload and Test` and `slicer_add_python_unittest` run: the cases in `Testing`."""

    def runTest(self, **_options):
        """Run every case; a source tree is needed, since an installed extension carries no tests."""
        from MedXAILib.panel.reload import runTestCases

        runTestCases(self, Path(__file__).resolve().parent / "Testing")
