"""Guidance against its formula, its fixed points and the other convention."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.diffusion import Process, cfg, interval, sample
from tubelet.layout import Grid, Rows
from tubelet.patchify import fold, unfold

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LEVELS = Rows(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), torch.tensor([0, 1, 1, 2, 0]))


def conditional(x: torch.Tensor, t: Rows) -> torch.Tensor:
    return torch.sin(x) + t.expand()[..., None]


def unconditional(x: torch.Tensor, t: Rows) -> torch.Tensor:
    return torch.cos(x) - 2 * t.expand()[..., None]


@given(st.floats(-3, 12))
def test_equals_the_formula_and_the_other_convention(scale: float) -> None:
    got = cfg(conditional, unconditional, scale)(X, LEVELS)
    c, u = conditional(X, LEVELS), unconditional(X, LEVELS)
    torch.testing.assert_close(got, u + scale * (c - u), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(got, c + (scale - 1) * (c - u), rtol=1e-12, atol=1e-11)


def test_one_is_conditional_and_zero_unconditional() -> None:
    torch.testing.assert_close(cfg(conditional, unconditional, 1.0)(X, LEVELS), conditional(X, LEVELS))
    assert torch.equal(cfg(conditional, unconditional, 0.0)(X, LEVELS), unconditional(X, LEVELS))


def test_interval_acts_per_row_with_both_ends_inside() -> None:
    got = cfg(conditional, unconditional, interval(4.0, 0.5, 0.9))(X, LEVELS)
    full = cfg(conditional, unconditional, 4.0)(X, LEVELS)
    inside = torch.tensor([False, True, True, True, False])
    torch.testing.assert_close(got[inside], full[inside])
    torch.testing.assert_close(got[~inside], conditional(X, LEVELS)[~inside])


def test_a_scale_function_serves_dense_rows_and_keeps_the_dtype() -> None:
    x = torch.ones(2, 4, 3, dtype=torch.bfloat16)
    guided = cfg(lambda x, t: x, lambda x, t: 0 * x, lambda t: 10 * t)
    got = guided(x, Rows(torch.tensor([0.1, 0.5])))
    assert got.dtype == torch.bfloat16
    assert got[:, 0, 0].tolist() == [1.0, 5.0]


def test_guidance_composes_with_sampling() -> None:
    process = Process()
    towards = lambda goal: lambda x, t: (x - goal) / t.values  # noqa: E731
    got = sample(cfg(towards(2.0), towards(1.0), 3.0), X, process.times(5, dtype=torch.float64), process=process)
    torch.testing.assert_close(got, torch.full_like(X, 1.0 + 3.0 * (2.0 - 1.0)))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"low must not be above high, got 0\.8 and 0\.2"):
        interval(2.0, 0.8, 0.2)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_scales_that_are_not_finite_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"scale must be finite, got {scale}"):
        cfg(conditional, unconditional, scale)
    with pytest.raises(ValueError, match=f"scale must be finite, got {scale}"):
        interval(scale, 0.2, 0.8)
    with pytest.raises(ValueError, match="low must not be above high, got nan and 1"):
        interval(1.0, math.nan, 1.0)


def test_dit_guides_three_channels_of_the_noise_and_nothing_else() -> None:
    """Against the published rule on images: of noise and variance the first 3 channels are mixed, as it were."""
    draw = torch.Generator().manual_seed(1)
    c, u = torch.randn(2, 5, 8, 1, 4, 6, generator=draw)  # (b, 4 of noise and 4 of variance, 1, h, w)
    patch, x, t = (1, 2, 3), torch.zeros(5, 4, 24), Rows(torch.tensor([0.5]))
    both = [lambda x, t, v=v: torch.cat([fold(v[:, :4], patch), fold(v[:, 4:], patch)], -1) for v in (c, u)]
    for count, options in ((3, {"channels": (3, 4)}), (4, {})):
        noise, variance = cfg(*both, 4.0, **options)(x, t).split([24, 24], dim=-1)
        got = torch.cat([unfold(part, Grid(1, 2, 2), patch) for part in (noise, variance)], 1)
        torch.testing.assert_close(got[:, :count], (u + 4.0 * (c - u))[:, :count])
        assert torch.equal(got[:, count:], c[:, count:])


def test_channels_that_do_not_fit_are_refused() -> None:
    for channels in ((0, 4), (5, 4)):
        with pytest.raises(ValueError, match=r"channels must be \(k, c\) with 0 < k <= c"):
            cfg(conditional, unconditional, 2.0, channels=channels)
    with pytest.raises(ValueError, match=r"x is 3 wide, which are no cells of channels=\(1, 2\)"):
        cfg(conditional, unconditional, 2.0, channels=(1, 2))(X, LEVELS)


@pytest.mark.graph  # run-time shape checks off, as for users
def test_predictions_that_only_broadcast_are_refused() -> None:
    guided = cfg(lambda x, t: x, lambda x, t: x[:1], 2.0)
    with pytest.raises(ValueError, match=r"conditional gives shape \(4, 3\), but unconditional \(1, 3\)"):
        guided(torch.zeros(4, 3), Rows(torch.tensor([0.5])))
