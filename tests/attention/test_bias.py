"""Bias as a value: its numbers against a loop over pairs, on every backend that takes it, and its gradients."""

import math

import pytest
import torch
from torch import Tensor

from tubelet.attention import (
    Attention,
    FrameCausal,
    HeadSplit,
    Joint,
    Neighborhood,
    RelativeBias,
    RelativePositions,
    SlidingTile,
    Spatial,
    Strided,
    Temporal,
    VideoOnly,
    Window,
    attend,
)
from tubelet.attention.backends.reference import bias_of
from tubelet.attention.cache import FrameCache
from tubelet.attention.reach import reach
from tubelet.layout import Grid, TokenInfo, TokenLayout
from tubelet.protocols import AttentionRequest

PACKED = TokenLayout.packed([Grid(3, 2, 2), Grid(1, 3, 2), Grid(2, 1, 4)], [2, 0, 1], capacity=32)
DENSE = TokenLayout.dense(2, Grid(2, 3, 2), text_length=1)


def table(heads: int = 2) -> Tensor:
    """For grids up to 3 × 4 × 5."""
    return torch.randn(heads, 5, 7, 9, dtype=torch.float64, requires_grad=True)


def by_hand(values: Tensor, layout: TokenLayout, heads: int) -> Tensor:
    """``(heads, n, n)`` for a flattened layout, pair by pair."""
    info = layout.on("cpu").info()
    coords, kind = info.coords.reshape(-1, 3).tolist(), info.kind.flatten().tolist()
    dense = torch.zeros(heads, len(kind), len(kind), dtype=values.dtype)
    for i, a in enumerate(coords):
        for j, b in enumerate(coords):
            if kind[i] == kind[j] == 2:
                t, h, w = (x - y for x, y in zip(a, b, strict=True))
                if abs(t) < 3 and abs(h) < 4 and abs(w) < 5:
                    dense[:, i, j] = values[:, t + 2, h + 3, w + 4]
    return dense


@pytest.mark.parametrize("pattern", [Joint(), Window((2, 2, 2)), Spatial()], ids=str)
def test_packed_samples_equal_the_dense_bias_pair_by_pair(pattern: object) -> None:
    values, (q, k, v) = table(), torch.randn(3, 32, 2, 4, dtype=torch.float64)
    got = attend(q, k, v, layout=PACKED, pattern=pattern, bias=RelativeBias(values))
    want = attend(q, k, v, layout=PACKED, pattern=pattern, bias=by_hand(values, PACKED, 2), backend="reference")
    assert torch.allclose(got, want, atol=1e-12)
    weights = torch.randn_like(got)
    one, two = (torch.autograd.grad(out, values, weights)[0] for out in (got, want))
    assert torch.allclose(one, two, atol=1e-12) and one.any()


def test_a_table_of_the_windows_serves_larger_grids() -> None:
    """Where tokens of other windows lie outside the table, their numbers are never read, nor are their gradients."""
    layout, (q, k, v) = TokenLayout.packed([Grid(3, 5, 4), Grid(1, 3, 7)], [1, 0]), torch.randn(3, 82, 2, 4).double()
    small, large = torch.randn(2, 3, 3, 5, dtype=torch.float64, requires_grad=True), torch.zeros(2, 5, 9, 13).double()
    large[:, 1:4, 3:6, 4:9] = small.detach()
    large.requires_grad_()
    pattern = Window((2, 2, 3), (1, 0, 1))
    got = attend(q, k, v, layout=layout, pattern=pattern, bias=RelativeBias(small))
    want = attend(q, k, v, layout=layout, pattern=pattern, bias=RelativeBias(large))
    assert torch.equal(got, want)
    weights = torch.randn_like(got)
    one, two = (torch.autograd.grad(out, x, weights)[0] for out, x in ((got, small), (want, large)))
    assert torch.equal(one, two[:, 1:4, 3:6, 4:9]) and one.any()
    with pytest.raises(ValueError, match=r"grids up to \(2, 2, 3\).*sides up to \(2, 3, 3\)"):
        attend(q, k, v, layout=layout, pattern=Window((2, 3, 3)), bias=RelativeBias(small))


GRIDS = [Grid(3, 2, 2), Grid(1, 3, 2), Grid(1, 3, 2), Grid(2, 3, 4)]
WHOLE = {
    "packed": TokenLayout.packed(GRIDS, capacity=52),
    "dense": TokenLayout.dense(2, Grid(3, 3, 4)),
    "padded": TokenLayout.padded([5, 3], 6),
}


