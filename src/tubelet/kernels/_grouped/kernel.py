# ruff: noqa: N803 - Triton's pointers and constants are upper case
"""Triton kernels of grouped attention. Imported only where they run: this module needs triton.

A *tile* is ``ROWS`` queries and, in turn, tiles of ``KEYS`` keys. It belongs to one group, of which it is a part, or,
where groups are short (``SHARED``), holds ``together`` whole groups end to end, between which scores are masked.
Strides are counted in units of ``UNIT`` numbers: the compiler sees that what is multiplied by 8 allows 16-byte loads of
half precision. Where there are ``TILES``, descriptors of groups whose items have one axis, a tile of what is walked is
one load of the hardware (TMA).

Shape suffixes: ``_m`` queries, ``_n`` keys, ``_md`` a tile of either with its features, ``_mn`` scores.
"""

from typing import no_type_check

import triton
import triton.language as tl

from tubelet.kernels._softmax.kernel import LN2, LOG2E, load, to_keys, to_queries

__all__ = ["PLACES", "backward_keys", "backward_queries", "backward_together", "forward"]

_SIDE = ("start", "pitch0", "pitch1", "pitch2", "pitch3", "size1", "size2", "stride0", "stride1", "stride2", "length")
PLACES = (
    "blocks",
    "groups",
    "together",
    "count1",
    "count2",
    "count3",
    *(f"{s}_{name}" for s in "qk" for name in _SIDE),
)
"""Numbers that tell where tokens lie: never constants of a compiled kernel, whatever the layout."""


@triton.jit
@no_type_check
def _members(first, length, set_, groups, together, SHARED: tl.constexpr, ROWS: tl.constexpr):
    """Group and item of each row of a tile, and whether there is one."""
    group = set_
    item_m = first + tl.arange(0, ROWS)
    here_m = item_m < length
    if SHARED:
        member_m = item_m // length
        group = set_ * together + member_m
        item_m -= member_m * length
        here_m = (member_m < together) & (group < groups)
    return group, item_m, here_m


