"""A discriminator of patches: each score judges one patch of a video (pix2pix, arXiv:1611.07004, section 6.1.2).

Convolutions with stride 2, each followed by a leaky ReLU, then two with stride 1; channels double, up to 8 times those
of the first. With a kernel of one frame it judges frames alone (PatchGAN, as in VQGAN, arXiv:2012.09841); with more it
judges motion too (the 3-D form of TATS, arXiv:2204.03638). Videos are ``(b, c, t, h, w)``, an image has t = 1.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.vae.blocks import Device
from tubelet.vae.factors import check_channels
from tubelet.vae.objectives.checks import check_count

__all__ = ["PatchDiscriminator"]

_SLOPE, _DEVIATION, _MOST = 0.2, 0.02, 8


class PatchDiscriminator(nn.Module):
    """Scores of overlapping patches, high where they look real.

    ``kernel=(1, 4, 4)`` is the 2-D PatchGAN, applied to each frame; ``(3, 4, 4)`` sees time and takes clips of any
    length. Sides (and time, where the kernel is longer than one frame) are halved ``n_layers`` times. With three layers
    a score sees 70x70 pixels.

    Args:
        in_channels: of the video.
        base_channels: of the first convolution.
        n_layers: how many convolutions have stride 2.
        kernel: of all convolutions, as (t, h, w).
        padding: zeros on each side, as (t, h, w); None for half the kernel less one, rounded down.
        norm: makes the norm of a number of channels, for all but the first and the last convolution. Convolutions in
            front of a norm with a bias have none. A batch norm makes scores depend on the rest of the batch.

    Raises:
        ValueError: channels, layers or a kernel below 1, or a padding below 0; at the call, another rank or number of
            channels, or a video too small to give a score.

    Example:
        >>> frames = PatchDiscriminator(3, 8, n_layers=2)
        >>> clips = PatchDiscriminator(3, 8, n_layers=2, kernel=(3, 4, 4))
        >>> video = torch.randn(2, 3, 5, 33, 40)
        >>> frames(video).shape, clips(video).shape
        (torch.Size([2, 1, 5, 6, 8]), torch.Size([2, 1, 2, 6, 8]))
    """

    def __init__(
        self,
        in_channels: int = 3,
        base_channels: int = 64,
        n_layers: int = 3,
        *,
        kernel: tuple[int, int, int] = (1, 4, 4),
        padding: tuple[int, int, int] | None = None,
        norm: Callable[[int], nn.Module] = nn.BatchNorm3d,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, count in {"in_channels": in_channels, "base_channels": base_channels, "n_layers": n_layers}.items():
            check_count(name, count)
        _check_sides("kernel", kernel, 1)
        halve = tuple(2 if side > 1 else 1 for side in kernel)
        padding = tuple((side - 1) // 2 for side in kernel) if padding is None else padding  # type: ignore[assignment]
        _check_sides("padding", padding, 0)
        widths = [in_channels] + [base_channels * min(2**i, _MOST) for i in range(n_layers + 1)]
        layers: list[nn.Module] = []
        for i, (inputs, width) in enumerate(pairwise(widths)):
            normed = norm(width) if i else nn.Identity()
            bias = getattr(normed, "bias", None) is None
            stride = halve if i < n_layers else 1
            conv = nn.Conv3d(inputs, width, kernel, stride, padding, bias=bias)  # type: ignore[arg-type]
            layers += [conv, normed, nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv3d(widths[-1], 1, kernel, 1, padding))  # type: ignore[arg-type]
        self.to(device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of convolutions from N(0, 0.02²), as pix2pix does; their biases are zero."""
        for layer in self.layers:
            if isinstance(layer, nn.Conv3d):
                nn.init.normal_(layer.weight, 0.0, _DEVIATION)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif callable(reset := getattr(layer, "reset_parameters", None)):
                reset()

    @property
    def least(self) -> tuple[int, ...]:
        """Frames, height and width of the smallest video that has a score."""
        least = [1, 1, 1]
        for conv in reversed(self._convs):
            padding: tuple[int, ...] = conv.padding  # type: ignore[assignment]
            geometry = zip(least, conv.kernel_size, conv.stride, padding, strict=True)
            least = [max(1, (side - 1) * stride + kernel - 2 * pad) for side, kernel, stride, pad in geometry]
        return tuple(least)

    @property
    def _convs(self) -> list[nn.Conv3d]:
        return [layer for layer in self.layers if isinstance(layer, nn.Conv3d)]

    def forward(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 1 t2 h2 w2"]:
        """One score for each patch."""
        check_channels("video", video, self._convs[0].in_channels)
        least = self.least
        if any(side < needed for side, needed in zip(video.shape[2:], least, strict=True)):
            raise ValueError(f"video must have at least (t, h, w) = {least}, got {tuple(video.shape[2:])}")
        scores: Tensor = self.layers(video)
        return scores

    if TYPE_CHECKING:

        def __call__(self, video: Tensor) -> Tensor: ...


def _check_sides(name: str, sides: object, least: int) -> None:
    """Three whole numbers of at least ``least``."""
    found = list(sides) if isinstance(sides, tuple | list) else []
    if len(found) != 3 or not all(isinstance(side, int) and side >= least for side in found):
        raise ValueError(f"{name} must be three whole numbers (t, h, w) of at least {least}, got {sides!r}")
