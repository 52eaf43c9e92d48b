"""MedXAI DeepDream: what a segmentation network reacts to. The panel itself is `MedXAILib.panel.dream_panel`."""

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


class MedXAIDeepDream(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("MedXAI DeepDream")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Analysis")]
        parent.dependencies = []
        parent.contributors = ["The MedXAI developers"]
        parent.helpText = _(
            "Shows what a segmentation network reacts to: the image is changed, step by step, so that the network's answer at"
            " one voxel grows, and feature curves say what changed. Choose a volume, a model and a voxel, and press Apply."
            " This is a research tool, not a medical device."
        )
        parent.acknowledgementText = _(
            "Method: Couteaux V, Nempont O, Pizaine G, Bloch I. Towards interpretability of segmentation networks by"
            " analyzing DeepDreams. iMIMIC workshop at MICCAI 2019."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """Offer the tutorials' volumes in Sample Data: computed on this computer, nothing is downloaded."""
    import SampleData

    for name, load in (
        ("MedXAILiverPhantom", loadPhantom),
        ("MedXAILesionPhantom", loadLesionPhantom),
        ("MedXAIMammogramPhantom", loadMammogram),
    ):
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="MedXAI",
            sampleName=name,
            thumbnailFileName=str(Path(__file__).resolve().parent / "Resources" / "Icons" / "MedXAILiverPhantom.png"),
            uris="",
            fileNames="",
            nodeNames="",
            customDownloader=load,
        )


def loadPhantom(_source=None, lesions=False):
    """Put a made-up abdomen, and its liver (and lesions) as segments, into the scene; gives the volume node."""
    from MedXAILib.demo import phantom
    from MedXAILib.demo.run import PATIENT
    from MedXAILib.panel import samples

    with slicer.util.WaitCursor():
        made = phantom.case(PATIENT, lesions=lesions)
        masks = {"liver": made.mask("organ")} | ({"lesion": made.mask("lesion")} if lesions else {})
        return samples.show(made.image, masks, "Lesion phantom" if lesions else "Liver phantom", (-160, 240))


def loadLesionPhantom(_source=None):
    """The same with lesions, for classifiers."""
    return loadPhantom(lesions=True)


def loadMammogram(_source=None):
    """Put a made-up mammogram, and its breast and mass as segments, into the scene; gives the volume node."""
    from MedXAILib.demo import mammogram
    from MedXAILib.panel import samples

    with slicer.util.WaitCursor():
        made = mammogram.mammogram(mammogram.PATIENT)
        masks = {mask.name: mask for mask in (made.breast, made.masses)}
        return samples.show(made.image, masks, "Mammogram phantom", (0, 220))


class MedXAIDeepDreamLogic(ScriptedLoadableModuleLogic):
    """The panel's settings in the scene. A run itself needs no panel: `MedXAILib.methods` and the `medxai` command do it."""

    def getParameterNode(self):
        """The settings kept in the scene, typed."""
        from MedXAILib.panel.dream_panel import DreamParameterNode

        return DreamParameterNode(super().getParameterNode())


class MedXAIDeepDreamWidget(ScriptedLoadableModuleWidget):
    """Puts the panel into the module's place and passes on what Slicer tells it."""

    def __init__(self, parent=None):
        self.panel = None
        super().__init__(parent)

    def setup(self):
        """Called when the module is opened for the first time."""
        super().setup()
        from MedXAILib.panel.dream_panel import DreamPanel

        self.logic = MedXAIDeepDreamLogic()
        self.panel = DreamPanel(self.parent, self.layout, self.logic)

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


class MedXAIDeepDreamTest(ScriptedLoadableModuleTest):
    """What `Reload and Test` and `slicer_add_python_unittest` run: the cases in `Testing`."""

    def runTest(self, **_options):
        """Run every case; a source tree is needed, since an installed extension carries no tests."""
        from MedXAILib.panel.reload import runTestCases

        runTestCases(self, Path(__file__).resolve().parent / "Testing")
