"""QK-norm + RoPE, interpreted, against its definition in float64: values, every gradient, strides, compilation."""

import copy
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity import error
from rounding import near
from tiny_models import tiny_inputs, tiny_model
from torch import Tensor, nn

from tubelet.attention import Attention, CrossAttention
from tubelet.fused import use_kernels
from tubelet.kernels import norm_rope, qk_norm_rope
from tubelet.layout import Grid, TokenLayout
from tubelet.norms import RMSNorm
from tubelet.positions import Rope3d, Rotary

TOLERANCE = 2e-6


class Case(NamedTuple):
    """One drawn call."""

    batch: int
    tokens: int
    heads: tuple[int, int | None]
    head_dim: int
    norm: tuple[Any, bool]
    layout: Any
    affine: tuple[bool, bool, bool, bool]
    memory: str
    angles: str
    enough: int
    seed: int


cases = st.builds(
    Case,
    batch=st.integers(1, 3),
    tokens=st.sampled_from([1, 2, 19]),
    heads=st.sampled_from([(1, 1), (3, 2), (4, None), (1, 2)]),
    head_dim=st.sampled_from([2, 6, 34, 72, 96]),
    norm=st.sampled_from([("rms", False), ("rms", True), ("layer", False), ("layer", True), ("none", False)]),
    layout=st.sampled_from(["interleaved", "half", "half_per_axis", None]),
    affine=st.tuples(*[st.booleans()] * 4),
    memory=st.sampled_from(["dense", "packed qkv", "heads first", "sliced", "features apart"]),
    angles=st.sampled_from(["shared", "own", "one batch", "learned", "own of each head"]),
    enough=st.sampled_from([1, 2, 1024]),  # programs wanted: few give each several heads, or tokens
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


def axes_of(head_dim: int) -> tuple[int, int, int]:
    """Unequal shares of a head; some axes have none."""
    h = 2 * (head_dim // 6)
    return head_dim - h - 2 * (h // 4), h, 2 * (h // 4)


def pairs_of(layout: str, head_dim: int) -> list[tuple[int, int]]:
    """The features that turn together, by the words of the layouts."""
    if layout == "interleaved":
        return [(i, i + 1) for i in range(0, head_dim, 2)]
    widths = (head_dim,) if layout == "half" else axes_of(head_dim)
    begins = [sum(widths[:i]) for i in range(len(widths))]
    return [(b + i, b + i + w // 2) for b, w in zip(begins, widths, strict=True) for i in range(w // 2)]


def definition(
    x: Tensor,
    turns: Tensor | None,
    layout: str | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    norm: tuple[str, bool] = ("rms", False),
    eps: float = 1e-6,
) -> Tensor:
    """A norm by its formula, then each pair of features as a complex number times ``exp(i turn)``."""
    kind, across = norm
    wide = x.flatten(-2) if across else x
    centred = wide - wide.mean(-1, keepdim=True) if kind == "layer" else wide
    normed = wide if kind == "none" else centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    normed = normed * (1 if weight is None else weight) + (0 if bias is None else bias)
    normed = normed.view(x.shape)
    if turns is None or layout is None:
        return normed
    first, second = torch.tensor(pairs_of(layout, x.shape[-1])).T
    turned = torch.complex(normed[..., first], normed[..., second]) * torch.exp(1j * turns)
    return torch.stack([turned.real, turned.imag], -1).flatten(-2)[
        ..., torch.cat([first, second]).view(2, -1).T.flatten().argsort()
    ]


@given(cases)
def test_values_and_gradients_equal_the_definition(case: Case) -> None:
    with patch("tubelet.kernels._rotation.launches._ENOUGH", case.enough):
        compare(case)


def drawn(case: Case) -> tuple[dict[str, Tensor], Tensor]:
    """What has gradients, and the angles ``(*lead, heads or 1, pairs)``."""
    torch.manual_seed(case.seed)
    (heads, kv_heads), (kind, across), d = case.heads, case.norm, case.head_dim
    if case.angles in ("learned", "own of each head"):
        kv_heads = None if kv_heads is None else heads
    sides = {"q": heads} | ({} if kv_heads is None else {"k": kv_heads})
    leaves = {name: place((case.batch, case.tokens, h, d), case.memory) for name, h in sides.items()}
    for i, (name, vector) in enumerate([("q", "weight"), ("k", "weight"), ("q", "bias"), ("k", "bias")]):
        if name in sides and case.affine[i] and kind != "none":
            leaves[f"{name}_{vector}"] = torch.randn(d * (sides[name] if across else 1))
    lead = {"own": (case.batch, case.tokens), "one batch": (1, case.tokens)}.get(case.angles, (case.tokens,))
    per_head = case.angles in ("learned", "own of each head")
    turns = torch.randn(*lead, heads if per_head else 1, d // 2)
    return leaves | ({"turns": turns} if case.angles == "learned" and case.layout else {}), turns


def turned(leaves: dict[str, Tensor], case: Case, turns: Tensor) -> list[Tensor]:
    """By the kernels."""
    per_head = case.angles in ("learned", "own of each head")
    turns = leaves.get("turns", turns)
    turns = turns if per_head else turns.squeeze(-2)
    axes = axes_of(case.head_dim) if case.layout == "half_per_axis" else ()
    rotary = None if case.layout is None else Rotary(turns.cos(), turns.sin(), case.layout, axes, per_head)
    options: Any = {"norm": case.norm[0], "across_heads": case.norm[1], "eps": 1e-3, "backend": "triton"}
    vectors = [leaves.get(name) for name in ("q_weight", "k_weight", "q_bias", "k_bias")]
    if "k" not in leaves:
        return [norm_rope(leaves["q"], rotary, vectors[0], vectors[2], **options)]
    biases = {"q_bias": vectors[2], "k_bias": vectors[3]}
    return list(qk_norm_rope(leaves["q"], leaves["k"], rotary, *vectors[:2], **biases, **options))


def compare(case: Case) -> None:
    leaves, turns = drawn(case)
    ours = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    exact = {name: leaf.double().detach().requires_grad_() for name, leaf in leaves.items()}
    got = turned(ours, case, turns)
    wide = exact.get("turns", turns.double())
    expected = [
        definition(exact[n], wide, case.layout, exact.get(f"{n}_weight"), exact.get(f"{n}_bias"), case.norm, 1e-3)
        for n in ("q", "k")[: len(got)]
    ]
    for name, a, b in zip("qk", got, expected, strict=False):
        assert a.is_contiguous()
        near(a, b, name, TOLERANCE)
    grads = [place(tuple(x.shape), case.memory) for x in expected]
    torch.autograd.backward(got, grads)
    torch.autograd.backward(expected, [g.double() for g in grads])
    for name, leaf in exact.items():
        near(ours[name].grad, leaf.grad, f"gradient of {name}", TOLERANCE)


@pytest.mark.parametrize(
    "case",
    [
        Case(1, 3, (3, 3), 12, ("rms", False), "interleaved", (True,) * 4, "packed qkv", "learned", 2, 0),
        Case(2, 3, (3, 2), 12, ("rms", True), "half_per_axis", (True,) * 4, "packed qkv", "shared", 2, 0),
        Case(2, 2, (2, 2), 6, ("layer", True), "interleaved", (True,) * 4, "sliced", "learned", 3, 0),
        Case(2, 3, (3, 2), 34, ("layer", False), "half", (True,) * 4, "dense", "own", 1, 0),
        Case(2, 3, (3, None), 6, ("rms", True), None, (True,) * 4, "dense", "shared", 2, 0),
    ],
    ids=["Mochi", "Wan by axes", "all at once", "CogVideoX by halves", "cross-attention"],
)
def test_each_form_at_least_once(case: Case) -> None:
    with patch("tubelet.kernels._rotation.launches._ENOUGH", case.enough):
        compare(case)


def test_packed_tokens_of_a_layout_with_text_and_padding() -> None:
    coords = TokenLayout.packed([Grid(2, 2, 3), Grid(1, 1, 5)], [2, 0], capacity=24).on("cpu").coords
    rotary = Rope3d(24)(coords)
    q, k = torch.randn(2, 24, 3, 24)
    turned = qk_norm_rope(q, k, rotary, backend="triton")
    for x, got in zip((q, k), turned, strict=True):
        near(
            got,
            definition(x.double(), torch.atan2(rotary.sin, rotary.cos).double()[:, None], "interleaved"),
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
    expected = definition(q.double(), turns.double()[:, None], "half")
    assert got.dtype == torch.float16
    assert (got.double() - expected).norm() < 3e-4 * expected.norm()


def test_bfloat16_is_refused() -> None:
    q = torch.ones(2, 1, 4).bfloat16()
    with pytest.raises(ValueError, match="interpreter computes bfloat16 wrongly"):
        qk_norm_rope(q, q, Rotary(torch.ones(2, 2), torch.ones(2, 2)), backend="triton")


@pytest.mark.graph
def test_the_operators_are_sound() -> None:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, requires_grad=True)

    shared = (leaf(2, 5, 3, 8), leaf(2, 5, 1, 8), *torch.randn(2, 2, 5, 4))
    own = (leaf(2, 5, 3, 8), None, leaf(2, 5, 3, 4), leaf(2, 5, 3, 4))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for arguments, some in (
        ((*shared, leaf(8), None, None, leaf(8), 1e-6, "layer", False, [4, 0, 0]), tests),
        ((*own, leaf(24), None, None, None, 1e-6, "rms", True, []), tests[:3]),
    ):
        torch.library.opcheck(torch.ops.tubelet.qk_norm_rope.default, arguments, test_utils=some)


@pytest.mark.graph
def test_compiled_equals_eager() -> None:
    rotary = Rope3d(12)(torch.rand(5, 3))

    def run(qkv: Tensor, weight: Tensor) -> Tensor:
        q, k, v = qkv.unbind(2)
        q, k = qk_norm_rope(q, k, rotary, weight[:12], weight[12:], backend="triton")
        return q * k + norm_rope(v, None, weight, across_heads=True, backend="triton")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    leaves = [torch.randn(2, 5, 3, 2, 12, requires_grad=True), torch.randn(24, requires_grad=True)]
    results = [(out := each(*leaves), *torch.autograd.grad(out.sum(), leaves)) for each in (compiled, run)]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["CogVideoX", "LTX", "Mochi"])
def test_models_with_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to float64 as eager code is: layer norms; angles over the width; learned ones and an unturned stream."""
    model, exact = tiny_model(name, torch.float32), tiny_model(name, torch.float64)
    exact.load_state_dict(model.state_dict())

    def results(model: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        out = model(**tiny_inputs(name, dtype))
        leaves = [p for path, p in model.named_parameters() if "_norm" in path or "frequencies" in path]
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    eager, expected = results(model, torch.float32), results(exact, torch.float64)
    use_kernels(model, lambda path, module: isinstance(module, Attention | CrossAttention))
    for operation in (norm_rope, qk_norm_rope):
        ran = partial(operation, backend="triton")
        monkeypatch.setattr(f"tubelet.attention.normed.{operation.__name__}", ran)
    for ours, theirs, right in zip(results(model, torch.float32), eager, expected, strict=True):
        if right.any():
            assert error(ours, right) <= max(1e-5, 2 * error(theirs, right))
        else:  # the last block's text goes nowhere
            assert not ours.any()


def test_an_attention_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Projections in float16, weights of norms in float32, the kernel in between."""
    attention = Attention(24, 2, qk_norm=RMSNorm, across_heads=True)
    torch.nn.init.normal_(attention.q_norm.weight)
    x, rope = torch.randn(2, 5, 24), Rope3d(12)(torch.rand(5, 3))
    exact = copy.deepcopy(attention).double()(x.double(), rope=rope)
    assert "" in use_kernels(attention, lambda name, module: module is attention)
    monkeypatch.setattr("tubelet.attention.normed.qk_norm_rope", partial(qk_norm_rope, backend="triton"))
    with torch.autocast("cpu", torch.float16):
        out = attention(x, rope=rope)
    assert out.dtype == torch.float16
    assert (out.double() - exact).norm() < 3e-3 * exact.norm()
