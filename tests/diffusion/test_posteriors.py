"""Posteriors against Gaussian conditioning and diffusers' DDPM; learned variances against its learned range."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from tubelet.diffusion import (
    EDM,
    VP,
    VPSDE,
    Normalized,
    RectifiedFlow,
    learned_range,
    posterior,
    range_share,
)
from tubelet.layout import Rows
from tubelet.protocols import Path

PATHS = [RectifiedFlow(), VP.linear(), VP.cosine().zero_terminal_snr(), VPSDE(), EDM(3.0), Normalized(RectifiedFlow())]


def row(*times: float) -> Rows:
    return Rows(torch.tensor(times, dtype=torch.float64))


@pytest.mark.parametrize("path", PATHS)
@given(low=st.floats(0.02, 0.9), gap=st.floats(0.01, 0.09))
def test_it_is_the_conditional_of_the_joint_normal(path: Path, low: float, gap: float) -> None:
    """(x_s, x_t) given x0: ``x_s = alpha_s·x0 + sigma_s·e1``, ``x_t = r·x_s + sqrt(beta)·e2``; condition on x_t."""
    s, t = (torch.tensor(value, dtype=torch.float64) for value in (low, low + gap))
    at = posterior(path, Rows(t[None]), Rows(s[None]), torch.zeros(1, 1, dtype=torch.float64))
    alpha, sigma = (path.alpha(t), path.alpha(s)), (path.sigma(t), path.sigma(s))
    cross = alpha[0] / alpha[1] * sigma[1] ** 2
    gain = cross / sigma[0] ** 2
    expected = (gain, alpha[1] - gain * alpha[0], sigma[1] ** 2 - gain * cross)
    for got, wanted in zip((at.of_x, at.of_x0, at.low.exp()), expected, strict=True):
        torch.testing.assert_close(got[0, 0], wanted, rtol=1e-8, atol=1e-10)
    added = sigma[0] ** 2 - (alpha[0] / alpha[1] * sigma[1]) ** 2
    torch.testing.assert_close(at.high.exp()[0, 0], added, rtol=1e-10, atol=0)


@pytest.mark.parametrize("index", [1, 400, 999])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_mean_and_variances_equal_diffusers(index: int, zero_snr: bool) -> None:
    options = {"beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False, "rescale_betas_zero_snr": zero_snr}
    path = VP.linear().zero_terminal_snr() if zero_snr else VP.linear()
    x0, x = torch.randn(2, 1, 4, 2)
    t, s = (Rows(path.time(torch.tensor([i]))) for i in (index, index - 1))
    at = posterior(path, t, s, x)
    share = torch.linspace(-1, 1, 8).view(1, 4, 2)
    for kind, expected in (("fixed_small", at.low.exp()), ("fixed_large", at.high.exp())):
        theirs = DDPMScheduler(**options, variance_type=kind)._get_variance(index)
        torch.testing.assert_close(theirs, expected[0, 0, 0], rtol=2e-3, atol=1e-7)
    theirs = DDPMScheduler(**options, variance_type="learned_range")._get_variance(index, share)
    torch.testing.assert_close(learned_range(share, at.low, at.high), theirs, rtol=1e-3, atol=1e-4)
    peer = DDPMScheduler(**options, prediction_type="sample")
    noise = torch.Generator().manual_seed(5)
    stepped = peer.step(x0, index, x, generator=noise).prev_sample
    fresh = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(at.mean(x, x0) + (at.low / 2).exp() * fresh, stepped, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("path", PATHS)
def test_the_step_to_clean_data_is_the_data(path: Path) -> None:
    at = posterior(path, row(0.3), row(0.0), torch.zeros(1, 1, dtype=torch.float64))
    assert (at.of_x.item(), at.of_x0.item(), at.low.item()) == (0.0, pytest.approx(1, rel=1e-14), -math.inf)
    assert at.high.isfinite().all()


def test_two_steps_are_one() -> None:
    """q(x_u | x_t, x0) is q(x_u | x_s, x0) averaged over q(x_s | x_t, x0)."""
    like, path = torch.zeros(1, 1, dtype=torch.float64), VP.cosine()
    first, second, whole = (posterior(path, row(a), row(b), like) for a, b in ((0.8, 0.5), (0.5, 0.2), (0.8, 0.2)))
    torch.testing.assert_close(second.of_x * first.of_x, whole.of_x)
    torch.testing.assert_close(second.of_x0 + second.of_x * first.of_x0, whole.of_x0)
    torch.testing.assert_close(second.low.exp() + second.of_x**2 * first.low.exp(), whole.low.exp())


@given(share=st.floats(-1, 1), low=st.floats(-9, -5), width=st.floats(0.1, 3))
def test_the_range_round_trips_and_interpolates_logarithms(share: float, low: float, width: float) -> None:
    told, ends = torch.tensor(share, dtype=torch.float64), torch.tensor([low, low + width], dtype=torch.float64)
    chosen = learned_range(told, *ends)
    fraction = (share + 1) / 2
    assert float(chosen) == pytest.approx(fraction * float(ends[1]) + (1 - fraction) * float(ends[0]), rel=1e-12)
    torch.testing.assert_close(range_share(chosen, *ends), told, rtol=1e-9, atol=1e-11)
    assert range_share(chosen, ends[0], ends[0]) == 0


def test_levels_of_tokens_and_their_dtypes() -> None:
    index = torch.tensor([1, 0, 1])
    t, s = Rows(torch.tensor([0.5, 0.9]), index), Rows(torch.tensor([0.4, 0.8]), index)
    at = posterior(RectifiedFlow(), t, s, torch.zeros(3, 2, dtype=torch.bfloat16))
    assert at.low.dtype == torch.float32
    assert at.low.shape == (3, 1)
    assert at.low[0] == at.low[2] != at.low[1]
    with pytest.raises(ValueError, match=r"t has \(2,\) levels, but s has \(1,\)"):
        posterior(RectifiedFlow(), t, Rows(torch.tensor([0.1])), torch.zeros(3, 2))
