"""Private folders for what travels between client and worker, and the removal of those a crash left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import weakref
from pathlib import Path

PREFIX = "medxai-"


class PrivateFolder:
    """A folder only this user can read, removed by `remove`, at the end of the process, or by the next one after a crash.

    Parameters
    ----------
    parent : path, optional
        By default the system's temporary folder.
    """

    def __init__(self, parent=None):
        parent = Path(parent or tempfile.gettempdir())
        parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        _lock(lock)
        self._end = weakref.finalize(self, _remove, self.path, lock)

    def remove(self) -> None:
        """Delete the folder and everything in it."""
        self._end()


def remove_abandoned(parent) -> list[Path]:
    """Delete the folders in ``parent`` whose owner has ended without doing so; returns which."""
    removed = []
    for folder in Path(parent).glob(PREFIX + "*"):
        try:
            if time.time() - os.stat(folder / "lock").st_mtime < 60:  # it may be just being made
                continue
            lock = os.open(folder / "lock", os.O_RDWR)
        except OSError:  # somebody else's
            continue
        try:
            _lock(lock)
        except OSError:  # its owner lives
            os.close(lock)
            continue
        _remove(folder, lock)
        removed.append(folder)
    return removed


def _remove(folder: Path, lock: int) -> None:
    os.close(lock)
    shutil.rmtree(folder, ignore_errors=True)


def _lock(fd: int) -> None:
    """Lock an open file for as long as it is open; OSError when another process has it."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
