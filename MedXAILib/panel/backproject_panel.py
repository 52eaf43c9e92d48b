"""The panel of *MedXAI Feature Back-projection*: what the strongest filters of a classifier react to in an image."""

from __future__ import annotations

from slicer.i18n import tr as _

from ..settings import BackprojectSettings
from .backproject_results import BackprojectResults
from .form import parameterNodeClass
from .landmark_row import LandmarkRow
from .method_panel import SEGMENT
from .slice_panel import SlicePanel

BackprojectParameterNode = parameterNodeClass(BackprojectSettings, SEGMENT)


class BackprojectPanel(SlicePanel):
    """Adds the landmarks."""

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

    def bind(self, parameters):
        self.landmarks.setParameterNode(parameters)

    def updateRows(self):
        self.landmarks.update()

    def problem(self) -> str:
        words = _("press Shown beside Slice to take the one that is shown, or choose landmarks.")
        return self.landmarks.problem or self.sliceProblem(self.landmarks.segments[1], words)

    def segments(self) -> tuple:
        return self.landmarks.segments

    def repeating(self, known: dict) -> list[str]:
        super().repeating(known)
        before = known["provenance"].get("landmarks") or []
        if known["segmentation"] is None or before == self.landmarks.names:
            return []
        names = ", ".join(before)
        return [
            _("The landmarks of that run were {names}; hide and show segments to have them again.").format(names=names)
        ]
