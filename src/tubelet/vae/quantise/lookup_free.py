"""Lookup-free quantisation: a code is the signs of the channels (LFQ, MAGVIT-v2, arXiv:2310.05737, section 3.1).

Channel i of a code is 1 where ``x_i > 0`` and -1 elsewhere; its number is ``Σ_i 2^i [x_i > 0]``. What keeps the codes
in use is :func:`tubelet.vae.quantise.entropy_loss`.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tubelet.vae.quantise.code import (
    Quantised,
    check_indices,
    check_latents,
    checked_size,
    digits_of,
    number_of,
    straight,
)

__all__ = ["LookupFree"]


class LookupFree(nn.Module):
    """One of ``2^channels`` codes of -1 and 1 for each position.

    Args:
        channels: bits of a code, up to 62.

    Raises:
        ValueError: channels outside [1, 62].

    Example:
        >>> lfq = LookupFree(18)
        >>> out = lfq(torch.randn(2, 7, 18))
        >>> lfq.size, out.codes.unique().tolist(), torch.equal(lfq.codes(out.indices), out.codes)
        (262144, [-1.0, 1.0], True)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels: int = checked_size("channels", channels, 62)
        self.size: int = 2**self.channels

    def forward(self, latents: Float[Tensor, "*n z"]) -> Quantised:
        """The signs; the gradient is that of the latents.

        Raises:
            ValueError: another number of channels.
        """
        indices = self.indices(latents)
        return Quantised(straight(_signs(latents > 0, latents.dtype), latents), indices)

    def codes(self, indices: Int[Tensor, "*n"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*n z"]:
        """The codes of numbers in [0, size).

        Raises:
            ValueError: a number out of range.
        """
        check_indices(indices, self.size)
        return _signs(digits_of(indices, [2] * self.channels) > 0, dtype)

    def indices(self, codes: Float[Tensor, "*n z"]) -> Int[Tensor, "*n"]:
        """The numbers of codes.

        Raises:
            ValueError: another number of channels.
        """
        check_latents(codes, self.channels)
        return number_of((codes > 0).long(), [2] * self.channels)

    if TYPE_CHECKING:

        def __call__(self, latents: Tensor) -> Quantised: ...


def _signs(positive: Tensor, dtype: torch.dtype) -> Tensor:
    return positive.to(dtype) * 2 - 1
