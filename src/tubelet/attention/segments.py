"""Attention over segments of one token axis, as an opaque operator with a backward.

The loop over segments runs inside a custom operator, so that compiled graphs hold one node whatever the layout. Runs of
equal segments at equal distances are batched as strided views: nothing is gathered, padded or masked.

Shapes: q ``(n, h, d)``, k ``(m, hk, d)``, v ``(m, hk, e)``; segment tables live on the host.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["segment_attention"]

_BLOCK = 1 << 24
"""How many scores the recomputed backward holds at once."""


class _Run(NamedTuple):
    """``pairs`` pairs of segments: lengths, first places and distances on the query and key axes."""

    pairs: int
    q_start: int
    q_length: int
    q_step: int
    k_start: int
    k_length: int
    k_step: int


def segment_attention(
    q: Float[Tensor, "n h d"],
    k: Float[Tensor, "m hk d"],
    v: Float[Tensor, "m hk e"],
    cu_q: Int[Tensor, " s1"],
    len_q: Int[Tensor, " s"],
    cu_k: Int[Tensor, " r1"],
    len_k: Int[Tensor, " r"],
    scale: float,
) -> Float[Tensor, "n h e"]:
    """Softmax attention of query segment i over key segment i; tokens of no segment, or with no keys, give 0.

    The segment tables are int32 on the host (:class:`tubelet.layout.LayoutIndex` keeps them); where one side has more
    of them than the other (the empty ones of a capacity), the shorter table counts.

    Example:
        >>> x = torch.randn(5, 2, 8)
        >>> cu, used = torch.tensor([0, 2, 5], dtype=torch.int32), torch.tensor([2, 3], dtype=torch.int32)
        >>> segment_attention(x, x, x, cu, used, cu, used, 1.0).shape
        torch.Size([5, 2, 8])
    """
    out: Tensor = _segments(q, k, v, cu_q, len_q, cu_k, len_k, scale)[0]
    return out


@torch.library.custom_op("tubelet::segment_attention", mutates_args=())
def _segments(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, len_q: Tensor, cu_k: Tensor, len_k: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    out, lse = _results(q, v)
    q, k, v = _row_major(*_widened(q, k, v))
    for run in _runs(cu_q, len_q, cu_k, len_k):
        qs, ks, vs = _views(q, k, v, run)
        part, part_lse = _attention(qs, ks, vs, scale)
        _queries(out, run).copy_(part)
        _queries(lse, run).copy_(part_lse)
    return out, lse


@_segments.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, len_q: Tensor, cu_k: Tensor, len_k: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return _results(q, v)


@torch.library.custom_op("tubelet::segment_attention_backward", mutates_args=())
def _segments_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    len_q: Tensor,
    cu_k: Tensor,
    len_k: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    grad, q, k, v, out = _row_major(*_widened(grad, q, k, v, out))
    for run in _runs(cu_q, len_q, cu_k, len_k):
        qs, ks, vs = _views(q, k, v, run)
        saved = (_queries(out, run), _queries(lse, run))
        grads = _attention_backward(_queries(grad, run), qs, ks, vs, saved, scale)
        for total, part in zip((_queries(dq, run), _keys(dk, run), _keys(dv, run)), grads, strict=True):
            total.copy_(part)
    return dq, dk, dv


@_segments_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    len_q: Tensor,
    cu_k: Tensor,
    len_k: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return dq, dk, dv


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_q, len_q, cu_k, len_k, scale = inputs
    ctx.save_for_backward(q, k, v, *output, cu_q, len_q, cu_k, len_k)  # type: ignore[arg-type]
    ctx.scale = scale  # type: ignore[attr-defined]


def _backward(
    ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _grad_lse: Tensor | None
) -> tuple[Tensor | None, ...]:
    dq, dk, dv = _segments_backward(grad, *ctx.saved_tensors, ctx.scale)  # type: ignore[attr-defined]
    return dq, dk, dv, None, None, None, None, None


_segments.register_autograd(_backward, setup_context=_save)


def _runs(cu_q: Tensor, len_q: Tensor, cu_k: Tensor, len_k: Tensor) -> Iterator[_Run]:
    """Join consecutive segments of equal lengths and equal distances; skip those without queries or keys."""
    run: _Run | None = None
    for q0, nq, k0, nk in zip(cu_q.tolist(), len_q.tolist(), cu_k.tolist(), len_k.tolist(), strict=False):
        if nq == 0 or nk == 0:
            continue
        if run is not None and (run.q_length, run.k_length) == (nq, nk):
            q_step, k_step = q0 - run.q_start, k0 - run.k_start
            if run.pairs == 1:
                run = run._replace(pairs=2, q_step=q_step, k_step=k_step)
                continue
            if (q_step, k_step) == (run.pairs * run.q_step, run.pairs * run.k_step):
                run = run._replace(pairs=run.pairs + 1)
                continue
        if run is not None:
            yield run
        run = _Run(1, q0, nq, nq, k0, nk, nk)
    if run is not None:
        yield run


def _strided(x: Tensor, count: int, start: int, length: int, step: int) -> Tensor:
    """``(count, heads, length, d)`` view of segments of ``(n, heads, d)``."""
    n, h, d = x.stride()
    offset = x.storage_offset() + start * n
    return x.as_strided((count, x.shape[1], length, x.shape[2]), (step * n, h, n, d), offset)


def _queries(x: Tensor, run: _Run) -> Tensor:
    return _strided(x, run.pairs, run.q_start, run.q_length, run.q_step)


def _keys(x: Tensor, run: _Run) -> Tensor:
    return _strided(x, run.pairs, run.k_start, run.k_length, run.k_step)


def _views(q: Tensor, k: Tensor, v: Tensor, run: _Run) -> tuple[Tensor, Tensor, Tensor]:
    return _queries(q, run), _keys(k, run), _keys(v, run)


def _results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros for the output ``(n, h, e)`` and the log-sum-exp ``(n, h, 1)``, in the precision that the softmax has."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_zeros(*q.shape[:2], v.shape[-1]), q.new_zeros(*q.shape[:2], 1, dtype=wide)


def _widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Half precisions as float32 on CPU: exact sums, and a several times faster backward of short segments."""
    half = tensors[0].device.type == "cpu" and tensors[0].dtype in (torch.bfloat16, torch.float16)
    return tuple(x.float() for x in tensors) if half else tensors


