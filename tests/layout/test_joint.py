"""Joint layouts against a plain merge of tagged tokens."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.layout import Grid, JointIndex, JointLayout, TokenLayout

grids = st.builds(Grid, st.integers(1, 2), st.integers(1, 3), st.integers(1, 3))


@st.composite
def streams(draw: st.DrawFn) -> Callable[[], tuple[TokenLayout, ...]]:
    """Two or three streams of the same samples, one of them with the grids; packed (with capacity, drops) or rows."""
    batch, count = draw(st.integers(1, 4)), draw(st.integers(2, 3))
    with_grid, batched = draw(st.integers(0, count - 1)), draw(st.booleans())
    made = [
        draw(batched_stream(batch, s == with_grid) if batched else packed_stream(batch, s == with_grid))
        for s in range(count)
    ]
    return lambda: tuple(make() for make in made)


@st.composite
def batched_stream(draw: st.DrawFn, batch: int, with_grid: bool) -> Callable[[], TokenLayout]:
    if with_grid:
        return partial(TokenLayout.dense, batch, draw(grids), draw(st.integers(0, 3)))
    texts = draw(st.lists(st.integers(0, 3), min_size=batch, max_size=batch))
    return partial(TokenLayout.padded, texts, max(texts) + draw(st.integers(0, 2)))


@st.composite
def packed_stream(draw: st.DrawFn, batch: int, with_grid: bool) -> Callable[[], TokenLayout]:
    texts = draw(st.lists(st.integers(0, 3), min_size=batch, max_size=batch))
    sizes = [draw(grids) if with_grid else None for _ in range(batch)]
    total = sum(texts) + sum(g.tokens for g in sizes if g)
    form = draw(st.sampled_from(["plain", "capacity", "dropped"]))
    if form == "capacity":
        return partial(TokenLayout.packed, sizes, texts, total + draw(st.integers(0, 3)))
    if form == "dropped" and total:
        chosen = sorted(draw(st.sets(st.integers(0, total - 1))))
        return lambda: TokenLayout.packed(sizes, texts).keep(chosen)
    return partial(TokenLayout.packed, sizes, texts)


def tagged(layout: TokenLayout, stream: int) -> list[list[tuple[int, ...]]]:
    """Per row the tokens of a stream as (sample, is grid, stream, canonical position), padding as ()."""
    index = layout.on("cpu")
    rows, count = [], len(layout.grids) if layout.batched else 1
    fields = (index.sample.view(count, -1), index.kind.view(count, -1), index.coords.view(count, layout.width, 3))
    for sample, kind, coords in zip(*(x.tolist() for x in fields), strict=True):
        tokens: list[tuple[int, ...]] = []
        for s, k, (t, y, x) in zip(sample, kind, coords, strict=True):
            tokens.append(() if k == 0 else (s, int(k == 2), stream if k == 1 else 0, t, y, x))
        rows.append(tokens)
    return rows


@given(streams())
def test_merged_order_equals_the_plain_merge(make: Callable[[], tuple[TokenLayout, ...]]) -> None:
    case = make()
    joint = JointLayout(case).on("cpu")
    per_stream = [tagged(layout, s) for s, layout in enumerate(case)]
    expected = []
    for rows in zip(*per_stream, strict=True):
        tokens = [token for row in rows for token in row]
        # sorted() is the canonical order: sample, text before grid, stream by stream, position; padding last
        expected.append(sorted(t for t in tokens if t) + [()] * tokens.count(()))
    numbers = {token: i + 1 for i, token in enumerate(sorted({t for row in expected for t in row if t}))}
    numbers[()] = 0
    inputs = [
        torch.tensor([[numbers[t] for t in row] for row in rows], dtype=torch.long).view(layout.shape)
        for rows, layout in zip(per_stream, case, strict=True)
    ]
    merged = joint.merge(*inputs)
    assert merged.view(len(expected), joint.index.shape[-1]).tolist() == [[numbers[t] for t in row] for row in expected]
    assert all(torch.equal(a, b) for a, b in zip(joint.split(merged), inputs, strict=True))


@given(streams())
def test_merged_index_agrees_with_what_was_merged(make: Callable[[], tuple[TokenLayout, ...]]) -> None:
    case = make()
    joint = JointLayout(case).on("cpu")
    parts = [layout.on("cpu") for layout in case]
    for name in ("sample", "kind"):
        assert torch.equal(joint.merge(*(getattr(p, name) for p in parts)), getattr(joint.index, name))
    grid = joint.index.kind == 2
    assert torch.equal(joint.merge(*(p.coords for p in parts))[grid], joint.index.coords[grid])
    assert joint.index.shape == JointLayout(case).merged.shape


def test_split_undoes_merge_for_wide_tensors_and_gradients() -> None:
    text, video = (
        TokenLayout.packed([None, None], [2, 1], capacity=5),
        TokenLayout.packed([Grid(1, 1, 2), Grid(1, 2, 2)]),
    )
    joint = JointLayout((text, video)).on("cpu")
    a, b = torch.randn(5, 2, 3, requires_grad=True), torch.randn(6, 2, 3, requires_grad=True)
    back = joint.split(joint.merge(a, b))
    assert torch.equal(back[0], a) and torch.equal(back[1], b)
    (back[0].sum() + 2 * back[1].sum()).backward()
    assert (a.grad == 1).all() and (b.grad == 2).all()


def test_aligned_dense_streams_are_not_permuted() -> None:
    text, video = TokenLayout.padded([2, 2], 2), TokenLayout.dense(2, Grid(1, 1, 3))
    joint = JointLayout((text, video)).on("cpu")
    assert joint.identity and joint.index.dense and joint.widths == (2, 3)
    assert not JointLayout((video, text)).on("cpu").identity  # text still comes first


def test_the_form_of_a_joint_index_depends_on_the_capacity_alone() -> None:
    """Streams that happen to lie in order already are permuted too, so that compiled code has one graph."""
    for words in (2, 1):
        text, video = TokenLayout.packed([None], [words], capacity=2), TokenLayout.packed([Grid(1, 1, 3)], capacity=4)
        joint = JointLayout((text, video)).on("cpu")
        assert not joint.identity
        assert (
            joint.merge(torch.arange(2), torch.arange(2, 6)).tolist()
            == ([0, 1, 2, 3, 4, 5], [0, 2, 3, 4, 1, 5])[2 - words]
        )


def test_bad_streams_name_both_values() -> None:
    one, two = TokenLayout.packed([Grid(1, 1, 2)]), TokenLayout.packed([None, None], [1, 1])
    with pytest.raises(ValueError, match=r"1 samples \(batched=False\) and 2 \(batched=False\)"):
        JointLayout((one, two))
    with pytest.raises(ValueError, match=r"1 samples \(batched=False\) and 1 \(batched=True\)"):
        JointLayout((one, TokenLayout.padded([1], 2)))
    with pytest.raises(ValueError, match="sample 0 has a grid in more than one stream"):
        JointLayout((one, one))
    joint = JointLayout((one, TokenLayout.packed([None], [3]))).on("cpu")
    with pytest.raises(ValueError, match=r"streams have \(3, 2\) tokens, but the joint layout has \(2, 3\)"):
        joint.merge(torch.zeros(3), torch.zeros(2))


def test_layouts_of_a_capacity_never_count_as_joined() -> None:
    """One graph serves them all, so that none may be one that happens to need no order."""
    for capacity, identity in ((None, True), (4, False)):
        text, video = TokenLayout.packed([None], [2]), TokenLayout.packed([Grid(1, 2, 2)], capacity=capacity)
        joint = JointLayout((text, video)).on("cpu")
        assert joint.identity == identity
        assert joint.merge(torch.arange(2), torch.arange(2, 6)).tolist() == list(range(6))


def test_gradients_of_merged_streams_are_split_and_of_split_ones_merged() -> None:
    joint = JointLayout((TokenLayout.padded([1, 3], 3), TokenLayout.dense(2, Grid(1, 1, 2)))).on("cpu")
    streams = [torch.randn(2, n, 4, requires_grad=True) for n in (3, 2)]
    gradient = torch.randn(2, 5, 4, requires_grad=True)
    got = torch.autograd.grad(joint.merge(*streams), streams, gradient)
    parts = joint.split(gradient)
    assert all(torch.equal(a, b) for a, b in zip(got, parts, strict=True))
    assert torch.equal(torch.autograd.grad(parts, gradient, streams)[0], joint.merge(*streams))


@given(streams())
def test_indices_merge_as_their_layouts_do(make: Callable[[], tuple[TokenLayout, ...]]) -> None:
    """Where no token was dropped; places of padding among itself are nobody's business."""
    parts = make()
    if any(part.kept is not None for part in parts):
        with pytest.raises(ValueError, match="has dropped tokens"):
            JointIndex.of(*(part.on("cpu") for part in parts))
        return
    got, expected = JointIndex.of(*(part.on("cpu") for part in parts)), JointLayout(parts).on("cpu")
    for name in ("coords", "extent", "sample", "kind", "seqlens", "cu_seqlens", "frame_row"):
        assert torch.equal(getattr(got.index, name), getattr(expected.index, name)), name
    count = expected.index.samples
    assert torch.equal(got.index.table[:count], expected.index.table[:count]) and not got.index.table[count:, 1:].any()
    assert (got.widths, got.index.samples) == (expected.widths, expected.index.samples)
    assert got.index.dense == expected.index.dense and got.index.max_seqlen >= max(expected.index.seqlens.tolist())
    real = expected.index.frames
    assert torch.equal(got.index.frame_sample[:real], expected.index.frame_sample[:real])
    tokens = [torch.arange(math.prod(part.shape)).view(part.shape) + 1000 * i for i, part in enumerate(parts)]
    valid = expected.index.valid
    assert torch.equal(got.merge(*tokens)[valid], expected.merge(*tokens)[valid])
    assert all(torch.equal(a, b) for a, b in zip(got.split(got.merge(*tokens)), tokens, strict=True))


