"""``python -m benchmarks.gpu --out DIR``: what a GPU can do, and how near our kernels come to it.

Tables, each as JSON and Markdown: the ceilings (matrix product, copy), norm + modulate, gate + residual with and
without the norm + modulate behind it, norm + SiLU + padding of autoencoders, QK-norm + RoPE, and attention over time
against eager code and ``torch.compile``; joint attention against cuDNN and frames against PyTorch's own, each also by
pointers where descriptors serve, and windows, causal frames and packed mixtures against FlexAttention. Forward and
backward, with the error of the timed call beside its time.
``--dry`` runs the same code on the CPU with tiny shapes. Exit status 1: a result was wrong.

Times are medians of Triton's ``do_bench``: CUDA events, second-level cache flushed before each call. "of floor" is the
time that the bytes which must be moved take at the measured copy's pace, or the products at the measured product's,
whichever is longer, as a share of the time. Products are those of pairs that count: 4 and 10 operations a feature.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tubelet.attention import FrameCausal, Joint, Neighborhood, SlidingTile, Spatial, Temporal, attend
from tubelet.attention.places import Affine
from tubelet.attention.tiles import Run
from tubelet.bench.device import environment
from tubelet.blocks import gated, modulate
from tubelet.kernels import (
    Tiles,
    gate_residual,
    grouped_attention,
    norm_modulate,
    norm_silu_pad,
    qk_norm_rope,
    residual_norm_modulate,
    segment_tiles,
    tiled_sizes,
)
from tubelet.kernels._grouped import launches as grouped
from tubelet.kernels._grouped.places import pairs as as_pairs
from tubelet.kernels._tiled import launches as tiled
from tubelet.layout import Grid, LayoutIndex, Rows, TokenLayout
from tubelet.norms import LayerNorm
from tubelet.positions import Rotary, apply_rope

SCHEMA = 3
TOLERANCE = 1.5e-2
"""Of bfloat16 results, relative to the norm."""

Way = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches: TFLOP/s of a bf16 matrix product, GB/s of a copy (read and written)."""

    matmul_tflops: float
    copy_gbs: float


@dataclass(frozen=True)
class Line:
    """One timed call; ``floor_ms``: bytes that it must move at the copy's pace, or products at the matrix product's."""

    operation: str
    shape: str
    direction: str
    way: str
    ms: float
    floor_ms: float
    error: float
    peak_mb: float

    @property
    def right(self) -> bool:
        return self.error <= TOLERANCE


@dataclass(frozen=True)
class Problem:
    """An operation at one shape: leaves in bf16, ways to compute it, bytes that forward and backward must move.

    ``operations``: what tensor cores must do in both directions. ``part``: of leaves and results, what is compared with
    ``exact`` where all of it in float64 would not fit (attention: one head, which no other one touches).
    """

    operation: str
    shape: str
    leaves: tuple[Tensor, ...]
    ways: dict[str, Way]
    exact: Way
    forward_bytes: int
    backward_bytes: int
    operations: tuple[float, float] = (0.0, 0.0)
    part: Callable[[Tensor], Tensor] = lambda x: x


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        print("benchmarks.gpu: torch finds no CUDA device; --dry runs on the CPU", file=sys.stderr)
        return 2
    device = "cpu" if arguments.dry else "cuda"
    arguments.out.mkdir(parents=True, exist_ok=True)
    about = {"schema": SCHEMA, "environment": environment(torch.device(device)), "dry": arguments.dry}
    top = ceilings(device, arguments.dry)
    text = f"bf16 matrix product {top.matmul_tflops:.0f} TFLOP/s, copy {top.copy_gbs:.0f} GB/s (read + written)"
    save(arguments.out / "ceilings", {**about, **asdict(top)}, text, about)
    wrong = 0
    tables = {
        "norm_modulate": modulation,
        "residual_norm_modulate": residuals,
        "norm_silu_pad": paddings,
        "qk_norm_rope": rotation,
        "grouped_attention": over_time,
    }
    tables |= {"joint_attention": jointly, "frame_attention": in_frames, "tiled_attention": in_tiles}
    for name, problems in tables.items():
        lines: list[Line] = []
        for problem in problems(device, arguments.dry):
            try:
                lines += measure(problem, top, device)
            except (RuntimeError, ValueError) as error:  # the rest is still worth its time
                print(f"{problem.operation}, {problem.shape}: {error}", file=sys.stderr)
                wrong += 1
            torch.compiler.reset()
        found = [{**asdict(line), "right": line.right} for line in lines]
        save(arguments.out / name, {**about, "ceilings": asdict(top), "lines": found}, table(lines), about)
        wrong += sum(not line.right for line in lines)
    return 1 if wrong else 0


