"""What every step keeps: held tokens, rows apart, packed equals separate, a paused run's bits, shapes and dtypes."""

import itertools
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import Exploding, distance, fresh, gaussian, mixture, randn
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tubelet.diffusion import (
    SOLVERS,
    VP,
    Churned,
    ExponentialAdams,
    Known,
    Process,
    RectifiedFlow,
    Repainted,
    Seeded,
    SelfConditioned,
    State,
    UniPC,
    ancestral_step,
    ddim_step,
    ddpm_step,
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_step,
    dpmpp_3m,
    euler_step,
    heun_step,
    lcm_step,
    lift,
    midpoint_step,
    noise_like,
    noise_stream,
    one_row,
    renoise,
    rk4_step,
    sample,
    trajectory,
)
from tubelet.layout import Grid, Rows, TokenLayout
from tubelet.protocols import Path, Solver

pytestmark = pytest.mark.graph  # run-time shape checks off, as for users; the tests against peers have them on

QUIET: dict[str, Any] = {
    "euler": euler_step,
    "heun": heun_step,
    "midpoint": midpoint_step,
    "rk4": rk4_step,
    "ddim": ddim_step,
    "dpm++ 2s": dpmpp_2s_step,
    "dpm++ 2m": dpmpp_2m(),
    "dpm++ 3m": dpmpp_3m(),
    "dpm++ 3m, exact": dpmpp_3m(exact=True),
    "deis": deis(),
    "unipc 2": UniPC(2),
    "unipc 3": UniPC(3, "bh1"),
}
NOISY: dict[str, Callable[[Any], Any]] = {
    "ddim": lambda noise: partial(ddim_step, eta=0.6, noise=noise),
    "ddpm": lambda noise: partial(ddpm_step, noise=noise, variance="large"),
    "ancestral": lambda noise: partial(ancestral_step, noise=noise),
    "lcm": lambda noise: partial(lcm_step, noise=noise),
    "dpm++ 2m sde": lambda noise: dpmpp_2m_sde(noise),
    "churned": lambda noise: Churned(heun_step, 0.3, noise, low=0.1, high=0.9),
}
ALL: dict[str, Callable[[Any], Any]] = {name: lambda noise, step=step: step for name, step in QUIET.items()}
ALL |= {f"{name} with noise": make for name, make in NOISY.items()}
PATHS: list[Any] = [RectifiedFlow(), VP.linear().zero_terminal_snr()]


def network(channels: int = 4) -> Any:
    weight = randn(channels, channels, seed=1) / channels**0.5

    def denoiser(x: Tensor, t: Rows) -> Tensor:
        time = t.expand().to(x.dtype).unsqueeze(-1)
        return torch.tanh(x @ weight.to(x.dtype) + torch.sin(3 * time)) + 0.3 * x

    return denoiser


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("path", PATHS)
def test_known_tokens_survive_garbage_bit_for_bit(name: str, path: Path) -> None:
    given = torch.tensor([True, False, True, False, False])
    known = Known(Rows(given, torch.arange(5)), randn(5, 3, seed=5, dtype=torch.float32))

    def denoiser(x: Tensor, t: Rows) -> Tensor:
        assert bool(x.isfinite().all())
        return torch.where(given[:, None], float("nan"), torch.tanh(x))

    process = Process(path=path, prediction="v")
    noise = (each.float() for each in fresh(5, 3))
    start = known.apply(randn(5, 3, dtype=torch.float32))
    got = sample(denoiser, start, process.times(5), process=process, step=ALL[name](noise), rows=known.levels)
    assert torch.equal(got[given], known.values[given])
    assert bool(got[~given].isfinite().all())
    free = Known(Rows(torch.zeros(3, dtype=torch.bool), torch.arange(3)), known.values[~given])
    noise = (each.float()[~given] for each in fresh(5, 3))
    alone = sample(
        lambda x, t: torch.tanh(x), start[~given], process.times(5), process=process, step=ALL[name](noise),
        rows=free.levels,
    )  # fmt: skip
    assert distance(got[~given], alone) < 1e-6


