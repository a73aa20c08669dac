"""Attention modules against PyTorch's own, and against themselves sample by sample."""

from functools import partial

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn

from tubelet.attention import Attention, CrossAttention
from tubelet.layout import Grid, TokenLayout
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.positions import Rope3d, apply_rope

GRIDS, TEXT = [Grid(2, 2, 2), Grid(1, 1, 3), Grid(1, 4, 1)], [2, 0, 1]


def copy_into(theirs: nn.MultiheadAttention, ours: Attention | CrossAttention) -> None:
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    with torch.no_grad():
        if theirs.in_proj_weight is None:
            for name, source in zip("qkv", projections, strict=True):
                getattr(theirs, f"{name}_proj_weight").copy_(source.weight)
        else:
            theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        theirs.out_proj.load_state_dict(ours.out_proj.state_dict())


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def test_self_attention_equals_pytorchs() -> None:
    ours = randomised(Attention(12, heads=3, dtype=torch.float64))
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    copy_into(theirs, ours)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], rtol=1e-11, atol=1e-12)


def test_cross_attention_equals_pytorchs_with_key_padding() -> None:
    ours = randomised(CrossAttention(12, heads=3, context_dim=5, dtype=torch.float64))
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, kdim=5, vdim=5, dtype=torch.float64)
    copy_into(theirs, ours)
    x, text = torch.randn(2, 7, 12, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    layout = TokenLayout.padded([3, 2], 4)
    expected = theirs(x, text, text, key_padding_mask=~layout.on("cpu").valid, need_weights=False)[0]
    torch.testing.assert_close(ours(x, text, text_layout=layout), expected, rtol=1e-11, atol=1e-12)


def test_grouped_heads_norms_and_rope_by_hand() -> None:
    ours = randomised(Attention(16, heads=4, kv_heads=2, head_dim=8, bias=False, qk_norm=RMSNorm, dtype=torch.float64))
    layout = TokenLayout.dense(2, Grid(2, 2, 1))
    rope = Rope3d(8)(layout.on("cpu").coords)
    x = torch.randn(2, 4, 16, dtype=torch.float64)
    q, k, v = ((x @ p.weight.T).view(2, 4, -1, 8) for p in (ours.q_proj, ours.k_proj, ours.v_proj))
    q, k = (
        z / (z.square().mean(-1, keepdim=True) + n.eps).sqrt() * n.weight
        for z, n in ((q, ours.q_norm), (k, ours.k_norm))
    )
    q, k = apply_rope(q, rope), apply_rope(k, rope)
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(2, 2)).div(8**0.5).softmax(-1)
    expected = torch.einsum("bhqk,bkhd->bqhd", weights, v.repeat_interleave(2, 2)).flatten(2) @ ours.out_proj.weight.T
    torch.testing.assert_close(ours(x, layout=layout, rope=rope), expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(ours(x, layout=layout), expected, rtol=1e-3)  # the rotation counts


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize("kind", [Attention, CrossAttention])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("norm", [None, RMSNorm, LayerNorm])
def test_every_kind_of_qk_norm_by_its_formula(kind: type, kv_heads: int, across: bool, norm: type | None) -> None:
    options = {"kv_heads": kv_heads, "qk_norm": norm, "across_heads": across, "dtype": torch.float64}
    ours = randomised(kind(16, heads=4, head_dim=6, **options))
    x, text = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 3, 16, dtype=torch.float64)
    source = x if kind is Attention else text
    q, k, v = ours.q_proj(x), ours.k_proj(source), ours.v_proj(source)
    heads = [
        z if norm is None
        else rms(z.unflatten(-1, (-1, w)), n.weight).flatten(-2) if norm is RMSNorm
        else nn.functional.layer_norm(z.unflatten(-1, (-1, w)), (w,), n.weight, n.bias, 1e-6).flatten(-2)
        for z, n, w in ((q, ours.q_norm, 24 if across else 6), (k, ours.k_norm, 6 * kv_heads if across else 6))
    ]  # fmt: skip
    q, k, v = (z.unflatten(-1, (-1, 6)).transpose(1, 2) for z in (*heads, v))
    k, v = (z.repeat_interleave(4 // kv_heads, 1) for z in (k, v))
    expected = ours.out_proj(((q @ k.mT / 6**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours(*((x,) if kind is Attention else (x, text))), expected, rtol=1e-11, atol=1e-12)
    names = {name.split(".")[0] for name, _ in ours.named_parameters() if "norm" in name}
    assert names == (set() if norm is None else {"q_norm", "k_norm"})


@pytest.mark.parametrize("cross", [False, True])
def test_a_norm_across_heads_equals_wans(cross: bool) -> None:
    theirs = randomised(
        WanAttention(12, 3, 4, eps=1e-6, is_cross_attention=cross, processor=WanAttnProcessor()).double()
    )
    make = CrossAttention if cross else Attention
    ours = make(12, heads=3, qk_norm=partial(RMSNorm, eps=1e-6), across_heads=True, dtype=torch.float64)
    names = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out.0"}
    for name, source in (names | {"q_norm": "norm_q", "k_norm": "norm_k"}).items():
        getattr(ours, name).load_state_dict(theirs.get_submodule(source).state_dict())
    x, text = torch.randn(2, 7, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    expected = theirs(x, text if cross else None)
    torch.testing.assert_close(ours(*((x, text) if cross else (x,))), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("across", [False, True])
def test_packed_equals_separate_in_outputs_and_gradients(across: bool) -> None:
    options = {"qk_norm": RMSNorm, "across_heads": across, "dtype": torch.float64}
    module = randomised(Attention(8, heads=2, head_dim=8, **options))
    layout = TokenLayout.packed(GRIDS, TEXT, capacity=21)
    rope = Rope3d(8)
    x = torch.randn(21, 8, dtype=torch.float64, requires_grad=True)
    out = module(x, layout=layout, rope=rope(layout.on("cpu").coords))
    out[:18].square().sum().backward()
    whole = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    start = 0
    for grid, text in zip(GRIDS, TEXT, strict=True):
        one = TokenLayout.dense(1, grid, text)
        piece = x.detach()[None, start : start + one.width].requires_grad_()
        alone = module(piece, layout=one, rope=rope(one.on("cpu").coords))
        alone.square().sum().backward()
        torch.testing.assert_close(out[start : start + one.width], alone[0], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(x.grad[start : start + one.width], piece.grad[0], rtol=1e-11, atol=1e-11)
        start += one.width
    for a, p in zip(whole, module.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-11, atol=1e-11)


def test_zero_ceremony_and_meta_construction() -> None:
    assert Attention(24, heads=6)(torch.randn(2, 10, 24)).shape == (2, 10, 24)
    for module in (
        Attention(8, 2, qk_norm=RMSNorm, device="meta"),
        CrossAttention(8, 2, qk_norm=RMSNorm, device="meta"),
    ):
        assert all(p.is_meta for p in module.parameters())
        names = {name for name, child in module.named_modules() if type(child) is nn.Linear}
        assert names == {"q_proj", "k_proj", "v_proj", "out_proj"}
        filled = module.to_empty(device="cpu")
        filled.reset_parameters()
        assert all(p.bias.abs().max() == 0 for p in (filled.q_proj, filled.out_proj))
        bound = (6 / 16) ** 0.5  # Xavier-uniform for 8 to 8
        assert 0.8 * bound < filled.q_proj.weight.abs().max() <= bound


def test_half_precision_under_autocast_keeps_running() -> None:
    module = Attention(8, heads=2, head_dim=8, qk_norm=RMSNorm)
    layout = TokenLayout.packed(GRIDS, TEXT)
    rope = Rope3d(8)(layout.on("cpu").coords)
    x = torch.randn(18, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x, layout=layout, rope=rope)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), module(x, layout=layout, rope=rope), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("kind", [Attention, CrossAttention])
def test_heads_must_divide(kind: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="dim=10 is not a multiple of heads=4"):
        kind(10, 4)


@pytest.mark.graph
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_one_graph_serves_many_layouts(backend: str) -> None:
    module, compiles = Attention(8, heads=2, backend=backend), []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        compiles.append(graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, backend=counting)
    for grids in ([Grid(1, 2, 2)], [Grid(2, 2, 2), Grid(1, 1, 3)], [Grid(1, 1, 1)] * 9):
        index = TokenLayout.packed(grids, capacity=16).on("cpu")
        x = torch.randn(16, 8)
        torch.testing.assert_close(compiled(x, layout=index), module(x, layout=index))
    assert len(compiles) == 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Attention(8, 0), "heads=0"),
        (lambda: Attention(8, 2, kv_heads=0), "kv_heads=0"),
        (lambda: Attention(8, 4, kv_heads=3), "kv_heads=3"),
        (lambda: CrossAttention(8, 4, kv_heads=3), "kv_heads=3"),
        (lambda: Attention(8, 2)(torch.zeros(1, 3, 9)), "width 9.*made for 8"),
        (lambda: CrossAttention(8, 2, context_dim=4)(torch.zeros(1, 3, 8), torch.zeros(1, 2, 8)), "text has width 8"),
    ],
)
def test_sizes_that_do_not_fit_are_named(make, says) -> None:
    with pytest.raises(ValueError, match=says):
        make()
