"""Grouped attention in plain PyTorch: what the kernels are compared with, and what runs where there is no GPU."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelet.kernels._grouped.places import Axes, Pair

__all__ = ["reference"]


def reference(
    q: Float[Tensor, "n h d"],
    k: Float[Tensor, "m hk d"],
    v: Float[Tensor, "m hk e"],
    scale: float,
    pairs: Sequence[Pair],
) -> Float[Tensor, "n h e"]:
    """``softmax(scale·q kᵀ) v`` over each query's keys in all runs, in float32 or better.

    Example:
        >>> axes = Axes(0, (1, 1, 1, 2), (0, 0, 0, 1), (1, 1, 3), (0, 0, 2))
        >>> reference(*torch.ones(3, 6, 4, 8), 1.0, [Pair(axes, axes, False)]).shape
        torch.Size([6, 4, 8])
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    ratio = q.shape[1] // k.shape[1]
    keys, values = (x.to(wide).repeat_interleave(ratio, dim=1) for x in (k, v))
    out = torch.zeros(*q.shape[:2], v.shape[-1], dtype=wide, device=q.device)
    lse = torch.full((*q.shape[:2], 1), -torch.inf, dtype=wide, device=q.device)
    for pair in pairs:
        at, key_at = (_index(side).to(q.device) for side in (pair.q, pair.k))
        scores = torch.einsum("gmhd,gnhd->gmhn", q.to(wide)[at], keys[key_at]) * scale
        part_lse = scores.logsumexp(-1, keepdim=True)
        part = torch.einsum("gmhn,gnhe->gmhe", scores.softmax(-1), values[key_at])
        if pair.merge:
            total = torch.logaddexp(lse[at], part_lse)
            part = out[at] * (lse[at] - total).exp() + part * (part_lse - total).exp()
            part_lse = total
        out, lse = out.index_put((at,), part), lse.index_put((at,), part_lse)
    return out.to(q.dtype)


def _index(axes: Axes) -> Int[Tensor, "g m"]:
    """The places, listed."""
    groups, items = _sums(axes.count, axes.pitch), _sums(axes.sizes, axes.strides)
    return axes.start + groups[:, None] + items


def _sums(sizes: tuple[int, ...], steps: tuple[int, ...]) -> Int[Tensor, " m"]:
    total = torch.zeros(1, dtype=torch.long)
    for size, step in zip(sizes, steps, strict=True):
        total = (total[:, None] + torch.arange(size) * step).flatten()
    return total
