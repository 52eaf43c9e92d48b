"""Apply that becomes Cancel, progress with time left, status, reason, log: one run state sets every widget."""

from __future__ import annotations

import time

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from .report import diagnostics, duration, timeLeft
from .run_state import RunState


class RunControl:
    """The lower part of every panel.

    Parameters
    ----------
    layout : qt.QLayout
        Where it goes.
    onApply, onCancel : callable
        Called without arguments.
    applyText : str
        Text of the button while nothing runs.
    facts : callable
        Gives the facts for `Copy diagnostics` as a dict.
    names : callable
        Gives the names that must not be in them.
    """

    def __init__(self, layout, onApply, onCancel, applyText=None, facts=dict, names=tuple):
        self._onApply, self._onCancel, self._facts, self._names = onApply, onCancel, facts, names
        self._applyText = applyText or _("Apply")
        self.state = RunState.IDLE
        self.reason = ""
        self.message = ""
        self.hint = ""
        self._fraction, self._stage, self._eta, self._started = 0.0, "", None, None

        self.reasonLabel = qt.QLabel()
        self.reasonLabel.wordWrap = True
        self.reasonLabel.objectName = "reasonLabel"
        layout.addWidget(self.reasonLabel)

        self.applyButton = qt.QPushButton()
        self.applyButton.objectName = "applyButton"
        self.applyButton.minimumHeight = 32
        self.applyButton.connect("clicked(bool)", self._onButton)
        layout.addWidget(self.applyButton)

        self.progressBar = qt.QProgressBar()
        self.progressBar.setRange(0, 1000)
        layout.addWidget(self.progressBar)

        self.statusLabel = qt.QLabel()
        self.statusLabel.wordWrap = True
        self.statusLabel.objectName = "statusLabel"
        self.statusLabel.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
        layout.addWidget(self.statusLabel)

        self.logSection = ctk.ctkCollapsibleButton()
        self.logSection.text = _("Log")
        self.logSection.collapsed = True
        logLayout = qt.QVBoxLayout(self.logSection)
        self.logEdit = qt.QPlainTextEdit()
        self.logEdit.readOnly = True
        self.logEdit.maximumBlockCount = 2000
        self.logEdit.minimumHeight = 120
        logLayout.addWidget(self.logEdit)
        self.copyButton = qt.QPushButton(_("Copy diagnostics"))
        self.copyButton.toolTip = _(
            "Copies versions, device, packages and the end of the log, without names of patients or volumes."
        )
        self.copyButton.connect("clicked(bool)", lambda _checked=False: self.copyDiagnostics())
        logLayout.addWidget(self.copyButton)
        layout.addWidget(self.logSection)
        self._updateState()

    # -- what the panel tells ------------------------------------------------------------------------------------------

    def setReason(self, reason: str):
        """Why Apply cannot be pressed, one sentence; empty when it can."""
        if reason != self.reason:
            self.reason = reason
            self._updateState()

    def setState(self, state: RunState, message: str = "", hint: str = ""):
        """Enter a run state; ``message`` is what the status line says (an error, how long it took)."""
        if state is RunState.STARTING:
            self._fraction, self._stage, self._eta, self._started = 0.0, "", None, time.monotonic()
        self.state, self.message, self.hint = state, message, hint
        if message:
            self.log(message)
        if hint:
            self.log(hint)
        self._updateState()

    def setProgress(self, fraction: float, stage: str, eta: float | None):
        """What the last step said; ignored once the run is being cancelled."""
        self._fraction, self._stage, self._eta = min(max(fraction, 0.0), 1.0), stage, eta
        if self.state in (RunState.STARTING, RunState.QUEUED):
            self.state = RunState.RUNNING
        if self.state is RunState.RUNNING:
            self._updateState()

    def repaint(self):
        """Show the state now, before something that keeps the window busy."""
        for widget in (self.applyButton, self.progressBar, self.statusLabel):
            widget.repaint()

    @property
    def elapsed(self) -> str:
        """How long the run has taken."""
        return "" if self._started is None else duration(time.monotonic() - self._started)

    def log(self, line: str):
        """A line for the log."""
        self.logEdit.appendPlainText(f"{time.strftime('%H:%M:%S')}  {line}")

    def copyDiagnostics(self) -> str:
        """Put the diagnostics on the clipboard."""
        text = diagnostics(self._facts(), self.logEdit.plainText.split("\n"), self._names())
        slicer.app.clipboard().setText(text)
        return text

    # -- widgets -------------------------------------------------------------------------------------------------------

    def _onButton(self, _checked=False):
        if self.state.active:
            self._onCancel()
        elif not self.reason:
            self._onApply()

    def _updateState(self):
        state, active = self.state, self.state.active
        self.applyButton.text = {
            RunState.CANCELLING: _("Cancelling…"),
            RunState.WRITING: _("Writing the result…"),
        }.get(state, _("Cancel") if active else self._applyText)
        self.applyButton.enabled = state not in (RunState.CANCELLING, RunState.WRITING) and (active or not self.reason)
        self.applyButton.toolTip = (
            _("Stops after the current step; nothing is left in the scene.") if active else self.reason
        )
        self.reasonLabel.text = self.reason
        self.reasonLabel.visible = bool(self.reason) and not active
        self.progressBar.visible = active
        busy = active and (state is not RunState.RUNNING or self._fraction <= 0)
        self.progressBar.setRange(0, 0 if busy else 1000)
        if not busy:
            self.progressBar.setValue(round(self._fraction * 1000))
        self.statusLabel.text = self._status()
        self.statusLabel.visible = bool(self.statusLabel.text)
        self.statusLabel.setStyleSheet("font-weight: bold" if state is RunState.FAILED else "")

    def _status(self) -> str:
        if self.state is RunState.RUNNING:
            return ", ".join(part for part in (self._stage, timeLeft(self._eta)) if part)
        default = {
            RunState.STARTING: _("Starting…"),
            RunState.CANCELLING: _("Cancelling after this step…"),
            RunState.CANCELLED: _("Cancelled; nothing was kept."),
        }.get(self.state, "")
        text = self.message or default
        return f"{text}\n{self.hint}" if self.hint else text
