"""Loss weights: the same importance for every prediction, the papers' formulas, diffusers' ratios, finite ends."""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st

from tubelet.diffusion import (
    EDM,
    VP,
    VPSDE,
    Importance,
    Normalized,
    Prediction,
    Process,
    RectifiedFlow,
    constant,
    edm_weight,
    from_x0_eps,
    min_snr,
    noise_ratio,
    p2,
    truncated_snr,
    weighted,
)
from tubelet.diffusion.predictions import Coefficients
from tubelet.protocols import Path

PATHS = [RectifiedFlow(), VP.linear(), EDM(20.0), VPSDE(), Normalized(RectifiedFlow())]
IMPORTANCES = [min_snr(5.0), p2(0.7, 2.0), edm_weight(0.5), truncated_snr]


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("path", PATHS)
@given(t=st.floats(0.01, 0.99))
def test_a_loss_is_the_same_whatever_is_predicted(importance: Importance, path: Path, t: float) -> None:
    """One wrong guess of the data at a fixed state, seen as an error of each prediction."""
    time = torch.tensor(t, dtype=torch.float64)
    at = Coefficients(path.alpha(time), path.sigma(time), path.alpha_dot(time), path.sigma_dot(time))
    x0, eps, wrong = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    implied = (at.alpha * x0 + at.sigma * eps - at.alpha * wrong) / at.sigma
    losses = []
    for kind in get_args(Prediction):
        error = from_x0_eps(kind, wrong, implied, at) - from_x0_eps(kind, x0, eps, at)
        losses.append(float(weighted(importance, path, kind)(time) * error.square().mean()))
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-8)


def snr_of(path: Path, t: torch.Tensor) -> torch.Tensor:
    return noise_ratio(path, t) ** -2


@pytest.mark.parametrize("path", PATHS)
def test_weights_of_the_papers(path: Path) -> None:
    t = torch.tensor([0.03, 0.2, 0.6, 0.97], dtype=torch.float64)
    snr = snr_of(path, t)
    for importance, kind, expected in (
        (min_snr(5.0), "x0", snr.clamp(max=5.0)),
        (min_snr(5.0), "eps", snr.clamp(max=5.0) / snr),
        (p2(0.7, 2.0), "eps", (2.0 + snr) ** -0.7),
        (edm_weight(0.5), "x0", (1 / snr + 0.25) / (0.25 / snr)),
        (truncated_snr, "x0", snr.clamp(min=1.0)),
    ):
        torch.testing.assert_close(weighted(importance, path, kind)(t), expected, rtol=1e-9, atol=0)


def test_min_snr_equals_diffusers_ratios() -> None:
    path, scheduler = VP.linear(), DDPMScheduler(beta_start=1e-4, beta_end=0.02)
    index = torch.tensor([3, 200, 500, 999])
    snr = compute_snr(scheduler, index)
    capped = torch.stack([snr, 5 * torch.ones_like(snr)]).min(0).values
    t = path.time(index)
    torch.testing.assert_close(Process(path=path, prediction="eps").weighted_by(min_snr()).weight(t), capped / snr)
    torch.testing.assert_close(
        Process(path=path, prediction="v").weighted_by(min_snr()).weight(t), capped / (snr + 1), rtol=1e-4, atol=0
    )


def test_velocity_of_the_straight_path_is_plain_where_the_importance_is_one() -> None:
    t = torch.linspace(0, 1, 5)
    torch.testing.assert_close(weighted(lambda at: torch.ones_like(at.alpha), RectifiedFlow(), "velocity")(t), t**0)
    assert torch.equal(constant(t), t**0)


@pytest.mark.parametrize("kind", get_args(Prediction))
@pytest.mark.parametrize("importance", IMPORTANCES)
def test_ends_are_limits_where_there_are_some_and_finite(importance: Importance, kind: Prediction) -> None:
    weight = weighted(importance, VP.linear().zero_terminal_snr(), kind)
    assert bool(weight(torch.tensor([0.0, 1.0])).isfinite().all())
    end, near = weight(torch.tensor([1.0, 1 - 1e-9], dtype=torch.float64))
    # the noise at zero signal-to-noise ratio tells nothing of the data, so what weighs the data weighs it infinitely
    if kind == "eps" and importance in IMPORTANCES[2:]:
        assert float(end) > 1e20
    else:
        torch.testing.assert_close(end, near, rtol=1e-4, atol=1e-4)


def test_zero_snr_in_numbers() -> None:
    path, one = VP.linear().zero_terminal_snr(), torch.ones(1)
    assert weighted(min_snr(), path, "eps")(one).item() == 1
    assert weighted(min_snr(), path, "v")(one).item() == pytest.approx(0, abs=1e-12)
    assert weighted(min_snr(4.0), path, "x0")(0 * one).item() == 4


def test_a_process_weighs_its_loss_and_keeps_the_rest() -> None:
    process = Process(path=VP.linear(), prediction="v")
    weighed = process.weighted_by(p2())
    assert (weighed.path, weighed.prediction) == (process.path, process.prediction)
    t = torch.tensor([0.1, 0.9])
    torch.testing.assert_close(weighed.weight(t), weighted(p2(), process.path, "v")(t))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: min_snr(0.0), "gamma must be above 0, got 0.0"),
        (lambda: p2(-1.0), "gamma must be at least 0 and k above 0, got -1.0 and 1.0"),
        (lambda: edm_weight(math.inf), "deviation must be above 0 and finite, got inf"),
    ],
)
def test_bad_numbers_are_refused(make: Callable[[], Importance], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.graph  # run-time shape checks off, as for users
def test_unknown_predictions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prediction must be one of \('eps', .*, got 'noise'"):
        weighted(min_snr(), RectifiedFlow(), "noise")(torch.ones(1))
