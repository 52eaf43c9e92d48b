"""Files that are read at run time: sample models, colour tables. In the source tree, in a wheel and inside Slicer."""

from pathlib import Path

from .errors import MedXAIError


def path(name: str) -> Path:
    """Where the resource ``name`` (such as ``Models/liver-phantom``) lies; refused when it is not installed."""
    here = Path(__file__).resolve().parent
    for root in (here / "Resources", here.parent / "Resources"):
        if (root / name).exists():
            return root / name
    raise MedXAIError(f"The resource '{name}' is not installed; install MedXAI again.", kind="missing")
