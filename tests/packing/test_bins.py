"""Streams against a plain best-fit rule and against the fill target."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.packing import fill, pack_stream

BUDGET = 32768
lengths_and_budget = st.integers(1, 40).flatmap(
    lambda budget: st.tuples(st.lists(st.integers(1, budget), max_size=60), st.just(budget))
)


def navit_mix(count: int) -> list[int]:
    """Token counts of images and clips: log-uniform area and aspect, a few durations."""
    rng = np.random.default_rng(0)
    area = np.exp(rng.uniform(np.log(256), np.log(2048), count))
    aspect = np.exp(rng.uniform(np.log(0.5), np.log(2), count))
    frames = rng.choice([1, 1, 1, 5, 9, 17], count)
    height, width = np.sqrt(area * aspect).round(), np.sqrt(area / aspect).round()
    return np.minimum(height * width * frames, BUDGET).astype(int).tolist()


def check_partition(packs: list[list[int]], lengths: list[int], budget: int) -> None:
    assert sorted(itertools.chain(*packs)) == list(range(len(lengths)))
    assert all(members == sorted(members) and members for members in packs)
    assert all(sum(lengths[i] for i in members) <= budget for members in packs)


def plain_stream(lengths: list[int], budget: int, open_bins: int) -> list[list[int]]:
    """The rule of pack_stream, said with a list of packs and linear searches (ties are left to the packs' order)."""
    done: list[list[int]] = []
    open_: list[tuple[int, list[int]]] = []
    for index, length in enumerate(lengths):
        fitting = [entry for entry in open_ if entry[0] >= length]
        if fitting:
            room, members = min(fitting, key=lambda entry: entry[0])
            open_ = [entry for entry in open_ if entry[1] is not members]
        else:
            room, members = budget, []
            if len(open_) == open_bins:
                fullest = min(open_, key=lambda entry: entry[0])
                open_ = [entry for entry in open_ if entry[1] is not fullest[1]]
                done.append(fullest[1])
        members.append(index)
        if room == length:
            done.append(members)
        else:
            open_.append((room - length, members))
    return done + [members for _, members in sorted(open_, key=lambda entry: entry[0])]


@given(lengths_and_budget, st.integers(1, 5))
def test_stream_partitions_and_matches_the_plain_rule(case: tuple[list[int], int], open_bins: int) -> None:
    lengths, budget = case
    packs = list(pack_stream(lengths, budget, open_bins))
    check_partition(packs, lengths, budget)
    plain = plain_stream(lengths, budget, open_bins)
    assert [sum(lengths[i] for i in members) for members in packs] == [sum(lengths[i] for i in p) for p in plain]


def test_fill_target_on_the_mix() -> None:
    for count in (10_000, 100_000):
        lengths = navit_mix(count)
        packs = list(pack_stream(lengths, BUDGET))
        check_partition(packs, lengths, BUDGET)
        assert fill(lengths, packs, BUDGET) >= 0.995
        assert fill(lengths, packs, BUDGET) == pytest.approx(sum(lengths) / (len(packs) * BUDGET), rel=1e-12)


def test_stream_is_lazy_and_takes_endless_input() -> None:
    packs = pack_stream(itertools.cycle([3, 4, 6]), budget=10, open_bins=2)
    assert all(len(members) > 0 for members in itertools.islice(packs, 100))


def test_more_open_bins_hold_samples_longer() -> None:
    assert list(pack_stream([6, 5, 4, 5], 10, open_bins=1)) == [[0], [1, 2], [3]]
    assert list(pack_stream([6, 5, 4, 5], 10, open_bins=2)) == [[0, 2], [1, 3]]


def test_nothing_to_pack() -> None:
    assert list(pack_stream([], 8)) == []


def test_full_packs_leave_at_once() -> None:
    seen = []

    def lengths() -> Iterator[int]:
        for number, length in enumerate([4, 8, 4, 8]):
            seen.append(number)
            yield length

    packs = pack_stream(lengths(), 8, open_bins=2)
    assert [next(packs), list(seen)] == [[1], [0, 1]]
    assert [next(packs), list(seen)] == [[0, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: list(pack_stream([1, 9], 8)), "sample 1 has 9 tokens, more than the budget of 8"),
        (lambda: list(pack_stream([-3], 8)), "sample 0 has -3 tokens"),
        (lambda: pack_stream([1], 0), "budget must be at least 1 token, got 0"),
        (lambda: pack_stream([1], 8, open_bins=0), "open_bins must be at least 1, got 0"),
        (lambda: fill([1], [], 8), "packs is empty"),
        (lambda: fill([9], [[0]], 8), "a pack holds 9 tokens, more than the budget of 8"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
