"""Positions as functions of token coordinates: sinusoids, learned tables and rotary embeddings.

Everything takes coordinates ``(*lead, 3)`` = ``(t, h, w)``, as :class:`tubelet.layout.LayoutIndex` holds them, so dense
and packed tokens of any sizes are the same case; coordinates may be fractional. The functions are plain maths. The
modules also know text: a token with a frame index below 0 gets a zero vector, or the identity rotation.

- Sinusoids (Vaswani et al., arXiv:1706.03762, section 3.5) in the ``[sin, cos]`` order of MAE and DiT
  (arXiv:2212.09748): ``omega_i = base^(-2i/d)``; in two dimensions the **w** coordinate fills the first half; in three
  the frame fills the first quarter and the plane the rest (CogVideoX, arXiv:2408.06072).
- Learned tables per axis, summed (NaViT, arXiv:2307.06304, 2.1), or one vector per cell (ViViT, arXiv:2103.15691).
- Rotary embeddings (Su et al., arXiv:2104.09864, section 3.4.2): pair ``i`` of an axis turns by the angle
  ``coordinate · theta^(-2i/d)``; the three axes share the head's width.

Angles are computed in float64 (float32 where the device has none) and rounded once.
"""

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "LearnedGridPositions",
    "LearnedPositions",
    "Rope3d",
    "Rotary",
    "SinCos3d",
    "apply_rope",
    "rope_angles",
    "rope_axes",
    "sincos_1d",
    "sincos_2d",
    "sincos_3d",
]


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
    angles = _angles(position, dim, base)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


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


