"""The life of one worker process, between its transport and the client."""

from __future__ import annotations

import signal
import sys
from collections import deque
from typing import TYPE_CHECKING, Protocol

from . import protocol
from .jobs import Job

if TYPE_CHECKING:
    from .client import Client

LOG_LINES = 50


class Receiver(Protocol):
    """What a transport tells of its process. After ``ended`` or ``failed`` nothing more comes."""

    def received(self, data: bytes) -> None:
        """Bytes from its standard output."""

    def logged(self, data: bytes) -> None:
        """Bytes from its standard error."""

    def ended(self, code: int, crashed: bool) -> None:
        """It has ended; ``code`` is the signal where it ``crashed`` (POSIX)."""

    def failed(self, reason: str) -> None:
        """It could not be started."""


class Transport(Protocol):
    """One process and its three pipes. Every method returns at once; all calls happen in the client's thread."""

    def start(self, receiver: Receiver) -> None:
        """Start the process."""

    def write(self, data: bytes) -> None:
        """To its standard input; kept until it can be written, dropped once the process has ended."""

    def terminate(self, pid: int | None) -> None:
        """Ask the group of the worker ``pid`` (None: not known yet) to end."""

    def kill(self, pid: int | None) -> None:
        """End it and its group."""

    def wait(self, seconds: float) -> None:
        """Wait that long at most for its end, after `kill`: the one method that does not return at once."""


class Session:
    """The life of one worker process, as its receiver."""

    def __init__(self, client: Client, transport: Transport):
        self.client = client
        self.transport = transport
        self.decoder = protocol.Decoder("event")
        self.pid: int | None = None
        self.jobs: dict[str, Job] = {}
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self.rest = b""

    def received(self, data: bytes) -> None:
        for message in self.decoder.feed(data):
            self.client._receive(self, message)

    def logged(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        self.rest = self.rest[-4000:]
        lines = [line[:2000].decode("utf-8", "replace").rstrip("\r") for line in lines[-LOG_LINES:]]
        if lines:
            self.note(lines)

    def note(self, lines: list[str]) -> None:
        """Add to what is shown when the worker fails."""
        self.lines.extend(lines)
        self.client._notify("log", "\n".join(lines))

    def ended(self, code: int, crashed: bool) -> None:
        if self.rest:
            self.logged(b"\n")
        for message in self.decoder.close():
            self.client._receive(self, message)
        self.client._receive(self, {"ended": _told(code, crashed)})

    def failed(self, reason: str) -> None:
        self.client._receive(self, {"failed": reason})


def _told(code: int, crashed: bool) -> str:
    if not crashed:
        return f"exit code {code}"
    if sys.platform == "win32":
        return f"crash {code & 0xFFFFFFFF:#010x}"
    try:
        return f"signal {signal.Signals(code).name}"
    except ValueError:
        return f"signal {code}"
