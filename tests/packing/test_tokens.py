"""Laying tokens on one axis and cutting them apart again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.layout import Grid, TokenLayout
from tubelet.packing import pack, unpack


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=5), st.data())
def test_pack_and_unpack_are_inverse(sides: list[tuple[int, int, int]], data: st.DataObject) -> None:
    grids = [Grid(*side) for side in sides]
    texts = data.draw(st.lists(st.integers(0, 3), min_size=len(grids), max_size=len(grids)))
    total = sum(texts) + sum(grid.tokens for grid in grids)
    capacity = data.draw(st.none() | st.integers(total, total + 5))
    layout = TokenLayout.packed(grids, text_lengths=texts, capacity=capacity)
    samples = [torch.randn(length, 2) for length in layout.lengths]
    tokens = pack(samples, capacity)
    assert tokens.shape == (*layout.shape, 2)
    assert not tokens[total:].any()
    for restored, sample in zip(unpack(tokens, layout), samples, strict=True):
        assert torch.equal(restored, sample)


def test_unpack_of_padded_rows_leaves_the_padding() -> None:
    tokens = torch.arange(8).reshape(2, 4)
    samples = unpack(tokens, TokenLayout.padded([3, 1], n=4))
    assert [sample.tolist() for sample in samples] == [[0, 1, 2], [4]]


def test_gradients_flow_back_to_each_sample() -> None:
    samples = [torch.randn(2, 3, requires_grad=True), torch.randn(1, 3, requires_grad=True)]
    layout = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 1)], capacity=5)
    unpack(pack(samples, 5), layout)[0].square().sum().backward()
    assert samples[0].grad is not None
    assert samples[1].grad is not None
    assert torch.equal(samples[0].grad, 2 * samples[0].detach())
    assert not samples[1].grad.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack([]), "samples is empty"),
        (lambda: pack([torch.zeros(1, 2), torch.zeros(1, 3)]), r"sample 0 has \(2,\), sample 1 has \(3,\)"),
        (lambda: pack([torch.zeros(3, 2)], capacity=2), "3 tokens, more than the capacity of 2"),
        (lambda: unpack(torch.zeros(4, 2), TokenLayout.packed([Grid(1, 1, 3)])), r"\(4, 2\) .* \(3,\)"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
