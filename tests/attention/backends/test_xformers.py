"""xFormers: its arguments, read by a float64 stand-in, give the right numbers; real numbers on CUDA."""

from collections.abc import Callable
from typing import Any

import drawn
import fakes
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tubelet.attention import Joint, Neighborhood, Spatial, Temporal, attend, backends
from tubelet.attention.backends import xformers
from tubelet.layout import Grid, TokenLayout
from tubelet.protocols import AttentionRequest

PACKED = TokenLayout.packed([Grid(3, 2, 2), Grid(1, 1, 1), Grid(2, 3, 2)], capacity=32)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[fakes.BlockDiagonalMask]:
    seen: list[fakes.BlockDiagonalMask] = []
    package = fakes.xformers_ops(seen)
    monkeypatch.setattr(xformers, "_on_cuda", lambda device: True)
    monkeypatch.setattr(xformers, "_package", lambda: package)
    return seen


def tensors(shape: tuple[int, ...], kv_shape: tuple[int, ...], heads: tuple[int, int]) -> list[Tensor]:
    sides = ((*shape, heads[0], 8), (*kv_shape, heads[1], 8), (*kv_shape, heads[1], 8))
    return [torch.randn(side, requires_grad=True) for side in sides]


def assert_equal_to_the_definition(qkv: list[Tensor], grad: bool, **how: Any) -> None:
    exact = [x.detach().double().requires_grad_() for x in qkv]
    with torch.set_grad_enabled(grad):
        out, want = attend(*qkv, backend="xformers", **how), attend(*exact, backend="reference", **how)
    parts = [(out, want)]
    if grad:
        cotangent = torch.randn(out.shape)
        got = torch.autograd.grad(out, qkv, cotangent)
        parts += zip(got, torch.autograd.grad(want, exact, cotangent.double()), strict=True)
    scale = max(float(w.detach().norm()) for _, w in parts)
    assert all(float((g.detach().double() - w.detach()).norm()) <= 1e-5 * scale for g, w in parts)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=drawn.patterns, make=drawn.layouts(), kv_heads=st.sampled_from([1, 2]), grad=st.booleans())
def test_what_it_serves_equals_the_definition(
    asked: list[fakes.BlockDiagonalMask],
    draw: drawn.Made,
    make: Callable[[], TokenLayout],
    kv_heads: int,
    grad: bool,
) -> None:
    pattern, layout = draw(), make()
    shapes = (*layout.shape, 2, 8), (*layout.shape, kv_heads, 8)
    request = AttentionRequest(pattern, layout.on("cpu"), None, *shapes, torch.float32, "cpu", 0.6, None)
    if backends()["xformers"].supports(request):
        qkv = tensors(layout.shape, layout.shape, (2, kv_heads))
        assert_equal_to_the_definition(qkv, grad, pattern=pattern, layout=layout, scale=0.6)


def test_blocks_are_the_samples_and_their_groups(asked: list[fakes.BlockDiagonalMask]) -> None:
    context = TokenLayout.padded([3, 0, 5], 6)
    assert_equal_to_the_definition(tensors((32,), (3, 6), (4, 2)), True, layout=PACKED, kv_layout=context)
    assert asked.pop() == ([12, 12], [3, 5])
    assert_equal_to_the_definition(tensors((32,), (32,), (4, 2)), False, layout=PACKED, pattern=Spatial())
    assert asked.pop() == ([4, 4, 4, 1, 6, 6],) * 2


def test_refusals(asked: list[fakes.BlockDiagonalMask], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 2, 8)
    for q, how, reason in (
        (x.double(), {}, "not torch.float64"),
        (x, {"bias": torch.zeros(4, 4)}, "no bias"),
        (torch.randn(4, 2, 6), {}, "a multiple of 8"),
        (x, {"pattern": Neighborhood((1, 1, 3)), "layout": TokenLayout.packed([Grid(1, 1, 4)])}, "no partition"),
    ):
        with pytest.raises(ValueError, match=reason):
            attend(q, q, q, backend="xformers", **how)
    monkeypatch.setattr(xformers, "_package", lambda: None)
    with pytest.raises(ValueError, match=r"not installed; pip install 'tubelet\[xformers\]'"):
        attend(x, x, x, backend="xformers")


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", [Joint(), Temporal()], ids=str)
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_real_kernels(pattern: Any, kv_heads: int, dtype: torch.dtype) -> None:
    pytest.importorskip("xformers.ops")
    shapes = ((*PACKED.shape, h, 64) for h in (4, kv_heads, kv_heads))
    qkv = [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    how = {"pattern": pattern, "layout": PACKED.on("cuda")}
    out, want = attend(*qkv, backend="xformers", **how), attend(*exact, backend="reference", **how)
    cotangent = torch.randn_like(out)
    grads = zip(
        torch.autograd.grad(out, qkv, cotangent), torch.autograd.grad(want, exact, cotangent.double()), strict=True
    )
    for g, w in ((out, want), *grads):
        assert (g.double() - w).norm() <= 8 * max(torch.finfo(dtype).eps, 1e-4) * w.norm()
