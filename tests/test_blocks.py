"""Blocks against their formula, against diffusers with mapped weights, and against themselves sample by sample."""

from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoIndividualTokenRefinerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.attention import Attention, CrossAttention
from tubelet.blocks import Branch, LongSkip, ModulatedNorm, Part, TransformerBlock, gated, modulate
from tubelet.conditioning import AdaLNSingle, AdaLNZero, ModulationSlice
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.mlp import MLP
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.testing import check_block

F64 = {"dtype": torch.float64}


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


def dit_block(dim: int, heads: int) -> TransformerBlock:
    """DiT's block from our parts (Peebles & Xie, figure 3)."""
    attention = Branch(
        Attention(dim, heads, **F64),
        LayerNorm(dim, affine=False),
        modulation=AdaLNZero(dim, dim, **F64),
        takes=["layout"],
    )
    mlp = Branch(MLP(dim, 4 * dim, **F64), LayerNorm(dim, affine=False), modulation=AdaLNZero(dim, dim, **F64))
    return TransformerBlock([attention, mlp])


def load_dit_block(ours: TransformerBlock, theirs: BasicTransformerBlock) -> None:
    attention, mlp = ours.branches
    for name, source in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v")):
        getattr(attention.inner, name).load_state_dict(getattr(theirs.attn1, source).state_dict())
    attention.inner.out_proj.load_state_dict(theirs.attn1.to_out[0].state_dict())
    mlp.inner.up.load_state_dict(theirs.ff.net[0].proj.state_dict())
    mlp.inner.down.load_state_dict(theirs.ff.net[2].state_dict())
    # one linear gives shift, scale, gate of the attention, then of the MLP
    weights, biases = theirs.norm1.linear.weight.chunk(2), theirs.norm1.linear.bias.chunk(2)
    for branch, weight, bias in zip(ours.branches, weights, biases, strict=True):
        branch.modulation.proj.load_state_dict({"weight": weight, "bias": bias})


def test_dit_block_equals_diffusers() -> None:
    theirs = BasicTransformerBlock(
        32, 4, 8, norm_type="ada_norm_zero", num_embeds_ada_norm=10, activation_fn="gelu-approximate",
        attention_bias=True, norm_elementwise_affine=False, norm_eps=1e-6,
    ).double().eval()  # fmt: skip
    randomised(theirs)
    ours = dit_block(32, 4)
    load_dit_block(ours, theirs)
    x, t, labels = torch.randn(3, 6, 32, **F64), torch.tensor([5, 400, 999]), torch.tensor([0, 3, 9])
    cond = theirs.norm1.emb(t, labels, hidden_dtype=torch.float64)
    expected = theirs(x, timestep=t, class_labels=labels)
    got = ours(x, Rows(cond), {"layout": None})
    assert (got - expected).norm() <= 1e-9 * expected.norm()
    packed_layout = TokenLayout.packed([Grid(1, 2, 3)] * 3)
    packed = ours(x.flatten(0, 1), packed_layout.rows(cond, "sample"), {"layout": packed_layout})
    assert (packed - expected.flatten(0, 1)).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("level", ["sample", "frame", "token"])
