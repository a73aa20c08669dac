"""Two denoisers of which the noise level chooses one: Wan 2.2's A14B, and eDiff-I before it (arXiv:2211.01324)."""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.diffusion.predictions import level
from tubelet.layout import Rows
from tubelet.models.inputs import readable

__all__ = ["NoiseExperts"]


class NoiseExperts(nn.Module):
    """An expert for high noise and one for low noise that are one denoiser to any sampler and any loss.

    A token's prediction is that of the expert which serves its noise level; each expert sees all tokens, at their
    levels. A batch whose levels lie on one side, as in sampling, costs one expert; one with levels on both sides, such
    as a training batch or given frames at level 0, costs both. To tell, one flag is read from the device where the
    levels are. Inside ``torch.compile`` and ``torch.func`` none is, and both experts are always computed; to sample,
    compile the two instead: ``NoiseExperts(torch.compile(high), torch.compile(low), boundary)``.

    Args:
        high: for levels of ``boundary`` and above, where what is to be seen takes its place.
        low: for levels below it.
        boundary: a noise level in [0, 1] (Wan 2.2 A14B: 0.875 from text, 0.9 from an image).

    Raises:
        ValueError: ``boundary`` is outside [0, 1].

    Example:
        >>> class Scaled(nn.Module):
        ...     def __init__(self, by):
        ...         super().__init__()
        ...         self.by = by
        ...     def forward(self, x, t):
        ...         return self.by * x
        >>> experts = NoiseExperts(Scaled(3.0), Scaled(2.0), boundary=0.875)
        >>> [experts(torch.ones(1), Rows(torch.tensor([t]))).item() for t in (0.9, 0.875, 0.5)]
        [3.0, 3.0, 2.0]
        >>> experts(torch.ones(2, 1), Rows(torch.tensor([0.9, 0.0]), torch.tensor([0, 1]))).tolist()
        [[3.0], [2.0]]
    """

    def __init__(self, high: nn.Module, low: nn.Module, boundary: float) -> None:
        super().__init__()
        if not 0 <= boundary <= 1:
            raise ValueError(f"boundary must be a noise level in [0, 1], got {boundary}")
        self.high, self.low, self.boundary = high, low, boundary

    def forward(self, x: Float[Tensor, "*lead p"], t: Rows, *inputs: Any, **named: Any) -> Float[Tensor, "*lead q"]:
        """The prediction of the expert that serves each token's level; further inputs are handed on to both."""
        noisy = t.map(lambda values: values >= self.boundary)
        experts = [self.high, self.low]
        if readable(t.values):
            used = noisy.values if t.index is None else noisy.values[t.index]  # rows behind the real ones are no levels
            experts = [expert for expert, flag in ((self.high, True), (self.low, False)) if bool((used == flag).any())]
        first: Tensor = experts[0](x, t, *inputs, **named)
        if len(experts) == 1:
            return first
        return torch.where(level(noisy, first), first, self.low(x, t, *inputs, **named))

    if TYPE_CHECKING:

        def __call__(
            self, x: Float[Tensor, "*lead p"], t: Rows, *inputs: Any, **named: Any
        ) -> Float[Tensor, "*lead q"]: ...
