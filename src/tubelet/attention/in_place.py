"""Requests that our kernels serve where the tokens lie: tiles of lines and boxes, or equal affine groups.

One pattern and layout may be either. Equal groups in one run (time, frames, windows of a batch of equal samples) go to
grouped attention, which puts short groups together in a tile. All that is a span of keys on each axis goes to tiled
attention: mixtures of grids and text in one launch, neighbourhoods, causal frames, and joint attention. What is left,
such as strides, goes to grouped attention a run at a time.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.attention.boxes import spanned, tiles_of
from tubelet.attention.memory import Memory
from tubelet.attention.patterns import Joint
from tubelet.attention.places import Affine, Listed
from tubelet.attention.plan import Plan, Tiling, is_value, make_plan, offers, table_of, text_only
from tubelet.attention.tiles import Run
from tubelet.kernels import (
    Tiles,
    grouped_backward,
    grouped_forward,
    grouped_refusal,
    tiled_backward,
    tiled_forward,
    tiled_refusal,
    tiled_sizes,
)
from tubelet.protocols import Pattern

__all__ = ["INSTEAD", "TILES", "backward", "forward", "groups", "plan", "refusal"]

INSTEAD = "backend='sdpa' or 'flex' serves it"
"""What serves any plan."""


def _made(
    pattern: Any,
    table: bytes,
    keys: bytes | None,
    queries: int,
    tokens: int,
    dtype: torch.dtype,
    width: int,
    device: str,
) -> Tiles:
    with torch.device("cpu"):
        sizes = [tiled_sizes(dtype, width, boxes, device) for boxes in (False, True)]
        sides = table_of(table), None if keys is None else table_of(keys)
        found = tiles_of(pattern, *sides, (queries, tokens), sizes)
    return found.to(device, non_blocking=True)


TILES: Memory[Tiles] = Memory(_made, limit=1 << 27)
"""The tables that were used last, 128 MiB of them, on their devices."""


def _tiles(plan: Tiling, q: Tensor, k: Tensor, v: Tensor) -> Tiles:
    """The tables of a call, on its device; remembered where the pattern is a value."""
    make = TILES if plan.pattern is None or is_value(plan.pattern) else _made
    widest = max(q.shape[-1], v.shape[-1])
    return make(plan.pattern, plan.table, plan.keys, len(q), len(k), q.dtype, widest, str(q.device))


def plan(
    pattern: Pattern, table: bytes, keys: bytes | None, kept: bytes | None, kept_keys: bytes | None, *, heads: int
) -> Plan | Tiling:
    """What serves a request: tiles, or the runs of equal groups.

    Example:
        >>> import torch
        >>> from tubelet.attention.patterns import Temporal
        >>> table = torch.tensor([[0, 12, 0, 3, 2, 2], [12, 2, 0, 1, 1, 2]]).numpy().tobytes()
        >>> type(plan(Temporal(), table[:48], None, None, None, heads=1)).__name__
        'Plan'
        >>> type(plan(Temporal(), table, None, None, None, heads=1)).__name__
        'Tiling'
    """
    if isinstance(pattern, Joint) or (keys is not None and text_only(pattern, table_of(keys))):
        return Tiling(None, table, keys)
    if keys is None and kept is None and offers(pattern, "axes") and hasattr(pattern, "text_sees_grid"):
        found = groups(pattern, table, None, None, None, heads=heads) if offers(pattern, "group") else None
        one = found is not None and isinstance(found.runs, tuple) and len(found.runs) == 1
        asked: Any = _spans if is_value(pattern) else _spans.__wrapped__
        if not one and asked(pattern, table):
            return Tiling(pattern, table, None)
    return groups(pattern, table, keys, kept, kept_keys, heads=heads)


@lru_cache(maxsize=128)
def _spans(pattern: Any, table: bytes) -> bool:
    """Whether the keys of a pattern are spans on the axes of every grid."""
    grids = {sample.grid for sample in table_of(table)} - {None}
    return all(spanned(pattern, grid) for grid in grids if grid is not None)


def groups(
    pattern: Pattern, table: bytes, keys: bytes | None, kept: bytes | None, kept_keys: bytes | None, *, heads: int
) -> Plan:
    """The runs of a request, each whole however large: see :func:`tubelet.attention.plan.make_plan`.

    Lists of tokens that turn out to lie at equal distances (every other token, frames dropped at a regular pace) are
    affine as well.

    Example:
        >>> import torch
        >>> from tubelet.attention.patterns import Temporal
        >>> table = torch.tensor([[0, 12, 0, 3, 2, 2], [12, 12, 0, 3, 2, 2]]).numpy().tobytes()
        >>> [run.q.count for run in groups(Temporal(), table, None, None, None, heads=1).runs]
        [(2, 4)]
    """
    return _by_steps(make_plan(pattern, table, keys, kept, kept_keys, heads=heads, views=False))


@lru_cache(maxsize=128)
def _by_steps(plan: Plan) -> Plan:
    if not isinstance(plan.runs, tuple):
        return plan
    return replace(plan, runs=tuple(map(_run_by_steps, plan.runs)))


def _run_by_steps(run: Run) -> Run:
    """The run with affine sides where both can be, and cut their groups alike."""
    q, k = (side.affine() if isinstance(side, Listed) else side for side in (run.q, run.k))
    return run if q is None or k is None or q.count != k.count else replace(run, q=q, k=k)


def refusal(plan: Plan | Tiling, width: int, v_width: int, scale: float, needs_grad: bool) -> str | None:
    """Why the kernels cannot serve a plan, as the end of a sentence; None where they can.

    Example:
        >>> refusal(Plan((), 0, 0, False, True), 64, 64, 0.1, True)
    """
    if isinstance(plan, Tiling):
        return tiled_refusal(width, v_width, scale)
    if not isinstance(plan.runs, tuple):
        return "only the pattern's predicate is known"
    if not all(isinstance(side, Affine) for run in plan.runs for side in (run.q, run.k)):
        return "groups on this layout are lists of tokens, not affine in raster order"
    if any(run.mask is not None for run in plan.runs):
        return "pairs inside groups are masked"
    return grouped_refusal(width, v_width, _runs(plan), needs_grad)


def forward(
    q: Float[Tensor, "n h d"], k: Float[Tensor, "m hk d"], v: Float[Tensor, "m hk e"], plan: Plan | Tiling, scale: float
) -> tuple[Float[Tensor, "n h e"], Float[Tensor, "n h 1"]]:
    """The output and the queries' log-sum-exp.

    Raises:
        ValueError: the kernels cannot serve the plan.

    Example:
        >>> import torch
        >>> empty = torch.ones(0, 1, 8)
        >>> [tuple(x.shape) for x in forward(empty, empty, empty, Plan((), 0, 0, False, True), 1.0)]
        [(0, 1, 8), (0, 1, 1)]
    """
    _check(plan, q, v, scale, needs_grad=False)
    if isinstance(plan, Tiling):
        out, lse = tiled_forward(q, k, v, scale, _tiles(plan, q, k, v))
    else:
        out, lse = grouped_forward(q, k, v, scale, _runs(plan))
    return out, lse.unsqueeze(-1)


def backward(
    grad: Float[Tensor, "n h e"],
    q: Float[Tensor, "n h d"],
    k: Float[Tensor, "m hk d"],
    v: Float[Tensor, "m hk e"],
    out: Float[Tensor, "n h e"],
    lse: Float[Tensor, "n h 1"],
    plan: Plan | Tiling,
    scale: float,
) -> tuple[Float[Tensor, "n h d"], Float[Tensor, "m hk d"], Float[Tensor, "m hk e"]]:
    """The gradients of q, k and v.

    Raises:
        ValueError: the kernels cannot serve the plan.

    Example:
        >>> import torch
        >>> empty = torch.ones(0, 1, 8)
        >>> grads = backward(*[empty] * 5, empty[..., :1], Plan((), 0, 0, False, True), 1.0)
        >>> [tuple(x.shape) for x in grads]
        [(0, 1, 8), (0, 1, 8), (0, 1, 8)]
    """
    _check(plan, q, v, scale, needs_grad=True)
    if isinstance(plan, Tiling):
        return tiled_backward(grad, q, k, v, out, lse.squeeze(-1), scale, _tiles(plan, q, k, v))
    return grouped_backward(grad, q, k, v, out, lse.squeeze(-1), scale, _runs(plan))


def _check(plan: Plan | Tiling, q: Tensor, v: Tensor, scale: float, needs_grad: bool) -> None:
    reason = refusal(plan, q.shape[-1], v.shape[-1], scale, needs_grad)
    if reason is not None:
        raise ValueError(f"backend='triton' cannot serve this request: {reason}; {INSTEAD}")


def _runs(plan: Plan) -> Sequence[Any]:
    return cast(Sequence[Any], plan.runs)
