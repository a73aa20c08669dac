"""Attention inside each of several packed samples: segments, one masked call, or a Python loop.

``segments`` is `tubelet.attend` on a packed layout; ``masked`` is one `scaled_dot_product_attention` over the whole
axis with a block-diagonal boolean mask; ``loop`` calls it once a sample. All get the same q, k, v
``(n, heads, head_dim)``.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import Case
from tubelet import Grid, TokenLayout, attend

__all__ = ["cases"]

MIXES = {
    "images and clips": [
        *[Grid(1, 8, 8)] * 4,
        *[Grid(1, 12, 16)] * 2,
        *[Grid(3, 8, 12)] * 2,
        *[Grid(5, 8, 8)] * 2,
        Grid(4, 12, 8),
    ],
    "many short clips": [Grid(3, 4, 4)] * 24 + [Grid(2, 4, 4)] * 24 + [Grid(1, 4, 4)] * 16,
}
"""Token grids by name."""


def cases(device: str, heads: int = 6, head_dim: int = 64) -> Iterator[list[Case]]:
    """A group of forward cases and one of forward and backward for each mix."""
    for name, grids in MIXES.items():
        layout = TokenLayout.packed(grids)
        generator = torch.Generator().manual_seed(0)
        qkv = torch.randn(3, *layout.shape, heads, head_dim, generator=generator).to(device)
        about = f"{len(grids)} samples, {layout.width} tokens, {heads} heads of {head_dim}, float32"
        for backward in (False, True):
            direction = "forward + backward" if backward else "forward"
            yield _group(f"attention, {name}: {direction} ({about})", qkv, layout, backward)


def _group(title: str, qkv: Tensor, layout: TokenLayout, backward: bool) -> list[Case]:
    index = layout.on(qkv.device)
    mask = index.sample[:, None] == index.sample[None]
    ways: dict[str, Callable[..., Tensor]] = {
        "segments (tubelet)": lambda q, k, v: attend(q, k, v, layout=index),
        "masked": lambda q, k, v: _sdpa(q, k, v, mask),
        "loop": lambda q, k, v: _loop(q, k, v, layout.lengths),
    }
    exact = _run(lambda q, k, v: attend(q, k, v, layout=index, backend="reference"), qkv.double(), backward)
    return [
        Case(title, name, partial(_run, way, qkv, backward), exact, layout.width, 1e-5) for name, way in ways.items()
    ]


def _run(way: Callable[..., Tensor], qkv: Tensor, backward: bool) -> Tensor:
    """The output, or the gradients of its sum of squares."""
    if not backward:
        return way(*qkv)
    leaf = qkv.detach().requires_grad_()
    torch.autograd.backward(way(*leaf.unbind()).square().sum())
    return torch.empty(0) if leaf.grad is None else leaf.grad


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)


def _loop(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    parts = zip(*(torch.split(x, list(lengths)) for x in (q, k, v)), strict=True)
    return torch.cat([_sdpa(*part) for part in parts])
