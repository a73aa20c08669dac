"""Packing of known sets against brute force, the fill target, and the promises of balancing."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.packing import fill, pack_offline
from tubelet.packing.exact import Remaining

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


@given(lengths_and_budget)
def test_offline_partitions_and_leaves_no_two_half_empty_packs(case: tuple[list[int], int]) -> None:
    lengths, budget = case
    packs = pack_offline(lengths, budget)
    check_partition(packs, lengths, budget)
    half_full = [
        sum(lengths[i] for i in members) for members in packs if 2 * sum(lengths[i] for i in members) <= budget
    ]
    assert len(half_full) <= 1  # two such packs would have been one


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_offline_against_the_optimum(lengths: list[int]) -> None:
    def optimum(left: tuple[int, ...], rooms: tuple[int, ...]) -> int:
        if not left:
            return len(rooms)
        placed = [(*rooms[:i], room - left[0], *rooms[i + 1 :]) for i, room in enumerate(rooms) if room >= left[0]]
        return min(optimum(left[1:], choice) for choice in [*placed, (*rooms, 7 - left[0])])

    best = optimum(tuple(lengths), ())
    assert math.ceil(sum(lengths) / 7) <= best <= len(pack_offline(lengths, 7)) <= 11 / 9 * best + 6 / 9


@given(lengths_and_budget)
def test_offline_is_best_fit_decreasing_or_fewer_packs(case: tuple[list[int], int]) -> None:
    """The loads of the packs are those of the rule said with linear searches."""
    lengths, budget = case
    loads: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, load in enumerate(loads) if load + length <= budget]
        if fitting:
            loads[max(fitting, key=loads.__getitem__)] += length
        else:
            loads.append(length)
    packs = pack_offline(lengths, budget)
    assert len(packs) <= len(loads)
    if len(packs) == len(loads):
        assert sorted(sum(lengths[i] for i in members) for members in packs) == sorted(loads)
    else:
        assert len(loads) > math.ceil(sum(lengths) / budget)


def prototype_mix(count: int) -> list[int]:
    """The mix as the measurements draw it, sample by sample."""
    rng, lengths = np.random.default_rng(0), []
    for _ in range(count):
        area, aspect = np.exp(rng.uniform(np.log(256), np.log(2048))), np.exp(rng.uniform(np.log(0.5), np.log(2)))
        sides = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        lengths.append(int(min(sides[0] * sides[1] * rng.choice([1, 1, 1, 5, 9, 17]), BUDGET)))
    return lengths


@pytest.mark.graph  # run-time type checks off, as for users
@pytest.mark.parametrize(("mix", "count"), [(prototype_mix, 10_000), (navit_mix, 10_000), (navit_mix, 100_000)])
def test_fill_target_on_the_mix(mix: Callable[[int], list[int]], count: int) -> None:
    lengths = mix(count)
    packs = pack_offline(lengths, BUDGET)
    check_partition(packs, lengths, BUDGET)
    assert fill(lengths, packs, BUDGET) >= 0.999
    assert len(packs) <= math.ceil(sum(lengths) / BUDGET) + count // 100_000


def test_rooms_are_filled_by_pairs() -> None:
    """Best fit needs three packs: 6 + 5, 4 + 4, 3 + 2; the room beside the 6 is that of a pair, 4 + 2."""
    lengths = [6, 5, 4, 4, 3, 2]
    assert pack_offline(lengths, 12) == [[0, 2, 5], [1, 3, 4]]
    assert pack_offline([700_000 * n for n in lengths], 700_000 * 12)  # no table of such lengths


@given(st.lists(st.integers(1, 12), max_size=12), st.integers(1, 30))
def test_a_pair_is_found_where_there_is_one(lengths: list[int], room: int) -> None:
    pair = Remaining(list(enumerate(lengths))).pair(room)
    sums = {tuple(sorted(two, reverse=True)) for two in itertools.combinations(lengths, 2) if sum(two) == room}
    assert pair == max(sums, default=None)


def work(packs: list[list[int]], lengths: list[int]) -> list[int]:
    return [sum(lengths[i] ** 2 for i in members) for members in packs]


@given(lengths_and_budget)
def test_balancing_keeps_its_promises(case: tuple[list[int], int]) -> None:
    lengths, budget = case
    plain, even = pack_offline(lengths, budget), pack_offline(lengths, budget, balance=True)
    check_partition(even, lengths, budget)
    assert len(even) == len(plain)
    before, after = work(plain, lengths), work(even, lengths)
    assert max(after, default=0) <= max(before, default=0)
    assert sum(w * w for w in after) <= sum(w * w for w in before)  # at equal sums and counts: the variance


def test_balancing_takes_nothing_worse() -> None:
    """Cases where spreading the most samples would raise the largest sum, or the variance."""
    for lengths, budget in (([10, 2, 6, 4, 4], 12), ([1, 9, 5, 6], 13), ([11, 3, 16, 7, 17, 1, 24, 27, 5, 23], 28)):
        before, after = (work(pack_offline(lengths, budget, balance=b), lengths) for b in (False, True))
        assert max(after) <= max(before) and np.var(after) <= np.var(before)


@pytest.mark.graph
def test_balancing_evens_out_the_work() -> None:
    mix, uniform = navit_mix(20_000), np.random.default_rng(1).integers(100, 4000, 20_000).tolist()
    for lengths, drop in ((mix, 0.85), (uniform, 0.1)):
        before, after = (work(pack_offline(lengths, BUDGET, balance=b), lengths) for b in (False, True))
        assert np.std(after) <= drop * np.std(before)
        assert sum(after) == sum(before)
    assert max(after) <= 0.75 * max(before)  # of the uniform lengths; in the mix one clip fills a pack alone


def test_arrays_are_lengths_too() -> None:
    lengths = np.array([6, 5, 4, 3, 2], dtype=np.int32)
    assert pack_offline(lengths, 10) == [[0, 2], [1, 3, 4]]
    assert pack_offline([], 8) == [] == pack_offline([], 8, balance=True)


@pytest.mark.graph  # run-time type checks off, as for users
@pytest.mark.parametrize(
    ("lengths", "budget", "message"),
    [
        ([1, 9], 8, "sample 1 has 9 tokens, more than the budget of 8"),
        ([0], 8, "sample 0 has 0 tokens"),
        ([1], -1, "budget must be at least 1 token, got -1"),
        ([1.5], 8, r"whole numbers, got float64 of shape \(1,\)"),
        ([[1, 2]], 8, r"got int64 of shape \(1, 2\)"),
    ],
)
def test_errors(lengths: list[int], budget: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_offline(lengths, budget)
