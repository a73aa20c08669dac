"""An encoder or decoder in two: layers that see a whole frame, which run on all of it, and the rest, to be tiled.

Autoencoders with attention have it at their coarsest scale, where a frame is small. A decoder's layers up to it run on
whole frames, and what follows reaches only so far; of an encoder it is the other way round.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.layout import Grid
from tubelet.vae.causal import State
from tubelet.vae.chains import Chain
from tubelet.vae.factors import Factors
from tubelet.vae.reach import Reach, blank, reach_of, shrinking

__all__ = ["Split", "split_decoder", "split_encoder"]

Layer = Callable[[Tensor, State | None], tuple[Tensor, State]]
_LINE = 65  # positions that a layer must touch from the middle one to count as seeing all


@dataclass(frozen=True)
class Split:
    """Streaming layers, ``layer(x, state) -> (y, state)``, that together are an encoder or a decoder.

    Args:
        whole: what has to see all of a frame; it runs on the latent grid. None where nothing has to.
        tiled: the rest.
        reach: that of ``tiled``.

    Example:
        >>> from tubelet.vae.families import WanAutoencoder, WanAutoencoderConfig
        >>> vae = WanAutoencoder(WanAutoencoderConfig(widths=(8, 8), depth=1, halve_time=(True,)))
        >>> split_decoder(vae).reach.unbounded, list(dict(split_decoder(vae).whole.named_children()))
        ((), ['latents', 'embed', 'middle'])
    """

    whole: nn.Module | None
    tiled: Layer
    reach: Reach


def split_decoder(vae: Any) -> Split:
    """The layers of a decoder up to the last that sees a whole frame, and those after it.

    Args:
        vae: an autoencoder with a ``decoder`` of streaming layers; all of it is tiled where it is no
            :class:`tubelet.vae.Chain`. Its config has ``factors`` and ``latent_channels``.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig
        >>> split_decoder(CausalAutoencoder(CausalAutoencoderConfig(widths=(8, 8), depths=(1, 1)))).reach.height
        (2, 2)
    """
    factors, like = vae.config.factors, blank(vae, vae.config.latent_channels)
    whole, tiled = _cut(vae.decoder, like.new_zeros(1, like.shape[1], 2, 1, _LINE), last=True)
    if whole is not None:
        features = _run(whole, like.new_zeros(1, like.shape[1], 2, 2, 2))
        if tiled is None or features.shape[2:] != (2, 2, 2):  # a frame is seen behind the latent grid: nothing to tile
            whole, tiled = None, vae.decoder
        else:
            like = features
    return Split(whole, tiled, reach_of(lambda x: _run(tiled, x), like, factors))


def split_encoder(vae: Any) -> Split:
    """The layers of an encoder from the first that sees a whole frame on, and those before it.

    Args:
        vae: an autoencoder with an ``encoder`` of streaming layers; its config has ``factors`` and ``in_channels``.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig
        >>> split_encoder(CausalAutoencoder(CausalAutoencoderConfig(widths=(8, 8), depths=(1, 1)))).reach.height
        (2, 2)
    """
    factors, like = vae.config.factors, blank(vae, vae.config.in_channels)
    line = like.new_zeros(1, like.shape[1], factors.first + factors.temporal, factors.spatial, factors.spatial * _LINE)
    tiled, whole = _cut(vae.encoder, line, last=False)
    square = like.new_zeros(1, like.shape[1], *factors.video_size(Grid(2, 2, 2)))
    if tiled is None or (whole is not None and _run(tiled, square).shape[2:] != (2, 2, 2)):
        whole, tiled = None, vae.encoder  # a frame is seen before the latent grid: nothing to tile
    return Split(whole, tiled, reach_of(shrinking(lambda x: _run(tiled, x), factors), like, Factors(1, 1)))


def _cut(layer: nn.Module, line: Tensor, last: bool) -> tuple[Any, Any]:
    """A chain before and after a place: behind the last layer that sees all, or before the first; None for nothing."""
    if not isinstance(layer, Chain):
        return (None, layer) if last else (layer, None)
    named, seeing = list(layer.named_children()), []
    for number, (_, child) in enumerate(named):
        mark = torch.zeros_like(line)
        mark[..., mark.shape[-1] // 2] = torch.nan
        line = _run(child, mark)
        if bool(line.isnan().flatten(0, -2).any(0).all()):
            seeing.append(number)
    place = (seeing[-1] + 1 if seeing else 0) if last else (seeing[0] if seeing else len(named))
    parts = named[:place], named[place:]
    before, after = (Chain(**dict(part)) if part else None for part in parts)
    return before, after


def _run(layer: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = layer(x, None)[0]
    return y
