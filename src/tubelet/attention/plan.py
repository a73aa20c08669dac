"""From a pattern and the host tables of layouts to *runs*: equal groups of queries with equal groups of keys.

The pairs of all runs together are the pairs that the predicate allows, each once. How they are found:

- a pattern with ``axes`` on whole grids gives affine tiles, and equal neighbouring samples are one more axis;
- a pattern with ``group`` on grids with dropped tokens gives lists of tokens, sorted by group;
- any other pattern is asked about every pair, a block of queries at a time, and what a block needs is listed.

A query that stands in several runs (the text beside its group, sinks beside its window) has its results merged by
their log-sum-exp. Plans are made on the host and remembered, so that a layer pays for a look-up.
"""

import itertools
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tubelet.attention.patterns import Joint
from tubelet.attention.patterns.spans import Span
from tubelet.attention.places import Affine, Listed, Places
from tubelet.layout import Grid, TokenInfo
from tubelet.layout.index import geometry
from tubelet.protocols import Pattern

__all__ = ["Plan", "Run", "Sample", "make_plan", "pieces"]

_LOOPED = 8
"""From how many groups on a call on views is worth more than a gather."""

_BLOCK = 128
"""How many queries are asked about at once where only the predicate is known."""

_REMEMBERED = 1 << 25
"""How many pairs a predicate is asked about once and for all; beyond, their masks would fill the memory: asked anew."""


Value = Any
"""A pattern; ``lru_cache`` wants to see that it is hashable, which no protocol says."""


class Sample(NamedTuple):
    """One row of a layout's host table: where a sample lies, and what it is (no grid: t = h = w = 0).

    Example:
        >>> Sample(start=0, length=14, text=2, t=3, h=2, w=2).grid
        Grid(t=3, h=2, w=2)
    """

    start: int
    length: int
    text: int
    t: int
    h: int
    w: int

    @property
    def grid(self) -> Grid | None:
        """The grid, if there is one."""
        return Grid(self.t, self.h, self.w) if self.t else None


Table = tuple[Sample, ...]


@dataclass(frozen=True, eq=False)
class Run:
    """Equal groups of queries and their keys; ``mask (1 | h, m, k)`` where not every pair counts.

    ``merge``: the queries have been in an earlier run, whose result this one's joins.

    Example:
        >>> row = Affine(0, (1,), (0,), (4,), (1,))
        >>> Run(row, row).q.length
        4
    """

    q: Places
    k: Places
    mask: Bool[Tensor, "_ m k"] | None = None
    merge: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """The runs of a request, how many different queries and how many keys they name, and whether results are merged.

    Runs that are asked anew each time (of a predicate on a long layout) leave the numbers at 0: nothing is promised.

    ``once``: no query and no key stands in two groups, so that gradients need no sums.

    Example:
        >>> make_plan(Joint(), torch.tensor([[0, 4, 0, 1, 2, 2]]).numpy().tobytes()).queries
        4
    """

    runs: Iterable[Run]
    queries: int
    keys: int
    merges: bool
    once: bool


def make_plan(
    pattern: Value,
    queries: bytes,
    keys: bytes | None = None,
    kept: bytes | None = None,
    kept_keys: bytes | None = None,
    *,
    heads: int = 1,
    limit: int = 1 << 60,
    views: bool = True,
) -> Plan:
    """The runs of a request, remembered where the pattern is a value.

    Args:
        pattern: what is attended.
        queries: the host table of the samples on the query axis, as int64 bytes (:class:`Sample` rows).
        keys: that of the key axis in cross-attention; None: the same.
        kept: canonical positions of the tokens of irregular layouts, end to end; None: whole samples.
        kept_keys: the same for ``keys``.
        heads: number of query heads, for predicates that read it.
        limit: how many tokens a run may gather, so that its copies stay in the cache.
        views: leave runs whole that can be read as views.

    Example:
        >>> table = torch.tensor([[0, 4, 0, 1, 2, 2], [4, 4, 0, 1, 2, 2]])
        >>> plan = make_plan(Joint(), table.numpy().tobytes())
        >>> [(run.q.groups, run.q.length) for run in plan.runs]
        [(2, 4)]
    """
    make = _remembered if _is_value(pattern) else _remembered.__wrapped__
    return make(pattern, queries, keys, kept, kept_keys, heads, limit, views)


