"""DiT's loss against its formulas, written out for one number at a time in plain floats; masks and gradients."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tubelet.diffusion import VP, Process, bin_log_likelihood, hybrid_loss, normal_kl, vlb
from tubelet.layout import Rows

STEPS = 50
PATH = VP.linear(STEPS, 1e-3, 0.2)
PROCESS = Process(path=PATH, prediction="eps")


def one_bound(index: int, x0: float, noise: float, eps: float, share: float) -> float:
    """The term of one number at one index, from the betas: DDPM's posterior, learned range, bits."""
    betas = np.linspace(1e-3, 0.2, STEPS)
    kept = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], kept[:-1]])
    small = betas * (1 - before) / (1 - kept)
    small[0] = small[1]
    beta, bar, bar_before = betas[index], kept[index], before[index]
    x = math.sqrt(bar) * x0 + math.sqrt(1 - bar) * noise
    guess = x / math.sqrt(bar) - math.sqrt(1 / bar - 1) * eps

    def mean(data: float) -> float:
        of_data = beta * math.sqrt(bar_before) / (1 - bar)
        of_state = (1 - bar_before) * math.sqrt(1 - beta) / (1 - bar)
        return of_data * data + of_state * x

    fraction = (share + 1) / 2
    chosen = fraction * math.log(beta) + (1 - fraction) * math.log(small[index])
    if index > 0:
        true = math.log(small[index])
        gap = (mean(x0) - mean(guess)) ** 2
        return 0.5 * (chosen - true - 1 + math.exp(true - chosen) + gap / math.exp(chosen)) / math.log(2)

    def phi(z: float) -> float:
        return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    deviation, centre = math.exp(0.5 * chosen), x0 - mean(guess)
    upper, lower = phi((centre + 1 / 255) / deviation), phi((centre - 1 / 255) / deviation)
    chance = upper if x0 < -0.999 else (1 - lower if x0 > 0.999 else upper - lower)
    return -math.log(max(chance, 1e-12)) / math.log(2)


def levels(index: Tensor) -> Rows:
    return Rows((index.double() + 1) / STEPS)


