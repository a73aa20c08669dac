"""Rows against plain indexing."""

import pytest
import torch

from tubelet.layout import Rows


def test_map_and_chunk_commute_with_expand() -> None:
    values, index = torch.randn(3, 6), torch.tensor([[0, 2, 2], [1, 0, 1]])
    rows = Rows(values, index, torch.tensor([0, 0, 1]))
    assert torch.equal(rows.map(torch.tanh).expand(), torch.tanh(values)[index])
    parts = rows.chunk(3)
    assert [p.values.shape for p in parts] == [(3, 2)] * 3
    assert torch.equal(torch.cat([p.expand() for p in parts], -1), values[index])
    assert all(p.owner is rows.owner and p.index is index for p in parts)


@pytest.mark.parametrize("shape", [(2,), (2, 5)])
def test_rows_without_index_belong_to_batch_elements(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape)
    assert torch.equal(Rows(values).expand(), values[:, None])


def test_a_single_row_broadcasts() -> None:
    assert Rows(torch.ones(1, 4)).expand().shape == (1, 4)


def test_shared_keeps_every_token_and_drops_equal_rows() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [3.0, 4.0]])
    index = torch.tensor([3, 0, 1, 2, 2])
    rows = Rows(values, index, torch.arange(4))
    assert rows.shared().values.shape == (2, 2)
    assert torch.equal(rows.shared().expand(), values[index])


def test_shared_rows_of_a_dense_batch() -> None:
    same, different = Rows(torch.ones(3)), Rows(torch.tensor([1.0, 2.0, 1.0]))
    assert same.shared().values.tolist() == [1.0] and same.shared().index is None
    assert different.shared() is different
