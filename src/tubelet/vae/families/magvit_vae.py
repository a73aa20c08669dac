"""EasyAnimate's autoencoder (arXiv:2405.18991, section 3.1), a MAGVIT of the blocks of :mod:`tubelet.vae`.

Every convolution over time is causal with copies of the first frame before it; each scale is a few residual blocks of
two 3×3×3 convolutions, whose norms see one frame, then half the space and, at some scales, half the time by one
convolution. On the way up positions are copied, convolved, and then frames copied, the first standing alone. There is
no attention. A latent frame depends on no later frame and a frame on no later latent, so all of it streams.

Shapes: video ``(b, c, T, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``T = 1 + 4·(t - 1)``, ``H = 8·h``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tubelet.vae.blocks import Device
from tubelet.vae.causal import CausalConv3d, copies
from tubelet.vae.chains import Chain, NormedConv, PerFrame, Residual
from tubelet.vae.factors import Factors
from tubelet.vae.group_norms import FrameGroupNorm
from tubelet.vae.shortcuts import RepeatShortcut
from tubelet.vae.sizes import check_counts, check_statistics, check_widths
from tubelet.vae.video import VideoAutoencoder

__all__ = ["MagvitAutoencoder", "MagvitAutoencoderConfig", "magvit_vae"]

_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class MagvitAutoencoderConfig:
    """Sizes of a `MagvitAutoencoder`.

    Args:
        in_channels: channels of the video.
        latent_channels: channels of the latents.
        widths: channels of each scale, finest first; each scale after the first halves height and width.
        depth: residual blocks at each scale of the encoder and in both middles; each scale of the decoder has one more.
        groups: groups of channels of each norm.
        halve_time: at which of the halvings of space in the encoder, finest first, time is halved too.
        double_time: at which of the doublings of space in the decoder, still finest first, time is doubled too.
        latent_mean: of each latent channel over the training data; empty for zeros.
        latent_std: its standard deviation; empty for ones.

    Raises:
        ValueError: a size that is not positive, widths that the groups do not divide, or halvings and doublings that do
            not fit the scales or each other.

    Example:
        >>> magvit_vae().factors
        Factors(temporal=4, spatial=8)
    """

    in_channels: int = 3
    latent_channels: int = 16
    widths: tuple[int, ...] = (128, 256, 512, 512)
    depth: int = 2
    groups: int = 32
    halve_time: tuple[bool, ...] = (False, True, True)
    double_time: tuple[bool, ...] = (True, True, False)
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_counts(self, "in_channels", "latent_channels", "depth", "groups")
        check_widths(self, "widths", groups=self.groups)
        check_statistics(self)
        for name in ("halve_time", "double_time"):
            if len(getattr(self, name)) != len(self.widths) - 1:
                scales = len(self.widths)
                raise ValueError(f"{name} {getattr(self, name)} must say yes or no between {scales} scales")
        if sum(self.halve_time) != sum(self.double_time):
            raise ValueError(f"halve_time {self.halve_time} and double_time {self.double_time} must be as many")

    @property
    def factors(self) -> Factors:
        """Frames and pixels to a latent."""
        return Factors(2 ** sum(self.halve_time), 2 ** len(self.halve_time))


class MagvitAutoencoder(VideoAutoencoder):
    """The autoencoder of these sizes; what it decodes is not clamped.

    Args:
        config: the sizes.

    Example:
        >>> vae = MagvitAutoencoder(MagvitAutoencoderConfig(widths=(8, 8, 8, 8), depth=1, groups=4))
        >>> z = vae.encode(torch.zeros(1, 3, 9, 16, 24)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 16, 3, 2, 3]), torch.Size([1, 3, 9, 16, 24]))
    """

    def __init__(
        self, config: MagvitAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(config, _encoder(config, **made), _decoder(config, **made), **made)


def _encoder(config: MagvitAutoencoderConfig, **made: Any) -> Chain:
    """Video to moments: scales from fine to coarse, the middle, the head."""
    widths, z2 = config.widths, 2 * config.latent_channels
    return Chain(
        embed=_conv(config.in_channels, widths[0], **made),
        stages=Chain(*(_down(config, scale, **made) for scale in range(len(widths)))),
        middle=Chain(**_blocks(widths[-1], widths[-1], config.depth, config.groups, **made)),
        head=_normed(widths[-1], z2, config.groups, **made),
        moments=PerFrame(nn.Conv3d(z2, z2, 1, **made)),
    )


def _decoder(config: MagvitAutoencoderConfig, **made: Any) -> Chain:
    """Latents to video: the middle, scales from coarse to fine, the head."""
    widths, z = config.widths, config.latent_channels
    return Chain(
        latents=PerFrame(nn.Conv3d(z, z, 1, **made)),
        embed=_conv(z, widths[-1], **made),
        middle=Chain(**_blocks(widths[-1], widths[-1], config.depth, config.groups, **made)),
        stages=Chain(*(_up(config, scale, **made) for scale in reversed(range(len(widths))))),
        head=_normed(widths[0], config.in_channels, config.groups, **made),
    )


def _down(config: MagvitAutoencoderConfig, scale: int, **made: Any) -> Chain:
    """The encoder at one scale: blocks, then half the space and perhaps half the time."""
    before, width = config.widths[max(scale - 1, 0)], config.widths[scale]
    layers = _blocks(before, width, config.depth, config.groups, **made)
    if scale < len(config.halve_time):
        stride = (1 + config.halve_time[scale], 2, 2)
        layers["edge"] = PerFrame(nn.ZeroPad3d((0, 1, 0, 1, 0, 0)))
        layers["halve"] = CausalConv3d(width, width, stride=stride, padding=(0, 0), before=copies, **made)
    return Chain(**layers)


def _up(config: MagvitAutoencoderConfig, scale: int, **made: Any) -> Chain:
    """The decoder at one scale: blocks, then twice the space and perhaps the time for the next finer scale."""
    before, width = config.widths[min(scale + 1, len(config.widths) - 1)], config.widths[scale]
    layers = _blocks(before, width, config.depth + 1, config.groups, **made)
    if scale:
        layers["space"] = RepeatShortcut(width, width, 1, 2)
        layers["conv"] = _conv(width, width, **made)
    if scale and config.double_time[scale - 1]:
        layers["time"] = RepeatShortcut(width, width, 2, 1)
    return Chain(**layers)


def _blocks(before: int, width: int, depth: int, groups: int, **made: Any) -> dict[str, nn.Module]:
    return {str(i): _block(width if i else before, width, groups, **made) for i in range(depth)}


def _block(before: int, width: int, groups: int, **made: Any) -> Residual:
    branch = Chain(_normed(before, width, groups, **made), _normed(width, width, groups, **made))
    return Residual(branch, None if before == width else PerFrame(nn.Conv3d(before, width, 1, **made)))


def _normed(before: int, width: int, groups: int, **made: Any) -> NormedConv:
    return NormedConv(FrameGroupNorm(groups, before, _EPS, **made), _conv(before, width, **made))


def _conv(before: int, width: int, **made: Any) -> CausalConv3d:
    return CausalConv3d(before, width, before=copies, **made)


def magvit_vae() -> MagvitAutoencoderConfig:
    """Of EasyAnimate 5.1: 4×8×8 to 16 channels, latents times 0.7125.

    Example:
        >>> magvit_vae().latent_channels
        16
    """
    return MagvitAutoencoderConfig(latent_std=(1 / 0.7125,) * 16)
