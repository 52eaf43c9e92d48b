"""The panel of *MedXAI DeepDream*: what a segmentation network reacts to, from click to chart."""

from __future__ import annotations

from pathlib import Path

import qt
from slicer.i18n import tr as _

from ..settings import DreamSettings
from . import environment as environments
from .dream_results import DreamResults
from .form import parameterNodeClass
from .method_panel import SEGMENT, MethodPanel
from .neuron import NeuronRows
from .parts import section, toolButton

DreamParameterNode = parameterNodeClass(DreamSettings, SEGMENT)


class DreamPanel(MethodPanel):
    """Adds the voxel, the reference and whether the chosen feature engine can be had."""

    method, module = "dream", "MedXAIDeepDream"
    settingsClass = DreamSettings
    resultClass = DreamResults
    labelHelp = _("The network's answer for this label is raised.")
    kept = ("label", "neuron_ras")
    private = ("neuron_ras", "reference")

    def buildInputs(self, layout, inputs):
        where = section(layout, _("Voxel"), qt.QFormLayout)
        self.neuron = NeuronRows(where, lambda: self.volumes.nodes[0], self._check)

    def ownWidgets(self) -> dict:
        self.referenceEdit = qt.QLineEdit()
        self.referenceEdit.placeholderText = _("none")
        return {"neuron_ras": self.neuron.rasEdit, "reference": self.referenceEdit}

    def buildSettings(self, settings, advanced):
        row = qt.QHBoxLayout()
        row.addWidget(self.referenceEdit, 1)
        toolButton(row, "…", _("Choose a reference distribution."), self._chooseReference)
        settings.addRow(_("Reference:"), row)

    def _chooseReference(self):
        path = qt.QFileDialog.getOpenFileName(
            self.parent, _("Reference distribution"), self.referenceEdit.text, "JSON (*.json)"
        )
        if path:
            self.referenceEdit.text = path

    def bind(self, parameters):
        self.neuron.setParameterNode(parameters)

    def updateRows(self):
        self.neuron.update()

    def problem(self) -> str:
        reason = self.neuron.describe()
        reason = reason or environments.withoutEngine(self.environment.packages or [], self.parameters.engine)
        path = self.referenceEdit.text.strip()
        if reason or not path or Path(path).is_file():
            return reason
        return _("The reference '{path}' does not exist; choose another file or clear it.").format(path=path)

    def segment(self):
        return self.neuron.segment

    def first(self, volume) -> dict:
        return {"dream": volume.with_array(volume.array.astype("float32", copy=False))}
