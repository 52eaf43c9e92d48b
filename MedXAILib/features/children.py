"""Processes that compute features, seen from both ends: plain interpreters of low priority that speak over pipes.

A `multiprocessing` pool would run the caller's main module again in each child (a script without a main guard would
start itself anew) and has no way to tell which task a dead child had. A child ends by itself when its standard input
ends or its parent is gone; it ignores Ctrl-C, which is the parent's to handle.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from . import radiomic
from .radiomic import Roi, Values

_ROOT = Path(__file__).resolve().parents[2]
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from MedXAILib.features.children import serve; serve(sys.argv[2])"
)
_ONE_THREAD = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)  # fmt: skip


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Child:
    """One process, seen from its parent.

    Parameters
    ----------
    engine : str
        ``builtin`` or ``pyradiomics``: what it imports while the first task is on its way.
    """

    def __init__(self, engine: str):
        self._engine = engine
        self._lock, self.killed = threading.Lock(), False
        self._process = None
        self._begin()

    def _begin(self):
        environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
        flags = 0
        if sys.platform == "win32":
            flags = subprocess.CREATE_NO_WINDOW | subprocess.BELOW_NORMAL_PRIORITY_CLASS
        with self._lock:
            if self.killed:
                return
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-W", "ignore", "-c", _START, str(_ROOT), self._engine],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    creationflags=flags,
                )
            except OSError:
                self._process = None  # no process to be had: `ask` computes here

    def ask(self, task: dict, roi: Roi | None = None) -> dict:
        """What `answer` makes of a task, with a second try in a new process where the first one ended.

        Raises
        ------
        OSError
            When the second one ended as well, or the child was killed from here.
        """
        for last in (False, True):
            try:
                return self._ask(task, roi)
            except Exception as error:
                self._stop()  # whatever it is, a half-sent message must not be taken for the beginning of the next one
                self._begin()
                if last or self.killed or not isinstance(error, OSError):
                    raise

    def _ask(self, task, roi):
        process = self._process
        if process is None:
            if self.killed:
                raise BrokenPipeError("it was ended")
            return answer(task, roi)
        try:
            if roi is None:
                _send(process.stdin, task)
            else:
                about = {
                    "dtype": roi.image.dtype.str,
                    "shape": roi.image.shape,
                    "spacing": roi.spacing,
                    "flat": roi.flat,
                }
                _send(process.stdin, {**task, "roi": about}, roi.image, roi.mask)
            return _receive(process.stdout)
        except (ValueError, EOFError) as error:  # a closed file, or a message that breaks off
            raise BrokenPipeError(str(error)) from None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def kill(self):
        """End it at once, whoever waits for its answer."""
        with self._lock:
            self.killed = True
        self._stop()

    def _stop(self):
        process = self._process
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            try:
                stream.close()  # the end of its input ends a process that a launcher has put between us as well
            except (OSError, ValueError):
                pass
        process.wait()


def side_by_side(tasks, engine: str, jobs: int):
    """Answers to tasks without a box, from several children at once; closing the generator ends them.

    Parameters
    ----------
    tasks : sequence of dict
        As `answer` takes them.
    engine : str
        As `Child` takes it.
    jobs : int
        Children at most.

    Yields
    ------
    (int, dict)
        Number of the task and its answer, as they come; ``{"died": reason}`` where two processes ended over it.
    """
    waiting, done, children = queue.SimpleQueue(), queue.SimpleQueue(), []
    for number, task in enumerate(tasks):
        waiting.put((number, task))

    def attend(child):
        with contextlib.suppress(queue.Empty):
            while not child.killed:
                number, task = waiting.get_nowait()
                try:
                    done.put((number, child.ask(task)))
                except Exception as error:  # whatever it is, somebody waits for this number
                    done.put((number, {"died": str(error)}))
        child.kill()

    try:
        for _ in range(min(jobs, len(tasks))):
            children.append(Child(engine))
            threading.Thread(target=attend, args=(children[-1],), name="medxai-features", daemon=True).start()
        for _ in range(len(tasks)):
            while True:
                try:
                    found = done.get(timeout=0.2)  # with a limit, so that Ctrl-C gets through everywhere
                    break
                except queue.Empty:
                    continue
            yield found
    finally:
        for child in children:
            child.kill()


def answer(task: dict, roi: Roi | None = None) -> dict:
    """Do a task: the features of a box (``values`` and ``notes``), or with ``case`` all of `references.measure`."""
    if "case" in task:
        from .references import measure

        return measure(**task["case"])
    names, options = task["names"], task["options"]
    try:
        (values,) = radiomic.on_rois([roi], names, **options)
    except Exception as error:
        values = Values({name: math.nan for name in names}, (f"failed: {type(error).__name__}: {error}",))
    return {"values": {name: float(value) for name, value in values.items()}, "notes": values.notes}


# ---- the child's end -------------------------------------------------------------------------------------------------


def serve(engine: str) -> None:
    """The life of a child: a task from standard input, its answer to standard output, until the input ends."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    if hasattr(os, "nice"):
        os.nice(10)
    _die_with_parent()
    # The pipes are moved aside, so that a library which reads or prints cannot break a message.
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    tasks = queue.SimpleQueue()

    def read():  # in a thread, so that the end of the input is seen in the middle of a computation
        try:
            while True:
                task, roi = _receive(source), None
                if about := task.pop("roi", None):
                    dtype, shape = np.dtype(about["dtype"]), about["shape"]
                    image = np.frombuffer(bytearray(_exactly(source, math.prod(shape) * dtype.itemsize)), dtype)
                    mask = np.frombuffer(bytearray(_exactly(source, math.prod(shape))), bool)
                    roi = Roi(image.reshape(shape), mask.reshape(shape), tuple(about["spacing"]), about["flat"])
                tasks.put((task, roi))
        finally:
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    if engine == "pyradiomics":
        radiomic.available()  # imported while the first step is still on its way
    while True:
        try:
            task = tasks.get(timeout=1)
        except queue.Empty:
            if os.getppid() != parent:  # another process may have inherited our input and keep it open
                os._exit(0)
            continue
        found = answer(*task)
        try:
            _send(sink, found)
        except OSError:
            os._exit(0)


def _die_with_parent() -> None:
    """On Linux the kernel ends this process with its parent, even in the middle of a long call of C code."""
    if sys.platform == "linux":
        import ctypes
        import signal

        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        except (OSError, AttributeError):
            pass


# ---- messages --------------------------------------------------------------------------------------------------------


def _send(stream, message: dict, *arrays) -> None:
    """One message: its length, JSON, and the bytes of the arrays it speaks of."""
    text = json.dumps(message).encode()
    stream.write(struct.pack("<Q", len(text)))
    stream.write(text)
    for array in arrays:
        stream.write(memoryview(array).cast("B"))
    stream.flush()


def _receive(stream) -> dict:
    return json.loads(_exactly(stream, struct.unpack("<Q", _exactly(stream, 8))[0]))


def _exactly(stream, size) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("its end of the pipe was closed")
    return data
