"""Packing against brute force, against a plain best-fit reference, and against the fill targets."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.layout import Grid, TokenLayout
from tubelet.packing import fill, pack, pack_offline, pack_stream, unpack

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


def test_fill_targets_on_a_navit_mix() -> None:
    lengths = navit_mix(100_000)
    streamed, offline = list(pack_stream(lengths, BUDGET)), pack_offline(lengths, BUDGET)
    check_partition(streamed, lengths, BUDGET)
    check_partition(offline, lengths, BUDGET)
    assert fill(lengths, streamed, BUDGET) >= 0.995
    assert fill(lengths, offline, BUDGET) >= 0.999
    assert fill(lengths, streamed, BUDGET) == pytest.approx(sum(lengths) / (len(streamed) * BUDGET), rel=1e-12)


def test_stream_is_lazy_and_takes_endless_input() -> None:
    packs = pack_stream(itertools.cycle([3, 4, 6]), budget=10, open_bins=2)
    assert all(len(members) > 0 for members in itertools.islice(packs, 100))


def test_more_open_bins_hold_samples_longer() -> None:
    assert list(pack_stream([6, 5, 4, 5], 10, open_bins=1)) == [[0], [1, 2], [3]]
    assert list(pack_stream([6, 5, 4, 5], 10, open_bins=2)) == [[0, 2], [1, 3]]


def test_nothing_to_pack() -> None:
    assert list(pack_stream([], 8)) == []
    assert pack_offline([], 8) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_offline([1, 9], 8), "sample 1 has 9 tokens, more than the budget of 8"),
        (lambda: list(pack_stream([1, 9], 8)), "sample 1 has 9 tokens, more than the budget of 8"),
        (lambda: pack_offline([0], 8), "sample 0 has 0 tokens"),
        (lambda: list(pack_stream([-3], 8)), "sample 0 has -3 tokens"),
        (lambda: pack_stream([1], 0), "budget must be at least 1 token, got 0"),
        (lambda: pack_offline([1], -1), "budget must be at least 1 token, got -1"),
        (lambda: pack_stream([1], 8, open_bins=0), "open_bins must be at least 1, got 0"),
        (lambda: fill([1], [], 8), "packs is empty"),
        (lambda: fill([9], [[0]], 8), "a pack holds 9 tokens, more than the budget of 8"),
        (lambda: pack([]), "samples is empty"),
        (lambda: pack([torch.zeros(1, 2), torch.zeros(1, 3)]), r"sample 0 has \(2,\), sample 1 has \(3,\)"),
        (lambda: pack([torch.zeros(3, 2)], capacity=2), "3 tokens, more than the capacity of 2"),
        (lambda: unpack(torch.zeros(4, 2), TokenLayout.packed([Grid(1, 1, 3)])), r"\(4, 2\) .* \(3,\)"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=5), st.data())
def test_pack_and_unpack_are_inverse(sides: list[tuple[int, int, int]], data: st.DataObject) -> None:
    grids = [Grid(*side) for side in sides]
    texts = data.draw(st.lists(st.integers(0, 3), min_size=len(grids), max_size=len(grids)))
    total = sum(texts) + sum(grid.tokens for grid in grids)
    capacity = data.draw(st.none() | st.integers(total, total + 5))
    layout = TokenLayout.packed(grids, text_lengths=texts, capacity=capacity)
    samples = [torch.randn(length, 2) for length in layout.lengths]
    tokens = pack(samples, capacity)
    assert tokens.shape == (*layout.shape, 2)
    assert not tokens[total:].any()
    for restored, sample in zip(unpack(tokens, layout), samples, strict=True):
        assert torch.equal(restored, sample)


def test_unpack_of_padded_rows_leaves_the_padding() -> None:
    tokens = torch.arange(8).reshape(2, 4)
    samples = unpack(tokens, TokenLayout.padded([3, 1], n=4))
    assert [sample.tolist() for sample in samples] == [[0, 1, 2], [4]]


def test_gradients_flow_back_to_each_sample() -> None:
    samples = [torch.randn(2, 3, requires_grad=True), torch.randn(1, 3, requires_grad=True)]
    layout = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 1)], capacity=5)
    unpack(pack(samples, 5), layout)[0].square().sum().backward()
    assert samples[0].grad is not None
    assert samples[1].grad is not None
    assert torch.equal(samples[0].grad, 2 * samples[0].detach())
    assert not samples[1].grad.any()
