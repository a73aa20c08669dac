"""What resizing alone keeps of a video: the plainest rival of an autoencoder, at as many numbers as its latents.

Videos are ``(b, c, t, h, w)`` in [-1, 1].
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["bicubic_code"]


def bicubic_code(
    video: Float[Tensor, "b c t h w"], numbers: int, *, frames: int | None = None
) -> Float[Tensor, "b c t h w"]:
    """The video scaled down to at most so many numbers and up again, bicubic in space and linear in time.

    On the way down both filters are antialiased; what comes up is clamped to [-1, 1].

    Args:
        video: one size.
        numbers: of each video of the batch; for a fair comparison with latents, as many as they are.
        frames: how many are kept. Default: for each video, of every number up to 16 and every fourth part more beyond,
            the one that leaves the least squared error; the original decides, so the rival makes no bad choice.

    Raises:
        ValueError: fewer numbers than the channels of one pixel for each frame kept, or frames outside [1, t].

    Example:
        >>> video = torch.linspace(-1, 1, 16).expand(1, 3, 5, 16, 16)
        >>> bicubic_code(video, 3 * 5 * 8 * 8).shape
        torch.Size([1, 3, 5, 16, 16])
    """
    if frames is None:
        return torch.cat([_best(clip[None], numbers) for clip in video])
    if not 1 <= frames <= video.shape[2]:
        raise ValueError(f"frames must lie in [1, {video.shape[2]}], got {frames}")
    height, width = _sides(video, numbers, frames)
    small = _in_time(_in_space(video, height, width), frames)
    return _in_space(_in_time(small, video.shape[2]), *video.shape[3:]).clamp(-1, 1)


def _best(clip: Float[Tensor, "1 c t h w"], numbers: int) -> Float[Tensor, "1 c t h w"]:
    most = min(clip.shape[2], numbers // clip.shape[1])
    if most < 1:
        raise ValueError(f"numbers must be at least those of one pixel, {clip.shape[1]}, got {numbers}")
    counts = [1]
    while counts[-1] < most:
        counts.append(min(most, counts[-1] + max(1, (counts[-1] >= 16) * counts[-1] // 4)))
    codes = (bicubic_code(clip, numbers, frames=frames) for frames in counts)
    return min(codes, key=lambda code: float((code - clip).square().mean()))


def _sides(video: Tensor, numbers: int, frames: int) -> tuple[int, int]:
    """The largest height and width, nearly of the video's shape, with which so many frames hold no more numbers."""
    channels, height, width = video.shape[1], *video.shape[3:]
    area = numbers // (channels * frames)
    if area < 1:
        raise ValueError(f"numbers must be at least {channels * frames} for {frames} frames, got {numbers}")
    down = min(height, area, max(1, round(math.sqrt(area * height / width))))
    return down, min(width, area // down)


def _in_space(video: Tensor, height: int, width: int) -> Tensor:
    if video.shape[3:] == (height, width):
        return video
    smaller = height < video.shape[3] or width < video.shape[4]
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    y = F.interpolate(frames, size=(height, width), mode="bicubic", antialias=smaller)
    return rearrange(y, "(b t) c h w -> b c t h w", b=len(video))


def _in_time(video: Tensor, frames: int) -> Tensor:
    if video.shape[2] == frames:
        return video
    h, w = video.shape[3:]
    lines = rearrange(video, "b c t h w -> b c (h w) t")
    y = F.interpolate(lines, size=(h * w, frames), mode="bilinear", antialias=frames < video.shape[2])
    return rearrange(y, "b c (h w) t -> b c t h w", h=h)
