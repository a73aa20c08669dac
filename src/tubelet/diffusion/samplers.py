"""Samplers: pure steps from one noise level to the next, and the loop over a tensor of times.

A step is ``step(denoiser, x, t, s, process) -> x_s`` with noise levels as ``Rows``. A token whose level does not change
(``t == s``, such as a known frame at 0) is returned bit for bit, whatever the denoiser says of it. Steps read no tensor
on the host, so that they compile whole and never stall a device. Shapes: ``(*lead, c)``.

- Euler and Heun integrate ``dx/dt = velocity`` (orders 1 and 2; Karras et al., 2022, arXiv:2206.00364, algorithm 1).
- DDIM mixes the predicted data and noise anew (Song et al., 2021, arXiv:2010.02502, equation 12).
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.predictions import coefficients, level
from tubelet.diffusion.process import Process
from tubelet.layout import Rows
from tubelet.protocols import Denoiser, SamplerStep

__all__ = ["ddim_step", "euler_step", "heun_step", "hold", "one_row", "sample"]

_ROUNDING = 1e-6
"""How far a warp may round above 1."""


def hold(x: Float[Tensor, "*s"], new: Float[Tensor, "*s"], t: Rows, s: Rows) -> Float[Tensor, "*s"]:
    """``new`` in the dtype of ``x``, and ``x`` itself, bit for bit, where the noise level does not change.

    Raises:
        ValueError: ``new`` has another shape than ``x``, as after a denoiser that changes it.

    Example:
        >>> t, s = (Rows(torch.tensor(v), torch.tensor([0, 1])) for v in ([0.0, 0.9], [0.0, 0.8]))
        >>> hold(torch.ones(2, 1), torch.full((2, 1), 5.0), t, s).tolist()
        [[1.0], [5.0]]
    """
    if new.shape != x.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, but the new state has {tuple(new.shape)}")
    return torch.where(level(t, x) == level(s, x), x, new.to(x.dtype))


def euler_step(
    denoiser: Denoiser, x: Float[Tensor, "*lead c"], t: Rows, s: Rows, process: Process
) -> Float[Tensor, "*lead c"]:
    """One Euler step from ``t`` to ``s``: ``x + (s - t)·velocity``.

    Example:
        >>> t, s = Rows(torch.tensor([1.0])), Rows(torch.tensor([0.5]))
        >>> euler_step(lambda x, t: 2 * x, torch.ones(3, 1), t, s, Process()).tolist()
        [[0.0], [0.0], [0.0]]
    """
    velocity = process.velocity(denoiser(x, t), x, t)
    return hold(x, x + (level(s, x) - level(t, x)) * velocity, t, s)


def heun_step(
    denoiser: Denoiser, x: Float[Tensor, "*lead c"], t: Rows, s: Rows, process: Process
) -> Float[Tensor, "*lead c"]:
    """One Heun step: the mean of the velocities at both ends of an Euler step; two evaluations.

    Where the step ends on clean data (sigma 0) it is an Euler step, which keeps order 2 over a whole run.

    Example:
        >>> t, s = Rows(torch.tensor([1.0])), Rows(torch.tensor([0.5]))
        >>> heun_step(lambda x, t: 2 * x, torch.ones(3, 1), t, s, Process()).tolist()
        [[0.5], [0.5], [0.5]]
    """
    step = level(s, x) - level(t, x)
    first = process.velocity(denoiser(x, t), x, t)
    euler = hold(x, x + step * first, t, s)
    second = process.velocity(denoiser(euler, s), euler, s)
    clean = level(s.map(process.path.sigma), x) == 0
    return hold(x, torch.where(clean, euler, x + step * (first + second) / 2), t, s)


def ddim_step(
    denoiser: Denoiser,
    x: Float[Tensor, "*lead c"],
    t: Rows,
    s: Rows,
    process: Process,
    *,
    eta: float = 0.0,
    noise: Iterator[Float[Tensor, "*lead c"]] | None = None,
) -> Float[Tensor, "*lead c"]:
    """One DDIM step: predicted data and noise, mixed for level ``s``; ``functools.partial`` sets ``eta``.

    With ``eta`` above 0 fresh noise of deviation ``eta·(sigma_s/sigma_t)·sqrt(sigma_t² - (alpha_t·sigma_s/alpha_s)²)``
    replaces part of the predicted noise; at 1 the step is ancestral, as in DDPM.

    Args:
        denoiser: predicts from a state and its noise levels.
        x: the state at ``t``.
        t: noise levels of ``x``.
        s: noise levels of the result.
        process: what the prediction means.
        eta: how much of the noise is fresh, in [0, 1].
        noise: where fresh noise comes from, such as :func:`~tubelet.diffusion.noise_stream`.

    Raises:
        ValueError: ``eta`` is outside [0, 1], or above 0 without ``noise`` of the shape of ``x``.

    Example:
        >>> t, s = Rows(torch.tensor([1.0])), Rows(torch.tensor([0.5]))
        >>> ddim_step(lambda x, t: x, torch.ones(2, 1), t, s, Process(prediction="eps")).tolist()
        [[0.5], [0.5]]
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    x0, eps = process.split(denoiser(x, t), x, t)
    here, there = coefficients(process.path, t, x), coefficients(process.path, s, x)
    if eta == 0:
        return hold(x, there.alpha * x0 + there.sigma * eps, t, s)
    if noise is None:
        raise ValueError(f"noise must be given where eta is above 0, got noise=None and eta={eta}")
    spread = (here.sigma**2 - (here.alpha * there.sigma / there.alpha) ** 2).clamp(min=0)
    deviation = eta * there.sigma * spread.sqrt() / torch.where(here.sigma == 0, 1, here.sigma)
    kept = (there.sigma**2 - deviation**2).clamp(min=0).sqrt()
    fresh = next(noise)
    if fresh.shape != x.shape:
        raise ValueError(f"noise gives shape {tuple(fresh.shape)}, but x has {tuple(x.shape)}")
    return hold(x, there.alpha * x0 + kept * eps + deviation * fresh, t, s)


