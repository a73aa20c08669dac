"""The diagonal Gaussian against torch.distributions and diffusers."""

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.distributions import Normal, kl_divergence

from tubelet.vae import DiagonalGaussian


def moments() -> torch.Tensor:
    return 3 * torch.randn(3, 8, 2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_kl_is_the_closed_form_of_torch_distributions() -> None:
    mean, logvar = moments().chunk(2, 1)
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    torch.testing.assert_close(DiagonalGaussian.of(moments()).kl(), expected.sum((1, 2, 3, 4)), rtol=1e-12, atol=0)


def test_equal_to_diffusers() -> None:
    ours, theirs = DiagonalGaussian.of(40 * moments()), DiagonalGaussianDistribution(40 * moments())
    assert torch.equal(ours.logvar, theirs.logvar)
    assert torch.equal(ours.mode(), theirs.mode())
    assert ours.logvar.min() == -30
    assert ours.logvar.max() == 20
    sample = theirs.sample(torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours.sample(torch.Generator().manual_seed(5)), sample)


def test_samples_have_the_moments_and_follow_the_generator() -> None:
    one = torch.ones(1, 1, 1, 100, 1000, dtype=torch.float64)
    posterior = DiagonalGaussian(2 * one, 2 * torch.log(3 * one))
    sample = posterior.sample(torch.Generator().manual_seed(1))
    assert abs(sample.mean().item() - 2) < 5 * 3 / 1e5**0.5
    assert abs(sample.std().item() - 3) < 5 * 3 / 2e5**0.5
    assert torch.equal(sample, posterior.sample(torch.Generator().manual_seed(1)))
    assert not torch.equal(sample, posterior.sample(torch.Generator().manual_seed(2)))


def test_gradients_reach_both_moments() -> None:
    mean, logvar = (torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    sample = DiagonalGaussian(mean, logvar).sample(torch.Generator().manual_seed(1))
    by_mean, by_logvar = torch.autograd.grad(sample.sum(), (mean, logvar))
    assert by_mean.item() == 1.0
    torch.testing.assert_close(by_logvar, sample.detach() / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_divergence_of_a_posterior_near_the_normal_is_no_rounding(dtype: torch.dtype) -> None:
    mean, logvar = (torch.full((1, 4, 3, 8, 8), value).to(dtype) for value in (0.01, -1e-3))
    found, exact = DiagonalGaussian(mean, logvar).kl(), DiagonalGaussian(mean.double(), logvar.double()).kl()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.graph  # run-time shape checks off, as for users
def test_an_odd_number_of_moments_is_refused() -> None:
    with pytest.raises(ValueError, match=r"even number of channels, got shape \(1, 3, 1, 2, 2\)"):
        DiagonalGaussian.of(torch.zeros(1, 3, 1, 2, 2))
