"""Choosing the explainer of a classifier, kept in the scene: only those that were trained for it are offered."""

from __future__ import annotations

from pathlib import Path

import qt
from slicer.i18n import tr as _

from .model_picker import library

TASK = "explanation"


class ExplainerRow:
    """A combo box of the explainers that were trained for the chosen classifier, by the SHA-256 of its weights.

    Parameters
    ----------
    layout : qt.QFormLayout
        Where the rows go.
    onChanged : callable
        Called without arguments when something was chosen.
    """

    def __init__(self, layout, onChanged):
        self._onChanged = onChanged
        self._parameters = self._classifier = None
        self._filling = False
        self._entries = []
        self.combo = qt.QComboBox()
        self.combo.objectName = "explainerCombo"
        self.combo.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)
        self.combo.toolTip = _("A trained pair of generators; it belongs to one classifier. Listed are those of MedXAI Models and those beside the classifier.")  # fmt: skip
        self.combo.connect("currentIndexChanged(int)", self._changed)
        layout.addRow(_("Explainer:"), self.combo)
        self.aboutLabel = qt.QLabel()
        self.aboutLabel.objectName = "explainerLabel"
        self.aboutLabel.wordWrap = True
        layout.addRow("", self.aboutLabel)

    def setParameterNode(self, parameters):
        """Keep the choice in this node (``explainer``, a folder) from now on."""
        self._parameters = parameters
        self.update()

    def setClassifier(self, package):
        """List the explainers of this classifier (None: of none); when exactly one fits, it is taken."""
        if package is not None and package is self._classifier:
            return self.update()
        self._classifier = package
        self._entries = _explainersOf(package)
        self._filling = True
        self.combo.clear()
        self.combo.addItem(_("Choose an explainer") if self._entries else _("none: train one below"))
        for entry in self._entries:
            self._add(entry)
        self._filling = False
        if self._parameters is not None:
            known = {str(entry.folder) for entry in self._entries}
            if self._parameters.explainer not in known and package is not None:
                self._parameters.explainer = known.pop() if len(known) == 1 else ""
        self.update()

    def _add(self, entry):
        self.combo.addItem(entry.title)
        self.combo.setItemData(self.combo.count - 1, str(entry.folder), qt.Qt.ToolTipRole)

    def choose(self, folder):
        """List the explainers again and choose this one, where it is of the classifier."""
        classifier, self._classifier = self._classifier, None
        self.setClassifier(classifier)
        if self._parameters is not None and any(str(e.folder) == str(folder) for e in self._entries):
            self._parameters.explainer = str(folder)
            self.update()
            self._onChanged()

    def update(self):
        """Show what the parameter node says."""
        if self._parameters is None:
            return
        folder = self._parameters.explainer
        self._filling = True
        index = next((n for n, e in enumerate(self._entries, 1) if str(e.folder) == folder), 0)
        if folder and not index:  # a run may name one that is not on this computer's list
            self._entries.append(library().entry(folder))
            self._add(self._entries[-1])
            index = len(self._entries)
        self.combo.setCurrentIndex(index)
        self._filling = False
        package = self.entry.package if self.entry else None
        about = package.explains if package is not None else None
        self.aboutLabel.text = _("G⁺: {positive}; G⁻: {negative}").format(positive=about.positive, negative=about.negative) if about else ""  # fmt: skip
        self.aboutLabel.visible = bool(about)

    def _changed(self, _index):
        if self._filling or self._parameters is None:
            return
        self._parameters.explainer = str(self.entry.folder) if self.entry else ""
        self.update()
        self._onChanged()

    @property
    def entry(self):
        """The chosen package; None where none is."""
        index = self.combo.currentIndex
        return self._entries[index - 1] if 0 < index <= len(self._entries) else None

    def problem(self, classifier, label: str) -> str:
        """Why the choice cannot be used with a classifier's package and a class, one sentence; empty when it can."""
        if classifier is None:
            return ""
        if self.entry is None:
            if self._entries:
                return _("Choose an explainer.")
            return _("No explainer of '{name}' is listed. Train one below.").format(name=classifier.name)
        package = self.entry.package
        if package is None:
            return self.entry.problem
        about = package.explains
        if about is None:
            return _("'{name}' is a {task} network; choose an explainer.").format(name=package.name, task=package.task)
        if about.sha256 != classifier.sha256:
            return _("The explainer '{name}' was trained for '{other}'; choose one of '{mine}', or train one below.").format(
                name=package.name, other=about.name, mine=classifier.name
            )  # fmt: skip
        if label and label not in (about.positive, about.negative):
            return _("The explainer knows '{a}' and '{b}', not '{label}'; choose one of both.").format(a=about.positive, b=about.negative, label=label)  # fmt: skip
        return ""


def _explainersOf(package) -> list:
    """The explainers of a classifier that are listed, and those that lie beside it."""
    if package is None:
        return []
    entries = library().entries()
    known = {entry.folder for entry in entries}
    try:
        beside = sorted(p.parent for p in Path(package.folder).resolve().parent.glob("*/model.json"))
    except OSError:
        beside = []
    entries += [library().entry(folder) for folder in beside if folder not in known]
    found = [e for e in entries if e.package is not None and e.package.task == TASK and e.package.explains is not None]
    return [e for e in found if e.package.explains.sha256 == package.sha256]
