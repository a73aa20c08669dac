"""The attention contract: both backends against a float64 loop over samples and heads, and loud refusals."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tubelet.attention import Spatial, attend, backends, explain
from tubelet.layout import Grid, TokenInfo, TokenLayout

Pair = tuple[TokenLayout | None, TokenLayout | None]
NAMES = ("reference", "sdpa")


def by_hand(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, kv_layout: TokenLayout, scale: float) -> Tensor:
    """Softmax attention of each sample, head by head, over plain slices of the flattened tokens."""
    groups = q.shape[-2] // k.shape[-2]
    flat_q, flat_k, flat_v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    out = flat_q.new_zeros(*flat_q.shape[:2], v.shape[-1])
    segments = zip(layout.starts, layout.lengths, kv_layout.starts, kv_layout.lengths, strict=True)
    for start, length, kv_start, kv_length in segments:
        if length == 0 or kv_length == 0:
            continue
        for h in range(q.shape[-2]):
            keys = flat_k[kv_start : kv_start + kv_length, h // groups]
            scores = flat_q[start : start + length, h] @ keys.T * scale
            out[start : start + length, h] = scores.softmax(-1) @ flat_v[kv_start : kv_start + kv_length, h // groups]
    return out.view(*q.shape[:-1], v.shape[-1])


lengths = st.lists(st.integers(0, 5), min_size=1, max_size=5)


def one(drawn: list[int], form: str, spare: int) -> TokenLayout:
    if form == "padded":
        return TokenLayout.padded(drawn, max(drawn) + spare)
    if form == "dense":
        return TokenLayout.dense(len(drawn), Grid(1, 1, max(drawn) + 1))
    grids = [Grid(1, 1, n - n // 2) if n else None for n in drawn]
    text = [n // 2 for n in drawn]
    return TokenLayout.packed(grids, text, sum(drawn) + spare if form == "capacity" else None)


@st.composite
def layouts(draw: st.DrawFn) -> Callable[[], TokenLayout]:
    return partial(
        one, draw(lengths), draw(st.sampled_from(["packed", "capacity", "padded", "dense"])), draw(st.integers(0, 3))
    )


@st.composite
def pairs(draw: st.DrawFn) -> Callable[[], tuple[TokenLayout, TokenLayout]]:
    """Layouts of queries and of keys of the same samples, in any two forms."""
    q_lengths = draw(lengths)
    kv_lengths = draw(st.lists(st.integers(0, 4), min_size=len(q_lengths), max_size=len(q_lengths)))
    forms = st.sampled_from(["packed", "capacity", "padded", "dense"])
    q_form, kv_form, spare = draw(forms), draw(forms), draw(st.integers(0, 3))
    return lambda: (one(q_lengths, q_form, spare), one(kv_lengths, kv_form, spare))


def tensors(layout: TokenLayout, kv_layout: TokenLayout, heads: int, kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = ((layout, heads), (kv_layout, kv_heads), (kv_layout, kv_heads))
    return [torch.randn(*where.shape, h, 4, dtype=dtype, requires_grad=True) for where, h in shapes]


def close(got: Tensor, expected: Tensor, bound: float) -> bool:
    got, expected = got.detach().double(), expected.detach().double()
    return (got - expected).norm().item() <= bound * max(expected.norm().item(), 1e-6)


def agree(layout: TokenLayout, kv_layout: TokenLayout | None, heads: tuple[int, int], name: str) -> None:
    """Outputs and gradients of a backend against the loop, in float64 and float32."""
    keys = layout if kv_layout is None else kv_layout
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        qkv = tensors(layout, keys, *heads, dtype)
        wide = [x.detach().double().requires_grad_() for x in qkv]
        out = attend(*qkv, layout=layout, kv_layout=kv_layout, backend=name)
        expected = by_hand(*wide, layout, keys, 0.5)
        assert out.dtype == dtype and close(out, expected, bound)
        cotangent = torch.randn_like(expected)
        got = torch.autograd.grad(out, qkv, cotangent.to(dtype))
        if expected.requires_grad:
            want = torch.autograd.grad(expected, wide, cotangent)
            scale = max(float(w.norm()) for w in want)  # a softmax over one key has no gradient but rounding
            assert all(float((g.double() - w).norm()) <= bound * scale for g, w in zip(got, want, strict=True))
        else:  # no sample has keys
            assert not any(g.any() for g in got)


@pytest.mark.parametrize("name", NAMES)
@given(make=layouts(), heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]))
def test_self_attention_equals_the_loop(name: str, make: Callable[[], TokenLayout], heads: tuple[int, int]) -> None:
    agree(make(), None, heads, name)


@pytest.mark.parametrize("name", NAMES)
@given(make=pairs(), heads=st.sampled_from([(2, 2), (4, 2)]))
def test_cross_attention_equals_the_loop(
    name: str, make: Callable[[], tuple[TokenLayout, TokenLayout]], heads: tuple[int, int]
) -> None:
    agree(*make(), heads, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(5,), (2, 5)])
def test_without_a_layout_rows_are_samples(name: str, shape: tuple[int, ...]) -> None:
    q, k, v = torch.randn(3, *shape, 2, 4, dtype=torch.float64)
    layout = TokenLayout.padded([5] * (shape[0] if len(shape) == 2 else 1), 5)
    expected = by_hand(q, k, v, layout, layout, 0.25)
    assert close(attend(q, k, v, backend=name, scale=0.25), expected, 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_plain_rows_of_queries_meet_packed_keys(name: str) -> None:
    kv_layout = TokenLayout.packed([None, None], [3, 1])
    q, (k, v) = torch.randn(2, 5, 2, 4, dtype=torch.float64), torch.randn(2, 4, 2, 4, dtype=torch.float64)
    got = attend(q, k, v, kv_layout=kv_layout, backend=name)
    assert close(got, by_hand(q, k, v, TokenLayout.padded([5, 5], 5), kv_layout, 0.5), 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_values_may_have_different_widths(name: str) -> None:
    layout = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 2, 2)], capacity=8)
    q, k = torch.randn(2, 8, 2, 4, dtype=torch.float64, requires_grad=True)
    v = torch.randn(8, 2, 6, dtype=torch.float64, requires_grad=True)
    got, expected = attend(q, k, v, layout=layout, backend=name), by_hand(q, k, v, layout, layout, 0.5)
    cotangent = torch.randn_like(expected)
    assert close(got, expected, 1e-11)
    for g, w in zip(*(torch.autograd.grad(o, (q, k, v), cotangent) for o in (got, expected)), strict=True):
        assert close(g, w, 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_packed_equals_separate_bit_for_bit_under_changes_elsewhere(name: str) -> None:
    """A sample's outputs and gradients do not depend on its neighbours at all."""
    layout = TokenLayout.packed([Grid(1, 2, 2), Grid(2, 1, 3), Grid(1, 1, 1)], capacity=16)
    q, k, v = torch.randn(3, 16, 2, 4)
    middle = slice(4, 10)
    results = []
    for noise in (0.0, 10.0):
        changed = [x + noise * torch.randn_like(x) for x in (q, k, v)]
        for new, old in zip(changed, (q, k, v), strict=True):
            new[middle] = old[middle]
            new.requires_grad_()
        out = attend(*changed, layout=layout, backend=name)
        grads = torch.autograd.grad(out[middle].square().sum(), changed)
        results.append([out[middle], *(g[middle] for g in grads)])
        assert all(not g[:4].any() and not g[10:].any() for g in grads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    alone = attend(*(x[middle] for x in (q, k, v)), backend=name)
    assert close(results[0][0], alone, 1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", [TokenLayout.packed([Grid(1, 1, 3)], capacity=6), TokenLayout.padded([2, 1], 3)])
def test_what_stands_in_padding_reaches_nothing(name: str, layout: TokenLayout) -> None:
    valid = layout.on("cpu").valid
    qkv = tensors(layout, layout, 2, 2, torch.float64)
    clean = attend(*qkv, layout=layout, backend=name)
    cotangent = torch.where(valid[..., None, None], torch.randn_like(clean), 0)
    expected = torch.autograd.grad(clean, qkv, cotangent)
    dirty = [x.detach().masked_fill(~valid[..., None, None], torch.nan).requires_grad_() for x in qkv]
    out = attend(*dirty, layout=layout, backend=name)
    assert torch.equal(out, clean) and not out[~valid].any()
    got = torch.autograd.grad(out, dirty, cotangent)
    assert all(torch.equal(g, e) and not g[~valid].any() for g, e in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_no_keys_give_zero(name: str) -> None:
    layout, empty = TokenLayout.packed([Grid(1, 1, 3)]), TokenLayout.packed([None], [0])
    q, k, v = tensors(layout, empty, 2, 2, torch.float64)
    out = attend(q, k, v, layout=layout, kv_layout=empty, backend=name)
    assert out.shape == (3, 2, 4) and not out.any()
    assert not torch.autograd.grad(out.sum(), q)[0].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "layout", [None, TokenLayout.packed([Grid(1, 1, 2), Grid(1, 2, 2)]), TokenLayout.padded([6], 6)]
)
def test_memory_order_of_inputs_and_gradients_is_free(name: str, layout: TokenLayout | None) -> None:
    lead = layout.shape if layout is not None else (6,)
    base = torch.randn(3, 8, 4, *lead, dtype=torch.float64)  # tokens last in memory, heads and features sliced
    q, k, v = (x.permute(*range(2, x.ndim), 1, 0)[..., ::2, ::2] for x in base)
    strided = [x.detach().requires_grad_() for x in (q, k, v)]
    dense = [x.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for x in (q, k, v)]
    assert not any(x.is_contiguous() for x in strided)
    got, expected = (attend(*x, layout=layout, backend=name) for x in (strided, dense))
    assert close(got, expected, 1e-14)
    # sum() hands back an expanded gradient of stride 0
    for g, e in zip(torch.autograd.grad(got.sum(), strided), torch.autograd.grad(expected.sum(), dense), strict=True):
        assert close(g, e, 1e-12)
    weighted = torch.randn_like(expected)
    transposed = weighted.transpose(0, -1).clone(memory_format=torch.contiguous_format).transpose(0, -1)
    got, expected = (attend(*x, layout=layout, backend=name) for x in (strided, dense))
    pairs = zip(
        torch.autograd.grad(got, strided, transposed), torch.autograd.grad(expected, dense, weighted), strict=True
    )
    assert all(close(g, e, 1e-12) for g, e in pairs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float64(name: str, dtype: torch.dtype) -> None:
    layout = TokenLayout.packed([Grid(2, 4, 4), Grid(1, 3, 3)], capacity=48)
    q, k, v = torch.randn(3, 48, 2, 16).to(dtype)
    out = attend(q, k, v, layout=layout, backend=name)
    expected = by_hand(q.double(), k.double(), v.double(), layout, layout, 0.25)
    assert out.dtype == dtype
    assert close(out, expected, 2 * torch.finfo(dtype).eps)


def test_bias_is_added_to_the_scores() -> None:
    q, k, v = torch.randn(3, 2, 5, 4, 8, dtype=torch.float64)
    k, v = k[:, :, :2], v[:, :, :2]
    bias = torch.randn(4, 5, 5, dtype=torch.float64, requires_grad=True)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(2, 2)) / 8**0.5 + bias
    expected = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.repeat_interleave(2, 2))
    want = torch.autograd.grad(expected.square().sum(), bias)[0]
    for name in NAMES:
        out = attend(q, k, v, bias=bias, backend=name)
        assert close(out, expected, 1e-11)
        assert close(torch.autograd.grad(out.square().sum(), bias)[0], want, 1e-11)


@dataclasses.dataclass(frozen=True)
class PastFrames:
    """A user's own pattern: frames up to one's own, and head 0 its own frame only; text attends text."""

    def attends(self, q: TokenInfo, k: TokenInfo, head: Tensor) -> Tensor:
        past, same = k.coords[..., 0] <= q.coords[..., 0], k.coords[..., 0] == q.coords[..., 0]
        return torch.where(head == 0, same, past)


def test_a_users_pattern_needs_only_its_predicate() -> None:
    layout = TokenLayout.packed([Grid(2, 1, 2), Grid(3, 1, 1)], [2, 0], capacity=11)
    q, k, v = torch.randn(3, 11, 2, 4, dtype=torch.float64)
    out = attend(q, k, v, layout=layout, pattern=PastFrames())
    frames = [-1, -1, 0, 0, 1, 1, 10, 11, 12]  # ten more for the second sample: a frame of its own
    for i, frame in enumerate(frames):
        for h in range(2):
            allowed = [j for j, f in enumerate(frames) if f // 10 == frame // 10 or (f < 10 and frame < 10)]
            allowed = [j for j in allowed if (frames[j] == frame if h == 0 else frames[j] <= frame)]
            weights = torch.stack([(q[i, h] @ k[j, h]) / 2 for j in allowed]).softmax(0)
            assert torch.allclose(
                out[i, h], sum(w * v[j, h] for w, j in zip(weights, allowed, strict=True)), rtol=1e-11
            )
    assert not out[9:].any()
    reference = attend(q, k, v, layout=layout, pattern=PastFrames(), backend="reference")
    assert torch.allclose(out, reference, rtol=1e-11)


def test_explain_gives_every_answer_and_auto_takes_the_first_yes() -> None:
    layout, qkv = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 2)]), torch.randn(3, 4, 2, 4)
    bias = torch.zeros(2, 4, 4)
    lines = explain(*qkv, layout=layout, bias=bias).splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["sdpa", "no:"], ["reference", "yes"]]
    assert "a bias on dense rows under Joint(), or one that is a value on whole grids" in lines[0]
    assert [line.split()[0] for line in lines] == list(backends())
    got = attend(*qkv, layout=layout, bias=bias)
    assert torch.equal(got, attend(*qkv, layout=layout, bias=bias, backend="reference"))
    assert explain(*qkv).split()[:4] == ["sdpa", "yes", "reference", "yes"]
    assert torch.equal(attend(*qkv), attend(*qkv, backend="sdpa"))
    assert list(backends()) == ["sdpa", "reference", "chunked", "flex", "flash", "xformers", "natten", "triton"]


