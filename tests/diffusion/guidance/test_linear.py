"""Sums of predictions against their papers' formulas, diffusers' guiders, and each other."""

import math
from functools import partial

import pytest
import torch
from denoisers import C, U, V, network, packed_state, randn
from diffusers.guiders import AutoGuidance, ClassifierFreeGuidance, SkipLayerGuidance
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tubelet.diffusion import (
    VP,
    Process,
    RectifiedFlow,
    autoguidance,
    cfg,
    cfg_excess,
    compose,
    interval,
    one_row,
    restate,
    sample,
    skip_layer,
    two_conditions,
)
from tubelet.layout import Rows
from tubelet.protocols import Denoiser, Path

X = randn(5, 4)
LEVELS = Rows(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), torch.tensor([0, 1, 1, 2, 0]))
close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-11)


def ask(*denoisers: Denoiser) -> list[Tensor]:
    return [denoiser(X, LEVELS) for denoiser in denoisers]


@given(st.floats(-3, 12))
def test_cfg_equals_the_formula_and_the_other_convention(scale: float) -> None:
    c, u = ask(C, U)
    close(cfg(C, U, scale)(X, LEVELS), u + scale * (c - u))
    close(cfg(C, U, scale)(X, LEVELS), cfg_excess(C, U, scale - 1)(X, LEVELS))


@pytest.mark.parametrize("scale", [0.4, 1.0, 7.5])
def test_cfg_equals_diffusers_in_both_conventions(scale: float) -> None:
    c, u = ask(C, U)
    close(cfg(C, U, scale)(X, LEVELS), ClassifierFreeGuidance(scale).forward(c, u).pred)
    theirs = ClassifierFreeGuidance(scale, use_original_formulation=True).forward(c, u).pred
    close(cfg_excess(C, U, scale)(X, LEVELS), theirs)


def test_the_scale_of_uvit_is_one_less() -> None:
    c, u = ask(C, U)
    close(cfg_excess(C, U, 0.4)(X, LEVELS), c + 0.4 * (c - u))
    close(cfg_excess(C, U, 0.4)(X, LEVELS), cfg(C, U, 1.4)(X, LEVELS))


def test_one_is_conditional_and_zero_unconditional() -> None:
    close(cfg(C, U, 1.0)(X, LEVELS), C(X, LEVELS))
    assert torch.equal(cfg(C, U, 0.0)(X, LEVELS), U(X, LEVELS))
    assert torch.equal(cfg_excess(C, U, 0.0)(X, LEVELS), C(X, LEVELS))


def test_autoguidance_equals_diffusers_and_the_formula() -> None:
    main, weak = ask(C, V)
    got = autoguidance(C, V, 2.5)(X, LEVELS)
    close(got, 2.5 * main + (1 - 2.5) * weak)
    close(got, AutoGuidance(2.5, auto_guidance_layers=[0], dropout=1.0).forward(main, weak).pred)


@pytest.mark.parametrize("scales", [(1.5, 7.5), (1.0, 1.0), (0.0, 3.0)])
def test_two_conditions_equal_the_formula_of_instruct_pix2pix(scales: tuple[float, float]) -> None:
    of_image, of_text = scales
    both, image, neither = ask(C, V, U)
    got = two_conditions(C, V, U, image_scale=of_image, text_scale=of_text)(X, LEVELS)
    close(got, neither + of_image * (image - neither) + of_text * (both - image))
    if scales == (1.0, 1.0):
        close(got, both)


def test_skip_layer_equals_diffusers() -> None:
    c, u, s = ask(C, U, V)
    theirs = SkipLayerGuidance(5.0, 2.8, skip_layer_guidance_layers=[0])
    close(skip_layer(cfg(C, U, 5.0), C, V, 2.8)(X, LEVELS), theirs.forward(c, u, s).pred)
    close(skip_layer(cfg(C, U, 5.0), C, V, 2.8)(X, LEVELS), u + 5 * (c - u) + 2.8 * (c - s))
    alone = SkipLayerGuidance(1.0, 2.8, skip_layer_guidance_layers=[0]).forward(c, None, s).pred
    close(skip_layer(V, C, V, 2.8)(X, LEVELS), alone)


