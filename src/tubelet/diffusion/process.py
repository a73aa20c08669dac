"""The diffusion process that training and sampling share: path, what is predicted, and how times are spread.

``Process`` is the one place where a timestep shift enters: its ``warp`` maps even times to the times that are used, for
training (``draw_times``) and sampling (``times``) alike, once. Shapes: patches ``(*lead, c)``, noise levels ``Rows``.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tubelet.diffusion.densities import Density, uniform
from tubelet.diffusion.losses import masked_mean, squared_error
from tubelet.diffusion.paths import RectifiedFlow
from tubelet.diffusion.predictions import Prediction, coefficients, from_x0_eps, level, to_x0_eps
from tubelet.diffusion.warps import identity
from tubelet.diffusion.weights import Importance, constant, weighted
from tubelet.layout import Rows
from tubelet.protocols import Path

__all__ = ["Process"]


@dataclass(frozen=True, kw_only=True)
class Process:
    """How data is noised, what the network predicts, how times are spread: one value for training and sampling.

    Args:
        path: the factors of data and noise.
        prediction: what the network predicts: ``eps``, ``x0``, ``v`` or ``velocity``.
        warp: a monotone map of [0, 1] to itself, applied to training times and to sampling times, nowhere else.
        density: how even training times are drawn, before the warp.
        weight: the loss weight of each noise level, after the warp.

    Raises:
        ValueError: ``prediction`` is not a :data:`Prediction`, ``path`` a class, or ``density`` cannot be called as
            one; at the loss, ``weight`` is an importance, which :meth:`weighted_by` takes.

    Example:
        >>> from tubelet.diffusion import logit_normal, shift_warp
        >>> process = Process(warp=shift_warp(3.0), density=logit_normal())
        >>> process.times(2)
        tensor([1.0000, 0.7500, 0.0000])
        >>> x0, noise = torch.zeros(4, 3), torch.ones(4, 3)
        >>> t = Rows(process.draw_times(1, torch.Generator().manual_seed(0)))
        >>> process.loss(noise - x0, x0, noise, t)
        tensor(0.)
    """

    path: Path = field(default_factory=RectifiedFlow)
    prediction: Prediction = "velocity"
    warp: Callable[[Tensor], Tensor] = identity
    density: Density = uniform
    weight: Callable[[Tensor], Tensor] = constant

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be one of {get_args(Prediction)}, got {self.prediction!r}")
        if isinstance(self.path, type):
            raise ValueError(f"path must be a path, got the class {self.path.__name__}")
        try:
            inspect.signature(self.density).bind((1,), generator=None)
        except TypeError as error:
            name = getattr(self.density, "__name__", type(self.density).__name__)
            raise ValueError(f"density is called as {name}(shape, generator=...): {error}") from error

    def draw_times(
        self,
        shape: int | tuple[int, ...],
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "..."]:
        """Training times of the given shape: warped draws of the density, made where the generator is.

        Raises:
            ValueError: ``dtype`` is not floating-point.

        Example:
            >>> Process().draw_times((2, 3)).shape
            torch.Size([2, 3])
        """
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be floating-point, got {dtype}")
        drawn = self.density((shape,) if isinstance(shape, int) else shape, generator=generator)
        return self.warp(drawn).to(device=device, dtype=dtype)

    def times(
        self,
        steps: int,
        rows: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, " s *r"]:
        """The ``steps + 1`` sampling times from 1 to 0: even times, warped; with ``rows`` that many a step.

        Rows serve a warp that differs between samples: ``(steps + 1, rows)``.

        Raises:
            ValueError: ``steps`` or ``rows`` is smaller than 1, or ``dtype`` is not floating-point.

        Example:
            >>> Process().times(4)
            tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000])
            >>> from tubelet.diffusion import shift_warp
            >>> Process(warp=shift_warp(torch.tensor([1.0, 3.0]))).times(2, rows=2)
            tensor([[1.0000, 1.0000],
                    [0.5000, 0.7500],
                    [0.0000, 0.0000]])
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if rows is not None and rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be floating-point, got {dtype}")
        even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        if rows is not None:
            even = even[:, None].expand(-1, rows)
        return self.warp(even).to(device=device, dtype=dtype)

    def weighted_by(self, importance: Importance) -> "Process":
        """This process with the loss weight that gives its levels this importance, whatever its network predicts.

        Example:
            >>> from tubelet.diffusion import min_snr
            >>> Process(prediction="x0").weighted_by(min_snr(4.0)).weight(torch.tensor([0.2, 0.5]))
            tensor([4., 1.])
        """
        return replace(self, weight=weighted(importance, self.path, self.prediction))

    def noise(self, x0: Float[Tensor, "*s"], noise: Float[Tensor, "*s"], t: Rows) -> Float[Tensor, "*s"]:
        """``x_t = alpha·x0 + sigma·noise``, in the dtype of ``x0``; where ``t`` is 0 the data exactly.

        Raises:
            ValueError: ``x0``, ``noise`` and ``t`` do not fit each other; so do the methods below.

        Example:
            >>> Process().noise(torch.zeros(2, 1), torch.ones(2, 1), Rows(torch.tensor([0.25]))).tolist()
            [[0.25], [0.25]]
        """
        _check_shapes(x0=x0, noise=noise)
        at = coefficients(self.path, t, x0)
        return (at.alpha * x0 + at.sigma * noise).to(x0.dtype)

    def target(self, x0: Float[Tensor, "*s"], noise: Float[Tensor, "*s"], t: Rows) -> Float[Tensor, "*s"]:
        """What a perfect network predicts.

        Example:
            >>> Process(prediction="x0").target(torch.zeros(1, 1), torch.ones(1, 1), Rows(torch.tensor([0.5])))
            tensor([[0.]])
        """
        _check_shapes(x0=x0, noise=noise)
        return from_x0_eps(self.prediction, x0, noise, coefficients(self.path, t, x0))

    def split(
        self, prediction: Float[Tensor, "*s"], x: Float[Tensor, "*s"], t: Rows
    ) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
        """The data and the noise that a prediction at state ``x`` implies.

        Example:
            >>> Process().split(torch.tensor([[2.0]]), torch.tensor([[1.5]]), Rows(torch.tensor([0.25])))
            (tensor([[1.]]), tensor([[3.]]))
        """
        _check_shapes(x=x, prediction=prediction)
        return to_x0_eps(self.prediction, prediction, x, coefficients(self.path, t, x))

    def velocity(self, prediction: Float[Tensor, "*s"], x: Float[Tensor, "*s"], t: Rows) -> Float[Tensor, "*s"]:
        """The time derivative of the state that a prediction implies: the right side of the sampling equation.

        Example:
            >>> Process(prediction="x0").velocity(torch.zeros(1, 1), torch.ones(1, 1), Rows(torch.tensor([0.5])))
            tensor([[2.]])
        """
        _check_shapes(x=x, prediction=prediction)
        if self.prediction == "velocity":
            return prediction
        at = coefficients(self.path, t, x)
        return from_x0_eps("velocity", *to_x0_eps(self.prediction, prediction, x, at), at)

    def loss(
        self,
        prediction: Float[Tensor, "*lead c"],
        x0: Float[Tensor, "*lead c"],
        noise: Float[Tensor, "*lead c"],
        t: Rows,
        mask: Bool[Tensor, "*lead"] | None = None,
        weights: Rows | None = None,
    ) -> Float[Tensor, ""]:
        """The training loss: squared error per token times its weight, averaged over the tokens in ``mask``.

        Args:
            prediction: the network's output at ``noise(x0, noise, t)``.
            x0: data.
            noise: the noise that was mixed in.
            t: noise levels.
            mask: True where a token counts; leave out padding and known frames, which may hold anything.
            weights: further weights per row, such as one per sample. The mean divides by tokens, not by weights.

        Example:
            >>> x0, noise, t = torch.zeros(2, 1), torch.ones(2, 1), Rows(torch.tensor([0.5]))
            >>> Process().loss(torch.tensor([[1.0], [3.0]]), x0, noise, t, mask=torch.tensor([True, False]))
            tensor(0.)
        """
        error = squared_error(prediction, self.target(x0, noise, t), mask)
        error = error * level(t.map(self._weighted), error)
        if weights is not None:
            error = error * level(weights, error)
        return masked_mean(error, mask)

    def _weighted(self, times: Tensor) -> Tensor:
        try:
            return self.weight(times)
        except AttributeError as error:
            raise ValueError(
                f"weight must map times to weights; an importance goes by process.weighted_by(...): {error}"
            ) from error


def _check_shapes(**tensors: Tensor) -> None:
    """Refuse what would broadcast: a noise or a prediction of one channel, of one token."""
    (first, a), (second, b) = tensors.items()
    if a.shape != b.shape:
        raise ValueError(f"{first} has shape {tuple(a.shape)}, but {second} has {tuple(b.shape)}")
