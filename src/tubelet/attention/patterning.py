"""Another pattern for the attention of a finished model."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from tubelet.attention.joined import JoinedCrossAttention
from tubelet.attention.modules import Attention
from tubelet.attention.streams import JointAttention
from tubelet.protocols import Pattern

__all__ = ["patterned", "set_pattern"]

Patterned = Attention | JointAttention | JoinedCrossAttention


def patterned(model: nn.Module) -> dict[str, Patterned]:
    """The modules of a model that attend by a pattern, by name and in the order in which they were made.

    The streams of a joint attention have no pattern of their own and are not among them, nor is what lies in a child
    that has ``keeps_pattern``, such as a refiner of the text.

    Example:
        >>> list(patterned(nn.Sequential(Attention(8, 2), nn.Linear(8, 8), Attention(8, 2))))
        ['0', '2']
    """
    streams = {id(each) for module in model.modules() if isinstance(module, JointAttention) for each in module.streams}
    children = (name for name, module in model.named_modules() if name and getattr(module, "keeps_pattern", False))
    kept = tuple(f"{name}." for name in children)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Patterned) and id(module) not in streams and not name.startswith(kept)
    }


def set_pattern(
    model: nn.Module,
    pattern: Pattern | Sequence[Pattern],
    filter: Callable[[str, nn.Module], bool] | None = None,
) -> list[str]:
    """Let modules that attend their own tokens, joint and joined ones too, use another pattern; their weights stay.

    Args:
        model: changed in place.
        pattern: what they attend; or one for each of the modules, in their order.
        filter: says of a module's name and the module whether to change it; None means all.

    Returns:
        The names of the modules changed. The streams of a joint attention have no pattern of their own and are not
        among them, nor is HunyuanVideo's refiner of the text, as with the constructor's ``pattern``:
        ``set_pattern(model.refiner, pattern)`` changes that.

    Raises:
        ValueError: what is no pattern, or not as many patterns as modules; then none is changed.

    Example:
        >>> from tubelet.attention import Spatial, Temporal
        >>> model = nn.Sequential(Attention(8, 2), nn.Linear(8, 8), Attention(8, 2))
        >>> set_pattern(model, Temporal())
        ['0', '2']
        >>> set_pattern(model, [Spatial(), Temporal()]), model[0].pattern
        (['0', '2'], Spatial())
    """
    chosen = {name: module for name, module in patterned(model).items() if filter is None or filter(name, module)}
    several = isinstance(pattern, list | tuple)
    given: list[Any] = [*pattern] if several else [pattern]  # type: ignore[misc]
    for one in given:
        if isinstance(one, type) or not isinstance(one, Pattern):
            raise ValueError(f"pattern must be one such as Joint() or a list of them, got {one!r}")
    patterns = given if several else given * len(chosen)
    if len(patterns) != len(chosen):
        raise ValueError(f"pattern has {len(patterns)} patterns, but there are {len(chosen)} modules: {list(chosen)}")
    for module, each in zip(chosen.values(), patterns, strict=True):
        module.pattern = each
    return list(chosen)
