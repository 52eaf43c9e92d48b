"""One run of a panel: what the worker says goes into the scene and into the run control, and nothing is left behind."""

from __future__ import annotations

import logging

import vtk
from slicer.util import VTKObservationMixin

from ..errors import MedXAIError
from ..scene import host as hosts
from ..scene import remove, write
from ..scene.nodes import RUN
from .application import later, waitCursor
from .application import tr as _
from .run_state import RunState


class LiveRun(VTKObservationMixin):
    """Carries a run from Apply to its folder in the scene.

    Parameters
    ----------
    control : RunControl
        Shows how far it is.
    onFinished : callable
        Called with the folder's item and the explanation once the result is in the scene; with ``(0, None)`` when the run ended
        otherwise.
    host : Host
        Where the scene lives; by default the application.
    later : callable
        Calls a function once the event loop has finished what it is doing.
    onPoints : callable
        Called without arguments when curves have grown.
    keeps : bool
        Whether a finished run can begin again (`restart`).
    """

    def __init__(
        self, control, onFinished=lambda folder, explanation: None, host=None, later=later, onPoints=lambda: None, keeps=False
    ):  # fmt: skip
        super().__init__()
        self.control, self._onFinished = control, onFinished
        self._host, self._later, self._onPoints = host or hosts.current(), later, onPoints
        self.job = self.run = None
        self._keeps = keeps
        self._last = None  # the run that ended last, when it can begin again
        self._before = None  # what was finished of the run under way
        self._why = ""  # why we stopped it ourselves
        self._begun = []  # the inputs as they were

    @property
    def active(self) -> bool:
        """Whether a run is under way."""
        return self.job is not None

    def start(self, client, request, nodes, title: str, segmentation=None, segmentId: str = "", first=None):
        """Begin a run.

        Parameters
        ----------
        client : Client
            The session's.
        request : RunRequest
            What to run.
        nodes : list
            The volume nodes, the first one the grid of every result.
        title : str
            Name of the run's folder.
        first : dict
            Maps to show before the first step, so that the views need no new node while it runs.

        Raises
        ------
        MedXAIError
            When it could not be begun; then nothing is left.
        """
        self.stop("")
        self._last = None
        self._begun = [_state(node) for node in nodes]
        self.job = client.run(request, self._onEvent)
        try:
            self.run = write.Run(self._host, nodes, title, segmentation, segmentId)
            for name, volume in (first or {}).items():
                self.run.preview(name, volume)
        except BaseException:
            self.stop("")
            raise
        self._observe()
        self.control.setState(RunState.STARTING)

    @property
    def restartable(self):
        """The run under way, or the finished one, that can begin again; None: there is none, or something of it was removed."""
        if self.run is not None:
            return self.run if self.control.state not in (RunState.CANCELLING, RunState.WRITING) else None
        return self._last if self._last is not None and self._last.whole else None

    def restart(self, client, request):
        """Compute `restartable` anew with another request: what comes takes the place of its layers, in the same folder.

        When it is cancelled or fails, what was finished comes back; where nothing was, nothing is left.

        Raises
        ------
        MedXAIError
            When it could not be begun; then all stays as it is.
        """
        run, older = self.restartable, self.job
        self.job = None  # from here on the older job's last words are nobody's
        try:
            job = client.run(request, self._onEvent)
        except BaseException:
            self.job = older
            raise
        if self.run is None:
            self.run, self._last = run, None
            self._observe()
        self.job, self._before = job, run.begin_again() or self._before
        self._begun = [_state(node) for node in run.inputs]
        self.control.setState(RunState.STARTING)

    def _observe(self):
        scene = self._host.scene
        self.addObserver(scene, scene.StartCloseEvent, self._onSceneCloses)
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self._onNodeLeaves)

    def cancel(self):
        """Stop after the present step; what was shown goes when the worker has stopped."""
        if self.job is not None and not self.job.finished:
            self.control.setState(RunState.CANCELLING)
            self.job.cancel()

    def stop(self, why: str):
        """Stop for a reason of our own and take everything out of the scene at once."""
        job, self.job = self.job, None
        self._why = ""
        self._discard()
        if job is not None:
            if not job.finished:
                job.cancel()
            self.control.setState(RunState.CANCELLED, why)
            self._onFinished(0, None)

    # -- what the worker says --------------------------------------------------------------------------------------------

    def _onEvent(self, event):
        if event.job is not self.job and self.job is not None:
            return  # an older job's last words
        handler = getattr(self, "_on" + event.name.capitalize(), None)
        if handler is None or self.job is None:
            return
        try:
            handler(event)
        except MedXAIError as error:
            self._fail(error.message, error.hint)
        except Exception as error:
            logging.exception("MedXAI: the run's scene could not be written")
            self._fail(
                _("The result could not be shown ({error}).").format(error=error), _("The log holds the details.")
            )

    def _onQueued(self, event):
        if event.position:
            self.control.setState(RunState.QUEUED, _("Waiting for {n} other run(s) to end.").format(n=event.position))

    def _onProgress(self, event):
        self.control.setProgress(event.fraction, event.stage, event.eta)

    def _onPreview(self, event):
        self.run.preview(event.title, event.image)

    def _onPoint(self, event):
        self.run.points(event.points)
        self._onPoints()

    def _onLog(self, event):
        self.control.log(event.text)

    def _onResult(self, event):
        self.control.setState(RunState.WRITING)
        self.control.repaint()  # it says so before the window is busy for a moment
        explanation = event.explanation
        if self._begun != [_state(node) for node in self.run.inputs]:
            explanation.notes.append(
                _(
                    "The volume was changed while the run was going; the result belongs to the volume as it was at the start."
                )
            )
        with waitCursor():
            folder = self.run.finish(explanation)
        self._forget(explanation)
        text = _("Done in {time}.").format(time=self.control.elapsed)
        self.control.setState(RunState.DONE, text)
        self._onFinished(folder, explanation)

    def _onError(self, event):
        for line in event.log:
            self.control.log("worker: " + line)
        self._fail(event.message, event.hint)

    def _onCancelled(self, event):
        back = self._before is not None
        self._discard()
        self.job = None
        text = self._why or {
            "replaced": _("Replaced by a newer run; nothing was kept."),
            "ended": _("The worker was stopped; nothing was kept."),
        }.get(event.reason, "")
        if back:
            text = self._why or _("Cancelled; the result from before is back.")
        self.control.setState(RunState.CANCELLED, text)
        self._onFinished(0, None)

    def _fail(self, message: str, hint: str):
        job, self.job = self.job, None
        self._discard()
        if job is not None and not job.finished:
            job.cancel()
        self.control.setState(RunState.FAILED, message, hint)
        self._onFinished(0, None)

    # -- what the scene says ---------------------------------------------------------------------------------------------

    def _onSceneCloses(self, _caller, _event):
        self.run = self._last = self._before = None  # the scene takes everything with it
        self.stop(_("The scene was closed, so the run was stopped."))

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeLeaves(self, _caller, _event, node):
        if self.run is None or node is None:
            return
        if node is self.run.segmentation:
            self.run.segmentation = None  # the worker has its copy; only the reference goes
        elif node in self.run.inputs:
            self._stopSoon(
                _("'{name}' was removed from the scene, so the run was stopped.").format(name=node.GetName())
            )
        elif node.GetAttribute(RUN) == self.run.id and not node.IsA("vtkMRMLStorageNode"):
            self._stopSoon(_("The run was removed from the scene, so it was stopped."))

    def _stopSoon(self, why: str):
        """Stop once the scene has finished what it is doing: removing nodes within a removal breaks it."""
        if self._why:
            return
        self._why, self._before = why, None  # what was removed does not come back
        if self.job is not None and not self.job.finished:
            self.job.cancel()
        job = self.job
        self._later(lambda: self.stop(why) if self.job is job and job is not None else None)

    def _discard(self):
        run, self.run = self.run, None
        before, self._before = self._before, None
        self.removeObservers()
        if run is not None and before is not None:
            run.finish(before)
            self._keep(run, before)
        elif run is not None:
            remove.remove(self._host.scene, run.folder)

    def _forget(self, explanation):
        """The run is complete: it belongs to the scene now."""
        self._keep(self.run, explanation)
        self.run = self.job = self._before = None
        self.removeObservers()

    def _keep(self, run, explanation):
        if self._keeps:
            run.done, self._last = write.light(explanation), run

    def forget(self):
        """Hold nothing of a finished run."""
        self._last = None


def _state(node) -> tuple:
    """What changes when a volume's voxels or place do."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    values = tuple(matrix.GetElement(n // 4, n % 4) for n in range(16))
    return node.GetImageData().GetPointData().GetScalars().GetMTime(), values, node.GetTransformNodeID()
