"""The predicted component that holds a voxel, followed while only a box of the prediction changes."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..models.crop import Box


class Component:
    """Connected component (voxels that share a face) of a prediction, of which only a box ever changes.

    What lies outside the box is labelled once; each step labels the box alone and joins the two where they touch.

    Parameters
    ----------
    foreground : ndarray of bool
        The whole prediction at the start.
    box : Box
        Where it can change.
    point : tuple of int
        The voxel whose component is wanted; inside the box.
    """

    def __init__(self, foreground: np.ndarray, box: Box, point):
        self.box, self.point = box, point
        self.whole = foreground.copy()
        self.inner = tuple(slice(a, b) for a, b in zip(box.start, box.stop))
        outside = self.whole.copy()
        outside[self.inner] = False
        self.outside, self.count = ndimage.label(outside)
        self.extents = ndimage.find_objects(self.outside)

    def update(self, foreground: np.ndarray) -> tuple[Box, np.ndarray] | None:
        """The component for a new prediction inside the box.

        Returns
        -------
        (Box, ndarray of bool) or None
            The component's bounding box on the whole grid and the component within it; None when the voxel is background.
        """
        self.whole[self.inner] = foreground
        labels, _ = ndimage.label(foreground)
        mine = labels[tuple(p - a for p, a in zip(self.point, self.box.start))]
        if not mine:
            return None
        inner, outer = {int(mine)}, set()
        if self.count:
            pairs = self._touching(labels)
            grew = bool(len(pairs))
            while grew:
                new = {o for i, o in pairs if i in inner} | outer
                more = {i for i, o in pairs if o in new} | inner
                grew = new != outer or more != inner
                inner, outer = more, new
        boxes = [
            Box(
                tuple(s.start + a for s, a in zip(place, self.box.start)),
                tuple(s.stop + a for s, a in zip(place, self.box.start)),
            )
            for label, place in enumerate(ndimage.find_objects(labels), 1)
            if label in inner
        ]
        boxes += [
            Box(tuple(s.start for s in e), tuple(s.stop for s in e)) for e in (self.extents[o - 1] for o in outer)
        ]
        found = Box(tuple(map(min, zip(*(b.start for b in boxes)))), tuple(map(max, zip(*(b.stop for b in boxes)))))
        part = tuple(slice(a, b) for a, b in zip(found.start, found.stop))
        mask = np.isin(self.outside[part], list(outer)) if outer else np.zeros(found.shape, bool)
        # The overlap of the two boxes, in the coordinates of each.
        low = tuple(map(max, zip(found.start, self.box.start)))
        high = tuple(map(min, zip(found.stop, self.box.stop)))
        here = tuple(slice(a - f, b - f) for a, b, f in zip(low, high, found.start))
        there = tuple(slice(a - f, b - f) for a, b, f in zip(low, high, self.box.start))
        ours = labels[there] == mine if len(inner) == 1 else np.isin(labels[there], list(inner))
        mask[here] |= ours
        return found, mask

    def _touching(self, labels) -> list[tuple[int, int]]:
        """Pairs (label inside, label outside) that share a face across the border of the box."""
        pairs = set()
        for axis, (a, b, n) in enumerate(zip(self.box.start, self.box.stop, self.whole.shape)):
            for edge, beyond in ((0, a - 1), (-1, b)):
                if 0 <= beyond < n:
                    near = labels.take(edge, axis=axis)
                    far = self.outside[(*self.inner[:axis], beyond, *self.inner[axis + 1 :])]
                    both = (near > 0) & (far > 0)
                    pairs.update(zip(near[both].tolist(), far[both].tolist()))
        return list(pairs)
