"""Whole trajectories equal those of diffusers' schedulers: same denoiser, same levels, same noise.

Where a scheduler computes in the dtype of the state, both run in float64 and agree to rounding. The DPM-Solver, SDE and
k-diffusion schedulers cast the state to float32 in each step; there the bound is that of float32. None rounds timesteps
here, since levels are given to both.
"""

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LTXEulerAncestralRFScheduler,
    UniPCMultistepScheduler,
)
from sampling import KINDS, Exploding, distance, drive, fresh, mixture, randn, ratios
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
    lcm_step,
    midpoint_step,
    one_row,
    sample,
)
from tubelet.diffusion.conventions import noise_ratio, time_of_ratio
from tubelet.layout import Rows
from tubelet.protocols import Path

# numpy's, about tensors in diffusers' schedules
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:diffusers", "ignore:__array_wrap__:DeprecationWarning"
)

EXACT, SINGLE = 1e-9, 1e-5
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02}
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CASES = {
    "linear, eps": (VP.linear(), "eps", LINEAR),
    "scaled linear, v": (VP.scaled_linear(), "v", SCALED),
    "linear, x0": (VP.linear(), "x0", LINEAR),
    "flow, velocity": (RectifiedFlow(), "velocity", {"use_flow_sigmas": True}),
}
cases = pytest.mark.parametrize("case", CASES)
DISCRETE = [case for case in CASES if "flow" not in case]


def levels(path: Path, steps: int) -> tuple[Tensor, Tensor]:
    """Times from noise to data, and what diffusers calls sigmas there."""
    if isinstance(path, VP):
        times = (torch.linspace(999, 30, steps).round().double() + 1) / path.steps
        times = torch.cat([times, times.new_zeros(1)])
        return times, ratios(path, times)
    times = torch.linspace(0.97, 0, steps + 1, dtype=torch.float64)
    return times, times


def compared(case: str, scheduler: Any, step: Any, steps: int = 12, end: int | None = None, **options: Any) -> float:
    """The distance of our result from theirs, ``end`` levels of the run left out."""
    path, kind, schedule = CASES[case]
    process = Process(path=path, prediction=kind)
    times, sigmas = (each[:end] for each in levels(path, steps))
    start, denoiser = randn(6, 4), mixture(process)
    theirs = scheduler(prediction_type=KINDS[kind], **schedule)
    expected = drive(theirs, denoiser, start, times, sigmas, **options)
    return distance(sample(denoiser, start, times, process=process, step=step), expected)


@cases
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_dpm_solver_2m(case: str, kind: str) -> None:
    theirs = partial(DPMSolverMultistepScheduler, solver_type=kind)
    assert compared(case, theirs, dpmpp_2m(exact=kind == "heun")) < SINGLE


@cases
def test_dpm_solver_3m(case: str) -> None:
    theirs = partial(DPMSolverMultistepScheduler, solver_order=3, lower_order_final=False)
    assert compared(case, theirs, dpmpp_3m()) < SINGLE


