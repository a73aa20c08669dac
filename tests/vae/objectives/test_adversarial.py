"""Losses against sums written out, penalties against closed forms, the adaptive weight against the code it is from."""

import math

import pytest
import torch

from tubelet.vae.objectives import (
    HINGE,
    NON_SATURATING,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    logistic_discriminator_loss,
    non_saturating_loss,
    r1_penalty,
)

REAL, FAKE = [-1.5, 0.2, 0.9, 1.0, 3.0], [-4.0, -1.0, -0.3, 2.5]


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def test_losses_are_their_formulas() -> None:
    real, fake = torch.tensor(REAL, dtype=torch.float64), torch.tensor(FAKE, dtype=torch.float64)
    sigmoid = lambda s: 1 / (1 + math.exp(-s))  # noqa: E731
    hinge = 0.5 * (mean(max(0, 1 - s) for s in REAL) + mean(max(0, 1 + s) for s in FAKE))
    logistic = 0.5 * (mean(-math.log(sigmoid(s)) for s in REAL) + mean(-math.log(1 - sigmoid(s)) for s in FAKE))
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(hinge, rel=1e-12)
    assert hinge_generator_loss(fake).item() == pytest.approx(-mean(FAKE), rel=1e-12)
    assert logistic_discriminator_loss(real, fake).item() == pytest.approx(logistic, rel=1e-12)
    assert non_saturating_loss(fake).item() == pytest.approx(mean(-math.log(sigmoid(s)) for s in FAKE), rel=1e-12)


@pytest.mark.parametrize("game", [HINGE, NON_SATURATING])
def test_gradients_pull_each_side_its_way(game) -> None:
    real, fake = (torch.tensor(s, dtype=torch.float64).requires_grad_() for s in ([0.3, -2.0], [0.2, -0.5, 1.0]))
    down, up = torch.autograd.grad(game.discriminator(real, fake), (real, fake))
    assert bool((down < 0).all() and (up > 0).all())
    (fooled,) = torch.autograd.grad(game.generator(fake), fake)
    assert bool((fooled < 0).all())


def test_r1_of_a_linear_discriminator_is_its_weight() -> None:
    w = torch.randn(3, 2, 4, 4, dtype=torch.float64).requires_grad_()
    penalty = r1_penalty(lambda x: (w * x).sum((1, 2, 3, 4)), torch.randn(5, 3, 2, 4, 4, dtype=torch.float64))
    torch.testing.assert_close(penalty, 0.5 * w.square().sum(), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(penalty, w)
    torch.testing.assert_close(gradient, w.detach(), rtol=1e-12, atol=0)


def test_r1_of_a_square_grows_with_the_place() -> None:
    """D(x) = a |x|² / 2 at each of two patches: the slope of their mean is a·x."""
    x, a = torch.randn(4, 6, dtype=torch.float64), torch.tensor(1.7, dtype=torch.float64).requires_grad_()
    penalty = r1_penalty(lambda v: (a * v.square().sum(1) / 2)[:, None].expand(-1, 2), x)
    torch.testing.assert_close(penalty, 0.5 * a.detach() ** 2 * x.square().sum(1).mean(), rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(penalty, a)
    torch.testing.assert_close(slope, a.detach() * x.square().sum(1).mean(), rtol=1e-12, atol=0)


def test_r1_has_gradients_in_the_discriminator_alone_and_a_value_without_them() -> None:
    x, w = torch.randn(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    penalty = r1_penalty(lambda v: v.square() @ w, x)
    penalty.backward()
    assert x.grad is None and w.grad is not None
    with torch.no_grad():
        assert r1_penalty(lambda v: v.square() @ w, x).item() == penalty.item()


def test_the_adaptive_weight_is_a_ratio_of_norms() -> None:
    a, b, c, d = (torch.randn(n, 3) for n in (4, 5, 4, 5))
    expected = torch.cat([a, b]).norm() / (torch.cat([c, d]).norm() + 1e-4)
    torch.testing.assert_close(adaptive_weight([a, b], [c, d]), expected)
    assert adaptive_weight([a], [torch.zeros(2)]).item() == pytest.approx(1e4)
    assert adaptive_weight([a], [1e-3 * c], most=7.0).item() == 7.0
    assert adaptive_weight([torch.zeros(2)], [c]).item() == 0.0


def test_as_many_gradients_of_both() -> None:
    with pytest.raises(ValueError, match="1 gradients of reconstruction and 2 adversarial"):
        adaptive_weight([torch.ones(1)], [torch.ones(1)] * 2)
