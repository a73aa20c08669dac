"""Functions of single numbers as modules, for chains of layers."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Affine", "SiluGate", "SoftClamp"]


class Affine(nn.Module):
    """``scale · x + shift`` with fixed numbers, such as from [-1, 1] to [0, 1].

    Example:
        >>> Affine(0.5, 0.5)(torch.tensor([-1.0, 1.0])).tolist()
        [0.0, 1.0]
    """

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The same shape."""
        return x * self.scale + self.shift

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class SoftClamp(nn.Module):
    """``bound · tanh(x / bound)``: the same near 0, and never beyond ``bound``.

    Example:
        >>> SoftClamp(3.0)(torch.tensor([0.0, 1e9])).tolist()
        [0.0, 3.0]
    """

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The same shape."""
        return torch.tanh(x / self.bound) * self.bound

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class SiluGate(nn.Module):
    """The first half of the channels times SiLU of the second (arXiv:2002.05202).

    Example:
        >>> SiluGate()(torch.zeros(1, 8, 1, 2, 2)).shape
        torch.Size([1, 4, 1, 2, 2])
    """

    def forward(self, x: Float[Tensor, "b c2 t h w"]) -> Float[Tensor, "b c t h w"]:
        """Half the channels."""
        value, gate = x.chunk(2, 1)
        return value * F.silu(gate)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
