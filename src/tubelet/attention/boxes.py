"""From a pattern and the host table of a layout to the tables of tiled attention: lines and boxes of keys by tile.

Where a pattern is a span of keys on every axis (neighbourhoods, sliding tiles, windows, causal frames) the keys of a
box of queries lie in a box. Frames that are attended whole are lines in raster order, with the text in front of them;
anything else is cut into the boxes, of all that fit into a tile, which leave the fewest to be walked.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from tubelet.attention.patterns import Neighborhood
from tubelet.attention.patterns.spans import Span
from tubelet.attention.tiles import Sample
from tubelet.kernels import Tiles, TileSizes, line_tiles, tile_rows
from tubelet.layout import Grid

__all__ = [
    "Axis",
    "GridTiles",
    "Stretch",
    "axes_of",
    "grid_tiles",
    "segment_stretches",
    "spanned",
    "tiles_of",
    "window_tiles",
]


class Axis(NamedTuple):
    """The keys ``first[i] <= key < last[i]`` of each place of an axis; neither ever goes back.

    Example:
        >>> Axis(torch.tensor([0, 0, 1]), torch.tensor([2, 3, 3])).seen()
        Axis(first=tensor([0, 0, 1]), last=tensor([2, 3, 3]))
    """

    first: Int[Tensor, " n"]
    last: Int[Tensor, " n"]

    @property
    def length(self) -> int:
        """How many places."""
        return len(self.first)

    @property
    def whole(self) -> bool:
        """Whether everything attends everything."""
        return bool((self.first == 0).all() and (self.last == self.length).all())

    @property
    def single(self) -> bool:
        """Whether each place attends itself alone."""
        place = torch.arange(self.length)
        return bool((self.first == place).all() and (self.last == place + 1).all())

    def seen(self) -> "Axis":
        """The queries of each key."""
        place = torch.arange(self.length)
        return Axis(torch.searchsorted(self.last, place, right=True), torch.searchsorted(self.first, place, right=True))


def axes_of(spans: Sequence[list[Span]], grid: Grid) -> list[Axis] | None:
    """The three axes of a product of spans; None where the keys of a place are no span, or go back.

    Example:
        >>> from tubelet.attention.patterns import Neighborhood
        >>> grid = Grid(1, 1, 5)
        >>> axes_of(Neighborhood((1, 1, 3)).axes(grid), grid)[2].first.tolist()
        [0, 0, 1, 2, 2]
    """
    found = [_axis(side, length) for side, length in zip(spans, (grid.t, grid.h, grid.w), strict=True)]
    return None if any(axis is None for axis in found) else [axis for axis in found if axis is not None]


def _axis(spans: list[Span], length: int) -> Axis | None:
    first, last = [0] * length, [0] * length
    for span in spans:
        for i in range(span.nq):
            seen = None if span.mask is None else span.mask[i]
            begin = 0 if seen is None else seen.index(True)
            end = span.nk if seen is None else begin + sum(seen)
            if seen is not None and not all(seen[begin:end]):
                return None
            first[span.q + i], last[span.q + i] = span.k + begin, span.k + end
    axis = Axis(torch.tensor(first), torch.tensor(last))
    return axis if bool((axis.first.diff() >= 0).all() and (axis.last.diff() >= 0).all()) else None


Stretch = tuple[int, int, tuple[tuple[int, int], ...]]
"""First token, length, and the pieces of the other side that it attends."""


def segment_stretches(table: Sequence[Sample], keys: Sequence[Sample]) -> tuple[list[Stretch], list[Stretch]]:
    """Joint attention: all queries of a sample with all its keys, by queries and by keys.

    Example:
        >>> sample = Sample(2, 5, 0, 1, 1, 5)
        >>> segment_stretches([sample], [sample])[0]
        [(2, 5, ((2, 5),))]
    """
    sides = list(itertools.zip_longest(table, keys, fillvalue=Sample(0, 0, 0, 0, 0, 0)))
    by_queries: list[Stretch] = [(a.start, a.length, ((b.start, b.length),)) for a, b in sides]
    by_keys: list[Stretch] = [(b.start, b.length, ((a.start, a.length),)) for a, b in sides]
    return by_queries, by_keys


def spanned(pattern: Any, grid: Grid) -> bool:
    """Whether the keys of a pattern are spans along the axes of a grid, or two stretches of whole frames and text.

    Example:
        >>> from tubelet.attention.patterns import FrameCausal
        >>> spanned(FrameCausal(2, 1), Grid(5, 2, 2))
        True
    """
    axes = axes_of(pattern.axes(grid), grid)
    more = _more(pattern, grid)
    if axes is None or more is None:
        return axes is not None
    by_queries, by_keys = (
        list(_frames(*side, grid, 1, 1)) for side in ((axes[0], more), (axes[0].seen(), _turned(more)))
    )
    two = all(len(pieces) <= 2 for _, _, pieces in by_queries + by_keys)
    whole = all(side == [Span(0, n, 0, n)] for side, n in zip(more[1:], (grid.h, grid.w), strict=True))
    return axes[1].whole and axes[2].whole and whole and two and all(span.mask is None for span in more[0])


def _more(pattern: Any, grid: Grid) -> Sequence[list[Span]] | None:
    found: Sequence[list[Span]] | None = pattern.more_axes(grid) if hasattr(pattern, "more_axes") else None
    return found


class GridTiles(NamedTuple):
    """One sample at 0, by queries forward, by queries backward, by keys: stretches, then rows and boxes of its grid.

    Example:
        >>> GridTiles(([], [], []), (), None).boxes
        ()
    """

    stretches: tuple[list[Stretch], list[Stretch], list[Stretch]]
    boxes: tuple[tuple[dict[str, Tensor], Tensor], ...]
    spans: Tensor | None


def grid_tiles(pattern: Any, text: int, grid: Grid, sizes: TileSizes) -> GridTiles:
    """The tiles of one sample with ``text`` tokens in front of a grid on which the pattern is :func:`spanned`.

    Example:
        >>> from tubelet.attention.patterns import FrameCausal
        >>> grid_tiles(FrameCausal(), 1, Grid(2, 1, 40), TileSizes(*[16] * 6)).stretches[0]
        [(0, 1, ((0, 1),)), (1, 40, ((0, 41),)), (41, 40, ((0, 81),))]
    """
    axes, more = axes_of(pattern.axes(grid), grid), _more(pattern, grid)
    assert axes is not None
    frames = axes[1].whole and axes[2].whole
    heads = text, text, text if pattern.text_sees_grid else 0  # the text that every token of the grid meets
    sees = text + (grid.tokens if pattern.text_sees_grid else 0)
    by_queries, by_keys = [(0, text, _merged([(0, sees)]))], [(0, text, _merged([(0, text + grid.tokens)]))]
    if frames and (more is not None or _long(axes[0], grid, sizes.rows)):
        by_queries += _frames(axes[0], more, grid, text, heads[0])
        by_keys += _frames(axes[0].seen(), _turned(more), grid, text, heads[2])
        return GridTiles((by_queries, by_queries, by_keys), (), None)
    axes = _joined(axes)
    sides = axes, axes, [axis.seen() for axis in axes]
    boxes = tuple(_boxed(each, *sizes.pairs[i], text, heads[i]) for i, each in enumerate(sides))
    spans = torch.cat([torch.stack([axis.first, axis.last], 1) for axis in axes])
    return GridTiles((by_queries, by_queries, by_keys), boxes, spans)


def _long(axis: Axis, grid: Grid, tile: int) -> bool:
    """Whether frames that attend the same frames fill half a tile on average."""
    stretches = 1 + int(((axis.first.diff() != 0) | (axis.last.diff() != 0)).sum())
    return 2 * grid.tokens >= tile * stretches


def _turned(more: Sequence[list[Span]] | None) -> Sequence[list[Span]] | None:
    """Queries for keys."""
    return None if more is None else [[Span(span.k, span.nk, span.q, span.nq) for span in side] for side in more]


def _frames(axis: Axis, more: Sequence[list[Span]] | None, grid: Grid, text: int, head: int) -> Iterator[Stretch]:
    """Frames that attend the same frames, as stretches: the first ``head`` tokens, some frames, and ``more`` frames."""
    size = grid.h * grid.w
    joined = {i: span for span in (() if more is None else more[0]) for i in range(span.q, span.q + span.nq)}
    seen = [(*each, joined.get(i)) for i, each in enumerate(zip(axis.first.tolist(), axis.last.tolist(), strict=True))]
    frame = 0
    for (first, last, span), same in itertools.groupby(seen):
        count = len(list(same))
        pieces = [(0, head), (text + first * size, text + last * size)]
        pieces += [] if span is None else [(text + span.k * size, text + (span.k + span.nk) * size)]
        yield text + frame * size, count * size, _merged(pieces)
        frame += count


def _merged(pieces: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Pieces ``[begin, end)`` as first tokens and lengths, neighbours joined."""
    joined: list[list[int]] = []
    for begin, end in sorted(piece for piece in pieces if piece[1] > piece[0]):
        if joined and joined[-1][1] == begin:
            joined[-1][1] = end
        else:
            joined.append([begin, end])
    return tuple((begin, end - begin) for begin, end in joined)


