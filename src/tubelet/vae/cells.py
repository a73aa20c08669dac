"""Space and time to channels and back without weights: pixel shuffles in three dimensions (arXiv:1609.05158).

Channels stand in the order ``c pt ph pw``. Frames go by whole groups; :class:`tubelet.vae.Lead` fills the first.
"""

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

from tubelet.vae.formats import rearranged

__all__ = ["CellsToChannels", "ChannelsToCells", "TileChannels"]

_FOLDED, _CELLS = "b (c pt ph pw) t h w", "b c (t pt) (h ph) (w pw)"


class CellsToChannels(nn.Module):
    """``temporal × spatial × spatial`` positions to channels.

    Example:
        >>> import torch
        >>> CellsToChannels(2, 4)(torch.zeros(1, 3, 6, 8, 8)).shape
        torch.Size([1, 96, 3, 2, 2])
    """

    def __init__(self, temporal: int, spatial: int) -> None:
        super().__init__()
        self.sides = {"pt": temporal, "ph": spatial, "pw": spatial}

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t2 h2 w2"]:
        """Fewer positions, more channels."""
        return rearranged(x, f"{_CELLS} -> {_FOLDED}", **self.sides)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class ChannelsToCells(nn.Module):
    """Channels to ``temporal × spatial × spatial`` positions, the inverse of `CellsToChannels`.

    Example:
        >>> import torch
        >>> x = torch.randn(1, 3, 6, 8, 8)
        >>> torch.equal(ChannelsToCells(2, 4)(CellsToChannels(2, 4)(x)), x)
        True
    """

    def __init__(self, temporal: int, spatial: int) -> None:
        super().__init__()
        self.sides = {"pt": temporal, "ph": spatial, "pw": spatial}

    def forward(self, x: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        """More positions, fewer channels."""
        return rearranged(x, f"{_FOLDED} -> {_CELLS}", **self.sides)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class TileChannels(nn.Module):
    """All channels again and again: ``0 1 0 1`` of ``0 1``.

    Example:
        >>> import torch
        >>> TileChannels(2)(torch.arange(2.0).reshape(1, 2, 1, 1, 1)).flatten().tolist()
        [0.0, 1.0, 0.0, 1.0]
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h w"]:
        """``times`` as many channels."""
        return x.repeat(1, self.times, 1, 1, 1)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
