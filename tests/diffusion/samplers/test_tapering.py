"""Less order in the last steps: the peers' own defaults at any number of steps, resumed runs, and too many steps."""

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from sampling import KINDS, distance, drive, mixture, randn, ratios

from tubelet.diffusion import VP, Process, Tapered, UniPC, deis, dpmpp_2m, dpmpp_3m, sample, trajectory
from tubelet.diffusion.conventions import time_of_ratio

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:diffusers", "ignore:__array_wrap__:DeprecationWarning"
)
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
EXACT, SINGLE = 1e-7, 1e-5
"""The DPM-Solver scheduler casts the state to float32."""


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize(
    ("theirs", "solver", "steps", "bound"),
    [
        (partial(UniPCMultistepScheduler, solver_order=2), UniPC(2), 8, EXACT),
        (partial(UniPCMultistepScheduler, solver_order=3), UniPC(3), 8, EXACT),
        (partial(UniPCMultistepScheduler, solver_order=3), UniPC(3), 20, EXACT),
        (partial(UniPCMultistepScheduler, solver_order=3), UniPC(3), 2, EXACT),
        (partial(DPMSolverMultistepScheduler, solver_order=2), dpmpp_2m(), 8, SINGLE),
        (partial(DPMSolverMultistepScheduler, solver_order=3), dpmpp_3m(), 8, SINGLE),
        (partial(DEISMultistepScheduler, solver_order=3), deis(3), 8, EXACT),
    ],
)
def test_the_defaults_of_diffusers(theirs: Any, solver: Any, steps: int, bound: float, kind: str, clean: bool) -> None:
    if clean and theirs.func is DEISMultistepScheduler:
        return  # theirs has no clean end
    path = VP.scaled_linear()
    process = Process(path=path, prediction=kind)
    sigmas = torch.logspace(1.1, -1.5, steps + 1, dtype=torch.float64)
    if clean:
        sigmas[-1] = 0
    times = time_of_ratio(path, sigmas)
    start, denoiser = randn(6, 4), mixture(process)
    ends = {} if clean or theirs.func is DEISMultistepScheduler else {"final_sigmas_type": "sigma_min"}
    scheduler = theirs(prediction_type=KINDS[kind], **ends, **SCHEDULE)
    expected = drive(scheduler, denoiser, start, times, ratios(path, times))
    made = sample(denoiser, start, times, process=process, step=Tapered(solver, steps))
    assert distance(made, expected) < bound
    if solver.order == 3 and steps > 2:
        plain = sample(denoiser, start, times, process=process, step=solver)
        assert distance(plain, expected) > 10 * bound


def test_a_tapered_run_goes_on_to_the_same_bits_and_no_further() -> None:
    process, step = Process(), Tapered(UniPC(3), 6)
    denoiser, start, times = mixture(process), randn(6, 4), process.times(6, dtype=torch.float64)
    states = list(trajectory(denoiser, start, times, process=process, step=step))
    for state in states:
        assert torch.equal(sample(denoiser, state, times, process=process, step=step), states[-1].x)
    with pytest.raises(ValueError, match="the run is tapered to steps=6, but has more"):
        sample(denoiser, start, process.times(7, dtype=torch.float64), process=process, step=step)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Tapered(UniPC(), 0)
