"""Sizes of the causal autoencoders: one frozen flat config, and presets that are nothing but sizes.

Factors follow the causal convention ``T = 1 + temporal·(t - 1)``, ``H = spatial·h`` (MAGVIT-v2, arXiv:2310.05737); all
sizes are counts (channels, blocks, frames, pixels).
"""

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from tubelet.vae.factors import Factors

__all__ = ["CausalAutoencoderConfig", "digits"]


@dataclass(frozen=True, kw_only=True)
class CausalAutoencoderConfig:
    """Sizes of a `CausalAutoencoder`.

    Args:
        in_channels: channels of the video.
        latent_channels: channels of the latents.
        widths: channels of each scale, finest first; each scale after the first halves height and width.
        depths: residual blocks at each scale of the encoder.
        decoder_widths: as ``widths``, still finest first, for the decoder; None for the encoder's.
        decoder_depths: as ``depths`` for the decoder; None for the encoder's.
        temporal: frames to one latent frame, after the first.
        spatial: pixels to one latent position, along height and width.

    Raises:
        ValueError: a size that is no positive whole number, widths and depths of different lengths, or a spatial factor
            that the halvings between the scales do not divide.

    Example:
        >>> CausalAutoencoderConfig(widths=(32, 64, 64), depths=(1, 1, 1)).patch
        2
    """

    in_channels: int = 1
    latent_channels: int = 16
    widths: tuple[int, ...] = (64, 128)
    depths: tuple[int, ...] = (2, 2)
    decoder_widths: tuple[int, ...] | None = None
    decoder_depths: tuple[int, ...] | None = None
    temporal: int = 4
    spatial: int = 8

    def __post_init__(self) -> None:
        for name in ("in_channels", "latent_channels", "temporal", "spatial"):
            if not _is_size(getattr(self, name)):
                raise ValueError(f"{name} must be a positive whole number, not {getattr(self, name)}")
        for widths, depths in ((self.widths, self.depths), self.decoder):
            whole = all(map(_is_size, widths)) and all(_is_size(depth + 1) for depth in depths)
            if not widths or len(widths) != len(depths) or not whole:
                raise ValueError(f"widths {widths} and depths {depths} must give a size for each scale")
        if len(self.decoder[0]) != len(self.widths):
            raise ValueError(f"decoder_widths {self.decoder[0]} must have as many scales as widths {self.widths}")
        if self.spatial % (halvings := 2 ** (len(self.widths) - 1)):
            raise ValueError(f"spatial {self.spatial} must be divisible by {halvings} for {len(self.widths)} scales")

    @property
    def decoder(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Widths and depths of the decoder, finest scale first."""
        widths = self.widths if self.decoder_widths is None else self.decoder_widths
        return widths, self.depths if self.decoder_depths is None else self.decoder_depths

    @property
    def factors(self) -> Factors:
        """Frames and pixels to a latent."""
        return Factors(self.temporal, self.spatial)

    @property
    def patch(self) -> int:
        """Side in pixels of the patch that the finest scale sees as one position."""
        return int(self.spatial // 2 ** (len(self.widths) - 1))


def _is_size(value: Any) -> bool:
    return isinstance(value, Integral) and int(value) > 0


def digits() -> CausalAutoencoderConfig:
    """The autoencoder of the demo: grey video, 16 latent channels, 1.1 M parameters, most of them in the decoder.

    Example:
        >>> digits().latent_channels
        16
    """
    return CausalAutoencoderConfig(widths=(64, 128), depths=(2, 1), decoder_widths=(96, 128), decoder_depths=(3, 2))