@pytest.mark.parametrize("capacity", [None, 9])
def test_a_prefix_is_a_text_of_one_length_before_each_sample(capacity: int | None) -> None:
    layout = TokenLayout.packed([Grid(1, 2, 2), None, Grid(2, 1, 1)], [0, 0, 1], capacity)
    index = layout.on("cpu")
    joint, prefix = JointIndex.of(index.prefix(2), index), index.prefix(2)
    rows = 3 if capacity is None else 16
    assert prefix.shape == (2 * rows,) and prefix.row_counts("sample") == (3, rows)
    expected = TokenLayout.packed([Grid(1, 2, 2), None, Grid(2, 1, 1)], [2, 2, 3]).on("cpu")
    for name in ("coords", "extent", "sample", "kind", "frame_row"):
        assert torch.equal(getattr(joint.index, name)[:13], getattr(expected, name)), name
    assert torch.equal(joint.index.table[:3], expected.table)
    dense = TokenLayout.dense(2, Grid(1, 1, 3)).on("cpu")
    joint = JointIndex.of(dense.prefix(2), dense)
    assert joint.index.dense and torch.equal(joint.index.kind, TokenLayout.dense(2, Grid(1, 1, 3), 2).on("cpu").kind)
    with pytest.raises(ValueError, match="tokens must be at least 1, got tokens=0 for 2 samples"):
        dense.prefix(0)


