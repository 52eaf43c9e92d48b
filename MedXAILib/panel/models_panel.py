"""The panel of *MedXAI Models*: model packages, the environment they run in, and the background process."""

from __future__ import annotations

import time

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from ..errors import MedXAIError
from ..worker.jobs import RunRequest
from . import worker_session
from .application import waitCursor
from .environment_section import EnvironmentSection
from .model_details import detailsHtml, layersOf
from .model_picker import library
from .parts import button, readable, section
from .trust import TrustRow
from .worker_section import WorkerSection


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
        self._entries = []
        self._job = None
        self._began = 0.0
        self._buildModels(section(layout, _("Models")))
        self.environment = EnvironmentSection(parent, section(layout, _("Environment")))
        self.worker = WorkerSection(section(layout, _("Worker")))
        layout.addStretch(1)
        self.enter()

    # -- life ----------------------------------------------------------------------------------------------------------------

    def enter(self):
        """The panel is opened: look again."""
        self.refreshModels()
        self.environment.refresh()
        self.worker.enter()

    def exit(self):
        """Another module is opened."""

    def cleanup(self):
        """The panel goes away."""
        self._forgetJob()
        self.environment.environment.stop()
        self.worker.stop()

    # -- models --------------------------------------------------------------------------------------------------------------

    def _buildModels(self, layout):
        self.list = qt.QListWidget()
        self.list.objectName = "modelList"
        self.list.maximumHeight = 140
        self.list.connect("currentRowChanged(int)", lambda _row: self._showModel())
        layout.addWidget(self.list)
        row = qt.QHBoxLayout()
        self.addButton = button(
            row, _("Add…"), _("Add the folder of a model package (model.json and its weights)."), self._browse
        )
        self.removeButton = button(
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
        self.describeButton = button(
            row, _("Describe layers"), _("The worker loads the model and lists its layers."), self.describe
        )
        self.testButton = button(row, _("Test"), _("The worker loads the model and computes one step on the volume; nothing is kept."), self.test)  # fmt: skip
        layout.addLayout(row)
        self.message = readable(layout, "modelMessage")
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
        folder, trusted = self.entry.folder, self.trust.trusted
        self._ask(_("Loading…"), lambda client: client.describe(folder, self._onAnswer, trusted))

    def test(self):
        """Let the worker load the model and, on a volume, compute one step."""
        node = self.testVolume.currentNode()
        package = self.entry.package
        if node is None or len(package.input.channels) != 1 or package.task in ("inpainting", "explanation"):
            self.describe()
            return
        from ..scene import read

        def least(volume):
            """The method for this network's task, with settings that compute as little as it can."""
            if package.task == "segmentation":
                middle = [n // 2 for n in volume.shape[::-1]]
                return "dream", {"steps": 1, "features": ["none"], "tolerance": 0.0, "neuron_ijk": middle}
            flat = package.input.spatial_dims == 2
            shown = read.slice_shown(slicer.mrmlScene, node, package.input.orientation) if flat else ""
            return "backproject", {"filters": 1, "slice": shown}

        def ask(client):
            with waitCursor():
                volume = read.volume(node)
                method, settings = least(volume)
            request = RunRequest(
                method, str(self.entry.folder), [volume], settings, (), self.trust.trusted, "MedXAIModels"
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
            if number is None:
                self.message.text = _(
                    "This model is a program that is not trusted, so it was not loaded and its layers are not listed."
                )
            else:
                self.message.text = _("It loads: {n:,} parameters, {seconds:.1f} s.").format(n=number, seconds=seconds)
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
