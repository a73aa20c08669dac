"""The segment operator: joined runs, its registration with PyTorch, and its two backward paths."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tubelet.attention import segments
from tubelet.attention.segments import segment_attention


def tables(lengths: list[int], gaps: list[int]) -> tuple[Tensor, Tensor, int]:
    starts, place = [], 0
    for length, gap in zip(lengths, gaps, strict=True):
        place += gap
        starts.append(place)
        place += length
    return torch.tensor([*starts, place], dtype=torch.int32), torch.tensor(lengths, dtype=torch.int32), place


def one_by_one(q: Tensor, k: Tensor, v: Tensor, *where: Tensor) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v, out = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), torch.zeros_like(q)
    cu_q, len_q, cu_k, len_k = (x.tolist() for x in where)
    for q0, nq, k0, nk in zip(cu_q, len_q, cu_k, len_k, strict=False):
        if nq and nk:
            scores = torch.einsum("qhd,khd->hqk", q[q0 : q0 + nq], k[k0 : k0 + nk]) * 0.3
            out[q0 : q0 + nq] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[k0 : k0 + nk])
    return out


segment = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))  # few values: many runs


@given(st.lists(segment, min_size=1, max_size=8), st.sampled_from([(1, 1), (4, 2)]))
def test_any_segments_equal_one_by_one(drawn: list[tuple[int, int, int, int]], heads: tuple[int, int]) -> None:
    q_lengths, q_gaps, k_lengths, k_gaps = (list(x) for x in zip(*drawn, strict=True))
    cu_q, len_q, n = tables(q_lengths, q_gaps)
    cu_k, len_k, m = tables(k_lengths, k_gaps)
    q = torch.randn(n, heads[0], 4, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(m, heads[1], 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    out = segment_attention(q, k, v, cu_q, len_q, cu_k, len_k, 0.3)
    expected = one_by_one(q, k, v, cu_q, len_q, cu_k, len_k)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-13)
    if expected.requires_grad:
        cotangent = torch.randn_like(expected)
        got, want = (torch.autograd.grad(x, (q, k, v), cotangent, allow_unused=True) for x in (out, expected))
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, torch.zeros_like(g) if w is None else w, rtol=1e-11, atol=1e-13)


def test_equal_segments_at_equal_distances_are_one_run() -> None:
    cu, used, _ = tables([3, 3, 3, 2, 2, 0, 1], [0, 1, 1, 0, 0, 0, 0])
    runs = list(segments._runs(cu, used, cu, used))
    assert [(r.pairs, r.q_start, r.q_length, r.q_step) for r in runs] == [(3, 0, 3, 4), (2, 11, 2, 2), (1, 15, 1, 1)]


def sample_arguments(dtype: torch.dtype = torch.float64, heads: int = 2) -> tuple[object, ...]:
    cu, used, n = tables([2, 2, 3, 0], [0, 0, 1, 0])
    q = torch.randn(n, heads, 4, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(n, 2, 4, dtype=dtype, requires_grad=True) for _ in range(2))
    return q, k, v, cu, used, cu, used, 0.5


@pytest.mark.graph
@pytest.mark.parametrize("heads", [2, 4])
def test_the_operator_is_well_registered(heads: int) -> None:
    result = torch.library.opcheck(segments._segments, sample_arguments(heads=heads))
    assert set(result.values()) == {"SUCCESS"}


def test_gradients_are_those_of_finite_differences() -> None:
    q, k, v, *rest = sample_arguments(heads=4)
    assert torch.autograd.gradcheck(lambda *x: segment_attention(*x, *rest), (q, k, v))


@pytest.mark.parametrize(("heads", "block"), [(2, 1 << 24), (4, 1 << 24), (4, 1)])
def test_the_recomputed_backward_equals_the_kernels(monkeypatch: pytest.MonkeyPatch, heads: int, block: int) -> None:
    """The path of other devices, forced onto the CPU; with blocks of one query too."""
    arguments = sample_arguments(heads=heads)
    out = segment_attention(*arguments)
    cotangent = torch.randn_like(out)
    expected = torch.autograd.grad(out, arguments[:3], cotangent)
    monkeypatch.setattr(segments, "_fused", lambda q, v: False)
    monkeypatch.setattr(segments, "_BLOCK", block)
    other = segment_attention(*arguments)
    torch.testing.assert_close(other, out, rtol=1e-11, atol=1e-13)
    for got, want in zip(torch.autograd.grad(other, arguments[:3], cotangent), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_keep_the_dtype_on_both_paths(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    arguments = sample_arguments(dtype)
    results = []
    for fused in (True, False):
        monkeypatch.setattr(segments, "_fused", lambda q, v, fused=fused: fused)
        results.append(torch.autograd.grad(segment_attention(*arguments).square().sum(), arguments[:3]))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype == dtype
        assert (a - b).norm() <= 4 * torch.finfo(dtype).eps * b.norm()


def test_fake_tensors_give_shapes_and_dtypes() -> None:
    with torch._subclasses.FakeTensorMode():
        q, k, v = (
            torch.empty(7, 4, 8, dtype=torch.bfloat16),
            torch.empty(5, 2, 8, dtype=torch.bfloat16),
            torch.empty(5, 2, 6, dtype=torch.bfloat16),
        )
        cu, used = torch.empty(3, dtype=torch.int32), torch.empty(2, dtype=torch.int32)
        out = segment_attention(q, k, v, cu, used, cu, used, 1.0)
    assert out.shape == (7, 4, 6) and out.dtype == torch.bfloat16
