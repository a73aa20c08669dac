"""The straight path of rectified flow. Any shape of ``t`` in [0, 1] is accepted and kept."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["RectifiedFlow"]


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight path ``x_t = (1 - t)·x0 + t·eps``, whose velocity is ``eps - x0`` (arXiv:2209.03003, equation 1).

    Example:
        >>> t = torch.tensor([0.0, 0.25])
        >>> RectifiedFlow().alpha(t), RectifiedFlow().sigma(t)
        (tensor([1.0000, 0.7500]), tensor([0.0000, 0.2500]))
    """

    def alpha(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The factor of the data, ``1 - t``."""
        return 1 - t

    def sigma(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The factor of the noise, ``t``."""
        return t

    def alpha_dot(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The derivative of alpha, -1."""
        return -torch.ones_like(t)

    def sigma_dot(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The derivative of sigma, 1."""
        return torch.ones_like(t)

    def time_of_ratio(self, ratio: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The time at which ``sigma/alpha`` is ``ratio``."""
        return 1 / (1 + 1 / ratio)
