"""Mean, deviation and covariance of channels over any number of videos, in float64 and without holding them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

__all__ = ["ChannelCovariance", "ChannelStatistics"]


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


@dataclass(frozen=True)
class ChannelCovariance:
    """Numbers seen of each channel, their means, and the sums of the products of their distances from these.

    Covariances of parts are added by ``+``, as statistics are.

    Args:
        count: numbers of each channel.
        mean: of each channel.
        products: sums of products of the distances of two channels from their means.

    Example:
        >>> seen = ChannelCovariance.of(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
        >>> seen += ChannelCovariance.of(torch.tensor([[2.0, 4.0]]))
        >>> seen.mean.tolist(), (seen.products / seen.count).tolist()
        ([2.0, 2.0], [[0.6666666666666666, 0.6666666666666666], [0.6666666666666666, 2.6666666666666665]])
    """

    count: int
    mean: Float64[Tensor, " c"]
    products: Float64[Tensor, "c c"]

    @classmethod
    def of(cls, rows: Float[Tensor, "n c"]) -> "ChannelCovariance":
        """Those of some rows of channels.

        Raises:
            ValueError: no rows.
        """
        if not len(rows):
            raise ValueError(f"rows must hold at least one, got shape {tuple(rows.shape)}")
        wide = rows.detach().to("cpu", torch.float64)
        mean = wide.mean(0)
        wide = wide - mean
        return cls(len(rows), mean, wide.T @ wide)

    def __add__(self, other: "ChannelCovariance") -> "ChannelCovariance":
        """Those of both.

        Raises:
            ValueError: another number of channels.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"covariances of {len(self.mean)} and {len(other.mean)} channels do not add up")
        count, apart = self.count + other.count, other.mean - self.mean
        share = other.count / count
        between = torch.outer(apart, apart) * (self.count * share)
        return ChannelCovariance(count, self.mean + share * apart, self.products + other.products + between)

    def principal(self, count: int) -> tuple[Float64[Tensor, "c k"], Float64[Tensor, " k"]]:
        """The ``count`` orthonormal directions of largest variance, largest first, and the deviation along each.

        Raises:
            ValueError: a count outside [1, channels].

        Example:
            >>> basis, std = ChannelCovariance.of(torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0]])).principal(1)
            >>> basis.abs().round(decimals=2).flatten().tolist()
            [1.0, 0.0]
        """
        if not 1 <= count <= len(self.mean):
            raise ValueError(f"count must lie in [1, {len(self.mean)}], got {count}")
        variances, directions = torch.linalg.eigh(self.products / self.count)
        largest = variances[-count:].flip(0).clamp(min=0)
        return directions[:, -count:].flip(1), largest.sqrt()
