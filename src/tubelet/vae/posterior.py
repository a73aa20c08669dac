"""The posterior of a variational autoencoder: independent Gaussians, one for each latent number.

``q(z | x) = N(mean, exp(logvar))`` against the prior N(0, 1) (Kingma & Welling, arXiv:1312.6114, appendix B):
``KL = ½ Σ (mean² + exp(logvar) - 1 - logvar)``. Shapes: ``(b, z, t, h, w)`` in latent frames and positions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["DiagonalGaussian", "Point"]


@dataclass(frozen=True)
class DiagonalGaussian:
    """Means and log variances of the latents of a batch.

    Example:
        >>> posterior = DiagonalGaussian.of(torch.zeros(2, 32, 1, 4, 4))
        >>> posterior.mode().shape, posterior.kl().tolist()
        (torch.Size([2, 16, 1, 4, 4]), [0.0, 0.0])
    """

    mean: Float[Tensor, "b z t h w"]
    logvar: Float[Tensor, "b z t h w"]

    @classmethod
    def of(cls, moments: Float[Tensor, "b z2 t h w"]) -> "DiagonalGaussian":
        """Split means and log variances on the channel axis; log variances are clamped to [-30, 20].

        Raises:
            ValueError: an odd number of channels.
        """
        if moments.shape[1] % 2:
            raise ValueError(f"moments must have an even number of channels, got shape {tuple(moments.shape)}")
        mean, logvar = moments.chunk(2, 1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    @classmethod
    def shared(cls, moments: Float[Tensor, "b z1 t h w"]) -> "DiagonalGaussian":
        """All channels but the last are means; the last is the log variance of each, clamped to [-30, 20] (LTX-Video).

        Raises:
            ValueError: one channel alone.
        """
        if moments.shape[1] < 2:
            raise ValueError(f"moments must have a mean and a log variance, got shape {tuple(moments.shape)}")
        mean, logvar = moments[:, :-1], moments[:, -1:]
        return cls(mean, logvar.clamp(-30.0, 20.0).expand_as(mean))

    def mode(self) -> Float[Tensor, "b z t h w"]:
        """The likeliest latents: the mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b z t h w"]:
        """``mean + exp(logvar / 2) · noise``, differentiable in both moments."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Float[Tensor, " b"]:
        """Divergence from the standard normal in nats, summed over all latents of each sample; float32 or better.

        In bfloat16, ``exp(logvar) - 1`` of a posterior near the normal would be all rounding.
        """
        wide = torch.promote_types(self.mean.dtype, torch.float32)
        mean, logvar = self.mean.to(wide), self.logvar.to(wide)
        terms = mean.square() + logvar.expm1() - logvar
        return 0.5 * terms.sum((1, 2, 3, 4))


@dataclass(frozen=True)
class Point:
    """Latents that are certain, of an encoder that gives no variance; like `DiagonalGaussian` with `mode` and `sample`.

    Example:
        >>> z = torch.ones(1, 4, 2, 3, 3)
        >>> torch.equal(Point(z).sample(), Point(z).mode())
        True
    """

    mean: Float[Tensor, "b z t h w"]

    def mode(self) -> Float[Tensor, "b z t h w"]:
        """The latents."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b z t h w"]:
        """The latents: there is nothing to draw."""
        return self.mean
