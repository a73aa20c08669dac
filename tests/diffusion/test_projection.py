"""Projected data: exact for Gaussians, the same whatever is predicted, and never looked at where there is no noise."""

from functools import partial
from typing import get_args

import pytest
import torch

from tubelet.diffusion import (
    VP,
    Known,
    Prediction,
    Process,
    RectifiedFlow,
    euler_step,
    from_x0_eps,
    heun_step,
    level,
    projected,
    sample,
)
from tubelet.diffusion.predictions import coefficients
from tubelet.layout import Rows
from tubelet.protocols import Path


def gaussian(process: Process, mean: float, deviation: float):
    """The exact prediction for independent Gaussian data."""

    def denoiser(x: torch.Tensor, t: Rows) -> torch.Tensor:
        at = coefficients(process.path, t, x)
        variance = (at.alpha * deviation) ** 2 + at.sigma**2
        x0 = mean + at.alpha * deviation**2 / variance * (x - at.alpha * mean)
        eps = at.sigma / variance * (x - at.alpha * mean)
        return from_x0_eps(process.prediction, x0, eps, at)

    return denoiser


@pytest.mark.parametrize("path", [RectifiedFlow(), VP.linear()])
@pytest.mark.parametrize("kind", get_args(Prediction))
def test_the_projected_data_are_what_the_prediction_implies(path: Path, kind: Prediction) -> None:
    """At a level between data and noise: x0 is the projection, and data and noise still make the state."""
    process = Process(path=path, prediction=kind)
    x, t = torch.randn(6, 3, dtype=torch.float64), Rows(torch.tensor([0.3], dtype=torch.float64))
    denoiser = projected(gaussian(process, 1.0, 0.5), lambda x0: 2 * x0 + 1, process)
    plain, _ = process.split(gaussian(process, 1.0, 0.5)(x, t), x, t)
    x0, eps = process.split(denoiser(x, t), x, t)
    at = coefficients(path, t, x)
    torch.testing.assert_close(x0, 2 * plain + 1, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(at.alpha * x0 + at.sigma * eps, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("step", [euler_step, heun_step])
@pytest.mark.parametrize("kind", get_args(Prediction))
def test_a_measurement_of_a_sum_holds_at_the_end(kind: Prediction, step) -> None:
    """A linear measurement that is no mask: the two channels sum to 3, by DDNM's range-null decomposition."""
    process = Process(prediction=kind)

    def sums(x0: torch.Tensor) -> torch.Tensor:
        return x0 + (3 - x0.sum(-1, keepdim=True)) / 2

    denoiser = projected(gaussian(process, 0.0, 1.0), sums, process)
    noise = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(1, 0, 41, dtype=torch.float64).clamp(max=0.999)  # eps says nothing of data at 1
    got = sample(denoiser, noise, times, process=process, step=step)
    torch.testing.assert_close(got.sum(-1), torch.full((100,), 3.0, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    plain = sample(gaussian(process, 0.0, 1.0), noise, times, process=process, step=step)
    torch.testing.assert_close(got[:, 0] - got[:, 1], plain[:, 0] - plain[:, 1], rtol=1e-9, atol=1e-9)  # not measured


def test_known_tokens_without_noise_are_held_and_finite() -> None:
    process, rows = Process(), Rows(torch.tensor([True, False]), torch.tensor([0, 1, 1]))
    known = Known(rows, torch.full((3, 1), 7.0))
    denoiser = projected(lambda x, t: x, lambda x0: x0 * float("inf"), process)
    finite = projected(lambda x, t: x, lambda x0: x0 + 1, process)
    start = known.apply(torch.randn(3, 1))
    got = sample(finite, start, process.times(3), process=process, rows=known.levels)
    assert torch.equal(got[0], known.values[0])
    assert bool(got.isfinite().all())
    wild = sample(denoiser, start, process.times(1), process=process, rows=known.levels)
    assert torch.equal(wild[0], known.values[0])


def test_projection_composes_with_guidance_as_one_denoiser() -> None:
    """What is projected is the guided data, not that of either denoiser."""
    from tubelet.diffusion import cfg

    process, t = Process(prediction="x0"), Rows(torch.tensor([0.5]))
    guided = cfg(lambda x, t: torch.full_like(x, 2.0), lambda x, t: torch.zeros_like(x), 3.0)
    got = projected(guided, partial(torch.clamp, max=5.0), process)(torch.zeros(2, 1), t)
    assert got.tolist() == [[5.0], [5.0]]
    assert level(t, got).shape == (1, 1)


def test_a_projection_of_another_shape_is_refused() -> None:
    denoiser = projected(lambda x, t: x, lambda x0: x0[:1], Process())
    with pytest.raises(ValueError, match=r"x0 has shape \(2, 1\), but the projected x0 has \(1, 1\)"):
        denoiser(torch.ones(2, 1), Rows(torch.tensor([0.5])))
