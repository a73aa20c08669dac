"""Extension forward and backward, image to video, and text to video. Shapes: clips ``(c, n, h, w)``."""

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.known import Known
from tubelet.diffusion.tasks.placing import place

__all__ = ["extend", "nothing", "prepend"]


def nothing(like: Float[Tensor, "c t h w"]) -> Known:
    """Text to video: a video of the shape of ``like`` of which nothing is known.

    Example:
        >>> bool(nothing(torch.zeros(1, 2, 4, 4)).tokens.any())
        False
    """
    mask = torch.zeros(like.shape[1:], dtype=torch.bool, device=like.device)
    return Known.of_video(torch.zeros_like(like), mask)


def extend(clip: Float[Tensor, "c n h w"], frames: int) -> Known:
    """A video of ``frames`` frames that begins with the clip; with a clip of one frame, image to video.

    Raises:
        ValueError: the clip has more frames.

    Example:
        >>> extend(torch.zeros(1, 1, 2, 2), frames=3).tokens[:, 0, 0].tolist()
        [True, False, False]
    """
    return place({0: clip}, frames)


def prepend(clip: Float[Tensor, "c n h w"], frames: int) -> Known:
    """A video of ``frames`` frames that ends with the clip: extension backward.

    Raises:
        ValueError: the clip has more frames.

    Example:
        >>> prepend(torch.zeros(1, 2, 2, 2), frames=3).tokens[:, 0, 0].tolist()
        [False, True, True]
    """
    return place({-clip.shape[1]: clip}, frames)
