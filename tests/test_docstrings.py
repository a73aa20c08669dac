"""Every public symbol says what it is and shows it by an example, and every example runs."""

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

import tubelet

FOUND = sorted(info.name for info in pkgutil.walk_packages(tubelet.__path__, "tubelet."))
NAMES = ["tubelet", *(name for name in FOUND if not name.endswith("__main__"))]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def own_public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The functions and classes that a module defines and lists in its `__all__`."""
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if (inspect.isclass(value) or inspect.isroutine(value)) and value.__module__ == module.__name__:
            yield name, value


def public_methods(cls: type) -> Iterator[tuple[str, object]]:
    """The public methods that a class itself defines, `forward` aside: its class documents that."""
    for name, value in vars(cls).items():
        value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(value) and not name.startswith("_") and name not in ("forward", "reset_parameters"):
            yield name, value


def has_doc(value: object) -> bool:
    """Whether a docstring was written; the signature that a dataclass writes for itself is none."""
    doc = value.__doc__ or ""
    return bool(doc.strip()) and not doc.startswith(f"{getattr(value, '__name__', '')}(")


@pytest.mark.parametrize("name", NAMES)
def test_public_symbols_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    undocumented, without_example = [], []
    for symbol, value in own_public(module):
        members = dict(public_methods(value)) if inspect.isclass(value) else {}
        undocumented += [symbol] * (not has_doc(value))
        undocumented += [f"{symbol}.{member}" for member, method in members.items() if not has_doc(method)]
        docs = [inspect.getdoc(each) or "" for each in (value, *members.values())]
        without_example += [symbol] * (not any(">>> " in doc for doc in docs))
    assert not undocumented, f"{name}: no docstring: {undocumented}"
    assert not without_example, f"{name}: no example: {without_example}"


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert not failed, capsys.readouterr().out
