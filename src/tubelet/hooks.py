"""Who hears a module's calls: what computes otherwise, by a kernel or in blocks, asks first."""

from torch import nn
from torch.nn.modules import module as every

__all__ = ["heard", "heard_inside"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def heard(module: nn.Module) -> bool:
    """Whether somebody listens to a module's own calls, or to all modules', or put a ``forward`` over its class's.

    Example:
        >>> layer = nn.Identity()
        >>> hook = layer.register_forward_hook(print)
        >>> heard(layer), heard(nn.Identity())
        (True, False)
    """
    hooked = any(getattr(module, hooks) or getattr(every, f"_global{hooks}") for hooks in _HOOKS)
    return hooked or "forward" in vars(module)


def heard_inside(module: nn.Module) -> bool:
    """Whether somebody listens to it or to any module in it.

    Example:
        >>> layers = nn.Sequential(nn.Identity())
        >>> hook = layers[0].register_forward_hook(print)
        >>> heard(layers), heard_inside(layers)
        (False, True)
    """
    return any(map(heard, module.modules()))
