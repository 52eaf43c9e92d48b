"""The panel of *MedXAI Segmentation Ability*: how well each layer and unit separates the object, from click to chart."""

from __future__ import annotations

from slicer.i18n import tr as _

from ..settings import AbilitySettings
from .ability_results import AbilityResults
from .form import parameterNodeClass, widgetOf
from .method_panel import SEGMENT, MethodPanel
from .rows import rowsOf
from .segment_row import SegmentRow

AbilityParameterNode = parameterNodeClass(AbilitySettings, SEGMENT)


class AbilityPanel(MethodPanel):
    """Adds the annotation, and the threshold that answers beside the result."""

    method, module = "ability", "MedXAISegmentationAbility"
    settingsClass = AbilitySettings
    resultClass = AbilityResults
    labelHelp = _("The network's segmentation of this label is explained.")
    private = ("body",)

    def buildInputs(self, layout, inputs):
        self.annotation = SegmentRow(
            inputs,
            _("Annotation:"),
            _("What the maps are scored against; without one, the network's own thresholded output is taken."),
            self._check,
        )

    def ownWidgets(self) -> dict:
        self.acceptSlider = widgetOf(next(row for row in rowsOf(AbilitySettings) if row.name == "accept"))
        return {"accept": self.acceptSlider}

    def _build(self, layout):
        super()._build(layout)
        self.results.setAcceptSlider(self.acceptSlider)

    def bind(self, parameters):
        self.annotation.setParameterNode(parameters)

    def updateRows(self):
        self.annotation.update()

    def problem(self) -> str:
        words = _("name one under Slice, such as axial:57, or all, or choose an annotation.")
        return self.annotation.problem or self.sliceProblem(self.annotation.segment, words)

    def segment(self):
        return self.annotation.segment
