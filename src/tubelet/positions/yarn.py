"""YaRN: rotary frequencies for grids larger than those of training (Peng et al., 2023, arXiv:2309.00071, 3.2)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Yarn"]


@dataclass(frozen=True)
class Yarn:
    """Slow frequencies are interpolated, fast ones stay, those between are mixed; attention is sharpened a little.

    A pair that turns ``r`` times along an axis of the trained length keeps the share ``(r - slow)/(fast - slow)``, at
    least 0 and at most 1, of its frequency; the rest is divided by the axis' factor ("NTK-by-parts"). Queries and keys
    grow by ``0.1·ln(s) + 1`` each, with ``s`` the product of the factors: how many times more tokens there are.

    Args:
        factors: how many times longer each axis ``(t, h, w)`` is than in training.
        lengths: how long each was.
        slow, fast: turns along the trained length below which a pair is interpolated, and above which it stays.

    Raises:
        ValueError: a factor or length is not positive, or ``slow`` is not below ``fast``.

    Example:
        >>> yarn = Yarn(factors=(1.0, 2.0, 2.0), lengths=(21, 30, 52))
        >>> yarn.shares((4, 4, 4), 100.0).round(decimals=2).tolist()
        [1.0, 1.0, 0.56, 0.5, 0.62, 0.5]
    """

    factors: tuple[float, float, float]
    lengths: tuple[int, int, int]
    slow: float = 1.0
    fast: float = 32.0

    def __post_init__(self) -> None:
        if min(self.factors) <= 0 or min(self.lengths) <= 0:
            raise ValueError(f"factors and lengths must be positive, got {self.factors} and {self.lengths}")
        if not self.slow < self.fast:
            raise ValueError(f"slow must be below fast, got {self.slow} and {self.fast}")

    @property
    def magnitude(self) -> float:
        """What the rotated queries and keys are multiplied by.

        Example:
            >>> Yarn((1.0, 1.0, 1.0), (21, 30, 52)).magnitude
            1.0
        """
        return 0.1 * math.log(max(1.0, math.prod(self.factors))) + 1.0

    def shares(self, axes: tuple[int, int, int], theta: float | tuple[float, float, float]) -> Float[Tensor, " half"]:
        """What the frequency of each pair is multiplied by, the axes end to end, in float64.

        Args:
            axes: width of each axis, as in :func:`rope_angles`.
            theta: the base, or one per axis.

        Example:
            >>> Yarn((2.0, 2.0, 2.0), (4, 4, 4)).shares((2, 2, 2), 10.0).tolist()
            [0.5, 0.5, 0.5]
        """
        bases = theta if isinstance(theta, tuple) else (theta,) * 3
        parts = []
        for width, base, factor, length in zip(axes, bases, self.factors, self.lengths, strict=True):
            exponents = torch.arange(0, width, 2, dtype=torch.float64) / max(width, 1)
            turns = length * base**-exponents / (2 * math.pi)
            kept = ((turns - self.slow) / (self.fast - self.slow)).clamp(0, 1)
            parts.append(kept + (1 - kept) / factor)
        return torch.cat(parts)
