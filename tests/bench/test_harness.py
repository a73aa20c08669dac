"""Samples come from a fake clock: who runs when, how often, and what is inside the time."""

import itertools
import statistics
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.bench import harness
from tubelet.bench.harness import interleave, rounds_within, stopwatch, summary


class Clock:
    """Stands still except where a call says how long it takes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, seconds: float):
        def run() -> None:
            self.log.append(name)
            self.now += seconds

        return run


def test_a_stopwatch_times_the_call_alone() -> None:
    clock = Clock()
    watch = stopwatch(torch.device("cpu"), clock)
    clock.now = 5.0
    assert watch(clock.call("a", 0.25)) == 0.25


def test_what_comes_before_is_not_timed() -> None:
    clock = Clock()
    calls = [clock.call("a", 1.0), clock.call("b", 2.0)]
    before = [clock.call("flush", 10.0), None]
    samples = interleave(calls, stopwatch(torch.device("cpu"), clock), 3, before=before)
    assert samples == [[1.0] * 3, [2.0] * 3]
    assert Counter(clock.log) == {"a": 3, "b": 3, "flush": 3}
    assert all(after == "a" for first, after in itertools.pairwise(clock.log) if first == "flush")


def test_a_span_is_divided_by_its_calls() -> None:
    clock = Clock()
    samples = interleave([clock.call("a", 0.5)], stopwatch(torch.device("cpu"), clock), 2, spans=[8])
    assert samples == [[0.5, 0.5]]
    assert clock.log == ["a"] * 16


@pytest.mark.parametrize("cases", range(1, 8))
def test_every_case_follows_every_other_equally_often(cases: int) -> None:
    clock = Clock()
    calls = [clock.call(str(i), 1.0) for i in range(cases)]
    interleave(calls, stopwatch(torch.device("cpu"), clock), 2 * cases)
    rounds = [clock.log[i : i + cases] for i in range(0, len(clock.log), cases)]
    assert all(sorted(one) == sorted(map(str, range(cases))) for one in rounds)
    follows = Counter(pair for one in rounds for pair in itertools.pairwise(one))
    assert set(follows) == set(itertools.permutations(map(str, range(cases)), 2))
    assert len(set(follows.values())) <= 1


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=30))
def test_medians_and_quartiles(samples) -> None:
    found = summary(samples)
    assert found.median == pytest.approx(statistics.median(samples))
    assert min(samples) <= found.low <= found.median <= found.high <= max(samples)


def test_rounds_fit_the_budget() -> None:
    assert rounds_within([1.0], budget=1000.0, most=20) == 20
    assert rounds_within([1.0, 1.0], budget=10.0, most=20) == 5
    assert rounds_within([60.0], budget=10.0, most=20) == 3
    assert rounds_within([60.0], budget=10.0, most=2) == 2


def test_the_flush_is_larger_than_caches() -> None:
    assert harness.cache_flusher(torch.device("cpu"))().nbytes == 1 << 28


@pytest.mark.gpu
def test_a_graph_replays_into_its_result() -> None:
    x = torch.ones(4, device="cuda")
    replay, (result,) = harness.as_graph(lambda: (x * 3,))
    x.fill_(2.0)
    replay()
    assert result.tolist() == [6.0] * 4
    seconds = interleave([replay], stopwatch(torch.device("cuda")), 3, before=[harness.cache_flusher(x.device)])
    assert min(seconds[0]) > 0