@pytest.mark.parametrize("name", ["flash", "xformers", "natten"])
def test_what_needs_cuda_says_so_here(name: str) -> None:
    x = torch.randn(4, 2, 8)
    with pytest.raises(ValueError, match=f"{name} serves CUDA, not cpu"):
        attend(x, x, x, backend=name)


def test_an_index_serves_as_its_layout() -> None:
    layout, qkv = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 2)]), torch.randn(3, 4, 2, 4)
    assert torch.equal(attend(*qkv, layout=layout), attend(*qkv, layout=layout.on("cpu")))


ROWS, PACK = torch.zeros(2, 4, 2, 8), torch.zeros(4, 2, 8)
TWO = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 2)])


@pytest.mark.graph  # without the shape checker, which would refuse some of these first
@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"backend": "cuda"}, ("'cuda'", "sdpa, reference, chunked, flex, flash, xformers, natten, triton and auto")),
        ({"q": torch.zeros(2, 8)}, ("q must be", "(2, 8)")),
        ({"k": PACK.double(), "v": PACK.double()}, ("q is torch.float32", "k is torch.float64")),
        ({"q": PACK.long(), "k": PACK.long(), "v": PACK.long()}, ("floating point", "torch.int64")),
        ({"k": torch.zeros(4, 2, 6)}, ("head_dim 8", "k has 6")),
        ({"v": torch.zeros(3, 2, 8)}, ("k has shape (4, 2, 8)", "v has (3, 2, 8)")),
        ({"q": torch.zeros(4, 3, 8)}, ("3 heads", "k's 2")),
        ({"k": ROWS, "v": ROWS}, ("batch shape ()", "k has (2,)")),
        ({"layout": TokenLayout.packed([Grid(1, 1, 3)])}, ("q has tokens (4,)", "layout has (3,)")),
        ({"layout": TWO, "k": PACK[:3], "v": PACK[:3]}, ("k has tokens (3,)", "layout has (4,)")),
        ({"layout": TWO, "kv_layout": TokenLayout.packed([None], [3])}, ("k has tokens (4,)", "kv_layout has (3,)")),
        ({"layout": TWO, "kv_layout": TokenLayout.packed([None], [4])}, ("layout has 2 samples", "kv_layout has 1")),
        ({"kv_layout": TWO}, ("kv_layout holds 2 samples", "(4, 2, 8)")),
    ],
)
def test_bad_requests_name_both_values(change: dict[str, object], names: tuple[str, ...]) -> None:
    given_ = {"q": PACK, "k": PACK, "v": PACK, **change}
    with pytest.raises(ValueError) as caught:
        attend(given_.pop("q"), given_.pop("k"), given_.pop("v"), **given_)
    assert all(name in str(caught.value) for name in names), str(caught.value)


