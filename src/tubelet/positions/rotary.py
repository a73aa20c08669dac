"""Rotary embeddings (Su et al., arXiv:2104.09864, section 3.4.2) over three axes, in the layouts of published models.

Pair ``i`` of an axis turns by the angle ``place · theta^(-2i/d)``; the axes t, h, w share the head's width. Which two
features make a pair is the *layout*:

- ``"interleaved"``: ``(2i, 2i+1)`` (Wan, HunyuanVideo, CogVideoX);
- ``"half"``: ``(i, i + d/2)`` over the whole head (Cosmos, Llama);
- ``"half_per_axis"``: the same inside the width of each axis (Allegro).

The three are one rotation after a permutation of the head's features, which the projections of queries and keys can
absorb: :func:`convert_rope`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int, Real, Shaped
from torch import Tensor, nn

from tubelet.positions.angles import angles, zero_text
from tubelet.positions.yarn import Yarn

__all__ = ["Rope3d", "Rotary", "RotaryLayout", "apply_rope", "convert_rope", "rope_angles", "rope_axes"]

RotaryLayout = Literal["interleaved", "half", "half_per_axis"]
"""Which features of a head turn together. Example: ``"interleaved"``."""


class Rotary(NamedTuple):
    """The rotation of each token, made once per forward and handed to every attention layer.

    ``cos`` and ``sin`` are ``(*lead, head_dim/2)``, one angle per pair of features; ``layout`` says which pair, and
    ``axes`` are the widths inside which the layout ``"half_per_axis"`` pairs. With ``per_head`` the angles of the heads
    differ, and the two are ``(*lead, heads, head_dim/2)``.

    Example:
        >>> Rope3d(12)(torch.zeros(5, 3)).cos.shape
        torch.Size([5, 6])
    """

    cos: Float[Tensor, "*lead_or_heads half"]
    sin: Float[Tensor, "*lead_or_heads half"]
    layout: RotaryLayout = "interleaved"
    axes: tuple[int, ...] = ()
    per_head: bool = False


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
        theta: the base, or one per axis (:func:`ntk_theta`).

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
    parts = (angles(coords[..., i], width, base) for i, (width, base) in enumerate(zip(axes, bases, strict=True)))
    return torch.cat(tuple(parts), dim=-1)


class Rope3d(nn.Module):
    """Coordinates to :class:`Rotary`; text stays unrotated. It has no parameters.

    Args:
        head_dim, axes, theta: as in :func:`rope_angles` (HunyuanVideo: 128, (16, 56, 56), 256).
        layout: which features pair.
        place: a map of the coordinates before they become angles, such as :class:`Interpolation`; None for none.
        yarn: other frequencies for grids larger than those of training; None for none.
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
        place: Callable[[Tensor], Tensor] | None = None,
        yarn: Yarn | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _check_layout(layout)
        self.yarn = yarn
        self.head_dim, self.axes, self.theta = head_dim, _checked_axes(head_dim, axes), theta
        self.layout, self.place, self.dtype = layout, place, dtype

    def forward(self, coords: Real[Tensor, "*lead 3"], dtype: torch.dtype | None = None) -> Rotary:
        """Coordinates ``(*lead, 3)`` to cosines and sines ``(*lead, head_dim/2)``, in ``dtype`` or the module's own."""
        places = coords if self.place is None else self.place(coords)
        turns = zero_text(coords, rope_angles(places, self.head_dim, self.axes, self.theta))
        grown = 1.0
        if self.yarn is not None:
            turns, grown = turns * self.yarn.shares(self.axes, self.theta).to(turns), self.yarn.magnitude
        dtype = self.dtype if dtype is None else dtype
        return Rotary((turns.cos() * grown).to(dtype), (turns.sin() * grown).to(dtype), self.layout, self.axes)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        place = "" if self.place is None else f", place={self.place!r}"
        return f"{self.head_dim}, axes={self.axes}, theta={self.theta}, layout={self.layout!r}{place}"

    if TYPE_CHECKING:

        def __call__(self, coords: Real[Tensor, "*lead 3"], dtype: torch.dtype | None = None) -> Rotary: ...


