"""What a quantiser is and gives, and the two things that all have: straight-through gradients and mixed radices."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Quantised", "Quantiser"]


@dataclass(frozen=True)
class Quantised:
    """Codes of latents, and the codes' numbers.

    Args:
        codes: ``(*n, z)``; their gradient is that of the latents.
        indices: int64, ``(*n)`` in [0, size), or ``(*n, stages)`` of a residual quantiser.

    Example:
        >>> Quantised(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)).indices.tolist()
        [0, 0, 0, 0]
    """

    codes: Float[Tensor, "*n z"]
    indices: Int[Tensor, "*m"]


@runtime_checkable
class Quantiser(Protocol):
    """Latents ``(*n, z)`` to codes, and codes from and to their numbers.

    ``channels`` is z, ``size`` the number of codes (of one stage).

    Example:
        >>> from tubelet.vae.quantise import FiniteScalar
        >>> isinstance(FiniteScalar((8, 5, 5)), Quantiser)
        True
    """

    channels: int
    size: int

    def __call__(self, latents: Float[Tensor, "*n z"]) -> Quantised:
        """The codes that stand for the latents."""
        ...

    def codes(self, indices: Int[Tensor, "*m"]) -> Float[Tensor, "*n z"]:
        """The codes of these numbers."""
        ...

    def indices(self, codes: Float[Tensor, "*n z"]) -> Int[Tensor, "*m"]:
        """The numbers of these codes, the inverse of `codes`."""
        ...


def straight(value: Tensor, latents: Tensor) -> Tensor:
    """``value`` to the bit, with the gradient of ``latents`` (arXiv:1308.3432)."""
    return value.detach() + (latents - latents.detach())


def check_latents(latents: Tensor, channels: int) -> None:
    """Whether latents have the channels of a quantiser on their last axis.

    Raises:
        ValueError: another number, or no axis.
    """
    if not latents.ndim or latents.shape[-1] != channels:
        raise ValueError(f"latents must have {channels} channels on the last axis, got shape {tuple(latents.shape)}")


def check_indices(indices: Tensor, size: int) -> None:
    """Whether numbers of codes are whole and in range.

    Raises:
        ValueError: they are not whole, or one is not in [0, size).
    """
    if indices.is_floating_point():
        raise ValueError(f"indices must be whole numbers, got {indices.dtype}")
    if not indices.numel():
        return
    least, most = int(indices.min()), int(indices.max())
    if least < 0 or most >= size:
        raise ValueError(f"indices must lie in [0, {size}), got {least} to {most}")


def checked_size(name: str, value: Any, most: int = 2**62) -> int:
    """A size as an int.

    Raises:
        ValueError: it is not whole, or not in [1, most].
    """
    if not isinstance(value, Integral) or not 1 <= int(value) <= most:
        raise ValueError(f"{name} must be a positive whole number{f' up to {most}' * (most < 2**62)}, not {value}")
    return int(value)


def checked_levels(levels: Sequence[Any], least: int, most: int) -> tuple[int, ...]:
    """Levels as a tuple.

    Raises:
        ValueError: none, one that is not whole or outside [least, most], or more codes than an int64 counts.
    """
    if not levels or not all(isinstance(level, Integral) and least <= int(level) <= most for level in levels):
        raise ValueError(f"levels must be whole numbers from {least} to {most}, at least one, got {tuple(levels)}")
    if prod(levels) >= 2**63:
        raise ValueError(f"levels {tuple(levels)} give {prod(levels)} codes, more than the 2^63 that an index holds")
    return tuple(int(level) for level in levels)


def digits_of(indices: Tensor, levels: Sequence[int]) -> Int[Tensor, "*n z"]:
    """The digits of numbers in mixed radix ``levels``, the least significant first."""
    digits = []
    for level in levels:
        digits.append(indices % level)
        indices = indices // level
    return torch.stack(digits, -1)


def number_of(digits: Tensor, levels: Sequence[int]) -> Int[Tensor, " *n"]:
    """The inverse of `digits_of`."""
    total = torch.zeros_like(digits[..., 0])
    for place in reversed(range(len(levels))):
        total = total * levels[place] + digits[..., place]
    return total
