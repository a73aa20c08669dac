"""What the library's backends should beat: PyTorch's single attention kernels, and layouts that copy.

``tubelet bench attention --import benchmarks.baselines --backends auto,sdpa-cudnn,permuted ...``. PyTorch's own choice
on Hopper is FlashAttention 2, while cuDNN is about twice as fast: a speed-up over the first proves little.

- ``sdpa-cudnn``, ``sdpa-flash``, ``sdpa-efficient``, ``sdpa-math``: joint attention on dense rows by one kernel alone;
- ``masked``: any pattern on any layout as one call with a boolean mask, which is made once for a layout;
- ``permuted``: spatial, temporal and window attention without text as most models write it: permute so that a group's
  tokens are one row, copy, attend, permute back;
- ``strided``: the same on views, which the kernel copies where it must.
"""

import warnings
from collections.abc import Callable
from functools import partial
from operator import mod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tubelet.attention.backends.reference import mask_of
from tubelet.attention.patterns import Joint, Spatial, Temporal, Window
from tubelet.bench import backend
from tubelet.protocols import Answer, AttentionRequest

__all__: list[str] = []

KERNELS = {
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}
ROWS = {
    Spatial: ("b (t s) h d -> (b t) h s d", "(b t) h s d -> b (t s) h d"),
    Temporal: ("b (t s) h d -> (b s) h t d", "(b s) h t d -> b (t s) h d"),
}
"""How tokens of a pattern become rows of heads, and back."""

MASKS: dict[object, Tensor] = {}
"""The mask of the layout and pattern that were measured last."""


def dense_joint(which: SDPBackend, request: AttentionRequest) -> Answer:
    """Joint attention on rows that are whole samples, where PyTorch has the kernel."""
    if not isinstance(request.pattern, Joint) or request.ragged or len(request.shape) != 4:
        return Answer("serves Joint() on dense rows")
    x = torch.zeros(1, 1, 16, request.shape[-1], dtype=request.dtype, device=request.device)
    try:
        with sdpa_kernel(which), warnings.catch_warnings(action="ignore"):
            F.scaled_dot_product_attention(x, x, x)
    except RuntimeError:
        return Answer(f"PyTorch has no {which.name} for {request.dtype} on {request.device}")
    return Answer()


def dense_rows(request: AttentionRequest) -> Answer:
    """Spatial or temporal attention of whole samples without text."""
    dense = request.index is not None and not request.ragged and len(request.shape) == 4
    if not isinstance(request.pattern, (*ROWS, Window)) or not dense:
        return Answer("serves Spatial(), Temporal() and Window() on dense rows")
    if request.index is not None and int(request.index.table[:, 2].sum()):
        return Answer("serves grids without text")
    if isinstance(request.pattern, Window) and (any(request.pattern.shift) or any(map(mod, *_window(request)))):
        return Answer("serves windows that divide the grid, without a shift")
    return Answer()


def _window(request: AttentionRequest) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sides of the grid (the host's copy: nothing waits for the device) and of the window."""
    assert isinstance(request.pattern, Window)
    assert request.index is not None
    return tuple(request.index.table[0, 3:].tolist()), request.pattern.size


def kernel(which: SDPBackend) -> Callable[[Tensor, Tensor, Tensor, AttentionRequest], Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
        with sdpa_kernel(which):
            out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale=request.scale)
        return out.transpose(1, 2)

    return run


def rows(copy: bool) -> Callable[[Tensor, Tensor, Tensor, AttentionRequest], Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
        there, back, sizes = _rearrangements(request)
        q, k, v = (rearrange(x, there, **sizes) for x in (q, k, v))
        if copy:
            q, k, v = (x.contiguous() for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=request.scale)
        out = rearrange(out, back, b=request.shape[0], **sizes)
        return out.contiguous() if copy else out

    return run


def _rearrangements(request: AttentionRequest) -> tuple[str, str, dict[str, int]]:
    """How tokens become rows of groups, and back, with the sizes that einops cannot infer."""
    assert request.index is not None
    if not isinstance(request.pattern, Window):
        return *ROWS[type(request.pattern)], {"t": int(request.index.table[0, 3])}
    (t, h, w), (i, j, k) = _window(request)
    tokens, rows = "b (t i y j x k) h d", "(b t y x) h (i j k) d"
    sizes = {"t": t // i, "y": h // j, "x": w // k, "i": i, "j": j, "k": k}
    return f"{tokens} -> {rows}", f"{rows} -> {tokens}", sizes


@backend("masked")
def masked(q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
    key = request.index, request.pattern
    if key not in MASKS:
        MASKS.clear()
        MASKS[key] = mask_of(request)
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    packed = q.ndim == 3
    if packed:
        q, k, v = (x[None] for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=MASKS[key], scale=request.scale)
    return (out[0] if packed else out).transpose(-3, -2)


for _name, _which in KERNELS.items():
    backend(_name, partial(dense_joint, _which))(kernel(_which))
backend("permuted", dense_rows)(rows(copy=True))
backend("strided", dense_rows)(rows(copy=False))
