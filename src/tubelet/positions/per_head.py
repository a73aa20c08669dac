"""Rotations that differ from head to head: learned mixtures of the axes, and frequencies over the whole width.

``MixedRope3d`` has a frequency for each axis, head and pair, and turns a pair by their sum (RoPE-Mixed, Heo et al.,
2024, arXiv:2403.13298; Mochi). ``FractionalRope3d`` spreads one run of frequencies over all heads and turns by places
between 0 and 1 (LTX-Video, arXiv:2501.00103): a rotation before the split into heads is one of each head by its share
of the angles.

Shapes: places ``(*lead, 3)`` to :class:`Rotary` of ``(*lead, heads, head_dim/2)``.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Real
from torch import Tensor, nn

from tubelet.positions.angles import widened
from tubelet.positions.rotary import Rotary

__all__ = ["FractionalRope3d", "MixedRope3d"]


class MixedRope3d(nn.Module):
    """Places to rotations by learned frequencies ``(3, heads, head_dim/2)``; text stays unrotated.

    Args:
        heads, head_dim: of the queries and keys.
        theta: the frequencies start with lengths ``theta^(-2i/head_dim)`` in random directions of the three axes.

    Raises:
        ValueError: ``head_dim`` is odd.

    Example:
        >>> from tubelet.layout import Grid, TokenLayout
        >>> from tubelet.positions import AreaNormalised, apply_rope
        >>> index = TokenLayout.packed([Grid(2, 2, 2), Grid(1, 1, 3)]).on("cpu")
        >>> places = AreaNormalised(192.0 * 192.0)(index.coords, index.extent)
        >>> apply_rope(torch.randn(11, 4, 16), MixedRope3d(4, 16)(places)).shape
        torch.Size([11, 4, 16])
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        theta: float = 10000.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_even(head_dim)
        self.theta = theta
        self.frequencies = nn.Parameter(torch.empty(3, heads, head_dim // 2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The lengths of a rotary embedding of one axis, in random directions."""
        half = self.frequencies.shape[-1]
        with torch.no_grad():
            self.frequencies.normal_()
            lengths = self.theta ** (-torch.arange(half, device=self.frequencies.device) / half)
            self.frequencies.mul_(lengths / self.frequencies.norm(dim=0))

    def forward(self, places: Real[Tensor, "*lead 3"]) -> Rotary:
        """The sum over the axes of place times frequency, in float32 or better, also under autocast."""
        wide = torch.promote_types(self.frequencies.dtype, torch.float32)
        # text at the origin: no rotation, and no gradient of what its places hold
        at = torch.where(places[..., :1] < 0, 0, places).to(wide)[..., None, None]
        t, h, w = self.frequencies.to(wide)
        turns = at[..., 0, :, :] * t + at[..., 1, :, :] * h + at[..., 2, :, :] * w
        return Rotary(turns.cos(), turns.sin(), per_head=True)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        _, heads, half = self.frequencies.shape
        return f"heads={heads}, head_dim={2 * half}"

    if TYPE_CHECKING:

        def __call__(self, places: Real[Tensor, "*lead 3"]) -> Rotary: ...


class FractionalRope3d(nn.Module):
    """Fractions of ``(t, h, w)`` to rotations over the whole width of the heads; text stays unrotated. No parameters.

    Frequency ``i`` of ``f = heads·head_dim // 6`` turns three neighbouring pairs, of t, h and w, by
    ``(2·fraction - 1)·(pi/2)·theta^(i/(f-1))``; the pairs that are left over stand first and do not turn.

    Args:
        heads, head_dim: of the queries and keys.
        theta: the highest frequency over the lowest.
        place: coordinates to fractions, such as :class:`Interpolation` by the largest grid; None: they are fractions.
        dtype: of the cosines and sines.

    Raises:
        ValueError: ``head_dim`` is odd, or all heads together are narrower than two frequencies.

    Example:
        >>> from tubelet.positions import Interpolation
        >>> rope = FractionalRope3d(2, 16, place=Interpolation((20.0, 64.0, 64.0)))
        >>> rope(torch.tensor([[1, 5, 9]])).cos.shape
        torch.Size([1, 2, 8])
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        theta: float = 10000.0,
        *,
        place: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _check_even(head_dim)
        if heads * head_dim < 12:
            raise ValueError(f"heads={heads} of head_dim={head_dim} are narrower than two frequencies of 6")
        self.heads, self.head_dim, self.theta = heads, head_dim, theta
        self.place, self.dtype = place, dtype

    def forward(self, coords: Real[Tensor, "*lead 3"], dtype: torch.dtype | None = None) -> Rotary:
        """Coordinates ``(*lead, 3)`` to cosines and sines ``(*lead, heads, head_dim/2)``."""
        fractions = widened(coords if self.place is None else self.place(coords))
        count = self.heads * self.head_dim // 6
        steps = torch.arange(count, device=coords.device, dtype=fractions.dtype) / (count - 1)
        turns = (2 * fractions[..., None, :] - 1) * (math.pi / 2 * self.theta**steps)[:, None]
        turns = torch.where(coords[..., :1] < 0, 0.0, turns.flatten(-2))
        turns = nn.functional.pad(turns, (self.heads * self.head_dim // 2 - 3 * count, 0))
        turns = turns.reshape(*turns.shape[:-1], self.heads, self.head_dim // 2)
        dtype = self.dtype if dtype is None else dtype
        return Rotary(turns.cos().to(dtype), turns.sin().to(dtype), per_head=True)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"heads={self.heads}, head_dim={self.head_dim}, theta={self.theta}, place={self.place!r}"

    if TYPE_CHECKING:

        def __call__(self, coords: Real[Tensor, "*lead 3"], dtype: torch.dtype | None = None) -> Rotary: ...


def _check_even(head_dim: int) -> None:
    if head_dim % 2:
        raise ValueError(f"head_dim must be even to turn pairs, got {head_dim}")