def test_a_branch_is_its_formula(level: str) -> None:
    layout = TokenLayout.packed([Grid(2, 1, 2), Grid(1, 1, 3)], [1, 0])
    index = layout.on("cpu")
    inner, norm, post = nn.Linear(4, 4, **F64), LayerNorm(4, affine=False), LayerNorm(4, affine=False)
    source = randomised(AdaLNZero(4, 6, **F64))
    branch = Branch(inner, norm, modulation=source, post_norm=post, gate=torch.tanh)
    x, values = torch.randn(8, 4, **F64), torch.randn(index.row_counts(level)[0], 6, **F64)
    cond = index.rows(values, level)
    shift, scale, gate = F.linear(F.silu(cond.expand()), source.proj.weight, source.proj.bias).chunk(3, -1)
    plain = F.layer_norm(x, (4,), eps=norm.eps)
    expected = x + gate.tanh() * F.layer_norm(inner(plain * (1 + scale) + shift), (4,), eps=post.eps)
    torch.testing.assert_close(branch(x, cond), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.graph  # the shape checks would refuse a wrong part first
@pytest.mark.parametrize("parts", [(), ("gate",), ("scale",), ("scale", "gate"), ("gate", "shift"), ("shift", "scale")])
def test_a_branch_takes_the_parts_that_its_source_gives(parts: tuple[Part, ...]) -> None:
    inner, norm = nn.Linear(4, 4, **F64), LayerNorm(4)
    source = randomised(AdaLNZero(4, 6, parts=len(parts), **F64)) if parts else None
    branch = Branch(inner, norm, modulation=source, parts=parts or ("gate",), gate=torch.tanh)
    x, cond = torch.randn(2, 5, 4, **F64), Rows(torch.randn(2, 6, **F64))
    given = dict(zip(parts, source(cond).expand().chunk(len(parts), -1), strict=True)) if source else {}
    h = F.layer_norm(x, (4,), eps=norm.eps) * (1 + given.get("scale", torch.zeros(1))) + given.get("shift", 0)
    expected = x + given.get("gate", torch.tensor(torch.inf)).tanh() * inner(h)
    torch.testing.assert_close(branch(x, cond), expected, rtol=1e-11, atol=1e-11)
    for wrong in (("gate", "gate"), ("gates",)):
        with pytest.raises(ValueError, match="parts must be different ones of"):
            Branch(inner, parts=wrong)


def test_gates_alone_equal_hunyuan_videos_refiner() -> None:
    theirs = randomised(HunyuanVideoIndividualTokenRefinerBlock(2, 6).double())
    attention = Branch(
        Attention(12, 2, **F64), LayerNorm(12, **F64), modulation=ModulationSlice(12, 0, 1), parts=("gate",)
    )
    mlp = MLP(12, act=nn.SiLU(), **F64)
    feed = Branch(mlp, LayerNorm(12, **F64), modulation=ModulationSlice(12, 1, 1), parts=("gate",))
    ours = TransformerBlock([attention, feed], AdaLNZero(12, 12, parts=2, **F64))
    names = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out.0"}
    for name, source in names.items():
        getattr(attention.inner, name).load_state_dict(theirs.attn.get_submodule(source).state_dict())
    for child, source in (
        (attention.norm, theirs.norm1), (feed.norm, theirs.norm2), (mlp.up, theirs.ff.net[0].proj),
        (mlp.down, theirs.ff.net[2]), (ours.modulation.proj, theirs.norm_out.linear),
    ):  # fmt: skip
        child.load_state_dict(source.state_dict())
    x, cond = torch.randn(3, 5, 12, **F64), torch.randn(3, 12, **F64)
    torch.testing.assert_close(ours(x, Rows(cond)), theirs(x, cond), rtol=1e-11, atol=1e-11)


def test_float32_rows_make_a_float32_island_in_a_bfloat16_block() -> None:
    inner, norm = nn.Linear(8, 8, dtype=torch.bfloat16), LayerNorm(8, affine=False)
    block = TransformerBlock([Branch(inner, norm, modulation=ModulationSlice(8, 0))], AdaLNSingle(8, parts=3))
    x, cond = torch.randn(2, 5, 8).bfloat16(), Rows(torch.randn(2, 24).bfloat16())
    shift, scale, gate = (cond.values.float() + block.modulation.table.flatten())[:, None].chunk(3, -1)
    h = (F.layer_norm(x.float(), (8,), eps=norm.eps) * (1 + scale) + shift).bfloat16()
    expected = (x.float() + gate * inner(h).float()).bfloat16()
    got = block(x, cond)
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected.float()).norm() <= 1e-3 * expected.float().norm()  # a last bit here and there
    narrow = gated(x, x, cond.map(lambda c: c[:, :8]))  # all in bfloat16, as before
    assert torch.equal(narrow, torch.addcmul(x, cond.values[:, None, :8], x))
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x.float(), cond).dtype == torch.float32


def test_a_block_with_one_modulation_passes_the_kit() -> None:
    def make(**on: Any) -> TransformerBlock:
        attention = Branch(
            Attention(8, 2, qk_norm=RMSNorm, across_heads=True, **on),
            LayerNorm(8, affine=False),
            modulation=ModulationSlice(8, 0),
            takes=["layout"],
        )
        mlp = Branch(MLP(8, **on), LayerNorm(8, affine=False), modulation=ModulationSlice(8, 3))
        return TransformerBlock([attention, mlp], AdaLNSingle(8, parts=6, **on))

    check_block(make, dim=8, cond_dim=48)


def test_a_modulated_block_needs_conditioning() -> None:
    with pytest.raises(ValueError, match="cond is None, but this block"):
        TransformerBlock([], AdaLNSingle(2))(torch.ones(1, 2))


