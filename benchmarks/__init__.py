"""Benchmarks of this repository: small suites on `tubelet.bench`, whose harness, statistics and gate they share.

``python -m benchmarks --help`` says how to run them. A suite is either a plan of `tubelet.bench` (attention) or groups
of cases (anything else), each with the error of the very call that is timed: ``|result - exact| / |exact|``, with an
exact result in float64.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tubelet.bench import interleave, stopwatch, summary
from tubelet.bench.device import environment
from tubelet.bench.table import aligned

__all__ = ["Case", "Result", "as_json", "measure", "table"]


@dataclass(frozen=True, eq=False)
class Case:
    """One way to compute a result: ``run`` gives it, ``exact`` is what it should be, ``tolerance`` how near."""

    group: str
    name: str
    run: Callable[[], Tensor]
    exact: Tensor
    tokens: int
    tolerance: float


@dataclass(frozen=True)
class Result:
    """Relative error of a case and, where that is right, milliseconds (median, quartiles) and tokens a second."""

    group: str
    name: str
    error: float
    seconds: list[float] | None
    ms: float | None
    low_ms: float | None
    high_ms: float | None
    tokens_per_s: float | None

    @property
    def right(self) -> bool:
        """Whether the case passed, and has a time."""
        return self.ms is not None


def measure(cases: Sequence[Case], rounds: int, clock: Callable[[], float] = time.perf_counter) -> list[Result]:
    """Run every case once, check it, then time the right ones in turn, ``rounds`` times, on the CPU by ``clock``."""
    errors = {case: _error(case) for case in cases}
    right = [case for case in cases if errors[case] <= case.tolerance]
    watch = stopwatch(cases[0].exact.device, clock)
    samples = dict(zip(right, interleave([case.run for case in right], watch, rounds), strict=True))
    return [_result(case, errors[case], samples.get(case)) for case in cases]


def table(results: Sequence[Result]) -> str:
    """The results of one group as aligned Markdown, each beside the first that has a time."""
    first = next((result.ms for result in results if result.ms is not None), None)
    head = ["case", "median ms", "quartiles", "× first", "tokens/s", "error"]
    return f"### {results[0].group}\n\n" + aligned(head, [_cells(result, first) for result in results], left=1)


def as_json(results: Sequence[Result], device: str) -> dict[str, Any]:
    """Environment and results as JSON values."""
    return {"environment": environment(torch.device(device)), "results": [asdict(result) for result in results]}


def _cells(result: Result, first: float | None) -> list[str]:
    error = f"{result.error:.1e}"
    if result.ms is None or first is None:
        return [result.name, "wrong", "", "", "", error]
    quartiles = f"{result.low_ms:.2f} – {result.high_ms:.2f}"
    ratio, speed = f"{result.ms / first:.2f}", f"{result.tokens_per_s:,.0f}"
    return [result.name, f"{result.ms:.2f}", quartiles, ratio, speed, error]


def _error(case: Case) -> float:
    result = case.run().detach().double()
    return float((result - case.exact).norm() / case.exact.norm())


def _result(case: Case, error: float, seconds: list[float] | None) -> Result:
    if seconds is None:
        return Result(case.group, case.name, error, None, None, None, None, None)
    found = summary(seconds)
    low, middle, high = (1000 * value for value in (found.low, found.median, found.high))
    return Result(case.group, case.name, error, seconds, middle, low, high, case.tokens / found.median)
