"""Densities of training times against distribution functions in closed form, and diffusers' maps."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from tubelet.diffusion import (
    EDM,
    VP,
    Density,
    Process,
    RectifiedFlow,
    cosmap,
    discrete,
    log_normal,
    logit_normal,
    mode,
    stratified,
    uniform,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def mode_cdf(t: float, scale: float) -> float:
    """``P(T <= t)``: the map of SD3's equation 20 falls with u, so that u is at least its root."""
    low, high = 0.0, 1.0
    for _ in range(60):
        u = (low + high) / 2
        value = 1 - u - scale * (math.cos(math.pi * u / 2) ** 2 - 1 + u)
        low, high = (u, high) if value > t else (low, u)
    return 1 - low


DENSITIES: list[tuple[Callable[[Density], Density], Callable[[float], float]]] = [
    (lambda base: base, lambda t: t),
    (lambda base: logit_normal(base=base), lambda t: normal_cdf(math.log(t / (1 - t)))),
    (lambda base: logit_normal(0.5, 2.0, base), lambda t: normal_cdf((math.log(t / (1 - t)) - 0.5) / 2)),
    (lambda base: discrete(4, base), lambda t: math.floor(4 * t) / 4),
    (lambda base: mode(1.29, base), partial(mode_cdf, scale=1.29)),
    (lambda base: mode(-0.7, base), partial(mode_cdf, scale=-0.7)),
    (lambda base: cosmap(base), lambda t: 2 / math.pi * math.atan(t / (1 - t))),
    (lambda base: log_normal(EDM(8.0), base=base), lambda t: normal_cdf((math.log(8 * t) + 1.2) / 1.2)),
    (
        lambda base: log_normal(RectifiedFlow(), 0.4, 0.9, base),
        lambda t: normal_cdf((math.log(t / (1 - t)) - 0.4) / 0.9),
    ),
]


@pytest.mark.parametrize(("make", "cdf"), DENSITIES)
def test_densities_have_their_distribution(make: Callable[[Density], Density], cdf: Callable[[float], float]) -> None:
    draws = Process(density=make(uniform)).draw_times((50, 80), seeded(), dtype=torch.float64)
    # one draw in each of 4000 strata leaves two draws of doubt
    even = Process(density=make(stratified)).draw_times((4000,), seeded(), dtype=torch.float64)
    assert draws.shape == (50, 80)
    assert 0 <= float(draws.min()) <= float(draws.max()) <= 1
    for t in (0.1, 0.3, 0.55, 0.8, 0.95):
        # five standard errors of a share of 4000 draws
        assert abs(float((draws <= t).double().mean()) - cdf(t)) < 5 * 0.5 / 63
        assert abs(float((even <= t).double().mean()) - cdf(t)) < 2.5 / 4000


def test_cosmap_has_the_density_that_diffusers_weighs_by() -> None:
    t, h = torch.linspace(0.05, 0.95, 10, dtype=torch.float64), 1e-6
    cdf = lambda time: 2 / math.pi * torch.atan(time / (1 - time))  # noqa: E731
    density = (cdf(t + h) - cdf(t - h)) / (2 * h)
    torch.testing.assert_close(density, compute_loss_weighting_for_sd3("cosmap", t), rtol=1e-6, atol=0)


def test_mode_equals_diffusers() -> None:
    theirs = compute_density_for_timestep_sampling("mode", 50, mode_scale=1.29, generator=seeded(3))
    u = torch.rand(50, generator=seeded(3)).double()
    ours = mode(1.29, base=lambda shape, generator=None: u)((50,))
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-5, atol=1e-6)


def test_stratified_times_fill_every_part_in_random_order() -> None:
    times = stratified((3, 7), seeded())
    assert times.shape == (3, 7)
    parts = (times.flatten() * 21).floor()
    assert torch.equal(parts.sort().values, torch.arange(21.0).double())
    assert not torch.equal(parts, parts.sort().values)
    assert torch.equal(times, stratified((3, 7), seeded()))
    # each place is uniform on its own: the order is drawn anew
    first = torch.stack([stratified((4,), seeded(i))[0] for i in range(400)])
    assert abs(float(first.mean()) - 0.5) < 5 * 0.289 / 20
    assert stratified((0,), seeded()).shape == (0,)


def test_discrete_times_are_the_indices_of_a_path() -> None:
    path = VP.linear(50)
    t = Process(path=path, density=discrete(50)).draw_times(5000, seeded())
    assert torch.equal(path.index(t).unique(), torch.arange(50))
    torch.testing.assert_close(path.time(path.index(t)), t)
    ends = discrete(3, base=lambda shape, generator=None: torch.tensor([0.0, 1.0]).double())((2,))
    assert ends.tolist() == pytest.approx([1 / 3, 1.0])


def test_levels_beyond_a_path_are_its_last() -> None:
    times = log_normal(EDM(0.5), mean=0.0)((1000,), seeded())
    assert float(times.max()) == 1
    assert 0.6 < float((times == 1).double().mean()) < 0.8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: logit_normal(0.0, -1.0), "std must be above 0 and finite, got -1.0"),
        (lambda: logit_normal(0.0, math.inf), "std must be above 0 and finite, got inf"),
        (lambda: logit_normal(math.nan, 1.0), "mean must be finite, got nan"),
        (lambda: log_normal(EDM(), 0.0, 0.0), "std must be above 0 and finite, got 0.0"),
        (lambda: mode(2.0), r"scale must lie in \[-1, 1.7519\], got 2.0"),
        (lambda: discrete(0), "steps must be at least 1, got 0"),
    ],
)
def test_bad_numbers_are_refused(make: Callable[[], Density], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
