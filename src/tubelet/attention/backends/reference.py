"""The readable definition of attention: a mask from the predicate, a softmax, a product; float64-able.

O(n²) memory. Every other backend is compared with this one, and a user's own pattern runs here first.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tubelet.layout import Kind, LayoutIndex, TokenInfo
from tubelet.protocols import Answer, AttentionRequest, Pattern

__all__ = ["ReferenceBackend", "bias_of", "mask_of", "sides", "without_padding"]


class ReferenceBackend:
    """Attention by its definition: ``softmax(scale·q kᵀ + bias) v`` over the pairs that the predicate allows.

    Example:
        >>> from tubelet import attend
        >>> q = k = torch.zeros(2, 1, 4)
        >>> attend(q, k, torch.eye(2)[:, None], backend="reference")[0, 0].tolist()
        [0.5, 0.5]
    """

    name = "reference"

    def supports(self, request: AttentionRequest) -> Answer:
        """Everything."""
        return Answer()

    def run(
        self,
        q: Float[Tensor, "*lead h d"],
        k: Float[Tensor, "*kv_lead hk d"],
        v: Float[Tensor, "*kv_lead hk e"],
        request: AttentionRequest,
    ) -> Float[Tensor, "*lead h e"]:
        """Half precisions are computed in float32."""
        if q.ndim != k.ndim:
            flat_q, flat_k, flat_v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
            return self.run(flat_q, flat_k, flat_v, request).reshape(*q.shape[:-1], v.shape[-1])
        wide = torch.promote_types(request.dtype, torch.float32)
        kv_index = request.index if request.kv_index is None else request.kv_index
        q = without_padding(q.to(wide), request.index)
        k, v = (without_padding(x.to(wide), kv_index) for x in (k, v))
        k, v = (x.repeat_interleave(request.groups, dim=-2) for x in (k, v))
        scores = torch.einsum("...qhd,...khd->...hqk", q, k) * request.scale
        bias = bias_of(request)
        if bias is not None:
            scores = scores + bias.to(wide)
        weights = _softmax(scores.masked_fill(~mask_of(request), -torch.inf))
        return torch.einsum("...hqk,...khe->...qhe", weights, v).to(request.dtype)


def _softmax(scores: Float[Tensor, "... q k"]) -> Float[Tensor, "... q k"]:
    """Softmax over the keys in which a row without any (all ``-inf``) is 0."""
    if scores.shape[-1] == 0:
        return scores
    peak = scores.detach().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weights = torch.exp(scores - peak)
    total = weights.sum(dim=-1, keepdim=True)
    return weights / torch.where(total == 0, 1, total)


def without_padding(x: Float[Tensor, "*lead h d"], index: LayoutIndex | None) -> Float[Tensor, "*lead h d"]:
    """Zeros in place of padding, whose contents (NaN, say) could reach results through products with zero weights.

    Example:
        >>> from tubelet import TokenLayout
        >>> without_padding(torch.ones(1, 2, 1, 1), TokenLayout.padded([1], 2).on("cpu")).flatten().tolist()
        [1.0, 0.0]
    """
    if index is None:
        return x
    return torch.where(index.valid.reshape(*x.shape[:-2], 1, 1), x, 0)


def mask_of(request: AttentionRequest) -> Bool[Tensor, "... h q k"]:
    """The pairs a request allows: same sample, neither padding, and the pattern's predicate.

    Example:
        >>> from tubelet import Grid, TokenLayout
        >>> from tubelet.attention import Joint
        >>> index = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 1)]).on("cpu")
        >>> mask_of(AttentionRequest(Joint(), index, None, (3, 1, 4), (3, 1, 4), torch.float32, "cpu", 1.0, None)).int()
        tensor([[[1, 1, 0],
                 [1, 1, 0],
                 [0, 0, 1]]], dtype=torch.int32)
    """
    q_side, k_side = _opposed(request)
    return _pairs(request.pattern, q_side, k_side, request.shape[-2])


def bias_of(request: AttentionRequest) -> Float[Tensor, "..."] | None:
    """The bias as numbers that broadcast to the scores; queries in rows that meet packed keys lie on one axis.

    Example:
        >>> from tubelet.attention import Joint
        >>> request = AttentionRequest(Joint(), None, None, (3, 1, 4), (3, 1, 4), torch.float32, "cpu", 1.0, None)
        >>> bias_of(request) is None
        True
    """
    bias = request.bias
    if bias is None:
        return None
    heads, length, keys = request.shape[-2], request.shape[-3], request.kv_shape[-3]
    if not isinstance(bias, Tensor):
        head = torch.arange(heads, device=request.device).view(heads, 1, 1)
        return bias.between(*_opposed(request), head)
    if len(request.shape) == len(request.kv_shape):
        return bias
    return bias.expand(request.shape[0], heads, length, keys).transpose(0, 1).reshape(heads, -1, keys)


def sides(request: AttentionRequest) -> tuple[TokenInfo, TokenInfo]:
    """What the queries and the keys are; where one side is in rows and the other packed, both on one axis.

    Example:
        >>> from tubelet.attention import Joint
        >>> request = AttentionRequest(Joint(), None, None, (2, 3, 1, 4), (2, 3, 1, 4), torch.float32, "cpu", 1.0, None)
        >>> sides(request)[0].kind.shape
        torch.Size([2, 3])
    """
    q = _info(request.index, request.shape, request.device)
    k = _info(request.kv_index if request.kv_index is not None else request.index, request.kv_shape, request.device)
    return (q, k) if len(request.shape) == len(request.kv_shape) else (_flat(q), _flat(k))


def _opposed(request: AttentionRequest) -> tuple[TokenInfo, TokenInfo]:
    """Queries along the last axis but one, keys along the last, and an axis of heads before both."""
    q, k = sides(request)
    q_side = TokenInfo(*(_axis(x, 1) for x in q[:2]), *(_axis_flat(x, 1) for x in q[2:]))
    k_side = TokenInfo(*(_axis(x, 0) for x in k[:2]), *(_axis_flat(x, 0) for x in k[2:]))
    return q_side, k_side


def _pairs(pattern: Pattern, q: TokenInfo, k: TokenInfo, heads: int) -> Bool[Tensor, "... h q k"]:
    head = torch.arange(heads, device=q.kind.device).view(heads, 1, 1)
    same = (q.sample == k.sample) & (q.kind != Kind.PAD) & (k.kind != Kind.PAD)
    mask = same & pattern.attends(q, k, head)
    return mask.expand(*mask.shape[:-3], heads, *mask.shape[-2:])


def _info(index: LayoutIndex | None, shape: tuple[int, ...], device: str) -> TokenInfo:
    """The layout's tokens, or those of rows of plain tokens along one axis."""
    if index is not None:
        return index.info()
    lead = shape[:-2]
    place = torch.arange(lead[-1], device=device).expand(lead)
    zero = torch.zeros_like(place)
    sample = zero if len(lead) == 1 else torch.arange(lead[0], device=device)[:, None].expand(lead)
    coords, extent = torch.stack([zero, zero, place], -1), torch.stack([zero + 1, zero + 1, zero + lead[-1]], -1)
    return TokenInfo(coords, extent, zero + Kind.GRID, sample)


def _flat(info: TokenInfo) -> TokenInfo:
    """Rows of tokens as one axis, for a batched side that meets a packed one."""
    return TokenInfo(info.coords.reshape(-1, 3), info.extent.reshape(-1, 3), info.kind.flatten(), info.sample.flatten())


def _axis(x: Tensor, after: int) -> Tensor:
    """``(*b, n, 3)`` to ``(*b, 1, n, 1, 3)`` for queries (after = 1) or ``(*b, 1, 1, n, 3)`` for keys."""
    return x.unsqueeze(-2 if after else -3).unsqueeze(-4)


def _axis_flat(x: Tensor, after: int) -> Tensor:
    """``(*b, n)`` to ``(*b, 1, n, 1)`` for queries or ``(*b, 1, 1, n)`` for keys."""
    return x.unsqueeze(-1 if after else -2).unsqueeze(-3)
