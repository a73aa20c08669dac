"""Packing a known set of samples: best-fit decreasing, fuller packs where that misses the bound, and even work.

Best-fit decreasing comes near ``ceil(sum(lengths) / budget)`` packs. Where it is not at that bound, the packs are also
filled one by one (:mod:`tubelet.packing.exact`), and the fewer are taken.

Attention over a packed sequence costs in proportion to the sum of ``n²`` over its samples. Best-fit decreasing puts the
second-longest samples beside the longest, so that packs of equal tokens differ widely in that sum. ``balance=True``
spreads the longer samples over all packs first (worst fit) and fills up with the shorter ones.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from tubelet.packing.bins import check_length
from tubelet.packing.exact import Remaining, filled

__all__ = ["pack_offline"]

_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Which shares of the samples, the longest first, balancing tries to spread over all packs."""


def pack_offline(
    lengths: Sequence[int] | Int[np.ndarray, " n"], budget: int, *, balance: bool = False
) -> list[list[int]]:
    """Group a known set of samples into packs of at most ``budget`` tokens.

    By best-fit decreasing; where that takes more packs than ``ceil(sum(lengths) / budget)``, each pack is also filled
    by itself, its last room by two samples that fill it exactly where there are such, and the fewer packs are taken.
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
        ([[0, 1], [2, 3, 4, 5]], [[0, 2, 4], [1, 3, 5]])
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
    if len(packs) * budget - int(sizes.sum()) >= budget:  # more than the tokens need
        packs = min(packs, _one_by_one(items, budget), key=len)
    if balance and packs:
        packs = _balanced(items, sizes, budget, packs)
    for members in packs:
        members.sort()
    return packs


def _best_fit(items: Sequence[tuple[int, int]], budget: int) -> list[list[int]]:
    """Each ``(sample, length)`` into the fullest pack with room; packs are opened as needed."""
    packs: list[list[int]] = []
    rooms: list[int] = []  # the distinct rooms in order, and below a stack of packs for each
    stacks: dict[int, list[int]] = {}
    for index, length in items:
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            stack = stacks[room]
            pack = stack.pop()
            if not stack:
                del rooms[at], stacks[room]
        else:
            pack, room = len(packs), budget
            packs.append([])
        packs[pack].append(index)
        room -= length
        if room in stacks:
            stacks[room].append(pack)
        elif room:
            insort(rooms, room)
            stacks[room] = [pack]
    return packs


def _one_by_one(items: Sequence[tuple[int, int]], budget: int) -> list[list[int]]:
    """Packs filled one after another."""
    remaining, packs = Remaining(items), []
    while remaining:
        packs.append(filled(remaining, budget, empty=True))
    return packs


def _spread(items: Sequence[tuple[int, int]], budget: int, count: int, longest: int) -> list[list[int]] | None:
    """``count`` packs: the first ``longest`` items each into the emptiest, then filled up; None if one has no place."""
    packs: list[list[int]] = [[] for _ in range(count)]
    rooms = [(-budget, pack) for pack in range(count)]  # a heap, the emptiest first
    for index, length in items[:longest]:
        room, pack = rooms[0]
        if -room < length:
            return None
        packs[pack].append(index)
        heapq.heapreplace(rooms, (room + length, pack))
    remaining = Remaining(items[longest:])
    for room, pack in sorted(rooms):
        packs[pack] += filled(remaining, -room, empty=not packs[pack])
    return None if remaining else packs


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
