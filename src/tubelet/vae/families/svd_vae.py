"""Stable Video Diffusion's autoencoder (arXiv:2311.15127): the image encoder of KL-f8, and a decoder that knows time.

The encoder sees each frame alone. The decoder has a residual block of two convolutions over time behind each block of
an image decoder, with a learned share of it, and ends in a convolution over time; its norms over time see the whole
clip. So a clip is encoded in any chunks, but decoded whole: the first latents do not decode to the first frames.

Shapes: video ``(b, c, t, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``H = 8·h`` for four scales.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tubelet.vae.blocks import Device
from tubelet.vae.causal import zeros
from tubelet.vae.chains import Chain, NormedConv, PerFrame, Residual
from tubelet.vae.clips import ClipConv3d
from tubelet.vae.factors import Factors
from tubelet.vae.families.kl_vae import KLAutoencoderConfig, kl_encoder
from tubelet.vae.frame_blocks import frame_attention_block, frame_conv, frame_res_block, normed_frame_conv
from tubelet.vae.gates import SigmoidGate
from tubelet.vae.scales import DoubleSpace
from tubelet.vae.sizes import check_counts, check_statistics, check_widths
from tubelet.vae.video import VideoAutoencoder

__all__ = ["SVDAutoencoder", "SVDAutoencoderConfig", "svd_vae"]

_TIME_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class SVDAutoencoderConfig:
    """Sizes of an `SVDAutoencoder`; fields as in `KLAutoencoderConfig`.

    Raises:
        ValueError: as there.

    Example:
        >>> SVDAutoencoderConfig(widths=(32, 64)).factors
        Factors(temporal=1, spatial=2)
    """

    in_channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    depth: int = 2
    groups: int = 32
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()
    sample_size: int = 768

    def __post_init__(self) -> None:
        check_counts(self, "in_channels", "latent_channels", "depth", "groups", "sample_size")
        check_widths(self, "widths", groups=self.groups)
        check_statistics(self)

    @property
    def images(self) -> KLAutoencoderConfig:
        """The image autoencoder whose encoder this is."""
        return KLAutoencoderConfig(
            in_channels=self.in_channels,
            latent_channels=self.latent_channels,
            widths=self.widths,
            depth=self.depth,
            groups=self.groups,
        )

    @property
    def factors(self) -> Factors:
        """Frames and pixels to a latent."""
        return self.images.factors


class SVDAutoencoder(VideoAutoencoder):
    """The autoencoder of these sizes; what it decodes is not clamped.

    ``decode_chunk`` takes a whole clip and refuses to go on from the state it returns.

    Args:
        config: the sizes.

    Example:
        >>> vae = SVDAutoencoder(SVDAutoencoderConfig(widths=(8, 8, 8, 8), depth=1, groups=4))
        >>> z = vae.encode(torch.zeros(1, 3, 5, 16, 24)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 4, 5, 2, 3]), torch.Size([1, 3, 5, 16, 24]))
    """

    def __init__(
        self, config: SVDAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(config, kl_encoder(config.images, **made), _decoder(config, **made), **made)


def _decoder(config: SVDAutoencoderConfig, **made: Any) -> Chain:
    """Latents to video: the middle, scales from coarse to fine, the head, a convolution over time."""
    widths, c = config.widths, config.in_channels
    return Chain(
        embed=frame_conv(config.latent_channels, widths[-1], **made),
        middle=Chain(
            first=_block(widths[-1], widths[-1], config.groups, **made),
            attention=frame_attention_block(widths[-1], config.groups, **made),
            second=_block(widths[-1], widths[-1], config.groups, **made),
        ),
        stages=Chain(*(_up(config, i, **made) for i in reversed(range(len(widths))))),
        head=normed_frame_conv(widths[0], c, config.groups, **made),
        time=_over_time(c, **made),
    )


def _up(config: SVDAutoencoderConfig, scale: int, **made: Any) -> Chain:
    """The decoder at one scale: blocks, then twice the space for the next finer scale."""
    before, width = config.widths[min(scale + 1, len(config.widths) - 1)], config.widths[scale]
    count = range(config.depth + 1)
    layers: dict[str, nn.Module] = {str(i): _block(width if i else before, width, config.groups, **made) for i in count}
    if scale:
        layers["space"] = PerFrame(DoubleSpace(width, width, **made))
    return Chain(**layers)


def _block(before: int, width: int, groups: int, **made: Any) -> Chain:
    """A block of an image decoder, then one over time with a learned share of it."""
    convs = (NormedConv(nn.GroupNorm(groups, width, _TIME_EPS, **made), _over_time(width, **made)) for _ in range(2))
    branch = Chain(*convs, gate=PerFrame(SigmoidGate(**made)))
    return Chain(frame=frame_res_block(before, width, groups, **made), time=Residual(branch))


def _over_time(width: int, **made: Any) -> ClipConv3d:
    return ClipConv3d(width, width, (3, 1, 1), around=zeros, **made)


def svd_vae() -> SVDAutoencoderConfig:
    """As released: 8×8 pixels to 4 channels, 97.7 M parameters, latents times 0.18215.

    Example:
        >>> svd_vae().factors
        Factors(temporal=1, spatial=8)
    """
    return SVDAutoencoderConfig(latent_std=(1 / 0.18215,) * 4)
