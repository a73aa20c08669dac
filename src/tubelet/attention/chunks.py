"""Attention of equal groups by matrix products in bfloat16, a chunk of queries at a time: for CPUs with bfloat16 units.

The scores of a chunk are one product, their softmax is taken in place, and one more product gives the output. Scores
and weights are rounded to bfloat16, where PyTorch's fused kernel keeps the scores in float32: the error is about twice
as large (FlashAttention's order of work, arXiv:2205.14135, without its running rescaling: a chunk holds all its keys).

Shapes: q ``(g, h, l, d)``, k ``(g, hk, m, d)``, v ``(g, hk, m, e)``, log-sum-exp ``(g, h, l, 1)``.
"""

import itertools

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tubelet.attention.runs import by_key_head, by_query_head, mask_by_key_head

__all__ = ["attention"]

_SCORES = 1 << 20
"""How many scores a chunk holds, 2 MB: what the products gain from longer chunks outweighs the second-level cache."""

_ROWS = 256
"""A chunk of a single head holds at least so many queries: shorter ones spend their time on packing the keys."""


def attention(
    q: Float[Tensor, "g h l d"],
    k: Float[Tensor, "g hk m d"],
    v: Float[Tensor, "g hk m e"],
    scale: float,
    mask: Bool[Tensor, "_ l m"] | None,
    statistics: bool,
) -> tuple[Float[Tensor, "g h l e"], Float[Tensor, "g h l 1"] | None]:
    """The output and, where ``statistics`` are wanted, the log-sum-exp; a query without keys gives 0 and -inf.

    Example:
        >>> q, k, v = torch.zeros(3, 1, 1, 2, 4, dtype=torch.bfloat16)
        >>> out, lse = attention(q, k, v, 1.0, None, True)
        >>> lse.flatten().exp().round().tolist()
        [2.0, 2.0]
    """
    groups, heads, length = q.shape[:3]
    mask = mask_by_key_head(mask, heads, k.shape[1])
    rows = by_key_head(q, k)
    out = q.new_empty(*rows.shape[:3], v.shape[3])
    lse = q.new_empty(*rows.shape[:3], 1, dtype=torch.float32) if statistics else None
    step = min(rows.shape[2], max(_ROWS, _SCORES // k.shape[2]))
    together = max(1, _SCORES // (rows.shape[1] * rows.shape[2] * k.shape[2]))
    scores = q.new_empty(max(step * k.shape[2], _SCORES))  # one buffer for all, which stays in the cache
    for first in range(0, groups, together):
        part = slice(first, first + together)
        _groups(rows[part], k[part], v[part], scale, mask, out[part], None if lse is None else lse[part], scores)
    return by_query_head(out, heads, length), None if lse is None else by_query_head(lse, heads, length)


def _groups(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor | None,
    scores: Tensor,
) -> None:
    """Fill ``out`` and ``lse`` of a few groups: all heads at once where the buffer holds them, else one by one."""
    count, heads, length = q.shape[:3]
    if count * heads * length * k.shape[2] <= len(scores):
        _chunk(q, k, v, scale, mask, out, lse, scores)
        return
    step = len(scores) // k.shape[2]
    for g, h in itertools.product(range(count), range(heads)):
        # products read dense rows faster than the rows of one head among many
        queries, keys, values = (x[g : g + 1, h : h + 1].contiguous() for x in (q, k, v))
        own = None if mask is None else mask[min(h, mask.shape[0] - 1)]
        for first in range(0, length, step):
            rows = slice(first, first + step)
            some = None if own is None else own[rows]
            some_lse = None if lse is None else lse[g : g + 1, h : h + 1, rows]
            _chunk(queries[:, :, rows], keys, values, scale, some, out[g : g + 1, h : h + 1, rows], some_lse, scores)


def _chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor | None,
    buffer: Tensor,
) -> None:
    """``softmax(scale·q kᵀ) v`` into ``out``; the log-sum-exp from the largest score and the largest weight.

    The product is scaled before it leaves float32, so that a score is rounded once.
    """
    count, heads, length = q.shape[:3]
    q, k, v = (x.reshape(count * heads, *x.shape[2:]) for x in (q, k, v))
    scores = buffer[: len(q) * length * k.shape[1]].view(len(q), length, -1)
    torch.baddbmm(scores, q, k.mT, beta=0, alpha=scale, out=scores)
    by_head = scores.view(count, heads, length, -1)
    if mask is not None:
        by_head.masked_fill_(~mask, -torch.inf)
    peak = None if lse is None else by_head.amax(-1, keepdim=True).float()
    torch.softmax(scores, -1, out=scores)
    if mask is not None and not mask.any(-1).all():
        by_head.masked_fill_(~mask.any(-1, keepdim=True), 0.0)
    if lse is not None and peak is not None:
        lse.copy_(torch.where(peak == -torch.inf, peak, peak - by_head.amax(-1, keepdim=True).float().log()))
    torch.bmm(scores, v, out=out.view(len(q), length, -1))
