"""RePaint on correlated Gaussians: known values exact, and resampling nears the conditional distribution."""

import pytest
import torch

from tubelet.diffusion import Known, Process, Repainted, ddim_step, sample
from tubelet.diffusion.predictions import coefficients, from_x0_eps
from tubelet.layout import Rows

CORRELATION, GIVEN, COUNT = 0.9, 1.5, 2000


def pair(process: Process):
    """The exact prediction for data whose two tokens have variance 1 and a correlation; shapes ``(b, 2, 1)``."""
    covariance = torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]], dtype=torch.float64)

    def denoiser(x: torch.Tensor, t: Rows) -> torch.Tensor:
        at = coefficients(process.path, t, x)
        alpha, sigma = at.alpha.flatten()[0], at.sigma.flatten()[0]
        whole = alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
        solved = torch.linalg.solve(whole, x)
        return from_x0_eps(process.prediction, alpha * covariance @ solved, sigma * solved, at)

    return denoiser


def completed(repeats: int, steps: int = 20) -> torch.Tensor:
    process, draw = Process(prediction="v"), torch.Generator().manual_seed(0)
    noise = iter(lambda: torch.randn(COUNT, 2, 1, dtype=torch.float64, generator=draw), None)
    mask = Rows(torch.tensor([True, False]), torch.tensor([[0, 1]] * COUNT))
    known = Known(mask, torch.full((COUNT, 2, 1), GIVEN, dtype=torch.float64))
    step, times = Repainted(known, noise, ddim_step, repeats), process.times(steps, dtype=torch.float64)
    got = sample(pair(process), next(noise), times, process=process, step=step)
    assert torch.equal(got[:, 0], known.values[:, 0])
    return got[:, 1, 0]


def test_resampling_nears_the_conditional_distribution() -> None:
    """The second token given the first has mean 0.9·1.5 and variance 1 - 0.81; a single pass is known to miss it."""
    once, often = completed(1), completed(12)
    mean, variance = CORRELATION * GIVEN, 1 - CORRELATION**2
    assert abs(float(often.mean()) - mean) < 0.08
    assert abs(float(often.mean()) - mean) < 0.3 * abs(float(once.mean()) - mean)
    assert abs(float(often.var()) - variance) < 0.08


def test_each_repeat_asks_the_denoiser_once() -> None:
    calls: list[torch.Tensor] = []
    known = Known(Rows(torch.tensor([True])), torch.zeros(1, 2, 1))
    step = Repainted(known, iter(lambda: torch.zeros(1, 2, 1), None), repeats=3)
    sample(
        lambda x, t: calls.append(t.values) or x, torch.ones(1, 2, 1), Process().times(2), process=Process(), step=step
    )
    assert [float(t) for t in calls] == [1.0] * 3 + [0.5] * 3


def test_bad_input_is_refused() -> None:
    known = Known(Rows(torch.tensor([True])), torch.zeros(1, 2, 1))
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        Repainted(known, iter([]), repeats=0)
    step = Repainted(known, iter([torch.zeros(1, 1, 1)]))
    with pytest.raises(ValueError, match=r"noise gives shape \(1, 1, 1\), but x has \(1, 2, 1\)"):
        sample(lambda x, t: x, torch.zeros(1, 2, 1), Process().times(1), process=Process(), step=step)
    half = Known(Rows(torch.tensor([True, False]), torch.tensor([[0, 1]])), torch.zeros(1, 2, 1))
    held = Repainted(half, iter(lambda: torch.zeros(1, 2, 1), None))
    with pytest.raises(ValueError, match=r"a known token stays at its level: sample without rows=known\.levels"):
        sample(lambda x, t: x, torch.zeros(1, 2, 1), Process().times(2), process=Process(), step=held, rows=half.levels)
