"""Per-sample noise: packed equals separate, and it is standard normal."""

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.diffusion import further_seeds, noise_like, noise_stream
from tubelet.layout import Grid, TokenLayout

grids = st.builds(Grid, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


@given(st.lists(st.tuples(grids, st.integers(0, 2**40)), min_size=1, max_size=5), st.integers(0, 7), st.integers(1, 5))
def test_packed_equals_separate(samples: list[tuple[Grid, int]], spare: int, channels: int) -> None:
    sides, seeds = zip(*samples, strict=True)
    total = sum(g.tokens for g in sides)
    layout = TokenLayout.packed(sides, capacity=total + spare)
    stream = noise_stream(layout, channels, seeds)
    for draw in range(2):
        together = next(stream)
        assert together.shape == (total + spare, channels)
        for start, grid, seed in zip(layout.starts, sides, seeds, strict=True):
            own = noise_stream(TokenLayout.dense(1, grid), channels, [seed])
            alone = next(itertools.islice(own, draw, None))[0]
            assert torch.equal(together[start : start + grid.tokens], alone)
        assert bool((together[total:] == 0).all())


def test_padded_rows_have_noise_where_tokens_are() -> None:
    layout = TokenLayout.padded([2, 4], n=4)
    noise = noise_like(layout, 3, [5, 6])
    assert torch.equal((noise != 0).all(-1), layout.on("cpu").valid)


def test_noise_is_standard_normal_and_differs_between_samples_and_draws() -> None:
    layout = TokenLayout.dense(2, Grid(4, 16, 16))
    stream = noise_stream(layout, 16, [1, 2], dtype=torch.float64)
    start, first, second = noise_like(layout, 16, [1, 2], dtype=torch.float64), next(stream), next(stream)
    for values in (start[0], first[0], first[1], second[0]):
        assert abs(float(values.mean())) < 0.03
        assert abs(float(values.std()) - 1) < 0.03
    for a, b in ((first[0], first[1]), (first[0], second[0]), (start[0], first[0]), (start[1], second[1])):
        assert abs(float((a * b).mean())) < 0.04


def test_a_stream_keeps_its_place_when_it_is_pickled_or_copied() -> None:
    stream = noise_stream(TokenLayout.packed([Grid(1, 2, 2), Grid(2, 1, 1)]), 3, [1, 2])
    next(stream)
    pickled, copied = pickle.loads(pickle.dumps(stream)), copy.deepcopy(stream)
    for _ in range(2):
        drawn = next(stream)
        assert torch.equal(next(pickled), drawn)
        assert torch.equal(next(copied), drawn)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    noise_like(TokenLayout.packed([Grid(1, 2, 2)]), 2, [0])
    assert torch.equal(before, torch.get_rng_state())


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="seeds has 1 entries, but the layout has 2 samples"):
        noise_stream(TokenLayout.packed([Grid(1, 1, 1)] * 2), 2, [0])


def test_every_part_of_a_sample_draws_other_noise() -> None:
    """Though a generator reads 32 bits of its seed, and seeds of neighbours are neighbours."""
    layout, seeds = TokenLayout.packed([Grid(1, 2, 2)] * 3), [0, 1, 2**32 + 1]
    assert further_seeds(seeds, 0) == seeds
    parts = [further_seeds(seeds, part) for part in (-1, 0, 1, 2)]
    assert parts[2] == further_seeds(seeds, 1) and all(0 <= seed < 2**32 for seed in parts[2])
    drawn = torch.cat([noise_like(layout, 2, part).view(3, -1) for part in parts])
    assert len(drawn.unique(dim=0)) == 4 * 3 - 1  # 1 and 2**32 + 1 themselves are one seed to the generator
    assert further_seeds([5], 1) != further_seeds([6], 1)
