"""FlashAttention's variable-length kernels: flash-attn 2, 3 and 4, or the one that PyTorch carries.

FlashAttention is Dao et al. (arXiv:2205.14135, 2307.08691, 2407.08608). Samples are segments of one axis, so that a
packed batch is one launch. Which package serves is decided by what is installed and by the device; none is imported
before a request on CUDA asks.
"""

import importlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelet.attention.backends.reference import without_padding
from tubelet.attention.backends.sdpa import forward_mode, whole_rows
from tubelet.attention.backends.segments import segmentable, segments
from tubelet.attention.patterns import Joint
from tubelet.layout import LayoutIndex
from tubelet.protocols import Answer, AttentionRequest

__all__ = ["FlashBackend"]


class _Kernel(NamedTuple):
    """A package's function: where it is, from and to which major compute capability, and what it cannot do.

    ``wide``: it serves heads from 129 to 256, too.
    """

    package: str
    module: str
    function: str
    least: int
    most: int
    wide: bool = True
    backward: bool = True
    float16: bool = True


_KERNELS = (
    _Kernel("flash-attn 3", "flash_attn_interface", "flash_attn_varlen_func", 9, 9),
    _Kernel("flash-attn-4", "flash_attn.cute", "flash_attn_varlen_func", 9, 9),
    _Kernel("flash-attn-4", "flash_attn.cute", "flash_attn_varlen_func", 10, 11, wide=False),
    _Kernel("fa3-fwd", "fa3_fwd_interface", "flash_attn_varlen_func", 9, 9, backward=False, float16=False),
    _Kernel("flash-attn", "flash_attn", "flash_attn_varlen_func", 8, 12),
    _Kernel("torch", "torch.nn.attention.varlen", "varlen_attn", 8, 12),
)
"""In the order of their published speed on the devices that have them."""


_FOUND: dict[int, Callable[..., Any]] = {}
"""The functions of the kernels that have been chosen, where traced code finds them."""


class _Varlen(NamedTuple):
    """What a variable-length kernel is asked."""

    q: Float[Tensor, "n h d"]
    k: Float[Tensor, "m hk d"]
    v: Float[Tensor, "m hk d"]
    cu_q: Int[Tensor, " s1"]
    cu_k: Int[Tensor, " s1"]
    max_q: int
    max_k: int


class FlashBackend:
    """The fastest installed FlashAttention: segments in half precision on CUDA.

    Serves joint attention, self and cross, on every layout, and partitions of the grid without text, whose tokens it
    reorders. In compiled code: joint attention on dense and packed layouts.

    Example:
        >>> from tubelet import explain
        >>> print(explain(*torch.zeros(3, 4, 2, 8)).splitlines()[4])
        flash      no: flash serves CUDA, not cpu
    """

    name = "flash"

    def supports(self, request: AttentionRequest) -> Answer:
        """Half precisions on CUDA, heads up to 256 wide, patterns that are lists of segments; no bias."""
        capability = _capability(request.device)
        if capability is None:
            return Answer(f"flash serves CUDA, not {request.device}")
        if request.dtype not in (torch.float16, torch.bfloat16):
            return Answer(f"flash serves torch.float16 and torch.bfloat16, not {request.dtype}")
        if request.bias is not None:
            return Answer("flash takes no bias; backend='flex' does")
        if forward_mode():
            return Answer("flash has no forward-mode derivative; backend='reference' has")
        width = request.shape[-1]
        if width > 256 or width % 8 or request.v_dim not in (None, width):
            return Answer(
                f"flash serves one width of q, k and v, a multiple of 8 up to 256, got {width} and {request.v_dim}"
            )
        if 0 in request.shape or 0 in request.kv_shape:
            return Answer(f"flash needs at least one query and one key, got {request.shape} and {request.kv_shape}")
        if _number(capability[0], request) < 0:
            return Answer(_missing(capability[0], request))
        if not torch.compiler.is_compiling():
            return segmentable(request)
        packed = len(request.shape) == len(request.kv_shape) == 3 and request.index is not None
        if isinstance(request.pattern, Joint) and (packed or whole_rows(request)):
            return Answer()
        return Answer("flash serves Joint() on dense and packed layouts in compiled code; backend='sdpa' serves more")

    def run(
        self,
        q: Float[Tensor, "*lead h d"],
        k: Float[Tensor, "*kv_lead hk d"],
        v: Float[Tensor, "*kv_lead hk d"],
        request: AttentionRequest,
    ) -> Float[Tensor, "*lead h d"]:
        """Serve a supported request."""
        capability = _capability(request.device)
        assert capability is not None
        kernel = _number(capability[0], request)
        if torch.compiler.is_compiling():
            return _traced(kernel, q, k, v, request)
        parts = segments(request)
        asked = _Varlen(
            parts.take(q, "q"),
            parts.take(k, "k"),
            parts.take(v, "k"),
            parts.starts("q", request.device),
            parts.starts("k", request.device),
            max(parts.q_lengths),
            max(parts.k_lengths),
        )
        return parts.put(_call(kernel, asked, request.scale), tuple(q.shape[:-2]))


