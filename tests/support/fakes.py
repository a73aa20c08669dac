"""Stand-ins for packages that need CUDA: their functions by definition in float64, from nothing but their arguments."""

from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor


def varlen(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float) -> Tensor:
    """Segment ``i`` of the queries attends segment ``i`` of the keys; rows of none hold NaN, like fresh memory."""
    assert cu_q.dtype == cu_k.dtype == torch.int32 and len(cu_q) == len(cu_k) and int(cu_q[0]) == int(cu_k[0]) == 0
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1 and q.shape[1] % k.shape[1] == 0
    groups = q.shape[1] // k.shape[1]
    parts = []
    for i in range(len(cu_q) - 1):
        rows, keys = slice(int(cu_q[i]), int(cu_q[i + 1])), slice(int(cu_k[i]), int(cu_k[i + 1]))
        assert rows.stop - rows.start <= max_q and keys.stop - keys.start <= max_k
        own_k, own_v = (x[keys].double().repeat_interleave(groups, dim=1) for x in (k, v))
        if keys.stop == keys.start:
            parts.append(torch.full((rows.stop - rows.start, q.shape[1], v.shape[2]), torch.nan, dtype=torch.float64))
            continue
        scores = torch.einsum("qhd,khd->hqk", q[rows].double(), own_k) * scale
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), own_v))
    rest = len(q) - int(cu_q[-1])
    parts.append(torch.full((rest, q.shape[1], v.shape[2]), torch.nan, dtype=torch.float64))
    return torch.cat(parts).to(q.dtype)


def flash_attn(asked: list[dict[str, Any]], name: str = "flash_attn", with_lse: bool = False) -> ModuleType:
    """flash-attn 2 and its successors: ``flash_attn_varlen_func``, which records what it is asked."""

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        causal: bool,
    ) -> Any:
        asked.append({"q": q, "cu_q": cu_seqlens_q, "cu_k": cu_seqlens_k, "max_q": max_seqlen_q, "max_k": max_seqlen_k})
        assert not causal
        out = varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale)
        return (out, None) if with_lse else out

    module = ModuleType(name)
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    return module


class BlockDiagonalMask(NamedTuple):
    """xFormers' bias: block ``i`` of the queries attends block ``i`` of the keys."""

    q_lengths: list[int]
    k_lengths: list[int]

    @classmethod
    def from_seqlens(cls, q: list[int], k: list[int], *, device: Any) -> "BlockDiagonalMask":
        assert len(q) == len(k) and min(q) > 0 and min(k) > 0
        return cls(q, k)


def xformers_ops(asked: list[BlockDiagonalMask]) -> SimpleNamespace:
    """``xformers.ops``: tensors ``(1, n, heads, d)`` or, with shared key heads, ``(1, n, hk, groups, d)``."""

    def memory_efficient_attention(q: Tensor, k: Tensor, v: Tensor, *, attn_bias: Any, scale: float) -> Tensor:
        asked.append(attn_bias)
        assert q.ndim == k.ndim == v.ndim and q.shape[0] == 1 and q.shape[2:-1] == k.shape[2:-1] == v.shape[2:-1]
        assert q.shape[1] == sum(attn_bias.q_lengths) and k.shape[1] == sum(attn_bias.k_lengths)
        assert q.ndim == 4 or not (torch.is_grad_enabled() and q.requires_grad), "shared heads: the forward only"
        cu_q, cu_k = (
            torch.tensor([0, *x]).cumsum(0).to(torch.int32) for x in (attn_bias.q_lengths, attn_bias.k_lengths)
        )
        flat = (x[0].flatten(1, -2) for x in (q, k, v))
        out = varlen(*flat, cu_q, cu_k, max(attn_bias.q_lengths), max(attn_bias.k_lengths), scale)
        return out.reshape(q.shape)

    return SimpleNamespace(
        memory_efficient_attention=memory_efficient_attention, fmha=SimpleNamespace(BlockDiagonalMask=BlockDiagonalMask)
    )


def natten(asked: list[tuple[Any, ...]]) -> SimpleNamespace:
    """``natten.na1d``, ``na2d`` and ``na3d``, a query at a time; NATTEN's own bounds on windows are asserted."""

    def attention(axes: int, q: Tensor, k: Tensor, v: Tensor, kernel_size: Any, is_causal: Any, scale: float) -> Tensor:
        asked.append((axes, tuple(q.shape), kernel_size, is_causal))
        sides = q.shape[1:-2]
        assert len(sides) == len(kernel_size) == len(is_causal) == axes
        assert all(1 < size <= side for size, side in zip(kernel_size, sides, strict=True))
        groups = q.shape[-2] // k.shape[-2]
        k, v = (x.double().repeat_interleave(groups, dim=-2) for x in (k, v))
        rows = []
        for place in torch.cartesian_prod(*map(torch.arange, sides)).reshape(-1, axes).tolist():
            window: list[Any] = [slice(None)]
            for i, side, size, causal in zip(place, sides, kernel_size, is_causal, strict=True):
                first = max(0, i - size + 1) if causal else min(max(0, i - size // 2), side - size)
                window.append(slice(first, i + 1 if causal else first + size))
            keys, values = (x[tuple(window)].reshape(len(x), -1, *x.shape[-2:]) for x in (k, v))
            scores = torch.einsum("bhd,bkhd->bhk", q[(slice(None), *place)].double(), keys) * scale
            rows.append(torch.einsum("bhk,bkhd->bhd", scores.softmax(-1), values))
        return torch.stack(rows, 1).reshape(q.shape).to(q.dtype)

    def of(axes: int) -> Any:
        return lambda q, k, v, *, kernel_size, is_causal, scale: attention(axes, q, k, v, kernel_size, is_causal, scale)

    return SimpleNamespace(na1d=of(1), na2d=of(2), na3d=of(3))
