"""The attention contract: one typed request, an ordered list of backends, and loud refusals.

``attend`` checks the request where it is made, asks the named backend (or each in order) whether it serves it exactly,
and never drops, pads or approximates anything. ``explain`` prints every backend's answer.

The order of ``auto``, of which the first that serves is taken:

- on the CPU ``sdpa``, then ``reference``: that of their times among what is as exact, as ``benchmarks/results`` holds
  them and ``docs/attention.md`` tells. ``chunked`` is faster in bfloat16 but twice as rounded, ``flex`` slower than the
  reference: both are taken by name only;
- on CUDA dense rows under ``Joint()`` go to ``sdpa``, which takes cuDNN where that is faster (Hopper: 1.7 to 2.3 times
  FlashAttention 2 by published numbers); all else goes to ``natten`` (neighbourhoods alone), ``flash`` (segments in one
  launch), ``flex`` (one kernel for any predicate), ``xformers`` (segments in float32, too), ``sdpa`` (a launch for each
  run of its plan), ``reference``. ``triton`` (our kernels for groups in place) is taken by name only until measured.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from tubelet.attention import heads
from tubelet.attention.backends.chunked import ChunkedBackend
from tubelet.attention.backends.flash import FlashBackend
from tubelet.attention.backends.flex import FlexBackend
from tubelet.attention.backends.natten import NattenBackend
from tubelet.attention.backends.reference import ReferenceBackend
from tubelet.attention.backends.sdpa import SdpaBackend, whole_rows
from tubelet.attention.backends.triton import TritonBackend
from tubelet.attention.backends.xformers import XformersBackend
from tubelet.attention.patterns import Both, Either, HeadSplit, Joint
from tubelet.attention.reach import reach
from tubelet.layout import Grid, LayoutIndex, TokenLayout
from tubelet.protocols import AttentionRequest, Backend, Bias, Pattern

__all__ = ["attend", "backends", "explain"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_SDPA, _REFERENCE, _CHUNKED, _FLEX = SdpaBackend(), ReferenceBackend(), ChunkedBackend(), FlexBackend()
_FLASH, _XFORMERS, _NATTEN, _TRITON = FlashBackend(), XformersBackend(), NattenBackend(), TritonBackend()

# What follows the reference, which serves everything, is taken by name only.
_HOST: tuple[Backend, ...] = (_SDPA, _REFERENCE, _CHUNKED, _FLEX, _FLASH, _XFORMERS, _NATTEN, _TRITON)
_CUDA: tuple[Backend, ...] = (_NATTEN, _FLASH, _FLEX, _XFORMERS, _SDPA, _REFERENCE, _CHUNKED, _TRITON)
_CUDA_ROWS: tuple[Backend, ...] = (_SDPA, *(backend for backend in _CUDA if backend is not _SDPA))


def backends() -> dict[str, Backend]:
    """Every backend by name, in the order in which ``backend="auto"`` asks them on the CPU.

    Those whose package is not installed are here, too: they say what is missing.

    Example:
        >>> list(backends())
        ['sdpa', 'reference', 'chunked', 'flex', 'flash', 'xformers', 'natten', 'triton']
    """
    return {backend.name: backend for backend in _HOST}


def _order(request: AttentionRequest) -> tuple[Backend, ...]:
    if not request.device.startswith("cuda"):
        return _HOST
    return _CUDA_ROWS if whole_rows(request) else _CUDA


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
    bias: Float[Tensor, "..."] | Bias | None = None,
) -> Float[Tensor, "*lead h e"]:
    """Attention of any pattern over any layout: ``softmax(scale·q kᵀ + bias) v`` over the allowed keys.

    A ``TorchFunctionMode`` sees a call as one of this function, as it sees those of PyTorch's own.

    Args:
        q: queries, ``(n, h, d)`` packed or one sample, or ``(b, n, h, d)``.
        k, v: keys and values with ``hk`` heads; ``h`` is a multiple of ``hk`` (grouped-query attention).
        pattern: which keys a query attends inside its sample; any but ``Joint()`` needs a layout.
        layout: where samples lie on the query axis; None means that each row is one whole sample.
        kv_layout: the same for keys and values in cross-attention; None means they share ``layout``.
        backend: a name from :func:`backends`, or "auto".
        scale: factor of the scores, positive; None means ``1/sqrt(d)``.
        bias: added to the scores: numbers broadcastable to ``(*b, h, n, m)``, or a value such as
            :class:`RelativeBias`.

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
    if has_torch_function((q, k, v)):
        named: dict[str, Any] = {"pattern": pattern, "layout": layout, "kv_layout": kv_layout}
        named |= {"backend": backend, "scale": scale, "bias": bias}
        out: Tensor = handle_torch_function(attend, (q, k, v), q, k, v, **named)
        return out
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
    bias: Float[Tensor, "..."] | Bias | None = None,
) -> str:
    """Every backend's answer to a request, in the order of ``auto``; the first "yes" is the one that runs.

    Backends below the reference are taken by name only.

    Raises:
        ValueError: the request itself is malformed.

    Example:
        >>> import torch
        >>> print(explain(*torch.zeros(3, 4, 2, 8), layout=None))
        sdpa       yes
        reference  yes
        chunked    no: chunked serves torch.bfloat16 on the CPU, got torch.float32 on cpu; try sdpa
        flex       yes
        flash      no: flash serves CUDA, not cpu
        xformers   no: xformers serves CUDA, not cpu
        natten     no: natten serves CUDA, not cpu
        triton     no: triton cannot run: it needs a CUDA device, and the tensors lie on cpu
    """
    request = _request(q, k, v, pattern, layout, kv_layout, scale, bias)
    answers = ((b.name, heads.answer(b, request)) for b in _order(request))
    return "\n".join(f"{name:<10} {'yes' if answer else 'no: ' + answer.reason}" for name, answer in answers)


