"""Foreign noise levels: round trips in float64 on every path, and the numbers that diffusers' schedulers hold."""

import math

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from hypothesis import given
from hypothesis import strategies as st

from tubelet.diffusion import (
    EDM,
    VESDE,
    VP,
    VPSDE,
    Normalized,
    RectifiedFlow,
    log_snr,
    noise_ratio,
    time_of_log_snr,
    time_of_ratio,
)
from tubelet.diffusion.conventions import Invertible

PATHS = {
    "flow": RectifiedFlow(),
    "linear": VP.linear(),
    "zero_snr": VP.scaled_linear().zero_terminal_snr(),
    "sde": VPSDE(),
    "edm": EDM(),
    "vesde": VESDE(),
    "cosmos": Normalized(RectifiedFlow()),
}
TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize("name", PATHS)
@given(t=st.floats(1e-6, 0.999))
def test_round_trips(name: str, t: float) -> None:
    path, time = PATHS[name], torch.tensor([t], dtype=torch.float64)
    ratio = noise_ratio(path, time)
    torch.testing.assert_close(time_of_ratio(path, ratio), time, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(time_of_log_snr(path, log_snr(path, time)), time, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(log_snr(path, time), -2 * ratio.log(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", PATHS)
def test_ends(name: str) -> None:
    path = PATHS[name]
    last = noise_ratio(path, torch.ones(1))
    assert float(last) == math.inf or name not in ("flow", "zero_snr", "cosmos")
    got = time_of_ratio(path, torch.tensor([0.0, float(last), 2 * float(last), math.inf]))
    assert got[0] == 0
    torch.testing.assert_close(got[1:], torch.ones(3), rtol=1e-6, atol=0)
    assert log_snr(path, torch.zeros(1)) == math.inf


def test_flow_has_closed_forms() -> None:
    ratio = torch.tensor([1e-9, 0.25, 4.0, 1e9], dtype=torch.float64)
    torch.testing.assert_close(time_of_ratio(RectifiedFlow(), ratio), ratio / (1 + ratio), rtol=1e-9, atol=0)
    value = torch.tensor([-30.0, -1.0, 0.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(time_of_log_snr(RectifiedFlow(), value), torch.sigmoid(-value / 2), rtol=1e-9, atol=0)


def test_shape_and_dtype_are_kept_and_nothing_is_read_on_the_host() -> None:
    for fn in (noise_ratio, time_of_ratio, log_snr, time_of_log_snr):
        assert fn(VP.linear(), torch.full((2, 3), 0.5)).dtype == torch.float32
        made = fn(RectifiedFlow(), torch.zeros(2, 3, device="meta"))
        assert (made.shape, made.device.type) == ((2, 3), "meta")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, with numpy 2
def test_sigmas_of_a_table_are_noise_ratios() -> None:
    path, peer = VP.scaled_linear(), EulerDiscreteScheduler(**TABLE, timestep_spacing="linspace")
    peer.set_timesteps(1000)
    t = path.time(torch.arange(1000)).flip(0)
    torch.testing.assert_close(noise_ratio(path, t), peer.sigmas[:-1], rtol=1e-4, atol=0)
    # between indices k-diffusion is linear in log sigma, as our tables are in the log signal-to-noise ratio
    sigmas = torch.tensor([0.05, 0.7, 3.3, 14.0], dtype=torch.float64)
    logs = noise_ratio(path, path.time(torch.arange(1000)).double()).log().numpy()
    theirs = [float(peer._sigma_to_t(sigma, logs)) for sigma in sigmas.numpy()]
    assert (1000 * time_of_ratio(path, sigmas) - 1).tolist() == pytest.approx(theirs, rel=1e-6)


def test_lambdas_of_dpm_solver_are_half_log_snr() -> None:
    path, peer = VP.scaled_linear(), DPMSolverMultistepScheduler(**TABLE)
    t = path.time(torch.arange(1000))
    torch.testing.assert_close(log_snr(path, t) / 2, peer.lambda_t, rtol=1e-4, atol=1e-4)


def test_edm_is_fed_a_quarter_of_the_log_ratio() -> None:
    peer = EDMEulerScheduler()
    peer.set_timesteps(9)
    t = time_of_ratio(EDM(80.0), peer.sigmas[:-1])
    torch.testing.assert_close(noise_ratio(EDM(80.0), t).log() / 4, peer.timesteps, rtol=1e-5, atol=1e-6)
    other = time_of_ratio(VPSDE(), peer.sigmas[:-1].double())
    torch.testing.assert_close(noise_ratio(VPSDE(), other).float(), peer.sigmas[:-1], rtol=1e-5, atol=0)


def test_timesteps_of_flow_schedulers_are_a_thousand_times_ours() -> None:
    peer = FlowMatchEulerDiscreteScheduler(shift=3.0)
    peer.set_timesteps(7)
    torch.testing.assert_close(peer.timesteps / 1000, peer.sigmas[:-1])
    t = time_of_ratio(RectifiedFlow(), peer.sigmas / (1 - peer.sigmas))
    torch.testing.assert_close(t, peer.sigmas, rtol=1e-5, atol=1e-6)


def test_alpha_bar_and_the_angle_by_way_of_the_ratio() -> None:
    path = VP.linear()
    t = time_of_ratio(path, (1 / path.alphas_cumprod - 1).sqrt())
    torch.testing.assert_close(t, (torch.arange(1000).double() + 1) / 1000, rtol=1e-10, atol=0)
    angle = torch.tensor([0.1, 0.8, 1.5], dtype=torch.float64)
    at = time_of_ratio(VPSDE(), angle.tan())
    torch.testing.assert_close(torch.atan2(VPSDE().sigma(at), VPSDE().alpha(at)), angle)


class Opaque:
    """A path that does not tell its inverse."""

    def __init__(self, path: object) -> None:
        self.alpha, self.sigma = path.alpha, path.sigma
        self.alpha_dot, self.sigma_dot = path.alpha_dot, path.sigma_dot


@pytest.mark.parametrize("name", PATHS)
def test_inverses_in_closed_form_are_what_comparing_finds(name: str) -> None:
    path = PATHS[name]
    t = torch.cat([torch.logspace(-6, -1, 11, dtype=torch.float64), torch.linspace(0.1, 0.9999, 37).double()])
    ratio = noise_ratio(path, t)
    assert isinstance(path, Invertible)
    assert not isinstance(Opaque(path), Invertible)
    torch.testing.assert_close(time_of_ratio(path, ratio), time_of_ratio(Opaque(path), ratio), rtol=1e-10, atol=1e-14)
