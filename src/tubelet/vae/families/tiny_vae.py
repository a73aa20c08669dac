"""A tiny image autoencoder for previews (TAESD): convolutions and ReLUs, on each frame alone.

It reads and writes the latents of a larger autoencoder, after which it was trained, in a fraction of the time. A block
is three 3×3 convolutions beside the identity; there are no norms, so tiles are exact.

Shapes: video ``(b, c, t, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``H = 8·h`` for four scales.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tubelet.vae.blocks import Device
from tubelet.vae.causal import CausalConv3d
from tubelet.vae.chains import Chain, PerFrame, Residual
from tubelet.vae.factors import Factors
from tubelet.vae.pointwise import Affine, SoftClamp
from tubelet.vae.posterior import Point
from tubelet.vae.sizes import check_counts, check_statistics, check_widths
from tubelet.vae.video import VideoAutoencoder

__all__ = ["TinyAutoencoder", "TinyAutoencoderConfig", "tiny_vae"]

_BOUND = 3.0  # latents beyond it are not of the larger autoencoder


@dataclass(frozen=True, kw_only=True)
class TinyAutoencoderConfig:
    """Sizes of a `TinyAutoencoder`.

    Args:
        in_channels: channels of the video.
        latent_channels: channels of the latents.
        width: channels of all layers between.
        depths: blocks at each scale of the encoder, finest first; each scale after the first halves height and width.
        decoder_depths: those of the decoder, finest first too.
        latent_mean: of each latent channel over the training data; empty for zeros.
        latent_std: its standard deviation; empty for ones.

    Raises:
        ValueError: a size that is not positive, depths of different lengths, or statistics of another number than the
            latent channels.

    Example:
        >>> TinyAutoencoderConfig(depths=(1, 3), decoder_depths=(1, 3)).factors
        Factors(temporal=1, spatial=2)
    """

    in_channels: int = 3
    latent_channels: int = 4
    width: int = 64
    depths: tuple[int, ...] = (1, 3, 3, 3)
    decoder_depths: tuple[int, ...] = (1, 3, 3, 3)
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_counts(self, "in_channels", "latent_channels", "width")
        check_widths(self, "depths")
        check_widths(self, "decoder_depths", scales=len(self.depths))
        check_statistics(self)

    @property
    def factors(self) -> Factors:
        """Frames and pixels to a latent."""
        return Factors(1, 2 ** (len(self.depths) - 1))


class TinyAutoencoder(VideoAutoencoder):
    """The tiny autoencoder of these sizes; its latents are certain, and what it decodes is not clamped.

    Args:
        config: the sizes.

    Example:
        >>> vae = TinyAutoencoder(TinyAutoencoderConfig(width=8))
        >>> z = vae.encode(torch.zeros(1, 3, 5, 16, 24)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 4, 5, 2, 3]), torch.Size([1, 3, 5, 16, 24]))
    """

    def __init__(
        self, config: TinyAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(config, _encoder(config, **made), _decoder(config, **made), posterior=Point, **made)


def _encoder(config: TinyAutoencoderConfig, **made: Any) -> Chain:
    """Images to latents: levels in [0, 1], then each scale but the first from half the sides of the one before."""
    width = config.width
    stages = []
    for scale, depth in enumerate(config.depths):
        space = {"space": _conv(width, width, 2, bias=False, **made)} if scale else {}
        stages.append(Chain(**space, blocks=_blocks(width, depth, **made)))
    return Chain(
        levels=PerFrame(Affine(0.5, 0.5)),
        embed=_conv(config.in_channels, width, **made),
        stages=Chain(*stages),
        head=_conv(width, config.latent_channels, **made),
    )


def _decoder(config: TinyAutoencoderConfig, **made: Any) -> Chain:
    """Latents to images: each scale but the last doubles the sides."""
    width = config.width
    stages = []
    for scale, depth in reversed(list(enumerate(config.decoder_depths))):
        space = {
            "twice": PerFrame(nn.Upsample(scale_factor=(1, 2, 2))),
            "space": _conv(width, width, bias=False, **made),
        }
        stages.append(Chain(blocks=_blocks(width, depth, **made), **(space if scale else {})))
    return Chain(
        bound=PerFrame(SoftClamp(_BOUND)),
        embed=_conv(config.latent_channels, width, **made),
        relu=PerFrame(nn.ReLU()),
        stages=Chain(*stages),
        head=_conv(width, config.in_channels, **made),
        levels=PerFrame(Affine(2.0, -1.0)),
    )


def _blocks(width: int, depth: int, **made: Any) -> Chain:
    return Chain(*(_block(width, **made) for _ in range(depth)))


def _block(width: int, **made: Any) -> Chain:
    layers = [_conv(width, width, **made), PerFrame(nn.ReLU()), _conv(width, width, **made), PerFrame(nn.ReLU())]
    return Chain(add=Residual(Chain(*layers, _conv(width, width, **made))), relu=PerFrame(nn.ReLU()))


def _conv(before: int, after: int, stride: int = 1, *, bias: bool = True, **made: Any) -> CausalConv3d:
    return CausalConv3d(before, after, (1, 3, 3), (1, stride, stride), bias=bias, **made)


def tiny_vae() -> TinyAutoencoderConfig:
    """TAESD's: 8×8 pixels to 4 channels, 2.4 M parameters.

    Example:
        >>> tiny_vae().factors
        Factors(temporal=1, spatial=8)
    """
    return TinyAutoencoderConfig()
