"""Explicit Runge-Kutta steps of ``dx/dt = velocity``: Euler, Heun, midpoint and RK4. Shapes: ``(*lead, c)``.

Heun is Karras et al., 2022 (arXiv:2206.00364, algorithm 1); the midpoint rule with the middle of log sigma is what
k-diffusion calls DPM-2; RK4 is Kutta, 1901. Where a step ends on clean data (sigma 0) no slope there counts.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.process import Process
from tubelet.diffusion.samplers.rows import check_rows, combine, hold, predicted, select, velocity
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["euler_step", "heun_step", "midpoint_step", "rk4_step"]

State = Float[Tensor, "*lead c"]


def euler_step(denoiser: Denoiser, x: State, t: Rows, s: Rows, process: Process) -> State:
    """One Euler step from ``t`` to ``s``: ``x + (s - t)·velocity``.

    Example:
        >>> import torch
        >>> t, s = Rows(torch.tensor([1.0])), Rows(torch.tensor([0.5]))
        >>> euler_step(lambda x, t: 2 * x, torch.ones(3, 1), t, s, Process()).tolist()
        [[0.0], [0.0], [0.0]]
    """
    check_rows(t, s)
    return hold(x, _move(x, t, s, [1.0], [_slope(denoiser, x, t, process)]), t, s)


def heun_step(denoiser: Denoiser, x: State, t: Rows, s: Rows, process: Process) -> State:
    """One Heun step: the mean of the velocities at both ends of an Euler step; two evaluations.

    Where the step ends on clean data (sigma 0) it is an Euler step, which keeps order 2 over a whole run.

    Example:
        >>> import torch
        >>> t, s = Rows(torch.tensor([1.0])), Rows(torch.tensor([0.5]))
        >>> heun_step(lambda x, t: 2 * x, torch.ones(3, 1), t, s, Process()).tolist()
        [[0.5], [0.5], [0.5]]
    """
    check_rows(t, s)
    first = _slope(denoiser, x, t, process)
    euler = _move(x, t, s, [1.0], [first])
    second = _slope(denoiser, hold(x, euler, t, s), s, process)
    return _unless_clean(x, euler, _move(x, t, s, [0.5, 0.5], [first, second]), t, s, process)


def midpoint_step(
    denoiser: Denoiser,
    x: State,
    t: Rows,
    s: Rows,
    process: Process,
    *,
    middle: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> State:
    """One step with the velocity at a middle, which an Euler step reaches; two evaluations.

    Args:
        denoiser: predicts from a state and its noise levels.
        x: the state at ``t``.
        t: noise levels of ``x``.
        s: noise levels of the result.
        process: what the prediction means.
        middle: from the values of ``t`` and ``s`` a time between them; by default their mean.

    Example:
        >>> import torch
        >>> t, s = Rows(torch.tensor([1.0])), Rows(torch.tensor([0.5]))
        >>> midpoint_step(lambda x, t: 2 * x, torch.ones(3, 1), t, s, Process()).tolist()
        [[0.5], [0.5], [0.5]]
    """
    check_rows(t, s)
    between = Rows((middle or _mean)(t.values, s.values), t.index, t.owner)
    first = _slope(denoiser, x, t, process)
    halfway = hold(x, _move(x, t, between, [1.0], [first]), t, s)
    return hold(x, _move(x, t, s, [1.0], [_slope(denoiser, halfway, between, process)]), t, s)


def rk4_step(denoiser: Denoiser, x: State, t: Rows, s: Rows, process: Process) -> State:
    """One step of the classical Runge-Kutta method of order 4; four evaluations.

    Where the step ends on clean data (sigma 0) it is a midpoint step.

    Example:
        >>> import torch
        >>> t, s = Rows(torch.tensor([1.0])), Rows(torch.tensor([0.5]))
        >>> rk4_step(lambda x, t: 0 * x + 3, torch.ones(1, 1), t, s, Process())
        tensor([[-0.5000]])
    """
    check_rows(t, s)
    between = Rows(_mean(t.values, s.values), t.index, t.owner)
    slopes = [_slope(denoiser, x, t, process)]
    for _ in range(2):
        slopes.append(_slope(denoiser, hold(x, _move(x, t, between, [1.0], slopes[-1:]), t, s), between, process))
    slopes.append(_slope(denoiser, hold(x, _move(x, t, s, [1.0], slopes[-1:]), t, s), s, process))
    midpoint = _move(x, t, s, [1.0], slopes[1:2])
    return _unless_clean(x, midpoint, _move(x, t, s, [1 / 6, 1 / 3, 1 / 3, 1 / 6], slopes), t, s, process)


def _slope(denoiser: Denoiser, x: State, t: Rows, process: Process) -> State:
    prediction = predicted(denoiser, x, t)
    return prediction if process.prediction == "velocity" else combine(t, velocity(process, t), [x, prediction])


def _move(x: State, t: Rows, s: Rows, weights: Sequence[float], slopes: Sequence[State]) -> State:
    """``x`` after the step along the weighted sum of slopes."""
    step = s.values.double() - t.values.double()
    return combine(t, [step if weight == 1 else weight * step for weight in weights], [x, *slopes])


def _unless_clean(x: State, clean: State, other: State, t: Rows, s: Rows, process: Process) -> State:
    """``clean`` where the step ends on clean data, ``other`` elsewhere."""
    return hold(x, select(s.map(lambda values: process.path.sigma(values) == 0), clean, other), t, s)


def _mean(t: Tensor, s: Tensor) -> Tensor:
    return (t + s) / 2
