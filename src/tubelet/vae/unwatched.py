"""Whether a convolution may be computed by other means than its call: only its result counts, and it is on a CPU."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tubelet.hooks import heard

__all__ = ["plain", "transformed", "unwatched"]


def plain(conv: nn.Conv3d, x: Tensor) -> bool:
    """Whether a convolution may be computed otherwise: on a CPU, without gradients, one output for each position.

    Example:
        >>> plain(nn.Conv3d(2, 2, 3, stride=2), torch.zeros(1, 2, 5, 8, 8))
        False
    """
    same = tuple(conv.padding) == (0, *(side // 2 for side in conv.kernel_size[1:]))
    same = same and max(*conv.stride, *conv.dilation, conv.groups) == 1
    return same and conv.padding_mode in ("zeros", "replicate") and unwatched(conv, x)


def unwatched(conv: nn.Conv3d, x: Tensor) -> bool:
    """Whether only the result counts, on a CPU: no gradients, no hooks, no adapter, no transform of the call.

    Example:
        >>> unwatched(nn.Conv3d(2, 2, 3), torch.zeros(1, 2, 5, 8, 8))
        False
    """
    if type(conv) is not nn.Conv3d or heard(conv):  # adapters see it called
        return False
    learns = torch.is_grad_enabled() and any(part.requires_grad for part in (x, *conv.parameters()))
    return x.device.type == "cpu" and not learns and not transformed()


def transformed() -> bool:
    """Whether a compiler, which fuses by itself and would unroll all blocks, autocast or a function transform is on.

    Example:
        >>> transformed()
        False
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return True
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
