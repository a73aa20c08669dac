"""Pairs are counted exactly: against the mask of the readable definition, on drawn layouts and patterns."""

import time
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.attention import FrameCausal, Joint, VideoOnly, Window
from tubelet.attention.backends.reference import mask_of
from tubelet.bench import SHAPES, count_pairs, pairs, parse_pattern, pattern_names
from tubelet.layout import Grid, Kind, TokenLayout
from tubelet.protocols import AttentionRequest
from tubelet.testing import mixtures


@dataclass(frozen=True)
class Box:
    """Grid tokens at most ``reach`` away along each axis, text everywhere: one condition per axis."""

    reach: tuple[int, int, int]

    def attends(self, q, k, head):
        reach = torch.tensor(self.reach, device=q.kind.device)
        near = ((q.coords - k.coords).abs() <= reach).all(-1)
        return near | (q.kind == Kind.TEXT) | (k.kind == Kind.TEXT)


@dataclass(frozen=True)
class Causal:
    """Frames up to the query's own; text attends text alone."""

    def attends(self, q, k, head):
        return q.coords[..., 0] >= k.coords[..., 0]


@dataclass(frozen=True)
class Diagonal:
    """Tied to all three axes at once, and other for every head: nothing but asking each pair counts it."""

    def attends(self, q, k, head):
        return ((q.coords - k.coords).sum(-1) % (2 + head % 3) == 0) | (q.kind == Kind.TEXT)


@dataclass(frozen=True)
class Checkers:
    """The fields of a chessboard, as groups: a partition that no condition on single axes gives."""

    def attends(self, q, k, head):
        return (self.group(q) == self.group(k)) | (k.kind == Kind.TEXT)

    def group(self, tokens):
        return tokens.coords.sum(-1) % 2


SPECS = [
    "joint",
    "spatial",
    "temporal",
    "window:2x2x3",
    "window:2x3x2:1x1x1",
    "neighborhood:3x1x3",
    "neighborhood:1x3x5",
    "sliding-tile:3x3x3:1x1x1",
    "sliding-tile:2x6x4:2x2x2",
    "sliding-tile:2x4x4:2x2x4",
    "strided:2",
    "strided:3",
    "frame-causal",
    "frame-causal:2",
    "frame-causal:1:1",
    "neighborhood:3x3x1:causal=truexfalsexfalse",
    "strided:2:2",
    "spatial|temporal",
    "spatial|temporal|window:1x2x2",
    "window:2x2x2&frame-causal",
    "window:2x2x2|window:2x2x2:1x1x1&frame-causal:2",
    "strided:3|temporal",
    "strided:2&strided:3",
]


PATTERNS = [
    *(Box((1, 0, 2)), Causal(), Diagonal(), Checkers()),
    *(VideoOnly(Window((2, 2, 3))), VideoOnly(FrameCausal(2))),
    *map(parse_pattern, SPECS),
]

samples = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=3
)


def layout_of(drawn: list[tuple[int, int, int, int]], batch: int) -> TokenLayout:
    """Rows of the first sample, or (batch 0) a pack of all: layouts are made outside strategies."""
    if batch:
        t, h, w, text = drawn[0]
        return TokenLayout.dense(batch, Grid(t, h, w), text)
    return TokenLayout.packed([Grid(t, h, w) for t, h, w, _ in drawn], [text for *_, text in drawn])


def brute(pattern, layout: TokenLayout, heads: int) -> int:
    shape = (*layout.shape, heads, 4)
    request = AttentionRequest(pattern, layout.on("cpu"), None, shape, shape, torch.float32, "cpu", 1.0, None)
    return int(mask_of(request).sum())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@given(drawn=samples, batch=st.integers(0, 2), heads=st.integers(1, 3))
def test_pairs_are_those_of_the_mask(pattern, drawn, batch: int, heads: int) -> None:
    layout = layout_of(drawn, batch)
    assert count_pairs(pattern, layout, heads) == brute(pattern, layout, heads)


@pytest.mark.parametrize("text", ["joint@1/temporal@2", "frame-causal@2/strided:3@1", "spatial|temporal@1/joint@2"])
@given(drawn=samples)
def test_every_part_of_a_split_counts_its_heads(text: str, drawn) -> None:
    layout = layout_of(drawn, 0)
    assert count_pairs(parse_pattern(text), layout, 3) == brute(parse_pattern(text), layout, 3)


