"""What a panel holds of a run: the request, the job with its state, and the events."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..explanation import Explanation, Patch, Point
from ..volume import Volume


class State(enum.Enum):
    """Where a job is. ``QUEUED`` also while the worker starts."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self in (State.DONE, State.FAILED, State.CANCELLED)


@dataclass(frozen=True)
class StoredVolume:
    """A volume whose voxels the client has already written (`Client.store`): later runs send it for nothing."""

    message: dict


@dataclass(frozen=True)
class RunRequest:
    """What to run.

    Parameters
    ----------
    method : str
        Such as ``dream``; ``train-cycle`` trains an explainer, without volumes and segments.
    model : str
        Folder of the model package.
    volumes : sequence of Volume or StoredVolume
        One per channel; the first one's grid is that of the result. Empty for a training.
    settings : dict
        Plain values (`Settings.to_json`).
    segments : sequence of Volume or StoredVolume
        Masks, non-zero inside: landmarks for ``backproject``; for ``counterfactual`` each says in ``attributes["role"]`` what it is; one at
        most for the other methods.
    trusted : iterable of str
        SHA-256 of the programs the user trusts.
    panel : str
        Who asks; a newer job of the same panel replaces the older one. By default the method's name.
    """

    method: str
    model: str
    volumes: tuple[Volume | StoredVolume, ...] | list[Volume | StoredVolume]
    settings: dict = field(default_factory=dict)
    segments: tuple[Volume | StoredVolume, ...] | list[Volume | StoredVolume] = ()
    trusted: Iterable[str] = ()
    panel: str = ""


class Job:
    """One run (or question), from the request to its end. Only the client changes it.

    Attributes
    ----------
    id : str
    state : State
    position : int
        Jobs ahead of it, while queued.
    fraction, stage, eta : float, str, float or None
        As last heard.
    explanation : Explanation or None
        Once ``DONE``. Its arrays are memory-mapped files of the run's folder, which goes when the callback that got the
        `Result` returns: copy there what is to stay (or call `keep`).
    failure : Failed or None
        Once ``FAILED``.
    """

    def __init__(self, id: str, command: dict, on_event: Callable[[Event], None] | None, cancel: Callable[[Job], None]):
        self.id = id
        self.command = command
        self.panel: str = command.get("panel", "")
        self.on_event = on_event
        self.state = State.QUEUED
        self.position = 0
        self.fraction = 0.0
        self.stage = ""
        self.eta: float | None = None
        self.explanation: Explanation | None = None
        self.failure: Failed | None = None
        self.reason = ""  # why it is cancelled
        self.begun = False  # the worker has started on it
        self.attempts = 0  # how often it was sent to a worker
        self.kept = False
        self._cancel = cancel

    def cancel(self) -> None:
        """Stop it: between two steps if the worker gets there in time, else by ending the worker. Never waits."""
        self._cancel(self)

    def keep(self) -> None:
        """Keep the run's folder (until the client is shut down) although the job has ended."""
        self.kept = True

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.state.finished

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.state.value}>"


@dataclass(frozen=True)
class Event:
    """What happened to ``job``. ``name`` is the same word as in the protocol, so a panel can look a slot up by it."""

    job: Job
    name = "event"


@dataclass(frozen=True)
class Queued(Event):
    """``position`` jobs come first (0: it is next)."""

    position: int
    name = "queued"


@dataclass(frozen=True)
class Progress(Event):
    """``fraction`` 0 to 1, ``stage`` in words, ``eta`` in seconds or None."""

    fraction: float
    stage: str
    eta: float | None
    name = "progress"


@dataclass(frozen=True)
class Preview(Event):
    """A map as it is now: a `Patch` of the first volume's grid, or a `Volume`. Its array is a memory-mapped file that is
    deleted when the callback returns: copy it, do not keep it."""

    title: str
    image: Volume | Patch
    name = "preview"


@dataclass(frozen=True)
class Points(Event):
    """New values of curves."""

    points: tuple[Point, ...]
    name = "point"


@dataclass(frozen=True)
class Log(Event):
    """A line (or some) for the log."""

    text: str
    name = "log"


@dataclass(frozen=True)
class Result(Event):
    """It is done."""

    explanation: Explanation
    name = "result"


@dataclass(frozen=True)
class Failed(Event):
    """It failed: ``kind``, ``message`` and ``hint`` as in `MedXAIError`; ``log``: the last lines the worker wrote."""

    kind: str
    message: str
    hint: str
    log: tuple[str, ...] = ()
    name = "error"


@dataclass(frozen=True)
class Cancelled(Event):
    """It was cancelled: ``reason`` is ``asked``, ``replaced`` (by a newer job of its panel) or ``ended`` (the client was
    shut down)."""

    reason: str
    name = "cancelled"


@dataclass(frozen=True)
class Described(Event):
    """The answer to `Client.describe`."""

    description: dict
    name = "described"


@dataclass(frozen=True)
class Released(Event):
    """The answer to `Client.release`: ``bytes`` of models and volumes were let go."""

    bytes: int
    name = "released"
