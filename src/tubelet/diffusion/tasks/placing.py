"""Given frames in their places of a longer video. Shapes: clips ``(c, n, h, w)``, pixels or latents."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.known import Known

__all__ = ["place"]


def place(clips: Mapping[int, Float[Tensor, "c _ h w"]], frames: int) -> Known:
    """A video of which clips are known, each from its frame number on; a negative number counts from the end.

    Where two clips overlap they must agree bit for bit.

    Raises:
        ValueError: no clips, clips of different dtypes, channels or sides, one that does not lie within the frames, or
            two that differ where they overlap.

    Example:
        >>> first, last = torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2, 2)
        >>> known = place({0: first, -2: last}, frames=5)
        >>> known.tokens[:, 0, 0].tolist(), known.video[0, :, 0, 0].tolist()
        ([True, False, False, True, True], [0.0, 0.0, 0.0, 1.0, 1.0])
    """
    if not clips:
        raise ValueError("clips is empty: nothing() has the shape of a video of which nothing is known")
    like = next(iter(clips.values()))
    video = like.new_zeros(like.shape[0], frames, *like.shape[2:])
    mask = torch.zeros(video.shape[1:], dtype=torch.bool, device=like.device)
    for number, clip in clips.items():
        start = number + frames if number < 0 else number
        _check(clip, like, start, frames)
        here = slice(start, start + clip.shape[1])
        if bool((mask[here] & (video[:, here] != clip).any(0)).any()):
            raise ValueError(f"the clip from frame {number} on differs from another that it overlaps")
        video[:, here], mask[here] = clip, True
    return Known.of_video(video, mask)


def _check(clip: Tensor, like: Tensor, start: int, frames: int) -> None:
    if clip.dtype != like.dtype:
        raise ValueError(f"clips must share a dtype, got {like.dtype} and {clip.dtype}")
    if (clip.shape[0], *clip.shape[2:]) != (like.shape[0], *like.shape[2:]):
        raise ValueError(f"clips must share channels and sides, got {tuple(like.shape)} and {tuple(clip.shape)}")
    if start < 0 or start + clip.shape[1] > frames:
        raise ValueError(f"a clip of {clip.shape[1]} frames from frame {start} on is not within {frames} frames")
