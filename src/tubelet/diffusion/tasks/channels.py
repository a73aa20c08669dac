"""Image to video by channels beside the noisy latents, as I2VGen-XL has them. Shapes: ``(c, t, h, w)``.

W.A.L.T's channels, the known values and their mask, are :attr:`tubelet.diffusion.Known.channels`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["image_channels"]


def image_channels(image: Float[Tensor, "c 1 h w"], frames: int) -> Float[Tensor, "c t h w"]:
    """The image in the first frame, and in each other frame, everywhere, its place: ``number/(frames - 1)``.

    So the released I2VGen-XL (Zhang et al., 2023, arXiv:2311.04145) is told the image and how far off each frame is;
    its network embeds the result and puts it beside the noisy latents.

    Args:
        image: one frame of latents.
        frames: of the video.

    Raises:
        ValueError: ``image`` has another number of frames than one, or ``frames`` is smaller than 1.

    Example:
        >>> image_channels(torch.full((1, 1, 1, 1), 7.0), frames=3).flatten().tolist()
        [7.0, 0.5, 1.0]
    """
    if image.shape[1] != 1 or frames < 1:
        raise ValueError(f"image must be one frame of at least one, got {image.shape[1]} and frames={frames}")
    place = torch.linspace(0, 1, frames, dtype=image.dtype, device=image.device)[1:]
    return torch.cat([image, place[:, None, None].expand(image.shape[0], -1, *image.shape[2:])], dim=1)
