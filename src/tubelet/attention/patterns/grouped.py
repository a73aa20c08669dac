"""Partitions of the grid: groups of tokens that attend each other and the text.

Factorised space-time attention is ViViT's (arXiv:2103.15691, section 3.3), windows are W.A.L.T's (arXiv:2312.06662,
section 3.2) with the shift of Video Swin (arXiv:2106.13230), strides are Open-Sora-Plan's Skiparse (arXiv:2412.00131).
"""

import operator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tubelet.attention.patterns.compose import both, either
from tubelet.attention.patterns.spans import Axes, singles, whole, windows
from tubelet.attention.patterns.specs import spec, whole_number
from tubelet.layout import Grid, Kind, TokenInfo

__all__ = ["Joint", "Spatial", "Strided", "Temporal", "Window", "sizes"]


@dataclass(frozen=True)
class Joint:
    """Every token attends every token of its sample: joint space-time attention (ViViT's model 1, arXiv:2103.15691).

    Example:
        >>> from tubelet import Grid, TokenLayout, attend
        >>> q = k = v = torch.randn(6, 1, 4)
        >>> attend(q, k, v, pattern=Joint(), layout=TokenLayout.packed([Grid(1, 2, 2), Grid(2, 1, 1)])).shape
        torch.Size([6, 1, 4])
    """

    spec: str = field(init=False, repr=False, compare=False)
    text_sees_grid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", spec(self, "Joint"))

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """True for every pair."""
        return torch.ones((), dtype=torch.bool, device=q.kind.device)

    def group(self, tokens: TokenInfo) -> Int[Tensor, "*lead"]:
        """One group."""
        return torch.zeros_like(tokens.kind)

    def axes(self, grid: Grid) -> Axes:
        """The whole grid at once."""
        return whole(grid.t), whole(grid.h), whole(grid.w)

    __or__ = __ror__ = either
    __and__ = __rand__ = both


