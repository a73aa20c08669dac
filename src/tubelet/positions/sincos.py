"""Sinusoidal tables as functions of coordinates.

Sinusoids of Vaswani et al. (arXiv:1706.03762, section 3.5) in the ``[sin, cos]`` order of MAE and DiT
(arXiv:2212.09748): ``omega_i = base^(-2i/d)``; in two dimensions the **w** coordinate fills the first half; in three
the frame fills the first quarter and the plane the rest (CogVideoX, arXiv:2408.06072).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from tubelet.positions.angles import angles, zero_text

__all__ = ["SinCos2d", "SinCos3d", "sincos_1d", "sincos_2d", "sincos_3d"]


def sincos_1d(
    position: Real[Tensor, "*lead"], dim: int, *, base: float = 10000.0, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*lead dim"]:
    """``[sin(p·omega), cos(p·omega)]`` with ``omega_i = base^(-i / (dim/2))``.

    Args:
        position: one coordinate per token, in any unit.
        dim: even number of features.
        base: the longest wavelength is ``2·pi·base``.
        dtype: of the result.

    Raises:
        ValueError: ``dim`` is odd.

    Example:
        >>> sincos_1d(torch.tensor([0, 1]), 2)
        tensor([[0.0000, 1.0000],
                [0.8415, 0.5403]])
    """
    turns = angles(position, dim, base)
    return torch.cat([turns.sin(), turns.cos()], dim=-1).to(dtype)


def sincos_2d(
    coords: Real[Tensor, "*lead 2"], dim: int, *, base: float = 10000.0, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*lead dim"]:
    """DiT's table as a function of ``(h, w)``: the first half encodes **w**, the second h (its upstream convention).

    Raises:
        ValueError: ``dim`` is not a multiple of 4.

    Example:
        >>> sincos_2d(torch.tensor([[0, 1]]), 4)
        tensor([[0.8415, 0.5403, 0.0000, 1.0000]])
    """
    if dim % 4:
        raise ValueError(f"dim must be a multiple of 4 for two axes of [sin, cos], got {dim}")
    axes = (sincos_1d(coords[..., axis], dim // 2, base=base, dtype=dtype) for axis in (1, 0))
    return torch.cat(tuple(axes), dim=-1)


def sincos_3d(
    coords: Real[Tensor, "*lead 3"], dim: int, *, base: float = 10000.0, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*lead dim"]:
    """CogVideoX's table as a function of ``(t, h, w)``: a quarter encodes t, then three eighths w, then h.

    Raises:
        ValueError: ``dim`` is not a multiple of 16.

    Example:
        >>> sincos_3d(torch.tensor([[2, 0, 0]]), 16)[0, :4]
        tensor([ 0.9093,  0.0200, -0.4161,  0.9998])
    """
    if dim % 16:
        raise ValueError(f"dim must be a multiple of 16 to split 1:3 over time and plane, got {dim}")
    time = sincos_1d(coords[..., 0], dim // 4, base=base, dtype=dtype)
    return torch.cat([time, sincos_2d(coords[..., 1:], 3 * dim // 4, base=base, dtype=dtype)], dim=-1)


class SinCos2d(nn.Module):
    """:func:`sincos_2d` of grid tokens, the same in every frame, zero for text; it has no parameters.

    Args:
        dim: width of the tokens, a multiple of 4.
        base: as in :func:`sincos_1d`.
        dtype: of the result.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.

    Example:
        >>> from tubelet.layout import Grid, TokenLayout
        >>> vectors = SinCos2d(8)(TokenLayout.dense(1, Grid(2, 1, 3)).on("cpu").coords)
        >>> torch.equal(vectors[0, :3], vectors[0, 3:])
        True
    """

    def __init__(self, dim: int, *, base: float = 10000.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim must be a multiple of 4 for two axes of [sin, cos], got {dim}")
        self.dim, self.base, self.dtype = dim, base, dtype

    def forward(self, coords: Real[Tensor, "*lead 3"], dtype: torch.dtype | None = None) -> Float[Tensor, "*lead d"]:
        """Coordinates ``(*lead, 3)`` to vectors ``(*lead, dim)``, in ``dtype`` or the module's own."""
        dtype = self.dtype if dtype is None else dtype
        return zero_text(coords, sincos_2d(coords[..., 1:], self.dim, base=self.base, dtype=dtype))

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{self.dim}, base={self.base}"

    if TYPE_CHECKING:

        def __call__(
            self, coords: Real[Tensor, "*lead 3"], dtype: torch.dtype | None = None
        ) -> Float[Tensor, "*lead d"]: ...


class SinCos3d(nn.Module):
    """:func:`sincos_3d` of grid tokens, zero for text; it has no parameters.

    Args:
        dim: width of the tokens, a multiple of 16.
        base: as in :func:`sincos_1d`.
        place: a map of the coordinates before they become angles, such as :class:`Interpolation`; None for none.
        dtype: of the result.

    Raises:
        ValueError: ``dim`` is not a multiple of 16.

    Example:
        >>> from tubelet.layout import Grid, TokenLayout
        >>> layout = TokenLayout.packed([Grid(2, 2, 2), Grid(1, 1, 3)], text_lengths=[1, 0])
        >>> vectors = SinCos3d(32)(layout.on("cpu").coords)
        >>> vectors.shape, vectors[0].abs().max().item()
        (torch.Size([12, 32]), 0.0)
    """

    def __init__(
        self,
        dim: int,
        *,
        base: float = 10000.0,
        place: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if dim % 16:
            raise ValueError(f"dim must be a multiple of 16 to split 1:3 over time and plane, got {dim}")
        self.dim, self.base, self.place, self.dtype = dim, base, place, dtype

    def forward(self, coords: Real[Tensor, "*lead 3"], dtype: torch.dtype | None = None) -> Float[Tensor, "*lead d"]:
        """Coordinates ``(*lead, 3)`` to vectors ``(*lead, dim)``, in ``dtype`` or the module's own."""
        places = coords if self.place is None else self.place(coords)
        dtype = self.dtype if dtype is None else dtype
        return zero_text(coords, sincos_3d(places, self.dim, base=self.base, dtype=dtype))

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{self.dim}, base={self.base}" + ("" if self.place is None else f", place={self.place!r}")

    if TYPE_CHECKING:

        def __call__(
            self, coords: Real[Tensor, "*lead 3"], dtype: torch.dtype | None = None
        ) -> Float[Tensor, "*lead d"]: ...
