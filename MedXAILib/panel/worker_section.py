"""The background process: whether it runs, on what, and how to end it."""

from __future__ import annotations

import qt
from slicer.i18n import tr as _

from ..errors import MedXAIError
from . import worker_session
from .parts import button, readable

PHASES = {
    "stopped": _("not running: it starts with the first run"),
    "starting": _("starting"),
    "ready": _("running"),
}


class WorkerSection:
    """The section of *MedXAI Models* for the worker.

    Parameters
    ----------
    layout : qt.QVBoxLayout
        Where it goes.
    """

    def __init__(self, layout):
        self._observed = []
        self._build(layout)

    def enter(self):
        """The panel is opened."""
        self.stop()
        both = worker_session.client(), worker_session.trainingClient()
        self._observed = [one.observe(self._onWorker) for one in both]
        self._showWorker()

    def stop(self):
        """The panel goes away."""
        for unobserve in self._observed:
            unobserve()
        self._observed = []

    def _build(self, layout):
        self.label = readable(layout, "workerLabel")
        row = qt.QHBoxLayout()
        self.startButton = button(row, _("Start"), _("Starts it now, so that the first run need not wait."), self.start)
        self.releaseButton = button(row, _("Release memory"), _("The worker forgets its models and volumes and gives the device's memory back."), self.release)  # fmt: skip
        self.stopButton = button(row, _("Stop"), _("Ends the worker and every run, a training too."), self.end)
        layout.addLayout(row)

    def start(self):
        """Start the worker."""
        try:
            worker_session.client().start()
        except MedXAIError as error:
            self.label.text = error.message

    def release(self):
        """Let the worker forget what it holds."""
        for one in worker_session.clients():
            one.release(self._onReleased)

    def end(self):
        """End the worker, and the one that trains."""
        for one in worker_session.clients():
            one.shutdown()

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
        training = worker_session.trainingClient()
        trains = training.phase != "stopped"
        if trains:
            parts.append(_("A training goes on in process {pid}.").format(pid=training.environment.get("pid", "…")))
        self.label.text = "\n".join([*parts, said]).strip()
        self.startButton.enabled = not running
        self.releaseButton.enabled = self.stopButton.enabled = running or trains
