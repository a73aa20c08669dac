"""How far what an autoencoder makes of one place depends on other places: found by marking one and looking.

A place is set to NaN, and all that depends on it comes out as NaN, whatever the weights. Convolutions, norms of each
position and changes of scale reach a few places; attention and norms over a frame reach all of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tubelet.vae.factors import Factors

__all__ = ["Reach", "decoder_reach", "encoder_reach"]

_LENGTHS = (33, 129)  # of the line whose middle is marked; the second where all of the first is touched


@dataclass(frozen=True)
class Reach:
    """Latent positions before and after a place that count for what is made of it; None where all of the axis do.

    Example:
        >>> Reach(time=(2, 0), height=(3, 3), width=None).unbounded
        ('width',)
    """

    time: tuple[int, int] | None
    height: tuple[int, int] | None
    width: tuple[int, int] | None

    @property
    def unbounded(self) -> tuple[str, ...]:
        """The axes along which everything depends on everything."""
        return tuple(name for name in ("time", "height", "width") if getattr(self, name) is None)


def decoder_reach(vae: Any) -> Reach:
    """Which latents the pixels of a latent position depend on.

    Args:
        vae: a :class:`tubelet.protocols.Autoencoder` with parameters, whose config has ``factors`` and
            ``latent_channels``.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig
        >>> decoder_reach(CausalAutoencoder(CausalAutoencoderConfig(widths=(8, 8), depths=(1, 1))))
        Reach(time=(4, 0), height=(2, 2), width=(2, 2))
    """
    config = vae.config
    return reach_of(vae.decode, blank(vae, config.latent_channels), config.factors)


def encoder_reach(vae: Any) -> Reach:
    """Which latent positions' pixels a latent depends on.

    Args:
        vae: as in `decoder_reach`, with ``in_channels`` in its config.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig
        >>> encoder_reach(CausalAutoencoder(CausalAutoencoderConfig(widths=(8, 8), depths=(1, 1))))
        Reach(time=(4, 0), height=(2, 2), width=(2, 2))
    """

    def encode(video: Tensor) -> Tensor:
        posterior = vae.encode(video)
        latents: Tensor = posterior.latents if hasattr(posterior, "latents") else posterior.mode()
        return latents

    config = vae.config
    return reach_of(shrinking(encode, config.factors), blank(vae, config.in_channels), Factors(1, 1))


def blank(vae: Any, channels: int) -> Tensor:
    """Zeros of no size in the dtype and on the device of an autoencoder."""
    weight = next(parameter for parameter in vae.parameters() if parameter.is_floating_point())
    return torch.zeros(1, channels, 0, 0, 0, device=weight.device, dtype=weight.dtype)


def shrinking(call: Callable[[Tensor], Tensor], factors: Factors) -> Callable[[Tensor], Tensor]:
    """A call of videos as one of what stands for their latent positions, each copied to all of its pixels."""

    def copied(x: Tensor) -> Tensor:
        wide = x.repeat_interleave(factors.spatial, 3).repeat_interleave(factors.spatial, 4)
        return call(wide.repeat_interleave(factors.temporal, 2)[:, :, factors.temporal - factors.first :])

    return copied


def reach_of(call: Callable[[Tensor], Tensor], like: Tensor, factors: Factors) -> Reach:
    """The reach of a call from positions to ``factors`` times as many."""
    return Reach(*(along(axis, call, like, factors) for axis in range(3)))


def along(axis: int, call: Callable[[Tensor], Tensor], like: Tensor, factors: Factors) -> tuple[int, int] | None:
    """What a place depends on before and after it: as far as a mark spreads after and before its own place."""
    scale = factors.spatial if axis else factors.temporal
    for length in _LENGTHS:
        touched = marked(call, like, axis, length)
        first, last = touched.nonzero().flatten()[[0, -1]].tolist()
        own = scale * (length // 2) - (0 if axis else factors.temporal - factors.first)
        if first > 0 and last < len(touched) - 1:
            return -(-max(last + 1 - own - scale, 0) // scale), -(-max(own - first, 0) // scale)
    return None


def marked(call: Callable[[Tensor], Tensor], like: Tensor, axis: int, length: int) -> Tensor:
    """Which places of an axis a mark in the middle of a line of two frames of one position touches."""
    sides = [2, 1, 1]
    sides[axis] = length
    x = like.new_zeros(*like.shape[:2], *sides)
    x.select(2 + axis, length // 2).fill_(torch.nan)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):  # its fast algorithms may spread a NaN further
        return call(x).isnan().transpose(0, 2 + axis).flatten(1).any(1)
