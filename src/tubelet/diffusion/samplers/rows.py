"""The coefficient arithmetic of all samplers: on rows, in float64, never one number a token.

A step is a linear combination of tensors (the state, the prediction, earlier predictions) whose factors depend on noise
levels alone. So factors are computed per row, whatever the dtype of the state, and the tokens are touched by
:func:`combine` and :func:`hold` only. Nothing is read from a device. Both levels of a step have the same rows.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tubelet.diffusion._host import readable
from tubelet.diffusion.predictions import Coefficients, check_fit, level, to_x0_eps
from tubelet.diffusion.process import Process
from tubelet.layout import Rows
from tubelet.protocols import Denoiser, Path

__all__ = [
    "Mark",
    "check_rows",
    "combine",
    "data_and_noise",
    "ends",
    "hold",
    "mark",
    "one_row",
    "predicted",
    "quotient",
    "renewed",
    "select",
    "spread",
    "step_size",
    "velocity",
]

Factors = tuple[Float[Tensor, " r"], ...]
"""What a linear function of state and prediction multiplies each of the two with."""


class Mark(NamedTuple):
    """A noise level of each row, in float64: alpha, sigma and ``log_ratio = log(alpha/sigma)``, DPM-Solver's lambda.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> mark(RectifiedFlow(), Rows(torch.tensor([0.5]))).log_ratio
        tensor([0.], dtype=torch.float64)
    """

    alpha: Float[Tensor, " r"]
    sigma: Float[Tensor, " r"]
    log_ratio: Float[Tensor, " r"]


def mark(path: Path, t: Rows) -> Mark:
    """Where the rows of ``t`` are on a path.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> mark(RectifiedFlow(), Rows(torch.tensor([0.25]))).alpha
        tensor([0.7500], dtype=torch.float64)
    """
    wide = t.values.double()
    alpha, sigma = path.alpha(wide), path.sigma(wide)
    return Mark(alpha, sigma, alpha.log() - sigma.log())


def ends(path: Path, t: Rows, s: Rows) -> tuple[Mark, Mark]:
    """Where a step begins and ends, asked of the path at once.

    Raises:
        ValueError: the two have other numbers of rows, or hold integers.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> here, there = ends(RectifiedFlow(), one_row(torch.tensor(0.5)), one_row(torch.tensor(0.25)))
        >>> there.alpha
        tensor([0.7500], dtype=torch.float64)
    """
    check_rows(t, s)
    both = torch.stack(mark(path, Rows(torch.cat([t.values, s.values])))).view(3, 2, -1)
    first, second = both.unbind(1)
    return Mark(*first.unbind()), Mark(*second.unbind())


def check_rows(t: Rows, s: Rows) -> None:
    """Refuse levels that cannot be the two ends of a step.

    Raises:
        ValueError: they have other numbers of rows, or hold integers.

    Example:
        >>> check_rows(Rows(torch.zeros(1)), Rows(torch.ones(1)))
    """
    if t.values.shape != s.values.shape:
        raise ValueError(f"levels must have the same rows, got {len(t.values)} and {len(s.values)}")
    if t.index is not s.index and (t.index is None or s.index is None or t.index.shape != s.index.shape):
        of_t, of_s = (None if rows.index is None else tuple(rows.index.shape) for rows in (t, s))
        raise ValueError(f"levels must be of the same tokens, got indices of shape {of_t} and {of_s}")
    if not (t.values.is_floating_point() and s.values.is_floating_point()):
        raise ValueError(f"noise levels must be floating-point, got {t.values.dtype} and {s.values.dtype}")


def step_size(here: Mark, there: Mark) -> Float[Tensor, " r"]:
    """The growth of ``log(alpha/sigma)``: infinite from pure noise and to clean data, 0 for rows that stay at either.

    Raises:
        ValueError: the two have other numbers of rows.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> half, clean = (mark(RectifiedFlow(), Rows(torch.tensor([t]))) for t in (0.5, 0.0))
        >>> step_size(half, clean), step_size(clean, clean)
        (tensor([inf], dtype=torch.float64), tensor([0.], dtype=torch.float64))
    """
    if here.alpha.shape != there.alpha.shape:
        raise ValueError(f"levels must have the same rows, got {here.alpha.shape[0]} and {there.alpha.shape[0]}")
    return torch.nan_to_num(there.log_ratio - here.log_ratio, 0.0, math.inf, -math.inf)


def renewed(step: Float[Tensor, " r"]) -> Float[Tensor, " r"]:
    """``sqrt(1 - exp(-2·step))``: the share of a deviation that is fresh when noise is added back over a step.

    From a level to one with more noise, deviation ``renewed·sigma`` of the latter is fresh and the rest was there
    before. 0 for steps that are not positive.

    Example:
        >>> renewed(torch.tensor([0.0, float("inf")]))
        tensor([0., 1.])
    """
    return (-torch.expm1(-2 * step.clamp(min=0))).sqrt()


def predicted(denoiser: Denoiser, x: Float[Tensor, "*lead c"], t: Rows) -> Float[Tensor, "*lead c"]:
    """What the denoiser says, of the shape of ``x``.

    Raises:
        ValueError: it has another shape, or ``x`` or ``t`` hold integers.

    Example:
        >>> predicted(lambda x, t: 2 * x, torch.ones(1, 1), one_row(torch.tensor(0.5)))
        tensor([[2.]])
    """
    if not (t.values.is_floating_point() and x.is_floating_point()):
        raise ValueError(f"noise levels and data must be floating-point, got {t.values.dtype} and {x.dtype}")
    out = denoiser(x, t)
    if out.shape != x.shape:
        more = out.shape[:-1] == x.shape[:-1] and out.shape[-1] > x.shape[-1]
        advice = ": without_variance(denoiser) gives the prediction alone" if more else ""
        raise ValueError(f"x has shape {tuple(x.shape)}, but prediction has {tuple(out.shape)}{advice}")
    return out


def data_and_noise(process: Process, t: Rows, at: Mark) -> tuple[Factors, Factors]:
    """The factors of state and prediction that give the data, and those that give the noise.

    Example:
        >>> process, t = Process(), one_row(torch.tensor(0.25))
        >>> [[float(f) for f in pair] for pair in data_and_noise(process, t, mark(process.path, t))]
        [[1.0, -0.25], [1.0, 0.75]]
    """
    dots = _dots(process.path, t) if process.prediction == "velocity" else (at.alpha, at.sigma)
    unit = torch.eye(2, dtype=torch.float64, device=at.alpha.device)
    state, prediction = unit[..., None].expand(2, 2, len(at.alpha)).unbind()
    x0, eps = to_x0_eps(process.prediction, prediction, state, Coefficients(at.alpha, at.sigma, *dots))
    return x0.unbind(), eps.unbind()


def velocity(process: Process, t: Rows) -> Factors:
    """The factors of state and prediction that give the time derivative of the state.

    Example:
        >>> [float(factor) for factor in velocity(Process(prediction="x0"), one_row(torch.tensor(0.5)))]
        [2.0, -2.0]
    """
    wide = t.values.double()
    if process.prediction == "velocity":
        return torch.zeros_like(wide), torch.ones_like(wide)
    x0, eps = data_and_noise(process, t, mark(process.path, t))
    alpha_dot, sigma_dot = _dots(process.path, t)
    return alpha_dot * x0[0] + sigma_dot * eps[0], alpha_dot * x0[1] + sigma_dot * eps[1]


def combine(
    rows: Rows, factors: Sequence[Float[Tensor, " r"]], values: Sequence[Float[Tensor, "*lead c"]]
) -> Float[Tensor, "*lead c"]:
    """The sum of tensors, each times its factor, in float32 at least; without a first factor its tensor is added whole.

    Args:
        rows: any rows of the tokens, for which row each uses.
        factors: for each tensor, or for each but the first, one number a row.
        values: the tensors.

    Example:
        >>> rows, one = Rows(torch.zeros(2), torch.tensor([0, 1])), torch.ones(2, 1)
        >>> combine(rows, [torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])], [one, one]).tolist()
        [[2.0], [3.0]]
    """
    dtype = functools.reduce(torch.promote_types, (value.dtype for value in values), torch.float32)
    wide = _spread_all(torch.stack(list(factors)).to(dtype), rows, values[0])
    whole = len(wide) < len(values)
    total = torch.addcmul(values[0].to(dtype), wide[0], values[1]) if whole else wide[0] * values[0]
    for factor, value in zip(wide[1:], values[2 if whole else 1 :], strict=True):
        total.addcmul_(factor, value)
    return total


def spread(values: Shaped[Tensor, " r"], rows: Rows, like: Shaped[Tensor, "*lead c"]) -> Shaped[Tensor, "..."]:
    """One number a row, shaped to broadcast against the tokens.

    Example:
        >>> spread(torch.tensor([1.0, 2.0]), Rows(torch.zeros(2), torch.tensor([1, 0])), torch.zeros(2, 3)).tolist()
        [[2.0], [1.0]]
    """
    return level(Rows(values, rows.index), like)


def _spread_all(factors: Float[Tensor, "k r"], rows: Rows, like: Float[Tensor, "*lead c"]) -> Sequence[Tensor]:
    """:func:`spread` of each line, by one look-up and one view."""
    check_fit(Rows(factors[0], rows.index), like)
    found = factors if rows.index is None else factors[:, rows.index]
    return found.reshape(*found.shape, *(1 for _ in range(like.ndim + 1 - found.ndim))).unbind()


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
    return select(Rows(t.values == s.values, t.index), x, new.to(x.dtype))


def select(flags: Rows, yes: Float[Tensor, "*s"], no: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """``yes`` where a row's flag is True, ``no`` elsewhere.

    Flags on the CPU are read, since nothing waits for it and most runs hold no row: then ``no`` itself is the result.

    Example:
        >>> flags = Rows(torch.tensor([True, False]), torch.tensor([0, 1]))
        >>> select(flags, torch.zeros(2, 1), torch.ones(2, 1)).tolist()
        [[0.0], [1.0]]
    """
    if readable(flags.values) and not flags.values.any():
        return no
    return torch.where(level(flags, yes), yes, no)


def one_row(t: Float[Tensor, ""]) -> Rows:
    """The noise level of every token: one row.

    Example:
        >>> one_row(torch.tensor(0.5)).values
        tensor([0.5000])
    """
    return Rows(t.reshape(1))


def quotient(numerator: Float[Tensor, " r"], denominator: Float[Tensor, " r"]) -> Float[Tensor, " r"]:
    """The quotient, 0 where the denominator is 0.

    Example:
        >>> quotient(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0]))
        tensor([0.5000, 0.0000])
    """
    return (numerator / denominator).masked_fill(denominator == 0, 0.0)


def _dots(path: Path, t: Rows) -> Factors:
    """The derivatives of alpha and sigma in time."""
    wide = t.values.double()
    return path.alpha_dot(wide), path.sigma_dot(wide)
