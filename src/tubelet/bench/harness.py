"""Timing calls in turn: warm-up, interleaved rounds, medians and quartiles; a CUDA graph and a cold cache where asked.

One *sample* is the seconds of one timed span, divided by the calls inside it. The cases of a group take turns in an
order in which each follows each other one equally often, so that a busy moment of the machine, a hot cache or a slow
clock falls on all of them.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Stopwatch", "Summary", "as_graph", "cache_flusher", "interleave", "rounds_within", "stopwatch", "summary"]

Call = Callable[[], Any]
Stopwatch = Callable[[Call], float]
"""Runs a call and gives the seconds it took."""

_FLUSH_BYTES = 1 << 28
"""Written between calls to empty the caches: more than the L2 of any current GPU and the L3 of most processors."""


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of samples.

    Example:
        >>> summary([1.0, 2.0, 3.0, 4.0, 5.0])
        Summary(median=3.0, low=2.0, high=4.0)
    """

    median: float
    low: float
    high: float


def summary(samples: Sequence[float]) -> Summary:
    """Median and quartiles; a single sample is all three.

    Example:
        >>> summary([2.0]).median
        2.0
    """
    if len(samples) == 1:
        return Summary(samples[0], samples[0], samples[0])
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(middle, low, high)


def interleave(
    calls: Sequence[Call],
    watch: Stopwatch,
    rounds: int,
    spans: Sequence[int] | None = None,
    before: Sequence[Call | None] | None = None,
) -> list[list[float]]:
    """Seconds a call, ``rounds`` samples of each, taken in turn.

    Args:
        calls: what is timed; each should have run before (compilation, allocation).
        watch: times one span.
        rounds: samples of each call.
        spans: how many times each call runs in a span; None for once.
        before: what runs before each span, outside the time: the call itself for a warm cache, a flush for a cold one.

    Example:
        >>> ticks = iter(range(100))
        >>> interleave([lambda: None, lambda: None], lambda call: float(next(ticks)), rounds=2)
        [[0.0, 3.0], [1.0, 2.0]]
    """
    spans = [1] * len(calls) if spans is None else spans
    before = [None] * len(calls) if before is None else before
    samples: list[list[float]] = [[] for _ in calls]
    for number in range(rounds):
        for chosen in _order(len(calls), number):
            prepare = before[chosen]
            if prepare is not None:
                prepare()
            samples[chosen].append(watch(_repeated(calls[chosen], spans[chosen])) / spans[chosen])
    return samples


def rounds_within(seconds: Sequence[float], budget: float, most: int, least: int = 3) -> int:
    """How many rounds of calls that take ``seconds`` fit into ``budget`` seconds, from ``least`` to ``most``.

    Example:
        >>> rounds_within([0.5, 1.5], budget=12.0, most=20)
        6
    """
    return max(min(least, most), min(most, int(budget / max(sum(seconds), 1e-9))))


def stopwatch(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> Stopwatch:
    """Times one call: CUDA by events on the current stream, anything else by ``clock``.

    Args:
        device: where the call runs.
        clock: gives seconds.

    Example:
        >>> ticks = iter([1.0, 3.5])
        >>> stopwatch(torch.device("cpu"), clock=lambda: next(ticks))(lambda: None)
        2.5
    """

    def on_host(call: Call) -> float:
        began = clock()
        call()
        return clock() - began

    def on_cuda(call: Call) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1000

    return on_cuda if device.type == "cuda" else on_host


def cache_flusher(device: torch.device) -> Call:
    """A call that fills 256 MiB on ``device``, so that what is called next finds its operands in memory.

    Example:
        >>> callable(cache_flusher(torch.device("meta")))
        True
    """
    return torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device).zero_


def as_graph(call: Call) -> tuple[Call, Any]:
    """A call as a CUDA graph: its replay, and the result whose memory each replay fills.

    Raises:
        RuntimeError: the call does what a graph cannot hold, such as a synchronisation.

    Example:
        >>> if torch.cuda.is_available():
        ...     replay, result = as_graph(lambda: torch.ones(2, device="cuda") + 1)
        ...     replay()
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph.replay, result


def _repeated(call: Call, times: int) -> Call:
    if times == 1:
        return call

    def repeated() -> None:
        for _ in range(times):
            call()

    return repeated


def _order(cases: int, number: int) -> list[int]:
    """Round ``number`` of a Williams design: over all rounds every ordered pair of neighbours is equally frequent."""
    zigzag = [(place + 1) // 2 if place % 2 else -place // 2 for place in range(cases)]
    turned = [(step + number) % cases for step in zigzag]
    return turned[::-1] if cases % 2 and number // cases % 2 else turned
