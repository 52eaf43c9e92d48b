"""Two ways to run the worker: `SubprocessTransport` for scripts and tests, `QProcessTransport` for Slicer.

Qt is imported only when a `QtClient` is made.
"""

from __future__ import annotations

import heapq
import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from .client import Client
from .launch import Launch, launch

_WINDOWS = sys.platform == "win32"


def end_group(pid: int | None, force: bool) -> None:
    """End the process group that the worker ``pid`` leads (Windows: its tree). Returns at once; nothing happens when it is gone."""
    if pid is None:
        return
    if _WINDOWS:
        hidden = subprocess.STARTUPINFO()
        hidden.dwFlags |= subprocess.STARTF_USESHOWWINDOW
        subprocess.Popen(
            ["taskkill", "/PID", str(pid), "/T", "/F"], startupinfo=hidden,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return
    try:
        os.killpg(pid, signal.SIGKILL if force else signal.SIGTERM)
    except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        pass


class Loop:
    """A small event loop for the thread that polls it: what other threads post, and timers."""

    def __init__(self):
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._timers: list = []
        self._order = itertools.count()

    def post(self, function: Callable[[], None]) -> None:
        """Call it in the polling thread. The one method that other threads may use."""
        self._posted.put(function)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call it once, that much later."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), function))

    def poll(self, timeout: float = 0.0) -> None:
        """Call what is due; wait up to ``timeout`` seconds for the first thing."""
        until = time.monotonic() + timeout
        while True:
            now = time.monotonic()
            if self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
                return
            wait = min(until, self._timers[0][0]) - now if self._timers else until - now
            try:
                function = self._posted.get(timeout=max(0.0, wait))
            except queue.Empty:
                if time.monotonic() >= until and not (self._timers and self._timers[0][0] <= until):
                    return
                continue
            function()
            return


class SubprocessTransport:
    """The worker as a `subprocess`, its pipes served by threads that only carry bytes."""

    def __init__(self, launch: Launch, loop: Loop):
        self._launch = launch
        self._loop = loop
        self._process: subprocess.Popen | None = None
        self._waiter: threading.Thread | None = None
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def start(self, receiver) -> None:
        options = {"creationflags": subprocess.CREATE_NO_WINDOW} if _WINDOWS else {"start_new_session": True}
        try:
            self._process = subprocess.Popen(
                [self._launch.program, *self._launch.arguments], env=self._launch.environment or None, bufsize=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
            )  # fmt: skip
        except OSError as error:
            reason = f"{self._launch.program}: {error.strerror or error}"
            self._loop.post(lambda: receiver.failed(reason))
            return
        readers = [
            self._thread(self._carry, self._process.stdout, receiver.received),
            self._thread(self._carry, self._process.stderr, receiver.logged),
        ]
        self._thread(self._feed)
        self._waiter = self._thread(self._await_end, readers, receiver)

    def write(self, data: bytes) -> None:
        self._outgoing.put(data)

    def terminate(self, pid: int | None) -> None:
        if self._process is not None:
            end_group(pid, force=False)
            if pid is None or _WINDOWS:
                self._process.terminate()

    def kill(self, pid: int | None) -> None:
        if self._process is not None:
            end_group(pid, force=True)
            self._process.kill()
            self._outgoing.put(None)

    def wait(self, seconds: float) -> None:
        if self._waiter is not None:
            self._waiter.join(seconds)

    def _thread(self, target, *arguments) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        return thread

    def _carry(self, pipe, receive) -> None:
        while data := pipe.read(65536):
            self._loop.post(lambda data=data: receive(data))

    def _feed(self) -> None:
        try:
            while (data := self._outgoing.get()) is not None:
                view = memoryview(data)
                while view:
                    view = view[self._process.stdin.write(view) :]
        except (OSError, ValueError):
            pass  # it has ended: `_await_end` says so
        self._process.stdin.close()

    def _await_end(self, readers, receiver) -> None:
        code = self._process.wait()
        for thread in readers:  # what is still in the pipes; a launcher's child may hold them open
            thread.join(0.5)
        self._outgoing.put(None)
        self._loop.post(lambda: receiver.ended(abs(code), code < 0 or (_WINDOWS and code >= 0x80000000)))


class LocalClient(Client):
    """A client for scripts and tests: call `wait` (or `poll`), and it goes on.

    Parameters
    ----------
    python : str, optional
        The worker's interpreter; by default this one.
    arguments : tuple of str
        For the worker.
    environment : dict, optional
        Of the worker; by default this process's.
    """

    def __init__(self, python: str = "", arguments: tuple[str, ...] = (), environment: dict | None = None, **options):
        how = launch(python or sys.executable, environment=environment, arguments=arguments)
        self.loop = Loop()
        super().__init__(lambda: SubprocessTransport(how, self.loop), self.loop.call_later, **options)

    def poll(self, timeout: float = 0.0) -> None:
        """Deliver what has come; wait up to ``timeout`` seconds for it."""
        self.loop.poll(timeout)

    def wait(self, done, timeout: float = 3600.0) -> bool:
        """Deliver until the job ``done`` has ended (or the callable ``done`` is true); False after ``timeout`` seconds."""
        reached = done if callable(done) else lambda: done.finished
        until = time.monotonic() + timeout
        while not reached():
            if time.monotonic() >= until:
                return False
            self.poll(min(0.05, max(0.0, until - time.monotonic())))
        return True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()


class QProcessTransport:
    """The worker as Qt's process, inside Slicer. Everything happens in the main thread, by signals."""

    def __init__(self, launch: Launch):
        import qt

        self._qt = qt
        self._launch = launch
        self._receiver = None
        self._process = qt.QProcess()
        environment = qt.QProcessEnvironment()
        for name, value in launch.environment.items():
            environment.insert(name, value)
        self._process.setProcessEnvironment(environment)
        self._process.setProcessChannelMode(qt.QProcess.SeparateChannels)
        # Full signatures, the same in Qt 5 and Qt 6.
        self._process.connect("readyReadStandardOutput()", self._on_output)
        self._process.connect("readyReadStandardError()", self._on_error_output)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._on_finished)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._on_error)

    def start(self, receiver) -> None:
        self._receiver = receiver
        _alive.add(self)  # a QProcess that is collected while it runs takes its process along, with a warning
        self._process.start(self._launch.program, list(self._launch.arguments))

    @property
    def _running(self) -> bool:
        return self._process is not None and self._process.state() != self._qt.QProcess.NotRunning

    def write(self, data: bytes) -> None:
        if self._running:
            self._process.write(data)

    def terminate(self, pid: int | None) -> None:
        if self._running:
            end_group(pid, force=False)
            if pid is None or _WINDOWS:
                self._process.terminate()

    def kill(self, pid: int | None) -> None:
        if self._running:
            end_group(pid, force=True)
            self._process.closeWriteChannel()  # a launcher's child, whose pid is not known yet, ends by this
            self._process.kill()

    def wait(self, seconds: float) -> None:
        if self._running:
            self._process.waitForFinished(int(seconds * 1000))

    def _on_output(self) -> None:
        if self._receiver is not None:
            self._receiver.received(self._process.readAllStandardOutput().data())

    def _on_error_output(self) -> None:
        if self._receiver is not None:
            self._receiver.logged(self._process.readAllStandardError().data())

    def _on_finished(self, code: int, status) -> None:
        self._on_output()
        self._on_error_output()
        self._retire(lambda receiver: receiver.ended(code, status == self._qt.QProcess.CrashExit))

    def _on_error(self, error) -> None:
        if error == self._qt.QProcess.FailedToStart:  # the one error after which `finished` does not come
            reason = f"{self._launch.program}: {self._process.errorString()}"
            self._retire(lambda receiver: receiver.failed(reason))

    def _retire(self, tell) -> None:
        """Tell how it ended, and let the process object go: later, as this is its own signal (in Qt 6 sent within ``start``)."""
        receiver, self._receiver = self._receiver, None

        def later():
            _alive.discard(self)
            if self._process is not None:
                self._process.deleteLater()
                self._process = None  # its connections hold this object, and it holds them
            if receiver is not None:
                tell(receiver)

        self._qt.QTimer.singleShot(0, later)


_alive: set[QProcessTransport] = set()


class QtClient(Client):
    """A client for panels: `Client` on Qt's processes and timers.

    Parameters
    ----------
    choose : callable
        Gives the `Launch` for a new worker; asked each time, so that a changed setting counts.
    temporary : path, optional
        Such as ``slicer.app.temporaryPath``.
    """

    def __init__(self, choose: Callable[[], Launch], temporary=None, **options):
        import qt

        self._qt = qt
        super().__init__(lambda: QProcessTransport(choose()), self._later, temporary, **options)

    def _later(self, seconds: float, function: Callable[[], None]) -> None:
        self._qt.QTimer.singleShot(int(seconds * 1000), function)
