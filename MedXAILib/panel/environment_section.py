"""What the worker's Python has, and how to get the rest."""

from __future__ import annotations

import qt
from slicer.i18n import tr as _

from ..errors import MedXAIError
from . import environment as environments
from . import worker_session
from .parts import button, readable, toolButton


class EnvironmentSection:
    """The section of *MedXAI Models* for the environment.

    Parameters
    ----------
    parent : qt.QWidget
        Of the file dialog.
    layout : qt.QVBoxLayout
        Where it goes.
    """

    def __init__(self, parent, layout):
        self.parent = parent
        self.environment = environments.Environment(lambda: worker_session.workerPython() or None)
        self._build(layout)

    def _build(self, layout):
        form = qt.QFormLayout()
        layout.addLayout(form)
        self.pythonEdit = qt.QLineEdit(worker_session.workerPython())
        self.pythonEdit.placeholderText = _("Slicer's own")
        self.pythonEdit.toolTip = _(
            "The Python the worker runs in. Empty: Slicer's own, where Install puts what is missing."
        )
        self.pythonEdit.connect("editingFinished()", self._onPython)
        row = qt.QHBoxLayout()
        row.addWidget(self.pythonEdit, 1)
        toolButton(row, "…", _("Choose another Python."), self._browsePython)
        form.addRow(_("Python:"), row)
        self.packages = qt.QTreeWidget()
        self.packages.objectName = "packages"
        self.packages.setHeaderLabels([_("Package"), _("Version"), _("What for")])
        self.packages.rootIsDecorated = False
        self.packages.maximumHeight = 170
        layout.addWidget(self.packages)
        row = qt.QHBoxLayout()
        self.installButton = button(row, _("Install"), "", self.install)
        self.lookButton = button(row, _("Look again"), _("After an installation outside this panel."), self.refresh)  # fmt: skip
        layout.addLayout(row)
        self.message = readable(layout, "environmentMessage")

    def refresh(self):
        """Look again."""
        self.environment.refresh(self._onEnvironment)

    def _browsePython(self):
        path = qt.QFileDialog.getOpenFileName(self.parent, _("Python for the worker"), self.pythonEdit.text)
        if path:
            self.pythonEdit.text = path
            self._onPython()

    def _onPython(self):
        path = self.pythonEdit.text.strip()
        if path != worker_session.workerPython():
            worker_session.setWorkerPython(path)
            self.refresh()

    def _onEnvironment(self, said: str = ""):
        packages = self.environment.packages or []
        self.packages.clear()
        for package in packages:
            qt.QTreeWidgetItem(self.packages, [package.name, package.text, package.purpose])
        for column in range(3):
            self.packages.resizeColumnToContents(column)
        lacking = environments.missing(packages)
        self.installButton.enabled = bool(lacking)
        self.installButton.toolTip = _("Asks first, then installs what is missing into Slicer's Python.") if lacking else _("Everything that is needed is installed.")  # fmt: skip
        python = (
            _("Python {version}.").format(version=self.environment.pythonVersion)
            if self.environment.pythonVersion
            else ""
        )
        self.message.text = "\n".join(part for part in (said, self.environment.problem or python) if part)

    def install(self):
        """Install what is missing, because somebody pressed the button."""
        try:
            said = " ".join(self.environment.install())
        except MedXAIError as error:
            said = " ".join((error.message, error.hint)).strip()
        self.environment.refresh(lambda: self._onEnvironment(said))
