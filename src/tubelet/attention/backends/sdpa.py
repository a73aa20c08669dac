"""PyTorch's fused attention: dense rows go to it as views, everything else by a plan of equal groups."""

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tubelet.attention.patterns import Joint
from tubelet.attention.planned import Tables, planned_attention
from tubelet.layout import Grid, LayoutIndex, TokenLayout
from tubelet.protocols import Answer, AttentionRequest

__all__ = ["SdpaBackend"]


class SdpaBackend:
    """``torch.nn.functional.scaled_dot_product_attention`` behind the contract.

    Dense rows under ``Joint()`` are one call. Any other pattern or layout is planned on the host
    (:mod:`tubelet.attention.plan`) and run group by group in one operator: affine groups as views, others gathered in
    pieces that stay in the cache, patterns of which only the predicate is known by blocks of queries.

    Example:
        >>> import torch
        >>> from tubelet import attend
        >>> attend(*torch.randn(3, 2, 6, 4, 8), backend="sdpa").shape
        torch.Size([2, 6, 4, 8])
    """

    name = "sdpa"

    def supports(self, request: AttentionRequest) -> Answer:
        """Every pattern on every layout; a bias only for dense rows under ``Joint()``."""
        if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
            return Answer("sdpa has no forward-mode derivative; backend='reference' has")
        if _whole_rows(request):
            return Answer()
        if request.bias is not None:
            return Answer(
                "sdpa serves a bias on dense rows under Joint() only; backend='reference' serves it on any request"
            )
        if type(request.pattern).__hash__ is None:
            return Answer(f"a pattern must be a hashable value to be planned, and {type(request.pattern)} is not")
        if torch.compiler.is_compiling() and not getattr(request.pattern, "spec", ""):
            return Answer(
                f"compiled code holds a pattern by its spec, which {type(request.pattern).__name__} lacks; "
                "backend='reference' traces its predicate"
            )
        return Answer()

    def run(
        self,
        q: Float[Tensor, "*lead h d"],
        k: Float[Tensor, "*kv_lead hk d"],
        v: Float[Tensor, "*kv_lead hk e"],
        request: AttentionRequest,
    ) -> Float[Tensor, "*lead h e"]:
        """Serve a supported request."""
        if not _whole_rows(request):
            return _planned(q, k, v, request)
        q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
        bias = None if request.bias is None else request.bias.to(q.dtype)
        gqa = request.groups > 1
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=request.scale, enable_gqa=gqa)
        return out.transpose(-3, -2)


def _whole_rows(request: AttentionRequest) -> bool:
    """Whether each row of queries attends its whole row of keys."""
    same_rank = len(request.shape) == len(request.kv_shape)
    return isinstance(request.pattern, Joint) and not request.ragged and same_rank


def _planned(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    index = _rows(request.shape) if request.index is None else request.index
    keys = request.kv_index
    if keys is None and request.index is None and request.shape[:-2] != request.kv_shape[:-2]:
        keys = _rows(request.kv_shape)
    flat_q, flat_k, flat_v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    tables = Tables(index.table, None if keys is None else keys.table, index.kept, None if keys is None else keys.kept)
    out = planned_attention(flat_q, flat_k, flat_v, request.pattern, tables, request.scale)
    return out.view(*q.shape[:-1], v.shape[-1])


def _rows(shape: tuple[int, ...]) -> LayoutIndex:
    """Plain tokens: each row is a grid of one line."""
    batch = shape[0] if len(shape) == 4 else 1
    return TokenLayout.dense(batch, Grid(1, 1, shape[-3])).on("cpu")
