"""Rescaling against equations 14 to 16 of the paper's section 3.4 and diffusers."""

import pytest
import torch
from denoisers import C, U, randn
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import rescale_noise_cfg

from tubelet.diffusion import PerSample, cfg, one_row, rescale
from tubelet.layout import Grid, TokenLayout

X, T = randn(2, 6, 4), one_row(torch.tensor(0.4, dtype=torch.float64))


@pytest.mark.parametrize("amount", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("scale", [1.5, 7.5])
def test_equals_the_formula_and_diffusers(scale: float, amount: float) -> None:
    got = rescale(cfg(C, U, scale), C, amount)(X, T)
    c, u = C(X, T), U(X, T)
    guided = u + scale * (c - u)
    for i in range(2):
        rescaled = guided[i] * c[i].std() / guided[i].std()
        expected = amount * rescaled + (1 - amount) * guided[i]
        torch.testing.assert_close(got[i], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, rescale_noise_cfg(guided, c, amount), rtol=1e-12, atol=1e-12)
    theirs = ClassifierFreeGuidance(scale, guidance_rescale=amount).forward(c, u).pred
    torch.testing.assert_close(got, theirs, rtol=1e-12, atol=1e-12)
    if amount == 1.0:
        torch.testing.assert_close(got.flatten(1).std(1), c.flatten(1).std(1))


def test_predictions_without_spread_stay() -> None:
    flat = lambda x, t: torch.full_like(x, 3.0)  # noqa: E731
    assert torch.equal(rescale(flat, C, 1.0)(X, T), flat(X, T))
    # samples of one number have no deviation
    x = randn(3, 1)
    layout = TokenLayout.packed([Grid(1, 1, 1)] * 3).on("cpu")
    half = lambda x, t: 0.5 * x  # noqa: E731
    assert torch.equal(rescale(half, lambda x, t: x, 1.0, samples=PerSample(layout))(x, T), 0.5 * x)


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan")])
def test_bad_input_is_refused(amount: float) -> None:
    with pytest.raises(ValueError, match=rf"amount must lie in \[0, 1\], got {amount}"):
        rescale(C, C, amount)