@dataclass(frozen=True)
class Spatial:
    """A token attends its own frame and the text (ViViT's models 3 and 4, Latte, Open-Sora).

    Example:
        >>> from tubelet import Grid, TokenLayout, attend
        >>> x = torch.randn(8, 1, 4)
        >>> attend(x, x, x, pattern=Spatial(), layout=TokenLayout.packed([Grid(2, 2, 2)])).shape
        torch.Size([8, 1, 4])
    """

    spec: str = field(init=False, repr=False, compare=False)
    text_sees_grid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", spec(self, "Spatial"))

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Same frame, or text on either side."""
        return _with_text(q, k, self.group(q) == self.group(k))

    def group(self, tokens: TokenInfo) -> Int[Tensor, "*lead"]:
        """The frame."""
        return tokens.coords[..., 0]

    def axes(self, grid: Grid) -> Axes:
        """One frame at a time."""
        return singles(grid.t), whole(grid.h), whole(grid.w)

    __or__ = __ror__ = either
    __and__ = __rand__ = both


@dataclass(frozen=True)
class Temporal:
    """A token attends its own place in every frame, and the text (ViViT's models 3 and 4, Latte, Open-Sora).

    Example:
        >>> from tubelet import Grid, TokenLayout, attend
        >>> x = torch.randn(8, 1, 4)
        >>> attend(x, x, x, pattern=Temporal(), layout=TokenLayout.packed([Grid(2, 2, 2)])).shape
        torch.Size([8, 1, 4])
    """

    spec: str = field(init=False, repr=False, compare=False)
    text_sees_grid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", spec(self, "Temporal"))

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Same row and column, or text on either side."""
        same_row, same_column = (q.coords[..., axis] == k.coords[..., axis] for axis in (1, 2))
        return _with_text(q, k, same_row & same_column)

    def group(self, tokens: TokenInfo) -> Int[Tensor, "*lead"]:
        """The place in the frame."""
        return tokens.coords[..., 1] * tokens.extent[..., 2] + tokens.coords[..., 2]

    def axes(self, grid: Grid) -> Axes:
        """One column of frames at a time."""
        return whole(grid.t), singles(grid.h), singles(grid.w)

    __or__ = __ror__ = either
    __and__ = __rand__ = both


@dataclass(frozen=True)
class Window:
    """A token attends the window of ``size`` (t, h, w) tokens that it lies in, and the text (arXiv:2312.06662).

    ``shift`` moves the borders: one lies at ``shift`` on each axis, as in Swin's shifted windows, without any cyclic
    wrap: what wrapping would join stays apart. Windows at the edge of a grid are smaller; an axis no longer than its
    window is one window, whatever the shift.

    Raises:
        ValueError: ``size`` or ``shift`` are not three whole numbers, or a size is below 1, a shift below 0.

    Example:
        >>> from tubelet import Grid, TokenLayout, attend
        >>> x = torch.randn(30, 1, 4)
        >>> attend(x, x, x, pattern=Window((1, 2, 2)), layout=TokenLayout.packed([Grid(2, 3, 5)])).shape
        torch.Size([30, 1, 4])
    """

    size: tuple[int, int, int]
    shift: tuple[int, int, int] = (0, 0, 0)
    spec: str = field(init=False, repr=False, compare=False)
    text_sees_grid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sizes("size", self.size, 1))
        object.__setattr__(self, "shift", sizes("shift", self.shift, 0))
        object.__setattr__(self, "spec", spec(self, "Window", self.size, self.shift))

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Same window, or text on either side."""
        same = torch.ones((), dtype=torch.bool, device=q.kind.device)
        for axis in range(3):
            same = same & (self._window(q, axis) == self._window(k, axis))
        return _with_text(q, k, same)

    def group(self, tokens: TokenInfo) -> Int[Tensor, "*lead"]:
        """The window's number in raster order."""
        number = torch.zeros_like(tokens.kind)
        for axis, size in enumerate(self.size):
            number = number * (tokens.extent[..., axis] // size + 2) + self._window(tokens, axis)
        return number

    def axes(self, grid: Grid) -> Axes:
        """One window at a time."""
        t, h, w = (windows(*side) for side in zip((grid.t, grid.h, grid.w), self.size, self.shift, strict=True))
        return t, h, w

    def _window(self, tokens: TokenInfo, axis: int) -> Int[Tensor, "*lead"]:
        size = self.size[axis]
        missing = (size - self.shift[axis]) % size
        moved = torch.where(tokens.extent[..., axis] > size, missing, 0)
        return (tokens.coords[..., axis] + moved) // size

    __or__ = __ror__ = either
    __and__ = __rand__ = both


@dataclass(frozen=True)
class Strided:
    """Runs of ``run`` tokens in raster order, every ``stride``-th of which attend each other, and the text.

    With ``n = (t·h + y)·w + x`` a token's group is ``(n // run) mod stride``: Skiparse's *single skip* is
    ``Strided(k)``, its *group skip* ``Strided(k, run=k)`` (Open-Sora-Plan, arXiv:2412.00131, section 2.2.2).

    Raises:
        ValueError: ``stride`` or ``run`` is below 1.

    Example:
        >>> from tubelet import Grid, TokenLayout, attend
        >>> x = torch.randn(8, 1, 4)
        >>> attend(x, x, x, pattern=Strided(2), layout=TokenLayout.packed([Grid(2, 2, 2)])).shape
        torch.Size([8, 1, 4])
    """

    stride: int
    run: int = 1
    spec: str = field(init=False, repr=False, compare=False)
    text_sees_grid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "stride", whole_number("stride", self.stride))
        object.__setattr__(self, "run", whole_number("run", self.run))
        if self.stride < 1 or self.run < 1:
            raise ValueError(f"stride and run must be at least 1, got stride={self.stride}, run={self.run}")
        object.__setattr__(self, "spec", spec(self, "Strided", self.stride, self.run))

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Same group, or text on either side."""
        return _with_text(q, k, self.group(q) == self.group(k))

    def group(self, tokens: TokenInfo) -> Int[Tensor, "*lead"]:
        """The run's number modulo the stride."""
        t, y, x = tokens.coords.unbind(-1)
        place = (t * tokens.extent[..., 1] + y) * tokens.extent[..., 2] + x
        return place // self.run % self.stride

    __or__ = __ror__ = either
    __and__ = __rand__ = both


def sizes(name: str, values: tuple[int, int, int], least: int) -> tuple[int, int, int]:
    """Three whole numbers of at least ``least``, as a tuple.

    Raises:
        ValueError: they are not.

    Example:
        >>> sizes("size", (1, 2, 2), 1)
        (1, 2, 2)
    """
    try:
        t, h, w = (operator.index(v) for v in values)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be three whole numbers (t, h, w), got {values}") from None
    if min(t, h, w) < least:
        raise ValueError(f"{name} must be at least {least} on each axis (t, h, w), got {values}")
    return t, h, w


def _with_text(q: TokenInfo, k: TokenInfo, grid: Bool[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """The global text rule: text attends and is attended by everything."""
    return grid | (q.kind == Kind.TEXT) | (k.kind == Kind.TEXT)
