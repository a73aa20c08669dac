"""The timestep shift: its inverse, its effect on the ratio, per sample, and diffusers' dynamic shift."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from tubelet.diffusion import (
    Process,
    RectifiedFlow,
    identity,
    log_linear_shift,
    noise_ratio,
    root_shift,
    shift_warp,
    stratified,
)


@given(shift=st.floats(0.1, 20), t=st.floats(0, 1))
def test_shift_inverts_and_keeps_the_ends(shift: float, t: float) -> None:
    time = torch.tensor([0.0, t, 1.0], dtype=torch.float64)
    warped = shift_warp(shift)(time)
    torch.testing.assert_close(shift_warp(1 / shift)(warped), time, rtol=1e-12, atol=1e-14)
    assert warped.tolist()[0] == 0.0
    assert math.isclose(warped.tolist()[2], 1.0, rel_tol=1e-15)
    # the signal-to-noise ratio falls by the square of the shift
    if 1e-6 < t < 1 - 1e-6:
        ratio = noise_ratio(RectifiedFlow(), torch.stack([warped[1], time[1]]))
        assert math.isclose(float(ratio[0]), shift * float(ratio[1]), rel_tol=1e-9)


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 9000])
def test_sampling_times_are_diffusers_with_its_dynamic_shift(tokens: int) -> None:
    shift = log_linear_shift(tokens)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 9, 9), mu=0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))
    torch.testing.assert_close(Process(warp=shift_warp(shift)).times(9), scheduler.sigmas, rtol=1e-6, atol=1e-7)


def test_root_shift_keeps_the_doubt_about_a_flat_picture() -> None:
    """SD3, section 5.3.2: the mean of n noisy cells of one value is uncertain by ``t/(1 - t)/sqrt(n)``."""
    t = torch.tensor([0.2, 0.6], dtype=torch.float64)
    shifted = shift_warp(root_shift(4000, 1000))(t)
    doubt = [time / (1 - time) / math.sqrt(n) for time, n in ((t, 1000), (shifted, 4000))]
    torch.testing.assert_close(*doubt)
    assert root_shift(1000, 1000, shift=3.0) == 3.0


def test_each_sample_may_have_its_own_shift_applied_once() -> None:
    shifts = [root_shift(n, 256) for n in (256, 1024, 64)]
    mixed = Process(warp=shift_warp(torch.tensor(shifts, dtype=torch.float64)), density=stratified)
    even = Process(density=stratified).draw_times(3, torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = mixed.draw_times(3, torch.Generator().manual_seed(1), dtype=torch.float64)
    times = mixed.times(5, rows=3)
    assert times.shape == (6, 3)
    for i, shift in enumerate(shifts):
        alone = Process(warp=shift_warp(shift))
        torch.testing.assert_close(times[:, i], alone.times(5))
        torch.testing.assert_close(drawn[i], alone.warp(even[i]))
    torch.testing.assert_close(Process().times(5, rows=2), Process().times(5)[:, None].expand(-1, 2))


def test_identity_is_the_shift_of_one() -> None:
    t = torch.rand(5)
    assert torch.equal(identity(t), t)
    torch.testing.assert_close(shift_warp(1.0)(t), t)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shift_warp(0.0), "shift must be above 0 and finite, got 0.0"),
        (lambda: shift_warp(math.inf), "shift must be above 0 and finite, got inf"),
        (lambda: shift_warp(torch.tensor([1.0, -2.0])), r"shift must be above 0 and finite, got \[1.0, -2.0\]"),
        (lambda: shift_warp(torch.ones(2))(torch.ones(3)), r"times have shape \(3,\), but there are 2 shifts"),
        (lambda: root_shift(0, 4), "tokens and base must be at least 1, got 0 and 4"),
        (lambda: log_linear_shift(5, (4, 0.1), (4, 0.2)), r"must differ in tokens, got \(4, 0.1\) and \(4, 0.2\)"),
    ],
)
def test_bad_input_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
