"""Attention of groups that are affine in raster order, as one operation that reads every group where it lies.

Temporal, spatial, windowed and strided attention are groups of tokens at equal distances: nothing is permuted or
copied. Short groups share a tile, long ones go by online softmax (FlashAttention, arXiv:2205.14135). A query that
stands in several runs (its group, then the text) attends the keys of all: a later run goes on where the earlier one
stopped. The backward is deterministic: no program writes what another one does.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.kernels._checks import check_attention
from tubelet.kernels._choice import Backend, use_triton
from tubelet.kernels._grouped import launches
from tubelet.kernels._grouped.places import GROUP_AXES, ITEM_AXES, Pair, Run, pairs
from tubelet.kernels._grouped.reference import reference
from tubelet.kernels._launching import dense

__all__ = ["grouped_attention", "grouped_backward", "grouped_forward", "grouped_refusal"]


def grouped_attention(
    q: Float[Tensor, "n h d"],
    k: Float[Tensor, "m hk d"],
    v: Float[Tensor, "m hk e"],
    runs: Sequence[Run],
    *,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "n h e"]:
    """Softmax attention of the queries of each group over the keys of that group; queries of no group give 0.

    Args:
        q: queries, of any strides.
        k, v: keys and values with ``hk`` heads; ``h`` is a multiple of ``hk`` (grouped-query attention).
        runs: equal groups of queries with their keys, such as the runs of a plan (``tubelet.attention.plan``).
        scale: factor of the scores; None means ``1/sqrt(d)``.
        backend: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        ``(n, h, e)`` in the dtype of q, contiguous.

    Raises:
        ValueError: shapes disagree, a run names tokens that are not there or has too many axes; or ``triton`` was asked
            for and cannot serve, with the reason.

    Example:
        >>> from tubelet.attention.places import Affine
        >>> from tubelet.attention.tiles import Run
        >>> over_time = Affine(0, (4,), (1,), (3,), (4,))  # of a grid of 3 frames of 4 tokens
        >>> q, k, v = torch.randn(3, 12, 2, 8)
        >>> grouped_attention(q, k, v, [Run(over_time, over_time)]).shape
        torch.Size([12, 2, 8])
    """
    found = pairs(runs)
    _check(q, k, v, found)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    refusal = grouped_refusal(q.shape[-1], v.shape[-1], runs, needs_grad)
    if not use_triton(backend, "grouped_attention", (q, k, v), refusal):
        return reference(q, k, v, scale, found)
    numbers = list(itertools.chain.from_iterable(pair.numbers() for pair in found))
    out: Tensor = _grouped_attention(q, k, v, scale, numbers)[0]
    return out


def grouped_refusal(width: int, v_width: int, runs: Sequence[Run], needs_grad: bool) -> str | None:
    """Why the kernels cannot serve these sizes; None where they can.

    Example:
        >>> grouped_refusal(256, 64, [], False)
        'its heads have at most 128 features, got 256 and 64'
    """
    if max(width, v_width) > launches.LARGEST:
        return f"its heads have at most {launches.LARGEST} features, got {width} and {v_width}"
    if any(len(side.count) > GROUP_AXES or len(side.sizes) > ITEM_AXES for run in runs for side in (run.q, run.k)):
        return f"a run has more than {GROUP_AXES} axes of groups or {ITEM_AXES} of items"
    if not all(run.q.distinct for run in runs):
        return "a query stands in several groups of one run"
    if needs_grad and not all(run.k.distinct for run in runs):
        return "a key stands in several groups of one run, whose gradients would collide"
    return None


def grouped_forward(q: Tensor, k: Tensor, v: Tensor, scale: float, runs: Sequence[Run]) -> tuple[Tensor, Tensor]:
    """The kernels' output ``(n, h, e)`` and the queries' log-sum-exp ``(n, h)``, without a derivative.

    Example:
        >>> empty = torch.ones(0, 1, 8)
        >>> [tuple(x.shape) for x in grouped_forward(empty, empty, empty, 1.0, [])]
        [(0, 1, 8), (0, 1)]
    """
    return launches.forward(_given(q, k, v, scale, pairs(runs)))


def grouped_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, runs: Sequence[Run]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v from what :func:`grouped_forward` gave.

    Example:
        >>> empty = torch.ones(0, 1, 8)
        >>> [tuple(x.shape) for x in grouped_backward(*[empty] * 5, empty[..., 0], 1.0, [])]
        [(0, 1, 8), (0, 1, 8), (0, 1, 8)]
    """
    return launches.backward(dense(grad), _given(q, k, v, scale, pairs(runs)), out, lse)


def _check(q: Tensor, k: Tensor, v: Tensor, found: Sequence[Pair]) -> None:
    check_attention(q, k, v)
    for name, x, sides in (("q", q, [p.q for p in found]), ("k", k, [p.k for p in found])):
        for side in sides:
            if side.start < 0 or side.last >= len(x):
                raise ValueError(f"runs name tokens {side.start} to {side.last} of {name}, which has {len(x)}")


@torch.library.custom_op("tubelet::grouped_attention", mutates_args=())
def _grouped_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, runs: Sequence[int]) -> tuple[Tensor, Tensor]:
    return launches.forward(_given(q, k, v, scale, _read(runs)))


@_grouped_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float, runs: Sequence[int]) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:2], v.shape[-1]), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op("tubelet::grouped_attention_backward", mutates_args=())
def _grouped_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, runs: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return launches.backward(dense(grad), _given(q, k, v, scale, _read(runs)), out, lse)


@_grouped_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, runs: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.scale, ctx.runs = inputs
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx: Any, grad: Tensor, _grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_grouped_attention_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.runs), None, None


_grouped_attention.register_autograd(_backward, setup_context=_save)


def _given(q: Tensor, k: Tensor, v: Tensor, scale: float, found: Sequence[Pair]) -> launches.Given:
    return launches.Given(dense(q), dense(k), dense(v), scale, found)


def _read(numbers: Sequence[int]) -> list[Pair]:
    rest: Iterator[int] = iter(numbers)
    return [Pair.read(itertools.chain([first], rest)) for first in rest]
