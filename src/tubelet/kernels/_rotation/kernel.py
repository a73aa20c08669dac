# ruff: noqa: N803 - Triton's pointers and constants are upper case
"""Triton kernels of QK-norm + RoPE. Imported only where they run: this module needs triton.

``forward`` and ``backward`` hold one head of some tokens in a tile and go from head to head, whose angles they read
once. Where the norm is over all heads (``_across``) a tile is all heads of one token, and a program goes from token to
token, for which it reads the norm's weight once: each number is read once in both. Strides of q, k and their gradients
are counted in units of ``UNIT`` numbers: the compiler sees that what is multiplied by 8 allows 16-byte loads of half
precision.
"""

from typing import no_type_check

import triton
import triton.language as tl

from tubelet.kernels._rotation.pairs import affine, angles, store, turn, turn_back

__all__ = ["backward", "backward_across", "forward", "forward_across"]


@triton.jit
@no_type_check
def _begin(batch, place, by_batch, by_place, UNIT: tl.constexpr):
    """Where the heads of a token begin."""
    return batch * (by_batch * UNIT) + place * (by_place * UNIT)


@triton.jit
@no_type_check
def _here(number_r, tokens, head, heads):
    """Which tokens there are of a head, if there is one."""
    return number_r < tl.where(head < heads, tokens, 0)


