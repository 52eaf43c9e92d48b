"""Folders that are complete or not there, tables and plain values."""

from __future__ import annotations

import csv
import errno
import math
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import MedXAIError


@contextmanager
def new_folder(folder):
    """A folder that is complete or not there: filled beside its place under another name, then renamed.

    Raises
    ------
    MedXAIError
        When it exists already, cannot be made, or the disk is full (``kind="disk"``).
    """
    check_new_folder(folder)
    folder = Path(folder).absolute()
    made = _missing_parents(folder.parent)
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}-", dir=folder.parent))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(folder)
        temporary = None
        made = []
    except OSError as error:
        raise disk_error(error, folder) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            try:
                parent.rmdir()
            except OSError:
                break


def check_new_folder(folder) -> None:
    """Refuse a bad output folder before hours are spent computing."""
    folder = Path(folder).absolute()
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # one may not look there, the name is too long, no name at all
        told = getattr(error, "strerror", None) or error
        raise MedXAIError(f"The output folder '{folder}' cannot be made: {told}; choose another one.") from None
    else:
        raise MedXAIError(f"The output folder '{folder}' exists already; choose a new name or remove it.")
    parent = folder.parent
    while not os.path.exists(parent):
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise MedXAIError(f"The output folder '{folder}' cannot be made: '{parent}' cannot be written to.")


def partial_of(folder) -> Path:
    """Where a work that outlives a stop keeps what is finished, until ``folder`` is complete."""
    folder = Path(folder).absolute()
    return folder.with_name(f".{folder.name}.partial")


@contextmanager
def alone(path, refusal: str):
    """Hold ``PATH.lock`` against other processes; the system lets it go when this one ends, however it ends.

    Raises
    ------
    MedXAIError
        ``refusal``, when another process holds it.
    """
    lock = Path(path).with_name(f"{Path(path).name}.lock")
    with lock.open("a") as file:
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MedXAIError(refusal) from None
        try:
            yield
        finally:
            if os.name != "nt":  # while it is held, so that nobody waits for a file without a name
                lock.unlink(missing_ok=True)
    if os.name == "nt":
        with suppress(OSError):
            lock.unlink()


def disk_error(error: OSError, where) -> MedXAIError:
    """An operating-system error in words a person can act on."""
    full = (
        error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if hasattr(errno, "EDQUOT")
        else error.errno == errno.ENOSPC
    )
    if full:
        return MedXAIError(f"The disk is full while writing '{where}'; free some space and run again.", kind="disk")
    return MedXAIError(f"'{where}' cannot be written: {error.strerror or error}.", kind="disk")


def _missing_parents(folder: Path) -> list[Path]:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    return missing


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_csv(path: Path, columns: dict) -> None:
    """One column per entry; an undefined number is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(columns)
        for row in zip(*columns.values()):
            out.writerow([_cell(value) for value in row])


def _cell(value):
    if isinstance(value, str):
        return value
    value = float(value)
    if math.isnan(value):
        return ""
    return int(value) if value.is_integer() and abs(value) < 2**53 else repr(value)


def plain(value):
    """A value as JSON knows it: numpy numbers become numbers, NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
