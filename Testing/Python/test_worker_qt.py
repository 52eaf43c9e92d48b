"""The client on Qt's processes. Runs with PySide6 dressed up as PythonQt, Slicer's binding; in Slicer itself the panel's tests do it."""

import os
import signal
import sys
import time
import types

import numpy as np
import pytest

QtCore = pytest.importorskip(
    "PySide6.QtCore", reason="PySide6 is not installed: QProcessTransport is tested in Slicer only"
)

from test_worker_process import ENVIRONMENT, FAKE, alive, gone, launcher  # noqa: E402, F401

from MedXAILib.volume import Volume  # noqa: E402
from MedXAILib.worker.jobs import RunRequest, State  # noqa: E402
from MedXAILib.worker.launch import Launch, main_file  # noqa: E402
from MedXAILib.worker.transports import QtClient  # noqa: E402


class QProcess(QtCore.QProcess):
    """PythonQt's idioms: signals by their full signature, enumerators as attributes of the class."""

    NotRunning = QtCore.QProcess.ProcessState.NotRunning
    SeparateChannels = QtCore.QProcess.ProcessChannelMode.SeparateChannels
    CrashExit = QtCore.QProcess.ExitStatus.CrashExit
    FailedToStart = QtCore.QProcess.ProcessError.FailedToStart

    def connect(self, signature, slot):
        name = signature.partition("(")[0]
        found = self.metaObject().indexOfSignal(signature)
        assert found >= 0, f"{signature} is no signal of QProcess"
        getattr(self, name).connect(slot)


@pytest.fixture(scope="module", autouse=True)
def qt():
    application = QtCore.QCoreApplication.instance() or QtCore.QCoreApplication([])
    shim = types.SimpleNamespace(
        QProcess=QProcess, QProcessEnvironment=QtCore.QProcessEnvironment, QTimer=QtCore.QTimer, application=application
    )
    before = sys.modules.get("qt")
    sys.modules["qt"] = shim
    yield shim
    if before is None:
        del sys.modules["qt"]
    else:
        sys.modules["qt"] = before


class Session:
    def __init__(self, tmp_path, program=sys.executable):
        self.launch = Launch(str(program), (str(main_file()), *FAKE), ENVIRONMENT)
        self.client = QtClient(lambda: self.launch, tmp_path / "private")
        self.model = tmp_path
        self.events = []
        self.longest_turn = 0.0

    def start(self, method, panel="", shape=(2, 3, 4), **settings):
        volume = Volume(np.ones(shape, np.float32), np.eye(4))
        return self.client.run(RunRequest(method, self.model, [volume], settings, panel=panel), self.events.append)

    def until(self, condition, seconds=15):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.events
            begun = time.monotonic()
            QtCore.QCoreApplication.processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 5)
            self.longest_turn = max(self.longest_turn, time.monotonic() - begun)
            time.sleep(0.001)

    def run(self, method, **more):
        job = self.start(method, **more)
        self.until(lambda: job.finished)
        return job

    def stuck(self, **settings):
        sign = self.model / "stuck"
        sign.unlink(missing_ok=True)
        job = self.start("stuck", sign=str(sign), **settings)
        self.until(lambda: job.stage.startswith("pids") and sign.exists())
        return job, [self.client.environment["pid"], *map(int, job.stage.split()[1:])]


@pytest.fixture
def session(tmp_path):
    one = Session(tmp_path)
    yield one
    pid = one.client.environment.get("pid")
    begun = time.monotonic()
    one.client.shutdown()
    assert time.monotonic() - begun < 1
    QtCore.QCoreApplication.processEvents()
    assert pid is None or gone([pid])


def test_runs_and_stays_warm(session):
    assert session.run("simple").state is State.DONE
    pid = session.client.environment["pid"]
    assert session.run("noisy").state is State.DONE
    assert session.client.environment["pid"] == pid
    names = [e.name for e in session.events]
    assert {"queued", "progress", "preview", "point", "log", "result"} <= set(names)


def test_cancel_in_a_step_and_of_a_stuck_step(session):
    job = session.start("careful", sign=str(session.model / "sign"))
    session.until(lambda: job.stage == "working")
    job.cancel()
    session.until(lambda: job.finished, 0.5)
    job, pids = session.stuck(children=1, deaf=True)
    waiting = session.start("simple", panel="other")
    begun = time.monotonic()
    job.cancel()
    session.until(lambda: job.finished, 3)
    assert time.monotonic() - begun < 3 and job.state is State.CANCELLED and gone(pids)
    session.until(lambda: waiting.finished)
    assert waiting.state is State.DONE


@pytest.mark.parametrize("method, how, words", [("abort", {}, "SIGABRT"), ("exit", {"code": 0}, "exit code 0")])
def test_crash(session, method, how, words):
    job = session.run(method, **how)
    assert job.failure.kind == "crashed" and words in job.failure.message
    assert session.run("simple").state is State.DONE


def test_killed_worker(session):
    job, pids = session.stuck(children=1)
    os.kill(pids[0], signal.SIGKILL)
    session.until(lambda: job.finished)
    assert "SIGKILL" in job.failure.message and gone(pids)


def test_failed_to_start(session):
    session.launch = Launch("/no/such/python", (), ENVIRONMENT)
    job = session.run("simple")
    assert job.failure.kind == "missing" and "/no/such/python" in job.failure.message
    session.launch = Launch(sys.executable, (str(main_file()), *FAKE), ENVIRONMENT)
    assert session.run("simple").state is State.DONE


def test_through_a_launcher(tmp_path, launcher):  # noqa: F811
    session = Session(tmp_path, launcher)
    job, pids = session.stuck(children=1, deaf=True)
    job.cancel()
    session.until(lambda: job.finished, 3)
    assert gone(pids)
    session.start("simple")
    session.client.shutdown()  # before hello
    QtCore.QCoreApplication.processEvents()
    assert not session.client.jobs


def test_no_turn_of_the_event_loop_is_long_while_a_run_streams(session):
    session.run("simple")
    job = session.start("fast", seconds=2, pause=0.001, shape=(64, 256, 256))
    session.until(lambda: job.state is State.RUNNING)
    session.longest_turn = 0.0
    session.until(lambda: job.finished)
    assert job.explanation.scores["steps"] > 100
    assert session.longest_turn < 0.1


def test_process_objects_do_not_pile_up(session):
    from MedXAILib.worker import transports

    for _ in range(3):
        session.run("exit", code=0)
    session.run("simple")
    QtCore.QCoreApplication.processEvents()
    assert len(transports._alive) == 1
    assert alive(session.client.environment["pid"])
