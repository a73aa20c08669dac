# ruff: noqa: N803 - Triton's pointers and constants are upper case
"""Triton kernels of gate + residual + norm + modulate. Imported only where they run: this module needs triton.

Shape suffixes: ``_d`` ``BLOCK`` columns, ``_t`` ``TOKENS`` tokens, ``_td`` a tile of both. ``D`` columns are real;
statistics and sums are float32. Pointers that are None leave their part out: without OUT (forward) or GRAD (backward)
there is no norm, and programs share the columns of a token; with one, a program has them all.
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
    UPDATE,
    Y,
    OUT,
    STATS,
    GATE,
    SHIFT,
    SCALE,
    INDEX,
    WEIGHT,
    BIAS,
    n,
    rows,
    per_row,
    x_stride,
    update_stride,
    gate_stride,
    shift_stride,
    scale_stride,
    eps,
    D: tl.constexpr,
    RMS: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One program adds, normalises and modulates ``TOKENS`` tokens; ``STATS`` gets 1/deviation, then the mean.

    The norm is that of the sum as it is stored, which is what the backward reads.
    """
    token_t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column_d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here_t, inside_d = token_t < n, column_d < D
    mask_td = here_t[:, None] & inside_d[None, :]
    long_t = token_t.to(tl.int64)
    row_t = row_of(INDEX, token_t, here_t, rows, per_row).to(tl.int64)
    y_td = tl.load(X + long_t[:, None] * x_stride + column_d[None, :], mask=mask_td, other=0.0).to(tl.float32)
    added_td = tl.load(UPDATE + long_t[:, None] * update_stride + column_d[None, :], mask=mask_td, other=0.0)
    added_td = added_td.to(tl.float32)
    if GATE is not None:
        gate_td = tl.load(GATE + row_t[:, None] * gate_stride + column_d[None, :], mask=mask_td, other=0.0)
        added_td *= gate_td.to(tl.float32)
    stored_td = (y_td + added_td).to(Y.dtype.element_ty)
    tl.store(Y + long_t[:, None] * D + column_d[None, :], stored_td, mask=mask_td)
    if OUT is not None:
        y_td = stored_td.to(tl.float32)
        out_td = normed(y_td, STATS, WEIGHT, BIAS, n, token_t, column_d, mask_td, eps, D, RMS)
        if SCALE is not None:
            scale_td = tl.load(SCALE + row_t[:, None] * scale_stride + column_d[None, :], mask=mask_td, other=0.0)
            out_td *= 1 + scale_td.to(tl.float32)
        if SHIFT is not None:
            shift_td = tl.load(SHIFT + row_t[:, None] * shift_stride + column_d[None, :], mask=mask_td, other=0.0)
            out_td += shift_td.to(tl.float32)
        tl.store(OUT + long_t[:, None] * D + column_d[None, :], out_td.to(OUT.dtype.element_ty), mask=mask_td)


@triton.jit
@no_type_check
def _kept(SUMS, slot, slots, by_gate_d, by_shift_d, by_scale_d, column_d, D: tl.constexpr, GATED: tl.constexpr,
          SUMMED: tl.constexpr):  # fmt: skip
    """Write the sums of a chunk's tokens of one row."""
    if GATED:
        keep(SUMS, slot, by_gate_d, column_d, D)
    if SUMMED:
        keep(SUMS, slot + GATED * slots, by_shift_d, column_d, D)
        keep(SUMS, slot + (1 + GATED) * slots, by_scale_d, column_d, D)


@triton.jit
@no_type_check
def backward(
    GRAD_Y,
    GRAD,
    Y,
    UPDATE,
    DX,
    DUPDATE,
    STATS,
    GATE,
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
    grad_y_stride,
    grad_stride,
    update_stride,
    gate_stride,
    scale_stride,
    D: tl.constexpr,
    RMS: tl.constexpr,
    BLOCK: tl.constexpr,
    GATED: tl.constexpr,
    SUMMED: tl.constexpr,
):
    """One program walks ``chunk`` tokens in the order of their rows: gradients, and the sums of the rows it meets.

    ``GRAD_Y`` is the gradient of the sum, ``GRAD`` that of what is normalised and modulated. ``SUMS`` ``(k, slots, D)``
    holds, by row, the gradient of the sum times the update (``GATED``), then ``GRAD`` and ``GRAD`` times normed y
    (``SUMMED``). The slot of a chunk and a row is ``chunk number + row``.
    """
    number = tl.program_id(0)
    column_d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside_d = column_d < D
    by_gate_d = tl.zeros([BLOCK], tl.float32)
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
                _kept(SUMS, number + current, slots, by_gate_d, by_shift_d, by_scale_d, column_d, D, GATED, SUMMED)
            by_gate_d = tl.zeros([BLOCK], tl.float32)
            by_shift_d = tl.zeros([BLOCK], tl.float32)
            by_scale_d = tl.zeros([BLOCK], tl.float32)
            current = row
        dy_d = tl.zeros([BLOCK], tl.float32)
        if GRAD is not None:
            grad_d = tl.load(GRAD + token * grad_stride + column_d, mask=inside_d, other=0.0).to(tl.float32)
            y_d = tl.load(Y + token * D + column_d, mask=inside_d, other=0.0).to(tl.float32)
            rstd = tl.load(STATS + token)
            if not RMS:
                y_d -= tl.load(STATS + n + token)  # beyond D the gradient is 0, and nothing else counts
            normed_d = y_d * rstd
            if SUMMED:
                by_shift_d += grad_d
                by_scale_d += grad_d * normed_d
            # rows are few: what is read of them anew for each token comes from the nearest cache
            if SCALE is not None:
                scale_d = tl.load(SCALE + row * scale_stride + column_d, mask=inside_d, other=0.0)
                grad_d *= 1 + scale_d.to(tl.float32)
            if WEIGHT is not None:
                grad_d *= tl.load(WEIGHT + column_d, mask=inside_d, other=0.0).to(tl.float32)
            dy_d = grad_d - normed_d * (tl.sum(grad_d * normed_d, axis=0) / D)
            if not RMS:
                dy_d -= tl.sum(grad_d, axis=0) / D
            dy_d *= rstd
        if GRAD_Y is not None:  # read behind the sums, where fewer numbers are held
            dy_d += tl.load(GRAD_Y + token * grad_y_stride + column_d, mask=inside_d, other=0.0).to(tl.float32)
        if GRAD is not None:
            tl.store(DX + token * D + column_d, dy_d.to(DX.dtype.element_ty), mask=inside_d)
        if GATED:
            gate_d = tl.load(GATE + row * gate_stride + column_d, mask=inside_d, other=0.0).to(tl.float32)
            update_d = tl.load(UPDATE + token * update_stride + column_d, mask=inside_d, other=0.0).to(tl.float32)
            by_gate_d += dy_d * update_d
            tl.store(DUPDATE + token * D + column_d, (dy_d * gate_d).to(DUPDATE.dtype.element_ty), mask=inside_d)
    _kept(SUMS, number + current, slots, by_gate_d, by_shift_d, by_scale_d, column_d, D, GATED, SUMMED)
