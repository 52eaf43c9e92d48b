"""The panel of *MedXAI Models*: model packages, the environment they run in, and the background process."""

from __future__ import annotations

import time

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from ..errors import MedXAIError
from ..worker.jobs import RunRequest
from . import environment as environments
from . import worker_session
from .application import waitCursor
from .model_details import detailsHtml, layersOf
from .model_picker import library
from .trust import TrustRow

PHASES = {
    "stopped": _("not running: it starts with the first run"),
    "starting": _("starting"),
    "ready": _("running"),
}


class ModelsPanel:
    """Builds the panel and joins its parts.

    Parameters
    ----------
    parent : qMRMLWidget
        The module's widget.
    layout : qt.QVBoxLayout
        Where the panel goes.
    """

    def __init__(self, parent, layout):
        self.parent = parent
        self.environment = environments.Environment(lambda: worker_session.workerPython() or None)
        self._entries = []
        self._job = None
        self._began = 0.0
        self._unobserve = lambda: None
        self._buildModels(_section(layout, _("Models")))
        self._buildEnvironment(_section(layout, _("Environment")))
        self._buildWorker(_section(layout, _("Worker")))
        layout.addStretch(1)
        self.enter()

    # -- life ----------------------------------------------------------------------------------------------------------------

    def enter(self):
        """The panel is opened: look again."""
        self._unobserve()
        self._unobserve = worker_session.client().observe(self._onWorker)
        self.refreshModels()
        self.environment.refresh(self._onEnvironment)
        self._showWorker()

    def exit(self):
        """Another module is opened."""

    def cleanup(self):
        """The panel goes away."""
        self._unobserve()
        self._forgetJob()
        self.environment.stop()

    # -- models --------------------------------------------------------------------------------------------------------------

    def _buildModels(self, layout):
        self.list = qt.QListWidget()
        self.list.objectName = "modelList"
        self.list.maximumHeight = 140
        self.list.connect("currentRowChanged(int)", lambda _row: self._showModel())
        layout.addWidget(self.list)
        row = qt.QHBoxLayout()
        self.addButton = _button(
            row, _("Add…"), _("Add the folder of a model package (model.json and its weights)."), self._browse
        )
        self.removeButton = _button(
            row, _("Remove from list"), _("The folder and its files stay where they are."), self.remove
        )
        layout.addLayout(row)
        form = qt.QFormLayout()
        layout.addLayout(form)
        self.trust = TrustRow(form, self._showModel)
        self.details = ctk.ctkFittedTextBrowser()
        self.details.openExternalLinks = True
        self.details.objectName = "modelDetails"
        layout.addWidget(self.details)
        self.testVolume = slicer.qMRMLNodeComboBox()
        self.testVolume.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.testVolume.showChildNodeTypes = False
        self.testVolume.noneEnabled = True
        self.testVolume.noneDisplay = _("none: only load it")
        self.testVolume.addEnabled = self.testVolume.removeEnabled = self.testVolume.renameEnabled = False
        self.testVolume.setMRMLScene(slicer.mrmlScene)
        form = qt.QFormLayout()
        form.addRow(_("Test on:"), self.testVolume)
        layout.addLayout(form)
        row = qt.QHBoxLayout()
        self.describeButton = _button(
            row, _("Describe layers"), _("The worker loads the model and lists its layers."), self.describe
        )
        self.testButton = _button(row, _("Test"), _("The worker loads the model and computes one step on the volume; nothing is kept."), self.test)  # fmt: skip
        layout.addLayout(row)
        self.message = qt.QLabel()
        self.message.objectName = "modelMessage"
        self.message.wordWrap = True
        self.message.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
        layout.addWidget(self.message)
        self.layers = qt.QTreeWidget()
        self.layers.setHeaderLabels([_("Layer"), _("Kind"), _("Shape")])
        self.layers.rootIsDecorated = False
        self.layers.minimumHeight = 180
        self.layers.visible = False
        layout.addWidget(self.layers)
        note = qt.QLabel(
            _(
                "MedXAI downloads and copies no models: they are used where they lie, and nothing of them is sent anywhere."
            )
        )
        note.wordWrap = True
        layout.addWidget(note)

    def refreshModels(self, folder=None):
        """List the models again; ``folder`` is the one to choose."""
        chosen = folder or (self.entry.folder if self.entry else None)
        self._entries = library().entries()
        blocked = self.list.blockSignals(True)
        self.list.clear()
        for entry in self._entries:
            self.list.addItem(entry.title + (_("  (sample)") if entry.sample else ""))
        folders = [entry.folder for entry in self._entries]
        if folders:
            self.list.setCurrentRow(folders.index(chosen) if chosen in folders else 0)
        self.list.blockSignals(blocked)
        self._showModel()

    @property
    def entry(self):
        """The chosen model; None when the list is empty."""
        row = self.list.currentRow
        return self._entries[row] if 0 <= row < len(self._entries) else None

    def _showModel(self):
        entry = self.entry
        package = entry.package if entry else None
        self.trust.setPackage(package)
        self.layers.visible = False
        if entry is None:
            self.details.setHtml(_("No model yet. Press Add… and choose a folder with a model.json."))
        else:
            self.details.setHtml(detailsHtml(entry))
        self.removeButton.enabled = entry is not None and not entry.sample
        self.describeButton.enabled = self.testButton.enabled = (
            package is not None and not self.trust.problem and self._job is None
        )

    def _browse(self):
        folder = qt.QFileDialog.getExistingDirectory(self.parent, _("Folder of a model package"))
        if folder:
            self.add(folder)

    def add(self, folder):
        """Put a package on the list."""
        try:
            path = library().add(folder)
        except MedXAIError as error:
            self.message.text = error.message
            return
        self.message.text = ""
        self.refreshModels(path)

    def remove(self):
        """Take the chosen package off the list."""
        entry = self.entry
        try:
            library().remove(entry.folder)
        except MedXAIError as error:
            self.message.text = error.message
            return
        self.message.text = _("'{name}' is off the list; its files are still in '{folder}'.").format(
            name=entry.title, folder=entry.folder
        )
        self.refreshModels()

    def describe(self):
        """Let the worker load the model and list its layers."""
        self._ask(_("Loading…"), lambda client: client.describe(self.entry.folder, self._onAnswer))

    def test(self):
        """Let the worker load the model and, on a volume, compute one step."""
        node = self.testVolume.currentNode()
        package = self.entry.package
        if node is None or package.task != "segmentation" or len(package.input.channels) != 1:
            self.describe()
            return
        from ..scene import read

        def ask(client):
            with waitCursor():
                volume = read.volume(node)
            settings = {"steps": 1, "features": ["none"], "tolerance": 0.0}
            request = RunRequest(
                "dream", str(self.entry.folder), [volume], settings, None, self.trust.trusted, "MedXAIModels"
            )
            return client.run(request, self._onAnswer)

        self._ask(_("Testing…"), ask)

    def _ask(self, text: str, ask):
        self._began = time.monotonic()
        self.message.text = text
        try:
            self._job = ask(worker_session.client())
        except MedXAIError as error:
            self.message.text = " ".join((error.message, error.hint)).strip()
        self._showModel()

    def _onAnswer(self, event):
        if event.job is not self._job:
            return
        if event.name == "progress":
            self.message.text = event.stage
            return
        if event.name not in ("described", "result", "error", "cancelled"):
            return
        self._job = None
        self._showModel()
        seconds = time.monotonic() - self._began
        if event.name == "described":
            number = event.description.get("parameters")
            counted = _("{n:,} parameters; ").format(n=number) if number is not None else ""
            self.message.text = _("It loads. {counted}{seconds:.1f} s.").format(counted=counted, seconds=seconds)
            self._showLayers(event.description)
        elif event.name == "result":
            known = event.explanation.provenance
            self.message.text = _(
                "It works on this volume: one step on {device}, {seconds:.1f} s with loading."
            ).format(device=known.get("device", ""), seconds=seconds)
        elif event.name == "error":
            self.message.text = " ".join((event.message, event.hint)).strip()
        else:
            self.message.text = _("Stopped.")

    def _showLayers(self, description: dict):
        self.layers.clear()
        for texts in layersOf(description):
            qt.QTreeWidgetItem(self.layers, list(texts))
        self.layers.visible = self.layers.topLevelItemCount > 0
        for column in range(3):
            self.layers.resizeColumnToContents(column)

    def _forgetJob(self):
        job, self._job = self._job, None
        if job is not None and not job.finished:
            job.cancel()

    # -- environment ---------------------------------------------------------------------------------------------------------

    def _buildEnvironment(self, layout):
        form = qt.QFormLayout()
        layout.addLayout(form)
        self.pythonEdit = qt.QLineEdit(worker_session.workerPython())
        self.pythonEdit.placeholderText = _("Slicer's own")
        self.pythonEdit.toolTip = _(
            "The Python the worker runs in. Empty: Slicer's own, where Install puts what is missing."
        )
        self.pythonEdit.connect("editingFinished()", self._onPython)
        browse = qt.QToolButton()
        browse.text = "…"
        browse.connect("clicked(bool)", lambda _checked=False: self._browsePython())
        row = qt.QHBoxLayout()
        row.addWidget(self.pythonEdit, 1)
        row.addWidget(browse)
        form.addRow(_("Python:"), row)
        self.packages = qt.QTreeWidget()
        self.packages.objectName = "packages"
        self.packages.setHeaderLabels([_("Package"), _("Version"), _("What for")])
        self.packages.rootIsDecorated = False
        self.packages.maximumHeight = 170
        layout.addWidget(self.packages)
        row = qt.QHBoxLayout()
        self.installButton = _button(row, _("Install"), "", self.install)
        self.lookButton = _button(row, _("Look again"), _("After an installation outside this panel."), lambda: self.environment.refresh(self._onEnvironment))  # fmt: skip
        layout.addLayout(row)
        self.environmentMessage = qt.QLabel()
        self.environmentMessage.objectName = "environmentMessage"
        self.environmentMessage.wordWrap = True
        self.environmentMessage.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
        layout.addWidget(self.environmentMessage)

    def _browsePython(self):
        path = qt.QFileDialog.getOpenFileName(self.parent, _("Python for the worker"), self.pythonEdit.text)
        if path:
            self.pythonEdit.text = path
            self._onPython()

    def _onPython(self):
        path = self.pythonEdit.text.strip()
        if path != worker_session.workerPython():
            worker_session.setWorkerPython(path)
            self.environment.refresh(self._onEnvironment)

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
        parts = [said, self.environment.problem or python, environments.withoutFeatures(packages)]
        self.environmentMessage.text = "\n".join(part for part in parts if part)

    def install(self):
        """Install what is missing, because somebody pressed the button."""
        try:
            said = " ".join(self.environment.install())
        except MedXAIError as error:
            said = " ".join((error.message, error.hint)).strip()
        self.environment.refresh(lambda: self._onEnvironment(said))

    # -- worker --------------------------------------------------------------------------------------------------------------

    def _buildWorker(self, layout):
        self.workerLabel = qt.QLabel()
        self.workerLabel.objectName = "workerLabel"
        self.workerLabel.wordWrap = True
        layout.addWidget(self.workerLabel)
        row = qt.QHBoxLayout()
        self.startButton = _button(
            row, _("Start"), _("Starts it now, so that the first run need not wait."), self.start
        )
        self.releaseButton = _button(row, _("Release memory"), _("The worker forgets its models and volumes and gives the device's memory back."), self.release)  # fmt: skip
        self.stopButton = _button(
            row, _("Stop"), _("Ends the worker and every run."), lambda: worker_session.client().shutdown()
        )
        layout.addLayout(row)

    def start(self):
        """Start the worker."""
        try:
            worker_session.client().start()
        except MedXAIError as error:
            self.workerLabel.text = error.message

    def release(self):
        """Let the worker forget what it holds."""
        worker_session.client().release(self._onReleased)

    def _onReleased(self, event):
        if event.name == "released":
            self._showWorker(_("{size:.0f} MB of models and volumes were released.").format(size=event.bytes / 2**20))
        elif event.name == "error":
            self._showWorker(event.message)

    def _onWorker(self, what, _value):
        if what in ("phase", "environment"):
            self._showWorker()

    def _showWorker(self, said: str = ""):
        client = worker_session.client()
        about = client.environment
        running = client.phase != "stopped"
        parts = [_("The background process is {phase}.").format(phase=PHASES[client.phase])]
        if running and about.get("pid"):
            parts.append(_("Process {pid}, Python {python}.").format(pid=about["pid"], python=about.get("python", "")))
            parts += [worker_session.deviceText(one) for one in about.get("devices", ())]
        if running and about.get("problem"):
            parts.append(about["problem"])
        self.workerLabel.text = "\n".join([*parts, said]).strip()
        self.startButton.enabled = not running
        self.releaseButton.enabled = self.stopButton.enabled = running


def _section(layout, title: str):
    button = ctk.ctkCollapsibleButton()
    button.text = title
    inside = qt.QVBoxLayout(button)
    layout.addWidget(button)
    return inside


def _button(layout, text: str, toolTip: str, slot):
    button = qt.QPushButton(text)
    button.toolTip = toolTip
    button.connect("clicked(bool)", lambda _checked=False: slot())
    layout.addWidget(button)
    return button
