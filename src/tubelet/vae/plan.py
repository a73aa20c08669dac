"""How to decode within a budget of memory: whole, in chunks of time, or in tiles of space as well.

Plans are tried from the fastest on. Chunks of time cost nothing, since the state is carried on; tiles are decoded
together with their surroundings, so more and smaller ones cost more. What a plan will hold at most is counted from a
dry run of its parts (:mod:`tubelet.vae.memory`).
"""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.layout import Grid
from tubelet.vae.memory import predicted_peak
from tubelet.vae.reach import Reach, along, blank
from tubelet.vae.splitting import Layer, Split, split_decoder
from tubelet.vae.tiling import decode_tiled, lengths, pieces, spans_of
from tubelet.vae.video import Chunks

__all__ = ["DecodePlan", "plan_decode"]

_STEADY = 2  # chunks after which a stream holds what it will ever hold, once the first frames have come


@dataclass(frozen=True)
class DecodePlan:
    """How latents of one shape are decoded.

    Args:
        chunk: latent frames at a time; None for all.
        tile: the most rows and columns of latents in a tile, without its surroundings; None for whole frames.
        overlap: latent positions in which tiles are faded into each other; None for tiles that are exact.
        peak: bytes held at most beyond the latents and the weights; the video counts.
        split: the decoder's, where there are exact tiles.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig
        >>> vae = CausalAutoencoder(CausalAutoencoderConfig(widths=(8, 8), depths=(1, 1))).eval()
        >>> plan = plan_decode(vae, (1, 16, 9, 8, 8), 900_000)
        >>> plan.chunk is None, plan.tile, plan.peak <= 900_000
        (False, None, True)
        >>> with torch.no_grad():
        ...     plan.decode(vae, torch.zeros(1, 16, 9, 8, 8)).shape
        torch.Size([1, 1, 33, 64, 64])
    """

    chunk: int | None
    tile: tuple[int, int] | None
    overlap: int | None
    peak: int
    split: Split | None = None

    def decode(self, vae: Any, z: Float[Tensor, "b z lt lh lw"]) -> Float[Tensor, "b c t h w"]:
        """The video of latents, as planned; without gradients, which would keep all activations.

        Raises:
            ValueError: latents that do not fit the autoencoder.
        """
        if self.chunk is None and self.tile is None:
            video: Tensor = vae.decode(z)
            return video
        tile = (None, None) if self.tile is None else self.tile
        return decode_tiled(vae, z, (None, *tile), overlap=self.overlap, chunk=self.chunk, split=self.split)


def plan_decode(vae: Any, shape: Sequence[int], budget: int, *, overlap: int | None = None) -> DecodePlan:
    """The fastest way to decode latents of a shape whose memory stays within a budget.

    Memory is what PyTorch allocates, the working memory of convolutions included on a CPU (with the number of threads
    and in the dtype of the moment), beyond the latents and the weights; gradients are off.

    Args:
        vae: an autoencoder as :func:`tubelet.vae.decode_tiled` takes it.
        shape: of the latents, ``(b, z, t, h, w)``.
        budget: bytes.
        overlap: latent positions in which tiles are faded into each other; None allows exact tiles alone.

    Raises:
        ValueError: a shape that does not fit, an overlap of more than half a side, or a budget that is NaN or below
            what the smallest plan needs.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig
        >>> vae = CausalAutoencoder(CausalAutoencoderConfig(widths=(8, 8), depths=(1, 1)), device="meta")
        >>> plan_decode(vae, (1, 16, 257, 8, 8), 10**12).chunk is None
        True
    """
    if len(shape) != 5 or shape[1] != vae.config.latent_channels or min(shape) < 1:
        raise ValueError(f"shape must be (b, {vae.config.latent_channels}, t, h, w), got {tuple(shape)}")
    if not budget > 0:
        raise ValueError(f"budget must be a positive number of bytes, not {budget}")
    if overlap is not None and not 0 <= overlap <= max(shape[3:]) // 2:
        raise ValueError(f"overlap must be from 0 to half of a side of {tuple(shape[3:])}, not {overlap}")
    dry = _Dry(vae, tuple(shape))
    least = dry.whole()
    if least <= budget:
        return DecodePlan(None, None, None, least)
    chunk, peak = _first(dry.chunks, lambda chunk: dry.streamed(vae.decoder, chunk, beside=dry.video), budget)
    if peak <= budget:
        return DecodePlan(chunk, None, None, peak)
    split = split_decoder(vae) if overlap is None else None
    tiles = _tiles(dry.shape[2:], overlap, None if split is None else split.reach)
    if not tiles:
        raise ValueError(f"budget {budget} is below the {peak} bytes of plans without tiles, which need an overlap")
    tile, peak = _first(tiles, lambda tile: dry.tiled(tile, dry.chunks[-1], overlap, split), budget)
    if peak > budget:
        raise ValueError(f"budget {budget} is below the {peak} bytes that the smallest plan for {tuple(shape)} needs")
    chunk, peak = _first([None, *dry.chunks], lambda chunk: dry.tiled(tile, chunk, overlap, split), budget)
    return DecodePlan(chunk, tile, overlap, peak, split)


