"""Rows: a few distinct values and which of them each token uses. Shapes: ``values (r, ...)``, ``index (*lead)``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

__all__ = ["Level", "Rows"]

Level = Literal["sample", "frame", "token"]
"""How finely conditioning varies: one row per sample, per (sample, frame), or per token. Example: ``"frame"``."""


@dataclass(frozen=True)
class Rows:
    """A few distinct rows of values, and which row each token uses: noise levels, conditioning, modulation.

    ``values`` is ``(r, ...)``; ``index`` is ``(*lead)`` of row numbers, or None where row ``i`` is that of batch
    element ``i`` (or the only row that of every token), so that dense batches broadcast by view and never gather.
    ``owner`` is the sample that each row belongs to, where a layout made the rows.

    Example:
        >>> levels = Rows(torch.tensor([0.0, 0.5]), torch.tensor([0, 0, 1]))
        >>> levels.map(lambda t: 1 - t).expand()
        tensor([1.0000, 1.0000, 0.5000])
    """

    values: Shaped[Tensor, "r ..."]
    index: Int[Tensor, "*lead"] | None = None
    owner: Int[Tensor, " r"] | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Rows":
        """The rows ``fn(values)`` with the same index; ``fn`` keeps the first axis."""
        return Rows(fn(self.values), self.index, self.owner)

    def chunk(self, chunks: int) -> tuple["Rows", ...]:
        """Split the last axis of the values into equal parts, as modulation does into shift, scale and gate."""
        return tuple(Rows(part, self.index, self.owner) for part in self.values.chunk(chunks, dim=-1))

    def expand(self) -> Tensor:
        """The value of each token: ``(*lead, ...)``, or a view that broadcasts against it."""
        if self.index is not None:
            return self.values[self.index]
        return self.values if self.values.shape[0] == 1 else self.values.unsqueeze(1)

    def shared(self) -> "Rows":
        """The same rows with equal ones stored once. Eager only: the number of rows depends on the data."""
        values, inverse = torch.unique(self.values, dim=0, return_inverse=True)
        if self.index is None and values.shape[0] > 1:
            return self
        return Rows(values, None if self.index is None else inverse[self.index])
