"""Exceptions in words for a person, and how much memory there is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..errors import MedXAIError


def explain_failure(error: BaseException) -> tuple[str, str, str, bool]:
    """``kind``, ``message`` and ``hint`` for a person, and whether it was meant as such (no traceback needed)."""
    if isinstance(error, MedXAIError):
        return error.kind, error.message, error.hint, True
    told = str(error)
    if isinstance(error, MemoryError) or _is_out_of_memory(error, told):
        hint = "Use a smaller volume or model, close other programs, or choose another device."
        return "memory", f"Memory ran out{_first_line(told)}.", hint, False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        where = f" ({error.filename})" if error.filename else ""
        hint = "Free some space on the disk of the temporary folder, or choose another temporary folder."
        return "disk", f"The disk is full{where}.", hint, False
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("MedXAILib"):
        message = f"The package '{error.name}' is not installed in the worker's Python."
        return "missing", message, "Install it in MedXAI Models, section Environment.", False
    message = f"The run stopped on an internal error ({type(error).__name__}{_first_line(told)})."
    return "crashed", message, "The log holds the details; please report it.", False


def _is_out_of_memory(error: BaseException, told: str) -> bool:
    """torch says it in several ways, and only a newer one has a class for it."""
    signs = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUBLAS_STATUS_ALLOC_FAILED",
    )
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and any(sign in told for sign in signs)
    )


def _first_line(told: str) -> str:
    line = told.strip().splitlines()[0].rstrip(".") if told.strip() else ""
    return f": {line[:300]}" if line else ""


def main_memory() -> dict:
    """``free_bytes`` and ``total_bytes`` of main memory, as far as the system tells without another package."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return {
            "free_bytes": int(lines["MemAvailable"].split()[0]) * 1024,
            "total_bytes": int(lines["MemTotal"].split()[0]) * 1024,
        }
    except (OSError, KeyError, ValueError):
        pass
    try:
        return {"total_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    except (AttributeError, OSError, ValueError):
        return {}
