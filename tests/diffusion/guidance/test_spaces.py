"""Predictions restated, against equations solved by hand, and rules in other spaces at the ends of a path."""

import itertools
from typing import get_args

import pytest
import torch
from denoisers import C, U, randn
from torch import Tensor

from tubelet.diffusion import VP, Guided, Prediction, Process, RectifiedFlow, in_space, restate
from tubelet.layout import Rows
from tubelet.protocols import Path

PAIRS = list(itertools.product(get_args(Prediction), repeat=2))
X = randn(3, 4)
T = Rows(torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64), torch.arange(3))


def written_out(kind: str, x0: Tensor, eps: Tensor, a: Tensor, s: Tensor, da: Tensor, ds: Tensor) -> Tensor:
    return {"x0": x0, "eps": eps, "v": a * eps - s * x0, "velocity": da * x0 + ds * eps}[kind]


@pytest.mark.parametrize("path", [RectifiedFlow(), VP.cosine()])
@pytest.mark.parametrize(("have", "want"), PAIRS)
def test_a_restated_prediction_is_that_of_the_same_data(path: Path, have: Prediction, want: Prediction) -> None:
    x0, eps, t = randn(3, 4, seed=1), randn(3, 4, seed=2), T.values[:, None]
    factors = (path.alpha(t), path.sigma(t), path.alpha_dot(t), path.sigma_dot(t))
    x = factors[0] * x0 + factors[1] * eps
    known = restate(lambda x, t: written_out(have, x0, eps, *factors), Process(path=path, prediction=have), want)
    torch.testing.assert_close(known(x, T), written_out(want, x0, eps, *factors), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", [RectifiedFlow(), VP.linear()])
@pytest.mark.parametrize(("have", "want"), PAIRS)
def test_a_rule_in_a_space_is_restated_rule_restated(path: Path, have: Prediction, want: Prediction) -> None:
    process = Process(path=path, prediction=have)
    rule = lambda predictions, x, t: torch.tanh(predictions[0]) * predictions[1] + x  # noqa: E731
    got = Guided(in_space(rule, process, want), c=C, u=U)(X, T)
    there = Guided(rule, c=restate(C, process, want), u=restate(U, process, want))
    back = restate(there, Process(path=path, prediction=want), have)
    torch.testing.assert_close(got, back(X, T), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("have", ["v", "velocity"])
def test_where_a_space_says_nothing_the_first_prediction_stands(have: Prediction) -> None:
    """At level 0 the data are the state, and at zero signal the noise is: a rule between such predictions is idle."""
    process = Process(path=VP.linear().zero_terminal_snr(), prediction=have)
    between = lambda predictions, x, t: 3 * predictions[0] - 2 * predictions[1]  # noqa: E731
    clean, noise = (Rows(torch.tensor([end], dtype=torch.float64)) for end in (0.0, 1.0))
    for kind, t in (("x0", clean), ("eps", noise)):
        got = Guided(in_space(between, process, kind), c=C, u=U)(X, t)
        torch.testing.assert_close(got, C(X, t), rtol=1e-9, atol=1e-9)
    for kind, t in (("eps", clean), ("x0", noise)):  # and here the other says all
        got = Guided(in_space(between, process, kind), c=C, u=U)(X, t)
        torch.testing.assert_close(got, 3 * C(X, t) - 2 * U(X, t), rtol=1e-9, atol=1e-9)


def test_what_is_already_there_is_not_touched() -> None:
    assert restate(C, Process(prediction="eps"), "eps") is C
    rule = lambda predictions, x, t: x  # noqa: E731
    assert in_space(rule, Process(), "velocity") is rule


@pytest.mark.graph  # run-time checks off, as for users
def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of .* got 'flow'"):
        restate(C, Process(), "flow")
    with pytest.raises(ValueError, match=r"kind must be one of .* got 'noise'"):
        in_space(lambda predictions, x, t: x, Process(), "noise")
    with pytest.raises(ValueError, match=r"x has shape \(3, 4\), but prediction has \(3, 1\)"):
        restate(lambda x, t: x[:, :1], Process(), "x0")(X, T)