def ceilings(device: str, dry: bool) -> Ceilings:
    """The best of a few sizes."""
    side, numbers = (64, 1 << 12) if dry else (8192, 1 << 29)
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    product = milliseconds(lambda: a @ b, device)
    source = torch.empty(numbers, device=device, dtype=torch.bfloat16).normal_()
    target = torch.empty_like(source)
    copied = milliseconds(lambda: target.copy_(source), device)
    return Ceilings(2 * side**3 / product / 1e9, 2 * source.nbytes / copied / 1e6)


def modulation(device: str, dry: bool) -> Iterator[Problem]:
    """Widths and tokens of known models: one row a sample, and one a frame found by an index."""
    problems = [
        ("wan-1.3b-480p", 32_760, 1536, 1),
        ("wan-1.3b-480p", 32_760, 1536, 21),
        ("hunyuanvideo-720p", 119_056, 3072, 1),
        ("wan-14b-720p", 75_600, 5120, 21),
    ]
    for name, n, width, rows in [("tiny", 64, 32, 1), ("tiny", 64, 32, 4)] if dry else problems:
        index = None if rows == 1 else torch.arange(n, device=device) * rows // n
        x = torch.randn(n, width, device=device, dtype=torch.bfloat16, requires_grad=True)
        values = torch.randn(rows, 2 * width, device=device, dtype=torch.bfloat16, requires_grad=True)
        norm = LayerNorm(width, affine=False)
        eager = partial(_modulated_eagerly, index=index, norm=norm)
        ways: dict[str, Way] = {
            "eager": eager,
            "compiled": torch.compile(eager, fullgraph=True, backend="eager" if dry else "inductor"),
            "ours": partial(_modulated, index=index, backend="reference" if dry else "triton"),
        }
        exact = partial(_modulated, index=index, backend="reference")
        shape = f"{name}: {n} x {width}, {rows} rows"
        yield Problem("norm_modulate", shape, (x, values), ways, exact, 2 * x.nbytes, 3 * x.nbytes)


def _modulated_eagerly(x: Tensor, values: Tensor, index: Tensor | None, norm: LayerNorm) -> Sequence[Tensor]:
    return (modulate(norm(x), *Rows(values, index).chunk(2)),)


def _modulated(x: Tensor, values: Tensor, index: Tensor | None, backend: Any) -> Sequence[Tensor]:
    return (norm_modulate(x, *Rows(values, index).chunk(2), backend=backend),)