def _choose(request: AttentionRequest, name: str) -> Backend:
    if name != "auto":
        if name not in backends():
            raise ValueError(f"backend={name!r} is unknown; the backends are {', '.join(backends())} and auto")
        answer = heads.answer(backends()[name], request)
        if not answer:
            raise ValueError(f"backend={name!r} cannot serve this request: {answer.reason}")
        return backends()[name]
    for backend in _order(request):
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
    bias: Tensor | Bias | None,
) -> AttentionRequest:
    _check_tensors(q, k, v)
    _check_pattern(pattern, layout, kv_layout)
    scale = _scale(scale, q)
    index, kv_index = _on(layout, q), _on(kv_layout, q)
    if index is None and kv_index is not None:
        index = _rows_of(q, kv_index)
    shape, kv_shape = tuple(q.shape), tuple(k.shape)
    _check_layouts(shape, kv_shape, index, kv_index, q.device)
    _check_bias(bias, q, k, pattern, (index, kv_index))
    _check_heads(pattern, shape[-2])
    grad = _needs_grad(q, k, v, bias)
    device = str(q.device)
    return AttentionRequest(pattern, index, kv_index, shape, kv_shape, q.dtype, device, scale, bias, grad, v.shape[-1])


def _check_heads(pattern: Pattern, heads: int) -> None:
    if isinstance(pattern, HeadSplit) and sum(pattern.heads) != heads:
        raise ValueError(f"q has {heads} heads, but pattern splits {sum(pattern.heads)}: {pattern}")
    for part in (pattern.a, pattern.b) if isinstance(pattern, Both | Either) else ():
        _check_heads(part, heads)


def _check_pattern(pattern: Pattern, layout: object, kv_layout: object) -> None:
    if isinstance(pattern, type) or not hasattr(pattern, "attends"):
        raise ValueError(f"pattern must be a value with attends(q, k, head), such as Spatial(), got {pattern!r}")
    if layout is None and kv_layout is None and not isinstance(pattern, Joint):
        raise ValueError(
            f"pattern={pattern} needs a layout, which says where frames, rows and text lie, got layout=None; for plain "
            "rows of n tokens it is TokenLayout.dense(batch, Grid(1, 1, n))"
        )


def _needs_grad(*tensors: Tensor | Bias | None) -> bool:
    # a bias that is a value may hold parameters
    return torch.is_grad_enabled() and any(x.requires_grad if isinstance(x, Tensor) else x is not None for x in tensors)


