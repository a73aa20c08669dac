"""The backends that are measured: the library's own, those of installed packages, and those of the running process.

A package adds one by an entry point of the group ``tubelet.backends``: its name is the backend's, its object a function
``(q, k, v, request) -> out``, or a :class:`tubelet.protocols.Backend` or its class. A script adds one by the decorator
:func:`backend`; ``tubelet bench attention --import MODULE`` imports the script first.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

from torch import Tensor

from tubelet import attention
from tubelet.protocols import Answer, AttentionRequest, Backend

__all__ = ["GROUP", "Dispatched", "available", "backend"]

GROUP = "tubelet.backends"
"""The group of entry points that packages add backends to."""

Made = TypeVar("Made", bound=Callable[..., Any])

_ADDED: dict[str, Backend] = {}


def backend(name: str, supports: Callable[[AttentionRequest], Answer] | None = None) -> Callable[[Made], Made]:
    """Register a function ``(q, k, v, request) -> out``, or a class of backends, under a name for the benchmarks.

    Args:
        name: how ``--backends`` names it.
        supports: for a function: whether it serves a request exactly; None means that it serves every one, which the
            benchmark then checks.

    Returns:
        A decorator that gives back what it decorates.

    Raises:
        ValueError: the name is one of the library's backends, or is taken.

    Example:
        >>> @backend("zeros-example")
        ... def zeros(q, k, v, request):
        ...     return torch.zeros_like(q)
        >>> "zeros-example" in available()
        True
    """

    def register(made: Made) -> Made:
        if name in attention.backends() or name == "auto":
            raise ValueError(f"backend {name!r} is tubelet's own; register {made!r} under another name")
        taken = _ADDED.get(name)
        if taken is not None and _origin(taken) != _origin(_backend(name, made, supports)):
            raise ValueError(f"backend {name!r} is registered twice: as {_origin(taken)} and as {made!r}")
        _ADDED[name] = _backend(name, made, supports)
        return made

    return register


def available() -> dict[str, Backend]:
    """Every backend by name: the library's, the dispatcher's choice, installed packages', and registered ones.

    Those of the library and "auto" run through ``attend``, as users call them, with its checks inside the time.

    Raises:
        ValueError: an entry point takes a name of the library, or gives what is no backend.

    Example:
        >>> list(available())[:1] == list(attention.backends())[:1]
        True
    """
    found: dict[str, Backend] = {name: Dispatched(name) for name in (*attention.backends(), "auto")}
    for point in metadata.entry_points(group=GROUP):
        if point.name in found:
            raise ValueError(f"the entry point {point.name} = {point.value} names a backend that exists already")
        found[point.name] = _backend(point.name, point.load(), None)
    return {**found, **{name: each for name, each in _ADDED.items() if name not in found}}


@dataclass
class Dispatched:
    """A backend of the library behind ``attend``, which answers for it when it runs: what it refuses it raises.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, 4, 1, 8)
        >>> shape = (1, 4, 1, 8)
        >>> request = AttentionRequest(attention.Joint(), None, None, shape, shape, x.dtype, "cpu", 1.0, None)
        >>> Dispatched("auto").run(x, x, x, request).shape
        torch.Size([1, 4, 1, 8])
    """

    name: str

    def supports(self, request: AttentionRequest) -> Answer:
        """Yes, for now."""
        return Answer()

    def run(self, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
        """``attend``."""
        pattern, layout, scale = request.pattern, request.index, request.scale
        return attention.attend(q, k, v, pattern=pattern, layout=layout, backend=self.name, scale=scale)


@dataclass
class _Function:
    """A function as a backend."""

    name: str
    function: Callable[..., Tensor]
    answer: Callable[[AttentionRequest], Answer] | None

    def supports(self, request: AttentionRequest) -> Answer:
        return Answer() if self.answer is None else self.answer(request)

    def run(self, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest) -> Tensor:
        return self.function(q, k, v, request)


def _backend(name: str, made: Any, supports: Callable[[AttentionRequest], Answer] | None) -> Backend:
    if inspect.isclass(made):
        made = made()
    if isinstance(made, Backend):
        return made
    if not callable(made):
        raise ValueError(f"backend {name!r} must be a function (q, k, v, request) or a Backend, got {made!r}")
    return _Function(name, made, supports)


def _origin(each: Backend) -> str:
    """Where a backend was written, the same after its module was imported again."""
    where = each.function if isinstance(each, _Function) else type(each)
    return f"{where.__module__}.{where.__qualname__}"
