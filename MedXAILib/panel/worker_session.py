"""One worker for the whole Slicer session, shared by every panel, and one for trainings, which take hours."""

from __future__ import annotations

import slicer

from ..worker import launch
from ..worker.transports import QtClient

PYTHON = "MedXAI/WorkerPython"

_client: QtClient | None = None
_training: QtClient | None = None


def client() -> QtClient:
    """The session's client. Its worker starts with the first job, or with ``client().start()``."""
    global _client
    if _client is None:
        _client = QtClient(chooseLaunch, temporary=slicer.app.temporaryPath)
        slicer.app.connect("aboutToQuit()", closeSession)
    return _client


def trainingClient() -> QtClient:
    """The client of the worker that trains: a process of its own, so that explanations need not wait for a training."""
    global _training
    if _training is None:
        client()  # which ends both with the application
        _training = QtClient(chooseLaunch, temporary=slicer.app.temporaryPath)
    return _training


def clients() -> tuple[QtClient, ...]:
    """Those of the two that were made."""
    return tuple(one for one in (_client, _training) if one is not None)


def chooseLaunch() -> launch.Launch:
    """How to start the worker, by the settings as they are now."""
    return launch.launch(
        python=workerPython(),
        slicer_home=slicer.app.slicerHome,
        startup_environment=slicer.util.startupEnvironment,
    )


def workerPython() -> str:
    """The worker's Python as set by a person; empty: Slicer's own."""
    return str(slicer.app.userSettings().value(PYTHON) or "")


def setWorkerPython(path: str):
    """Use another Python from the next worker on, and end the present one."""
    slicer.app.userSettings().setValue(PYTHON, path)
    for one in clients():
        one.shutdown()


def closeSession():
    """End both workers and every run, now: at the application's end and before a reload."""
    global _client, _training
    if _training is not None:
        old, _training = _training, None
        old.shutdown()
    if _client is not None:
        old, _client = _client, None
        slicer.app.disconnect("aboutToQuit()", closeSession)
        old.shutdown()


def device(name: str) -> str:
    """A device's title for a person, such as ``cuda:0, NVIDIA RTX 4090, 20.1 of 24.0 GB free``."""
    for one in client().environment.get("devices", ()):
        if one["name"] == name:
            return deviceText(one)
    return name


def deviceText(one: dict) -> str:
    """The same from the worker's own words."""
    parts = [one["name"], one.get("title") or ""]
    free, total = one.get("free_bytes"), one.get("total_bytes")
    if total:
        size = f"{total / 2**30:.1f} GB"
        parts.append(f"{free / 2**30:.1f} of {size} free" if free is not None else size)
    return ", ".join(part for part in parts if part)