def _is_value(pattern: object) -> bool:
    """Whether equal patterns are equal for good: known by their fields, not by what object they are.

    An object that is only equal to itself may change; its plan is made anew each time.
    """
    if type(pattern).__hash__ is object.__hash__:
        return False
    fields = getattr(pattern, "__dataclass_fields__", {})
    parts = itertools.chain.from_iterable(_parts(getattr(pattern, name)) for name in fields)
    return all(_is_value(part) for part in parts if isinstance(part, Pattern))


def _parts(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


@lru_cache(maxsize=128)
def _remembered(
    pattern: Value,
    queries: bytes,
    keys: bytes | None,
    kept: bytes | None,
    kept_keys: bytes | None,
    heads: int,
    limit: int,
    views: bool,
) -> Plan:
    with torch.device("cpu"):  # whatever the default device is: plans are the host's
        return _plan(pattern, queries, keys, kept, kept_keys, heads, limit, views)


def _plan(
    pattern: Value,
    queries: bytes,
    keys: bytes | None,
    kept: bytes | None,
    kept_keys: bytes | None,
    heads: int,
    limit: int,
    views: bool,
) -> Plan:
    tables = _table(queries), None if keys is None else _table(keys)
    whole = _whole(pattern, *tables, _places(kept), _places(kept_keys), heads)
    if isinstance(whole, _Asked) and whole.pairs > _REMEMBERED:
        return Plan(whole, queries=0, keys=0, merges=False, once=False)
    whole = tuple(whole)
    first = sum(run.q.groups * run.q.length for run in whole if not run.merge)
    runs = itertools.chain.from_iterable(pieces(run, limit, views) for run in whole)
    merges = any(run.merge for run in whole)
    keys_named = sum(run.k.groups * run.k.length for run in whole)
    once = not merges and _different([run.k for run in whole]) == keys_named
    return Plan(tuple(runs), first, keys_named, merges, once)


def _different(places: list[Places]) -> int:
    """How many different tokens are named."""
    named = torch.cat([torch.zeros(0, dtype=torch.long), *(side.index().flatten() for side in places)])
    return len(torch.bincount(named).nonzero())


def _table(data: bytes) -> Table:
    rows = struct.iter_unpack("=6q", data)
    return tuple(Sample(*row) for row in rows)


def _places(data: bytes | None) -> tuple[int, ...] | None:
    return None if data is None else struct.unpack(f"={len(data) // 8}q", data)


def _whole(
    pattern: Pattern,
    queries: Table,
    keys: Table | None,
    kept: tuple[int, ...] | None,
    kept_keys: tuple[int, ...] | None,
    heads: int,
) -> Iterable[Run]:
    """The runs, however large."""
    if isinstance(pattern, Joint) or (keys is not None and _text_only(pattern, keys)):
        return _segments(queries, queries if keys is None else keys)
    ruled = hasattr(pattern, "text_sees_grid")
    if keys is None and kept is None and ruled and _offers(pattern, "axes"):
        return _affine(pattern, queries)
    if keys is None and ruled and _offers(pattern, "group"):
        return _grouped(pattern, queries, kept)
    key_side = (queries, kept) if keys is None else (keys, kept_keys)
    return _Asked(pattern, queries, kept, *key_side, heads)


def pieces(run: Run, limit: int, views: bool) -> Iterator[Run]:
    """A run in parts that gather at most ``limit`` tokens, or one group; with ``views`` what reads as one stays whole.

    Example:
        >>> run = Run(Affine(0, (3,), (4,), (2,), (2,)), Affine(0, (3,), (4,), (2,), (2,)))
        >>> [part.q.start for part in pieces(run, 2, views=False)]
        [0, 4, 8]
    """
    count = run.q.count
    inner = run.q.groups // count[0]
    most = max(1, limit // max(run.q.length, run.k.length))
    readable = views and _one_axis(run)
    if readable and (len(count) == 1 or inner >= _LOOPED):
        if len(count) == 1:
            yield run
            return
        most = 0  # one element of the first axis at a time is a view
    if run.q.groups <= max(most, 1):
        yield run
    elif len(count) == 1 or inner <= most:
        step = max(1, most // inner)
        for first in range(0, count[0], step):
            yield replace(run, q=run.q.part(first, first + step), k=run.k.part(first, first + step))
    else:
        for first in range(count[0]):
            yield from pieces(replace(run, q=run.q.inside(first), k=run.k.inside(first)), limit, views)


def _one_axis(run: Run) -> bool:
    """Whether the items of a group lie at one distance, on both sides."""
    return all(isinstance(side, Affine) and len(side.sizes) == 1 for side in (run.q, run.k))


def _offers(pattern: Pattern, name: str) -> bool:
    """Whether a pattern offers more than its predicate, defined where the predicate is or after it."""
    order = type(pattern).__mro__
    owners = [next((i for i, cls in enumerate(order) if each in vars(cls)), len(order)) for each in (name, "attends")]
    return owners[0] <= owners[1] and owners[0] < len(order)


def _text_only(pattern: Pattern, keys: Table) -> bool:
    """Keys that every query of the sample attends: text, by the rule that patterns with ``text_sees_grid`` declare."""
    return _offers(pattern, "text_sees_grid") and all(sample.grid is None for sample in keys)


def _segments(queries: Table, keys: Table) -> Iterator[Run]:
    """All queries of a sample with all its keys; equal neighbours at equal distances together."""
    sides = ((a, b) for a, b in zip(queries, keys, strict=False) if a.length and b.length)
    pairs = ((a.start, a.length, b.start, b.length) for a, b in sides)
    for q, nq, k, nk, count, q_step, k_step in _joined(pairs):
        yield Run(Affine(q, (count,), (q_step,), (nq,), (1,)), Affine(k, (count,), (k_step,), (nk,), (1,)))


def _joined(rows: Iterable[tuple[int, int, int, int]]) -> Iterator[tuple[int, int, int, int, int, int, int]]:
    """Join neighbours of equal lengths at equal distances: ``(q, nq, k, nk)`` with ``(count, q_step, k_step)``."""
    held: list[int] = []
    for q, nq, k, nk in rows:
        if held and (held[1], held[3]) == (nq, nk):
            count, steps = held[4], (q - held[0], k - held[2])
            if count == 1 or steps == (count * held[5], count * held[6]):
                held[4:] = [count + 1, *(steps if count == 1 else held[5:])]
                continue
        if held:
            yield tuple(held)  # type: ignore[misc]
        held = [q, nq, k, nk, 1, nq, nk]
    if held:
        yield tuple(held)  # type: ignore[misc]


def _affine(pattern: Value, table: Table) -> Iterator[Run]:
    """The tiles of each sample, with equal neighbouring samples at equal distances as the first axis of groups."""
    runs: list[tuple[Sample, int, int]] = []
    for sample in table:
        if not sample.length:
            continue
        if runs and runs[-1][0][1:] == sample[1:]:
            first, count, step = runs[-1]
            if count == 1 or sample.start - first.start == count * step:
                runs[-1] = (first, count + 1, (sample.start - first.start) // count)
                continue
        runs.append((sample, 1, sample.length))
    for sample, count, step in runs:
        for run in _tiles(pattern, sample.text, sample.grid):
            yield _repeated(run, sample.start, count, step)


def _repeated(run: Run, start: int, count: int, step: int) -> Run:
    """The run of a sample at ``start``, and of those that follow it."""
    q, k = run.q, run.k
    assert isinstance(q, Affine) and isinstance(k, Affine)
    groups = [axis for axis in zip((count, *q.count), (step, *q.pitch), (step, *k.pitch), strict=True) if axis[0] > 1]
    joined: list[tuple[int, int, int]] = []
    for size, q_pitch, k_pitch in groups:  # an axis of groups that goes on where the next one ends is one with it
        if joined and joined[-1][1:] == (size * q_pitch, size * k_pitch):
            joined[-1] = (joined[-1][0] * size, q_pitch, k_pitch)
        else:
            joined.append((size, q_pitch, k_pitch))
    sizes, q_pitches, k_pitches = (tuple(axis) for axis in zip(*(joined or [(1, 0, 0)]), strict=True))
    return replace(
        run,
        q=Affine(start + q.start, sizes, q_pitches, q.sizes, q.strides).simplified(),
        k=Affine(start + k.start, sizes, k_pitches, k.sizes, k.strides).simplified(),
    )


def _tiles(pattern: Value, text: int, grid: Grid | None) -> tuple[Run, ...]:
    """The runs of one sample that starts at 0."""
    if grid is None:
        return (Run(_range(0, text), _range(0, text)),)
    tiles = [_moved(run, text) for run in _product(pattern.axes(grid), grid)]
    more = pattern.more_axes(grid) if hasattr(pattern, "more_axes") else None
    if more is not None:
        tiles += [replace(_moved(run, text), merge=True) for run in _product(more, grid)]
    if not text:
        return tuple(tiles)
    sees = text + (grid.tokens if pattern.text_sees_grid else 0)
    own = Run(_range(0, text), _range(0, sees))
    if all(_is_prefix(run, text) for run in tiles):
        return own, *(_with_text(run, text) for run in tiles)
    return own, *tiles, Run(_range(text, grid.tokens), _range(0, text), merge=True)


def _range(start: int, length: int) -> Affine:
    return Affine(start, (1,), (0,), (length,), (1,))


def _moved(run: Run, by: int) -> Run:
    assert isinstance(run.q, Affine) and isinstance(run.k, Affine)
    return replace(run, q=run.q.moved(by), k=run.k.moved(by))


def _is_prefix(run: Run, start: int) -> bool:
    """Whether the keys are the first tokens of the grid, in order and unmasked, so that the text before joins them."""
    assert isinstance(run.k, Affine)
    k = run.k.simplified()
    return run.mask is None and not run.merge and run.q.groups == 1 and k.start == start and k.strides == (1,)


def _with_text(run: Run, text: int) -> Run:
    assert isinstance(run.k, Affine)
    return replace(run, k=replace(run.k, start=0, sizes=(text + run.k.length,), strides=(1,)))


class _Strip(NamedTuple):
    """Equal spans of one axis at equal distances."""

    first: Span
    times: int
    q_pitch: int
    k_pitch: int


def _strips(spans: list[Span]) -> list[_Strip]:
    strips: list[_Strip] = []
    for span in spans:
        if strips:
            first, count, q_pitch, k_pitch = strips[-1]
            steps = (span.q - first.q, span.k - first.k)
            if (first.nq, first.nk, first.mask) == (span.nq, span.nk, span.mask) and (
                count == 1 or steps == (count * q_pitch, count * k_pitch)
            ):
                strips[-1] = _Strip(first, count + 1, steps[0] // count, steps[1] // count)
                continue
        strips.append(_Strip(span, 1, 0, 0))
    return strips


def _product(axes: tuple[list[Span], list[Span], list[Span]], grid: Grid) -> Iterator[Run]:
    """Boxes of queries with their boxes of keys, from the strips of the three axes."""
    steps = (grid.h * grid.w, grid.w, 1)
    for box in itertools.product(*(_strips(spans) for spans in axes)):
        count = tuple(s.times for s in box)
        q_pitch = tuple(s.q_pitch * step for s, step in zip(box, steps, strict=True))
        k_pitch = tuple(s.k_pitch * step for s, step in zip(box, steps, strict=True))
        q_start = sum(s.first.q * step for s, step in zip(box, steps, strict=True))
        k_start = sum(s.first.k * step for s, step in zip(box, steps, strict=True))
        yield Run(
            Affine(q_start, count, q_pitch, tuple(s.first.nq for s in box), steps),
            Affine(k_start, count, k_pitch, tuple(s.first.nk for s in box), steps),
            _box_mask([s.first for s in box]),
        )


def _box_mask(spans: list[Span]) -> Bool[Tensor, "1 m k"] | None:
    if all(span.mask is None for span in spans):
        return None
    t, h, w = (
        torch.ones(s.nq, s.nk, dtype=torch.bool) if s.mask is None else torch.tensor(s.mask, dtype=torch.bool)
        for s in spans
    )
    mask = t[:, None, None, :, None, None] & h[:, None, None, :, None] & w[:, None, None, :]
    return mask.reshape(1, t.shape[0] * h.shape[0] * w.shape[0], -1)


def _tokens(sample: Sample, number: int, kept: tuple[int, ...] | None) -> TokenInfo:
    """What a predicate sees of the tokens of sample ``number``, on the host."""
    position = torch.arange(sample.length) if kept is None else torch.tensor(kept, dtype=torch.long)
    sides = torch.tensor([sample[3:]]).expand(len(position), 3)
    return geometry(position, torch.full_like(position, sample.text), sides, torch.full_like(position, number))


def _per_sample(table: Table, kept: tuple[int, ...] | None) -> Iterator[tuple[Sample, TokenInfo]]:
    """Each sample with what its tokens are."""
    ends = list(itertools.accumulate(sample.length for sample in table))
    for number, (sample, end) in enumerate(zip(table, ends, strict=True)):
        yield sample, _tokens(sample, number, None if kept is None else kept[end - sample.length : end])


def _grouped(pattern: Value, table: Table, kept: tuple[int, ...] | None) -> Iterator[Run]:
    """Lists of tokens by group, equal lengths together; then the text."""
    for sample, info in _per_sample(table, kept):
        if not sample.length:
            continue
        places = torch.arange(sample.length) + sample.start
        grid = places[info.coords[:, 0] >= 0]
        text = places[info.coords[:, 0] < 0]
        if len(text):
            yield Run(Listed(text[None]), Listed((places if pattern.text_sees_grid else text)[None]))
        if not len(grid):
            continue
        order, counts = _sorted_groups(pattern.group(info)[grid - sample.start])
        starts = counts.cumsum(0) - counts
        for length in sorted(set(counts.tolist())):
            members = grid[order[starts[counts == length][:, None] + torch.arange(length)]]
            yield Run(Listed(members), Listed(members))
        if len(text):
            yield Run(Listed(grid[None]), Listed(text[None]), merge=True)


def _sorted_groups(number: Int[Tensor, " m"]) -> tuple[Int[Tensor, " m"], Int[Tensor, " g"]]:
    """The order that puts equal numbers side by side, and how many there are of each."""
    counts = torch.bincount(torch.unique(number, return_inverse=True)[1])
    return torch.argsort(number, stable=True), counts


@dataclass(frozen=True, eq=False)
class _Asked:
    """What the predicate allows, block by block of queries; keys that no query of a block attends are left out."""

    pattern: Pattern
    queries: Table
    kept: tuple[int, ...] | None
    keys: Table
    kept_keys: tuple[int, ...] | None
    heads: int

    @property
    def pairs(self) -> int:
        """How many pairs are asked about."""
        return sum(a.length * b.length for a, b in zip(self.queries, self.keys, strict=False))

    def __iter__(self) -> Iterator[Run]:
        head = torch.arange(self.heads).view(self.heads, 1, 1)
        sides = _per_sample(self.queries, self.kept), _per_sample(self.keys, self.kept_keys)
        for (sample, q), (key_sample, k) in zip(*sides, strict=False):
            if not sample.length or not key_sample.length:
                continue
            k_side = TokenInfo(*(x[None, None] for x in k))
            for first in range(0, sample.length, _BLOCK):
                rows = slice(first, min(first + _BLOCK, sample.length))
                q_side = TokenInfo(*(x[rows][None, :, None] for x in q))
                yield from _listed(self.pattern.attends(q_side, k_side, head), sample.start + first, key_sample, rows)


def _listed(allowed: Tensor, start: int, keys: Sample, rows: slice) -> Iterator[Run]:
    allowed = torch.as_tensor(allowed)
    if allowed.dtype != torch.bool:
        raise ValueError(f"attends must give booleans, got {allowed.dtype}")
    count = rows.stop - rows.start
    mask = allowed.expand(*(allowed.shape[:1] if allowed.ndim == 3 else (1,)), count, keys.length)
    used = mask.any(0).any(0)
    if not used.any():
        return
    mask = mask[:, :, used]
    places = Affine(start, (1,), (0,), (count,), (1,))
    yield Run(places, Listed(used.nonzero().T + keys.start), None if mask.all() else mask.contiguous())
