"""Self-conditioning: which samples see their estimate, no gradient through it, and sampling against a plain loop."""

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tubelet.diffusion import (
    VP,
    Known,
    Process,
    SelfConditioned,
    SelfConditionedNetwork,
    ddim_step,
    euler_step,
    heun_step,
    self_conditioned,
)
from tubelet.layout import Grid, Rows, TokenLayout


class Network(nn.Module):
    """A prediction that depends on all three inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 3, dtype=torch.float64)

    def forward(self, x: Tensor, t: Rows, estimate: Tensor) -> Tensor:
        return torch.tanh(self.mix(torch.cat([x, estimate], dim=-1)))


def test_chosen_samples_see_the_estimate_of_a_call_without_gradients() -> None:
    layout = TokenLayout.packed([Grid(1, 2, 2), Grid(2, 1, 1), Grid(1, 1, 3)]).on("cpu")
    network, process = Network(), Process(path=VP.linear(), prediction="v")
    x = torch.randn(9, 3, dtype=torch.float64)
    t = layout.rows(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64), "sample")
    chosen = layout.rows(torch.tensor([True, False, True]), "sample")
    got = self_conditioned(network, process, x, t, chosen)
    first = network(x, t, torch.zeros_like(x)).detach()
    at = process.path.alpha(t.expand())[:, None], process.path.sigma(t.expand())[:, None]
    estimate = (at[0] * x - at[1] * first) * chosen.expand()[:, None]
    expected = network(x, t, estimate)
    torch.testing.assert_close(got, expected)
    grads = [torch.autograd.grad(out.square().sum(), network.mix.weight)[0] for out in (got, expected)]
    torch.testing.assert_close(*grads)
    assert isinstance(network, SelfConditionedNetwork)


@pytest.mark.parametrize(("step", "calls"), [(euler_step, 1), (partial(ddim_step, eta=0.0), 1), (heun_step, 2)])
def test_sampling_hands_the_last_estimate_on(step, calls: int) -> None:
    network, process, x = Network(), Process(), torch.randn(4, 3, dtype=torch.float64)
    seen: list[Tensor] = []

    def watched(x: Tensor, t: Rows, estimate: Tensor) -> Tensor:
        seen.append(estimate)
        return network(x, t, estimate)

    times, state, history = process.times(3, dtype=torch.float64), x, None
    plain, estimate = x, torch.zeros_like(x)
    for a, b in itertools.pairwise(times):
        t, s = Rows(a[None]), Rows(b[None])
        state, history = SelfConditioned(step).step(watched, state, t, s, process, history)
        shown, start = estimate, plain
        plain = step(lambda x, t, shown=shown: network(x, t, shown), plain, t, s, process)
        estimate = start - a * network(start, t, shown)
        torch.testing.assert_close(history, estimate)
        assert all(torch.equal(one, seen[-1]) for one in seen[-calls:])
    torch.testing.assert_close(state, plain)
    assert bool((seen[0] == 0).all())
    assert len(seen) == 3 * calls


def test_known_tokens_stay() -> None:
    known = Known(Rows(torch.tensor([True, False]), torch.tensor([0, 1, 1])), torch.randn(3, 3, dtype=torch.float64))
    x, history, process = known.apply(torch.randn(3, 3, dtype=torch.float64)), None, Process()
    for a, b in itertools.pairwise(process.times(3, dtype=torch.float64)):
        x, history = SelfConditioned(euler_step).step(Network(), x, known.levels(a), known.levels(b), process, history)
    assert torch.equal(x[0], known.values[0])


def test_flags_must_be_booleans() -> None:
    with pytest.raises(ValueError, match=r"chosen must hold torch\.bool, got torch\.float32"):
        self_conditioned(lambda x, t, e: x, Process(), torch.zeros(1, 1), Rows(torch.ones(1)), Rows(torch.ones(1)))
