"""In-painting, and completion in space and time. Shapes: videos ``(c, t, h, w)``."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tubelet.diffusion.known import Known

__all__ = ["inpaint", "outpaint"]


def inpaint(video: Float[Tensor, "c t h w"], hole: Bool[Tensor, "#t #h #w"]) -> Known:
    """The video outside of a hole, which may be of any shape in space and time.

    Args:
        video: what the hole covers is not read.
        hole: True where the video is to be made; an axis of size 1 is meant for all of that axis.

    Raises:
        ValueError: the hole holds no booleans, or does not broadcast to the video's sides.

    Example:
        >>> right_half = torch.tensor([[[False, True]]])
        >>> inpaint(torch.ones(1, 2, 1, 2), right_half).video.flatten().tolist()
        [1.0, 0.0, 1.0, 0.0]
    """
    if hole.dtype != torch.bool:
        raise ValueError(f"hole must hold torch.bool, got {hole.dtype}")
    sides = video.shape[1:]
    if hole.ndim != 3 or any(a not in (1, b) for a, b in zip(hole.shape, sides, strict=True)):
        raise ValueError(f"hole has sides {tuple(hole.shape)}, which do not broadcast to the video's {tuple(sides)}")
    hole = hole.expand(sides)
    return Known.of_video(torch.where(hole, 0, video), ~hole)


def outpaint(video: Float[Tensor, "c t h w"], sides: tuple[int, int], corner: tuple[int, int] = (0, 0)) -> Known:
    """The video on a larger canvas.

    Args:
        video: all of it is known.
        sides: height and width of the canvas.
        corner: row and column where the video's upper left corner lies on it.

    Raises:
        ValueError: the video does not lie within the canvas.

    Example:
        >>> outpaint(torch.ones(1, 1, 1, 1), sides=(1, 3), corner=(0, 1)).tokens.flatten().tolist()
        [False, True, False]
    """
    (top, left), (height, width) = corner, video.shape[2:]
    bottom, right = top + height, left + width
    if min(corner) < 0 or bottom > sides[0] or right > sides[1]:
        raise ValueError(f"a video of {height}x{width} at {tuple(corner)} is not within sides={tuple(sides)}")
    canvas = video.new_zeros(*video.shape[:2], *sides)
    mask = torch.zeros(canvas.shape[1:], dtype=torch.bool, device=video.device)
    canvas[..., top:bottom, left:right], mask[..., top:bottom, left:right] = video, True
    return Known.of_video(canvas, mask)
