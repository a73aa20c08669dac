"""Mochi's autoencoder (Genmo's AsymmVAE, 2024), of the blocks of :mod:`tubelet.vae`.

The encoder begins with sines and cosines of the pixels. Every convolution is causal in time; before a video stand
copies of its first frame, and round a frame its own edge. The encoder shrinks by convolutions whose stride is their
kernel, the decoder grows by linear maps of each position to a box of them, and leaves out the frames that its first
latent frame has too many. In the encoder, blocks are followed by attention of each position over its own past. The
decoder is larger than the encoder.

Norms are group norms of each frame alone, so all of it streams: a latent frame depends on no later frame and a frame on
no later latent. The decoder's state has constant size; the encoder's holds keys and values of all frames so far.

Shapes: video ``(b, c, T, H, W)`` in [-1, 1]; latents ``(b, z, t, h, w)`` with ``T = 1 + 6·(t - 1)``, ``H = 8·h``.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tubelet.attention import Attention
from tubelet.attention.patterns import FrameCausal
from tubelet.norms import UnitNorm
from tubelet.vae.blocks import Device
from tubelet.vae.causal import CausalConv3d
from tubelet.vae.chains import Chain, NormedConv, PerFrame, Residual, SkipFrames
from tubelet.vae.factors import Factors
from tubelet.vae.features import FourierFeatures
from tubelet.vae.frame_attention import TimeAttention
from tubelet.vae.group_norms import FrameGroupNorm
from tubelet.vae.shuffles import PointwiseUp
from tubelet.vae.video import Chunks, VideoAutoencoder

__all__ = ["MochiAutoencoder", "MochiAutoencoderConfig", "mochi_vae"]

_GROUPS, _HEAD = 32, 32
_FREQUENCIES = (6, 7)
_CHUNKS = Chunks(decode=1)  # any are equal, and these hold the least


@dataclass(frozen=True, kw_only=True)
class MochiAutoencoderConfig:
    """Sizes of a `MochiAutoencoder`.

    Args:
        in_channels: channels of the video.
        latent_channels: channels of the latents.
        widths: channels of each scale of the encoder, finest first; multiples of 32.
        decoder_widths: as ``widths``, still finest first, for the decoder.
        temporal: by how much each change of scale shrinks time, finest first.
        spatial: by how much it shrinks height and width.
        depths: residual blocks before the first change of scale, after each, and once more at the coarsest scale; the
            decoder has as many of each.
        attends: which of these blocks of the encoder are followed by attention.
        latent_mean: of each latent channel over the training data; empty for zeros.
        latent_std: its standard deviation; empty for ones.

    Raises:
        ValueError: a size that is not positive, widths that are no multiples of 32, sizes of another number than the
            scales have, or statistics of another number than the latent channels.

    Example:
        >>> MochiAutoencoderConfig().factors
        Factors(temporal=6, spatial=8)
    """

    in_channels: int = 3
    latent_channels: int = 12
    widths: tuple[int, ...] = (64, 128, 256, 384)
    decoder_widths: tuple[int, ...] = (128, 256, 512, 768)
    temporal: tuple[int, ...] = (1, 2, 3)
    spatial: tuple[int, ...] = (2, 2, 2)
    depths: tuple[int, ...] = (3, 3, 4, 6, 3)
    attends: tuple[bool, ...] = (False, True, True, True, True)
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("in_channels", "latent_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        scales = len(self.widths)
        for name, count in (("decoder_widths", 0), ("temporal", -1), ("spatial", -1), ("depths", 1), ("attends", 1)):
            if len(values := getattr(self, name)) != scales + count:
                raise ValueError(f"{name} {values} must be {scales + count} values for the {scales} widths")
        for name in ("temporal", "spatial", "depths"):
            if min(getattr(self, name), default=1) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be positive")
        for name in ("widths", "decoder_widths"):
            if any(width < 1 or width % _GROUPS for width in getattr(self, name)):
                raise ValueError(f"{name} {getattr(self, name)} must be positive multiples of {_GROUPS}")
        for name, values in (("latent_mean", self.latent_mean), ("latent_std", self.latent_std)):
            if len(values) not in (0, self.latent_channels):
                raise ValueError(f"{name} has {len(values)} values for {self.latent_channels} latent channels")
        if not all(std > 0 for std in self.latent_std):
            raise ValueError(f"latent_std must be positive, not {min(self.latent_std)}")

    @property
    def factors(self) -> Factors:
        """Frames and pixels to a latent."""
        return Factors(math.prod(self.temporal), math.prod(self.spatial))


class MochiAutoencoder(VideoAutoencoder):
    """The video autoencoder of these sizes.

    Args:
        config: the sizes.

    Example:
        >>> sizes = {"widths": (32, 32), "decoder_widths": (32, 64), "temporal": (3,), "spatial": (2,)}
        >>> vae = MochiAutoencoder(MochiAutoencoderConfig(**sizes, depths=(1, 1, 1), attends=(False, True, True)))
        >>> z = vae.encode(torch.zeros(1, 3, 7, 4, 6)).mode()
        >>> z.shape, vae.decode(z).shape
        (torch.Size([1, 12, 3, 2, 3]), torch.Size([1, 3, 7, 4, 6]))
    """

    def __init__(
        self, config: MochiAutoencoderConfig, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(config, _encoder(config, **made), _decoder(config, **made), chunks=_CHUNKS, **made)


def _encoder(config: MochiAutoencoderConfig, **made: Any) -> Chain:
    """Video to moments: scales from fine to coarse, the middle, the head."""
    widths, depths, attends = config.widths, config.depths, config.attends
    features = config.in_channels * (1 + 2 * len(_FREQUENCIES))
    moments = nn.Conv3d(widths[-1], 2 * config.latent_channels, 1, bias=False, **made)
    return Chain(
        features=PerFrame(FourierFeatures(_FREQUENCIES)),
        embed=PerFrame(nn.Conv3d(features, widths[0], 1, **made)),
        stages=Chain(
            *(
                Chain(**_down(config, i, **made), **_blocks(widths[i], depths[i], attends[i], **made))
                for i in range(len(widths))
            )
        ),
        middle=Chain(**_blocks(widths[-1], depths[-1], attends[-1], **made)),
        head=NormedConv(_norm(widths[-1], **made), PerFrame(moments)),
    )


def _decoder(config: MochiAutoencoderConfig, **made: Any) -> Chain:
    """Latents to video: the middle, scales from coarse to fine, the head."""
    widths, depths = config.decoder_widths, config.depths
    return Chain(
        embed=PerFrame(nn.Conv3d(config.latent_channels, widths[-1], 1, **made)),
        middle=Chain(**_blocks(widths[-1], depths[-1], False, **made)),
        stages=Chain(
            *(
                Chain(**_blocks(widths[i], depths[i], False, **made), **_up(config, i, **made))
                for i in reversed(range(len(widths)))
            )
        ),
        head=NormedConv(nn.Identity(), PerFrame(nn.Conv3d(widths[0], config.in_channels, 1, **made))),
        skip=SkipFrames(config.factors.temporal - 1),
    )


def _down(config: MochiAutoencoderConfig, scale: int, **made: Any) -> dict[str, nn.Module]:
    """The convolution from the next finer scale, where there is one."""
    if not scale:
        return {}
    box = (config.temporal[scale - 1], config.spatial[scale - 1], config.spatial[scale - 1])
    return {"change": CausalConv3d(config.widths[scale - 1], config.widths[scale], box, box, edges="replicate", **made)}


def _up(config: MochiAutoencoderConfig, scale: int, **made: Any) -> dict[str, nn.Module]:
    """The map to the next finer scale, where there is one."""
    if not scale:
        return {}
    box, widths = (config.temporal[scale - 1], config.spatial[scale - 1]), config.decoder_widths
    return {"change": PerFrame(PointwiseUp(widths[scale], widths[scale - 1], *box, **made))}


def _blocks(width: int, depth: int, attends: bool, **made: Any) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {}
    for i in range(depth):
        layers[f"{i}"] = Residual(Chain(_normed(width, **made), _normed(width, **made)))
        if attends:
            layers[f"attention{i}"] = Residual(_attention(width, **made))
    return layers


def _attention(width: int, **made: Any) -> TimeAttention:
    attention = Attention(
        width, width // _HEAD, bias=False, out_bias=True, qk_norm=UnitNorm, pattern=FrameCausal(), **made
    )
    return TimeAttention(_norm(width, **made), attention)


def _normed(width: int, **made: Any) -> NormedConv:
    return NormedConv(_norm(width, **made), CausalConv3d(width, width, edges="replicate", **made))


def _norm(width: int, **made: Any) -> FrameGroupNorm:
    return FrameGroupNorm(_GROUPS, width, **made)


def mochi_vae() -> MochiAutoencoderConfig:
    """Mochi 1's: 6×8×8 to 12 channels, 459.7 M parameters; the statistics are those of its release.

    Example:
        >>> mochi_vae().latent_std[7]
        1.3720942357788521
    """
    mean: tuple[float, ...] = (-0.06730895953510081, -0.038011381506090416, -0.07477820912866141, -0.05565264470995561)
    mean += (0.012767231469026969, -0.04703542746246419, 0.043896967884726704, -0.09346305707025976)
    mean += (-0.09918314763016893, -0.008729793427399178, -0.011931556316503654, -0.0321993391887285)
    std: tuple[float, ...] = (0.9263795028493863, 0.9248894543193766, 0.9393059390890617, 0.959253732819592)
    std += (0.8244560132752793, 0.917259975397747, 0.9294154431013696, 1.3720942357788521)
    std += (0.881393668867029, 0.9168315692124348, 0.9185249279345552, 0.9274757570805041)
    return MochiAutoencoderConfig(latent_mean=mean, latent_std=std)