GRIDS = st.builds(Grid, st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=3)
@given(
    sizes=st.lists(st.tuples(GRIDS, st.integers(0, 99)), min_size=2, max_size=3),
    path=st.sampled_from(PATHS),
)
def test_packed_mixtures_with_levels_of_their_own_equal_separate(name: str, sizes: list[Any], path: Path) -> None:
    """Each sample has its own noise, from its seed, and its own levels: the last ones of a common list, slowed."""
    process, denoiser, (grids, seeds) = Process(path=path, prediction="v"), network(), zip(*sizes, strict=True)
    layout, times = TokenLayout.packed(grids), process.times(4, dtype=torch.float64)
    speed = torch.linspace(0.6, 1, len(grids), dtype=torch.float64)

    def run(layout: TokenLayout, speed: Tensor, seeds: Any) -> Tensor:
        stream = noise_stream(layout, 4, seeds, dtype=torch.float64)
        index = layout.on("cpu")
        start = next(stream)
        rows = lambda t: index.rows(t * speed, "sample")  # noqa: E731
        return sample(denoiser, start, times, process=process, step=ALL[name](stream), rows=rows)

    together = run(layout, speed, seeds)
    for i, start in enumerate(layout.starts):
        alone = run(TokenLayout.packed(grids[i : i + 1]), speed[i : i + 1], seeds[i : i + 1])
        torch.testing.assert_close(together[start : start + len(alone)], alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", QUIET)
@pytest.mark.parametrize("path", PATHS)
def test_rows_that_wait_at_noise_are_those_that_start_later(name: str, path: Path) -> None:
    """As in diffusion forcing: frame 1 waits for two steps, then goes the same way as frame 0 does alone."""
    process, denoiser, start = Process(path=path, prediction="v"), network(), randn(4, 4)
    way = process.times(5, dtype=torch.float64)
    wait = torch.stack([torch.cat([way, way[-1:], way[-1:]]), torch.cat([way[:1], way[:1], way])])
    solver, index = lift(QUIET[name]), torch.tensor([0, 0, 1, 1])
    x, history = start, None
    for t, s in itertools.pairwise(wait.unbind(1)):
        x, history = solver.step(denoiser, x, Rows(t, index), Rows(s, index), process, history)
    for token in (slice(0, 2), slice(2, 4)):
        alone = sample(denoiser, start[token], way, process=process, step=QUIET[name])
        torch.testing.assert_close(x[token], alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", QUIET)
def test_a_pause_on_the_way_changes_little(name: str) -> None:
    process, start = Process(), randn(6, 1)
    way = process.times(24, dtype=torch.float64)
    paused = torch.cat([way[:13], way[12:]])
    whole, broken = (sample(mixture(process), start, t, process=process, step=QUIET[name]) for t in (way, paused))
    assert distance(broken, whole) < 2e-2


@pytest.mark.parametrize("name", ALL)
def test_a_paused_run_goes_on_to_the_same_bits(name: str) -> None:
    layout, process, denoiser = TokenLayout.packed([Grid(1, 2, 2), Grid(2, 1, 1)]), Process(), network()
    times = process.times(6)
    stream = noise_stream(layout, 4, [3, 4])
    run = {"times": times, "process": process}
    start, step = next(stream), ALL[name](stream)
    states = trajectory(denoiser, start, step=step, **run)
    for number in range(1, 4):
        state = next(states)
        assert state.number == number
    bits = pickle.dumps((state, step))
    rest = [*states]
    resumed, again = pickle.loads(bits)
    gone_on = [*trajectory(denoiser, resumed, step=again, **run)]
    assert [each.number for each in gone_on] == [4, 5, 6]
    for ours, theirs in zip(gone_on, rest, strict=True):
        assert torch.equal(ours.x, theirs.x)
    resumed, again = pickle.loads(bits)
    assert torch.equal(sample(denoiser, resumed, step=again, **run), rest[-1].x)


def test_times_of_each_row_are_a_way_for_each() -> None:
    process, denoiser, start = Process(), network(), randn(3, 4)
    times = torch.stack([process.times(4, dtype=torch.float64) * speed for speed in (1.0, 0.7, 0.4)], 1)
    for rows in (None, lambda t: Rows(t, torch.arange(3))):
        got = (
            sample(denoiser, start[:, None], times, process=process, step=UniPC(), rows=None)[:, 0]
            if rows is None
            else sample(denoiser, start, times, process=process, step=UniPC(), rows=rows)
        )
        for i in range(3):
            alone = sample(denoiser, start[i : i + 1], times[:, i], process=process, step=UniPC())
            torch.testing.assert_close(got[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_a_network_that_sees_its_estimate_is_a_solver() -> None:
    process, start = Process(prediction="x0"), randn(2, 4)
    shown = []

    def seen(x: Tensor, t: Rows, estimate: Tensor) -> Tensor:
        shown.append(estimate)
        return estimate + 1

    got = sample(seen, start, process.times(3), process=process, step=SelfConditioned(euler_step))
    assert [float(each.mean()) for each in shown] == [0.0, 1.0, 2.0]
    torch.testing.assert_close(got, torch.full_like(got, 3.0))


def test_a_finished_run_stays_as_it_is() -> None:
    process, x = Process(), randn(2, 4)
    done = State(2, x)
    assert [*trajectory(network(), done, process.times(2), process=process)] == []
    assert sample(network(), done, process.times(2), process=process) is x


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_dtype_stays_and_float32_is_near_float64(name: str, dtype: torch.dtype) -> None:
    process = Process(path=VP.cosine(), prediction="v")
    results = []
    for each in (dtype, torch.float64):
        noise = (drawn.to(each) for drawn in fresh(6, 4))
        got = sample(mixture(process), randn(6, 4).to(each), process.times(8), process=process, step=ALL[name](noise))
        assert got.dtype == each
        results.append(got)
    assert distance(*results) < (3e-2 if dtype == torch.bfloat16 else 2e-6)


@pytest.mark.parametrize("name", QUIET)
@pytest.mark.parametrize("path", [RectifiedFlow(), VP.linear()])
def test_inversion_and_back(name: str, path: Path) -> None:
    """From data to noise and back the same way: what is left is the error of both."""
    process = Process(path=path, prediction="v")
    # from clean data to pure noise; but log(alpha/sigma) of a table is infinite at 0 and far away at the first index
    begin, end = (1.0, 0.0) if isinstance(path, RectifiedFlow) else (0.95, 0.02)
    data, times = randn(6, 1) * 0.35 + 0.6, torch.linspace(begin, end, 46, dtype=torch.float64)
    run = {"process": process, "step": QUIET[name]}
    noise = sample(mixture(process), data, times.flip(0), **run)
    assert distance(noise, data) > 0.1
    bound = 0.25 if name in ("euler", "ddim") else 3e-2
    assert distance(sample(mixture(process), noise, times, **run), data) < bound


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("path", PATHS)
def test_a_step_reads_nothing_on_the_host(name: str, path: Path) -> None:
    process = Process(path=path, prediction="velocity")
    with FakeTensorMode(allow_non_fake_inputs=True):
        # a fake tensor has no numbers: reading one raises
        solver = lift(ALL[name](itertools.repeat(torch.empty(5, 4))))
        x, history, index = torch.empty(5, 4), None, torch.empty(5, dtype=torch.long)
        for _ in range(3):
            t, s = (Rows(torch.empty(2), index) for _ in range(2))
            x, history = solver.step(lambda x, t: 0.5 * x, x, t, s, process, history)
        assert x.shape == (5, 4)


def test_what_solvers_are() -> None:
    assert isinstance(UniPC(), Solver)
    assert not isinstance(heun_step, Solver)
    assert lift(UniPC()) == UniPC()
    churned = Churned(euler_step, 0.1, iter([]))
    assert lift(churned).method is churned


def test_rk4_is_the_classical_tableau() -> None:
    process, denoiser, x = Process(), network(), randn(3, 4)
    t, s = (torch.tensor(v, dtype=torch.float64) for v in (0.8, 0.5))
    f = lambda x, t: denoiser(x, one_row(t))  # noqa: E731
    h, m = s - t, (s + t) / 2
    a = f(x, t)
    b = f(x + h / 2 * a, m)
    c = f(x + h / 2 * b, m)
    d = f(x + h * c, s)
    expected = x + h / 6 * (a + 2 * b + 2 * c + d)
    torch.testing.assert_close(rk4_step(denoiser, x, one_row(t), one_row(s), process), expected, rtol=1e-13, atol=1e-13)
    clean = one_row(torch.tensor(0.0, dtype=torch.float64))
    got = rk4_step(denoiser, x, one_row(t), clean, process)
    assert torch.equal(got, midpoint_step(denoiser, x, one_row(t), clean, process))


def test_edm_stochastic_is_algorithm_2() -> None:
    """Written out for one step on the path whose time is sigma; scale, churn and Heun's second slope."""
    process = Process(path=Exploding(), prediction="x0")
    denoise, x, (drawn,) = mixture(process), 8 * randn(6, 4), itertools.islice(fresh(6, 4), 1)
    sigma, after, gamma, scale = (torch.tensor(v, dtype=torch.float64) for v in (8.0, 5.0, 0.25, 1.007))
    raised = sigma * (1 + gamma)
    noisy = x + (raised**2 - sigma**2).sqrt() * scale * drawn
    slope = (noisy - denoise(noisy, one_row(raised / 50))) / raised
    euler = noisy + (after - raised) * slope
    second = (euler - denoise(euler, one_row(after / 50))) / after
    expected = noisy + (after - raised) * (slope + second) / 2
    step = Churned(heun_step, 0.25, iter([drawn]), scale=1.007)
    got = step(denoise, x, one_row(sigma / 50), one_row(after / 50), process)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.5, 1.0, 1.5])
def test_a_stochastic_second_step_is_its_formula(eta: float) -> None:
    """Data predicted as 2, then as 3, without fresh noise: the midpoint rule of arXiv:2211.01095, with ``1 + eta²``."""
    process, times = Process(prediction="x0"), [0.8, 0.6, 0.3]
    half = [math.log((1 - t) / t) for t in times]
    before, h = half[1] - half[0], half[2] - half[1]
    x = 1.0 * times[1] / times[0] * math.exp(-(eta**2) * before) - (1 - times[1]) * 2 * math.expm1(
        -(1 + eta**2) * before
    )
    data = 3 + (3 - 2) * h / before / 2
    x = x * times[2] / times[1] * math.exp(-(eta**2) * h) - (1 - times[2]) * data * math.expm1(-(1 + eta**2) * h)
    step = dpmpp_2m_sde(itertools.repeat(torch.zeros(1, 1, dtype=torch.float64)), eta=eta)
    told = iter([2.0, 3.0])
    start, way = torch.ones(1, 1, dtype=torch.float64), torch.tensor(times, dtype=torch.float64)
    got = sample(lambda x, t: torch.full_like(x, next(told)), start, way, process=process, step=step)
    assert float(got) == pytest.approx(x, rel=1e-12)


@pytest.mark.parametrize(("t", "boundary"), [(0.5, 0.5), (0.9, 0.3), (0.5, 0.0), (0.0, 0.2), (0.0, 0.0)])
def test_a_consistency_step_is_its_formula(t: float, boundary: float) -> None:
    """Data predicted as 3 from the state 5; at time 0 the state itself, unless there is no boundary."""
    square = 1.0 if t == boundary == 0 else t**2 / (t**2 + boundary**2)
    data = (1 - square) * 5 + math.sqrt(square) * 3
    x, ends = torch.full((1, 1), 5.0, dtype=torch.float64), torch.tensor([[t], [0.25]], dtype=torch.float64)
    process, noise = Process(prediction="x0"), iter([torch.ones_like(x)])
    got = lcm_step(lambda x, t: 0 * x + 3, x, Rows(ends[0]), Rows(ends[1]), process, noise=noise, boundary=boundary)
    assert float(got) == pytest.approx(0.75 * data + 0.25, rel=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_noise_added_back_has_the_moments_of_the_level(path: Path) -> None:
    x0, (first, second) = randn(20_000, 1), itertools.islice(fresh(20_000, 1), 2)
    t, u = (one_row(torch.tensor(v, dtype=torch.float64)) for v in (0.3, 0.7))
    process = Process(path=path)
    got = renoise(process.noise(x0, first, t), t, u, path, second)
    alpha, sigma = path.alpha(u.values), path.sigma(u.values)
    assert abs(float((got * x0).mean() - alpha)) < 0.03
    assert abs(float((got - alpha * x0).std() - sigma)) < 0.02


def test_wrong_arguments_are_named() -> None:
    x, t, s = torch.zeros(2, 1), one_row(torch.tensor(0.5)), one_row(torch.tensor(0.2))
    run = (lambda x, t: x, x, t, s, Process())
    with pytest.raises(ValueError, match=r"order must be 1, 2 or 3, got 4"):
        ExponentialAdams(4)
    with pytest.raises(ValueError, match=r"through must be one of \('x0', 'eps'\), got 'v'"):
        ExponentialAdams(2, through="v")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"eta must be finite and not negative, got -1"):
        ExponentialAdams(2, eta=-1.0)
    with pytest.raises(ValueError, match=r"eta=1.0 needs noise and a polynomial through x0, got None, 'x0'"):
        ExponentialAdams(2, eta=1.0)
    with pytest.raises(ValueError, match=r"order must be 1, 2 or 3, got 0"):
        UniPC(0)
    with pytest.raises(ValueError, match=r"variant must be one of \('bh1', 'bh2'\), got 'bh3'"):
        UniPC(2, "bh3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], got 0"):
        dpmpp_2s_step(*run, share=0.0)
    with pytest.raises(ValueError, match=r"boundary must not be negative, got -1"):
        lcm_step(*run, noise=iter([x]), boundary=-1.0)
    with pytest.raises(ValueError, match=r"variance must be one of .* got 'learned'"):
        ddpm_step(*run, noise=iter([x]), variance="learned")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], got 2"):
        ancestral_step(*run, noise=iter([x]), eta=2.0)
    with pytest.raises(ValueError, match=r"amount must be finite and not negative, got -0.1"):
        Churned(euler_step, -0.1, iter([x]))
    with pytest.raises(ValueError, match=r"low must not be above high, got 0.8 and 0.2"):
        Churned(euler_step, 0.1, iter([x]), low=0.8, high=0.2)


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (UniPC, r"step must be a step, got the class UniPC: UniPC\(...\) is one"),
        (dpmpp_2m, r"step is called as dpmpp_2m\(denoiser, x, t, s, process\): too many positional arguments"),
        ("euler", r"step must be a step such as euler_step, got 'euler'; SOLVERS has them by name"),
        (ddpm_step, r"called as ddpm_step\(denoiser, x, t, s, process\): missing a required .*'noise'"),
        (partial(ancestral_step, eta=0.5), r"called as ancestral_step\(.*: missing a required .*'noise'"),
        (SOLVERS["ddpm"], r"step is Seeded, and there is no noise here: step.make\(noise_stream\("),
    ],
)
def test_what_is_no_step_is_named(step: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sample(lambda x, t: x, torch.zeros(2, 1), Process().times(2), process=Process(), step=step)


def test_wrappers_of_one_step_refuse_what_remembers() -> None:
    known = Known(one_row(torch.tensor(True)), torch.zeros(2, 1))
    for name, make in (
        ("within", lambda step: Churned(step, 0.1, iter([]))),
        ("within", lambda step: Repainted(known, iter([]), step)),
        ("inner", SelfConditioned),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a one-step method, got the solver UniPC, which"):
            make(UniPC())
        with pytest.raises(ValueError, match=f"{name} is called as dpmpp_2m"):
            make(dpmpp_2m)


@pytest.mark.parametrize("name", SOLVERS)
def test_samplers_by_name_are_the_functions(name: str) -> None:
    """Each nears the exact endpoint of Gaussian data, and those that draw use what they are given."""
    process, step = Process(), SOLVERS[name]
    denoiser, layout = gaussian(process, 0.7, 0.4), TokenLayout.packed([Grid(1, 32, 32)])
    start = noise_like(layout, 4, [0], dtype=torch.float64)
    made = step.make(noise_stream(layout, 4, [0], dtype=torch.float64)) if isinstance(step, Seeded) else step
    got = sample(denoiser, start, process.times(50, dtype=torch.float64), process=process, step=made)
    assert abs(float(got.mean()) - 0.7) < 0.03
    assert abs(float(got.std()) - 0.4) < 0.03
    assert isinstance(step, Seeded) == (float((got - (0.7 + 0.4 * start)).abs().max()) > 0.3)


@pytest.mark.parametrize("name", QUIET)
def test_rows_that_change_on_the_way_are_refused(name: str) -> None:
    solver, x = lift(QUIET[name]), torch.zeros(4, 3)
    two, four = (Rows(torch.full((n,), 0.5), torch.arange(4) % n) for n in (2, 4))
    with pytest.raises(ValueError, match=r"levels must have the same rows, got 2 and 4"):
        solver.step(lambda x, t: x, x, two, four.map(lambda t: t / 2), Process(), None)


@pytest.mark.parametrize("name", ALL)
def test_predictions_and_noise_of_another_shape_are_refused(name: str) -> None:
    x, t, s = torch.zeros(4, 3), one_row(torch.tensor(0.5)), one_row(torch.tensor(0.25))
    noise = itertools.repeat(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\), but prediction has \(4, 1\)"):
        lift(ALL[name](noise)).step(lambda x, t: x[:, :1], x, t, s, Process(), None)
    if "noise" in name:
        with pytest.raises(ValueError, match=r"noise gives shape \(1, 3\), but x has \(4, 3\)"):
            lift(ALL[name](itertools.repeat(torch.zeros(1, 3)))).step(lambda x, t: x, x, t, s, Process(), None)


def test_parts_of_another_shape_are_refused() -> None:
    x, t, s = torch.zeros(4, 3), one_row(torch.tensor(0.5)), one_row(torch.tensor(0.25))
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\), but the parts have \[\(4, 2\), \(4, 1\)\]"):
        ddpm_step(lambda x, t: x, x, t, s, Process(), noise=iter([x]), variance="learned_range")