def test_a_bias_that_does_not_broadcast_is_named() -> None:
    q = torch.zeros(8, 2, 4)
    with pytest.raises(ValueError, match=r"\(3, 3\).*\(2, 8, 8\)"):
        attend(q, q, q, bias=torch.zeros(3, 3))


@pytest.mark.graph  # run-time shape checks off, as for users
def test_a_boolean_bias_is_refused() -> None:
    q = torch.zeros(4, 2, 4)
    with pytest.raises(ValueError, match=r"float32.*torch\.bool"):
        attend(q, q, q, bias=torch.ones(4, 4, dtype=torch.bool))


def test_a_function_mode_sees_a_call_with_all_its_arguments() -> None:
    class Listener(TorchFunctionMode):
        calls: ClassVar[list[dict[str, Any]]] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is attend:
                self.calls.append(kwargs)
            return func(*args, **(kwargs or {}))

    layout, x = TokenLayout.dense(1, Grid(2, 2, 2)), torch.randn(1, 8, 2, 4)
    expected = attend(x, x, x, pattern=Spatial(), layout=layout, scale=0.3, backend="reference")
    with Listener():
        got = attend(x, x, x, pattern=Spatial(), layout=layout, scale=0.3, backend="reference")
    assert torch.equal(got, expected)
    (call,) = Listener.calls
    assert call.pop("layout") is layout
    assert call == {"pattern": Spatial(), "kv_layout": None, "backend": "reference", "scale": 0.3, "bias": None}
