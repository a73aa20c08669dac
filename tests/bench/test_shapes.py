"""Named shapes are the published ones; literals, mixtures, scale and batch say what they mean."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.attention import Joint
from tubelet.bench import MIXTURES, SHAPES, Shape, count_pairs, parse_shape
from tubelet.bench.pairs import flops
from tubelet.layout import Grid

PUBLISHED = {
    "wan-1.3b-480p": (32_760, 8.35),
    "wan-14b-480p": (32_760, 27.8),
    "wan-1.3b-720p": (75_600, 44.5),
    "wan-14b-720p": (75_600, 148),
    "hunyuan-720p": (119_056, 220),
    "cogvideox-5b": (17_776, 4.91),
    "open-sora-2-256": (8_828, 1.21),
    "open-sora-2-768": (76_544, 91),
    "ltx-512": (6_144, 0.39),
    "mochi-480p": (44_776, 31.2),
    "sora-minute": (460_800, 3303),
}
"""Tokens, and milliseconds of a joint forward pass at 790 TFLOP/s."""


def test_every_published_shape_has_a_name() -> None:
    assert set(SHAPES) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_tokens_and_operations_are_the_published_ones(name: str) -> None:
    shape = SHAPES[name]
    tokens, milliseconds = PUBLISHED[name]
    assert shape.tokens == tokens
    operations = flops(count_pairs(Joint(), shape.layout(), shape.heads), shape.head_dim, backward=False)
    assert operations / 790e12 * 1000 == pytest.approx(milliseconds, rel=0.01)


@given(
    st.lists(st.tuples(*[st.integers(1, 9)] * 3, st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=4),
    st.integers(1, 8),
    st.integers(1, 128),
)
def test_a_mixture_is_read_as_written(samples, heads, head_dim) -> None:
    literal = "_".join(f"{t}x{h}x{w}+{text}@{n}" for t, h, w, text, n in samples)
    shape = parse_shape(f"mix:{literal}/{heads}×{head_dim}")
    assert shape.grids == tuple(Grid(t, h, w) for t, h, w, _, n in samples for _ in range(n))
    assert shape.text_lengths == tuple(text for *_, text, n in samples for _ in range(n))
    assert (shape.heads, shape.head_dim, shape.packed) == (heads, head_dim, True)
    again = parse_shape(shape.describe())
    assert Counter(zip(again.grids, again.text_lengths, strict=True)) == Counter(
        zip(shape.grids, shape.text_lengths, strict=True)
    )


@pytest.mark.parametrize("name", [*SHAPES, *(f"mix:{name}" for name in MIXTURES)])
def test_a_description_is_a_literal_of_the_same(name: str) -> None:
    shape = parse_shape(name)
    again = parse_shape(shape.describe())
    assert (again.grids, again.text_lengths, again.heads, again.head_dim, again.packed) == (
        shape.grids, shape.text_lengths, shape.heads, shape.head_dim, shape.packed)  # fmt: skip


def test_scale_is_of_grid_sides_alone() -> None:
    shape = SHAPES["hunyuan-720p"].scaled(0.1)
    assert shape.grids == (Grid(3, 5, 8),)  # 3.3, 4.5 (halves go up) and 8
    assert (shape.text_lengths, shape.heads, shape.head_dim) == ((256,), 24, 128)
    assert SHAPES["hunyuan-720p"].scaled(1e-6).grids == (Grid(1, 1, 1),)
    assert parse_shape("mix:2x4x4_4x8x6@2/1x8").scaled(0.5).grids == (Grid(1, 2, 2), Grid(2, 4, 3), Grid(2, 4, 3))


def test_batches_are_rows_or_longer_packs() -> None:
    assert parse_shape("1x2x2+1/1x8").batched(3).layout().shape == (3, 5)
    assert parse_shape("mix:1x2x2_1x1x1/1x8").batched(2).layout().shape == (10,)


@pytest.mark.parametrize(
    "text", ["", "wan", "1x2/2x8", "1x2x3", "1x2x3/8", "0x2x3/2x8", "1x2x3/0x8", "1x2x3@2/2x8", "1x2x3_1x2x3/2x8",
             "mix:", "mix:navi", "mix:1x2x3@0/2x8", "1x2x3+/2x8", "-1x2x3/2x8"]
)  # fmt: skip
def test_what_is_no_shape_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"shape '.*' is neither one of wan-1\.3b-480p"):
        parse_shape(text)


def test_a_shape_is_a_value() -> None:
    assert parse_shape("1x2x2/1x8") == Shape("1x2x2/1x8", (Grid(1, 2, 2),), (0,), 1, 8)