@pytest.mark.parametrize("pattern", PATTERNS[:3], ids=str)
@pytest.mark.parametrize("name", mixtures())
def test_layouts_of_every_form_are_counted(pattern, name: str) -> None:
    assert count_pairs(pattern, mixtures()[name], 2) == brute(pattern, mixtures()[name], 2)


@pytest.mark.parametrize("pattern", PATTERNS[:3], ids=str)
@pytest.mark.parametrize("name", mixtures())
def test_the_index_of_a_layout_counts_as_the_layout(pattern, name: str) -> None:
    layout = mixtures()[name]
    assert count_pairs(pattern, layout.on("cpu"), 2) == count_pairs(pattern, layout, 2)


KEYS = [Box((1, 0, 2)), Causal(), *map(parse_pattern, ("joint", "spatial", "frame-causal"))]


@pytest.mark.parametrize("pattern", KEYS, ids=str)
@given(drawn=samples, others=samples)
def test_pairs_of_two_streams_are_those_of_the_mask(pattern, drawn, others) -> None:
    count = min(len(drawn), len(others))
    q, k = (layout_of(each[:count], 0) for each in (drawn, others))
    shapes = [(*each.shape, 2, 4) for each in (q, k)]
    request = AttentionRequest(pattern, q.on("cpu"), k.on("cpu"), *shapes, torch.float32, "cpu", 1.0, None)
    assert count_pairs(pattern, q, 2, kv_layout=k.on("cpu")) == int(mask_of(request).sum())


def test_two_streams_have_the_same_samples() -> None:
    q, k = TokenLayout.packed([Grid(1, 1, 2)] * 2), TokenLayout.packed([None], [3])
    with pytest.raises(ValueError, match="layout has 2 samples, but kv_layout has 1"):
        count_pairs(Joint(), q, 1, kv_layout=k)


@pytest.mark.parametrize("pattern", PATTERNS[:3], ids=str)
def test_blocks_do_not_change_the_count(pattern, monkeypatch) -> None:
    layout = TokenLayout.packed([Grid(3, 3, 4), Grid(2, 5, 3)], [2, 3])
    expected = brute(pattern, layout, 2)
    monkeypatch.setattr(pairs, "_BLOCK", 100)
    pairs._count_sample.cache_clear()
    assert count_pairs(pattern, layout, 2) == expected
    pairs._count_sample.cache_clear()


@given(drawn=samples, reach=st.tuples(*[st.integers(0, 3)] * 3))
def test_conditions_per_axis_multiply(drawn, reach) -> None:
    layout = layout_of(drawn, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_separable", lambda pattern: True)
        pairs._count_sample.cache_clear()
        assert count_pairs(Box(reach), layout, 2) == brute(Box(reach), layout, 2)
    pairs._count_sample.cache_clear()


@pytest.mark.parametrize("name", ["joint", "spatial", "temporal", "window:8x9x8", "neighborhood:3x5x5", "frame-causal"])
def test_the_longest_shape_is_counted_at_once(name: str) -> None:
    shape = SHAPES["sora-minute"]
    began = time.process_time()
    found = count_pairs(parse_pattern(name), shape.layout(), shape.heads)
    assert time.process_time() - began < 5
    per_query = {"joint": 460_800, "spatial": 3_600, "temporal": 128, "window:8x9x8": 576}
    if name in per_query:
        assert found == shape.heads * shape.tokens * per_query[name]


def test_every_pattern_of_the_library_is_compared() -> None:
    named = {spec.split(":")[0] for spec in SPECS}
    assert set(pattern_names()) <= named, "give each new pattern a spec above"


def test_operations_and_bytes() -> None:
    assert pairs.flops(7, 64, backward=False) == 4 * 7 * 64
    assert pairs.flops(7, 64, backward=True) == 4 * 7 * 64 * 3.5
    q = torch.empty(9, 2, 16, dtype=torch.bfloat16)
    assert pairs.moved_bytes(9, 2, 16, 2, backward=False) == 4 * q.nbytes
    assert pairs.moved_bytes(9, 2, 16, 2, backward=True) == (4 + 5 + 3) * q.nbytes
