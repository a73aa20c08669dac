"""QK-norm + RoPE, interpreted, against its definition in float64: values, every gradient, strides, compilation."""

from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import near
from torch import Tensor

from tubelet.kernels import qk_norm_rope
from tubelet.layout import Grid, TokenLayout
from tubelet.positions import Rope3d, Rotary

TOLERANCE = 2e-6


class Case(NamedTuple):
    """One drawn call."""

    batch: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    layout: Any
    weighted: tuple[bool, bool]
    memory: str
    angles: str
    enough: int
    seed: int


cases = st.builds(
    Case,
    batch=st.integers(1, 3),
    tokens=st.sampled_from([1, 2, 19]),
    heads=st.sampled_from([1, 3, 4]),
    kv_heads=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([2, 6, 34, 72, 96]),
    layout=st.sampled_from(["interleaved", "half"]),
    weighted=st.tuples(st.booleans(), st.booleans()),
    memory=st.sampled_from(["dense", "packed qkv", "heads first", "sliced", "features apart"]),
    angles=st.sampled_from(["shared", "own", "one batch"]),
    enough=st.sampled_from([1, 2, 1024]),  # programs wanted: few give each several heads
    seed=st.integers(0, 99),
)


def place(shape: tuple[int, ...], memory: str) -> Tensor:
    """Random numbers of a shape ``(b, n, h, d)`` in some memory."""
    b, n, h, d = shape
    if memory == "packed qkv":
        return torch.randn(b, n, 3, h, d)[:, :, 1]
    if memory == "heads first":
        return torch.randn(b, h, n, d).transpose(1, 2)
    if memory == "sliced":
        return torch.randn(b, n + 3, h + 1, d)[:, 2:-1, 1:]
    return torch.randn(b, n, d, h).transpose(2, 3) if memory == "features apart" else torch.randn(shape)


def definition(x: Tensor, cos: Tensor, sin: Tensor, layout: str, weight: Tensor | None, eps: float) -> Tensor:
    """As complex numbers: each pair of features times ``cos + i sin``."""
    normed = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    normed = normed if weight is None else normed * weight
    pairs = normed.unflatten(-1, (-1, 2)) if layout == "interleaved" else normed.unflatten(-1, (2, -1)).mT
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin).unsqueeze(-2))
    return turned.flatten(-2) if layout == "interleaved" else turned.mT.flatten(-2)


@given(cases)
def test_values_and_gradients_equal_the_definition(case: Case) -> None:
    with patch("tubelet.kernels._rotation.launches._ENOUGH", case.enough):
        compare(case)


