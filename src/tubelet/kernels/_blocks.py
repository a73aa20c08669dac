"""Norms and what multiplies and shifts them, on the CPU a block of tokens at a time: float32 inside of a block alone.

What plain PyTorch keeps for the backward of a norm in half precision are tokens in float32. Here x is kept as it is,
with one or two numbers a token; both directions go through blocks that fit a core's cache, and sums have one order.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tubelet.kernels._checks import plain

__all__ = [
    "Affine",
    "Piece",
    "add_by_row",
    "again",
    "backward",
    "blocks",
    "forward",
    "pieces_by_row",
    "refusal",
    "shares",
    "through_norm",
]

Affine = Callable[[int | Tensor], tuple[Tensor | None, Tensor | None]]
"""Weight and bias in float32 of a row ``(d,)``, or of a row for each token ``(m, d)``; None for ones and zeros.
Example: ``lambda row: (None, None)``."""

_NUMBERS = 2**18
"""Numbers of a block, for each thread: 1 MB in float32."""
_SHORT = 16
"""Runs of tokens with one row that are shorter, on the average, are not taken one by one."""


class Piece(NamedTuple):
    """Tokens that follow each other: the row they share, or the row of each.

    Example:
        >>> Piece(0, 5, 2).row
        2
    """

    start: int
    stop: int
    row: int | Tensor


def refusal(tensors: Sequence[Tensor | None]) -> str | None:
    """Why eager code on the CPU cannot serve tensors; None where it can.

    Example:
        >>> refusal([torch.ones(2, device="meta")])
        'it computes on the CPU, and a tensor lies on meta'
    """
    for tensor in (each for each in tensors if each is not None):
        if not plain(tensor):
            return f"a tensor is a {type(tensor).__name__} or transformed by torch.func"
        if tensor.device.type != "cpu":
            return f"it computes on the CPU, and a tensor lies on {tensor.device}"
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.bfloat16):
            return f"it reads float32 or bfloat16, and a tensor is {tensor.dtype}"
    return None


def again(run: Callable[..., Tensor], inputs: Sequence[Any], grad: Tensor) -> list[Tensor | None]:
    """Gradients that can be differentiated themselves: those of the reference, run once more with a graph.

    Inputs may have a history in which they depend on each other, so the operation runs on aliases: first derivatives
    end there, and second ones go on through them.

    Args:
        run: the operation in plain PyTorch.
        inputs: what it takes; numbers and the like have no gradient.
        grad: of its result.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> (first,) = again(torch.exp, [x], torch.ones(2))
        >>> first.requires_grad
        True
    """
    asked = [isinstance(each, Tensor) and each.requires_grad for each in inputs]
    if not any(asked):
        return [None] * len(asked)
    with torch.enable_grad():
        own = [each.view_as(each) if wanted else each for each, wanted in zip(inputs, asked, strict=True)]
        sought = [each for each, wanted in zip(own, asked, strict=True) if wanted]
        found = iter(torch.autograd.grad(run(*own), sought, grad, create_graph=True))
    return [next(found) if wanted else None for wanted in asked]


def pieces_by_row(index: Tensor | None, n: int, rows: int) -> list[Piece]:
    """``n`` tokens as runs with one row; all in one piece where the rows change too often for that.

    Args:
        index: the row of each token ``(n,)``, a negative one counts from the end; None where rows have equal shares.
        n: number of tokens.
        rows: number of rows.

    Example:
        >>> pieces_by_row(None, 6, 2)
        [Piece(start=0, stop=3, row=0), Piece(start=3, stop=6, row=1)]
    """
    if n == 0:
        return []
    if index is None:
        share = n // rows
        return [Piece(row * share, (row + 1) * share, row) for row in range(rows)]
    index = index.remainder(rows)
    found, counts = torch.unique_consecutive(index, return_counts=True)
    if len(found) * _SHORT > n:
        return [Piece(0, n, index)]
    ends = counts.cumsum(0).tolist()
    return [Piece(*piece) for piece in zip([0, *ends], ends, found.tolist(), strict=False)]


def shares(n: int, rows: int) -> Tensor:
    """The row of each of ``n`` tokens where rows have equal shares of them.

    Example:
        >>> shares(4, 2).tolist()
        [0, 0, 1, 1]
    """
    return torch.arange(rows).repeat_interleave(n // rows)


def blocks(pieces: Sequence[Piece], width: int) -> Iterator[tuple[slice, int | Tensor]]:
    """The tokens of all pieces in blocks that fit a core's cache, with the row that they share, or that each has.

    Example:
        >>> list(blocks([Piece(3, 5, 7)], 2**30))
        [(slice(3, 4, None), 7), (slice(4, 5, None), 7)]
    """
    tokens = max(1, _NUMBERS * torch.get_num_threads() // max(width, 1))
    for start, stop, row in pieces:
        for first in range(start, stop, tokens):
            block = slice(first, min(first + tokens, stop))
            yield block, row if isinstance(row, int) else row[block.start - start : block.stop - start]


def forward(
    x: Tensor, affine: Affine, pieces: Sequence[Piece], eps: float, rms: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``norm(x)·weight + bias`` of ``x (n, d)``, and statistics: 1/deviation ``(n,)``, below it a layer norm's mean.

    Example:
        >>> piece, plain = Piece(0, 1, 0), lambda row: (None, None)
        >>> out, stats = forward(torch.tensor([[1.0, 3.0]]), plain, [piece], 0.0, False, torch.float32)
        >>> out.tolist(), stats.tolist()
        ([[-1.0, 1.0]], [[1.0], [2.0]])
    """
    out, stats = x.new_empty(x.shape, dtype=dtype), x.new_empty(1 if rms else 2, len(x), dtype=torch.float32)
    normed = _rms_normed if rms else _layer_normed
    for block, row in blocks(pieces, x.shape[-1]):
        weight, bias = affine(row)
        part = x[block] if x.dtype == dtype and isinstance(row, int) else x[block].float()
        if isinstance(row, int):
            out[block], stats[:, block] = normed(part, weight, bias, eps)
        else:
            value, stats[:, block] = normed(part, None, None, eps)
            out[block] = _scaled(value, weight, bias)
    return out, stats


