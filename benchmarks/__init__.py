"""A small harness: cases of one group are timed in turn, so that a busy moment of the machine falls on all of them.

A number is the median over rounds, beside it the quartiles and the error of the very call that was timed, as
``|result - exact| / |exact|`` with an exact result in float64. ``python -m benchmarks --help`` says how to run it.
"""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import tubelet

__all__ = ["Case", "Result", "environment", "measure", "table"]


@dataclass(frozen=True)
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
    """Milliseconds (median and quartiles), real tokens a second, and the relative error of a case."""

    group: str
    name: str
    ms: float
    low_ms: float
    high_ms: float
    tokens_per_s: float
    error: float
    right: bool


def measure(cases: Sequence[Case], rounds: int) -> list[Result]:
    """Warm every case up once, check it, then time all of them in turn, ``rounds`` times."""
    errors = [_error(case) for case in cases]
    seconds: list[list[float]] = [[] for _ in cases]
    for number in range(rounds):
        for place in range(len(cases)):
            chosen = (place + number) % len(cases)  # every case follows every other one in turn
            seconds[chosen].append(_seconds(cases[chosen]))
    return [_result(case, times, error) for case, times, error in zip(cases, seconds, errors, strict=True)]


def table(results: Sequence[Result]) -> str:
    """The results as aligned text, groups apart, each beside the first case of its group."""
    lines, first = [], {}
    for result in results:
        if result.group not in first:
            first[result.group] = result.ms
            header = f"{'case':<24}{'median ms':>11}{'quartiles':>18}{'× first':>9}{'tokens/s':>12}{'error':>10}"
            lines += ["", result.group, header]
        spread = f"{result.low_ms:.1f} – {result.high_ms:.1f}"
        ratio = result.ms / first[result.group]
        numbers = f"{result.ms:>11.2f}{spread:>18}{ratio:>9.2f}{result.tokens_per_s:>12,.0f}{result.error:>10.1e}"
        lines.append(f"{result.name:<24}{numbers}{'' if result.right else '  WRONG'}")
    return "\n".join(lines[1:])


def environment() -> dict[str, Any]:
    """Versions, threads and device: what a number means nothing without."""
    return {
        "tubelet": tubelet.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """Environment and results as JSON values."""
    return {"environment": environment(), "results": [asdict(result) for result in results]}


def _error(case: Case) -> float:
    result = case.run().detach().double()
    return float((result - case.exact).norm() / case.exact.norm())


def _seconds(case: Case) -> float:
    _finish(case.exact)
    began = time.perf_counter()
    case.run()
    _finish(case.exact)
    return time.perf_counter() - began


def _finish(like: Tensor) -> None:
    if like.device.type == "cuda":
        torch.cuda.synchronize(like.device)


def _result(case: Case, seconds: Sequence[float], error: float) -> Result:
    low, middle, high = (1000 * q for q in statistics.quantiles(seconds, n=4, method="inclusive"))
    right = error <= case.tolerance
    return Result(case.group, case.name, middle, low, high, 1000 * case.tokens / middle, error, right)
