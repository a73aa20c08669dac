# ruff: noqa: N803, N806 - Triton's pointers and constants are upper case
"""What the kernels of QK-norm + RoPE do with one tile: rows, of one head of one token each, and the pairs of a head.

Shape suffixes: ``_r`` rows, ``_ri`` rows and ``PAIRS`` pairs of features, of which ``D // 2`` are real. ``first`` and
``second`` are the members of each pair: neighbours where ``AXES`` is None, else half an axis apart, with the pairs of
the axes t, h and w in ``AXES``. Everything is float32 between load and store. Imported only where triton is.
"""

from typing import no_type_check

import triton
import triton.language as tl

__all__ = ["affine", "angles", "load", "store", "turn", "turn_back"]


@triton.jit
@no_type_check
def _columns(D: tl.constexpr, PAIRS: tl.constexpr, AXES: tl.constexpr):
    """The features of both members of each pair, half an axis apart."""
    pair = tl.arange(0, PAIRS)
    T: tl.constexpr = AXES[0]
    H: tl.constexpr = AXES[1]
    W: tl.constexpr = AXES[2]
    if H + W == 0:
        first = pair
        second = pair + D // 2
    else:
        first = pair + tl.where(pair < T, 0, tl.where(pair < T + H, T, T + H))
        second = first + tl.where(pair < T, T, tl.where(pair < T + H, H, W))
        if (T % 8 == 0) & (H % 8 == 0) & (W % 8 == 0):  # 16 bytes of half precision at a time
            first = tl.max_contiguous(tl.multiple_of(first, 8), 8)
            second = tl.max_contiguous(tl.multiple_of(second, 8), 8)
    return first, second


