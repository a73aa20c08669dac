"""The attention contract: one typed request, an ordered list of backends, and loud refusals.

``attend`` checks the request where it is made, asks the named backend (or each in order) whether it serves it exactly,
and never drops, pads or approximates anything. ``explain`` prints every backend's answer.
"""

import math

from jaxtyping import Float
from torch import Tensor

from tubelet.attention import heads
from tubelet.attention.backends.chunked import ChunkedBackend
from tubelet.attention.backends.reference import ReferenceBackend
from tubelet.attention.backends.sdpa import SdpaBackend
from tubelet.attention.patterns import HeadSplit, Joint
from tubelet.layout import LayoutIndex, TokenLayout
from tubelet.protocols import AttentionRequest, Backend, Pattern

__all__ = ["attend", "backends", "explain"]

_ORDER: tuple[Backend, ...] = (SdpaBackend(), ReferenceBackend(), ChunkedBackend())


def backends() -> dict[str, Backend]:
    """Every backend by name, in the order in which ``backend="auto"`` asks them.

    Example:
        >>> list(backends())
        ['sdpa', 'reference']
    """
    return {backend.name: backend for backend in _ORDER}


def attend(
    q: Float[Tensor, "*lead h d"],
    k: Float[Tensor, "*kv_lead hk d"],
    v: Float[Tensor, "*kv_lead hk e"],
    *,
    pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
    layout: TokenLayout | LayoutIndex | None = None,
    kv_layout: TokenLayout | LayoutIndex | None = None,
    backend: str = "auto",
    scale: float | None = None,
    bias: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "*lead h e"]:
    """Attention of any pattern over any layout: ``softmax(scale·q kᵀ + bias) v`` over the allowed keys.

    Args:
        q: queries, ``(n, h, d)`` packed or one sample, or ``(b, n, h, d)``.
        k, v: keys and values with ``hk`` heads; ``h`` is a multiple of ``hk`` (grouped-query attention).
        pattern: which keys a query attends inside its sample.
        layout: where samples lie on the query axis; None means that each row is one whole sample.
        kv_layout: the same for keys and values in cross-attention; None means they share ``layout``.
        backend: a name from :func:`backends`, or "auto".
        scale: factor of the scores; None means ``1/sqrt(d)``.
        bias: added to the scores, broadcastable to ``(*b, h, n, m)``.

    Returns:
        ``(*lead, h, e)``. A query with no keys, padding included, gives 0.

    Raises:
        ValueError: shapes, layouts, dtypes or devices disagree, or the named backend cannot serve exactly this.

    Example:
        >>> import torch
        >>> from tubelet import Grid, TokenLayout
        >>> layout = TokenLayout.packed([Grid(1, 4, 4), Grid(3, 2, 2)])
        >>> q, k, v = torch.randn(3, 28, 2, 8)
        >>> attend(q, k, v, layout=layout).shape
        torch.Size([28, 2, 8])
    """
    request = _request(q, k, v, pattern, layout, kv_layout, scale, bias)
    return heads.run(_choose(request, backend), q, k, v, request)


def explain(
    q: Float[Tensor, "*lead h d"],
    k: Float[Tensor, "*kv_lead hk d"],
    v: Float[Tensor, "*kv_lead hk e"],
    *,
    pattern: Pattern = Joint(),  # noqa: B008 - a frozen value
    layout: TokenLayout | LayoutIndex | None = None,
    kv_layout: TokenLayout | LayoutIndex | None = None,
    scale: float | None = None,
    bias: Float[Tensor, "..."] | None = None,
) -> str:
    """Every backend's answer to a request, in the order of ``auto``; the first "yes" is the one that runs.

    Raises:
        ValueError: the request itself is malformed.

    Example:
        >>> import torch
        >>> print(explain(*torch.zeros(3, 4, 2, 8)))
        sdpa       yes
        reference  yes
    """
    request = _request(q, k, v, pattern, layout, kv_layout, scale, bias)
    answers = ((b.name, heads.answer(b, request)) for b in _ORDER)
    return "\n".join(f"{name:<10} {'yes' if answer else 'no: ' + answer.reason}" for name, answer in answers)


