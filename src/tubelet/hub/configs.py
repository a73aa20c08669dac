"""Frozen dataclass configs to JSON values and back, strictly.

JSON has fewer types than Python: tuples become lists, nested dataclasses objects, enum members their names. The way
back is led by the dataclass's own annotations, so tuples, nested dataclasses and enums return as what they were. An
unknown key, a missing key without a default and a value of another type are errors that say where.
"""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, TypeVar, Union

__all__ = ["from_dict", "to_dict"]

C = TypeVar("C")
_SCALARS = (bool, int, float, str, types.NoneType)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as JSON values that :func:`from_dict` turns back into an equal config.

    Args:
        config: a dataclass instance; its fields hold scalars, strings, None, tuples, lists, dicts with string keys,
            enum members and further dataclasses. Derived fields (``init=False``) are left out.

    Returns:
        A dict that ``json.dumps`` takes.

    Raises:
        ValueError: not a dataclass, a value of another kind or not finite, or a value that its annotation does not
            restore (a list where a tuple is annotated, say).

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Sizes:
        ...     dim: int
        ...     patch: tuple[int, int, int] = (1, 2, 2)
        >>> to_dict(Sizes(8))
        {'dim': 8, 'patch': [1, 2, 2]}
    """
    if not is_dataclass(config) or isinstance(config, type):
        raise ValueError(f"config must be a dataclass instance, got {config!r}")
    data: dict[str, Any] = _encode(config, "config")
    if (restored := from_dict(type(config), data)) != config:
        raise ValueError(f"config does not return from JSON: {config!r} comes back as {restored!r}")
    return data


def from_dict(cls: type[C], data: Mapping[str, Any]) -> C:
    """Build ``cls`` from JSON values, by its annotations.

    Args:
        cls: a dataclass.
        data: one entry per field; fields with a default may be missing.

    Returns:
        The config, validated by its own ``__post_init__``.

    Raises:
        ValueError: unknown keys, missing keys or a value of the wrong type, with its place.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Sizes:
        ...     dim: int
        ...     patch: tuple[int, int, int] = (1, 2, 2)
        >>> from_dict(Sizes, {"dim": 8, "patch": [1, 4, 4]})
        Sizes(dim=8, patch=(1, 4, 4))
    """
    if not is_dataclass(cls):
        raise ValueError(f"cls must be a dataclass, got {cls!r}")
    config: C = _decode_dataclass(cls, data, "config")
    return config


def _encode(value: Any, where: str) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _encode(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value) if f.init}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, tuple | list):
        return [_encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: _encode(item, f"{where}[{key!r}]") for key, item in value.items()}
    if type(value) not in _SCALARS or (type(value) is float and not math.isfinite(value)):
        raise ValueError(f"{where} is {value!r}, a {type(value).__name__} that JSON cannot hold")
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated ``kind``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is Literal:
        return _accept(value, where, any(type(value) is type(a) and value == a for a in arguments), kind)
    if origin is tuple or kind is tuple:
        return _decode_tuple(arguments or (Any, ...), value, where)
    if origin is list and _accept(value, where, isinstance(value, list), kind) is value:
        return [_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin in (dict, Mapping) and _accept(value, where, isinstance(value, Mapping), kind) is value:
        return {key: _decode(arguments[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(kind, type):
        return _decode_plain(kind, value, where)
    raise ValueError(f"{where} is annotated {kind!r}, which a config cannot restore")


def _decode_plain(kind: type[Any], value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if issubclass(kind, Enum):
        names = list(kind.__members__)
        return kind[_accept(value, where, value in names, f"one of {names}")]
    if kind is float:
        return float(_accept(value, where, type(value) in (int, float), kind))
    if kind in _SCALARS:
        return _accept(value, where, type(value) is kind, kind)
    raise ValueError(f"{where} is annotated {kind.__name__}, which a config cannot restore")


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """The one member that fits; a scalar's own type goes before wider ones."""
    if type(value) in kinds and type(value) in _SCALARS:
        return value
    found, errors = [], []
    for kind in kinds:
        try:
            found.append(_decode(kind, value, where))
        except ValueError as error:
            errors.append(str(error))
    if len(found) == 1:
        return found[0]
    raise ValueError(f"{where}={value!r} fits {len(found)} members of {kinds}, not one; {'; '.join(errors)}")


def _decode_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _accept(value, where, isinstance(value, list | tuple), "a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    _accept(value, where, len(value) == len(kinds), f"{len(kinds)} items")
    return tuple(_decode(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))


def _decode_dataclass(cls: type[Any], data: Any, where: str) -> Any:
    _accept(data, where, isinstance(data, Mapping), f"the fields of {cls.__name__}")
    known = {f.name: f for f in fields(cls) if f.init}
    unknown = sorted(set(data) - set(known))
    missing = [name for name, f in known.items() if name not in data and _required(f)]
    if unknown or missing:
        raise ValueError(f"{where} ({cls.__name__}) has unknown keys {unknown} and lacks {missing}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _decode(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _accept(value: Any, where: str, fits: bool, expected: Any) -> Any:
    if not fits:
        expected = expected.__name__ if isinstance(expected, type) else expected
        raise ValueError(f"{where} must be {expected}, got {value!r}")
    return value
