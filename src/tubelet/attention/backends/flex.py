"""PyTorch's FlexAttention: any predicate as a mask of blocks, compiled into one kernel on CUDA.

The predicate and the bias are traced into the kernel; which blocks of 128 queries and keys hold any allowed pair is
found once for a layout and remembered as long as its index lives.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.attention.backends.reference import sides, without_padding
from tubelet.attention.backends.sdpa import forward_mode
from tubelet.layout import Kind, LayoutIndex, TokenInfo
from tubelet.protocols import Answer, AttentionRequest, Bias, Pattern

__all__ = ["FlexBackend"]

_KERNELS = 256
"""How many kernels (patterns × shapes) one process may compile; PyTorch's own limit of 8 is soon met by patterns."""

_MASKS: "WeakKeyDictionary[LayoutIndex, WeakKeyDictionary[LayoutIndex, dict[Any, Any]]]" = WeakKeyDictionary()
"""The masks of a pair of indices (queries, keys), which die with either."""


class FlexBackend:
    """``torch.nn.attention.flex_attention`` behind the contract: every pattern, layout and bias, user's ones too.

    On CUDA each pattern is compiled into a kernel at its first use, which takes seconds. On the CPU it runs unfused,
    with every score in memory and without a backward: for tests; ``auto`` does not take it there. Build the index of a
    layout once (``layout.on(device)``) and pass it to every layer, so that its block mask is made once; inside compiled
    code the mask is made in the graph.

    Example:
        >>> from tubelet import explain
        >>> print(explain(*torch.zeros(3, 4, 2, 8)).splitlines()[3])
        flex       yes
    """

    name = "flex"

    def supports(self, request: AttentionRequest) -> Answer:
        """Every pattern, layout and bias; no backward on the CPU, no float64 on CUDA."""
        device = request.device.partition(":")[0]
        if device not in ("cpu", "cuda"):
            return Answer(f"flex serves CUDA and, for tests, the CPU, not {request.device}")
        if forward_mode():
            return Answer("flex has no forward-mode derivative; backend='reference' has")
        if device == "cpu" and request.grad:
            return Answer("flex has no backward on the CPU; use torch.no_grad() or backend='sdpa'")
        if device == "cuda" and request.dtype == torch.float64:
            return Answer("flex has no float64 kernel on CUDA; backend='reference' has")
        if 0 in request.shape or 0 in request.kv_shape:
            return Answer(f"flex needs at least one query and one key, got {request.shape} and {request.kv_shape}")
        return Answer()

    def run(
        self,
        q: Float[Tensor, "*lead h d"],
        k: Float[Tensor, "*kv_lead hk d"],
        v: Float[Tensor, "*kv_lead hk e"],
        request: AttentionRequest,
    ) -> Float[Tensor, "*lead h e"]:
        """Serve a supported request."""
        kv_index = request.index if request.kv_index is None else request.kv_index
        rows = q.ndim == k.ndim == 4
        parts = (without_padding(x, index) for x, index in ((q, request.index), (k, kv_index), (v, kv_index)))
        queries, keys, values = ((x if rows else x.reshape(1, -1, *x.shape[-2:])).transpose(1, 2) for x in parts)
        options = {
            "score_mod": _score_mod(request, rows),
            "block_mask": _mask(request),
            "scale": request.scale,
            "enable_gqa": request.groups > 1,
        }
        out = _flex(queries, keys, values, options)
        return out.transpose(1, 2).reshape(*q.shape[:-1], v.shape[-1])


def _flex(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    if torch.compiler.is_compiling():
        traced: Tensor = flex_attention(q, k, v, **options)
        return traced
    with torch._dynamo.config.patch(recompile_limit=_KERNELS), warnings.catch_warnings():
        if q.device.type == "cpu":  # says that this path is unfused, as our documentation does
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        function: Any = flex_attention if q.device.type == "cpu" else _compiled()
        out: Tensor = function(q, k, v, **options)
    return out


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True)


def _mask(request: AttentionRequest) -> Any:
    """The block mask: remembered by the indices it was made of, made in the graph where code is compiled."""
    index, kv_index = request.index, request.kv_index
    hashable = type(request.pattern).__hash__ is not None
    if torch.compiler.is_compiling() or index is None or not hashable:
        return _made(request)
    masks = _MASKS.setdefault(index, WeakKeyDictionary()).setdefault(index if kv_index is None else kv_index, {})
    key = (request.pattern, request.shape[-2])
    if key not in masks:
        masks[key] = _made(request)
    return masks[key]


def _made(request: AttentionRequest) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    q, k = sides(request)
    rows = q.kind.ndim == 2 and request.index is not None
    if q.kind.ndim == 2 and not rows:  # plain rows are all alike
        q, k = (TokenInfo(*(x[0] for x in side)) for side in (q, k))
    heads = request.shape[-2] if _reads_head(request.pattern, q, k) else None
    sizes = (q.kind.shape[0] if rows else None, heads, q.kind.shape[-1], k.kind.shape[-1])
    return create_block_mask(_mask_mod(request.pattern, q, k, rows), *sizes, device=request.device)


def _reads_head(pattern: Pattern, q: TokenInfo, k: TokenInfo) -> bool:
    """Whether a predicate is another for another head: its answer for two heads at once has an axis for them."""
    one_q, one_k = (TokenInfo(*(x.reshape(-1, *x.shape[q.kind.ndim :])[:1] for x in side)) for side in (q, k))
    return pattern.attends(one_q, one_k, torch.arange(2, device=q.kind.device)[:, None]).ndim > 1


def _mask_mod(pattern: Pattern, q: TokenInfo, k: TokenInfo, rows: bool) -> Callable[[Any, Any, Any, Any], Tensor]:
    return lambda b, h, q_idx, kv_idx: _allowed(pattern, _at(q, b, q_idx, rows), _at(k, b, kv_idx, rows), h)


def _allowed(pattern: Pattern, q: TokenInfo, k: TokenInfo, head: Tensor) -> Tensor:
    same = (q.sample == k.sample) & (q.kind != Kind.PAD) & (k.kind != Kind.PAD)
    return same & pattern.attends(q, k, head)


def _score_mod(request: AttentionRequest, rows: bool) -> Callable[[Any, Any, Any, Any, Any], Tensor] | None:
    bias = request.bias
    if bias is None:
        return None
    if not isinstance(bias, Tensor):
        return _value_mod(bias, *sides(request), rows)
    shape = request.shape if len(request.shape) == 4 else (1, *request.shape)
    scores = (shape[0], shape[-2], shape[-3], request.kv_shape[-3])
    table = bias.expand(scores)
    if not rows:  # rows of queries that meet packed keys lie on one axis
        table = table.transpose(0, 1).reshape(1, scores[1], -1, scores[3])
    return lambda score, b, h, q_idx, kv_idx: score + table[b, h, q_idx, kv_idx]


def _value_mod(bias: Bias, q: TokenInfo, k: TokenInfo, rows: bool) -> Callable[[Any, Any, Any, Any, Any], Tensor]:
    return lambda score, b, h, q_idx, kv_idx: score + bias.between(_at(q, b, q_idx, rows), _at(k, b, kv_idx, rows), h)


def _at(info: TokenInfo, b: Tensor, place: Tensor, rows: bool) -> TokenInfo:
    return TokenInfo(*(x[b, place] if rows else x[place] for x in info))
