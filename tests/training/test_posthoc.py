"""Power-function averages against their exact profile, and reconstructions of widths that were never kept."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor, nn

from tubelet.training import EMA, posthoc_average, posthoc_weights, power_decay, power_exponent, power_width

WIDEST = 12**-0.5


def profile(width: float, updates: int, length: int) -> np.ndarray:
    """How much each of ``length`` steps counts: the power function's integral over the step."""
    edges = np.arange(length + 1, dtype=np.float64).clip(max=updates) / updates
    return np.diff(edges ** (power_exponent(width) + 1))


@given(width=st.floats(0.005, WIDEST))
def test_width_and_exponent_are_inverse_and_mean_the_deviation(width: float) -> None:
    gamma = power_exponent(width)
    assert power_width(gamma) == pytest.approx(width, rel=1e-10)
    first, second = (quad(lambda u, k=k: (gamma + 1) * u ** (gamma + k), 0, 1, epsabs=1e-14)[0] for k in (1, 2))
    assert math.sqrt(second - first**2) == pytest.approx(width, rel=1e-5)
    # the published equation: a root of a cubic
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    assert gamma == pytest.approx(max(root.real for root in roots), rel=1e-7, abs=1e-6)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2, WIDEST])
def test_the_average_has_the_exact_profile(width: float) -> None:
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    ema, seen = EMA(model, power_decay(width)), []
    for _ in range(60):
        nn.init.normal_(model.weight)
        seen.append(model.weight.detach().clone())
        ema.update(model)
    expected = sum(float(p) * w for p, w in zip(profile(width, 60, 60), seen, strict=True))
    torch.testing.assert_close(ema.average["weight"], expected, rtol=1e-11, atol=1e-13)


def run(steps: int, every: int, widths: tuple[float, ...]) -> tuple[list[dict], list[float], list[Tensor]]:
    """A random walk of weights, snapshots of its averages with their widths, and the walk."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 2, dtype=torch.float64)
    averages = [EMA(model, power_decay(width)) for width in widths]
    states, kept, walk = [], [], []
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight += 0.1 * torch.randn(2, 4, generator=generator, dtype=torch.float64)
        walk.append(model.weight.detach().clone())
        for width, ema in zip(widths, averages, strict=True):
            ema.update(model)
            if step % every == 0:
                states.append(copy.deepcopy(ema.state_dict()))
                kept.append(width)
    return states, kept, walk


@pytest.mark.parametrize(("width", "updates"), [(0.05, 800), (0.07, 800), (0.15, 800), (0.08, 600), (0.12, 775)])
def test_widths_that_were_never_kept_come_out_close_to_the_exact_profile(width: float, updates: int) -> None:
    states, widths, walk = run(800, 25, (0.05, 0.1))
    got = posthoc_average(states, widths, width, updates)
    exact = profile(width, updates, 800)
    expected = sum(float(p) * w for p, w in zip(exact, walk, strict=True))
    assert got["updates"] == updates
    spread = torch.stack(walk).std(0).mean()
    assert float((got["average"]["weight"] - expected).abs().max() / spread) < 0.01
    factors = posthoc_weights([(s["updates"], w) for s, w in zip(states, widths, strict=True)], (updates, width))
    made = sum(float(f) * profile(w, s["updates"], 800) for f, w, s in zip(factors, widths, states, strict=True))
    assert np.linalg.norm(made - exact) < 0.003 * np.linalg.norm(exact)
    assert float(factors.sum()) == pytest.approx(1, abs=1e-3)


def test_a_kept_average_is_itself() -> None:
    states, widths, _ = run(100, 50, (0.05, 0.1))
    for state, width in zip(states, widths, strict=True):
        got = posthoc_average(states, widths, width, state["updates"])
        torch.testing.assert_close(got["average"]["weight"], state["average"]["weight"], rtol=1e-8, atol=1e-8)


def test_overlaps_equal_quadrature() -> None:
    """One snapshot: the factor is the ratio of two integrals of products of profiles."""
    a, b, early, late = power_exponent(0.06), power_exponent(0.2), 70.0, 100.0
    first = lambda u: (a + 1) * u**a / late ** (a + 1)  # noqa: E731
    second = lambda u: (b + 1) * u**b / early ** (b + 1)  # noqa: E731
    cross, _ = quad(lambda u: first(u) * second(u), 0, early)
    own, _ = quad(lambda u: first(u) ** 2, 0, late)
    assert float(posthoc_weights([(100, 0.06)], (70, 0.2))) == pytest.approx(cross / own, rel=1e-8)


def test_a_reconstruction_loads_into_an_average_and_keeps_the_dtype() -> None:
    model = nn.Linear(2, 2)
    ema = EMA(model, power_decay(0.1))
    ema.update(model)
    states = [copy.deepcopy(ema.state_dict())]
    got = posthoc_average(states, [0.1], 0.1)
    assert got["average"]["weight"].dtype == torch.float32
    other = EMA(nn.Linear(2, 2), power_decay(0.1))
    other.load_state_dict(got)
    torch.testing.assert_close(other.average["weight"], model.weight.detach())
    assert other.updates == 1


def test_a_function_of_the_updates_is_the_decay_as_it_is() -> None:
    ema = EMA(nn.Linear(1, 1), lambda n: 0.25 * n)
    ema.updates = 3
    assert ema.current_decay == 0.75


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"width must be above 0 and at most 0.2887, got 0.3"):
        power_exponent(0.3)
    with pytest.raises(ValueError, match="exponent must not be negative, got -1.0"):
        power_width(-1.0)
    with pytest.raises(ValueError, match=r"must have updates, got \[\]"):
        posthoc_weights([], (1, 0.1))
    with pytest.raises(ValueError, match="target is at 30 updates, but the last snapshot at 20"):
        posthoc_weights([(20, 0.1)], (30, 0.1))
    with pytest.raises(ValueError, match="there are 1 snapshots, but 2 widths"):
        posthoc_average([{"updates": 1, "average": {}}], [0.1, 0.2], 0.1)


@pytest.mark.parametrize("other", [{"w": torch.ones(1)}, {}, {"w": torch.ones(3), "b": torch.ones(1)}])
def test_snapshots_of_other_models_are_refused(other: dict[str, Tensor]) -> None:
    states = [{"updates": 100, "average": {"w": torch.ones(3)}}, {"updates": 200, "average": other}]
    with pytest.raises(ValueError, match=r"snapshots 0 and 1 differ in the names or shapes of [bw]"):
        posthoc_average(states, [0.1, 0.1], 0.1)


def test_flags_are_those_of_the_last_snapshot() -> None:
    states = [{"updates": n, "average": {"seen": torch.tensor([n > 150, False])}} for n in (100, 200)]
    found = posthoc_average(states, [0.1, 0.1], 0.1)["average"]["seen"]
    assert found.tolist() == [True, False]