@pytest.mark.parametrize("layout", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize(
    "pattern",
    [
        Joint(),
        Spatial(),
        Temporal(),
        Window((2, 2, 3), (1, 0, 1)),
        VideoOnly(Window((2, 2, 2))),
        Neighborhood((3, 3, 2)),
        FrameCausal(2),
        SlidingTile((1, 2, 3), (1, 2, 1)),  # at the borders keys stand still while queries move
        HeadSplit((Spatial(), Temporal()), (2, 2)),
    ],
    ids=str,
)
def test_plans_serve_a_value_as_the_definition_does(pattern: object, layout: TokenLayout) -> None:
    """Outputs and all gradients, with key heads that query heads share; padding is NaN and never counts."""
    if pattern == Joint() and layout is WHOLE["dense"]:
        pytest.skip("dense rows, which another test has")
    valid, values = layout.on("cpu").valid, torch.randn(4, 5, 7, 11, dtype=torch.float64, requires_grad=True)
    q, k, v = (torch.full((*layout.shape, heads, 4), math.nan, dtype=torch.float64) for heads in (4, 2, 2))
    for x in (q, k, v):
        x[valid] = torch.randn(int(valid.sum()), *x.shape[-2:], dtype=torch.float64)
    outs, grads = [], []
    weights = torch.randn(*layout.shape, 4, 4, dtype=torch.float64)
    for backend in ("sdpa", "reference"):
        given = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*given, layout=layout, pattern=pattern, bias=RelativeBias(values), backend=backend)
        outs.append(out)
        grads.append(torch.autograd.grad(out, [*given, values], weights))
    assert torch.allclose(outs[0], outs[1], atol=1e-12) and outs[0].isfinite().all()
    for one, two in zip(*grads, strict=True):
        one, two = (x[valid] if x.shape[: valid.ndim] == valid.shape else x for x in (one, two))
        assert torch.allclose(one, two, atol=1e-11)
        assert one.any() or layout is WHOLE["padded"]  # of plain tokens, without distances on a grid


def test_a_value_that_is_not_of_distances_alone_is_asked_about_every_group() -> None:
    class OfPlaces:
        def between(self, q: TokenInfo, k: TokenInfo, head: Tensor) -> Tensor:
            return (head + 1) * (q.coords.sum(-1) * k.coords[..., 2] - q.sample).double()

        def check(self, heads: int, sides: tuple[int, int, int]) -> None: ...

    q, k, v = torch.randn(3, 52, 2, 4, dtype=torch.float64)
    for pattern in (Window((1, 2, 2)), Temporal()):
        given = {"layout": WHOLE["packed"], "pattern": pattern, "bias": OfPlaces()}
        sdpa, reference = (attend(q, k, v, backend=backend, **given) for backend in ("sdpa", "reference"))
        assert torch.allclose(sdpa, reference, atol=1e-12)


def test_half_precision_is_widened_inside() -> None:
    q, k, v = torch.randn(3, 52, 2, 8)
    bias, layout, pattern = RelativeBias(table(2).detach().bfloat16()), WHOLE["packed"], Window((2, 2, 2))
    given = {"layout": layout, "pattern": pattern, "bias": bias}
    exact = attend(*(x.bfloat16().double() for x in (q, k, v)), **given)
    got = attend(*(x.bfloat16() for x in (q, k, v)), backend="sdpa", **given)
    assert got.dtype == torch.bfloat16
    assert float((got.double() - exact).norm() / exact.norm()) < 3e-3


wide = torch.zeros(2, 7, 3, 7, dtype=torch.float64)


@pytest.mark.parametrize(
    ("layout", "pattern", "bias", "says"),
    [
        (PACKED, Window((2, 2, 2)), RelativeBias(table(2).detach()), "a query's keys lie in several runs"),
        (WHOLE["packed"].keep(range(32)), Spatial(), RelativeBias(table(2).detach()), "on whole grids"),
        (WHOLE["packed"].keep(range(32)), Spatial(), torch.zeros(32, 32), "on whole grids"),
        (TokenLayout.packed([Grid(2, 4, 4)]), Strided(2), RelativeBias(table(2).detach()), "cut along the axes"),
        (TokenLayout.packed([Grid(4, 2, 4)]), FrameCausal(1, 1), RelativeBias(wide), "in several runs"),
    ],
)
def test_sdpa_says_what_bias_it_does_not_serve(layout: TokenLayout, pattern: object, bias: object, says: str) -> None:
    x = torch.randn(32, 2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"backend='sdpa' cannot serve this request: .*{says}"):
        attend(x, x, x, layout=layout, pattern=pattern, bias=bias, backend="sdpa")
    attend(x, x, x, layout=layout, pattern=pattern, bias=bias)


