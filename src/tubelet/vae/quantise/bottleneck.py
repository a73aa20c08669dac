"""A quantiser in the place of an autoencoder's Gaussian posterior: ``(b, z, t, h, w)`` to codes and back."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tubelet.vae.quantise.code import Quantiser

__all__ = ["CodeBottleneck", "Codes"]


@dataclass(frozen=True)
class Codes:
    """The discrete latents of a batch; like :class:`tubelet.vae.DiagonalGaussian` they have `mode` and `sample`.

    Args:
        latents: what was quantised, for losses.
        codes: what stands for it; the gradient is that of the latents.
        indices: the codes' numbers, ``(b, t, h, w)``, or ``(b, t, h, w, stages)`` of a residual quantiser.

    Example:
        >>> from tubelet.vae.quantise import FiniteScalar
        >>> codes = CodeBottleneck(FiniteScalar((8, 5, 5)))(torch.zeros(1, 3, 2, 4, 4))
        >>> codes.mode().shape, codes.indices.shape
        (torch.Size([1, 3, 2, 4, 4]), torch.Size([1, 2, 4, 4]))
    """

    latents: Float[Tensor, "b z t h w"]
    codes: Float[Tensor, "b z t h w"]
    indices: Int[Tensor, "b t h w *q"]

    def mode(self) -> Float[Tensor, "b z t h w"]:
        """The codes."""
        return self.codes

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b z t h w"]:
        """The codes: there is nothing to draw."""
        return self.codes


class CodeBottleneck(nn.Module):
    """A quantiser of the channels of each latent position.

    Args:
        quantiser: on the last axis, such as :class:`tubelet.vae.quantise.FiniteScalar`.

    Example:
        >>> from tubelet.vae.quantise import LookupFree
        >>> bottleneck = CodeBottleneck(LookupFree(10))
        >>> bottleneck.in_channels, bottleneck.codes(torch.zeros(1, 2, 4, 4, dtype=torch.int64)).shape
        (10, torch.Size([1, 10, 2, 4, 4]))
    """

    def __init__(self, quantiser: Quantiser) -> None:
        super().__init__()
        self.quantiser = quantiser
        self.in_channels: int = quantiser.channels
        self.latent_channels: int = quantiser.channels

    def reset_parameters(self) -> None:
        """Draw the quantiser anew, where it has anything to draw."""
        getattr(self.quantiser, "reset_parameters", lambda: None)()

    def forward(self, latents: Float[Tensor, "b z t h w"]) -> Codes:
        """Quantise every position."""
        quantised = self.quantiser(latents.movedim(1, -1))
        return Codes(latents, quantised.codes.movedim(-1, 1), quantised.indices)

    def codes(self, indices: Int[Tensor, "b t h w *q"]) -> Float[Tensor, "b z t h w"]:
        """The latents of codes' numbers, to be decoded.

        Raises:
            ValueError: a number out of range.
        """
        return self.quantiser.codes(indices).movedim(-1, 1)

    if TYPE_CHECKING:

        def __call__(self, latents: Tensor) -> Codes: ...
