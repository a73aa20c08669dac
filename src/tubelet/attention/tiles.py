"""What a plan is made of, and the affine part: runs of equal groups read off a pattern's spans.

A grid's spans along t, h and w multiply into boxes of queries with boxes of keys; equal boxes at equal distances are
one run, and equal neighbouring samples one more axis of its groups.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from tubelet.attention.patterns.spans import Span
from tubelet.attention.places import Affine, Places
from tubelet.layout import Grid

__all__ = ["Run", "Sample", "affine_runs"]

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


def affine_runs(pattern: Value, table: Table) -> Iterator[Run]:
    """The tiles of each sample, with equal neighbouring samples at equal distances as the first axis of groups.

    Example:
        >>> from tubelet.attention.patterns import Temporal
        >>> [run.q.count for run in affine_runs(Temporal(), (Sample(0, 12, 0, 3, 2, 2),))]
        [(4,)]
    """
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
