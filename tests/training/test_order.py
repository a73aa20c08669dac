"""Order and noise depend on (seed, step) only."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.training import batch_indices, interleave, step_generator


def test_streams_and_steps_and_seeds_differ():
    keys = [(seed, step, stream) for seed in range(3) for step in range(3) for stream in range(3)]
    draws = {key: tuple(torch.rand(4, generator=step_generator(*key)).tolist()) for key in keys}
    assert len(set(draws.values())) == len(keys)


def test_neighbouring_steps_are_uncorrelated():
    first = torch.stack([torch.randn(64, generator=step_generator(0, s)) for s in range(256)])
    correlation = (first[:-1] * first[1:]).mean()
    assert abs(correlation.item()) < 4 / (255 * 64) ** 0.5


@given(seed=st.integers(0, 5), batch=st.integers(1, 12), size=st.integers(1, 9), epochs=st.integers(1, 3))
def test_every_epoch_is_a_permutation(seed, batch, size, epochs):
    steps = -(-epochs * size // batch)
    stream = torch.cat([batch_indices(seed, step, batch, size) for step in range(steps)])[: epochs * size]
    for epoch in stream.reshape(epochs, size):
        assert epoch.sort().values.tolist() == list(range(size))


def test_steps_may_be_asked_in_any_order_and_batches_divide_one_stream():
    forward = [batch_indices(3, step, 4, 10) for step in range(8)]
    backward = [batch_indices(3, step, 4, 10) for step in reversed(range(8))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert torch.equal(torch.cat(forward), torch.cat([batch_indices(3, step, 16, 10) for step in range(2)]))


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = batch_indices(0, 0, 100, 100), batch_indices(0, 1, 100, 100)
    assert not torch.equal(first, second)
    assert not torch.equal(first, batch_indices(1, 0, 100, 100))
    assert not torch.equal(first, torch.arange(100))


def test_a_batch_may_be_changed_in_place():
    batch_indices(0, 0, 5, 5).zero_()
    assert batch_indices(0, 0, 5, 5).sort().values.tolist() == list(range(5))


def test_bad_arguments():
    with pytest.raises(ValueError, match="got -1, 0, 0"):
        step_generator(-1, 0)
    with pytest.raises(ValueError, match="batch and size must be at least 1, got 0 and 3"):
        batch_indices(0, 0, 0, 3)
    with pytest.raises(ValueError, match="seed and step must not be negative, got 0 and -2"):
        batch_indices(0, -2, 1, 3)


@given(seed=st.integers(0, 5), turns=st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any))
def test_sources_take_their_turns(seed, turns):
    rounds = [[interleave(seed, r * sum(turns) + i, turns) for i in range(sum(turns))] for r in range(3)]
    for taken in rounds:
        assert [sum(source == s for s, _ in taken) for source in range(len(turns))] == turns
    for source in range(len(turns)):
        assert [turn for taken in rounds for s, turn in taken if s == source] == list(range(3 * turns[source]))


def test_rounds_have_orders_of_their_own():
    orders = {tuple(interleave(seed, 8 * r + i, (3, 5))[0] for i in range(8)) for seed in range(2) for r in range(4)}
    assert len(orders) > 4


def test_turns_that_cannot_be_are_refused():
    for turns in ((), (0, 0), (2, -1)):
        with pytest.raises(ValueError, match=r"turns must not be negative .* got \("):
            interleave(0, 0, turns)
