"""The device index: row tables, lifting and adding per sample, capacities."""

import pytest
import torch
from torch import Tensor

from tubelet.layout import Grid, Kind, Rows, TokenInfo, TokenLayout

MIXED = ([Grid(2, 1, 2), None, Grid(1, 2, 1)], [1, 2, 0])  # 5 + 2 + 2 tokens; frame rows: 3 + 1 + 1


@pytest.mark.graph
def test_kinds_compare_with_tensors_in_compiled_code() -> None:
    kind = torch.tensor([0, 1, 2])
    compiled = torch.compile(lambda x: (x == Kind.TEXT, x != Kind.PAD), fullgraph=True, backend="eager")
    assert [x.tolist() for x in compiled(kind)] == [[False, True, False], [False, True, True]]


def test_padding_uses_row_zero_and_spare_rows_are_zero() -> None:
    index = TokenLayout.packed(*MIXED, capacity=12).on("cpu")
    rows = index.rows(torch.tensor([1.0, 2.0, 3.0]), "sample")
    assert rows.values.shape == (16,) and not rows.values[3:].any()
    assert rows.expand().tolist() == [1.0] * 5 + [2.0] * 2 + [3.0] * 2 + [1.0] * 3
    assert torch.equal(index.rows(rows.values, "sample").expand(), rows.expand())  # a full table is taken as it is


@pytest.mark.parametrize(("level", "real"), [("sample", 3), ("frame", 5), ("token", 9)])
def test_row_counts_are_checked(level: str, real: int) -> None:
    index = TokenLayout.packed(*MIXED).on("cpu")
    assert index.row_counts(level) == (real, real)
    with pytest.raises(ValueError, match=f"values has {real + 1} rows, but the layout has {real} at level '{level}'"):
        index.rows(torch.zeros(real + 1), level)


def test_rows_of_dense_batches_are_views() -> None:
    values = torch.randn(3, 4)
    rows = TokenLayout.dense(3, Grid(2, 2, 2)).on("cpu").rows(values, "sample")
    assert rows.index is None and rows.expand().shape == (3, 1, 4)
    assert rows.expand().data_ptr() == values.data_ptr()


@pytest.mark.parametrize("capacity", [None, 20])
def test_add_per_sample_reaches_the_rows_of_each_sample(capacity: int | None) -> None:
    index = TokenLayout.packed(*MIXED, capacity=capacity).on("cpu")
    pooled = torch.tensor([[10.0], [20.0], [30.0]])
    expected = torch.tensor([10.0] * 5 + [20.0] * 2 + [30.0] * 2)[:, None]
    for level, count in (("sample", 3), ("frame", 5), ("token", index.sample.numel())):
        values = torch.rand(count, 1)
        rows = index.rows(values, level)
        got = index.add_per_sample(rows, pooled).expand()[:9]
        assert torch.equal(got, rows.expand()[:9] + expected)
    shared = index.add_per_sample(Rows(torch.tensor([[0.5]])), pooled).expand()[:9]
    assert torch.equal(shared, expected + 0.5)


@pytest.mark.parametrize(("mine", "theirs"), [(20, None), (None, 20)])
def test_add_per_sample_takes_values_of_another_capacity(mine: int | None, theirs: int | None) -> None:
    """A layout with a capacity (16 spare samples) meets a text layout without one, and the other way round."""
    index = TokenLayout.packed(*MIXED, capacity=mine).on("cpu")
    other = TokenLayout.packed([None] * 3, [1, 2, 3], theirs).on("cpu")
    values = torch.zeros(other.seqlens.shape[0])
    values[:3] = torch.tensor([1.0, 2.0, 3.0])
    got = index.add_per_sample(index.rows(torch.zeros(3), "sample"), values).expand()
    assert got[:9].tolist() == [1.0] * 5 + [2.0] * 2 + [3.0] * 2


def test_add_per_sample_refuses_rows_without_owners() -> None:
    index = TokenLayout.packed(*MIXED).on("cpu")
    with pytest.raises(ValueError, match="rows has 2 rows without owners"):
        index.add_per_sample(Rows(torch.zeros(2, 1)), torch.zeros(3, 1))


def test_gradients_of_rows_sum_over_their_tokens() -> None:
    index = TokenLayout.packed(*MIXED).on("cpu")
    values = torch.zeros(5, requires_grad=True)
    index.rows(values, "frame").expand().sum().backward()
    assert values.grad.tolist() == [1.0, 2.0, 2.0, 2.0, 2.0]


def test_same_samples_compares_numbers_of_samples() -> None:
    index = TokenLayout.packed(*MIXED).on("cpu")
    assert index.same_samples(TokenLayout.padded([0, 1, 2], 4).on("cpu"))
    assert not index.same_samples(TokenLayout.dense(2, Grid(1, 1, 1)).on("cpu"))


def test_info_is_what_a_pattern_sees() -> None:
    info = TokenLayout.packed([Grid(1, 1, 1)], [1]).on("cpu").info()
    assert isinstance(info, TokenInfo)
    assert info.extent.tolist() == [[1, 1, 1], [1, 1, 1]] and info.kind.tolist() == [1, 2]


@pytest.mark.graph
@pytest.mark.parametrize("capacity", [None, 9])
def test_a_layout_in_compiled_code_breaks_the_graph_and_says_why(capacity: int | None) -> None:
    layout = TokenLayout.packed([Grid(1, 2, 2), Grid(2, 1, 1)], capacity=capacity)

    def summed(x: Tensor, layout: TokenLayout) -> Tensor:
        index = layout.on(x.device)
        return x.new_zeros(2).index_add(0, index.sample[:6], x[:6])

    x = torch.arange(9.0)
    assert torch.equal(torch.compile(summed, backend="eager")(x, layout), torch.tensor([6.0, 9.0]))
    torch._dynamo.reset()  # else the frame that was given up before is given up again, in silence
    with pytest.raises(Exception, match=r"pass layout\.on\(device\) to compiled code"):
        torch.compile(summed, backend="eager", fullgraph=True)(x, layout)


def test_padding_becomes_zeros_that_nan_passes_in_no_direction() -> None:
    index = TokenLayout.padded([1, 3], 3).on("cpu")
    x = torch.tensor([[[1.0], [torch.nan], [torch.inf]], [[2.0], [3.0], [4.0]]], requires_grad=True)
    out = index.zero_padding(x)
    assert out.flatten().tolist() == [1, 0, 0, 2, 3, 4]
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1, 0, 0, 1, 1, 1]


def test_tokens_without_padding_are_not_copied() -> None:
    x = torch.ones(2, 4, 1)
    assert TokenLayout.dense(2, Grid(1, 2, 2)).on("cpu").zero_padding(x) is x
    assert TokenLayout.padded([4, 4], 4).on("cpu").zero_padding(x) is x
    assert TokenLayout.padded([4, 3], 4).on("cpu").zero_padding(x) is not x
