"""Samplers against diffusers' schedulers, against Gaussians solved in closed form, and for what they must not touch."""

import itertools
import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tubelet.diffusion import (
    VP,
    Process,
    RectifiedFlow,
    coefficients,
    ddim_step,
    euler_step,
    from_x0_eps,
    heun_step,
    hold,
    one_row,
    sample,
    shift_warp,
)
from tubelet.layout import Rows
from tubelet.protocols import Denoiser, Path, SamplerStep

STEPS = [euler_step, heun_step, ddim_step]
MEAN, STD = 0.7, 0.4


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(seed: int, channels: int = 4) -> Denoiser:
    """A smooth nonlinear function of state and time, in place of a trained network."""
    weight = randn(channels, channels, seed=seed, dtype=torch.float32) / channels**0.5

    def denoiser(x: Tensor, t: Rows) -> Tensor:
        time = t.expand().to(x.dtype).unsqueeze(-1)
        return torch.tanh(x @ weight.to(x.dtype) + torch.sin(3 * time)) + 0.3 * x

    return denoiser


def gaussian(process: Process) -> Denoiser:
    """The perfect denoiser of data with independent entries of mean MEAN and deviation STD."""

    def denoiser(x: Tensor, t: Rows) -> Tensor:
        at = coefficients(process.path, t, x)
        surprise = (x - at.alpha * MEAN) / (at.alpha**2 * STD**2 + at.sigma**2)
        return from_x0_eps(process.prediction, MEAN + at.alpha * STD**2 * surprise, at.sigma * surprise, at)

    return denoiser


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("path", "kind", "theirs", "options"),
    [
        (VP.linear(), "eps", "epsilon", {"beta_start": 1e-4, "beta_end": 0.02}),
        (VP.linear(), "x0", "sample", {"beta_start": 1e-4, "beta_end": 0.02}),
        (
            VP.scaled_linear(),
            "v",
            "v_prediction",
            {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        ),
        (
            VP.linear().zero_terminal_snr(),
            "v",
            "v_prediction",
            {"beta_start": 1e-4, "beta_end": 0.02, "rescale_betas_zero_snr": True},
        ),
    ],
)
def test_ddim_equals_diffusers(path: VP, kind: str, theirs: str, options: dict[str, object], eta: float) -> None:
    scheduler = DDIMScheduler(prediction_type=theirs, clip_sample=False, timestep_spacing="trailing", **options)
    # their table is float32; ours feeds both sides, so that only the step is compared
    scheduler.alphas_cumprod = path.alphas_cumprod
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(20)
    denoiser, start = network(1), randn(6, 4)
    fresh = [randn(6, 4, seed=100 + i) for i in range(20)]
    expected = start
    for index, noise in zip(scheduler.timesteps, fresh, strict=True):
        output = denoiser(expected, one_row((index.double() + 1) / 1000))
        expected = scheduler.step(output, int(index), expected, eta=eta, variance_noise=noise).prev_sample
    process = Process(path=path, prediction=kind)
    for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        step = partial(ddim_step, eta=eta, noise=iter([n.to(dtype) for n in fresh]))
        times = process.times(20, dtype=dtype)
        got = sample(denoiser, start.to(dtype), times, process=process, step=step)
        assert distance(got.double(), expected) < bound


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_euler_equals_diffusers_with_the_shift_applied_once(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, 13)[:-1].tolist())
    denoiser, start = network(2), randn(6, 4, dtype=torch.float32)
    expected = start
    for index, time in enumerate(scheduler.timesteps):
        output = denoiser(expected, one_row(scheduler.sigmas[index]))
        expected = scheduler.step(output, time, expected).prev_sample
    process = Process(warp=shift_warp(shift))
    assert distance(sample(denoiser, start, process.times(12), process=process), expected) < 1e-5


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun_equals_diffusers(shift: float) -> None:
    scheduler = FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(8)
    denoiser, start = network(3), randn(6, 4, dtype=torch.float32)
    expected = start
    for index, time in enumerate(scheduler.timesteps):
        # the second evaluation of a step happens at the level that the step ends on
        output = denoiser(expected, one_row(time / 1000))
        assert time / 1000 == pytest.approx(float(scheduler.sigmas[index + index % 2]), rel=1e-5)
        expected = scheduler.step(output, time, expected).prev_sample
    times = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
    assert times.shape == (9,)
    assert distance(sample(denoiser, start, times, process=Process(), step=heun_step), expected) < 1e-5


def test_heun_is_the_mean_of_both_slopes_and_ends_with_euler() -> None:
    denoiser, x = network(4), randn(3, 4)
    process = Process()
    t, s = (one_row(torch.tensor(v, dtype=torch.float64)) for v in (0.8, 0.5))
    first = denoiser(x, t)
    expected = x - 0.3 * (first + denoiser(x - 0.3 * first, s)) / 2
    torch.testing.assert_close(heun_step(denoiser, x, t, s, process), expected, rtol=1e-13, atol=1e-13)
    clean = one_row(torch.tensor(0.0, dtype=torch.float64))
    assert torch.equal(heun_step(denoiser, x, t, clean, process), euler_step(denoiser, x, t, clean, process))


