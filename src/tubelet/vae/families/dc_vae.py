"""The deep-compression image autoencoder, DC-AE (arXiv:2410.10733), on each frame alone: 32×32 or 64×64 pixels each.

Every change of scale has a shortcut without weights beside it: space moves into channels, which are averaged on the way
down and copied on the way up. Fine scales are residual blocks; coarse ones are linear attention and gated convolutions
(EfficientViT). Latents are certain: the encoder gives no variance.

Shapes: video ``(b, c, t, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``H = 32·h`` for six scales.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from tubelet.vae.blocks import ChannelNorm, Device
from tubelet.vae.causal import CausalConv3d
from tubelet.vae.cells import CellsToChannels, ChannelsToCells
from tubelet.vae.chains import Chain, PerFrame, Residual
from tubelet.vae.factors import Factors
from tubelet.vae.linear_attention import MultiscaleLinearAttention
from tubelet.vae.pointwise import SiluGate
from tubelet.vae.posterior import Point
from tubelet.vae.shortcuts import MeanShortcut, RepeatShortcut
from tubelet.vae.sizes import check_counts, check_statistics, check_widths
from tubelet.vae.video import VideoAutoencoder

__all__ = ["DCAutoencoder", "DCAutoencoderConfig", "dc_vae_f32", "dc_vae_f64"]

_EPS = 1e-5
_GROWTH = 4  # of the channels inside a gated convolution


@dataclass(frozen=True, kw_only=True)
class DCAutoencoderConfig:
    """Sizes of a `DCAutoencoder`.

    Args:
        in_channels: channels of the video.
        latent_channels: channels of the latents, which divide the coarsest width.
        widths: channels of each scale, finest first; each scale after the first halves height and width.
        depths: blocks at each scale of the encoder. The first may be 0: then the first layer halves the sides.
        decoder_depths: those of the decoder, finest first too.
        attends: at which scales the blocks attend.
        head_dim: of each head.
        kernels: sides of the further scales of the attention.
        down: how sides are halved: "fold" convolves and moves space into channels, "stride" skips positions.
        up: how they are doubled: "unfold" convolves and moves channels into space, "copy" copies positions first.
        latent_mean: of each latent channel over the training data; empty for zeros.
        latent_std: its standard deviation; empty for ones.

    Raises:
        ValueError: a size that is not positive, values of different numbers of scales, widths or latent channels that
            do not divide, or statistics of another number than the latent channels.

    Example:
        >>> DCAutoencoderConfig().factors
        Factors(temporal=1, spatial=32)
    """

    in_channels: int = 3
    latent_channels: int = 32
    widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    depths: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    decoder_depths: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    attends: tuple[bool, ...] = (False, False, False, True, True, True)
    head_dim: int = 32
    kernels: tuple[int, ...] = (5,)
    down: Literal["fold", "stride"] = "fold"
    up: Literal["unfold", "copy"] = "unfold"
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_counts(self, "in_channels", "latent_channels", "head_dim")
        check_widths(self, "widths")
        for name in ("depths", "decoder_depths"):
            depths = getattr(self, name)
            if len(depths) != len(self.widths) or min(depths[0] + 1, *depths[1:]) < 1:
                raise ValueError(
                    f"{name} {depths} must be positive for each of {len(self.widths)} scales, or begin with 0"
                )
        if bool(self.depths[0]) != bool(self.decoder_depths[0]):
            raise ValueError(
                f"depths {self.depths} and decoder_depths {self.decoder_depths} must both begin with 0 or not"
            )
        if len(self.attends) != len(self.widths):
            raise ValueError(f"attends {self.attends} must say yes or no for each of {len(self.widths)} scales")
        if self.widths[-1] % self.latent_channels:
            raise ValueError(f"latent_channels {self.latent_channels} must divide the coarsest of widths {self.widths}")
        if self.down not in ("fold", "stride") or self.up not in ("unfold", "copy"):
            raise ValueError(
                f"down must be 'fold' or 'stride' and up 'unfold' or 'copy', not {self.down} and {self.up}"
            )
        check_statistics(self)

    @property
    def factors(self) -> Factors:
        """Frames and pixels to a latent."""
        return Factors(1, 2 ** (len(self.widths) - 1))


class DCAutoencoder(VideoAutoencoder):
    """The deep-compression autoencoder of these sizes; what it decodes is not clamped.

    Args:
        config: the sizes.

    Example:
        >>> sizes = {"widths": (8, 8, 16), "depths": (1, 1, 1), "attends": (False, True, True), "head_dim": 4}
        >>> vae = DCAutoencoder(DCAutoencoderConfig(**sizes, decoder_depths=(1, 1, 1), latent_channels=4))
        >>> z = vae.encode(torch.zeros(1, 3, 2, 16, 24)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 4, 2, 4, 6]), torch.Size([1, 3, 2, 16, 24]))
    """

    def __init__(self, config: DCAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(config, _encoder(config, **made), _decoder(config, **made), posterior=Point, **made)


def _encoder(config: DCAutoencoderConfig, **made: Any) -> Chain:
    """Images to latents; each scale is blocks, then half the sides."""
    widths, first = config.widths, int(not config.depths[0])
    before, width = config.in_channels, widths[first]
    stages = []
    for scale, depth in list(enumerate(config.depths))[first:]:
        stage = _blocks(config, scale, depth, **made)
        if scale < len(widths) - 1:
            stage["space"] = _halving(config.down, widths[scale], widths[scale + 1], **made)
        stages.append(Chain(**stage))
    return Chain(
        embed=_halved(config.down, before, width, **made) if first else _conv(before, width, **made),
        stages=Chain(*stages),
        head=Residual(
            _conv(widths[-1], config.latent_channels, **made), MeanShortcut(widths[-1], config.latent_channels, 1, 1)
        ),
    )


def _decoder(config: DCAutoencoderConfig, **made: Any) -> Chain:
    """Latents to images; each scale is twice the sides of the one before, then blocks."""
    widths, first = config.widths, int(not config.decoder_depths[0])
    after, width = config.in_channels, widths[first]
    stages = []
    for scale, depth in reversed(list(enumerate(config.decoder_depths))[first:]):
        stage: dict[str, nn.Module] = {}
        if scale < len(widths) - 1:
            stage["space"] = _doubling(config.up, widths[scale + 1], widths[scale], **made)
        stages.append(Chain(**stage, **_blocks(config, scale, depth, **made)))
    return Chain(
        embed=Residual(
            _conv(config.latent_channels, widths[-1], **made), RepeatShortcut(config.latent_channels, widths[-1], 1, 1)
        ),
        stages=Chain(*stages),
        norm=PerFrame(_norm(width, **made)),
        relu=PerFrame(nn.ReLU()),
        head=_doubled(config.up, width, after, **made) if first else _conv(width, after, **made),
    )


def _blocks(config: DCAutoencoderConfig, scale: int, depth: int, **made: Any) -> dict[str, nn.Module]:
    width = config.widths[scale]
    if not config.attends[scale]:
        return {str(i): _res_block(width, **made) for i in range(depth)}
    return {str(i): _attention_block(width, config.head_dim, config.kernels, **made) for i in range(depth)}


def _res_block(width: int, **made: Any) -> Residual:
    layers = _conv(width, width, **made), PerFrame(nn.SiLU()), _conv(width, width, bias=False, **made)
    return Residual(Chain(*layers, PerFrame(_norm(width, **made))))


def _attention_block(width: int, head_dim: int, kernels: tuple[int, ...], **made: Any) -> Chain:
    """Linear attention, then a gated convolution of more channels, each with its norm behind it and a residual."""
    attention = MultiscaleLinearAttention(width, head_dim, kernels, **made)
    inner = 2 * _GROWTH * width
    gated = Chain(
        wide=PerFrame(nn.Conv3d(width, inner, 1, **made)),
        silu=PerFrame(nn.SiLU()),
        near=PerFrame(nn.Conv3d(inner, inner, (1, 3, 3), padding=(0, 1, 1), groups=inner, **made)),
        gate=PerFrame(SiluGate()),
        narrow=PerFrame(nn.Conv3d(_GROWTH * width, width, 1, bias=False, **made)),
        norm=PerFrame(_norm(width, **made)),
    )
    attended = Chain(attention=PerFrame(attention), norm=PerFrame(_norm(width, **made)))
    return Chain(attention=Residual(attended), gated=Residual(gated))


def _halving(down: str, before: int, after: int, **made: Any) -> Residual:
    return Residual(_halved(down, before, after, **made), MeanShortcut(before, after, 1, 2))


def _doubling(up: str, before: int, after: int, **made: Any) -> Residual:
    return Residual(_doubled(up, before, after, **made), RepeatShortcut(before, after, 1, 2))


def _halved(down: str, before: int, after: int, **made: Any) -> Chain:
    if down == "stride":
        return Chain(conv=CausalConv3d(before, after, (1, 3, 3), (1, 2, 2), **made))
    return Chain(conv=_conv(before, after // 4, **made), fold=PerFrame(CellsToChannels(1, 2)))


def _doubled(up: str, before: int, after: int, **made: Any) -> Chain:
    if up == "copy":
        return Chain(copy=PerFrame(nn.Upsample(scale_factor=(1, 2, 2))), conv=_conv(before, after, **made))
    return Chain(conv=_conv(before, 4 * after, **made), unfold=PerFrame(ChannelsToCells(1, 2)))


def _conv(before: int, after: int, *, bias: bool = True, **made: Any) -> CausalConv3d:
    return CausalConv3d(before, after, (1, 3, 3), bias=bias, **made)


def _norm(width: int, **made: Any) -> ChannelNorm:
    return ChannelNorm(width, _EPS, bias=True, **made)


def dc_vae_f32() -> DCAutoencoderConfig:
    """32×32 pixels to 32 channels, as SANA has it: strides on the way down and copies on the way up.

    Example:
        >>> dc_vae_f32().factors
        Factors(temporal=1, spatial=32)
    """
    return DCAutoencoderConfig(down="stride", up="copy", latent_std=(1 / 0.41407,) * 32)


def dc_vae_f64() -> DCAutoencoderConfig:
    """64×64 pixels to 128 channels, with RMS norms throughout (released decoders have batch norms at fine scales).

    Example:
        >>> dc_vae_f64().factors
        Factors(temporal=1, spatial=64)
    """
    return DCAutoencoderConfig(
        latent_channels=128,
        widths=(128, 256, 512, 512, 1024, 1024, 2048),
        depths=(0, 4, 8, 2, 2, 2, 2),
        decoder_depths=(0, 5, 10, 2, 2, 2, 2),
        attends=(False, False, False, True, True, True, True),
    )
