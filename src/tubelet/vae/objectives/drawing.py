"""Which frames of a clip a loss looks at, so that long clips cost no more than short ones.

Both ways of drawing give each sample of a batch frames of its own, as indices ``(b, k)`` in order.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelet.vae.objectives.checks import check_count

__all__ = ["Draw", "draw_frames", "draw_window", "take_frames"]

Draw = Callable[[int, int, torch.Generator | None], Tensor]
"""Indices from the numbers of clips and frames. Example: ``functools.partial(draw_window, 16)``."""


def draw_frames(
    count: int, batch: int, frames: int, generator: torch.Generator | None = None
) -> Int[Tensor, "batch least"]:
    """``min(count, frames)`` different frames of each clip, each as likely as any other.

    Raises:
        ValueError: a ``count`` or ``frames`` that is no whole number of at least 1.

    Example:
        >>> draw_frames(5, batch=1, frames=3).tolist()
        [[0, 1, 2]]
    """
    check_count("count", count)
    check_count("frames", frames)
    device = None if generator is None else generator.device
    order = torch.rand(batch, frames, generator=generator, device=device).argsort(1)
    return order[:, :count].sort(1).values


def draw_window(
    count: int, batch: int, frames: int, generator: torch.Generator | None = None
) -> Int[Tensor, "batch least"]:
    """``min(count, frames)`` frames in a row of each clip, each start as likely as any other.

    Raises:
        ValueError: a ``count`` or ``frames`` that is no whole number of at least 1.

    Example:
        >>> starts = draw_window(2, batch=100, frames=3)[:, 0]
        >>> starts.unique().tolist()
        [0, 1]
    """
    check_count("count", count)
    check_count("frames", frames)
    device = None if generator is None else generator.device
    count = min(count, frames)
    start = torch.randint(frames - count + 1, (batch, 1), generator=generator, device=device)
    return start + torch.arange(count, device=device)


def take_frames(video: Float[Tensor, "b c t h w"], index: Int[Tensor, "b k"]) -> Float[Tensor, "b c k h w"]:
    """The frames of each clip that its row of ``index`` names.

    Raises:
        ValueError: a video of another rank, an index that is not a row of whole numbers for each clip, or a frame that
            a clip does not have.

    Example:
        >>> clips = torch.arange(6.0).reshape(2, 1, 3, 1, 1)
        >>> take_frames(clips, torch.tensor([[0, 2], [1, 2]])).flatten().tolist()
        [0.0, 2.0, 4.0, 5.0]
    """
    if video.ndim != 5:
        raise ValueError(f"video must be (b, c, t, h, w), got shape {tuple(video.shape)}")
    if index.ndim != 2 or len(index) != len(video) or index.is_floating_point():
        raise ValueError(
            f"index must have a row of whole numbers for each of {len(video)} clips, got {index.dtype} of shape "
            f"{tuple(index.shape)}"
        )
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < video.shape[2]):
        raise ValueError(f"index must name frames from 0 to {video.shape[2] - 1}, got {index.tolist()}")
    rows = torch.arange(len(video), device=video.device)[:, None]
    return video.transpose(1, 2)[rows, index.to(video.device)].transpose(1, 2)