def _joined(axes: list[Axis]) -> list[Axis]:
    """Neighbouring axes that are both whole, or both single, as one: longer stretches of raster order."""
    t, h, w = axes
    if (inner := _one(h, w)) is None:
        return axes
    point = Axis(torch.tensor([0]), torch.tensor([1]))
    return [t, point, inner] if (all_ := _one(t, inner)) is None else [point, point, all_]


def _one(a: Axis, b: Axis) -> Axis | None:
    length = a.length * b.length
    place = torch.arange(length)
    if a.whole and b.whole:
        return Axis(torch.zeros_like(place), torch.full_like(place, length))
    return Axis(place, place + 1) if a.single and b.single else None


class _Cut(NamedTuple):
    """An axis cut into tiles: the boxes of the other side that each walks, and those that lie in all its spans."""

    first: Int[Tensor, " m"]
    last: Int[Tensor, " m"]
    whole: Int[Tensor, " m"]
    whole_end: Int[Tensor, " m"]


def _cut(axis: Axis, side: int, box: int) -> _Cut:
    begin = torch.arange(0, axis.length, side)
    end = (begin + side).clamp(max=axis.length) - 1
    whole = (axis.first[end] + (box - 1)) // box, axis.last[begin] // box
    return _Cut(axis.first[begin] // box, (axis.last[end] + (box - 1)) // box, *whole)


def _candidates(length: int, most: int) -> list[int]:
    """Sides worth a trial: powers of two, and equal parts of the axis."""
    parts = {-(-length // n) for n in range(1, 9)} | {1 << n for n in range(8)}
    return sorted(n for n in parts if n <= min(length, most))


def _sides(axes: list[Axis], size: int, walked: int) -> tuple[list[int], list[int]]:
    """Sides of tiles and of the boxes they walk: the fewest walks, counting what it costs to begin a tile as two."""
    options = [(_candidates(axis.length, size), _candidates(axis.length, walked)) for axis in axes]
    own, other = (torch.cartesian_prod(*(torch.arange(len(each[i])) for each in options)) for i in range(2))
    walks: Any = 1.0
    tiles: Any = 1.0
    volumes: list[Any] = [1, 1]
    for i, (axis, (sides, boxes)) in enumerate(zip(axes, options, strict=True)):
        cuts = [[_cut(axis, side, box) for box in boxes] for side in sides]
        table = torch.tensor([[float((cut.last - cut.first).sum()) for cut in row] for row in cuts])
        walks = walks * table[own[:, i]][:, other[:, i]]
        tiles = tiles * torch.tensor([-(-axis.length // side) for side in sides])[own[:, i]]
        volumes[0] = volumes[0] * torch.tensor(sides)[own[:, i]]
        volumes[1] = volumes[1] * torch.tensor(boxes)[other[:, i]]
    cost = walks + 2.0 * tiles[:, None]
    cost[(volumes[0] > size)[:, None] | (volumes[1] > walked)] = torch.inf
    best = divmod(int(cost.argmin()), len(other))
    picks = own[best[0]].tolist(), other[best[1]].tolist()
    chosen = [[options[i][side][at] for i, at in enumerate(pick)] for side, pick in enumerate(picks)]
    return chosen[0], chosen[1]


def _boxed(axes: list[Axis], size: int, walked: int, text: int, head: int) -> tuple[dict[str, Tensor], Tensor]:
    """Rows of the grid's tiles, with the first ``head`` tokens as their line, and the boxes that they walk."""
    lengths = [axis.length for axis in axes]
    pitch = torch.tensor([lengths[1] * lengths[2], lengths[2], 1])
    sides, boxes = _sides(axes, size, walked)
    cuts = [_cut(*each) for each in zip(axes, sides, boxes, strict=True)]
    number = torch.cartesian_prod(*(torch.arange(len(cut.first)) for cut in cuts)).view(-1, 3)
    place, length = number * torch.tensor(sides), torch.tensor(lengths)
    first, last, whole, whole_end = (
        torch.stack([cut[i][number[:, axis]] for axis, cut in enumerate(cuts)], 1) for i in range(4)
    )
    spread = last - first
    counts = spread.prod(1)
    begins = counts.cumsum(0) - counts
    tile = torch.repeat_interleave(torch.arange(len(number)), counts)
    step = torch.arange(len(tile)) - begins[tile]
    h, w = spread[tile, 1], spread[tile, 2]
    box = first[tile] + torch.stack([step // (h * w), step // w % h, step % w], 1)
    full = torch.tensor(boxes).prod() == walked
    inside = ((box >= whole[tile]) & (box < whole_end[tile])).all(1) & full
    at = box * torch.tensor(boxes)
    listed = torch.cat([(2 * (at @ pitch) + inside)[:, None], at], 1)
    here = torch.minimum(torch.tensor(sides).expand_as(place), length - place)
    columns: dict[str, Any] = {
        "start": text + place @ pitch,
        "side_h": sides[1],
        "side_w": sides[2],
        "line": 0,
        "length": head,
    }
    columns |= {"grid": text, "pitch_t": pitch[0], "pitch_h": pitch[1], "boxes": begins, "count": counts}
    for i, name in enumerate("thw"):
        columns |= {f"here_{name}": here[:, i], f"at_{name}": place[:, i]}
        columns |= {f"length_{name}": lengths[i], f"box_{name}": boxes[i]}
    ones = torch.ones(len(number), dtype=torch.long)
    return {name: ones * column for name, column in columns.items()}, listed


def tiles_of(
    pattern: Any,
    table: Sequence[Sample],
    keys: Sequence[Sample] | None,
    shape: tuple[int, int],
    sizes: Sequence[TileSizes],
) -> Tiles:
    """The tables of a request, on the host.

    Args:
        pattern: :func:`spanned` on every grid; None: all queries of a sample attend all its keys.
        table: the samples of the query axis.
        keys: those of the key axis; None: the same.
        shape: how many queries and keys there are: those of no sample attend nothing, and nothing attends them.
        sizes: of tiles that walk lines alone, and of those that walk boxes.

    Example:
        >>> tiles_of(None, [Sample(1, 3, 0, 1, 1, 3)], None, (5, 5), [TileSizes(*[4] * 6)] * 2).queries[:, 0].tolist()
        [1, 0, 4]
    """
    if pattern is None:
        by_queries, by_keys = segment_stretches(table, table if keys is None else keys)
        parts = [(0, GridTiles((by_queries, by_queries, by_keys), (), None))]
    else:
        different = dict.fromkeys(sample[1:] for sample in table if sample.length)
        found = {same: _sample_tiles(pattern, Sample(0, *same), sizes[1]) for same in different}
        parts = [(sample.start, found[sample[1:]]) for sample in table if sample.length]
    return _together(parts, table, table if keys is None else keys, shape, sizes)


def window_tiles(sizes: TileSizes, grid: Grid, sides: tuple[int, int, int], device: str) -> Tiles:
    """The tables of a neighbourhood on one grid: a layout by which sizes of tiles that walk boxes are measured.

    Example:
        >>> window_tiles(TileSizes(*[16] * 6), Grid(2, 4, 4), (1, 3, 3), "cpu").boxes.shape[1]
        4
    """
    sample = Sample(0, grid.tokens, 0, grid.t, grid.h, grid.w)
    found = tiles_of(Neighborhood(sides), [sample], None, (grid.tokens, grid.tokens), [sizes, sizes])
    return found.to(device)


def _sample_tiles(pattern: Any, sample: Sample, sizes: TileSizes) -> GridTiles:
    if sample.grid is None:
        whole: list[Stretch] = [(0, sample.length, ((0, sample.length),))]
        return GridTiles((whole, whole, whole), (), None)
    return grid_tiles(pattern, sample.text, sample.grid, sizes)


def _together(
    parts: list[tuple[int, GridTiles]],
    table: Sequence[Sample],
    keys: Sequence[Sample],
    shape: tuple[int, int],
    sizes: Sequence[TileSizes],
) -> Tiles:
    """The tables of all samples; what equal samples walk is held once."""
    boxed = {id(part): part for _, part in parts if part.spans is not None}
    chosen = sizes[1] if boxed else sizes[0]
    spans = [part.spans for part in boxed.values() if part.spans is not None]
    spans_at = dict(zip(boxed, itertools.accumulate(map(len, spans), initial=0), strict=False))
    tables: list[Any] = []
    lists: list[Tensor] = []
    for side, (samples, tokens) in enumerate(((table, shape[0]), (table, shape[0]), (keys, shape[1]))):
        stretches = [_moved(stretch, start) for start, part in parts for stretch in part.stretches[side]]
        stretches += [(begin, end - begin, ()) for begin, end in _gaps(samples, tokens)]
        found = [_lines(stretches, chosen.pairs[side][0])]
        ends = list(itertools.accumulate((len(part.boxes[side][1]) for part in boxed.values()), initial=_count(lists)))
        boxes_at = dict(zip(boxed, ends, strict=False))
        for start, part in parts:
            if part.spans is not None:
                columns = dict(part.boxes[side][0])
                columns |= {name: columns[name] + start for name in ("start", "line", "grid")}
                columns["boxes"] = columns["boxes"] + boxes_at[id(part)]
                found.append(tile_rows({**columns, "spans": torch.full_like(columns["grid"], spans_at[id(part)])}))
        lists += [part.boxes[side][1] for part in boxed.values()]
        tables.append(torch.cat(found))
    if not boxed:
        return Tiles(tables[0], tables[1], tables[2], None, None, chosen, shape)
    boxes = torch.cat(lists).to(torch.int32)
    return Tiles(tables[0], tables[1], tables[2], boxes, torch.cat(spans).to(torch.int32), chosen, shape)


def _count(lists: list[Tensor]) -> int:
    return sum(map(len, lists))


def _moved(stretch: Stretch, by: int) -> Stretch:
    start, length, pieces = stretch
    return start + by, length, tuple((begin + by, size) for begin, size in pieces)


def _gaps(samples: Sequence[Sample], tokens: int) -> Iterator[tuple[int, int]]:
    """What lies between samples and behind the last one."""
    end = 0
    for sample in samples:
        if sample.length:
            if sample.start > end:
                yield end, sample.start
            end = sample.start + sample.length
    if tokens > end:
        yield end, tokens


def _lines(stretches: list[Stretch], size: int) -> Int[Tensor, "t f"]:
    flat = [
        (start, length, *itertools.chain(*pieces, *[(0, 0)] * (2 - len(pieces)))) for start, length, pieces in stretches
    ]
    flat = [each for each in flat if each[1]]
    table = torch.tensor(flat, dtype=torch.long).view(-1, 6)
    tiles = int(((table[:, 1] + (size - 1)) // size).sum())
    return line_tiles(table, size, tiles) if flat else tile_rows({"start": table[:, 0]})
