"""An empty page to draw on; matplotlib is needed for nothing else."""

from __future__ import annotations

from ..errors import MedXAIError


def new_figure(width: float, height: float, what: str = "page"):
    """A matplotlib figure of so many inches, 100 pixels each, that is drawn without a display.

    Raises
    ------
    MedXAIError
        ``kind="missing"`` without matplotlib: the ``what`` needs it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MedXAIError(
            f"The {what} needs matplotlib; install it with 'pip install matplotlib'.", kind="missing"
        ) from None
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure
