"""Requests whose heads follow different patterns: one part for each, and their results side by side."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelet.attention.patterns import HeadSplit
from tubelet.layout import TokenInfo
from tubelet.protocols import Answer, AttentionRequest, Backend, Bias

__all__ = ["answer", "run", "split"]


def split(request: AttentionRequest) -> Iterator[tuple[int, int, AttentionRequest]]:
    """The parts of a request: first and last query head (exclusive), and what is asked of them.

    Example:
        >>> from tubelet.attention.patterns import Joint, Spatial
        >>> pattern = HeadSplit((Joint(), Spatial()), (1, 3))
        >>> whole = AttentionRequest(pattern, None, None, (8, 4, 2), (8, 4, 2), torch.float32, "cpu", 1.0, None)
        >>> [(first, last, part.pattern) for first, last, part in split(whole)]
        [(0, 1, Joint()), (1, 4, Spatial())]
    """
    if not isinstance(request.pattern, HeadSplit):
        yield 0, request.shape[-2], request
        return
    first = 0
    for pattern, count in zip(request.pattern.patterns, request.pattern.heads, strict=True):
        last = first + count
        kv_first, kv_last = _shared(first, last, request.groups)
        kv_heads = count if kv_first is None else kv_last - kv_first
        yield (
            first,
            last,
            replace(
                request,
                pattern=pattern,
                shape=(*request.shape[:-2], count, request.shape[-1]),
                kv_shape=(*request.kv_shape[:-2], kv_heads, request.kv_shape[-1]),
                bias=_part(request.bias, first, last),
            ),
        )
        first = last


def answer(backend: Backend, request: AttentionRequest) -> Answer:
    """A backend's answer: yes where it serves every part.

    Example:
        >>> from tubelet.attention import Joint, backends
        >>> request = AttentionRequest(Joint(), None, None, (8, 4, 2), (8, 4, 2), torch.float32, "cpu", 1.0, None)
        >>> bool(answer(backends()["reference"], request))
        True
    """
    if not isinstance(request.pattern, HeadSplit):
        return backend.supports(request)
    for _, _, part in split(request):
        found = backend.supports(part)
        if not found:
            return found
    return Answer()


def run(
    backend: Backend,
    q: Float[Tensor, "*lead h d"],
    k: Float[Tensor, "*kv_lead hk d"],
    v: Float[Tensor, "*kv_lead hk e"],
    request: AttentionRequest,
) -> Float[Tensor, "*lead h e"]:
    """Serve each part with its own heads; query heads that share key heads beyond their part get copies of them.

    Example:
        >>> from tubelet.attention import Joint, backends
        >>> request = AttentionRequest(Joint(), None, None, (8, 4, 2), (8, 4, 2), torch.float32, "cpu", 1.0, None)
        >>> run(backends()["reference"], *torch.zeros(3, 8, 4, 2), request).shape
        torch.Size([8, 4, 2])
    """
    if not isinstance(request.pattern, HeadSplit):
        return backend.run(q, k, v, request)
    parts = []
    for first, last, part in split(request):
        kv_first, kv_last = _shared(first, last, request.groups)
        if kv_first is None:
            keys, values = (x.repeat_interleave(request.groups, dim=-2)[..., first:last, :] for x in (k, v))
        else:
            keys, values = (x[..., kv_first:kv_last, :] for x in (k, v))
        parts.append(backend.run(q[..., first:last, :], keys, values, part))
    return torch.cat(parts, dim=-2)


@dataclass(frozen=True, eq=False)
class _Later:
    """A bias seen from its head ``first`` on."""

    bias: Bias
    first: int

    def between(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.bias.between(q, k, head + self.first)

    def check(self, heads: int, sides: tuple[int, int, int]) -> None:
        self.bias.check(self.first + heads, sides)


def _part(bias: Tensor | Bias | None, first: int, last: int) -> Tensor | Bias | None:
    if bias is None:
        return None
    if not isinstance(bias, Tensor):
        return _Later(bias, first)
    return bias[..., first:last, :, :] if bias.ndim > 2 and bias.shape[-3] > 1 else bias


def _shared(first: int, last: int, groups: int) -> tuple[int, int] | tuple[None, int]:
    """The key heads of a range of query heads, or None where it cuts a group in an uneven way."""
    if first % groups == 0 and last % groups == 0:
        return first // groups, last // groups
    if first // groups == (last - 1) // groups:
        return first // groups, first // groups + 1
    return None, 0
