"""Norm + SiLU + padding in plain PyTorch: what the kernels are compared with, and what runs where there is no GPU."""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Before", "ChannelNormKind", "Edges", "folded", "padded", "reference"]

ChannelNormKind = Literal["rms", "group"]
"""Over the channels of each position, or over groups of channels and many positions. Example: ``"rms"``."""
Before = Literal["copies", "zeros"]
"""What stands before the first frame of a video. Example: ``"copies"``."""
Edges = Literal["zeros", "replicate"]
"""What stands round a frame. Example: ``"zeros"``."""


def reference(
    x: Float[Tensor, "b c t h w"],
    norm: ChannelNormKind,
    groups: int | None,
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
    per_frame: bool,
) -> Float[Tensor, "b c t h w"]:
    """``silu(norm(x))`` in float32 or better, rounded once.

    Example:
        >>> x = torch.tensor([3.0, -3.0]).reshape(1, 2, 1, 1, 1)
        >>> reference(x, "rms", None, None, None, 1e-6, True).flatten().round(decimals=3).tolist()
        [0.7310000061988831, -0.26899999380111694]
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if norm == "rms":
        normed = wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + eps)
    elif per_frame:
        assert groups is not None
        frames = F.group_norm(rearrange(wide, "b c t h w -> (b t) c h w"), groups, eps=eps)
        normed = rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])
    else:
        assert groups is not None
        normed = F.group_norm(wide, groups, eps=eps)
    if weight is not None:
        normed = normed * weight.reshape(-1, 1, 1, 1)
    if bias is not None:
        normed = normed + bias.reshape(-1, 1, 1, 1)
    return F.silu(normed).to(x.dtype)


def padded(
    y: Float[Tensor, "b c t h w"],
    state: Float[Tensor, "b c s h w"] | None,
    frames: int,
    before: Before,
    around: tuple[int, int],
    edges: Edges,
) -> Float[Tensor, "b c t2 h2 w2"]:
    """The frames before ``y``, then ``y``, with positions round every frame.

    Example:
        >>> padded(torch.ones(1, 1, 1, 2, 2), None, 2, "copies", (1, 1), "zeros").sum((3, 4)).tolist()
        [[[4.0, 4.0, 4.0]]]
    """
    if state is None:
        first = y[:, :, :1].expand(-1, -1, frames, -1, -1)
        state = first if before == "copies" else torch.zeros_like(first)
    layout = torch.contiguous_format if y.is_contiguous() else torch.channels_last_3d
    if frames:
        y = torch.cat([state.to(y.dtype, memory_format=layout), y], 2)
    if any(around):
        sides = (around[1], around[1], around[0], around[0], 0, 0)
        y = F.pad(y, sides, mode="constant" if edges == "zeros" else edges)
    return y


def folded(grad: Float[Tensor, "b c t h2 w2"], around: tuple[int, int], edges: Edges) -> Float[Tensor, "b c t h w"]:
    """The gradient of frames from that of padded ones: edges get what stands for them.

    Example:
        >>> folded(torch.ones(1, 1, 1, 3, 4), (0, 1), "replicate").flatten().tolist()
        [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    """
    for axis, pad in ((3, around[0]), (4, around[1])):
        if not pad:
            continue
        inner = grad.narrow(axis, pad, grad.shape[axis] - 2 * pad)
        if edges == "replicate":
            inner = inner.clone()
            inner.narrow(axis, 0, 1).add_(grad.narrow(axis, 0, pad).sum(axis, keepdim=True))
            last = grad.narrow(axis, grad.shape[axis] - pad, pad)
            inner.narrow(axis, inner.shape[axis] - 1, 1).add_(last.sum(axis, keepdim=True))
        grad = inner
    return grad
