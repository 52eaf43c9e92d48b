"""The panel of *MedXAI Cycle Explanation*: what an image would look like as either class of a classifier."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

from ..settings import CycleSettings
from .cycle_results import CycleResults
from .explainer_row import ExplainerRow
from .form import parameterNodeClass
from .lesion_rows import MARKUP, LesionRows
from .method_panel import SEGMENT
from .slice_panel import SlicePanel
from .train_section import TrainSection

CycleParameterNode = parameterNodeClass(CycleSettings, {**SEGMENT, MARKUP: slicer.vtkMRMLMarkupsNode})


class CyclePanel(SlicePanel):
    """Adds the explainer, the lesion, and the training of an explainer."""

    method, module = "cycle", "MedXAICycleExplanation"
    task = "classification"
    anyLabel = _("as the explainer was trained")
    settingsClass = CycleSettings
    resultClass = CycleResults
    labelHelp = _("The class that G⁺ goes towards; G⁻ goes towards the other one of the explainer.")
    kept = ("label", "explainer", "center_ras")
    private = ("explainer",)

    def buildInputs(self, layout, inputs):
        self.explainer = ExplainerRow(inputs, self._check)
        self.lesion = LesionRows(inputs, lambda: self.volumes.nodes[0], self._check)

    def ownWidgets(self) -> dict:
        return {**super().ownWidgets(), "explainer": None, "center_ras": self.lesion.centerEdit}

    def _build(self, layout):
        super()._build(layout)
        stretch = layout.takeAt(layout.count() - 1)  # the training comes below the result
        self.train = TrainSection(layout, self._classifier, self._trained, self.control.log)
        layout.addItem(stretch)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def enter(self):
        super().enter()
        self.train.enter()

    def cleanup(self):
        self.train.cleanup()
        super().cleanup()

    def bind(self, parameters):
        for row in (self.explainer, self.lesion):
            row.setParameterNode(parameters)

    def updateRows(self):
        for row in (self.explainer, self.lesion):
            row.update()

    def _onModelChosen(self, remember=True):
        super()._onModelChosen(
            remember
        )  # first: what is set below is told to the parameter node, which must know the model
        package = self.picker.package
        self.lesion.setInput(package.input if package is not None else None)
        self.explainer.setClassifier(package)
        self._check()

    def _check(self):
        super()._check()
        if self.parameters is not None and hasattr(self, "train"):
            self.lesion.update()
            self.train.update()

    def problem(self) -> str:
        words = _("press Shown beside Slice to take the one that is shown, or choose a lesion.")
        reason = self.explainer.problem(self.picker.package, self.parameters.label) or self.lesion.problem
        return reason or self.sliceProblem(self.lesion.chosen, words)

    def segment(self):
        return self.lesion.segment

    def repeat(self, known: dict):
        if self.parameters is not None:
            self.parameters.setValue(MARKUP, None)  # the run's own center is filled in
        super().repeat(known)

    def repeating(self, known: dict) -> list[str]:
        if self.lesion.chosen:
            return []  # it says which slice
        return super().repeating(known)

    def title(self) -> str:
        """Name of a run's folder: the class is told by the explainer where none was chosen."""
        package = self.explainer.entry.package if self.explainer.entry else None
        label = self.picker.label or (package.explains.positive if package is not None and package.explains else "")
        words = _("{method}: {label} ({model})") if label else _("{method} ({model})")
        return words.format(method=self.results.title, label=label, model=self.picker.package.name)

    # -- training ------------------------------------------------------------------------------------------------------

    def _classifier(self):
        """What a training needs of the inputs: (package, trusted programs, device, why not)."""
        from . import environment as environments

        reason = self.environment.problem or environments.missing(self.environment.packages or [])
        reason = reason or self.picker.problem or self.trust.problem
        device = self.parameters.device if self.parameters is not None else "auto"
        return self.picker.package, self.trust.trusted, device, reason

    def _trained(self, folder, classifier):
        """A training has ended as an explainer in this folder."""
        package = self.picker.package
        if package is not None and package.sha256 == classifier.sha256:
            self.explainer.choose(folder)
        self._check()
