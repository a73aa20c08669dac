"""Sines and cosines of the pixels beside them, by which an encoder sees small differences (arXiv:2006.10739).

Activations are ``(b, c, t, h, w)``.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["FourierFeatures"]


class FourierFeatures(nn.Module):
    """``x``, then ``sin(2π·2^k·x)`` and then ``cos(2π·2^k·x)`` of each channel, for each octave k in turn.

    The angles are taken in at least float32.

    Args:
        octaves: the values of k.

    Example:
        >>> x = torch.full((1, 1, 1, 1, 1), 1 / 6, dtype=torch.float64)
        >>> FourierFeatures([0])(x).flatten().round(decimals=3).tolist()
        [0.167, 0.866, 0.5]
    """

    def __init__(self, octaves: Sequence[int]) -> None:
        super().__init__()
        self.octaves = tuple(octaves)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h w"]:
        """``1 + 2·octaves`` times the channels."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        angles = torch.stack([wide * (2 * math.pi * 2.0**k) for k in self.octaves], 2).flatten(1, 2)
        return torch.cat([wide, angles.sin(), angles.cos()], 1).to(x.dtype)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
