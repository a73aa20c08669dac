"""PyTorch's fused attention: dense rows go to it as views, ragged ones segment by segment in one operator."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tubelet.attention.patterns import Joint
from tubelet.attention.segments import segment_attention
from tubelet.layout import LayoutIndex
from tubelet.protocols import Answer, AttentionRequest

__all__ = ["SdpaBackend"]


class SdpaBackend:
    """``torch.nn.functional.scaled_dot_product_attention`` behind the contract.

    Example:
        >>> import torch
        >>> from tubelet import attend
        >>> attend(*torch.randn(3, 2, 6, 4, 8), backend="sdpa").shape
        torch.Size([2, 6, 4, 8])
    """

    name = "sdpa"

    def supports(self, request: AttentionRequest) -> Answer:
        """Joint attention, dense or ragged; a bias only where rows are dense."""
        if not isinstance(request.pattern, Joint):
            return Answer(f"sdpa serves Joint(), not {request.pattern}; backend='reference' serves any pattern")
        if (request.ragged or len(request.shape) != len(request.kv_shape)) and request.bias is not None:
            return Answer("sdpa serves a dense bias on dense rows only; backend='reference' serves it on any layout")
        return Answer()

    def run(
        self,
        q: Float[Tensor, "*lead h d"],
        k: Float[Tensor, "*kv_lead hk d"],
        v: Float[Tensor, "*kv_lead hk e"],
        request: AttentionRequest,
    ) -> Float[Tensor, "*lead h e"]:
        """Serve a supported request."""
        if request.ragged or q.ndim != k.ndim:
            return _ragged(q, k, v, request)
        q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
        bias = None if request.bias is None else request.bias.to(q.dtype)
        gqa = request.groups > 1
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=request.scale, enable_gqa=gqa)
        return out.transpose(-3, -2)


def _ragged(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    index = _required(request.index)
    kv_index = index if request.kv_index is None else request.kv_index
    flat_q, flat_k, flat_v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    out = segment_attention(
        flat_q,
        flat_k,
        flat_v,
        index.host_cu_seqlens,
        index.host_seqlens,
        kv_index.host_cu_seqlens,
        kv_index.host_seqlens,
        request.scale,
    )
    return out.view(*q.shape[:-1], v.shape[-1])


def _required(index: LayoutIndex | None) -> LayoutIndex:
    assert index is not None, "a ragged request has a layout"
    return index
