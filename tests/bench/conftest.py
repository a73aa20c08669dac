"""A small measured run, and a clean list of registered backends."""

import io
from typing import Any

import pytest

from tubelet.bench import Plan, registry, run_plan


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    """Two backends, forward and backward, on a dense and a packed shape."""
    plan = Plan(
        shapes=("2x3x3+2/2x8", "mix:1x2x2@2_2x2x3/2x8"),
        patterns=("joint",),
        backends=("sdpa", "reference"),
        directions=("forward", "forward+backward"),
        rounds=4,
        budget=2.0,
    )
    return run_plan(plan, progress=io.StringIO())


@pytest.fixture(autouse=True)
def _no_backends_stay(monkeypatch) -> None:
    monkeypatch.setattr(registry, "_ADDED", {})
