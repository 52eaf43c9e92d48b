"""A training in the background, from Train to the explainer: what is finished outlives every stop. Without Qt, so that it is tested without."""

from __future__ import annotations

import enum
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ..files import partial_of
from ..package import explainer_beside
from ..settings import CYCLE_LOG, CYCLE_PICTURE, TRAIN_CYCLE
from ..worker.jobs import RunRequest
from .application import tr as _

#: Columns of the chart, with what they are called.
SHOWN = {
    "probability_positive": "G⁺(x)", "probability": "x", "probability_negative": "G⁻(x)", "flip_rate": "flip rate", "cycle_error": "cycle error",
}  # fmt: skip


class Phase(enum.Enum):
    """Where a training is."""

    IDLE = "idle"  # nothing runs; epochs may be kept
    RUNNING = "running"
    PAUSING = "pausing"
    FINISHING = "finishing"  # the explainer is being made of the best weights so far

    @property
    def active(self) -> bool:
        """Whether the worker is busy with it."""
        return self is not Phase.IDLE


class TrainingRun:
    """One training at a time.

    Parameters
    ----------
    client : callable
        Gives the worker's client; its worker is ended when a run is over and no other follows.
    onChanged : callable
        Called without arguments whenever something of the below has changed.
    onDone : callable
        Called with the folder of the explainer and the classifier's package.
    log : callable
        Takes a line.
    """

    def __init__(self, client: Callable, onChanged: Callable, onDone: Callable, log: Callable = lambda line: None):
        self._client, self._onChanged, self._onDone, self._log = client, onChanged, onDone, log
        self._job = self._request = self._classifier = None
        self._finishNext = False
        self.phase = Phase.IDLE
        self.output = ""  # the folder of the explainer to be
        self.rows: dict[int, dict] = {}  # finished epochs: epoch to values
        self.fraction, self.stage, self.eta = 0.0, "", None
        self.message, self.failed, self.done = "", False, False

    # -- what is kept --------------------------------------------------------------------------------------------------

    @property
    def picture(self) -> Path | None:
        """The pictures of the last finished epoch; None where there are none."""
        for folder in (partial_of(self.output), Path(self.output)) if self.output else ():
            if (folder / CYCLE_PICTURE).is_file():
                return folder / CYCLE_PICTURE
        return None

    def look(self, output: str):
        """Another output folder: read which epochs are kept for it."""
        if self.phase.active:
            return
        self.output, self.rows = output, rowsOf(output)
        self.message, self.failed, self.done = "", False, False

    # -- buttons -------------------------------------------------------------------------------------------------------

    def start(self, classifier, settings: dict, trusted=(), finish: bool = False):
        """Train, or go on; with ``finish`` make the explainer of the best weights so far.

        Raises
        ------
        MedXAIError
            When the worker cannot be started.
        """
        self._classifier = classifier
        self._request = RunRequest(TRAIN_CYCLE, str(classifier.folder), [], settings, [], trusted, "cycle training")
        self.output = settings["output"]
        self._begin(finish)

    def _begin(self, finish: bool):
        request = self._request
        request.settings["finish"] = finish
        self._finishNext = False
        self.rows = rowsOf(self.output)
        self.fraction, self.stage, self.eta = 0.0, "", None
        self.message, self.failed, self.done = "", False, False
        job = self._client().run(request, self._onEvent)
        self._job, self.phase = job, Phase.FINISHING if finish else Phase.RUNNING
        self._onChanged()

    def pause(self):
        """Stop within a step; finished epochs are kept."""
        if self._job is not None and not self._job.finished and self.phase is not Phase.PAUSING:
            self.phase = Phase.PAUSING
            self._onChanged()
            self._job.cancel()

    def useNow(self, classifier=None, settings: dict | None = None, trusted=()):
        """Make the explainer of the best weights so far; a training that is going is stopped for it."""
        if self.phase is Phase.RUNNING:
            self._finishNext = True
            self.pause()
        elif not self.phase.active and classifier is not None:
            self.start(classifier, settings, trusted, finish=True)

    def discard(self):
        """Remove what is kept for the output folder."""
        if not self.phase.active and self.output:
            shutil.rmtree(partial_of(self.output), ignore_errors=True)
            self.look(self.output)
            self._onChanged()

    def close(self):
        """The panel goes away: stop; finished epochs are kept."""
        job, self._job, self.phase = self._job, None, Phase.IDLE
        self._finishNext = False
        self._onChanged = self._onDone = lambda *told: None
        if job is not None and not job.finished:
            self._client().shutdown()

    # -- what the worker says ------------------------------------------------------------------------------------------

    def _onEvent(self, event):
        if event.job is not self._job:
            return
        handler = getattr(self, "_on" + event.name.capitalize(), None)
        if handler is not None:
            handler(event)
            self._onChanged()
        if self._job is None:  # it was the last event, and no other run has begun
            self._client().shutdown()

    def _onProgress(self, event):
        self.fraction, self.stage, self.eta = event.fraction, event.stage, event.eta

    def _onPoint(self, event):
        for point in event.points:
            if point.curve == "validation":
                self.rows[point.step] = {**self.rows.get(point.step, {}), **point.values}

    def _onLog(self, event):
        self._log(event.text)

    def _onResult(self, event):
        folder, classifier = event.explanation.provenance["folder"], self._classifier
        notes = list(event.explanation.notes)
        poor = [c["meaning"] for c in event.explanation.self_checks.values() if c.get("passed") is False]
        best = event.explanation.scores.get("epoch")
        self._end(_("The explainer of epoch {n} is ready: {folder}").format(n=f"{best:.0f}" if best else "?", folder=folder))  # fmt: skip
        self.done = True
        if poor:
            self.message += "\n" + _("Not passed: {what}").format(what=" ".join(poor))
        for note in notes:
            self._log(note)
        self._onDone(folder, classifier)

    def _onError(self, event):
        for line in event.log:
            self._log("worker: " + line)
        self.rows = rowsOf(self.output)
        kept = _("Finished epochs kept: {n}; press Go on.").format(n=len(self.rows)) if self.rows and event.kind != "refused" else ""  # fmt: skip
        self._end(" ".join(part for part in (event.message, event.hint, kept) if part), failed=True)

    def _onCancelled(self, event):
        finish = self._finishNext and event.reason != "ended"  # then the worker is to stay away
        if (Path(self.output) / "model.json").is_file() and not partial_of(self.output).exists():
            self._end(
                _("The explainer is ready: {folder}").format(folder=self.output)
            )  # it was before the stop was noticed
            self.done = True
            self._onDone(self.output, self._classifier)
            return
        self.rows = rowsOf(self.output)
        self._end(_("Paused. Finished epochs kept: {n}.").format(n=len(self.rows)))
        if finish and self.rows:
            self._begin(True)

    def _end(self, message: str, failed: bool = False):
        self._job, self.phase = None, Phase.IDLE
        self.message, self.failed = message, failed


def rowsOf(output: str) -> dict[int, dict]:
    """The finished epochs that are kept for an output folder: epoch to values; a torn last line is left out."""
    try:
        lines = (partial_of(output) / CYCLE_LOG).read_text("utf-8").splitlines()[1:] if output else []
    except (OSError, ValueError):
        return {}
    found = {}
    for line in lines:
        try:
            row = json.loads(line)
            found[int(row["epoch"])] = row
        except (ValueError, TypeError, KeyError):
            break
    return found


def proposal(model, own: Path, sample: bool) -> Path:
    """Where an explainer goes when nobody says where.

    ``NAME-cycle`` beside the model folder; in the folder ``own`` where nothing can be written beside it, or where the model came with MedXAI and a new version
    would take it away. A number is added where that is taken.
    """
    first = explainer_beside(model)
    if sample or not os.access(first.parent, os.W_OK):
        first = own / first.name
    n, folder = 1, first
    while folder.exists():
        n += 1
        folder = first.with_name(f"{first.name}-{n}")
    return folder
