"""A learned share of a branch."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["SigmoidGate"]


class SigmoidGate(nn.Module):
    """``sigmoid(weight) · x`` with one learned number, at first a half.

    At the end of a residual branch it mixes: ``x + s · f(x) = (1 - s) · x + s · (x + f(x))`` (arXiv:2311.15127,
    appendix D, mixes image and video layers so).

    Example:
        >>> SigmoidGate()(torch.ones(1, 2, 1, 1, 1)).unique().item()
        0.5
    """

    def __init__(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero: a half."""
        nn.init.zeros_(self.weight)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """The share."""
        return torch.sigmoid(self.weight) * x

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
