"""Decoding and encoding in tiles of space and windows of time, exact where the autoencoder reaches only so far.

A tile is run together with its surroundings, of which its result depends on those within :class:`tubelet.vae.Reach`;
layers that see a whole frame run on all of it first (:mod:`tubelet.vae.splitting`). The tiles are cut to their own
places, and the whole is what one run gives. With another overlap all layers run on tiles, which then differ where they
meet, and are faded into each other linearly.

Shapes: video ``(b, c, T, H, W)``, latents ``(b, z, t, h, w)``; tiles and overlaps are counted in latent positions.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.vae.ahead import advance
from tubelet.vae.causal import State
from tubelet.vae.factors import Factors, check_channels
from tubelet.vae.reach import Reach
from tubelet.vae.splitting import Layer, Split, split_decoder, split_encoder
from tubelet.vae.video import Chunks

__all__ = ["decode_tiled", "encode_tiled"]

Tile = tuple[int | None, int | None, int | None]


@dataclass(frozen=True)
class _Span:
    """One tile on one axis, in latent positions: its own places, those it gives a share of, and those it is run on."""

    own: tuple[int, int]
    given: tuple[int, int]
    run: tuple[int, int]


@dataclass(frozen=True)
class _Ruler:
    """Latent positions to pixels of one axis; in time the first latent frame may lack some frames."""

    scale: int
    missing: int = 0

    @classmethod
    def of(cls, factors: Factors) -> list["_Ruler"]:
        """Those of time, height and width."""
        return [cls(factors.temporal, factors.temporal - factors.first), cls(factors.spatial), cls(factors.spatial)]

    def edge(self, latent: int) -> int:
        """Where a latent position begins; in time the first would begin before the video."""
        return self.scale * latent - self.missing

    def first(self, latent: int) -> int:
        """Where a run that begins at a latent position begins: in time without the frames that its first lacks."""
        return self.scale * latent


def decode_tiled(
    vae: Any,
    z: Float[Tensor, "b z lt lh lw"],
    tile: Tile,
    *,
    overlap: int | None = None,
    chunk: int | None = None,
    split: Split | None = None,
) -> Float[Tensor, "b c t h w"]:
    """The video of whole latents, decoded tile by tile.

    Args:
        vae: an autoencoder with a ``decoder`` of streaming layers, whose config has ``factors`` and
            ``latent_channels``.
        z: the latents.
        tile: the most latent frames, rows and columns of a tile without its surroundings; None for a whole axis.
        overlap: latent positions that all layers run beyond a tile on each side, to be faded; None for an exact result.
        chunk: latent frames decoded at a time, the state carried on; not together with windows of time. None for the
            autoencoder's own chunks, on which the answer depends where norms see all frames of a chunk. A decoder that
            sees later latents (LTX-Video's, :mod:`tubelet.vae.ahead`) makes each frame when they are there.
        split: the decoder's, where it is known; it is found otherwise.

    Raises:
        ValueError: latents of other channels, a tile or chunk that is not positive, an overlap of more than half a
            tile, windows of time together with chunks, or no overlap where the layers after those that see a frame
            reach over all of a divided axis.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig
        >>> vae = CausalAutoencoder(CausalAutoencoderConfig(widths=(8, 8), depths=(1, 1)))
        >>> z = torch.randn(1, 16, 2, 9, 9)
        >>> torch.allclose(decode_tiled(vae, z, (None, 4, 4)), vae.decode(z), atol=1e-6)
        True
    """
    check_channels("z", z, vae.config.latent_channels)
    _check(z.shape[2:], tile, overlap, chunk)
    if overlap is None and _divides(z.shape[2:], tile):
        split = split_decoder(vae) if split is None else split
        spans, layer, whole_layer = spans_of(z.shape[2:], tile, 0, split.reach), split.tiled, split.whole
    else:
        spans, layer, whole_layer = spans_of(z.shape[2:], tile, overlap or 0, None), vae.decoder, None
    factors, own = vae.config.factors, getattr(vae, "chunks", Chunks()).decode
    ahead = getattr(vae, "looks_ahead", False)
    if whole_layer is not None:
        z = gathered(whole_layer, z, lengths(z.shape[2], chunk, own), ahead)
    rulers = _Ruler.of(factors)
    whole: Tensor | None = None
    for place in itertools.product(*spans):
        part, frame = _cropped(z, [span.run for span in place]), 0
        for piece in pieces(layer, part, lengths(part.shape[2], chunk, own), ahead):
            if whole is None:
                sides = (ruler.edge(side) for ruler, side in zip(rulers, z.shape[2:], strict=True))
                whole = piece.new_zeros(*piece.shape[:2], *sides)
            _paste(whole, piece, place, rulers, frame)
            frame += piece.shape[2]
            del piece
    assert whole is not None
    return whole


def encode_tiled(
    vae: Any,
    video: Float[Tensor, "b c t h w"],
    tile: Tile,
    *,
    overlap: int | None = None,
    split: Split | None = None,
) -> Any:
    """The posterior of a whole video, encoded tile by tile.

    Args:
        vae: an autoencoder with an ``encoder`` of streaming layers and a ``posterior`` of what it gives, whose config
            has ``factors`` and ``in_channels``.
        video: of sizes that the factors divide.
        tile: the most latent frames, rows and columns of a tile without its surroundings; None for a whole axis.
        overlap: as in `decode_tiled`; the moments are faded.
        split: the encoder's, where it is known; it is found otherwise.

    Raises:
        ValueError: sizes that do not divide, and as in `decode_tiled`.

    Example:
        >>> from tubelet.vae import CausalAutoencoder, CausalAutoencoderConfig
        >>> vae, video = CausalAutoencoder(CausalAutoencoderConfig(widths=(8, 8))), torch.randn(1, 1, 5, 64, 64)
        >>> torch.allclose(encode_tiled(vae, video, (None, 4, 4)).mode(), vae.encode(video).mode(), atol=1e-6)
        True
    """
    check_channels("video", video, vae.config.in_channels)
    factors, own = vae.config.factors, getattr(vae, "chunks", Chunks()).encode
    grid = factors.latent_grid(*video.shape[2:])
    sides = grid.t, grid.h, grid.w
    _check(sides, tile, overlap, None)
    if overlap is None and _divides(sides, tile):
        split = split_encoder(vae) if split is None else split
        spans, layer, whole_layer = spans_of(sides, tile, 0, split.reach), split.tiled, split.whole
    else:
        spans, layer, whole_layer = spans_of(sides, tile, overlap or 0, None), vae.encoder, None
    rulers = _Ruler.of(factors)
    whole: Tensor | None = None
    for place in itertools.product(*spans):
        runs = [(ruler.first(span.run[0]), ruler.edge(span.run[1])) for ruler, span in zip(rulers, place, strict=True)]
        part, frame = _cropped(video, runs), 0
        for piece in pieces(layer, part, lengths(part.shape[2], None, own)):
            if whole is None:
                whole = piece.new_zeros(*piece.shape[:2], *sides)
            _paste(whole, piece, place, [_Ruler(1)] * 3, frame)
            frame += piece.shape[2]
    assert whole is not None
    return vae.posterior(whole if whole_layer is None else whole_layer(whole, None)[0])


def lengths(frames: int, chunk: int | None, own: int | None) -> list[int]:
    """The numbers of frames that run together: the chunks asked for, the autoencoder's own, or all."""
    if chunk is None or chunk == own:
        return Chunks.lengths(frames, own)
    return [min(chunk, frames - start) for start in range(0, frames, chunk)]


def pieces(layer: Layer, x: Tensor, plan: Sequence[int], ahead: bool = False) -> Iterator[Tensor]:
    """What a layer gives, chunk by chunk; ``ahead``: it sees later frames, so chunks give what is ready."""
    state: State | None = None
    for number, part in enumerate(torch.split(x, list(plan), 2), 1):
        if ahead and len(plan) > 1:
            assert isinstance(layer, nn.Module)
            y, state = advance(layer, part, state, last=number == len(plan))
        else:
            y, state = layer(part, state)
        if y is not None:
            yield y
        del y


def gathered(layer: Layer, x: Tensor, plan: Sequence[int], ahead: bool = False) -> Tensor:
    """What a layer that keeps the grid gives for all chunks, without a second copy of it."""
    whole, frame = None, 0
    for piece in pieces(layer, x, plan, ahead):
        if len(plan) == 1:
            return piece
        if whole is None:
            whole = piece.new_empty(*piece.shape[:2], x.shape[2], *piece.shape[3:])
        whole[:, :, frame : frame + piece.shape[2]] = piece
        frame += piece.shape[2]
        del piece
    assert whole is not None
    return whole


def _check(sides: Sequence[int], tile: Any, overlap: Any, chunk: Any) -> None:
    if len(tile) != 3 or not all(size is None or (isinstance(size, int) and size > 0) for size in tile):
        raise ValueError(f"tile must have three positive sizes or None, not {tile}")
    if overlap is not None and (not isinstance(overlap, int) or overlap < 0):
        raise ValueError(f"overlap must be a whole number of at least 0, not {overlap}")
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1 or len(_edges(sides[0], tile[0])) > 2):
        raise ValueError(f"chunk must be positive and without windows of time, got chunk {chunk} and tile {tile}")


