"""Frames between given frames: interpolation, temporal super-resolution. Shapes: clips ``(c, n, h, w)``."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.known import Known
from tubelet.diffusion.tasks.placing import place

__all__ = ["interpolate", "upsample"]


def interpolate(keyframes: Float[Tensor, "c n h w"], at: Sequence[int], frames: int) -> Known:
    """A video whose frames number ``at[i]``, or so many from the end, are the keyframes.

    Raises:
        ValueError: not one place a keyframe, a place twice, or one outside of the frames.

    Example:
        >>> import torch
        >>> interpolate(torch.ones(1, 2, 1, 1), at=[0, 3], frames=4).tokens.flatten().tolist()
        [True, False, False, True]
    """
    if len(at) != keyframes.shape[1] or len({place % frames for place in at}) != len(at):
        raise ValueError(f"at must give each of the {keyframes.shape[1]} keyframes a place of its own, got {list(at)}")
    return place({number: keyframes[:, i : i + 1] for i, number in enumerate(at)}, frames)


def upsample(clip: Float[Tensor, "c n h w"], factor: int) -> Known:
    """Temporal super-resolution: ``factor - 1`` unknown frames between each two of the clip, ``1 + factor·(n - 1)``.

    Raises:
        ValueError: ``factor`` is smaller than 1.

    Example:
        >>> import torch
        >>> upsample(torch.ones(1, 3, 1, 1), factor=2).tokens.flatten().tolist()
        [True, False, True, False, True]
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}")
    frames = 1 + factor * (clip.shape[1] - 1)
    return interpolate(clip, range(0, frames, factor), frames)
