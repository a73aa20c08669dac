"""Vector quantisation: the nearest of a table of codes, which follow what they stand for by moving averages.

VQ-VAE (arXiv:1711.00937, appendix A.1): with the counts n and the sums m of the latents that a code stood for in a
batch, ``N ← γN + (1-γ)n``, ``M ← γM + (1-γ)m``, ``code = M / N̂``, where ``N̂`` is N smoothed so that none is 0. A code
that is hardly used any more starts again at a latent of the batch (Jukebox, arXiv:2005.00341, section 3.1).
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tubelet.vae.quantise.code import Quantised, check_indices, check_latents, checked_size, straight

__all__ = ["VectorQuantiser"]


class VectorQuantiser(nn.Module):
    """The nearest of ``size`` codes of ``channels`` numbers; in training mode each call moves the codes.

    The codes are buffers, moved without gradients; in evaluation mode nothing changes. Where several processes train,
    each follows its own part of the batch: ``DistributedDataParallel`` then copies the buffers of the first to all.

    Args:
        size: number of codes.
        channels: numbers of a code.
        decay: γ, how much of the averages a batch keeps.
        least: a code starts again when its average count N is below this.

    Raises:
        ValueError: sizes that are not positive, ``decay`` outside (0, 1), or a negative ``least``.

    Example:
        >>> vq = VectorQuantiser(16, 4).eval()
        >>> out = vq(torch.randn(2, 7, 4))
        >>> torch.equal(vq.codes(out.indices), out.codes), torch.equal(vq.indices(out.codes), out.indices)
        (True, True)
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        size: int,
        channels: int,
        *,
        decay: float = 0.99,
        least: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.size: int = checked_size("size", size)
        self.channels: int = checked_size("channels", channels)
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, not {decay}")
        if not least >= 0:
            raise ValueError(f"least must be at least 0, not {least}")
        self.decay, self.least = decay, least
        self.register_buffer("codebook", torch.empty(size, channels, device=device, dtype=dtype))
        self.register_buffer("counts", torch.empty(size, device=device, dtype=dtype))
        self.register_buffer("sums", torch.empty(size, channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the codes from the standard normal, each as if it had been used once."""
        nn.init.normal_(self.codebook)
        nn.init.ones_(self.counts)
        with torch.no_grad():
            self.sums.copy_(self.codebook)

    def forward(self, latents: Float[Tensor, "*n z"]) -> Quantised:
        """The nearest codes; the gradient is that of the latents. In training mode the codes then move.

        Raises:
            ValueError: another number of channels.
        """
        indices = self.indices(latents)
        codes = straight(self.codebook[indices].to(latents.dtype), latents)
        if self.training:
            self._follow(latents.detach().reshape(-1, self.channels), indices.reshape(-1))
        return Quantised(codes, indices)

    def codes(self, indices: Int[Tensor, "*n"]) -> Float[Tensor, "*n z"]:
        """The codes of numbers in [0, size).

        Raises:
            ValueError: a number out of range.
        """
        check_indices(indices, self.size)
        return self.codebook[indices]

    def indices(self, codes: Float[Tensor, "*n z"]) -> Int[Tensor, "*n"]:
        """The numbers of the codes nearest to these, of equally near ones the first.

        Raises:
            ValueError: another number of channels.
        """
        check_latents(codes, self.channels)
        flat, book = codes.detach().reshape(-1, self.channels), self.codebook
        wide = torch.promote_types(torch.promote_types(flat.dtype, book.dtype), torch.float32)
        flat, book = flat.to(wide), book.to(wide)
        distances = book.square().sum(1) - 2 * flat @ book.T  # up to |x|², the same for all codes
        return distances.argmin(1).reshape(codes.shape[:-1])

    @torch.no_grad()
    def _follow(self, latents: Tensor, indices: Tensor) -> None:
        """Move the averages by one batch, start unused codes again, and set the codes to their averages."""
        if not len(latents):
            return
        latents = latents.to(self.sums.dtype)
        fresh = 1 - self.decay
        self.counts.mul_(self.decay).add_(torch.bincount(indices, minlength=self.size).to(self.counts), alpha=fresh)
        self.sums.mul_(self.decay).index_add_(0, indices, latents, alpha=fresh)
        unused = self.counts < self.least
        drawn = latents[torch.randint(len(latents), (self.size,), device=latents.device)]
        self.counts.copy_(torch.where(unused, torch.ones_like(self.counts), self.counts))
        self.sums.copy_(torch.where(unused[:, None], drawn, self.sums))
        total, tiny = self.counts.sum(), 1e-5
        smoothed = (self.counts + tiny) / (total + self.size * tiny) * total
        self.codebook.copy_(self.sums / smoothed[:, None])

    if TYPE_CHECKING:

        def __call__(self, latents: Tensor) -> Quantised: ...
