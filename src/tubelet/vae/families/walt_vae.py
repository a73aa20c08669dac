"""The causal autoencoder of W.A.L.T (arXiv:2312.06662, section 3.1), MAGVIT-v2's (arXiv:2310.05737) without its codes.

A 3-D convolutional network in which every convolution over time is causal: each scale is a few residual blocks of two
3×3×3 convolutions, then one of stride 2 over space and, at some scales, over time; the decoder goes up by depth to
space. So the first frame is encoded as an image, 17 frames give 5 latent frames, and all of it streams. The latents are
real numbers with a diagonal Gaussian posterior, eight for each 4×8×8 pixels.

What differs from MAGVIT-v2: norms over the channels of each position in place of group norms, whose statistics would
see later frames; and no adaptive norms in the decoder, which there take the codes. No weights are public.

Shapes: video ``(b, c, T, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``T = 1 + 4·(t - 1)``, ``H = 8·h``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tubelet.vae.blocks import ChannelNorm, Device
from tubelet.vae.causal import CausalConv3d
from tubelet.vae.chains import Chain, NormedConv, PerFrame, Residual
from tubelet.vae.factors import Factors
from tubelet.vae.shuffles import ShuffleUp
from tubelet.vae.sizes import check_counts, check_flags, check_statistics, check_widths
from tubelet.vae.video import VideoAutoencoder

__all__ = ["WaltAutoencoder", "WaltAutoencoderConfig", "walt_vae"]


@dataclass(frozen=True, kw_only=True)
class WaltAutoencoderConfig:
    """Sizes of a `WaltAutoencoder`.

    Args:
        in_channels: channels of the video.
        latent_channels: channels of the latents.
        widths: channels of each scale, finest first; each scale after the first halves height and width.
        depth: residual blocks at each scale, and between encoder and head.
        halve_time: at which of the halvings of space, finest first, time is halved too.
        latent_mean: of each latent channel over the training data; empty for zeros.
        latent_std: its standard deviation; empty for ones.

    Raises:
        ValueError: a size that is no positive whole number, halvings that do not fit the scales, or statistics that are
            not finite or of another number than the latent channels.

    Example:
        >>> WaltAutoencoderConfig(widths=(8, 16), halve_time=(True,)).factors
        Factors(temporal=2, spatial=2)
    """

    in_channels: int = 3
    latent_channels: int = 8
    widths: tuple[int, ...] = (128, 256, 256, 512)
    depth: int = 4
    halve_time: tuple[bool, ...] = (False, True, True)
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_counts(self, "in_channels", "latent_channels", "depth")
        check_flags(self, "halve_time")
        check_widths(self, "widths")
        if type(self.halve_time) is not tuple or len(self.halve_time) != len(self.widths) - 1:
            raise ValueError(f"halve_time {self.halve_time} must say yes or no between {len(self.widths)} scales")
        check_statistics(self)
        for name, values in (("latent_mean", self.latent_mean), ("latent_std", self.latent_std)):
            if len(values) not in (0, self.latent_channels):
                raise ValueError(f"{name} has {len(values)} values for {self.latent_channels} latent channels")

    @property
    def factors(self) -> Factors:
        """Frames and pixels to a latent."""
        return Factors(2 ** sum(self.halve_time), 2 ** len(self.halve_time))


class WaltAutoencoder(VideoAutoencoder):
    """The video autoencoder of these sizes.

    Args:
        config: the sizes.

    Example:
        >>> vae = WaltAutoencoder(WaltAutoencoderConfig(widths=(4, 4, 4, 4), depth=1))
        >>> z = vae.encode(torch.zeros(1, 3, 17, 16, 24)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 8, 5, 2, 3]), torch.Size([1, 3, 17, 16, 24]))
    """

    def __init__(
        self, config: WaltAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(config, _encoder(config, **made), _decoder(config, **made), **made)


def walt_vae() -> WaltAutoencoderConfig:
    """W.A.L.T's factors, 4×8×8 to 8 channels, with MAGVIT-v2's first 128 channels: 370.6 M parameters.

    Neither paper gives the count.

    Example:
        >>> walt_vae().factors
        Factors(temporal=4, spatial=8)
    """
    return WaltAutoencoderConfig()


def _encoder(config: WaltAutoencoderConfig, **made: Any) -> Chain:
    """Video to moments: scales from fine to coarse, more blocks at the coarsest, the head."""
    widths = config.widths
    scales = [_down(config, i, **made) for i in range(len(widths))]
    return Chain(
        embed=CausalConv3d(config.in_channels, widths[0], **made),
        stages=Chain(*scales),
        middle=_blocks(widths[-1], widths[-1], config.depth, **made),
        head=_head(widths[-1], 2 * config.latent_channels, **made),
    )


def _decoder(config: WaltAutoencoderConfig, **made: Any) -> Chain:
    """Latents to video, the mirror of the encoder."""
    widths = config.widths
    scales = [_up(config, i, **made) for i in reversed(range(len(widths)))]
    return Chain(
        embed=CausalConv3d(config.latent_channels, widths[-1], **made),
        middle=_blocks(widths[-1], widths[-1], config.depth, **made),
        stages=Chain(*scales),
        head=_head(widths[0], config.in_channels, **made),
    )


def _down(config: WaltAutoencoderConfig, scale: int, **made: Any) -> Chain:
    """The encoder at one scale: blocks, then half the space and perhaps half the time."""
    width = config.widths[scale]
    blocks = _blocks(config.widths[max(scale - 1, 0)], width, config.depth, **made)
    if scale == len(config.halve_time):
        return Chain(blocks=blocks)
    stride = (1 + config.halve_time[scale], 2, 2)
    return Chain(blocks=blocks, down=CausalConv3d(width, width, stride=stride, **made))


def _up(config: WaltAutoencoderConfig, scale: int, **made: Any) -> Chain:
    """The decoder at one scale: blocks, then twice the space and perhaps the time for the next finer scale."""
    width = config.widths[scale]
    blocks = _blocks(config.widths[min(scale + 1, len(config.widths) - 1)], width, config.depth, **made)
    if not scale:
        return Chain(blocks=blocks)
    return Chain(blocks=blocks, up=ShuffleUp(width, width, 1 + config.halve_time[scale - 1], 2, **made))


def _blocks(before: int, width: int, depth: int, **made: Any) -> Chain:
    return Chain(*(_block(width if i else before, width, **made) for i in range(depth)))


def _block(before: int, width: int, **made: Any) -> Residual:
    branch = Chain(_head(before, width, **made), _head(width, width, **made))
    return Residual(branch, None if before == width else PerFrame(nn.Conv3d(before, width, 1, **made)))


def _head(before: int, width: int, **made: Any) -> NormedConv:
    return NormedConv(ChannelNorm(before, **made), CausalConv3d(before, width, **made))
