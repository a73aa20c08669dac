"""Chunked bfloat16 attention against float64, in one chunk and in many, forward and backward; what it refuses."""

from collections.abc import Callable

import drawn
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tubelet.attention import FrameCausal, Joint, Neighborhood, Temporal, Window, attend, backends, chunks, explain
from tubelet.attention.planned import KERNELS
from tubelet.layout import Grid, TokenLayout
from tubelet.protocols import Pattern

EPS = torch.finfo(torch.bfloat16).eps
MIXED = TokenLayout.packed([Grid(4, 2, 3), Grid(4, 2, 3), Grid(1, 1, 1), Grid(3, 3, 2)], [2, 2, 0, 1], capacity=80)
SOME = [Joint(), Temporal(), Window((2, 2, 2), (1, 0, 1)), Neighborhood((2, 3, 3)), FrameCausal(window=2, sink=1)]


def tensors(layout: TokenLayout, heads: int, kv_heads: int, width: int = 8) -> list[Tensor]:
    shapes = ((*layout.shape, h, width) for h in (heads, kv_heads, kv_heads))
    return [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]


def results(qkv: list[Tensor], cotangent: Tensor, **how: object) -> list[Tensor]:
    out = attend(*qkv, **how)
    return [out, *torch.autograd.grad(out, qkv, cotangent.to(out.dtype))]


def assert_near_float64(qkv: list[Tensor], bound: float, **how: object) -> None:
    exact = [x.detach().double().requires_grad_() for x in qkv]
    cotangent = torch.randn(qkv[0].shape).bfloat16()
    got = results(qkv, cotangent, backend="chunked", **how)
    want = results(exact, cotangent.double(), backend="reference", **how)
    scale = max(float(w.detach().norm()) for w in want)
    assert all(g.dtype == torch.bfloat16 for g in got)
    for g, w in zip(got, want, strict=True):
        assert float((g.detach().double() - w.detach()).norm()) <= bound * scale


@given(draw=drawn.patterns | drawn.splits(4), make=drawn.layouts(), kv_heads=st.sampled_from([1, 2, 4]))
def test_every_pattern_on_every_layout_is_near_float64(
    draw: drawn.Made, make: Callable[[], TokenLayout], kv_heads: int
) -> None:
    layout = make()
    assert_near_float64(tensors(layout, 4, kv_heads), 2 * EPS, pattern=draw(), layout=layout)


@pytest.mark.parametrize("pattern", SOME, ids=str)
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_many_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch, pattern: Pattern, kv_heads: int) -> None:
    monkeypatch.setattr(chunks, "_SCORES", 1)
    monkeypatch.setattr(chunks, "_ROWS", 3)
    assert_near_float64(tensors(MIXED, 4, kv_heads), 2 * EPS, pattern=pattern, layout=MIXED)


def test_cross_attention_and_widths_that_differ() -> None:
    context = TokenLayout.packed([None] * 4, [3, 0, 2, 5])
    q, k = torch.randn(*MIXED.shape, 4, 8).bfloat16(), torch.randn(10, 2, 8).bfloat16()
    v = torch.randn(10, 2, 6).bfloat16()
    got = attend(q, k, v, layout=MIXED, kv_layout=context, scale=0.7, backend="chunked")
    want = attend(q.double(), k.double(), v.double(), layout=MIXED, kv_layout=context, scale=0.7, backend="reference")
    assert (got.double() - want).norm() <= 2 * EPS * want.norm()
    assert not got[MIXED.starts[1] : MIXED.starts[2]].any()


@pytest.mark.parametrize("length", [256, 1500])
def test_the_error_is_at_most_two_and_a_fifth_of_pytorchs(length: int) -> None:
    q, k, v = torch.randn(3, 1, length, 2, 64).bfloat16()
    exact = attend(q.double(), k.double(), v.double())
    errors = [float((attend(q, k, v, backend=name).double() - exact).norm()) for name in ("chunked", "sdpa")]
    assert errors[0] <= 2.2 * errors[1]


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("buffer", [1 << 20, 1])
def test_a_run_equals_the_kernel_of_sdpa(monkeypatch: pytest.MonkeyPatch, statistics: bool, buffer: int) -> None:
    """Output and log-sum-exp, with a mask for each head, a query that sees nothing, and shared key heads."""
    monkeypatch.setattr(chunks, "_SCORES", buffer)
    q, k, v = (torch.randn(3, h, n, 8).bfloat16() for h, n in ((4, 300), (2, 20), (2, 20)))
    mask = torch.rand(4, 300, 20) < 0.5
    mask[1, 2] = False
    for some in (None, mask, mask[:1]):
        (got, got_lse), (want, want_lse) = (
            KERNELS[name](q, k, v, 0.4, some, statistics) for name in ("chunked", "fused")
        )
        assert (got.float() - want.float()).norm() <= 2 * EPS * want.float().norm()
        assert (got_lse is None) == (not statistics)
        if got_lse is not None and want_lse is not None:
            assert torch.allclose(got_lse, want_lse, atol=2 * EPS)


def test_a_changed_neighbour_changes_no_bit() -> None:
    q, k, v = (torch.randn(80, 2, 8).bfloat16() for _ in range(3))
    sample = slice(MIXED.starts[1], MIXED.starts[2])
    changed = []
    for x in (q, k, v):
        other = torch.randn(80, 2, 8).bfloat16()
        other[sample] = x[sample]
        changed.append(other)
    one, two = (attend(*x, layout=MIXED, pattern=Temporal(), backend="chunked")[sample] for x in ((q, k, v), changed))
    assert torch.equal(one, two)


@pytest.mark.graph
def test_one_graph_serves_the_layouts_of_a_capacity() -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def layer(q: Tensor, k: Tensor, v: Tensor, index: object) -> Tensor:
        return attend(q, k, v, pattern=Temporal(), layout=index, backend="chunked")

    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for grids in ([Grid(4, 2, 3), Grid(2, 2, 2)], [Grid(1, 1, 1)], [Grid(3, 3, 3), Grid(1, 4, 4)]):
        index = TokenLayout.packed(grids, [1] * len(grids), capacity=60).on("cpu")
        qkv = [torch.randn(60, 2, 4).bfloat16() for _ in range(3)]
        assert torch.equal(compiled(*qkv, index), layer(*qkv, index))
    assert counter.frame_count == 1


def test_what_it_refuses_and_that_auto_never_takes_it() -> None:
    x, half = torch.randn(4, 2, 8), torch.randn(4, 2, 8).bfloat16()
    with pytest.raises(ValueError, match=r"torch\.bfloat16 on the CPU, got torch\.float32"):
        attend(x, x, x, backend="chunked")
    with pytest.raises(ValueError, match="takes no bias"):
        attend(half, half, half, bias=torch.zeros(4, 4), backend="chunked")
    assert list(backends()).index("chunked") > list(backends()).index("reference")
    assert "chunked    yes" in explain(half, half, half)


def test_meta_tensors_give_shapes() -> None:
    q, k = (
        torch.empty(80, 4, 8, dtype=torch.bfloat16, device="meta"),
        torch.empty(80, 2, 8, dtype=torch.bfloat16, device="meta"),
    )
    out = attend(q, k, k, layout=MIXED.on("meta"), pattern=Temporal(), backend="chunked")
    assert out.is_meta and out.shape == (80, 4, 8) and out.dtype == torch.bfloat16
