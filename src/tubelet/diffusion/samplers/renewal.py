"""Steps that mix the predicted data with old and fresh noise: DDIM, DDPM, LCM. Shapes: ``(*lead, c)``.

All are ``x_s = alpha_s·x0 + kept·eps + fresh·noise``; they differ in how much of the predicted noise is kept and how
much is fresh. With ``kept² + fresh² = sigma_s²`` the result has the right noise level.

- DDIM keeps all, or all but a share eta (Song et al., 2021, arXiv:2010.02502, equations 12 and 16). At eta 1 it is
  ancestral sampling, as in DDPM.
- DDPM may take the variance from the network (Nichol and Dhariwal, 2021, arXiv:2102.09672, equation 15).
- LCM keeps none (Luo et al., 2023, arXiv:2310.04378, algorithm 3).
"""

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.diffusion.posteriors import learned_range
from tubelet.diffusion.process import Process
from tubelet.diffusion.samplers.rows import (
    Mark,
    combine,
    data_and_noise,
    ends,
    hold,
    predicted,
    renewed,
    select,
    spread,
    step_size,
)
from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["Variance", "ddim_step", "ddpm_step", "draw", "lcm_step"]

State = Float[Tensor, "*lead c"]
Noise = Iterator[Float[Tensor, "*lead c"]]

Variance = Literal["small", "large", "learned_range"]
"""Where DDPM's variance comes from: one of two fixed ones, or the network. Example: ``"learned_range"``."""


def ddim_step(
    denoiser: Denoiser,
    x: State,
    t: Rows,
    s: Rows,
    process: Process,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
) -> State:
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
    if eta > 0 and noise is None:
        raise ValueError(f"noise must be given where eta is above 0, got noise=None and eta={eta}")
    here, there = ends(process.path, t, s)
    prediction = predicted(denoiser, x, t)
    if noise is None or eta == 0:
        return hold(x, combine(t, _mixture(process, t, here, there, there.sigma), [x, prediction]), t, s)
    deviation = eta * there.sigma * renewed(step_size(here, there))
    kept = (there.sigma**2 - deviation**2).clamp(min=0).sqrt()
    factors = [*_mixture(process, t, here, there, kept), deviation]
    return hold(x, combine(t, factors, [x, prediction, draw(noise, x)]), t, s)


def ddpm_step(
    denoiser: Denoiser,
    x: State,
    t: Rows,
    s: Rows,
    process: Process,
    *,
    noise: Noise,
    variance: Variance = "small",
    parts: Callable[[Tensor], tuple[Tensor, ...]] | None = None,
) -> State:
    """One DDPM step: the posterior's mean, and noise of a fixed or a learned variance; none at its end on clean data.

    Args:
        denoiser: predicts from a state and its noise levels; for a learned variance it gives two parts.
        x: the state at ``t``.
        t: noise levels of ``x``.
        s: noise levels of the result, at most ``t``.
        process: what the prediction means.
        noise: where fresh noise comes from, such as :func:`~tubelet.diffusion.noise_stream`.
        variance: ``"small"`` is the posterior's, exact for data that are one point; ``"large"`` that of one noising
            step from ``s`` to ``t``, exact for white data; ``"learned_range"`` lies between their logarithms, where
            the second part of the prediction, from -1 to 1, says.
        parts: splits a prediction with a learned variance; by default into halves of the last axis. That of DiT
            has both parts in each cell of a patch.

    Raises:
        ValueError: ``variance`` is not a :data:`Variance`, or what is predicted or drawn has not the shape of ``x``.

    Example:
        >>> t, s = Rows(torch.tensor([1.0])), Rows(torch.tensor([0.5]))
        >>> noise = iter([torch.zeros(2, 1)])
        >>> ddpm_step(lambda x, t: x, torch.ones(2, 1), t, s, Process(prediction="x0"), noise=noise).tolist()
        [[0.5], [0.5]]
    """
    if variance not in get_args(Variance):
        raise ValueError(f"variance must be one of {get_args(Variance)}, got {variance!r}")
    here, there = ends(process.path, t, s)
    step = step_size(here, there)
    factors = _mixture(process, t, here, there, there.sigma * (-step.clamp(min=0)).exp())
    small, large = (torch.where(there.sigma > 0, at.sigma * renewed(step), 0.0) for at in (there, here))
    if variance != "learned_range":
        values = [x, predicted(denoiser, x, t), draw(noise, x)]
        return hold(x, combine(t, [*factors, small if variance == "small" else large], values), t, s)
    prediction, share = _two_parts(denoiser(x, t), parts, x)
    low, high = (torch.where(deviation > 0, deviation, 1.0).log() for deviation in (small, large))
    mean = combine(t, factors, [x, prediction])
    logarithm = learned_range(share, *(spread(each.to(mean.dtype), t, x) for each in (low, high)))
    new = torch.addcmul(mean, logarithm.exp(), draw(noise, x))
    return hold(x, select(Rows(small == 0, t.index), mean, new), t, s)


