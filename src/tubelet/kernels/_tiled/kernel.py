# ruff: noqa: N803, N806 - Triton's pointers and constants are upper case
"""Triton kernels of tiled attention. Imported only where they run: this module needs triton.

A program owns one tile of :mod:`tubelet.kernels._tiled.table` and walks its two lines, then its boxes. Strides are
counted in units of ``UNIT`` numbers: the compiler sees that what is multiplied by 8 allows 16-byte loads of half
precision. Where there are ``TILES``, descriptors, the whole steps of lines are loads of the hardware (TMA) without a
mask.

Shape suffixes: ``_m`` queries, ``_n`` keys, ``_md`` a tile of either with its features, ``_mn`` scores.
"""

from typing import no_type_check

import triton
import triton.language as tl

from tubelet.kernels._softmax.kernel import LN2, LOG2E, load, online, to_keys, to_queries
from tubelet.kernels._tiled.table import FIELDS

__all__ = ["backward_keys", "backward_queries", "forward"]

_FIELDS: tl.constexpr = tl.constexpr(len(FIELDS))
_HERE: tl.constexpr = tl.constexpr(FIELDS.index("here_t"))
_AT: tl.constexpr = tl.constexpr(FIELDS.index("at_t"))
_LINES: tl.constexpr = tl.constexpr(FIELDS.index("line"))
_GRID: tl.constexpr = tl.constexpr(FIELDS.index("grid"))
_BOX: tl.constexpr = tl.constexpr(FIELDS.index("box_t"))
_ONES: tl.constexpr = tl.constexpr(1 << 20 | 1 << 10 | 1)
_GUARDS: tl.constexpr = tl.constexpr((1 << 20 | 1 << 10 | 1) << 9)


@triton.jit
@no_type_check
def _own(ROW, ROWS: tl.constexpr):
    """The tokens of a tile, whether they are there, and their places in the grid."""
    item_m = tl.arange(0, ROWS)
    side_h, side_w = tl.load(ROW + 1), tl.load(ROW + 2)
    t_m, h_m, w_m = item_m // (side_h * side_w), item_m // side_w % side_h, item_m % side_w
    here_m = (t_m < tl.load(ROW + _HERE)) & (h_m < tl.load(ROW + _HERE + 1)) & (w_m < tl.load(ROW + _HERE + 2))
    at_m = tl.load(ROW) + t_m * tl.load(ROW + _GRID + 1) + h_m * tl.load(ROW + _GRID + 2) + w_m
    places_m = (tl.load(ROW + _AT) + t_m, tl.load(ROW + _AT + 1) + h_m, tl.load(ROW + _AT + 2) + w_m)
    return at_m, here_m, places_m


@triton.jit
@no_type_check
def _lines(ROW, SIZE: tl.constexpr):
    """Where both lines begin, their lengths, and the steps that each takes."""
    line, length = tl.load(ROW + _LINES).to(tl.int64), tl.load(ROW + _LINES + 1)
    more, more_length = tl.load(ROW + _LINES + 2).to(tl.int64), tl.load(ROW + _LINES + 3)
    return line, more, length, more_length, tl.cdiv(length, SIZE), tl.cdiv(more_length, SIZE)


@triton.jit
@no_type_check
def _stretch(lines, step, SIZE: tl.constexpr):
    """The first token of a step along both lines, and how many of its line are left."""
    line, more, length, more_length, steps, _ = lines
    done = (step - tl.where(step < steps, 0, steps)) * SIZE
    return tl.where(step < steps, line, more) + done, tl.where(step < steps, length, more_length) - done


@triton.jit
@no_type_check
def _whole_steps(lines, SIZE: tl.constexpr):
    """Both lines as far as steps are whole, and what is left of them."""
    line, more, length, more_length, _, _ = lines
    steps, more_steps = length // SIZE, more_length // SIZE
    whole = (line, more, steps * SIZE, more_steps * SIZE, steps, more_steps)
    left, more_left = length % SIZE, more_length % SIZE
    rest = (line + steps * SIZE, more + more_steps * SIZE, left, more_left, tl.cdiv(left, SIZE),
            tl.cdiv(more_left, SIZE))  # fmt: skip
    return whole, rest


