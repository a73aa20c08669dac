"""Windows that move with the query: neighbourhood attention and its tiled kind.

Neighbourhood attention is Hassani et al., 2023 (arXiv:2204.07143; causal axes: NATTEN); sliding tiles are Zhang et al.,
2025 (arXiv:2502.04507).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tubelet.attention.patterns.compose import both, either
from tubelet.attention.patterns.grouped import sizes
from tubelet.attention.patterns.spans import Axes, sliding, tiled
from tubelet.attention.patterns.specs import spec
from tubelet.layout import Grid, Kind, TokenInfo

__all__ = ["Neighborhood", "SlidingTile"]

_TILE = 64
"""About how many queries of a neighbourhood share one tile of keys."""


@dataclass(frozen=True)
class Neighborhood:
    """A token attends the ``window`` (t, h, w) of tokens around it, and the text.

    At the borders the window slides inside, so that every token has as many keys; an even window has one more before
    the token than behind it. On an axis that is ``causal`` it ends at the token, and is cut at the border. An axis
    shorter than its window is attended whole. Text attends everything, unless an axis is causal: then only text.

    Raises:
        ValueError: ``window`` is not three whole numbers of at least 1, or ``causal`` not three booleans.

    Example:
        >>> from tubelet import Grid, TokenLayout, attend
        >>> x = torch.randn(30, 1, 4)
        >>> attend(x, x, x, pattern=Neighborhood((1, 3, 3)), layout=TokenLayout.packed([Grid(2, 3, 5)])).shape
        torch.Size([30, 1, 4])
    """

    window: tuple[int, int, int]
    causal: tuple[bool, bool, bool] = (False, False, False)
    spec: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", sizes("window", self.window, 1))
        if tuple(map(type, self.causal)) != (bool, bool, bool):
            raise ValueError(f"causal must be three booleans (t, h, w), got {self.causal}")
        object.__setattr__(self, "causal", tuple(self.causal))
        object.__setattr__(self, "spec", spec(self, "Neighborhood", self.window, self.causal))

    @property
    def text_sees_grid(self) -> bool:
        """Text sees the grid where no axis is causal."""
        return not any(self.causal)

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """The key lies in the query's window, or is text."""
        near = torch.ones((), dtype=torch.bool, device=q.kind.device)
        for axis, (window, is_causal) in enumerate(zip(self.window, self.causal, strict=True)):
            place, length, key = q.coords[..., axis], q.extent[..., axis], k.coords[..., axis]
            if is_causal:
                near = near & (key <= place) & (key > place - window)
            else:
                first = _first(place, length, window)
                near = near & (key >= first) & (key < first + window)
        return _rule(q, k, near, self.text_sees_grid)

    def axes(self, grid: Grid) -> Axes:
        """Small boxes of queries, each with the box that holds all their windows."""
        sides = (grid.t, grid.h, grid.w)
        tile = _tile(sides, self.window)
        t, h, w = (sliding(*side) for side in zip(sides, self.window, self.causal, tile, strict=True))
        return t, h, w

    __or__ = __ror__ = either
    __and__ = __rand__ = both


@dataclass(frozen=True)
class SlidingTile:
    """Neighbourhood attention of whole tiles: a token attends the ``window`` of tokens around its ``tile``, and text.

    Both are (t, h, w) in tokens; the window is a whole number of tiles, and slides inside at the borders. Tiles at the
    end of a grid that the tile does not divide are smaller.

    Raises:
        ValueError: ``window`` or ``tile`` are not three whole numbers of at least 1, or do not divide.

    Example:
        >>> from tubelet import Grid, TokenLayout, attend
        >>> x = torch.randn(48, 1, 4)
        >>> pattern = SlidingTile(window=(1, 6, 6), tile=(1, 2, 2))
        >>> attend(x, x, x, pattern=pattern, layout=TokenLayout.packed([Grid(1, 6, 8)])).shape
        torch.Size([48, 1, 4])
    """

    window: tuple[int, int, int]
    tile: tuple[int, int, int]
    spec: str = field(init=False, repr=False, compare=False)
    text_sees_grid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", sizes("window", self.window, 1))
        object.__setattr__(self, "tile", sizes("tile", self.tile, 1))
        if any(w % t for w, t in zip(self.window, self.tile, strict=True)):
            raise ValueError(f"window={self.window} is not a whole number of tiles of {self.tile}")
        object.__setattr__(self, "spec", spec(self, "SlidingTile", self.window, self.tile))

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """The key's tile lies in the window of the query's, or either is text."""
        near = torch.ones((), dtype=torch.bool, device=q.kind.device)
        for axis, (window, tile) in enumerate(zip(self.window, self.tile, strict=True)):
            count = (q.extent[..., axis] + tile - 1) // tile
            first = _first(q.coords[..., axis] // tile, count, window // tile)
            key = k.coords[..., axis] // tile
            near = near & (key >= first) & (key < first + window // tile)
        return _rule(q, k, near, True)

    def axes(self, grid: Grid) -> Axes:
        """One tile of queries at a time."""
        sides = zip((grid.t, grid.h, grid.w), self.window, self.tile, strict=True)
        t, h, w = (tiled(*side) for side in sides)
        return t, h, w

    __or__ = __ror__ = either
    __and__ = __rand__ = both


def _first(place: Int[Tensor, "..."], length: Int[Tensor, "..."], window: int) -> Int[Tensor, "..."]:
    """Where the window of a place begins, slid inside ``[0, length)``."""
    return torch.minimum((place - window // 2).clamp(min=0), (length - window).clamp(min=0))


def _rule(q: TokenInfo, k: TokenInfo, near: Bool[Tensor, "..."], text_sees_grid: bool) -> Bool[Tensor, "..."]:
    """``near`` between grid tokens; text is attended by all, and attends the grid or not."""
    k_text = k.kind == Kind.TEXT
    q_text = q.kind == Kind.TEXT
    return k_text | (q_text | near if text_sees_grid else ~q_text & near)


def _tile(sides: tuple[int, int, int], window: tuple[int, int, int]) -> tuple[int, int, int]:
    """A box of about ``_TILE`` queries, long where the window is long."""
    tile = [1, 1, 1]
    while tile[0] * tile[1] * tile[2] < _TILE:
        growing = [i for i in range(3) if tile[i] < sides[i]]
        if not growing:
            break
        axis = min(growing, key=lambda i: (tile[i] / min(window[i], sides[i]), -i))
        tile[axis] = min(2 * tile[axis], sides[axis])
    return tile[0], tile[1], tile[2]
