# ruff: noqa: N803 - Triton's pointers and constants are upper case
"""The norm and the row of a token, and the second half of sums over the tokens of each row. This module needs triton.

The first half is an operation's own: a program walks ``chunk`` tokens in the order of their rows and keeps running
sums. The rows and the chunks both only grow along that order, so ``chunk number + row`` names a slot that nobody else
writes: no atomics, no counting, and always the same order of additions.
"""

from typing import no_type_check

import triton
import triton.language as tl

__all__ = ["combine", "keep", "normed", "row_of"]


@triton.jit
@no_type_check
def row_of(INDEX, token, here, rows, per_row):
    """The row of each token: looked up (counted from the end, then clamped), or tokens share rows in order."""
    if INDEX is None:  # with an else: what follows a return is compiled all the same
        row = token // per_row
    else:
        row = tl.load(INDEX + token, mask=here, other=0)
        row = tl.maximum(tl.minimum(tl.where(row < 0, row + rows, row), rows - 1), 0)
    return row


@triton.jit
@no_type_check
def normed(x_td, STATS, WEIGHT, BIAS, n, token_t, column_d, mask_td, eps, D: tl.constexpr, RMS: tl.constexpr):
    """Tokens by their norm and its affine; ``STATS`` gets 1/deviation, then the mean. What is masked is 0."""
    here_t, inside_d = token_t < n, column_d < D
    if not RMS:
        mean_t = tl.sum(x_td, axis=1) / D
        tl.store(STATS + n + token_t, mean_t, mask=here_t)
        x_td = tl.where(mask_td, x_td - mean_t[:, None], 0.0)
    rstd_t = 1 / tl.sqrt(tl.sum(x_td * x_td, axis=1) / D + eps)
    tl.store(STATS + token_t, rstd_t, mask=here_t)
    out_td = x_td * rstd_t[:, None]
    if WEIGHT is not None:
        out_td *= tl.load(WEIGHT + column_d, mask=inside_d, other=0.0).to(tl.float32)[None, :]
    if BIAS is not None:
        out_td += tl.load(BIAS + column_d, mask=inside_d, other=0.0).to(tl.float32)[None, :]
    return out_td


@triton.jit
@no_type_check
def keep(SUMS, slot, sum_d, column_d, D: tl.constexpr):
    """Write a sum of a chunk's tokens of one row; ``slot`` is int64."""
    tl.store(SUMS + slot * D + column_d, sum_d, mask=column_d < D)


@triton.jit
@no_type_check
def combine(
    SUMS,
    OUT,
    OFFSETS,
    rows,
    per_row,
    slots,
    chunk,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program adds the slots of one row, in order, for ``COLUMNS`` columns of one of the sums."""
    row, which = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    column_d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    part_t = tl.arange(0, PARTS)
    begin, end = row * per_row, (row + 1) * per_row
    if OFFSETS is not None:
        begin, end = tl.load(OFFSETS + row), tl.load(OFFSETS + row + 1)
    first, last = begin // chunk, (end + chunk - 1) // chunk
    last = tl.where(end > begin, last, first)
    total_td = tl.zeros([PARTS, COLUMNS], tl.float32)
    for start in range(first, last, PARTS):
        number_t = start + part_t
        mask_td = (number_t < last)[:, None] & (column_d < D)[None, :]
        slot_t = which * slots + number_t + row
        total_td += tl.load(SUMS + slot_t[:, None] * D + column_d[None, :], mask=mask_td, other=0.0)
    tl.store(OUT + (which * rows + row) * D + column_d, tl.sum(total_td, axis=0), mask=column_d < D)
