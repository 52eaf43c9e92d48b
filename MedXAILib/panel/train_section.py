"""Training an explainer for the chosen classifier: in the background, with curves and pictures after each epoch."""

from __future__ import annotations

from pathlib import Path

import ctk
import qt
import slicer
import vtk
from slicer.i18n import tr as _

from ..errors import MedXAIError
from ..settings import CycleJobSettings
from . import worker_session
from .form import SettingsForm, parameterNodeClass
from .line_chart import EPOCH, JUDGED, LineChart
from .model_picker import library
from .parts import button, readable
from .report import timeLeft
from .training_run import SHOWN, Phase, TrainingRun, proposal
from .watch import Watch

TrainingParameters = parameterNodeClass(CycleJobSettings)
ORDINARY = ("epochs", "width", "patience")
OWN = ("source", "output", "finish", "device")
WIDEST = 560  # pixels of the pictures


class TrainSection:
    """A section of the panel.

    Parameters
    ----------
    layout : qt.QVBoxLayout
        Where it goes.
    classifier : callable
        Gives (package or None, trusted SHA-256, device, why it cannot be used).
    onTrained : callable
        Called with the explainer's folder and the classifier's package.
    log : callable
        Takes a line.
    """

    def __init__(self, layout, classifier, onTrained, log):
        self._classifier, self._onTrained, self._logLine = classifier, onTrained, log
        self._proposed, self._proposedFor, self._pictured = "", None, None
        self.confirm = lambda text: slicer.util.confirmYesNoDisplay(text, windowTitle=_("MedXAI"))
        self.run = TrainingRun(worker_session.trainingClient, self._changed, self._done, log)
        self.button = ctk.ctkCollapsibleButton()
        self.button.text = _("Train an explainer")
        self.button.objectName = "trainSection"
        self.button.collapsed = True
        self.button.connect("contentsCollapsed(bool)", lambda _collapsed: self._changed())
        layout.addWidget(self.button)
        whole = qt.QWidget()  # the section hides this; what is in it keeps what it is told
        qt.QVBoxLayout(self.button).addWidget(whole)
        inside = qt.QVBoxLayout(whole)
        inside.setContentsMargins(0, 0, 0, 0)
        words = readable(inside, "trainWords")
        words.text = _("Trains G⁺ and G⁻ for the classifier chosen above on a folder of images, once for each classifier. No labels are needed: the classifier's own answers are what is learnt. It goes on in the background, and other runs need not wait for it.")  # fmt: skip
        self._parameters = TrainingParameters(slicer.vtkMRMLScriptedModuleNode())  # in no scene: it holds paths
        self._buildForm(inside)
        row = qt.QHBoxLayout()
        self.trainButton = button(row, _("Train"), "", self.train)
        self.pauseButton = button(row, _("Pause"), _("Stops within a moment. Finished epochs are kept: Go on begins after the last of them, also after Slicer was closed."), self.run.pause)  # fmt: skip
        self.useButton = button(row, _("Use now"), _("Stops, and makes the explainer of the best epoch so far."), self.useNow)  # fmt: skip
        self.discardButton = button(row, _("Discard"), _("Removes the finished epochs of this training."), self.discard)  # fmt: skip
        for one, name in ((self.trainButton, "train"), (self.pauseButton, "pause"), (self.useButton, "use"), (self.discardButton, "discard")):  # fmt: skip
            one.objectName = name + "Button"
        inside.addLayout(row)
        self.reasonLabel = readable(inside, "trainReason")
        self.progressBar = qt.QProgressBar()
        self.progressBar.setRange(0, 1000)
        inside.addWidget(self.progressBar)
        self.statusLabel = readable(inside, "trainStatus")
        self.chart = LineChart(inside, EPOCH, JUDGED)
        self.pictureLabel = qt.QLabel()
        self.pictureLabel.objectName = "trainPicture"
        self.pictureLabel.setAlignment(qt.Qt.AlignCenter)
        self.pictureLabel.toolTip = _("Images kept back: as they are, as G⁻ and as G⁺ make them, and R. Renewed after each epoch.")  # fmt: skip
        inside.addWidget(self.pictureLabel)
        self._changed()

    def _buildForm(self, layout):
        form = qt.QFormLayout()
        layout.addLayout(form)
        self.sourceEdit, self.outputEdit = ctk.ctkPathLineEdit(), ctk.ctkPathLineEdit()
        for edit, name, title in ((self.sourceEdit, "source", _("Images:")), (self.outputEdit, "output", _("Explainer:"))):  # fmt: skip
            edit.filters = ctk.ctkPathLineEdit.Dirs
            edit.objectName = f"{name}Edit"
            edit.showHistoryButton = False
            edit.connect("currentPathChanged(QString)", lambda _path: self._pathsChanged())
            edit.connect("validInputChanged(bool)", lambda _valid: self._pathsChanged())
            form.addRow(title, edit)
        self.sourceEdit.toolTip = _("A folder of images of both classes (NRRD, NIfTI, DICOM, PNG), at any depth, or with a table labels.csv. About a tenth is kept back to judge each epoch.")  # fmt: skip
        self.outputEdit.toolTip = _("A new folder. A training that was paused goes on when the same folder is given.")
        self.presetCombo = qt.QComboBox()
        self.presetCombo.objectName = "trainPreset"
        self.presetCombo.toolTip = _("paper: the networks of the paper, for a computer with a GPU; light: narrower ones, for one without (minutes to an hour for a few hundred small images).")  # fmt: skip
        for name in (*CycleJobSettings.PRESETS, _("own")):
            self.presetCombo.addItem(name)
        self.presetCombo.connect("activated(int)", self._onPreset)
        form.addRow(_("Preset:"), self.presetCombo)
        advancedButton = ctk.ctkCollapsibleButton()
        advancedButton.text = _("Advanced")
        advancedButton.collapsed = True
        advanced = qt.QFormLayout(advancedButton)
        self.form = SettingsForm(CycleJobSettings, form, advanced, dict.fromkeys(OWN), ordinary=ORDINARY)
        layout.addWidget(advancedButton)
        self._tag = self._parameters.connectParametersToGui(self.form.connectors())
        self._watch = Watch(lambda _caller, _event: self._showPreset())
        self._watch.set(self._parameters.parameterNode, vtk.vtkCommand.ModifiedEvent)
        self._onPreset(list(CycleJobSettings.PRESETS).index("light"))  # what suits a computer without a GPU

    # -- presets -------------------------------------------------------------------------------------------------------

    def _valuesOf(self, preset: str) -> dict:
        every = {name for values in CycleJobSettings.PRESETS.values() for name in values}
        return {name: self.form.rows[name].default for name in every} | CycleJobSettings.PRESETS[preset]

    def _onPreset(self, index: int):
        presets = list(CycleJobSettings.PRESETS)
        if index < len(presets):
            self.form.fill(self._parameters, self._valuesOf(presets[index]))
        self._showPreset()

    def _showPreset(self):
        presets = list(CycleJobSettings.PRESETS)
        now = [n for n, name in enumerate(presets) if all(self._parameters.getValue(k) == v for k, v in self._valuesOf(name).items())]  # fmt: skip
        self.presetCombo.setCurrentIndex(now[0] if now else len(presets))

    # -- life ----------------------------------------------------------------------------------------------------------

    def enter(self):
        """The panel is opened."""
        self.update()

    def cleanup(self):
        """The panel goes away; finished epochs are kept."""
        self.run.close()
        self._watch.clear()
        self._parameters.disconnectGui(self._tag)

    def update(self):
        """The classifier may be another one."""
        package = self._classifier()[0]
        if not self.run.phase.active and package is not None and self.output in ("", self._proposed):
            if not self.output or self._proposedFor != package.folder:
                self._propose(package)
        self._changed()

    def _propose(self, package):
        sample = package.folder in library().samples
        own = Path(qt.QStandardPaths.writableLocation(qt.QStandardPaths.DocumentsLocation)) / "MedXAI models"
        self._proposed, self._proposedFor = str(proposal(package.folder, own, sample)), package.folder
        if self.output != self._proposed:
            self.outputEdit.currentPath = self._proposed

    @property
    def output(self) -> str:
        """The folder of the explainer to be."""
        return self.outputEdit.currentPath.strip()

    def _pathsChanged(self):
        if not self.run.phase.active and self.output != self.run.output:
            self.run.look(self.output)
        self._changed()

    # -- buttons -------------------------------------------------------------------------------------------------------

    def _settings(self) -> dict:
        self._parameters.source, self._parameters.output = self.sourceEdit.currentPath.strip(), self.output
        self._parameters.device, self._parameters.finish = self._classifier()[2], False
        return self.form.settings(self._parameters).to_json()

    def train(self):
        """Train, or go on."""
        self._begin(finish=False)

    def useNow(self):
        """The explainer of the best epoch so far."""
        if self.run.phase is Phase.RUNNING:
            self.run.useNow()
        else:
            self._begin(finish=True)

    def _begin(self, finish: bool):
        package, trusted, _device, _why = self._classifier()
        try:
            self.run.start(package, self._settings(), trusted, finish)
        except MedXAIError as error:
            self.run.message, self.run.failed = " ".join((error.message, error.hint)).strip(), True
            self._changed()

    def discard(self):
        """Remove finished epochs, once somebody has said so."""
        count = len(self.run.rows)
        if self.confirm(_("Remove the finished epochs of this training ({n})? They cannot be brought back.").format(n=count)):  # fmt: skip
            self.run.discard()

    # -- what is shown -------------------------------------------------------------------------------------------------

    @property
    def problem(self) -> str:
        """Why no training can begin, one sentence; empty when it can."""
        package, _trusted, _device, why = self._classifier()
        if why:
            return why
        if package is None:
            return _("Choose a classifier above.")
        if not self.sourceEdit.currentPath.strip():
            return _("Choose a folder of images.")
        if not self.output:
            return _("Choose a folder for the explainer.")
        if Path(self.output).exists():
            return _("The folder '{name}' exists already; choose a new one.").format(name=Path(self.output).name)
        return ""

    def _changed(self):
        if self.button.collapsed or not hasattr(self, "pictureLabel"):
            return
        run, phase, kept = self.run, self.run.phase, bool(self.run.rows)
        ended = run.done and self.output == run.output  # that its folder exists is then no fault
        reason = "" if phase.active else self.problem
        package, _trusted, _device, why = self._classifier()
        self.trainButton.text = _("Go on") if kept and not ended and not phase.active else _("Train")
        self.trainButton.enabled = not phase.active and not reason
        self.trainButton.toolTip = reason or _("Begins, or goes on after the last finished epoch.")
        self.pauseButton.enabled = phase is Phase.RUNNING
        self.useButton.enabled = kept and not ended and (phase is Phase.RUNNING or (not phase.active and package is not None and not why))  # fmt: skip
        self.discardButton.enabled = kept and not ended and not phase.active
        for widget in (self.sourceEdit, self.outputEdit, self.presetCombo, *self.form.widgets.values()):
            widget.enabled = not phase.active
        self.reasonLabel.text = reason
        self.reasonLabel.visible = bool(reason) and not ended
        self.progressBar.visible = phase.active
        busy = run.fraction <= 0 or phase is Phase.PAUSING
        self.progressBar.setRange(0, 0 if busy else 1000)
        if not busy:
            self.progressBar.setValue(round(1000 * run.fraction))
        self.statusLabel.text = self._status()
        self.statusLabel.visible = bool(self.statusLabel.text)
        self.statusLabel.setStyleSheet("font-weight: bold" if run.failed else "")
        self.chart.show(run.rows, SHOWN)
        self._showPicture()

    def _status(self) -> str:
        run, phase = self.run, self.run.phase
        if phase is Phase.PAUSING:
            return _("Stopping after this step…")
        if phase is Phase.FINISHING:
            return _("Making the explainer of the best epoch so far…")
        if phase is Phase.RUNNING:
            return ", ".join(part for part in (run.stage or _("Starting…"), timeLeft(run.eta)) if part)
        if not run.message and run.rows:
            return _("Finished epochs kept here: {n}. Go on, use the best of them now, or discard them.").format(n=len(run.rows))  # fmt: skip
        return run.message

    def _showPicture(self):
        file = self.run.picture
        try:
            state = (str(file), file.stat().st_mtime_ns) if file is not None else None
        except OSError:
            state = None
        if state == self._pictured and state is not None:
            return
        self._pictured = state
        pixmap = qt.QPixmap(str(file)) if state is not None else qt.QPixmap()
        known = not pixmap.isNull()
        self.pictureLabel.visible = known
        if known:
            wide = pixmap.width() > WIDEST
            self.pictureLabel.setPixmap(pixmap.scaledToWidth(WIDEST, qt.Qt.SmoothTransformation) if wide else pixmap)

    def _done(self, folder: str, classifier):
        try:
            folder = str(library().add(folder))  # as it is listed: without links
        except MedXAIError as error:
            self._logLine(error.message)
        self._onTrained(folder, classifier)
