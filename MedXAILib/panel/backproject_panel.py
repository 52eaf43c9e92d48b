"""The panel of *MedXAI Feature Back-projection*: what the strongest filters of a classifier react to in an image."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from ..errors import MedXAIError
from ..scene import read
from ..settings import BackprojectSettings
from .backproject_results import BackprojectResults
from .form import parameterNodeClass
from .landmark_row import LandmarkRow
from .method_panel import SEGMENT, MethodPanel
from .parts import toolButton

BackprojectParameterNode = parameterNodeClass(BackprojectSettings, SEGMENT)


class BackprojectPanel(MethodPanel):
    """Adds the landmarks, and the slice that is shown."""

    method, module = "backproject", "MedXAIFeatureBackProjection"
    task = "classification"
    anyLabel = _("what the network answers")
    settingsClass = BackprojectSettings
    resultClass = BackprojectResults
    labelHelp = _(
        "The label whose score is told, and whose fall when filters are silenced; the filters are the strongest for any label."
    )

    def buildInputs(self, layout, inputs):
        self.landmarks = LandmarkRow(inputs, self._check)

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

    def bind(self, parameters):
        self.landmarks.setParameterNode(parameters)

    def updateRows(self):
        self.landmarks.update()

    def problem(self) -> str:
        words = _("press Shown beside Slice to take the one that is shown, or choose landmarks.")
        return self.landmarks.problem or self.sliceProblem(self.landmarks.segments[1], words)

    def segments(self) -> tuple:
        return self.landmarks.segments

    def title(self) -> str:
        name = self.picker.package.name
        return (
            f"{self.results.title}: {self.picker.label} ({name})"
            if self.picker.label
            else f"{self.results.title} ({name})"
        )

    def repeating(self, known: dict) -> list[str]:
        if not self.parameters.slice and known["inputs"]:
            self.parameters.slice = self._sliceOf(known)
        before = known["provenance"].get("landmarks") or []
        if known["segmentation"] is None or before == self.landmarks.names:
            return []
        names = ", ".join(before)
        return [
            _("The landmarks of that run were {names}; hide and show segments to have them again.").format(names=names)
        ]

    def _sliceOf(self, known: dict) -> str:
        """The slice that a run looked at; empty where there was only one, or none to choose."""
        text = str(known["provenance"].get("slice") or "")
        axis = "ijk".find(text[:1]) if text else -1
        return text if axis >= 0 and known["inputs"][0].GetImageData().GetDimensions()[axis] > 1 else ""
