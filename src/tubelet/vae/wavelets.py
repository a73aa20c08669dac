"""Haar wavelets over time, height and width as patches: exact, without weights, each band a channel (Cosmos).

A level turns the pairs ``(a, b)`` of an axis into ``(a + b) / 2`` and ``(a - b) / 2`` for each of the three axes, and
so 2×2×2 cells into eight bands; the next level does so with what stands there (arXiv:2501.03575, section 4.2, which
scales them so that the low band is the mean). Channels stand in the order ``bt bh bw c``, low before high.

Frames go by whole groups; :class:`tubelet.vae.Lead` fills the first.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["BandsToCells", "CellsToBands"]

_TIME, _HEIGHT, _WIDTH = 2, 3, 4


class CellsToBands(nn.Module):
    """``2^levels`` cells of each axis to ``8^levels`` bands.

    Raises:
        ValueError: at the call, sides that ``2^levels`` does not divide.

    Example:
        >>> x = torch.ones(1, 3, 4, 8, 8)
        >>> y = CellsToBands(2)(x)
        >>> y.shape, y[:, :3].unique().item(), y[:, 3:].unique().item()
        (torch.Size([1, 192, 1, 2, 2]), 1.0, 0.0)
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t2 h2 w2"]:
        """Fewer positions, more channels."""
        if any(side % 2**self.levels for side in x.shape[2:]):
            raise ValueError(f"x must have sides that {2**self.levels} divides, not {tuple(x.shape[2:])}")
        for _ in range(self.levels):
            for axis in (_WIDTH, _HEIGHT, _TIME):
                a, b = x.unflatten(axis, (-1, 2)).unbind(axis + 1)  # type: ignore[no-untyped-call]
                x = torch.cat([a + b, a - b], 1) / 2
        return x

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class BandsToCells(nn.Module):
    """``8^levels`` bands to ``2^levels`` cells of each axis, the inverse of `CellsToBands`.

    Example:
        >>> x = torch.randn(1, 3, 4, 8, 8)
        >>> torch.allclose(BandsToCells(2)(CellsToBands(2)(x)), x, atol=1e-6)
        True
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        """More positions, fewer channels."""
        for _ in range(self.levels):
            for axis in (_TIME, _HEIGHT, _WIDTH):
                low, high = x.chunk(2, 1)
                x = torch.stack([low + high, low - high], axis + 1).flatten(axis, axis + 1)
        return x

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
