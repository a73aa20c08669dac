"""Mean and standard deviation of each latent channel over any number of videos, in float64 and without holding them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

__all__ = ["ChannelStatistics"]


@dataclass(frozen=True)
class ChannelStatistics:
    """Numbers seen of each channel, their mean, and the sum of their squared distances from it.

    Statistics of parts are added by ``+`` (Chan, Golub, LeVeque, 1979, eq. 2.1), which loses nothing where the mean is
    large beside the deviation.

    Args:
        count: numbers of each channel.
        mean: of each channel.
        squares: sums of squared distances from the mean.

    Example:
        >>> seen = ChannelStatistics.of(torch.tensor([1.0, 3.0]).reshape(1, 1, 2, 1, 1))
        >>> seen += ChannelStatistics.of(torch.tensor([5.0, 7.0]).reshape(1, 1, 2, 1, 1))
        >>> seen.count, seen.mean.tolist(), seen.squares.tolist()
        (4, [4.0], [20.0])
    """

    count: int
    mean: Float64[Tensor, " z"]
    squares: Float64[Tensor, " z"]

    @classmethod
    def of(cls, latents: Float[Tensor, "b z t h w"]) -> "ChannelStatistics":
        """Those of a batch of latents.

        Raises:
            ValueError: no numbers.
        """
        if not latents.numel():
            raise ValueError(f"latents must hold numbers, got shape {tuple(latents.shape)}")
        wide = latents.detach().to("cpu", torch.float64).transpose(0, 1).flatten(1)
        mean = wide.mean(1)
        return cls(wide.shape[1], mean, (wide - mean[:, None]).square().sum(1))

    def __add__(self, other: "ChannelStatistics") -> "ChannelStatistics":
        """Those of both.

        Raises:
            ValueError: another number of channels.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"statistics of {len(self.mean)} and {len(other.mean)} channels do not add up")
        count, apart = self.count + other.count, other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        squares = self.squares + other.squares + apart.square() * (self.count * other.count / count)
        return ChannelStatistics(count, mean, squares)

    @property
    def std(self) -> Float64[Tensor, " z"]:
        """The standard deviation of each channel, of all that was seen."""
        return (self.squares / self.count).sqrt()
