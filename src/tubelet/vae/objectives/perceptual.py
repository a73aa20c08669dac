"""A distance of frames as a training loss, on a few frames of each clip so that long clips cost no more.

The frames are drawn without replacement, each as often as any other, so the loss is an unbiased estimate of the mean
over all frames. Videos are ``(b, c, t, h, w)`` in [-1, 1].
"""

from collections.abc import Callable

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["draw_frames", "perceptual_loss"]


def draw_frames(
    batch: int, frames: int, count: int, generator: torch.Generator | None = None
) -> Int[Tensor, "batch least"]:
    """Which ``min(count, frames)`` frames of each clip are looked at, in order; all different.

    Raises:
        ValueError: ``count`` below 1.

    Example:
        >>> draw_frames(1, 3, 5).tolist()
        [[0, 1, 2]]
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    device = None if generator is None else generator.device
    order = torch.rand(batch, frames, generator=generator, device=device).argsort(1)
    return order[:, :count].sort(1).values


def perceptual_loss(
    distance: Callable[[Tensor, Tensor], Tensor],
    decoded: Float[Tensor, "b c t h w"],
    video: Float[Tensor, "b c t h w"],
    frames: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """The mean ``distance`` of decoded frames from the originals.

    Args:
        distance: of pairs of videos with three channels, one number each, such as :class:`tubelet.metrics.LPIPS`.
        decoded: what the autoencoder made. A grey video is judged as three equal channels.
        video: the original.
        frames: how many frames of each clip are judged; None for all.
        generator: what they are drawn with.

    Raises:
        ValueError: other shapes, or ``frames`` below 1.

    Example:
        >>> from tubelet.metrics import LPIPS
        >>> a, b = torch.rand(2, 2, 3, 9, 16, 16)
        >>> perceptual_loss(LPIPS((4, 4, 8, 8, 8)), a, b, frames=2).shape
        torch.Size([])
    """
    if decoded.shape != video.shape:
        raise ValueError(f"decoded has shape {tuple(decoded.shape)}, but video has {tuple(video.shape)}")
    if frames is not None:
        index = draw_frames(video.shape[0], video.shape[2], frames, generator).to(video.device)
        decoded, video = _pick(decoded, index), _pick(video, index)
    return distance(_rgb(decoded), _rgb(video)).mean()


def _pick(video: Tensor, index: Tensor) -> Tensor:
    """The frames of ``index`` ``(b, k)`` of each video."""
    return torch.stack([clip[:, chosen] for clip, chosen in zip(video, index, strict=True)])


def _rgb(video: Tensor) -> Tensor:
    return repeat(video, "b 1 t h w -> b c t h w", c=3) if video.shape[1] == 1 else video