def residuals(device: str, dry: bool) -> Iterator[Problem]:
    """Gate + residual at widths and tokens of known models, alone and with norm + modulate."""
    problems = [
        ("wan-1.3b-480p", 32_760, 1536, 1, False),
        ("wan-1.3b-480p", 32_760, 1536, 1, True),
        ("wan-1.3b-480p", 32_760, 1536, 21, True),
        ("hunyuanvideo-720p", 119_056, 3072, 1, True),
        ("wan-14b-720p", 75_600, 5120, 21, True),
    ]
    tiny = [("tiny", 64, 32, 1, False), ("tiny", 64, 32, 4, True)]
    for name, n, width, rows, normed in tiny if dry else problems:
        index = None if rows == 1 else torch.arange(n, device=device) * rows // n
        x, update = (torch.randn(n, width, device=device, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
        values = torch.randn(rows, (1 + 2 * normed) * width, device=device, dtype=torch.bfloat16, requires_grad=True)
        eager = partial(_added_eagerly, index=index, norm=LayerNorm(width, affine=False) if normed else None)
        ways: dict[str, Way] = {
            "eager": eager,
            "compiled": torch.compile(eager, fullgraph=True, backend="eager" if dry else "inductor"),
            "ours": partial(_added, index=index, normed=normed, backend="reference" if dry else "triton"),
        }
        exact = partial(_added, index=index, normed=normed, backend="reference")
        shape = f"{name}: {n} x {width}, {rows} rows, {'then norm + modulate' if normed else 'alone'}"
        moved = (4, 6) if normed else (3, 3)
        yield Problem(
            "residual_norm_modulate", shape, (x, update, values), ways, exact, moved[0] * x.nbytes, moved[1] * x.nbytes
        )


def _added_eagerly(
    x: Tensor, update: Tensor, values: Tensor, index: Tensor | None, norm: LayerNorm | None
) -> Sequence[Tensor]:
    gate, *rows = Rows(values, index).chunk(1 if norm is None else 3)
    y = gated(x, update, gate)
    return (y,) if norm is None else (y, modulate(norm(y), *rows))


def _added(
    x: Tensor, update: Tensor, values: Tensor, index: Tensor | None, normed: bool, backend: Any
) -> Sequence[Tensor]:
    gate, *rows = Rows(values, index).chunk(3 if normed else 1)
    if normed:
        return residual_norm_modulate(x, update, gate, *rows, backend=backend)
    return (gate_residual(x, update, gate, backend=backend),)


def paddings(device: str, dry: bool) -> Iterator[Problem]:
    """What stands before convolutions of known decoders: RMS norms of Wan's, groups at the size of HunyuanVideo's."""
    last, first = torch.channels_last_3d, torch.contiguous_format
    problems = [
        ("wan at 480p", (1, 96, 4, 480, 832), None, last, "last"),
        ("wan at 480p", (1, 96, 4, 480, 832), None, first, "first"),
        ("wan at 240p", (1, 384, 4, 240, 416), None, last, "last"),
        ("hunyuanvideo at 256p", (1, 128, 5, 256, 256), 32, last, "last"),
        ("hunyuanvideo at 256p", (1, 128, 5, 256, 256), 32, first, "first"),
    ]
    tiny = [("tiny", (1, 8, 2, 4, 4), None, last, "last"), ("tiny", (1, 8, 2, 4, 4), 2, first, "first")]
    for name, shape, groups, layout, word in tiny if dry else problems:
        x = torch.randn(shape, device=device, dtype=torch.bfloat16).to(memory_format=layout).requires_grad_()
        weight = torch.randn(shape[1], device=device, dtype=torch.bfloat16, requires_grad=True)
        state = torch.randn(shape, device=device, dtype=torch.bfloat16)[:, :, :2].contiguous(memory_format=layout)
        eager = partial(_padded_eagerly, state=state, groups=groups)
        ways: dict[str, Way] = {
            "eager": eager,
            "compiled": torch.compile(eager, fullgraph=True, backend="eager" if dry else "inductor"),
            "ours": partial(_padded, state=state, groups=groups, backend="reference" if dry else "triton"),
        }
        exact = partial(_padded, state=state, groups=groups, backend="reference")
        what = f"{name}: {' x '.join(map(str, shape))}, {'rms' if groups is None else f'{groups} groups'}, {word}"
        moved = 2 * x.nbytes + 2 * state.nbytes, 3 * x.nbytes
        yield Problem("norm_silu_pad", what, (x, weight), ways, exact, *moved)


def _padded_eagerly(x: Tensor, weight: Tensor, state: Tensor, groups: int | None) -> Sequence[Tensor]:
    if groups is None:
        normed = (x * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6)).to(x.dtype)
        normed = normed * weight.reshape(-1, 1, 1, 1)
    else:
        frames = x.transpose(1, 2).flatten(0, 1)
        normed = torch.nn.functional.group_norm(frames, groups, weight, eps=1e-6)
        normed = normed.unflatten(0, (x.shape[0], -1)).transpose(1, 2)
    return (torch.cat([state, torch.nn.functional.silu(normed)], 2),)


def _padded(x: Tensor, weight: Tensor, state: Tensor, groups: int | None, backend: Any) -> Sequence[Tensor]:
    norm: dict[str, Any] = {"norm": "rms"} if groups is None else {"norm": "group", "groups": groups}
    return (norm_silu_pad(x, weight=weight, eps=1e-6, state=state.to(x.dtype), backend=backend, **norm),)


def rotation(device: str, dry: bool) -> Iterator[Problem]:
    """Heads and tokens of known models, q and k as views into a packed qkv and alone; norms of one head and of all."""
    problems = [
        ("hunyuanvideo-480p", 30_576, 24, 128, "interleaved", False, "rms"),
        ("cosmos-2b", 30_576, 16, 128, "half", True, "rms"),
        ("cogvideox-5b", 17_776, 48, 64, "interleaved", True, "layer"),
        ("wan-1.3b-480p", 32_760, 12, 128, "interleaved", False, "rms of all heads"),
        ("wan-14b-480p", 32_760, 40, 128, "interleaved", False, "rms of all heads"),
    ]
    tiny = [
        ("tiny", 32, 2, 16, "interleaved", False, "rms of all heads"),
        ("tiny", 32, 2, 16, "half", True, "rms"),
        ("tiny", 32, 2, 16, "interleaved", True, "layer"),
    ]
    for name, n, heads, head_dim, pairing, packed, norm in tiny if dry else problems:
        parts = 3 if packed else 2
        qkv = torch.randn(n, parts, heads, head_dim, device=device, dtype=torch.bfloat16)
        qkv = qkv if packed else qkv.transpose(0, 1).contiguous().transpose(0, 1)
        turns = torch.rand(n, head_dim // 2, device=device)
        rotary = Rotary(turns.cos(), turns.sin(), pairing)
        width = heads * head_dim if "all" in norm else head_dim
        weight = torch.randn(2, width, device=device, dtype=torch.bfloat16, requires_grad=True)
        q, k = (qkv[:, i].requires_grad_() for i in range(2))
        eager = partial(_turned_eagerly, rotary=rotary, norm=norm)
        ways: dict[str, Way] = {
            "eager": eager,
            "compiled": torch.compile(eager, fullgraph=True, backend="eager" if dry else "inductor"),
            "ours": partial(_turned, rotary=rotary, norm=norm, backend="reference" if dry else "triton"),
        }
        exact = partial(_turned, rotary=rotary, norm=norm, backend="reference")
        moved = 2 * q.numel() * q.element_size()
        memory = "packed qkv" if packed else "apart"
        shape = f"{name}: {n} x {heads} x {head_dim}, {norm}, {pairing}, {memory}"
        yield Problem("qk_norm_rope", shape, (q, k, weight), ways, exact, 2 * moved, 3 * moved)


def _turned_eagerly(q: Tensor, k: Tensor, weight: Tensor, rotary: Rotary, norm: str) -> Sequence[Tensor]:
    return tuple(apply_rope(_normed(x, w, norm), rotary) for x, w in zip((q, k), weight.unbind(), strict=True))


def _normed(x: Tensor, weight: Tensor, norm: str) -> Tensor:
    wide = x.float().flatten(-2) if "all" in norm else x.float()
    rms, layer = torch.nn.functional.rms_norm, torch.nn.functional.layer_norm
    shape, weight = wide.shape[-1:], weight.float()
    normed = layer(wide, shape, weight, None, 1e-6) if norm == "layer" else rms(wide, shape, weight, 1e-6)
    return normed.view(x.shape).to(x.dtype)


def _turned(q: Tensor, k: Tensor, weight: Tensor, rotary: Rotary, norm: str, backend: Any) -> Sequence[Tensor]:
    wide = q.dtype == torch.float64
    angles = Rotary(rotary.cos.double(), rotary.sin.double(), rotary.layout) if wide else rotary
    options: Any = {"norm": norm[:5].split()[0], "across_heads": "all" in norm, "backend": backend}
    return qk_norm_rope(q, k, angles, *weight.unbind(), **options)


def over_time(device: str, dry: bool) -> Iterator[Problem]:
    """Frames, places, heads and head widths of known models; q, k and v are views into a packed qkv."""
    problems = [
        ("wan-1.3b-480p", 21, 1560, 12, 128),
        ("wan-14b-480p", 21, 1560, 40, 128),
        ("cogvideox-5b", 13, 1350, 48, 64),
        ("latte", 16, 1024, 16, 72),
    ]
    tiny = [("tiny", 3, 4, 2, 16), ("tiny", 2, 5, 1, 8)]
    for name, frames, places, heads, head_dim in tiny if dry else problems:
        qkv = torch.randn(frames * places, 3, heads, head_dim, device=device, dtype=torch.bfloat16)
        q, k, v = (qkv[:, i].requires_grad_() for i in range(3))
        groups = Affine(0, (places,), (1,), (frames,), (places,))
        eager = partial(_permuted, frames=frames)
        ways: dict[str, Way] = {
            "eager": eager,
            "compiled": torch.compile(eager, fullgraph=True, backend="eager" if dry else "inductor"),
            "ours": partial(_in_place, groups=groups, backend="reference" if dry else "triton"),
        }
        exact = partial(_in_place, groups=groups, backend="reference")
        moved = q.numel() * q.element_size()
        shape = f"{name}: {frames} x {places} x {heads} x {head_dim}"
        yield Problem("grouped_attention", shape, (q, k, v), ways, exact, 4 * moved, 8 * moved)


def _permuted(q: Tensor, k: Tensor, v: Tensor, frames: int) -> Sequence[Tensor]:
    """PyTorch's attention between two permutes."""
    groups = [x.unflatten(0, (frames, -1)).permute(1, 2, 0, 3) for x in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*groups)
    return (out.permute(2, 0, 1, 3).flatten(0, 1),)


def _in_place(q: Tensor, k: Tensor, v: Tensor, groups: Affine, backend: Any) -> Sequence[Tensor]:
    return (grouped_attention(q, k, v, [Run(groups, groups)], backend=backend),)


def jointly(device: str, dry: bool) -> Iterator[Problem]:
    """Dense joint attention of known models: PyTorch's own choice and cuDNN, which is the one to beat on Hopper."""
    problems = [("wan-1.3b-480p", 32_760, 12, 128), ("cogvideox-5b", 17_776, 48, 64), ("ltx-2b", 6_144, 32, 64)]
    for name, n, heads, head_dim in [("tiny", 40, 2, 16)] if dry else problems:
        ways: dict[str, Way] = {
            "default": partial(_dense, kernel=None),
            "cudnn": partial(_dense, kernel=None if dry else SDPBackend.CUDNN_ATTENTION),
            "flash": partial(_attend, pattern=Joint(), layout=None, backend="reference" if dry else "flash"),
            "pointers": _reference
            if dry
            else partial(_by_pointers, launches=tiled, runs=_one_segment(n, head_dim, device)),
            "ours": partial(_attend, pattern=Joint(), layout=None, backend="reference" if dry else "triton"),
        }
        yield _attention("joint_attention", f"{name}: {n} x {heads} x {head_dim}", Joint(), None, n * n, ways, n,
                         (heads, head_dim), device)  # fmt: skip


def in_frames(device: str, dry: bool) -> Iterator[Problem]:
    """Attention within frames, groups of many tiles: PyTorch's by views, ours by pointers and by descriptors (TMA)."""
    problems = [("wan-1.3b-480p", 21, 1560, 12, 128), ("cogvideox-5b", 13, 1350, 48, 64)]
    for name, frames, places, heads, head_dim in [("tiny", 2, 5, 2, 16)] if dry else problems:
        layout = TokenLayout.packed([Grid(frames, 1, places)]).on(device)
        groups = Affine(0, (frames,), (places,), (places,), (1,))
        ways: dict[str, Way] = {
            "default": partial(_framed, frames=frames),
            "pointers": partial(_attend, pattern=Spatial(), layout=layout, backend="reference")
            if dry
            else partial(_by_pointers, launches=grouped, runs=as_pairs([Run(groups, groups)])),
            "ours": partial(_attend, pattern=Spatial(), layout=layout, backend="reference" if dry else "triton"),
        }
        shape = f"{name}: {frames} x {places} x {heads} x {head_dim}"
        n = frames * places
        yield _attention("frame_attention", shape, Spatial(), layout, n * places, ways, n, (heads, head_dim), device)


def _framed(q: Tensor, k: Tensor, v: Tensor, frames: int) -> Sequence[Tensor]:
    rows = [x.unflatten(0, (frames, -1)).transpose(1, 2) for x in (q, k, v)]
    return (torch.nn.functional.scaled_dot_product_attention(*rows).transpose(1, 2).flatten(0, 1),)


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Sequence[Tensor]:
    return _attend(q, k, v, Joint(), None, "reference")


def _one_segment(n: int, head_dim: int, device: str) -> Tiles:
    cu = torch.tensor([0, n], device=device)
    return segment_tiles(cu, cu, n, n, tiled_sizes(torch.bfloat16, head_dim, False, device))


class _Pointers(torch.autograd.Function):
    """An attention kernel that loads by pointers, also where the device has descriptors."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, launches: Any, runs: Any) -> Tensor:
        ctx.launches, ctx.given = launches, launches.Given(q, k, v, q.shape[-1] ** -0.5, runs, False)
        ctx.out, ctx.lse = launches.forward(ctx.given)
        return ctx.out.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return *ctx.launches.backward(grad, ctx.given, ctx.out, ctx.lse), None, None


def _by_pointers(q: Tensor, k: Tensor, v: Tensor, launches: Any, runs: Any) -> Sequence[Tensor]:
    if torch.is_grad_enabled():
        return (_Pointers.apply(q, k, v, launches, runs),)
    return (launches.forward(launches.Given(q, k, v, q.shape[-1] ** -0.5, runs, False))[0],)


PACKAGES = (("flash", "flash"), ("natten", "natten"))
"""Peers from packages of their own: FlashAttention 2, 3 or 4, whichever is there, and NATTEN; others are left out."""


def in_tiles(device: str, dry: bool) -> Iterator[Problem]:
    """Windows and causal frames of one grid, and joint attention of a packed mixture with text."""
    wan, ltx = Grid(21, 30, 52), Grid(16, 16, 24)
    mixed = [Grid(13, 16, 16), Grid(1, 32, 32), Grid(9, 24, 24), Grid(1, 16, 16), Grid(1, 40, 24)] * 2
    problems: list[tuple[str, Any, list[Grid], int, tuple[int, int], int]] = [
        ("window of wan-1.3b-480p", Neighborhood((7, 15, 27)), [wan], 0, (12, 128), wan.tokens * 7 * 15 * 27),
        ("tiles of ltx-2b", SlidingTile((8, 8, 8), (4, 4, 4)), [ltx], 0, (32, 64), ltx.tokens * 512),
        ("frames of ltx-2b", FrameCausal(), [ltx], 0, (32, 64), 384 * 384 * 16 * 17 // 2),
        ("mixture", Joint(), mixed, 77, (12, 128), sum((grid.tokens + 77) ** 2 for grid in mixed)),
        ("mixture over time", Temporal(), mixed, 0, (12, 128), sum(grid.tokens * grid.t for grid in mixed)),
    ]
    tiny = [("tiny", Neighborhood((1, 3, 3)), [Grid(2, 4, 4)], 2, (2, 16), 400)]
    for name, pattern, grids, text, heads, pairs in tiny if dry else problems:
        layout = TokenLayout.packed(grids, [text] * len(grids)).on(device)
        ways: dict[str, Way] = {
            way: partial(_attend, pattern=pattern, layout=layout, backend="reference" if dry else backend)
            for way, backend in (("flex", "flex"), ("sdpa", "sdpa"), *PACKAGES, ("ours", "triton"))
        }
        shape = f"{name}: {layout.shape[0]} x {heads[0]} x {heads[1]}, {pattern}"
        yield _attention("tiled_attention", shape, pattern, layout, pairs, ways, layout.shape[0], heads, device)


def _attention(
    operation: str,
    shape: str,
    pattern: Any,
    layout: LayoutIndex | None,
    pairs: int,
    ways: dict[str, Way],
    n: int,
    heads: tuple[int, int],
    device: str,
) -> Problem:
    """Attention of views into a packed qkv; one head is compared with the definition."""
    qkv = torch.randn(n, 3, *heads, device=device, dtype=torch.bfloat16)
    leaves = tuple(qkv[:, i].requires_grad_() for i in range(3))
    exact = partial(_attend, pattern=pattern, layout=layout, backend="reference")
    moved, products = leaves[0].numel() * 2, float(pairs * heads[0] * heads[1])
    return Problem(
        operation,
        shape,
        leaves,
        ways,
        exact,
        forward_bytes=4 * moved,
        backward_bytes=8 * moved,
        operations=(4 * products, 10 * products),
        part=lambda x: x[:, :1],
    )


def _attend(
    q: Tensor, k: Tensor, v: Tensor, pattern: Any, layout: LayoutIndex | None, backend: str
) -> Sequence[Tensor]:
    return (attend(q, k, v, pattern=pattern, layout=layout, backend=backend),)


def _dense(q: Tensor, k: Tensor, v: Tensor, kernel: SDPBackend | None) -> Sequence[Tensor]:
    rows = [x.transpose(0, 1)[None] for x in (q, k, v)]
    with nullcontext() if kernel is None else sdpa_kernel(kernel):
        return (torch.nn.functional.scaled_dot_product_attention(*rows)[0].transpose(0, 1),)


def measure(problem: Problem, top: Ceilings, device: str) -> Iterator[Line]:
    """Forward and backward of every way; the error is that of the results which the timed call gives."""
    leaves, part = problem.leaves, problem.part
    wide = tuple(part(leaf.detach()).double().requires_grad_() for leaf in leaves)
    exact = problem.exact(*wide)
    grads = tuple(torch.randn_like(out) for out in _forward(problem.ways["ours"], leaves))
    exact_grads = torch.autograd.grad(exact, wide, [part(grad).double() for grad in grads])
    exact = tuple(out.detach() for out in exact)
    for name, way in problem.ways.items():
        try:
            out = way(*leaves)
        except (RuntimeError, ValueError) as error:
            if name == "ours":
                raise
            print(f"{problem.shape}, {name}: {error}", file=sys.stderr)  # a peer that does not serve here
            continue
        back = partial(torch.autograd.grad, out, leaves, grads, retain_graph=True)
        results = {"forward": (partial(_forward, way, leaves), exact, problem.forward_bytes, problem.operations[0]),
                   "backward": (back, exact_grads, problem.backward_bytes, problem.operations[1])}  # fmt: skip
        for direction, (call, expected, moved, operations) in results.items():
            error = max(_error(part(a), b) for a, b in zip(call(), expected, strict=True))
            floor = max(moved / top.copy_gbs / 1e6, operations / top.matmul_tflops / 1e9)
            taken = milliseconds(call, device)
            yield Line(problem.operation, problem.shape, direction, name, taken, floor, error, peak(call, device))


def _forward(way: Way, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    with torch.no_grad():
        return way(*leaves)


def _error(got: Tensor, exact: Tensor) -> float:
    return float((got.detach().double() - exact.detach()).norm() / exact.detach().norm())


def peak(call: Callable[[], Any], device: str) -> float:
    """Megabytes that a call needs beyond what is there."""
    if device == "cpu":
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def milliseconds(call: Callable[[], Any], device: str) -> float:
    """The median time of a call."""
    if device == "cpu":
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        return 1000 * statistics.median(seconds)
    from triton.testing import do_bench

    return float(do_bench(call, warmup=30, rep=150, return_mode="median"))


def table(lines: Sequence[Line]) -> str:
    """The lines as a Markdown table; ratios are to the other ways of the same shape and direction."""
    others = [way for way in dict.fromkeys(line.way for line in lines) if way != "ours"]
    names = ["operation", "shape", "direction", "way", "ms", "of floor", *(f"× {way}" for way in others), "error"]
    rows = ["| " + " | ".join([*names, "peak MB"]) + " |", "|---" * (len(names) + 1) + "|"]
    for line in lines:
        same = {o.way: o.ms for o in lines if (o.shape, o.direction) == (line.shape, line.direction)}
        ratios = " | ".join(f"{same[way] / line.ms:.2f}" if way in same else "" for way in others)
        error = f"{line.error:.1e}{'' if line.right else ' WRONG'}"
        rows.append(
            f"| {line.operation} | {line.shape} | {line.direction} | {line.way} | {line.ms:.4f} | "
            f"{line.floor_ms / line.ms:.2f} | {ratios} | {error} | {line.peak_mb:.0f} |"
        )
    return "\n".join(rows)


def save(path: Path, content: dict[str, Any], text: str, about: dict[str, Any]) -> None:
    """``path.json`` and ``path.md``; prints the latter."""
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    found = {**about["environment"]["versions"], **about["environment"]["hardware"]}
    described = ", ".join(f"{name} {value}" for name, value in found.items() if value is not None)
    path.with_suffix(".md").write_text(f"# {path.name}\n\n{described}\n\n{text}\n")
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
