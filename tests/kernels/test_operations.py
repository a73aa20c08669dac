"""What the operations do where no kernel runs: their references, refusals, shapes and compiled graphs."""

from functools import partial

import pytest
import torch
from torch import Tensor

from tubelet import attend
from tubelet.attention import Temporal, Window
from tubelet.attention.boxes import tiles_of, window_tiles
from tubelet.attention.places import Affine
from tubelet.attention.plan import make_plan
from tubelet.attention.tiles import Run, Sample
from tubelet.blocks import gated, modulate
from tubelet.kernels import (
    TileSizes,
    gate_residual,
    grouped_attention,
    linear,
    norm_modulate,
    norm_rope,
    norm_silu_pad,
    qk_norm_rope,
    residual_norm_modulate,
    segment_tiles,
    tiled_attention,
    varlen_attention,
)
from tubelet.kernels._choice import use_triton
from tubelet.kernels._rows.sums import by_row
from tubelet.kernels._tiled.table import FIELDS
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.norms import LayerNorm, RMSNorm
from tubelet.positions import Rope3d, Rotary, apply_rope
from tubelet.vae.blocks import ChannelNorm
from tubelet.vae.causal import CausalConv3d, copies, zeros
from tubelet.vae.group_norms import FrameGroupNorm

F64 = {"dtype": torch.float64}


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("affine", [False, True])
def test_norm_modulate_is_the_librarys_norm_and_modulation(norm: str, affine: bool) -> None:
    module = (LayerNorm if norm == "layer" else RMSNorm)(12, affine=affine, **F64)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x, rows = torch.randn(2, 5, 12, **F64), Rows(torch.randn(3, 24, **F64), torch.randint(0, 3, (2, 5)))
    shift, scale = rows.chunk(2)
    weight, bias = module.weight, getattr(module, "bias", None)
    got = norm_modulate(x, shift, scale, norm=norm, weight=weight, bias=bias)
    torch.testing.assert_close(got, modulate(module(x), shift, scale), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_norm_modulate_passes_gradcheck(norm: str) -> None:
    index = torch.tensor([0, 1, 1])
    leaves = [torch.randn(*shape, **F64, requires_grad=True) for shape in ((3, 4), (2, 8), (4,), (4,))]

    def run(x: Tensor, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return norm_modulate(x, *Rows(rows, index).chunk(2), norm=norm, weight=weight, bias=bias)

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("affine", [False, True])
def test_residual_norm_modulate_is_the_librarys_residual_norm_and_modulation(norm: str, affine: bool) -> None:
    module = (LayerNorm if norm == "layer" else RMSNorm)(12, affine=affine, **F64)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x, update = torch.randn(2, 2, 5, 12, **F64)
    rows = Rows(torch.randn(3, 36, **F64), torch.randint(0, 3, (2, 5)))
    arguments = {"norm": norm, "weight": module.weight, "bias": getattr(module, "bias", None)}
    for gate, shift, scale in (rows.chunk(3), (None, None, None), (None, *rows.chunk(3)[1:])):
        y, out = residual_norm_modulate(x, update, gate, shift, scale, **arguments)
        expected = gated(x, update, gate)
        torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(out, modulate(module(expected), shift, scale), rtol=1e-11, atol=1e-12)
    assert torch.equal(gate_residual(x, update, rows.chunk(3)[0]), gated(x, update, rows.chunk(3)[0]))


def test_the_residual_keeps_its_dtype_and_the_norm_reads_what_is_kept() -> None:
    x, row = torch.randn(2, 5, 40).bfloat16(), Rows(torch.randn(1, 40))
    y, out = residual_norm_modulate(x[0], x[1], row, row, row)
    exact = x[0].double() + row.values.double() * x[1].double()
    assert y.dtype == out.dtype == torch.bfloat16
    assert torch.equal(y, exact.bfloat16())
    assert torch.equal(out, norm_modulate(y, row, row).bfloat16())


NORMS = [
    (ChannelNorm(6, 1e-3, bias=True, **F64), {"norm": "rms"}),
    (FrameGroupNorm(3, 6, 1e-3, **F64), {"norm": "group", "groups": 3}),
    (torch.nn.GroupNorm(3, 6, 1e-3, **F64), {"norm": "group", "groups": 3, "per_frame": False}),
]


@pytest.mark.parametrize(("module", "norm"), NORMS, ids=["channels", "groups of a frame", "groups of a clip"])
@pytest.mark.parametrize("before", ["copies", "zeros"])
@pytest.mark.parametrize("edges", ["zeros", "replicate"])
def test_norm_silu_pad_is_what_a_causal_convolution_reads(module, norm, before: str, edges: str) -> None:
    """The convolution of the result, without padding, is the library's of its norm and SiLU, chunk by chunk."""
    affine = [torch.nn.init.normal_(parameter) for parameter in module.parameters()]
    conv = CausalConv3d(6, 4, (3, 3, 5), before=copies if before == "copies" else zeros, edges=edges, **F64)
    bare = partial(torch.nn.functional.conv3d, weight=conv.conv.weight, bias=conv.conv.bias)
    state = None
    for x in torch.randn(2, 1, 6, 2, 4, 5, **F64):
        options = {"weight": affine[0], "bias": affine[1], "eps": 1e-3, "around": (1, 2), "edges": edges}
        ours = norm_silu_pad(x, state=state, frames=2, before=before, **norm, **options)
        expected, state = conv(torch.nn.functional.silu(module(x)), state)
        torch.testing.assert_close(bare(ours), expected, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(ours[:, :, -2:, 1:-1, 2:-2], state, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_norm_silu_pad_keeps_the_memory_format(memory_format: torch.memory_format) -> None:
    x = torch.randn(1, 4, 2, 3, 3).to(memory_format=memory_format)
    for options in ({}, {"frames": 2}, {"frames": 1, "around": (1, 1), "edges": "replicate"}):
        out = norm_silu_pad(x, norm="rms", eps=1e-6, **options)
        assert out.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_qk_norm_rope_is_the_librarys_norm_and_rotation(layout: str) -> None:
    norms = [RMSNorm(12, **F64), RMSNorm(12, **F64)]
    for norm in norms:
        torch.nn.init.normal_(norm.weight)
    q, k = torch.randn(2, 5, 4, 12, **F64), torch.randn(2, 5, 2, 12, **F64)
    rotary = Rope3d(12, layout=layout, **F64)(torch.rand(5, 3))
    got = qk_norm_rope(q, k, rotary, norms[0].weight, norms[1].weight)
    for each, x, norm in zip(got, (q, k), norms, strict=True):
        torch.testing.assert_close(each, apply_rope(norm(x), rotary), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_qk_norm_rope_passes_gradcheck(layout: str) -> None:
    rotary = Rope3d(6, layout=layout, **F64)(torch.rand(2, 3))
    leaves = [torch.randn(*shape, **F64, requires_grad=True) for shape in ((2, 2, 6), (2, 1, 6), (6,), (6,))]
    assert torch.autograd.gradcheck(lambda q, k, a, b: qk_norm_rope(q, k, rotary, a, b), leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x, rows = torch.randn(5, 40).to(dtype), Rows(torch.randn(1, 80).to(dtype))
    exact = norm_modulate(x.double(), *rows.map(Tensor.double).chunk(2))
    assert torch.equal(norm_modulate(x, *rows.chunk(2)), exact.to(dtype))
    q, rotary = torch.randn(5, 2, 8).to(dtype), Rope3d(8)(torch.rand(5, 3))
    exact = qk_norm_rope(q.double(), q.double(), Rotary(rotary.cos.double(), rotary.sin.double()))
    got = qk_norm_rope(q, q, rotary)
    assert got[0].dtype == dtype
    assert torch.equal(got[1], exact[1].to(dtype))


@pytest.mark.graph
def test_the_automatic_choice_compiles_into_one_graph() -> None:
    rotary = Rope3d(12)(torch.rand(6, 3))

    def run(x: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        h = norm_modulate(x, *Rows(rows).chunk(2)).unflatten(-1, (2, 12))
        return torch.cat(qk_norm_rope(h, h, rotary, weight, weight))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    leaves = [torch.randn(*shape, requires_grad=True) for shape in ((2, 6, 24), (2, 48), (12,))]
    results = [(out := each(*leaves), *torch.autograd.grad(out.sum(), leaves)) for each in (compiled, run)]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_triton_is_refused_with_the_reason() -> None:
    x, rows, q = torch.ones(2, 3, 8), Rows(torch.ones(2, 16)), torch.ones(3, 2, 8)
    shift, scale = rows.chunk(2)
    angles = torch.ones(3, 4)
    for call, reason in [
        (lambda: norm_modulate(x, shift, scale, backend="triton"), "CUDA device, and the tensors lie on cpu"),
        (lambda: norm_modulate(x.double(), shift, scale, backend="triton"), "float32, and a tensor is torch.float64"),
        (
            lambda: norm_modulate(torch.ones(1, 9000), *Rows(torch.ones(1, 18000)).chunk(2), backend="triton"),
            "at most 8192 numbers, and x has width 9000",
        ),
        (
            lambda: norm_modulate(
                x, Rows(shift.values, torch.zeros(2, 3).long()), Rows(scale.values, torch.ones(2, 3).long()),
                backend="triton",
            ),
            "two indexes",
        ),
        (lambda: norm_modulate(x.to("meta"), shift, scale, backend="triton"), "tensors lie on meta and"),
        (lambda: qk_norm_rope(q, q, Rotary(angles, angles), backend="triton"), "CUDA device"),
        (lambda: gate_residual(x, x, shift, backend="triton"), "CUDA device"),
        (
            lambda: residual_norm_modulate(x, x, Rows(torch.ones(1, 8)), shift, scale, backend="triton"),
            "have 1 and 2 and 2 rows",
        ),
        (
            lambda: norm_silu_pad(torch.ones(1, 1025, 1, 1, 1), norm="rms", eps=1e-6, backend="triton"),
            "at most 1024 channels, and x has 1025",
        ),
        (lambda: qk_norm_rope(q, q.half(), Rotary(angles, angles), backend="triton"), "q is torch.float32 and k"),
        (
            lambda: qk_norm_rope(q, q, Rotary(angles, angles, "half_per_axis", (4, 4)), backend="triton"),
            r"three axes, and rotary has axes \(4, 4\)",
        ),
        (lambda: norm_rope(torch.ones(2, 40, 130), across_heads=True, backend="triton"), "q has 40 heads of 130"),
        (lambda: norm_rope(torch.ones(2, 1, 7), backend="triton"), "an even number, and q has head_dim 7"),
        (
            lambda: qk_norm_rope(q, q, Rotary(angles.requires_grad_(), angles), backend="triton"),
            "no gradient for angles that heads share",
        ),
        (
            lambda: qk_norm_rope(q, q, Rotary(torch.ones(2, 3, 4), torch.ones(2, 3, 4)), backend="triton"),
            "does not broadcast to q",
        ),
        (
            lambda: qk_norm_rope(*torch.ones(2, 1, 1, 514), Rotary(*torch.ones(2, 1, 257)), backend="triton"),
            "at most 512 features, an even number, and q has head_dim 514",
        ),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            call()


def test_triton_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed \(pip install 'tubelet\[triton\]'\)"):
        use_triton("triton", "norm_modulate", [torch.ones(1)], None)
    assert not use_triton("auto", "norm_modulate", [torch.ones(1)], None)


def test_what_does_not_fit_is_an_error_on_every_backend() -> None:
    x, rows = torch.ones(2, 3, 8), Rows(torch.ones(3, 16))
    shift, scale = rows.chunk(2)
    angles, clip = torch.ones(3, 4), torch.ones(1, 6, 2, 3, 3)
    pad = partial(norm_silu_pad, clip, eps=1e-6)
    for call, message in [
        (lambda: gate_residual(x, x, shift), r"3 rows without an index.*x is \(2, 3, 8\)"),
        (lambda: gate_residual(x, x, rows), r"rows are \(3, 16\), but x has width 8"),
        (lambda: pad(norm="group", groups=4), "divide the 6 channels of x, got 4"),
        (lambda: pad(norm="rms", frames=-1), "not be negative, got -1"),
        (lambda: norm_modulate(x, shift, scale), r"3 rows without an index.*x is \(2, 3, 8\)"),
        (lambda: norm_modulate(x[..., :4], shift, scale), "width 4"),
        (lambda: norm_modulate(x, shift, Rows(scale.values[:2])), r"shift has rows \(3, 8\) and scale \(2, 8\)"),
        (lambda: qk_norm_rope(*torch.ones(2, 3, 1, 6), Rotary(angles, angles)), "head_dim 6.*head_dim 8"),
        (lambda: qk_norm_rope(*torch.ones(2, 2, 1, 8), Rotary(angles, angles)), "q has 2 tokens.*turns 3 tokens"),
        (
            lambda: qk_norm_rope(*torch.ones(2, 3, 1, 8), Rotary(*torch.ones(2, 3, 2, 4), per_head=True)),
            "q has 1 heads, but rotary turns 2 by angles of their own",
        ),
        (lambda: norm_rope(torch.ones(3, 1, 8), None, torch.ones(8), norm="none"), r"no weight, got one of.*\(8,\)"),
        (
            lambda: norm_rope(torch.ones(3, 2, 8), None, torch.ones(8), across_heads=True),
            r"weight of x must be \(16,\), got \(8,\)",
        ),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.graph  # their types refuse most of it elsewhere
def test_what_a_kernel_would_read_amiss_is_an_error_on_every_backend() -> None:
    x, angles, clip, one = torch.ones(2, 3, 8), torch.ones(3, 4), torch.ones(1, 6, 2, 3, 3), torch.ones(1, 8)
    pad = partial(norm_silu_pad, clip, eps=1e-6)
    cu = torch.tensor([0, 2])
    tiles = segment_tiles(cu, cu, 2, 2, TileSizes(*[16] * 6))
    for call, message in [
        (
            lambda: qk_norm_rope(torch.ones(2, 3, 1, 8), torch.ones(1, 3, 1, 8), None),
            r"heads alone, got \(2, 3, 1, 8\) and \(1, 3, 1, 8\)",
        ),
        (lambda: norm_rope(torch.ones(3, 1, 8), Rotary(angles, angles[:2])), r"got \(3, 4\) and \(2, 4\)"),
        (lambda: norm_rope(torch.ones(2, 8)), r"x must be \(\*lead, tokens, heads, head_dim\), got \(2, 8\)"),
        (lambda: norm_modulate(x, *[Rows(one)] * 2, weight=torch.ones(1)), r"weight must be \(8,\), got \(1,\)"),
        (lambda: residual_norm_modulate(x, x, None, None, None, bias=x[0]), r"bias must be \(8,\), got \(3, 8\)"),
        (lambda: varlen_attention(x, x, x[0], torch.tensor([0, 2])), r"got \(2, 3, 8\), \(2, 3, 8\) and \(3, 8\)"),
        (lambda: varlen_attention(x, x, x.half(), torch.tensor([0, 2])), r"one dtype, got .*32, .*32 and .*16"),
        (lambda: varlen_attention(x, x, x, torch.tensor([0, 3])), r"cu_q must .* at most at 2 tokens, got \[0, 3\]"),
        (lambda: varlen_attention(x, x, x, *torch.tensor([[0, 1, 2], [0, 2, 1]])), r"cu_k must .*, got \[0, 2, 1\]"),
        (lambda: varlen_attention(x, x, x, torch.tensor([1, 2])), r"cu_q must start at 0.*, got \[1, 2\]"),
        (lambda: varlen_attention(x, x, x, torch.tensor([[0, 2]])), r"cu_q must be integers .* of shape \(1, 2\)"),
        (lambda: varlen_attention(x, x, x, torch.tensor([0.0, 2.0])), "cu_q must be integers .*float32"),
        (
            lambda: varlen_attention(x, x, x, torch.tensor([0, 2]), backend="blocks"),
            "'blocks' cannot serve this tiled_attention: .*; backend='reference' can",
        ),
        (lambda: pad(norm="rms", around=(1,)), r"around \(h, w\), got \(1, 6, 2, 3, 3\) and \(1,\)"),
        (lambda: norm_silu_pad(clip[0], norm="rms", eps=1e-6), r"x must be \(b, c, t, h, w\).*got \(6, 2, 3, 3\)"),
        (lambda: norm_silu_pad(clip[:, :, :0], norm="rms", eps=1e-6, frames=1), r"one frame, got .*6, 0, 3, 3\)"),
        (
            lambda: norm_silu_pad(clip[:, :, :0], norm="rms", eps=1e-6, frames=2, before="zeros"),
            r"x must have at least one frame, got \(1, 6, 0, 3, 3\)",
        ),
        (
            lambda: gate_residual(x, x, Rows(one.expand(2, 8), torch.tensor([True, False, True]))),
            "index of rows must be int32 or int64, got torch.bool",
        ),
        (
            lambda: gate_residual(x, x, Rows(one, torch.zeros(3))),
            "index of rows must be int32 or int64, got torch.float32",
        ),
        (
            lambda: norm_modulate(x, *[Rows(one, torch.zeros(3).byte())] * 2),
            "index of rows must be int32 or int64, got torch.uint8",
        ),
        (lambda: grouped_attention(x.half(), x, x, []), r"one dtype, got .*16, .*32 and .*32"),
        (lambda: tiled_attention(x, x, x.half(), tiles), r"one dtype, got .*32, .*32 and .*16"),
        (
            lambda: norm_silu_pad(clip[..., :0], norm="rms", eps=1e-6, around=(0, 1), edges="replicate"),
            r"edge to copy round \(0, 1\), got x of \(1, 6, 2, 3, 0\)",
        ),
        (lambda: linear(x, torch.ones(4, 8).double()), "weight is torch.float64, but x is torch.float32"),
        (lambda: linear(x, torch.ones(4, 8, device="meta")), "weight lies on meta, but x on cpu"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["blocks", "reference"])
@pytest.mark.parametrize("row", [-4, 3])
def test_an_index_of_rows_that_are_not_there_is_an_error(row: int, dtype: torch.dtype) -> None:
    x, rows = torch.ones(2, 8, dtype=dtype), Rows(torch.ones(3, 8, dtype=dtype), torch.tensor([0, row]))
    found = f"the index names rows {min(row, 0)} to {max(row, 0)}, but there are 3"
    for call in (lambda: gate_residual(x, x, rows), lambda: norm_modulate(x, rows, rows)):
        with pytest.raises(IndexError, match=found):
            call()


@pytest.mark.parametrize("backend", ["auto", "reference", "triton"])
@pytest.mark.parametrize(("queries", "keys"), [(3, 6), (7, 6), (6, 3), (6, 7)])
def test_tiles_of_other_numbers_of_tokens_are_refused(backend: str, queries: int, keys: int) -> None:
    """Their kernels would read memory that is not the tensors'."""
    cu, sizes = torch.tensor([0, 6]), TileSizes(*[16] * 6)
    sample, q, k = Sample(0, 6, 0, 1, 1, 6), torch.ones(queries, 1, 8), torch.ones(keys, 1, 8)
    for tiles in (
        segment_tiles(cu, cu, 6, 6, sizes),
        tiles_of(None, [sample], None, (6, 6), [sizes, sizes]),
        window_tiles(sizes, Grid(1, 1, 6), (1, 1, 3), "cpu"),
    ):
        with pytest.raises(ValueError, match=f"of 6 queries and 6 keys, but .* {queries} queries and {keys} keys"):
            tiled_attention(q, k, k, tiles, backend=backend)


def test_tables_of_segments_keep_to_the_tokens_whatever_is_said() -> None:
    """Values on a GPU are not read by the host."""
    wild = torch.tensor([-2, 5, 3, 99])
    tiles = segment_tiles(wild, wild, 8, 8, TileSizes(*[4] * 6))
    for table in (tiles.queries, tiles.keys):
        start, here, line, length = (table[:, FIELDS.index(name)] for name in ("start", "here_w", "line", "length"))
        assert min(int(each.min()) for each in (start, here, line, length)) == 0
        assert int((start + here).max()) == int((line + length).max()) == 8
        assert int(here.sum()) == 8


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8), (2, 5, 0)])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("indexed", [False, True])
def test_no_samples_no_tokens_and_no_width_give_nothing(shape: tuple[int, ...], backend: str, indexed: bool) -> None:
    x, values = torch.ones(shape, requires_grad=True), torch.ones(shape[0], shape[2], requires_grad=True)
    rows = Rows(values, torch.zeros(shape[:2]).long() if indexed and shape[0] else None)
    out = [
        norm_modulate(x, rows, rows, backend=backend),
        gate_residual(x, x, rows, backend=backend),
        *residual_norm_modulate(x, x, rows, rows, rows, backend=backend),
    ]
    assert all(each.shape == x.shape for each in out)
    grads = torch.autograd.grad(sum(each.sum() for each in out), [x, values])
    assert [each.shape for each in grads] == [x.shape, values.shape]
    assert not grads[1].any()


def test_rows_are_ordered_as_kernels_read_them() -> None:
    order, offsets = by_row(torch.tensor([5, -9, 1, -1]), 3)
    assert order.tolist() == [1, 2, 0, 3]
    assert offsets.tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("pattern", [Temporal(), Window((2, 1, 2))])
def test_grouped_attention_is_the_librarys_attention(pattern) -> None:
    layout = TokenLayout.packed([Grid(3, 2, 3), Grid(3, 2, 3), Grid(1, 1, 1)], [2, 2, 0], capacity=44)
    runs = make_plan(pattern, layout.on("cpu").table.numpy().tobytes(), views=False).runs
    leaves = [torch.randn(44, heads, 6, **F64, requires_grad=True) for heads in (4, 2, 2)]
    got = grouped_attention(*leaves, runs)
    expected = attend(*leaves, pattern=pattern, layout=layout, backend="reference")
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in (got, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_grouped_attention_refuses_what_does_not_fit() -> None:
    x, row = torch.randn(6, 2, 8), Affine(0, (2,), (3,), (3,), (1,))
    deep = Affine(0, (1,) * 5, (0,) * 5, (3,), (1,))
    for match, runs, keys in [
        ("tokens 0 to 6 of q, which has 6", [Run(Affine(0, (2,), (4,), (3,), (1,)), row)], x),
        (r"\(2,\) groups of queries, but \(1,\)", [Run(row, row.part(0, 1))], x),
        ("2 heads, not a multiple of k's 3", [Run(row, row)], torch.randn(6, 3, 8)),
        ("at most 4 axes", [Run(deep, deep)], x),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            grouped_attention(x, keys, keys, runs)
    with pytest.raises(ValueError, match="CUDA"):
        grouped_attention(x, x, x, [Run(row, row)], backend="triton")
