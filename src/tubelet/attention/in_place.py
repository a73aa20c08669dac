"""Plans whose runs fused kernels read and write where the tokens lie: affine groups without masks, nothing gathered."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from tubelet.attention.places import Affine, Listed
from tubelet.attention.plan import Plan, make_plan
from tubelet.attention.tiles import Run
from tubelet.kernels import grouped_backward, grouped_forward, grouped_refusal
from tubelet.protocols import Pattern

__all__ = ["INSTEAD", "backward", "forward", "plan", "refusal"]

INSTEAD = "backend='sdpa' or 'flex' serves it"
"""What serves any plan."""


def plan(
    pattern: Pattern, table: bytes, keys: bytes | None, kept: bytes | None, kept_keys: bytes | None, *, heads: int
) -> Plan:
    """The runs of a request, each whole however large: see :func:`tubelet.attention.plan.make_plan`.

    Lists of tokens that turn out to lie at equal distances (every other token, frames dropped at a regular pace) are
    affine as well.

    Example:
        >>> import torch
        >>> from tubelet.attention.patterns import Temporal
        >>> table = torch.tensor([[0, 12, 0, 3, 2, 2], [12, 12, 0, 3, 2, 2]]).numpy().tobytes()
        >>> [run.q.count for run in plan(Temporal(), table, None, None, None, heads=1).runs]
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


def refusal(plan: Plan, width: int, v_width: int, needs_grad: bool) -> str | None:
    """Why the kernels cannot serve a plan, as the end of a sentence; None where they can.

    Example:
        >>> refusal(Plan((), 0, 0, False, True), 64, 64, True)
    """
    if not isinstance(plan.runs, tuple):
        return "only the pattern's predicate is known"
    if not all(isinstance(side, Affine) for run in plan.runs for side in (run.q, run.k)):
        return "groups on this layout are lists of tokens, not affine in raster order"
    if any(run.mask is not None for run in plan.runs):
        return "pairs inside groups are masked"
    return grouped_refusal(width, v_width, _runs(plan), needs_grad)


def forward(
    q: Float[Tensor, "n h d"], k: Float[Tensor, "m hk d"], v: Float[Tensor, "m hk e"], plan: Plan, scale: float
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
    _check(plan, q, v, needs_grad=False)
    out, lse = grouped_forward(q, k, v, scale, _runs(plan))
    return out, lse.unsqueeze(-1)


def backward(
    grad: Float[Tensor, "n h e"],
    q: Float[Tensor, "n h d"],
    k: Float[Tensor, "m hk d"],
    v: Float[Tensor, "m hk e"],
    out: Float[Tensor, "n h e"],
    lse: Float[Tensor, "n h 1"],
    plan: Plan,
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
    _check(plan, q, v, needs_grad=True)
    return grouped_backward(grad, q, k, v, out, lse.squeeze(-1), scale, _runs(plan))


def _check(plan: Plan, q: Tensor, v: Tensor, needs_grad: bool) -> None:
    reason = refusal(plan, q.shape[-1], v.shape[-1], needs_grad)
    if reason is not None:
        raise ValueError(f"backend='triton' cannot serve this request: {reason}; {INSTEAD}")


def _runs(plan: Plan) -> Sequence[Any]:
    return cast(Sequence[Any], plan.runs)
