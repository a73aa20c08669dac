"""Frames as samples of their own and as single tokens: indices as layouts of them would have, field by field."""

import dataclasses

import pytest
import torch

from tubelet.layout import Grid, LayoutIndex, TokenLayout, frames_apart, frames_as_tokens

GRIDS = [Grid(2, 1, 2), Grid(1, 2, 1), Grid(3, 2, 2)]
SINGLE = [Grid(1, 1, 2)] * 2 + [Grid(1, 2, 1)] + [Grid(1, 2, 2)] * 3


def assert_same(got: LayoutIndex, expected: LayoutIndex, room: bool = False) -> None:
    """All that is of real tokens and samples; ``room`` for other capacities of samples and other bounds."""
    assert (got.samples, got.frames >= expected.frames, got.dense) == (expected.samples, True, expected.dense)
    assert got.max_seqlen >= expected.max_seqlen and got.shape == expected.shape and got.kept is None
    for name in ("coords", "extent", "sample", "kind"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    count = expected.samples
    for name in ("seqlens", "table", "cu_seqlens"):
        assert torch.equal(getattr(got, name)[:count], getattr(expected, name)[:count]), name
    assert not got.seqlens[count:].any() and (room or len(got.seqlens) == count)
    assert torch.equal(got.frame_row[got.valid], expected.frame_row[got.valid])
    rows = int(expected.frame_row.max()) + 1
    assert torch.equal(got.frame_sample[:rows], expected.frame_sample[:rows])


@pytest.mark.parametrize("capacity", [None, 30])
def test_packed(capacity: int | None) -> None:
    index = TokenLayout.packed(GRIDS, capacity=capacity).on("cpu")
    assert_same(frames_apart(index), TokenLayout.packed(SINGLE, capacity=capacity).on("cpu"), capacity is not None)
    tokens = frames_as_tokens(index)
    width = None if capacity is None else len(index.frame_sample)
    expected = TokenLayout.packed([Grid(g.t, 1, 1) for g in GRIDS], capacity=width).on("cpu")
    assert_same(tokens, expected, capacity is not None)
    assert tokens.cu_seqlens[-1] == expected.cu_seqlens[-1] == 6
    assert len(tokens.seqlens) == len(index.seqlens)


def test_room_behind_the_last_sample_is_of_no_frame() -> None:
    """Here every row for a sample is taken, so that the last one owns what is left of the rows for frames."""
    grids, capacity = [Grid(1, 1, 2)] * 16, 40
    index = TokenLayout.packed(grids, capacity=capacity).on("cpu")
    assert len(index.seqlens) == 16 < len(index.frame_sample)
    frames = frames_apart(index)
    assert torch.equal(frames.valid, index.valid) and torch.equal(frames.sample, index.sample)
    assert int(frames.seqlens.sum()) == 32


def test_dense() -> None:
    index = TokenLayout.dense(2, Grid(3, 2, 2)).on("cpu")
    assert_same(frames_apart(index), TokenLayout.dense(6, Grid(1, 2, 2)).on("cpu"))
    assert_same(frames_as_tokens(index), TokenLayout.dense(2, Grid(3, 1, 1)).on("cpu"))


def test_no_frames_or_some_without() -> None:
    index = TokenLayout.packed([None, Grid(2, 1, 1), None]).on("cpu")
    assert frames_apart(index).sample.tolist() == [0, 1]
    assert frames_as_tokens(index).sample.tolist() == [1, 1]


def test_what_has_no_whole_frames_is_refused() -> None:
    bad = {
        r"text of \[0, 1\] tokens": TokenLayout.packed([Grid(1, 1, 2)] * 2, [0, 1]),
        "dropped tokens": TokenLayout.packed([Grid(2, 1, 2)]).keep([0, 3]),
        "with padding": dataclasses.replace(TokenLayout.dense(2, Grid(1, 1, 2)), width=3),
        r"of grids \[\[1, 1, 2\], \[1, 2, 1\]\], which differ": TokenLayout(
            (Grid(1, 1, 2), Grid(1, 2, 1)), (0, 0), 2, batched=True
        ),
    }
    for says, layout in bad.items():
        for ask in (frames_apart, frames_as_tokens):
            with pytest.raises(ValueError, match=says):
                ask(layout.on("cpu"))
