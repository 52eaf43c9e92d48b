"""A wait cursor for what takes a moment."""

from contextlib import contextmanager


@contextmanager
def waitCursor():
    """Show the wait cursor; it goes also when something fails."""
    import qt
    import slicer

    slicer.app.setOverrideCursor(qt.Qt.WaitCursor)
    try:
        yield
    finally:
        slicer.app.restoreOverrideCursor()
