"""How strong a guidance is: one number, a number per sample, or a function of the noise level.

Limited to an interval of noise levels (Kynkäänniemi et al., 2024, arXiv:2404.07724), guidance keeps diversity.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tubelet.diffusion._host import readable
from tubelet.diffusion.predictions import level
from tubelet.layout import Rows

__all__ = ["Scale", "interval"]

Scale = float | Rows | Callable[[Tensor], Tensor]
"""A number, rows as of ``layout.rows(scales, "sample")``, or a function from noise levels ``(r,)`` to scales ``(r,)``.

Example: ``interval(4.0, 0.2, 0.8)``."""


def interval(scale: float, low: float, high: float, outside: float = 1.0) -> Callable[[Tensor], Tensor]:
    """``scale`` where the noise level lies in [low, high], ``outside`` elsewhere (arXiv:2404.07724).

    At 1 a classifier-free guidance is the conditional prediction; a term that is added rests at 0. All denoisers are
    asked at every level, since levels may differ from token to token; a run in parts, one for each side of the
    interval, asks fewer.

    Raises:
        ValueError: ``low`` is above ``high``, or a scale is not finite.

    Example:
        >>> interval(4.0, 0.2, 0.8)(torch.tensor([0.1, 0.5, 0.9]))
        tensor([1., 4., 1.])
    """
    check_interval(low, high)
    check_finite(scale=scale, outside=outside)
    return partial(_inside, scale=scale, low=low, high=high, outside=outside)


def check_interval(low: float, high: float) -> None:
    """Refuse bounds in the wrong order, NaN too."""
    if not low <= high:
        raise ValueError(f"low must not be above high, got {low} and {high}")


def check_finite(**scales: Scale) -> None:
    """Refuse numbers that are not finite, and lists of numbers that would scale channels."""
    for name, scale in scales.items():
        if isinstance(scale, int | float) and not math.isfinite(scale):
            raise ValueError(f"{name} must be finite, got {scale}")
        if shape := tuple(getattr(scale, "shape", ())):
            raise ValueError(
                f"{name} must be a number, got {shape} of them: one a sample is layout.rows(..., 'sample')"
            )
        values = scale.values if isinstance(scale, Rows) else scale
        if isinstance(values, Tensor) and readable(values) and not bool(values.isfinite().all()):
            raise ValueError(f"{name} must be finite, got {values.tolist()}")


def factor(scale: Scale, t: Rows, like: Tensor) -> Tensor | float:
    """The scale of each token, broadcasting against ``like`` in its dtype."""
    if isinstance(scale, Rows):
        return level(scale, like).to(like.dtype)
    if callable(scale):
        return level(t.map(scale), like).to(like.dtype)
    return scale


def _inside(t: Tensor, scale: float, low: float, high: float, outside: float) -> Tensor:
    return torch.where((t >= low) & (t <= high), scale, outside).to(t.dtype)