def test_an_unmodulated_branch_adds_and_hands_on_what_it_takes() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, by: float) -> Tensor:
            return x * by

    block = TransformerBlock([Branch(Scaled(), takes=["by"]), Branch(nn.Identity())])
    assert block(torch.ones(1, 2), context={"by": 3.0, "other": 0}).tolist() == [[8.0, 8.0]]
    with pytest.raises(ValueError, match=r"context lacks \['by'\]: this branch takes \['by'\], got \['other'\]"):
        block(torch.ones(1, 2), context={"other": 0})


def test_a_modulated_branch_needs_conditioning() -> None:
    with pytest.raises(ValueError, match="cond is None"):
        Branch(nn.Identity(), modulation=AdaLNZero(2, 2))(torch.ones(1, 2))


def test_a_modulated_norm_is_its_formula_and_a_plain_one_the_norm() -> None:
    x, cond = torch.randn(2, 5, 8, **F64), Rows(torch.randn(2, 8, **F64))
    source = AdaLNZero(8, 8, parts=2, **F64)
    nn.init.normal_(source.proj.weight)
    shift, scale = (source.proj(nn.functional.silu(cond.values))).chunk(2, dim=-1)
    expected = nn.functional.layer_norm(x, (8,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(ModulatedNorm(LayerNorm(8, affine=False), source)(x, cond), expected)
    assert torch.equal(ModulatedNorm(LayerNorm(8, **F64))(x, cond), LayerNorm(8, **F64)(x))
    with pytest.raises(ValueError, match="cond is None, but this norm"):
        ModulatedNorm(LayerNorm(8), source)(x)


def test_a_long_skip_joins_tokens_and_skip_before_its_block() -> None:
    x, skip = torch.randn(2, 5, 8, **F64), torch.randn(2, 5, 8, **F64)
    block = LongSkip(8, dit_block(8, 2), **F64)
    of_tokens, of_skip = block.join.weight.chunk(2, dim=1)
    cond, context = Rows(torch.randn(2, 8, **F64)), {"layout": None}
    randomised(block.block)
    expected = block.block(x @ of_tokens.T + skip @ of_skip.T + block.join.bias, cond, context)
    torch.testing.assert_close(block(x, skip, cond, context), expected, rtol=1e-12, atol=1e-12)
    assert block.join.weight.std() < 0.03 and not block.join.bias.any()


def test_closed_gates_leave_tokens_as_they_are() -> None:
    x = torch.randn(2, 5, 8, **F64)
    assert torch.equal(dit_block(8, 2)(x, Rows(torch.randn(2, 8, **F64)), {"layout": None}), x)


@pytest.mark.graph
def test_one_graph_serves_many_layouts() -> None:
    block, compiles = randomised(dit_block(8, 2)), []
    cross = Branch(randomised(CrossAttention(8, 2, **F64)), LayerNorm(8), takes=["text", "layout", "text_layout"])
    block.branches.append(cross.double())

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        compiles.append(graph)
        return graph.forward

    compiled = torch.compile(block, fullgraph=True, backend=counting)
    for grids in ([Grid(1, 2, 2)], [Grid(2, 2, 2), Grid(1, 1, 3)], [Grid(1, 1, 1)] * 9):
        index = TokenLayout.packed(grids, capacity=16).on("cpu")
        text_index = TokenLayout.packed([None] * len(grids), range(len(grids)), capacity=40).on("cpu")
        context = {"layout": index, "text": torch.randn(40, 8, **F64), "text_layout": text_index}
        x, cond = torch.randn(16, 8, **F64), index.rows(torch.randn(len(grids), 8, **F64), "sample")
        torch.testing.assert_close(compiled(x, cond, context), block(x, cond, context))
    assert len(compiles) == 1


@pytest.mark.graph  # run-time shape checks off, as for users
@pytest.mark.parametrize(
    ("x", "rows"),
    [
        ((5, 4), Rows(torch.zeros(5, 4))),  # would be (5, 5, 4)
        ((1, 4), Rows(torch.zeros(3, 4), torch.zeros(6, dtype=torch.long))),
        ((2, 5, 4), Rows(torch.zeros(3, 4))),
        ((5, 1), Rows(torch.zeros(1, 4))),
    ],
)
def test_rows_of_other_tokens_are_refused(x: tuple[int, ...], rows: Rows) -> None:
    good = Rows(torch.zeros(1, x[-1]))
    for shift, scale in ((rows, good), (good, rows)):
        with pytest.raises(ValueError, match=r"rows expand to shape .* does not fit x of"):
            modulate(torch.zeros(x), shift, scale)
