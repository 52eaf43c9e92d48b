"""The worker's inside: a reading thread that never computes, and one computing thread, which is the main one.

The only module of this room that uses the engine, and only once a job (or the start) needs it.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import threading
import time
import traceback
from collections import deque
from pathlib import Path

from ..errors import MedXAIError, nearest
from ..settings import METHODS, TRAIN_CYCLE, CycleJobSettings
from . import protocol, wire
from .cache import Cache
from .failures import explain_failure, main_memory
from .reporting import Reporter


class Engine:
    """What the server needs of the engine; tests bring their own."""

    def environment(self) -> dict:
        """``versions`` and ``devices`` for the event ``environment``. Imports torch."""
        import torch

        devices = [{"name": "cpu", "title": "CPU", **main_memory()}]
        for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            about = torch.cuda.get_device_properties(n)
            one = {"name": f"cuda:{n}", "title": about.name, "total_bytes": int(about.total_memory)}
            if (
                n == 0
            ):  # asking makes a context of some hundred megabytes on the device: only where jobs will run anyway
                one["free_bytes"] = int(torch.cuda.mem_get_info(n)[0])
            devices.append(one)
        if getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
            devices.append({"name": "mps", "title": "Apple GPU"})
        return {"versions": {"torch": torch.__version__}, "devices": devices}

    def describe(self, folder: str, trusted: frozenset = frozenset()) -> dict:
        """What `models.describe` says of a package."""
        from .. import models

        return models.describe(folder, trusted)

    def load(self, folder: str, device: str, trusted: frozenset):
        """A model, ready to run."""
        from .. import models

        return models.load(folder, device=device, trusted=trusted)

    def size(self, model) -> int:
        """Bytes a loaded model holds."""
        module = model.module
        return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])

    def settings(self, method: str, values: dict):
        """The checked settings of a method, or of the training ``train-cycle``."""
        if method == TRAIN_CYCLE:
            return CycleJobSettings.from_json(values)
        if method not in METHODS:
            raise MedXAIError(f"There is no method '{method}'{nearest(method, METHODS)}; known: {', '.join(METHODS)}.")
        return METHODS[method].from_json(values)

    def explain(self, method: str, model, volumes, settings, segments):
        """The generator of steps; that of a training takes no volumes."""
        if method == TRAIN_CYCLE:
            from ..training.cycles import training_job

            return training_job(model, settings)
        from ..evaluation.judged import explain

        return explain(method, model, volumes, settings, segments)

    def release(self) -> None:
        """Give unused device memory back to the system."""
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


class Cancelled(Exception):
    """The running job is to stop here."""


class Task:
    """A command that waits for the computing thread, or is there."""

    def __init__(self, message: dict):
        self.message = message
        self.job: str = message["job"]
        self.panel = message.get("panel")
        self.reason = ""  # why it is to stop; empty: go on
        self.reporter: Reporter | None = None

    def check(self) -> None:
        """Raise `Cancelled` when somebody asked for it."""
        if self.reason:
            raise Cancelled


class Server:
    """Serves one client until it says ``quit`` or its end of the pipe closes.

    Parameters
    ----------
    read : callable
        Gives the next bytes of the commands, ``b""`` at the end.
    write : callable
        Takes the bytes of the events; OSError when nobody listens any more.
    die : callable
        Ends this process and all its children at once; called from the reading thread at the end of the commands.
    engine : Engine
    model_bytes, volume_bytes : int
        How much stays loaded between jobs.
    """

    def __init__(
        self, read, write, die, engine=None, model_bytes=4 * 2**30, volume_bytes=4 * 2**30, clock=time.monotonic
    ):
        self._read = read
        self._write = write
        self._die = die
        self._engine = Engine() if engine is None else engine
        self._models = Cache(model_bytes)
        self._volumes = Cache(volume_bytes)
        self._clock = clock
        self._waiting: deque[Task] = deque()
        self._running: Task | None = None
        self._ending = False
        self._changed = threading.Condition()  # guards the four above
        self._writing = threading.Lock()

    # --- Events ---

    def emit(self, event: str, **fields) -> None:
        """Send one event; from either thread."""
        line = protocol.encode({"event": event, **fields})
        try:
            with self._writing:
                self._write(line)
        except OSError:  # nobody listens
            self._die()

    # --- The reading thread ---

    def _listen(self) -> None:
        decoder = protocol.Decoder("command")
        while data := self._read():
            for message in decoder.feed(data):
                if isinstance(message, protocol.ProtocolError):
                    self._complain(message)
                else:
                    self._take(message)
        self._die()

    def _complain(self, error: protocol.ProtocolError) -> None:
        if error.job:
            self.emit("error", job=error.job, kind="refused", message=f"Bad command: {error.reason}.", hint="")
        else:
            self.emit("log", text=f"The worker ignored a line: {error.reason}: {error.line[:80]!r}")

    def _take(self, message: dict) -> None:
        command = message["command"]
        with self._changed:
            if command == "quit":
                self._ending = True
                while self._waiting:
                    self._drop(self._waiting[0], "asked")
                if self._running is not None:
                    self._running.reason = "asked"
            elif command == "cancel":
                self._stop(lambda task: task.job == message["job"], "asked")
            elif command == "ack":
                if self._running is not None and self._running.job == message["job"] and self._running.reporter:
                    self._running.reporter.acknowledge(message["file"])
            else:
                task = Task(message)
                if task.panel is not None:
                    self._stop(lambda other: other.panel == task.panel, "replaced")
                self._waiting.append(task)
                if command == "run":
                    self._tell_positions(task)
            self._changed.notify()

    def _stop(self, which, reason: str) -> None:
        for task in [t for t in self._waiting if which(t)]:
            self._drop(task, reason)
        if self._running is not None and which(self._running) and not self._running.reason:
            self._running.reason = reason

    def _drop(self, task: Task, reason: str) -> None:
        self._waiting.remove(task)
        self.emit("cancelled", job=task.job, reason=reason)
        self._tell_positions()

    def _tell_positions(self, only: Task | None = None) -> None:
        ahead = 1 if self._running is not None and self._running.panel is not None else 0
        for task in self._waiting:
            if task.panel is not None:
                if only is None or task is only:
                    self.emit("queued", job=task.job, position=ahead)
                ahead += 1

    # --- The computing thread ---

    def serve(self) -> None:
        """Answer commands until ``quit``. Call it in the main thread."""
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        try:
            found = self._engine.environment()
        except Exception as error:
            traceback.print_exc()
            problem = f"torch could not be imported ({error})."
            found = {"versions": {}, "devices": [{"name": "cpu", **main_memory()}], "problem": problem}
        self.emit("environment", **found)
        while (task := self._next()) is not None:
            self._answer(task)
            with self._changed:
                self._running = None

    def _next(self) -> Task | None:
        with self._changed:
            while not self._waiting and not self._ending:
                self._changed.wait()
            if self._ending:
                return None
            self._running = self._waiting.popleft()
            self._tell_positions()
            return self._running

    def _between_steps(self) -> None:
        """Answer what need not wait for the end of a run."""
        while True:
            with self._changed:
                small = next((t for t in self._waiting if t.panel is None), None)
                if small is None:
                    return
                self._waiting.remove(small)
            self._answer(small)

    def _answer(self, task: Task) -> None:
        answer = {"run": self._run, "describe": self._describe, "release": self._release}[task.message["command"]]
        try:
            reply = answer(task)
        except Cancelled:
            reply = {"event": "cancelled", "reason": task.reason}
        except BaseException as error:  # whatever a library throws: the worker stays
            reply = self._failed(task, error)
            traceback.clear_frames(error.__traceback__)  # they hold tensors
        if reply.get("kind") == "memory":
            self._models.clear()
            self._volumes.clear()
            self._engine.release()
        try:
            self.emit(job=task.job, **reply)
        except protocol.ProtocolError as error:  # a result that is too long, a description that is not one
            message = f"The worker's answer could not be sent ({error})."
            self.emit("error", job=task.job, kind="crashed", message=message, hint="")

    def _failed(self, task: Task, error: BaseException) -> dict:
        kind, message, hint, meant = explain_failure(error)
        if not meant:
            traceback.print_exception(error)
            self.emit("log", job=task.job, text="".join(traceback.format_exception(error)))
        if task.reason:  # it was asked to stop, and failed on the way out
            return {"event": "cancelled", "reason": task.reason}
        return {"event": "error", "kind": kind, "message": message, "hint": hint}

    def _describe(self, task: Task) -> dict:
        trusted = frozenset(s.lower() for s in task.message.get("trusted") or ())
        return {"event": "described", "description": self._engine.describe(task.message["model"], trusted)}

    def _release(self, task: Task) -> dict:
        size = self._models.clear() + self._volumes.clear()
        self._engine.release()
        return {"event": "released", "bytes": size}

    def _run(self, task: Task) -> dict:
        task.check()
        message = task.message
        folder = Path(message["folder"])
        reporter = task.reporter = Reporter(task.job, folder, self.emit, self._clock)
        reporter.progress(0.0, "Loading")
        settings = self._engine.settings(message["method"], message["settings"])
        volumes = [self._volume(one, folder) for one in message["volumes"]]
        segments = [self._volume(one, folder) for one in message["segments"]]
        device = getattr(settings, "device", "auto")
        model = self._model(message["model"], device, frozenset(s.lower() for s in message["trusted"]))
        task.check()
        steps = self._engine.explain(message["method"], model, volumes, settings, segments)
        try:
            while True:
                try:
                    step = next(steps)
                except StopIteration as end:
                    explanation = end.value
                    break
                task.check()
                reporter.step(step)
                self._between_steps()
                task.check()
        finally:
            steps.close()
        reporter.flush()
        return self._write_result(task, explanation, folder)

    def _write_result(self, task: Task, explanation, folder: Path) -> dict:
        task.check()
        unfinished, finished = folder / "result.part", folder / "result"
        try:
            unfinished.mkdir()
            rest = wire.dump(explanation, unfinished)
            task.check()
            unfinished.rename(finished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return {"event": "result", "folder": str(finished), "explanation": rest}

    def _model(self, folder: str, device: str, trusted: frozenset):
        """A model from the cache, unless a file of its folder changed or a program in it is not trusted any more."""
        key = (os.path.realpath(folder), device)
        signature = _signature(folder)
        kept = self._models.get(key)
        if kept is not None and kept[1] == signature and kept[2] <= trusted:
            return kept[0]
        del kept
        self._models.drop(lambda k: k == key)
        self._models.room(sum(size for _, size, _ in signature))
        model = self._engine.load(folder, device, trusted)
        self._models.put(key, (model, signature, trusted), self._engine.size(model))
        return model

    def _volume(self, message: dict, folder: Path):
        """A volume; kept for later jobs when its file is not private to this run."""
        self._volumes.drop(lambda k: not os.path.exists(k[0]))
        file = message["file"]
        if Path(file).parent == folder:
            return wire.read_volume(message)
        try:
            state = os.stat(file)
        except OSError:
            return wire.read_volume(message)  # says what is wrong
        about = protocol.json.dumps({k: v for k, v in message.items() if k != "file"}, sort_keys=True)
        key = (file, state.st_mtime_ns, state.st_size, about)
        volume = self._volumes.get(key)
        if volume is None:
            volume = wire.read_volume(message)
            self._volumes.put(key, volume, volume.array.nbytes)
        return volume


def _signature(folder: str) -> tuple:
    """Name, size and time of every file of a model's folder: a change of any of them is another model."""
    found = []
    for here, _, names in os.walk(folder):
        for name in names:
            state = os.stat(os.path.join(here, name))
            found.append((os.path.join(here, name), state.st_size, state.st_mtime_ns))
    return tuple(sorted(found))
