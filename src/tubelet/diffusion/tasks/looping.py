"""A video whose end joins its start. Shapes: clips ``(c, n, h, w)``."""

from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.known import Known
from tubelet.diffusion.tasks.placing import place

__all__ = ["loop"]


def loop(clip: Float[Tensor, "c n h w"], frames: int, joined: int = 1) -> Known:
    """A video that begins with the clip and ends with the clip's first ``joined`` frames: a seamless loop.

    Played round and round without its last ``joined`` frames it has a period of ``frames - joined``. More than one
    joined frame makes the motion continuous as well.

    Raises:
        ValueError: ``joined`` is not from 1 to the clip's frames, or the parts do not fit into ``frames``.

    Example:
        >>> import torch
        >>> known = loop(torch.arange(2.0).reshape(1, 2, 1, 1), frames=5)
        >>> known.tokens.flatten().tolist(), known.video.flatten().tolist()
        ([True, True, False, False, True], [0.0, 1.0, 0.0, 0.0, 0.0])
    """
    if not 1 <= joined <= clip.shape[1]:
        raise ValueError(f"joined must be from 1 to the clip's {clip.shape[1]} frames, got {joined}")
    if clip.shape[1] + joined > frames:
        raise ValueError(f"a clip of {clip.shape[1]} frames and joined={joined} do not fit into frames={frames}")
    return place({0: clip, frames - joined: clip[:, :joined]}, frames)