def one_row(t: Float[Tensor, ""]) -> Rows:
    """The noise level of every token: one row.

    Example:
        >>> one_row(torch.tensor(0.5)).values
        tensor([0.5000])
    """
    return Rows(t.reshape(1))


def sample(
    denoiser: Denoiser,
    noise: Float[Tensor, "*lead c"],
    times: Float[Tensor, " s"],
    *,
    process: Process,
    step: SamplerStep = euler_step,
    rows: Callable[[Tensor], Rows] | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Float[Tensor, "*lead c"]:
    """Follow ``times`` from the first to the last, one step each; wrap the call in ``torch.inference_mode()``.

    Args:
        denoiser: predicts what ``process.prediction`` names, from a state and its noise levels.
        noise: the state at ``times[0]``.
        times: noise levels in order, such as ``process.times(steps)``. They are used as they are: no warp is applied.
        process: path and prediction.
        step: how one step is made.
        rows: the noise levels of all tokens at one time (default: all the same), such as :meth:`Known.levels`.
        callback: called after each step with its number and state.

    Returns:
        The state at ``times[-1]``.

    Raises:
        ValueError: ``noise`` holds integers, or ``times`` is no list of two or more, or leaves [0, 1] (looked at on the
            CPU only: reading times on another device would stall it).

    Example:
        >>> process = Process()
        >>> towards_two = lambda x, t: (x - 2) / t.values
        >>> sample(towards_two, torch.zeros(2, 1), process.times(4), process=process).tolist()
        [[2.0], [2.0]]
    """
    if not noise.is_floating_point():
        raise ValueError(f"noise must be floating-point, got {noise.dtype}")
    _check_times(times)
    levels = [(rows or one_row)(time) for time in times.unbind()]
    x = noise
    for number, (t, s) in enumerate(itertools.pairwise(levels)):
        x = step(denoiser, x, t, s, process)
        if callback is not None:
            callback(number, x)
    return x


def _check_times(times: Tensor) -> None:
    if times.ndim != 1 or times.numel() < 2:
        raise ValueError(f"times needs at least 2 entries on one axis, a start and an end, got {tuple(times.shape)}")
    if times.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not bool(((times >= 0) & (times <= 1 + _ROUNDING)).all()):  # NaN too
        raise ValueError(f"times must lie in [0, 1], got {times.tolist()}")
