"""Everything here runs kernels in Triton's interpreter, on the CPU, with uninitialised memory full of NaN."""

import importlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings

# Interpreted programs are slow: a few draws in every run, none of them shrunk, and many where there is time.
settings.register_profile(
    "few", deadline=None, derandomize=True, max_examples=7, phases=[Phase.explicit, Phase.generate]
)
CI = "CI" in os.environ  # a change must pass the same draws each time; whoever looks for more runs them elsewhere
settings.register_profile("many", deadline=None, derandomize=CI, max_examples=30 if CI else 60, print_blob=True)


@pytest.fixture(autouse=True)
def _nan_filled_memory() -> Iterator[None]:
    """Whatever a kernel does not write stays NaN; an operation that is not deterministic raises."""
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _language_replaced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter replaces Triton's language at every call of a helper: a third of its time. Once a launch does."""
    from triton.runtime import interpreter

    replaced: set[int] = set()
    start = interpreter.GridExecutor.__call__

    def started(self: Any, *arguments: Any, **named: Any) -> Any:
        replaced.clear()
        return start(self, *arguments, **named)

    def called(self: Any, *arguments: Any, **named: Any) -> Any:
        module = id(self.fn.__globals__)
        if module not in replaced:
            interpreter._patch_lang(self.fn)
            replaced.add(module)
        return self.rewrite()(*arguments, **named)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", started)
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", called)


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Kernels load by descriptors where they can; those that were made."""
    made: list[Any] = []
    for name in ("_grouped", "_tiled"):
        module = importlib.import_module(f"tubelet.kernels.{name}.launches")

        def noted(*arguments: Any, _make: Any = module.described) -> Any:
            made.append(_make(*arguments))
            return made[-1]

        monkeypatch.setattr(module, "has_descriptors", lambda x: True)
        monkeypatch.setattr(module, "described", noted)
    return made