def _divides(sides: Sequence[int], tile: Tile) -> bool:
    return any(len(_edges(side, size)) > 2 for side, size in zip(sides, tile, strict=True))


def spans_of(sides: Sequence[int], tile: Tile, overlap: int, reach: Reach | None) -> list[list[_Span]]:
    """The tiles along each axis: with so much overlap to be faded, or with the reach and alone."""
    spans = []
    for axis, (name, side, size) in enumerate(zip(("time", "height", "width"), sides, tile, strict=True)):
        edges = _edges(side, size)
        fade = overlap if len(edges) > 2 and reach is None else 0
        margins = (fade, fade) if len(edges) == 2 or reach is None else getattr(reach, name)
        if margins is None:
            raise ValueError(f"{name} cannot be divided exactly, since all of it counts everywhere: give an overlap")
        if 2 * fade > min(stop - start for start, stop in itertools.pairwise(edges)):
            raise ValueError(f"overlap {fade} must be at most half a tile, of {tile} on {tuple(sides)} positions")
        spans.append([_span(start, stop, side, margins, fade, axis == 0) for start, stop in itertools.pairwise(edges)])
    return spans


def _edges(side: int, size: int | None) -> list[int]:
    """Where tiles of nearly equal sizes up to ``size`` meet."""
    count = 1 if size is None else -(-side // size)
    return [round(i * side / count) for i in range(count + 1)]


def _span(start: int, stop: int, side: int, margins: tuple[int, int], fade: int, lead: bool) -> _Span:
    """In time a tile is run from one latent frame more, since the first frame of a run is special."""
    given = max(start - fade, 0), min(stop + fade, side)
    return _Span((start, stop), given, (max(start - margins[0] - lead, 0), min(stop + margins[1], side)))


def _paste(whole: Tensor, piece: Tensor, place: Sequence[_Span], rulers: Sequence[_Ruler], frame: int) -> None:
    """Put what a tile gives, from its frame ``frame`` on, into the whole: alone, or faded and added."""
    targets, sources = [], []
    for axis, (span, ruler) in enumerate(zip(place, rulers, strict=True)):
        start = ruler.first(span.run[0]) + (frame if axis == 0 else 0)
        first, last = (max(ruler.edge(edge), 0) for edge in span.given)
        first, last = max(first, start), min(last, start + piece.shape[2 + axis])
        if last <= first:
            return
        targets.append((first, last))
        sources.append((first - start, last - start))
    found, target = _cropped(piece, sources), _cropped(whole, targets)
    if all(span.given == span.own for span in place):
        target.copy_(found)
        return
    for axis, (span, ruler, places) in enumerate(zip(place, rulers, targets, strict=True)):
        found = found * _fade(span, ruler, places).to(found).reshape(-1, *[1] * (2 - axis))
    target.add_(found)


def _cropped(x: Tensor, sides: Sequence[tuple[int, int]]) -> Tensor:
    """A view of a box of the last three axes."""
    t, h, w = (slice(*side) for side in sides)
    return x[..., t, h, w]


def _fade(span: _Span, ruler: _Ruler, places: tuple[int, int]) -> Tensor:
    """Weights along one axis: 1 inside, falling to 0 across twice the overlap at an edge; neighbours add up to 1."""
    at = torch.arange(*places, dtype=torch.float64) + 0.5
    weights = torch.ones_like(at)
    (start, stop), (before, after) = ([ruler.edge(edge) for edge in pair] for pair in (span.own, span.given))
    if before < start:
        weights = weights.minimum((at - before) / (2 * (start - before)))
    if after > stop:
        weights = weights.minimum((after - at) / (2 * (after - stop)))
    return weights
