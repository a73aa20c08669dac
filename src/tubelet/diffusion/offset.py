"""Offset noise: noise that shifts whole frames or clips, so that a model learns their brightness.

At high noise levels the mean of a clip still shows through independent noise; a common offset hides it (Guttenberg,
2023, "Diffusion with offset noise"; I2VGen-XL adds one per frame and channel, with a strength of 0.1).
Shapes: patches ``(*lead, p·c)`` with channels last.
"""

from jaxtyping import Float
from torch import Tensor

from tubelet.layout import Rows

__all__ = ["offset_noise"]


def offset_noise(noise: Float[Tensor, "*lead p"], offset: Rows, strength: float = 0.1) -> Float[Tensor, "*lead p"]:
    """``noise + strength·offset``, the offset equal in all cells of a row and different in each channel.

    Its variance is ``1 + strength²``. Training alone uses it; sampling starts from plain noise.

    Args:
        noise: of patches whose features end in the channels.
        offset: standard normal rows ``(r, channels)``, made by ``layout.rows(values, "sample" | "frame")``.
        strength: the offset's deviation.

    Raises:
        ValueError: the rows have no channels, or the patches' features are not a multiple of the channels.

    Example:
        >>> import torch
        >>> offset_noise(torch.zeros(1, 4), Rows(torch.tensor([[1.0, -1.0]])), 0.5)
        tensor([[ 0.5000, -0.5000,  0.5000, -0.5000]])
    """
    if offset.values.ndim != 2:
        raise ValueError(f"offset must have rows (r, channels), got values of shape {tuple(offset.values.shape)}")
    features, channels = noise.shape[-1], offset.values.shape[-1]
    if features % channels:
        raise ValueError(f"noise has {features} features a patch, not a multiple of the offset's {channels} channels")
    cells = noise.reshape(*noise.shape[:-1], -1, channels)
    return (cells + strength * offset.expand().to(noise.dtype).unsqueeze(-2)).reshape(noise.shape)
