"""Everything here runs kernels in Triton's interpreter, on the CPU, with uninitialised memory full of NaN."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings

# Interpreted programs are slow: a few draws in every run, none of them shrunk, and many where there is time.
settings.register_profile(
    "few", deadline=None, derandomize=True, max_examples=7, phases=[Phase.explicit, Phase.generate]
)
settings.register_profile("many", deadline=None, max_examples=150, print_blob=True)


@pytest.fixture(autouse=True)
def _nan_filled_memory() -> Iterator[None]:
    """Whatever a kernel does not write stays NaN; an operation that is not deterministic raises."""
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


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
