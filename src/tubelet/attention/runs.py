"""Attention of equal groups, forward and backward: what a run computes.

On the CPU PyTorch's fused kernel and its backward; elsewhere, under a mask, and where v is not as wide as k, the
definition, a block of queries at a time. Half precisions are computed in float32 on the CPU: more exact, and faster for
short groups. Query heads that share a key head (GQA) are laid end to end, so that keys are never repeated.

Shapes: q ``(g, h, l, d)``, k ``(g, hk, m, d)``, v ``(g, hk, m, e)``, log-sum-exp ``(g, h, l, 1)``.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "attention",
    "backward",
    "by_key_head",
    "by_query_head",
    "fused",
    "mask_by_key_head",
    "merged",
    "wide",
    "widens",
]

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

_BLOCK = 1 << 24
"""How many scores the definition holds at once."""


def wide(x: Tensor) -> torch.dtype:
    """The precision of sums and statistics: at least float32.

    Example:
        >>> wide(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """
    return torch.promote_types(x.dtype, torch.float32)


def widens(x: Tensor) -> bool:
    """Whether runs of ``x`` are computed in another precision than its own.

    Example:
        >>> widens(torch.zeros(1)), widens(torch.zeros(1, dtype=torch.bfloat16))
        (False, True)
    """
    return wide(x) != x.dtype and x.device.type == "cpu"


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
        >>> out, lse = attention(*torch.zeros(3, 1, 1, 2, 4), 1.0, None, True)
        >>> lse.flatten().exp().round().tolist()
        [2.0, 2.0]
    """
    if widens(q):
        q, k, v = (x.to(wide(x)) for x in (q, k, v))
    _, heads, length, _ = q.shape
    q, mask = by_key_head(q, k), mask_by_key_head(mask, heads, k.size(1))
    if mask is None and not statistics and (fused(q, v) or q.device.type != "cpu"):
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return by_query_head(out, heads, length), None
    if fused(q, v) and _full(mask):
        out, lse = _flash(q, k, v, 0.0, False, attn_mask=_additive(mask, q), scale=scale)
        lse = lse.unsqueeze(-1)
    else:
        out, lse = _definition(q, k, v, scale, mask)
    return by_query_head(out, heads, length), by_query_head(lse, heads, length) if statistics else None


def merged(
    out: Float[Tensor, "g h l e"],
    lse: Float[Tensor, "g h l 1"],
    more: Float[Tensor, "g h l e"],
    more_lse: Float[Tensor, "g h l 1"],
) -> tuple[Float[Tensor, "g h l e"], Float[Tensor, "g h l 1"]]:
    """Attention over two disjoint sets of keys from the attention over each.

    Example:
        >>> one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
        >>> [x.item() for x in merged(one, zero, 3 * one, zero)]
        [2.0, 0.6931471824645996]
    """
    total = torch.logaddexp(lse, more_lse)
    share = torch.exp(more_lse - total).nan_to_num(0.0).to(out.dtype)
    return torch.lerp(out, more.to(out.dtype), share.expand_as(out)), total


def backward(
    grad: Float[Tensor, "g h l e"],
    q: Float[Tensor, "g h l d"],
    k: Float[Tensor, "g hk m d"],
    v: Float[Tensor, "g hk m e"],
    out: Float[Tensor, "g h l e"],
    lse: Float[Tensor, "g h l 1"] | None,
    scale: float,
    mask: Bool[Tensor, "_ l m"] | None,
) -> tuple[Float[Tensor, "g h l d"], Float[Tensor, "g hk m d"], Float[Tensor, "g hk m e"]]:
    """The gradients of q, k and v through this group's keys, given the whole output and log-sum-exp of the queries.

    Without a log-sum-exp the keys of the group are all that the queries attend.

    With ``p = exp(s - lse)`` and ``dp = grad vᵀ``: ``ds = p·(dp - Σ grad·out)``, ``dq = ds k``, ``dk = dsᵀ q`` and
    ``dv = pᵀ grad`` (FlashAttention, arXiv:2205.14135, appendix B.4).

    Example:
        >>> q, k, v, grad = torch.ones(4, 1, 1, 1, 1)
        >>> [x.item() for x in backward(grad, q, k, v, v, torch.ones(1, 1, 1, 1), 1.0, None)]
        [0.0, 0.0, 1.0]
    """
    if widens(q):
        grad, q, k, v, out = (x.to(wide(x)) for x in (grad, q, k, v, out))
    heads, length = q.shape[1:3]
    grad, q, out = (by_key_head(x, k) for x in (grad, q, out))
    lse = None if lse is None else by_key_head(lse, k)
    mask = mask_by_key_head(mask, heads, k.shape[1])
    if lse is not None and fused(q, v) and _full(mask):
        bias = _additive(mask, q)
        dq, dk, dv = _flash_backward(grad, q, k, v, out, lse.squeeze(-1), 0.0, False, attn_mask=bias, scale=scale)
    else:
        dq, dk, dv = _definition_backward(grad, q, k, v, out, lse, scale, mask)
    return by_query_head(dq, heads, length), dk, dv


def by_key_head(x: Float[Tensor, "g h l d"], k: Float[Tensor, "g hk m _"]) -> Float[Tensor, "g hk rows d"]:
    """The query heads of a key head end to end: ``(g, h, l, d)`` to ``(g, hk, h/hk·l, d)``.

    Example:
        >>> by_key_head(torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 5, 8)).shape
        torch.Size([1, 2, 6, 8])
    """
    return x if x.size(1) == k.size(1) else x.reshape(x.shape[0], k.shape[1], -1, x.shape[3])


def by_query_head(x: Float[Tensor, "g hk rows d"], heads: int, length: int) -> Float[Tensor, "g h l d"]:
    """Undo :func:`by_key_head`.

    Example:
        >>> by_query_head(torch.zeros(1, 2, 6, 8), 4, 3).shape
        torch.Size([1, 4, 3, 8])
    """
    return x if x.size(1) == heads else x.reshape(x.shape[0], heads, length, x.shape[3])


def mask_by_key_head(mask: Bool[Tensor, "_ l m"] | None, heads: int, kv_heads: int) -> Bool[Tensor, "_k rows m"] | None:
    """The mask of query heads that lie as :func:`by_key_head` lays them.

    Example:
        >>> mask_by_key_head(torch.ones(1, 3, 5, dtype=torch.bool), 4, 2).shape
        torch.Size([1, 6, 5])
    """
    if mask is None or heads == kv_heads:
        return mask
    if mask.shape[0] == 1:
        return mask.repeat(1, heads // kv_heads, 1)
    return mask.reshape(kv_heads, -1, mask.shape[2])


def fused(q: Float[Tensor, "*_ d"], v: Float[Tensor, "*_ e"]) -> bool:
    """True where PyTorch's fused CPU kernel and its backward serve.

    Example:
        >>> fused(torch.zeros(1, 4), torch.zeros(1, 4)), fused(torch.zeros(1, 4), torch.zeros(1, 2))
        (True, False)
    """
    return q.device.type == "cpu" and q.size(-1) == v.size(-1)


def _full(mask: Tensor | None) -> bool:
    """Whether every query has a key: the fused kernel gives NaN for one without."""
    return mask is None or bool(mask.any(-1).all())


def _additive(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """A boolean mask as what is added to the scores."""
    return None if mask is None else torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)[None]


def _blocks(q: Tensor, k: Tensor) -> list[slice]:
    step = max(1, _BLOCK // (q.shape[0] * q.shape[1] * k.shape[2]))
    return [slice(first, first + step) for first in range(0, q.shape[2], step)]


def _scores(q: Tensor, k: Tensor, scale: float, mask: Tensor | None, rows: slice) -> Tensor:
    scores = q[:, :, rows].to(wide(q)) @ k.to(wide(k)).mT
    scores *= scale
    return scores if mask is None else scores.masked_fill_(~mask[:, rows].to(q.device), -torch.inf)


def _definition(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    out = q.new_empty(*q.shape[:3], v.shape[3])
    lse = q.new_empty(*q.shape[:3], 1, dtype=wide(q))
    for rows in _blocks(q, k):
        scores = _scores(q, k, scale, mask, rows)
        lse[:, :, rows] = torch.logsumexp(scores, dim=-1, keepdim=True)
        weights = _weights(scores, lse[:, :, rows])
        out[:, :, rows] = (weights @ v.to(weights.dtype)).to(out.dtype)
    return out, lse


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    """``exp(s - lse)``, 0 where a query has no keys at all."""
    return scores.sub_(lse.clamp(min=torch.finfo(lse.dtype).min)).exp_()


def _definition_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor | None, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = wide(q)
    keys, values = k.to(dtype), v.to(dtype)
    dq, dk, dv = torch.empty_like(q, dtype=dtype), torch.zeros_like(keys), torch.zeros_like(values)
    for rows in _blocks(q, k):
        cotangents = grad[:, :, rows].to(dtype)
        scores = _scores(q, k, scale, mask, rows)
        weights = torch.softmax(scores, -1) if lse is None else _weights(scores, lse[:, :, rows])
        dp = cotangents @ values.mT
        ds = weights * (dp - (cotangents * out[:, :, rows]).sum(-1, keepdim=True)) * scale
        dq[:, :, rows] = ds @ keys
        dk += ds.mT @ q[:, :, rows].to(dtype)
        dv += weights.mT @ cotangents
    return dq, dk, dv
