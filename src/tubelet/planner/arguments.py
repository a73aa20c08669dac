"""Arguments behind a preset's name, for the sizes that one function makes: ``dit_xl(patch=4)``, ``DiT-XL/4``."""

import ast
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Literal

__all__ = ["Written", "accepted", "read_name"]

_FORM = re.compile(r"(?P<stem>[^/()]*)(/(?P<patch>\d+)(x(?P<frames>\d+))?)?\s*(\((?P<inside>.*)\))?")


@dataclass(frozen=True)
class Written:
    """A name as it was read: the preset's, then its arguments by place and by name.

    Example:
        >>> Written("dit_xl", (4,)).positional
        (4,)
    """

    stem: str
    positional: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)


def read_name(name: str) -> Written:
    """Read ``name``, ``name(value, key=value)`` or papers' ``Name/patch`` and ``Name/patchxframes``.

    Values are integers, ``None`` and words, with quotes or without; nothing is evaluated.

    Raises:
        ValueError: the name has another form.

    Example:
        >>> read_name("vivit_b(factorised_encoder, patch=32)")
        Written(stem='vivit_b', positional=('factorised_encoder',), named={'patch': 32})
        >>> read_name("ViViT-B/16x2").named
        {'patch': 16, 'frames': 2}
    """
    found = _FORM.fullmatch(name.strip())
    if found is None:
        raise ValueError(f"a preset is written name, name(argument=value) or name/patch, got {name!r}")
    sizes = {key: int(found[key]) for key in ("patch", "frames") if found[key]}
    positional, named = _arguments(name, found["inside"] or "")
    twice = sizes.keys() & named.keys()
    if twice:
        raise ValueError(f"{name!r} has {min(twice)} twice")
    return Written(found["stem"].strip(), positional, sizes | named)


def accepted(name: str, function: Callable[..., Any], written: Written) -> dict[str, Any]:
    """The written arguments by parameter, less those that are the defaults.

    A parameter may be written where its annotation is a ``Literal`` or ``int``, or None beside one.

    Raises:
        ValueError: the function has no such argument, or not with such a value.

    Example:
        >>> from tubelet.models import dit_xl
        >>> accepted("dit_xl", dit_xl, Written("dit_xl", (4,)))
        {'patch': 4}
    """
    hints, parameters = typing.get_type_hints(function), inspect.signature(function).parameters
    writable = [key for key in parameters if key in hints and _kinds(hints[key])]
    if len(written.positional) > len(writable):
        raise ValueError(f"{name} takes {_listed(writable)}, got {written.positional!r}")
    given = dict(zip(writable, written.positional, strict=False))
    for key, value in written.named.items():
        if key not in writable:
            raise ValueError(f"{name} takes {_listed(writable)}, got {key}={value!r}")
        if key in given:
            raise ValueError(f"{name} got {key} twice: {given[key]!r} and {value!r}")
        given[key] = value
    for key, value in given.items():
        _check(name, key, value, hints[key])
    return {key: given[key] for key in writable if key in given and given[key] != parameters[key].default}


def _arguments(name: str, inside: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        call = ast.parse(f"f({inside})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise SyntaxError
        keys = [each.arg for each in call.keywords]
        if None in keys:
            raise SyntaxError
        return tuple(map(_value, call.args)), {str(each.arg): _value(each.value) for each in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"arguments are integers and words, such as (patch=4) or (factorised_encoder), got {name!r}"
        ) from error


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """What a writable annotation allows: ``int``, ``NoneType`` and single values; nothing for another annotation."""
    if hint is int:
        return (int,)
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    parts = typing.get_args(hint)
    if NoneType in parts and all(each is NoneType or _kinds(each) for each in parts):
        return tuple(kind for each in parts for kind in ((NoneType,) if each is NoneType else _kinds(each)))
    return ()


def _check(name: str, key: str, value: Any, hint: Any) -> None:
    kinds = _kinds(hint)
    whole = int in kinds and type(value) is int and value >= 1
    if not (whole or (value is None and NoneType in kinds) or (isinstance(value, str) and value in kinds)):
        words = ["an integer of at least 1" if k is int else "None" if k is NoneType else repr(k) for k in kinds]
        raise ValueError(f"{key} of {name} must be {' or '.join(words)}, got {value!r}")


def _listed(writable: list[str]) -> str:
    return f"the arguments {', '.join(writable)}" if writable else "no arguments"
