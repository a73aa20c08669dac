"""The shared process: times and their densities against closed forms, noising and losses against plain formulas."""

import pickle

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from tubelet.diffusion import (
    EDM,
    VESDE,
    VP,
    VPSDE,
    Process,
    RectifiedFlow,
    coefficients,
    from_x0_eps,
    logit_normal,
    noise_like,
    sample,
    shift_warp,
)
from tubelet.layout import Grid, Rows, TokenLayout


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shift", [1.0, 3.0, 7.5])
@pytest.mark.parametrize("steps", [1, 10, 37])
def test_sampling_times_are_diffusers_sigmas_shifted_once(shift: float, steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1].tolist())
    times = Process(warp=shift_warp(shift)).times(steps)
    torch.testing.assert_close(times, scheduler.sigmas, rtol=1e-6, atol=1e-7)


def test_training_times_are_warped_once() -> None:
    plain, warped = Process(), Process(warp=shift_warp(4.0))
    u = plain.draw_times(1000, seeded(), dtype=torch.float64)
    torch.testing.assert_close(warped.draw_times(1000, seeded(), dtype=torch.float64), 4 * u / (1 + 3 * u))


def test_noising_equals_diffusers_ddpm() -> None:
    path, scheduler = VP.linear(), DDPMScheduler(beta_start=1e-4, beta_end=0.02)
    x0, noise = torch.randn(2, 3, 7, 4, generator=seeded())
    index = torch.tensor([0, 499, 999])
    got = Process(path=path).noise(x0, noise, Rows(path.time(index)))
    torch.testing.assert_close(got, scheduler.add_noise(x0, noise, index), rtol=1e-5, atol=1e-5)
    velocity = Process(path=path, prediction="v").target(x0, noise, Rows(path.time(index)))
    torch.testing.assert_close(velocity, scheduler.get_velocity(x0, noise, index), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", [RectifiedFlow(), VP.linear(), VP.cosine(), VPSDE(), EDM(), VESDE()])
def test_level_zero_is_the_data_bit_for_bit(path: object) -> None:
    x0, noise = torch.randn(2, 6, 3, generator=seeded())
    rows = Rows(torch.tensor([0.0, 0.4]), torch.tensor([0, 1, 0, 1, 1, 0]))
    got = Process(path=path).noise(x0, noise, rows)
    clean = rows.index == 0
    assert torch.equal(got[clean], x0[clean])
    assert not bool((got[~clean] == x0[~clean]).any())


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "velocity"])
@pytest.mark.parametrize("path", [RectifiedFlow(), VP.scaled_linear()])
def test_target_split_and_velocity_agree(kind: str, path: object) -> None:
    process = Process(path=path, prediction=kind)
    x0, noise = torch.randn(2, 2, 5, 3, generator=seeded(), dtype=torch.float64)
    t = Rows(torch.tensor([0.2, 0.8], dtype=torch.float64))
    x, target = process.noise(x0, noise, t), process.target(x0, noise, t)
    got_x0, got_noise = process.split(target, x, t)
    torch.testing.assert_close(got_x0, x0)
    torch.testing.assert_close(got_noise, noise)
    expected = from_x0_eps("velocity", x0, noise, coefficients(path, t, x0))
    torch.testing.assert_close(process.velocity(target, x, t), expected)


def test_loss_equals_the_formula() -> None:
    x0, noise, prediction = torch.randn(3, 2, 4, 3, generator=seeded(), dtype=torch.float64)
    t = Rows(torch.tensor([0.25, 0.75], dtype=torch.float64))
    mask = torch.tensor([[True, True, False, True], [False, True, False, False]])
    process = Process(weight=lambda t: 1 / (1 - t))
    got = process.loss(prediction, x0, noise, t, mask, weights=Rows(torch.tensor([3.0, 5.0]).double()))
    error = ((prediction - (noise - x0)) ** 2).mean(-1)
    factor = torch.tensor([3 / 0.75, 5 / 0.25], dtype=torch.float64)
    expected = (error[0, [0, 1, 3]].sum() * factor[0] + error[1, 1] * factor[1]) / 4
    torch.testing.assert_close(got, expected)
    plain = Process().loss(prediction, x0, noise, t)
    torch.testing.assert_close(plain, ((prediction - (noise - x0)) ** 2).mean())


def test_packed_loss_equals_separate() -> None:
    x0, noise, prediction = torch.randn(3, 7, 3, generator=seeded(), dtype=torch.float64)
    times = torch.tensor([0.1, 0.9], dtype=torch.float64)
    packed = Process().loss(prediction, x0, noise, Rows(times, torch.tensor([0, 0, 0, 1, 1, 1, 1])))
    parts = [
        Process().loss(prediction[s], x0[s], noise[s], Rows(times[i : i + 1]))
        for i, s in enumerate((slice(0, 3), slice(3, 7)))
    ]
    torch.testing.assert_close(packed, (3 * parts[0] + 4 * parts[1]) / 7, rtol=1e-11, atol=0)


def test_half_precision_data_stays_half_and_the_loss_is_float32() -> None:
    x0, noise = torch.randn(2, 5, 3, generator=seeded()).bfloat16()
    t = Rows(torch.tensor([0.5]))
    assert Process().noise(x0, noise, t).dtype == torch.bfloat16
    assert Process().loss(noise, x0, noise, t).dtype == torch.float32


def test_a_process_travels_to_workers() -> None:
    process = Process(warp=shift_warp(3.0), density=logit_normal(0.3, 1.0))
    copy = pickle.loads(pickle.dumps(process))
    assert torch.equal(copy.times(5), process.times(5))
    assert torch.equal(copy.draw_times(5, seeded()), process.draw_times(5, seeded()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Process().times(0), "steps must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.graph  # run-time shape checks off, as for users
def test_integers_are_refused_where_they_would_round_the_noise_away() -> None:
    whole, x, half = torch.full((2, 2), 255, dtype=torch.uint8), torch.zeros(2, 2), Rows(torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"floating-point, got torch.float32 and torch.uint8"):
        Process().noise(whole, x, half)
    with pytest.raises(ValueError, match=r"floating-point, got torch.int64 and torch.float32"):
        Process(path=VP.linear()).noise(x, x, Rows(torch.tensor([499])))
    with pytest.raises(ValueError, match=r"noise must be floating-point, got torch.uint8"):
        sample(lambda x, t: x, whole, Process().times(1), process=Process())
    with pytest.raises(ValueError, match=r"dtype must be floating-point, got torch.int64"):
        Process().draw_times(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"dtype must be floating-point, got torch.int64"):
        noise_like(TokenLayout.dense(1, Grid(1, 1, 1)), 1, [0], dtype=torch.int64)
    with pytest.raises(ValueError, match=r"prediction must be one of .* got 'noise'"):
        Process(prediction="noise")
