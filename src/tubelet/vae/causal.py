"""Causal 3-D convolution whose memory is an argument and a result.

Output frame i sees the input frames i - (kt - 1) … i and nothing later (MAGVIT-v2, arXiv:2310.05737, section 3.1):
``y[i] = Σ_j w[j] · x[i - (kt - 1) + j] + b``. The kt - 1 frames before the first are the *state*. At the start of a
video they are copies of its first frame, so that an image looks like a still video (as in CogVideoX and HunyuanVideo),
or what ``before`` makes of it: `zeros` is Wan's. With a stride of s frames, output i sees the input frames up to s·i,
so the first frame still stands alone, and kt - s frames are carried on.

Shapes: ``(b, c, t, h, w)``; the state is ``(b, c, kt - s, h, w)``, whatever the length of the video.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.vae.blockwise import Pieces, blockwise, convolve_blocks, frame_by_frame, joined, pieces_of_tensor, stepwise
from tubelet.vae.columns import convolved
from tubelet.vae.formats import layout_of

__all__ = ["CausalConv3d", "State", "copies", "follow", "zeros"]

State = tuple[Any, ...]
"""What a stream carries from chunk to chunk: tensors and tuples of them, of a size that does not grow; to be pickled.

Example:
    >>> state: State = (torch.zeros(1, 8, 2, 4, 4),)
