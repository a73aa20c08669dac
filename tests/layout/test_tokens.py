"""Token layouts against a plain Python list of tokens, written out sample by sample."""

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.layout import Grid, Kind, TokenLayout

grids = st.builds(Grid, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
samples = st.lists(st.tuples(st.none() | grids, st.integers(0, 3)), min_size=1, max_size=5)
Case = Callable[[], tuple[TokenLayout, list[list[dict[str, Any]]]]]  # made inside the test, where shapes are checked
PAD = {"coords": [-1, -1, -1], "extent": [0, 0, 0], "sample": -1, "kind": Kind.PAD, "frame_row": 0}


@st.composite
def layouts(draw: st.DrawFn) -> Case:
    """A layout of any form and its slots: rows (one if packed) of token records."""
    form = draw(st.sampled_from(["packed", "capacity", "padded", "dense", "dropped"]))
    if form == "dense":
        batch, grid, text = draw(st.integers(1, 3)), draw(grids), draw(st.integers(0, 3))
        return lambda: (TokenLayout.dense(batch, grid, text), rows_of([(grid, text)] * batch))
    if form == "padded":
        lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
        n = max(lengths) + draw(st.integers(0, 3))
        slots = rows_of([(None, length) for length in lengths])
        return lambda: (TokenLayout.padded(lengths, n), [row + [PAD] * (n - len(row)) for row in slots])
    drawn = draw(samples)
    sizes, texts = [g for g, _ in drawn], [t for _, t in drawn]
    tokens = [token for row in rows_of(drawn) for token in row]
    if form == "capacity":
        extra = draw(st.integers(0, 9))
        return lambda: (TokenLayout.packed(sizes, texts, len(tokens) + extra), [tokens + [PAD] * extra])
    if form == "dropped":
        chosen = sorted(draw(st.sets(st.integers(0, len(tokens) - 1)))) if tokens else []
        return lambda: (TokenLayout.packed(sizes, texts).keep(chosen), [[tokens[i] for i in chosen]])
    return lambda: (TokenLayout.packed(sizes, texts), [tokens])


def rows_of(drawn: list[tuple[Grid | None, int]]) -> list[list[dict[str, Any]]]:
    """The canonical order written out: per sample its text, then its grid in raster order."""
    rows, frame_row = [], 0
    for number, (grid, text) in enumerate(drawn):
        tokens = [
            {"coords": [-1, 0, i], "extent": [1, 1, text], "sample": number, "kind": Kind.TEXT, "frame_row": frame_row}
            for i in range(text)
        ]
        frame_row += text > 0
        for t in range(grid.t if grid else 0):
            for y in range(grid.h):
                for x in range(grid.w):
                    extent = [grid.t, grid.h, grid.w]
                    where = {"coords": [t, y, x], "extent": extent, "sample": number, "kind": Kind.GRID}
                    tokens.append({**where, "frame_row": frame_row})
            frame_row += 1
        rows.append(tokens)
    return rows


@given(layouts())
def test_index_equals_the_written_out_tokens(case: Case) -> None:
    layout, slots = case()
    index = layout.on("cpu")
    for field in PAD:
        expected = [[s[field] for s in row] for row in slots]
        got = getattr(index, field).tolist()
        assert got == (expected if layout.batched else expected[0]), field
    assert layout.shape == index.shape == ((len(slots), len(slots[0])) if layout.batched else (len(slots[0]),))
    assert index.frame.tolist() == index.coords[..., 0].tolist()
    assert torch.equal(index.valid, index.sample >= 0)
    fields = (index.coords, index.extent, index.kind, index.sample)
    assert all(torch.equal(a, b) for a, b in zip(index.info(), fields, strict=True))


@given(layouts())
def test_segments_cover_each_sample(case: Case) -> None:
    layout, slots = case()
    index = layout.on("cpu")
    flat = [slot["sample"] for row in slots for slot in row]
    lengths = [flat.count(i) for i in range(len(layout.grids))]
    assert list(layout.lengths) == lengths
    assert index.seqlens.tolist()[: len(lengths)] == lengths and not index.seqlens[len(lengths) :].any()
    for i, length in enumerate(lengths):
        start = int(index.cu_seqlens[i])
        assert flat[start : start + length] == [i] * length
    assert index.cu_seqlens.dtype == index.seqlens.dtype == torch.int32
    starts, used = index.table[:, :2].int().unbind(1)
    assert torch.equal(used, index.seqlens) and torch.equal(starts[used > 0], index.cu_seqlens[:-1][used > 0])
    assert len(index.cu_seqlens) == len(index.seqlens) + 1
    assert index.max_seqlen >= max(lengths) and (layout.bucketed or index.max_seqlen == max(lengths))
    assert index.dense == (layout.batched and len(flat) == sum(lengths))
    if not layout.batched:
        assert (index.cu_seqlens.diff() == index.seqlens).all()


@given(layouts())
def test_rows_reach_their_tokens_at_every_level(case: Case) -> None:
    layout, slots = case()
    index = layout.on("cpu")
    frame_rows = sum((t > 0) + (g.t if g else 0) for g, t in zip(layout.grids, layout.text_lengths, strict=True))
    for level, field, count in (("sample", "sample", len(layout.grids)), ("frame", "frame_row", frame_rows)):
        if count == 0:
            continue
        values = torch.arange(count, dtype=torch.float64) + 1
        rows = index.rows(values, level)
        table = rows.expand().expand(layout.shape).tolist()
        flat = table if layout.batched else [table]
        for row, got in zip(slots, flat, strict=True):
            assert [g for s, g in zip(row, got, strict=True) if s is not PAD] == [
                s[field] + 1.0 for s in row if s is not PAD
            ]
        owners = rows.owner[:count].tolist()
        assert index.lift(torch.arange(len(layout.grids)), level).tolist() == owners
    everyone = torch.randn(*layout.shape, 2).flatten(0, -2)
    assert torch.equal(index.rows(everyone, "token").expand(), everyone.view(*layout.shape, 2))
    token_owner = index.rows(everyone, "token").owner
    assert torch.equal(token_owner.view(layout.shape)[index.valid], index.sample[index.valid])


@given(layouts())
def test_a_layout_is_a_value(case: Case) -> None:
    layout, _ = case()
    copy = pickle.loads(pickle.dumps(layout))
    assert copy == layout and hash(copy) == hash(layout) and copy is not layout
    assert dataclasses.replace(layout, width=layout.width + 1) != layout
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.width = 3


def test_frame_owner_names_the_sample_of_each_frame_row() -> None:
    index = TokenLayout.packed([Grid(2, 1, 1), None, Grid(1, 1, 1)], [1, 2, 0], capacity=10).on("cpu")
    assert index.frames == 5 and index.samples == 3
    assert index.frame_sample.tolist() == [0, 0, 0, 1, 2] + [0] * 27


def test_one_capacity_gives_one_set_of_shapes() -> None:
    mixtures = [([Grid(1, 1, 1)], None), ([Grid(3, 2, 2), Grid(1, 4, 5)], [3, 0]), ([Grid(1, 2, 1)] * 12, [1] * 12)]
    seen = set()
    for sizes, text in mixtures:
        index = TokenLayout.packed(sizes, text, capacity=64).on("cpu")
        tensors = {f.name: getattr(index, f.name) for f in dataclasses.fields(index)}
        shapes = {name: tuple(x.shape) for name, x in tensors.items() if isinstance(x, torch.Tensor)}
        seen.add((index.max_seqlen, index.dense, tuple(sorted(shapes.items()))))
    assert len(seen) == 1


def test_tables_beyond_the_smallest_bucket_double() -> None:
    index = TokenLayout.packed([Grid(2, 1, 1)] * 17, capacity=64).on("cpu")
    assert index.seqlens.shape == (32,) and index.frame_sample.shape == (64,) and index.max_seqlen == 64
    assert TokenLayout.packed([Grid(1, 5, 20)], capacity=100).on("cpu").max_seqlen == 128


def test_keep_after_keep_selects_from_what_was_left() -> None:
    layout = TokenLayout.packed([Grid(2, 2, 2), Grid(1, 2, 3)], [2, 0])
    once = layout.keep(torch.tensor([0, 1, 3, 5, 9, 10, 12, 15]))
    twice = once.keep([1, 2, 5, 7])
    assert twice == layout.keep([1, 3, 10, 15])
    assert once.irregular == "tokens were dropped by layout.keep(...)" and layout.irregular is None
    assert once.full_lengths == layout.lengths == (10, 6)


def test_keep_of_rows_gives_a_packed_layout() -> None:
    layout = TokenLayout.padded([2, 3], n=4)
    kept = layout.keep([1, 4, 6])
    assert not kept.batched and kept.lengths == (1, 2) and kept.shape == (3,)
    full = layout.on("cpu").coords.flatten(0, 1)
    assert torch.equal(kept.on("cpu").coords, full[[1, 4, 6]])


def test_everything_may_be_dropped() -> None:
    index = TokenLayout.packed([Grid(1, 1, 2)]).keep([]).on("cpu")
    assert index.shape == (0,) and index.seqlens.tolist() == [0] and index.coords.shape == (0, 3)


@given(layouts(), st.integers(1, 3))
def test_repeated_samples_are_the_same_again(case: Case, times: int) -> None:
    layout, _ = case()
    once, more = layout.on("cpu"), layout.repeat(times).on("cpu")
    assert more.samples == times * once.samples and layout.repeat(1) == layout
    for number in range(times):
        for sample in range(once.samples):
            ours, theirs = more.sample == number * once.samples + sample, once.sample == sample
            for field in ("coords", "extent", "kind"):
                assert torch.equal(getattr(more, field)[ours], getattr(once, field)[theirs])
    assert more.valid.numel() == times * once.valid.numel()
    assert layout.batched == (len(more.shape) == 2) and layout.repeat(times).bucketed == layout.bucketed


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Grid(1, 0, 2), ("t=1", "h=0", "w=2")),
        (lambda: TokenLayout.packed([Grid(1, 1, 1)], [1, 2]), ("1 samples", "text_lengths has 2")),
        (lambda: TokenLayout.packed([]), ("at least one sample", "grids=()")),
        (lambda: TokenLayout.packed([None], [-1]), ("text_lengths", "(-1,)")),
        (lambda: TokenLayout.packed([Grid(1, 2, 3)], capacity=5), ("6 tokens", "capacity=5")),
        (lambda: TokenLayout.padded([2, 5], n=4), ("lengths", "5 tokens", "n=4")),
        (lambda: TokenLayout.packed([Grid(1, 2, 3)]).keep([2, 2]), ("index", "2 after 2")),
        (lambda: TokenLayout.packed([Grid(1, 2, 3)]).keep([2, 6]), ("2 entries", "only 1", "(6,)")),
        (lambda: TokenLayout.packed([None], [1]).repeat(0), ("times", "got 0")),
        (lambda: TokenLayout.padded([2, 3], n=4).keep([2]), ("1 entries", "only 0", "(2, 4)")),
    ],
)
def test_bad_layouts_name_both_values(make: Any, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert all(name in str(caught.value) for name in names), str(caught.value)


def test_rows_of_a_layout_are_those_of_its_index() -> None:
    layout = TokenLayout.packed([Grid(1, 1, 2), Grid(2, 1, 1)])
    values = torch.randn(2, 3)
    assert torch.equal(layout.rows(values, "sample").expand(), layout.on("cpu").rows(values, "sample").expand())


@pytest.mark.graph  # run-time shape checks off, as for users
def test_keep_refuses_masks_and_fractions() -> None:
    layout = TokenLayout.packed([Grid(1, 1, 4)])
    for index in (torch.tensor([False, True]), torch.tensor([0.9, 2.2])):
        with pytest.raises(ValueError, match=str(index.dtype)):
            layout.keep(index)


@pytest.mark.graph  # without type checks, as users run it
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TokenLayout.packed([(1, 2, 2)]), r"Grid\(t, h, w\) or None, got \(1, 2, 2\)"),
        (lambda: TokenLayout.packed([Grid(1, 2, 2)], [1.0]), "whole numbers, got 1.0"),
        (lambda: TokenLayout.packed([Grid(1, 2, 2)], capacity=8.0), "whole numbers, got 8.0"),
        (lambda: TokenLayout.padded([2.0], 4), "whole numbers, got 2.0"),
    ],
)
def test_entries_of_another_kind_are_named(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