def apply_rope(x: Float[Tensor, "*lead heads head_dim"], rotary: Rotary) -> Float[Tensor, "*lead heads head_dim"]:
    """Turn each pair of features of queries or keys by its token's angle, in float32 or better.

    Args:
        x: queries or keys; leading axes that ``rotary`` lacks broadcast.
        rotary: the rotations of each token, or of each token and head.

    Returns:
        The rotated ``x``, in its dtype.

    Raises:
        ValueError: head widths, numbers of tokens or of heads disagree.

    Example:
        >>> quarter = Rotary(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
        >>> apply_rope(torch.tensor([[[1.0, 2.0]]]), quarter).tolist()
        [[[-2.0, 1.0]]]
    """
    cos, sin = (side if rotary.per_head else side.unsqueeze(-2) for side in (rotary.cos, rotary.sin))
    tokens, heads, half = cos.shape[-3:]
    if x.shape[-1] != 2 * half or x.shape[-3] != tokens:
        found = f"{x.shape[-3]} tokens of head_dim {x.shape[-1]}"
        raise ValueError(f"x has {found}, but rotary turns {tokens} tokens of head_dim {2 * half}")
    if rotary.per_head and x.shape[-2] != heads:
        raise ValueError(f"x has {x.shape[-2]} heads, but rotary turns {heads} by angles of their own")
    first, second = _pairs(x, rotary.layout, rotary.axes)
    turned = first * cos - second * sin, first * sin + second * cos
    return _unpaired(*turned, rotary.layout, rotary.axes).to(x.dtype)


def convert_rope(
    weight: Shaped[Tensor, "*shape"],
    head_dim: int,
    source: RotaryLayout,
    target: RotaryLayout,
    axes: tuple[int, int, int] | None = None,
) -> Shaped[Tensor, "*shape"]:
    """Weights of queries or keys for another layout of the rotation: the same scores, no value changed.

    Args:
        weight: a projection's weight or bias, or the weight of a norm after it; the first axis is any number of heads.
        head_dim, axes: as in :func:`rope_angles`.
        source: the layout that the weights were made for.
        target: the layout that they shall serve.

    Returns:
        The same rows in another order.

    Raises:
        ValueError: the first axis is not made of whole heads, or a layout is unknown.

    Example:
        >>> convert_rope(torch.arange(6), 6, "interleaved", "half", (2, 2, 2)).tolist()
        [0, 2, 4, 1, 3, 5]
    """
    _check_layout(source)
    _check_layout(target)
    axes = _checked_axes(head_dim, axes)
    if weight.shape[0] % head_dim:
        raise ValueError(f"weight has {weight.shape[0]} rows, not a multiple of head_dim={head_dim}")
    old, new = (_paired_features(head_dim, layout, axes, weight.device) for layout in (source, target))
    order = torch.empty_like(old).index_put((new,), old)
    return weight.reshape(-1, head_dim, *weight.shape[1:])[:, order].reshape(weight.shape)


def _pairs(x: Tensor, layout: RotaryLayout, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The first and the second feature of every pair, in the order of the angles."""
    if layout == "interleaved":
        first, second = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2).unbind(-1)
        return first, second
    if layout == "half":
        first, second = x.chunk(2, dim=-1)
        return first, second
    firsts, seconds = zip(
        *(part.chunk(2, dim=-1) for part in torch.split(x, list(axes), -1) if part.shape[-1]), strict=True
    )
    return torch.cat(firsts, dim=-1), torch.cat(seconds, dim=-1)


def _unpaired(first: Tensor, second: Tensor, layout: RotaryLayout, axes: tuple[int, ...]) -> Tensor:
    """The features of every pair back in their places."""
    if layout == "interleaved":
        return torch.stack([first, second], dim=-1).flatten(-2)
    if layout == "half":
        return torch.cat([first, second], dim=-1)
    halves = [width // 2 for width in axes]
    parts = zip(torch.split(first, halves, -1), torch.split(second, halves, -1), strict=True)
    return torch.cat([half for pair in parts for half in pair], dim=-1)


def _paired_features(
    head_dim: int, layout: RotaryLayout, axes: tuple[int, int, int], device: torch.device
) -> Int[Tensor, " head_dim"]:
    """The numbers of the features that come first in their pairs, then of those that come second."""
    return torch.cat(_pairs(torch.arange(head_dim, device=device), layout, axes))


def _check_layout(layout: str) -> None:
    if layout not in get_args(RotaryLayout):
        known = ", ".join(map(repr, get_args(RotaryLayout)))
        raise ValueError(f"layout must be one of {known}, got {layout!r}")


def _checked_axes(head_dim: int, axes: tuple[int, int, int] | None) -> tuple[int, int, int]:
    if axes is None:
        return rope_axes(head_dim)
    if sum(axes) != head_dim or any(width % 2 or width < 0 for width in axes):
        raise ValueError(f"axes must be three even widths that sum to head_dim={head_dim}, got {axes}")
    return axes
