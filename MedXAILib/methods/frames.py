"""The steps that are kept for scrubbing: the changed box only, thinned evenly to a byte budget. And those whose features wait."""

from __future__ import annotations

import tempfile

import numpy as np

from ..explanation import Patch, Sequence
from ..volume import Volume


class Frames:
    """Image and mask patches of each step.

    When they outgrow ``budget`` bytes, every second one is dropped and from then on only every 2nd, 4th, 8th… step is kept;
    the first and the last always are.
    """

    def __init__(self, volume: Volume, budget: int):
        self.volume, self.budget = volume, budget
        self.kept: dict[int, tuple[Patch, Patch | None]] = {}
        self.stride, self.size, self.last = 1, 0, None

    def add(self, step: int, image: Patch, mask: Patch | None) -> None:
        self.last = (step, image, mask)
        if step % self.stride:
            return
        self.kept[step] = (image, mask)
        self.size += _bytes(image, mask)
        while self.size > self.budget and len(self.kept) > 2:
            self.stride *= 2
            self.kept = {j: both for j, both in self.kept.items() if j % self.stride == 0}
            self.size = sum(_bytes(*both) for both in self.kept.values())

    def sequences(self) -> dict[str, Sequence]:
        """``steps`` and ``mask-steps``, each on one lattice: the smallest box that holds every kept frame."""
        step, image, mask = self.last
        kept = {**self.kept, step: (image, mask)}
        thinned = step + 1 - len(kept)
        images = [(j, self._volume(both[0], f"dream, step {j}")) for j, both in kept.items()]
        result = {"steps": Sequence("Dream", images, "image", "step", thinned)}
        masks = [both[1] for both in kept.values() if both[1] is not None]
        if masks:
            start = tuple(min(m.start[n] for m in masks) for n in range(3))
            stop = tuple(max(m.start[n] + m.array.shape[n] for m in masks) for n in range(3))
            items = []
            for j, (_, patch) in kept.items():
                array = np.zeros(tuple(b - a for a, b in zip(start, stop)), np.uint8)
                if patch is not None:
                    array[Patch(patch.array, tuple(p - a for p, a in zip(patch.start, start))).box] = patch.array
                items.append((j, self._volume(Patch(array, start), f"mask, step {j}")))
            result["mask-steps"] = Sequence("Predicted component", items, "mask", "step", thinned)
        return result

    def _volume(self, patch: Patch, name: str) -> Volume:
        matrix = self.volume.ijk_to_ras.copy()
        matrix[:3, 3] = self.volume.index_to_ras(patch.start)
        return Volume(patch.array, matrix, name, self.volume.unit)


class Waiting:
    """Image and mask of the steps whose features are filled in afterwards; beyond ``budget`` bytes in a temporary file."""

    def __init__(self, budget: int):
        self.budget, self.size, self.file = budget, 0, None
        self.kept: dict[
            int, tuple
        ] = {}  # step -> image and mask, or an image's place in the file and what is known of it

    def __contains__(self, step) -> bool:
        return step in self.kept

    def add(self, step: int, image: Volume, mask: Volume) -> None:
        self.size += image.array.nbytes + mask.array.nbytes
        if self.size > self.budget:
            try:
                if self.file is None:
                    self.file = tempfile.TemporaryFile()
                place = self.file.seek(0, 2)
                for array in (image.array, mask.array):
                    np.lib.format.write_array(self.file, array, allow_pickle=False)
                about = image.ijk_to_ras, image.name, image.unit
                self.kept[step] = (place, about)
                return
            except OSError:  # no room there: memory may still have some
                pass
        self.kept[step] = (image, mask)

    def __iter__(self):
        """(step, image, mask) in order."""
        for step, (image, mask) in self.kept.items():
            if isinstance(image, int):
                self.file.seek(image)
                image, mask = (Volume(np.lib.format.read_array(self.file), *mask) for _ in range(2))
            yield step, image, mask


def _bytes(image, mask) -> int:
    return image.array.nbytes + (0 if mask is None else mask.array.nbytes)