@pytest.mark.parametrize("kind", ["velocity", "x0", "eps", "v"])
@pytest.mark.parametrize(("step", "order"), [(euler_step, 1), (heun_step, 2), (ddim_step, 1)])
def test_convergence_order_on_a_gaussian(step: SamplerStep, order: int, kind: str) -> None:
    process = Process(prediction="velocity" if kind == "eps" else kind)
    noise = randn(50, 3)
    exact = MEAN + STD * noise
    errors = []
    for steps in (40, 80, 160):
        times = process.times(steps, dtype=torch.float64)
        errors.append(distance(sample(gaussian(process), noise, times, process=process, step=step), exact))
    rates = [np.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(rate - order) < 0.2 for rate in rates), (errors, rates)


@pytest.mark.parametrize("path", [VP.linear().zero_terminal_snr(), VP.cosine(), RectifiedFlow()])
def test_ddim_recovers_the_mean_and_variance_of_gaussian_data(path: Path) -> None:
    process = Process(path=path, prediction="v")
    noise = randn(500, 1)
    noise = (noise - noise.mean()) / noise.std()
    moments = []
    for steps in (50, 100):
        times = process.times(steps, dtype=torch.float64)
        got = sample(gaussian(process), noise, times, process=process, step=ddim_step)
        moments.append(torch.stack([got.mean(), got.std()]))
    target = torch.tensor([MEAN, STD], dtype=torch.float64)
    torch.testing.assert_close(moments[1], target, rtol=0, atol=2e-2)
    # first order: the error halves with the step, so that extrapolation removes nearly all of it
    torch.testing.assert_close(2 * moments[1] - moments[0], target, rtol=0, atol=2e-3)


def test_ancestral_ddim_recovers_the_mean_and_variance_of_gaussian_data() -> None:
    process = Process(path=VP.linear(), prediction="eps")
    generator = torch.Generator().manual_seed(1)
    fresh = iter(lambda: torch.randn(5000, 1, generator=generator, dtype=torch.float64), None)
    times = process.times(200, dtype=torch.float64)
    step = partial(ddim_step, eta=1.0, noise=fresh)
    got = sample(gaussian(process), randn(5000, 1), times, process=process, step=step)
    # four standard errors beside the discretisation
    assert abs(float(got.mean()) - MEAN) < 4 * STD / 5000**0.5 + 5e-3
    assert abs(float(got.std()) - STD) < 4 * STD / 10000**0.5 + 1e-2


def test_ddim_is_euler_on_a_straight_path() -> None:
    process, denoiser, noise = Process(), network(5), randn(6, 4)
    times = process.times(7, dtype=torch.float64)
    runs = [sample(denoiser, noise, times, process=process, step=s) for s in (euler_step, ddim_step)]
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["eps", "x0", "v", "velocity"])
@pytest.mark.parametrize("path", [RectifiedFlow(), VP.linear()])
def test_held_tokens_survive_garbage_bit_for_bit(step: SamplerStep, kind: str, path: Path) -> None:
    known = torch.tensor([True, False, True, False, False])
    index = torch.arange(5)

    def denoiser(x: Tensor, t: Rows) -> Tensor:
        assert bool(x.isfinite().all())
        return torch.where(known[:, None], float("nan"), 0.1 * x)

    start = randn(5, 3, dtype=torch.float32)
    process = Process(path=path, prediction=kind)
    rows = lambda time: Rows(torch.where(known, torch.zeros_like(time), time), index)  # noqa: E731
    got = sample(denoiser, start, process.times(4), process=process, step=step, rows=rows)
    assert torch.equal(got[known], start[known])
    assert bool(got[~known].isfinite().all())
    assert not bool((got[~known] == start[~known]).any())


@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=4), which=st.sampled_from(STEPS))
def test_packed_equals_separate(lengths: list[int], which: SamplerStep) -> None:
    process, denoiser = Process(prediction="v"), network(6)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    speed = torch.linspace(0.5, 1, len(lengths), dtype=torch.float64)
    noise = randn(len(owner), 4)
    times = process.times(3, dtype=torch.float64)
    packed = sample(denoiser, noise, times, process=process, step=which, rows=lambda t: Rows(t * speed, owner))
    for i in range(len(lengths)):
        mine = owner == i
        rows = lambda t, i=i: Rows((t * speed[i]).reshape(1))  # noqa: E731
        alone = sample(denoiser, noise[mine], times, process=process, step=which, rows=rows)
        torch.testing.assert_close(packed[mine], alone, rtol=1e-11, atol=1e-11)


