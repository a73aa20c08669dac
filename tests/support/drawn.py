"""Drawn patterns and layouts: every kind of either, small enough to ask the predicate about all pairs.

All are given as functions that make them: the shape checks of the tests draw random numbers, which hypothesis forbids
while it draws.
"""

import math
from collections.abc import Callable
from functools import partial

from hypothesis import strategies as st

from tubelet.attention import (
    FrameCausal,
    HeadSplit,
    Joint,
    Neighborhood,
    SlidingTile,
    Spatial,
    Strided,
    Temporal,
    VideoOnly,
    Window,
)
from tubelet.layout import Grid, TokenLayout
from tubelet.protocols import Pattern

small = st.integers(1, 4)
triples = st.tuples(small, small, small)
shifts = st.tuples(*[st.integers(0, 5)] * 3)


Made = Callable[[], Pattern]


def _tiled(tile: tuple[int, int, int], times: tuple[int, int, int]) -> SlidingTile:
    t, h, w = (a * b for a, b in zip(tile, times, strict=True))
    return SlidingTile((t, h, w), tile)


def _later(make: Callable[..., Pattern], *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Made]:
    return st.tuples(*arguments).map(lambda drawn: partial(make, *drawn))


plain: st.SearchStrategy[Made] = st.one_of(
    st.just(Joint),
    st.just(Spatial),
    st.just(Temporal),
    _later(Window, triples, shifts),
    _later(Strided, small, small),
    _later(Neighborhood, triples, st.tuples(*[st.booleans()] * 3)),
    _later(_tiled, st.tuples(*[st.integers(1, 2)] * 3), st.tuples(*[st.integers(1, 3)] * 3)),
    _later(FrameCausal, st.none() | small, st.integers(0, 2)),
    _later(lambda size, shift: VideoOnly(Window(size, shift)), triples, shifts),
    _later(lambda window, sink: VideoOnly(FrameCausal(window, sink)), small, st.integers(0, 2)),
)
"""Every pattern that stands alone."""

composed: st.SearchStrategy[Made] = st.one_of(
    st.tuples(plain, plain).map(lambda two: lambda: two[0]() | two[1]()),
    st.tuples(plain, plain).map(lambda two: lambda: two[0]() & two[1]()),
)
"""Unions and intersections."""

patterns = plain | composed


def splits(heads: int) -> st.SearchStrategy[Made]:
    """Two parts over ``heads`` heads."""
    parts = st.tuples(plain, plain, st.integers(1, heads - 1))
    return parts.map(lambda d: lambda: HeadSplit((d[0](), d[1]()), (d[2], heads - d[2])))


grids = st.none() | st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))


@st.composite
def layouts(draw: st.DrawFn) -> Callable[[], TokenLayout]:
    """Mixed grids, single frames and tokens, with and without text, dense, padded, with a tail, with dropped tokens."""
    form = draw(st.sampled_from(["packed", "capacity", "dropped", "dense", "padded"]))
    if form == "dense":
        batch, grid, text = draw(st.integers(1, 3)), draw(grids), draw(st.integers(0, 3))
        return lambda: TokenLayout.dense(batch, Grid(*(grid or (1, 1, 1))), text)
    if form == "padded":
        lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
        return lambda: TokenLayout.padded(lengths, max(lengths) + 1)
    drawn = draw(st.lists(st.tuples(grids, st.integers(0, 3)), min_size=1, max_size=4))
    drawn += drawn[-1:] * draw(st.integers(0, 2))  # equal neighbours are one run
    sides, texts = zip(*drawn, strict=True)
    total = sum(texts) + sum(math.prod(side) for side in sides if side is not None)
    spare = draw(st.integers(0, 3)) if form == "capacity" else None
    dropped = draw(st.sets(st.integers(0, max(total - 1, 0)))) if form == "dropped" else set()

    def make() -> TokenLayout:
        grids = [None if side is None else Grid(*side) for side in sides]
        layout = TokenLayout.packed(grids, texts, None if spare is None else total + spare)
        return layout.keep([i for i in range(total) if i not in dropped]) if form == "dropped" else layout

    return make
