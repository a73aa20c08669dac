"""Convolution that sees the frames on both sides of its own, and changes of the frame rate, for whole clips.

Output frame i sees the input frames i - kt // 2 … i + kt // 2. Before the first frame and behind the last stand copies
of them or zeros. Since frames see later ones, a layer that is called takes a whole clip: what stood behind a chunk's
last frame would not be the clip's. A layer that is given a state says so. `ClipConv3d.ahead` takes a clip in chunks and
keeps back the frames that see beyond.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.vae.blockwise import Pieces, blockwise, convolve_blocks, joined, pieces_of_tensor
from tubelet.vae.causal import State, copies
from tubelet.vae.columns import convolved

__all__ = ["Around", "ClipConv3d", "CopyFrames", "EveryFrame", "FramesOfChannels"]


class ClipConv3d(nn.Module):
    """Convolution over time and space that sees both sides in time; the same size out as in.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: odd sizes, as ``(t, h, w)``; zeros stand around each frame.
        around: makes the frames before a clip from its first frame and their number, and those behind it from its last:
            :func:`tubelet.vae.copies` or :func:`tubelet.vae.zeros`.

    Raises:
        ValueError: a kernel that is not positive and odd; at the call, a state.

    Example:
        >>> y, _ = ClipConv3d(2, 4)(torch.zeros(1, 2, 5, 4, 4))
        >>> y.shape
        torch.Size([1, 4, 5, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        *,
        around: Callable[[Tensor, int], Tensor] = copies,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(kernel) < 1 or not all(side % 2 for side in kernel):
            raise ValueError(f"kernel must be positive and odd, not {kernel}")
        self.around = around
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, padding=padding, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the weights anew (uniform, as ``nn.Conv3d``)."""
        self.conv.reset_parameters()

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: Any = None, *_: Any
    ) -> tuple[Float[Tensor, "b d t h w"], State]:
        """Convolve a whole clip; the state that comes back serves only to be refused.

        Raises:
            ValueError: a state.
        """
        if self.blockwise(x):
            return self.convolve(pieces_of_tensor(x), x, state)
        return convolved(self.conv, _whole(x, state, self.conv.kernel_size[0] // 2, self.around)), ()

    def ahead(
        self, x: Float[Tensor, "b c t h w"], held: Float[Tensor, "b c s h w"] | None, *, last: bool
    ) -> tuple[Float[Tensor, "b d t2 h w"] | None, Float[Tensor, "b c s2 h w"]]:
        """The frames of a clip that comes in chunks, each as soon as the frames behind it are there.

        Args:
            x: the next frames.
            held: what the previous call returned; None at the start of the clip.
            last: whether the clip ends with these frames.

        Returns:
            The frames, None where none is ready; and the last frames that came, at most ``kt - 1``, with those that
            stand before the clip.

        Raises:
            ValueError: frames of another batch, width or size than those held.

        Example:
            >>> conv, x = ClipConv3d(2, 3), torch.randn(1, 2, 4, 4, 4)
            >>> head, held = conv.ahead(x[:, :, :1], None, last=False)
            >>> tail, held = conv.ahead(x[:, :, 1:], held, last=True)
            >>> head is None, torch.allclose(tail, conv(x)[0], atol=1e-6)
            (True, True)
        """
        kt = self.conv.kernel_size[0]
        side = kt // 2
        if held is not None and (held.shape[:2], held.shape[3:]) != (x.shape[:2], x.shape[3:]):
            raise ValueError(f"held has shape {tuple(held.shape)}, which does not go on to x of {tuple(x.shape)}")
        parts = [self.around(x[:, :, :1], side) if held is None else held, x]
        x = torch.cat([*parts, self.around(x[:, :, -1:], side)] if last else parts, 2)
        y = convolved(self.conv, x) if x.shape[2] >= kt else None
        return y, x[:, :, max(0, x.shape[2] - (kt - 1)) :].clone()

    def blockwise(self, x: Float[Tensor, "b c t h w"]) -> bool:
        """Whether a clip like this is convolved in blocks."""
        return blockwise(self.conv, x)

    def convolve(
        self,
        pieces: Pieces,
        like: Float[Tensor, "b c t h w"],
        state: Any = None,
        into: Float[Tensor, "b d t h w"] | None = None,
    ) -> tuple[Float[Tensor, "b d t h w"], State]:
        """As `forward`, of frames that are made piece by piece (:mod:`tubelet.vae.blockwise`), added to ``into``."""
        _refuse(state)
        frames = like.shape[2]
        longer = partial(self._longer, pieces, frames)
        return convolve_blocks(self.conv, longer, frames, like, into=into)[0], ()

    def _longer(self, pieces: Pieces, frames: int, start: int, stop: int, top: int, bottom: int) -> Tensor:
        """Pieces of the clip and of the frames that stand on both sides of it."""
        side = self.conv.kernel_size[0] // 2
        first, last = (min(max(place - side, 0), frames - 1) for place in (start, stop - 1))
        inside = pieces(first, last + 1, top, bottom)
        parts = [inside[:, :, max(start - side, 0) - first : max(stop - side - first, 0)]]
        if start < side:
            parts.insert(0, self.around(inside[:, :, :1], side)[:, :, start : min(stop, side)])
        if stop > frames + side:
            behind = self.around(inside[:, :, -1:], side)
            parts.append(behind[:, :, max(start - frames - side, 0) : stop - frames - side])
        return reduce(joined, parts)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Any = None, *_: Any) -> tuple[Tensor, State]: ...


class Around(nn.Module):
    """Frames put before a clip and behind it, for a norm that is to count them and a convolution without padding.

    Args:
        frames: how many on each side.
        around: as in `ClipConv3d`.

    Raises:
        ValueError: at the call, a state.

    Example:
        >>> Around(1)(torch.zeros(1, 2, 5, 4, 4))[0].shape
        torch.Size([1, 2, 7, 4, 4])
    """

    def __init__(self, frames: int, around: Callable[[Tensor, int], Tensor] = copies) -> None:
        super().__init__()
        self.frames, self.around = frames, around

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: Any = None, *_: Any
    ) -> tuple[Float[Tensor, "b c t2 h w"], State]:
        """The longer clip; the state that comes back serves only to be refused."""
        return _whole(x, state, self.frames, self.around), ()

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Any = None, *_: Any) -> tuple[Tensor, State]: ...


class EveryFrame(nn.Module):
    """One frame of ``step``, the first of each group.

    Example:
        >>> EveryFrame(2)(torch.arange(4.0).reshape(1, 1, 4, 1, 1)).flatten().tolist()
        [0.0, 2.0]
    """

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h w"]:
        """Fewer frames."""
        return x[:, :, :: self.step]

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class CopyFrames(nn.Module):
    """Each frame ``times`` times.

    Example:
        >>> CopyFrames(2)(torch.arange(2.0).reshape(1, 1, 2, 1, 1)).flatten().tolist()
        [0.0, 0.0, 1.0, 1.0]
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h w"]:
        """More frames."""
        return x.repeat_interleave(self.times, 2)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class FramesOfChannels(nn.Module):
    """``times`` frames of each, from as many parts of its channels.

    Example:
        >>> FramesOfChannels(2)(torch.arange(4.0).reshape(1, 2, 2, 1, 1)).flatten().tolist()
        [0.0, 2.0, 1.0, 3.0]
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b c t2 h w"]:
        """More frames of fewer channels."""
        return rearrange(x, "b (n c) t h w -> b c (t n) h w", n=self.times)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


def _whole(x: Tensor, state: Any, frames: int, around: Callable[[Tensor, int], Tensor]) -> Tensor:
    """A clip with frames on both sides, that has not begun before."""
    _refuse(state)
    return torch.cat([around(x[:, :, :1], frames), x, around(x[:, :, -1:], frames)], 2) if frames else x


def _refuse(state: Any) -> None:
    if state is not None:
        raise ValueError("state must be None: this layer sees later frames, so a clip goes through it whole")