@triton.jit
@no_type_check
def _tile(TILES, begin, head, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Tokens of one head from ``begin`` on, by a descriptor."""
    return TILES.load([begin.to(tl.int32), head.to(tl.int32), 0]).reshape(ROWS, WIDTH)


@triton.jit
@no_type_check
def _inside(ROW, SIZE: tl.constexpr):
    """Tokens of a box from its first one on, and their places inside of it; far away where it has no more."""
    item_n = tl.arange(0, SIZE)
    side_h, side_w = tl.load(ROW + _BOX + 1), tl.load(ROW + _BOX + 2)
    t_n, h_n, w_n = item_n // (side_h * side_w), item_n // side_w % side_h, item_n % side_w
    at_n = t_n.to(tl.int64) * tl.load(ROW + _GRID + 1) + h_n * tl.load(ROW + _GRID + 2) + w_n
    return at_n, (tl.where(t_n < tl.load(ROW + _BOX), t_n, 1 << 24), h_n, w_n)


@triton.jit
@no_type_check
def _box(BOXES, step):
    """Where box number ``step`` begins: its token and its place; and whether all its pairs count."""
    at = (tl.load(BOXES + 4 * step + 1), tl.load(BOXES + 4 * step + 2), tl.load(BOXES + 4 * step + 3))
    token = tl.load(BOXES + 4 * step)
    return token >> 1, at, token & 1


@triton.jit
@no_type_check
def _in_grid(places_n, at, lengths):
    """Which tokens of a box lie in the grid."""
    in_t, in_h, in_w = (places_n[0] < lengths[0] - at[0], places_n[1] < lengths[1] - at[1],
                        places_n[2] < lengths[2] - at[2])  # fmt: skip
    return in_t & in_h & in_w


@triton.jit
@no_type_check
def _lengths(ROW):
    """The sides of the grid."""
    return tl.load(ROW + _GRID + 3), tl.load(ROW + _GRID + 4), tl.load(ROW + _GRID + 5)


@triton.jit
@no_type_check
def _spans(SPANS, lengths, places_m, here_m):
    """First and last of the spans of queries at some places of the grid, axis by axis."""
    from_t = SPANS + 2 * places_m[0]
    from_h = SPANS + 2 * (lengths[0] + places_m[1])
    from_w = SPANS + 2 * (lengths[0] + lengths[1] + places_m[2])
    first_m = (tl.load(from_t, mask=here_m, other=0), tl.load(from_h, mask=here_m, other=0),
               tl.load(from_w, mask=here_m, other=0))  # fmt: skip
    last_m = (tl.load(from_t + 1, mask=here_m, other=0), tl.load(from_h + 1, mask=here_m, other=0),
              tl.load(from_w + 1, mask=here_m, other=0))  # fmt: skip
    return first_m, last_m


@triton.jit
@no_type_check
def _packed(places, at):
    """Three places as seen from a box, at most 256, in one number: a comparison of all needs a guard bit above each."""
    t = tl.minimum(tl.maximum(places[0] - at[0], 0), 256)
    h = tl.minimum(tl.maximum(places[1] - at[1], 0), 256)
    return t << 20 | h << 10 | tl.minimum(tl.maximum(places[2] - at[2], 0), 256)


@triton.jit
@no_type_check
def _within(first, last, key):
    """Whether ``first <= key < last`` on all axes: no subtraction borrows from its guard bit.

    Keys that are not there lie in no span, which ends where the grid does.
    """
    return ((key | _GUARDS) - first) & ((last | _GUARDS) - (key + _ONES)) & _GUARDS == _GUARDS


@triton.jit
@no_type_check
def _store(X, x_md, at_m, here_m, by_token, D: tl.constexpr, WIDTH: tl.constexpr):
    """Write rows of one head."""
    feature = tl.arange(0, WIDTH)
    mask = here_m[:, None] if D == WIDTH else here_m[:, None] & (feature < D)[None, :]
    tl.store(X + at_m.to(tl.int64)[:, None] * by_token + feature[None, :], x_md.to(X.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def forward(
    Q,
    K,
    V,
    OUT,
    LSE,
    TILES,
    BOXES,
    SPANS,
    K_TILES,
    V_TILES,
    scale,
    tiles,
    heads,
    ratio,
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
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program: a tile of queries of one head."""
    q_by_token, q_by_head = q_by_token * UNIT, q_by_head * UNIT
    k_by_token, k_by_head = k_by_token * UNIT, k_by_head * UNIT
    v_by_token, v_by_head = v_by_token * UNIT, v_by_head * UNIT
    head, ROW = (tl.program_id(0) // tiles).to(tl.int64), TILES + tl.program_id(0) % tiles * _FIELDS
    K += head // ratio * k_by_head
    V += head // ratio * v_by_head
    factor = scale * LOG2E
    at_m, here_m, places_m = _own(ROW, ROWS)
    q_md = load(Q + head * q_by_head, at_m.to(tl.int64), here_m, q_by_token, D, WIDTH)
    sum_me = tl.zeros([ROWS, V_WIDTH], tl.float32)
    top_m = tl.full([ROWS], float("-inf"), tl.float32)
    total_m = tl.zeros([ROWS], tl.float32)
    item_n, lines = tl.arange(0, KEYS), _lines(ROW, KEYS)
    if K_TILES is not None:
        whole_lines, lines = _whole_steps(lines, KEYS)
        for step in tl.range(0, whole_lines[4] + whole_lines[5], num_stages=STAGES):
            begin, _ = _stretch(whole_lines, step, KEYS)
            k_nd = _tile(K_TILES, begin, head // ratio, KEYS, WIDTH)
            product_mn = tl.dot(q_md, tl.trans(k_nd), input_precision="ieee")
            v_ne = _tile(V_TILES, begin, head // ratio, KEYS, V_WIDTH)
            top_m, total_m, sum_me = online(product_mn, factor, v_ne, top_m, total_m, sum_me)
    for step in tl.range(0, lines[4] + lines[5], num_stages=STAGES):
        begin, left = _stretch(lines, step, KEYS)
        k_nd = load(K + begin * k_by_token, item_n, item_n < left, k_by_token, D, WIDTH)
        product_mn = tl.dot(q_md, tl.trans(k_nd), input_precision="ieee")
        if left < KEYS:
            product_mn = tl.where((item_n < left)[None, :], product_mn, float("-inf"))
        v_ne = load(V + begin * v_by_token, item_n, item_n < left, v_by_token, E, V_WIDTH)
        top_m, total_m, sum_me = online(product_mn, factor, v_ne, top_m, total_m, sum_me)
    if BOXES is not None:
        BOXES += tl.load(ROW + _BOX + 3).to(tl.int64) * 4
        grid, lengths = tl.load(ROW + _GRID).to(tl.int64), _lengths(ROW)
        first_m, last_m = _spans(SPANS + tl.load(ROW + _GRID + 6) * 2, lengths, places_m, here_m)
        at_n, places_n = _inside(ROW, KEYS)
        key_n = _packed(places_n, (0, 0, 0))
        for step in tl.range(0, tl.load(ROW + _BOX + 4), num_stages=STAGES):
            token, at, whole = _box(BOXES, step)
            here_n = _in_grid(places_n, at, lengths)
            k_nd = load(K + (grid + token) * k_by_token, at_n, here_n, k_by_token, D, WIDTH)
            product_mn = tl.dot(q_md, tl.trans(k_nd), input_precision="ieee")
            if whole == 0:
                pair_mn = _within(_packed(first_m, at)[:, None], _packed(last_m, at)[:, None], key_n[None, :])
                product_mn = tl.where(pair_mn, product_mn, float("-inf"))
            v_ne = load(V + (grid + token) * v_by_token, at_n, here_n, v_by_token, E, V_WIDTH)
            top_m, total_m, sum_me = online(product_mn, factor, v_ne, top_m, total_m, sum_me)
    total_m = tl.where(total_m == 0, 1.0, total_m)
    _store(OUT + head * E, sum_me / total_m[:, None], at_m, here_m, heads * E, E, V_WIDTH)
    tl.store(LSE + at_m.to(tl.int64) * heads + head, (top_m + tl.math.log2(total_m)) * LN2, mask=here_m)


@triton.jit
@no_type_check
def _finite(LSE, at_m, here_m, by_token):
    """The log-sum-exp in powers of two; 0 for queries without keys, whose pairs are none."""
    lse_m = tl.load(LSE + at_m * by_token, mask=here_m, other=0.0) * LOG2E
    return tl.where(lse_m == float("-inf"), 0.0, lse_m)


@triton.jit
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
    TILES,
    BOXES,
    SPANS,
    K_TILES,
    V_TILES,
    scale,
    tiles,
    heads,
    ratio,
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
    STAGES: tl.constexpr,
    UNIT: tl.constexpr,
):
    """The gradient of a tile of queries, and their ``DELTA``, the sums of gradient times output."""
    g_by_token, g_by_head = g_by_token * UNIT, g_by_head * UNIT
    q_by_token, q_by_head = q_by_token * UNIT, q_by_head * UNIT
    k_by_token, k_by_head = k_by_token * UNIT, k_by_head * UNIT
    v_by_token, v_by_head = v_by_token * UNIT, v_by_head * UNIT
    head, ROW = (tl.program_id(0) // tiles).to(tl.int64), TILES + tl.program_id(0) % tiles * _FIELDS
    K += head // ratio * k_by_head
    V += head // ratio * v_by_head
    factor = scale * LOG2E
    at_m, here_m, places_m = _own(ROW, ROWS)
    long_m = at_m.to(tl.int64)
    q_md = load(Q + head * q_by_head, long_m, here_m, q_by_token, D, WIDTH)
    grad_me = load(GRAD + head * g_by_head, long_m, here_m, g_by_token, E, V_WIDTH)
    out_me = load(OUT + head * E, long_m, here_m, heads * E, E, V_WIDTH)
    delta_m = tl.sum(grad_me.to(tl.float32) * out_me.to(tl.float32), axis=1)
    tl.store(DELTA + long_m * heads + head, delta_m, mask=here_m)
    lse_m = _finite(LSE + head, long_m, here_m, heads)
    dq_md = tl.zeros([ROWS, WIDTH], tl.float32)
    item_n, lines = tl.arange(0, KEYS), _lines(ROW, KEYS)
    if K_TILES is not None:
        whole_lines, lines = _whole_steps(lines, KEYS)
        for step in tl.range(0, whole_lines[4] + whole_lines[5], num_stages=STAGES):
            begin, _ = _stretch(whole_lines, step, KEYS)
            k_nd = _tile(K_TILES, begin, head // ratio, KEYS, WIDTH)
            v_ne = _tile(V_TILES, begin, head // ratio, KEYS, V_WIDTH)
            dq_md = to_queries(q_md, k_nd, v_ne, grad_me, lse_m, delta_m, None, factor, dq_md)
    for step in tl.range(0, lines[4] + lines[5], num_stages=STAGES):
        begin, left = _stretch(lines, step, KEYS)
        k_nd = load(K + begin * k_by_token, item_n, item_n < left, k_by_token, D, WIDTH)
        v_ne = load(V + begin * v_by_token, item_n, item_n < left, v_by_token, E, V_WIDTH)
        pair_mn = (item_n < left)[None, :]
        dq_md = to_queries(q_md, k_nd, v_ne, grad_me, lse_m, delta_m, pair_mn, factor, dq_md)
    if BOXES is not None:
        BOXES += tl.load(ROW + _BOX + 3).to(tl.int64) * 4
        grid, lengths = tl.load(ROW + _GRID).to(tl.int64), _lengths(ROW)
        first_m, last_m = _spans(SPANS + tl.load(ROW + _GRID + 6) * 2, lengths, places_m, here_m)
        at_n, places_n = _inside(ROW, KEYS)
        key_n = _packed(places_n, (0, 0, 0))
        for step in tl.range(0, tl.load(ROW + _BOX + 4), num_stages=STAGES):
            token, at, _ = _box(BOXES, step)
            here_n = _in_grid(places_n, at, lengths)
            k_nd = load(K + (grid + token) * k_by_token, at_n, here_n, k_by_token, D, WIDTH)
            v_ne = load(V + (grid + token) * v_by_token, at_n, here_n, v_by_token, E, V_WIDTH)
            pair_mn = _within(_packed(first_m, at)[:, None], _packed(last_m, at)[:, None], key_n[None, :])
            dq_md = to_queries(q_md, k_nd, v_ne, grad_me, lse_m, delta_m, pair_mn, factor, dq_md)
    _store(DQ + head * D, dq_md * scale, at_m, here_m, heads * D, D, WIDTH)


@triton.jit
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
    TILES,
    BOXES,
    SPANS,
    Q_TILES,
    GRAD_TILES,
    scale,
    tiles,
    heads,
    ratio,
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
    STAGES: tl.constexpr,
    UNIT: tl.constexpr,
):
    """The gradients of a tile of keys and values, summed over query heads in their order.

    Queries that are not there are rows of zeros with zero statistics: they add nothing, and need no mask.
    """
    q_by_token, q_by_head = q_by_token * UNIT, q_by_head * UNIT
    k_by_token, k_by_head = k_by_token * UNIT, k_by_head * UNIT
    v_by_token, v_by_head = v_by_token * UNIT, v_by_head * UNIT
    g_by_token, g_by_head = g_by_token * UNIT, g_by_head * UNIT
    kv_head, ROW = (tl.program_id(0) // tiles).to(tl.int64), TILES + tl.program_id(0) % tiles * _FIELDS
    own_n, here_n, own_places_n = _own(ROW, KEYS)
    k_nd = load(K + kv_head * k_by_head, own_n.to(tl.int64), here_n, k_by_token, D, WIDTH)
    v_ne = load(V + kv_head * v_by_head, own_n.to(tl.int64), here_n, v_by_token, E, V_WIDTH)
    dk_nd = tl.zeros([KEYS, WIDTH], tl.float32)
    dv_ne = tl.zeros([KEYS, V_WIDTH], tl.float32)
    factor = scale * LOG2E
    item_m, lines = tl.arange(0, ROWS), _lines(ROW, ROWS)
    if Q_TILES is not None:
        whole_lines, lines = _whole_steps(lines, ROWS)
        whole_steps = whole_lines[4] + whole_lines[5]
        for step in tl.range(0, ratio * whole_steps, num_stages=STAGES):
            head = kv_head * ratio + step // whole_steps
            begin, _ = _stretch(whole_lines, step % whole_steps, ROWS)
            q_md = _tile(Q_TILES, begin, head, ROWS, WIDTH)
            grad_me = _tile(GRAD_TILES, begin, head, ROWS, V_WIDTH)
            lse_m = _finite(LSE + begin * heads + head, item_m, item_m < ROWS, heads)
            delta_m = tl.load(DELTA + begin * heads + head + item_m * heads)
            dk_nd, dv_ne = to_keys(k_nd, v_ne, q_md, grad_me, lse_m, delta_m, None, factor, dk_nd, dv_ne)
    steps = lines[4] + lines[5]
    for step in tl.range(0, ratio * steps, num_stages=STAGES):
        head = kv_head * ratio + step // steps
        begin, left = _stretch(lines, step % steps, ROWS)
        here_m = item_m < left
        q_md = load(Q + head * q_by_head + begin * q_by_token, item_m, here_m, q_by_token, D, WIDTH)
        grad_me = load(GRAD + head * g_by_head + begin * g_by_token, item_m, here_m, g_by_token, E, V_WIDTH)
        lse_m = _finite(LSE + begin * heads + head, item_m, here_m, heads)
        delta_m = tl.load(DELTA + begin * heads + head + item_m * heads, mask=here_m, other=0.0)
        dk_nd, dv_ne = to_keys(k_nd, v_ne, q_md, grad_me, lse_m, delta_m, None, factor, dk_nd, dv_ne)
    if BOXES is not None:
        BOXES += tl.load(ROW + _BOX + 3).to(tl.int64) * 4
        grid, lengths, count = tl.load(ROW + _GRID).to(tl.int64), _lengths(ROW), tl.load(ROW + _BOX + 4)
        SPANS += tl.load(ROW + _GRID + 6) * 2
        own_at = (tl.load(ROW + _AT), tl.load(ROW + _AT + 1), tl.load(ROW + _AT + 2))
        key_n = _packed(own_places_n, own_at)
        at_m, places_m = _inside(ROW, ROWS)
        for step in tl.range(0, ratio * count, num_stages=STAGES):
            head = kv_head * ratio + step // count
            token, at, _ = _box(BOXES, step % count)
            here_m, begin = _in_grid(places_m, at, lengths), grid + token
            q_md = load(Q + head * q_by_head + begin * q_by_token, at_m, here_m, q_by_token, D, WIDTH)
            grad_me = load(GRAD + head * g_by_head + begin * g_by_token, at_m, here_m, g_by_token, E, V_WIDTH)
            lse_m = _finite(LSE + begin * heads + head, at_m, here_m, heads)
            delta_m = tl.load(DELTA + begin * heads + head + at_m * heads, mask=here_m, other=0.0)
            there_m = (at[0] + places_m[0], at[1] + places_m[1], at[2] + places_m[2])
            first_m, last_m = _spans(SPANS, lengths, there_m, here_m)
            pair_nm = _within(_packed(first_m, own_at)[None, :], _packed(last_m, own_at)[None, :], key_n[:, None])
            dk_nd, dv_ne = to_keys(k_nd, v_ne, q_md, grad_me, lse_m, delta_m, pair_nm, factor, dk_nd, dv_ne)
    kv_heads = heads // ratio
    _store(DK + kv_head * D, dk_nd * scale, own_n, here_n, kv_heads * D, D, WIDTH)
    _store(DV + kv_head * E, dv_ne, own_n, here_n, kv_heads * E, E, V_WIDTH)
