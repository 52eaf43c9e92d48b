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
        return self.annotation.problem or self._sliceProblem()

    def _sliceProblem(self) -> str:
        package, node = self.picker.package, self.volumes.nodes[0]
        flat = package is not None and package.input.spatial_dims == 2
        if (
            not flat
            or self.parameters.slice.strip()
            or self.annotation.segment
            or node is None
            or node.GetImageData() is None
        ):
            return ""
        if 1 in node.GetImageData().GetDimensions():
            return ""
        return _(
            "This network looks at slices: name one under Slice, such as axial:57, or all, or choose an annotation."
        )

    def segment(self):
        return self.annotation.segment
