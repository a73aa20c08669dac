"""Two denoisers of which the noise level chooses one: Wan 2.2's A14B, and eDiff-I before it (arXiv:2211.01324)."""

from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor, nn

from tubelet.layout import Rows

__all__ = ["NoiseExperts"]


class NoiseExperts(nn.Module):
    """An expert for high noise and one for low noise that are one denoiser to any sampler.

    Args:
        high: for levels of ``boundary`` and above, where what is to be seen takes its place.
        low: for levels below it.
        boundary: a noise level in [0, 1] (Wan 2.2 A14B: 0.875 from text, 0.9 from an image).

    Raises:
        ValueError: ``boundary`` is outside [0, 1]; at the call, the levels of one batch lie on both sides.

    Example:
        >>> import torch
        >>> class Scaled(nn.Module):
        ...     def __init__(self, by):
        ...         super().__init__()
        ...         self.by = by
        ...     def forward(self, x, t):
        ...         return self.by * x
        >>> experts = NoiseExperts(Scaled(3.0), Scaled(2.0), boundary=0.875)
        >>> [experts(torch.ones(1), Rows(torch.tensor([t]))).item() for t in (0.9, 0.875, 0.5)]
        [3.0, 3.0, 2.0]
    """

    def __init__(self, high: nn.Module, low: nn.Module, boundary: float) -> None:
        super().__init__()
        if not 0 <= boundary <= 1:
            raise ValueError(f"boundary must be a noise level in [0, 1], got {boundary}")
        self.high, self.low, self.boundary = high, low, boundary

    def forward(self, x: Float[Tensor, "*lead p"], t: Rows, *inputs: Any, **named: Any) -> Float[Tensor, "*lead p"]:
        """The prediction of the expert that serves all levels; further inputs are handed on."""
        used = t.values if t.index is None else t.values[t.index]  # rows behind the real ones are no levels
        least, most = (side.item() for side in used.aminmax())
        if least < self.boundary <= most:
            raise ValueError(f"noise levels of {least} and {most} lie on both sides of boundary={self.boundary}")
        expert = self.high if least >= self.boundary else self.low
        out: Tensor = expert(x, t, *inputs, **named)
        return out

    if TYPE_CHECKING:

        def __call__(
            self, x: Float[Tensor, "*lead p"], t: Rows, *inputs: Any, **named: Any
        ) -> Float[Tensor, "*lead p"]: ...