"""


def copies(first: Float[Tensor, "b c 1 h w"], frames: int) -> Float[Tensor, "b c s h w"]:
    """What stands before a video: its first frame, again and again (a view).

    Example:
        >>> copies(torch.ones(1, 1, 1, 2, 2), 2).shape
        torch.Size([1, 1, 2, 2, 2])
    """
    return first.expand(-1, -1, frames, -1, -1)


def zeros(first: Float[Tensor, "b c 1 h w"], frames: int) -> Float[Tensor, "b c s h w"]:
    """What stands before a video: nothing, as if padded by zeros.

    Example:
        >>> zeros(torch.ones(1, 1, 1, 2, 2), 2).abs().max().item()
        0.0
    """
    b, c, _, h, w = first.shape
    return first.new_zeros(b, c, frames, h, w)


def follow(state: Float[Tensor, "b c s h w"], x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h w"]:
    """The frames of a state and those after them, in the memory format and dtype of the latter.

    Frames of two formats would be joined in a third, and a convolution would copy them back.

    Example:
        >>> x = torch.zeros(1, 4, 3, 2, 2).to(memory_format=torch.channels_last_3d)
        >>> follow(zeros(x[:, :, :1], 2), x).is_contiguous(memory_format=torch.channels_last_3d)
        True
    """
    if layout_of(x) == torch.contiguous_format:
        return torch.cat([state.to(x.dtype), x], 2)
    return torch.cat([state.to(x.dtype, memory_format=torch.channels_last_3d), x], 2)


def _alone(before: Callable[[Tensor, int], Tensor], weight: Tensor) -> Tensor | None:
    """The one tap of a first frame, where what stands before it is known."""
    if before is copies:  # tap after tap, in float32 at least: `sum` over an axis inside is many times as slow
        first, *others = torch.split(weight, 1, 2)
        return sum(others, first.to(torch.promote_types(weight.dtype, torch.float32))).to(weight.dtype)
    return weight[:, :, -1:] if before is zeros else None


class CausalConv3d(nn.Module):
    """Convolution over time and space, causal in time; without a stride, same size out as in.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: any size over time, odd over height and width or as large as the stride there, as ``(t, h, w)``.
        stride: steps from one output to the next, as ``(t, h, w)``; over time no more than the kernel.
        padding: positions added on each side of a frame along height and width; None for half the kernel.
        before: makes the frames before a video from its first frame and their number: `copies` or `zeros`.
        edges: what stands round a frame, ``"zeros"`` or its own edge, ``"replicate"`` (``nn.Conv3d``'s padding mode).
        bias: whether to add one.

    Raises:
        ValueError: a kernel or stride that is not positive, a kernel that is even over space and not the stride, or a
            stride over time beyond it.

    Example:
        >>> conv = CausalConv3d(2, 3)
        >>> x = torch.randn(1, 2, 5, 4, 4)
        >>> whole, _ = conv(x)
        >>> head, state = conv(x[:, :, :2])
        >>> tail, state = conv(x[:, :, 2:], state)
        >>> torch.allclose(torch.cat([head, tail], 2), whole, atol=1e-6), tuple(state.shape)
        (True, (1, 2, 2, 4, 4))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        stride: tuple[int, int, int] = (1, 1, 1),
        *,
        padding: tuple[int, int] | None = None,
        before: Callable[[Tensor, int], Tensor] = copies,
        edges: Literal["zeros", "replicate"] = "zeros",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        odd = all(size % 2 or size == step for size, step in zip(kernel[1:], stride[1:], strict=True))
        if min(kernel) < 1 or not odd:
            raise ValueError(
                f"kernel must be positive, and over height and width odd or the stride {stride}, not {kernel}"
            )
        if min(stride) < 1 or stride[0] > kernel[0]:
            raise ValueError(f"stride must be positive, and over time within kernel {kernel}, not {stride}")
        self.before = before
        around = ((kernel[1] - 1) // 2, (kernel[2] - 1) // 2) if padding is None else padding
        self.conv = nn.Conv3d(
            in_channels,
            out_channels,
            kernel,
            stride,
            padding=(0, *around),
            bias=bias,
            padding_mode=edges,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self) -> None:
        """Draw the weights anew (uniform, as ``nn.Conv3d``)."""
        self.conv.reset_parameters()

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: Float[Tensor, "b c s h w"] | None = None, *_: Any
    ) -> tuple[Float[Tensor, "b d t2 h2 w2"], Float[Tensor, "b c r h w"]]:
        """Convolve the next frames of a video.

        Args:
            x: the next ``t >= 1`` frames; with a stride of s frames, ``1 + s·k`` at the start and ``s·k`` after it.
            state: the ``kt - s`` frames before them, as the previous call returned it; None at the start of a video.

        Returns:
            The output frames, and the state for the next call.

        Raises:
            ValueError: a state of another number of frames than ``kt - s``, or of another batch, width or size than
                ``x``; frames that the stride does not divide.
        """
        if self.blockwise(x):
            return self.convolve(pieces_of_tensor(x), x, state)
        self._check(x, state)
        if stepwise(self.conv, x):
            return self._stepped(x, state)
        kt = self.conv.kernel_size[0]
        if kt > 1:
            x = follow(self.before(x[:, :, :1], kt - 1) if state is None else state, x)
        return self.followed(x)

    def followed(
        self, x: Float[Tensor, "b c t h w"], bordered: bool = False
    ) -> tuple[Float[Tensor, "b d t2 h2 w2"], Float[Tensor, "b c r h3 w3"]]:
        """As `forward`, of frames that have those before them in front.

        ``bordered``: they have the convolution's positions round them as well, which are no part of the state.

        Example:
            >>> CausalConv3d(2, 3).followed(torch.zeros(1, 2, 5, 4, 4))[0].shape
            torch.Size([1, 3, 3, 4, 4])
        """
        conv = self.conv
        kept = x[:, :, x.shape[2] - (conv.kernel_size[0] - conv.stride[0]) :]
        if not bordered:
            return convolved(conv, x), kept.clone()
        rows, columns = (int(side) for side in conv.padding[1:])
        kept = kept[:, :, :, rows : x.shape[3] - rows, columns : x.shape[4] - columns]
        return F.conv3d(x, conv.weight, conv.bias, conv.stride), kept.clone()

    def blockwise(self, x: Float[Tensor, "b c t h w"]) -> bool:
        """Whether frames like these are convolved in blocks."""
        return blockwise(self.conv, x)

    def convolve(
        self,
        pieces: Pieces,
        like: Float[Tensor, "b c t h w"],
        state: Float[Tensor, "b c s h w"] | None,
        into: Float[Tensor, "b d t h w"] | None = None,
    ) -> tuple[Float[Tensor, "b d t h w"], Float[Tensor, "b c s h w"]]:
        """As `forward`, of frames that are made piece by piece (:mod:`tubelet.vae.blockwise`).

        Args:
            pieces: of the next frames.
            like: a tensor of the shape, dtype and memory format of these frames.
            state: as in `forward`.
            into: what the frames are added to and returned as; None for nothing.
        """
        self._check(like, state)
        first = None if state is not None else _alone(self.before, self.conv.weight)
        return convolve_blocks(
            self.conv, lambda *place: self._longer(pieces, state, *place), like.shape[2], like, first, into
        )

    def _longer(self, pieces: Pieces, state: Tensor | None, start: int, stop: int, top: int, bottom: int) -> Tensor:
        """Pieces of the frames and of those that stand before them."""
        past = self.conv.kernel_size[0] - 1 if state is None else state.shape[2]
        if start >= past:
            return pieces(start - past, stop - past, top, bottom)
        head = pieces(0, max(stop - past, 1), top, bottom)
        before = self.before(head[:, :, :1], past) if state is None else state[:, :, :, top:bottom].to(head.dtype)
        before = before[:, :, start : min(stop, past)]
        return joined(before, head) if stop > past else before

    def _stepped(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `forward`, one frame of the result after the other."""
        kt, stride, height = self.conv.kernel_size[0], self.conv.stride[0], x.shape[3]
        pieces = partial(self._longer, pieces_of_tensor(x), state)
        frames = x.shape[2] + (kt - 1 if state is None else state.shape[2])
        starts = range(0, frames - kt + 1, stride)
        y = frame_by_frame(lambda i: self.conv(pieces(starts[i], starts[i] + kt, 0, height)), len(starts), layout_of(x))
        return y, pieces(frames - (kt - stride), frames, 0, height).clone()

    def _check(self, x: Tensor, state: Tensor | None) -> None:
        """Whether frames fit the stride and go on from a state."""
        kt, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if (x.shape[2] - (state is None)) % stride:
            raise ValueError(f"x has {x.shape[2]} frames, which a stride of {stride} does not divide")
        if state is not None and state.shape[2] != kt - stride:
            form = "kt - 1" if stride == 1 else f"kt - {stride}"
            raise ValueError(f"state must hold {form} = {kt - stride} frames, not {state.shape[2]}")
        if state is not None and (state.shape[:2], state.shape[3:]) != (x.shape[:2], x.shape[3:]):
            raise ValueError(f"state has shape {tuple(state.shape)}, which does not go on to x of {tuple(x.shape)}")

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Tensor | None = None, *_: Any) -> tuple[Tensor, Tensor]: ...
