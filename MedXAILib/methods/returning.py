"""What a back-projection and its checks share: scores of filters, and filters on their way back in batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..models.backward import Recording
from ..settings import BackprojectSettings

#: Bytes of signals that a processor sends back fastest, measured: more at once leave its caches.
_CACHED = 64 * 2**20


def score(activation, kind: str) -> np.ndarray:
    """The score of every filter, shape (filters,): the largest value, the sum or the mean of its activation map (1, filters, *low)."""
    maps = activation[0].flatten(1).double()
    found = maps.amax(1) if kind == "max" else maps.sum(1) if kind == "sum" else maps.mean(1)
    return found.cpu().numpy()


def batch_of(recording: Recording, filters: int, settings: BackprojectSettings) -> int:
    """How many filters to send back at once: as the memory budget allows, and on a processor as its caches like."""
    budget = settings.memory_budget * 2**20
    if recording.x.device.type == "cpu":
        budget = min(budget, _CACHED)
    return max(1, min(filters, budget // max(1, recording.bytes_per_filter())))


def returned(recording: Recording, filters: Sequence[int], batch: int):
    """Send filters back, ``batch`` at once; yields (share done, None), and (share done, (number of the first, signals)) when some are back.

    Signals have shape (n, *spatial): what arrives at the image, summed over its channels.
    """
    for start in range(0, len(filters), batch):
        some = filters[start : start + batch]
        sending = recording.send(some)
        while True:
            try:
                done = next(sending)
            except StopIteration as end:
                yield (start + len(some)) / len(filters), (start, end.value.sum(1))
                break
            yield (start + done * len(some)) / len(filters), None
