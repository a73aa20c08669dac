"""Prediction conversions: float64 round trips on every path, closed forms, and the degenerate ends."""

import inspect
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.diffusion import (
    EDM,
    VESDE,
    VP,
    VPSDE,
    Coefficients,
    Normalized,
    Prediction,
    Process,
    RectifiedFlow,
    coefficients,
    from_x0_eps,
    level,
    to_x0_eps,
)
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.protocols import Path

KINDS = get_args(Prediction)
PATHS = [
    RectifiedFlow(),
    VP.linear(),
    VP.cosine(),
    VP.linear().zero_terminal_snr(),
    VPSDE(),
    EDM(5.0),
    VESDE(0.1, 5.0),
    Normalized(RectifiedFlow()),
]


def pair(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return x0, eps


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
@given(t=st.floats(0.02, 0.98), seed=st.integers(0, 99))
def test_round_trip(kind: Prediction, path: Path, t: float, seed: int) -> None:
    x0, eps = pair(seed, 5, 3)
    at = coefficients(path, Rows(torch.tensor([t], dtype=torch.float64)), x0)
    x = at.alpha * x0 + at.sigma * eps
    got = to_x0_eps(kind, from_x0_eps(kind, x0, eps, at), x, at)
    torch.testing.assert_close(got[0], x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got[1], eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["v", "velocity"])
def test_clean_data_are_solved_on_every_path(kind: Prediction, path: Path) -> None:
    x0, eps = pair(3, 2, 3)
    at = coefficients(path, Rows(torch.zeros(1, dtype=torch.float64)), x0)
    got = to_x0_eps(kind, from_x0_eps(kind, x0, eps, at), x0, at)
    torch.testing.assert_close(got[0], x0, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(got[1], eps, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", [PATHS[0], PATHS[3], PATHS[7]])
@pytest.mark.parametrize("kind", ["v", "velocity"])
def test_both_ends_are_solved_without_division_by_zero(kind: Prediction, path: Path) -> None:
    x0, eps = pair(0, 2, 3)
    at = coefficients(path, Rows(torch.tensor([0.0, 1.0], dtype=torch.float64), torch.arange(2)), x0)
    x = at.alpha * x0 + at.sigma * eps
    assert torch.equal(x, torch.stack([x0[0], eps[1]]))
    got = to_x0_eps(kind, from_x0_eps(kind, x0, eps, at), x, at)
    torch.testing.assert_close(got[0], x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[1], eps, rtol=1e-12, atol=1e-12)


def test_what_a_prediction_leaves_open_is_zero_with_finite_gradients() -> None:
    x = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    at = coefficients(RectifiedFlow(), Rows(torch.tensor([0.0, 1.0]), torch.arange(2)), x)
    noise_only = to_x0_eps("eps", 3 * x, x, at)
    data_only = to_x0_eps("x0", 3 * x, x, at)
    assert noise_only[0].tolist() == [[1.0], [0.0]]
    assert data_only[1].tolist() == [[0.0], [1.0]]
    (noise_only[0].sum() + data_only[1].sum()).backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_closed_forms() -> None:
    x0, eps = pair(1, 4, 2)
    rows = Rows(torch.tensor([0.3], dtype=torch.float64))
    flow = coefficients(RectifiedFlow(), rows, x0)
    torch.testing.assert_close(from_x0_eps("velocity", x0, eps, flow), eps - x0)
    path = VP.scaled_linear()
    at = coefficients(path, rows, x0)
    abar = path.alphas_cumprod[299]
    torch.testing.assert_close(from_x0_eps("v", x0, eps, at), abar.sqrt() * eps - (1 - abar).sqrt() * x0)
    # t is an index, so the slope there is that from below
    step = 1e-6
    before = coefficients(path, Rows(rows.values - step), x0)
    difference = ((at.alpha - before.alpha) * x0 + (at.sigma - before.sigma) * eps) / step
    torch.testing.assert_close(from_x0_eps("velocity", x0, eps, at), difference, rtol=1e-4, atol=1e-5)


@given(
    sides=st.lists(st.tuples(*[st.integers(1, 3)] * 3), min_size=1, max_size=4),
    which=st.sampled_from(["sample", "frame", "token"]),
)
def test_levels_of_packed_tokens_equal_a_loop(sides: list[tuple[int, int, int]], which: str) -> None:
    layout = TokenLayout.packed([Grid(*s) for s in sides])
    index = layout.on("cpu")
    real, _ = index.row_counts(which)
    values = torch.linspace(0, 1, real, dtype=torch.float64)
    at = coefficients(RectifiedFlow(), index.rows(values, which), torch.zeros(*layout.shape, 2).double())
    expected, row = [], 0
    for t, h, w in sides:
        for _ in range(t):
            for _ in range(h * w):
                expected.append(float(values[row]))
                row += which == "token"
            row += which == "frame"
        row += which == "sample"
    assert at.sigma.shape == (len(expected), 1)
    torch.testing.assert_close(at.sigma[:, 0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 3), (2, 3, 4, 5, 6)])
def test_level_broadcasts_over_any_rank(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    got = (x * level(Rows(torch.tensor([2.0, 3.0])), x)).reshape(2, -1)
    assert bool((got[0] == 2).all())
    assert bool((got[1] == 3).all())
    assert bool((x * level(Rows(torch.tensor([2.0])), x) == 2).all())


def test_coefficients_are_computed_in_the_wider_dtype() -> None:
    rows = Rows(torch.tensor([0.3]))
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert coefficients(RectifiedFlow(), rows, torch.zeros(2, 1, dtype=dtype)).alpha.dtype == expected


def test_bad_input_is_refused() -> None:
    at = Coefficients(*torch.ones(4))
    x = torch.zeros(2, 3)
    # the shape hook would refuse the name before the function does
    for fn in (
        lambda: inspect.unwrap(to_x0_eps)("noise", x, x, at),
        lambda: inspect.unwrap(from_x0_eps)("noise", x, x, at),
    ):
        with pytest.raises(ValueError, match=r"kind must be one of \('eps', 'x0', 'v', 'velocity'\), got 'noise'"):
            fn()
    with pytest.raises(ValueError, match=r"rows has 3 values .* batch is 2"):
        level(Rows(torch.zeros(3)), x)


@pytest.mark.graph  # run-time shape checks off, as for users
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            Rows(torch.zeros(3), torch.zeros(4, dtype=torch.long)),
            r"index of shape \(4,\), .* tokens have shape \(2, 3\)",
        ),
        (Rows(torch.zeros(3), torch.zeros(1, 2, dtype=torch.long)), r"index of shape \(1, 2\), .* shape \(2, 3\)"),
        (Rows(torch.zeros(2, 3)), r"scalars \(r,\), got values of shape \(2, 3\)"),
    ],
)
def test_rows_of_other_tokens_are_refused(rows: Rows, message: str) -> None:
    x = torch.zeros(2, 3)
    process = Process(prediction="v")
    for fn in (process.noise, process.target, process.split, process.velocity):
        with pytest.raises(ValueError, match=message):
            fn(x, x, rows)


@pytest.mark.graph
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (2, 2, 3)])
def test_noise_and_predictions_that_only_broadcast_are_refused(kind: Prediction, shape: tuple[int, ...]) -> None:
    process, x, t = Process(prediction=kind), torch.zeros(2, 3), Rows(torch.tensor([0.5]))
    for fn in (
        lambda y: process.noise(x, y, t),
        lambda y: process.target(x, y, t),
        lambda y: process.split(y, x, t),
        lambda y: process.velocity(y, x, t),
    ):
        with pytest.raises(ValueError, match=r"\(2, 3\).*has \(" + ", ".join(map(str, shape))):
            fn(torch.zeros(shape))


@pytest.mark.graph
def test_the_checks_do_not_break_a_graph() -> None:
    process = Process(prediction="v")

    def noised(x: torch.Tensor, t: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        rows = Rows(t, index)
        return process.velocity(process.noise(x, x, rows), x, rows)

    x, t, index = torch.randn(4, 2), torch.rand(3), torch.tensor([0, 2, 2, 1])
    compiled = torch.compile(noised, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, index), noised(x, t, index))
