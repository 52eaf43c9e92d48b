"""The predicted component that holds a voxel, found by looking no farther than it reaches."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..models.crop import Box


class Component:
    """Connected component (voxels that share a face) of a prediction, of which only the box ``reach`` ever changes.

    Each step looks at a window around the component of the step before. A component that does not touch the window's edge is
    whole, whatever the prediction is beyond; one that does asks for a larger window, at most ``reach``. What lies outside of
    ``reach`` never changes: it is labelled once, when first needed, and joined where the two touch.

    Parameters
    ----------
    foreground : ndarray of bool
        The whole prediction at the start.
    reach : Box
        Where it can change.
    point : tuple of int
        The voxel whose component is wanted; inside ``reach``.
    """

    def __init__(self, foreground: np.ndarray, reach: Box, point):
        self.start, self.reach, self.point = foreground, reach, tuple(point)
        self.shape = foreground.shape
        self.outside = None

    def find(self, window: Box, foreground: np.ndarray) -> tuple[Box, np.ndarray] | bool | None:
        """The component for a new prediction inside a window that holds the voxel.

        Returns
        -------
        (Box, ndarray of bool), None or False
            The component's bounding box on the whole grid and the component within it; None when the voxel is background; False
            when the window is too small to tell.
        """
        labels, _ = ndimage.label(foreground)
        mine = int(labels[tuple(p - a for p, a in zip(self.point, window.start))])
        if not mine:
            return None
        if window != self.reach:
            place = ndimage.find_objects(labels)[mine - 1]
            for s, a, b, n in zip(place, window.start, window.stop, self.shape):
                if (s.start == 0 and a > 0) or (s.stop == b - a and b < n):
                    return False
            return _box(place, window.start), labels[place] == mine
        inner, outer = self._joined(labels, mine)
        boxes = [_box(p, window.start) for n, p in enumerate(ndimage.find_objects(labels), 1) if n in inner]
        boxes += [_box(self.extents[n - 1], (0,) * len(self.shape)) for n in outer]
        found = Box(tuple(map(min, zip(*(b.start for b in boxes)))), tuple(map(max, zip(*(b.stop for b in boxes)))))
        part = found.index[1:]
        mask = np.isin(self.outside[part], list(outer)) if outer else np.zeros(found.shape, bool)
        both = Box(tuple(map(max, zip(found.start, window.start))), tuple(map(min, zip(found.stop, window.stop))))
        mask[both.within(found).index[1:]] |= np.isin(labels[both.within(window).index[1:]], list(inner))
        return found, mask

    def _joined(self, labels, mine) -> tuple[set[int], set[int]]:
        """Labels inside and outside of ``reach`` that hang together with label ``mine`` inside."""
        inner, outer = {mine}, set()
        if self.outside is None:
            outside = self.start.copy()
            outside[self.reach.index[1:]] = False
            self.outside, self.count = ndimage.label(outside)
            self.extents = ndimage.find_objects(self.outside)
        pairs = self._touching(labels) if self.count else ()
        while True:
            new = outer | {o for i, o in pairs if i in inner}
            more = inner | {i for i, o in pairs if o in new}
            if new == outer and more == inner:
                return inner, outer
            inner, outer = more, new

    def _touching(self, labels) -> set[tuple[int, int]]:
        """Pairs (label inside, label outside) that share a face across the border of ``reach``."""
        pairs, inner = set(), self.reach.index[1:]
        for axis, (a, b, n) in enumerate(zip(self.reach.start, self.reach.stop, self.shape)):
            for edge, beyond in ((0, a - 1), (-1, b)):
                if 0 <= beyond < n:
                    near = labels.take(edge, axis=axis)
                    far = self.outside[(*inner[:axis], beyond, *inner[axis + 1 :])]
                    both = (near > 0) & (far > 0)
                    pairs.update(zip(near[both].tolist(), far[both].tolist()))
        return pairs


def _box(place, origin) -> Box:
    return Box(tuple(s.start + o for s, o in zip(place, origin)), tuple(s.stop + o for s, o in zip(place, origin)))
