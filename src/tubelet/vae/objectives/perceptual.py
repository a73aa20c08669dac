"""A distance of frames as a training loss, on a few frames of each clip so that long clips cost no more.

The frames are drawn without replacement, each as often as any other, so the loss is an unbiased estimate of the mean
over all frames. Videos are ``(b, c, t, h, w)`` in [-1, 1].
"""

from collections.abc import Callable

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from tubelet.vae.objectives.checks import check_alike
from tubelet.vae.objectives.drawing import draw_frames, take_frames

__all__ = ["perceptual_loss"]


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
        ValueError: another rank, two shapes, or ``frames`` that is no whole number of at least 1.

    Example:
        >>> from tubelet.metrics import LPIPS
        >>> a, b = torch.rand(2, 2, 3, 9, 16, 16)
        >>> perceptual_loss(LPIPS((4, 4, 8, 8, 8)), a, b, frames=2).shape
        torch.Size([])
    """
    check_alike(decoded, video)
    if frames is not None:
        index = draw_frames(frames, video.shape[0], video.shape[2], generator)
        decoded, video = take_frames(decoded, index), take_frames(video, index)
    return distance(_rgb(decoded), _rgb(video)).mean()


def _rgb(video: Tensor) -> Tensor:
    return repeat(video, "b 1 t h w -> b c t h w", c=3) if video.shape[1] == 1 else video
