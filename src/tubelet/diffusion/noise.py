"""Noise from one seed per sample, so that a sample's noise does not depend on what it is packed with.

Shapes: ``(*lead, channels)`` in the order of a :class:`~tubelet.layout.TokenLayout`; padding is 0.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.layout import TokenLayout

__all__ = ["further_seeds", "noise_like", "noise_stream"]


def noise_like(
    layout: TokenLayout,
    channels: int,
    seeds: Sequence[int],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*lead c"]:
    """Standard normal noise: that of sample ``i`` depends on ``seeds[i]`` and on the sample's own shape alone.

    It is drawn on the CPU, so that every device sees the same numbers.

    Raises:
        ValueError: ``seeds`` and the layout's samples differ in number, or ``dtype`` is not floating-point.

    Example:
        >>> from tubelet.layout import Grid
        >>> both = noise_like(TokenLayout.packed([Grid(1, 2, 2), Grid(2, 1, 1)]), 3, seeds=[7, 8])
        >>> alone = noise_like(TokenLayout.packed([Grid(2, 1, 1)]), 3, seeds=[8])
        >>> bool((both[4:] == alone).all())
        True
    """
    return next(_stream(layout, channels, seeds, device, dtype))


def noise_stream(
    layout: TokenLayout,
    channels: int,
    seeds: Sequence[int],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Float[Tensor, "*lead c"]]:
    """Endless fresh noise for stochastic samplers: what the same seeds give after :func:`noise_like`.

    So a run may start from ``noise_like(layout, channels, seeds)``; noise that came twice would not be independent.
    Pickled or deep-copied, a stream keeps its place: that is how a stochastic run is paused.

    Raises:
        ValueError: as for :func:`noise_like`.

    Example:
        >>> from tubelet.layout import Grid
        >>> stream = noise_stream(TokenLayout.dense(1, Grid(1, 1, 2)), 3, seeds=[0])
        >>> bool((next(stream) == next(stream)).any())
        False
    """
    stream = _stream(layout, channels, seeds, device, dtype)
    next(stream)
    return stream


def further_seeds(seeds: Sequence[int], part: int) -> list[int]:
    """Seeds of another part of the same samples, such as a window of a long video; part 0 has the seeds themselves.

    Sums would not do: a generator on the CPU reads 32 bits of its seed, so that ``seed + 2**32`` draws the same again,
    and ``seed + 1`` is a neighbour's.

    Example:
        >>> further_seeds([7, 8], 0), further_seeds([7, 8], 1)
        ([7, 8], [3553817977, 3559531916])
    """
    if part == 0:
        return list(seeds)
    digests = (hashlib.sha256(f"{seed}/{part}".encode()).digest() for seed in seeds)
    return [int.from_bytes(digest[:4], "big") for digest in digests]


def _stream(
    layout: TokenLayout, channels: int, seeds: Sequence[int], device: torch.device | str | None, dtype: torch.dtype
) -> "_Stream":
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating-point, got {dtype}")
    if len(seeds) != len(layout.lengths):
        raise ValueError(f"seeds has {len(seeds)} entries, but the layout has {len(layout.lengths)} samples")
    generators = tuple(torch.Generator().manual_seed(seed) for seed in seeds)
    return _Stream(layout, channels, generators, device, dtype)


@dataclass(frozen=True, eq=False)
class _Stream:
    """An iterator whose place is that of its generators, so that it can be pickled between two draws."""

    layout: TokenLayout
    channels: int
    generators: tuple[torch.Generator, ...]
    device: torch.device | str | None
    dtype: torch.dtype

    def __iter__(self) -> "_Stream":
        return self

    def __next__(self) -> Tensor:
        out = torch.zeros(*self.layout.shape, self.channels)
        flat = out.view(-1, self.channels)
        for start, length, generator in zip(self.layout.starts, self.layout.lengths, self.generators, strict=True):
            flat[start : start + length] = torch.randn(length, self.channels, generator=generator)
        return out.to(device=self.device, dtype=self.dtype)
