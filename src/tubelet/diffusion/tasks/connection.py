"""Connecting two clips by the frames between them. Shapes: clips ``(c, n, h, w)``."""

from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.known import Known
from tubelet.diffusion.tasks.placing import place

__all__ = ["connect"]


def connect(first: Float[Tensor, "c n h w"], last: Float[Tensor, "c m h w"], frames: int) -> Known:
    """A video of ``frames`` frames that begins with one clip and ends with another, or with one image and another.

    Raises:
        ValueError: the clips differ in channels or sides, have more than ``frames`` frames together, or overlap.

    Example:
        >>> import torch
        >>> connect(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2, 2), frames=5).tokens[:, 0, 0].tolist()
        [True, False, False, True, True]
    """
    if first.shape[1] + last.shape[1] > frames:
        raise ValueError(f"clips of {first.shape[1]} and {last.shape[1]} frames do not fit into frames={frames}")
    return place({0: first, frames - last.shape[1]: last}, frames)
