"""The paper's ways of conditioning: their published costs, their formulas, and packed = separate."""

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from dits import multiply_adds, parameters, per_depth
from parity import error, randomise
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import DiT, DiTConfig, dit_adaln, dit_adaln_zero, dit_cross_attention, dit_in_context, dit_xl

F64 = {"dtype": torch.float64}
TINY = DiTConfig(
    dim=16, depth=2, heads=2, mlp_dim=20, latent_channels=2, variance_channels=1, classes=5, patch=(1, 1, 2),
    frequencies=8, eps=1e-5, mlp_eps=1e-3,
)  # fmt: skip
WAYS = [dit_adaln_zero, dit_adaln, dit_cross_attention, dit_in_context]
GRIDS, LABELS = [Grid(2, 2, 1), Grid(1, 1, 3), Grid(3, 1, 2)], torch.tensor([4, 5, 0])
PUBLISHED = {
    # table 4: billions of multiply-adds, millions of parameters
    dit_adaln_zero: (118.64, 675), dit_adaln: (118.56, 600), dit_cross_attention: (137.62, 598),
    dit_in_context: (119.37, 449),
}  # fmt: skip


def tiny(way: Any) -> DiT:
    return randomise(DiT(TINY, conditioning=way, **F64))


@pytest.mark.parametrize("way", WAYS)
def test_the_published_costs(way: Any) -> None:
    cost, millions = PUBLISHED[way]
    assert per_depth(partial(multiply_adds, conditioning=way), dit_xl()) == pytest.approx(cost, rel=1e-3)
    assert per_depth(partial(parameters, conditioning=way), dit_xl()) / 1e6 == pytest.approx(millions, abs=1)


def by_definition(model: DiT, way: Any, x: Tensor, t: float, label: int) -> Tensor:
    """One image ``(n, p)`` of one row, block by block, from the weights."""
    d = TINY.dim
    angles = torch.tensor([(1000 * t - 1) * 10000.0 ** (-i / 4) for i in range(4)], **F64)
    time = model.time.down(F.silu(model.time.up(torch.cat([angles.cos(), angles.sin()]))))
    both = torch.stack([time, model.label.table.weight[label]])
    place = torch.arange(len(x), **F64)[:, None] * 10000.0 ** -(torch.arange(4, **F64) / 4)
    rows = torch.cat([torch.zeros(len(x), 4, **F64), torch.ones(len(x), 4, **F64)], 1)
    h = model.embed(x) + torch.cat([place.sin(), place.cos(), rows], 1)
    c = F.silu(both.sum(0))
    blocks = model.blocks if way in (dit_adaln_zero, dit_adaln) else model.blocks[0].blocks
    if way is dit_in_context:
        h = torch.cat([h, both])  # wherever they stand: attention does not see order
    for block in blocks:
        for i, branch in enumerate(block.branches):
            eps = TINY.mlp_eps if i == len(block.branches) - 1 else TINY.eps
            u, gate = F.layer_norm(h, (d,), branch.norm.weight, branch.norm.bias, eps), 1.0
            if block.modulation is not None:
                of = block.modulation.proj(c).chunk(2)[i].split(d)
                u, gate = u * (1 + of[1]) + of[0], of[2] if way is dit_adaln_zero else 1.0
            h = h + gate * attended(branch.inner, u, both if len(block.branches) == 3 and i == 1 else u)
    h = h[: len(x)]
    last = model.final_norm
    if last.modulation is None:
        return model.project(F.layer_norm(h, (d,), last.norm.weight, last.norm.bias, TINY.eps))
    shift, scale = last.modulation.proj(c).chunk(2)
    return model.project(F.layer_norm(h, (d,), eps=TINY.eps) * (1 + scale) + shift)


def attended(inner: nn.Module, x: Tensor, keys: Tensor) -> Tensor:
    if not hasattr(inner, "q_proj"):
        return inner(x)
    q, k, v = (f(u).unflatten(-1, (2, -1)) for f, u in ((inner.q_proj, x), (inner.k_proj, keys), (inner.v_proj, keys)))
    weights = (torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    return inner.out_proj(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))


@pytest.mark.parametrize("way", WAYS)
def test_each_is_its_formula(way: Any) -> None:
    model, x = tiny(way), torch.randn(5, 4, **F64)
    layout = TokenLayout.dense(1, Grid(1, 1, 5))
    got = model(x[None], layout.rows(torch.tensor([0.3], **F64), "sample"), layout, torch.tensor([3]))[0]
    torch.testing.assert_close(got, by_definition(model, way, x, 0.3, 3), rtol=1e-11, atol=1e-11)
    assert error(model(x[None], Rows(torch.tensor([0.4], **F64)), layout, torch.tensor([3]))[0], got) > 1e-3
    assert error(model(x[None], Rows(torch.tensor([0.3], **F64)), layout, torch.tensor([2]))[0], got) > 1e-3


@pytest.mark.parametrize("capacity", [None, 20])
@pytest.mark.parametrize("way", WAYS[1:])
def test_packed_equals_separate(way: Any, capacity: int | None) -> None:
    """Outputs and gradients of weights, padding holding NaN."""
    model, layout = tiny(way), TokenLayout.packed(GRIDS, capacity=capacity)
    levels = torch.tensor([0.2, 0.5, 0.9], **F64)
    x = torch.randn(13, 4, **F64)
    padded = torch.cat([x, torch.full((layout.width - 13, 4), torch.nan, **F64)])
    got = model(padded, layout.rows(levels, "sample"), layout, LABELS)[:13]
    got.square().sum().backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for one, out, level, label, grid in zip(
        x.split([4, 3, 6]), got.split([4, 3, 6]), levels, LABELS, GRIDS, strict=True
    ):
        alone = TokenLayout.dense(1, grid)
        expected = model(one[None], alone.rows(level[None], "sample"), alone, label[None])[0]
        torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
        expected.square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(packed[name], p.grad, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("way", [dit_cross_attention, dit_in_context])
def test_conditions_as_tokens_take_one_level_a_sample(way: Any) -> None:
    layout, x = TokenLayout.packed(GRIDS), torch.randn(13, 4, **F64)
    with pytest.raises(ValueError, match="t has 6 noise levels, but conditions are tokens of 3 samples"):
        tiny(way)(x, layout.rows(torch.rand(6, **F64), "frame"), layout, LABELS)


@pytest.mark.parametrize("way", WAYS)
def test_all_start_at_zero_and_reset_whole(way: Any) -> None:
    model = DiT(dataclasses.replace(TINY, depth=1), conditioning=way, device="meta", **F64).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    model.reset_parameters()
    layout = TokenLayout.packed(GRIDS)
    out = model(torch.randn(13, 4, **F64), layout.rows(torch.rand(3, **F64), "sample"), layout, LABELS)
    assert torch.equal(out, torch.zeros(13, 6, **F64))


@pytest.mark.graph
@pytest.mark.parametrize("way", [dit_cross_attention, dit_in_context])
def test_one_graph_serves_many_layouts(way: Any) -> None:
    model, compiles = tiny(way), []

    def counting(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        compiles.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=counting)
    for grids in ([Grid(1, 2, 2)], [Grid(2, 2, 2), Grid(1, 1, 3)], [Grid(1, 1, 1)] * 9):
        index = TokenLayout.packed(grids, capacity=16).on("cpu")
        t = index.rows(torch.rand(len(grids), **F64), "sample")
        labels = index.rows(torch.arange(len(grids)) % 6, "sample").values
        x = torch.randn(16, 4, **F64)
        torch.testing.assert_close(compiled(x, t, index, labels), model(x, t, index, labels))
    assert len(compiles) == 1