def compare(case: Case) -> None:
    torch.manual_seed(case.seed)
    shape = (case.batch, case.tokens, case.heads, case.head_dim)
    kv_shape = (case.batch, case.tokens, case.kv_heads, case.head_dim)
    leaves = {"q": place(shape, case.memory), "k": place(kv_shape, case.memory)}
    for name, weighted in zip(("q_weight", "k_weight"), case.weighted, strict=True):
        leaves |= {name: torch.randn(case.head_dim)} if weighted else {}
    lead = {"shared": (case.tokens,), "own": shape[:2], "one batch": (1, case.tokens)}[case.angles]
    turns = torch.randn(*lead, case.head_dim // 2)
    rotary = Rotary(turns.cos(), turns.sin(), case.layout)
    grads = [place(shape, case.memory), place(kv_shape, "dense")]
    ours = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    exact = {name: leaf.double().detach().requires_grad_() for name, leaf in leaves.items()}
    weights = (ours.get("q_weight"), ours.get("k_weight"))
    got = qk_norm_rope(ours["q"], ours["k"], rotary, *weights, eps=1e-3, backend="triton")
    wide = (rotary.cos.double(), rotary.sin.double(), case.layout)
    expected = [definition(exact[n], *wide, exact.get(f"{n}_weight"), 1e-3) for n in ("q", "k")]
    for name, a, b in zip("qk", got, expected, strict=True):
        assert a.is_contiguous()
        near(a, b, name, TOLERANCE)
    torch.autograd.backward(got, grads)
    torch.autograd.backward(expected, [g.double() for g in grads])
    for name, leaf in exact.items():
        near(ours[name].grad, leaf.grad, f"gradient of {name}", TOLERANCE)


def test_packed_tokens_of_a_layout_with_text_and_padding() -> None:
    coords = TokenLayout.packed([Grid(2, 2, 3), Grid(1, 1, 5)], [2, 0], capacity=24).on("cpu").coords
    rotary = Rope3d(24)(coords)
    q, k = torch.randn(2, 24, 3, 24)
    turned = qk_norm_rope(q, k, rotary, backend="triton")
    for x, got in zip((q, k), turned, strict=True):
        near(
            got,
            definition(x.double(), rotary.cos.double(), rotary.sin.double(), "interleaved", None, 1e-6),
            "packed",
            TOLERANCE,
        )


def test_a_result_without_a_gradient_counts_as_zero() -> None:
    q, k = torch.randn(2, 3, 2, 8).unbind()
    weights = torch.ones(2, 8, requires_grad=True)
    rotary = Rotary(torch.ones(3, 4), torch.zeros(3, 4))
    turned, _ = qk_norm_rope(q, k, rotary, *weights, backend="triton")
    turned.square().sum().backward()
    assert weights.grad[0].abs().min() > 0
    assert torch.equal(weights.grad[1], torch.zeros(8))


def test_no_tokens() -> None:
    q, weight = torch.randn(2, 0, 3, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    turned = qk_norm_rope(q, q, Rotary(torch.ones(0, 4), torch.ones(0, 4)), weight, weight, backend="triton")
    (turned[0].sum() + turned[1].sum()).backward()
    assert turned[0].shape == q.grad.shape == (2, 0, 3, 8)
    assert torch.equal(weight.grad, torch.zeros(8))


def test_half_precision_is_rounded_once() -> None:
    q, k = torch.randn(2, 5, 2, 40).half().unbind()
    turns = torch.randn(5, 20)
    got, _ = qk_norm_rope(q, k, Rotary(turns.cos(), turns.sin(), "half"), backend="triton")
    expected = definition(q.double(), turns.cos().double(), turns.sin().double(), "half", None, 1e-6)
    assert got.dtype == torch.float16
    assert (got.double() - expected).norm() < 3e-4 * expected.norm()


def test_bfloat16_is_refused() -> None:
    q = torch.ones(2, 1, 4).bfloat16()
    with pytest.raises(ValueError, match="interpreter computes bfloat16 wrongly"):
        qk_norm_rope(q, q, Rotary(torch.ones(2, 2), torch.ones(2, 2)), backend="triton")


@pytest.mark.graph
def test_the_operators_are_sound() -> None:
    q, k = torch.randn(2, 5, 3, 8, requires_grad=True), torch.randn(2, 5, 1, 8, requires_grad=True)
    cos, sin = torch.randn(2, 2, 5, 4)
    arguments = (q, k, cos, sin, torch.randn(8, requires_grad=True), None, 1e-6, True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.tubelet.qk_norm_rope.default, arguments, test_utils=tests)


@pytest.mark.graph
def test_compiled_equals_eager() -> None:
    rotary = Rope3d(12)(torch.rand(5, 3))

    def run(qkv: Tensor, weight: Tensor) -> Tensor:
        q, k, v = qkv.unbind(2)
        q, k = qk_norm_rope(q, k, rotary, weight, weight, backend="triton")
        return q * k + v

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    leaves = [torch.randn(2, 5, 3, 2, 12, requires_grad=True), torch.randn(12, requires_grad=True)]
    results = [(out := each(*leaves), *torch.autograd.grad(out.sum(), leaves)) for each in (compiled, run)]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
