"""Statistics per sample against PyTorch's on each sample alone."""

from collections.abc import Callable

import pytest
import torch
from denoisers import randn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tubelet.diffusion import PerSample
from tubelet.layout import Grid, LayoutIndex, TokenLayout

KINDS: dict[str, tuple[Callable[[PerSample, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "sum": (lambda s, x: s.sum(x), torch.sum),
    "dot": (lambda s, x: s.dot(x, x + 1), lambda x: (x * (x + 1)).sum()),
    "norm": (lambda s, x: s.norm(x), torch.linalg.vector_norm),
    "std": (lambda s, x: s.std(x), torch.std),
    "median": (lambda s, x: s.quantile(x, 0.5), lambda x: x.quantile(0.5)),
    "quantile": (lambda s, x: s.quantile(x, 0.83), lambda x: x.quantile(0.83)),
    "least": (lambda s, x: s.quantile(x, 0.0), torch.min),
    "most": (lambda s, x: s.quantile(x, 1.0), torch.max),
}
each = pytest.mark.parametrize("kind", KINDS)


def check(kind: str, samples: PerSample, x: Tensor, pieces: list[tuple[Tensor, Tensor]]) -> None:
    """``pieces``: where each sample lies, and its values."""
    ours, theirs = KINDS[kind]
    found = ours(samples, x)
    assert found.dtype == x.dtype
    for place, values in pieces:
        expected = theirs(values.flatten()).expand_as(x[place])
        torch.testing.assert_close(found.expand_as(x)[place], expected, rtol=1e-12, atol=1e-12)


@given(
    kind=st.sampled_from(sorted(KINDS)),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=20),
    spare=st.integers(0, 3),
    bucketed=st.booleans(),
)
def test_packed(kind: str, lengths: list[int], spare: int, bucketed: bool) -> None:
    total = sum(lengths)
    layout = TokenLayout.packed([Grid(n, 1, 1) for n in lengths], capacity=total + spare if bucketed else None)
    x = torch.full((layout.width, 3), torch.nan, dtype=torch.float64)
    x[:total] = randn(total, 3)
    index = layout.on("cpu")
    check(kind, PerSample(index), x, [(index.sample == i, x[index.sample == i]) for i in range(len(lengths))])


@each
def test_packed_where_some_tokens_do_not_count(kind: str) -> None:
    index = TokenLayout.packed([Grid(3, 1, 1), Grid(2, 2, 1)], capacity=9).on("cpu")
    counted = torch.tensor([True, False, True, False, True, True, True, True, True])
    x = torch.where(counted[:, None] & index.valid[:, None], randn(9, 3), torch.nan)
    pieces = [(index.sample == i, x[(index.sample == i) & counted]) for i in range(2)]
    found = PerSample(index, counted)
    for place, values in pieces:
        ours, theirs = KINDS[kind]
        torch.testing.assert_close(ours(found, x)[place][0, 0], theirs(values.flatten()), rtol=1e-12, atol=1e-12)


@each
def test_rows_whole_padded_and_masked(kind: str) -> None:
    x = randn(2, 4, 3)
    whole: list[LayoutIndex | None] = [None, TokenLayout.dense(2, Grid(1, 2, 2)).on("cpu")]
    for layout in whole:
        check(kind, PerSample(layout), x, [(torch.tensor([i]), x[i]) for i in range(2)])
    padded = TokenLayout.padded([4, 2], 4).on("cpu")
    gap = torch.where(padded.valid[..., None], x, torch.nan)
    check(kind, PerSample(padded), gap, [(padded.sample == i, gap[padded.sample == i]) for i in range(2)])
    ours, theirs = KINDS[kind]
    masked = ours(PerSample(None, padded.valid), gap)
    torch.testing.assert_close(masked[1, 0, 0], theirs(x[1, :2].flatten()), rtol=1e-12, atol=1e-12)


@each
def test_one_sample_and_whole_videos(kind: str) -> None:
    x = randn(5, 3)
    check(kind, PerSample(), x, [(torch.ones(5, dtype=torch.bool), x)])
    videos = randn(2, 3, 2, 4, 5)
    check(kind, PerSample(), videos, [(torch.tensor([i]), videos[i]) for i in range(2)])


def test_half_precision_is_summed_in_float32() -> None:
    x = torch.full((4096, 2), 1.0, dtype=torch.bfloat16)
    index = TokenLayout.packed([Grid(4095, 1, 1), Grid(1, 1, 1)]).on("cpu")
    total = PerSample(index).sum(x)
    assert total.dtype == torch.float32 and total[0].item() == 8190.0 and total[-1].item() == 2.0
    assert PerSample(index).quantile(x, 0.5).dtype == torch.float32


def test_samples_without_numbers() -> None:
    """What is divided by stays finite, so that their tokens, if any, do."""
    index = TokenLayout.packed([Grid(2, 1, 1), Grid(1, 1, 1)]).on("cpu")
    samples = PerSample(index, torch.tensor([False, False, True]))
    x = torch.tensor([[torch.nan], [torch.nan], [3.0]])
    assert samples.sum(x).flatten().tolist() == [0.0, 0.0, 3.0]
    assert samples.quantile(x, 0.5).flatten().tolist() == [0.0, 0.0, 3.0]


def test_gradients_are_those_of_the_sample_alone() -> None:
    layout = TokenLayout.packed([Grid(3, 1, 1), Grid(2, 1, 1)], capacity=7)
    x = torch.cat([randn(5, 2), torch.full((2, 2), torch.nan, dtype=torch.float64)]).requires_grad_()
    found = PerSample(layout.on("cpu"))
    (found.std(x) * found.quantile(x, 0.4))[[0, 3]].sum().backward()
    for place in (slice(0, 3), slice(3, 5)):
        own = x.detach()[place].requires_grad_()
        (own.std() * own.flatten().quantile(0.4)).backward()
        torch.testing.assert_close(x.grad[place], own.grad, rtol=1e-12, atol=1e-12)
    assert not x.grad[5:].any()


@pytest.mark.graph
def test_other_tokens_are_refused() -> None:
    index = TokenLayout.packed([Grid(3, 1, 1)]).on("cpu")
    with pytest.raises(ValueError, match=r"layout has tokens \(3,\), but the predictions have \(4,\)"):
        PerSample(index).sum(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"counted has tokens \(2,\), but the predictions have \(4,\)"):
        PerSample(counted=torch.ones(2, dtype=torch.bool)).sum(torch.zeros(4, 2))
