"""Finite scalar quantisation: each channel is bounded and rounded to one of a few levels (FSQ, arXiv:2309.15505).

With L levels a channel becomes ``round(h·tanh(x + s) - o)``, ``h = (1 + 1e-3)(L - 1)/2``, ``o = ½`` for even L and 0
for odd, ``tanh(s) = o/h`` so that 0 stays 0: the whole numbers from -⌊L/2⌋ to ⌈L/2⌉ - 1, here divided by ⌊L/2⌋. The
codes are all combinations of the channels' levels; nothing is learned.
"""

from collections.abc import Sequence
from math import atanh, prod
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tubelet.vae.quantise.code import (
    Quantised,
    check_indices,
    check_latents,
    checked_levels,
    digits_of,
    number_of,
    straight,
)

__all__ = ["FiniteScalar"]

_MARGIN = 1e-3  # tanh never quite reaches 1; the outer levels must still be reached. Up to 999 levels none is passed.


class FiniteScalar(nn.Module):
    """One of ``prod(levels)`` codes for each position, one channel for each of ``levels``.

    The first channel is the least significant digit of an index. Numbers are taken in at least float32.

    Args:
        levels: values that each channel can have, each from 2 to 999.

    Raises:
        ValueError: no level, or one out of range.

    Example:
        >>> fsq = FiniteScalar((8, 5, 5, 5))
        >>> out = fsq(torch.zeros(2, 7, 4))
        >>> fsq.size, out.indices.unique().tolist(), torch.equal(fsq.codes(out.indices), out.codes)
        (1000, [500], True)
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels: tuple[int, ...] = checked_levels(levels, 2, 999)
        self.channels: int = len(self.levels)
        self.size: int = prod(self.levels)

    def forward(self, latents: Float[Tensor, "*n z"]) -> Quantised:
        """Round; the gradient is that of the bounded latents.

        Raises:
            ValueError: another number of channels than levels.
        """
        check_latents(latents, self.channels)
        bounded = self._bounded(latents.to(torch.promote_types(latents.dtype, torch.float32)))
        half, rounded = self._halves(bounded), bounded.round()
        codes = straight(rounded / half, bounded / half).to(latents.dtype)
        return Quantised(codes, number_of((rounded + half).long(), self.levels))

    def codes(self, indices: Int[Tensor, "*n"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*n z"]:
        """The codes of numbers in [0, size).

        Raises:
            ValueError: a number out of range.
        """
        check_indices(indices, self.size)
        digits = digits_of(indices, self.levels).to(torch.promote_types(dtype, torch.float32))
        half = self._halves(digits)
        return ((digits - half) / half).to(dtype)

    def indices(self, codes: Float[Tensor, "*n z"]) -> Int[Tensor, "*n"]:
        """The numbers of codes, which may be a little off.

        Raises:
            ValueError: another number of channels than levels, or numbers that are near no code.
        """
        check_latents(codes, self.channels)
        wide = codes.to(torch.promote_types(codes.dtype, torch.float32))
        half = self._halves(wide)
        digits = (wide * half + half).round()
        if not bool(((digits >= 0) & (digits < digits.new_tensor(self.levels))).all()):
            raise ValueError(
                f"codes must be those of levels {self.levels}, got {float(wide.min())} to {float(wide.max())}"
            )
        return number_of(digits.long(), self.levels)

    def _bounded(self, x: Tensor) -> Tensor:
        halves = [(1 + _MARGIN) * (level - 1) / 2 for level in self.levels]
        offsets = [0.0 if level % 2 else 0.5 for level in self.levels]
        shifts = [atanh(offset / half) for offset, half in zip(offsets, halves, strict=True)]
        half, offset, shift = (x.new_tensor(values) for values in (halves, offsets, shifts))
        return torch.tanh(x + shift) * half - offset

    def _halves(self, like: Tensor) -> Tensor:
        return like.new_tensor([level // 2 for level in self.levels])

    if TYPE_CHECKING:

        def __call__(self, latents: Tensor) -> Quantised: ...