@triton.jit
@no_type_check
def forward(
    Q,
    K,
    Q_OUT,
    K_OUT,
    Q_WEIGHT,
    K_WEIGHT,
    Q_BIAS,
    K_BIAS,
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
    r_by_head,
    eps,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    AXES: tl.constexpr,
    NORM: tl.constexpr,
    PER_HEAD: tl.constexpr,
    UNIT: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One program turns all heads, or every so manieth, of ``TOKENS`` tokens."""
    number_r = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    here_r = number_r < tokens
    token_r = number_r.to(tl.int64)
    batch_r, place_r = token_r // length, token_r % length
    r_from_r = batch_r * r_by_batch + place_r * r_by_place
    q_from_r = _begin(batch_r, place_r, q_by_batch, q_by_place, UNIT)
    at = tl.zeros([1], tl.int64)
    one = at == 0
    q_weights = affine(Q_WEIGHT, Q_BIAS, at, one, D, PAIRS, AXES)
    if K is not None:
        k_from_r = _begin(batch_r, place_r, k_by_batch, k_by_place, UNIT)
        k_weights = affine(K_WEIGHT, K_BIAS, at, one, D, PAIRS, AXES)
    if not PER_HEAD:
        shared = angles(COS, SIN, r_from_r, here_r, D, PAIRS)
    heads, start = tl.maximum(q_heads, k_heads), tl.program_id(1).to(tl.int64)
    for step in range(tl.cdiv(heads - tl.program_id(1), tl.num_programs(1))):
        head = start + step * tl.num_programs(1)
        turns = angles(COS, SIN, r_from_r + head * r_by_head, here_r, D, PAIRS) if PER_HEAD else shared
        turn(Q, Q_OUT, q_from_r + head * (q_by_head * UNIT), (token_r * q_heads + head) * D,
             _here(number_r, tokens, head, q_heads), q_weights, turns, D, eps, D, PAIRS, AXES, NORM, False)  # fmt: skip
        if K is not None:
            turn(K, K_OUT, k_from_r + head * (k_by_head * UNIT), (token_r * k_heads + head) * D,
                 _here(number_r, tokens, head, k_heads), k_weights, turns, D, eps, D, PAIRS, AXES, NORM,
                 False)  # fmt: skip


@triton.jit
@no_type_check
def forward_across(
    Q,
    K,
    Q_OUT,
    K_OUT,
    Q_WEIGHT,
    K_WEIGHT,
    Q_BIAS,
    K_BIAS,
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
    r_by_head,
    eps,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    AXES: tl.constexpr,
    NORM: tl.constexpr,
    PER_HEAD: tl.constexpr,
    UNIT: tl.constexpr,
    HEADS: tl.constexpr,
):
    """One program turns all heads of every so manieth token."""
    head_r = tl.arange(0, HEADS).to(tl.int64)
    here_q, here_k = head_r < q_heads, head_r < k_heads
    q_weights = affine(Q_WEIGHT, Q_BIAS, head_r * D, here_q, D, PAIRS, AXES)
    if K is not None:
        k_weights = affine(K_WEIGHT, K_BIAS, head_r * D, here_k, D, PAIRS, AXES)
    start = tl.program_id(0).to(tl.int64)
    for step in range(tl.cdiv(tokens - tl.program_id(0), tl.num_programs(0))):
        token = start + step * tl.num_programs(0)
        batch, place = token // length, token % length
        r_from = batch * r_by_batch + place * r_by_place
        if PER_HEAD:
            turns = angles(COS, SIN, r_from + head_r * r_by_head, here_q, D, PAIRS)
        else:
            turns = angles(COS, SIN, tl.zeros([1], tl.int64) + r_from, tl.zeros([1], tl.int64) == 0, D, PAIRS)
        from_r = _begin(batch, place, q_by_batch, q_by_place, UNIT) + head_r * (q_by_head * UNIT)
        turn(Q, Q_OUT, from_r, (token * q_heads + head_r) * D, here_q, q_weights, turns, q_heads * D, eps,
             D, PAIRS, AXES, NORM, True)  # fmt: skip
        if K is not None:
            from_r = _begin(batch, place, k_by_batch, k_by_place, UNIT) + head_r * (k_by_head * UNIT)
            turn(K, K_OUT, from_r, (token * k_heads + head_r) * D, here_k, k_weights, turns, k_heads * D, eps,
                 D, PAIRS, AXES, NORM, True)  # fmt: skip


@triton.jit
@no_type_check
def _store_angles(DCOS, DSIN, dcos_ri, dsin_ri, row_r, here_r, D: tl.constexpr, PAIRS: tl.constexpr):
    """The gradients of the angles of rows of a contiguous ``(rows, D / 2)``."""
    pair = tl.arange(0, PAIRS)
    at, mask = (row_r * (D // 2))[:, None] + pair[None, :], here_r[:, None] & (pair < D // 2)[None, :]
    tl.store(DCOS + at, dcos_ri, mask=mask)
    tl.store(DSIN + at, dsin_ri, mask=mask)


@triton.jit
@no_type_check
def _added(sums, more):
    """The sums for weight and bias with what a tile adds."""
    return sums[0] + more[0], sums[1] + more[1], sums[2] + more[2], sums[3] + more[3]


@triton.jit
@no_type_check
def _zeros(ROWS: tl.constexpr, PAIRS: tl.constexpr):
    zero = tl.zeros([ROWS, PAIRS], tl.float32)
    return zero, zero, zero, zero


@triton.jit
@no_type_check
def _store_sums(W_SUMS, B_SUMS, sums, at_r, here_r, D: tl.constexpr, PAIRS: tl.constexpr, AXES: tl.constexpr,
                TOGETHER: tl.constexpr):  # fmt: skip
    """A program's own sums for weight and bias, of each row or of all ``TOGETHER``."""
    if W_SUMS is not None:
        first, second = sums[0], sums[1]
        if TOGETHER:
            first, second = tl.sum(first, axis=0)[None, :], tl.sum(second, axis=0)[None, :]
        store(W_SUMS, at_r, here_r, first, second, D, PAIRS, AXES)
    if B_SUMS is not None:
        first, second = sums[2], sums[3]
        if TOGETHER:
            first, second = tl.sum(first, axis=0)[None, :], tl.sum(second, axis=0)[None, :]
        store(B_SUMS, at_r, here_r, first, second, D, PAIRS, AXES)


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
    Q_BIAS,
    K_BIAS,
    Q_SUMS,
    K_SUMS,
    Q_BIAS_SUMS,
    K_BIAS_SUMS,
    COS,
    SIN,
    DCOS,
    DSIN,
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
    r_by_head,
    eps,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    AXES: tl.constexpr,
    NORM: tl.constexpr,
    PER_HEAD: tl.constexpr,
    UNIT: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """The way back of :func:`forward`; all ``SUMS`` ``(programs, D)`` get a partial sum a program."""
    number_r = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    here_r = number_r < tokens
    token_r = number_r.to(tl.int64)
    batch_r, place_r = token_r // length, token_r % length
    r_from_r = batch_r * r_by_batch + place_r * r_by_place
    q_from_r = _begin(batch_r, place_r, q_by_batch, q_by_place, UNIT)
    gq_from_r = _begin(batch_r, place_r, gq_by_batch, gq_by_place, UNIT)
    at = tl.zeros([1], tl.int64)
    one = at == 0
    q_weights = affine(Q_WEIGHT, Q_BIAS, at, one, D, PAIRS, AXES)
    q_sums, k_sums = _zeros(TOKENS, PAIRS), _zeros(TOKENS, PAIRS)
    if K is not None:
        k_from_r = _begin(batch_r, place_r, k_by_batch, k_by_place, UNIT)
        gk_from_r = _begin(batch_r, place_r, gk_by_batch, gk_by_place, UNIT)
        k_weights = affine(K_WEIGHT, K_BIAS, at, one, D, PAIRS, AXES)
    if not PER_HEAD:
        shared = angles(COS, SIN, r_from_r, here_r, D, PAIRS)
    heads, start = tl.maximum(q_heads, k_heads), tl.program_id(1).to(tl.int64)
    for step in range(tl.cdiv(heads - tl.program_id(1), tl.num_programs(1))):
        head = start + step * tl.num_programs(1)
        turns = angles(COS, SIN, r_from_r + head * r_by_head, here_r, D, PAIRS) if PER_HEAD else shared
        more, dcos_ri, dsin_ri = turn_back(
            Q_GRAD, Q, DQ, gq_from_r + head * (gq_by_head * UNIT), q_from_r + head * (q_by_head * UNIT),
            (token_r * q_heads + head) * D, _here(number_r, tokens, head, q_heads), q_weights, turns, D, eps,
            D, PAIRS, AXES, NORM, False,
        )  # fmt: skip
        q_sums = _added(q_sums, more)
        if K is not None:
            more, dcos_k, dsin_k = turn_back(
                K_GRAD, K, DK, gk_from_r + head * (gk_by_head * UNIT), k_from_r + head * (k_by_head * UNIT),
                (token_r * k_heads + head) * D, _here(number_r, tokens, head, k_heads), k_weights, turns, D, eps,
                D, PAIRS, AXES, NORM, False,
            )  # fmt: skip
            k_sums = _added(k_sums, more)
            dcos_ri += dcos_k
            dsin_ri += dsin_k
        if DCOS is not None:
            _store_angles(DCOS, DSIN, dcos_ri, dsin_ri, token_r * q_heads + head, here_r, D, PAIRS)
    own = at + (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * D
    _store_sums(Q_SUMS, Q_BIAS_SUMS, q_sums, own, one, D, PAIRS, AXES, True)
    _store_sums(K_SUMS, K_BIAS_SUMS, k_sums, own, one, D, PAIRS, AXES, True)


@triton.jit
@no_type_check
def _back_across(
    GRAD,
    X,
    DX,
    WEIGHT,
    BIAS,
    SUMS,
    BIAS_SUMS,
    COS,
    SIN,
    DCOS,
    DSIN,
    first,
    programs,
    tokens,
    length,
    heads,
    g_by_batch,
    g_by_place,
    g_by_head,
    by_batch,
    by_place,
    by_head,
    r_by_batch,
    r_by_place,
    r_by_head,
    eps,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    AXES: tl.constexpr,
    NORM: tl.constexpr,
    PER_HEAD: tl.constexpr,
    UNIT: tl.constexpr,
    HEADS: tl.constexpr,
):
    """The gradients of all heads of every so manieth token of queries, or of keys, and this program's own sums."""
    head_r = tl.arange(0, HEADS).to(tl.int64)
    here_r = head_r < heads
    weights = affine(WEIGHT, BIAS, head_r * D, here_r, D, PAIRS, AXES)
    sums = _zeros(HEADS, PAIRS)
    for step in range(tl.cdiv(tokens - first, programs)):
        token = first.to(tl.int64) + step * programs
        batch, place = token // length, token % length
        r_from = batch * r_by_batch + place * r_by_place
        if PER_HEAD:
            turns = angles(COS, SIN, r_from + head_r * r_by_head, here_r, D, PAIRS)
        else:
            turns = angles(COS, SIN, tl.zeros([1], tl.int64) + r_from, tl.zeros([1], tl.int64) == 0, D, PAIRS)
        from_r = _begin(batch, place, by_batch, by_place, UNIT) + head_r * (by_head * UNIT)
        g_from_r = _begin(batch, place, g_by_batch, g_by_place, UNIT) + head_r * (g_by_head * UNIT)
        more, dcos_ri, dsin_ri = turn_back(
            GRAD, X, DX, g_from_r, from_r, (token * heads + head_r) * D, here_r, weights, turns, heads * D, eps,
            D, PAIRS, AXES, NORM, True,
        )  # fmt: skip
        sums = _added(sums, more)
        if DCOS is not None:
            _store_angles(DCOS, DSIN, dcos_ri, dsin_ri, token * heads + head_r, here_r, D, PAIRS)
    _store_sums(SUMS, BIAS_SUMS, sums, (first.to(tl.int64) * heads + head_r) * D, here_r, D, PAIRS, AXES, False)


@triton.jit
@no_type_check
def backward_across(
    Q_GRAD,
    K_GRAD,
    Q,
    K,
    DQ,
    DK,
    Q_WEIGHT,
    K_WEIGHT,
    Q_BIAS,
    K_BIAS,
    Q_SUMS,
    K_SUMS,
    Q_BIAS_SUMS,
    K_BIAS_SUMS,
    COS,
    SIN,
    DCOS,
    DSIN,
    K_DCOS,
    K_DSIN,
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
    r_by_head,
    eps,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    AXES: tl.constexpr,
    NORM: tl.constexpr,
    PER_HEAD: tl.constexpr,
    UNIT: tl.constexpr,
    HEADS: tl.constexpr,
):
    """The way back of :func:`forward_across`, of queries in every other program and of keys in the rest.

    All ``SUMS`` ``(programs, heads·D)`` get a partial sum a program.
    """
    if K is None:
        _back_across(Q_GRAD, Q, DQ, Q_WEIGHT, Q_BIAS, Q_SUMS, Q_BIAS_SUMS, COS, SIN, DCOS, DSIN, tl.program_id(0),
                     tl.num_programs(0), tokens, length, q_heads, gq_by_batch, gq_by_place, gq_by_head, q_by_batch,
                     q_by_place, q_by_head, r_by_batch, r_by_place, r_by_head, eps, D, PAIRS, AXES, NORM, PER_HEAD,
                     UNIT, HEADS)  # fmt: skip
    elif tl.program_id(0) % 2 == 0:
        _back_across(Q_GRAD, Q, DQ, Q_WEIGHT, Q_BIAS, Q_SUMS, Q_BIAS_SUMS, COS, SIN, DCOS, DSIN, tl.program_id(0) // 2,
                     tl.num_programs(0) // 2, tokens, length, q_heads, gq_by_batch, gq_by_place, gq_by_head, q_by_batch,
                     q_by_place, q_by_head, r_by_batch, r_by_place, r_by_head, eps, D, PAIRS, AXES, NORM, PER_HEAD,
                     UNIT, HEADS)  # fmt: skip
    else:
        _back_across(K_GRAD, K, DK, K_WEIGHT, K_BIAS, K_SUMS, K_BIAS_SUMS, COS, SIN, K_DCOS, K_DSIN,
                     tl.program_id(0) // 2, tl.num_programs(0) // 2, tokens, length, k_heads, gk_by_batch, gk_by_place,
                     gk_by_head, k_by_batch, k_by_place, k_by_head, r_by_batch, r_by_place, r_by_head, eps, D, PAIRS,
                     AXES, NORM, PER_HEAD, UNIT, HEADS)  # fmt: skip
