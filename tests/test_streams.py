"""Blocks of several streams against the same formulas written out, and joint attention against one merged softmax."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tubelet.attention import Attention, FrameCausal, JointAttention, ParallelAttention, Window
from tubelet.blocks import Branch
from tubelet.conditioning import AdaLNZero, ModulationSlice
from tubelet.layout import Grid, JointLayout, Rows, TokenLayout
from tubelet.mlp import MLP
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.positions import Rope3d
from tubelet.protocols import Pattern
from tubelet.streams import JointBranch, MultiStreamBlock, StreamBranches

F64 = {"dtype": torch.float64}
GRIDS, TEXT = [Grid(2, 1, 2), Grid(1, 2, 1), Grid(3, 1, 1)], [2, 0, 3]
VIDEO_LAYOUT, TEXT_LAYOUT = TokenLayout.packed(GRIDS), TokenLayout.packed([None] * 3, TEXT)
JOINT = JointLayout((TEXT_LAYOUT, VIDEO_LAYOUT))


def randomised(module: Any) -> Any:
    draw = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4, generator=draw)
    return module


def attention(pattern: Pattern | None = None) -> JointAttention:
    streams = [Attention(6, 2, head_dim=6, qk_norm=RMSNorm, **F64), Attention(12, 2, qk_norm=RMSNorm, **F64)]
    return randomised(JointAttention(streams, **({} if pattern is None else {"pattern": pattern})))


def tokens() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(5, 6, generator=draw, **F64), torch.randn(9, 12, generator=draw, **F64)


@pytest.mark.parametrize("pattern", [None, Window((1, 2, 2)), FrameCausal()])
def test_joint_attention_is_one_softmax_over_text_and_video(pattern: Pattern | None) -> None:
    module, (text, video) = attention(pattern), tokens()
    rope = Rope3d(6)(VIDEO_LAYOUT.on("cpu").coords)
    got = module(text, video, joint=JOINT.on("cpu"), ropes=(None, rope))
    heads = [m.qkv(x, r) for m, x, r in zip(module.streams, (text, video), (None, rope), strict=True)]
    q, k, v = (torch.cat(parts) for parts in zip(*heads, strict=True))
    sample = torch.cat([TEXT_LAYOUT.on("cpu").sample, VIDEO_LAYOUT.on("cpu").sample])
    allowed = sample[:, None] == sample
    c = VIDEO_LAYOUT.on("cpu").coords
    cells = torch.ones(9, 9, dtype=torch.bool)
    if pattern is not None:
        windows = isinstance(pattern, Window)
        cells = (c[:, None, 0] == c[None, :, 0]) if windows else (c[:, None, 0] >= c[None, :, 0])
        if not windows:  # a text of a causal pattern does not see the frames behind it
            allowed[:5, 5:] = False
    allowed[5:, 5:] &= cells
    weights = (torch.einsum("qhd,khd->hqk", q, k) / 6**0.5).masked_fill(~allowed, -torch.inf).softmax(-1)
    out = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
    torch.testing.assert_close(got[0], module.streams[0].out_proj(out[:5]), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(got[1], module.streams[1].out_proj(out[5:]), rtol=1e-11, atol=1e-11)


def block(updates: tuple[bool, bool] = (True, True)) -> MultiStreamBlock:
    widths = (6, 12)
    joint = JointBranch(
        attention(),
        [
            Branch(nn.Identity(), LayerNorm(w, affine=False), modulation=ModulationSlice(w, 0), gate=torch.tanh)
            for w in widths
        ],
        updates=updates,
        takes=("joint",),
    )
    mlps = [Branch(MLP(w, 8, **F64), LayerNorm(w, affine=False), modulation=ModulationSlice(w, 3)) for w in widths]
    alone = StreamBranches([each if moves else None for each, moves in zip(mlps, updates, strict=True)])
    return randomised(MultiStreamBlock([joint, alone], [AdaLNZero(w, 4, parts=6, **F64) for w in widths]))


def conds() -> tuple[Rows, Rows]:
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(2), **F64)
    return TEXT_LAYOUT.on("cpu").rows(values, "sample"), VIDEO_LAYOUT.on("cpu").rows(values, "sample")


def test_a_dual_stream_block_is_its_formulas_written_out() -> None:
    module, streams, rows = block(), tokens(), conds()
    got = module(streams, rows, {"joint": JOINT.on("cpu")})
    parts = [list(module.modulations[str(i)](rows[i]).chunk(6)) for i in range(2)]
    parts = [[each.expand() for each in side] for side in parts]
    normed = [nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) for x in streams]
    inputs = [n * (1 + p[1]) + p[0] for n, p in zip(normed, parts, strict=True)]
    attended = module.branches[0].inner(*inputs, joint=JOINT.on("cpu"))
    for i, (x, a, p) in enumerate(zip(streams, attended, parts, strict=True)):
        x = x + p[2].tanh() * a
        h = nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + p[4]) + p[3]
        expected = x + p[5] * module.branches[1].branches[str(i)].inner(h)
        torch.testing.assert_close(got[i], expected, rtol=1e-11, atol=1e-11)


def test_a_stream_that_is_only_read_stays_and_has_no_parameters_for_its_way_back() -> None:
    module, streams = block((False, True)), tokens()
    got = module(streams, conds(), {"joint": JOINT.on("cpu")})
    full = block()
    assert torch.equal(got[0], streams[0]) and not torch.equal(got[1], streams[1])
    assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in full.parameters())


def test_parallel_attention_is_attention_beside_an_mlp() -> None:
    inner = Attention(12, 2, out=False, qk_norm=RMSNorm, **F64)
    module, (_, video) = randomised(ParallelAttention(inner, 12, 8, **F64)), tokens()
    rope = Rope3d(6)(VIDEO_LAYOUT.on("cpu").coords)
    got = module(video, VIDEO_LAYOUT, rope)
    weight, bias = module.down.weight, module.down.bias
    mlp = nn.functional.gelu(module.up(video), approximate="tanh")
    expected = module.attention(video, VIDEO_LAYOUT, rope) @ weight[:, :12].T + mlp @ weight[:, 12:].T + bias
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("batched", [False, True])
def test_rows_of_streams_merge_to_those_of_the_merged_tokens(batched: bool) -> None:
    if batched:
        text, video = TokenLayout.padded([1, 3], 3), TokenLayout.dense(2, Grid(2, 1, 2))
    else:
        text, video = TEXT_LAYOUT, VIDEO_LAYOUT
    joint = JointLayout((text, video)).on("cpu")
    draw = torch.Generator().manual_seed(0)
    for level in ("sample", "frame", "token"):
        rows = [
            index.rows(torch.rand(index.row_counts(each)[0], 2, generator=draw), each)  # type: ignore[arg-type]
            for index, each in ((text.on("cpu"), "sample"), (video.on("cpu"), level))
        ]
        tokens = [each.expand().expand(*i.shape, 2) for each, i in zip(rows, (text, video), strict=True)]
        assert torch.equal(joint.merge_rows(*rows).expand(), joint.merge(*tokens))
    one = Rows(torch.rand(1, 2))
    assert joint.merge_rows(one, one) is one


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: JointAttention([Attention(6, 2), Attention(12, 3)]), r"equal heads, got .*\(6, 6, 3\), \(12, 12, 4\)"),
        (lambda: attention()(tokens()[0], joint=JOINT.on("cpu")), "1 tensors and 2 ropes, but the module has 2"),
        (lambda: ParallelAttention(Attention(6, 2), 6, 8), "made with out=False"),
        (lambda: JointBranch(nn.Identity(), [Branch(nn.Identity())], updates=(True, False)), "2 entries, .* 1 branch"),
        (lambda: block()(tokens(), (None, None)), r"conds\[0\] is None"),
        (lambda: block()(tokens()[:1], conds()), "streams=1 and conds=2 given, but the block has 2"),
        (lambda: block()(tokens(), conds()), r"context lacks \['joint'\]"),
        (lambda: JOINT.on("cpu").merge_rows(conds()[0]), "those of 1 streams, but the joint layout has 2"),
        (lambda: JOINT.on("cpu").merge_rows(*conds()[::-1]), r"rows have tokens \(9,\), but the stream has \(5,\)"),
        (lambda: JOINT.on("cpu").merge_rows(*(Rows(torch.ones(3)), conds()[1])), "3 values without an index"),
    ],
)
def test_what_does_not_fit_is_named(act: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        act()


def test_the_backend_is_that_of_the_joint_attention() -> None:
    module = JointAttention([Attention(6, 2), Attention(6, 2)], backend="no such")
    joint = JointLayout((TokenLayout.packed([None], [3]), TokenLayout.packed([Grid(1, 2, 2)]))).on("cpu")
    with pytest.raises(ValueError, match="no such"):
        module(torch.zeros(3, 6), torch.zeros(4, 6), joint=joint)
