"""Variance-exploding paths: the data stay as they are, the noise grows. Any shape of ``t`` in [0, 1] is kept."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["EDM", "VESDE"]

_START = 1e-5
"""Where the derivative at 0 is taken: the smallest time that the score SDE's authors train at."""


@dataclass(frozen=True)
class EDM:
    """EDM's path: ``alpha = 1`` and ``sigma = end·t``; its own time is the noise level (arXiv:2206.00364, table 1).

    At ``t = 1`` the state is the data plus noise of deviation ``end``: sampling starts from ``end·eps``.

    Args:
        end: the largest noise level, of data with a deviation near 1.

    Raises:
        ValueError: ``end`` is not positive and finite.

    Example:
        >>> t = torch.tensor([0.0, 0.5, 1.0])
        >>> EDM().alpha(t), EDM().sigma(t)
        (tensor([1., 1., 1.]), tensor([ 0., 40., 80.]))
    """

    end: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.end < math.inf:
            raise ValueError(f"end must be above 0 and finite, got {self.end}")

    def alpha(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The factor of the data, 1."""
        return torch.ones_like(t)

    def sigma(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The factor of the noise, ``end·t``."""
        return self.end * t

    def alpha_dot(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The derivative of alpha, 0."""
        return torch.zeros_like(t)

    def sigma_dot(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The derivative of sigma, ``end``."""
        return torch.full_like(t, self.end)

    def time_of_ratio(self, ratio: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The time at which ``sigma/alpha`` is ``ratio``; 1 where there is none so large."""
        return (ratio / self.end).clamp(max=1)


@dataclass(frozen=True)
class VESDE:
    """The score SDE's path: ``alpha = 1``, ``sigma² = start²·((end/start)^(2t) - 1)`` (arXiv:2011.13456).

    That is the kernel of its equations 29 and 30, with no noise at 0; code that leaves out the ``- 1`` differs by
    ``start²`` in the variance. The derivative of sigma grows as ``1/sqrt(t)`` towards 0; at 0 itself it is that at
    1e-5. Arithmetic is float64; results have the dtype of ``t``.

    Args:
        start: the noise level where the geometric growth begins.
        end: the largest noise level.

    Raises:
        ValueError: not ``0 < start < end < inf``.

    Example:
        >>> VESDE(start=0.01, end=100.0).sigma(torch.tensor([0.0, 0.5, 1.0]))
        tensor([  0.0000,   0.9999, 100.0000])
    """

    start: float = 0.01
    end: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.start < self.end < math.inf:
            raise ValueError(f"noise levels must be finite and 0 < start < end, got {self.start} and {self.end}")

    def alpha(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The factor of the data, 1."""
        return torch.ones_like(t)

    def sigma(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The factor of the noise."""
        return self._sigma(t.double()).to(t.dtype)

    def alpha_dot(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The derivative of alpha, 0."""
        return torch.zeros_like(t)

    def sigma_dot(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The derivative of sigma, ``rate·(sigma² + start²)/sigma`` with ``rate = log(end/start)``."""
        wide = t.double()
        sigma = self._sigma(torch.where(wide == 0, _START, wide))
        return (math.log(self.end / self.start) * (sigma**2 + self.start**2) / sigma).to(t.dtype)

    def time_of_ratio(self, ratio: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The time at which ``sigma/alpha`` is ``ratio``; 1 where there is none so large."""
        rate = 2 * math.log(self.end / self.start)
        return (torch.log1p((ratio.double() / self.start) ** 2) / rate).clamp(max=1).to(ratio.dtype)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.start * torch.sqrt(torch.expm1(2 * math.log(self.end / self.start) * t))
