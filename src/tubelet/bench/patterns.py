"""Attention patterns by name: ``window:5x8x8``, ``frame-causal:window=3:sink=1``, ``spatial|temporal``.

A name is that of a pattern class in :mod:`tubelet.attention.patterns` in lower case with hyphens, so that a class that
is added there can be named here. After it stand the constructor's arguments, each behind a colon, by place or by
``name=value``; a value is a whole number, a box ``TxHxW``, ``true``, ``false`` or ``none``. ``|`` and ``&`` join
patterns (``&`` binds closer) where these define the operators.
"""

import inspect
import operator
import re
from collections.abc import Callable
from functools import reduce
from typing import Any

from tubelet.attention import patterns
from tubelet.protocols import Pattern

__all__ = ["parse_pattern", "pattern_names"]

_COMBINED = frozenset({"all-of", "and", "any-of", "both", "either", "head-split", "intersection", "or", "union"})
"""Patterns made of patterns, which no list of numbers can make; ``|`` and ``&`` make them."""


def pattern_names() -> dict[str, str]:
    """The patterns that can be named, each with its arguments as they are written.

    Example:
        >>> pattern_names()["joint"]
        'joint'
    """
    return {name: _usage(name, made) for name, made in sorted(_constructors().items())}


def parse_pattern(text: str) -> Pattern:
    """The pattern that ``text`` names.

    Raises:
        ValueError: an unknown name, or arguments that the pattern refuses.

    Example:
        >>> parse_pattern("joint")
        Joint()
    """
    for sign, join in (("|", operator.or_), ("&", operator.and_)):
        if sign in text:
            parts = [parse_pattern(part) for part in text.split(sign)]
            try:
                joined: Pattern = reduce(join, parts)
            except TypeError as error:
                raise ValueError(f"pattern {text!r}: {error}") from None
            return joined
    name, *arguments = text.strip().split(":")
    known = _constructors()
    if name not in known:
        raise ValueError(f"pattern {text!r} is unknown; the patterns are {', '.join(pattern_names().values())}")
    by_name = [argument.partition("=")[::2] for argument in arguments if "=" in argument]
    by_place = [_value(argument) for argument in arguments if "=" not in argument]
    try:
        made: Pattern = known[name](*by_place, **{key: _value(value) for key, value in by_name})
    except TypeError as error:
        raise ValueError(f"pattern {text!r} is written {_usage(name, known[name])}: {error}") from None
    except ValueError as error:
        raise ValueError(f"pattern {text!r}: {error}") from None
    return made


def _constructors() -> dict[str, Callable[..., Pattern]]:
    """Every pattern class that plain values can make, by its name in kebab case."""
    exported = [getattr(patterns, name) for name in patterns.__all__]
    classes = [each for each in exported if inspect.isclass(each) and callable(getattr(each, "attends", None))]
    named: dict[str, Any] = {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", each.__name__).lower(): each for each in classes}
    return {name: each for name, each in named.items() if name not in _COMBINED}


def _usage(name: str, made: Callable[..., Pattern]) -> str:
    parameters = inspect.signature(made).parameters.values()
    return "".join([name, *(f":{p.name}" if p.default is p.empty else f"[:{p.name}={p.default}]" for p in parameters)])


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    numbers = text.replace("×", "x").split("x")
    if not all(re.fullmatch(r"-?\d+", number) for number in numbers):
        raise ValueError(f"pattern argument {text!r} is no whole number, box TxHxW, true, false or none")
    return int(text) if len(numbers) == 1 else tuple(map(int, numbers))
