"""CogVideoX's autoencoder (arXiv:2408.06072, section 2.1), of the blocks of :mod:`tubelet.vae`.

Every 3×3×3 convolution is causal in time; before a video stand copies of its first frame. A scale is a few residual
blocks, then half the space by a convolution of each frame and, at the finer scales of the encoder and the coarser ones
of the decoder, half the time by means of two frames, or twice the time by copies; the first frame stays alone. Each
norm of the decoder is modulated by the latents.

The group norms take their mean and variance over all frames of a chunk, and nothing else joins chunks but the
convolutions. The model was trained and is run on chunks: ``encode`` and ``decode`` cut a video into 8 frames, or 2
latent frames, of which the first chunk has what is left over as well. Who cuts it otherwise, by ``encode_chunk`` and
``decode_chunk``, gets another answer; who cuts it so gets this one. No frame depends on a later chunk.

Shapes: video ``(b, c, T, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``T = 1 + 4·(t - 1)``, ``H = 8·h``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tubelet.vae.blocks import Device
from tubelet.vae.causal import CausalConv3d
from tubelet.vae.chains import Chain, Guided, NormedConv, PerFrame, Residual
from tubelet.vae.factors import Factors, check_scales
from tubelet.vae.group_norms import SpatialNorm
from tubelet.vae.repeats import RepeatFrames
from tubelet.vae.scales import DoubleSpace, HalveSpace, MeanTime
from tubelet.vae.video import Chunks, VideoAutoencoder

__all__ = ["CogVideoXAutoencoder", "CogVideoXAutoencoderConfig", "cogvideox_vae_2b", "cogvideox_vae_5b"]

_EPS = 1e-6
_CHUNKS = Chunks(encode=8, decode=2)
Norm = Callable[[int], nn.Module]


@dataclass(frozen=True, kw_only=True)
class CogVideoXAutoencoderConfig:
    """Sizes of a `CogVideoXAutoencoder`.

    Args:
        in_channels: channels of the video.
        latent_channels: channels of the latents.
        widths: channels of each scale, finest first; each scale after the first halves height and width.
        depth: residual blocks at each scale of the encoder; the decoder has one more.
        groups: of channels, in the norms.
        time_halvings: how often time is halved: at the finest changes of scale, and doubled at the coarsest.
        scaling_factor: what latents are multiplied by for the diffusion model.
        invert_scale: whether the diffusion model was trained on given images that were divided by it (1.5's).

    Raises:
        ValueError: a size that is not positive, widths that the groups do not divide, more halvings of time than
            changes of scale, or a factor that is not positive.

    Example:
        >>> CogVideoXAutoencoderConfig(widths=(32, 64), time_halvings=1).factors
        Factors(temporal=2, spatial=2)
    """

    in_channels: int = 3
    latent_channels: int = 16
    widths: tuple[int, ...] = (128, 256, 256, 512)
    depth: int = 3
    groups: int = 32
    time_halvings: int = 2
    scaling_factor: float = 1.15258426
    invert_scale: bool = False

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


class CogVideoXAutoencoder(VideoAutoencoder):
    """The video autoencoder of these sizes, in chunks of 8 frames and of 2 latent frames.

    Args:
        config: the sizes.

    Example:
        >>> vae = CogVideoXAutoencoder(CogVideoXAutoencoderConfig(widths=(8, 8, 8), depth=1, groups=4))
        >>> z = vae.encode(torch.zeros(1, 3, 9, 16, 24)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 16, 3, 4, 6]), torch.Size([1, 3, 9, 16, 24]))
    """

    def __init__(
        self, config: CogVideoXAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(config, _encoder(config, **made), _decoder(config, **made), chunks=_CHUNKS, **made)


def _encoder(config: CogVideoXAutoencoderConfig, **made: Any) -> Chain:
    """Video to moments: scales from fine to coarse, the middle, the head."""
    widths, norm = config.widths, _norms(config, **made)
    return Chain(
        embed=CausalConv3d(config.in_channels, widths[0], **made),
        stages=Chain(*(_down(config, i, norm, **made) for i in range(len(widths)))),
        middle=Chain(**_blocks(norm, widths[-1], widths[-1], 2, **made)),
        head=NormedConv(norm(widths[-1]), CausalConv3d(widths[-1], 2 * config.latent_channels, **made)),
    )


def _decoder(config: CogVideoXAutoencoderConfig, **made: Any) -> Guided:
    """Latents to video: the middle, scales from coarse to fine, the head; every norm is told the latents."""
    widths, norm = config.widths, _guided_norms(config, **made)
    return Guided(
        Chain(
            embed=CausalConv3d(config.latent_channels, widths[-1], **made),
            middle=Chain(**_blocks(norm, widths[-1], widths[-1], 2, **made)),
            stages=Chain(*(_up(config, i, norm, **made) for i in reversed(range(len(widths))))),
            head=NormedConv(norm(widths[0]), CausalConv3d(widths[0], config.in_channels, **made)),
        )
    )


def _down(config: CogVideoXAutoencoderConfig, scale: int, norm: Norm, **made: Any) -> Chain:
    """The encoder at one scale: blocks, then perhaps half the time, and half the space."""
    width = config.widths[scale]
    layers = _blocks(norm, config.widths[max(scale - 1, 0)], width, config.depth, **made)
    if scale < len(config.widths) - 1:
        if scale < config.time_halvings:
            layers["time"] = MeanTime(2)
        layers["space"] = PerFrame(HalveSpace(width, **made))
    return Chain(**layers)


def _up(config: CogVideoXAutoencoderConfig, scale: int, norm: Norm, **made: Any) -> Chain:
    """The decoder at one scale: blocks, then twice the space, and perhaps twice the time, for the next finer scale."""
    last, width = len(config.widths) - 1, config.widths[scale]
    layers = _blocks(norm, config.widths[min(scale + 1, last)], width, config.depth + 1, **made)
    if scale:
        layers["space"] = PerFrame(DoubleSpace(width, width, **made))
        if last - scale < config.time_halvings:
            layers["time"] = RepeatFrames(2)
    return Chain(**layers)


def _blocks(norm: Norm, before: int, width: int, depth: int, **made: Any) -> dict[str, nn.Module]:
    return {str(i): _block(norm, width if i else before, width, **made) for i in range(depth)}


def _block(norm: Norm, before: int, width: int, **made: Any) -> Residual:
    branch = Chain(
        NormedConv(norm(before), CausalConv3d(before, width, **made)),
        NormedConv(norm(width), CausalConv3d(width, width, **made)),
    )
    return Residual(branch, None if before == width else PerFrame(nn.Conv3d(before, width, 1, **made)))


def _norms(config: CogVideoXAutoencoderConfig, **made: Any) -> Norm:
    """Norms over all frames of a chunk."""
    return lambda width: nn.GroupNorm(config.groups, width, _EPS, **made)


def _guided_norms(config: CogVideoXAutoencoderConfig, **made: Any) -> Norm:
    """The same, modulated by the latents."""
    plain = _norms(config, **made)
    return lambda width: SpatialNorm(plain(width), width, config.latent_channels, **made)


def cogvideox_vae_2b() -> CogVideoXAutoencoderConfig:
    """That of CogVideoX-2B: 4×8×8 to 16 channels, 215.6 M parameters.

    Example:
        >>> cogvideox_vae_2b().factors
        Factors(temporal=4, spatial=8)
    """
    return CogVideoXAutoencoderConfig()


def cogvideox_vae_5b() -> CogVideoXAutoencoderConfig:
    """That of CogVideoX-5B and 1.5: the same sizes and another factor.

    Example:
        >>> cogvideox_vae_5b().scaling_factor
        0.7
    """
    return CogVideoXAutoencoderConfig(scaling_factor=0.7)
