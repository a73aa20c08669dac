"""How many (query, key) pairs a pattern attends, exactly: what FLOPs and densities are counted from.

Every pair with a text token is asked of the pattern's own predicate. Pairs of grid tokens are counted by what the
pattern is:

- *separable* (one condition on t, one on h and one on w, all of which must hold): each condition is asked along its own
  axis and the counts are multiplied; a token attends itself, so that along one axis the others drop out;
- a partition, which says its ``group(tokens)``: the sum of the squares of the groups' sizes;
- a union: ``|a| + |b| - |a & b|``; a split of the heads: its parts;
- anything else: one by one, a block of queries at a time.

No n² is ever held.

Shapes: predicates are asked on ``(heads or 1, queries, keys)``.
"""

from collections.abc import Hashable
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from tubelet.layout import Grid, LayoutIndex, TokenInfo, TokenLayout
from tubelet.protocols import Pattern

__all__ = ["count_pairs", "flops", "moved_bytes"]

_SEPARABLE = frozenset({"Joint", "Spatial", "Temporal", "Window", "Neighborhood", "SlidingTile", "FrameCausal"})
"""Classes of :mod:`tubelet.attention.patterns` that are one condition per axis; a test compares each with its mask."""

_BLOCK = 1 << 22
"""How many pairs are asked at once."""


def count_pairs(
    pattern: Pattern,
    layout: TokenLayout | LayoutIndex,
    heads: int,
    device: str = "cpu",
    kv_layout: TokenLayout | LayoutIndex | None = None,
) -> int:
    """The number of pairs over all samples and heads of one call.

    Args:
        pattern: any; its predicate is what counts.
        layout: where the samples lie; a sample that occurs again is counted once and multiplied.
        heads: query heads.
        device: where predicates are asked.
        kv_layout: where the keys of the same samples lie, in cross-attention; None means that they are the queries.

    Raises:
        ValueError: the layouts hold different numbers of samples.

    Example:
        >>> from tubelet.attention import Joint
        >>> count_pairs(Joint(), TokenLayout.packed([Grid(1, 2, 2), Grid(1, 1, 3)]), heads=2)
        50
    """
    samples = _samples(layout)
    once: Any = isinstance(pattern, Hashable)
    if kv_layout is None:
        count: Any = _count_sample if once else _count_sample.__wrapped__
        counts: list[int] = [count(pattern, *sample, heads, device) for sample in samples]
        return sum(counts)
    others = _samples(kv_layout)
    if len(samples) != len(others):
        raise ValueError(f"layout has {len(samples)} samples, but kv_layout has {len(others)}")
    between: Any = _count_between if once else _count_between.__wrapped__
    crossed: list[int] = [between(pattern, *pair, heads, device) for pair in zip(samples, others, strict=True)]
    return sum(crossed)


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


_Sample = tuple[Grid | None, int, tuple[int, ...] | None]
"""A sample's grid, its tokens of text, and which of both were kept (None: all)."""


def _samples(layout: TokenLayout | LayoutIndex) -> list[_Sample]:
    if isinstance(layout, TokenLayout):
        return list(zip(layout.grids, layout.text_lengths, layout.kept or (None,) * len(layout.grids), strict=True))
    found: list[_Sample] = []
    kept = None if layout.kept is None else layout.kept.tolist()
    for _, length, text, *sides in layout.table[: layout.samples].tolist():
        own, kept = (None, None) if kept is None else (tuple(kept[:length]), kept[length:])
        found.append((Grid(*sides) if all(sides) else None, text, own))
    return found


def _info(sample: _Sample, device: str) -> TokenInfo:
    grid, text, kept = sample
    whole = TokenLayout((grid,), (text,), text + (grid.tokens if grid else 0), False)
    return (whole if kept is None else whole.keep(kept)).on(device).info()


@lru_cache(maxsize=256)
def _count_between(pattern: Any, queries: _Sample, keys: _Sample, heads: int, device: str) -> int:
    """Pairs of the queries of one sample with the keys of another stream of it."""
    q, k = _info(queries, device), _info(keys, device)
    if _kind(pattern) == "Joint":
        return heads * len(q.kind) * len(k.kind)
    return _asked(pattern, q, k, heads)


@lru_cache(maxsize=256)
def _count_sample(
    pattern: Pattern, grid: Grid | None, text: int, kept: tuple[int, ...] | None, heads: int, device: str
) -> int:
    if kept is not None or grid is None:
        info = _info((grid, text, kept), device)
        if _kind(pattern) == "Joint":
            return heads * len(info.kind) ** 2
        return _asked(pattern, info, info, heads)
    info = TokenLayout.packed([grid], [text]).on(device).info()
    words, cells = _part(info, slice(0, text)), _part(info, slice(text, None))
    with_text = _asked(pattern, words, info, heads) + _asked(pattern, cells, words, heads) if text else 0
    return with_text + _grid_pairs(pattern, grid, cells, heads)


def _grid_pairs(pattern: Any, grid: Grid, cells: TokenInfo, heads: int) -> int:
    """Pairs of two grid tokens."""
    kind = _kind(pattern)
    if kind == "HeadSplit":
        parts = zip(pattern.patterns, pattern.heads, strict=True)
        return sum(_grid_pairs(part, grid, cells, count) for part, count in parts)
    if kind == "Either" and _separable(pattern.a) and _separable(pattern.b):
        a, b, both = (_product(each, grid, cells) for each in (pattern.a, pattern.b, pattern.a & pattern.b))
        return heads * (a + b - both)
    if _separable(pattern):
        return heads * _product(pattern, grid, cells)
    if callable(getattr(pattern, "group", None)):
        sizes = pattern.group(cells).unique(return_counts=True)[1]
        return heads * int(sizes.square().sum())
    return _asked(pattern, cells, cells, heads)


def _product(pattern: Pattern, grid: Grid, cells: TokenInfo) -> int:
    """Pairs of one head of a separable pattern."""
    lines = [_line(cells, axis, side) for axis, side in enumerate((grid.t, grid.h, grid.w))]
    return prod(_asked(pattern, line, line, 1) for line in lines)


def _separable(pattern: Any) -> bool:
    kind = _kind(pattern)
    if kind == "VideoOnly":  # of an image one condition per axis, too: the same place
        return _separable(pattern.pattern)
    return kind in _SEPARABLE or (kind == "Both" and _separable(pattern.a) and _separable(pattern.b))


def _kind(pattern: Any) -> str:
    """The class's name, for the library's own patterns."""
    kind = type(pattern)
    return kind.__name__ if kind.__module__.startswith("tubelet.attention.patterns") else ""


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
