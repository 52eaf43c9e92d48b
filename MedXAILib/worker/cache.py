"""What stays loaded between jobs: the least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable


class Cache:
    """Values by key, bounded in bytes. The newest value is kept even when it alone is larger.

    Parameters
    ----------
    limit : int
        Bytes.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._kept: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return sum(size for _, size in self._kept.values())

    def get(self, key: Hashable):
        """The value, now the most recently used; None when it is not here."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def room(self, size: int) -> None:
        """Let go of old values until ``size`` more bytes fit, or nothing is left. Called before a large value is made, so
        that the old and the new one are not both held."""
        while self._kept and self.bytes + size > self.limit:
            self._kept.popitem(last=False)

    def put(self, key: Hashable, value, size: int) -> None:
        """Keep a value of ``size`` bytes."""
        self._kept.pop(key, None)
        self.room(size)
        self._kept[key] = (value, size)

    def drop(self, where: Callable[[Hashable], bool]) -> None:
        """Forget every key for which ``where`` is true."""
        for key in [k for k in self._kept if where(k)]:
            del self._kept[key]

    def clear(self) -> int:
        """Forget everything; returns how many bytes that were."""
        size = self.bytes
        self._kept.clear()
        return size

    def __len__(self) -> int:
        return len(self._kept)
