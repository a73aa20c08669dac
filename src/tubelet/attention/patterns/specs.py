"""Patterns as text and back: compiled graphs hold a pattern as a string, and read it when they run.

A spec is a JSON list: the class's name (one of ours, or ``module:Class``), then its arguments in order.
"""

import importlib
import json
import operator
from collections.abc import Iterable
from functools import lru_cache

from tubelet.protocols import Pattern

__all__ = ["from_spec", "spec", "whole_number"]


def spec(pattern: Pattern, name: str, *arguments: int | bool | Iterable[int | bool] | Pattern | None) -> str:
    """The spec of one of our patterns, of class ``name``; "" for a subclass, or where an argument has none.

    Example:
        >>> from tubelet.attention.patterns import FrameCausal
        >>> spec(FrameCausal(3, 1), "FrameCausal", 3, 1)
        '["FrameCausal", 3, 1]'
    """
    if type(pattern).__qualname__ != name or not type(pattern).__module__.startswith("tubelet.attention.patterns."):
        return ""
    parts = [_text(argument) for argument in arguments]
    return "" if "" in parts else "[" + ", ".join([f'"{name}"', *parts]) + "]"


def whole_number(name: str, value: int) -> int:
    """``value`` as a plain integer.

    Raises:
        ValueError: it is none.

    Example:
        >>> whole_number("window", 3)
        3
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None


def _text(argument: object) -> str:
    if isinstance(argument, Pattern):
        return str(getattr(argument, "spec", ""))
    return json.dumps(argument)


@lru_cache(maxsize=256)
def from_spec(text: str) -> Pattern:
    """The pattern of a spec.

    Raises:
        ValueError: the text is no spec.

    Example:
        >>> from tubelet.attention.patterns import Window
        >>> from_spec(Window((1, 4, 4)).spec)
        Window(size=(1, 4, 4), shift=(0, 0, 0))
    """
    try:
        made = _made(json.loads(text))
    except (AttributeError, ImportError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{text!r} is no spec of a pattern: {error}") from error
    if not isinstance(made, Pattern):
        raise ValueError(f"{text!r} is no spec of a pattern: it gives {made!r}")
    return made


def _made(value: object) -> object:
    if not isinstance(value, list):
        return value
    if not value or not isinstance(value[0], str):
        return tuple(map(_made, value))
    module, _, name = value[0].rpartition(":")
    found = importlib.import_module(module or "tubelet.attention.patterns")
    return getattr(found, name)(*map(_made, value[1:]))
