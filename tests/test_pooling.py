"""Pooling within each sample of a pack against pooling each sample alone, and against PyTorch's own attention."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tubelet.layout import Grid, TokenLayout
from tubelet.norms import RMSNorm
from tubelet.pooling import AttentionPool, MeanQueryPool, mean_pool


def by_torch(pool: AttentionPool, x: Tensor) -> Tensor:
    """One sample ``(n, d)`` through PyTorch's multi-head attention with the pool's weights."""
    ours, theirs = pool.attention, nn.MultiheadAttention(x.shape[-1], 2, batch_first=True, dtype=x.dtype)
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    weights = {
        "in_proj_weight": torch.cat([p.weight for p in projections]),
        "in_proj_bias": torch.cat([p.bias for p in projections]),
        "out_proj.weight": ours.out_proj.weight,
        "out_proj.bias": ours.out_proj.bias,
    }
    return torch.func.functional_call(theirs, weights, (pool.queries, x, x), {"need_weights": False})[0]


def made(queries: int) -> AttentionPool:
    pool = AttentionPool(8, heads=2, queries=queries, dtype=torch.float64)
    for parameter in pool.parameters():
        nn.init.normal_(parameter, std=0.4)
    return pool


@st.composite
def layouts(draw: st.DrawFn) -> Callable[[], TokenLayout]:
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=5))
    form, spare = draw(st.sampled_from(["packed", "capacity", "padded", "dense"])), draw(st.integers(1, 4))
    return partial(one, lengths, form, spare)


def one(lengths: list[int], form: str, spare: int) -> TokenLayout:
    if form == "padded":
        return TokenLayout.padded(lengths, max(lengths) + spare)
    if form == "dense":
        return TokenLayout.dense(len(lengths), Grid(1, 1, max(lengths) + 1))
    grids = [Grid(1, 1, n - n // 2) if n else None for n in lengths]
    return TokenLayout.packed(grids, [n // 2 for n in lengths], sum(lengths) + spare if form == "capacity" else None)


def cut(x: Tensor, layout: TokenLayout) -> list[Tensor]:
    flat = x.reshape(-1, x.shape[-1])
    return [flat[start : start + n] for start, n in zip(layout.starts, layout.lengths, strict=True)]


def gradients(out: Tensor, inputs: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(out, inputs, cotangent, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


@pytest.mark.parametrize("queries", [1, 3])
@given(make=layouts())
def test_attention_pooling_equals_each_sample_alone(queries: int, make: Callable[[], TokenLayout]) -> None:
    """Outputs and all gradients in float64; samples without tokens, and rows of none, are 0."""
    pool, layout = made(queries), make()
    x = torch.randn(*layout.shape, 8, dtype=torch.float64, requires_grad=True)
    rows = layout.on("cpu").seqlens.shape[0]
    out = pool(x, layout)
    expected = [by_torch(pool, part) if len(part) else x.new_zeros(queries, 8) for part in cut(x, layout)]
    whole = torch.cat([torch.stack(expected), x.new_zeros(rows - len(expected), queries, 8)])
    assert out.shape == (rows, queries, 8)
    torch.testing.assert_close(out, whole, rtol=1e-11, atol=1e-12)
    empty = torch.tensor([n == 0 for n in layout.lengths] + [True] * (rows - len(layout.lengths)))
    assert not out[empty].any()
    if not empty.all():
        inputs, cotangent = [x, *pool.parameters()], torch.randn_like(out)
        for got, want in zip(gradients(out, inputs, cotangent), gradients(whole, inputs, cotangent), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@given(make=layouts(), text=st.booleans())
def test_mean_pooling_equals_each_sample_alone(make: Callable[[], TokenLayout], text: bool) -> None:
    layout = make()
    x = torch.randn(*layout.shape, 3, dtype=torch.float64, requires_grad=True)
    out = mean_pool(x, layout, text=text)
    words = [0] * len(layout.lengths) if text else layout.text_lengths
    if layout.batched and not text and None in layout.grids:
        words = layout.lengths  # rows of plain tokens count as text
    parts = [part[w:] for part, w in zip(cut(x, layout), words, strict=True)]
    expected = torch.stack([p.mean(0) if len(p) else x.new_zeros(3) for p in parts])
    torch.testing.assert_close(out[: len(parts)], expected, rtol=1e-11, atol=1e-12)
    assert not out[len(parts) :].any()
    if expected.requires_grad:
        got, want = (torch.autograd.grad(o.square().sum(), x)[0] for o in (out, expected))
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_backends_agree(backend: str) -> None:
    layout = TokenLayout.packed([Grid(1, 2, 2), Grid(1, 1, 3)], capacity=9)
    pool = made(2)
    x = torch.randn(9, 8, dtype=torch.float64)
    expected = pool(x, layout)
    pool.attention.backend = backend
    torch.testing.assert_close(pool(x, layout), expected, rtol=1e-11, atol=1e-12)


def test_neighbours_and_padding_reach_nothing() -> None:
    layout = TokenLayout.packed([Grid(1, 1, 3), Grid(1, 1, 2)], capacity=8)
    pool, x = AttentionPool(8, heads=2), torch.randn(8, 8)
    changed = x.clone()
    changed[3:5] += 10
    changed[5:] = torch.nan
    for fn in (pool, mean_pool):
        before, after = fn(x, layout), fn(changed, layout)
        assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])
        assert after.isfinite().all()


def test_rows_without_a_layout() -> None:
    pool, x = made(2), torch.randn(3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(pool(x), torch.stack([by_torch(pool, row) for row in x]), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(pool(x[0]), pool(x)[:1], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(mean_pool(x), x.mean(1))
    torch.testing.assert_close(mean_pool(x[0]), x[:1].mean(1))


def test_meta_construction_names_and_half_precision() -> None:
    pool = AttentionPool(8, heads=2, queries=2, qk_norm=RMSNorm, device="meta")
    assert all(p.is_meta for p in pool.parameters())
    filled = pool.to_empty(device="cpu")
    filled.reset_parameters()
    assert 0 < filled.queries.std() < 0.04 and not filled.attention.out_proj.bias.any()
    assert {"queries", "attention.q_proj.weight"} <= set(AttentionPool(8, 2).state_dict())
    layout, x = TokenLayout.packed([Grid(1, 1, 3), Grid(1, 1, 2)], capacity=8), torch.randn(8, 8)
    plain = AttentionPool(8, heads=2)
    with torch.autocast("cpu", torch.bfloat16):
        half = plain(x, layout)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain(x, layout), rtol=0.1, atol=0.05)
    long = torch.ones(1, 4096, 1, dtype=torch.bfloat16)
    assert mean_pool(long).item() == 1  # a sum in bfloat16 would stand still at 256


@pytest.mark.graph
@pytest.mark.parametrize("what", ["attention", "mean"])
def test_one_graph_serves_many_layouts(what: str) -> None:
    module, compiles = AttentionPool(8, heads=2, queries=2) if what == "attention" else mean_pool, []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        compiles.append(graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, backend=counting)
    for grids in ([Grid(1, 2, 2)], [Grid(2, 2, 2), Grid(1, 1, 3)], [Grid(1, 1, 1)] * 9):
        index = TokenLayout.packed(grids, capacity=16).on("cpu")
        x = torch.randn(16, 8)
        torch.testing.assert_close(compiled(x, index), module(x, index))
    assert len(compiles) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AttentionPool(8, 2, queries=0), "queries=0 for heads=2"),
        (lambda: AttentionPool(9, 2), "dim=9 is not a multiple of heads=2"),
        (lambda: AttentionPool(8, 2)(torch.zeros(1, 3, 9)), "width 9, but the module was made for 8"),
        (lambda: AttentionPool(8, 2)(torch.zeros(4, 8), TokenLayout.packed([Grid(1, 1, 3)])), r"\(4,\).*\(3,\)"),
        (lambda: mean_pool(torch.zeros(4, 8), TokenLayout.packed([Grid(1, 1, 3)])), r"\(4,\).*\(3,\)"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_the_mean_that_attends_is_torchs_attention_of_each_sample() -> None:
    """Output and gradients, in a mixture with an empty sample and NaN in its padding."""
    pool = MeanQueryPool(8, heads=2, out=6, dtype=torch.float64)
    layout = TokenLayout.packed([None] * 3, [3, 0, 2], capacity=7)
    x = torch.randn(7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[5:] = torch.nan
    x.requires_grad_()
    got = pool(x, layout)
    assert got.shape == (16, 6) and got.isfinite().all()
    expected = []
    for part in (x[:3], x[3:3], x[3:5]):
        mean = part.mean(0, keepdim=True) if len(part) else torch.zeros(1, 8, dtype=torch.float64)
        q, k, v = (
            proj(each).unflatten(1, (2, 4)).transpose(0, 1)
            for proj, each in zip(
                (pool.q_proj, pool.k_proj, pool.v_proj), (mean, *[torch.cat([mean, part])] * 2), strict=True
            )
        )
        out = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        expected.append(pool.out_proj(out.transpose(0, 1).flatten(1)))
    torch.testing.assert_close(got[:3], torch.cat(expected), rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(got[:3].square().sum(), x)
    (wanted,) = torch.autograd.grad(torch.cat(expected).square().sum(), x)
    torch.testing.assert_close(grad, wanted, rtol=1e-11, atol=1e-12)
    with pytest.raises(ValueError, match="dim=8 is not a multiple of heads=3"):
        MeanQueryPool(8, heads=3)