def drawn(*shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise, error, share = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    x0 = (0.7 * x0).clamp(-1, 1)  # some at both outermost bins
    return x0, noise, noise + 0.3 * error, torch.tanh(share)


def test_the_bound_equals_its_formulas_number_by_number() -> None:
    index = torch.tensor([0, 1, 2, 17, 49])
    x0, noise, eps, share = drawn(5, 6, 4)
    assert {-1.0, 1.0} <= set(x0[0].flatten().tolist())
    got = vlb(PROCESS, eps, share, x0, noise, levels(index), STEPS)
    numbers = torch.stack([index[:, None, None].expand_as(x0).double(), x0, noise, eps, share], dim=-1)
    expected = [one_bound(int(i), *rest) for i, *rest in numbers.reshape(-1, 5).tolist()]
    np.testing.assert_allclose(got.numpy(), np.reshape(expected, (5, 6, 4)).mean(-1), rtol=1e-8)


def test_the_hybrid_is_squared_error_plus_the_bound_of_a_detached_mean() -> None:
    x0, noise, eps, share = drawn(3, 5, 4)
    t = levels(torch.tensor([0, 7, 30]))
    output = torch.cat([eps, share], dim=-1).requires_grad_()
    loss = hybrid_loss(PROCESS, output, x0, noise, t, STEPS, bound=0.4)
    plain = ((eps - noise) ** 2).mean()
    torch.testing.assert_close(loss, plain + 0.4 * vlb(PROCESS, eps, share, x0, noise, t, STEPS).mean())
    (gradient,) = torch.autograd.grad(loss, output)
    torch.testing.assert_close(gradient[..., :4], 2 * (eps - noise) / eps.numel())
    assert bool((gradient[..., 4:] != 0).any(-1).all())


def test_what_is_masked_reaches_neither_the_loss_nor_a_gradient() -> None:
    x0, noise, eps, share = drawn(6, 4)
    mask = torch.tensor([True, False, True, True, False, True])
    rows = Rows(torch.tensor([0.5, 0.0], dtype=torch.float64), (~mask).long())  # known tokens stand at level 0
    output = torch.cat([eps, share], dim=-1)
    alone = hybrid_loss(PROCESS, output[mask], x0[mask], noise[mask], Rows(rows.values[:1]), STEPS)
    spoilt = torch.where(mask[:, None], output, float("nan")).requires_grad_()
    x0 = torch.where(mask[:, None], x0, float("inf"))
    loss = hybrid_loss(PROCESS, spoilt, x0, noise, rows, STEPS, mask)
    torch.testing.assert_close(loss, alone)
    (gradient,) = torch.autograd.grad(loss, spoilt)
    assert bool((gradient[~mask] == 0).all())
    assert bool(gradient[mask].isfinite().all())


def test_every_prediction_of_the_same_data_has_the_same_bound() -> None:
    x0, noise, eps, share = drawn(4, 3)
    t = Rows(torch.tensor([0.4], dtype=torch.float64))
    x = PROCESS.noise(x0, noise, t)
    guess, implied = PROCESS.split(eps, x, t)
    expected = vlb(PROCESS, eps, share, x0, noise, t, STEPS)
    for kind in ("x0", "v", "velocity"):
        process = Process(path=PATH, prediction=kind)
        got = vlb(process, process.target(guess, implied, t), share, x0, noise, t, STEPS)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("path", [PATH, PATH.zero_terminal_snr()])
def test_all_indices_are_finite_in_float32_and_rounding_finds_them(path: VP) -> None:
    process = Process(path=path, prediction="v")
    x0, noise = torch.randn(2, STEPS, 2, 3)
    share = torch.rand(STEPS, 2, 3) * 2 - 1
    t = path.time(torch.arange(STEPS))
    got = vlb(process, noise, share, x0, noise, Rows(t), STEPS)
    assert got.dtype == torch.float32
    assert bool(got.isfinite().all())
    for rounded in (torch.nextafter(t, torch.tensor(2.0)), torch.nextafter(t, torch.tensor(0.0))):
        torch.testing.assert_close(vlb(process, noise, share, x0, noise, Rows(rounded), STEPS), got)


def test_a_level_below_the_last_step_counts_as_the_last_step() -> None:
    """Half an index is not on the cut interval: its bound is finite."""
    x0, noise, share = torch.zeros(1, 3, 4), torch.randn(1, 3, 4), torch.zeros(1, 3, 4)
    process = Process(path=PATH, prediction="x0")
    low, first = (
        vlb(process, x0, share, x0, noise, Rows(torch.tensor([place / STEPS])), STEPS) for place in (0.5, 1.0)
    )
    assert bool(low.isfinite().all())
    assert float(low.max()) < float(first.max()) + 1


def test_divergence_and_likelihood_against_torch_and_quadrature() -> None:
    mean, mean2, log, log2 = torch.randn(4, 20, dtype=torch.float64)
    ours = normal_kl(mean, log, mean2, log2)
    first, second = (torch.distributions.Normal(m, (v / 2).exp()) for m, v in ((mean, log), (mean2, log2)))
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(first, second))
    x = torch.linspace(-0.99, 0.99, 7, dtype=torch.float64)
    normal = torch.distributions.Normal(0.1, 0.3)
    exact = (normal.cdf(x + 1 / 255) - normal.cdf(x - 1 / 255)).log()
    got = bin_log_likelihood(x, torch.full_like(x, 0.1), torch.full_like(x, 2 * math.log(0.3)))
    torch.testing.assert_close(got, exact, rtol=0.02, atol=0)  # the tanh stands for the error function
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    bins = bin_log_likelihood(levels, torch.full_like(levels, 0.4), torch.full_like(levels, -2.0))
    torch.testing.assert_close(bins.exp().sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.graph  # run-time shape checks off, as for users
def test_bad_input_is_refused() -> None:
    x0, t = torch.zeros(2, 3), Rows(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="output has 5 numbers a token, expected twice the 3 of x0"):
        hybrid_loss(PROCESS, torch.zeros(2, 5), x0, x0, t, STEPS)
    with pytest.raises(ValueError, match="steps must be at least 2, .*, got 0"):
        vlb(PROCESS, x0, x0, x0, x0, t, 0)
    with pytest.raises(ValueError, match="t must be floating-point, got torch.int64"):
        vlb(PROCESS, x0, x0, x0, x0, Rows(torch.tensor([3])), STEPS)
    with pytest.raises(ValueError, match=r"x0 has shape \(2, 3\), but share has \(2, 1\)"):
        vlb(PROCESS, x0, x0[:, :1], x0, x0, t, STEPS)