def backward(
    grad: Tensor, x: Tensor, stats: Tensor, affine: Affine, pieces: Sequence[Piece], rows: int
) -> tuple[Tensor, Tensor]:
    """The gradient of x in its dtype; ``(2, r, d)``, by row the sums of the gradient and of gradient · normed x.

    Example:
        >>> x, piece, plain = torch.tensor([[1.0, 3.0]]), Piece(0, 1, 0), lambda row: (None, None)
        >>> backward(torch.ones(1, 2), x, torch.tensor([[1.0], [2.0]]), plain, [piece], 1)[1].tolist()
        [[[1.0, 1.0]], [[-1.0, 1.0]]]
    """
    dx, sums = torch.empty_like(x), x.new_zeros(2, rows, x.shape[-1], dtype=torch.float32)
    for block, row in blocks(pieces, x.shape[-1]):
        part, g, stat = x[block].float(), grad[block].float(), stats[:, block, None]
        weight = affine(row)[0]
        if isinstance(row, int) and len(stats) == 2:
            dx[block], by_weight, by_bias = _layer_norm_backward(g, part, stat, weight)
            sums[0, row] += by_bias
            sums[1, row] += by_weight
            continue
        normed = part * stat[0] if len(stats) == 1 else (part - stat[1]).mul_(stat[0])
        product = g * normed
        add_by_row(sums[0], row, g)
        add_by_row(sums[1], row, product)
        if weight is not None:
            g, product = g * weight, product.mul_(weight)
        dx[block] = through_norm(g, product, normed, stat[0], len(stats) == 2)
    return dx, sums


def add_by_row(sums: Tensor, row: int | Tensor, values: Tensor) -> None:
    """Add a block's values ``(m, d)`` to the sums ``(r, d)`` of the row they share, or each to its own.

    Example:
        >>> sums = torch.zeros(2, 1)
        >>> add_by_row(sums, 1, torch.ones(3, 1))
        >>> add_by_row(sums, torch.tensor([0, 1]), torch.ones(2, 1))
        >>> sums.flatten().tolist()
        [1.0, 4.0]
    """
    if isinstance(row, int):
        sums[row] += values.sum(0)
    else:
        sums.index_add_(0, row, values)


def through_norm(grad: Tensor, product: Tensor, normed: Tensor, rstd: Tensor, layer: bool) -> Tensor:
    """The gradient of what was normed: ``(g - normed·mean(product) [- mean(g)])·rstd``, ``product`` being ``g·normed``.

    Example:
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> through_norm(x, x * x, x, torch.ones(1, 1), False).tolist()
        [[-34.5, -46.0]]
    """
    value = torch.addcmul(grad, normed, product.mean(-1, keepdim=True), value=-1)
    return (value.sub_(grad.mean(-1, keepdim=True)) if layer else value).mul_(rstd)


def _layer_normed(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """PyTorch's kernel, which reads and writes bfloat16 and computes in float32 where weight and bias are float32."""
    weight = x.new_ones(x.shape[-1], dtype=torch.float32) if weight is None else weight
    bias = x.new_zeros(x.shape[-1], dtype=torch.float32) if bias is None else bias
    out, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
    return out, torch.stack([rstd[..., 0], mean[..., 0]])


def _rms_normed(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    rstd = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return _scaled(wide * rstd, weight, bias), rstd.mT


def _scaled(value: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """In place."""
    value = value if weight is None else value.mul_(weight)
    return value if bias is None else value.add_(bias)


def _layer_norm_backward(grad: Tensor, x: Tensor, stat: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias by PyTorch's kernel, all in float32."""
    weight = x.new_ones(x.shape[-1]) if weight is None else weight
    mask = [True, True, True]
    dx, by_weight, by_bias = torch.ops.aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], stat[1], stat[0], weight, weight, mask
    )
    return dx, by_weight, by_bias
