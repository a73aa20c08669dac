"""The check of attention backends: against the readable definition, sample by sample, compiled, and without numbers.

Shapes: q, k, v ``(*lead, heads, head_dim)``.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tubelet.attention import Joint, heads
from tubelet.attention.backends.reference import ReferenceBackend
from tubelet.attention.patterns import HeadSplit
from tubelet.layout import Grid, LayoutIndex, TokenLayout
from tubelet.protocols import Answer, AttentionRequest, Backend, Pattern
from tubelet.testing.mixtures import alone, mixtures, pieces, same

__all__ = ["check_backend"]

_WIDTH = 16


def check_backend(
    backend: Backend,
    pattern: Pattern | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    compiled: bool = False,
) -> None:
    """Check an attention backend: whatever it says it supports equals the readable definition.

    Self-attention and cross-attention over mixed layouts, with grouped-query heads, forward and backward. The dtype is
    kept and padding gives 0; a packed sample equals the sample alone; another sample's numbers, as long as they are
    finite, change no bit of it or of its gradients; a refusal has a reason, and is repeated. A backend that refuses
    gradients is checked without. On the meta device, where the backend serves it, shapes and dtypes come without
    numbers. Errors are bounded by 8 roundings of ``dtype``.

    Args:
        backend: yours; what it refuses is not run.
        pattern: the pattern of the requests; None for ``Joint()``.
        dtype: of q, k and v.
        device: where they live.
        compiled: also compile it (``fullgraph``): one graph must serve several layouts of a capacity, with the results
            of eager code. This clears what ``torch.compile`` has in its caches.

    Raises:
        AssertionError: what differs and on which layout, or nothing at all is supported.

    Example:
        >>> from tubelet.attention import backends
        >>> check_backend(backends()["sdpa"])
    """
    pattern, served = Joint() if pattern is None else pattern, 0
    for case in _cases(pattern, dtype, device):
        request = case.request
        answer = heads.answer(backend, request)
        assert isinstance(answer, Answer), f"{case.name}: supports() gives {type(answer).__name__}, not an Answer"
        again = heads.answer(backend, request)
        assert answer == again, f"{case.name}: supports() says {answer.reason!r}, then {again.reason!r}"
        if answer:
            served += 1
            _check_case(f"{backend.name} on {case.name}", backend, case, 8 * torch.finfo(dtype).eps)
        elif heads.answer(backend, (inference := case.inference()).request):
            served += 1
            _check_inference(f"{backend.name} on {case.name}", backend, inference, 8 * torch.finfo(dtype).eps)
    assert served, f"{backend.name} supports none of the requests with pattern {pattern} in {dtype} on {device}"
    _check_meta(backend, pattern, dtype)
    if compiled:
        _check_compiled(backend, pattern, dtype, device)


class _Case(NamedTuple):
    """One request and its numbers; the name says the layout, the kind of attention and the heads."""

    name: str
    layout: TokenLayout
    kv_layout: TokenLayout | None
    request: AttentionRequest
    qkv: tuple[Tensor, Tensor, Tensor]

    @property
    def keys(self) -> TokenLayout:
        return self.layout if self.kv_layout is None else self.kv_layout

    def inference(self) -> "_Case":
        """The same without gradients."""
        return self._replace(request=replace(self.request, grad=False))

    def alone(self, i: int) -> AttentionRequest:
        """The request of sample ``i`` by itself."""
        one = alone(self.layout, i)
        other = None if self.kv_layout is None else alone(self.kv_layout, i)
        keys = one if other is None else other
        return replace(
            self.request,
            index=one.on(self.request.device),
            kv_index=None if other is None else other.on(self.request.device),
            shape=(*one.shape, *self.request.shape[-2:]),
            kv_shape=(*keys.shape, *self.request.kv_shape[-2:]),
        )

    def places(self, i: int) -> tuple[slice, slice]:
        """Where the queries and keys of sample ``i`` lie on the flattened tokens."""
        sides = ((side.starts[i], side.lengths[i]) for side in (self.layout, self.keys))
        q, k = (slice(start, start + length) for start, length in sides)
        return q, k


def _check_case(name: str, backend: Backend, case: _Case, bound: float) -> None:
    request = case.request
    cotangent = torch.randn(*request.shape, device=request.device).to(request.dtype)
    out, grads = _results(backend, case.qkv, request, cotangent)
    assert out.dtype == request.dtype, f"{name}: the output is {out.dtype}, not {request.dtype}"
    wide = tuple(x.double() for x in case.qkv)
    expected, want = _results(ReferenceBackend(), wide, replace(request, dtype=torch.float64), cotangent.double())
    same(f"{name}: the output", out, expected, bound)
    if request.index is not None:
        assert not out[~request.index.valid].any(), f"{name}: padding does not give 0"
    _near(f"{name}: the gradient", grads, want, 4 * bound)
    _check_separate(name, backend, case, cotangent, out, grads, bound)
    _check_others(name, backend, case, cotangent, out, grads)


def _check_inference(name: str, backend: Backend, case: _Case, bound: float) -> None:
    """The output alone: against the definition, and sample by sample."""
    q, k, v = case.qkv
    with torch.no_grad():
        out = heads.run(backend, q, k, v, case.request)
        assert out.dtype == case.request.dtype, f"{name}: the output is {out.dtype}, not {case.request.dtype}"
        wide = replace(case.request, dtype=torch.float64)
        expected = ReferenceBackend().run(q.double(), k.double(), v.double(), wide)
        same(f"{name}: the output", out, expected, bound)
        for i, _ in pieces(case.layout):
            mine, keys = case.places(i)
            lone = heads.run(backend, _flat(q)[mine], _flat(k)[keys], _flat(v)[keys], case.alone(i))
            same(f"{name}: sample {i} packed and alone", _flat(out)[mine], lone, 2 * bound)


def _check_separate(
    name: str, backend: Backend, case: _Case, cotangent: Tensor, out: Tensor, grads: list[Tensor], bound: float
) -> None:
    """Packed equals separate, where the backend serves a sample alone."""
    flat_out, flat_cotangent, *flat_grads = (_flat(x) for x in (out, cotangent, *grads))
    flat = [_flat(x) for x in case.qkv]
    for i, _ in pieces(case.layout):
        request, (q, k) = case.alone(i), case.places(i)
        if not heads.answer(backend, request):
            continue
        sides = (q, k, k)
        lone = tuple(x[where] for x, where in zip(flat, sides, strict=True))
        lone_out, lone_grads = _results(backend, lone, request, flat_cotangent[q])
        same(f"{name}: sample {i} packed and alone", flat_out[q], lone_out, 2 * bound)
        mine = [g[where] for g, where in zip(flat_grads, sides, strict=True)]
        _near(f"{name}: sample {i} packed and alone, the gradient", mine, lone_grads, 8 * bound)


def _check_others(
    name: str, backend: Backend, case: _Case, cotangent: Tensor, out: Tensor, grads: list[Tensor]
) -> None:
    """Other finite numbers in one sample leave every bit of the others as it was."""
    changed = max((i for i, _ in pieces(case.layout)), key=lambda i: case.layout.lengths[i])
    q, k = case.places(changed)
    moved = []
    for x, where in zip(case.qkv, (q, k, k), strict=True):
        other = _flat(x).clone()
        other[where] = 3 - 2 * other[where]
        moved.append(other.view(x.shape))
    new_out, new_grads = _results(backend, tuple(moved), case.request, cotangent)
    pairs = zip(("output", *(f"gradient of {p}" for p in "qkv")), (out, *grads), (new_out, *new_grads), strict=True)
    for (what, before, after), where in zip(pairs, (q, q, k, k), strict=True):
        rest = torch.ones(_flat(before).shape[0], dtype=torch.bool, device=before.device)
        rest[where] = False
        kept = torch.equal(_flat(before)[rest], _flat(after)[rest])
        assert kept, f"{name}: other numbers in sample {changed} change the {what} of other samples"


def _check_meta(backend: Backend, pattern: Pattern, dtype: torch.dtype) -> None:
    """Shapes and dtypes without numbers, where the backend serves the meta device."""
    for case in _cases(pattern, dtype, "meta"):
        if heads.answer(backend, case.request):
            out = heads.run(backend, *case.qkv, case.request)
            found = (out.device.type, tuple(out.shape), out.dtype)
            expected = ("meta", case.request.shape, dtype)
            assert found == expected, f"{backend.name} on {case.name}: meta tensors gave {found}, not {expected}"


def _check_compiled(backend: Backend, pattern: Pattern, dtype: torch.dtype, device: str) -> None:
    """One graph for the layouts of a capacity, equal to eager code forward and backward."""
    graphs: list[Any] = []

    def counting(graph: Any, _inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward  # type: ignore[no-any-return]

    def layer(q: Tensor, k: Tensor, v: Tensor, index: LayoutIndex) -> Tensor | None:
        shapes = tuple(q.shape), tuple(k.shape)
        request = AttentionRequest(pattern, index, None, *shapes, dtype, device, _WIDTH**-0.5, None)
        request = replace(request, grad=True)
        return heads.run(backend, q, k, v, request) if heads.answer(backend, request) else None

    torch._dynamo.reset()
    call = torch.compile(layer, fullgraph=True, backend=counting)
    query_heads = _head_counts(pattern)[0][0]
    for grids in ([Grid(2, 2, 3), Grid(1, 2, 2)], [Grid(1, 1, 1)], [Grid(3, 2, 1), Grid(1, 1, 1), Grid(2, 2, 2)]):
        layout = TokenLayout.packed(grids, range(len(grids)), capacity=32)
        name = f"{backend.name}, compiled, grids {grids}"
        index = layout.on(device)
        shape = (32, query_heads, _WIDTH)
        q, k, v = (torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(3))
        out, eager = call(q, k, v, index), layer(q, k, v, index)
        assert out is not None and eager is not None, f"{name}: refused"
        cotangent = torch.randn_like(out)
        same(f"{name}: the output", out, eager, 8 * torch.finfo(dtype).eps)
        got, want = (list(torch.autograd.grad(x, (q, k, v), cotangent)) for x in (out, eager))
        _near(f"{name}: the gradient", got, want, 32 * torch.finfo(dtype).eps)
    assert len(graphs) == 1, f"{backend.name}, compiled: {len(graphs)} graphs for 3 layouts of one capacity"


def _cases(pattern: Pattern, dtype: torch.dtype, device: str) -> Iterator[_Case]:
    context = {n: TokenLayout.packed([None] * n, range(1, n + 1)) for n in (3, 4)}
    for name, layout in mixtures().items():
        for query_heads, kv_heads in _head_counts(pattern):
            for kv_layout in (None, context[len(layout.grids)]):
                keys = layout if kv_layout is None else kv_layout
                shape, kv_shape = (*layout.shape, query_heads, _WIDTH), (*keys.shape, kv_heads, _WIDTH)
                kv_index = None if kv_layout is None else kv_layout.on(device)
                request = AttentionRequest(
                    pattern, layout.on(device), kv_index, shape, kv_shape, dtype, device, _WIDTH**-0.5, None
                )
                q, k, v = (torch.randn(s, device=device).to(dtype) for s in (shape, kv_shape, kv_shape))
                kind = "self" if kv_layout is None else "cross"
                title = f"{kind}-attention, layout {name!r}, {query_heads}:{kv_heads} heads"
                yield _Case(title, layout, kv_layout, replace(request, grad=True), (q, k, v))


def _head_counts(pattern: Pattern) -> tuple[tuple[int, int], ...]:
    """Query and key heads: those of a split, or 2 and 4."""
    if isinstance(pattern, HeadSplit):
        total = sum(pattern.heads)
        return (total, total), (total, total // 2 if total % 2 == 0 else 1)
    return (2, 2), (4, 2)


def _results(
    backend: Backend, qkv: tuple[Tensor, ...], request: AttentionRequest, cotangent: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of q, k and v (zero where nothing reaches them)."""
    leaves = [x.detach().clone().requires_grad_() for x in qkv]
    q, k, v = leaves
    out = heads.run(backend, q, k, v, request)
    grads = torch.autograd.grad(out, leaves, cotangent.to(out.dtype), allow_unused=True, materialize_grads=True)
    return out.detach(), list(grads)


def _near(what: str, got: list[Tensor], want: list[Tensor], bound: float) -> None:
    """Errors relative to the largest of the three: a softmax over one key has no gradient but rounding."""
    scale = max(float(w.double().norm()) for w in want)
    for part, g, w in zip("qkv", got, want, strict=True):
        error = float((g.double() - w.double()).norm())
        assert error <= bound * scale, f"{what} of {part} differs: error {error:.1e}, allowed {bound * scale:.1e}"


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-2:])
