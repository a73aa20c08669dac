"""Equal blocks run once: a model of 60 layers on ``meta`` costs the time of its different ones.

Two blocks are equal where their modules have the same classes, the same plain attributes (patterns, widths) and
parameters of the same shapes; two calls where their tensors have the same shapes and everything else is the same object
or value. On ``meta`` the results are then the same, too.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tubelet.layout import Rows

__all__ = ["repeats"]

Sums = tuple[int, int]


@contextmanager
def repeats(model: nn.Module, read: Callable[[], Sums], add: Callable[[int, int], None]) -> Iterator[None]:
    """Inside the block, an item of a ``ModuleList`` that equals an earlier one only adds what that one added.

    Example:
        >>> blocks = nn.ModuleList(nn.Linear(2, 2, device="meta") for _ in range(3))
        >>> sums = []
        >>> with repeats(nn.ModuleDict({"blocks": blocks}), lambda: (4, 0), lambda *more: sums.append(more)):
        ...     x = [block(blocks[0].weight) for block in blocks]
        >>> x[0] is x[2], sums
        (True, [(0, 0), (0, 0)])
    """
    known: dict[Hashable, tuple[Sums, Any]] = {}
    changed = [item for item in dict.fromkeys(_items(model)) if "forward" not in vars(item)]
    for item in changed:
        item.forward = _once(item.forward, _structure(item), known, read, add)
    try:
        yield
    finally:
        for item in changed:
            del item.forward


def _items(module: nn.Module) -> Iterator[nn.Module]:
    """The items of the outermost lists."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _items(child)


def _once(
    forward: Callable[..., Any],
    structure: Hashable,
    known: dict[Hashable, tuple[Sums, Any]],
    read: Callable[[], Sums],
    add: Callable[[int, int], None],
) -> Callable[..., Any]:
    def run(*inputs: Any, **named: Any) -> Any:
        key = (structure, _signature(inputs), _signature(named))
        if key in known:
            (dense, attention), out = known[key]
            add(dense, attention)
            return out
        before = read()
        out = forward(*inputs, **named)
        after = read()
        known[key] = (after[0] - before[0], after[1] - before[1]), out
        return out

    return run


_PLAIN = vars(nn.Module()).keys()


def _structure(module: nn.Module) -> Hashable:
    own = {key: value for key, value in vars(module).items() if key not in _PLAIN and key != "forward"}
    tensors = [_signature(each) for each in (own, module._parameters, module._buffers)]
    children = [(name, None if each is None else _structure(each)) for name, each in module._modules.items()]
    return (type(module), *tensors, *children)


class _Same:
    """An object that equals only itself, kept alive so that no other gets its place."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


def _signature(value: Any) -> Hashable:
    if value is None or isinstance(value, int | float | str):
        return (type(value), value)
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), value.dtype, str(value.device)) if value.is_meta else _Same(value)
    if isinstance(value, Mapping):
        return tuple((key, _signature(each)) for key, each in value.items())
    if isinstance(value, Rows):
        return ("rows", *map(_signature, (value.values, value.index, value.owner)))
    if isinstance(value, tuple | list):
        return (type(value), *map(_signature, value))
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return (type(value), value)
