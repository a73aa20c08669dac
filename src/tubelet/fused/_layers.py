"""Layers that become another class, and what asks whether one kernel may stand for several modules."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as everywhere

from tubelet.kernels import layer_norm, linear
from tubelet.norms import LayerNorm, RMSNorm

__all__ = ["FusedLayerNorm", "FusedLinear", "heard", "plain_norm"]


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


def heard(module: nn.Module) -> bool:
    """Whether somebody listens to a module, or to all, or put a forward of its own over the class's.

    One kernel for the module and its neighbour would pass that by.

    Example:
        >>> layer = nn.Identity()
        >>> hook = layer.register_forward_hook(print)
        >>> heard(layer), heard(nn.Identity())
        (True, False)
    """
    hooked = any(getattr(module, hooks) or getattr(everywhere, f"_global{hooks}") for hooks in _HOOKS)
    return hooked or "forward" in vars(module)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
