"""Sampling times against diffusers' schedules and scipy's beta quantiles."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from sampling import ratios
from scipy.stats import beta

from tubelet.diffusion import (
    VP,
    beta_times,
    exponential_times,
    karras_times,
    leading_times,
    linear_times,
    shift_warp,
    trailing_times,
)
from tubelet.diffusion.samplers.times import _beta_quantile

F64: dict[str, Any] = {"dtype": torch.float64}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


@pytest.mark.parametrize("steps", [1, 7, 20, 999, 1000])
@pytest.mark.parametrize(
    ("spacing", "ours"), [("linspace", linear_times), ("leading", leading_times), ("trailing", trailing_times)]
)
def test_places_of_a_table(spacing: str, ours: Any, steps: int) -> None:
    theirs = DDIMScheduler(timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    if (spacing, steps) == ("linspace", 1):  # theirs begins at the cleanest index
        theirs.timesteps = torch.tensor([999])
    got = ours(steps, 1000, **F64)
    assert got[-1] == 0
    assert ((1000 * got[:-1]).round() - 1).tolist() == theirs.timesteps.tolist()
    torch.testing.assert_close(got[:-1], (theirs.timesteps.double() + 1) / 1000, rtol=1e-15, atol=0)


def test_leading_places_have_an_offset() -> None:
    theirs = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    theirs.set_timesteps(30)
    got = leading_times(30, 1000, offset=1)
    assert ((1000 * got[:-1]).round() - 1).tolist() == theirs.timesteps.tolist()


SPREADS = {"karras": karras_times, "exponential": exponential_times, "beta": beta_times}


@pytest.mark.parametrize("name", SPREADS)
@pytest.mark.parametrize("steps", [2, 9, 30])
def test_levels_of_a_table_are_those_of_diffusers(name: str, steps: int) -> None:
    path = VP.scaled_linear()
    options = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    theirs = EulerDiscreteScheduler(timestep_spacing="linspace", **options, **{f"use_{name}_sigmas": True})
    theirs.set_timesteps(steps)
    high, low = (float(r) for r in ratios(path, path.time(torch.tensor([999, 0])).double()))
    got = SPREADS[name](steps, high, low, path=path, **F64)
    torch.testing.assert_close(ratios(path, got).float(), theirs.sigmas, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", SPREADS)
def test_levels_of_a_flow_are_those_of_diffusers(name: str) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(**{f"use_{name}_sigmas": True})
    theirs.set_timesteps(12)
    low = float(theirs.sigmas[-2])
    torch.testing.assert_close(SPREADS[name](12, 1.0, low), theirs.sigmas, rtol=1e-5, atol=1e-7)


def test_shifted_times_are_those_of_diffusers() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=5.0)
    theirs.set_timesteps(sigmas=np.linspace(1, 0, 11)[:-1].tolist())
    got = shift_warp(5.0)(linear_times(10, 10))
    torch.testing.assert_close(got, theirs.sigmas, rtol=1e-6, atol=0)


@given(a=st.floats(0.2, 20), b=st.floats(0.2, 20))
def test_beta_quantiles_are_scipys(a: float, b: float) -> None:
    p = torch.linspace(0, 1, 14, dtype=torch.float64)
    got, expected = _beta_quantile(p, a, b), torch.from_numpy(beta.ppf(p.numpy(), a, b))
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)


def test_dtype_and_ends() -> None:
    for times in (linear_times(3, 9), leading_times(3, 9), trailing_times(3, 9), karras_times(3, 0.9, 0.1)):
        assert times.dtype == torch.float32
        assert times.shape == (4,)
        assert bool((times.diff() < 0).all())
    assert karras_times(4, 0.9, 0.1, **F64)[[0, 3]].tolist() == pytest.approx([0.9, 0.1], rel=1e-14)
    assert beta_times(4, 0.9, 0.1, **F64)[[0, 3]].tolist() == pytest.approx([0.9, 0.1], rel=1e-14)


def test_wrong_arguments_are_named() -> None:
    for places in (linear_times, leading_times, trailing_times):
        for steps in (0, 11):
            with pytest.raises(ValueError, match=rf"steps must be in 1 to of=10, got {steps}"):
                places(steps, 10)
    with pytest.raises(ValueError, match=r"keep the indices below 10, got 5 and 13"):
        leading_times(5, 10, offset=5)
    for spread in SPREADS.values():
        with pytest.raises(ValueError, match=r"steps must be at least 1, got 0"):
            spread(0, 1.0, 0.1)
        with pytest.raises(ValueError, match=r"0 < low <= high, got 0.0 and 1.0"):
            spread(3, 1.0, 0.0)
        with pytest.raises(ValueError, match=r"0 < low <= high, got 2.0 and 1.0"):
            spread(3, 1.0, 2.0)
    with pytest.raises(ValueError, match=r"rho must be above 0 and finite, got -7"):
        karras_times(3, 1.0, 0.1, rho=-7.0)
    with pytest.raises(ValueError, match=r"a and b must be above 0 and finite, got 0.0 and 1.0"):
        beta_times(3, 1.0, 0.1, a=0.0, b=1.0)