@triton.jit
@no_type_check
def _real(here_r, D: tl.constexpr, PAIRS: tl.constexpr):
    """What of a tile is there."""
    return here_r[:, None] & (tl.arange(0, PAIRS) < D // 2)[None, :]


@triton.jit
@no_type_check
def load(X, at_r, here_r, D: tl.constexpr, PAIRS: tl.constexpr, AXES: tl.constexpr):
    """Both members of each pair of rows that begin at ``at_r``."""
    if AXES is None:
        column = tl.arange(0, 2 * PAIRS)
        mask = here_r[:, None] & (column < D)[None, :]
        tile = tl.load(X + at_r[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
        first_ri, second_ri = tl.split(tl.reshape(tile, (at_r.shape[0], PAIRS, 2)))
    else:
        mask = _real(here_r, D, PAIRS)
        first, second = _columns(D, PAIRS, AXES)
        first_ri = tl.load(X + at_r[:, None] + first[None, :], mask=mask, other=0.0).to(tl.float32)
        second_ri = tl.load(X + at_r[:, None] + second[None, :], mask=mask, other=0.0).to(tl.float32)
    return first_ri, second_ri


@triton.jit
@no_type_check
def store(X, at_r, here_r, first_ri, second_ri, D: tl.constexpr, PAIRS: tl.constexpr, AXES: tl.constexpr):
    """What :func:`load` loads."""
    if AXES is None:
        column = tl.arange(0, 2 * PAIRS)
        mask = here_r[:, None] & (column < D)[None, :]
        tile = tl.reshape(tl.join(first_ri, second_ri), (at_r.shape[0], 2 * PAIRS))
        tl.store(X + at_r[:, None] + column[None, :], tile.to(X.dtype.element_ty), mask=mask)
    else:
        mask = _real(here_r, D, PAIRS)
        first, second = _columns(D, PAIRS, AXES)
        tl.store(X + at_r[:, None] + first[None, :], first_ri.to(X.dtype.element_ty), mask=mask)
        tl.store(X + at_r[:, None] + second[None, :], second_ri.to(X.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def affine(WEIGHT, BIAS, at_r, here_r, D: tl.constexpr, PAIRS: tl.constexpr, AXES: tl.constexpr):
    """The norm's weight and its bias, each of both members of each pair, or empty: Triton 3.6 returns no None."""
    weight, bias = (), ()
    if WEIGHT is not None:
        weight = load(WEIGHT, at_r, here_r, D, PAIRS, AXES)
    if BIAS is not None:
        bias = load(BIAS, at_r, here_r, D, PAIRS, AXES)
    return weight, bias


@triton.jit
@no_type_check
def angles(COS, SIN, at_r, here_r, D: tl.constexpr, PAIRS: tl.constexpr):
    """The cosine and the sine of each pair, or nothing."""
    turns = ()
    if COS is not None:
        mask, at = _real(here_r, D, PAIRS), at_r[:, None] + tl.arange(0, PAIRS)[None, :]
        cos_ri = tl.load(COS + at, mask=mask, other=0.0).to(tl.float32)
        turns = (cos_ri, tl.load(SIN + at, mask=mask, other=0.0).to(tl.float32))
    return turns


@triton.jit
@no_type_check
def _mean(x_ri, count, ACROSS: tl.constexpr):
    """Of each row, or of all rows together, which have ``count`` numbers."""
    return tl.sum(x_ri) / count if ACROSS else (tl.sum(x_ri, axis=1) / count)[:, None]


@triton.jit
@no_type_check
def _normed(first_ri, second_ri, here_r, count, eps, D: tl.constexpr, PAIRS: tl.constexpr, NORM: tl.constexpr,
            ACROSS: tl.constexpr):  # fmt: skip
    """Both members normalised, and what that multiplied them by."""
    factor = 1.0
    if NORM == "layer":
        mean, real = _mean(first_ri + second_ri, count, ACROSS), _real(here_r, D, PAIRS)
        first_ri = tl.where(real, first_ri - mean, 0.0)
        second_ri = tl.where(real, second_ri - mean, 0.0)
    if NORM != "none":
        factor = 1 / tl.sqrt(_mean(first_ri * first_ri + second_ri * second_ri, count, ACROSS) + eps)
        first_ri *= factor
        second_ri *= factor
    return first_ri, second_ri, factor


@triton.jit
@no_type_check
def _scaled(first_ri, second_ri, weights):
    """Times the weight plus the bias."""
    weight, bias = weights
    if len(weight) > 0:
        first_ri *= weight[0]
        second_ri *= weight[1]
    if len(bias) > 0:
        first_ri += bias[0]
        second_ri += bias[1]
    return first_ri, second_ri


@triton.jit
@no_type_check
def turn(X, OUT, from_r, to_r, here_r, weights, turns, count, eps, D: tl.constexpr, PAIRS: tl.constexpr,
         AXES: tl.constexpr, NORM: tl.constexpr, ACROSS: tl.constexpr):  # fmt: skip
    """Normalise a tile and turn it."""
    first_ri, second_ri = load(X, from_r, here_r, D, PAIRS, AXES)
    first_ri, second_ri, _ = _normed(first_ri, second_ri, here_r, count, eps, D, PAIRS, NORM, ACROSS)
    first_ri, second_ri = _scaled(first_ri, second_ri, weights)
    if len(turns) > 0:
        cos_ri, sin_ri = turns
        turned_ri = first_ri * cos_ri - second_ri * sin_ri
        second_ri = first_ri * sin_ri + second_ri * cos_ri
        first_ri = turned_ri
    store(OUT, to_r, here_r, first_ri, second_ri, D, PAIRS, AXES)


@triton.jit
@no_type_check
def turn_back(GRAD, X, DX, g_from_r, from_r, to_r, here_r, weights, turns, count, eps, D: tl.constexpr,
              PAIRS: tl.constexpr, AXES: tl.constexpr, NORM: tl.constexpr, ACROSS: tl.constexpr):  # fmt: skip
    """The gradient of a tile; what it adds to those of the weight, of the bias, of cosines and of sines."""
    first_g, second_g = load(GRAD, g_from_r, here_r, D, PAIRS, AXES)
    first_x, second_x = load(X, from_r, here_r, D, PAIRS, AXES)
    first_x, second_x, factor = _normed(first_x, second_x, here_r, count, eps, D, PAIRS, NORM, ACROSS)
    dcos_ri, dsin_ri = 0.0, 0.0
    if len(turns) > 0:
        cos_ri, sin_ri = turns
        first_y, second_y = _scaled(first_x, second_x, weights)
        dcos_ri = first_g * first_y + second_g * second_y
        dsin_ri = second_g * first_y - first_g * second_y
        straight_g = first_g * cos_ri + second_g * sin_ri
        second_g = second_g * cos_ri - first_g * sin_ri
        first_g = straight_g
    sums = (first_g * first_x, second_g * second_x, first_g, second_g)
    if len(weights[0]) > 0:
        first_g *= weights[0][0]
        second_g *= weights[0][1]
    if NORM != "none":
        along = _mean(first_g * first_x + second_g * second_x, count, ACROSS)
        level = _mean(first_g + second_g, count, ACROSS) if NORM == "layer" else 0.0
        first_g = (first_g - level - first_x * along) * factor
        second_g = (second_g - level - second_x * along) * factor
    store(DX, to_r, here_r, first_g, second_g, D, PAIRS, AXES)
    return sums, dcos_ri, dsin_ri
