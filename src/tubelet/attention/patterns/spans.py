"""One axis of a grid cut into stretches of queries, each with its stretch of keys.

Most patterns are products over the axes: the keys of a box of queries are a box. A :class:`Span` is one side of such a
pair of boxes, a list of spans a whole axis; :mod:`tubelet.attention.plan` multiplies the three lists of a grid.
"""

import itertools
from typing import NamedTuple

__all__ = ["Axes", "Span", "causal", "singles", "sliding", "tiled", "whole", "windows"]

Mask = tuple[tuple[bool, ...], ...]


class Span(NamedTuple):
    """``nq`` queries from ``q`` attend the ``nk`` keys from ``k``, or those that ``mask[query][key]`` allows.

    Example:
        >>> Span(2, 1, 0, 3)  # the third frame attends itself and the two before
        Span(q=2, nq=1, k=0, nk=3, mask=None)
    """

    q: int
    nq: int
    k: int
    nk: int
    mask: Mask | None = None


Axes = tuple[list[Span], list[Span], list[Span]]
"""The spans along t, h and w. Each axis covers every query once."""


def whole(length: int) -> list[Span]:
    """Everything attends everything: ``length`` queries and keys.

    Example:
        >>> whole(3)
        [Span(q=0, nq=3, k=0, nk=3, mask=None)]
    """
    return [Span(0, length, 0, length)]


def singles(length: int) -> list[Span]:
    """Each place attends itself.

    Example:
        >>> singles(2)
        [Span(q=0, nq=1, k=0, nk=1, mask=None), Span(q=1, nq=1, k=1, nk=1, mask=None)]
    """
    return [Span(i, 1, i, 1) for i in range(length)]


def windows(length: int, size: int, shift: int) -> list[Span]:
    """Windows of ``size`` with a border at ``shift``; ragged at both ends. An axis within one window is not shifted.

    Example:
        >>> [(span.q, span.nq) for span in windows(7, 3, 1)]
        [(0, 1), (1, 3), (4, 3)]
    """
    first = shift % size if length > size else 0
    edges = sorted({0, *range(first, length, size), length})
    return [Span(a, b - a, a, b - a) for a, b in itertools.pairwise(edges)]


def causal(length: int, window: int | None) -> list[Span]:
    """Each place attends itself and those before it, at most ``window`` in all.

    Example:
        >>> [(span.k, span.nk) for span in causal(3, 2)]
        [(0, 1), (0, 2), (1, 2)]
    """
    first = [0 if window is None else max(0, i - window + 1) for i in range(length)]
    return [Span(i, 1, lo, i + 1 - lo) for i, lo in enumerate(first)]


def sliding(length: int, window: int, is_causal: bool, tile: int) -> list[Span]:
    """``tile`` queries at a time, the union of their windows, and which of its keys each one attends.

    Example:
        >>> sliding(4, 3, False, 2)[0]
        Span(q=0, nq=2, k=0, nk=3, mask=None)
    """
    ranges = [_range(i, length, window, is_causal) for i in range(length)]
    spans: list[Span] = []
    masks: dict[tuple[tuple[int, int], ...], Mask | None] = {}  # nearly all tiles are alike: one mask serves them
    for a in range(0, length, tile):
        part = ranges[a : a + tile]
        lo, hi = part[0][0], part[-1][1]
        seen = tuple((x - lo, y - lo) for x, y in part)
        if seen not in masks:
            masks[seen] = _mask(seen, hi - lo)
        spans.append(Span(a, len(part), lo, hi - lo, masks[seen]))
    return spans


def _mask(seen: tuple[tuple[int, int], ...], width: int) -> Mask | None:
    """Which of ``width`` keys each query attends, from its first and last one; None where that is all."""
    if all(each == (0, width) for each in seen):
        return None
    return tuple((False,) * x + (True,) * (y - x) + (False,) * (width - y) for x, y in seen)


def tiled(length: int, window: int, tile: int) -> list[Span]:
    """Tiles of ``tile`` that attend the ``window // tile`` tiles around them, slid inside at the borders.

    Example:
        >>> [(span.k, span.nk) for span in tiled(8, 6, 2)]
        [(0, 6), (0, 6), (2, 6), (2, 6)]
    """
    count = -(-length // tile)
    spans = []
    for i in range(count):
        first, last = _range(i, count, window // tile, False)
        a, lo = i * tile, first * tile
        spans.append(Span(a, min(tile, length - a), lo, min(last * tile, length) - lo))
    return spans


def _range(i: int, length: int, window: int, is_causal: bool) -> tuple[int, int]:
    """The keys ``[first, last)`` of place ``i``."""
    if is_causal:
        return max(0, i - window + 1), i + 1
    first = min(max(0, i - window // 2), max(0, length - window))
    return first, min(first + window, length)
