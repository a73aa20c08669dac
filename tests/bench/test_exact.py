"""Exact rows and gradients against autograd through the readable definition; what is wrong is seen as wrong."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.attention import Joint, attend
from tubelet.bench.exact import TOLERANCES, choose_rows, exact_rows
from tubelet.layout import Grid, Kind, TokenLayout
from tubelet.testing import mixtures


@dataclass(frozen=True)
class Box:
    """Grid tokens at most ``reach`` away along each axis, text everywhere: one condition per axis."""

    reach: tuple[int, int, int]

    def attends(self, q, k, head):
        reach = torch.tensor(self.reach, device=q.kind.device)
        near = ((q.coords - k.coords).abs() <= reach).all(-1)
        return near | (q.kind == Kind.TEXT) | (k.kind == Kind.TEXT)


@dataclass(frozen=True)
class Causal:
    """Frames up to the query's own; text attends text alone."""

    def attends(self, q, k, head):
        return q.coords[..., 0] >= k.coords[..., 0]


@dataclass(frozen=True)
class Diagonal:
    """Tied to all three axes at once, and other for every head: nothing but asking each pair counts it."""

    def attends(self, q, k, head):
        return ((q.coords - k.coords).sum(-1) % (2 + head % 3) == 0) | (q.kind == Kind.TEXT)


PATTERNS = [Joint(), Box((1, 0, 1)), Causal(), Diagonal()]


def inputs(layout: TokenLayout, heads: int = 3, head_dim: int = 8) -> list[torch.Tensor]:
    return list(torch.randn(4, *layout.shape, heads, head_dim, dtype=torch.float64))


def autograd(qkv, cotangent, pattern, layout):
    leaves = [x.clone().requires_grad_() for x in qkv]
    out = attend(*leaves, pattern=pattern, layout=layout, backend="reference")
    return (out.detach(), *torch.autograd.grad(out, leaves, cotangent))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("name", mixtures())
def test_all_rows_equal_autograd(pattern, name: str) -> None:
    layout = mixtures()[name]
    *qkv, cotangent = inputs(layout)
    exact = exact_rows(*qkv, cotangent, pattern, layout, choose_rows(layout, 10_000, 0))
    results = autograd(qkv, cotangent, pattern, layout)
    errors = exact.errors(results, results)
    assert set(errors) == {"out", "row", "dq", "dk", "dv"}
    padding = 1 - sum(layout.lengths) / torch.Size(layout.shape).numel()
    for part, error in errors.items():
        assert error < 1e-11 or (padding and part in ("dk", "dv")), part
    if not padding:
        assert max(errors.values()) < 1e-11


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_masked_cotangent_gives_the_gradients_of_every_key(pattern) -> None:
    layout = TokenLayout.packed([Grid(2, 3, 2), Grid(1, 4, 4)], [2, 0])
    *qkv, cotangent = inputs(layout)
    rows = choose_rows(layout, 9, seed=1)
    exact = exact_rows(*qkv, cotangent, pattern, layout, rows)
    masked = torch.zeros_like(cotangent)
    masked[rows] = cotangent[rows]
    errors = exact.errors(autograd(qkv, cotangent, pattern, layout), autograd(qkv, masked, pattern, layout))
    assert max(errors.values()) < 1e-11


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any),
    most=st.integers(2, 20),
    seed=st.integers(0, 3),
)
def test_rows_are_real_distinct_and_hold_the_ends(lengths, most, seed) -> None:
    layout = TokenLayout.padded(lengths, 9)
    rows = choose_rows(layout, most, seed).tolist()
    assert rows == sorted(set(rows))
    assert len(rows) == min(most, sum(lengths))
    assert all(row % 9 < lengths[row // 9] for row in rows)
    ends = {i * 9 + place for i, n in enumerate(lengths) if n for place in (0, n - 1)}
    if len(ends) <= most // 2:
        assert ends <= set(rows)


def test_the_ends_of_every_sample_are_chosen_before_others() -> None:
    layout = TokenLayout.packed([Grid(1, 8, 9), Grid(2, 5, 5)], [3, 0])
    for seed in range(5):
        rows = choose_rows(layout, 8, seed).tolist()
        assert {0, 74, 75, 124} <= set(rows)
        assert len(rows) == 8


def test_a_gradient_that_is_nothing_is_measured_by_its_cotangent() -> None:
    layout = TokenLayout.dense(3, Grid(1, 1, 1))
    *qkv, cotangent = inputs(layout)
    exact = exact_rows(*qkv, cotangent, Joint(), layout, torch.arange(3))
    results = (qkv[2], torch.full_like(qkv[0], 1e-9), torch.zeros_like(qkv[1]), cotangent)
    errors = exact.errors(results, results)
    assert 0 < errors["dq"] < 1e-8
    assert errors["dk"] == 0
    assert exact.errors((qkv[2], cotangent, cotangent, cotangent))["dq"] == pytest.approx(1)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_the_tolerance_lets_rounding_pass_and_nothing_else(dtype) -> None:
    layout = TokenLayout.dense(1, Grid(4, 6, 6))
    q, k, v = (x.to(dtype) for x in inputs(layout)[:3])
    exact = exact_rows(q, k, v, None, Joint(), layout, choose_rows(layout, 64, 0))
    out = attend(q, k, v, layout=layout, backend="reference")
    assert exact.errors((out,))["out"] < TOLERANCES[dtype]
    assert exact.errors((out * 1.03,))["out"] > TOLERANCES[dtype]
    assert exact.errors((out.roll(1, 1),))["out"] > TOLERANCES[dtype]
    one_key = attend(q, k[:, :-1], v[:, :-1], backend="reference")
    assert exact.errors((one_key,))["out"] > TOLERANCES[dtype]
