"""HunyuanVideo's autoencoder (arXiv:2412.03603, section 4.1), of the blocks of :mod:`tubelet.vae`.

Every convolution is 3×3×3 and causal in time; before a video stand copies of its first frame, and round a frame its own
edge. A scale is a few residual blocks, then half the space and, at the coarser scales, half the time by a convolution
with a stride; the decoder repeats positions before one, and doubles time at its finer scales. At the coarsest scale
positions attend those of their own and of earlier frames.

All of this is causal but the group norms, whose mean and variance are those of all frames that come at once: every
frame depends on every other through them. So a whole video is encoded and decoded at once. Chunks pass convolutions and
attention as the whole does, while each chunk is normalised by itself; the keys and values of all frames are carried on,
so the state grows at the coarsest scale.

Shapes: video ``(b, c, T, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``T = 1 + 4·(t - 1)``, ``H = 8·h``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tubelet.attention import Attention
from tubelet.attention.patterns import FrameCausal
from tubelet.vae.blocks import Device
from tubelet.vae.causal import CausalConv3d
from tubelet.vae.chains import Chain, NormedConv, PerFrame, Residual
from tubelet.vae.factors import Factors, check_scales
from tubelet.vae.frame_attention import CausalFrameAttention
from tubelet.vae.repeats import RepeatConv3d
from tubelet.vae.video import VideoAutoencoder

__all__ = ["HunyuanAutoencoder", "HunyuanAutoencoderConfig", "hunyuan_vae"]

_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class HunyuanAutoencoderConfig:
    """Sizes of a `HunyuanAutoencoder`.

    Args:
        in_channels: channels of the video.
        latent_channels: channels of the latents.
        widths: channels of each scale, finest first; each scale after the first halves height and width.
        depth: residual blocks at each scale of the encoder; the decoder has one more.
        groups: of channels, in the norms.
        time_halvings: how often time is halved: at the coarsest changes of scale, and doubled at the finest.
        scaling_factor: what latents are multiplied by for the diffusion model.

    Raises:
        ValueError: a size that is not positive, widths that the groups do not divide, more halvings of time than
            changes of scale, or a factor that is not positive.

    Example:
        >>> HunyuanAutoencoderConfig(widths=(32, 64), time_halvings=1).factors
        Factors(temporal=2, spatial=2)
    """

    in_channels: int = 3
    latent_channels: int = 16
    widths: tuple[int, ...] = (128, 256, 512, 512)
    depth: int = 2
    groups: int = 32
    time_halvings: int = 2
    scaling_factor: float = 0.476986

    def __post_init__(self) -> None:
        check_scales(self)

    @property
    def factors(self) -> Factors:
        """Frames and pixels to a latent."""
        return Factors(2**self.time_halvings, 2 ** (len(self.widths) - 1))

    @property
    def latent_mean(self) -> tuple[float, ...]:
        """Zeros."""
        return ()

    @property
    def latent_std(self) -> tuple[float, ...]:
        """One over the factor, for all channels."""
        return (1 / self.scaling_factor,) * self.latent_channels


class HunyuanAutoencoder(VideoAutoencoder):
    """The video autoencoder of these sizes.

    Args:
        config: the sizes.

    Example:
        >>> vae = HunyuanAutoencoder(HunyuanAutoencoderConfig(widths=(8, 8, 8), depth=1, groups=4))
        >>> z = vae.encode(torch.zeros(1, 3, 9, 16, 24)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 16, 3, 4, 6]), torch.Size([1, 3, 9, 16, 24]))
    """

    def __init__(
        self, config: HunyuanAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(config, _encoder(config, **made), _decoder(config, **made), **made)


def _encoder(config: HunyuanAutoencoderConfig, **made: Any) -> Chain:
    """Video to moments: scales from fine to coarse, the middle, the head."""
    widths, z2 = config.widths, 2 * config.latent_channels
    return Chain(
        embed=_conv(config.in_channels, widths[0], **made),
        stages=Chain(*(_down(config, i, **made) for i in range(len(widths)))),
        middle=_middle(config, **made),
        head=NormedConv(_norm(config, widths[-1], **made), _conv(widths[-1], z2, **made)),
        moments=PerFrame(nn.Conv3d(z2, z2, 1, **made)),
    )


def _decoder(config: HunyuanAutoencoderConfig, **made: Any) -> Chain:
    """Latents to video: the middle, scales from coarse to fine, the head."""
    widths, z = config.widths, config.latent_channels
    return Chain(
        latents=PerFrame(nn.Conv3d(z, z, 1, **made)),
        embed=_conv(z, widths[-1], **made),
        middle=_middle(config, **made),
        stages=Chain(*(_up(config, i, **made) for i in reversed(range(len(widths))))),
        head=NormedConv(_norm(config, widths[0], **made), _conv(widths[0], config.in_channels, **made)),
    )


def _down(config: HunyuanAutoencoderConfig, scale: int, **made: Any) -> Chain:
    """The encoder at one scale: blocks, then half the space and perhaps half the time."""
    last, width = len(config.widths) - 1, config.widths[scale]
    layers = _blocks(config, config.widths[max(scale - 1, 0)], width, config.depth, **made)
    if scale < last:
        time = 2 if scale >= last - config.time_halvings else 1
        layers["change"] = CausalConv3d(width, width, (3, 3, 3), (time, 2, 2), edges="replicate", **made)
    return Chain(**layers)


def _up(config: HunyuanAutoencoderConfig, scale: int, **made: Any) -> Chain:
    """The decoder at one scale: blocks, then perhaps twice the time, and twice the space for the next finer scale."""
    coarser, width = min(scale + 1, len(config.widths) - 1), config.widths[scale]
    layers = _blocks(config, config.widths[coarser], width, config.depth + 1, **made)
    if scale:
        time = 2 if scale <= config.time_halvings else 1
        layers["change"] = RepeatConv3d(width, width, time, 2, edges="replicate", **made)
    return Chain(**layers)


def _blocks(config: HunyuanAutoencoderConfig, before: int, width: int, depth: int, **made: Any) -> dict[str, nn.Module]:
    return {str(i): _block(config, width if i else before, width, **made) for i in range(depth)}


def _middle(config: HunyuanAutoencoderConfig, **made: Any) -> Chain:
    width = config.widths[-1]
    attention = Attention(width, heads=1, pattern=FrameCausal(), **made)
    return Chain(
        _block(config, width, width, **made),
        Residual(CausalFrameAttention(_norm(config, width, **made), attention)),
        _block(config, width, width, **made),
    )


def _block(config: HunyuanAutoencoderConfig, before: int, width: int, **made: Any) -> Residual:
    branch = Chain(
        NormedConv(_norm(config, before, **made), _conv(before, width, **made)),
        NormedConv(_norm(config, width, **made), _conv(width, width, **made)),
    )
    return Residual(branch, None if before == width else PerFrame(nn.Conv3d(before, width, 1, **made)))


def _conv(before: int, width: int, **made: Any) -> CausalConv3d:
    return CausalConv3d(before, width, edges="replicate", **made)


def _norm(config: HunyuanAutoencoderConfig, width: int, **made: Any) -> nn.GroupNorm:
    """Over all frames that come at once."""
    return nn.GroupNorm(config.groups, width, _EPS, **made)


def hunyuan_vae() -> HunyuanAutoencoderConfig:
    """HunyuanVideo's: 4×8×8 to 16 channels, 246.5 M parameters.

    Example:
        >>> hunyuan_vae().factors
        Factors(temporal=4, spatial=8)
    """
    return HunyuanAutoencoderConfig()
