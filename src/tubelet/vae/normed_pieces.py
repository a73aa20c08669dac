"""Norms of a video piece by piece, for a convolution in blocks (:mod:`tubelet.vae.blockwise`).

A norm of each position is the same on a piece. One with statistics takes these first, of all that it is given, and
then normalises a piece with them. A norm says so by a method ``pieces(x, *context)``; PyTorch's group norm has its own
function here; whatever else there is, is run whole and cut.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.hooks import heard_inside
from tubelet.vae.blockwise import Pieces, pieces_of_tensor
from tubelet.vae.formats import layout_of

__all__ = ["activated", "frame_statistics", "group_normed", "normed_pieces"]


def normed_pieces(norm: nn.Module, x: Tensor, *context: Any) -> Pieces:
    """Pieces of ``norm(x, *context)``, no views of ``x``.

    Example:
        >>> norm, x = nn.GroupNorm(2, 4), torch.randn(1, 4, 3, 8, 8)
        >>> with torch.no_grad():
        ...     torch.allclose(normed_pieces(norm, x)(1, 3, 0, 4), norm(x)[:, :, 1:, :4], atol=1e-5)
        True
    """
    hooked = heard_inside(norm)
    if hasattr(norm, "pieces") and not hooked:
        made: Pieces = norm.pieces(x, *context)  # type: ignore[operator]
        return made
    if type(norm) is nn.GroupNorm and not hooked:
        mean, var = (part.expand(-1, x.shape[2], -1) for part in _over_frames(*frame_statistics(x, norm.num_groups)))
        return group_normed(norm, x, mean, var)
    whole = pieces_of_tensor(norm(x, *context))
    return lambda *place: _copied(whole, *place)


def activated(pieces: Pieces) -> Pieces:
    """SiLU of pieces, in their place.

    Example:
        >>> activated(pieces_of_tensor(torch.full((1, 1, 1, 1, 1), 100.0)))(0, 1, 0, 1).item()
        100.0
    """
    return lambda *place: _activated(pieces, *place)


def frame_statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of channels in each frame, ``(b, t, groups)``, in at least float32.

    Example:
        >>> [part.shape for part in frame_statistics(torch.randn(2, 4, 3, 8, 8), 2)]
        [torch.Size([2, 3, 2]), torch.Size([2, 3, 2])]
    """
    b, c, t, h, w = x.shape
    wide, eps = torch.promote_types(x.dtype, torch.float32), 1e-6
    ones = torch.ones(c, dtype=wide, device=x.device)
    means, variances = [], []
    for i in range(t):
        frame = _dense(x[:, :, i : i + 1], layout_of(x))
        _, mean, inverse = torch.native_group_norm(frame, ones, torch.zeros_like(ones), b, c, h * w, groups, eps)
        means.append(mean)
        variances.append((inverse.reciprocal().square() - eps).clamp_min(0))
    return torch.stack(means, 1), torch.stack(variances, 1)


def _dense(x: Tensor, layout: torch.memory_format) -> Tensor:
    """A tensor with the strides of a new one of this format; axes of one place may have had any others."""
    x = x.contiguous(memory_format=layout)
    return x.as_strided(x.shape, torch.empty(x.shape, device="meta", memory_format=layout).stride(), x.storage_offset())


def group_normed(norm: nn.GroupNorm, x: Tensor, mean: Tensor, var: Tensor) -> Pieces:
    """Pieces of a group norm with the statistics of each frame, ``(b, t, groups)``.

    Example:
        >>> norm, x = nn.GroupNorm(2, 4), torch.randn(1, 4, 3, 8, 8)
        >>> group_normed(norm, x, *frame_statistics(x, 2))(0, 3, 0, 8).mean((1, 3, 4)).abs().max().item() < 1e-6
        True
    """
    each = norm.num_channels // norm.num_groups
    mean, var = (part.repeat_interleave(each, 2) for part in (mean, var))
    weight, bias = (part.to(mean.dtype) if norm.affine else None for part in (norm.weight, norm.bias))
    return lambda *place: _group_normed(x, mean, var, weight, bias, norm.eps, *place)


def _copied(pieces: Pieces, *place: int) -> Tensor:
    return pieces(*place).clone()


def _activated(pieces: Pieces, *place: int) -> Tensor:
    return F.silu(pieces(*place), inplace=True)


def _group_normed(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    start: int,
    stop: int,
    top: int,
    bottom: int,
) -> Tensor:
    part = x[:, :, start:stop, top:bottom]
    y = torch.empty(part.shape, dtype=x.dtype, device=x.device, memory_format=layout_of(x))
    for i in range(x.shape[0]):
        for frame in range(start, stop):
            place = slice(i, i + 1), slice(None), slice(frame - start, frame - start + 1)
            y[place] = F.batch_norm(part[place], mean[i, frame], var[i, frame], weight, bias, eps=eps)
    return y


def _over_frames(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """The statistics of all frames together, from those of each."""
    return mean.mean(1, keepdim=True), var.mean(1, keepdim=True) + mean.var(1, correction=0, keepdim=True)
