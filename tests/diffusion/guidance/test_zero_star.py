"""CFG-Zero* against its formula, diffusers' guider, and what its factor is the best of."""

import math

import pytest
import torch
from denoisers import C, U, randn
from diffusers.guiders import ClassifierFreeZeroStarGuidance

from tubelet.diffusion import VP, Process, cfg_zero_star, euler_step, interval, one_row, sample, zero_init
from tubelet.layout import Rows

X, T = randn(2, 6, 4), one_row(torch.tensor(0.4, dtype=torch.float64))


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_equals_the_formula_and_diffusers(scale: float) -> None:
    got = cfg_zero_star(C, U, scale, Process())(X, T)
    c, u = C(X, T), U(X, T)
    for i in range(2):
        best = (c[i] * u[i]).sum() / u[i].square().sum()
        expected = (1 - scale) * best * u[i] + scale * c[i]
        torch.testing.assert_close(got[i], expected, rtol=1e-12, atol=1e-12)
    guider = ClassifierFreeZeroStarGuidance(scale, zero_init_steps=1)
    guider.set_state(step=1, num_inference_steps=10, timestep=torch.tensor(900))
    # the peer finds the factor in float32
    torch.testing.assert_close(got, guider.forward(c, u).pred, rtol=1e-5, atol=1e-5)


def test_the_factor_brings_the_predictions_nearest() -> None:
    c, u = C(X, T), U(X, T)
    scaled = cfg_zero_star(C, U, 0.0, Process())(X, T)
    for i in range(2):
        distances = [float((c[i] - f * u[i]).norm()) for f in torch.linspace(-3, 3, 601)]
        assert float((c[i] - scaled[i]).norm()) <= min(distances) + 1e-12


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_it_acts_on_velocities(kind: str) -> None:
    process, velocity = Process(path=VP.linear(), prediction=kind), Process(path=VP.linear())
    got = process.velocity(cfg_zero_star(C, U, 5.0, process)(X, T), X, T)
    c, u = (lambda x, t, net=net: process.velocity(net(x, t), x, t) for net in (C, U))
    torch.testing.assert_close(got, cfg_zero_star(c, u, 5.0, velocity)(X, T), rtol=1e-9, atol=1e-9)


def test_a_prediction_of_nothing_leaves_the_condition_alone() -> None:
    got = cfg_zero_star(C, lambda x, t: 0 * x, 5.0, Process())(X, T)
    torch.testing.assert_close(got, 5.0 * C(X, T))
    inside = cfg_zero_star(C, U, interval(5.0, 0.5, 0.9), Process())(X, T)
    torch.testing.assert_close(inside, C(X, T))


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "velocity"])
def test_first_steps_of_zero_leave_the_state(kind: str) -> None:
    process = Process(path=VP.cosine(), prediction=kind)
    times = process.times(10, dtype=torch.float64)
    still = zero_init(C, process, above=float(times[2]))
    states: list[torch.Tensor] = []
    sample(still, X, times, process=process, step=euler_step, callback=lambda i, x: states.append(x))
    torch.testing.assert_close(states[1], X, rtol=1e-9, atol=1e-9)
    assert float((states[2] - X).abs().max()) > 1e-3
    assert torch.equal(still(X, one_row(times[2])), C(X, one_row(times[2])))


def test_first_steps_of_zero_are_those_of_diffusers_and_per_row() -> None:
    guider = ClassifierFreeZeroStarGuidance(5.0, zero_init_steps=1)
    guider.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(1000))
    start = one_row(torch.tensor(1.0, dtype=torch.float64))
    got = zero_init(cfg_zero_star(C, U, 5.0, Process()), Process(), above=0.9)(X, start)
    assert torch.equal(got, guider.forward(C(X, start), U(X, start)).pred)
    rows = Rows(torch.tensor([0.95, 0.9], dtype=torch.float64))
    mixed = zero_init(C, Process(), above=0.9)(X, rows)
    assert not mixed[0].any() and torch.equal(mixed[1], C(X, rows)[1])


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="scale must be finite, got inf"):
        cfg_zero_star(C, U, math.inf, Process())
    with pytest.raises(ValueError, match="above must be a noise level, got nan"):
        zero_init(C, Process(), above=math.nan)
