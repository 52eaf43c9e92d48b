"""What a run needs of the application, where there is one: headless tests and notebooks run without."""

from __future__ import annotations

from contextlib import contextmanager

try:
    from slicer.i18n import tr
except ImportError:  # Slicer's libraries alone

    def tr(text: str) -> str:
        """The text itself."""
        return text


def application():
    """Slicer's application object; None where there is none."""
    import slicer

    return getattr(slicer, "app", None)


@contextmanager
def waitCursor():
    """Show the wait cursor; it goes also when something fails."""
    app = application()
    if app is None:
        yield
        return
    import qt

    app.setOverrideCursor(qt.Qt.WaitCursor)
    try:
        yield
    finally:
        app.restoreOverrideCursor()


def later(function) -> None:
    """Call ``function`` once the event loop has finished what it is doing."""
    import qt

    qt.QTimer.singleShot(0, function)