def _choose(request: AttentionRequest, name: str) -> Backend:
    if name != "auto":
        if name not in backends():
            raise ValueError(f"backend={name!r} is unknown; the backends are {', '.join(backends())} and auto")
        answer = heads.answer(backends()[name], request)
        if not answer:
            raise ValueError(f"backend={name!r} cannot serve this request: {answer.reason}")
        return backends()[name]
    for backend in _ORDER:
        if heads.answer(backend, request):
            return backend
    raise AssertionError("the reference backend serves everything")


def _request(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    layout: TokenLayout | LayoutIndex | None,
    kv_layout: TokenLayout | LayoutIndex | None,
    scale: float | None,
    bias: Tensor | None,
) -> AttentionRequest:
    _check_tensors(q, k, v)
    index, kv_index = _on(layout, q), _on(kv_layout, q)
    if index is None and kv_index is not None:
        index = _rows_of(q, kv_index)
    _check_layouts(q, k, index, kv_index)
    _check_bias(bias, q, k)
    if isinstance(pattern, HeadSplit) and sum(pattern.heads) != q.shape[-2]:
        raise ValueError(f"q has {q.shape[-2]} heads, but pattern splits {sum(pattern.heads)}: {pattern}")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return AttentionRequest(
        pattern, index, kv_index, tuple(q.shape), tuple(k.shape), q.dtype, str(q.device), scale, bias
    )


def _on(layout: TokenLayout | LayoutIndex | None, q: Tensor) -> LayoutIndex | None:
    return layout.on(q.device) if isinstance(layout, TokenLayout) else layout


def _rows_of(q: Tensor, kv_index: LayoutIndex) -> LayoutIndex:
    """Whole rows of plain queries, to stand against a key layout."""
    if q.ndim != 4:
        raise ValueError(
            f"kv_layout holds {kv_index.samples} samples without a layout of the queries, which then must be rows "
            f"(b, n, h, d); got q of shape {tuple(q.shape)}"
        )
    return TokenLayout.padded([q.shape[1]] * q.shape[0], q.shape[1]).on(q.device)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim not in (3, 4):
            raise ValueError(f"{name} must be (n, heads, d) or (b, n, heads, d), got shape {tuple(x.shape)}")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"q is {q.dtype} on {q.device}, but {name} is {x.dtype} on {x.device}")
    if not q.dtype.is_floating_point:
        raise ValueError(f"q must be floating point, got {q.dtype}")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q has head_dim {q.shape[-1]}, but k has {k.shape[-1]}")
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"k has shape {tuple(k.shape)}, but v has {tuple(v.shape)}")
    if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ValueError(f"q has {q.shape[-2]} heads, not a multiple of k's {k.shape[-2]}")


def _check_bias(bias: Tensor | None, q: Tensor, k: Tensor) -> None:
    if bias is None:
        return
    if not bias.dtype.is_floating_point:
        raise ValueError(f"bias is added to the scores: it must be floating point like q ({q.dtype}), got {bias.dtype}")
    scores = (*q.shape[:-3], q.shape[-2], q.shape[-3], k.shape[-3])
    fits = bias.ndim <= len(scores) and all(
        have in (1, want) for have, want in zip(bias.shape[::-1], scores[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, which does not broadcast to the scores' {scores}")


def _check_layouts(q: Tensor, k: Tensor, index: LayoutIndex | None, kv_index: LayoutIndex | None) -> None:
    if index is None:
        if q.shape[:-3] != k.shape[:-3]:
            raise ValueError(f"q has batch shape {tuple(q.shape[:-3])}, but k has {tuple(k.shape[:-3])}")
        return
    if tuple(q.shape[:-2]) != index.shape:
        raise ValueError(f"q has tokens {tuple(q.shape[:-2])}, but layout has {index.shape}")
    other, name = (index, "layout") if kv_index is None else (kv_index, "kv_layout")
    if tuple(k.shape[:-2]) != other.shape:
        raise ValueError(f"k has tokens {tuple(k.shape[:-2])}, but {name} has {other.shape}")
    if not index.same_samples(other):
        raise ValueError(f"layout has {index.samples} samples, but kv_layout has {other.samples}")
