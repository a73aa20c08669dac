"""Paths against the published tables, diffusers' schedules, closed forms and finite differences."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDPMScheduler, EDMEulerScheduler
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from tubelet.diffusion import EDM, VESDE, VP, VPSDE, Normalized, RectifiedFlow
from tubelet.protocols import Path
from tubelet.testing import check_path

PATHS = {
    "flow": RectifiedFlow(),
    "linear": VP.linear(),
    "scaled": VP.scaled_linear(),
    "cosine": VP.cosine(),
    "zero_snr": VP.linear().zero_terminal_snr(),
    "short": VP(torch.tensor([0.9, 0.3])),
    "sigmoid": VP.sigmoid(300),
    "cogvideox": VP.scaled_linear().shifted(3.0).zero_terminal_snr(),
    "sde": VPSDE(),
    "edm": EDM(3.0),
    "vesde": VESDE(0.1, 5.0),
    "cosmos": Normalized(RectifiedFlow()),
    "normal_edm": Normalized(EDM()),
}
TABLES = [name for name, path in PATHS.items() if isinstance(path, VP)]
PURE_NOISE = ("flow", "zero_snr", "sigmoid", "cogvideox", "cosmos")


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
        (VP.sigmoid_betas(), {"beta_schedule": "sigmoid", "beta_start": 1e-4, "beta_end": 0.02}),
    ],
)
def test_tables_equal_diffusers(path: VP, options: dict[str, object]) -> None:
    theirs = DDPMScheduler(**options).alphas_cumprod.double()
    torch.testing.assert_close(path.alphas_cumprod, theirs, rtol=2e-5, atol=2e-8)


def test_cogvideox_table_equals_diffusers() -> None:
    options = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    theirs = CogVideoXDDIMScheduler(**options, snr_shift_scale=3.0, rescale_betas_zero_snr=True).alphas_cumprod
    torch.testing.assert_close(VP.scaled_linear().shifted(3.0).zero_terminal_snr().alphas_cumprod, theirs.double())


def recursion(betas: np.ndarray) -> np.ndarray:
    """``alpha²`` of betas, in extended precision, by summing logarithms."""
    return np.exp(np.cumsum(np.log1p(-betas.astype(np.longdouble)))).astype(np.float64)


def cosine_betas() -> np.ndarray:
    signal = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    return np.array([min(1 - b / a, 0.999) for a, b in itertools.pairwise(signal)])


@pytest.mark.parametrize(
    ("path", "betas"),
    [
        (VP.linear(), np.linspace(1e-4, 0.02, 1000)),
        (VP.scaled_linear(start=0.0015, end=0.0195), np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2),
        (VP.scaled_linear(), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
        (VP.cosine(), cosine_betas()),
    ],
)
def test_tables_equal_the_recursion_in_extended_precision(path: VP, betas: np.ndarray) -> None:
    table = recursion(betas)
    np.testing.assert_allclose(path.alphas_cumprod.numpy(), table, rtol=1e-10)
    root = np.sqrt(table)
    rescaled = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    np.testing.assert_allclose(path.zero_terminal_snr().alphas_cumprod.numpy(), rescaled, rtol=1e-9, atol=1e-30)


def test_sigmoid_equals_its_formula() -> None:
    got, logistic = VP.sigmoid(5, start=-2.0, end=4.0, tau=0.7).alphas_cumprod, lambda u: 1 / (1 + math.exp(-u))
    bottom, top = logistic(-2 / 0.7), logistic(4 / 0.7)
    expected = [(top - logistic((-2 + 6 * t) / 0.7)) / (top - bottom) for t in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert got.tolist() == pytest.approx(expected, rel=1e-12, abs=0)
    assert got[-1] == 0


@given(scale=st.floats(0.1, 20))
def test_a_shifted_table_has_its_ratios_divided(scale: float) -> None:
    before, after = (path.alphas_cumprod for path in (VP.linear(20), VP.linear(20).shifted(scale)))
    torch.testing.assert_close(after / (1 - after), before / (1 - before) / scale, rtol=1e-10, atol=0)


@pytest.mark.parametrize("t", [0.02, 0.3, 0.77, 1.0])
def test_continuous_paths_equal_the_integral_of_their_equation(t: float) -> None:
    """Song et al.: VP has ``alpha = exp(-½∫beta)``, VE the variance ``∫g²`` with ``g² = d sigma²/dt``."""
    time = torch.tensor(t, dtype=torch.float64)
    drift, _ = quad(lambda s: 0.1 + 19.9 * s, 0, t, epsrel=1e-12)
    assert float(VPSDE().alpha(time)) == pytest.approx(math.exp(-drift / 2), rel=1e-12)
    assert float(VPSDE().sigma(time)) == pytest.approx(math.sqrt(1 - math.exp(-drift)), rel=1e-12)
    rate = math.log(5.0 / 0.1)
    variance, _ = quad(lambda s: 2 * rate * (0.1 * math.exp(rate * s)) ** 2, 0, t, epsrel=1e-12)
    assert float(VESDE(0.1, 5.0).sigma(time)) == pytest.approx(math.sqrt(variance), rel=1e-10)
    assert float(VESDE(0.1, 5.0).alpha(time)) == 1


def test_the_vp_sde_is_the_limit_of_fine_tables() -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    errors = []
    for steps in (10_000, 20_000):
        table = VP.from_betas((0.1 + 19.9 * (torch.arange(steps).double() + 1) / steps) / steps)
        errors.append((table.alpha(t) / VPSDE().alpha(t) - 1).abs().max())
    assert errors[0] < 1e-2
    assert 1.9 < float(errors[0] / errors[1]) < 2.1


def test_normalized_flow_is_what_edms_network_sees_in_diffusers() -> None:
    """Cosmos 1: data of deviation 1; the network's input, and its output as minus ``v``."""
    path, peer = Normalized(RectifiedFlow()), EDMEulerScheduler(sigma_data=1.0)
    x0, eps = torch.randn(2, 6, dtype=torch.float64)
    for t in torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64):
        ratio = t / (1 - t)
        state, at = x0 + ratio * eps, torch.stack([path.alpha(t), path.sigma(t)])
        torch.testing.assert_close(peer.precondition_inputs(state, ratio), at[0] * x0 + at[1] * eps)
        v = at[0] * eps - at[1] * x0
        torch.testing.assert_close(peer.precondition_outputs(state, -v, ratio), x0)


