"""Checks of attention patterns and backends against the predicate and the readable definition.

Shapes: q, k, v ``(*lead, heads, head_dim)``.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tubelet.attention import Joint
from tubelet.attention.backends.reference import ReferenceBackend, mask_of
from tubelet.layout import Kind, TokenLayout
from tubelet.protocols import Answer, AttentionRequest, Backend, Pattern
from tubelet.testing.mixtures import alone, mixtures, pieces, same

__all__ = ["check_backend", "check_pattern"]


def check_pattern(pattern: Pattern, heads: int = 2) -> None:
    """Check an attention pattern.

    It gives booleans that broadcast; every grid token attends itself (no row of a softmax is empty); what a sample's
    tokens attend does not depend on its place in a pack; equal patterns are equal values.

    Raises:
        AssertionError: what is violated, and on which layout.

    Example:
        >>> check_pattern(Joint())
    """
    assert hash(pattern) == hash(pattern) and pattern == pattern, f"{pattern} is not a hashable value"
    for name, layout in mixtures().items():
        index = layout.on("cpu")
        mask = _mask(pattern, layout, heads)
        assert mask.dtype == torch.bool, f"{name}: the predicate gives {mask.dtype}, not torch.bool"
        itself = mask.diagonal(dim1=-2, dim2=-1).transpose(0, -2).reshape(-1, mask.shape[-1])
        grid = (index.kind == Kind.GRID).reshape(-1, mask.shape[-1]).repeat(itself.shape[0] // max(_rows(layout), 1), 1)
        assert itself[grid].all(), f"{name}: a grid token does not attend itself"
        if layout.batched:
            continue
        for i, where in pieces(layout):
            expected = _mask(pattern, alone(layout, i), heads)
            assert torch.equal(mask[:, where, where], expected), f"{name}: sample {i} attends otherwise than alone"


def check_backend(
    backend: Backend, pattern: Pattern | None = None, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> None:
    """Check an attention backend: whatever it says it supports equals the readable definition.

    Self-attention and cross-attention over mixed layouts, with grouped-query heads, forward and backward; the dtype is
    kept, padding gives 0, and a refusal has a reason. Errors are bounded by 8 roundings of ``dtype``.

    Args:
        backend: yours.
        pattern: the pattern of the requests; None for ``Joint()``.
        dtype: of q, k and v.
        device: where they live.

    Raises:
        AssertionError: what differs and on which layout, or nothing at all is supported.

    Example:
        >>> from tubelet.attention import backends
        >>> check_backend(backends()["sdpa"])
    """
    served = 0
    for name, request, qkv in _requests(Joint() if pattern is None else pattern, dtype, device):
        answer = backend.supports(request)
        assert isinstance(answer, Answer), f"{name}: supports() gives {type(answer).__name__}, not an Answer"
        if answer:
            served += 1
            _compare(f"{backend.name} on {name}", backend, request, qkv, 8 * torch.finfo(dtype).eps)
    assert served, f"{backend.name} supports none of the requests with pattern {pattern} in {dtype} on {device}"


def _compare(name: str, backend: Backend, request: AttentionRequest, qkv: list[Tensor], bound: float) -> None:
    q, k, v = qkv
    out = backend.run(q, k, v, request)
    assert out.dtype == request.dtype, f"{name}: the output is {out.dtype}, not {request.dtype}"
    wide_q, wide_k, wide_v = wide = [x.detach().double().requires_grad_() for x in qkv]
    expected = ReferenceBackend().run(wide_q, wide_k, wide_v, _widened(request))
    same(f"{name}: the output", out, expected, bound)
    if request.index is not None:
        assert not out[~request.index.valid].any(), f"{name}: padding does not give 0"
    cotangent = torch.randn_like(expected)
    got = torch.autograd.grad(out, qkv, cotangent.to(out.dtype))
    want = torch.autograd.grad(expected, wide, cotangent)
    for part, g, w in zip("qkv", got, want, strict=True):
        same(f"{name}: the gradient of {part}", g, w, 4 * bound)


def _requests(
    pattern: Pattern, dtype: torch.dtype, device: str
) -> Iterator[tuple[str, AttentionRequest, list[Tensor]]]:
    context = {n: TokenLayout.packed([None] * n, range(1, n + 1)) for n in (3, 4)}
    for name, layout in mixtures().items():
        for heads, kv_heads in ((2, 2), (4, 2)):
            for kv_layout in (None, context[len(layout.grids)]):
                keys = layout if kv_layout is None else kv_layout
                shape, kv_shape = (*layout.shape, heads, 8), (*keys.shape, kv_heads, 8)
                kv_index = None if kv_layout is None else kv_layout.on(device)
                request = AttentionRequest(
                    pattern, layout.on(device), kv_index, shape, kv_shape, dtype, device, 8**-0.5, None
                )
                qkv = [torch.randn(s, device=device).to(dtype).requires_grad_() for s in (shape, kv_shape, kv_shape)]
                kind = "self" if kv_layout is None else "cross"
                yield f"{kind}-attention, layout {name!r}, {heads}:{kv_heads} heads", request, qkv


def _widened(request: AttentionRequest) -> AttentionRequest:
    where = (request.pattern, request.index, request.kv_index, request.shape, request.kv_shape)
    return AttentionRequest(*where, torch.float64, request.device, request.scale, request.bias)


def _mask(pattern: Pattern, layout: TokenLayout, heads: int) -> Tensor:
    shape = (*layout.shape, heads, 4)
    return mask_of(AttentionRequest(pattern, layout.on("cpu"), None, shape, shape, torch.float32, "cpu", 1.0, None))


def _rows(layout: TokenLayout) -> int:
    return len(layout.grids) if layout.batched else 1
