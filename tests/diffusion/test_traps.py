"""What would be wrong in silence, or fail far from its cause, is an error that names the argument and the values."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tubelet.diffusion import (
    EDM,
    VP,
    VPSDE,
    Known,
    Process,
    RectifiedFlow,
    Repainted,
    State,
    Tapered,
    UniPC,
    ancestral_step,
    cfg,
    deis,
    dpmpp_2m,
    draw_dropped,
    draw_levels,
    euler_step,
    linear_times,
    log_snr,
    logit_normal,
    min_snr,
    noise_ratio,
    offset_noise,
    packed,
    posterior,
    renoise,
    rescale,
    sample,
    shift_warp,
    staircase,
    time_of_log_snr,
    time_of_ratio,
    trajectory,
)
from tubelet.diffusion.guidance import PerSample
from tubelet.diffusion.tasks import connect, edit_times, inpaint, interpolate
from tubelet.layout import Grid, Rows, TokenLayout

pytestmark = pytest.mark.graph  # run-time shape checks off, as for users

P = Process()
X = torch.zeros(2, 1)
LAYOUT = TokenLayout.packed([Grid(2, 1, 1)])
CLIP = torch.zeros(1, 2, 4, 4)
HALF = Rows(torch.tensor([0.5]))
INTS = torch.tensor([1, 3])


def identity(x: torch.Tensor, t: Rows) -> torch.Tensor:
    return x


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "levels as a tensor": (
        lambda: P.noise(X, X, torch.tensor([0.5])),
        r"noise levels must be Rows, Rows\(torch.tensor\(\[0.5\]\)\) say, got Tensor",
    ),
    "a level as a number": (lambda: P.noise(X, X, 0.5), r"noise levels must be Rows, .* got float"),
    "a mask as a tensor": (
        lambda: Known(torch.ones(2, dtype=torch.bool), X),
        r"mask must be Rows, layout.rows\(flags, level\), got Tensor",
    ),
    "a path's class": (lambda: Process(path=VP), "path must be a path, got the class VP"),
    "a density's maker": (
        lambda: Process(density=logit_normal),
        r"density is called as logit_normal\(shape, generator=...\): .*'generator'",
    ),
    "an importance as a weight": (
        lambda: Process(weight=min_snr(5.0)).loss(X, X, X, HALF),
        r"weight must map times to weights; an importance goes by process.weighted_by\(...\)",
    ),
    "levels of a host layout": (lambda: draw_levels(P, LAYOUT, "frame"), r"layout.on\(device\), got TokenLayout"),
    "a packed host layout": (lambda: packed(identity, LAYOUT), r"layout.on\(device\), got TokenLayout"),
    "statistics of a host layout": (lambda: PerSample(LAYOUT), r"layout.on\(device\), got TokenLayout"),
    "statistics of bare rows": (lambda: PerSample(HALF), "rows that name no samples"),
    "a list of scales": (
        lambda: cfg(identity, identity, torch.tensor([2.0, 3.0])),
        r"scale must be a number, got \(2,\) of them: one a sample is layout.rows\(..., 'sample'\)",
    ),
    "a scale of NaN": (lambda: cfg(identity, identity, torch.tensor(torch.nan)), "scale must be finite, got nan"),
    "rows with infinity": (
        lambda: cfg(identity, identity, Rows(torch.tensor([2.0, torch.inf]))),
        r"scale must be finite, got \[2.0, inf\]",
    ),
    "a hole of numbers": (lambda: inpaint(CLIP, torch.ones(2, 4, 4)), "hole must hold torch.bool, got torch.float32"),
    "a mask of bytes": (
        lambda: Known.of_video(CLIP, torch.ones(2, 4, 4, dtype=torch.uint8)),
        "mask must hold torch.bool, got torch.uint8",
    ),
    "clips of two dtypes": (
        lambda: connect(CLIP.byte(), CLIP, 9),
        "clips must share a dtype, got torch.uint8 and torch.float32",
    ),
    "one place twice": (lambda: interpolate(CLIP, [0, -4], 4), r"a place of its own, got \[0, -4\]"),
    "an index of no table": (
        lambda: VP.linear().time(torch.tensor([1500])),
        r"index must be from 0 to 999, got \[1500\]",
    ),
    "a bare event": (lambda: draw_dropped({"text": 0.5}, 3), r"drops must name conditions in tuples, \('text',\)"),
    "noise that ends": (
        lambda: sample(identity, X, P.times(2), process=P, step=partial(ancestral_step, noise=iter([X]))),
        "noise ended before the run",
    ),
    "a list of noise": (
        lambda: sample(identity, X, P.times(2), process=P, step=partial(ancestral_step, noise=[X, X])),
        r"noise must be an iterator such as noise_stream\(...\), got list",
    ),
    "a frame of text on a staircase": (
        lambda: staircase(torch.tensor([-1, 0]), 2, 1),
        "frame must count from 0, got -1",
    ),
    "known values at a level of their own, repainted": (
        lambda: Repainted(Known(Rows(torch.tensor([True])), X, 0.5), iter([])),
        "known must be at noise level 0 to be repainted, got 0.5",
    ),
    "offsets without channels": (
        lambda: offset_noise(X, Rows(torch.zeros(1))),
        r"offset must have rows \(r, channels\), got values of shape \(1,\)",
    ),
    "one time for times": (
        lambda: sample(identity, X, torch.tensor(0.5), process=P),
        r"times must be floating-point \(s,\) or \(s, rows\), got torch.float32 of \(\)",
    ),
    "indices for times": (
        lambda: sample(identity, X, torch.tensor([999, 0]), process=P),
        r"times must be floating-point \(s,\) or \(s, rows\), got torch.int64 of \(2,\)",
    ),
    "a state beyond the run": (
        lambda: sample(identity, State(7, X), P.times(3), process=P),
        "a state of step number 7 is none of a run of 3 steps",
    ),
    "a state before the run": (lambda: sample(identity, State(-1, X), P.times(3), process=P), "step number -1"),
    "integer ratios": (lambda: time_of_ratio(RectifiedFlow(), INTS), "ratio must be floating-point, got torch.int64"),
    "integer log ratios": (lambda: time_of_log_snr(VPSDE(), INTS), "value must be floating-point, got torch.int64"),
    "integer levels": (lambda: noise_ratio(EDM(), INTS), "t must be floating-point, got torch.int64"),
    "integer levels in logs": (lambda: log_snr(EDM(), INTS), "t must be floating-point, got torch.int64"),
    "integer times": (lambda: P.times(4, dtype=torch.long), "dtype must be floating-point, got torch.int64"),
    "integer places": (lambda: linear_times(2, 4, dtype=torch.long), "dtype must be floating-point, got torch.int64"),
    "no rows": (lambda: P.times(2, rows=-1), "rows must be at least 1, got -1"),
    "an integer time": (
        lambda: Known(Rows(torch.tensor([True])), X, 0.5).levels(torch.tensor(1)),
        "t must be floating-point, got torch.int64",
    ),
    "integers of a posterior": (
        lambda: posterior(VP.linear(), Rows(INTS), Rows(INTS), X),
        "noise levels must be floating-point, got torch.int64",
    ),
    "ends of other tokens": (
        lambda: euler_step(identity, X, Rows(torch.ones(2), torch.tensor([0, 1])), Rows(torch.zeros(2)), P),
        r"levels must be of the same tokens, got indices of shape \(2,\) and None",
    ),
    "noise that broadcasts": (
        lambda: renoise(X, HALF, Rows(torch.tensor([0.7])), RectifiedFlow(), torch.zeros(1, 1)),
        r"fresh has shape \(1, 1\), but x has \(2, 1\)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_named(name: str) -> None:
    call, says = CASES[name]
    with pytest.raises(ValueError, match=says):
        call()


def test_held_tokens_must_hold_what_is_known() -> None:
    known = Known(LAYOUT.rows(torch.tensor([True, False]), "frame"), torch.full((2, 1), 7.0))
    run = {"process": P, "rows": known.levels}
    with pytest.raises(ValueError, match=r"noise differs from the known values, .* start from known\.apply\(noise\)"):
        sample(identity, X, P.times(3), **run)
    assert sample(identity, known.apply(X), P.times(3), **run)[0] == 7
    state = next(trajectory(identity, known.apply(X), P.times(3), **run))
    assert sample(identity, state, P.times(3), **run)[0] == 7


SOLVERS = {"deis": deis(2), "2m": dpmpp_2m(), "unipc": UniPC(), "tapered": Tapered(UniPC(), 6)}


@pytest.mark.parametrize("made", SOLVERS)
@pytest.mark.parametrize("other", SOLVERS)
def test_a_solver_goes_on_from_its_own_history_alone(made: str, other: str) -> None:
    state = list(trajectory(identity, X + 1, P.times(6), process=P, step=SOLVERS[made]))[2]
    if made == other:
        assert sample(identity, state, P.times(6), process=P, step=SOLVERS[other]).isfinite().all()
        return
    with pytest.raises(ValueError, match="history"):
        sample(identity, state, P.times(6), process=P, step=SOLVERS[other])


def test_a_shift_may_be_a_tensor_of_one_number() -> None:
    assert torch.equal(shift_warp(torch.tensor(3.0))(P.times(4)), shift_warp(3.0)(P.times(4)))


def test_over_one_time_nothing_is_sampled() -> None:
    times = edit_times(P, 25, 0.0)
    assert torch.equal(sample(identity, X + 1, times, process=P, step=UniPC()), X + 1)


@pytest.mark.parametrize(("steps", "strength", "made"), [(25, 0.28, 7), (25, 0.56, 14), (100, 0.07, 7), (25, 0.281, 8)])
def test_an_edit_makes_its_share_of_the_steps(steps: int, strength: float, made: int) -> None:
    assert len(edit_times(P, steps, strength)) == made + 1


def test_rescaling_one_sample_with_a_level_for_each_frame_is_one_sample() -> None:
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    guided = rescale(cfg(identity, lambda x, t: 0 * x, 3.0), identity, 1.0)
    fine = LAYOUT.rows(torch.tensor([0.2, 0.5]), "frame")
    torch.testing.assert_close(guided(x, fine), guided(x, HALF), rtol=1e-6, atol=1e-6)
