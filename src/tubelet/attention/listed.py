"""Runs that list their tokens: partitions of grids with dropped tokens, and patterns known by their predicate alone.

A partition's tokens are sorted by group. A predicate is asked about every pair, a block of queries at a time, and the
keys that a block needs are listed with a mask.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from tubelet.attention.places import Affine, Listed
from tubelet.attention.tiles import Run, Sample, Table, Value
from tubelet.layout import TokenInfo
from tubelet.layout.index import geometry
from tubelet.protocols import Pattern

__all__ = ["Asked", "grouped_runs"]

_BLOCK = 128
"""How many queries are asked about at once where only the predicate is known."""


def _tokens(sample: Sample, number: int, kept: tuple[int, ...] | None) -> TokenInfo:
    """What a predicate sees of the tokens of sample ``number``, on the host."""
    position = torch.arange(sample.length) if kept is None else torch.tensor(kept, dtype=torch.long)
    sides = torch.tensor([sample[3:]]).expand(len(position), 3)
    info = geometry(position, torch.full_like(position, sample.text), sides, torch.full_like(position, number))
    # one axis after another, so that comparing one axis of many pairs reads numbers that lie side by side
    return info._replace(coords=info.coords.T.contiguous().T, extent=info.extent.T.contiguous().T)


def _per_sample(table: Table, kept: tuple[int, ...] | None) -> Iterator[tuple[Sample, TokenInfo]]:
    """Each sample with what its tokens are."""
    ends = list(itertools.accumulate(sample.length for sample in table))
    for number, (sample, end) in enumerate(zip(table, ends, strict=True)):
        yield sample, _tokens(sample, number, None if kept is None else kept[end - sample.length : end])


def grouped_runs(pattern: Value, table: Table, kept: tuple[int, ...] | None) -> Iterator[Run]:
    """Lists of tokens by group, equal lengths together; then the text.

    Example:
        >>> from tubelet.attention.patterns import Spatial
        >>> [run.q.index().tolist() for run in grouped_runs(Spatial(), (Sample(0, 3, 0, 2, 1, 2),), (0, 1, 3))]
        [[[2]], [[0, 1]]]
    """
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
class Asked:
    """What the predicate allows, block by block of queries; keys that no query of a block attends are left out.

    ``alike``: the predicate does not read the number of the sample, so that one answer serves equal samples.

    Example:
        >>> from tubelet.attention.patterns import Spatial
        >>> table = (Sample(0, 4, 0, 2, 1, 2),)
        >>> [run.k.index().tolist() for run in Asked(Spatial(), table, None, table, None, 1)]
        [[[0, 1, 2, 3]]]
    """

    pattern: Pattern
    queries: Table
    kept: tuple[int, ...] | None
    keys: Table
    kept_keys: tuple[int, ...] | None
    heads: int
    alike: bool = False

    @property
    def pairs(self) -> int:
        """How many pairs are asked about."""
        sides = zip(self.queries, self.keys, strict=False)
        if self.alike:
            return sum(a[1] * b[1] for a, b in {(a[1:], b[1:]): (a, b) for a, b in sides}.values())
        return sum(a.length * b.length for a, b in sides)

    def __iter__(self) -> Iterator[Run]:
        answers: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[int, int, list[Run]]] = {}
        for sample, key_sample, runs in self._asked():
            if not self.alike:
                yield from runs
                continue
            same = sample[1:], key_sample[1:]
            if same not in answers:
                answers[same] = sample.start, key_sample.start, list(runs)
            q, k, found = answers[same]
            yield from (_moved(run, sample.start - q, key_sample.start - k) for run in found)

    def _asked(self) -> Iterator[tuple[Sample, Sample, Iterator[Run]]]:
        """Each sample with its runs, which are found when they are read."""
        sides = _per_sample(self.queries, self.kept), _per_sample(self.keys, self.kept_keys)
        for (sample, q), (key_sample, k) in zip(*sides, strict=False):
            if not sample.length or not key_sample.length:
                continue
            yield sample, key_sample, self._blocks(sample, q, key_sample, k)

    def _blocks(self, sample: Sample, q: TokenInfo, key_sample: Sample, k: TokenInfo) -> Iterator[Run]:
        """The runs of one sample."""
        head = torch.arange(self.heads).view(self.heads, 1, 1)
        k_side = TokenInfo(*(x[None, None] for x in k))
        for first in range(0, sample.length, _BLOCK):
            rows = slice(first, min(first + _BLOCK, sample.length))
            q_side = TokenInfo(*(x[rows][None, :, None] for x in q))
            yield from _listed(self.pattern.attends(q_side, k_side, head), sample.start + first, key_sample, rows)


def _moved(run: Run, q: int, k: int) -> Run:
    """The run of an equal sample ``q`` queries and ``k`` keys further."""
    if q == k == 0:
        return run
    assert isinstance(run.q, Affine)
    assert isinstance(run.k, Listed)
    return replace(run, q=run.q.moved(q), k=Listed(run.k.places + k))


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
