"""Features computed beside an ascent: a few processes of low priority, behind a queue that never makes the ascent wait.

The processes are plain interpreters that speak over pipes. A `multiprocessing` pool would run the caller's main module again in
each child (a script without a main guard would start itself anew) and has no way to tell which task a dead child had.
A child ends by itself when its standard input ends or its parent is gone; it ignores Ctrl-C, which is the parent's to handle.
"""

from __future__ import annotations

import collections
import json
import math
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from ..volume import Volume
from . import radiomic
from .names import resolve, without_line
from .radiomic import Roi, Values

_ROOT = Path(__file__).resolve().parents[2]
_START = "import sys; sys.path.insert(0, sys.argv[1]); from MedXAILib.features.beside import serve; serve()"
_LIMIT = 256 << 20  # bytes that may wait
_ONE_THREAD = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)  # fmt: skip


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class FeatureQueue:
    """Radiomic features of the steps of an ascent, computed in other processes while it goes on. A context manager.

    Parameters
    ----------
    names : iterable of str
        As `resolve` takes them; ``line_texture`` is left out, because it is of the whole dream (see `LineTexture`).
    options : dict, optional
        ``bin_width`` (25), ``max_bins`` and ``ndim`` (2 for single slices; by default 2 if a name is of the class
        ``shape2D``, else 3). Other entries are ignored.
    processes : int, optional
        By default one on up to two cores, else all but one and at most four. 0: nothing is computed beside; `finish` does it all.
    capacity : int, optional
        Steps that may wait or be in work; by default four for each process. What waits is also held below 256 MB.

    Attributes
    ----------
    names : list of str
        The full names of the values.
    """

    def __init__(
        self, names, *, options: dict | None = None, processes: int | None = None, capacity: int | None = None
    ):
        options, names = dict(options or {}), [names] if isinstance(names, str) else list(names)
        ndim = options.get("ndim") or (2 if any(name.startswith("shape2D") for name in names) else 3)
        self.names = without_line(resolve(names, ndim))
        self._options = {
            "ndim": ndim,
            "bin_width": float(options.get("bin_width", 25.0)),
            "max_bins": int(options.get("max_bins", radiomic.MAX_BINS)),
        }
        if processes is None:
            processes = 1 if cores() <= 2 else min(4, cores() - 1)
        self._capacity = 4 * max(processes, 1) if capacity is None else capacity
        self._waiting: collections.deque = collections.deque()
        self._done: collections.deque = collections.deque()
        self._changed = threading.Condition()
        self._open = self._bytes = 0  # steps and bytes that wait or are in work
        self._closed = False
        self._told: dict[str, list] = {}
        self._children: list[_Child] = []
        for _ in range(processes if self.names else 0):
            self._add_child()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def offer(self, step: int, image: Volume, mask: Volume) -> bool:
        """Take a step to compute, unless too many are waiting; never waits itself.

        Parameters
        ----------
        step : int
        image, mask : Volume
            As `compute` takes them; the box of the mask is copied.

        Returns
        -------
        bool
            False when the step was not taken: keep its number for `finish`.
        """
        with self._changed:
            if self._closed or self._open >= self._capacity or self._bytes > _LIMIT:
                return False
            if self.names and not self._children:
                return False
        return self._put(step, image, mask)

    def ready(self) -> list[tuple[int, Values]]:
        """Steps whose values have come in since the last call, in the order they came; never waits."""
        with self._changed:
            found = list(self._done)
            self._done.clear()
        return found

    def finish(self, missing=()):
        """Compute the steps that were not taken, and give every value that is still to come.

        Parameters
        ----------
        missing : iterable of (step, image, mask)
            Read as there is room, so a generator need not hold all the steps at once.

        Yields
        ------
        (int, Values)
            As they come, in any order.
        """
        source, last = iter(missing), False
        while not self._closed:
            while not last and self._open < self._capacity and self._bytes <= _LIMIT:
                try:
                    step, image, mask = next(source)
                except StopIteration:
                    last = True
                    break
                self._put(step, image, mask)
                # The ascent is over, so its core is free: another process, once there is work for it.
                if self._children and self._open > 2 * len(self._children) and len(self._children) < min(cores(), 8):
                    self._add_child()
            if not self._children:
                self._work_here()
            found = self.ready()
            yield from found
            with self._changed:
                if not found and not self._done:
                    if last and not self._open:
                        return
                    self._changed.wait(0.2)  # with a limit, so that Ctrl-C gets through everywhere

    @property
    def pids(self) -> list[int]:
        """Process ids of the children."""
        with self._changed:
            return [child.pid for child in self._children if child.pid]

    @property
    def notes(self) -> list[str]:
        """What is to be told about the values so far: the first sentence of each kind, with the number of steps."""
        with self._changed:
            return [f"{text} ({count} step{'s' * (count > 1)})" for text, count in self._told.values()]

    def close(self) -> None:
        """End the processes at once; what was not yet computed is forgotten. May be called again."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
            children = list(self._children)
        for child in children:
            child.kill()
        for child in children:
            child.thread.join(5)

    def _put(self, step, image, mask):
        roi, told = radiomic.crop(image, mask) if self.names else (None, "")
        with self._changed:
            if self._closed:
                return False
            self._open += 1
            if roi is None:
                self._finished(step, self._undefined(told), 0)
                return True
            size = roi.image.nbytes + roi.mask.nbytes
            self._bytes += size
            self._waiting.append((step, roi, size))
            self._changed.notify_all()
        return True

    def _undefined(self, note=""):
        return Values({name: math.nan for name in self.names}, (note,) if note else ())

    def _finished(self, step, values, size):
        with self._changed:
            self._open -= 1
            self._bytes -= size
            self._done.append((step, values))
            for text in values.notes:
                self._told.setdefault(text.split(":")[0], [text, 0])[1] += 1
            self._changed.notify_all()

    def _work_here(self):
        """Compute what waits in this process, one step."""
        with self._changed:
            if not self._waiting:
                return
            step, roi, size = self._waiting.popleft()
        self._finished(step, radiomic.on_roi(roi, self.names, **self._options), size)

    def _add_child(self):
        child = _Child(self.names, self._options)
        child.thread = threading.Thread(target=self._attend, args=(child,), name="medxai-features", daemon=True)
        self._children.append(child)
        child.thread.start()

    def _attend(self, child):
        """Feed one process until the queue is closed; a process that dies is replaced, and its step tried once more."""
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    break
                step, roi, size = self._waiting.popleft()
            for _ in range(2):
                try:
                    values = child.ask(roi)
                    break
                except OSError as error:
                    if self._closed:
                        break
                    values = self._undefined(f"died: a feature process ended while it computed a step ({error}).")
                    child.restart()
            if self._closed:
                break
            self._finished(step, values, size)
        child.kill()


class _Child:
    """One process that computes features, seen from its parent."""

    def __init__(self, names, options):
        self._task = {"names": list(names), **options}
        self._lock, self._killed = threading.Lock(), False
        self._process = None
        self._begin()

    def _begin(self):
        environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
        flags = 0
        if sys.platform == "win32":
            flags = subprocess.CREATE_NO_WINDOW | subprocess.BELOW_NORMAL_PRIORITY_CLASS
        with self._lock:
            if self._killed:
                return
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-W", "ignore", "-c", _START, str(_ROOT)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    creationflags=flags,
                )
            except OSError:
                self._process = None  # no process to be had: `ask` computes here

    def ask(self, roi: Roi) -> Values:
        """The values of one box; OSError when the process is gone."""
        process = self._process
        if process is None:
            names = self._task["names"]
            return radiomic.on_roi(roi, names, **{key: self._task[key] for key in ("ndim", "bin_width", "max_bins")})
        about = {"dtype": roi.image.dtype.str, "shape": roi.image.shape, "spacing": roi.spacing, "flat": roi.flat}
        try:
            _send(process.stdin, {**self._task, **about}, roi.image, roi.mask)
            answer = _receive(process.stdout)
        except (ValueError, EOFError) as error:  # a closed file, or a message that breaks off
            raise BrokenPipeError(str(error)) from None
        return Values(answer["values"], answer["notes"])

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def restart(self):
        self._stop()
        self._begin()

    def kill(self):
        with self._lock:
            self._killed = True
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


def serve() -> None:
    """The life of a child: read a box from standard input, write its values to standard output, until the input ends."""
    import queue
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
                task = _receive(source)
                dtype, shape = np.dtype(task["dtype"]), task["shape"]
                image = np.frombuffer(bytearray(_exactly(source, math.prod(shape) * dtype.itemsize)), dtype)
                mask = np.frombuffer(bytearray(_exactly(source, math.prod(shape))), bool)
                tasks.put((task, Roi(image.reshape(shape), mask.reshape(shape), tuple(task["spacing"]), task["flat"])))
        finally:
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    try:
        radiomic._classes()  # imported while the first step is still on its way
    except ImportError:
        pass
    while True:
        try:
            task, roi = tasks.get(timeout=1)
        except queue.Empty:
            if os.getppid() != parent:  # another process may have inherited our input and keep it open
                os._exit(0)
            continue
        names = task["names"]
        try:
            values = radiomic.on_roi(roi, names, **{key: task[key] for key in ("ndim", "bin_width", "max_bins")})
        except Exception as error:
            values = Values({name: math.nan for name in names}, (f"failed: {type(error).__name__}: {error}",))
        try:
            _send(sink, {"values": values, "notes": values.notes})
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
