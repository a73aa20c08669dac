"""Allegro's autoencoder (arXiv:2410.15458, section 3.2), of the blocks of :mod:`tubelet.vae`.

The image autoencoder of KL-f8 with four convolutions over time behind each of its blocks. These see frames on both
sides, and their norms the whole clip, so that a clip is encoded and decoded whole. Time is divided evenly: the first
frame has no place of its own, and an image has to become a clip of ``temporal`` frames (``config.factors.padded``).

Shapes: video ``(b, c, T, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``T = 4·t``, ``H = 8·h``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tubelet.vae.blocks import Device
from tubelet.vae.causal import zeros
from tubelet.vae.chains import Chain, NormedConv, PerFrame, Residual
from tubelet.vae.clips import Around, ClipConv3d, CopyFrames, EveryFrame, FramesOfChannels
from tubelet.vae.factors import Factors
from tubelet.vae.frame_blocks import frame_attention_block, frame_conv, frame_res_block
from tubelet.vae.group_norms import FrameGroupNorm
from tubelet.vae.scales import DoubleSpace, HalveSpace
from tubelet.vae.sizes import check_counts, check_statistics, check_widths
from tubelet.vae.video import VideoAutoencoder

__all__ = ["AllegroAutoencoder", "AllegroAutoencoderConfig", "allegro_vae"]

_EPS, _TIME_EPS = 1e-6, 1e-5


@dataclass(frozen=True, kw_only=True)
class AllegroAutoencoderConfig:
    """Sizes of an `AllegroAutoencoder`.

    Args:
        in_channels: channels of the video.
        latent_channels: channels of the latents.
        widths: channels of each scale, finest first; each scale after the first halves height and width.
        depth: residual blocks at each scale of the encoder; the decoder has one more.
        groups: groups of channels of each norm.
        halve_time: at which scales of the encoder, finest first, time is halved.
        double_time: at which scales of the decoder, still finest first, time is doubled.
        latent_mean: of each latent channel over the training data; empty for zeros.
        latent_std: its standard deviation; empty for ones.
        sample_size: side in pixels of the tiles that theirs cuts a video into; nothing depends on it.

    Raises:
        ValueError: a size that is not positive, widths that the groups do not divide, or halvings and doublings that do
            not fit the scales or each other.

    Example:
        >>> allegro_vae().factors.video_size(allegro_vae().factors.latent_grid(88, 720, 1280))
        (88, 720, 1280)
    """

    in_channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    depth: int = 2
    groups: int = 32
    halve_time: tuple[bool, ...] = (True, True, False, False)
    double_time: tuple[bool, ...] = (False, True, True, False)
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()
    sample_size: int = 320

    def __post_init__(self) -> None:
        check_counts(self, "in_channels", "latent_channels", "depth", "groups", "sample_size")
        check_widths(self, "widths", groups=self.groups)
        check_statistics(self)
        for name in ("halve_time", "double_time"):
            if len(getattr(self, name)) != len(self.widths):
                raise ValueError(f"{name} {getattr(self, name)} must say yes or no for {len(self.widths)} scales")
        if sum(self.halve_time) != sum(self.double_time):
            raise ValueError(f"halve_time {self.halve_time} and double_time {self.double_time} must be as many")

    @property
    def factors(self) -> Factors:
        """Frames and pixels to a latent; the first latent frame is of as many frames as any."""
        temporal = 2 ** sum(self.halve_time)
        return Factors(temporal, 2 ** (len(self.widths) - 1), first=temporal)


class AllegroAutoencoder(VideoAutoencoder):
    """The autoencoder of these sizes; what it decodes is not clamped.

    ``encode_chunk`` and ``decode_chunk`` take a whole clip and refuse to go on from the state they return. The dropout
    of their training is left out.

    Args:
        config: the sizes.

    Example:
        >>> vae = AllegroAutoencoder(AllegroAutoencoderConfig(widths=(8, 8, 8, 8), depth=1, groups=4))
        >>> z = vae.encode(torch.zeros(1, 3, 8, 16, 24)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 4, 2, 2, 3]), torch.Size([1, 3, 8, 16, 24]))
    """

    def __init__(
        self, config: AllegroAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(config, _encoder(config, **made), _decoder(config, **made), **made)


def _encoder(config: AllegroAutoencoderConfig, **made: Any) -> Chain:
    """Video to moments: scales from fine to coarse, the middle, the head."""
    widths, z2 = config.widths, 2 * config.latent_channels
    return Chain(
        embed=frame_conv(config.in_channels, widths[0], **made),
        time=_mixed(widths[0], **made),
        stages=Chain(*(_down(config, scale, **made) for scale in range(len(widths)))),
        middle=_middle(config, **made),
        head=_head(widths[-1], z2, config.groups, **made),
        moments=PerFrame(nn.Conv3d(z2, z2, 1, **made)),
    )


def _decoder(config: AllegroAutoencoderConfig, **made: Any) -> Chain:
    """Latents to video: the middle, scales from coarse to fine, the head."""
    widths, z = config.widths, config.latent_channels
    return Chain(
        latents=PerFrame(nn.Conv3d(z, z, 1, **made)),
        embed=frame_conv(z, widths[-1], **made),
        time=_mixed(widths[-1], **made),
        middle=_middle(config, **made),
        stages=Chain(*(_up(config, scale, **made) for scale in reversed(range(len(widths))))),
        head=_head(widths[0], config.in_channels, config.groups, **made),
    )


def _down(config: AllegroAutoencoderConfig, scale: int, **made: Any) -> Chain:
    """The encoder at one scale: blocks, then perhaps half the time, and half the space."""
    width, groups = config.widths[scale], config.groups
    layers = _blocks(config.widths[max(scale - 1, 0)], width, config.depth, groups, **made)
    if config.halve_time[scale]:
        halve = nn.Conv3d(width, width, (2, 3, 3), (2, 1, 1), padding=(0, 1, 1), **made)
        first = NormedConv(nn.GroupNorm(groups, width, _TIME_EPS, **made), PerFrame(halve))
        layers["halved"] = Residual(_four(first, width, groups, 3, **made), PerFrame(EveryFrame(2)))
    if scale < len(config.widths) - 1:
        layers["space"] = PerFrame(HalveSpace(width, **made))
    return Chain(**layers)


def _up(config: AllegroAutoencoderConfig, scale: int, **made: Any) -> Chain:
    """The decoder at one scale: blocks, then perhaps twice the time, and twice the space."""
    width, groups = config.widths[scale], config.groups
    before = config.widths[min(scale + 1, len(config.widths) - 1)]
    layers = _blocks(before, width, config.depth + 1, groups, **made)
    if config.double_time[scale]:
        widen = nn.Conv3d(width, 2 * width, (1, 3, 3), padding=(0, 1, 1), **made)
        double = Chain(conv=PerFrame(widen), frames=PerFrame(FramesOfChannels(2)))
        first = NormedConv(nn.GroupNorm(groups, width, _TIME_EPS, **made), double)
        layers["doubled"] = Residual(_four(first, width, groups, 3, **made), PerFrame(CopyFrames(2)))
    if scale:
        layers["space"] = PerFrame(DoubleSpace(width, width, **made))
    return Chain(**layers)


def _blocks(before: int, width: int, depth: int, groups: int, **made: Any) -> dict[str, nn.Module]:
    """Blocks of an image autoencoder, each with its convolutions over time."""
    return {str(i): _block(width if i else before, width, groups, **made) for i in range(depth)}


def _block(before: int, width: int, groups: int, **made: Any) -> Chain:
    over_time = _four(_over_time(width, groups, 1, **made), width, groups, 1, **made)
    return Chain(frame=frame_res_block(before, width, groups, _EPS, **made), time=Residual(over_time))


def _middle(config: AllegroAutoencoderConfig, **made: Any) -> Chain:
    width, groups = config.widths[-1], config.groups
    return Chain(
        first=_block(width, width, groups, **made),
        attention=frame_attention_block(width, groups, _EPS, **made),
        second=_block(width, width, groups, **made),
    )


def _four(first: nn.Module, width: int, groups: int, side: int, **made: Any) -> Chain:
    """Four convolutions over time, the first given; the others are ``3 × side × side``."""
    return Chain(first, *(_over_time(width, groups, side, **made) for _ in range(3)))


def _over_time(width: int, groups: int, side: int, **made: Any) -> Chain:
    """A convolution after a norm of the whole clip, which counts the copies around it."""
    conv = nn.Conv3d(width, width, (3, side, side), padding=(0, side // 2, side // 2), **made)
    norm = nn.GroupNorm(groups, width, _TIME_EPS, **made)
    return Chain(around=Around(1), conv=NormedConv(norm, PerFrame(conv)))


def _head(before: int, width: int, groups: int, **made: Any) -> Chain:
    return Chain(
        norm=PerFrame(FrameGroupNorm(groups, before, _EPS, **made)),
        act=PerFrame(nn.SiLU()),
        time=_mixed(before, **made),
        conv=frame_conv(before, width, **made),
    )


def _mixed(width: int, **made: Any) -> Residual:
    """What a convolution over time adds."""
    return Residual(ClipConv3d(width, width, (3, 1, 1), around=zeros, **made))


def allegro_vae() -> AllegroAutoencoderConfig:
    """As released: 4×8×8 to 4 channels, latents times 0.13.

    Example:
        >>> allegro_vae().latent_channels
        4
    """
    return AllegroAutoencoderConfig(latent_std=(1 / 0.13,) * 4)
