"""What every guidance keeps: one call a network, packed = separate, whole graphs, nothing read on the host."""

import itertools
import subprocess
import sys

import denoisers
import pytest
import torch
from denoisers import EVERY, C, U, alone, counted, network, packed_state, randn
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tubelet.diffusion import (
    VP,
    Guided,
    PerSample,
    Process,
    apg,
    batched,
    cfg,
    interval,
    one_row,
    rescale,
    sample,
    skip_layer,
)
from tubelet.layout import Grid, Level, Rows, TokenLayout

T = one_row(torch.tensor(0.5, dtype=torch.float64))
PROCESSES = {
    "flow": Process(),
    "eps": Process(path=VP.linear(), prediction="eps"),
    "v": Process(path=VP.cosine(), prediction="v"),
}


def test_each_denoiser_is_called_once_however_often_it_occurs() -> None:
    calls: dict[str, list[tuple[int, ...]]] = {name: [] for name in "cus"}
    c, u, s = (counted(network(i), calls[name]) for i, name in enumerate("cus"))
    x = randn(5, 4)
    inner = cfg(c, u, 4.0)
    got = rescale(skip_layer(inner, c, s, 2.0), inner, 0.5)(x, T)
    assert {name: len(seen) for name, seen in calls.items()} == {"c": 1, "u": 1, "s": 1}
    plain = cfg(network(0), network(1), 4.0)
    guided = plain(x, T) + 2.0 * (network(0)(x, T) - network(2)(x, T))
    torch.testing.assert_close(got, guided * (0.5 * plain(x, T).std() / guided.std() + 0.5), rtol=1e-12, atol=1e-12)


def test_a_rule_of_ones_own_gets_predictions_in_order_state_and_levels() -> None:
    def rule(predictions: tuple[Tensor, ...], x: Tensor, t: Rows) -> Tensor:
        first, second = predictions
        return first - 2 * second + x * t.values

    x = randn(3, 4)
    got = Guided(rule, one=C, two=U)(x, T)
    torch.testing.assert_close(got, C(x, T) - 2 * U(x, T) + 0.5 * x)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "compose"])