@pytest.mark.parametrize(
    ("pattern", "sides"),
    [
        (Joint(), (4, 5, 6)),
        (Window((2, 9, 4), (1, 0, 0)), (2, 5, 4)),
        (Temporal(), (4, 1, 1)),
        (FrameCausal(2), (2, 5, 6)),
        (FrameCausal(2, 1), (4, 5, 6)),
        (Strided(2), (4, 5, 6)),
        (Spatial() | Temporal(), (4, 5, 6)),
        (Spatial() & FrameCausal(), (1, 5, 6)),
        (HeadSplit((Spatial(), Temporal()), (1, 1)), (4, 5, 6)),
    ],
    ids=str,
)
def test_the_reach_of_a_pattern_holds_every_pair(pattern: object, sides: tuple[int, int, int]) -> None:
    """By the predicate: the largest distance of two tokens that attend each other, and one more."""
    grid = Grid(4, 5, 6)
    info = TokenLayout.packed([grid]).on("cpu").info()
    q, k = (type(info)(*(x.unsqueeze(axis) for x in info)) for axis in (1, 0))
    parts = pattern.patterns if isinstance(pattern, HeadSplit) else [pattern]
    found = [part.attends(q, k, torch.zeros((), dtype=torch.long)).expand(120, 120) for part in parts]
    far = (q.coords - k.coords).abs()[torch.stack(found).any(0)].amax(0) + 1
    assert reach(pattern, grid) == sides
    assert all(least <= side for least, side in zip(far.tolist(), sides, strict=True))
    assert isinstance(pattern, Strided) or far.tolist() == list(sides)


def test_attention_learns_its_relative_positions() -> None:
    options = {"pattern": Window((2, 2, 2)), "dtype": torch.float64}
    relative = RelativePositions(2, (2, 2, 2), dtype=torch.float64)
    attention, x = Attention(8, 2, relative=relative, **options), torch.randn(32, 8, dtype=torch.float64)
    bias = by_hand(torch.nn.functional.pad(relative.table, (3, 3, 2, 2, 1, 1)), PACKED, 2)
    heads = attend(*attention.qkv(x), layout=PACKED, pattern=Window((2, 2, 2)), bias=bias, backend="reference")
    got = attention(x, PACKED)
    assert torch.allclose(got, attention.out_proj(heads.flatten(1)), atol=1e-12)
    got.square().sum().backward()
    assert relative.table.grad.any()
    assert relative.table.std().item() == pytest.approx(0.02, rel=0.5)
    with pytest.raises(ValueError, match=r"heads=2, extent=\(0, 2, 2\)"):
        RelativePositions(2, (0, 2, 2))
    causal = Attention(8, 2, relative=relative, pattern=FrameCausal(), dtype=torch.float64)
    with pytest.raises(ValueError, match="which attention frame by frame does not serve"):
        causal.stream(x[None, :4], FrameCache(FrameCausal()), 4)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_dense_rows_take_it_on_either_backend(backend: str) -> None:
    values, (q, k, v) = table(4), torch.randn(3, 2, 13, 4, 8, dtype=torch.float64)
    k, v = k[:, :, :2], v[:, :, :2]
    got = attend(q, k, v, layout=DENSE, bias=RelativeBias(values), backend=backend)
    rows = by_hand(values, TokenLayout.packed([Grid(2, 3, 2)], [1]), 4)
    want = attend(q, k, v, bias=rows, backend="reference")
    assert torch.allclose(got, want, atol=1e-12)
    weights = torch.randn_like(got)
    one, two = (torch.autograd.grad(out, values, weights)[0] for out in (got, want))
    assert torch.allclose(one, two, atol=1e-12)


def test_plain_rows_are_lines() -> None:
    values = torch.randn(1, 1, 1, 9, dtype=torch.float64)
    q, k, v = torch.randn(3, 2, 5, 2, 4, dtype=torch.float64)
    steps = torch.arange(5)[:, None] - torch.arange(5) + 4
    want = attend(q, k, v, bias=values[0, 0, 0][steps])
    assert torch.allclose(attend(q, k, v, bias=RelativeBias(values)), want, atol=1e-12)


