"""The repository's own backends are right on the shapes they say they serve."""

import importlib
import sys
from pathlib import Path

import pytest

from tubelet.bench import Plan
from tubelet.bench.run import measure

ROOT = Path(__file__).parents[2]


@pytest.fixture
def imported(monkeypatch):
    """Imports a module of the benchmarks anew, so that it registers its backends in this test."""
    monkeypatch.syspath_prepend(ROOT)

    def fresh(name: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.import_module(name)

    return fresh


def statuses(shape: str, pattern: str, *backends: str) -> list[str]:
    directions = ("forward", "forward+backward")
    plan = Plan(shapes=(shape,), patterns=(pattern,), backends=backends, directions=directions, rounds=2, budget=1.0)
    return [row["status"] for rows in measure(plan) for row in rows]


def test_packed_ways_of_attention(imported) -> None:
    imported("benchmarks.attention")
    assert statuses("mix:1x2x3@2_2x2x2/2x8", "joint", "masked", "loop", "sdpa") == ["ok"] * 6
    assert statuses("1x2x3/2x8", "joint", "masked", "loop") == ["ok", "unsupported"] * 2


def test_single_kernels(imported) -> None:
    imported("benchmarks.baselines")
    kernels = ("sdpa-math", "sdpa-flash", "sdpa-cudnn")
    assert statuses("2x2x3/2x8", "joint", *kernels) == ["ok", "ok", "unsupported"] * 2
    assert statuses("mix:1x2x3@2/2x8", "joint", *kernels) == ["unsupported"] * 6


@pytest.mark.parametrize("pattern", ["spatial", "temporal", "window:3x1x2"])
def test_permuted_and_strided_rows(imported, pattern: str) -> None:
    imported("benchmarks.baselines")
    assert statuses("3x2x4/2x8", pattern, "permuted", "strided") == ["ok"] * 4
    assert statuses("3x2x4+2/2x8", pattern, "permuted", "strided") == ["unsupported"] * 4


def test_permuted_windows_must_divide(imported) -> None:
    imported("benchmarks.baselines")
    assert statuses("3x2x4/2x8", "window:2x2x2", "permuted") == ["unsupported"] * 2
    assert statuses("3x2x4/2x8", "window:1x2x2:0x1x1", "permuted") == ["unsupported"] * 2


@pytest.mark.parametrize("shape", ["3x2x4+2/2x8", "mix:1x2x3@2_2x2x2+1/2x8"])
@pytest.mark.parametrize("pattern", ["frame-causal", "neighborhood:3x3x3", "spatial|temporal"])
def test_one_masked_call(imported, shape: str, pattern: str) -> None:
    imported("benchmarks.baselines")
    assert statuses(shape, pattern, "masked") == ["ok"] * 2