@triton.jit
@no_type_check
def _places(
    group,
    item,
    count1,
    count2,
    count3,
    start,
    pitch0,
    pitch1,
    pitch2,
    pitch3,
    size1,
    size2,
    stride0,
    stride1,
    stride2,
):
    """The token of an item of a group: both are counted with the last axis fastest."""
    at = start + item % size2 * stride2 + item // size2 % size1 * stride1 + item // (size1 * size2) * stride0
    at += group % count3 * pitch3 + group // count3 % count2 * pitch2
    group = group // (count3 * count2)
    return (at + group % count1 * pitch1 + group // count1 * pitch0).to(tl.int64)


@triton.jit
@no_type_check
def _tile(TILES, item, group, count3, head, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of one head of a group, from ``item`` on, by a descriptor; features and rows that are not there are 0."""
    return TILES.load([item, group % count3, group // count3, head.to(tl.int32), 0]).reshape(ROWS, WIDTH)


@triton.jit
@no_type_check
def _store(X, x_md, at_m, here_m, head, heads, ADD: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Write rows of one head to a contiguous ``(n, heads, D)``, or add them to it.

    A launch adds to each number once, so that sums have one order; an atomic only spares the registers of a load.
    """
    feature = tl.arange(0, WIDTH)
    mask = here_m[:, None] if D == WIDTH else here_m[:, None] & (feature < D)[None, :]
    to = X + (at_m * heads + head)[:, None] * D + feature[None, :]
    if ADD:
        tl.atomic_add(to, x_md, mask=mask, sem="relaxed")
    else:
        tl.store(to, x_md.to(X.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def _pairs(group_m, here_m, group_n, here_n, SHARED: tl.constexpr):
    """Which queries of a tile attend which of its keys."""
    pair_mn = here_m[:, None] & here_n[None, :]
    return pair_mn & (group_m[:, None] == group_n[None, :]) if SHARED else pair_mn


@triton.jit(do_not_specialize=PLACES)
@no_type_check
def forward(
    Q,
    K,
    V,
    OUT,
    LSE,
    K_TILES,
    V_TILES,
    scale,
    heads,
    ratio,
    blocks,
    groups,
    together,
    count1,
    count2,
    count3,
    q_start,
    q_pitch0,
    q_pitch1,
    q_pitch2,
    q_pitch3,
    q_size1,
    q_size2,
    q_stride0,
    q_stride1,
    q_stride2,
    q_length,
    k_start,
    k_pitch0,
    k_pitch1,
    k_pitch2,
    k_pitch3,
    k_size1,
    k_size2,
    k_stride0,
    k_stride1,
    k_stride2,
    k_length,
    q_by_token,
    q_by_head,
    k_by_token,
    k_by_head,
    v_by_token,
    v_by_head,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    V_WIDTH: tl.constexpr,
    SHARED: tl.constexpr,
    MERGE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program: a tile of queries of one head. ``MERGE`` goes on from the result of earlier keys."""
    q_by_token, q_by_head = q_by_token * UNIT, q_by_head * UNIT
    k_by_token, k_by_head = k_by_token * UNIT, k_by_head * UNIT
    v_by_token, v_by_head = v_by_token * UNIT, v_by_head * UNIT
    head, tile = (tl.program_id(0) % heads).to(tl.int64), tl.program_id(0) // heads
    set_ = tile // blocks
    group_m, item_m, here_m = _members(tile % blocks * ROWS, q_length, set_, groups, together, SHARED, ROWS)
    at_m = _places(group_m, item_m, count1, count2, count3, q_start, q_pitch0, q_pitch1, q_pitch2, q_pitch3,
                   q_size1, q_size2, q_stride0, q_stride1, q_stride2)  # fmt: skip
    q_md = load(Q + head * q_by_head, at_m, here_m, q_by_token, D, WIDTH)
    if MERGE:
        sum_me = load(OUT + head * E, at_m, here_m, heads * E, E, V_WIDTH).to(tl.float32)
        top_m = tl.load(LSE + at_m * heads + head, mask=here_m, other=float("-inf")) * LOG2E
        total_m = tl.where(top_m == float("-inf"), 0.0, 1.0)
    else:
        sum_me = tl.zeros([ROWS, V_WIDTH], tl.float32)
        top_m = tl.full([ROWS], float("-inf"), tl.float32)
        total_m = tl.zeros([ROWS], tl.float32)
    end = KEYS if SHARED else k_length
    for first in range(0, end, KEYS):
        group_n, item_n, here_n = _members(first, k_length, set_, groups, together, SHARED, KEYS)
        at_n = _places(group_n, item_n, count1, count2, count3, k_start, k_pitch0, k_pitch1, k_pitch2, k_pitch3,
                       k_size1, k_size2, k_stride0, k_stride1, k_stride2)  # fmt: skip
        if K_TILES is None:
            k_nd = load(K + head // ratio * k_by_head, at_n, here_n, k_by_token, D, WIDTH)
        else:
            k_nd = _tile(K_TILES, first, set_, count3, head // ratio, KEYS, WIDTH)
        score_mn = tl.dot(q_md, tl.trans(k_nd), input_precision="ieee") * (scale * LOG2E)
        score_mn = tl.where(_pairs(group_m, here_m, group_n, here_n, SHARED), score_mn, float("-inf"))
        higher_m = tl.maximum(top_m, tl.max(score_mn, axis=1))
        finite_m = tl.where(higher_m == float("-inf"), 0.0, higher_m)
        weight_mn = tl.math.exp2(score_mn - finite_m[:, None])
        shrink_m = tl.math.exp2(top_m - finite_m)
        total_m = total_m * shrink_m + tl.sum(weight_mn, axis=1)
        if V_TILES is None:  # read behind the softmax of short groups, where fewer numbers are held
            v_ne = load(V + head // ratio * v_by_head, at_n, here_n, v_by_token, E, V_WIDTH)
        else:
            v_ne = _tile(V_TILES, first, set_, count3, head // ratio, KEYS, V_WIDTH)
        sum_me = tl.dot(weight_mn.to(v_ne.dtype), v_ne, sum_me * shrink_m[:, None], input_precision="ieee")
        top_m = higher_m
    total_m = tl.where(total_m == 0, 1.0, total_m)
    _store(OUT, sum_me / total_m[:, None], at_m, here_m, head, heads, False, E, V_WIDTH)
    tl.store(LSE + at_m * heads + head, (top_m + tl.math.log2(total_m)) * LN2, mask=here_m)


@triton.jit(do_not_specialize=PLACES)
@no_type_check
def backward_queries(
    GRAD,
    Q,
    K,
    V,
    OUT,
    LSE,
    DELTA,
    DQ,
    K_TILES,
    V_TILES,
    scale,
    heads,
    ratio,
    blocks,
    groups,
    together,
    count1,
    count2,
    count3,
    q_start,
    q_pitch0,
    q_pitch1,
    q_pitch2,
    q_pitch3,
    q_size1,
    q_size2,
    q_stride0,
    q_stride1,
    q_stride2,
    q_length,
    k_start,
    k_pitch0,
    k_pitch1,
    k_pitch2,
    k_pitch3,
    k_size1,
    k_size2,
    k_stride0,
    k_stride1,
    k_stride2,
    k_length,
    q_by_token,
    q_by_head,
    k_by_token,
    k_by_head,
    v_by_token,
    v_by_head,
    g_by_token,
    g_by_head,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    V_WIDTH: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    UNIT: tl.constexpr,
):
    """The gradient of a tile of one group's queries, and their ``DELTA``, the sums of gradient times output."""
    q_by_token, q_by_head = q_by_token * UNIT, q_by_head * UNIT
    k_by_token, k_by_head = k_by_token * UNIT, k_by_head * UNIT
    v_by_token, v_by_head = v_by_token * UNIT, v_by_head * UNIT
    g_by_token, g_by_head = g_by_token * UNIT, g_by_head * UNIT
    head, tile = (tl.program_id(0) % heads).to(tl.int64), tl.program_id(0) // heads
    set_ = tile // blocks
    group_m, item_m, here_m = _members(tile % blocks * ROWS, q_length, set_, groups, together, False, ROWS)
    at_m = _places(group_m, item_m, count1, count2, count3, q_start, q_pitch0, q_pitch1, q_pitch2, q_pitch3,
                   q_size1, q_size2, q_stride0, q_stride1, q_stride2)  # fmt: skip
    q_md = load(Q + head * q_by_head, at_m, here_m, q_by_token, D, WIDTH)
    grad_me = load(GRAD + head * g_by_head, at_m, here_m, g_by_token, E, V_WIDTH)
    out_me = load(OUT + head * E, at_m, here_m, heads * E, E, V_WIDTH)
    delta_m = tl.sum(grad_me.to(tl.float32) * out_me.to(tl.float32), axis=1)
    tl.store(DELTA + at_m * heads + head, delta_m, mask=here_m)
    lse_m = tl.load(LSE + at_m * heads + head, mask=here_m, other=0.0) * LOG2E
    dq_md = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, k_length, KEYS):
        group_n, item_n, here_n = _members(first, k_length, set_, groups, together, False, KEYS)
        at_n = _places(group_n, item_n, count1, count2, count3, k_start, k_pitch0, k_pitch1, k_pitch2, k_pitch3,
                       k_size1, k_size2, k_stride0, k_stride1, k_stride2)  # fmt: skip
        if K_TILES is None:
            k_nd = load(K + head // ratio * k_by_head, at_n, here_n, k_by_token, D, WIDTH)
        else:
            k_nd = _tile(K_TILES, first, set_, count3, head // ratio, KEYS, WIDTH)
        if V_TILES is None:
            v_ne = load(V + head // ratio * v_by_head, at_n, here_n, v_by_token, E, V_WIDTH)
        else:
            v_ne = _tile(V_TILES, first, set_, count3, head // ratio, KEYS, V_WIDTH)
        pair_mn = _pairs(group_m, here_m, group_n, here_n, False)
        dq_md = to_queries(q_md, k_nd, v_ne, grad_me, lse_m, delta_m, pair_mn, scale * LOG2E, dq_md)
    _store(DQ, dq_md * scale, at_m, here_m, head, heads, ADD, D, WIDTH)


@triton.jit(do_not_specialize=PLACES)
@no_type_check
def backward_keys(
    GRAD,
    Q,
    K,
    V,
    LSE,
    DELTA,
    DK,
    DV,
    Q_TILES,
    GRAD_TILES,
    scale,
    heads,
    ratio,
    blocks,
    groups,
    together,
    count1,
    count2,
    count3,
    q_start,
    q_pitch0,
    q_pitch1,
    q_pitch2,
    q_pitch3,
    q_size1,
    q_size2,
    q_stride0,
    q_stride1,
    q_stride2,
    q_length,
    k_start,
    k_pitch0,
    k_pitch1,
    k_pitch2,
    k_pitch3,
    k_size1,
    k_size2,
    k_stride0,
    k_stride1,
    k_stride2,
    k_length,
    q_by_token,
    q_by_head,
    k_by_token,
    k_by_head,
    v_by_token,
    v_by_head,
    g_by_token,
    g_by_head,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    V_WIDTH: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    UNIT: tl.constexpr,
):
    """The gradients of a tile of one group's keys and values, summed over query heads in their order."""
    q_by_token, q_by_head = q_by_token * UNIT, q_by_head * UNIT
    k_by_token, k_by_head = k_by_token * UNIT, k_by_head * UNIT
    v_by_token, v_by_head = v_by_token * UNIT, v_by_head * UNIT
    g_by_token, g_by_head = g_by_token * UNIT, g_by_head * UNIT
    kv_heads = heads // ratio
    kv_head, tile = (tl.program_id(0) % kv_heads).to(tl.int64), tl.program_id(0) // kv_heads
    set_ = tile // blocks
    group_n, item_n, here_n = _members(tile % blocks * KEYS, k_length, set_, groups, together, False, KEYS)
    at_n = _places(group_n, item_n, count1, count2, count3, k_start, k_pitch0, k_pitch1, k_pitch2, k_pitch3,
                   k_size1, k_size2, k_stride0, k_stride1, k_stride2)  # fmt: skip
    k_nd = load(K + kv_head * k_by_head, at_n, here_n, k_by_token, D, WIDTH)
    v_ne = load(V + kv_head * v_by_head, at_n, here_n, v_by_token, E, V_WIDTH)
    dk_nd = tl.zeros([KEYS, WIDTH], tl.float32)
    dv_ne = tl.zeros([KEYS, V_WIDTH], tl.float32)
    steps = tl.cdiv(q_length, ROWS)
    for step in range(ratio * steps):
        head = kv_head * ratio + step // steps
        group_m, item_m, here_m = _members(step % steps * ROWS, q_length, set_, groups, together, False, ROWS)
        at_m = _places(group_m, item_m, count1, count2, count3, q_start, q_pitch0, q_pitch1, q_pitch2, q_pitch3,
                       q_size1, q_size2, q_stride0, q_stride1, q_stride2)  # fmt: skip
        if Q_TILES is None:
            q_md = load(Q + head * q_by_head, at_m, here_m, q_by_token, D, WIDTH)
        else:
            q_md = _tile(Q_TILES, step % steps * ROWS, set_, count3, head, ROWS, WIDTH)
        if GRAD_TILES is None:
            grad_me = load(GRAD + head * g_by_head, at_m, here_m, g_by_token, E, V_WIDTH)
        else:
            grad_me = _tile(GRAD_TILES, step % steps * ROWS, set_, count3, head, ROWS, V_WIDTH)
        lse_m = tl.load(LSE + at_m * heads + head, mask=here_m, other=0.0) * LOG2E
        delta_m = tl.load(DELTA + at_m * heads + head, mask=here_m, other=0.0)
        pair_nm = _pairs(group_n, here_n, group_m, here_m, False)
        factor = scale * LOG2E
        dk_nd, dv_ne = to_keys(k_nd, v_ne, q_md, grad_me, lse_m, delta_m, pair_nm, factor, dk_nd, dv_ne)
    _store(DK, dk_nd * scale, at_n, here_n, kv_head, kv_heads, ADD, D, WIDTH)
    _store(DV, dv_ne, at_n, here_n, kv_head, kv_heads, ADD, E, V_WIDTH)


@triton.jit(do_not_specialize=PLACES[1:])
@no_type_check
def backward_together(
    GRAD,
    Q,
    K,
    V,
    OUT,
    LSE,
    DQ,
    DK,
    DV,
    scale,
    heads,
    ratio,
    groups,
    together,
    count1,
    count2,
    count3,
    q_start,
    q_pitch0,
    q_pitch1,
    q_pitch2,
    q_pitch3,
    q_size1,
    q_size2,
    q_stride0,
    q_stride1,
    q_stride2,
    q_length,
    k_start,
    k_pitch0,
    k_pitch1,
    k_pitch2,
    k_pitch3,
    k_size1,
    k_size2,
    k_stride0,
    k_stride1,
    k_stride2,
    k_length,
    q_by_token,
    q_by_head,
    k_by_token,
    k_by_head,
    v_by_token,
    v_by_head,
    g_by_token,
    g_by_head,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    E: tl.constexpr,
    V_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    UNIT: tl.constexpr,
):
    """All three gradients of whole short groups at once: each number is read once."""
    q_by_token, q_by_head = q_by_token * UNIT, q_by_head * UNIT
    k_by_token, k_by_head = k_by_token * UNIT, k_by_head * UNIT
    v_by_token, v_by_head = v_by_token * UNIT, v_by_head * UNIT
    g_by_token, g_by_head = g_by_token * UNIT, g_by_head * UNIT
    kv_heads = heads // ratio
    kv_head, set_ = (tl.program_id(0) % kv_heads).to(tl.int64), tl.program_id(0) // kv_heads
    group_m, item_m, here_m = _members(0, q_length, set_, groups, together, True, ROWS)
    at_m = _places(group_m, item_m, count1, count2, count3, q_start, q_pitch0, q_pitch1, q_pitch2, q_pitch3,
                   q_size1, q_size2, q_stride0, q_stride1, q_stride2)  # fmt: skip
    group_n, item_n, here_n = _members(0, k_length, set_, groups, together, True, KEYS)
    at_n = _places(group_n, item_n, count1, count2, count3, k_start, k_pitch0, k_pitch1, k_pitch2, k_pitch3,
                   k_size1, k_size2, k_stride0, k_stride1, k_stride2)  # fmt: skip
    pair_mn = _pairs(group_m, here_m, group_n, here_n, True)
    k_nd = load(K + kv_head * k_by_head, at_n, here_n, k_by_token, D, WIDTH)
    v_ne = load(V + kv_head * v_by_head, at_n, here_n, v_by_token, E, V_WIDTH)
    dk_nd = tl.zeros([KEYS, WIDTH], tl.float32)
    dv_ne = tl.zeros([KEYS, V_WIDTH], tl.float32)
    for step in range(ratio):
        head = kv_head * ratio + step
        q_md = load(Q + head * q_by_head, at_m, here_m, q_by_token, D, WIDTH)
        grad_me = load(GRAD + head * g_by_head, at_m, here_m, g_by_token, E, V_WIDTH)
        out_me = load(OUT + head * E, at_m, here_m, heads * E, E, V_WIDTH)
        delta_m = tl.sum(grad_me.to(tl.float32) * out_me.to(tl.float32), axis=1)
        lse_m = tl.load(LSE + at_m * heads + head, mask=here_m, other=0.0) * LOG2E
        score_mn = tl.dot(q_md, tl.trans(k_nd), input_precision="ieee") * (scale * LOG2E)
        weight_mn = tl.math.exp2(tl.where(pair_mn, score_mn, float("-inf")) - lse_m[:, None])
        dv_ne = tl.dot(tl.trans(weight_mn.to(grad_me.dtype)), grad_me, dv_ne, input_precision="ieee")
        dweight_mn = tl.dot(grad_me, tl.trans(v_ne), input_precision="ieee")
        dscore_mn = (weight_mn * (dweight_mn - delta_m[:, None])).to(k_nd.dtype)
        dk_nd = tl.dot(tl.trans(dscore_mn), q_md, dk_nd, input_precision="ieee")
        dq_md = tl.dot(dscore_mn, k_nd, input_precision="ieee") * scale
        _store(DQ, dq_md, at_m, here_m, head, heads, False, D, WIDTH)
    _store(DK, dk_nd * scale, at_n, here_n, kv_head, kv_heads, False, D, WIDTH)
    _store(DV, dv_ne, at_n, here_n, kv_head, kv_heads, False, E, V_WIDTH)
