"""Causal 3-D convolution whose memory is an argument and a result.

Output frame i sees the input frames i - (kt - 1) … i and nothing later (MAGVIT-v2, arXiv:2310.05737, section 3.1):
``y[i] = Σ_j w[j] · x[i - (kt - 1) + j] + b``. The kt - 1 frames before the first are the *state*. At the start of a
video they are copies of its first frame, so that an image looks like a still video (as in CogVideoX and HunyuanVideo);
whoever wants zeros instead (as in Wan) passes a state of zeros.

Shapes: ``(b, c, t, h, w)``; the state is ``(b, c, kt - 1, h, w)``, whatever the length of the video.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["CausalConv3d", "State"]

State = tuple[Tensor, ...]
"""What a stream carries from chunk to chunk: tensors of a size that does not grow; it can be pickled.

Example:
    >>> state: State = (torch.zeros(1, 8, 2, 4, 4),)
"""


class CausalConv3d(nn.Module):
    """Convolution over time and space, causal in time, same size out as in.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: odd sizes over height and width, any size over time, as ``(t, h, w)``.
        bias: whether to add one.

    Raises:
        ValueError: a kernel that is not positive, or even over space.

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
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(kernel) < 1 or kernel[1] % 2 == 0 or kernel[2] % 2 == 0:
            raise ValueError(f"kernel must be positive and odd over height and width, not {kernel}")
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, padding=padding, bias=bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the weights anew (uniform, as ``nn.Conv3d``)."""
        self.conv.reset_parameters()

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: Float[Tensor, "b c s h w"] | None = None
    ) -> tuple[Float[Tensor, "b d t h w"], Float[Tensor, "b c r h w"]]:
        """Convolve the next frames of a video.

        Args:
            x: the next ``t >= 1`` frames.
            state: the ``kt - 1`` frames before them, as the previous call returned it; None at the start of a video.

        Returns:
            The output frames, and the state for the next call.

        Raises:
            ValueError: a state of another number of frames than ``kt - 1``, or of another batch, width or size than
                ``x``.
        """
        frames = self.conv.kernel_size[0] - 1
        if state is None:
            state = x[:, :, :1].expand(-1, -1, frames, -1, -1)
        elif state.shape[2] != frames:
            raise ValueError(f"state must hold kt - 1 = {frames} frames, not {state.shape[2]}")
        elif (state.shape[:2], state.shape[3:]) != (x.shape[:2], x.shape[3:]):
            raise ValueError(f"state has shape {tuple(state.shape)}, which does not go on to x of {tuple(x.shape)}")
        if frames:
            x = torch.cat([state.to(x.dtype), x], 2)
        y: Tensor = self.conv(x)
        return y, x[:, :, x.shape[2] - frames :].clone()

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]: ...
