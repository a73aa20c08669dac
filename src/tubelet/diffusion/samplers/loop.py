"""The loop over times: solvers, the states of a run, and running to the end. Shapes: ``(*lead, c)``.

A solver is ``solver.step(denoiser, x, t, s, process, history) -> (x, history)``: pure, and what it remembers is an
explicit value, None at the start. A one-step method is a function without the history. One loop serves both.
A :class:`State` is all there is of a run between two steps: kept, pickled and resumed, it goes on to the same bits.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion._host import readable
from tubelet.diffusion.known import Known
from tubelet.diffusion.process import Process
from tubelet.diffusion.samplers.runge_kutta import euler_step
from tubelet.layout import Rows
from tubelet.protocols import Denoiser, SamplerStep, Solver

__all__ = ["OneStep", "Seeded", "State", "lift", "sample", "trajectory"]

_ROUNDING = 1e-6
"""How far a warp may round above 1."""


class State(NamedTuple):
    """A run between two steps: how many steps were made, what they gave, and what the solver remembers.

    Example:
        >>> State(0, torch.zeros(2, 1)).history is None
        True
    """

    number: int
    x: Float[Tensor, "*lead c"]
    history: Any = None


@dataclass(frozen=True)
class OneStep:
    """A one-step method as a solver without a history.

    Example:
        >>> t, s = Rows(torch.tensor([1.0])), Rows(torch.tensor([0.5]))
        >>> OneStep(euler_step).step(lambda x, t: 2 * x, torch.ones(1, 1), t, s, Process())
        (tensor([[0.]]), None)
    """

    method: SamplerStep

    def step(
        self, denoiser: Denoiser, x: Float[Tensor, "*lead c"], t: Rows, s: Rows, process: Process, history: None = None
    ) -> tuple[Float[Tensor, "*lead c"], None]:
        """The state at ``s``, and no history."""
        return self.method(denoiser, x, t, s, process), None


@dataclass(frozen=True)
class Seeded:
    """A step that draws, before there is noise to draw from: ``make(noise)`` is the step.

    Who lays out a batch, such as :func:`tubelet.pipeline.generate`, makes it with fresh noise from each sample's seed.

    Args:
        make: from an iterator of noise, such as :func:`~tubelet.diffusion.noise_stream`, to a step or a solver.

    Example:
        >>> from functools import partial
        >>> from tubelet.diffusion import ddim_step
        >>> half = Seeded(lambda noise: partial(ddim_step, eta=0.5, noise=noise))
        >>> half.make(iter([])).keywords["eta"]
        0.5
    """

    make: Callable[[Iterator[Float[Tensor, "*lead c"]]], SamplerStep | Solver]


def lift(step: SamplerStep | Solver) -> Solver:
    """A solver: the one that is given, or a one-step method as one.

    Raises:
        ValueError: ``step`` is neither, such as a class, a name, or a function that makes a solver.

    Example:
        >>> lift(euler_step)
        OneStep(method=<function euler_step at ...>)
    """
    if isinstance(step, Seeded):
        raise ValueError("step is Seeded, and there is no noise here: step.make(noise_stream(layout, channels, seeds))")
    if isinstance(step, type) or not isinstance(step, Solver):
        return OneStep(one_step("step", step))
    return step


def one_step(name: str, step: Any) -> SamplerStep:
    """A step that can be called as ``step(denoiser, x, t, s, process)``.

    Raises:
        ValueError: it cannot; says the argument's name and what it is.

    Example:
        >>> from tubelet.diffusion import UniPC
        >>> one_step("within", UniPC())
        Traceback (most recent call last):
        ...
        ValueError: within must be a one-step method, got the solver UniPC, which remembers several
    """
    kind = type(step).__name__
    if isinstance(step, type):
        raise ValueError(f"{name} must be a step, got the class {step.__name__}: {step.__name__}(...) is one")
    if isinstance(step, Solver):
        raise ValueError(f"{name} must be a one-step method, got the solver {kind}, which remembers several")
    if not callable(step):
        raise ValueError(f"{name} must be a step such as euler_step, got {step!r}; SOLVERS has them by name")
    if not torch.compiler.is_compiling():
        try:
            inspect.signature(step).bind(None, None, None, None, None)
        except TypeError as error:
            called = getattr(getattr(step, "func", step), "__name__", kind)
            raise ValueError(f"{name} is called as {called}(denoiser, x, t, s, process): {error}") from error
    found: SamplerStep = step
    return found


def trajectory(
    denoiser: Denoiser,
    start: Float[Tensor, "*lead c"] | State,
    times: Float[Tensor, " s *r"],
    *,
    process: Process,
    step: SamplerStep | Solver = euler_step,
    rows: Callable[[Tensor], Rows] | None = None,
) -> Iterator[State]:
    """The states of a run, one after each step; the arguments are those of :func:`sample`.

    Args:
        denoiser: predicts what ``process.prediction`` names, from a state and its noise levels.
        start: the state at ``times[0]``, or a :class:`State` of a run over the same times, which is gone on with. A
            stream of noise is part of a stochastic solver, and has a place of its own: keep it beside the state.
        times: noise levels in order.
        process: path and prediction.
        step: a one-step method or a solver.
        rows: the noise levels of all tokens at one time.

    Raises:
        ValueError: as for :func:`sample`, when the first state is asked for.

    Example:
        >>> process = Process()
        >>> states = list(trajectory(lambda x, t: x, torch.ones(1, 1), process.times(2), process=process))
        >>> [(state.number, state.x.tolist()) for state in states]
        [(1, [[0.5]]), (2, [[0.25]])]
    """
    state = start if isinstance(start, State) else State(0, start)
    if not state.x.is_floating_point():
        raise ValueError(f"noise must be floating-point, got {state.x.dtype}")
    _check_times(times)
    if not 0 <= state.number < len(times):
        raise ValueError(f"a state of step number {state.number} is none of a run of {len(times) - 1} steps")
    if not isinstance(start, State):
        _check_start(start, rows)
    solver, levels = lift(step), [(rows or _as_rows)(time) for time in times.unbind()]
    for t, s in itertools.islice(itertools.pairwise(levels), state.number, None):
        x, history = solver.step(denoiser, state.x, t, s, process, state.history)
        state = State(state.number + 1, x, history)
        yield state


def sample(
    denoiser: Denoiser,
    noise: Float[Tensor, "*lead c"] | State,
    times: Float[Tensor, " s *r"],
    *,
    process: Process,
    step: SamplerStep | Solver = euler_step,
    rows: Callable[[Tensor], Rows] | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Float[Tensor, "*lead c"]:
    """Follow ``times`` from the first to the last, one step each; wrap the call in ``torch.inference_mode()``.

    Args:
        denoiser: predicts what ``process.prediction`` names, from a state and its noise levels: ``Rows``, whose numbers
            are ``t.values``, one each token ``t.expand()``, and shaped like the state ``level(t, x)``.
        noise: the state at ``times[0]``, or the :class:`State` of a run to go on with.
        times: noise levels in order, such as ``process.times(steps)``, or of each row in order, such as a
            :func:`staircase`. They are used as they are: no warp is applied. From clean data to noise they invert.
        process: path and prediction.
        step: how one step is made: a one-step method such as :func:`heun_step`, or a solver such as :class:`UniPC`.
        rows: the noise levels of all tokens at one time, such as :meth:`Known.levels`. By default one time is that of
            all tokens, and several are one a batch element.
        callback: called after each step with its number and state.

    Returns:
        The state at ``times[-1]``.

    Raises:
        ValueError: ``noise`` holds integers; ``times`` are none, or leave [0, 1]; with ``rows=known.levels`` the state
            does not hold the known values (both looked at on the CPU only: reading another device would stall it);
            ``step`` is none; a state of another run's number.

    Example:
        >>> process = Process()
        >>> towards_two = lambda x, t: (x - 2) / t.values
        >>> sample(towards_two, torch.zeros(2, 1), process.times(4), process=process).tolist()
        [[2.0], [2.0]]
    """
    x = noise.x if isinstance(noise, State) else noise
    for number, x, _ in trajectory(denoiser, noise, times, process=process, step=step, rows=rows):
        if callback is not None:
            callback(number - 1, x)
    return x


def _as_rows(time: Float[Tensor, "*r"]) -> Rows:
    return Rows(time.reshape(-1))


def _check_start(start: Tensor, rows: Callable[[Tensor], Rows] | None) -> None:
    """Tokens that are held must be what is known of them."""
    known = getattr(rows, "__self__", None)
    if not (isinstance(known, Known) and known.noise_level == 0 and readable(start)):
        return
    if not torch.equal(torch.where(known.tokens[..., None], start, 0), known.apply(torch.zeros_like(start))):
        raise ValueError(
            "noise differs from the known values, which rows=known.levels holds: start from known.apply(noise)"
        )


def _check_times(times: Tensor) -> None:
    if times.ndim not in (1, 2) or len(times) < 1 or not times.is_floating_point():
        raise ValueError(f"times must be floating-point (s,) or (s, rows), got {times.dtype} of {tuple(times.shape)}")
    if not readable(times):
        return
    if not bool(((times >= 0) & (times <= 1 + _ROUNDING)).all()):  # NaN too
        raise ValueError(f"times must lie in [0, 1], got {times.tolist()}")
