"""Attention by a plan with a bias that is a value: its numbers are made run by run, and so is the attention.

Where the bias is a function of distances alone, one group's numbers are those of all groups of a run. PyTorch
differentiates what is done, so gradients reach the bias. Compiled code would hold the loop over runs, which differs
from layout to layout: there the definition serves.

Shapes: q ``(n, h, d)``, k ``(m, hk, d)``, v ``(m, hk, e)``; groups ``(g, h, l, d)``.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tubelet.attention import runs
from tubelet.attention.places import Affine
from tubelet.attention.plan import Plan, make_plan, offers
from tubelet.attention.planned import as_bytes
from tubelet.attention.tiles import Run
from tubelet.layout import LayoutIndex, TokenInfo
from tubelet.protocols import Answer, AttentionRequest, Bias

__all__ = ["attention_with_bias", "plannable_bias"]

_GATHERED = 1 << 12
"""How many tokens a run may hold, so that its scores do not outgrow memory."""


def plannable_bias(request: AttentionRequest) -> Answer:
    """Whether a plan serves the bias: in eager self-attention on whole grids, by a pattern that is cut along the axes.

    Example:
        >>> from tubelet.attention import Joint, RelativeBias
        >>> bias = RelativeBias(torch.zeros(1, 1, 1, 15))
        >>> request = AttentionRequest(Joint(), None, None, (8, 2, 4), (8, 2, 4), torch.float32, "cpu", 0.5, bias)
        >>> bool(plannable_bias(request))
        False
    """
    index = request.index
    if isinstance(request.bias, Tensor) or index is None or request.kv_index is not None or index.kept is not None:
        return Answer(
            "sdpa serves a bias on dense rows under Joint(), or one that is a value on whole grids; "
            "backend='reference' serves it on any request"
        )
    if not offers(request.pattern, "axes"):
        return Answer(f"sdpa serves a bias under patterns that are cut along the axes, not {request.pattern}")
    if torch.compiler.is_compiling() or request.device == "meta":
        return Answer("sdpa serves a bias on ragged layouts in eager code only; backend='reference' traces its numbers")
    if _plan(request, index).merges:
        return Answer("sdpa serves no bias where a query's keys lie in several runs, as with text beside windows")
    return Answer()


def attention_with_bias(
    q: Float[Tensor, "n h d"], k: Float[Tensor, "m hk d"], v: Float[Tensor, "m hk e"], request: AttentionRequest
) -> Float[Tensor, "n h e"]:
    """Serve a request that :func:`plannable_bias` takes.

    Example:
        >>> from tubelet import Grid, TokenLayout
        >>> from tubelet.attention import RelativeBias, Window
        >>> index, bias = TokenLayout.packed([Grid(2, 4, 4)]).on("cpu"), RelativeBias(torch.zeros(1, 3, 3, 3))
        >>> shape, pattern = (32, 2, 4), Window((2, 2, 2))
        >>> request = AttentionRequest(pattern, index, None, shape, shape, torch.float32, "cpu", 0.5, bias)
        >>> attention_with_bias(*torch.randn(3, *shape), request).shape
        torch.Size([32, 2, 4])
    """
    index, bias = request.index, request.bias
    assert index is not None
    assert bias is not None and not isinstance(bias, Tensor)
    wide = runs.wide(q) if runs.widens(q) else q.dtype
    k, v = (x.repeat_interleave(request.groups, dim=1) for x in (k, v)) if request.groups > 1 else (k, v)
    info = TokenInfo(*(x.flatten(0, len(index.shape) - 1) for x in index.info()))
    parts, places = [], []
    for run in _plan(request, index).runs:
        queries, keys = (side.index().to(q.device) for side in (run.q, run.k))
        qs, ks, vs = (x[at].transpose(1, 2).to(wide) for x, at in ((q, queries), (k, keys), (v, keys)))
        numbers = _numbers(bias, run, queries, keys, info, q.shape[1]).to(wide)
        if run.mask is not None:
            numbers = numbers.masked_fill(~run.mask.to(q.device), -torch.inf)
        mask = numbers.expand(-1, q.shape[1], *numbers.shape[2:])
        out = F.scaled_dot_product_attention(qs, ks, vs, attn_mask=mask, scale=request.scale)
        parts.append(out.transpose(1, 2).flatten(0, 1))
        places.append(queries.flatten())
    empty = q.new_zeros(*q.shape[:2], v.shape[-1], dtype=wide)
    return empty.index_copy(0, torch.cat(places), torch.cat(parts)).to(q.dtype) if parts else empty.to(q.dtype)


def _numbers(
    bias: Bias, run: Run, queries: Tensor, keys: Tensor, info: TokenInfo, heads: int
) -> Float[Tensor, "g h l m"]:
    """The bias of each pair of a run; of one group where the others' are the same."""
    if getattr(bias, "relative", False) and _alike(run):
        queries, keys = queries[:1], keys[:1]
    q_side = TokenInfo(*(x[queries][:, None, :, None] for x in info))
    k_side = TokenInfo(*(x[keys][:, None, None] for x in info))
    head = torch.arange(heads, device=queries.device).view(heads, 1, 1)
    return bias.between(q_side, k_side, head)


def _alike(run: Run) -> bool:
    """Whether queries and keys move together from group to group, so that all distances stay."""
    return isinstance(run.q, Affine) and isinstance(run.k, Affine) and run.q.pitch == run.k.pitch


def _plan(request: AttentionRequest, index: LayoutIndex) -> Plan:
    return make_plan(request.pattern, as_bytes(index.table), heads=request.shape[-2], limit=_GATHERED)