def _call(kernel: int, asked: _Varlen, scale: float) -> Tensor:
    function: Any = _FOUND[kernel]
    q, k, v, cu_q, cu_k, max_q, max_k = asked
    if _KERNELS[kernel].package == "torch":
        gqa = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
        out = function(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, **gqa)
    else:
        options = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "max_seqlen_q": max_q, "max_seqlen_k": max_k}
        out = function(q, k, v, **options, softmax_scale=scale, causal=False)
    result: Tensor = out[0] if isinstance(out, tuple) else out  # some versions give the log-sum-exp too
    return result


def _traced(kernel: int, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    """Without the host's table: the segments are the index's, and what they leave out is cleared on both ways."""
    index = request.index
    if index is None or whole_rows(request):
        steps = [torch.arange(x.numel() // x.shape[-1] // x.shape[-2] // x.shape[-3] + 1) * x.shape[-3] for x in (q, k)]
        cu_q, cu_k = (step.to(torch.int32).to(q.device) for step in steps)
        flat_q, flat_k, flat_v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
        asked = _Varlen(flat_q, flat_k, flat_v, cu_q, cu_k, q.shape[-3], k.shape[-3])
        return _call(kernel, asked, request.scale).reshape(*q.shape[:-1], v.shape[-1])
    keys = index if request.kv_index is None else request.kv_index
    seen = _with_keys(index, keys)[:, None, None]
    cu_q, cu_k = _matched(index.cu_seqlens, keys.cu_seqlens)
    k, v = without_padding(k, keys), without_padding(v, keys)
    asked = _Varlen(torch.where(seen, q, 0), k, v, cu_q, cu_k, index.max_seqlen, keys.max_seqlen)
    out = _call(kernel, asked, request.scale)
    return torch.where(seen, out, 0)


def _with_keys(index: LayoutIndex, keys: LayoutIndex) -> Tensor:
    """The queries that are no padding and whose sample has keys."""
    return index.valid & (keys.seqlens > 0)[index.sample.clamp(min=0)]


def _matched(cu_q: Tensor, cu_k: Tensor) -> tuple[Tensor, Tensor]:
    """Equally many segments on both sides: empty ones at the end."""
    longest = max(cu_q.shape[0], cu_k.shape[0])
    q, k = (torch.cat([cu, cu[-1:].expand(longest - cu.shape[0])]) for cu in (cu_q, cu_k))
    return q, k


def _capability(device: str) -> tuple[int, int] | None:
    """The compute capability of a CUDA device."""
    return torch.cuda.get_device_capability(device) if device.startswith("cuda") else None


def _number(major: int, request: AttentionRequest) -> int:
    """The kernel for a request; comparisons of sizes become constants, which a graph may be asked about."""
    wide, gqa = (True if yes else False for yes in (request.shape[-1] > 128, request.groups > 1))  # noqa: SIM210
    number: int = _chosen(major, wide, request.dtype, request.grad, gqa)
    return number


def _chosen(major: int, wide: bool, dtype: torch.dtype, grad: bool, gqa: bool) -> int:
    """The first kernel that is installed and serves, now in :data:`_FOUND`; -1 where none does."""
    for number, kernel in enumerate(_KERNELS):
        fits = kernel.least <= major <= kernel.most and (kernel.wide or not wide)
        if fits and (kernel.backward or not grad) and (kernel.float16 or dtype != torch.float16):
            function = _function(kernel)
            if function is not None and _takes(kernel, function, gqa):
                _FOUND[number] = function
                return number
    return -1


# what torch.compiler.assume_constant_result sets, without importing the compiler
_chosen._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _takes(kernel: _Kernel, function: Callable[..., Any], gqa: bool) -> bool:
    """Whether a version has the arguments that the request needs; PyTorch's has grown them one by one."""
    if kernel.package != "torch":
        return True
    has = inspect.signature(function).parameters
    return "scale" in has and (not gqa or "enable_gqa" in has)


@lru_cache(maxsize=16)
def _function(kernel: _Kernel) -> Callable[..., Any] | None:
    """The package's function; None where it is missing (PyPI's ``flash_attn_interface`` 0.0.1 is an empty module)."""
    try:
        found = getattr(importlib.import_module(kernel.module), kernel.function, None)
    except ImportError:
        return None
    return found if callable(found) else None


def _missing(major: int, request: AttentionRequest) -> str:
    wanted = ", ".join(dict.fromkeys(kernel.package for kernel in _KERNELS if kernel.least <= major <= kernel.most))
    what = f"{request.dtype}{' with gradients' if request.grad else ''}"
    return f"no installed package serves {what} on compute capability {major}.x; one of these may: {wanted or 'none'}"
