"""APG against its algorithm written out, diffusers' guider, and classifier-free guidance, which it contains."""

import math
import pickle
from typing import Any

import pytest
import torch
from denoisers import C, U, randn
from diffusers.guiders import AdaptiveProjectedGuidance
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer
from torch import Tensor

from tubelet.diffusion import VP, Momentum, Process, apg, cfg, one_row, sample
from tubelet.protocols import Denoiser

X = randn(2, 6, 4)
TIMES = [one_row(torch.tensor(t, dtype=torch.float64)) for t in (0.9, 0.6, 0.3)]
DATA = Process(prediction="x0")


def algorithm(
    c: Tensor, u: Tensor, past: Tensor, w: float, eta: float, radius: float, beta: float
) -> tuple[Tensor, ...]:
    """One sample as flat vectors: the update with its past, shortened, split along c."""
    past = (c - u) + beta * past
    d = past * min(1.0, radius / float(past.norm()))
    along = c * float(d @ c) / float(c @ c)
    return c + (w - 1) * ((d - along) + eta * along), past


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("radius", [1.5, math.inf])
@pytest.mark.parametrize("beta", [-0.75, 0.0, 0.5])
def test_equals_the_algorithm_and_diffusers(eta: float, radius: float, beta: float) -> None:
    w = 7.5
    guided = apg(C, U, w, DATA, parallel=eta, radius=radius, momentum=Momentum(beta))
    guider = AdaptiveProjectedGuidance(
        w - 1, adaptive_projected_guidance_rescale=0.0 if radius == math.inf else radius, eta=eta,
        use_original_formulation=True,
    )  # fmt: skip
    guider.momentum_buffer = MomentumBuffer(beta)
    pasts = [torch.zeros(24, dtype=torch.float64)] * 2
    for t in TIMES:
        got, c, u = guided(X, t), C(X, t), U(X, t)
        for i in range(2):
            expected, pasts[i] = algorithm(c[i].flatten(), u[i].flatten(), pasts[i], w, eta, radius, beta)
            torch.testing.assert_close(got[i].flatten(), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got, guider.forward(c, u).pred, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "velocity"])
def test_it_acts_on_data_and_with_all_of_the_parallel_part_it_is_cfg(kind: str) -> None:
    process = Process(path=VP.linear(), prediction=kind)
    t = TIMES[1]
    got = process.split(apg(C, U, 5.0, process)(X, t), X, t)[0]
    c, u = (lambda x, t, net=net: process.split(net(x, t), x, t)[0] for net in (C, U))
    torch.testing.assert_close(got, apg(c, u, 5.0, DATA)(X, t), rtol=1e-9, atol=1e-9)
    whole = apg(C, U, 5.0, process, parallel=1.0)(X, t)
    torch.testing.assert_close(whole, cfg(C, U, 5.0)(X, t), rtol=1e-9, atol=1e-9)
    # what is added to the data is orthogonal to the conditional data
    added, own = (got - c(X, t)).flatten(1), c(X, t).flatten(1)
    assert float(((added * own).sum(1) / (added.norm(dim=1) * own.norm(dim=1))).abs().max()) < 1e-10
    assert torch.equal(apg(C, U, 1.0, process)(X, t), C(X, t))


def test_the_update_is_no_longer_than_the_radius_and_shorter_ones_stay() -> None:
    t = TIMES[0]
    for radius in (0.1, 1e3):
        moved = apg(C, U, 2.0, DATA, parallel=1.0, radius=radius)(X, t) - C(X, t)
        expected = (C(X, t) - U(X, t)).flatten(1).norm(dim=1).clamp(max=radius)
        torch.testing.assert_close(moved.flatten(1).norm(dim=1), expected)


def test_a_run_resumes_from_its_saved_momentum() -> None:
    process, times = Process(), Process().times(6, dtype=torch.float64)

    def run(momentum: Momentum, x: Tensor, times: Tensor) -> Tensor:
        return sample(apg(C, U, 6.0, process, radius=2.0, momentum=momentum), x, times, process=process)

    whole = run(Momentum(-0.5), X, times)
    first = Momentum(-0.5)
    half = run(first, X, times[:4])
    again: Momentum = pickle.loads(pickle.dumps(first))
    assert torch.equal(run(again, half, times[3:]), whole)
    assert not torch.equal(run(Momentum(-0.5), half, times[3:]), whole)


def test_predictions_of_nothing_stay_finite() -> None:
    nothing: Denoiser = lambda x, t: 0 * x  # noqa: E731
    t = TIMES[0]
    torch.testing.assert_close(apg(nothing, U, 3.0, DATA)(X, t), -2 * U(X, t))
    assert torch.equal(apg(C, C, 3.0, DATA, radius=1.0, momentum=Momentum(0.5))(X, t), C(X, t))


def test_bad_input_is_refused() -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"radius": 0.0}, r"radius must be positive, got 0\.0"),
        ({"radius": math.nan}, "radius must be positive, got nan"),
        ({"parallel": math.inf}, "parallel must be finite, got inf"),
        ({"scale": math.nan}, "scale must be finite, got nan"),
    ]
    for changed, message in bad:
        with pytest.raises(ValueError, match=message):
            apg(C, U, **({"scale": 2.0, "process": DATA} | changed))
    with pytest.raises(ValueError, match="beta must be finite, got nan"):
        Momentum(math.nan)
