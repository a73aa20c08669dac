"""The frames of a layout as samples of their own, and as single tokens: what models of frames, then of time, need.

Tokens of a frame stand together in raster order, so that frames are another reading of the same axis and nothing moves
(the factorised encoder of ViViT, Arnab et al., 2021, arXiv:2103.15691, section 3.3, model 2).
"""

import torch
from jaxtyping import Int
from torch import Tensor

from tubelet.layout.index import LayoutIndex, whole_samples

__all__ = ["frames_apart", "frames_as_tokens"]


def frames_apart(index: LayoutIndex) -> LayoutIndex:
    """The same tokens with every frame a sample of its own, of one frame.

    In a layout with a capacity there is room for as many frames as the capacity has. Compiled code may ask.

    Returns:
        An index of shape ``(n,)`` for a packed axis; of a dense batch ``(b·t, h·w)``, the reading of its tokens as
        ``x.reshape(*frames.shape, -1)``.

    Raises:
        ValueError: samples have text, or dropped tokens, or rows with padding.

    Example:
        >>> from tubelet.layout import Grid, TokenLayout
        >>> frames_apart(TokenLayout.packed([Grid(2, 1, 2), Grid(1, 1, 3)]).on("cpu")).sample
        tensor([0, 0, 1, 1, 2, 2, 2])
        >>> frames_apart(TokenLayout.dense(2, Grid(3, 2, 2)).on("cpu")).shape
        (6, 4)
    """
    _check(index)
    owner, number, real = _frames(index)
    h, w = torch.where(real[:, None], index.table[owner, 4:], 0).unbind(1)
    start = torch.where(real, index.table[owner, 0] + number * h * w, index.table[:, 1].sum())
    table = torch.stack([start, h * w, torch.zeros_like(h), real.long(), h, w], dim=1)
    rows = len(table)
    shape = (rows, index.sample.numel() // rows) if index.dense else index.shape
    return whole_samples(table, shape, index.frames, rows, _longest(index, shape), index.dense, index.sample.device)


def frames_as_tokens(index: LayoutIndex) -> LayoutIndex:
    """One token for each frame: grids of ``(t, 1, 1)``, a token in the order of :func:`frames_apart`'s samples.

    Returns:
        An index of shape ``(f,)`` for a packed axis, ``(b, t)`` for a dense batch.

    Raises:
        ValueError: as :func:`frames_apart`.

    Example:
        >>> from tubelet.layout import Grid, TokenLayout
        >>> frames_as_tokens(TokenLayout.packed([Grid(2, 1, 2), Grid(1, 1, 3)]).on("cpu")).coords[:, 0]
        tensor([0, 1, 0])
    """
    _check(index)
    frames = index.table[:, 3]
    one = (frames > 0).long()
    table = torch.stack([frames.cumsum(0) - frames, frames, torch.zeros_like(frames), frames, one, one], dim=1)
    rows = index.frame_sample.shape[0]
    shape = (index.shape[0], rows // index.shape[0]) if index.dense else (rows,)
    return whole_samples(table, shape, index.samples, rows, _longest(index, shape), index.dense, index.sample.device)


def _frames(index: LayoutIndex) -> tuple[Int[Tensor, " f"], Int[Tensor, " f"], Tensor]:
    """On the host: the sample of each frame, its number there, and whether it is more than room for one."""
    frames = index.table[:, 3]
    ends, count = frames.cumsum(0), torch.arange(index.frame_sample.shape[0])
    owner = torch.searchsorted(ends, count, right=True).clamp(max=len(frames) - 1)
    return owner, count - (ends - frames)[owner], count < ends[-1]


def _longest(index: LayoutIndex, shape: tuple[int, ...]) -> int:
    """No sample is longer: that of an axis is only bounded, since compiled code must not read it."""
    return shape[-1] if index.dense else index.max_seqlen


def _check(index: LayoutIndex) -> None:
    """Refuse what has no whole frames end to end; numbers are not looked at in compiled code."""
    if index.kept is not None:
        raise ValueError(f"index of {index.shape} has dropped tokens: its frames are not whole")
    if len(index.shape) == 2 and not index.dense:
        raise ValueError(f"index has rows {index.shape} with padding: lay its samples end to end by TokenLayout.packed")
    if torch.compiler.is_compiling():
        return
    if bool(index.table[:, 2].any()):
        raise ValueError(f"index has samples with text of {index.table[:, 2].tolist()} tokens, which are of no frame")
    if index.dense and bool((index.table[1:, 3:] != index.table[0, 3:]).any()):
        raise ValueError(f"index has rows of one length but of grids {index.table[:, 3:].tolist()}, which differ")
