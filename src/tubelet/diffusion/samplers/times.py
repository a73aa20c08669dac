"""Sampling times: the places of a discrete path, and noise levels spread by a rule. Shapes: ``(steps + 1,)``.

All run from noise to data, end at 0, are computed in float64, and are used as they are: no warp is applied. Even times
with a process' warp are ``process.times(steps)``; any times are shifted by ``shift_warp(shift)(times)``.

- :func:`linear_times`, :func:`leading_times` and :func:`trailing_times` visit indices of a path with ``of`` of them
  (Lin et al., 2024, arXiv:2305.08891, table 2). Index ``i`` is time ``(i + 1)/of``. Only the first and the last of the
  three begin at the noisiest index.
- :func:`karras_times` (Karras et al., 2022, arXiv:2206.00364, equation 5), :func:`exponential_times` and
  :func:`beta_times` (Lee et al., 2024, arXiv:2407.12173) spread noise levels between two. These are ``sigma/alpha`` of
  a path where one is given, and times themselves where none is: rectified flow's sigma is its time.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.conventions import time_of_ratio
from tubelet.protocols import Path

__all__ = ["beta_times", "exponential_times", "karras_times", "leading_times", "linear_times", "trailing_times"]

_TERMS = 60
"""Terms of the continued fraction of the incomplete beta function."""
_HALVINGS = 56
"""Halvings of [0, 1] in search of a quantile."""

Times = Float[Tensor, " s"]


def linear_times(steps: int, of: int, *, dtype: torch.dtype = torch.float32) -> Times:
    """``steps`` indices from the last to the first, evenly, then 0.

    Raises:
        ValueError: ``steps`` is not in 1 to ``of``, or ``dtype`` not floating-point; so do the two below.

    Example:
        >>> linear_times(2, 4)
        tensor([1.0000, 0.2500, 0.0000])
    """
    _check_steps(steps, of)
    return _ended((torch.linspace(of - 1, 0, steps, dtype=torch.float64).round() + 1) / of, dtype)


def leading_times(steps: int, of: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> Times:
    """Every ``of // steps``-th index from the first on, moved by ``offset``, then 0; the noisiest is left out.

    Example:
        >>> leading_times(2, 4)
        tensor([0.7500, 0.2500, 0.0000])
    """
    _check_steps(steps, of)
    index = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (of // steps) + offset
    if not (offset >= 0 and index[0] < of):
        raise ValueError(f"offset must be at least 0 and keep the indices below {of}, got {offset} and {int(index[0])}")
    return _ended((index + 1) / of, dtype)


def trailing_times(steps: int, of: int, *, dtype: torch.dtype = torch.float32) -> Times:
    """Every ``of/steps``-th index from the last on, then 0.

    Example:
        >>> trailing_times(2, 4)
        tensor([1.0000, 0.5000, 0.0000])
    """
    _check_steps(steps, of)
    place = of - torch.arange(steps, dtype=torch.float64) * (of / steps)
    return _ended(place.round() / of, dtype)


def karras_times(
    steps: int,
    high: float,
    low: float,
    *,
    path: Path | None = None,
    rho: float = 7.0,
    dtype: torch.dtype = torch.float32,
) -> Times:
    """Noise levels whose ``1/rho``-th powers are even.

    Args:
        steps: how many levels, without the end.
        high: the first level.
        low: the last one.
        path: whose ``sigma/alpha`` the levels are; None where they are times.
        rho: 7 as published; 1 is even.
        dtype: of the times.

    Raises:
        ValueError: ``steps`` is smaller than 1, not ``0 < low <= high < inf``, or ``rho`` not positive; so for the two
            below.

    Example:
        >>> karras_times(3, 0.9, 0.1, rho=1.0)
        tensor([0.9000, 0.5000, 0.1000, 0.0000])
    """
    _check_levels(steps, high, low)
    if not 0 < rho < math.inf:
        raise ValueError(f"rho must be above 0 and finite, got {rho}")
    roots = torch.linspace(high ** (1 / rho), low ** (1 / rho), steps, dtype=torch.float64)
    return _of_levels(roots**rho, path, dtype)


def exponential_times(
    steps: int, high: float, low: float, *, path: Path | None = None, dtype: torch.dtype = torch.float32
) -> Times:
    """Noise levels whose logarithms are even: even in log(alpha/sigma) where a path is given.

    Example:
        >>> exponential_times(3, 0.9, 0.1)
        tensor([0.9000, 0.3000, 0.1000, 0.0000])
    """
    _check_levels(steps, high, low)
    logarithms = torch.linspace(math.log(high), math.log(low), steps, dtype=torch.float64)
    return _of_levels(logarithms.exp(), path, dtype)


def beta_times(
    steps: int,
    high: float,
    low: float,
    *,
    path: Path | None = None,
    a: float = 0.6,
    b: float = 0.6,
    dtype: torch.dtype = torch.float32,
) -> Times:
    """Noise levels at even quantiles of a beta distribution, stretched to ``low`` to ``high``: dense at both ends.

    Example:
        >>> beta_times(3, 0.9, 0.1)
        tensor([0.9000, 0.5000, 0.1000, 0.0000])
    """
    _check_levels(steps, high, low)
    if not (0 < a < math.inf and 0 < b < math.inf):
        raise ValueError(f"a and b must be above 0 and finite, got {a} and {b}")
    share = _beta_quantile(torch.linspace(1, 0, steps, dtype=torch.float64), a, b)
    return _of_levels(low + share * (high - low), path, dtype)


def _of_levels(levels: Tensor, path: Path | None, dtype: torch.dtype) -> Times:
    return _ended(levels if path is None else time_of_ratio(path, levels), dtype)


def _ended(times: Tensor, dtype: torch.dtype) -> Times:
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating-point, got {dtype}")
    return torch.cat([times, times.new_zeros(1)]).to(dtype)


def _beta_quantile(p: Float[Tensor, " s"], a: float, b: float) -> Float[Tensor, " s"]:
    low, high = torch.zeros_like(p), torch.ones_like(p)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = _beta_distribution(middle, a, b) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(p == 1, 1.0, torch.where(p == 0, 0.0, (low + high) / 2))


def _beta_distribution(x: Tensor, a: float, b: float) -> Tensor:
    """The regularised incomplete beta function, on the side of the mean where its fraction converges fast."""
    return torch.where(x < (a + 1) / (a + b + 2), _beta_tail(x, a, b), 1 - _beta_tail(1 - x, b, a))


def _beta_tail(x: Tensor, a: float, b: float) -> Tensor:
    """DLMF 8.17.22, from its last term on."""
    fraction = torch.ones_like(x)
    for k in range(_TERMS, 0, -1):
        m = k // 2
        top = -(a + m) * (a + b + m) if k % 2 else m * (b - m)
        fraction = 1 + top / ((a + k - 1) * (a + k)) * x / fraction
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) - math.log(a)
    return (front + a * x.log() + b * torch.log1p(-x)).exp() / fraction


def _check_steps(steps: int, of: int) -> None:
    if not 1 <= steps <= of:
        raise ValueError(f"steps must be in 1 to of={of}, got {steps}")


def _check_levels(steps: int, high: float, low: float) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < low <= high < math.inf:
        raise ValueError(f"levels must be finite and 0 < low <= high, got {low} and {high}")
