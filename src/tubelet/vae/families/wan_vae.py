"""Wan's video autoencoders, 2.1's (arXiv:2503.20314, section 4.1) and 2.2's, of the blocks of :mod:`tubelet.vae`.

Every convolution over time is causal with zeros before the first frame; each scale is a few residual blocks of two
3×3×3 convolutions, then half the space and, at some scales, half the time; one attention inside each frame at the
coarsest scale. Wan 2.2 begins with patches of 2×2 pixels and has a shortcut without weights round each scale (DC-AE,
arXiv:2410.10733). A latent frame depends on no later frame and a frame on no later latent, so all of it streams.

Shapes: video ``(b, c, T, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``T = 1 + 4·(t - 1)``, ``H = 8·h``
(Wan 2.2: ``H = 16·h``).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tubelet.attention import Attention
from tubelet.vae.blocks import ChannelNorm, Device
from tubelet.vae.causal import CausalConv3d, zeros
from tubelet.vae.chains import Chain, NormedConv, PerFrame, Residual
from tubelet.vae.factors import Factors
from tubelet.vae.frame_attention import FrameAttention
from tubelet.vae.scales import DoubleSpace, DoubleTime, HalveSpace, HalveTime
from tubelet.vae.shortcuts import Depatch, MeanShortcut, Patch, RepeatShortcut
from tubelet.vae.sizes import check_counts, check_flags, check_statistics, check_widths
from tubelet.vae.video import Chunks, VideoAutoencoder

__all__ = ["WanAutoencoder", "WanAutoencoderConfig", "wan_vae_2_1", "wan_vae_2_2"]

_CHUNKS = Chunks(encode=8, decode=2)  # any are equal; 9 frames go through whole, without states
_EPS = 1e-24  # their norm divides by the length of a position's channels, which only an empty position needs


@dataclass(frozen=True, kw_only=True)
class WanAutoencoderConfig:
    """Sizes of a `WanAutoencoder`.

    Args:
        in_channels: channels of the video.
        latent_channels: channels of the latents.
        widths: channels of each scale of the encoder, finest first; each scale after the first halves height and width.
        decoder_widths: as ``widths``, still finest first, for the decoder; None for the encoder's.
        depth: residual blocks at each scale of the encoder; the decoder has one more.
        halve_time: at which of the halvings of space, finest first, time is halved too.
        patch: side in pixels of the squares that become channels first.
        shortcuts: whether each scale has a shortcut without weights round it; doubling space then keeps the channels.
        latent_mean: of each latent channel over the training data; empty for zeros.
        latent_std: its standard deviation; empty for ones.

    Raises:
        ValueError: a size that is not positive, decoder widths or halvings that do not fit the scales, odd decoder
            widths where they are halved, or statistics of another number than the latent channels.

    Example:
        >>> WanAutoencoderConfig(widths=(8, 16), halve_time=(True,)).factors
        Factors(temporal=2, spatial=2)
    """

    in_channels: int = 3
    latent_channels: int = 16
    widths: tuple[int, ...] = (96, 192, 384, 384)
    decoder_widths: tuple[int, ...] | None = None
    depth: int = 2
    halve_time: tuple[bool, ...] = (False, True, True)
    patch: int = 1
    shortcuts: bool = False
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_counts(self, "in_channels", "latent_channels", "depth", "patch")
        check_flags(self, "halve_time", "shortcuts")
        check_widths(self, "widths")
        if self.decoder_widths is not None:
            check_widths(self, "decoder_widths", scales=len(self.widths))
        if not self.shortcuts and any(width % 2 for width in self.decoder[1:]):
            raise ValueError(f"decoder_widths {self.decoder} must be even where space is doubled")
        if type(self.halve_time) is not tuple or len(self.halve_time) != len(self.widths) - 1:
            raise ValueError(f"halve_time {self.halve_time} must say yes or no between {len(self.widths)} scales")
        check_statistics(self)
        for name, values in (("latent_mean", self.latent_mean), ("latent_std", self.latent_std)):
            if len(values) not in (0, self.latent_channels):
                raise ValueError(f"{name} has {len(values)} values for {self.latent_channels} latent channels")

    @property
    def decoder(self) -> tuple[int, ...]:
        """Widths of the decoder, finest scale first."""
        return self.widths if self.decoder_widths is None else self.decoder_widths

    def halves_time(self, scale: int) -> bool:
        """Whether time is halved after a scale, the finest being 0."""
        return scale < len(self.halve_time) and self.halve_time[scale]

    @property
    def factors(self) -> Factors:
        """Frames and pixels to a latent."""
        return Factors(2 ** sum(self.halve_time), self.patch * 2 ** len(self.halve_time))


class WanAutoencoder(VideoAutoencoder):
    """The video autoencoder of these sizes; what it decodes is clamped to [-1, 1].

    Args:
        config: the sizes.

    Example:
        >>> import torch
        >>> vae = WanAutoencoder(WanAutoencoderConfig(widths=(8, 8, 8), depth=1, halve_time=(True, True)))
        >>> z = vae.encode(torch.zeros(1, 3, 9, 16, 24)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 16, 3, 4, 6]), torch.Size([1, 3, 9, 16, 24]))
    """

    def __init__(
        self, config: WanAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(config, _encoder(config, **made), _decoder(config, **made), chunks=_CHUNKS, **made)


def _encoder(config: WanAutoencoderConfig, **made: Any) -> Chain:
    """Video to moments: scales from fine to coarse, the middle, the head."""
    widths, z2 = config.widths, 2 * config.latent_channels
    return Chain(
        patch=PerFrame(Patch(config.patch)),
        embed=_conv(config.in_channels * config.patch**2, widths[0], **made),
        stages=Chain(*(_down(config, i, **made) for i in range(len(widths)))),
        middle=_middle(widths[-1], **made),
        head=NormedConv(_norm(widths[-1], **made), _conv(widths[-1], z2, **made)),
        moments=PerFrame(nn.Conv3d(z2, z2, 1, **made)),
    )


def _decoder(config: WanAutoencoderConfig, **made: Any) -> Chain:
    """Latents to video: the middle, scales from coarse to fine, the head."""
    widths, z = config.decoder, config.latent_channels
    return Chain(
        latents=PerFrame(nn.Conv3d(z, z, 1, **made)),
        embed=_conv(z, widths[-1], **made),
        middle=_middle(widths[-1], **made),
        stages=Chain(*(_up(config, i, **made) for i in reversed(range(len(widths))))),
        head=NormedConv(_norm(widths[0], **made), _conv(widths[0], config.in_channels * config.patch**2, **made)),
        patch=PerFrame(Depatch(config.patch)),
        clamp=PerFrame(nn.Hardtanh()),
    )


def _down(config: WanAutoencoderConfig, scale: int, **made: Any) -> nn.Module:
    """The encoder at one scale: blocks, then half the space and perhaps half the time."""
    before, width = config.widths[max(scale - 1, 0)], config.widths[scale]
    layers = _blocks(before, width, config.depth, **made)
    halves, halves_time = scale < len(config.halve_time), config.halves_time(scale)
    if halves:
        layers["space"] = PerFrame(HalveSpace(width, **made))
    if halves_time:
        layers["time"] = HalveTime(width, **made)
    if not config.shortcuts:
        return Chain(**layers)
    return Residual(Chain(**layers), MeanShortcut(before, width, 1 + halves_time, 1 + halves))


def _up(config: WanAutoencoderConfig, scale: int, **made: Any) -> nn.Module:
    """The decoder at one scale: blocks, then perhaps twice the time, and twice the space for the next finer scale."""
    coarser, width = min(scale + 1, len(config.widths) - 1), config.decoder[scale]
    before, out = config.decoder[coarser], width
    if not config.shortcuts:
        before, out = before if coarser == scale else before // 2, width // 2
    layers = _blocks(before, width, config.depth + 1, **made)
    if not scale:
        return Chain(**layers)
    doubles_time = config.halves_time(scale - 1)
    if doubles_time:
        layers["time"] = DoubleTime(width, **made)
    layers["space"] = PerFrame(DoubleSpace(width, out, **made))
    if not config.shortcuts:
        return Chain(**layers)
    return Residual(Chain(**layers), RepeatShortcut(before, out, 1 + doubles_time, 2))


def _blocks(before: int, width: int, depth: int, **made: Any) -> dict[str, nn.Module]:
    return {str(i): _block(width if i else before, width, **made) for i in range(depth)}


def _middle(width: int, **made: Any) -> Chain:
    attention = FrameAttention(_norm(width, **made), Attention(width, heads=1, **made))
    return Chain(_block(width, width, **made), Residual(PerFrame(attention)), _block(width, width, **made))


def _block(before: int, width: int, **made: Any) -> Residual:
    branch = Chain(
        NormedConv(_norm(before, **made), _conv(before, width, **made)),
        NormedConv(_norm(width, **made), _conv(width, width, **made)),
    )
    return Residual(branch, None if before == width else PerFrame(nn.Conv3d(before, width, 1, **made)))


def _conv(before: int, width: int, **made: Any) -> CausalConv3d:
    return CausalConv3d(before, width, before=zeros, **made)


def _norm(width: int, **made: Any) -> ChannelNorm:
    return ChannelNorm(width, _EPS, **made)


def wan_vae_2_1() -> WanAutoencoderConfig:
    """Wan 2.1's: 4×8×8 to 16 channels, 126.9 M parameters; the statistics are those of its release.

    Example:
        >>> wan_vae_2_1().factors
        Factors(temporal=4, spatial=8)
    """
    mean: tuple[float, ...] = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
    mean += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
    std: tuple[float, ...] = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
    std += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)
    return WanAutoencoderConfig(latent_mean=mean, latent_std=std)


def wan_vae_2_2() -> WanAutoencoderConfig:
    """Wan 2.2's, of its 5B model: 4×16×16 to 48 channels, 704.7 M parameters; the statistics are those of its release.

    Example:
        >>> wan_vae_2_2().factors
        Factors(temporal=4, spatial=16)
    """
    mean: tuple[float, ...] = (-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542)
    mean += (0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108)
    mean += (-0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649)
    mean += (0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548)
    mean += (-0.1681, -0.0667)
    std: tuple[float, ...] = (0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894)
    std += (1.0901, 0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659)
    std += (0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726)
    std += (1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744)
    return WanAutoencoderConfig(
        latent_channels=48,
        widths=(160, 320, 640, 640),
        decoder_widths=(256, 512, 1024, 1024),
        patch=2,
        shortcuts=True,
        latent_mean=mean,
        latent_std=std,
    )
