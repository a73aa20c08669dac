"""The continuous video tokenizers of Cosmos (arXiv:2501.03575), of the blocks of :mod:`tubelet.vae`.

Haar wavelets turn 4×4×4 cells into channels first. Convolutions over space and over time take turns, the latter causal
with copies of the first frame before it; changes of scale have means or copies beside them; the middle attends inside
each frame and, causally, over time. A latent frame depends on no later frame and a frame on no later latent, so all of
it streams; but since attention over time sees the whole past, the state of a stream grows by its keys and values.

There is no variance: the encoder gives the latents themselves.

Shapes: video ``(b, c, T, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``T = 1 + temporal·(t - 1)``,
``H = spatial·h``.
"""

from dataclasses import dataclass, replace
from math import log2
from typing import Any

import torch
from torch import nn

from tubelet.attention import Attention
from tubelet.attention.patterns import FrameCausal
from tubelet.vae.blocks import Device
from tubelet.vae.causal import CausalConv3d, copies
from tubelet.vae.cells import CellsToChannels, ChannelsToCells
from tubelet.vae.chains import Chain, NormedConv, PerFrame, Residual, SkipFrames
from tubelet.vae.factors import Factors
from tubelet.vae.families.cosmos_statistics import MEAN_8X8X8, STD_8X8X8
from tubelet.vae.frame_attention import FrameAttention, TimeAttention
from tubelet.vae.group_norms import FrameGroupNorm
from tubelet.vae.leads import Lead
from tubelet.vae.posterior import Point
from tubelet.vae.scales import HalveSpace
from tubelet.vae.shortcuts import MeanShortcut, RepeatShortcut
from tubelet.vae.sizes import check_counts, check_statistics, check_widths
from tubelet.vae.video import VideoAutoencoder
from tubelet.vae.wavelets import BandsToCells, CellsToBands

__all__ = ["CosmosAutoencoder", "CosmosAutoencoderConfig", "cosmos_vae"]

_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class CosmosAutoencoderConfig:
    """Sizes of a `CosmosAutoencoder`.

    Args:
        in_channels: channels of the video.
        latent_channels: channels of the latents.
        widths: channels of the encoder, finest first: after its first convolution and after each scale.
        decoder_widths: channels of the decoder, finest first: after each scale, and in its middle last.
        depth: residual blocks at each scale of the encoder; the decoder has one more.
        temporal: frames to one latent frame, after the first; a power of two.
        spatial: pixels to one latent position, along height and width; a power of two.
        patch: cells along each axis that become channels first; a power of two.
        wavelets: whether they become bands of Haar wavelets, or just channels.
        resolution: side in pixels of the videos it was trained on.
        attention: sides in positions of the scales of such a video at which each block attends too.
        latent_mean: of each latent channel over the training data, or of its first frames; empty for zeros.
        latent_std: its standard deviation; empty for ones.

    Raises:
        ValueError: sizes that are not positive, factors or a patch that are no powers of two, or factors that the
            scales between the patch and the latents cannot make.

    Example:
        >>> cosmos_vae(4, 8).factors
        Factors(temporal=4, spatial=8)
    """

    in_channels: int = 3
    latent_channels: int = 16
    widths: tuple[int, ...] = (128, 256, 512, 512)
    decoder_widths: tuple[int, ...] = (256, 512, 512, 512)
    depth: int = 2
    temporal: int = 8
    spatial: int = 8
    patch: int = 4
    wavelets: bool = True
    resolution: int = 1024
    attention: tuple[int, ...] = (32,)
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        counts = ("in_channels", "latent_channels", "depth", "temporal", "spatial", "patch", "resolution")
        check_counts(self, *counts)
        check_widths(self, "widths")
        check_widths(self, "decoder_widths", scales=len(self.widths))
        check_statistics(self)
        for name in ("temporal", "spatial", "patch"):
            if (value := getattr(self, name)) & (value - 1):
                raise ValueError(f"{name} must be a power of two, not {value}")
        for name, up in (("encoder", False), ("decoder", True)):
            steps = [self.doubles(scale) if up else self.halves(scale) for scale in self.scales]
            made = [self.patch * 2 ** sum(step[axis] for step in steps) for axis in (0, 1)]
            if made != [self.temporal, self.spatial]:
                raise ValueError(
                    f"the {len(self.scales)} scales of the {name} and patch {self.patch} make the factors {made}, "
                    f"not temporal {self.temporal} and spatial {self.spatial}"
                )

    @property
    def scales(self) -> range:
        """The scales, the finest being 0."""
        return range(len(self.widths) - 1)

    @property
    def _steps(self) -> tuple[int, int]:
        """How often time and space are halved behind the patch."""
        return int(log2(self.temporal) - log2(self.patch)), int(log2(self.spatial) - log2(self.patch))

    def halves(self, scale: int) -> tuple[bool, bool]:
        """Whether a scale of the encoder halves time, and space: the finest ones do, never the coarsest.

        Example:
            >>> [cosmos_vae(4, 8).halves(scale) for scale in range(3)]
            [(False, True), (False, False), (False, False)]
        """
        time, space = self._steps
        inner = scale < len(self.scales) - 1
        return inner and scale < time, inner and scale < space

    def doubles(self, scale: int) -> tuple[bool, bool]:
        """Whether a scale of the decoder doubles time, and space, before the next finer one.

        The coarsest doubles no time; space is doubled wherever time is, and where it shrinks more often than time.

        Example:
            >>> [cosmos_vae(8, 8).doubles(scale) for scale in range(3)]
            [(False, False), (True, True), (False, False)]
        """
        time, space = self._steps
        at = len(self.scales) - 1 - scale
        doubled = scale > 0 and 0 < at < time + 1
        return doubled, doubled or (scale > 0 and at < space and space > time)

    def attends(self, scale: int) -> bool:
        """Whether the blocks of a scale attend.

        Example:
            >>> cosmos_vae(8, 8).attends(2)
            False
        """
        return self.resolution // self.patch // 2**scale in self.attention

    @property
    def factors(self) -> Factors:
        """Frames and pixels to a latent."""
        return Factors(self.temporal, self.spatial)


