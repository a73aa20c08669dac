"""Losses against sums written out and torch.distributions."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tubelet.vae import DiagonalGaussian, kl_loss, reconstruction_loss


@pytest.mark.parametrize("l1", [0.0, 0.3, 1.0])
def test_reconstruction_mixes_absolute_and_squared_error(l1: float) -> None:
    a, b = torch.randn(2, 2, 1, 3, 4, 2, dtype=torch.float64).unbind(0)
    errors = [x - y for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
    expected = sum(l1 * abs(e) + (1 - l1) * e * e for e in errors) / len(errors)
    assert reconstruction_loss(a, b, l1).item() == pytest.approx(expected, rel=1e-12)


def test_l1_is_a_share() -> None:
    x = torch.zeros(1, 1, 1, 2, 2)
    for bad in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"l1 .*{bad}"):
            reconstruction_loss(x, x, bad)


def test_kl_is_the_mean_over_latent_numbers() -> None:
    mean, logvar = torch.randn(2, 3, 4, 2, 3, 1, dtype=torch.float64).unbind(0)
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), prior).mean()
    torch.testing.assert_close(kl_loss(DiagonalGaussian(mean, logvar)), expected, rtol=1e-12, atol=0)


@pytest.mark.graph  # run-time shape checks off, as for users
def test_videos_that_only_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"decoded has shape \(1, 1, 1, 2, 2\), but video has \(1, 3, 1, 2, 2\)"):
        reconstruction_loss(torch.zeros(1, 1, 1, 2, 2), torch.zeros(1, 3, 1, 2, 2))
