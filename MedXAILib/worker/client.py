"""The client of the worker: starts it when needed, keeps the books of the jobs, ends what does not end.

It has no threads and never waits: a transport (`transports`) brings it the worker's bytes, ``call_later`` is its only clock.
A panel uses `QtClient`, a script or test `LocalClient`, both in `transports`.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

from ..errors import MedXAIError
from ..explanation import Patch, Point
from ..volume import Volume
from . import protocol, wire
from .folders import PrivateFolder
from .jobs import (
    Cancelled,
    Described,
    Event,
    Failed,
    Job,
    Log,
    Points,
    Preview,
    Progress,
    Queued,
    Released,
    Result,
    RunRequest,
    State,
    StoredVolume,
)  # fmt: skip
from .session import Session, Transport

#: Seconds for the cooperative cancel, then after terminate, then after kill: below 3 in total.
GRACE = (1.5, 0.6, 0.4)

_logger = logging.getLogger("MedXAI")


class Client:
    """Runs jobs in a worker process.

    Parameters
    ----------
    make_transport : callable
        Gives a fresh `Transport` for each worker process; `MedXAIError` where none can be made.
    call_later : callable
        ``call_later(seconds, function)``: calls it once, in this thread.
    temporary : path, optional
        Where the private folder is made.
    store_bytes : int
        How much `store` keeps on disk.

    Attributes
    ----------
    phase : str
        ``stopped``, ``starting`` (until hello) or ``ready``.
    environment : dict
        ``pid``, ``python``, ``versions``, ``devices``, ``problem`` of the worker that runs now or ran last; empty before.
    """

    def __init__(
        self, make_transport: Callable[[], Transport], call_later, temporary=None, store_bytes: int = 2 * 2**30
    ):
        self._make_transport = make_transport
        self._call_later = call_later
        self._temporary = temporary
        self._store_bytes = store_bytes
        self._stored: OrderedDict[Hashable, StoredVolume] = OrderedDict()
        self._folder: PrivateFolder | None = None
        self._session: Session | None = None
        self._jobs: dict[str, Job] = {}
        self._numbers = itertools.count(1)
        self._observers: list[Callable[[str, object], None]] = []
        self._inbox: deque = deque()
        self._delivering = False
        self.phase = "stopped"
        self.environment: dict = {}

    # --- For panels ---

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs that have not ended, oldest first."""
        return tuple(self._jobs.values())

    def observe(self, callback: Callable[[str, object], None]) -> Callable[[], None]:
        """Call ``callback(what, value)`` whenever the ``phase``, the ``environment`` or the ``log`` (new lines) changes.

        Returns a function that ends it.
        """
        self._observers.append(callback)
        return lambda: self._observers.remove(callback) if callback in self._observers else None

    def run(self, request: RunRequest, on_event: Callable[[Event], None] | None = None) -> Job:
        """Start a run, or put it in the queue; an unfinished job of the same panel is cancelled (``replaced``).

        ``on_event`` is called in this thread with `Queued`, `Progress`, `Preview`, `Points`, `Log` and, last, exactly one of
        `Result`, `Failed` and `Cancelled`.

        Raises
        ------
        MedXAIError
            When the volumes cannot be written or the worker cannot be started; then there is no job.
        """
        number = next(self._numbers)
        folder = self._private() / f"run-{number:04d}"
        panel = request.panel or request.method
        try:
            folder.mkdir()
            volumes = [self._sent(v, folder / f"volume-{n}.npy") for n, v in enumerate(request.volumes)]
            segments = [self._sent(v, folder / f"segment-{n}.npy") for n, v in enumerate(request.segments)]
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise MedXAIError(
                f"The volumes could not be written for the worker ({error}); free some space in '{folder.parent}' or choose"
                " another temporary folder.",
                kind="disk",
            ) from error
        command = {
            "command": "run", "job": f"{panel}-{number}", "panel": panel, "method": request.method, "model": str(request.model),
            "trusted": sorted(request.trusted), "volumes": volumes, "segments": segments, "settings": dict(request.settings),
            "folder": str(folder),
        }  # fmt: skip
        older = [job for job in self._jobs.values() if job.panel == panel]
        try:
            job = self._submit(command, on_event)
        except MedXAIError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for one in older:
            self._cancel(one, "replaced")
        return job

    def describe(self, model, on_event: Callable[[Event], None], trusted: Iterable[str] = ()) -> Job:
        """Ask what a model package holds: `Described` or `Failed`. A program not in ``trusted`` (SHA-256) is not loaded."""
        command = {"command": "describe", "job": f"describe-{next(self._numbers)}", "model": str(model)}
        return self._submit({**command, "trusted": sorted(trusted)}, on_event)

    def release(self, on_event: Callable[[Event], None] | None = None) -> Job | None:
        """Let the worker forget its models and volumes: `Released`. None (and nothing is done) when no worker runs."""
        if self._session is None:
            return None
        return self._submit({"command": "release", "job": f"release-{next(self._numbers)}"}, on_event)

    def store(self, volume: Volume, key: Hashable) -> StoredVolume:
        """Write a volume once for several runs; the same ``key`` (a node's id with its modified time) gives the same file."""
        kept = self._stored.get(key)
        if kept is None:
            file = self._private() / f"volume-{next(self._numbers):04d}.npy"
            wire.save_array(file, volume.array)
            kept = self._stored[key] = StoredVolume(wire.describe_volume(volume, file))
        self._stored.move_to_end(key)
        self._limit_store(key)
        return kept

    def start(self) -> None:
        """Start the worker now rather than with the first job, so that torch is loaded by then."""
        if self._session is not None:
            return
        session = Session(self, self._make_transport())
        self._session = session
        self.environment = {}
        self._set_phase("starting")
        session.transport.start(session)

    def shutdown(self) -> None:
        """End the worker and every job, now, and remove all files. The client can be used again afterwards."""
        for job in self.jobs:
            self._finish(job, Cancelled(job, "ended"))
        session, self._session = self._session, None
        if session is not None:
            session.transport.kill(session.pid)
            session.transport.wait(1.0)
            self._set_phase("stopped")
        self._stored.clear()
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    # --- Jobs ---

    def _submit(self, command: dict, on_event) -> Job:
        job = Job(command["job"], command, on_event, self._cancel)
        line = protocol.encode(command)
        self.start()
        self._jobs[job.id] = job
        self._send(job, line)
        return job

    def _send(self, job: Job, line: bytes) -> None:
        job.attempts += 1
        self._session.jobs[job.id] = job
        self._session.transport.write(line)

    def _cancel(self, job: Job, reason: str = "asked") -> None:
        if job.finished or job.state is State.CANCELLING:
            return
        job.state, job.reason = State.CANCELLING, reason
        session = self._session
        if session is None or job.id not in session.jobs:
            self._finish(job, Cancelled(job, reason))
            return
        session.transport.write(protocol.encode({"command": "cancel", "job": job.id}))
        self._call_later(GRACE[0], lambda: self._escalate(session, job, 0))

    def _escalate(self, session: Session, job: Job, level: int) -> None:
        if job.finished or session is not self._session:
            return
        if not job.begun:  # it waits behind another job, which is not to blame
            self._finish(job, Cancelled(job, job.reason))
        elif level == 0:
            session.transport.terminate(session.pid)
            self._call_later(GRACE[1], lambda: self._escalate(session, job, 1))
        elif level == 1:
            session.transport.kill(session.pid)
            self._call_later(GRACE[2], lambda: self._escalate(session, job, 2))
        else:  # not even that was reported; the window is not to wait for it
            self._receive(session, {"ended": "killed"})

    def _finish(self, job: Job, event: Event) -> None:
        """The one end of every job. Once somebody has asked to stop it, whatever came of it is `Cancelled`."""
        if job.finished:
            return
        if job.state is State.CANCELLING and not isinstance(event, Cancelled):
            event = Cancelled(job, job.reason)
        self._jobs.pop(job.id, None)
        if self._session is not None:
            self._session.jobs.pop(job.id, None)
        if isinstance(event, Failed):
            job.state, job.failure = State.FAILED, event
        elif isinstance(event, Cancelled):
            job.state, job.reason = State.CANCELLED, event.reason
        else:
            job.state, job.fraction = State.DONE, 1.0
        self._tell(job, event)
        if not job.kept and "folder" in job.command:
            shutil.rmtree(job.command["folder"], ignore_errors=True)

    def _tell(self, job: Job, event: Event) -> None:
        if job.on_event is not None:
            try:
                job.on_event(event)
            except Exception:  # a panel's fault must not stop the others
                _logger.exception("MedXAI: a panel failed while it was told of %s", event.name)

    # --- What comes in ---

    def _receive(self, session: Session, message) -> None:
        """Deliver in order, one at a time, also when a callback lets the event loop turn and more comes in meanwhile."""
        self._inbox.append((session, message))
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._inbox:
                session, message = self._inbox.popleft()
                if session is not self._session:
                    continue
                if isinstance(message, protocol.ProtocolError):
                    session.note([f"Not a message ({message.reason}): {message.line[:120]!r}"])
                elif "ended" in message:
                    self._ended(session, message["ended"])
                elif "failed" in message:
                    self._could_not_start(session, message["failed"])
                else:
                    self._event(session, message)
        finally:
            self._delivering = False

    def _event(self, session: Session, message: dict) -> None:
        name = message["event"]
        if name in ("hello", "environment"):
            about = {k: v for k, v in message.items() if k not in ("event", "job")}
            if name == "hello":
                session.pid = message["pid"]
                self._set_phase("ready")
            about["versions"] = {**self.environment.get("versions", {}), **message["versions"]}
            self.environment.update(about)
            self._notify("environment", self.environment)
            return
        job = session.jobs.get(message.get("job"))
        if job is None:
            if name == "log":
                self._notify("log", message["text"])
            return
        getattr(self, "_on_" + name)(session, job, message)

    def _on_queued(self, session, job, message) -> None:
        job.position = message["position"]
        if job.state is State.QUEUED:
            self._tell(job, Queued(job, job.position))

    def _on_progress(self, session, job, message) -> None:
        job.begun = True
        if job.state is State.QUEUED:
            job.state, job.position = State.RUNNING, 0
        job.fraction, job.stage, job.eta = message["fraction"], message["stage"], message.get("eta")
        if job.state is State.RUNNING:
            self._tell(job, Progress(job, job.fraction, job.stage, job.eta))

    def _on_preview(self, session, job, message) -> None:
        file = message["file"]
        if job.state is State.RUNNING:
            try:
                array = wire.load_array(file)
                if message.get("start") is not None:
                    image = Patch(array, tuple(message["start"]))
                else:
                    image = Volume(array, message["ijk_to_ras"], message["name"], message.get("unit") or "")
            except (OSError, ValueError, EOFError, MedXAIError) as error:
                session.note([f"A preview could not be read: {error}"])
            else:
                self._tell(job, Preview(job, message["name"], image))
                del image, array
        try:
            Path(file).unlink(missing_ok=True)
        except OSError:  # Windows, when the panel still holds it: it goes with the folder
            pass
        if session is self._session:
            session.transport.write(protocol.encode({"command": "ack", "job": job.id, "file": file}))

    def _on_point(self, session, job, message) -> None:
        if job.state is State.RUNNING:
            points = tuple(Point(p["curve"], p["step"], p["values"]) for p in message["points"])
            self._tell(job, Points(job, points))

    def _on_log(self, session, job, message) -> None:
        self._tell(job, Log(job, message["text"]))

    def _on_result(self, session, job, message) -> None:
        if job.state is not State.CANCELLING:
            try:
                job.explanation = wire.load(message["explanation"], message["folder"])
            except Exception as error:
                event = self._failure(session, job, "crashed", f"The result could not be read ({error}).", "")
                return self._finish(job, event)
        self._finish(job, Result(job, job.explanation))

    def _on_error(self, session, job, message) -> None:
        self._finish(job, self._failure(session, job, message["kind"], message["message"], message["hint"]))

    def _on_cancelled(self, session, job, message) -> None:
        self._finish(job, Cancelled(job, job.reason or message["reason"]))

    def _on_described(self, session, job, message) -> None:
        self._finish(job, Described(job, message["description"]))

    def _on_released(self, session, job, message) -> None:
        self._finish(job, Released(job, message["bytes"]))

    # --- The end of a worker ---

    def _ended(self, session: Session, told: str) -> None:
        """An exit without a result is an error, except for jobs that were being cancelled, and for those that the worker had
        not begun: they are not to blame, and go to a new worker, once."""
        self._session = None
        self._set_phase("stopped")
        again = []
        for job in list(session.jobs.values()):
            if job.state is not State.CANCELLING and not job.begun and session.pid is not None and job.attempts < 2:
                again.append(job)
            else:
                last = next((line.strip() for line in reversed(session.lines) if line.strip()), "")
                hint = f"Its last words: {last[:300]}" if last else ""
                if "SIGKILL" in told:
                    hint = (
                        "The system may have ended it because memory ran out; use a smaller volume or another device."
                    )
                self._finish(
                    job, self._failure(session, job, "crashed", f"The worker ended ({told}) without a result.", hint)
                )
        for job in again:
            if not job.finished:
                try:
                    self.start()
                    self._send(job, protocol.encode(job.command))
                except MedXAIError as error:
                    self._finish(job, self._failure(session, job, error.kind, error.message, error.hint))

    def _could_not_start(self, session: Session, reason: str) -> None:
        self._session = None
        self._set_phase("stopped")
        message = f"The worker's Python could not be started ({reason})."
        hint = "Choose another one in MedXAI Models, section Environment."
        for job in list(session.jobs.values()):
            self._finish(job, self._failure(session, job, "missing", message, hint))

    def _failure(self, session: Session, job: Job, kind: str, message: str, hint: str) -> Failed:
        return Failed(job, kind, message, hint, tuple(session.lines))

    # --- Small things ---

    def _set_phase(self, phase: str) -> None:
        if phase != self.phase:
            self.phase = phase
            self._notify("phase", phase)

    def _notify(self, what: str, value) -> None:
        for callback in tuple(self._observers):
            try:
                callback(what, value)
            except Exception:
                _logger.exception("MedXAI: an observer failed while it was told of the worker's %s", what)

    def _private(self) -> Path:
        if self._folder is None:
            self._folder = PrivateFolder(self._temporary)
        return self._folder.path

    @staticmethod
    def _sent(volume: Volume | StoredVolume, file: Path) -> dict:
        if isinstance(volume, StoredVolume):
            return volume.message
        wire.save_array(file, volume.array)
        return wire.describe_volume(volume, file)

    def _limit_store(self, newest: Hashable) -> None:
        sent = (job.command.get(what, []) for job in self._jobs.values() for what in ("volumes", "segments"))
        used = {volume["file"] for volumes in sent for volume in volumes}
        sizes = {k: Path(v.message["file"]).stat().st_size for k, v in self._stored.items()}
        for key in list(self._stored):
            if sum(sizes.values()) <= self._store_bytes:
                return
            if key != newest and self._stored[key].message["file"] not in used:
                Path(self._stored.pop(key).message["file"]).unlink(missing_ok=True)
                del sizes[key]