@cases
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_sde_dpm_solver_2m(case: str, kind: str) -> None:
    theirs = partial(DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++", solver_type=kind)
    ours = dpmpp_2m_sde(fresh(6, 4), exact=kind == "heun")
    assert compared(case, theirs, ours, variance_noise=fresh(6, 4)) < SINGLE


@cases
def test_dpm_solver_2s(case: str) -> None:
    """Theirs finds its middles among the levels; ours are put there. It ends with a step of order 1, as ours does."""
    path, kind, schedule = CASES[case]
    process = Process(path=path, prediction=kind)
    times, _ = levels(path, 6)
    middles = time_of_ratio(path, (noise_ratio(path, times[:-2]) * noise_ratio(path, times[1:-1])).sqrt())
    every = torch.cat([times, middles]).sort(descending=True).values
    theirs = DPMSolverSinglestepScheduler(prediction_type=KINDS[kind], lower_order_final=True, **schedule)
    sigmas = ratios(path, every) if isinstance(path, VP) else every
    start, denoiser = randn(6, 4), mixture(process)
    expected = drive(theirs, denoiser, start, every, sigmas)
    assert theirs.order_list == [1, 2] * 5 + [1]
    assert distance(sample(denoiser, start, times, process=process, step=dpmpp_2s_step), expected) < EXACT


@cases
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(case: str, order: int, variant: str) -> None:
    """To clean data too, except where theirs is not a number (bh1) or refuses (order 3 without a taper)."""
    theirs = partial(UniPCMultistepScheduler, solver_order=order, solver_type=variant, lower_order_final=False)
    assert compared(case, theirs, UniPC(order, variant), end=-1) < EXACT
    if order < 3 and variant == "bh2":
        theirs = partial(UniPCMultistepScheduler, solver_order=order, solver_type=variant)
        assert compared(case, theirs, UniPC(order, variant)) < EXACT


def test_a_run_may_change_its_solver() -> None:
    """Theirs of order 3 lowers the order of its last two steps; the history serves a solver of less order."""
    path, kind, schedule = CASES["linear, eps"]
    process = Process(path=path, prediction=kind)
    times, sigmas = levels(path, 8)
    start, denoiser = randn(6, 4), mixture(process)
    expected = drive(UniPCMultistepScheduler(solver_order=3, **schedule), denoiser, start, times, sigmas)
    x, history = start, None
    solvers = [UniPC(3)] * 6 + [UniPC(2), UniPC(1)]
    for solver, t, s in zip(solvers, times[:-1], times[1:], strict=True):
        x, history = solver.step(denoiser, x, one_row(t), one_row(s), process, history)
    assert distance(x, expected) < EXACT


@cases
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(case: str, order: int) -> None:
    theirs = partial(DEISMultistepScheduler, solver_order=order, lower_order_final=False)
    assert compared(case, theirs, deis(order), end=-1) < EXACT


@pytest.mark.parametrize("case", DISCRETE)
def test_dpm_solver_leads_back_to_noise(case: str) -> None:
    path, kind, schedule = CASES[case]
    process = Process(path=path, prediction=kind)
    times, sigmas = (each[:-1].flip(0) for each in levels(path, 12))
    start, denoiser = randn(6, 4), mixture(process)
    theirs = DPMSolverMultistepInverseScheduler(prediction_type=KINDS[kind], lower_order_final=False, **schedule)
    expected = drive(theirs, denoiser, start, times, sigmas)
    assert distance(sample(denoiser, start, times, process=process, step=dpmpp_2m()), expected) < SINGLE


@pytest.mark.parametrize("case", DISCRETE)
def test_ddim_leads_back_to_noise(case: str) -> None:
    """Theirs takes the prediction at the level that a step starts from under the label of the level it ends on."""
    path, kind, schedule = CASES[case]
    process, steps = Process(path=path, prediction=kind), 20
    theirs = DDIMInverseScheduler(prediction_type=KINDS[kind], clip_sample=False, **schedule)
    theirs.alphas_cumprod = path.alphas_cumprod
    theirs.initial_alpha_cumprod = path.alphas_cumprod[0]
    theirs.set_timesteps(steps)
    start, denoiser = randn(6, 4), mixture(process)
    expected, times = start, [path.time(torch.tensor(0)).double()]
    for label in theirs.timesteps[1:]:  # its first step stays at the first index
        expected = theirs.step(denoiser(expected, one_row(times[-1])), int(label), expected).prev_sample
        times.append((label.double() + 1) / 1000)
    times[0] = times[0].new_tensor(1 / 1000)
    got = sample(denoiser, start, torch.stack(times), process=process, step=ddim_step)
    assert distance(got, expected) < EXACT


@pytest.mark.parametrize("case", DISCRETE)
@pytest.mark.parametrize("variance", ["small", "large", "learned_range"])
def test_ddpm(case: str, variance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, kind, schedule = CASES[case]
    process = Process(path=path, prediction=kind)
    name = variance if variance == "learned_range" else f"fixed_{variance}"
    theirs = DDPMScheduler(prediction_type=KINDS[kind], variance_type=name, clip_sample=False, **schedule)
    theirs.alphas_cumprod, theirs.one = path.alphas_cumprod, torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(20)
    assert int(theirs.timesteps[-1]) == 0
    noise, start, simple = fresh(6, 4), randn(6, 4), mixture(process)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(noise))

    def denoiser(x: Tensor, t: Rows) -> Tensor:
        out = simple(x, t)
        return torch.cat([out, torch.sin(3 * x)], dim=-1) if variance == "learned_range" else out

    expected = start
    for label in theirs.timesteps:
        output = denoiser(expected, one_row((label.double() + 1) / 1000))
        expected = theirs.step(output, int(label), expected).prev_sample
    times = torch.cat([(theirs.timesteps.double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)])
    step = partial(ddpm_step, noise=fresh(6, 4), variance=variance)
    assert distance(sample(denoiser, start, times, process=process, step=step), expected) < EXACT


@pytest.mark.parametrize("case", DISCRETE)
def test_lcm(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, kind, schedule = CASES[case]
    process = Process(path=path, prediction=kind)
    theirs = LCMScheduler(prediction_type=KINDS[kind], clip_sample=False, **schedule)
    theirs.alphas_cumprod = path.alphas_cumprod
    theirs.set_timesteps(6)
    noise, start, denoiser = fresh(6, 4), randn(6, 4), mixture(process)
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: next(noise))
    expected = start
    for label in theirs.timesteps:
        output = denoiser(expected, one_row((label.double() + 1) / 1000))
        expected = theirs.step(output, int(label), expected).prev_sample
    times = torch.cat([(theirs.timesteps.double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)])
    step = partial(lcm_step, noise=fresh(6, 4), boundary=0.5 / 10_000)
    # their boundary counts steps from index 0, ours is exact at clean data: 1e-8 apart at these times
    assert distance(sample(denoiser, start, times, process=process, step=step), expected) < 1e-6


def test_lcm_on_a_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    process, theirs = Process(), FlowMatchLCMScheduler()
    noise, start, denoiser = fresh(6, 4), randn(6, 4), mixture(Process())
    monkeypatch.setattr("diffusers.schedulers.scheduling_flow_match_lcm.randn_tensor", lambda *_, **__: next(noise))
    for steps in (1, 4, 7):
        noise = fresh(6, 4)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        expected = drive(theirs, denoiser, start, times, times)
        theirs._step_index = None
        got = sample(denoiser, start, times, process=process, step=partial(lcm_step, noise=fresh(6, 4)))
        assert distance(got, expected) < SINGLE


EXPLODING = [(20.0, 0.05, 12), (40.0, 0.3, 7), (5.0, 0.01, 16)]
exploding = pytest.mark.parametrize(("high", "low", "steps"), EXPLODING)


def exploded(high: float, low: float, steps: int) -> tuple[Process, Tensor, Tensor, Tensor]:
    """A process on which time is sigma, times, sigmas and a start."""
    process = Process(path=Exploding(), prediction="eps")
    sigmas = torch.cat([torch.logspace(0, 1, steps, low / high, dtype=torch.float64) * high, torch.zeros(1)])
    return process, sigmas / Exploding().end, sigmas, high * randn(6, 4)


@exploding
@pytest.mark.parametrize("churn", [0.0, 2.0, 100.0])
def test_euler_with_churn(high: float, low: float, steps: int, churn: float, monkeypatch: pytest.MonkeyPatch) -> None:
    process, times, sigmas, start = exploded(high, low, steps)
    noise, simple = fresh(6, 4), mixture(process)
    monkeypatch.setattr("diffusers.schedulers.scheduling_euler_discrete.randn_tensor", lambda *_, **__: next(noise))
    amount = min(churn / steps, 2**0.5 - 1)
    theirs = EulerDiscreteScheduler()
    theirs.set_timesteps(steps)
    theirs.sigmas, theirs.timesteps, theirs.is_scale_input_called = sigmas, torch.arange(steps).double(), True
    expected = start
    for i, label in enumerate(theirs.timesteps):
        # the model sees the raised level and the state there, which theirs leaves to the caller
        inside = 0.1 <= sigmas[i] <= 30.0
        factor = 1 + amount if inside and churn else 1.0
        raised = expected
        if factor > 1:
            peeked = fresh(6, 4)
            for _ in range(int(sum(0.1 <= s <= 30.0 for s in sigmas[:i]))):
                next(peeked)
            raised = expected + 1.003 * next(peeked) * (factor**2 - 1) ** 0.5 * sigmas[i]
        output = simple(raised, one_row(factor * times[i]))
        options = {"s_churn": churn, "s_tmin": 0.1, "s_tmax": 30.0, "s_noise": 1.003}
        expected = theirs.step(output, label, expected, **options).prev_sample
    step: Any = euler_step
    if churn:
        drawn = _only(fresh(6, 4), [0.1 <= s <= 30.0 for s in sigmas[:-1]])
        step = Churned(euler_step, amount, drawn, low=0.1 / 50, high=30.0 / 50, scale=1.003)
    assert distance(sample(simple, start, times, process=process, step=step), expected) < SINGLE


def _only(noise: Any, where: list[Any]) -> Any:
    """Ours draws in each step, theirs where it churns."""
    for used in where:
        yield next(noise) if used else torch.zeros(6, 4, dtype=torch.float64)


@exploding
def test_ancestral(high: float, low: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    process, times, sigmas, start = exploded(high, low, steps)
    noise, denoiser = fresh(6, 4), mixture(process)
    name = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
    monkeypatch.setattr(name, lambda *_, **__: next(noise))
    theirs = EulerAncestralDiscreteScheduler()
    theirs.is_scale_input_called = True
    expected = drive(theirs, denoiser, start, times, sigmas)
    for step in (partial(ancestral_step, noise=fresh(6, 4)), partial(ddim_step, eta=1.0, noise=fresh(6, 4))):
        assert distance(sample(denoiser, start, times, process=process, step=step), expected) < SINGLE


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ancestral_on_a_flow(eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    process, denoiser, start = Process(), mixture(Process()), randn(6, 4)
    noise = fresh(6, 4)
    name = "diffusers.schedulers.scheduling_ltx_euler_ancestral_rf.randn_tensor"
    monkeypatch.setattr(name, lambda *_, **__: next(noise))
    theirs = LTXEulerAncestralRFScheduler(eta=eta)
    times = torch.linspace(1, 0, 11, dtype=torch.float64)
    theirs.set_timesteps(sigmas=times)
    theirs.sigmas = times
    expected = start
    for label, time in zip(theirs.timesteps, times, strict=False):
        expected = theirs.step(denoiser(expected, one_row(time)), label, expected).prev_sample
    step = partial(ancestral_step, noise=fresh(6, 4), eta=eta)
    assert distance(sample(denoiser, start, times, process=process, step=step), expected) < SINGLE


@exploding
def test_heun(high: float, low: float, steps: int) -> None:
    process, times, sigmas, start = exploded(high, low, steps)
    denoiser = mixture(process)
    twice = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    # calls: at the first level, then at the end and the begin of each step
    expected = drive(HeunDiscreteScheduler(), denoiser, start, torch.cat([twice[:-1], sigmas[-1:]]) / 50, twice)
    assert distance(sample(denoiser, start, times, process=process, step=heun_step), expected) < EXACT


@exploding
def test_midpoint(high: float, low: float, steps: int) -> None:
    """Theirs has its middles at the mean of log sigma, which is the geometric mean of these times."""
    process, times, sigmas, start = exploded(high, low, steps)
    times, sigmas = times[:-1], sigmas[:-1]
    denoiser, theirs = mixture(process), KDPM2DiscreteScheduler()
    theirs.set_timesteps(steps)
    middles = (sigmas[:-1] * sigmas[1:]).sqrt()
    theirs.sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2)])
    theirs.sigmas_interpol = torch.cat([sigmas[:1], torch.stack([middles, middles], 1).flatten()])
    calls = torch.stack([sigmas[:-1], middles], 1).flatten()
    theirs.timesteps = torch.arange(len(calls), dtype=torch.float64)
    expected = start
    for label, sigma in zip(theirs.timesteps, calls, strict=True):
        expected = theirs.step(denoiser(expected, one_row(sigma / 50)), label, expected).prev_sample
    step = partial(midpoint_step, middle=lambda t, s: (t * s).sqrt())
    assert distance(sample(denoiser, start, times, process=process, step=step), expected) < EXACT


@exploding
def test_edm_euler(high: float, low: float, steps: int) -> None:
    """Theirs takes what an EDM network gives; so it gets the data before that network's output scaling."""
    process, times, sigmas, start = exploded(high, low, steps)
    data, theirs = mixture(Process(path=Exploding(), prediction="x0")), EDMEulerScheduler(sigma_data=0.5)
    theirs.is_scale_input_called = True

    def network(x: Tensor, t: Rows) -> Tensor:
        sigma = 50 * t.values
        skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25) ** 0.5
        return (data(x, t) - skip * x) / out

    expected = drive(theirs, network, start, times, sigmas)
    assert distance(sample(mixture(process), start, times, process=process, step=euler_step), expected) < SINGLE
