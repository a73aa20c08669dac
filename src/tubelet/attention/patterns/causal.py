"""Attention that is causal in time, frame by frame, for autoregressive and streaming video models."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Bool, Int
from torch import Tensor

from tubelet.attention.patterns.compose import both, either
from tubelet.attention.patterns.spans import Axes, Span, causal, whole
from tubelet.attention.patterns.specs import spec, whole_number
from tubelet.layout import Grid, Kind, TokenInfo

__all__ = ["FrameCausal"]


@dataclass(frozen=True)
class FrameCausal:
    """A token attends its own frame, the frames before it, and the text: block-causal attention.

    With a ``window`` only that many frames (its own included) and the first ``sink`` frames: a rolling window with
    attention sinks (StreamingLLM, arXiv:2309.17453; CausVid, arXiv:2412.07772). Text attends text alone: what it saw of
    the future would leak to the past in the next layer.

    Raises:
        ValueError: ``window`` is below 1 or ``sink`` below 0.

    Example:
        >>> import torch
        >>> from tubelet import Grid, TokenLayout, attend
        >>> x = torch.randn(12, 1, 4)
        >>> attend(x, x, x, pattern=FrameCausal(window=2, sink=1), layout=TokenLayout.packed([Grid(3, 2, 2)])).shape
        torch.Size([12, 1, 4])
    """

    window: int | None = None
    sink: int = 0
    spec: str = field(init=False, repr=False, compare=False)
    text_sees_grid: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.window is not None:
            object.__setattr__(self, "window", whole_number("window", self.window))
        object.__setattr__(self, "sink", whole_number("sink", self.sink))
        if (self.window is not None and self.window < 1) or self.sink < 0:
            raise ValueError(f"window must be at least 1 and sink at least 0, got {self.window} and {self.sink}")
        object.__setattr__(self, "spec", spec(self, "FrameCausal", self.window, self.sink))

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """The key is text, or a grid token of an earlier or the same frame within window or sink."""
        now, then = q.coords[..., 0], k.coords[..., 0]
        seen = then <= now
        if self.window is not None:
            seen = seen & ((then > now - self.window) | (then < self.sink))
        return (k.kind == Kind.TEXT) | ((q.kind != Kind.TEXT) & seen)

    def axes(self, grid: Grid) -> Axes:
        """One frame of queries at a time, with all the keys of window and sink where these touch, else the window's."""
        frames = causal(grid.t, self.window)
        whole_prefix = [span._replace(k=0, nk=span.q + 1) if span.k <= self.sink else span for span in frames]
        return whole_prefix, whole(grid.h), whole(grid.w)

    def more_axes(self, grid: Grid) -> Axes | None:
        """The sink frames, for the queries whose window does not touch them."""
        if self.window is None or self.sink == 0:
            return None
        late = self.sink + self.window
        if grid.t <= late:
            return None
        return [Span(late, grid.t - late, 0, self.sink)], whole(grid.h), whole(grid.w)

    __or__ = __ror__ = either
    __and__ = __rand__ = both
