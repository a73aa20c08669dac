"""Packing a known set of samples: best-fit decreasing, and the same with the work of the packs evened out.

Attention over a packed sequence costs in proportion to the sum of ``n²`` over its samples. Best-fit decreasing puts the
second-longest samples beside the longest, so that packs of equal tokens differ widely in that sum. ``balance=True``
spreads the longer samples over all packs first (worst fit) and fills up with the shorter ones (best fit).
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from tubelet.packing.bins import check_length

__all__ = ["pack_offline"]

_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Which shares of the samples, the longest first, balancing tries to spread over all packs."""


def pack_offline(lengths: Sequence[int], budget: int, *, balance: bool = False) -> list[list[int]]:
    """Group a known set of samples into packs of at most ``budget`` tokens by best-fit decreasing.

    Uses at most ``11/9 * optimal + 4`` packs (Johnson et al. 1974), in practice hardly more than
    ``ceil(sum(lengths) / budget)``. Equal lengths keep their order, so the result is deterministic.

    Args:
        lengths: tokens of each sample.
        budget: the most tokens one pack may hold.
        balance: even out the packs' sums of ``n²``, the work of attention. The packs are as many as without; the
            largest sum of ``n²`` and the variance of the sums are not larger.

    Returns:
        The packs; a pack lists the positions of its samples in ``lengths``, ascending.

    Raises:
        ValueError: ``budget`` below 1, a sample without tokens, or one longer than ``budget``.

    Example:
        >>> pack_offline([6, 5, 4, 3, 2], budget=10)
        [[0, 2], [1, 3, 4]]
        >>> pack_offline([6, 6, 3, 3, 3, 3], budget=12), pack_offline([6, 6, 3, 3, 3, 3], budget=12, balance=True)
        ([[0, 1], [2, 3, 4, 5]], [[1, 2, 5], [0, 3, 4]])
        >>> pack_offline([12], budget=10)
        Traceback (most recent call last):
        ...
        ValueError: sample 0 has 12 tokens, more than the budget of 10
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1 token, got {budget}")
    sizes = np.asarray(lengths if len(lengths) else [], dtype=None if len(lengths) else np.int64)
    if sizes.dtype.kind not in "iu" or sizes.ndim != 1:
        raise ValueError(f"lengths must be a list of whole numbers, got {sizes.dtype} of shape {sizes.shape}")
    sizes = sizes.astype(np.int64)
    bad = np.flatnonzero((sizes < 1) | (sizes > budget))
    if len(bad):
        check_length(int(bad[0]), int(sizes[bad[0]]), budget)
    order = np.argsort(-sizes, kind="stable")
    items = list(zip(order.tolist(), sizes[order].tolist(), strict=True))
    packs = _best_fit(items, budget)
    if balance and packs:
        packs = _balanced(items, sizes, budget, packs)
    for members in packs:
        members.sort()
    return packs


class _Rooms:
    """The packs by the room that is left in them: distinct rooms in order, and a stack of packs for each."""

    def __init__(self) -> None:
        self.sorted: list[int] = []
        self.packs: dict[int, list[int]] = {}

    def push(self, pack: int, room: int) -> None:
        """Add a pack; a full one is forgotten."""
        stack = self.packs.get(room)
        if stack is not None:
            stack.append(pack)
        elif room:
            insort(self.sorted, room)
            self.packs[room] = [pack]

    def pop(self, at: int) -> tuple[int, int]:
        """Take a pack of the ``at``-th smallest room: its number and its room."""
        room = self.sorted[at]
        stack = self.packs[room]
        pack = stack.pop()
        if not stack:
            del self.packs[room], self.sorted[at]
        return pack, room


def _best_fit(items: Sequence[tuple[int, int]], budget: int) -> list[list[int]]:
    """Each ``(sample, length)`` into the fullest pack with room, or into a new one."""
    packs: list[list[int]] = []
    rooms = _Rooms()
    for index, length in items:
        at = bisect_left(rooms.sorted, length)
        if at < len(rooms.sorted):
            pack, room = rooms.pop(at)
        else:
            pack, room = len(packs), budget
            packs.append([])
        packs[pack].append(index)
        rooms.push(pack, room - length)
    return packs


def _spread(items: Sequence[tuple[int, int]], budget: int, count: int, longest: int) -> list[list[int]] | None:
    """The first ``longest`` items each into the emptiest of ``count`` packs, the rest by best fit; None: no room."""
    packs: list[list[int]] = [[] for _ in range(count)]
    rooms = _Rooms()
    for pack in range(count):
        rooms.push(pack, budget)
    for place, (index, length) in enumerate(items):
        at = len(rooms.sorted) - 1 if place < longest else bisect_left(rooms.sorted, length)
        if not 0 <= at < len(rooms.sorted) or rooms.sorted[at] < length:
            return None
        pack, room = rooms.pop(at)
        packs[pack].append(index)
        rooms.push(pack, room - length)
    return packs


def _balanced(
    items: Sequence[tuple[int, int]], sizes: Int[np.ndarray, " n"], budget: int, packs: list[list[int]]
) -> list[list[int]]:
    """As many packs with as many of the longest samples spread as fit, or ``packs`` where none is more even."""
    most, spread = _work(packs, sizes)
    for share in _SHARES:
        found = _spread(items, budget, len(packs), round(share * len(items)))
        if found is None or not all(found):
            continue
        new_most, new_spread = _work(found, sizes)
        if new_most <= most and new_spread < spread:
            return found
    return packs


def _work(packs: list[list[int]], sizes: Int[np.ndarray, " n"]) -> tuple[int, float]:
    """The largest sum of ``n²`` over the packs, and the sum of the squares of these sums."""
    ends = np.cumsum([len(members) for members in packs])
    work = np.add.reduceat(sizes[np.concatenate(packs)] ** 2, np.append(0, ends[:-1]))
    return int(work.max()), float((work.astype(np.float64) ** 2).sum())
