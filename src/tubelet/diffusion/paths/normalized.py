"""Any path, scaled so that ``alpha² + sigma² = 1``. Any shape of ``t`` in [0, 1] is accepted and kept."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.conventions import time_of_ratio
from tubelet.protocols import Path

__all__ = ["Normalized"]


@dataclass(frozen=True)
class Normalized:
    """``alpha/n`` and ``sigma/n`` of another path, with ``n² = alpha² + sigma²``: states of unit variance.

    At each time the signal-to-noise ratio is the other path's. ``Normalized(RectifiedFlow())`` is the path of Cosmos 1
    (arXiv:2501.03575), ``Normalized(EDM())`` what EDM's network sees of data of deviation 1 (arXiv:2206.00364, table
    1): there ``alpha`` is EDM's ``c_in`` and the network predicts ``-v``.

    Args:
        path: the other path.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> import torch
        >>> path, t = Normalized(RectifiedFlow()), torch.tensor([0.2, 0.5])
        >>> path.alpha(t), path.sigma(t)
        (tensor([0.9701, 0.7071]), tensor([0.2425, 0.7071]))
    """

    path: Path

    def alpha(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The factor of the data."""
        return self.path.alpha(t) / self._norm(t)

    def sigma(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The factor of the noise."""
        return self.path.sigma(t) / self._norm(t)

    def alpha_dot(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The derivative of alpha, ``-sigma·angle'``."""
        return -self.sigma(t) * self._speed(t)

    def sigma_dot(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The derivative of sigma, ``alpha·angle'``."""
        return self.alpha(t) * self._speed(t)

    def time_of_ratio(self, ratio: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The time at which ``sigma/alpha`` is ``ratio``: the other path's."""
        return time_of_ratio(self.path, ratio)

    def _norm(self, t: Tensor) -> Tensor:
        return self.path.alpha(t).hypot(self.path.sigma(t))

    def _speed(self, t: Tensor) -> Tensor:
        """The derivative of the angle ``atan2(sigma, alpha)``."""
        turn = self.path.alpha(t) * self.path.sigma_dot(t) - self.path.sigma(t) * self.path.alpha_dot(t)
        return turn / self._norm(t) ** 2
