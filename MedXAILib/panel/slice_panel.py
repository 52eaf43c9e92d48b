"""The panel of a method that looks at one slice where the network is 2-D."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from ..errors import MedXAIError
from ..scene import read
from .method_panel import MethodPanel
from .parts import toolButton


class SlicePanel(MethodPanel):
    """Adds the slice, and a button that takes the one that is shown."""

    def ownWidgets(self) -> dict:
        self.sliceEdit = qt.QLineEdit()
        return {"slice": self.sliceEdit}

    def buildSettings(self, settings, advanced):
        row = qt.QHBoxLayout()
        row.addWidget(self.sliceEdit, 1)
        self.sliceButton = toolButton(row, _("Shown"), _("Takes the slice that the slice views show."), self.takeSlice)
        self.sliceLabel = qt.QLabel(_("Slice:"))
        settings.addRow(self.sliceLabel, row)

    def takeSlice(self):
        """Name the slice that the slice views show."""
        package, node = self.picker.package, self.volumes.nodes[0]
        try:
            orientation = package.input.orientation if package is not None else None
            self.parameters.slice = read.slice_shown(slicer.mrmlScene, node, orientation)
        except MedXAIError as error:
            self.control.log(error.message)

    def _onModelChosen(self, remember=True):
        super()._onModelChosen(remember)
        package = self.picker.package
        for widget in (self.sliceButton, self.sliceLabel):
            widget.visible = package is None or package.input.spatial_dims == 2

    def repeating(self, known: dict) -> list[str]:
        if not self.parameters.slice and known["inputs"]:
            self.parameters.slice = self._sliceOf(known)
        return []

    def _sliceOf(self, known: dict) -> str:
        """The slice that a run looked at; empty where there was only one, or none to choose."""
        text = str(known["provenance"].get("slice") or "")
        axis = "ijk".find(text[:1]) if text else -1
        return text if axis >= 0 and known["inputs"][0].GetImageData().GetDimensions()[axis] > 1 else ""