def test_callback_sees_every_state_and_the_dtype_stays() -> None:
    seen: list[tuple[int, Tensor]] = []
    process, noise = Process(path=VP.linear(), prediction="eps"), randn(3, 4, dtype=torch.bfloat16)
    got = sample(
        network(7), noise, process.times(3), process=process, callback=lambda i, x: seen.append((i, x)), step=ddim_step
    )
    assert [i for i, _ in seen] == [0, 1, 2]
    assert got is seen[-1][1]
    assert got.dtype == torch.bfloat16


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("path", [RectifiedFlow(), VP.linear()])
def test_a_step_reads_nothing_on_the_host(step: SamplerStep, path: Path) -> None:
    process = Process(path=path, prediction="v")
    with FakeTensorMode(allow_non_fake_inputs=True):
        # a fake tensor has no numbers: reading one raises
        x, t, s = torch.empty(5, 4), torch.empty(2), torch.empty(2)
        index = torch.empty(5, dtype=torch.long)
        assert step(lambda x, t: 0.5 * x, x, Rows(t, index), Rows(s, index), process).shape == (5, 4)


COMPILED = """
import sys
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from tubelet.diffusion import VP, Process, RectifiedFlow, ddim_step, euler_step, heun_step
from tubelet.layout import Rows

def denoiser(x, t):
    return torch.sin(x) + t.expand().unsqueeze(-1)

for path, step in ((RectifiedFlow(), euler_step), (RectifiedFlow(), heun_step), (VP.linear(), ddim_step)):
    torch.compiler.reset()
    process, graphs = Process(path=path, prediction="v"), CompileCounterWithBackend("eager")
    run = lambda x, t, s, index: step(denoiser, x, Rows(t, index), Rows(s, index), process)
    compiled = torch.compile(run, fullgraph=True, backend=graphs)
    x = torch.randn(5, 4, dtype=torch.float64)
    for high, index in ((1.0, [0, 0, 1, 1, 1]), (0.6, [0, 1, 1, 1, 1]), (0.3, [1, 1, 0, 1, 0])):
        t, s = (torch.tensor([0.0, level], dtype=torch.float64) for level in (high, high - 0.2))
        args = (x, t, s, torch.tensor(index))
        torch.testing.assert_close(compiled(*args), run(*args), rtol=1e-10, atol=1e-10)
    assert graphs.frame_count == 1, (path, step, graphs.frame_count)
"""


@pytest.mark.graph
def test_every_step_compiles_whole_and_once() -> None:
    # a fresh process: the shape hook's wrappers around Rows cannot be traced, not even switched off
    done = subprocess.run([sys.executable, "-c", COMPILED], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bad_input_is_refused() -> None:
    x, t = torch.zeros(2, 1), one_row(torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"times must be floating-point \(s,\) or \(s, rows\), got .* of \(0,\)"):
        sample(network(0, 1), x, torch.ones(0), process=Process())
    for bad in ([1.0, math.nan], [1.2, 0.0], [0.5, -0.1], [math.inf, 0.0]):
        with pytest.raises(ValueError, match=r"times must lie in \[0, 1\], got \["):
            sample(network(0, 1), x, torch.tensor(bad), process=Process())
    with pytest.raises(ValueError, match=r"eta must lie in .* got 1\.5"):
        ddim_step(network(0, 1), x, t, t, Process(), eta=1.5)
    with pytest.raises(ValueError, match=r"noise=None and eta=0\.5"):
        ddim_step(network(0, 1), x, t, t, Process(), eta=0.5)


@pytest.mark.graph  # run-time shape checks off, as for users
@pytest.mark.parametrize("step", [euler_step, heun_step, ddim_step])
def test_denoisers_that_change_the_shape_are_refused(step: SamplerStep) -> None:
    x, t, s = torch.zeros(4, 3), one_row(torch.tensor(0.5)), one_row(torch.tensor(0.25))
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\), but prediction has \(4, 1\)"):
        step(lambda x, t: x[:, :1], x, t, s, Process())


@pytest.mark.graph
def test_fresh_noise_of_another_shape_is_refused() -> None:
    x, t, s = torch.zeros(4, 3), one_row(torch.tensor(0.5)), one_row(torch.tensor(0.25))
    with pytest.raises(ValueError, match=r"noise gives shape \(1, 3\), but x has \(4, 3\)"):
        ddim_step(lambda x, t: x, x, t, s, Process(), eta=1.0, noise=iter([torch.zeros(1, 3)]))
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\), but the new state has \(4, 1\)"):
        hold(x, x[:, :1], t, s)


def test_times_may_round_beyond_one_and_are_not_read_elsewhere() -> None:
    start = torch.zeros(2, 1)
    sample(lambda x, t: x, start, torch.tensor([1 + 1e-7, 0.5, 0.0]), process=Process())
    meta = sample(lambda x, t: x, start.to("meta"), torch.tensor([7.0, 0.0], device="meta"), process=Process())
    assert meta.device.type == "meta"
