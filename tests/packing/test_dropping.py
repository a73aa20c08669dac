"""Token dropping: the laws against their closed forms, and which tokens stay."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tubelet.layout import Grid, TokenLayout
from tubelet.packing import BetaDrop, ConstantDrop, LengthDrop, ScheduledDrop, drop_tokens

DRAWS = 4000
SIGMAS = 5


def rates(law: object, tokens: int = 100) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([law(tokens, rng) for _ in range(DRAWS)])  # type: ignore[operator]


def check_law(draws: np.ndarray, law: object) -> None:
    mean, variance, kurtosis = law.stats(moments="mvk")  # type: ignore[attr-defined]
    assert abs(draws.mean() - mean) <= SIGMAS * np.sqrt(variance / len(draws))
    assert abs(draws.var() - variance) <= SIGMAS * variance * np.sqrt((kurtosis + 2) / len(draws))
    assert stats.kstest(draws, law.cdf).pvalue > 1e-4  # type: ignore[attr-defined]


@pytest.mark.parametrize(("mean", "most"), [(0.5, 0.95), (0.2, 0.8), (0.7, 0.9)])
def test_beta_rates(mean: float, most: float) -> None:
    mu = mean / most
    variance = 0.3 * mu * (1 - mu)
    total = mu * (1 - mu) / variance - 1
    draws = rates(BetaDrop(mean, most))
    check_law(draws, stats.beta(mu * total, (1 - mu) * total, scale=most))
    assert abs(draws.mean() - mean) <= SIGMAS * most * np.sqrt(variance / DRAWS)
    assert draws.max() <= most


@pytest.mark.parametrize(("tokens", "centre"), [(10, 0.2), (16, 0.2), (156, 0.35), (296, 0.5), (576, 0.8), (900, 0.8)])
def test_rates_grow_with_the_length(tokens: int, centre: float) -> None:
    draws = rates(LengthDrop(16, 576, 0.2, 0.8, deviation=0.02), tokens)
    check_law(draws, stats.truncnorm(-2, 2, loc=centre, scale=0.02))
    assert np.abs(draws - centre).max() <= 0.04 + 1e-12


def test_rates_stay_possible_at_the_ends() -> None:
    law = LengthDrop(1, 2, 0.0, 0.99, deviation=0.1)
    assert rates(law, 1).min() == 0 and 0.99 < rates(law, 2).max() < 1


@given(st.integers(1, 1000), st.floats(0, 0.99), st.floats(0, 0.99), st.floats(0.1, 30))
def test_the_schedule_is_a_sigmoid_between_its_ends(steps: int, start: float, end: float, slope: float) -> None:
    schedule = ScheduledDrop(steps, start, end, slope)

    def sigmoid(z: float) -> float:
        return 1 / (1 + np.exp(-z))

    low, high = sigmoid(-slope / 2), sigmoid(slope / 2)
    for step in {0, steps // 3, steps // 2, steps}:
        share = (sigmoid(slope * (step / steps - 0.5)) - low) / (high - low)
        assert schedule.at(step).rate == pytest.approx(start + (end - start) * share, abs=1e-9)
    assert schedule.at(0).rate == start and schedule.at(steps).rate == schedule.at(2 * steps).rate
    got = [schedule.at(step).rate for step in range(0, steps + 1, max(steps // 20, 1))]
    assert got == sorted(got, reverse=start > end)


@st.composite
def layouts(draw: st.DrawFn) -> Callable[[], tuple[TokenLayout, list[int]]]:
    sides = draw(st.lists(st.none() | st.tuples(*[st.integers(1, 4)] * 3), min_size=1, max_size=4))
    texts = [draw(st.integers(0 if side else 1, 3)) for side in sides]
    spare = draw(st.none() | st.integers(0, 4))
    seeds = draw(st.lists(st.integers(0, 9), min_size=len(sides), max_size=len(sides)))

    def make() -> tuple[TokenLayout, list[int]]:
        grids = [Grid(*side) if side else None for side in sides]
        total = sum(texts) + sum(grid.tokens for grid in grids if grid)
        return TokenLayout.packed(grids, texts, None if spare is None else total + spare), seeds

    return make


Case = Callable[[], tuple[TokenLayout, list[int]]]


@given(layouts(), st.floats(0, 0.99), st.booleans())
def test_what_stays(case: Case, rate: float, text: bool) -> None:
    """As many tokens as the rate says, ascending, never padding, every text token unless text may go."""
    layout, seeds = case()
    kept = drop_tokens(layout, ConstantDrop(rate), seeds, text=text)
    after = layout.keep(kept)  # refuses padding, and places that do not ascend
    for count, length, words in zip(after.lengths, layout.lengths, layout.text_lengths, strict=True):
        stay = 0 if text else words
        assert count == stay + (max(round((length - stay) * (1 - rate)), 1) if length > stay else 0)
    if not text:
        places = torch.arange(layout.shape[0])[layout.on("cpu").kind == 1]
        assert set(places.tolist()) <= set(kept.tolist())


@given(layouts(), st.integers(0, 3))
def test_a_sample_does_not_depend_on_its_neighbours(case: Case, chosen: int) -> None:
    layout, seeds = case()
    chosen %= len(seeds)
    law = BetaDrop(0.5)
    together = layout.keep(drop_tokens(layout, law, seeds)).kept
    alone = TokenLayout.packed([layout.grids[chosen]], [layout.text_lengths[chosen]])
    assert together is not None
    assert alone.keep(drop_tokens(alone, law, [seeds[chosen]])).kept == (together[chosen],)


def test_every_token_is_as_likely_to_stay() -> None:
    """Each of 20 tokens stays with probability 1/4, and each pair together with 5/20 · 4/19."""
    layout, draws = TokenLayout.packed([Grid(1, 4, 5)]), 4000
    stays = np.zeros((draws, 20))
    for seed in range(draws):
        stays[seed, drop_tokens(layout, ConstantDrop(0.75), [seed]).numpy()] = 1
    assert (stays.sum(1) == 5).all()
    pairs = stays.T @ stays / draws
    expected = np.full((20, 20), 5 / 20 * 4 / 19)
    np.fill_diagonal(expected, 5 / 20)
    assert (np.abs(pairs - expected) <= SIGMAS * np.sqrt(expected * (1 - expected) / draws)).all()


def test_dropping_twice_and_from_padded_rows() -> None:
    layout = TokenLayout.padded([6, 3], 8)
    kept = drop_tokens(layout, ConstantDrop(0.5), [0, 1], text=True)  # plain rows count as text
    assert layout.keep(kept).lengths == (3, 2)
    packed = TokenLayout.packed([Grid(1, 2, 4), Grid(1, 1, 4)], [2, 0])
    once = packed.keep(drop_tokens(packed, ConstantDrop(0.5), [0, 1]))
    twice = once.keep(drop_tokens(once, ConstantDrop(0.5), [2, 3]))
    assert once.lengths == (6, 2) and twice.lengths == (4, 1)
    assert twice.kept is not None and once.kept is not None
    assert all(set(late) <= set(early) for late, early in zip(twice.kept, once.kept, strict=True))


LAYOUT = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 2)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConstantDrop(1.0), "rate must be at least 0 and below 1, got 1.0"),
        (lambda: BetaDrop(0.9, most=0.8), "mean=0.9, most=0.8"),
        (lambda: BetaDrop(0.5, spread=1.0), "got 1.0"),
        (lambda: LengthDrop(5, 5, 0.1, 0.2), "got 5 and 5"),
        (lambda: LengthDrop(1, 5, 0.1, 1.2), "most must be .* got 1.2"),
        (lambda: LengthDrop(1, 5, 0.1, 0.2, deviation=-0.1), "got -0.1"),
        (lambda: ScheduledDrop(0), "got 0 and 10.0"),
        (lambda: ScheduledDrop(10, end=-0.1), "end must be .* got -0.1"),
        (lambda: ScheduledDrop(10).at(-1), "got -1 of 10"),
        (lambda: drop_tokens(LAYOUT, ConstantDrop(0.5), [1]), "seeds has 1 entries, but the layout has 2 samples"),
        (lambda: drop_tokens(LAYOUT, ConstantDrop(0.5), [1, -4]), "got -4"),
        (lambda: drop_tokens(LAYOUT, lambda tokens, rng: 1.5, [1, 2]), "rate must be .* got 1.5"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