def test_indices_of_other_samples_or_another_form_are_refused() -> None:
    one, two = TokenLayout.packed([None], [3]).on("cpu"), TokenLayout.packed([None] * 2, [1, 2]).on("cpu")
    with pytest.raises(ValueError, match=r"same samples in one form, got \(3,\), \(3,\)"):
        JointIndex.of(one, two)
    with pytest.raises(ValueError, match=r"same samples in one form, got \(3,\), \(1, 3\)"):
        JointIndex.of(one, TokenLayout.padded([3], 3).on("cpu"))


def test_a_joint_index_knows_the_layouts_it_was_made_of() -> None:
    text, video = TokenLayout.packed([None] * 2, [1, 3]), TokenLayout.packed([Grid(1, 2, 3), Grid(2, 1, 1)])
    roomy = TokenLayout.packed([Grid(1, 2, 3), Grid(2, 1, 1)], capacity=30)
    streams = text.on("cpu"), video.on("cpu")
    for joint in (JointLayout((text, video)).on("cpu"), JointIndex.of(*streams)):
        for stream, index, layout in zip(joint.streams, streams, (text, video), strict=True):
            assert stream.difference(index.host) is None and stream.difference(layout.host) is None
        assert joint.streams[1].difference(roomy.host) is None and roomy.on("cpu").host.difference(video.host) is None
        for other in (
            TokenLayout.packed([Grid(1, 3, 2), Grid(2, 1, 1)]),
            TokenLayout.packed([Grid(1, 2, 3), Grid(2, 1, 1), Grid(1, 1, 1)]),
            TokenLayout.packed([Grid(1, 2, 3), None], [0, 2]),
        ):
            assert "sample" in str(joint.streams[1].difference(other.host)), other
    some, others = (video.keep(tokens).host for tokens in ([0, 2, 7], [0, 3, 7]))
    assert some.difference(some) is None and video.keep(range(8)).host.difference(video.host) is None
    assert some.difference(others) == "token 1 is number 2 of its sample, not 3"
