"""How the codes of a quantiser are used: counts that add up over batches, and what follows from them."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tubelet.vae.quantise.code import check_indices

__all__ = ["CodeStatistics"]


@dataclass(frozen=True)
class CodeStatistics:
    """How often each code was used; statistics of several batches are added by ``+``.

    Args:
        counts: int64, one for each code.

    Example:
        >>> seen = CodeStatistics.of(torch.tensor([0, 0, 1, 1]), 8) + CodeStatistics.of(torch.tensor([2, 2, 3, 3]), 8)
        >>> seen.usage, seen.entropy, seen.perplexity
        (0.5, 2.0, 4.0)
    """

    counts: Int[Tensor, " k"]

    @classmethod
    def of(cls, indices: Int[Tensor, "*n"], size: int) -> "CodeStatistics":
        """Count the numbers of codes; of a residual quantiser, give one stage at a time.

        Raises:
            ValueError: a number outside [0, size).
        """
        check_indices(indices, size)
        return cls(torch.bincount(indices.reshape(-1), minlength=size))

    def __add__(self, other: "CodeStatistics") -> "CodeStatistics":
        """The counts of both.

        Raises:
            ValueError: statistics of another number of codes.
        """
        if self.counts.shape != other.counts.shape:
            raise ValueError(f"statistics of {len(self.counts)} and {len(other.counts)} codes do not add up")
        return CodeStatistics(self.counts + other.counts)

    @property
    def usage(self) -> float:
        """The share of the codes that occur."""
        return float((self.counts > 0).double().mean())

    @property
    def entropy(self) -> float:
        """``-Σ p log₂ p`` in bits, at most log₂ of the number of codes; 0 where nothing was counted."""
        shares = self.counts.double() / self.counts.sum().clamp(min=1)
        return float(-torch.special.xlogy(shares, shares).sum() / torch.log(shares.new_tensor(2.0))) + 0.0

    @property
    def perplexity(self) -> float:
        """``2^entropy``: as many equally frequent codes would have this entropy."""
        return float(2.0**self.entropy)
