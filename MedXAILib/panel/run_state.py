"""Where a run is, without any Qt."""

import enum


class RunState(enum.Enum):
    """Where a run is. Everything the run control shows follows from this, the reason and the last progress."""

    IDLE = "idle"
    STARTING = "starting"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    WRITING = "writing"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def active(self) -> bool:
        """Whether a run is under way."""
        return self in (RunState.STARTING, RunState.QUEUED, RunState.RUNNING, RunState.CANCELLING, RunState.WRITING)
