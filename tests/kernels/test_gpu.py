"""The kernels on a GPU, against the references in float64 on the same device."""

from collections.abc import Callable
from typing import Any

import pytest
import rounding
import torch
from torch import Tensor

from tubelet.attention import FrameCausal, Joint, Neighborhood, SlidingTile, Spatial, Strided, Temporal, Window, attend
from tubelet.fused import use_kernels
from tubelet.kernels import _measuring as measuring
from tubelet.kernels import (
    gate_residual,
    norm_modulate,
    norm_silu_pad,
    qk_norm_rope,
    residual_norm_modulate,
    varlen_attention,
)
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.models import VideoDiT, VideoDiTConfig
from tubelet.positions import Rotary, rope_angles, rope_axes
from tubelet.vae.families import WanAutoencoder, WanAutoencoderConfig

pytestmark = [pytest.mark.gpu, pytest.mark.graph]
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}

Operation = Callable[..., Any]


def modulated(width: int, dtype: torch.dtype, rows: int | None, norm: Any) -> tuple[Operation, list[Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(3, 700, width, device="cuda", dtype=dtype, requires_grad=True)
    values = torch.randn(rows or 3, 3 * width, device="cuda", dtype=dtype, requires_grad=True)
    weight = torch.randn(width, device="cuda", dtype=dtype, requires_grad=True)
    index = None if rows is None else torch.randint(0, rows, (3, 700), device="cuda")

    def run(x: Tensor, values: Tensor, weight: Tensor, backend: Any = "triton") -> tuple[Tensor, ...]:
        shift, scale, _ = Rows(values, index).chunk(3)
        return (norm_modulate(x, shift, scale, norm=norm, weight=weight, bias=weight, backend=backend),)

    return run, [x, values, weight]


def joined(width: int, dtype: torch.dtype, rows: int | None, norm: Any) -> tuple[Operation, list[Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 700, width, device="cuda", dtype=dtype, requires_grad=True)
    values = torch.randn(rows or 3, 3 * width, device="cuda", dtype=dtype, requires_grad=True)
    weight = torch.randn(width, device="cuda", dtype=dtype, requires_grad=True)
    index = None if rows is None else torch.randint(0, rows, (3, 700), device="cuda")

    def run(x: Tensor, values: Tensor, weight: Tensor, backend: Any = "triton") -> tuple[Tensor, ...]:
        gate, shift, scale = Rows(values, index).chunk(3)
        affine = {"norm": norm, "weight": weight, "bias": weight}
        y, out = residual_norm_modulate(*x, gate, shift, scale, **affine, backend=backend)
        return y, out, gate_residual(y, out, gate, backend=backend)

    return run, [x, values, weight]


def framed(channels: int, dtype: torch.dtype, groups: int | None, last: bool, round: bool = False) -> Any:
    torch.manual_seed(0)
    layout = torch.channels_last_3d if last else torch.contiguous_format
    clip = torch.randn(2, channels, 5, 19, 27, device="cuda", dtype=dtype).to(memory_format=layout).requires_grad_()
    weight = torch.randn(channels, device="cuda", dtype=dtype, requires_grad=True)
    around: Any = {"around": (1, 1), "edges": "replicate"} if round else {}
    norm: Any = {"norm": "rms"} if groups is None else {"norm": "group", "groups": groups, "per_frame": not last}

    def run(clip: Tensor, weight: Tensor, backend: Any = "triton") -> tuple[Tensor, ...]:
        made = {"weight": weight, "bias": weight, "eps": 1e-6, "backend": backend, **norm, **around}
        head = norm_silu_pad(clip[:, :, :2], frames=2, **made)
        inner = head[:, :, -2:, 1:-1, 1:-1] if round else head[:, :, -2:]
        return head, norm_silu_pad(clip[:, :, 2:], state=inner, **made)

    return run, [clip, weight]


def turned(head_dim: int, dtype: torch.dtype, form: str) -> tuple[Operation, list[Tensor]]:
    """``form``: a layout of the rotation; or a norm over all heads, a layer norm, or angles that are learned."""
    torch.manual_seed(0)
    layout: Any = form if form in ("interleaved", "half", "half_per_axis") else "interleaved"
    across, learned, norm = form == "across", form == "learned", "layer" if form == "layer" else "rms"
    qkv = torch.randn(2, 700, 3, 6, head_dim, device="cuda", dtype=dtype, requires_grad=True)
    weight = torch.randn(2, head_dim * (6 if across else 1), device="cuda", dtype=dtype, requires_grad=True)
    widths = rope_axes(head_dim)
    angles = rope_angles(torch.rand(700, 3, device="cuda") * 9, head_dim).float()
    angles = angles[:, None].repeat(1, 6, 1).requires_grad_() if learned else angles

    def run(qkv: Tensor, weight: Tensor, *turns: Tensor, backend: Any = "triton") -> tuple[Tensor, ...]:
        q, k, _ = qkv.unbind(2)
        (turn,) = turns or (angles.to(torch.promote_types(q.dtype, torch.float32)),)
        rotary = Rotary(turn.cos(), turn.sin(), layout, widths, learned)
        biases = dict(
            zip(("q_bias", "k_bias"), weight.flip(0).unbind() if norm == "layer" else (None, None), strict=True)
        )
        k = k if across or learned else k[:, :, :2]
        options: Any = {"norm": norm, "across_heads": across, "backend": backend, **biases}
        return qk_norm_rope(q, k, rotary, *weight.unbind(), **options)

    return run, [qkv, weight, *([angles] if learned else [])]


def grouped(pattern: Any, head_dim: int, dtype: torch.dtype) -> tuple[Operation, list[Tensor]]:
    torch.manual_seed(0)
    index = TokenLayout.packed([Grid(21, 6, 5), Grid(5, 4, 4), Grid(1, 3, 3)], [7, 0, 20]).on("cuda")
    qkv = torch.randn(*index.shape, 3, 4, head_dim, device="cuda", dtype=dtype, requires_grad=True)

    def run(qkv: Tensor, backend: Any = "triton") -> tuple[Tensor, ...]:
        q, k, v = qkv.unbind(1)
        return (attend(q, k[:, :2], v[:, :2], pattern=pattern, layout=index, backend=backend),)

    return run, [qkv]


def segments(head_dim: int, dtype: torch.dtype, cross: bool) -> tuple[Operation, list[Tensor]]:
    torch.manual_seed(0)
    lengths = torch.tensor([[300, 300], [1, 1], [0, 5], [64, 64], [411, 411]])
    if cross:
        lengths[:, 1] = torch.tensor([77, 1, 5, 0, 129])
    cu_q, cu_k = (torch.cat([torch.zeros(1).long(), side.cumsum(0)]).cuda() for side in lengths.unbind(1))
    tokens = [int(side.sum()) + 3 for side in lengths.unbind(1)]
    q = torch.randn(tokens[0], 4, head_dim, device="cuda", dtype=dtype, requires_grad=True)
    kv = torch.randn(tokens[1], 2, 2, head_dim, device="cuda", dtype=dtype, requires_grad=True)

    def run(q: Tensor, kv: Tensor, backend: Any = "triton") -> tuple[Tensor, ...]:
        return (varlen_attention(q, *kv.unbind(1), cu_q, cu_k, backend=backend),)

    return run, [q, kv]


def near(run: Operation, leaves: list[Tensor], tolerance: float, compiled: bool = False) -> None:
    got = (torch.compile(run, fullgraph=True) if compiled else run)(*leaves)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = run(*exact_leaves, backend="reference")
    grads = [torch.randn_like(out) for out in got]
    ours = [*got, *torch.autograd.grad(got, leaves, grads)]
    exact = [*expected, *torch.autograd.grad(expected, exact_leaves, [grad.double() for grad in grads])]
    for place, (a, b) in enumerate(zip(ours, exact, strict=True)):
        rounding.near(a, b, f"result {place}", tolerance)


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
WIDTHS = [(33, BF16), (384, BF16), (1152, BF16), (5120, BF16), (8192, BF16), (72, FP16), (1536, FP16),
          (7, FP32), (1536, FP32), (5120, FP32)]  # fmt: skip
HEAD_DIMS = [(6, BF16), (64, BF16), (72, BF16), (80, BF16), (96, BF16), (128, BF16), (256, BF16), (128, FP16),
             (72, FP32), (128, FP32)]  # fmt: skip


@pytest.mark.parametrize(("width", "dtype"), WIDTHS)
@pytest.mark.parametrize(("rows", "norm"), [(None, "layer"), (1, "layer"), (40, "rms")])
def test_norm_modulate(width: int, dtype: torch.dtype, rows: int | None, norm: str) -> None:
    near(*modulated(width, dtype, rows, norm), TOLERANCE[dtype])


@pytest.mark.parametrize(("width", "dtype"), WIDTHS)
@pytest.mark.parametrize(("rows", "norm"), [(None, "layer"), (1, "layer"), (40, "rms")])
def test_gate_residual(width: int, dtype: torch.dtype, rows: int | None, norm: str) -> None:
    near(*joined(width, dtype, rows, norm), 2 * TOLERANCE[dtype])  # the norm reads the sum as it was rounded


@pytest.mark.parametrize(("channels", "dtype"), [(96, BF16), (384, BF16), (1024, BF16), (6, FP16), (96, FP32)])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("round", [False, True])
def test_norm_silu_pad(channels: int, dtype: torch.dtype, groups: int | None, last: bool, round: bool) -> None:
    near(*framed(channels, dtype, groups, last, round), TOLERANCE[dtype])


@pytest.mark.parametrize(("head_dim", "dtype"), HEAD_DIMS)
@pytest.mark.parametrize("form", ["interleaved", "half", "half_per_axis", "across", "layer", "learned"])
def test_qk_norm_rope(head_dim: int, dtype: torch.dtype, form: str) -> None:
    near(*turned(head_dim, dtype, form), TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("head_dim", "dtype"), [(64, BF16), (72, BF16), (128, BF16), (128, FP16), (24, FP32), (128, FP32)]
)
@pytest.mark.parametrize("pattern", [Temporal(), Spatial(), Window((4, 2, 2)), Strided(2), Joint()], ids=str)
def test_grouped_attention(pattern: Any, head_dim: int, dtype: torch.dtype) -> None:
    near(*grouped(pattern, head_dim, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [(64, BF16), (72, BF16), (80, BF16), (96, BF16), (128, BF16), (256, BF16), (128, FP16), (64, FP32), (128, FP32)],
)
@pytest.mark.parametrize("cross", [False, True])
def test_varlen_attention(head_dim: int, dtype: torch.dtype, cross: bool) -> None:
    near(*segments(head_dim, dtype, cross), TOLERANCE[dtype])


@pytest.mark.parametrize(("head_dim", "dtype"), [(64, BF16), (72, BF16), (128, BF16), (256, BF16), (64, FP32)])
@pytest.mark.parametrize(
    "pattern",
    [
        Neighborhood((5, 3, 3)),
        Neighborhood((4, 3, 4), causal=(True, False, False)),
        SlidingTile((9, 6, 6), (3, 2, 2)),
        FrameCausal(),
        FrameCausal(3, 2),
    ],
    ids=str,
)
def test_tiled_attention(pattern: Any, head_dim: int, dtype: torch.dtype) -> None:
    near(*grouped(pattern, head_dim, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("pattern", [Temporal(), Joint(), Neighborhood((5, 3, 3))], ids=str)
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_attention_errs_hardly_more_than_pytorchs(pattern: Any, dtype: torch.dtype) -> None:
    run, (qkv,) = grouped(pattern, 128, dtype)
    exact = run(qkv.detach().double(), backend="reference")[0]
    ours, theirs = ((run(qkv, backend=name)[0].double() - exact).norm() for name in ("triton", "sdpa"))
    assert ours <= 1.5 * theirs


CASES = {
    "norm_modulate": lambda: modulated(1536, torch.bfloat16, 40, "layer"),
    "residual_norm_modulate": lambda: joined(1536, torch.bfloat16, 40, "layer"),
    "norm_silu_pad": lambda: framed(96, torch.bfloat16, 32, True),
    "qk_norm_rope": lambda: turned(128, torch.bfloat16, "interleaved"),
    "grouped_attention": lambda: grouped(Strided(2), 128, torch.bfloat16),
    "tiled_attention": lambda: grouped(Neighborhood((5, 3, 3)), 128, torch.bfloat16),
    "varlen_attention": lambda: segments(128, torch.bfloat16, False),
}


@pytest.mark.parametrize("name", CASES)
def test_inductor_compiles_them(name: str) -> None:
    near(*CASES[name](), TOLERANCE[torch.bfloat16], compiled=True)


@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_for_the_device(name: str) -> None:
    run, leaves = CASES[name]()
    grads = [torch.ones_like(out) for out in run(*leaves)]
    torch.autograd.grad(run(*leaves), leaves, grads)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(run(*leaves), leaves, grads)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", CASES)
def test_a_cuda_graph_replays_forward_and_backward(name: str) -> None:
    run, leaves = CASES[name]()

    def step() -> list[Tensor]:
        out = run(*leaves)
        return [*out, *torch.autograd.grad(out, leaves, [torch.ones_like(each) for each in out])]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves[0].copy_(torch.randn_like(leaves[0]))
    graph.replay()
    for got, expected in zip(captured, step(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "name", ["norm_modulate", "residual_norm_modulate", "norm_silu_pad", "tiled_attention", "varlen_attention"]
)
def test_gradients_repeat_to_the_bit(name: str) -> None:
    run, leaves = CASES[name]()
    first, second = (torch.autograd.grad(run(*leaves)[0].sum(), leaves) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_more_numbers_than_32_bits_count() -> None:
    n, width = 720_000, 3072
    x = torch.ones(n, width, device="cuda", dtype=torch.bfloat16)
    x[:, ::2] = -1
    shift, scale = Rows(torch.ones(1, 2 * width, device="cuda", dtype=torch.bfloat16)).chunk(2)
    out = norm_modulate(x, shift, scale, backend="triton")
    assert (out[-1].float() - (2 * x[-1].float() + 1)).abs().max() < 0.02


def test_a_model_with_kernels_equals_the_eager_one() -> None:
    torch.manual_seed(0)
    model = VideoDiT(VideoDiTConfig(latent_channels=4, dim=128, depth=2, heads=2, text_dim=8), device="cuda")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    layout = TokenLayout.packed([Grid(4, 6, 6), Grid(1, 8, 8)]).on("cuda")
    texts = TokenLayout.packed([None, None], [2, 3]).on("cuda")
    x, text = torch.randn(208, 4, device="cuda"), torch.randn(5, 8, device="cuda")

    def step() -> list[Tensor]:
        out = model(x, layout.rows(torch.tensor([0.2, 0.9], device="cuda"), "sample"), text, layout, texts)
        return [out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))]

    eager = step()
    assert use_kernels(model)
    for got, expected in zip(step(), eager, strict=True):
        assert (got - expected).norm() <= 1e-4 * expected.norm() + 1e-6


def test_an_autoencoder_with_kernels_equals_the_eager_one() -> None:
    torch.manual_seed(0)
    vae = WanAutoencoder(WanAutoencoderConfig(widths=(8, 16, 16), depth=1, halve_time=(True, True))).to("cuda")
    x = torch.randn(1, 3, 5, 32, 32, device="cuda")

    def step() -> list[Tensor]:
        decoded = vae.decode(vae.encode(x).mean)
        return [decoded, *torch.autograd.grad(decoded.square().sum(), list(vae.parameters()), allow_unused=True)]

    eager = step()
    assert use_kernels(vae)
    for got, expected in zip(step(), eager, strict=True):
        if expected is not None:
            assert (got - expected).norm() <= 1e-4 * expected.norm() + 1e-6


def test_measured_sizes_give_the_same_results(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    assert measuring.tune([384], [64], tokens=2048).is_file()
