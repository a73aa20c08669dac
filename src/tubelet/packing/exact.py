"""Filling packs to the last token: where two of the samples left fill a pack's room exactly, they do.

The packs are filled one after another with the longest sample that fits, as first-fit decreasing does. Among some
thousand samples nearly every room is the sum of two of their lengths (a search for the least slack, as in Gupta and
Ho's minimum bin slack heuristic, 1999, of two samples only), so that what is lost is lost in the last packs.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

__all__ = ["Remaining", "filled"]

_LONGEST = 1 << 20
"""Pairs are looked for among lengths up to this: a table holds every length."""


class Remaining:
    """Samples not yet placed, by length.

    Args:
        items: ``(sample, length)``; of equal lengths the first are taken first.

    Example:
        >>> left = Remaining([(0, 5), (1, 3), (2, 2)])
        >>> left.pair(8), left.pair(6), left.longest(4)
        ((5, 3), None, 3)
        >>> left.take(5), left.longest(9)
        (0, 3)
    """

    def __init__(self, items: Sequence[tuple[int, int]]) -> None:
        self._samples: dict[int, list[int]] = {}
        for index, length in reversed(items):
            self._samples.setdefault(length, []).append(index)
        self._lengths = sorted(self._samples)
        self._top = self._lengths[-1] if items else 0
        self._table = np.zeros(self._top + 1 if self._top <= _LONGEST else 0, dtype=bool)
        self._table[self._lengths if len(self._table) else []] = True

    def __bool__(self) -> bool:
        return bool(self._lengths)

    def take(self, length: int) -> int:
        """A sample of that length."""
        samples = self._samples[length]
        index = samples.pop()
        if not samples:
            del self._samples[length], self._lengths[bisect_left(self._lengths, length)]
            if len(self._table):
                self._table[length] = False
        return index

    def longest(self, room: int) -> int | None:
        """The longest length that fits."""
        at = bisect_right(self._lengths, room)
        return self._lengths[at - 1] if at else None

    def pair(self, room: int) -> tuple[int, int] | None:
        """Two lengths whose sum is ``room``, as unequal as can be: what is long is hardest to place later."""
        if not len(self._table) or not self._lengths:
            return None
        least, half = max(self._lengths[0], room - self._top), room // 2
        if least > half:
            return None
        hits = self._table[least : half + 1] & self._table[room - half : room - least + 1][::-1]
        if 2 * half == room and hits[-1] and len(self._samples[half]) < 2:
            hits[-1] = False
        at = int(hits.argmax())
        return (room - least - at, least + at) if hits[at] else None


def filled(remaining: Remaining, room: int, *, empty: bool) -> list[int]:
    """Take from ``remaining`` what fills a pack with ``room`` tokens left; an ``empty`` pack begins with the longest.

    Example:
        >>> left = Remaining([(0, 9), (1, 7), (2, 6), (3, 3), (4, 1)])
        >>> filled(left, 16, empty=True), filled(left, 10, empty=True)
        ([0, 1], [2, 3, 4])
    """
    members: list[int] = []
    while length := remaining.longest(room):
        pair = None if length == room or (empty and not members) else remaining.pair(room)
        for part in pair or (length,):
            members.append(remaining.take(part))
            room -= part
    return members
