"""xFormers' memory-efficient attention: segments as a block-diagonal bias."""

import importlib
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.attention.backends.sdpa import forward_mode
from tubelet.attention.backends.segments import segmentable, segments
from tubelet.protocols import Answer, AttentionRequest

__all__ = ["XformersBackend"]

_WIDEST = 256


class XformersBackend:
    """``xformers.ops.memory_efficient_attention`` with a ``BlockDiagonalMask``: float32 and half precisions on CUDA.

    Serves joint attention, self and cross, on every layout, and partitions of the grid without text, whose tokens it
    reorders. It has no CPU operator.

    Example:
        >>> from tubelet.attention import backends
        >>> backends()["xformers"].name
        'xformers'
    """

    name = "xformers"

    def supports(self, request: AttentionRequest) -> Answer:
        """Patterns that are lists of segments, on CUDA, in eager code; no bias."""
        if not _on_cuda(request.device):
            return Answer(f"xformers serves CUDA, not {request.device}")
        if torch.compiler.is_compiling():
            return Answer("xformers builds its masks on the host, which compiled code cannot; backend='flash' can")
        if request.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return Answer(f"xformers serves float32 and half precisions, not {request.dtype}")
        if request.bias is not None:
            return Answer("xformers takes no bias here; backend='flex' does")
        if forward_mode():
            return Answer("xformers has no forward-mode derivative; backend='reference' has")
        width = request.shape[-1]
        if width > _WIDEST or width % 8 or request.v_dim not in (None, width):
            return Answer(
                f"xformers serves one width of q, k and v, a multiple of 8 up to {_WIDEST}, "
                f"got {width} and {request.v_dim}"
            )
        if 0 in request.shape or 0 in request.kv_shape:
            return Answer(f"xformers needs at least one query and one key, got {request.shape} and {request.kv_shape}")
        if _package() is None:
            return Answer("xformers is not installed; pip install 'tubelet[xformers]'")
        return segmentable(request)

    def run(
        self,
        q: Float[Tensor, "*lead h d"],
        k: Float[Tensor, "*kv_lead hk d"],
        v: Float[Tensor, "*kv_lead hk d"],
        request: AttentionRequest,
    ) -> Float[Tensor, "*lead h d"]:
        """Serve a supported request."""
        package = _package()
        assert package is not None
        parts = segments(request)
        queries, keys, values = parts.take(q, "q"), parts.take(k, "k"), parts.take(v, "k")
        mask = package.fmha.BlockDiagonalMask.from_seqlens(
            list(parts.q_lengths), list(parts.k_lengths), device=queries.device
        )
        queries, keys, values = _shared_heads(queries, keys, values, request)
        out = package.memory_efficient_attention(queries, keys, values, attn_bias=mask, scale=request.scale)
        return parts.put(out.reshape(-1, q.shape[-2], v.shape[-1]), tuple(q.shape[:-2]))


def _shared_heads(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of one; shared key heads by views ``(1, n, hk, groups, d)``, which only the forward knows, or copied."""
    groups = request.groups
    if groups == 1:
        return q[None], k[None], v[None]
    if request.grad:
        return q[None], k.repeat_interleave(groups, dim=1)[None], v.repeat_interleave(groups, dim=1)[None]
    keys, values = (x[None, :, :, None].expand(1, *x.shape[:2], groups, x.shape[2]) for x in (k, v))
    return q.reshape(1, len(q), -1, groups, q.shape[2]), keys, values


def _on_cuda(device: str) -> bool:
    return device.startswith("cuda")


@lru_cache(maxsize=1)
def _package() -> Any:
    """``xformers.ops``; None where it is missing or broken."""
    try:
        return importlib.import_module("xformers.ops")
    except ImportError:
        return None
