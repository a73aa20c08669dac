"""Layers that become another class, and what asks whether one kernel may stand for several modules."""

from jaxtyping import Float
from torch import Tensor, nn

from tubelet.hooks import heard
from tubelet.kernels import layer_norm, linear
from tubelet.norms import LayerNorm, RMSNorm

__all__ = ["FusedLayerNorm", "FusedLinear", "plain_norm"]


class FusedLinear(nn.Linear):
    """An ``nn.Linear`` whose forward is :func:`tubelet.kernels.linear`: what ``use_kernels`` makes of one.

    Example:
        >>> import torch
        >>> FusedLinear(2, 3)(torch.ones(4, 2)).shape
        torch.Size([4, 3])
    """

    def forward(self, input: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead e"]:
        """As ``nn.Linear``."""
        return linear(input, self.weight, self.bias)


class FusedLayerNorm(LayerNorm):
    """A layer norm whose forward is :func:`tubelet.kernels.layer_norm`: what ``use_kernels`` makes of one.

    Example:
        >>> import torch
        >>> FusedLayerNorm(2)(torch.tensor([[1.0, 3.0]])).shape
        torch.Size([1, 2])
    """

    def forward(self, x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]:
        """As the plain norm, which also says what is wrong with a width."""
        if x.shape[-1] != self.dim:
            return super().forward(x)
        return layer_norm(x, self.weight, self.bias, eps=self.eps)


def plain_norm(norm: nn.Module) -> bool:
    """A norm that the kernel computes, and that nobody listens to.

    Example:
        >>> plain_norm(RMSNorm(2)), plain_norm(nn.Identity())
        (True, False)
    """
    return type(norm) in (LayerNorm, FusedLayerNorm, RMSNorm) and not heard(norm)
