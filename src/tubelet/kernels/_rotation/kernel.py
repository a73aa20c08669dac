# ruff: noqa: N803, N806 - Triton's pointers and constants are upper case
"""Triton kernels of QK-norm + RoPE. Imported only where they run: this module needs triton.

Shape suffixes: ``_ti`` a tile of ``TOKENS`` tokens and ``PAIRS`` pairs of features, of which ``D // 2`` are real.
``first`` and ``second`` are the members of each pair, whichever features those are. Everything is float32 between
load and store. Strides of q, k and their gradients are counted in units of ``UNIT`` numbers: the compiler sees that
what is multiplied by 8 allows 16-byte loads of half precision.
"""

from typing import no_type_check

import triton
import triton.language as tl

__all__ = ["backward", "forward"]


@triton.jit
@no_type_check
def _load(X, at_t, here_t, D: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Both members of each pair of one head of some tokens, which begin at ``at_t``."""
    TOKENS: tl.constexpr = at_t.shape[0]
    if INTERLEAVED:
        column = tl.arange(0, 2 * PAIRS)
        mask = here_t[:, None] & (column < D)[None, :]
        tile = tl.load(X + at_t[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
        first_ti, second_ti = tl.split(tl.reshape(tile, (TOKENS, PAIRS, 2)))
    else:
        pair = tl.arange(0, PAIRS)
        mask = here_t[:, None] & (pair < D // 2)[None, :]
        first_ti = tl.load(X + at_t[:, None] + pair[None, :], mask=mask, other=0.0).to(tl.float32)
        second_ti = tl.load(X + at_t[:, None] + (pair + D // 2)[None, :], mask=mask, other=0.0).to(tl.float32)
    return first_ti, second_ti


@triton.jit
@no_type_check
def _store(X, at_t, here_t, first_ti, second_ti, D: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """What :func:`_load` loads."""
    TOKENS: tl.constexpr = at_t.shape[0]
    if INTERLEAVED:
        column = tl.arange(0, 2 * PAIRS)
        mask = here_t[:, None] & (column < D)[None, :]
        tile = tl.reshape(tl.join(first_ti, second_ti), (TOKENS, 2 * PAIRS))
        tl.store(X + at_t[:, None] + column[None, :], tile.to(X.dtype.element_ty), mask=mask)
    else:
        pair = tl.arange(0, PAIRS)
        mask = here_t[:, None] & (pair < D // 2)[None, :]
        tl.store(X + at_t[:, None] + pair[None, :], first_ti.to(X.dtype.element_ty), mask=mask)
        tl.store(X + at_t[:, None] + (pair + D // 2)[None, :], second_ti.to(X.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def _weights(WEIGHT, D: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The norm's weight of both members of each pair; ones without a weight."""
    pair = tl.arange(0, PAIRS)
    first_i = tl.full([PAIRS], 1.0, tl.float32)
    second_i = tl.full([PAIRS], 1.0, tl.float32)
    if WEIGHT is not None:
        one = 2 * pair if INTERLEAVED else pair
        other = one + (1 if INTERLEAVED else D // 2)
        first_i = tl.load(WEIGHT + one, mask=pair < D // 2, other=0.0).to(tl.float32)
        second_i = tl.load(WEIGHT + other, mask=pair < D // 2, other=0.0).to(tl.float32)
    return first_i[None, :], second_i[None, :]


@triton.jit
@no_type_check
def _angles(COS, SIN, batch_t, place_t, here_t, by_batch, by_place, D: tl.constexpr, PAIRS: tl.constexpr):
    pair = tl.arange(0, PAIRS)
    mask = here_t[:, None] & (pair < D // 2)[None, :]
    at = (batch_t * by_batch + place_t * by_place)[:, None] + pair[None, :]
    cos_ti = tl.load(COS + at, mask=mask, other=0.0).to(tl.float32)
    return cos_ti, tl.load(SIN + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _turn(
    X,
    OUT,
    WEIGHT,
    cos_ti,
    sin_ti,
    token_t,
    batch_t,
    place_t,
    here_t,
    heads,
    by_batch,
    by_place,
    by_head,
    eps,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Normalise and turn every head that is this program's of queries, or of keys."""
    first_w, second_w = _weights(WEIGHT, D, PAIRS, INTERLEAVED)
    from_t = batch_t * (by_batch * UNIT) + place_t * (by_place * UNIT)
    start = tl.program_id(1).to(tl.int64)
    for step in range(tl.cdiv(heads - tl.program_id(1), tl.num_programs(1))):
        head = start + step * tl.num_programs(1)
        at_t = from_t + head * (by_head * UNIT)
        first_ti, second_ti = _load(X, at_t, here_t, D, PAIRS, INTERLEAVED)
        square_t = tl.sum(first_ti * first_ti + second_ti * second_ti, axis=1)
        rstd_t = 1 / tl.sqrt(square_t / D + eps)
        first_ti = first_ti * rstd_t[:, None] * first_w
        second_ti = second_ti * rstd_t[:, None] * second_w
        turned_ti = first_ti * cos_ti - second_ti * sin_ti
        second_ti = first_ti * sin_ti + second_ti * cos_ti
        _store(OUT, (token_t * heads + head) * D, here_t, turned_ti, second_ti, D, PAIRS, INTERLEAVED)


@triton.jit
@no_type_check
def forward(
    Q,
    K,
    Q_OUT,
    K_OUT,
    Q_WEIGHT,
    K_WEIGHT,
    COS,
    SIN,
    tokens,
    length,
    q_heads,
    k_heads,
    q_by_batch,
    q_by_place,
    q_by_head,
    k_by_batch,
    k_by_place,
    k_by_head,
    r_by_batch,
    r_by_place,
    eps,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    UNIT: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One program turns all heads, or every so manieth, of ``TOKENS`` tokens, whose angles it reads once."""
    place_t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    here_t = place_t < tokens
    token_t = place_t.to(tl.int64)
    batch_t, place_t = token_t // length, token_t % length
    cos_ti, sin_ti = _angles(COS, SIN, batch_t, place_t, here_t, r_by_batch, r_by_place, D, PAIRS)
    _turn(Q, Q_OUT, Q_WEIGHT, cos_ti, sin_ti, token_t, batch_t, place_t, here_t, q_heads, q_by_batch, q_by_place,
          q_by_head, eps, D, PAIRS, INTERLEAVED, UNIT)  # fmt: skip
    _turn(K, K_OUT, K_WEIGHT, cos_ti, sin_ti, token_t, batch_t, place_t, here_t, k_heads, k_by_batch, k_by_place,
          k_by_head, eps, D, PAIRS, INTERLEAVED, UNIT)  # fmt: skip


@triton.jit
@no_type_check
def _turn_back(
    GRAD,
    X,
    DX,
    WEIGHT,
    SUMS,
    cos_ti,
    sin_ti,
    token_t,
    batch_t,
    place_t,
    here_t,
    heads,
    g_by_batch,
    g_by_place,
    g_by_head,
    by_batch,
    by_place,
    by_head,
    eps,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    UNIT: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """The gradients of this program's heads of queries, or of keys, and its own sum for the weight's."""
    first_w, second_w = _weights(WEIGHT, D, PAIRS, INTERLEAVED)
    first_sum_ti = tl.zeros([TOKENS, PAIRS], tl.float32)
    second_sum_ti = tl.zeros([TOKENS, PAIRS], tl.float32)
    g_from_t = batch_t * (g_by_batch * UNIT) + place_t * (g_by_place * UNIT)
    from_t = batch_t * (by_batch * UNIT) + place_t * (by_place * UNIT)
    start = tl.program_id(1).to(tl.int64)
    for step in range(tl.cdiv(heads - tl.program_id(1), tl.num_programs(1))):
        head = start + step * tl.num_programs(1)
        g_at_t = g_from_t + head * (g_by_head * UNIT)
        first_g, second_g = _load(GRAD, g_at_t, here_t, D, PAIRS, INTERLEAVED)
        first_x, second_x = _load(X, from_t + head * (by_head * UNIT), here_t, D, PAIRS, INTERLEAVED)
        straight_g = first_g * cos_ti + second_g * sin_ti
        second_g = second_g * cos_ti - first_g * sin_ti
        first_g = straight_g
        rstd_t = 1 / tl.sqrt(tl.sum(first_x * first_x + second_x * second_x, axis=1) / D + eps)
        first_x *= rstd_t[:, None]
        second_x *= rstd_t[:, None]
        if WEIGHT is not None:
            first_sum_ti += first_g * first_x
            second_sum_ti += second_g * second_x
        first_g *= first_w
        second_g *= second_w
        along_t = tl.sum(first_g * first_x + second_g * second_x, axis=1) / D
        first_g = (first_g - first_x * along_t[:, None]) * rstd_t[:, None]
        second_g = (second_g - second_x * along_t[:, None]) * rstd_t[:, None]
        _store(DX, (token_t * heads + head) * D, here_t, first_g, second_g, D, PAIRS, INTERLEAVED)
    if WEIGHT is not None:
        pair = tl.arange(0, PAIRS)
        own = SUMS + (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * D
        one = 2 * pair if INTERLEAVED else pair
        other = one + (1 if INTERLEAVED else D // 2)
        tl.store(own + one, tl.sum(first_sum_ti, axis=0), mask=pair < D // 2)
        tl.store(own + other, tl.sum(second_sum_ti, axis=0), mask=pair < D // 2)


@triton.jit
@no_type_check
def backward(
    Q_GRAD,
    K_GRAD,
    Q,
    K,
    DQ,
    DK,
    Q_WEIGHT,
    K_WEIGHT,
    Q_SUMS,
    K_SUMS,
    COS,
    SIN,
    tokens,
    length,
    q_heads,
    k_heads,
    gq_by_batch,
    gq_by_place,
    gq_by_head,
    gk_by_batch,
    gk_by_place,
    gk_by_head,
    q_by_batch,
    q_by_place,
    q_by_head,
    k_by_batch,
    k_by_place,
    k_by_head,
    r_by_batch,
    r_by_place,
    eps,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    UNIT: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """The way back of :func:`forward`; ``Q_SUMS`` and ``K_SUMS`` ``(programs, D)`` get a partial sum a program."""
    place_t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    here_t = place_t < tokens
    token_t = place_t.to(tl.int64)
    batch_t, place_t = token_t // length, token_t % length
    cos_ti, sin_ti = _angles(COS, SIN, batch_t, place_t, here_t, r_by_batch, r_by_place, D, PAIRS)
    _turn_back(Q_GRAD, Q, DQ, Q_WEIGHT, Q_SUMS, cos_ti, sin_ti, token_t, batch_t, place_t, here_t, q_heads,
               gq_by_batch, gq_by_place, gq_by_head, q_by_batch, q_by_place, q_by_head, eps,
               D, PAIRS, INTERLEAVED, UNIT, TOKENS)  # fmt: skip
    _turn_back(K_GRAD, K, DK, K_WEIGHT, K_SUMS, cos_ti, sin_ti, token_t, batch_t, place_t, here_t, k_heads,
               gk_by_batch, gk_by_place, gk_by_head, k_by_batch, k_by_place, k_by_head, eps,
               D, PAIRS, INTERLEAVED, UNIT, TOKENS)  # fmt: skip