def _scale(scale: float | None, q: Tensor) -> float:
    if scale is None:
        return 1 / math.sqrt(q.shape[-1])
    if not torch.compiler.is_compiling() and not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    return scale


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
    dtype, device = q.dtype, q.device
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 3 and x.ndim != 4:
            raise ValueError(f"{name} must be (n, heads, d) or (b, n, heads, d), got shape {tuple(x.shape)}")
        if x.dtype != dtype or x.device != device:
            raise ValueError(f"q is {dtype} on {device}, but {name} is {x.dtype} on {x.device}")
    if dtype not in _DTYPES:
        raise ValueError(f"q must be floating point, one of {', '.join(map(str, _DTYPES))}; got {dtype}")
    q_shape, k_shape, v_shape = q.shape, k.shape, v.shape  # each reading makes a new object
    for name, shape in (("q", q_shape), ("v", v_shape)):
        if shape[-2] == 0 or shape[-1] == 0:
            raise ValueError(f"{name} needs at least one head and one number in each, got shape {tuple(shape)}")
    if q_shape[-1] != k_shape[-1]:
        raise ValueError(f"q has head_dim {q_shape[-1]}, but k has {k_shape[-1]}")
    if k_shape[:-1] != v_shape[:-1]:
        raise ValueError(f"k has shape {tuple(k_shape)}, but v has {tuple(v_shape)}")
    if k_shape[-2] == 0 or q_shape[-2] % k_shape[-2]:
        raise ValueError(f"q has {q_shape[-2]} heads, not a multiple of k's {k_shape[-2]}")


def _check_bias(
    bias: Tensor | Bias | None,
    q: Tensor,
    k: Tensor,
    pattern: Pattern,
    indices: tuple[LayoutIndex | None, LayoutIndex | None],
) -> None:
    if bias is None:
        return
    if not isinstance(bias, Tensor):
        if not isinstance(bias, Bias):
            raise ValueError(f"bias must be a tensor or have between() and check(), got {type(bias)}")
        # the sides are numbers of the host's table, which a graph cannot hold
        bias.check(q.shape[-2], (1, 1, 1) if torch.compiler.is_compiling() else _sides(q, k, pattern, indices))
        return
    if not bias.dtype.is_floating_point:
        raise ValueError(f"bias is added to the scores: it must be floating point like q ({q.dtype}), got {bias.dtype}")
    if bias.device != q.device:
        raise ValueError(f"q is on {q.device}, but bias is on {bias.device}")
    if k.ndim > q.ndim:
        raise ValueError(f"bias has no meaning for packed queries {tuple(q.shape)} and rows of keys {tuple(k.shape)}")
    scores = (*q.shape[:-3], q.shape[-2], q.shape[-3], k.shape[-3])
    fits = bias.ndim <= len(scores) and all(
        have in (1, want) for have, want in zip(bias.shape[::-1], scores[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, which does not broadcast to the scores' {scores}")


def _sides(
    q: Tensor, k: Tensor, pattern: Pattern, indices: tuple[LayoutIndex | None, LayoutIndex | None]
) -> tuple[int, int, int]:
    """The largest sides over which tokens attend each other; plain rows are lines."""
    index, kv_index = indices
    tables = [each.table[:, 3:] for each in indices if each is not None]
    if index is None:
        return 1, 1, max(q.shape[-3], k.shape[-3])
    t, h, w = torch.cat(tables).amax(0).tolist()
    if kv_index is not None or isinstance(pattern, Joint):
        return t, h, w
    grids = {Grid(*sides) for sides in map(tuple, tables[0].tolist()) if sides[0]}
    reached = [reach(pattern, grid) for grid in grids] or [(1, 1, 1)]
    return tuple(map(max, zip(*reached, strict=True)))


def _check_layouts(
    shape: tuple[int, ...],
    kv_shape: tuple[int, ...],
    index: LayoutIndex | None,
    kv_index: LayoutIndex | None,
    device: torch.device,
) -> None:
    for name, held in (("layout", index), ("kv_layout", kv_index)):
        if held is not None and held.sample.device != device:
            raise ValueError(f"q is on {device}, but the index of {name} is on {held.sample.device}")
    if index is None:
        if shape[:-3] != kv_shape[:-3]:
            raise ValueError(f"q has batch shape {shape[:-3]}, but k has {kv_shape[:-3]}")
        return
    if shape[:-2] != index.shape:
        raise ValueError(f"q has tokens {shape[:-2]}, but layout has {index.shape}")
    other, name = (index, "layout") if kv_index is None else (kv_index, "kv_layout")
    if kv_shape[:-2] != other.shape:
        raise ValueError(f"k has tokens {kv_shape[:-2]}, but {name} has {other.shape}")
    if not index.same_samples(other):
        raise ValueError(f"layout has {index.samples} samples, but kv_layout has {other.samples}")
