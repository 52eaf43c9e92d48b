"""Which Python the worker runs in, and with what environment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import MedXAIError

#: Set for every worker: text as UTF-8 whatever the locale, nothing held back in buffers, CPU where Apple's GPU lacks an operation.
VARIABLES = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "PYTORCH_ENABLE_MPS_FALLBACK": "1"}
#: These would lead another Python to Slicer's own libraries.
_SLICERS_OWN = ("PYTHONHOME", "PYTHONPATH", "PYTHONNOUSERSITE")


@dataclass(frozen=True)
class Launch:
    """How to start the worker: ``environment`` is the whole of it."""

    program: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def main_file() -> Path:
    """The file that is run."""
    return Path(__file__).resolve().with_name("__main__.py")


def launch(
    python: str = "",
    slicer_home: str = "",
    startup_environment: Callable[[], dict] | None = None,
    environment: dict[str, str] | None = None,
    arguments: tuple[str, ...] = (),
    which: Callable[[str], str | None] = shutil.which,
) -> Launch:
    """Choose the interpreter: ``python``, else ``PythonSlicer`` on the path, else ``bin/PythonSlicer`` under Slicer's home.

    Parameters
    ----------
    python : str
        The setting ``MedXAI/WorkerPython``; empty where the user set none.
    slicer_home : str
        ``slicer.app.slicerHome``; empty outside Slicer.
    startup_environment : callable, optional
        ``slicer.util.startupEnvironment``: the environment Slicer was started with, for an interpreter that is not Slicer's.
    environment : dict, optional
        The environment of this process; by default ``os.environ`` (which is never changed).
    arguments : tuple of str
        For the worker.
    which : callable
        Finds a program on the path.

    Raises
    ------
    MedXAIError
        When there is no such interpreter.
    """
    name = "PythonSlicer.exe" if os.name == "nt" else "PythonSlicer"
    home = [str(Path(slicer_home, "bin", name))] if slicer_home else []
    if python:
        found = which(python)
        if found is None:
            raise MedXAIError(
                f"The worker's Python '{python}' does not exist or cannot be run; choose another one in MedXAI Models,"
                " section Environment.",
                kind="missing",
            )
    else:
        found = which("PythonSlicer") or next((p for p in home if which(p)), None)
        if found is None:
            raise MedXAIError(
                "PythonSlicer was not found; choose the worker's Python in MedXAI Models, section Environment.",
                kind="missing",
            )
    variables = dict(os.environ if environment is None else environment)
    if not _is_slicers(found, slicer_home):
        if startup_environment is not None:
            variables = dict(startup_environment())
        elif slicer_home:
            for one in _SLICERS_OWN:
                variables.pop(one, None)
    return Launch(found, (str(main_file()), *arguments), {**variables, **VARIABLES})


def _is_slicers(program: str, slicer_home: str) -> bool:
    path = Path(program).resolve()
    return path.stem.lower() == "pythonslicer" or (bool(slicer_home) and Path(slicer_home).resolve() in path.parents)
