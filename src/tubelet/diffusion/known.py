"""Known tokens: frames that are given, stay at noise level 0 and are returned bit for bit.

The noise level is per row, as in diffusion forcing (Chen et al., 2024, arXiv:2407.01392): 0 for what is known, the
sampling time for the rest. Shapes: patches ``(*lead, c)``, masks as ``Rows`` of booleans.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from tubelet.diffusion.predictions import level
from tubelet.layout import Rows

__all__ = ["Known"]


@dataclass(frozen=True, eq=False)
class Known:
    """Which tokens are given, and their values: image to video, extension, interpolation.

    Args:
        mask: booleans per sample, frame or token, from ``layout.rows(flags, level)``; True is known.
        values: patches ``(*lead, c)``; read only where the mask is True.

    Raises:
        ValueError: ``mask`` does not hold booleans.

    Example:
        >>> from tubelet.diffusion import Process, sample
        >>> from tubelet.layout import Grid, TokenLayout
        >>> layout = TokenLayout.packed([Grid(2, 1, 1)])
        >>> known = Known(layout.rows(torch.tensor([True, False]), "frame"), torch.full((2, 3), 7.0))
        >>> known.levels(torch.tensor(0.5)).expand()
        tensor([0.0000, 0.5000])
        >>> process, start = Process(), known.apply(torch.zeros(2, 3))
        >>> sample(lambda x, t: x + 1, start, process.times(1), process=process, rows=known.levels).tolist()
        [[7.0, 7.0, 7.0], [-1.0, -1.0, -1.0]]
    """

    mask: Rows
    values: Float[Tensor, "*lead c"]

    def __post_init__(self) -> None:
        if self.mask.values.dtype != torch.bool:
            raise ValueError(f"mask must hold torch.bool, got {self.mask.values.dtype}")

    @property
    def tokens(self) -> Bool[Tensor, "*lead"]:
        """True at each known token."""
        like = self.values[..., 0]
        return level(self.mask, like).expand(like.shape)

    def apply(self, x: Shaped[Tensor, "*lead c"]) -> Shaped[Tensor, "*lead c"]:
        """``x`` with the known values in place.

        Raises:
            ValueError: ``x`` has another shape than the values.
        """
        if x.shape != self.values.shape:
            raise ValueError(f"x has shape {tuple(x.shape)}, but the known values have {tuple(self.values.shape)}")
        return torch.where(level(self.mask, x), self.values.to(x.dtype), x)

    def levels(self, t: Float[Tensor, "*r"]) -> Rows:
        """Noise levels: 0 where known, ``t`` (one scalar, or one value per row) elsewhere.

        Raises:
            ValueError: ``t`` has more values than one, but not one per row of the mask.
        """
        rows = self.mask.values.shape
        if t.numel() != 1 and t.shape != rows:
            raise ValueError(f"t has shape {tuple(t.shape)}, but the mask has rows of shape {tuple(rows)}")
        return self.mask.map(lambda known: torch.where(known, torch.zeros_like(t), t))
