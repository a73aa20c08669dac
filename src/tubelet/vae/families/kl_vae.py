"""The image autoencoder of latent diffusion (arXiv:2112.10752, KL-f8), which Stable Diffusion, SDXL and Flux share.

Each scale is a few residual blocks of two 3×3 convolutions, then half the space; one attention at the coarsest scale,
between two more blocks. It knows no time: each frame of a video is an image of its own, so any plan of chunks gives the
same, and no frame depends on another.

Shapes: video ``(b, c, t, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``H = 8·h`` for four scales.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tubelet.vae.blocks import Device
from tubelet.vae.chains import Chain, PerFrame
from tubelet.vae.factors import Factors
from tubelet.vae.frame_blocks import frame_attention_block, frame_conv, frame_res_block, normed_frame_conv
from tubelet.vae.scales import DoubleSpace, HalveSpace
from tubelet.vae.sizes import check_counts, check_statistics, check_widths
from tubelet.vae.video import VideoAutoencoder

__all__ = ["KLAutoencoder", "KLAutoencoderConfig", "kl_encoder", "kl_f8"]


@dataclass(frozen=True, kw_only=True)
class KLAutoencoderConfig:
    """Sizes of a `KLAutoencoder`.

    Args:
        in_channels: channels of the video.
        latent_channels: channels of the latents.
        widths: channels of each scale, finest first; each scale after the first halves height and width.
        depth: residual blocks at each scale of the encoder; the decoder has one more.
        groups: groups of channels of each norm.
        attention: whether the middle attends.
        mixed: whether a 1×1 convolution stands behind the encoder and one before the decoder.
        latent_mean: of each latent channel over the training data; empty for zeros.
        latent_std: its standard deviation; empty for ones.
        sample_size: side in pixels of the images it was trained on; nothing depends on it.

    Raises:
        ValueError: a size that is not positive, widths that the groups do not divide, or statistics of another number
            than the latent channels.

    Example:
        >>> KLAutoencoderConfig(widths=(32, 64)).factors
        Factors(temporal=1, spatial=2)
    """

    in_channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    depth: int = 2
    groups: int = 32
    attention: bool = True
    mixed: bool = True
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()
    sample_size: int = 512

    def __post_init__(self) -> None:
        check_counts(self, "in_channels", "latent_channels", "depth", "groups", "sample_size")
        check_widths(self, "widths", groups=self.groups)
        check_statistics(self)

    @property
    def factors(self) -> Factors:
        """Frames and pixels to a latent."""
        return Factors(1, 2 ** (len(self.widths) - 1))


class KLAutoencoder(VideoAutoencoder):
    """The image autoencoder of these sizes, on each frame alone; what it decodes is not clamped.

    Args:
        config: the sizes.

    Example:
        >>> vae = KLAutoencoder(KLAutoencoderConfig(widths=(8, 8, 8, 8), depth=1, groups=4))
        >>> z = vae.encode(torch.zeros(1, 3, 5, 16, 24)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 4, 5, 2, 3]), torch.Size([1, 3, 5, 16, 24]))
    """

    def __init__(self, config: KLAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(config, kl_encoder(config, **made), _decoder(config, **made), **made)


def kl_encoder(config: KLAutoencoderConfig, **made: Any) -> Chain:
    """Images to moments: scales from fine to coarse, the middle, the head.

    Example:
        >>> kl_encoder(kl_f8(), device="meta")(torch.zeros(1, 3, 1, 256, 256, device="meta"))[0].shape
        torch.Size([1, 8, 1, 32, 32])
    """
    widths, z2 = config.widths, 2 * config.latent_channels
    ends = {"moments": PerFrame(nn.Conv3d(z2, z2, 1, **made))} if config.mixed else {}
    return Chain(
        embed=frame_conv(config.in_channels, widths[0], **made),
        stages=Chain(*(_down(config, i, **made) for i in range(len(widths)))),
        middle=_middle(config, **made),
        head=normed_frame_conv(widths[-1], z2, config.groups, **made),
        **ends,
    )


def _decoder(config: KLAutoencoderConfig, **made: Any) -> Chain:
    """Latents to images: the middle, scales from coarse to fine, the head."""
    widths, z = config.widths, config.latent_channels
    ends = {"latents": PerFrame(nn.Conv3d(z, z, 1, **made))} if config.mixed else {}
    return Chain(
        **ends,
        embed=frame_conv(z, widths[-1], **made),
        middle=_middle(config, **made),
        stages=Chain(*(_up(config, i, **made) for i in reversed(range(len(widths))))),
        head=normed_frame_conv(widths[0], config.in_channels, config.groups, **made),
    )


def _down(config: KLAutoencoderConfig, scale: int, **made: Any) -> Chain:
    """The encoder at one scale: blocks, then half the space."""
    before, width = config.widths[max(scale - 1, 0)], config.widths[scale]
    layers = _blocks(before, width, config.depth, config.groups, **made)
    if scale < len(config.widths) - 1:
        layers["space"] = PerFrame(HalveSpace(width, **made))
    return Chain(**layers)


def _up(config: KLAutoencoderConfig, scale: int, **made: Any) -> Chain:
    """The decoder at one scale: blocks, then twice the space for the next finer scale."""
    before, width = config.widths[min(scale + 1, len(config.widths) - 1)], config.widths[scale]
    layers = _blocks(before, width, config.depth + 1, config.groups, **made)
    if scale:
        layers["space"] = PerFrame(DoubleSpace(width, width, **made))
    return Chain(**layers)


def _blocks(before: int, width: int, depth: int, groups: int, **made: Any) -> dict[str, nn.Module]:
    return {str(i): frame_res_block(width if i else before, width, groups, **made) for i in range(depth)}


def _middle(config: KLAutoencoderConfig, **made: Any) -> Chain:
    width, groups = config.widths[-1], config.groups
    attention = {"attention": frame_attention_block(width, groups, **made)} if config.attention else {}
    return Chain(
        first=frame_res_block(width, width, groups, **made),
        **attention,
        second=frame_res_block(width, width, groups, **made),
    )


def kl_f8() -> KLAutoencoderConfig:
    """KL-f8 as Stable Diffusion has it: 8×8 pixels to 4 channels, 83.7 M parameters, latents times 0.18215.

    Example:
        >>> kl_f8().factors
        Factors(temporal=1, spatial=8)
    """
    return KLAutoencoderConfig(latent_std=(1 / 0.18215,) * 4)
