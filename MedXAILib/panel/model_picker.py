"""Choosing a model and one of its labels."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from .. import resources
from ..errors import MedXAIError
from ..package import Package
from .library import Entry, Library
from .parts import toolButton


def library() -> Library:
    """The packages listed in Slicer's settings, with the bundled samples."""
    try:
        samples = resources.path("Models")
    except MedXAIError:
        samples = None
    return Library(slicer.app.userSettings(), samples)


def summary(package: Package) -> str:
    """What a network takes, in one or two lines."""
    about = package.input
    parts = [_("{n}-D").format(n=about.spatial_dims), ", ".join(about.channels)]
    if about.orientation:
        parts.append(about.orientation)
    if about.spacing:
        parts.append(" × ".join(f"{s:g}" for s in about.spacing) + " mm")
    if about.size:
        parts.append(" × ".join(map(str, about.size)) + _(" voxels"))
    return f"{package.task}: " + "; ".join(parts)


class ModelPicker:
    """A combo box of model packages and one of labels.

    Parameters
    ----------
    layout : qt.QFormLayout
        Where the rows go.
    task : str
        Only packages of this task can be chosen; the others are not listed.
    onChanged : callable
        Called without arguments when model or label have changed.
    anyLabel : str
        What stands first in the list of labels for no label at all; empty: one must be chosen.
    """

    def __init__(self, layout, task: str, onChanged, anyLabel: str = ""):
        self._task, self._onChanged, self._anyLabel = task, onChanged, anyLabel
        self._entries: list[Entry] = []
        self._filling = False
        self.combo = qt.QComboBox()
        self.combo.objectName = "modelCombo"
        self.combo.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)
        row = qt.QHBoxLayout()
        row.addWidget(self.combo, 1)
        manage = _("Add, describe and test models (module MedXAI Models).")
        toolButton(row, "…", manage, lambda: slicer.util.selectModule("MedXAIModels"))
        layout.addRow(_("Model:"), row)
        self.summaryLabel = qt.QLabel()
        self.summaryLabel.wordWrap = True
        layout.addRow("", self.summaryLabel)
        self.labelCombo = qt.QComboBox()
        self.labelCombo.objectName = "labelCombo"
        self.combo.connect("currentIndexChanged(int)", self._modelChanged)
        self.labelCombo.connect("currentIndexChanged(int)", self._labelChanged)

    def addLabelRow(self, layout, toolTip: str):
        """Put the label's combo box into a form."""
        self.labelCombo.toolTip = toolTip
        layout.addRow(_("Label:"), self.labelCombo)

    def refresh(self, folder: str = "", label: str = ""):
        """List the packages again and choose one of them, and one of its labels."""
        found = library().entries()
        self._entries = [e for e in found if e.package is None or e.package.task == self._task]
        self._filling = True
        self.combo.clear()
        self.combo.addItem(_("Choose a model") if self._entries else _("No model yet: press … to add one"))
        for entry in self._entries:
            self.combo.addItem(entry.title)
            self.combo.setItemData(self.combo.count - 1, str(entry.folder), qt.Qt.ToolTipRole)
        self._filling = False
        if not folder and len(self._entries) == 1 and self._entries[0].package is not None:
            self.combo.setCurrentIndex(1)  # there is nothing to choose between: the panel is told
            return
        self.choose(folder, label)

    def choose(self, folder: str, label: str = ""):
        """Choose a model by its folder and a label by name, without telling the panel (unless they are not there)."""
        self._filling = True
        index = next((n for n, e in enumerate(self._entries, 1) if str(e.folder) == folder), 0)
        if folder and not index:
            self._entries.append(
                library().entry(folder)
            )  # a scene may name a model that is not on this computer's list
            self.combo.addItem(self._entries[-1].title)
            index = len(self._entries)
        self.combo.setCurrentIndex(index)
        self._fillLabels(label)
        self._filling = False

    @property
    def entry(self) -> Entry | None:
        """The chosen package."""
        index = self.combo.currentIndex
        return self._entries[index - 1] if 0 < index <= len(self._entries) else None

    @property
    def package(self) -> Package | None:
        """The chosen package, when it can be read."""
        return self.entry.package if self.entry else None

    @property
    def folder(self) -> str:
        """The chosen package's folder; empty when none is chosen."""
        return str(self.entry.folder) if self.entry else ""

    @property
    def label(self) -> str:
        """The chosen label; empty for none."""
        chosen = self.package is not None and not (self._anyLabel and self.labelCombo.currentIndex == 0)
        return self.labelCombo.currentText if chosen else ""

    @property
    def problem(self) -> str:
        """Why the choice cannot be used, one sentence; empty when it can."""
        if self.entry is None:
            return _("Choose a model.") if self._entries else _("Add a model package first: press … beside Model.")
        if self.package is None:
            return self.entry.problem
        if self.package.task != self._task:
            return _("'{name}' is a {task} network; this panel explains {wanted} networks.").format(
                name=self.package.name, task=self.package.task, wanted=self._task
            )
        return ""

    def _fillLabels(self, label: str):
        labels = list(self.package.output.labels) if self.package else []
        self.labelCombo.clear()
        for name in [self._anyLabel] * bool(self._anyLabel) + labels:
            self.labelCombo.addItem(name)
        last = self.labelCombo.count - 1
        first = last - len(labels) + 1
        self.labelCombo.setCurrentIndex(first + labels.index(label) if label in labels else 0 if first else last)
        self.labelCombo.enabled = len(labels) > 1
        self.summaryLabel.text = summary(self.package) if self.package else ""
        self.summaryLabel.visible = bool(self.package)

    def _modelChanged(self, _index):
        if self._filling:
            return
        self._filling = True
        self._fillLabels("")
        self._filling = False
        self._onChanged()

    def _labelChanged(self, _index):
        if not self._filling:
            self._onChanged()