class CosmosAutoencoder(VideoAutoencoder):
    """The autoencoder of these sizes; what it decodes is not clamped.

    Args:
        config: the sizes.

    Example:
        >>> config = CosmosAutoencoderConfig(widths=(8, 8, 8, 8), decoder_widths=(8, 8, 8, 8), depth=1)
        >>> vae = CosmosAutoencoder(config)
        >>> z = vae.encode(torch.zeros(1, 3, 9, 16, 24)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 16, 2, 2, 3]), torch.Size([1, 3, 9, 16, 24]))
    """

    def __init__(
        self, config: CosmosAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(config, _encoder(config, **made), _decoder(config, **made), posterior=Point, **made)


def _encoder(config: CosmosAutoencoderConfig, **made: Any) -> Chain:
    """Video to latents: patches, scales from fine to coarse, the middle, the head."""
    widths, z, levels = config.widths, config.latent_channels, int(log2(config.patch))
    patch = CellsToBands(levels) if config.wavelets else CellsToChannels(config.patch, config.patch)
    return Chain(
        lead=Lead(config.patch - 1),
        patch=PerFrame(patch),
        embed=_convs(config.in_channels * config.patch**3, widths[0], **made),
        stages=Chain(*(_down(config, scale, **made) for scale in config.scales)),
        middle=_middle(widths[-1], **made),
        head=NormedConv(_norm(widths[-1], **made), _convs(widths[-1], z, **made)),
        latents=PerFrame(nn.Conv3d(z, z, 1, **made)),
    )


def _decoder(config: CosmosAutoencoderConfig, **made: Any) -> Chain:
    """Latents to video: the middle, scales from coarse to fine, the head, patches."""
    widths, z, levels = config.decoder_widths, config.latent_channels, int(log2(config.patch))
    patch = BandsToCells(levels) if config.wavelets else ChannelsToCells(config.patch, config.patch)
    head = _convs(widths[0], config.in_channels * config.patch**3, **made)
    return Chain(
        latents=PerFrame(nn.Conv3d(z, z, 1, **made)),
        embed=_convs(z, widths[-1], **made),
        middle=_middle(widths[-1], **made),
        stages=Chain(*(_up(config, scale, **made) for scale in reversed(config.scales))),
        head=NormedConv(_norm(widths[0], **made), head),
        patch=PerFrame(patch),
        lead=SkipFrames(config.patch - 1),
    )


def _down(config: CosmosAutoencoderConfig, scale: int, **made: Any) -> Chain:
    """The encoder at one scale: blocks, then half the space, half the time and a mixing of channels."""
    before, width = config.widths[scale : scale + 2]
    layers = _blocks(before, width, config.depth, config.attends(scale), **made)
    time, space = config.halves(scale)
    if space:
        layers["space"] = Residual(PerFrame(HalveSpace(width, **made)), MeanShortcut(width, width, 1, 2))
    if time:
        halved = CausalConv3d(width, width, (3, 1, 1), (2, 1, 1), before=copies, **made)
        layers["time"] = Residual(halved, MeanShortcut(width, width, 2, 1, before=copies))
    if time or space:
        layers["mix"] = PerFrame(nn.Conv3d(width, width, 1, **made))
    return Chain(**layers)


def _up(config: CosmosAutoencoderConfig, scale: int, **made: Any) -> Chain:
    """The decoder at one scale: blocks, then twice the time, twice the space and a mixing of channels."""
    width, before = config.decoder_widths[scale : scale + 2]
    layers = _blocks(before, width, config.depth + 1, config.attends(scale), **made)
    time, space = config.doubles(scale)
    if time:
        layers["time"] = Chain(copied=RepeatShortcut(width, width, 2, 1), conv=Residual(_time(width, width, **made)))
    if space:
        layers["space"] = Chain(copied=RepeatShortcut(width, width, 1, 2), conv=Residual(_space(width, width, **made)))
    if time or space:
        layers["mix"] = PerFrame(nn.Conv3d(width, width, 1, **made))
    return Chain(**layers)


def _blocks(before: int, width: int, depth: int, attends: bool, **made: Any) -> dict[str, nn.Module]:
    """Residual blocks, each with both attentions behind it where the scale attends."""
    layers: dict[str, nn.Module] = {}
    for i in range(depth):
        layers[str(i)] = _block(width if i else before, width, **made)
        if attends:
            layers[f"frame_attention{i}"] = _in_frames(width, **made)
            layers[f"time_attention{i}"] = _over_time(width, **made)
    return layers


def _middle(width: int, **made: Any) -> Chain:
    return Chain(
        first=_block(width, width, **made),
        frame_attention=_in_frames(width, **made),
        time_attention=_over_time(width, **made),
        second=_block(width, width, **made),
    )


def _block(before: int, width: int, **made: Any) -> Residual:
    branch = Chain(
        NormedConv(_norm(before, **made), _convs(before, width, **made)),
        NormedConv(_norm(width, **made), _convs(width, width, **made)),
    )
    return Residual(branch, None if before == width else PerFrame(nn.Conv3d(before, width, 1, **made)))


def _in_frames(width: int, **made: Any) -> Residual:
    return Residual(PerFrame(FrameAttention(_norm(width, **made), Attention(width, heads=1, **made))))


def _over_time(width: int, **made: Any) -> Residual:
    attention = Attention(width, heads=1, pattern=FrameCausal(), **made)
    return Residual(TimeAttention(_norm(width, **made), attention))


def _convs(before: int, width: int, **made: Any) -> Chain:
    """A convolution of each frame, then one over time."""
    return Chain(space=_space(before, width, **made), time=_time(width, width, **made))


def _space(before: int, width: int, **made: Any) -> CausalConv3d:
    return CausalConv3d(before, width, (1, 3, 3), **made)


def _time(before: int, width: int, **made: Any) -> CausalConv3d:
    return CausalConv3d(before, width, (3, 1, 1), before=copies, **made)


def _norm(width: int, **made: Any) -> FrameGroupNorm:
    """Mean and variance of a whole frame."""
    return FrameGroupNorm(1, width, _EPS, **made)


def cosmos_vae(temporal: int = 8, spatial: int = 8) -> CosmosAutoencoderConfig:
    """The continuous video tokenizer CV of these factors; statistics are those of CV8x8x8-1.0, for 8 and 8 only.

    Example:
        >>> cosmos_vae(8, 8).latent_channels
        16
    """
    config = CosmosAutoencoderConfig(temporal=temporal, spatial=spatial)
    return replace(config, latent_mean=MEAN_8X8X8, latent_std=STD_8X8X8) if (temporal, spatial) == (8, 8) else config
