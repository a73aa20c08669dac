"""How many (query, key) pairs a pattern attends, exactly: what FLOPs and densities are counted from.

Counting asks the pattern's own predicate. Every pair with a text token is asked. Pairs of grid tokens are asked one by
one, a block of queries at a time, unless the pattern is *separable*: one condition on t, one on h and one on w, all of
which must hold. Then a condition is asked along its own axis only, and the counts of the axes are multiplied: the
predicate of a token and itself is true, so that along one axis the others drop out. No n² is ever held.

Shapes: predicates are asked on ``(heads or 1, queries, keys)``.
"""

from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tubelet.layout import Grid, TokenInfo, TokenLayout
from tubelet.protocols import Pattern

__all__ = ["count_pairs", "flops", "moved_bytes"]

_SEPARABLE = frozenset({"Joint", "Spatial", "Temporal", "Window", "Neighborhood", "SlidingTile", "FrameCausal"})
"""Classes of :mod:`tubelet.attention.patterns` that are one condition per axis; a test compares each with its pairs."""

_BLOCK = 1 << 22
"""How many pairs are asked at once."""


def count_pairs(pattern: Pattern, layout: TokenLayout, heads: int, device: str = "cpu") -> int:
    """The number of pairs over all samples and heads of one call.

    Args:
        pattern: any; its predicate is what counts.
        layout: where the samples lie; a sample that occurs again is counted once and multiplied.
        heads: query heads.
        device: where predicates are asked.

    Example:
        >>> from tubelet.attention import Joint
        >>> count_pairs(Joint(), TokenLayout.packed([Grid(1, 2, 2), Grid(1, 1, 3)]), heads=2)
        50
    """
    kept = layout.kept or (None,) * len(layout.grids)
    samples = zip(layout.grids, layout.text_lengths, kept, strict=True)
    value: Any = pattern
    counts = [_count_sample(value, grid, text, places, heads, device) for grid, text, places in samples]
    return sum(counts)


def flops(pairs: int, head_dim: int, backward: bool) -> int:
    """Floating-point operations of the matrix products: 4 a pair and channel, and 2.5 times as many backward.

    Forward has two products (scores, output) of 2 operations; backward has five (the scores again, and the gradients
    of weights, values, queries and keys).

    Example:
        >>> flops(10, 8, backward=False), flops(10, 8, backward=True)
        (320, 1120)
    """
    forward = 4 * pairs * head_dim
    return forward + forward * 5 // 2 if backward else forward


def moved_bytes(tokens: int, heads: int, head_dim: int, itemsize: int, backward: bool) -> int:
    """The least traffic: q, k, v read and the output written once; backward reads 5 such tensors and writes 3.

    Example:
        >>> moved_bytes(10, 2, 8, 4, backward=False)
        2560
    """
    return (12 if backward else 4) * tokens * heads * head_dim * itemsize


@lru_cache(maxsize=256)
def _count_sample(
    pattern: Hashable, grid: Grid | None, text: int, kept: tuple[int, ...] | None, heads: int, device: str
) -> int:
    assert isinstance(pattern, Pattern)
    if kept is not None or grid is None:
        whole = TokenLayout((grid,), (text,), text + (grid.tokens if grid else 0), False)
        info = (whole if kept is None else whole.keep(kept)).on(device).info()
        return _asked(pattern, info, info, heads)
    info = TokenLayout.packed([grid], [text]).on(device).info()
    words, cells = _part(info, slice(0, text)), _part(info, slice(text, None))
    with_text = _asked(pattern, words, info, heads) + _asked(pattern, cells, words, heads) if text else 0
    return with_text + _grid_pairs(pattern, grid, cells, heads)


def _grid_pairs(pattern: Pattern, grid: Grid, cells: TokenInfo, heads: int) -> int:
    """Pairs of two grid tokens."""
    if not _separable(pattern):
        return _asked(pattern, cells, cells, heads)
    per_head = 1
    for axis, side in enumerate((grid.t, grid.h, grid.w)):
        line = _line(cells, axis, side)
        per_head *= _asked(pattern, line, line, 1)
    return heads * per_head


def _separable(pattern: Pattern) -> bool:
    kind = type(pattern)
    return kind.__module__.startswith("tubelet.attention.patterns") and kind.__name__ in _SEPARABLE


def _line(cells: TokenInfo, axis: int, side: int) -> TokenInfo:
    """The tokens along one axis from the grid's first corner, inside the whole extent."""
    coords = cells.coords.new_zeros(side, 3)
    coords[:, axis] = torch.arange(side, device=coords.device)
    first = _part(cells, slice(0, 1))
    return TokenInfo(coords, first.extent.expand(side, 3), first.kind.expand(side), first.sample.expand(side))


def _part(info: TokenInfo, where: slice) -> TokenInfo:
    return TokenInfo(*(field[where] for field in info))


def _asked(pattern: Pattern, q: TokenInfo, k: TokenInfo, heads: int) -> int:
    """Pairs by asking for each, a block of queries at a time."""
    queries, keys = q.kind.shape[0], k.kind.shape[0]
    if queries == 0 or keys == 0:
        return 0
    head = torch.arange(heads, device=q.kind.device)
    rows = max(1, _BLOCK // attended(pattern, _part(q, slice(0, 1)), k, head).numel())
    blocks = (_part(q, slice(start, start + rows)) for start in range(0, queries, rows))
    return sum(_true(attended(pattern, block, k, head), block.kind.shape[0] * keys * heads) for block in blocks)


def attended(pattern: Pattern, q: TokenInfo, k: TokenInfo, head: Tensor) -> Tensor:
    """The predicate of every query, key and head: booleans that broadcast to ``(heads, queries, keys)``."""
    q_side = TokenInfo(q.coords[:, None], q.extent[:, None], q.kind[:, None], q.sample[:, None])
    return pattern.attends(q_side, k, head.view(-1, 1, 1))


def _true(mask: Tensor, pairs: int) -> int:
    """The number of trues of a mask that stands for ``pairs`` pairs by broadcasting."""
    return int(mask.sum()) * (pairs // mask.numel())
