"""Packing: which samples share a sequence, how their tokens lie in it, and how many of them there are.

NaViT (Dehghani et al. 2023, arXiv:2307.06304) trains on whole images and clips of every size by laying several samples
on one token axis of a fixed budget. Choosing the samples is bin packing: a pack is a bin of ``budget`` tokens, a sample
an item of ``lengths[i]`` tokens, and

    fill = sum(lengths) / (packs * budget),    padding fraction = 1 - fill.

- :func:`pack_stream` sees samples in order and keeps a few packs open: for endless data, order roughly kept.
- :func:`pack_offline` sees all lengths and places the longest first; it can also even out the work of the packs.

Both hand out *indices*. :func:`pack` and :func:`unpack` move tokens, :func:`collate` and :class:`PackedStream` whole
samples with their noise levels, text and positions. How many tokens a sample has is drawn too: :class:`ImageSizes` is
NaViT's law of resolutions, :func:`drop_tokens` with one of the laws of :mod:`tubelet.packing.dropping` its token
dropping.
"""

from tubelet.packing.batches import PackedBatch, PackedStream, Sample, collate
from tubelet.packing.bins import fill, pack_stream
from tubelet.packing.dropping import BetaDrop, ConstantDrop, LengthDrop, ScheduledDrop, drop_tokens
from tubelet.packing.offline import pack_offline
from tubelet.packing.sizes import ImageSizes, truncated_normal
from tubelet.packing.tokens import pack, unpack

__all__ = [
    "BetaDrop",
    "ConstantDrop",
    "ImageSizes",
    "LengthDrop",
    "PackedBatch",
    "PackedStream",
    "Sample",
    "ScheduledDrop",
    "collate",
    "drop_tokens",
    "fill",
    "pack",
    "pack_offline",
    "pack_stream",
    "truncated_normal",
    "unpack",
]