@pytest.mark.parametrize("name", PATHS)
def test_every_path_conforms(name: str) -> None:
    if name != "short":  # its kinks lie where the kit takes differences
        check_path(PATHS[name])


def test_a_tabulated_path_meets_it_at_every_index() -> None:
    for path in (VPSDE(), RectifiedFlow(), VESDE(0.1, 5.0)):
        table, t = VP.tabulated(path, 50), torch.arange(1, 51, dtype=torch.float64) / 50
        angle = torch.atan2(path.sigma(t), path.alpha(t))
        torch.testing.assert_close(torch.atan2(table.sigma(t), table.alpha(t)), angle, rtol=1e-9, atol=1e-9)
    assert VP.tabulated(VPSDE()).zero_terminal_snr().alphas_cumprod[-1] == 0


def test_cosine_equals_diffusers_where_float32_can_tell() -> None:
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    torch.testing.assert_close(VP.cosine().alphas_cumprod, theirs, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TABLES)
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
    if name in PURE_NOISE:
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
    for name in (*TABLES, "sde", "cosmos", "normal_edm"):
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPSDE(2.0, 1.0), "0 < start <= end, got 2.0 and 1.0"),
        (lambda: EDM(math.inf), "end must be above 0 and finite, got inf"),
        (lambda: VESDE(2.0, 2.0), "0 < start < end, got 2.0 and 2.0"),
        (lambda: VP.sigmoid(4, 1.0, 0.0), "start must be below end and tau above 0, got 1.0, 0.0 and 1.0"),
        (lambda: VP.linear().shifted(0.0), "scale must be above 0 and finite, got 0.0"),
    ],
)
def test_bad_numbers_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