def _row_major(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors whose last axis lies dense in memory, as the fused kernels take for granted; others are copied."""
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


def _fused(q: Tensor, v: Tensor) -> bool:
    """True where PyTorch's fused CPU kernel and its backward serve."""
    return q.device.type == "cpu" and q.shape[-1] == v.shape[-1]


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """``(b, h, n, e)`` attention and log-sum-exp ``(b, h, n, 1)`` (zero where the backward does not use it)."""
    if not _fused(q, v):
        out = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return out, out.new_zeros(())
    groups = q.shape[1] // k.shape[1]
    k, v = _repeat(k, groups), _repeat(v, groups)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=scale)
    return out, lse.unsqueeze(-1)


def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, saved: tuple[Tensor, Tensor], scale: float
) -> tuple[Tensor, ...]:
    if not _fused(q, v):
        return _recomputed_backward(grad, q, k, v, scale)
    groups = q.shape[1] // k.shape[1]
    out, lse = saved
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, _repeat(k, groups), _repeat(v, groups), out, lse.squeeze(-1), 0.0, False, scale=scale
    )
    return dq, _fold(dk, groups), _fold(dv, groups)


def _recomputed_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, ...]:
    """Gradients from recomputed weights, a block of queries at a time, where no kernel's statistics are at hand.

    With ``p = softmax(s)`` and ``dp = grad vᵀ``: ``ds = p·(dp - Σ p·dp)``, ``dq = ds k``, ``dk = dsᵀ q`` and
    ``dv = pᵀ grad``.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    groups = q.shape[1] // k.shape[1]
    keys, values = _repeat(k, groups).to(wide), _repeat(v, groups).to(wide)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(keys), torch.zeros_like(values)
    step = max(1, _BLOCK // (q.shape[0] * q.shape[1] * k.shape[2]))
    for start in range(0, q.shape[2], step):
        rows = slice(start, start + step)
        queries, cotangents = q[:, :, rows].to(wide), grad[:, :, rows].to(wide)
        weights = torch.softmax(queries @ keys.mT * scale, dim=-1)
        dp = cotangents @ values.mT
        ds = weights * (dp - (weights * dp).sum(-1, keepdim=True)) * scale
        dq[:, :, rows] = ds @ keys
        dk += ds.mT @ queries
        dv += weights.mT @ cotangents
    return dq, _fold(dk, groups), _fold(dv, groups)


def _repeat(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _fold(x: Tensor, groups: int) -> Tensor:
    """Sum the gradients of the query heads that share a key head."""
    return x if groups == 1 else x.reshape(x.shape[0], -1, groups, *x.shape[2:]).sum(2)
