# ruff: noqa: N803 - Triton's pointers and constants are upper case
"""Triton kernels of norm + modulate. Imported only where they run: this module needs triton.

Shape suffixes: ``_d`` a row of ``BLOCK`` columns, ``_t`` ``TOKENS`` tokens, ``_td`` a tile of both. ``D`` columns are
real; statistics and sums are float32.
"""

from typing import no_type_check

import triton
import triton.language as tl

from tubelet.kernels._rows.kernel import keep, normed, row_of

__all__ = ["backward", "forward"]


@triton.jit
@no_type_check
def forward(
    X,
    OUT,
    STATS,
    SHIFT,
    SCALE,
    INDEX,
    WEIGHT,
    BIAS,
    n,
    rows,
    per_row,
    x_stride,
    shift_stride,
    scale_stride,
    eps,
    D: tl.constexpr,
    RMS: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One program normalises and modulates ``TOKENS`` tokens; ``STATS`` gets 1/deviation, then the mean."""
    token_t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column_d = tl.arange(0, BLOCK)
    here_t, inside_d = token_t < n, column_d < D
    mask_td = here_t[:, None] & inside_d[None, :]
    long_t = token_t.to(tl.int64)
    x_td = tl.load(X + long_t[:, None] * x_stride + column_d[None, :], mask=mask_td, other=0.0).to(tl.float32)
    out_td = normed(x_td, STATS, WEIGHT, BIAS, n, token_t, column_d, mask_td, eps, D, RMS)
    row_t = row_of(INDEX, token_t, here_t, rows, per_row).to(tl.int64)
    scale_td = tl.load(SCALE + row_t[:, None] * scale_stride + column_d[None, :], mask=mask_td, other=0.0)
    shift_td = tl.load(SHIFT + row_t[:, None] * shift_stride + column_d[None, :], mask=mask_td, other=0.0)
    out_td = out_td * (1 + scale_td.to(tl.float32)) + shift_td.to(tl.float32)
    tl.store(OUT + long_t[:, None] * D + column_d[None, :], out_td.to(OUT.dtype.element_ty), mask=mask_td)


@triton.jit
@no_type_check
def backward(
    GRAD,
    X,
    DX,
    STATS,
    SCALE,
    INDEX,
    ORDER,
    WEIGHT,
    SUMS,
    n,
    rows,
    per_row,
    slots,
    chunk,
    grad_stride,
    x_stride,
    scale_stride,
    D: tl.constexpr,
    RMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program walks ``chunk`` tokens in the order of their rows: gradients, and the sums of the rows it meets.

    ``SUMS`` is ``(2, slots, D)``; a chunk and a row have slot ``chunk number + row``.
    """
    number = tl.program_id(0)
    column_d = tl.arange(0, BLOCK)
    inside_d = column_d < D
    weight_d = tl.full([BLOCK], 1.0, tl.float32)
    if WEIGHT is not None:
        weight_d = tl.load(WEIGHT + column_d, mask=inside_d, other=0.0).to(tl.float32)
    scale_d = tl.zeros([BLOCK], SCALE.dtype.element_ty)
    by_shift_d = tl.zeros([BLOCK], tl.float32)
    by_scale_d = tl.zeros([BLOCK], tl.float32)
    current = tl.full([], -1, tl.int64)
    begin = number.to(tl.int64) * chunk
    for step in range(tl.minimum(chunk, n - begin)):
        token = begin + step
        if ORDER is not None:
            token = tl.load(ORDER + token).to(tl.int64)
        row = row_of(INDEX, token, token >= 0, rows, per_row).to(tl.int64)
        if row != current:
            if current >= 0:
                keep(SUMS, number + current, by_shift_d, column_d, D)
                keep(SUMS, slots + number + current, by_scale_d, column_d, D)
            by_shift_d = tl.zeros([BLOCK], tl.float32)
            by_scale_d = tl.zeros([BLOCK], tl.float32)
            scale_d = tl.load(SCALE + row * scale_stride + column_d, mask=inside_d, other=0.0)
            current = row
        grad_d = tl.load(GRAD + token * grad_stride + column_d, mask=inside_d, other=0.0).to(tl.float32)
        x_d = tl.load(X + token * x_stride + column_d, mask=inside_d, other=0.0).to(tl.float32)
        rstd = tl.load(STATS + token)
        if not RMS:
            x_d -= tl.load(STATS + n + token)  # beyond D the gradient is 0, and nothing else counts
        normed_d = x_d * rstd
        by_shift_d += grad_d
        by_scale_d += grad_d * normed_d
        inner_d = grad_d * (1 + scale_d.to(tl.float32)) * weight_d
        dx_d = inner_d - normed_d * (tl.sum(inner_d * normed_d, axis=0) / D)
        if not RMS:
            dx_d -= tl.sum(inner_d, axis=0) / D
        tl.store(DX + token * D + column_d, (dx_d * rstd).to(DX.dtype.element_ty), mask=inside_d)
    keep(SUMS, number + current, by_shift_d, column_d, D)
    keep(SUMS, slots + number + current, by_scale_d, column_d, D)
