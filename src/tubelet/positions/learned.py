"""Learned tables: per axis, summed (NaViT, arXiv:2307.06304, 2.1), or one vector per cell (ViViT, arXiv:2103.15691).

Between the two lies a vector for each frame and one for each place in it (W.A.L.T, arXiv:2312.06662, section 3.2).
Tables of an axis are read between their entries, too, so that places may be shares of the side (NaViT's fractional
positions, by :class:`~tubelet.positions.Stretched`).

Text has a table of its own, one vector per place in the prompt; each table gives zeros for the other kind.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.positions.angles import zero_text

__all__ = ["LearnedGridPositions", "LearnedPositions", "LearnedSpaceTimePositions", "LearnedTextPositions"]


class LearnedPositions(nn.Module):
    """A learned vector per frame, per row and per column, summed; zero for text (NaViT's factorised positions).

    Between two entries of a table lies their linear interpolation, behind the last one the last.

    Args:
        extent: the largest grid ``(t, h, w)`` that it can address; None for an axis along which all is alike.
        dim: width of the tokens.

    Raises:
        ValueError: ``extent`` names no axis; at the call on the CPU, a place is outside ``extent`` (on other devices
            the lookup itself fails, as any index out of range does there).

    Example:
        >>> positions = LearnedPositions((None, 8, 8), 16)
        >>> positions(torch.tensor([[3, 7, 7], [-1, 0, 5]])).shape
        torch.Size([2, 16])
        >>> middle, ends = positions(torch.tensor([[0, 2.5, 3.0]])), positions(torch.tensor([[0, 2, 3], [0, 3, 3]]))
        >>> torch.allclose(middle, ends.mean(0))
        True
    """

    time: nn.Parameter | None
    height: nn.Parameter | None
    width: nn.Parameter | None

    def __init__(
        self,
        extent: tuple[int | None, int | None, int | None],
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if extent == (None, None, None):
            raise ValueError(f"extent must name an axis, got {extent} for dim={dim}")
        self.extent = extent
        for name, side in zip(("time", "height", "width"), extent, strict=True):
            table = None if side is None else nn.Parameter(torch.empty(side, dim, device=device, dtype=dtype))
            self.register_parameter(name, table)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal tables of standard deviation 0.02."""
        for table in self.parameters():
            nn.init.normal_(table, std=0.02)

    def forward(self, coords: Real[Tensor, "*lead 3"]) -> Float[Tensor, "*lead d"]:
        """Coordinates, or places between them, ``(*lead, 3)`` to vectors ``(*lead, dim)``."""
        places = _inside(coords, self.extent).unbind(-1)
        tables = zip((self.time, self.height, self.width), places, strict=True)
        first, *rest = (_looked_up(table, place) for table, place in tables if table is not None)
        return zero_text(coords, sum(rest, first))

    if TYPE_CHECKING:

        def __call__(self, coords: Real[Tensor, "*lead 3"]) -> Float[Tensor, "*lead d"]: ...


class LearnedGridPositions(nn.Module):
    """A learned vector for every cell of a grid; zero for text (the single table of ViViT and U-ViT).

    Args:
        extent: the largest grid ``(t, h, w)`` that it can address.
        dim: width of the tokens.

    Raises:
        ValueError: as :class:`LearnedPositions`.

    Example:
        >>> positions = LearnedGridPositions((2, 4, 4), 8)
        >>> positions.table.shape, positions(torch.tensor([[1, 3, 3]])).shape
        (torch.Size([2, 4, 4, 8]), torch.Size([1, 8]))
    """

    def __init__(
        self,
        extent: tuple[int, int, int],
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.extent = extent
        self.table = nn.Parameter(torch.empty(*extent, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A normal table of standard deviation 0.02."""
        nn.init.normal_(self.table, std=0.02)

    def forward(self, coords: Int[Tensor, "*lead 3"]) -> Float[Tensor, "*lead d"]:
        """Coordinates ``(*lead, 3)`` to vectors ``(*lead, dim)``."""
        t, h, w = _inside(coords, self.extent).unbind(-1)
        return zero_text(coords, self.table[t, h, w])

    if TYPE_CHECKING:

        def __call__(self, coords: Int[Tensor, "*lead 3"]) -> Float[Tensor, "*lead d"]: ...


class LearnedSpaceTimePositions(nn.Module):
    """A learned vector for every frame and one for every place in a frame, summed; zero for text (W.A.L.T).

    Args:
        extent: the largest grid ``(t, h, w)`` that it can address.
        dim: width of the tokens.

    Raises:
        ValueError: as :class:`LearnedPositions`.

    Example:
        >>> positions = LearnedSpaceTimePositions((5, 4, 4), 8)
        >>> positions.time.shape, positions.space.shape, positions(torch.tensor([[4, 3, 0]])).shape
        (torch.Size([5, 8]), torch.Size([4, 4, 8]), torch.Size([1, 8]))
    """

    def __init__(
        self,
        extent: tuple[int, int, int],
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.extent = extent
        self.time = nn.Parameter(torch.empty(extent[0], dim, device=device, dtype=dtype))
        self.space = nn.Parameter(torch.empty(*extent[1:], dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal tables of standard deviation 0.02."""
        for table in (self.time, self.space):
            nn.init.normal_(table, std=0.02)

    def forward(self, coords: Int[Tensor, "*lead 3"]) -> Float[Tensor, "*lead d"]:
        """Coordinates ``(*lead, 3)`` to vectors ``(*lead, dim)``."""
        t, h, w = _inside(coords, self.extent).unbind(-1)
        return zero_text(coords, F.embedding(t, self.time) + self.space[h, w])

    if TYPE_CHECKING:

        def __call__(self, coords: Int[Tensor, "*lead 3"]) -> Float[Tensor, "*lead d"]: ...


class LearnedTextPositions(nn.Module):
    """A learned vector for every place in a text; zero for the grid (the text rows of CogVideoX's joint table).

    Args:
        tokens: the longest text that it can address.
        dim: width of the tokens.

    Raises:
        ValueError: as :class:`LearnedPositions`, of the places in the text.

    Example:
        >>> positions = LearnedTextPositions(5, 8)
        >>> positions(torch.tensor([[-1, 0, 4], [2, 3, 3]])).abs().sum(-1) > 0
        tensor([ True, False])
    """

    def __init__(
        self,
        tokens: int,
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(tokens, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A normal table of standard deviation 0.02."""
        nn.init.normal_(self.table, std=0.02)

    def forward(self, coords: Int[Tensor, "*lead 3"]) -> Float[Tensor, "*lead d"]:
        """Coordinates ``(*lead, 3)`` to vectors ``(*lead, dim)``."""
        place = coords[..., 2]
        is_text = (coords[..., 0] < 0) & (place >= 0)  # padding has no place
        along = torch.where(is_text, place, 0)
        inside = _inside(F.pad(along[..., None], (2, 0)), (1, 1, self.table.shape[0]))[..., 2]
        return torch.where(is_text[..., None], F.embedding(inside, self.table), 0.0)

    if TYPE_CHECKING:

        def __call__(self, coords: Int[Tensor, "*lead 3"]) -> Float[Tensor, "*lead d"]: ...


def _looked_up(table: Tensor, place: Tensor) -> Tensor:
    """The rows of a table at whole places, or between two of them."""
    if not place.is_floating_point():
        return F.embedding(place, table)
    below = place.floor()
    first = below.long()
    ends = F.embedding(torch.stack([first, (first + 1).clamp(max=table.shape[0] - 1)]), table)
    return torch.lerp(ends[0], ends[1], (place - below)[..., None].to(table.dtype))


def _inside(coords: Tensor, extent: tuple[int | None, int | None, int | None]) -> Tensor:
    """Grid coordinates as they are and text at the origin, ready to look up; checked where reading them is free."""
    places = torch.where(coords[..., :1] < 0, 0, coords)
    if places.device.type == "cpu" and not torch.compiler.is_compiling() and places.numel():
        low, high = (tuple(side.tolist()) for side in places.reshape(-1, 3).aminmax(dim=0))
        if min(low) < 0 or any(side is not None and place >= side for place, side in zip(high, extent, strict=True)):
            raise ValueError(f"coords span {low} to {high}, outside extent={extent}")
    return places
