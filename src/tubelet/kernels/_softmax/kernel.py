# ruff: noqa: N803 - Triton's pointers and constants are upper case
"""Steps of attention: rows of a head, the online softmax, and what a step adds to gradients. This module needs triton.

Softmax and sums are float32 (online softmax: FlashAttention-2, arXiv:2307.08691), in powers of two.

Shape suffixes: ``_m`` queries, ``_n`` keys, ``_md`` a tile of either with its features, ``_mn`` scores.
"""

from typing import no_type_check

import triton
import triton.language as tl

__all__ = ["LN2", "LOG2E", "load", "online", "to_keys", "to_queries"]

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
@no_type_check
def load(X, at_m, here_m, by_token, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of one head; features beyond ``D`` and rows that are not there are 0."""
    feature = tl.arange(0, WIDTH)
    mask = here_m[:, None] if D == WIDTH else here_m[:, None] & (feature < D)[None, :]
    return tl.load(X + at_m[:, None] * by_token + feature[None, :], mask=mask, other=0.0)


@triton.jit
@no_type_check
def online(product_mn, factor, v_ne, top_m, total_m, sum_me):
    """One step of the online softmax."""
    higher_m = tl.maximum(top_m, tl.max(product_mn, axis=1) * factor)
    finite_m = tl.where(higher_m == float("-inf"), 0.0, higher_m)
    weight_mn = tl.math.exp2(product_mn * factor - finite_m[:, None])
    shrink_m = tl.math.exp2(top_m - finite_m)
    total_m = total_m * shrink_m + tl.sum(weight_mn, axis=1)
    sum_me = tl.dot(weight_mn.to(v_ne.dtype), v_ne, sum_me * shrink_m[:, None], input_precision="ieee")
    return higher_m, total_m, sum_me


@triton.jit
@no_type_check
def to_queries(q_md, k_nd, v_ne, grad_me, lse_m, delta_m, mask_mn, factor, dq_md):
    """What some keys add to the gradient of queries, but for the scale; None: all pairs count."""
    product_mn = tl.dot(q_md, tl.trans(k_nd), input_precision="ieee") * factor
    if mask_mn is not None:
        product_mn = tl.where(mask_mn, product_mn, float("-inf"))
    weight_mn = tl.math.exp2(product_mn - lse_m[:, None])
    dweight_mn = tl.dot(grad_me, tl.trans(v_ne), input_precision="ieee")
    dscore_mn = weight_mn * (dweight_mn - delta_m[:, None])
    return tl.dot(dscore_mn.to(k_nd.dtype), k_nd, dq_md, input_precision="ieee")


@triton.jit
@no_type_check
def to_keys(k_nd, v_ne, q_md, grad_me, lse_m, delta_m, mask_nm, factor, dk_nd, dv_ne):
    """What some queries add to the gradients of keys, but for the scale, and of values; None: all pairs count."""
    score_nm = tl.dot(k_nd, tl.trans(q_md), input_precision="ieee") * factor
    if mask_nm is not None:
        score_nm = tl.where(mask_nm, score_nm, float("-inf"))
    weight_nm = tl.math.exp2(score_nm - lse_m[None, :])
    dv_ne = tl.dot(weight_nm.to(grad_me.dtype), grad_me, dv_ne, input_precision="ieee")
    dweight_nm = tl.dot(v_ne, tl.trans(grad_me), input_precision="ieee")
    dscore_nm = weight_nm * (dweight_nm - delta_m[None, :])
    return tl.dot(dscore_nm.to(q_md.dtype), q_md, dk_nd, input_precision="ieee"), dv_ne
