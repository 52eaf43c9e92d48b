"""From the steps of one job to its events: not too many, and none that the client has no room for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from ..explanation import Patch, Step
from . import wire


class Reporter:
    """Turns steps into ``progress``, ``point``, ``preview`` and ``log`` events.

    Progress goes out at most ten times in any second, points are collected in between, and a preview is computed only when
    all earlier ones have been acknowledged and no more than a tenth of the time goes into them.

    Parameters
    ----------
    job : str
    folder : path
        Private folder of the run; previews are written there, a new file each time.
    emit : callable
        Takes an event's name and its fields.
    clock : callable
        Seconds, monotonic.
    """

    interval = 0.1

    def __init__(self, job: str, folder, emit: Callable, clock: Callable[[], float] = time.monotonic):
        self._job = job
        self._folder = Path(folder)
        self._emit = emit
        self._clock = clock
        self._sent: deque[float] = deque(maxlen=10)
        self._stage = None
        self._begun: tuple[float, float] | None = None  # time and fraction of the first step
        self._points: list[dict] = []
        self._flushed = 0.0
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._previews = 0
        self._next_preview = 0.0

    def step(self, step: Step) -> None:
        """Report one step."""
        if step.message:
            self._emit("log", job=self._job, text=step.message)
        self._points += [
            {"curve": p.curve, "step": int(p.step), "values": {k: float(v) for k, v in p.values.items()}}
            for p in step.points
        ]
        now = self._clock()
        if now - self._flushed >= self.interval:
            self.flush()
        self.progress(step.fraction, step.stage)
        if step.previews is not None and now >= self._next_preview and not self._unacknowledged():
            self._preview(step)

    def progress(self, fraction: float, stage: str) -> None:
        """Report how far it is, unless that was done a moment ago. A new stage need not wait for the tenth of a second."""
        now = self._clock()
        fraction = min(1.0, max(0.0, float(fraction)))
        if self._begun is None and fraction > 0:
            self._begun = (now, fraction)
        soon = self._sent and now - self._sent[-1] < self.interval and stage == self._stage
        if soon or (len(self._sent) == 10 and now - self._sent[0] < 1):
            return
        eta = None
        if self._begun is not None and fraction > self._begun[1]:
            eta = (now - self._begun[0]) * (1 - fraction) / (fraction - self._begun[1])
        self._sent.append(now)
        self._stage = stage
        self._emit("progress", job=self._job, fraction=fraction, stage=stage, eta=eta)

    def flush(self) -> None:
        """Send the points that were collected."""
        self._flushed = self._clock()
        if self._points:
            points, self._points = self._points, []
            self._emit("point", job=self._job, points=points)

    def acknowledge(self, file: str) -> None:
        """The client has copied that preview. Called by the reading thread."""
        with self._lock:
            self._waiting.discard(file)

    def _unacknowledged(self) -> bool:
        with self._lock:
            return bool(self._waiting)

    def _preview(self, step: Step) -> None:
        begun = self._clock()
        for name, image in step.previews().items():
            self._previews += 1
            file = str(self._folder / f"preview-{self._previews:06d}.npy")
            wire.save_array(file, image.array)
            with self._lock:
                self._waiting.add(file)
            if isinstance(image, Patch):
                about = {"start": [int(v) for v in image.start]}
            else:
                about = {"ijk_to_ras": image.ijk_to_ras.tolist(), "unit": image.unit}
            self._emit("preview", job=self._job, name=name, file=file, **about)
        now = self._clock()
        self._next_preview = now + min(10.0, max(self.interval, 9 * (now - begun)))