def test_compose_equals_the_formula_of_composable_diffusion() -> None:
    scales, seeds = (3.0, -1.0, 0.5), (31, 32, 33)
    conditions = [network(seed) for seed in seeds]
    got = compose(U, *((w, c, U) for w, c in zip(scales, conditions, strict=True)))(X, LEVELS)
    nothing, *each = ask(U, *conditions)
    close(got, nothing + sum(w * (e - nothing) for w, e in zip(scales, each, strict=True)))
    assert torch.equal(compose(U)(X, LEVELS), nothing)


@pytest.mark.parametrize("path", [RectifiedFlow(), VP.linear()])
@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity"])
def test_sums_are_the_same_in_every_space(path: Path, kind: str) -> None:
    process = Process(path=path, prediction="v")
    there = [restate(denoiser, process, kind) for denoiser in (C, V, U)]
    inside = two_conditions(*there, image_scale=1.5, text_scale=7.5)(X, LEVELS)
    after = restate(two_conditions(C, V, U, image_scale=1.5, text_scale=7.5), process, kind)(X, LEVELS)
    torch.testing.assert_close(inside, after, rtol=1e-9, atol=1e-9)


def test_a_scale_may_be_one_for_each_sample() -> None:
    layout, x, t = packed_state()
    guided = cfg(C, U, layout.rows(torch.tensor([1.0, 3.0, 7.0], dtype=torch.float64), "sample"))
    each = torch.tensor([1.0, 3.0, 7.0]).repeat_interleave(torch.tensor(layout.lengths))[:, None]
    close(guided(x, t), U(x, t) + each * (C(x, t) - U(x, t)))


def test_a_scale_function_serves_dense_rows_and_keeps_the_dtype() -> None:
    x = torch.ones(2, 4, 3, dtype=torch.bfloat16)
    guided = cfg(lambda x, t: x, lambda x, t: 0 * x, lambda t: 10 * t)
    got = guided(x, Rows(torch.tensor([0.1, 0.5])))
    assert got.dtype == torch.bfloat16
    assert got[:, 0, 0].tolist() == [1.0, 5.0]


def test_half_precision_is_rounded_once() -> None:
    c, u = (randn(1000, 4, seed=seed).bfloat16() for seed in (1, 2))
    u = (c + 0.02 * u).bfloat16()
    exact = u.double() + 7.5 * (c.double() - u.double())
    for guided in (cfg, lambda c, u, s: cfg_excess(c, u, s - 1)):
        got = guided(lambda x, t: c, lambda x, t: u, 7.5)(torch.zeros_like(c), one_row(torch.tensor(0.5)))
        assert got.dtype == torch.bfloat16
        assert bool(((got - exact).abs() <= 2**-8 * exact.abs()).all())


def test_guidance_composes_with_sampling() -> None:
    process = Process()
    towards = lambda goal: lambda x, t: (x - goal) / t.values  # noqa: E731
    got = sample(cfg(towards(2.0), towards(1.0), 3.0), X, process.times(5, dtype=torch.float64), process=process)
    torch.testing.assert_close(got, torch.full_like(X, 1.0 + 3.0 * (2.0 - 1.0)))


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_scales_that_are_not_finite_are_refused(scale: float) -> None:
    for make in (cfg, cfg_excess, autoguidance):
        with pytest.raises(ValueError, match=f"must be finite, got {scale}"):
            make(C, U, scale)
    with pytest.raises(ValueError, match=f"scale must be finite, got {scale}"):
        skip_layer(C, C, U, scale)
    with pytest.raises(ValueError, match=f"scale 1 must be finite, got {scale}"):
        compose(U, (1.0, C, U), (scale, V, U))
    for scales in ((scale, 1.0), (1.0, scale)):
        with pytest.raises(ValueError, match=f"(image|text)_scale must be finite, got {scale}"):
            two_conditions(C, V, U, image_scale=scales[0], text_scale=scales[1])
    with pytest.raises(ValueError, match=f"outside must be finite, got {scale}"):
        interval(1.0, 0.2, 0.8, outside=scale)
