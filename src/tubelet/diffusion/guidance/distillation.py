"""Guidance distilled into a model that is told the strength (Meng et al., 2023, arXiv:2210.03142): one call a step."""

from functools import partial
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from tubelet.layout import Rows
from tubelet.protocols import Denoiser

__all__ = ["Distilled", "distilled"]


@runtime_checkable
class Distilled(Protocol):
    """A denoiser that is told a guidance strength per sample, such as a model of the Flux family.

    Example:
        >>> import torch
        >>> def student(x, t, *, guidance):
        ...     return guidance[:, None, None] * x
        >>> distilled(student, torch.tensor([3.0]))(torch.ones(1, 1, 1), Rows(torch.tensor([0.5]))).item()
        3.0
    """

    def __call__(self, x: Float[Tensor, "*lead c"], t: Rows, *, guidance: Float[Tensor, " s"]) -> Float[Tensor, "..."]:
        """The guided prediction."""
        ...


def distilled(student: Distilled, guidance: Float[Tensor, " s"]) -> Denoiser:
    """The student at these strengths, one per sample, as a denoiser.

    It learns from ``cfg(teacher, unconditional, layout.rows(guidance, "sample"))`` at strengths drawn anew for each
    sample (arXiv:2210.03142, section 3.1); its own guidance is one more condition, so that a negative prompt may still
    be guided away from with :func:`cfg`.

    Raises:
        ValueError: ``guidance`` is no list ``(s,)`` of floating-point numbers.

    Example:
        >>> import torch
        >>> def student(x, t, *, guidance):
        ...     return guidance[:, None, None] * x
        >>> distilled(student, torch.tensor([3.0, 5.0]))(torch.ones(2, 1, 1), Rows(torch.tensor([0.5]))).flatten()
        tensor([3., 5.])
    """
    if guidance.ndim != 1 or not guidance.is_floating_point():
        raise ValueError(f"guidance must be (s,) floating-point, got {guidance.dtype} of {tuple(guidance.shape)}")
    return partial(student, guidance=guidance)
