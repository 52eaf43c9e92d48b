"""What to do with a finished dream: scrub its steps, go to its voxel."""

from __future__ import annotations

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from ..scene import layers, repeat
from ..scene.nodes import NAME
from .results import ResultSection
from .watch import Watch


class DreamResults(ResultSection):
    """Adds a slider for the steps."""

    title = "DeepDream"
    goText, goHelp = _("Go to voxel"), _("Shows the voxel of this run in the slice views; zoom stays.")

    def build(self, layout):
        self._steps = Watch(self._onBrowser)
        steps = qt.QHBoxLayout()
        self.stepLabel = qt.QLabel(_("Step:"))
        self.stepSlider = qt.QSlider(qt.Qt.Horizontal)
        self.stepSlider.objectName = "stepSlider"
        self.stepSlider.toolTip = _("Scrub through the steps that were kept; the slice views follow.")
        self.stepSlider.connect("valueChanged(int)", self._scrub)
        self.playButton = qt.QToolButton()
        self.playButton.text = "▶"
        self.playButton.checkable = True
        self.playButton.toolTip = _("Play the steps.")
        self.playButton.connect("toggled(bool)", self._play)
        steps.addWidget(self.stepLabel)
        steps.addWidget(self.stepSlider, 1)
        steps.addWidget(self.playButton)
        layout.addLayout(steps)

    def stop(self):
        super().stop()
        self._steps.clear()

    def update(self):
        browsers = self.nodes("vtkMRMLSequenceBrowserNode")
        self._observeBrowser(browsers[0] if browsers else None)

    def leave(self):
        self._observeBrowser(None)

    # -- steps ---------------------------------------------------------------------------------------------------------------

    def _observeBrowser(self, browser):
        if browser is not self._steps.object:
            self._steps.set(browser, vtk.vtkCommand.ModifiedEvent)
        self._onBrowser()

    def _onBrowser(self, _caller=None, _event=None):
        browser = self._steps.object
        items = browser.GetNumberOfItems() if browser is not None else 0
        self._updating = True
        self.stepSlider.enabled = self.playButton.enabled = items > 1
        self.stepSlider.setRange(0, max(0, items - 1))
        if items:
            item = browser.GetSelectedItemNumber()
            self.stepSlider.value = item
            step = browser.GetMasterSequenceNode().GetNthIndexValue(item) if 0 <= item < items else ""
            last = browser.GetMasterSequenceNode().GetNthIndexValue(items - 1)
            self.stepLabel.text = _("Step {step} of {last}").format(step=step, last=last)
            self.playButton.checked = browser.GetPlaybackActive()
        else:
            self.stepLabel.text = _("Step:")
            self.playButton.checked = False
        self._updating = False

    def _scrub(self, item):
        if self._steps.object is not None and not self._updating:
            self._steps.object.SetSelectedItemNumber(item)

    def _play(self, on):
        if self._steps.object is not None and not self._updating:
            if on and self._steps.object.GetSelectedItemNumber() == self._steps.object.GetNumberOfItems() - 1:
                self._steps.object.SetSelectedItemNumber(0)
            self._steps.object.SetPlaybackActive(on)

    def show(self):
        """This run's layers in the slice views."""
        if not self.folder:
            return
        known = repeat.provenance(slicer.mrmlScene, self.folder)
        volumes = [n for n in self.nodes("vtkMRMLScalarVolumeNode") if not n.IsA("vtkMRMLLabelMapVolumeNode")]
        masks = self.nodes("vtkMRMLLabelMapVolumeNode")
        shown = next((n for n in volumes if "(step)" in (n.GetAttribute(NAME) or "")), volumes[0] if volumes else None)
        background = known["inputs"][0] if known["inputs"] else None
        layers.show(slicer.mrmlScene, background, shown, layers.OPAQUE, masks[0] if masks else None)
        self.showChart()

    def goTo(self):
        """The run's voxel in the slice views."""
        points = [n for n in self.nodes("vtkMRMLMarkupsFiducialNode") if n.GetNumberOfControlPoints()]
        if points:
            slicer.modules.markups.logic().JumpSlicesToLocation(*points[0].GetNthControlPointPositionWorld(0), False)
