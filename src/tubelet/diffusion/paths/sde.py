"""The variance-preserving path of a stochastic differential equation. Any shape of ``t`` in [0, 1] is kept."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["VPSDE"]

_START = 1e-5
"""Where the derivative at 0 is taken: the smallest time that the score SDE's authors train at."""


@dataclass(frozen=True)
class VPSDE:
    """Continuous DDPM: ``alpha² = exp(-b)``, ``b = ∫ beta`` with ``beta`` linear in time (arXiv:2011.13456, eq. 33).

    The derivative of sigma grows as ``1/sqrt(t)`` towards 0; at 0 itself it is that at 1e-5, so that conversions stay
    finite. Arithmetic is float64; results have the dtype of ``t``.

    Args:
        start: beta at 0.
        end: beta at 1.

    Raises:
        ValueError: not ``0 < start <= end < inf``.

    Example:
        >>> path, t = VPSDE(), torch.tensor([0.0, 0.5, 1.0])
        >>> path.alpha(t), path.sigma(t)
        (tensor([1.0000, 0.2812, 0.0066]), tensor([0.0000, 0.9597, 1.0000]))
    """

    start: float = 0.1
    end: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.start <= self.end < math.inf:
            raise ValueError(f"betas must be finite and 0 < start <= end, got {self.start} and {self.end}")

    def alpha(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The factor of the data, ``exp(-b/2)``."""
        return torch.exp(-self._integral(t.double()) / 2).to(t.dtype)

    def sigma(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The factor of the noise, ``sqrt(1 - exp(-b))``."""
        return self._sigma(t.double()).to(t.dtype)

    def alpha_dot(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The derivative of alpha, ``-alpha·beta/2``."""
        wide = t.double()
        return (-torch.exp(-self._integral(wide) / 2) * self._beta(wide) / 2).to(t.dtype)

    def sigma_dot(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The derivative of sigma, ``alpha²·beta/(2·sigma)``."""
        wide = t.double()
        wide = torch.where(wide == 0, _START, wide)
        return (torch.exp(-self._integral(wide)) * self._beta(wide) / (2 * self._sigma(wide))).to(t.dtype)

    def time_of_ratio(self, ratio: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The time at which ``sigma/alpha`` is ``ratio``; 1 where there is none so large."""
        growth = self.end - self.start
        integral = torch.log1p(ratio.double() ** 2).clamp(max=self.start + growth / 2)
        return (2 * integral / (self.start + torch.sqrt(self.start**2 + 2 * growth * integral))).to(ratio.dtype)

    def _beta(self, t: Tensor) -> Tensor:
        return self.start + (self.end - self.start) * t

    def _integral(self, t: Tensor) -> Tensor:
        return self.start * t + (self.end - self.start) * t**2 / 2

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))
