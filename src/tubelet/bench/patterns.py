"""Attention patterns by name: ``window:5x8x8``, ``frame-causal:window=3:sink=1``, ``spatial|temporal``.

A name is that of a pattern class in :mod:`tubelet.attention.patterns` in lower case with hyphens, so that a class that
is added there can be named here. After it stand the constructor's arguments, each behind a colon, by place or by
``name=value``; a value is a whole number, ``true``, ``false``, ``none``, or three joined by ``x``. Where patterns
define the operators, ``a|b`` and ``a&b`` join two (``&`` binds closer); ``a@6/b@2`` gives 6 heads to one pattern and 2
to another.
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

_COMBINED = frozenset({"both", "either", "head-split", "video-only"})
"""Patterns made of patterns, which no list of numbers can make; ``|``, ``&`` and ``/`` make the first three."""


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
    if "/" in text:
        return _split(text)
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


def _split(text: str) -> Pattern:
    """Another pattern for other heads."""
    parts = [part.rpartition("@") for part in text.split("/")]
    make = getattr(patterns, "HeadSplit", None)
    if make is None or not all(count.strip().isdecimal() for _, _, count in parts):
        raise ValueError(f"pattern {text!r} must give each part its heads, as in joint@6/joint@2")
    try:
        made: Pattern = make(tuple(parse_pattern(part) for part, _, _ in parts), tuple(int(n) for _, _, n in parts))
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
    parts = [_atom(part) for part in text.lower().replace("×", "x").split("x")]
    return parts[0] if len(parts) == 1 else tuple(parts)


def _atom(text: str) -> int | bool | None:
    words = {"true": True, "false": False, "none": None}
    if text in words:
        return words[text]
    if not re.fullmatch(r"-?\d+", text):
        raise ValueError(f"pattern argument {text!r} is no whole number, true, false, none, or three joined by x")
    return int(text)
