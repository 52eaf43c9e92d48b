"""Words for a run, without any Qt: time left, and diagnostics that hold no patient data."""

from __future__ import annotations

import os
import platform
import re


def timeLeft(seconds: float | None) -> str:
    """``about 2 min left``; empty while it is not known."""
    if seconds is None or not seconds >= 0 or seconds == float("inf"):
        return ""
    if seconds < 10:
        return "a few seconds left"
    if seconds < 90:
        return f"about {round(seconds / 5) * 5:.0f} s left"
    if seconds < 5400:
        return f"about {round(seconds / 60):.0f} min left"
    return f"about {seconds / 3600:.1f} h left"


def duration(seconds: float) -> str:
    """``12.3 s`` or ``3 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def withoutNames(text: str, names) -> str:
    """The text with every private name (volumes, segments, patients) and the home folder taken out."""
    for number, name in enumerate(sorted({n for n in names if n and n.strip()}, key=len, reverse=True), 1):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", f"<name {number}>", text)
    home = os.path.expanduser("~")
    return text.replace(home, "~") if len(home) > 1 else text


def diagnostics(facts: dict, log, names=()) -> str:
    """One block of text to paste into a report: versions, device, packages, the last lines of the log.

    Parameters
    ----------
    facts : dict
        Title to text or number, in the order shown.
    log : list of str
        Lines of the log, oldest first; the last fifty are taken.
    names : iterable of str
        Names of nodes and files, which may be a patient's: left out.
    """
    lines = ["MedXAI diagnostics (no patient data)", f"system: {platform.platform()}"]
    lines += [f"{title}: {value}" for title, value in facts.items() if value not in (None, "")]
    lines += ["log:"] + ["  " + line for line in list(log)[-50:]]
    return withoutNames("\n".join(lines), names)
