"""Warps: monotone maps of [0, 1] to itself that spread training and sampling times alike; the timestep shift.

A warp belongs to a :class:`~tubelet.diffusion.Process`, the only place where it is applied. Shifts may depend on how
many tokens a sample has; then there is one a sample, and a warp of a tensor of shifts.
"""

import math
from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor

__all__ = ["identity", "log_linear_shift", "root_shift", "shift_warp"]


def identity(t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The warp that changes nothing.

    Example:
        >>> import torch
        >>> identity(torch.tensor(0.5))
        tensor(0.5000)
    """
    return t


def shift_warp(shift: float | Float[Tensor, " r"]) -> Callable[[Tensor], Tensor]:
    """The warp ``t -> s·t / (1 + (s - 1)·t)`` towards noise for ``s > 1`` (arXiv:2403.03206, equation 23).

    On rectified flow it multiplies ``sigma/alpha`` by ``s``.

    Args:
        shift: one shift, or one per row (sample, say) of times ``(..., r)``.

    Raises:
        ValueError: ``shift`` is not positive and finite.

    Example:
        >>> import torch
        >>> shift_warp(3.0)(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.7500, 1.0000])
        >>> shift_warp(torch.tensor([1.0, 3.0]))(torch.tensor([0.5, 0.5]))
        tensor([0.5000, 0.7500])
    """
    if isinstance(shift, Tensor) and shift.ndim == 0:
        shift = float(shift)
    values = shift.tolist() if isinstance(shift, Tensor) else [shift]
    if not all(0 < value < math.inf for value in values):
        raise ValueError(f"shift must be above 0 and finite, got {values if isinstance(shift, Tensor) else shift}")
    return partial(_shift, shift=shift)


def root_shift(tokens: int, base: int, shift: float = 1.0) -> float:
    """The shift ``shift·sqrt(tokens/base)`` of a sample: the same uncertainty at every size (arXiv:2403.03206, eq. 23).

    Args:
        tokens: of the sample.
        base: tokens at which the shift is ``shift``.
        shift: the shift there.

    Raises:
        ValueError: a count below 1.

    Example:
        >>> root_shift(4096, 1024)
        2.0
    """
    if tokens < 1 or base < 1:
        raise ValueError(f"tokens and base must be at least 1, got {tokens} and {base}")
    return shift * math.sqrt(tokens / base)


def log_linear_shift(tokens: int, low: tuple[int, float] = (256, 0.5), high: tuple[int, float] = (4096, 1.15)) -> float:
    """The shift ``exp(mu)`` of a sample, ``mu`` linear in its tokens: Flux's rule, and with other points LTX-Video's.

    Args:
        tokens: of the sample; the line goes on beyond both points.
        low: tokens and ``mu`` of one point.
        high: tokens and ``mu`` of the other.

    Raises:
        ValueError: both points have the same number of tokens.

    Example:
        >>> round(log_linear_shift(4096), 4), round(log_linear_shift(256), 4)
        (3.1582, 1.6487)
    """
    if low[0] == high[0]:
        raise ValueError(f"low and high must differ in tokens, got {low} and {high}")
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return math.exp(low[1] + slope * (tokens - low[0]))


def _shift(t: Tensor, shift: float | Tensor) -> Tensor:
    if isinstance(shift, Tensor):
        if t.ndim == 0 or t.shape[-1] != shift.shape[0]:
            raise ValueError(f"times have shape {tuple(t.shape)}, but there are {shift.shape[0]} shifts")
        shift = shift.to(t)
    return shift * t / (1 + (shift - 1) * t)
