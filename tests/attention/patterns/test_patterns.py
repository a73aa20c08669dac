"""Patterns: their predicates spelled out by hand, their values, specs, and refusals."""

import itertools
import pickle
from collections.abc import Callable

import drawn
import pytest
import torch
from hypothesis import given
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
from tubelet.attention.patterns import from_spec
from tubelet.layout import Grid, Kind, TokenLayout
from tubelet.protocols import Pattern
from tubelet.testing import check_pattern

Cell = tuple[int, int, int]
Rule = Callable[[Cell, Cell, Cell], bool]


def slid(place: int, length: int, window: int) -> range:
    """NATTEN's window of a place, by search: the ``window`` places nearest to it, none outside."""
    fits = [range(a, a + window) for a in range(length - window + 1)] or [range(length)]
    return min(fits, key=lambda keys: abs(place - (keys.start + window // 2)))


def axes(rule: Callable[[int, int, int, int], bool]) -> Rule:
    """A rule that holds on every axis: ``rule(axis, query, key, length)``."""
    return lambda q, k, sides: all(rule(i, q[i], k[i], sides[i]) for i in range(3))


def window_of(place: int, length: int, size: int, shift: int) -> int:
    """The number of borders at or before a place."""
    return sum(1 for i in range(1, place + 1) if length > size and (i - shift) % size == 0) if length > size else 0


RULES: list[tuple[Pattern, Rule]] = [
    (Joint(), lambda q, k, sides: True),
    (Spatial(), lambda q, k, sides: q[0] == k[0]),
    (Temporal(), lambda q, k, sides: q[1:] == k[1:]),
    (Window((2, 1, 3)), axes(lambda i, q, k, n: q // (2, 1, 3)[i] == k // (2, 1, 3)[i])),
    (
        Window((2, 2, 3), (1, 0, 2)),
        axes(lambda i, q, k, n: len({window_of(x, n, (2, 2, 3)[i], (1, 0, 2)[i]) for x in (q, k)}) == 1),
    ),
    (
        VideoOnly(Window((2, 1, 3))),
        lambda q, k, sides: (
            q == k if sides[0] == 1 else all(a // n == b // n for a, b, n in zip(q, k, (2, 1, 3), strict=True))
        ),
    ),
    (Neighborhood((3, 2, 3)), axes(lambda i, q, k, n: k in slid(q, n, (3, 2, 3)[i]))),
    (
        Neighborhood((2, 3, 3), (True, False, False)),
        axes(lambda i, q, k, n: q - 2 < k <= q if i == 0 else k in slid(q, n, 3)),
    ),
    (
        SlidingTile((3, 4, 2), (1, 2, 2)),
        axes(lambda i, q, k, n: k // (1, 2, 2)[i] in slid(q // (1, 2, 2)[i], -(-n // (1, 2, 2)[i]), (3, 2, 1)[i])),
    ),
    (FrameCausal(), lambda q, k, sides: k[0] <= q[0]),
    (FrameCausal(2), lambda q, k, sides: q[0] - 2 < k[0] <= q[0]),
    (FrameCausal(2, 1), lambda q, k, sides: k[0] <= q[0] and (k[0] > q[0] - 2 or k[0] < 1)),
    (Spatial() | Temporal(), lambda q, k, sides: q[0] == k[0] or q[1:] == k[1:]),
    (FrameCausal() & Spatial(), lambda q, k, sides: q[0] == k[0]),
]


@pytest.mark.parametrize(("pattern", "rule"), RULES, ids=[str(p) for p, _ in RULES])
@pytest.mark.parametrize("sides", [(4, 3, 5), (1, 1, 1), (5, 2, 2), (1, 2, 4)])
def test_predicates_are_the_rules(pattern: Pattern, rule: Rule, sides: Cell) -> None:
    info = TokenLayout.packed([Grid(*sides)]).on("cpu").info()
    cells = list(itertools.product(*map(range, sides)))
    want = torch.tensor([[rule(q, k, sides) for k in cells] for q in cells])
    q, k = (type(info)(*(x.unsqueeze(axis) for x in info)) for axis in (1, 0))
    got = pattern.attends(q, k, torch.zeros((), dtype=torch.long))
    assert torch.equal(got.expand(want.shape), want)


@pytest.mark.parametrize(("stride", "run"), [(2, 1), (3, 1), (2, 2), (3, 3), (2, 3)])
def test_strided_groups_are_skiparses(stride: int, run: int) -> None:
    """The group of token n, read off a table ``(outer, stride, run)`` of the tokens in raster order."""
    grid = Grid(3, 2, 4)
    table = torch.arange(24 * stride * run).reshape(-1, stride, run)
    want = [int((table == n).nonzero()[0, 1]) for n in range(24)]
    assert Strided(stride, run).group(TokenLayout.packed([grid]).on("cpu").info()).tolist() == want


@pytest.mark.parametrize("pattern", [p for p, _ in RULES], ids=str)
def test_the_text_rule(pattern: Pattern) -> None:
    """Every query attends the text; text attends the grid unless the pattern is causal."""
    info = TokenLayout.packed([Grid(2, 2, 2)], [3]).on("cpu").info()
    q, k = (type(info)(*(x.unsqueeze(axis) for x in info)) for axis in (1, 0))
    mask = pattern.attends(q, k, torch.zeros((), dtype=torch.long)).expand(11, 11)
    text = info.kind == Kind.TEXT
    causal = any(word in str(pattern) for word in ("FrameCausal", "True"))
    assert mask[:, text].all()
    assert bool(mask[text][:, ~text].any()) is not causal and bool(mask[text][:, ~text].all()) is not causal


@given(draw=drawn.patterns | drawn.splits(2))
def test_drawn_patterns_pass_the_conformance_check(draw: drawn.Made) -> None:
    check_pattern(draw(), heads=2)


@given(draw=drawn.patterns | drawn.splits(2))
def test_patterns_are_values_that_come_back_from_their_spec(draw: drawn.Made) -> None:
    pattern, again = draw(), draw()
    assert pattern == again and hash(pattern) == hash(again)
    assert from_spec(pattern.spec) == pattern == pickle.loads(pickle.dumps(pattern))


def test_heads_follow_their_part() -> None:
    pattern = HeadSplit((Spatial(), Temporal()), (1, 2))
    info = TokenLayout.packed([Grid(2, 1, 2)]).on("cpu").info()
    q, k = (type(info)(*(x.unsqueeze(axis) for x in info)) for axis in (1, 0))
    mask = pattern.attends(q, k, torch.arange(3).view(3, 1, 1))
    for head, part in enumerate((Spatial(), Temporal(), Temporal())):
        assert torch.equal(mask[head], part.attends(q, k, torch.zeros((), dtype=torch.long)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Window((0, 1, 1)), r"size must be at least 1.*\(0, 1, 1\)"),
        (lambda: Window((2, 2)), r"three whole numbers.*\(2, 2\)"),
        (lambda: Window((1, 1, 1.5)), r"three whole numbers.*1\.5"),
        (lambda: Window((1, 1, 1), (-1, 0, 0)), r"shift must be at least 0.*-1"),
        (lambda: VideoOnly(Spatial() | Temporal()), r"must have axes\(grid\).*got Either"),
        (lambda: VideoOnly(Spatial), "must have axes"),
        (lambda: Strided(2.5), "stride must be a whole number, got 2.5"),
        (lambda: FrameCausal(window=2.5), "window must be a whole number, got 2.5"),
        (lambda: HeadSplit((Joint(),), (1.0,)), "heads must be a whole number, got 1.0"),
        (lambda: Strided(0), "stride=0"),
        (lambda: Strided(2, run=0), "run=0"),
        (lambda: Neighborhood((1, 0, 1)), "window must be at least 1"),
        (lambda: Neighborhood((1, 1, 1), (True, False)), "three booleans"),
        (lambda: SlidingTile((3, 3, 3), (2, 1, 1)), r"\(3, 3, 3\) is not a whole number of tiles of \(2, 1, 1\)"),
        (lambda: FrameCausal(0), "window must be at least 1"),
        (lambda: FrameCausal(2, -1), "sink at least 0"),
        (lambda: HeadSplit((Joint(),), (1, 2)), r"1 patterns 1 or more, got \(1, 2\)"),
        (lambda: HeadSplit((Joint(),), (0,)), r"got \(0,\)"),
        (lambda: HeadSplit((HeadSplit((Joint(),), (1,)),), (1,)), "must not be splits"),
        (lambda: from_spec("nonsense"), "no spec of a pattern"),
        (lambda: from_spec('["Nowhere", 1]'), "no spec of a pattern"),
        (lambda: from_spec("[1, 2]"), "no spec of a pattern"),
        (lambda: from_spec('["os:getcwd"]'), "no spec of a pattern"),
    ],
)
@pytest.mark.graph  # without type checks, as users run it
def test_nonsense_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@given(lengths=st.tuples(*[st.integers(1, 12)] * 3), tile=drawn.triples, shift=drawn.shifts)
def test_axes_cover_every_query_once(lengths: Cell, tile: Cell, shift: Cell) -> None:
    patterns = [Window(tile, shift), Neighborhood(tile), SlidingTile(tile, tile), FrameCausal(tile[0], shift[0])]
    for pattern in patterns:
        for spans, length in zip(pattern.axes(Grid(*lengths)), lengths, strict=True):
            assert sorted(i for span in spans for i in range(span.q, span.q + span.nq)) == list(range(length))
