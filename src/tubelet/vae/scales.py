"""Changes of scale by convolution: halves and doubles of space and of time, the first frame of a video on its own.

Halving time makes ``1 + k`` frames of ``1 + 2k``, doubling ``1 + 2k`` of ``1 + k``. The first frame passes both as it
is, without the convolution over time, as in Wan (arXiv:2503.20314, section 4.1). Activations are ``(b, c, t, h, w)``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.vae.blocks import Device
from tubelet.vae.blockwise import frame_by_frame
from tubelet.vae.causal import CausalConv3d, State, zeros
from tubelet.vae.formats import layout_of
from tubelet.vae.repeats import convolve_repeated
from tubelet.vae.unwatched import unwatched

__all__ = ["DoubleSpace", "DoubleTime", "HalveSpace", "HalveTime", "MeanTime"]


class HalveSpace(nn.Module):
    """A 3×3 convolution of each frame at every other position, with zeros below and to the right of the frame.

    Example:
        >>> HalveSpace(4)(torch.zeros(1, 4, 3, 6, 8)).shape
        torch.Size([1, 4, 3, 3, 4])
    """

    def __init__(self, channels: int, *, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, (1, 3, 3), (1, 2, 2), device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        self.conv.reset_parameters()

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h2 w2"]:
        """Half the height and width, rounded down."""
        if not unwatched(self.conv, x):
            return self._halved(x)
        return frame_by_frame(lambda i: self._halved(x[:, :, i : i + 1]), x.shape[2], layout_of(x))

    def _halved(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class DoubleSpace(nn.Module):
    """Each position four times, then a 3×3 convolution of each frame, which `convolve_repeated` does without copies.

    Example:
        >>> DoubleSpace(4, 2)(torch.zeros(1, 4, 3, 3, 4)).shape
        torch.Size([1, 2, 3, 6, 8])
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, (1, 3, 3), padding=(0, 1, 1), device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        self.conv.reset_parameters()

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h2 w2"]:
        """Twice the height and width."""
        return convolve_repeated(x, self.conv, (1, 2, 2))

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class HalveTime(nn.Module):
    """One frame of the two after each other and the one before them, by a causal convolution over time.

    Example:
        >>> y, state = HalveTime(4)(torch.zeros(1, 4, 5, 2, 2))
        >>> y.shape, state.shape
        (torch.Size([1, 4, 3, 2, 2]), torch.Size([1, 4, 1, 2, 2]))
    """

    def __init__(self, channels: int, *, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (3, 1, 1), (2, 1, 1), device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        self.conv.reset_parameters()

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: Float[Tensor, "b c 1 h w"] | None = None, *_: Any
    ) -> tuple[Float[Tensor, "b c t2 h w"], Float[Tensor, "b c 1 h w"]]:
        """``1 + 2k`` frames at the start of a video, ``2k`` after it; the state is the last frame."""
        return self.conv(x, state) if state is not None else _past_the_first(x, x[:, :, :1], self.conv)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Tensor | None = None, *_: Any) -> tuple[Tensor, Tensor]: ...


class DoubleTime(nn.Module):
    """Two frames of each, by a causal convolution over time to twice the channels; zeros stand before the second frame.

    Example:
        >>> y, state = DoubleTime(4)(torch.zeros(1, 4, 3, 2, 2))
        >>> y.shape, state.shape
        (torch.Size([1, 4, 5, 2, 2]), torch.Size([1, 4, 2, 2, 2]))
    """

    def __init__(self, channels: int, *, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, 2 * channels, (3, 1, 1), device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        self.conv.reset_parameters()

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: Float[Tensor, "b c 2 h w"] | None = None, *_: Any
    ) -> tuple[Float[Tensor, "b c t2 h w"], Float[Tensor, "b c 2 h w"]]:
        """``1 + 2k`` frames of ``1 + k`` at the start of a video, twice the frames after it."""
        if state is None:
            return _past_the_first(x, zeros(x[:, :, :1], 2), self._double)
        return self._double(x, state)

    def _double(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.conv(x, state)
        halves = [
            torch.split(half, 1, 2) for half in y.chunk(2, 1)
        ]  # slices keep the memory format, a shuffle does not
        return torch.cat([frame for pair in zip(*halves, strict=True) for frame in pair], 2), state

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Tensor | None = None, *_: Any) -> tuple[Tensor, Tensor]: ...


class MeanTime(nn.Module):
    """The mean of each ``temporal`` frames; the first frame of a video stays as it is.

    Example:
        >>> x = torch.arange(5.0).reshape(1, 1, 5, 1, 1)
        >>> MeanTime(2)(x)[0].flatten().tolist()
        [0.0, 1.5, 3.5]
    """

    def __init__(self, temporal: int) -> None:
        super().__init__()
        self.temporal = temporal

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: State | None = None, *_: Any
    ) -> tuple[Float[Tensor, "b c t2 h w"], State]:
        """``1 + temporal·k`` frames at the start of a video, ``temporal·k`` after it; there is nothing to carry on."""
        alone = int(state is None)
        parts = [x[:, :, alone + i :: self.temporal] for i in range(self.temporal)]
        means = sum(parts[1:], parts[0]) / self.temporal
        return torch.cat([x[:, :, :1], means], 2) if alone else means, ()

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: State | None = None, *_: Any) -> tuple[Tensor, State]: ...


def _past_the_first(
    x: Tensor, state: Tensor, through: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The first frame as it is, those after it through a layer that starts with ``state``."""
    first, rest = x[:, :, :1], x[:, :, 1:]
    if not rest.shape[2]:
        return first, state.clone()
    y, state = through(rest, state)
    return torch.cat([first, y], 2), state
