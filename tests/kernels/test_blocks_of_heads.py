"""Norm and rotation of queries and keys by blocks of tokens on the CPU against float64 by the definition."""

import pytest
import torch
from torch import Tensor

from tubelet.kernels import _blocks, qk_norm_rope
from tubelet.kernels._rotation.cpu import by_blocks
from tubelet.kernels._rotation.reference import reference
from tubelet.positions import Rope3d, Rotary

LAYOUTS = {
    "none": (),
    "interleaved": ("interleaved",),
    "half": ("half",),
    "half_per_axis": ("half_per_axis", (4, 4, 4)),
    "per_head": ("interleaved", (), True),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, the last one smaller."""
    monkeypatch.setattr(_blocks, "_NUMBERS", 2 * 7 * 48 // torch.get_num_threads())


def drawn(layout: str, norm: str, across: bool, dtype: torch.dtype) -> list[Tensor | None]:
    """x, the angles, and the norm's weight and bias."""
    torch.manual_seed(0)
    angles = torch.randn(10, 4, 6) if layout == "per_head" else torch.randn(10, 6)
    turns = [None, None] if layout == "none" else [1.3 * angles.cos(), 1.3 * angles.sin()]
    width = 48 if across else 12
    affine = [None if norm == "none" else torch.randn(width), torch.randn(width) if norm == "layer" else None]
    return [torch.randn(2, 10, 4, 12).to(dtype), *turns, *affine]


def run(function, inputs: list[Tensor | None], layout: str, **options: object) -> Tensor:
    x, cos, sin, weight, bias = inputs
    rotary = None if cos is None or sin is None else Rotary(cos, sin, *LAYOUTS[layout])
    return function(x, rotary, weight, bias, **options)


@pytest.mark.parametrize(("norm", "across"), [("none", False), ("rms", False), ("layer", False), ("rms", True)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_equal_float64(norm: str, across: bool, layout: str, dtype: torch.dtype) -> None:
    inputs = drawn(layout, norm, across, dtype)
    grad = torch.linspace(-1, 1, 960).view(2, 10, 4, 12).bfloat16()
    found = []
    for function, wide in ((by_blocks, False), (reference, True)):
        held = [None if each is None else (each.double() if wide else each).requires_grad_() for each in inputs]
        out = run(function, held, layout, norm=norm, across_heads=across, eps=1e-3)
        leaves = [each for each in held if each is not None]
        found.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))])
    assert [each.dtype for each in found[0]] == [dtype, *(each.dtype for each in inputs if each is not None)]
    for got, expected in zip(*found, strict=True):
        rounding = 1e-6 if got.dtype == torch.float32 else 4e-3
        assert float((got - expected).norm() / expected.norm()) < rounding


def test_second_derivatives_equal_float64() -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        inputs = drawn("half", "rms", True, torch.float32)
        held = [None if each is None else each.to(dtype).requires_grad_() for each in inputs]
        leaves = [each for each in held if each is not None]
        function = by_blocks if dtype == torch.float32 else reference
        first = torch.autograd.grad(
            run(function, held, "half", across_heads=True).sin().sum(), leaves, create_graph=True
        )
        found.append(torch.autograd.grad(sum(each.square().sum() for each in first), leaves))
    for got, expected in zip(*found, strict=True):
        assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_queries_are_kept_as_they_are() -> None:
    q, rotary = torch.randn(10, 4, 12, dtype=torch.bfloat16, requires_grad=True), Rope3d(12)(torch.rand(10, 3))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        by_blocks(q, rotary, torch.ones(12))
    assert sum(each.nbytes for each in kept) == q.nbytes + 2 * rotary.cos.nbytes + 12 * 4


def test_no_tokens() -> None:
    assert by_blocks(torch.ones(0, 2, 12), Rope3d(12)(torch.ones(0, 3))).shape == (0, 2, 12)


def test_the_operation_takes_blocks_for_what_they_serve() -> None:
    q, rotary = torch.randn(2, 10, 4, 12), Rope3d(12)(torch.rand(10, 3))
    q_out, k_out = qk_norm_rope(q, q[:, :, :2], rotary, torch.ones(12), backend="blocks")
    torch.testing.assert_close(q_out, reference(q, rotary))
    torch.testing.assert_close(k_out, reference(q[:, :, :2], rotary))
    with pytest.raises(ValueError, match="blocks.*qk_norm_rope.*float64"):
        qk_norm_rope(q.double(), q, rotary, backend="blocks")
