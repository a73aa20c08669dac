"""Who hears a module's calls: whatever goes round a call has to ask first."""

from torch import nn
from torch.nn.modules import module as every

__all__ = ["heard", "heard_inside"]


def heard(module: nn.Module) -> bool:
    """Whether a call of the module itself is heard or replaced: by its hooks, all modules' hooks, or a ``forward`` set.

    Example:
        >>> linear = nn.Linear(1, 1)
        >>> before = heard(linear)
        >>> handle = linear.register_forward_hook(lambda *_: None)
        >>> before, heard(linear)
        (False, True)
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return any((*hooks, every._global_forward_hooks, every._global_forward_pre_hooks)) or "forward" in vars(module)


def heard_inside(module: nn.Module) -> bool:
    """Whether its own calls or those of any module in it are.

    Example:
        >>> layers = nn.Sequential(nn.Linear(1, 1))
        >>> handle = layers[0].register_forward_hook(lambda *_: None)
        >>> heard(layers), heard_inside(layers)
        (False, True)
    """
    return any(map(heard, module.modules()))