def test_split_heads_keep_their_tables() -> None:
    values, (q, k, v) = table(), torch.randn(3, 32, 2, 4, dtype=torch.float64)
    whole = attend(q, k, v, layout=PACKED, bias=RelativeBias(values))
    split = HeadSplit((Joint(), Joint()), (1, 1))
    assert torch.allclose(attend(q, k, v, layout=PACKED, pattern=split, bias=RelativeBias(values)), whole, atol=1e-12)


def test_a_users_bias_needs_two_methods() -> None:
    class Nearer:
        def between(self, q: TokenInfo, k: TokenInfo, head: Tensor) -> Tensor:
            return -(head + 1) * (q.coords - k.coords).abs().sum(-1).double()

        def check(self, heads: int, sides: tuple[int, int, int]) -> None:
            assert heads == 2 and sides == (3, 3, 4)

    q, k, v = torch.randn(3, 32, 2, 4, dtype=torch.float64)
    coords = PACKED.on("cpu").coords
    far = (coords[:, None] - coords).abs().sum(-1).double()
    want = attend(q, k, v, layout=PACKED, bias=-far * torch.tensor([1.0, 2.0]).double()[:, None, None])
    assert torch.allclose(attend(q, k, v, layout=PACKED, bias=Nearer()), want, atol=1e-12)


def test_queries_in_rows_meet_packed_keys() -> None:
    context = TokenLayout.packed([None, None], [3, 1])
    q, k = torch.randn(2, 5, 2, 4, dtype=torch.float64), torch.randn(4, 2, 4, dtype=torch.float64)
    bias = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    out = attend(q, k, k, kv_layout=context, bias=bias)
    for row, keys in ((0, slice(0, 3)), (1, slice(3, 4))):
        scores = torch.einsum("qhd,khd->hqk", q[row], k[keys]) / 2 + bias[row, :, :, keys]
        assert torch.allclose(out[row], torch.einsum("hqk,khd->qhd", scores.softmax(-1), k[keys]), atol=1e-12)
    with pytest.raises(ValueError, match="no meaning for packed queries"):
        attend(k, q, q, layout=context, kv_layout=TokenLayout.padded([5, 5], 5), bias=bias)


def test_what_does_not_fit_is_named() -> None:
    q = torch.randn(12, 2, 4)
    with pytest.raises(ValueError, match=r"q has 2 heads, but the bias has a table for 3"):
        attend(q, q, q, bias=RelativeBias(torch.zeros(3, 1, 1, 23)))
    with pytest.raises(ValueError, match=r"grids up to \(1, 1, 3\).*sides up to \(1, 1, 12\)"):
        attend(q, q, q, bias=RelativeBias(torch.zeros(2, 1, 1, 5)))
    with pytest.raises(ValueError, match=r"2T-1.*\(2, 4, 3, 3\)"):
        RelativeBias(torch.zeros(2, 4, 3, 3))


@pytest.mark.graph
def test_one_graph_serves_the_layouts_of_a_capacity_and_never_reads_outside_the_table() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    def layer(q: Tensor, values: Tensor, index: object) -> Tensor:
        return attend(q, q, q, layout=index, bias=RelativeBias(values))

    compiled, values, q = torch.compile(layer, fullgraph=True, backend=backend), table(), torch.randn(40, 2, 4).double()
    for grids in ([Grid(3, 2, 2)], [Grid(1, 4, 5), Grid(1, 1, 1)]):
        index = TokenLayout.packed(grids, [1] * len(grids), capacity=40).on("cpu")
        assert torch.allclose(compiled(q, values, index), layer(q, values, index))
    assert len(graphs) == 1
    outside = TokenLayout.packed([Grid(4, 1, 1)], capacity=40).on("cpu")
    assert math.isnan(compiled(q, values.detach(), outside).sum())


def test_numbers_of_a_value_broadcast_to_the_scores() -> None:
    shape = (32, 2, 4)
    request = AttentionRequest(
        Joint(), PACKED.on("cpu"), None, shape, shape, torch.float64, "cpu", 1.0, RelativeBias(table())
    )
    dense = bias_of(request)
    assert dense is not None and dense.shape == (2, 32, 32)
