"""Patterns for videos that leave still images alone, as joint training on both has them.

In W.A.L.T (arXiv:2312.06662, section 3.2) images pass the layers over space and time under an identity mask.
"""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from tubelet.attention.patterns.compose import both, either
from tubelet.attention.patterns.spans import Axes, singles
from tubelet.attention.patterns.specs import spec
from tubelet.layout import Grid, Kind, TokenInfo
from tubelet.protocols import Pattern

__all__ = ["VideoOnly"]


@dataclass(frozen=True)
class VideoOnly:
    """Tokens of a video attend by ``pattern``; a token of an image, a grid of one frame, attends itself alone.

    The text, where there is some, is attended as under ``pattern``.

    Args:
        pattern: one of our patterns that is cut along the axes, such as :class:`Window`.

    Raises:
        ValueError: ``pattern`` is no pattern, or has no ``axes`` (unions, intersections, splits of the heads).

    Example:
        >>> import torch
        >>> from tubelet import TokenLayout, attend
        >>> from tubelet.attention.patterns import Window
        >>> x, layout = torch.randn(12, 1, 4), TokenLayout.packed([Grid(2, 2, 2), Grid(1, 2, 2)])
        >>> out = attend(x, x, x, pattern=VideoOnly(Window((2, 2, 2))), layout=layout)
        >>> torch.equal(out[8:], x[8:])
        True
    """

    pattern: Any
    spec: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.pattern, type) or not (isinstance(self.pattern, Pattern) and hasattr(self.pattern, "axes")):
            raise ValueError(f"pattern must have axes(grid), as Window(...) has, got {self.pattern!r}")
        object.__setattr__(self, "spec", spec(self, "VideoOnly", self.pattern))

    @property
    def text_sees_grid(self) -> bool:
        """As under the pattern for videos."""
        sees: bool = self.pattern.text_sees_grid
        return sees

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """What the pattern allows, except between different tokens of an image."""
        image = (q.kind == Kind.GRID) & (k.kind == Kind.GRID) & (q.extent[..., 0] == 1)
        allowed: Tensor = self.pattern.attends(q, k, head)
        return allowed & ~(image & (q.coords != k.coords).any(-1))

    def axes(self, grid: Grid) -> Axes:
        """Those of the pattern; every token of an image by itself."""
        if grid.t == 1:
            return singles(grid.t), singles(grid.h), singles(grid.w)
        axes: Axes = self.pattern.axes(grid)
        return axes

    def more_axes(self, grid: Grid) -> Axes | None:
        """Those of the pattern, where it has some."""
        more = getattr(self.pattern, "more_axes", None)
        return None if more is None or grid.t == 1 else more(grid)

    __or__ = __ror__ = either
    __and__ = __rand__ = both
