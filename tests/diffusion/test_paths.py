"""Paths against the published tables, diffusers' schedules, closed forms and finite differences."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from tubelet.diffusion import VP, RectifiedFlow
from tubelet.protocols import Path

PATHS = {
    "flow": RectifiedFlow(),
    "linear": VP.linear(),
    "scaled": VP.scaled_linear(),
    "cosine": VP.cosine(),
    "zero_snr": VP.linear().zero_terminal_snr(),
    "short": VP(torch.tensor([0.9, 0.3])),
}


@pytest.mark.parametrize(
    ("path", "middle", "last"),
    [
        (VP.linear(), "0.078587", "4.0358e-05"),
        (VP.scaled_linear(start=0.0015, end=0.0195), "0.115844", "1.42304e-04"),
        (VP.scaled_linear(), "0.277670", "4.6601e-03"),
        (VP.cosine(), "0.493844", "2.4288e-09"),
        (VP.linear().zero_terminal_snr(), "0.076029", "0.0000e+00"),
    ],
)
def test_published_values_to_the_last_printed_digit(path: VP, middle: str, last: str) -> None:
    digits = len(last.split("e")[0]) - 2
    assert f"{path.alphas_cumprod[499]:.6f}" == middle
    assert f"{path.alphas_cumprod[999]:.{digits}e}" == last


@pytest.mark.parametrize(
    ("path", "options"),
    [
        (VP.linear(), {"beta_start": 1e-4, "beta_end": 0.02}),
        (VP.linear(200, 1e-3, 0.05), {"beta_start": 1e-3, "beta_end": 0.05, "num_train_timesteps": 200}),
        (VP.scaled_linear(), {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (VP.linear().zero_terminal_snr(), {"beta_start": 1e-4, "beta_end": 0.02, "rescale_betas_zero_snr": True}),
    ],
)
def test_tables_equal_diffusers(path: VP, options: dict[str, object]) -> None:
    theirs = DDPMScheduler(**options).alphas_cumprod.double()
    torch.testing.assert_close(path.alphas_cumprod, theirs, rtol=2e-5, atol=2e-8)


def test_cosine_equals_diffusers_where_float32_can_tell() -> None:
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    torch.testing.assert_close(VP.cosine().alphas_cumprod, theirs, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["linear", "scaled", "cosine", "zero_snr", "short"])
def test_index_sits_at_its_time(name: str, dtype: torch.dtype) -> None:
    path = PATHS[name]
    assert isinstance(path, VP)
    index = torch.arange(path.steps)
    t = (index.to(dtype) + 1) / path.steps
    tolerance = 1e-11 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(path.alpha(t).double(), path.alphas_cumprod.sqrt(), rtol=0, atol=tolerance)
    torch.testing.assert_close(path.sigma(t).double(), (1 - path.alphas_cumprod).sqrt(), rtol=0, atol=tolerance)
    assert torch.equal(path.index(t), index)
    torch.testing.assert_close(path.time(index).to(dtype), t)


@pytest.mark.parametrize("name", PATHS)
def test_ends_are_exact(name: str) -> None:
    path, t = PATHS[name], torch.tensor([0.0, 1.0])
    assert float(path.alpha(t)[0]) == 1
    assert float(path.sigma(t)[0]) == 0
    if name in ("flow", "zero_snr"):
        assert float(path.alpha(t)[1]) == 0
        assert float(path.sigma(t)[1]) == 1
    for slope in (path.alpha_dot(t), path.sigma_dot(t)):
        assert bool(slope.isfinite().all())


def test_log_snr_is_linear_between_indices() -> None:
    path = VP.linear()
    table = path.alphas_cumprod
    snr = (table / (1 - table)).log()
    low = torch.tensor([0, 3, 500, 998])
    weight = torch.tensor([0.25, 0.5, 0.7, 0.9], dtype=torch.float64)
    t = (low + weight + 1) / path.steps
    got = 2 * (path.alpha(t).log() - path.sigma(t).log())
    torch.testing.assert_close(got, (1 - weight) * snr[low] + weight * snr[low + 1], rtol=1e-9, atol=1e-9)


def test_angle_is_linear_in_the_end_intervals() -> None:
    path = VP.linear().zero_terminal_snr()
    share = torch.tensor([0.25, 0.5], dtype=torch.float64)
    first = math.acos(math.sqrt(path.alphas_cumprod[0]))
    torch.testing.assert_close(torch.asin(path.sigma(share / 1000)), share * first)
    last = math.asin(math.sqrt(path.alphas_cumprod[-2]))
    torch.testing.assert_close(torch.asin(path.alpha((999 + share) / 1000)), (1 - share) * last)


@pytest.mark.parametrize("name", PATHS)
@given(t=st.floats(0.0005, 0.9995))
def test_derivatives_equal_finite_differences(name: str, t: float) -> None:
    path, h = PATHS[name], 1e-8
    kinks = torch.arange(path.steps + 1) / path.steps if isinstance(path, VP) else torch.zeros(1)
    if float((kinks.double() - t).abs().min()) < 1e-6:
        return
    here, ahead, back = (torch.tensor(x, dtype=torch.float64) for x in (t, t + h, t - h))
    for value, slope in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        expected = (value(ahead) - value(back)) / (2 * h)
        torch.testing.assert_close(slope(here), expected, rtol=1e-4, atol=1e-6)


@given(t=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_vp_preserves_variance_and_only_loses_signal(t: list[float]) -> None:
    times = torch.tensor(sorted(t), dtype=torch.float64)
    for name in ("linear", "cosine", "zero_snr", "short"):
        alpha, sigma = PATHS[name].alpha(times), PATHS[name].sigma(times)
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(times), rtol=1e-13, atol=0)
        assert bool((alpha.diff() <= 1e-12).all())


def test_derivative_at_an_index_is_the_one_from_below() -> None:
    path, h = VP(torch.tensor([0.9, 0.5, 0.2])), 1e-7
    t = torch.tensor(2 / 3, dtype=torch.float64)
    below = (path.sigma(t) - path.sigma(t - h)) / h
    above = (path.sigma(t + h) - path.sigma(t)) / h
    torch.testing.assert_close(path.sigma_dot(t), below, rtol=1e-5, atol=0)
    assert abs(float(above - below)) > 0.1


@pytest.mark.parametrize("rounding", ["nearest", "product", "up", "down"])
def test_float32_times_of_indices_have_the_derivative_from_below(rounding: str) -> None:
    """All 1000 indices of a table with a kink at each, against the slope of the interval below in closed form."""
    drops = torch.where(torch.arange(1000) % 2 == 0, 0.003, 0.001).double()
    path = VP((-drops.cumsum(0)).exp())
    index = torch.arange(1000)
    t = (index.float() + 1) / 1000 if rounding != "product" else (index.float() + 1) * torch.tensor(0.001)
    if rounding in ("up", "down"):
        t = torch.nextafter(t, torch.tensor(2.0 if rounding == "up" else 0.0))
    table = path.alphas_cumprod
    snr = torch.logit(table)
    speed = 1000 * table.sqrt() * (1 - table).sqrt() / 2 * -snr.diff(prepend=snr[:1])
    speed[0] = 1000 * torch.acos(table[0].sqrt())
    torch.testing.assert_close(path.sigma_dot(t).double(), table.sqrt() * speed, rtol=1e-5, atol=0)
    torch.testing.assert_close(path.alpha_dot(t).double(), -(1 - table).sqrt() * speed, rtol=1e-5, atol=0)
    exact = (index.double() + 1) / 1000
    torch.testing.assert_close(path.sigma_dot(t).double(), path.sigma_dot(exact), rtol=1e-6, atol=0)
    torch.testing.assert_close(path.sigma(t).double(), (1 - table).sqrt(), rtol=1e-6, atol=0)


def test_autograd_equals_the_derivative_at_indices_too() -> None:
    path = VP.linear()
    t = (torch.tensor([1.0, 250.0, 333.0, 999.0], dtype=torch.float64) / 1000).requires_grad_()
    (slope,) = torch.autograd.grad(path.sigma(t).sum(), t)
    torch.testing.assert_close(slope, path.sigma_dot(t.detach()), rtol=1e-9, atol=0)


def test_shape_and_dtype_are_those_of_t() -> None:
    t = torch.rand(2, 3, dtype=torch.float32)
    for path in PATHS.values():
        assert isinstance(path, Path)
        for fn in (path.alpha, path.sigma, path.alpha_dot, path.sigma_dot):
            assert fn(t).shape == (2, 3)
            assert fn(t).dtype == torch.float32


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([0.5], r"at least 2 entries .* got shape \(1,\)"),
        ([[0.9, 0.5], [0.3, 0.1]], r"at least 2 entries on one axis, got shape \(2, 2\)"),
        ([1.0, 0.5], "got 1.0 and 0.5"),
        ([0.5, -0.1], "got 0.5 and"),
        ([0.9, 0.5, 0.6, 0.1], "got 0.5 and 0.6000.* at 1 and 2"),
    ],
)
@pytest.mark.graph  # without the shape checker, which would refuse some of these first
def test_bad_tables_are_refused(table: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"alphas_cumprod.*{message}"):
        VP(torch.tensor(table))
