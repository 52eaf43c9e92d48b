"""Features computed beside an ascent, in a thread or a few processes, behind a queue that never makes it wait."""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import math
import os
import sys
import threading

from ..volume import Volume
from . import radiomic
from .children import Child, cores
from .names import resolve, without_line
from .radiomic import Values

_LIMIT = 256 << 20  # bytes that may wait
# Boxes that the built-in engine takes at once, with so many voxels: more only make `close` wait, but for a GPU.
_BATCH = 16
_VOXELS, _VOXELS_GPU = 250_000, 2_000_000
_NICE = 10  # of the thread


class FeatureQueue:
    """Radiomic features of the steps of an ascent, computed while it goes on. A context manager.

    The built-in engine works in one thread of this process, of low priority, which takes what waits as one batch; in
    `finish` the caller computes as well. pyradiomics, whose loops hold the interpreter, works in processes of its own.

    Parameters
    ----------
    names : iterable of str
        As `resolve` takes them; ``line_texture`` is left out, because it is of the whole dream (see `LineTexture`).
    options : dict, optional
        ``engine`` ("auto"), ``device`` ("cpu"), ``bin_width`` (25), ``bin_count`` (0), ``max_bins`` and ``ndim`` (2 for
        single slices; by default 2 if a name is of the class ``shape2D``, else 3). Other entries are ignored.
    processes : int, optional
        For pyradiomics; by default one on up to two cores, else all but one and at most four. 0, with either engine:
        nothing is computed beside; `finish` does it all.
    capacity : int, optional
        Steps that may wait or be in work, at least one; by default four for each process, or two batches. What waits is
        also held below 256 MB.

    Attributes
    ----------
    names : list of str
        The full names of the values.
    engine : str
        What computes them: ``builtin`` or ``pyradiomics``.

    Raises
    ------
    MedXAIError
        For a name that does not exist, bins that cannot be, or when pyradiomics is asked for and not there.
    """

    def __init__(
        self, names, *, options: dict | None = None, processes: int | None = None, capacity: int | None = None
    ):
        options, names = dict(options or {}), [names] if isinstance(names, str) else list(names)
        ndim = options.get("ndim") or (2 if any(name.startswith("shape2D") for name in names) else 3)
        self.names = without_line(resolve(names, ndim))
        self.engine = radiomic.engine_of(options.get("engine", "auto"))
        self._options = {
            "ndim": ndim,
            "bin_width": float(options.get("bin_width", 25.0)),
            "bin_count": int(options.get("bin_count", 0)),
            "max_bins": int(options.get("max_bins", radiomic.MAX_BINS)),
            "engine": self.engine,
            "device": radiomic.counting_device(options.get("device", "cpu")),
        }
        radiomic.check_bins(*(self._options[one] for one in ("bin_width", "bin_count", "max_bins")))
        if processes is None:
            processes = 1 if cores() <= 2 else min(4, cores() - 1)
        threaded = self.engine == "builtin"
        if capacity is None:
            capacity = 2 * _BATCH if threaded else 4 * max(processes, 1)
        self._capacity = max(capacity, 1)
        self._waiting: collections.deque = collections.deque()
        self._done: collections.deque = collections.deque()
        self._changed = threading.Condition()
        self._quiet = threading.Event()  # the thread has set its threads and its priority
        self._open = self._bytes = 0  # steps and bytes that wait or are in work
        self._closed = False
        self._told: dict[str, list] = {}
        self._children: list[Child] = []
        self._threads: list[threading.Thread] = []
        if self.names and processes:
            atexit.register(self._end)  # a thread inside torch must not outlive the interpreter
            for _ in range(1 if threaded else processes):
                self._add_worker()

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
            if self.names and not self._threads:
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
        # The ascent is over, so its core is free for the caller's own share; a graphics card is not.
        helps = not self._threads or (self.engine == "builtin" and self._options["device"] == "cpu")
        while not self._closed:
            while not (last or self._done) and self._open < self._capacity and self._bytes <= _LIMIT:
                try:
                    step, image, mask = next(source)
                except StopIteration:
                    last = True
                    break
                self._put(step, image, mask)
                # Likewise another process, once there is work for it.
                if self._children and self._open > 2 * len(self._children) and len(self._children) < min(cores(), 8):
                    self._add_worker()
            if helps and not self._done:
                waiting = len(self._waiting)
                self._work(self._take(wait=False, most=min(_BATCH, (waiting + 1) // 2 if self._threads else waiting)))
            found = self.ready()
            yield from found
            with self._changed:
                if not found and not self._done:
                    if last and not self._open:
                        return
                    self._changed.wait(0.2)  # with a limit, so that Ctrl-C gets through everywhere

    @property
    def pids(self) -> list[int]:
        """Process ids of the children; none with the built-in engine."""
        with self._changed:
            return [child.pid for child in self._children if child.pid]

    @property
    def notes(self) -> list[str]:
        """What is to be told about the values so far: the first sentence of each kind, with the number of steps."""
        with self._changed:
            return [f"{text} ({count} step{'s' * (count > 1)})" for text, count in self._told.values()]

    def close(self) -> None:
        """End the work at once; what was not yet computed is forgotten. May be called again.

        A thread in the middle of a very large box ends by itself, when the engine next looks up.
        """
        self._end(1.0)
        if not any(thread.is_alive() for thread in self._threads):
            atexit.unregister(self._end)

    def _end(self, seconds=60.0):
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for child in self._children:
            child.kill()
        for thread in self._threads:
            thread.join(seconds)

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

    def _take(self, wait: bool, most: int = _BATCH) -> list:
        """What waits, as one batch; with ``wait`` there is something, or the queue is closed."""
        with self._changed:
            while wait and not self._waiting and not self._closed:
                self._changed.wait()
            batch, voxels, most_voxels = [], 0, _VOXELS if self._options["device"] == "cpu" else _VOXELS_GPU
            while self._waiting and len(batch) < most:
                voxels += self._waiting[0][1].mask.size
                if batch and voxels > most_voxels:
                    break
                batch.append(self._waiting.popleft())
        return batch

    def _work(self, batch) -> None:
        """Compute a batch in this process."""
        found = self._values([roi for _, roi, _ in batch]) if batch else []
        for (step, _, size), values in zip(batch, found):
            self._finished(step, values, size)

    def _values(self, rois) -> list[Values]:
        """Of each box; of none once the queue is closed."""
        try:
            found = radiomic.on_rois(rois, self.names, **self._options, stop=lambda: self._closed)
            if self._closed or len(found) == len(rois):
                return [] if self._closed else found
            raise RuntimeError(f"{len(found)} answers to {len(rois)} boxes")
        except Exception as error:
            if self._closed:
                return []
            if len(rois) > 1:  # one of them is the reason; the others need not suffer for it
                return [values for roi in rois for values in self._values([roi])]
            return [self._undefined(f"failed: {type(error).__name__}: {error}")]

    def _add_worker(self):
        work = self._compute
        if self.engine == "pyradiomics":
            self._children.append(Child(self.engine))
            work = functools.partial(self._attend, self._children[-1])
        thread = threading.Thread(target=work, name="medxai-features", daemon=True)
        self._threads.append(thread)
        thread.start()
        if self.engine == "builtin":
            self._quiet.wait()  # this thread must not call torch for the first time in the instant of `set_own_threads`

    def _compute(self):
        """The life of the thread: one batch after the other, until the queue is closed."""
        try:
            radiomic.set_own_threads(1)  # more would wait for the ascent's at every operation, and the ascent for them
            if sys.platform == "linux":  # where a thread has a priority of its own
                with contextlib.suppress(OSError):
                    me = threading.get_native_id()
                    os.setpriority(os.PRIO_PROCESS, me, min(os.getpriority(os.PRIO_PROCESS, me) + _NICE, 19))
        finally:
            self._quiet.set()
        while not self._closed:
            self._work(self._take(wait=True))

    def _attend(self, child):
        """The life of a child: one step after the other, until the queue is closed."""
        task = {"names": self.names, "options": self._options}
        while batch := self._take(wait=True, most=1):
            ((step, roi, size),) = batch
            try:
                found = child.ask(task, roi)
                values = Values(found["values"], found["notes"])
            except OSError as error:
                values = self._undefined(f"died: a feature process ended while it computed a step ({error}).")
            except Exception as error:  # whatever it is, somebody waits for this step
                values = self._undefined(f"failed: {type(error).__name__}: {error}")
            if self._closed:
                break
            self._finished(step, values, size)
        child.kill()
