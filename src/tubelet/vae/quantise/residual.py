"""Residual scalar quantisation: what one stage leaves is quantised by the next, on a grid as much finer (residual FSQ).

A channel is bounded to [-1, 1] by tanh. A stage rounds to L evenly spaced values of [-s, s], ends included, and so
leaves at most ``s/(L - 1)``; that is the s of the next stage, so every stage can use all its levels. FSQ is
arXiv:2309.15505; levels symmetric about 0 and the scales ``(L - 1)^-q`` are those of arXiv:2411.19842.
"""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tubelet.vae.quantise.code import (
    Quantised,
    check_indices,
    check_latents,
    checked_levels,
    checked_size,
    digits_of,
    number_of,
    straight,
)

__all__ = ["ResidualScalar"]


class ResidualScalar(nn.Module):
    """``stages`` numbers for each position, each one of ``prod(levels)``; a prefix of the stages is a coarser code.

    After q stages a channel of L levels is off by at most ``(L - 1)^-q``.

    Args:
        levels: values that each channel can have in one stage, each from 3 to 999 (two would leave all there was).
        stages: how many stages follow each other.

    Raises:
        ValueError: no level, one out of range, or no stage.

    Example:
        >>> rfsq = ResidualScalar((5, 5, 5), stages=2)
        >>> out = rfsq(torch.randn(2, 7, 3))
        >>> rfsq.size, out.indices.shape, torch.equal(rfsq.codes(out.indices), out.codes)
        (125, torch.Size([2, 7, 2]), True)
    """

    def __init__(self, levels: Sequence[int], stages: int) -> None:
        super().__init__()
        self.levels: tuple[int, ...] = checked_levels(levels, 3, 999)
        self.stages: int = checked_size("stages", stages)
        self.channels: int = len(self.levels)
        self.size: int = prod(self.levels)

    def forward(self, latents: Float[Tensor, "*n z"]) -> Quantised:
        """Round stage by stage; the gradient is that of the bounded latents.

        Raises:
            ValueError: another number of channels than levels.
        """
        check_latents(latents, self.channels)
        bounded = torch.tanh(latents.to(torch.promote_types(latents.dtype, torch.float32)))
        indices = self._numbers(bounded.detach())
        return Quantised(straight(self.codes(indices, bounded.dtype), bounded).to(latents.dtype), indices)

    def codes(self, indices: Int[Tensor, "*n q"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*n z"]:
        """The sums of the stages' codes, of the first q stages.

        Raises:
            ValueError: more stages than there are, none, or a number out of range.
        """
        if not indices.ndim or not 1 <= indices.shape[-1] <= self.stages:
            raise ValueError(f"indices must end in 1 to {self.stages} stages, got shape {tuple(indices.shape)}")
        check_indices(indices, self.size)
        wide = torch.promote_types(dtype, torch.float32)
        parts = [self._value(digits_of(number, self.levels), q, wide) for q, number in enumerate(indices.unbind(-1))]
        return sum(parts[1:], parts[0]).to(dtype)

    def indices(self, codes: Float[Tensor, "*n z"]) -> Int[Tensor, "*n q"]:
        """The numbers of codes in all stages.

        What lies half-way between two levels of a stage can be written from either, and this may give the other one;
        the codes of the numbers are the same.

        Raises:
            ValueError: another number of channels than levels.
        """
        check_latents(codes, self.channels)
        return self._numbers(codes.detach().to(torch.promote_types(codes.dtype, torch.float32)))

    def _numbers(self, left: Tensor) -> Tensor:
        numbers = []
        last = left.new_tensor([level - 1 for level in self.levels])
        for stage in range(self.stages):
            unit = left * last**stage  # in [-1, 1]
            digits = ((unit + 1) / 2 * last).round().clamp(min=0).minimum(last).long()
            numbers.append(number_of(digits, self.levels))
            left = left - self._value(digits, stage, left.dtype)
        return torch.stack(numbers, -1)

    def _value(self, digits: Tensor, stage: int, dtype: torch.dtype) -> Tensor:
        last = torch.tensor([level - 1 for level in self.levels], device=digits.device, dtype=dtype)
        return (2 * digits.to(dtype) / last - 1) / last**stage

    if TYPE_CHECKING:

        def __call__(self, latents: Tensor) -> Quantised: ...