def lcm_step(
    denoiser: Denoiser, x: State, t: Rows, s: Rows, process: Process, *, noise: Noise, boundary: float = 0.0
) -> State:
    """One step of a consistency model: the predicted data, with fresh noise of level ``s``.

    Args:
        denoiser: predicts from a state and its noise levels.
        x: the state at ``t``.
        t: noise levels of ``x``.
        s: noise levels of the result.
        process: what the prediction means.
        noise: where fresh noise comes from, such as :func:`~tubelet.diffusion.noise_stream`.
        boundary: the time ``b`` around which ``x`` itself becomes the result: the data are
            ``b²/(t² + b²)·x + t/sqrt(t² + b²)·x0`` (arXiv:2310.04378, equation 9). For LCM's published models it is
            0.5/10000, for rectified flow 0.

    Raises:
        ValueError: ``boundary`` is negative, or what is predicted or drawn has not the shape of ``x``.

    Example:
        >>> t, s = Rows(torch.tensor([1.0])), Rows(torch.tensor([0.5]))
        >>> noise = iter([torch.ones(2, 1)])
        >>> lcm_step(lambda x, t: x, torch.ones(2, 1), t, s, Process(prediction="x0"), noise=noise).tolist()
        [[1.0], [1.0]]
    """
    if not boundary >= 0:
        raise ValueError(f"boundary must not be negative, got {boundary}")
    here, there = ends(process.path, t, s)
    x0, _ = data_and_noise(process, t, here)
    time = t.values.double()
    scale = torch.where(
        time > 0, time / torch.hypot(time, torch.full_like(time, boundary)), 1.0 if boundary == 0 else 0.0
    )
    factors = [there.alpha * (1 - scale**2 + scale * x0[0]), there.alpha * scale * x0[1], there.sigma]
    return hold(x, combine(t, factors, [x, predicted(denoiser, x, t), draw(noise, x)]), t, s)


def draw(noise: Noise, x: State) -> State:
    """The next noise, of the shape of ``x``.

    Raises:
        ValueError: it has another shape, or there is none.

    Example:
        >>> draw(iter([torch.ones(1, 1)]), torch.zeros(1, 1))
        tensor([[1.]])
    """
    if not isinstance(noise, Iterator):
        raise ValueError(f"noise must be an iterator such as noise_stream(...), got {type(noise).__name__}")
    fresh = next(noise, None)
    if fresh is None:
        raise ValueError("noise ended before the run")
    if fresh.shape != x.shape:
        raise ValueError(f"noise gives shape {tuple(fresh.shape)}, but x has {tuple(x.shape)}")
    return fresh


def _mixture(
    process: Process, t: Rows, here: Mark, there: Mark, kept: Float[Tensor, " r"]
) -> list[Float[Tensor, " r"]]:
    """The factors of state and prediction in ``alpha_s·x0 + kept·eps``."""
    x0, eps = data_and_noise(process, t, here)
    return [there.alpha * of_x0 + kept * of_eps for of_x0, of_eps in zip(x0, eps, strict=True)]


def _two_parts(
    prediction: Tensor, parts: Callable[[Tensor], tuple[Tensor, ...]] | None, x: Tensor
) -> tuple[Tensor, Tensor]:
    split = prediction.chunk(2, dim=-1) if parts is None else parts(prediction)
    if [part.shape for part in split] != [x.shape, x.shape]:
        raise ValueError(f"x has shape {tuple(x.shape)}, but the parts have {[tuple(part.shape) for part in split]}")
    return split[0], split[1]
