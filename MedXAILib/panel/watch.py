"""Observing VTK objects without keeping them alive."""

from __future__ import annotations


class Watch:
    """Observes one object at a time.

    Slicer's `VTKObservationMixin` holds every object it ever observed; a subject hierarchy that is kept so outlives its scene,
    with items of nodes that are gone.

    Parameters
    ----------
    callback : callable
        Called with the object and the event's name.
    """

    def __init__(self, callback):
        self._callback = callback
        self.object = None
        self._tags = []

    def set(self, thing, *events):
        """Observe these events of ``thing`` from now on, and nothing else; None: nothing."""
        self.clear()
        if thing is not None:
            self.object = thing
            self._tags = [thing.AddObserver(event, self._callback) for event in events]

    def clear(self):
        """Observe nothing, hold nothing."""
        thing, self.object = self.object, None
        for tag in self._tags:
            thing.RemoveObserver(tag)
        self._tags = []
