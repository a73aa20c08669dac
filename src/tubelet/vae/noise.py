"""Noise that a decoder adds to its activations, so that it can make detail that the latents do not hold."""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["FrameNoise"]


class FrameNoise(nn.Module):
    """``x + weight · noise``: one picture of noise for all frames and samples, and a learned weight a channel.

    As in StyleGAN (arXiv:1812.04948, section 2) and LTX-Video (arXiv:2501.00103, section 2). The noise comes from
    PyTorch's generator (``torch.manual_seed``); a stream keeps that of its start.

    Example:
        >>> noise = FrameNoise(2)
        >>> y, state = noise(torch.zeros(1, 2, 3, 4, 5))
        >>> y.abs().max().item(), state.shape
        (0.0, torch.Size([4, 5]))
    """

    def __init__(
        self, channels: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All zeros: no noise."""
        nn.init.zeros_(self.weight)

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: Float[Tensor, "h w"] | None = None, *_: Any
    ) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, "h w"]]:
        """The next frames, and the noise that they have in common."""
        noise = torch.randn(x.shape[3:], device=x.device, dtype=x.dtype) if state is None else state
        return x + self.weight.reshape(-1, 1, 1, 1) * noise, noise

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Tensor | None = None, *_: Any) -> tuple[Tensor, Tensor]: ...
