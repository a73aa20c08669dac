"""Space and time multiplied by depth to space: a convolution makes the channels that become positions.

A causal convolution is MAGVIT-v2's way up (arXiv:2310.05737, section 3.1). Doubling time makes ``1 + 2k`` frames of
``1 + k``: of the two that the first frame of a video gives, the earlier would stand before its start and is dropped. A
linear map of each position is Mochi's. Activations are ``(b, c, t, h, w)``.
"""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.vae.blocks import Device
from tubelet.vae.causal import CausalConv3d
from tubelet.vae.formats import rearranged

__all__ = ["PointwiseUp", "ShuffleUp"]


class ShuffleUp(nn.Module):
    """``temporal × spatial × spatial`` positions of each, from as many times the channels of a causal convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        temporal: frames of each frame but the first of a video, which gives one.
        spatial: positions of each position along height and width.

    Raises:
        ValueError: a factor below 1.

    Example:
        >>> y, state = ShuffleUp(4, 6, temporal=2, spatial=2)(torch.zeros(1, 4, 3, 2, 2))
        >>> y.shape, state.shape
        (torch.Size([1, 6, 5, 4, 4]), torch.Size([1, 4, 2, 2, 2]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temporal: int,
        spatial: int,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(temporal, spatial) < 1:
            raise ValueError(f"temporal and spatial must be at least 1, got {temporal} and {spatial}")
        self.temporal, self.spatial = temporal, spatial
        self.conv = CausalConv3d(in_channels, out_channels * temporal * spatial**2, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        self.conv.reset_parameters()

    def forward(
        self, x: Float[Tensor, "b c t h w"], state: Float[Tensor, "b c s h w"] | None = None, *_: Any
    ) -> tuple[Float[Tensor, "b d t2 h2 w2"], Float[Tensor, "b c r h w"]]:
        """The next frames and the state of the convolution."""
        y, after = self.conv(x, state)
        sides = {"pt": self.temporal, "ph": self.spatial, "pw": self.spatial}
        y = rearranged(y, "b (pt ph pw d) t h w -> b d (t pt) (h ph) (w pw)", **sides)
        return y[:, :, self.temporal - 1 :] if state is None else y, after

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Tensor | None = None, *_: Any) -> tuple[Tensor, Tensor]: ...


class PointwiseUp(nn.Module):
    """Each position to ``temporal × spatial × spatial`` positions by one linear map of its channels.

    No frame stands alone: whoever wants ``1 + temporal·k`` frames of ``1 + k`` leaves out the first ``temporal - 1``.

    Example:
        >>> PointwiseUp(8, 4, temporal=3, spatial=2)(torch.zeros(1, 8, 2, 3, 5)).shape
        torch.Size([1, 4, 6, 6, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temporal: int,
        spatial: int,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.temporal, self.spatial = temporal, spatial
        self.conv = nn.Conv3d(in_channels, out_channels * temporal * spatial**2, 1, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the map anew."""
        self.conv.reset_parameters()

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t2 h2 w2"]:
        """``temporal`` times the frames, ``spatial`` times the sides."""
        sides = {"pt": self.temporal, "ph": self.spatial, "pw": self.spatial}
        y: Tensor = self.conv(x)
        return rearranged(y, "b (d pt ph pw) t h w -> b d (t pt) (h ph) (w pw)", **sides)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
