"""Bias as a value: what is added to the scores, defined by where two tokens lie.

A table of relative positions is Swin's (arXiv:2103.14030, section 3.2), over three axes Video Swin's (arXiv:2106.13230)
and W.A.L.T's (arXiv:2312.06662).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tubelet.layout import Kind, TokenInfo

__all__ = ["RelativeBias", "RelativePositions"]


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """A learned number for each head and each distance ``query - key`` on the grid.

    ``table`` is ``(heads, 2T-1, 2H-1, 2W-1)`` and serves grids with sides up to ``(T, H, W)``; the distance 0 lies in
    its middle. Under a pattern of windows it serves windows of those sides, in grids of any. A first axis of 1 is
    shared by all heads. Where text takes part, 0 is added. Keep the table as a parameter of your module and wrap it at
    the call, as :class:`RelativePositions` does; gradients reach it.

    Raises:
        ValueError: the table is not floating point, or its last three sides are not odd; at the call, it has other
            heads than q or a grid is larger. Compiled code cannot see the grids: there what lies outside the table is
            NaN.

    Example:
        >>> from tubelet import Grid, TokenLayout, attend
        >>> x, table = torch.randn(12, 2, 8), torch.zeros(2, 5, 3, 3, requires_grad=True)
        >>> layout = TokenLayout.packed([Grid(3, 2, 2)])
        >>> attend(x, x, x, layout=layout, bias=RelativeBias(table)).shape
        torch.Size([12, 2, 8])
    """

    table: Float[Tensor, "heads t h w"]
    relative: ClassVar[bool] = True
    """Pairs at equal distances have equal numbers, so that backends make those of one window for all."""

    def __post_init__(self) -> None:
        shape = tuple(self.table.shape)
        if self.table.ndim != 4 or not self.table.dtype.is_floating_point or any(side % 2 == 0 for side in shape[1:]):
            raise ValueError(
                f"table must be floating point of shape (heads, 2T-1, 2H-1, 2W-1), got {self.table.dtype} of {shape}"
            )

    def between(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The table's number for the distance of two grid tokens, 0 where either is text or padding."""
        on_grid = (q.kind == Kind.GRID) & (k.kind == Kind.GRID)
        inside, places = on_grid, []
        for axis, length in enumerate(self.table.shape[1:]):
            place = q.coords[..., axis] - k.coords[..., axis] + length // 2
            inside = inside & (place >= 0) & (place < length)
            places.append(place.clamp(0, length - 1))
        found = self.table[head.clamp(max=self.table.shape[0] - 1), places[0], places[1], places[2]]
        zero = torch.zeros((), dtype=found.dtype, device=found.device)
        return torch.where(inside, found, torch.where(on_grid, zero + torch.nan, zero))

    def check(self, heads: int, sides: tuple[int, int, int]) -> None:
        """Raise ValueError where the table is too small."""
        if self.table.shape[0] not in (1, heads):
            raise ValueError(f"q has {heads} heads, but the bias has a table for {self.table.shape[0]}")
        most = tuple(length // 2 + 1 for length in self.table.shape[1:])
        if any(side > limit for side, limit in zip(sides, most, strict=True)):
            raise ValueError(f"the bias serves grids up to {most} (t, h, w), but the layout has sides up to {sides}")


class RelativePositions(nn.Module):
    """The learned table of a :class:`RelativeBias`, for :class:`tubelet.attention.Attention` to add to its scores.

    Args:
        heads: of the attention; 1 for numbers that all heads share.
        extent: the sides ``(t, h, w)`` of the largest grid, or of the windows of the attention's pattern.

    Raises:
        ValueError: ``heads`` or a side is below 1; at the call of the attention, what the bias refuses.

    Example:
        >>> RelativePositions(4, (1, 16, 16))().table.shape
        torch.Size([4, 1, 31, 31])
    """

    def __init__(
        self,
        heads: int,
        extent: tuple[int, int, int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(heads, *extent) < 1:
            raise ValueError(f"heads and extent must be at least 1, got heads={heads}, extent={extent}")
        sides = (2 * side - 1 for side in extent)
        self.table = nn.Parameter(torch.empty(heads, *sides, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A normal table of standard deviation 0.02."""
        nn.init.normal_(self.table, std=0.02)

    def forward(self) -> RelativeBias:
        """The bias."""
        return RelativeBias(self.table)

    if TYPE_CHECKING:

        def __call__(self) -> RelativeBias: ...
