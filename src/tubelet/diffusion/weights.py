r"""Loss weights, each one formula for every prediction.

At one noise level the errors of ``x0``, ``eps``, ``v`` and ``velocity`` are the same up to factors: their squares stand
to each other as

.. math:: \sigma^2 : \alpha^2 : (\alpha^2 + \sigma^2)^2 : (\alpha \dot\sigma - \dot\alpha \sigma)^2.

So an *importance* ``I(alpha, sigma)`` fixes a weight for each: ``I`` divided by the prediction's own term above (``I =
alpha²`` is DDPM's plain loss of ``eps``). :func:`weighted` makes that weight, a function of times of any shape.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.predictions import Coefficients, Prediction
from tubelet.protocols import Path

__all__ = ["Importance", "constant", "edm_weight", "min_snr", "p2", "truncated_snr", "weighted"]

Importance = Callable[[Coefficients], Tensor]
"""From the path at some times to ``I``, of the same shape. Example: ``lambda at: at.alpha**2``."""

_SMALLEST = 1e-12
"""Factors count as at least this, so that quotients reach their limits at both ends and none is infinite."""


def constant(t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The loss weight 1 at every noise level.

    Example:
        >>> constant(torch.tensor([0.1, 0.9]))
        tensor([1., 1.])
    """
    return torch.ones_like(t)


def min_snr(gamma: float = 5.0) -> Importance:
    """``min(snr, gamma)`` on the squared error of ``x0`` (Hang et al., 2023, arXiv:2303.09556).

    Raises:
        ValueError: ``gamma`` is not positive.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> weighted(min_snr(4.0), RectifiedFlow(), "x0")(torch.tensor([0.2, 0.5]))
        tensor([4., 1.])
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma}")
    return partial(_min_snr, gamma=gamma)


def truncated_snr(at: Coefficients) -> Tensor:
    """``max(snr, 1)`` on the squared error of ``x0`` (arXiv:2202.00512, section 4).

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> weighted(truncated_snr, RectifiedFlow(), "x0")(torch.tensor([0.25, 0.5, 1.0]))
        tensor([9., 1., 1.])
    """
    return torch.maximum(at.alpha**2, at.sigma**2)


def p2(gamma: float = 1.0, k: float = 1.0) -> Importance:
    """``1/(k + snr)^gamma`` on the squared error of ``eps`` (Choi et al., 2022, arXiv:2204.00227).

    Raises:
        ValueError: ``gamma`` is negative, or ``k`` not positive.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> weighted(p2(), RectifiedFlow(), "eps")(torch.tensor([0.25, 0.5]))
        tensor([0.1000, 0.5000])
    """
    if not (gamma >= 0 and k > 0):
        raise ValueError(f"gamma must be at least 0 and k above 0, got {gamma} and {k}")
    return partial(_p2, gamma=gamma, k=k)


def edm_weight(deviation: float = 0.5) -> Importance:
    """``(s² + d²)/(s·d)²`` on the squared error of ``x0``, with ``s = sigma/alpha`` (arXiv:2206.00364, table 1).

    Args:
        deviation: ``d``, of the data.

    Raises:
        ValueError: ``deviation`` is not positive and finite.

    Example:
        >>> from tubelet.diffusion import EDM
        >>> weighted(edm_weight(0.5), EDM(2.0), "x0")(torch.tensor([0.5]))
        tensor([5.])
    """
    if not 0 < deviation < math.inf:
        raise ValueError(f"deviation must be above 0 and finite, got {deviation}")
    return partial(_edm, deviation=deviation)


def weighted(importance: Importance, path: Path, prediction: Prediction) -> Callable[[Tensor], Tensor]:
    """The weight of a prediction's squared error that gives each noise level this importance.

    Raises:
        ValueError: at the call, ``prediction`` is not a :data:`Prediction`.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> weighted(lambda at: at.alpha**2, RectifiedFlow(), "eps")(torch.tensor([0.2, 1.0]))
        tensor([1., 1.])
    """
    return partial(_weight, importance=importance, path=path, prediction=prediction)


def _min_snr(at: Coefficients, gamma: float) -> Tensor:
    return torch.minimum(at.alpha**2, gamma * at.sigma**2)


def _p2(at: Coefficients, gamma: float, k: float) -> Tensor:
    return at.alpha**2 / (k + (at.alpha / at.sigma) ** 2) ** gamma


def _edm(at: Coefficients, deviation: float) -> Tensor:
    return at.alpha**2 + (at.sigma / deviation) ** 2


def _weight(t: Tensor, importance: Importance, path: Path, prediction: Prediction) -> Tensor:
    wide = t.double()
    factors = (path.alpha(wide).clamp(min=_SMALLEST), path.sigma(wide).clamp(min=_SMALLEST))
    at = Coefficients(*factors, path.alpha_dot(wide), path.sigma_dot(wide))
    return (importance(at) / _squared_error(prediction, at)).to(t.dtype)


def _squared_error(prediction: Prediction, at: Coefficients) -> Tensor:
    """The prediction's squared error, in units in which that of ``x0`` is ``sigma²`` and that of ``eps`` ``alpha²``."""
    if prediction == "x0":
        return at.sigma**2
    if prediction == "eps":
        return at.alpha**2
    if prediction == "v":
        return (at.alpha**2 + at.sigma**2) ** 2
    if prediction == "velocity":
        return (at.alpha * at.sigma_dot - at.alpha_dot * at.sigma) ** 2
    raise ValueError(f"prediction must be one of {get_args(Prediction)}, got {prediction!r}")
