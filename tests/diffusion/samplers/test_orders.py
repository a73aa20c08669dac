"""Solvers converge with the order of their theory on a Gaussian mixture, and recover the moments of Gaussian data."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from sampling import distance, fresh, gaussian, mixture, randn
from scipy.integrate import solve_ivp
from torch import Tensor

from tubelet.diffusion import (
    VP,
    Churned,
    Process,
    RectifiedFlow,
    UniPC,
    ancestral_step,
    ddim_step,
    ddpm_step,
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_step,
    dpmpp_3m,
    euler_step,
    heun_step,
    lift,
    midpoint_step,
    one_row,
    rk4_step,
    sample,
)

pytestmark = pytest.mark.graph  # run-time shape checks off: they take most of the time of these loops

SOLVERS = {
    "euler": (euler_step, 1),
    "ddim": (ddim_step, 1),
    "heun": (heun_step, 2),
    "midpoint": (midpoint_step, 2),
    "rk4": (rk4_step, 4),
    "dpm++ 2s": (dpmpp_2s_step, 2),
    "dpm++ 2m": (dpmpp_2m(), 2),
    "dpm++ 2m, exact": (dpmpp_2m(exact=True), 2),
    "dpm++ 3m": (dpmpp_3m(), 2),
    "dpm++ 3m, exact": (dpmpp_3m(exact=True), 3),
    "deis 1": (deis(1), 1),
    "deis 2": (deis(2), 2),
    "deis 3": (deis(3), 3),
    "unipc 1": (UniPC(1), 2),
    "unipc 1, bh1": (UniPC(1, "bh1"), 2),
    "unipc 2": (UniPC(2), 3),
    "unipc 2, bh1": (UniPC(2, "bh1"), 3),
    "unipc 3": (UniPC(3), 4),
}
SLOW = ("dpm++ 3m", "deis 3", "unipc 3")
"""Those whose order shows in finer steps only."""
BEGIN, END = 0.9, 0.15


@pytest.fixture(scope="module")
def exact() -> Callable[[Tensor], Tensor]:
    """The states of 40 entries on the mixture's trajectories, by scipy's method of order 8."""
    process = Process()
    denoiser = mixture(process)

    def slope(t: float, state: Any) -> Any:
        return denoiser(torch.from_numpy(state)[:, None], one_row(torch.tensor(t, dtype=torch.float64)))[:, 0].numpy()

    start = randn(40).numpy()
    found = solve_ivp(slope, (BEGIN, END), start, method="DOP853", rtol=1e-13, atol=1e-13, dense_output=True)
    return lambda t: torch.from_numpy(found.sol(float(t)))[:, None]


@pytest.mark.parametrize("name", SOLVERS)
def test_order(name: str, exact: Callable[[Tensor], Tensor]) -> None:
    """The first steps begin at exact states, so that the order is that of the method with its full history."""
    step, order = SOLVERS[name]
    solver, process, errors = lift(step), Process(), []
    for steps in (80, 160) if name in SLOW else (40, 80):
        times = torch.linspace(BEGIN, END, steps + 1, dtype=torch.float64)
        x, history = exact(times[0]), None
        for number, (t, s) in enumerate(itertools.pairwise(times)):
            x = exact(t) if number < 4 else x
            x, history = solver.step(mixture(process), x, one_row(t), one_row(s), process, history)
        errors.append(distance(x, exact(times[-1])))
    rate = math.log2(errors[0] / errors[1])
    assert abs(rate - order) < 0.2, (errors, rate)


DETERMINISTIC = ["heun", "midpoint", "rk4", "dpm++ 2s", "dpm++ 2m", "dpm++ 3m, exact", "deis 3", "unipc 2", "unipc 3"]
MEAN, STD = 0.7, 0.4


@pytest.mark.parametrize("path", [RectifiedFlow(), VP.linear().zero_terminal_snr()])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_moments_of_gaussian_data(name: str, path: Any) -> None:
    """From pure noise to clean data, where log(alpha/sigma) is infinite at one end or both."""
    process = Process(path=path, prediction="v")
    noise = randn(500, 1)
    noise = (noise - noise.mean()) / noise.std()
    times = process.times(50, dtype=torch.float64)
    got = sample(gaussian(process, MEAN, STD), noise, times, process=process, step=SOLVERS[name][0])
    assert abs(float(got.mean()) - MEAN) < 1e-2
    assert abs(float(got.std()) - STD) < 1e-2


NOISY: dict[str, Callable[[Any], Any]] = {
    "ddim": lambda noise: partial(ddim_step, eta=1.0, noise=noise),
    "ddpm": lambda noise: partial(ddpm_step, noise=noise),
    "ancestral": lambda noise: partial(ancestral_step, noise=noise),
    "ancestral, less": lambda noise: partial(ancestral_step, noise=noise, eta=0.5),
    "dpm++ 2m sde": lambda noise: dpmpp_2m_sde(noise),
    "dpm++ 2m sde, less": lambda noise: dpmpp_2m_sde(noise, eta=0.5, exact=True),
    "churned heun": lambda noise: Churned(heun_step, 0.2, noise, low=0.02, high=0.98),
}


@pytest.mark.parametrize("path", [RectifiedFlow(), VP.linear()])
@pytest.mark.parametrize("name", NOISY)
def test_moments_of_gaussian_data_with_noise(name: str, path: Any) -> None:
    process, samples = Process(path=path, prediction="v"), 4000
    times = process.times(100, dtype=torch.float64)
    step = NOISY[name](fresh(samples, 1))
    got = sample(gaussian(process, MEAN, STD), randn(samples, 1), times, process=process, step=step)
    # four standard errors beside the discretisation, which is of order 1 for some
    assert abs(float(got.mean()) - MEAN) < 4 * STD / samples**0.5 + 8e-3
    assert abs(float(got.std()) - STD) < 4 * STD / (2 * samples) ** 0.5 + 1.2e-2