def _first(candidates: Sequence[Any], peak: Callable[[Any], int], budget: int) -> tuple[Any, int]:
    """The first candidate within the budget, and its peak; the last if none is. Later ones hold less."""
    peaks: dict[int, int] = {}

    def fits(place: int) -> bool:
        peaks[place] = peak(candidates[place])
        return peaks[place] <= budget

    place = bisect_left(range(len(candidates) - 1), True, key=fits)
    return candidates[place], peaks[place] if place in peaks else peak(candidates[place])


class _Dry:
    """What ways to decode latents of one shape hold at most."""

    def __init__(self, vae: Any, shape: tuple[int, ...]) -> None:
        self.vae, self.shape = vae, shape
        self.own = getattr(vae, "chunks", Chunks()).decode
        self.itemsize, self.ahead = blank(vae, 1).element_size(), getattr(vae, "looks_ahead", False)
        self.video = self._bytes(vae.config.in_channels, *vae.config.factors.video_size(Grid(*shape[2:])))

    @cached_property
    def later(self) -> int | None:
        """Later latent frames that a frame depends on, as it does on all behind a joint norm, which is None."""
        time = along(0, self.vae.decode, blank(self.vae, self.vae.config.latent_channels), self.vae.config.factors)
        return None if time is None else time[1]

    @cached_property
    def chunks(self) -> list[int | None]:
        """Latent frames at a time, the most first: fewer than all or than the autoencoder's own, if any are equal."""
        if self.later is None or (self.later and not self.ahead):
            return [self.own]
        most = self.shape[2] if self.own is None else min(self.shape[2], self.own + 1)
        return [2**i for i in reversed(range(most.bit_length())) if 2**i < max(most, 2)]

    def whole(self) -> int:
        return predicted_peak(self.vae, self.vae.decode, self.shape)

    def streamed(
        self,
        layer: Layer,
        chunk: int | None,
        shape: tuple[int, ...] | None = None,
        fade: bool = False,
        beside: int = 0,
    ) -> int:
        """What a layer holds while it runs chunk by chunk and what it gives is put away, faded or not.

        ``beside``: bytes that are held from the first frames on.
        """
        b, c, t, h, w = self.shape if shape is None else shape
        steady = _STEADY + (-(-(self.later or 0) // chunk) if self.ahead and chunk else 0)
        plan = lengths(t, chunk, self.own)[:steady]

        def stream(x: Tensor) -> None:
            whole = None
            for piece in pieces(layer, x, plan, self.ahead):
                whole = piece.new_empty(beside // self.itemsize) if whole is None else whole
                ramp = piece.new_ones(max(piece.shape[3:])) if fade else None
                faded = piece * piece if fade else piece
                faded = faded * piece if fade else piece
                del piece, faded, ramp

        return predicted_peak(self.vae, stream, (b, c, sum(plan), h, w))

    def tiled(self, tile: tuple[int, int], chunk: int | None, overlap: int | None, split: Split | None) -> int:
        """What the worst tile holds, with the video and what the layers that see whole frames give for all of it.

        That need not be the largest: small inputs of convolutions are not divided into blocks.
        """
        b, c, t, *sides = self.shape
        spans = spans_of((t, *sides), (None, *tile), overlap or 0, None if split is None else split.reach)
        sizes = [*itertools.product(*({span.run[1] - span.run[0] for span in axis} for axis in spans[1:]))]
        if split is None:
            return self.video + max(
                self.streamed(self.vae.decoder, chunk, (b, c, t, *size), fade=True) for size in sizes
            )
        if split.whole is None:
            return self.video + max(self.streamed(split.tiled, chunk, (b, c, t, *size)) for size in sizes)
        with torch.no_grad():
            channels = split.whole(blank(self.vae, c).new_zeros(1, c, 1, 1, 1), None)[0].shape[1]
        features = self._bytes(channels, t, *sides)
        tail = max(self.streamed(split.tiled, chunk, (b, channels, t, *size)) for size in sizes)
        return features + max(self.streamed(split.whole, chunk), self.video + tail)

    def _bytes(self, *sides: int) -> int:
        return self.shape[0] * prod(sides) * self.itemsize


def _tiles(sides: Sequence[int], overlap: int | None, reach: Reach | None) -> list[tuple[int, int]]:
    """Sizes of tiles, by the positions that all of them run on together; each smaller than the ones before."""
    costs: dict[tuple[int, int], int] = {}
    for counts in itertools.product(*([2**i for i in range(side.bit_length()) if 2**i <= side] for side in sides[1:])):
        tile = -(-sides[1] // counts[0]), -(-sides[2] // counts[1])
        try:
            spans = spans_of(sides, (None, *tile), overlap or 0, reach)[1:]
        except ValueError:  # a side that cannot be divided, or tiles too small for the overlap
            continue
        costs[tile] = prod(sum(span.run[1] - span.run[0] for span in axis) for axis in spans)
    kept: list[tuple[int, int]] = []
    for tile in sorted(costs, key=lambda tile: (costs[tile], prod(tile))):
        if prod(tile) < prod(kept[-1] if kept else sides[1:]):
            kept.append(tile)
    return kept
