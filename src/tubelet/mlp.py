"""Feed-forward layers of transformer blocks.

``MLP`` is the position-wise network of Vaswani et al., 2017 (arXiv:1706.03762, equation 2), ``down(act(up(x)))``, with
DiT's tanh-approximated GELU by default. ``SwiGLU`` is Shazeer, 2020 (arXiv:2002.05202, equation 6),
``down(silu(gate(x)) · up(x))``. All projections are plain ``nn.Linear``.

Shapes: ``(*lead, dim)`` to ``(*lead, dim)`` (an MLP's ``out`` where one is given), through ``hidden``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MLP", "SwiGLU", "raised"]


def raised(up: nn.Module, act: Callable[[Tensor], Tensor], x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead h"]:
    """``act(up(x))``: what :func:`tubelet.fused.use_kernels` replaces by one operation.

    Example:
        >>> raised(nn.Identity(), torch.relu, torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    return act(up(x))


class MLP(nn.Module):
    """``down(act(up(x)))``.

    Args:
        dim: width of the tokens.
        hidden: width inside; None means ``4·dim``.
        act: the activation, any module or function of one tensor; None means ``nn.GELU(approximate="tanh")``.
        bias: give both projections a bias.
        out: width of the result; None means ``dim``.

    Example:
        >>> MLP(8)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
        >>> MLP(8, 16, act=torch.relu, bias=False).up
        Linear(in_features=8, out_features=16, bias=False)
    """

    raised: Callable[..., Tensor] = staticmethod(raised)

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        *,
        act: Callable[[Tensor], Tensor] | None = None,
        bias: bool = True,
        out: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = 4 * dim if hidden is None else hidden
        self.up = nn.Linear(dim, hidden, bias, device=device, dtype=dtype)
        self.act = nn.GELU(approximate="tanh") if act is None else act
        self.down = nn.Linear(hidden, dim if out is None else out, bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases (DiT's initialisation)."""
        _xavier_(self.up, self.down)

    def forward(self, x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead e"]:
        """Apply to every token alone."""
        y: Tensor = self.down(self.raised(self.up, self.act, x))
        return y

    if TYPE_CHECKING:

        def __call__(self, x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead e"]: ...


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) · up(x))``.

    Args:
        dim: width of the tokens.
        hidden: width inside; None means ``8·dim // 3``, which has as many weights as an MLP of ``4·dim``.
        bias: give the three projections a bias.

    Example:
        >>> SwiGLU(12)(torch.randn(2, 5, 12)).shape
        torch.Size([2, 5, 12])
    """

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = 8 * dim // 3 if hidden is None else hidden
        self.gate = nn.Linear(dim, hidden, bias, device=device, dtype=dtype)
        self.up = nn.Linear(dim, hidden, bias, device=device, dtype=dtype)
        self.down = nn.Linear(hidden, dim, bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        _xavier_(self.gate, self.up, self.down)

    def forward(self, x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]:
        """Apply to every token alone."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out

    if TYPE_CHECKING:

        def __call__(self, x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]: ...


def _xavier_(*projections: nn.Linear) -> None:
    for projection in projections:
        nn.init.xavier_uniform_(projection.weight)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