class SinCos3d(nn.Module):
    """:func:`sincos_3d` of grid tokens, zero for text; it has no parameters.

    Args:
        dim: width of the tokens, a multiple of 16.
        base: as in :func:`sincos_1d`.
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

    def __init__(self, dim: int, *, base: float = 10000.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if dim % 16:
            raise ValueError(f"dim must be a multiple of 16 to split 1:3 over time and plane, got {dim}")
        self.dim, self.base, self.dtype = dim, base, dtype

    def forward(self, coords: Real[Tensor, "*lead 3"]) -> Float[Tensor, "*lead d"]:
        """Coordinates ``(*lead, 3)`` to vectors ``(*lead, dim)``."""
        return _zero_text(coords, sincos_3d(coords, self.dim, base=self.base, dtype=self.dtype))

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{self.dim}, base={self.base}"

    if TYPE_CHECKING:

        def __call__(self, coords: Real[Tensor, "*lead 3"]) -> Float[Tensor, "*lead d"]: ...


class LearnedPositions(nn.Module):
    """A learned vector per frame, per row and per column, summed; zero for text (NaViT's factorised positions).

    Args:
        extent: the largest grid ``(t, h, w)`` that it can address.
        dim: width of the tokens.

    Raises:
        ValueError: at the call on the CPU, a coordinate is outside ``extent`` (on other devices the lookup itself
            fails, as any index out of range does there).

    Example:
        >>> positions = LearnedPositions((4, 8, 8), 16)
        >>> positions(torch.tensor([[3, 7, 7], [-1, 0, 5]])).shape
        torch.Size([2, 16])
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
        self.time, self.height, self.width = (
            nn.Parameter(torch.empty(side, dim, device=device, dtype=dtype)) for side in extent
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal tables of standard deviation 0.02."""
        for table in (self.time, self.height, self.width):
            nn.init.normal_(table, std=0.02)

    def forward(self, coords: Int[Tensor, "*lead 3"]) -> Float[Tensor, "*lead d"]:
        """Coordinates ``(*lead, 3)`` to vectors ``(*lead, dim)``."""
        t, h, w = _inside(coords, self.extent).unbind(-1)
        vectors = F.embedding(t, self.time) + F.embedding(h, self.height) + F.embedding(w, self.width)
        return _zero_text(coords, vectors)

    if TYPE_CHECKING:

        def __call__(self, coords: Int[Tensor, "*lead 3"]) -> Float[Tensor, "*lead d"]: ...


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
        return _zero_text(coords, self.table[t, h, w])

    if TYPE_CHECKING:

        def __call__(self, coords: Int[Tensor, "*lead 3"]) -> Float[Tensor, "*lead d"]: ...


RotaryLayout = Literal["interleaved", "half"]
"""Which features of a head turn together: ``(2i, 2i+1)`` (Wan, HunyuanVideo) or ``(i, i + d/2)`` (Cosmos, Llama)."""


class Rotary(NamedTuple):
    """The rotation of each token, made once per forward and handed to every attention layer.

    ``cos`` and ``sin`` are ``(*lead, head_dim/2)``, one angle per pair of features; ``layout`` says which pair.

    Example:
        >>> Rope3d(12)(torch.zeros(5, 3)).cos.shape
        torch.Size([5, 6])
    """

    cos: Float[Tensor, "*lead half"]
    sin: Float[Tensor, "*lead half"]
    layout: RotaryLayout = "interleaved"


def rope_axes(head_dim: int) -> tuple[int, int, int]:
    """How Wan and Cosmos share a head's width over ``(t, h, w)``: a third each, even, the rest to t.

    Raises:
        ValueError: ``head_dim`` is odd, or below 6 so that an axis would get nothing.

    Example:
        >>> rope_axes(128)
        (44, 42, 42)
    """
    if head_dim % 2 or head_dim < 6:
        raise ValueError(f"head_dim must be even and at least 6 to rotate three axes, got {head_dim}")
    plane = 2 * (head_dim // 6)
    return head_dim - 2 * plane, plane, plane


def rope_angles(
    coords: Real[Tensor, "*lead 3"],
    head_dim: int,
    axes: tuple[int, int, int] | None = None,
    theta: float | tuple[float, float, float] = 10000.0,
) -> Float[Tensor, "*lead half"]:
    """The angle of every pair: ``coordinate · theta^(-2i / axis width)``, the axes t, h, w end to end.

    Args:
        coords: ``(t, h, w)`` per token, whole or fractional.
        head_dim: width of a head.
        axes: width given to each axis; None means :func:`rope_axes`.
        theta: the base, or one per axis (NTK-scaled axes).

    Returns:
        Angles in radians, float64 where the device has it.

    Raises:
        ValueError: ``axes`` are odd or do not sum to ``head_dim``.

    Example:
        >>> rope_angles(torch.tensor([[1, 2, 3]]), 6, (2, 2, 2)).tolist()
        [[1.0, 2.0, 3.0]]
    """
    axes = _checked_axes(head_dim, axes)
    bases = theta if isinstance(theta, tuple) else (theta, theta, theta)
    parts = (_angles(coords[..., i], width, base) for i, (width, base) in enumerate(zip(axes, bases, strict=True)))
    return torch.cat(tuple(parts), dim=-1)


class Rope3d(nn.Module):
    """Coordinates to :class:`Rotary`; text stays unrotated. It has no parameters.

    Args:
        head_dim, axes, theta: as in :func:`rope_angles` (HunyuanVideo: 128, (16, 56, 56), 256).
        layout: which features pair.
        dtype: of the cosines and sines.

    Raises:
        ValueError: ``axes`` are odd or do not sum to ``head_dim``, or ``layout`` is unknown.

    Example:
        >>> from tubelet.layout import Grid, TokenLayout
        >>> rotary = Rope3d(16)(TokenLayout.dense(2, Grid(1, 2, 2)).on("cpu").coords)
        >>> apply_rope(torch.randn(2, 4, 3, 16), rotary).shape
        torch.Size([2, 4, 3, 16])
    """

    def __init__(
        self,
        head_dim: int,
        axes: tuple[int, int, int] | None = None,
        theta: float | tuple[float, float, float] = 10000.0,
        layout: RotaryLayout = "interleaved",
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if layout not in ("interleaved", "half"):
            raise ValueError(f"layout must be 'interleaved' or 'half', got {layout!r}")
        self.head_dim, self.axes, self.theta = head_dim, _checked_axes(head_dim, axes), theta
        self.layout, self.dtype = layout, dtype

    def forward(self, coords: Real[Tensor, "*lead 3"]) -> Rotary:
        """Coordinates ``(*lead, 3)`` to cosines and sines ``(*lead, head_dim/2)``."""
        angles = _zero_text(coords, rope_angles(coords, self.head_dim, self.axes, self.theta))
        return Rotary(angles.cos().to(self.dtype), angles.sin().to(self.dtype), self.layout)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{self.head_dim}, axes={self.axes}, theta={self.theta}, layout={self.layout!r}"

    if TYPE_CHECKING:

        def __call__(self, coords: Real[Tensor, "*lead 3"]) -> Rotary: ...


def apply_rope(x: Float[Tensor, "*lead heads head_dim"], rotary: Rotary) -> Float[Tensor, "*lead heads head_dim"]:
    """Turn each pair of features of queries or keys by its token's angle, in float32 or better.

    Args:
        x: queries or keys; leading axes that ``rotary`` lacks broadcast.
        rotary: the rotations; every head of a token shares them.

    Returns:
        The rotated ``x``, in its dtype.

    Raises:
        ValueError: head widths or numbers of tokens disagree.

    Example:
        >>> quarter = Rotary(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
        >>> apply_rope(torch.tensor([[[1.0, 2.0]]]), quarter).tolist()
        [[[-2.0, 1.0]]]
    """
    tokens, half = rotary.cos.shape[-2:]
    if x.shape[-1] != 2 * half or x.shape[-3] != tokens:
        found = f"{x.shape[-3]} tokens of head_dim {x.shape[-1]}"
        raise ValueError(f"x has {found}, but rotary turns {tokens} tokens of head_dim {2 * half}")
    cos, sin = rotary.cos.unsqueeze(-2), rotary.sin.unsqueeze(-2)
    if rotary.layout == "half":
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
    first, second = x.reshape(*x.shape[:-1], half, 2).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).reshape(x.shape).to(x.dtype)


def _angles(position: Tensor, dim: int, base: float) -> Tensor:
    """``position · base^(-2i/dim)`` for ``i < dim/2``, in float64 where the device has it."""
    if dim % 2:
        raise ValueError(f"dim must be even, got {dim}")
    wide = torch.float32 if position.device.type == "mps" else torch.float64
    exponents = torch.arange(0, dim, 2, device=position.device, dtype=wide) / max(dim, 1)
    return position.to(wide).unsqueeze(-1) * base**-exponents


def _checked_axes(head_dim: int, axes: tuple[int, int, int] | None) -> tuple[int, int, int]:
    if axes is None:
        return rope_axes(head_dim)
    if sum(axes) != head_dim or any(width % 2 or width < 0 for width in axes):
        raise ValueError(f"axes must be three even widths that sum to head_dim={head_dim}, got {axes}")
    return axes


def _zero_text(coords: Tensor, values: Tensor) -> Tensor:
    """Zeros where the frame index is below 0: text, registers and padding have no place in the grid."""
    return torch.where(coords[..., :1] < 0, 0.0, values)


def _inside(coords: Tensor, extent: tuple[int, int, int]) -> Tensor:
    """Grid coordinates as they are and text at the origin, ready to look up; checked where reading them is free."""
    places = torch.where(coords[..., :1] < 0, 0, coords)
    if places.device.type == "cpu" and not torch.compiler.is_compiling() and places.numel():
        low, high = (tuple(side.tolist()) for side in places.reshape(-1, 3).aminmax(dim=0))
        if min(low) < 0 or any(place >= side for place, side in zip(high, extent, strict=True)):
            raise ValueError(f"coords span {low} to {high}, outside extent={extent}")
    return places
