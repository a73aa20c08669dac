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
from functools import cached_property

import torch

from tubelet.attention.listed import Asked, grouped_runs
from tubelet.attention.memory import Memory
from tubelet.attention.patterns import Both, Either, Joint
from tubelet.attention.places import Affine, Places
from tubelet.attention.tiles import Run, Sample, Table, Value, affine_runs
from tubelet.protocols import Pattern

__all__ = ["PLANS", "Plan", "Tiling", "is_value", "make_plan", "offers", "pieces", "table_of", "text_only"]

_LOOPED = 8
"""From how many groups on a call on views is worth more than a gather."""

_REMEMBERED = 1 << 25
"""How many pairs a predicate is asked about once and for all; beyond, their masks would fill the memory: asked anew."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The runs of a request, how many different queries and how many keys they name, and whether results are merged.

    Runs that are asked anew each time (of a predicate on a long layout) leave the numbers at 0: nothing is promised.

    ``once``: no query and no key stands in two groups, so that gradients need no sums. ``in_order``: the groups of the
    only run, one after another, are the tokens from 0 on, so that its result is the output as it stands.

    Example:
        >>> make_plan(Joint(), torch.tensor([[0, 4, 0, 1, 2, 2]]).numpy().tobytes()).queries
        4
    """

    runs: Iterable[Run]
    queries: int
    keys: int
    merges: bool
    once: bool
    in_order: bool = False

    @cached_property
    def nbytes(self) -> int:
        """About how much memory the runs take: their masks, lists of tokens, and a kilobyte for each run itself."""
        if not isinstance(self.runs, tuple):
            return 0
        tensors = [x for run in self.runs for x in (run.mask, _list(run.q), _list(run.k)) if x is not None]
        shared = {id(x): x.numel() * x.element_size() for x in tensors}
        return sum(shared.values()) + 1024 * len(self.runs)


@dataclass(frozen=True)
class Tiling:
    """A request for tiled attention: a pattern of spans, or None for whole segments, on host tables.

    Example:
        >>> Tiling(None, b"", None).keys is None
        True
    """

    pattern: Value
    table: bytes
    keys: bytes | None


def _list(places: Places) -> torch.Tensor | None:
    return None if isinstance(places, Affine) else places.places


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
    """The runs of a request, remembered (:data:`PLANS`) where the pattern is a value.

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
    make = PLANS if is_value(pattern) else _made
    return make(pattern, queries, keys, kept, kept_keys, heads, limit, views)


def is_value(pattern: object) -> bool:
    """Whether equal patterns are equal for good: known by their fields, not by what object they are.

    An object that is only equal to itself may change; its plan is made anew each time. A spec is all that there is to
    know of a pattern.

    Example:
        >>> is_value(Joint()), is_value(object())
        (True, False)
    """
    if type(pattern).__hash__ is object.__hash__:
        return False
    if getattr(pattern, "spec", ""):
        return True
    fields = getattr(pattern, "__dataclass_fields__", {})
    parts = itertools.chain.from_iterable(_parts(getattr(pattern, name)) for name in fields)
    return all(is_value(part) for part in parts if hasattr(part, "attends"))


def _parts(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def _made(
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
        tables = table_of(queries), None if keys is None else table_of(keys)
        whole = _whole(pattern, *tables, _places(kept), _places(kept_keys), heads)
        if isinstance(whole, Asked) and whole.pairs > _REMEMBERED:
            return Plan(replace(whole, alike=False), queries=0, keys=0, merges=False, once=False)
        whole = tuple(whole)
        first = sum(run.q.groups * run.q.length for run in whole if not run.merge)
        runs: Iterable[Run] = itertools.chain.from_iterable(pieces(run, limit, views) for run in whole)
        merges = any(run.merge for run in whole)
        keys_named = sum(run.k.groups * run.k.length for run in whole)
        once = not merges and _different([run.k for run in whole]) == keys_named
        runs = tuple(runs)
        in_order = len(runs) == 1 and isinstance(runs[0].q, Affine) and runs[0].q.in_order
        return Plan(runs, first, keys_named, merges, once, in_order)


PLANS: Memory[Plan] = Memory(_made, limit=1 << 28)
"""The plans that were used last, 256 MiB of them."""


def _different(places: list[Places]) -> int:
    """How many different tokens are named."""
    named = torch.cat([torch.zeros(0, dtype=torch.long), *(side.index().flatten() for side in places)])
    return len(torch.bincount(named).nonzero())


def table_of(data: bytes) -> Table:
    """The samples of a host table.

    Example:
        >>> table_of(torch.tensor([[0, 4, 0, 1, 2, 2]]).numpy().tobytes())[0].length
        4
    """
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
    if isinstance(pattern, Joint) or (keys is not None and text_only(pattern, keys)):
        return _segments(queries, queries if keys is None else keys)
    ruled = hasattr(pattern, "text_sees_grid")
    if keys is None and kept is None and ruled and offers(pattern, "axes"):
        return affine_runs(pattern, queries)
    if keys is None and ruled and offers(pattern, "group"):
        return grouped_runs(pattern, queries, kept)
    key_side = (queries, kept) if keys is None else (keys, kept_keys)
    alike = kept is None and kept_keys is None and _reads_no_sample(pattern)
    return Asked(pattern, queries, kept, *key_side, heads, alike)


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


def offers(pattern: Pattern, name: str) -> bool:
    """Whether a pattern offers more than its predicate, defined where the predicate is or after it.

    Example:
        >>> from tubelet.attention.patterns import Spatial
        >>> offers(Spatial(), "axes"), offers(Spatial() | Joint(), "axes")
        (True, False)
    """
    order = type(pattern).__mro__
    owners = [next((i for i, cls in enumerate(order) if each in vars(cls)), len(order)) for each in (name, "attends")]
    return owners[0] <= owners[1] and owners[0] < len(order)


def _reads_no_sample(pattern: Pattern) -> bool:
    """Whether equal samples have equal pairs: the predicate is that of axes, which know a grid alone."""
    if isinstance(pattern, Both | Either):
        return _reads_no_sample(pattern.a) and _reads_no_sample(pattern.b)
    return offers(pattern, "axes")


def text_only(pattern: Pattern, keys: Table) -> bool:
    """Keys that every query of the sample attends: text, by the rule that patterns with ``text_sees_grid`` declare.

    Example:
        >>> text_only(Joint(), (Sample(0, 4, 4, 0, 0, 0),))
        True
    """
    return offers(pattern, "text_sees_grid") and all(sample.grid is None for sample in keys)


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
