"""What a network predicts, and how each prediction becomes data and noise.

With ``x = alpha·x0 + sigma·eps`` a network may predict

- ``eps``: the noise; ``x0``: the data;
- ``v = alpha·eps - sigma·x0`` (Salimans and Ho, 2022, arXiv:2202.00512, section 4);
- ``velocity = alpha'·x0 + sigma'·eps``, the time derivative of ``x``
  (``eps - x0`` for rectified flow; arXiv:2210.02747).

Each pair of equations is solved for (x0, eps) directly: ``v`` and ``velocity`` never divide by alpha or sigma, so they
hold at zero signal-to-noise ratio and on clean data. Shapes: ``(*lead, c)`` with noise levels as ``Rows``.
"""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tubelet.layout import Rows
from tubelet.protocols import Path

__all__ = ["Coefficients", "Prediction", "check_fit", "coefficients", "from_x0_eps", "level", "to_x0_eps"]

Prediction = Literal["eps", "x0", "v", "velocity"]
"""The names of what a network may predict. Example: ``"velocity"``."""


class Coefficients(NamedTuple):
    """The path at some noise levels: four tensors that broadcast against the data.

    Example:
        >>> Coefficients(*torch.tensor([0.75, 0.25, -1.0, 1.0])).sigma
        tensor(0.2500)
    """

    alpha: Float[Tensor, "..."]
    sigma: Float[Tensor, "..."]
    alpha_dot: Float[Tensor, "..."]
    sigma_dot: Float[Tensor, "..."]


def level(rows: Rows, like: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The scalar of each row, with axes of size 1 appended until it broadcasts against ``like``.

    Args:
        rows: scalars ``(r,)`` per row.
        like: ``(*lead, c)``, or any tensor whose first axes are those of the rows.

    Returns:
        ``(*lead, 1)``, or ``(b, 1, ...)``, or ``(1, ..., 1)``.

    Raises:
        ValueError: ``rows`` hold no scalars, their index has another shape than the first axes of ``like``, or without
            an index they hold neither one row nor one per batch element of ``like``.

    Example:
        >>> level(Rows(torch.tensor([0.1, 0.2])), torch.zeros(2, 5, 3)).shape
        torch.Size([2, 1, 1])
    """
    check_fit(rows, like)
    values = rows.values if rows.index is None else rows.values[rows.index]
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def coefficients(path: Path, t: Rows, like: Float[Tensor, "..."]) -> Coefficients:
    """The four coefficients of ``path`` at the noise levels ``t``, shaped to broadcast against ``like``.

    They are computed per row, in the widest of float32 and the dtypes of ``t`` and ``like``.

    Raises:
        ValueError: ``t`` is no ``Rows``, ``t`` or ``like`` hold integers (the time of an index is
            ``path.time(index)``), or they do not fit.

    Example:
        >>> from tubelet.diffusion import RectifiedFlow
        >>> coefficients(RectifiedFlow(), Rows(torch.tensor([0.25])), torch.zeros(7, 3)).alpha
        tensor([[0.7500]])
    """
    if not isinstance(t, Rows):
        raise ValueError(f"noise levels must be Rows, Rows(torch.tensor([0.5])) say, got {type(t).__name__}")
    if not (t.values.is_floating_point() and like.is_floating_point()):
        raise ValueError(f"noise levels and data must be floating-point, got {t.values.dtype} and {like.dtype}")
    dtype = torch.promote_types(torch.promote_types(t.values.dtype, like.dtype), torch.float32)
    times = t.map(lambda values: values.to(dtype))
    functions = (path.alpha, path.sigma, path.alpha_dot, path.sigma_dot)
    return Coefficients(*(level(times.map(fn), like) for fn in functions))


def to_x0_eps(
    kind: Prediction, prediction: Float[Tensor, "*s"], x: Float[Tensor, "*s"], at: Coefficients
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Split the state ``x`` into data and noise, given a prediction.

    Where the prediction leaves one of them open (``eps`` where alpha is 0, ``x0`` where sigma is 0) that one is 0.

    Raises:
        ValueError: ``kind`` is not a :data:`Prediction`.

    Example:
        >>> at = Coefficients(*torch.tensor([0.75, 0.25, -1.0, 1.0]))
        >>> to_x0_eps("velocity", torch.tensor([2.0]), torch.tensor([1.5]), at)
        (tensor([1.]), tensor([3.]))
    """
    alpha, sigma, alpha_dot, sigma_dot = at
    if kind == "eps":
        return _ratio(x - sigma * prediction, alpha), prediction
    if kind == "x0":
        return prediction, _ratio(x - alpha * prediction, sigma)
    if kind == "v":
        norm = alpha**2 + sigma**2
        return (alpha * x - sigma * prediction) / norm, (sigma * x + alpha * prediction) / norm
    if kind == "velocity":
        determinant = alpha * sigma_dot - alpha_dot * sigma
        x0 = (sigma_dot * x - sigma * prediction) / determinant
        return x0, (alpha * prediction - alpha_dot * x) / determinant
    raise _unknown(kind)


def from_x0_eps(
    kind: Prediction, x0: Float[Tensor, "*s"], eps: Float[Tensor, "*s"], at: Coefficients
) -> Float[Tensor, "*s"]:
    """What a perfect network of this kind predicts for data ``x0`` and noise ``eps``.

    Raises:
        ValueError: ``kind`` is not a :data:`Prediction`.

    Example:
        >>> at = Coefficients(*torch.tensor([0.75, 0.25, -1.0, 1.0]))
        >>> from_x0_eps("velocity", torch.tensor([1.0]), torch.tensor([3.0]), at)
        tensor([2.])
    """
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        return at.alpha * eps - at.sigma * x0
    if kind == "velocity":
        return at.alpha_dot * x0 + at.sigma_dot * eps
    raise _unknown(kind)


def check_fit(rows: Rows, like: Tensor) -> None:
    """Refuse rows that would broadcast against ``like`` in another way than one row a token or a batch element.

    Raises:
        ValueError: the rows hold no scalars, or they are neither of all tokens, nor one a batch element, nor by index.

    Example:
        >>> check_fit(Rows(torch.tensor([0.1, 0.2])), torch.zeros(2, 5, 3))
    """
    if rows.values.ndim != 1:
        raise ValueError(f"rows must hold scalars (r,), got values of shape {tuple(rows.values.shape)}")
    if rows.index is not None:
        if rows.index.shape != like.shape[: rows.index.ndim]:
            raise ValueError(
                f"rows has an index of shape {tuple(rows.index.shape)}, but the tokens have shape {tuple(like.shape)}"
            )
    elif rows.values.shape[0] not in (1, like.shape[0]):
        raise ValueError(f"rows has {rows.values.shape[0]} values without an index, but the batch is {like.shape[0]}")


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is 0, with finite gradients."""
    empty = denominator == 0
    return torch.where(empty, 0, numerator / torch.where(empty, 1, denominator))


def _unknown(kind: str) -> ValueError:
    return ValueError(f"kind must be one of {get_args(Prediction)}, got {kind!r}")
