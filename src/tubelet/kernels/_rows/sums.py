"""The host side of sums over the tokens of each row, and of finding a token's row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tubelet.kernels._checks import check_index
from tubelet.kernels._launching import Launcher, power_of_two
from tubelet.layout import Rows

__all__ = ["Chunks", "by_row", "check_rows", "chunks", "flat", "flat_index", "row_gradients", "tokens_per_row"]

ENOUGH = 1024
"""Programs that keep the largest GPUs busy."""


@dataclass(frozen=True)
class Chunks:
    """How tokens are cut for sums by row: tokens of a chunk, chunks, and slots for their sums.

    Example:
        >>> Chunks(tokens=8, count=4, rows=2).slots
        6
    """

    tokens: int
    count: int
    rows: int

    @property
    def slots(self) -> int:
        """A chunk and a row meet in slot ``chunk number + row``."""
        return self.count + self.rows

    def combined(self, partial: Tensor, offsets: Tensor | None, per_row: int, launcher: Launcher) -> Tensor:
        """The sums by row ``(k, r, d)`` of those in slots ``(k, slots, d)``.

        ``offsets`` ``(r + 1,)``: where each row begins among the tokens in order; None: ``per_row`` tokens a row.
        """
        from tubelet.kernels._rows import kernel

        parts, width = partial.shape[0], partial.shape[2]
        if not (parts and self.count and width):
            return partial.new_zeros(parts, self.rows, width)
        out = partial.new_empty(parts, self.rows, width)
        tile = {"D": width, "PARTS": 32, "COLUMNS": min(64, power_of_two(width))}
        arguments = {"SUMS": partial, "OUT": out, "OFFSETS": offsets, "rows": self.rows, "per_row": per_row, **tile}
        arguments |= {"slots": self.slots, "chunk": self.tokens}
        launcher(kernel.combine, (self.rows, -(-width // tile["COLUMNS"]), parts), arguments, 4)
        return out


def chunks(n: int, tokens: int, rows: int) -> Chunks:
    """Chunks of ``tokens`` of the ``n``, or of fewer where that would leave the device idle.

    Example:
        >>> chunks(100, 64, 2)
        Chunks(tokens=8, count=13, rows=2)
    """
    while tokens > 8 and n < tokens * ENOUGH:
        tokens //= 2
    return Chunks(tokens, -(-n // tokens), rows)


def by_row(index: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The tokens in the order of their rows, and where each row begins.

    Plain operations: a compiled graph does them once for all layers that have one index.

    Example:
        >>> [each.tolist() for each in by_row(torch.tensor([1, 0, -1]), 2)]
        [[1, 0, 2], [0, 1, 3]]
    """
    # as kernels read it: a negative row counts from the end, and what is out of range is the nearest row
    index = torch.where(index < 0, index + rows, index).clamp(0, rows - 1)
    ordered, order = index.to(torch.int32).sort(stable=True)  # half as many passes as a radix sort of int64
    return order, torch.searchsorted(ordered, torch.arange(rows + 1, device=index.device, dtype=torch.int32))


def row_gradients(
    sums: Tensor, shift: torch.dtype | None, scale: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of what norms and modulates, from the sums by row of the gradient, and of it times normed x.

    Args:
        sums: ``(2, r, d)``.
        shift: dtype of the rows that are added.
        scale, weight, bias: rows and vectors themselves. What is None has no gradient.

    Returns:
        Those of shift, scale, weight and bias, in their dtypes.

    Example:
        >>> row_gradients(torch.ones(2, 1, 3), None, torch.ones(1, 3), torch.ones(3), None)[2]
        tensor([2., 2., 2.])
    """
    plain, normed = sums
    dscale = normed if weight is None else normed * weight
    dscale = dscale if bias is None else dscale + plain * bias
    factor = 1.0 if scale is None else 1 + scale.float()
    return (
        None if shift is None else plain.to(shift),
        None if scale is None else dscale.to(scale.dtype),
        None if weight is None else (factor * normed).sum(0).to(weight.dtype),
        None if bias is None else (factor * plain).sum(0).to(bias.dtype),
    )


def check_rows(x: Tensor, rows: Rows) -> None:
    """Whether rows without an index belong to the batch of ``x``, and an index names rows that are there.

    Raises:
        ValueError: they do not, or the index is of no integers.
        IndexError: it names others, which is asked on the CPU only.

    Example:
        >>> check_rows(torch.ones(2, 5, 8), Rows(torch.ones(2, 8)))
    """
    count = rows.values.shape[0]
    if rows.index is not None:
        check_index(rows.index, count)
    if rows.index is None and count != 1 and (x.ndim != 3 or x.shape[0] != count):
        raise ValueError(f"{count} rows without an index belong to a batch of {count} rows, but x is {tuple(x.shape)}")


def tokens_per_row(x: Tensor, rows: Rows | None) -> int:
    """How many tokens in turn share a row, where no index says it.

    Example:
        >>> tokens_per_row(torch.ones(2, 5, 8), Rows(torch.ones(2, 8)))
        5
    """
    alone = rows is None or rows.index is not None or rows.values.shape[0] == 1
    return x.shape[:-1].numel() if alone else x.shape[1]


def flat(x: Tensor) -> Tensor:
    """Tokens end to end ``(n, d)``, also where there are none, or their width is 0.

    Example:
        >>> flat(torch.ones(2, 5, 0)).shape
        torch.Size([10, 0])
    """
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def flat_index(x: Tensor, rows: Rows | None) -> Tensor | None:
    """The row of each token ``(n,)``; None where no index says it.

    Example:
        >>> flat_index(torch.ones(2, 2, 8), Rows(torch.ones(3, 8), torch.tensor([[0, 2], [1, 1]]))).tolist()
        [0, 2, 1, 1]
    """
    if rows is None or rows.index is None:
        return None
    return rows.index.expand(x.shape[:-1]).reshape(-1)
