"""Another pattern for the attention of a finished model."""

from collections.abc import Callable

from torch import nn

from tubelet.attention.modules import Attention
from tubelet.attention.streams import JointAttention
from tubelet.protocols import Pattern

__all__ = ["set_pattern"]


def set_pattern(
    model: nn.Module, pattern: Pattern, filter: Callable[[str, nn.Module], bool] | None = None
) -> list[str]:
    """Let self-attention modules, joint ones too, attend by another pattern; their weights stay.

    Args:
        model: changed in place.
        pattern: what they attend.
        filter: says of a module's name and the module whether to change it; None means all.

    Returns:
        The names of the modules changed. The streams of a joint attention have no pattern of their own and are not
        among them.

    Example:
        >>> from tubelet.attention import Temporal
        >>> set_pattern(nn.Sequential(Attention(8, 2), nn.Linear(8, 8), Attention(8, 2)), Temporal())
        ['0', '2']
    """
    streams = {id(each) for module in model.modules() if isinstance(module, JointAttention) for each in module.streams}
    changed = []
    for name, module in model.named_modules():
        if not isinstance(module, Attention | JointAttention) or id(module) in streams:
            continue
        if filter is None or filter(name, module):
            module.pattern = pattern
            changed.append(name)
    return changed
