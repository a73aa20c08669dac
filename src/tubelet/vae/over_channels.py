"""Modules of the last axis on the channels of a video."""

from typing import TYPE_CHECKING

import torch  # noqa: F401 - the example uses it
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["OverChannels"]


class OverChannels(nn.Module):
    """A module of the last axis, such as :class:`tubelet.norms.LayerNorm`, on the channels of each position.

    Example:
        >>> from tubelet.norms import LayerNorm
        >>> OverChannels(LayerNorm(4))(torch.randn(1, 4, 3, 5, 5)).mean(1).abs().max().item() < 1e-6
        True
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def reset_parameters(self) -> None:
        """Draw the module anew."""
        self.inner.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h w"]:
        """``inner`` with the channels as the last axis."""
        y: Tensor = self.inner(x.movedim(1, -1))
        return y.movedim(-1, 1)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
