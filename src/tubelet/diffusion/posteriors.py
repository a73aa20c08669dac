"""One step of the reverse process: the posterior ``q(x_s | x_t, x0)`` and variances that a network chooses.

On any path, with ``r = alpha_t/alpha_s`` and ``beta = sigma_t² - r²·sigma_s²`` (Kingma et al., 2021, arXiv:2107.00630,
appendix A; for DDPM's tables Ho et al., 2020, arXiv:2006.11239, equations 6 and 7)::

    mean = (r·sigma_s²·x_t + alpha_s·beta·x0) / sigma_t²        variance = beta·sigma_s²/sigma_t²

Shapes: patches ``(*lead, c)``, noise levels as ``Rows``; coefficients broadcast against the patches.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.predictions import level
from tubelet.layout import Rows
from tubelet.protocols import Path

__all__ = ["Posterior", "learned_range", "posterior", "range_share"]


class Posterior(NamedTuple):
    """The mean's factors of ``x_t`` and ``x0``, and the logarithms of two variances.

    ``low`` is the posterior's own variance (of data that are one point; minus infinity where ``x_s`` is clean),
    ``high`` that of the noise added between the two levels (``beta``; of white data).

    Example:
        >>> at = Posterior(*torch.tensor([0.25, 0.5, -1.0, 0.0]))
        >>> at.mean(torch.tensor([4.0]), torch.tensor([2.0]))
        tensor([2.])
    """

    of_x: Float[Tensor, "..."]
    of_x0: Float[Tensor, "..."]
    low: Float[Tensor, "..."]
    high: Float[Tensor, "..."]

    def mean(self, x: Float[Tensor, "*s"], x0: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The mean of ``x_s``, given the state and the data."""
        return self.of_x * x + self.of_x0 * x0


def posterior(path: Path, t: Rows, s: Rows, like: Float[Tensor, "..."]) -> Posterior:
    """The posterior from levels ``t`` to the smaller levels ``s``, shaped to broadcast against ``like``.

    Computed per row in float64, given in the wider of float32 and the dtype of ``like``.

    Args:
        path: the factors of data and noise.
        t: levels of the state, above 0.
        s: levels of the result, of the same rows.
        like: the patches.

    Raises:
        ValueError: ``t`` and ``s`` differ in rows, hold integers, or do not fit ``like``.

    Example:
        >>> from tubelet.diffusion import VP
        >>> path = VP(torch.tensor([0.5, 0.25]))
        >>> t, s = (Rows(path.time(torch.tensor([i]))) for i in (1, 0))
        >>> posterior(path, t, s, torch.zeros(1, 1)).high.exp()
        tensor([[0.5000]])
    """
    if t.values.shape != s.values.shape:
        raise ValueError(f"t has {tuple(t.values.shape)} levels, but s has {tuple(s.values.shape)}")
    if not (t.values.is_floating_point() and s.values.is_floating_point()):
        raise ValueError(f"noise levels must be floating-point, got {t.values.dtype} and {s.values.dtype}")
    dtype = torch.promote_types(like.dtype, torch.float32)
    here, there = t.values.double(), s.values.double()
    alpha, noise = path.alpha(there), path.sigma(there) ** 2
    ratio = path.alpha(here) / alpha
    whole = path.sigma(here) ** 2
    beta = whole - ratio**2 * noise
    rows = ratio * noise / whole, alpha * beta / whole, (beta * noise / whole).log(), beta.log()
    return Posterior(*(level(Rows(values, t.index), like).to(dtype) for values in rows))


def learned_range(
    share: Float[Tensor, "*s"], low: Float[Tensor, "..."], high: Float[Tensor, "..."]
) -> Float[Tensor, "*s"]:
    """The log-variance that a network chooses between two: -1 is ``low``, 1 is ``high`` (arXiv:2102.09672, eq. 15).

    Args:
        share: what the network predicts; nothing keeps it within [-1, 1].
        low: a log-variance, of the posterior.
        high: another, of the noise added.

    Example:
        >>> learned_range(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(-4.0), torch.tensor(-2.0))
        tensor([-4., -3., -2.])
    """
    return (high + low) / 2 + share * (high - low) / 2


def range_share(
    log_variance: Float[Tensor, "*s"], low: Float[Tensor, "..."], high: Float[Tensor, "..."]
) -> Float[Tensor, "*s"]:
    """What a network says to choose this log-variance: the inverse of :func:`learned_range`; 0 where both are equal.

    Example:
        >>> range_share(torch.tensor([-4.0, -3.5]), torch.tensor(-4.0), torch.tensor(-2.0))
        tensor([-1.0000, -0.5000])
    """
    width = high - low
    return torch.where(width == 0, 0, (2 * log_variance - high - low) / torch.where(width == 0, 1, width))