def test_a_learned_variance_is_that_of_the_condition(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What is predicted beyond the width of the state; the rest is guided as it is without."""
    layout, x, t = packed_state()
    samples, process = PerSample(layout.on("cpu")), PROCESSES["eps"]
    expected = EVERY[name](samples, process)(x, t)
    for number, net in enumerate("CUVW"):
        plain, variance = getattr(denoisers, net), torch.full_like(x, number)[:, :3]
        wide = lambda x, t, plain=plain, variance=variance: torch.cat([plain(x, t), variance], dim=-1)  # noqa: E731
        monkeypatch.setattr(denoisers, net, wide)
    got = EVERY[name](samples, process)(x, t)
    torch.testing.assert_close(got[:, :4], expected, rtol=0, atol=0)
    assert got.shape[1] == 7 and not got[:, 4:].any()


@pytest.mark.graph  # run-time shape checks off, as for users
def test_predictions_that_only_broadcast_are_refused() -> None:
    guided = cfg(lambda x, t: x, lambda x, t: x[:1], 2.0)
    with pytest.raises(ValueError, match=r"conditional gives shape \(4, 3\), but unconditional \(1, 3\)"):
        guided(torch.zeros(4, 3), one_row(torch.tensor(0.5)))


@pytest.mark.parametrize(("process", "capacity"), [("flow", None), ("v", 20)])
@pytest.mark.parametrize("name", EVERY)
def test_packed_equals_separate(name: str, process: str, capacity: int | None) -> None:
    """Asked twice, so that momentum counts; padding holds NaN."""
    layout, x, t = packed_state(capacity)
    whole = EVERY[name](PerSample(layout.on("cpu")), PROCESSES[process])
    got = [whole(factor * x, t)[: sum(layout.lengths)] for factor in (1.0, 0.5)]
    pieces: list[list[Tensor]] = []
    for own, level in alone(x, layout, t):
        single = EVERY[name](PerSample(), PROCESSES[process])
        pieces.append([single(factor * own, level) for factor in (1.0, 0.5)])
    for mine, separate in zip(got, zip(*pieces, strict=True), strict=True):
        assert bool(mine.isfinite().all())
        torch.testing.assert_close(mine, torch.cat(separate), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", EVERY)
def test_rows_of_a_batch_equal_separate(name: str) -> None:
    x, t = randn(2, 5, 4), torch.tensor([0.3, 0.9], dtype=torch.float64)
    for samples in (PerSample(), PerSample(TokenLayout.dense(2, Grid(5, 1, 1)).on("cpu"))):
        got = EVERY[name](samples, Process())(x, Rows(t))
        for row in range(2):
            alone = EVERY[name](PerSample(), Process())(x[row], Rows(t[row : row + 1]))
            torch.testing.assert_close(got[row], alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["rescale", "threshold", "zero star", "apg", "all at once"])
@pytest.mark.parametrize("level", ["sample", "frame", "token"])
def test_noise_levels_of_a_layout_say_where_the_samples_lie(name: str, level: Level) -> None:
    layout, x, t = packed_state()
    index = layout.on("cpu")
    fine = index.rows(index.lift(t.values, level), level)
    right, told = (EVERY[name](s, Process())(x, fine) for s in (PerSample(index), PerSample()))
    torch.testing.assert_close(told, right, rtol=1e-12, atol=1e-12)
    whole = EVERY[name](PerSample(TokenLayout.packed([Grid(1, 1, len(x))]).on("cpu")), Process())(x, fine)
    assert float((right - whole).norm() / right.norm()) > 1e-3
    with pytest.raises(ValueError, match=r"t has \d+ rows on one axis and names no samples: .* samples=PerSample"):
        EVERY[name](PerSample(), Process())(x, Rows(fine.values, fine.index))


@pytest.mark.parametrize("name", ["rescale", "threshold", "zero star", "apg", "all at once"])
def test_tokens_that_do_not_count_may_be_anything(name: str) -> None:
    layout, x, t = packed_state()
    given = torch.zeros(len(x), dtype=torch.bool)
    given[[0, 5, 6]] = True
    index = layout.on("cpu")
    guided = EVERY[name](PerSample(index, ~given), Process())
    expected = guided(x, t)
    garbage = torch.where(given[:, None], torch.nan, x)
    torch.testing.assert_close(guided(garbage, t)[~given], expected[~given], rtol=0, atol=0)


@pytest.mark.parametrize("name", EVERY)
def test_gradients_pass_and_the_dtype_stays(name: str) -> None:
    layout, x, t = packed_state(20)
    guided = EVERY[name](PerSample(layout.on("cpu")), Process())
    total = sum(layout.lengths)
    leaf = x.requires_grad_()
    guided(leaf, t)[:total].square().sum().backward()
    assert bool(leaf.grad[:total].isfinite().all()) and bool(leaf.grad[:total].any())
    rough = EVERY[name](PerSample(layout.on("cpu")), Process())(x.detach().bfloat16(), t)
    assert name == "restated" or rough.dtype == torch.bfloat16


def test_half_precision_is_rounded_once_by_the_rules_with_statistics() -> None:
    """Their sums are at least float32: the result is as near to float64 as the rounding of the predictions allows."""
    layout, x, t = packed_state()
    samples = PerSample(layout.on("cpu"))
    for name in ("rescale", "threshold", "zero star", "apg"):
        exact = EVERY[name](samples, Process())(x, t)
        rough = EVERY[name](samples, Process())(x.bfloat16(), t)
        assert float((rough - exact).norm() / exact.norm()) < 2e-2, name


@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_read_on_the_host(name: str) -> None:
    layout, x, t = packed_state(20)
    guided = EVERY[name](PerSample(layout.on("cpu")), PROCESSES["eps"])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        # a fake tensor has no numbers: reading one raises
        fake = mode.from_tensor(x)
        assert guided(fake, Rows(mode.from_tensor(t.values), mode.from_tensor(t.index))).shape == x.shape


def test_guidance_composes_with_a_sampler() -> None:
    """Batched, guided by APG inside an interval, sampled: as one would write it out."""
    process = Process()
    times = process.times(4, dtype=torch.float64)
    x = randn(2, 3, 4)
    both = lambda y, t: torch.cat([C(y[:2], t), U(y[2:], t)])  # noqa: E731
    scale = interval(5.0, 0.3, 0.8)
    got = sample(apg(*batched(both), scale, process), x, times, process=process)
    for t, s in itertools.pairwise(times):
        c, u = (x - t * net(x, one_row(t)) for net in (C, U))
        d, own = (c - u).flatten(1), c.flatten(1)
        d = d - (d * own).sum(1, keepdim=True) / own.square().sum(1, keepdim=True) * own
        w = 5.0 if 0.3 <= t <= 0.8 else 1.0
        data = c + (w - 1) * d.view_as(c)
        x = x + (s - t) * (x - data) / t
    torch.testing.assert_close(got, x, rtol=1e-11, atol=1e-11)


COMPILED = """
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from denoisers import EVERY, C, U, packed_state
from tubelet.diffusion import VP, Momentum, PerSample, Process, apg, cfg, packed
from tubelet.layout import Level, Grid, Rows, TokenLayout

process = Process(path=VP.linear(), prediction="eps")
names = ("compose", "channels", "zero init", "guidance of guidance", "all at once")  # all rules

def run(x, values, index):  # the layout is an input: one graph for all of a capacity
    t = index.rows(values, "sample")
    return [EVERY[name](PerSample(index), process)(x, t) for name in names]

graphs = CompileCounterWithBackend("eager")
compiled = torch.compile(run, fullgraph=True, backend=graphs)
for grids in ([Grid(2, 2, 1), Grid(1, 1, 3)], [Grid(1, 2, 2)] * 3, [Grid(2, 3, 3)]):
    index, x = TokenLayout.packed(grids, capacity=20).on("cpu"), torch.randn(20, 4, dtype=torch.float64)
    values = torch.rand(16, dtype=torch.float64)
    torch.testing.assert_close(compiled(x, values, index), run(x, values, index), rtol=1e-10, atol=1e-10)
assert graphs.frame_count == 1, graphs.frame_count

layout, x, t = packed_state()
both = packed(lambda x, t: torch.sin(x) * t.expand()[:, None], layout.on("cpu"))
runs = [apg(*both, 3.0, process, momentum=Momentum(-0.5, torch.zeros_like(x))) for _ in range(2)]
graphs = CompileCounterWithBackend("eager")
compiled = torch.compile(runs[0], fullgraph=True, backend=graphs)
for factor in (1.0, 0.5, 0.25):  # the state of the momentum is carried from call to call
    torch.testing.assert_close(compiled(factor * x, t), runs[1](factor * x, t), rtol=1e-10, atol=1e-10)
assert graphs.frame_count == 1, graphs.frame_count
"""


@pytest.mark.graph
def test_every_guidance_compiles_whole_and_once() -> None:
    # a fresh process: the shape hook's wrappers around Rows cannot be traced, not even switched off
    code = f"import sys; sys.path[:0] = {sys.path}\n{COMPILED}"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
