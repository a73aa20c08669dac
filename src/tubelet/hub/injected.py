"""What a config cannot hold: the patterns a model attends by and the functions it was made with, noted beside it.

``patterns`` is a list of the modules' patterns in their order, or of one that all have; a pattern is its spec
(:func:`tubelet.attention.patterns.from_spec`) as a JSON list. ``injected`` has a function's dotted name by the
constructor's argument. What only its own code can make is None in either: a file never chooses what code runs, so
whoever loads such a model hands it in again.
"""

import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

from torch import nn

from tubelet.attention import patterns, set_pattern
from tubelet.attention.patterning import patterned
from tubelet.attention.patterns import from_spec
from tubelet.protocols import Pattern

__all__: list[str] = []

NOTES = {"patterns": list, "injected": dict}
"""The keys of the notes and what they hold; either may be missing."""
_NAMES = {name for name in patterns.__all__ if isinstance(getattr(patterns, name), type)}


def notes(model: nn.Module) -> dict[str, Any]:
    """What a file says of a model beside its class and config."""
    attended = [_written(module.pattern) for module in patterned(model).values()]
    attended = attended[:1] if all(each == attended[0] for each in attended) else attended
    functions = {
        name: _name(function)
        for name, default in _arguments(type(model)).items()
        if isinstance(function := getattr(model, name, default), FunctionType) and function is not default
    }
    return ({"patterns": attended} if attended else {}) | ({"injected": functions} if functions else {})


def arguments(where: str, description: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's constructor takes beside its config: what was noted, or is given instead of that.

    Raises:
        ValueError: a function that is not tubelet's was noted and is not given.
    """
    noted = {name: text for name, text in description.get("injected", {}).items() if name not in given}
    return {name: _function(where, name, text) for name, text in noted.items()} | dict(given)


def restore(
    where: str, description: Mapping[str, Any], model: nn.Module, given: Pattern | Sequence[Pattern] | None
) -> None:
    """Let a model attend by the patterns that were noted, or are given instead of those.

    Raises:
        ValueError: a pattern that is not tubelet's was noted and none is given; not as many patterns as modules.
    """
    noted = description.get("patterns")
    if given is not None:
        set_pattern(model, given)
    elif noted is not None:
        read = [_read(where, each) for each in noted]
        set_pattern(model, read * len(patterned(model)) if len(read) == 1 else read)


def _written(pattern: Pattern) -> Any:
    """A spec of one of our patterns as JSON; None of any other."""
    text = getattr(pattern, "spec", "")
    return json.loads(text) if text and _ours(json.loads(text)) else None


def _read(where: str, value: Any) -> Pattern:
    if value is None:
        raise ValueError(f"{where}: the model attended by a pattern that is not tubelet's: give it as pattern=")
    if not isinstance(value, list) or not _ours(value):
        raise ValueError(f"{where}: {value!r} is none of tubelet's patterns")
    try:
        return from_spec(json.dumps(value))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _ours(value: Any) -> bool:
    """Whether all classes that a spec names are tubelet's patterns."""
    if not isinstance(value, list):
        return not isinstance(value, str)
    named = bool(value) and isinstance(value[0], str)
    return (not named or value[0] in _NAMES) and all(map(_ours, value[1:] if named else value))


def _arguments(cls: type[nn.Module]) -> dict[str, Any]:
    """The keywords of a model's constructor that are not of its config or place, with their defaults."""
    given = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in given if p.name not in ("config", "device", "dtype")}


def _name(function: FunctionType) -> str | None:
    """The dotted name of a function that ``tubelet.models`` exports; None of any other."""
    models = importlib.import_module("tubelet.models")
    ours = getattr(models, function.__name__, None) is function
    return f"{models.__name__}.{function.__name__}" if ours else None


def _function(where: str, argument: str, text: Any) -> FunctionType:
    if text is None:
        raise ValueError(f"{where}: the model was made with a function that is not tubelet's: give it as {argument}=")
    module, _, name = str(text).rpartition(".")
    models = importlib.import_module("tubelet.models")
    found = getattr(models, name, None) if module == models.__name__ and name in models.__all__ else None
    if not isinstance(found, FunctionType):
        raise ValueError(f"{where}: {text!r} as {argument} is no function of tubelet.models")
    return found
