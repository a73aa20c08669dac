"""Attention by a plan: its runs one after another, as an opaque operator with a backward.

The loop over runs is one node of a compiled graph whatever the layout; in eager code it is called without the
operator's detour. On the CPU a run is PyTorch's fused kernel on views of q, k, v where the groups are affine, else on
copies small enough to stay in the cache. Queries of several runs have their results merged by the log-sum-exp, and the
backward of each run then needs nothing but the merged result (as in ring attention, arXiv:2310.01889).

Shapes: q ``(n, h, d)``, k ``(m, hk, d)``, v ``(m, hk, e)``; groups ``(g, h, l, d)``; host tables ``(s, 6)``.
"""

from functools import partial
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from tubelet.attention import chunks, runs
from tubelet.attention.patterns import from_spec
from tubelet.attention.plan import Plan, Tiling, make_plan
from tubelet.attention.tiles import Run
from tubelet.protocols import Pattern

__all__ = ["KERNELS", "Tables", "as_bytes", "planned_attention", "vmapped"]

_GATHERED = 1 << 18
"""How many numbers of q a run may copy at a time: a megabyte in float32."""


KERNELS: Final = {"fused": runs.attention, "chunked": chunks.attention}
"""What computes a run, by name; the backward is the same for all: the definition or PyTorch's kernel, in float32.

``"triton"`` is none of them: its kernels read and write the tokens of whole plans (:mod:`tubelet.attention.in_place`,
imported where it serves, since it registers operators, which takes time).
"""


class Tables(NamedTuple):
    """The host tables of a request: samples of queries and of keys (None: the same), and what dropping kept of each.

    Example:
        >>> Tables(torch.zeros(1, 6, dtype=torch.long)).k is None
        True
    """

    q: Int[Tensor, "s 6"]
    k: Int[Tensor, "r 6"] | None = None
    kept: Int[Tensor, " a"] | None = None
    kept_k: Int[Tensor, " b"] | None = None


def planned_attention(
    q: Float[Tensor, "n h d"],
    k: Float[Tensor, "m hk d"],
    v: Float[Tensor, "m hk e"],
    pattern: Pattern,
    tables: Tables,
    scale: float,
    kernel: str = "fused",
) -> Float[Tensor, "n h e"]:
    """Softmax attention of the pairs that ``pattern`` allows in samples; queries without keys, and padding, give 0.

    Compiled, fake and vmapped tensors go through the operator ``tubelet::planned_attention``, which holds the pattern's
    ``spec``; all else calls the same functions directly. ``kernel`` is one of :data:`KERNELS` or "triton".

    Example:
        >>> from tubelet.attention.patterns import Temporal
        >>> from tubelet.layout import Grid, TokenLayout
        >>> x, tables = torch.randn(12, 2, 8), Tables(TokenLayout.packed([Grid(3, 2, 2)]).on("cpu").table)
        >>> planned_attention(x, x, x, Temporal(), tables, 1.0).shape
        torch.Size([12, 2, 8])
    """
    plain = type(q) in (Tensor, torch.nn.Parameter) and not q.is_meta
    compiling = torch.compiler.is_compiling()
    vmap = not compiling and vmapped()
    if compiling or vmap or not plain:
        operator: Any = _Vmapped.apply if vmap else _op
        out: Tensor = operator(q, k, v, *tables, pattern.spec, scale, kernel)[0]  # type: ignore[attr-defined]
        return out
    plan = _plan(pattern, tables, q, kernel)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        result: Tensor = _Planned.apply(q, k, v, plan, scale, kernel)[0]  # type: ignore[no-untyped-call]
        return result
    return _forward(q, k, v, plan, scale, False, kernel)[0]


def _plan(pattern: Any, tables: Tables, q: Tensor, kernel: str) -> Plan | Tiling:
    table, *others = [None if x is None else as_bytes(x) for x in tables]
    if kernel == "triton":
        from tubelet.attention import in_place

        assert table is not None
        return in_place.plan(pattern, table, *others, heads=q.shape[1])
    views = kernel == "fused" and not runs.widens(q)
    _, heads, width = q.shape
    limit = max(1, _GATHERED // (heads * width))
    assert table is not None
    return make_plan(pattern, table, *others, heads=heads, limit=limit, views=views)


def vmapped() -> bool:
    """Whether ``torch.func.vmap`` is among the transforms that run.

    Example:
        >>> torch.func.vmap(lambda x: x * vmapped())(torch.ones(2)), vmapped()
        (tensor([1., 1.]), False)
    """
    if torch._C._functorch.peek_interpreter_stack() is None:
        return False
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels)


def as_bytes(x: Int[Tensor, "..."]) -> bytes:
    """The numbers of a host table, under ``torch.func`` too.

    Example:
        >>> len(as_bytes(torch.zeros(1, 6, dtype=torch.long)))
        48
    """
    if torch._C._functorch.peek_interpreter_stack() is None:
        return x.numpy().tobytes()
    with torch._C._DisableFuncTorch():  # torch.func.grad, say, wraps even what it does not differentiate
        while torch._C._functorch.is_functorch_wrapped_tensor(x):
            x = torch._C._functorch.get_unwrapped(x)
        return x.numpy().tobytes()


def _forward(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan | Tiling, scale: float, statistics: bool, kernel: str
) -> tuple[Tensor, Tensor]:
    """The output ``(n, h, e)`` and, for the backward and for merging, the queries' log-sum-exp ``(n, h, 1)``."""
    if kernel == "triton":
        from tubelet.attention import in_place

        return in_place.forward(q, k, v, plan, scale)
    assert isinstance(plan, Plan)
    q, k, v = _readable(q), _readable(k), _readable(v)
    attention = KERNELS[kernel]
    statistics = statistics or plan.merges
    if plan.in_order and plan.queries == q.shape[0]:
        return _only_run(attention, q, k, v, plan, scale, statistics)
    wide = runs.wide(q)
    dtype = wide if plan.merges and runs.widens(q) else q.dtype
    make = q.new_empty if plan.queries == q.shape[0] else q.new_zeros
    out = make(*q.shape[:2], v.shape[-1], dtype=dtype)
    lse = q.new_zeros(*q.shape[:2], 1, dtype=wide) if statistics else out  # which nobody then reads
    for run in plan.runs:
        qs, ks, vs = run.q.take(q), run.k.take(k), run.k.take(v)
        part, part_lse = attention(qs, ks, vs, scale, run.mask, statistics and _keeps(run, plan, q, v))
        if run.merge and part_lse is not None:
            part, part_lse = runs.merged(run.q.take(out), run.q.take(lse), part, part_lse)
        run.q.put(out, part)
        if part_lse is not None:
            run.q.put(lse, part_lse)
    return out.to(q.dtype), lse


def _readable(x: Tensor) -> Tensor:
    """``x`` with the numbers of a head side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _only_run(
    attention: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, statistics: bool
) -> tuple[Tensor, Tensor]:
    """The same of a plan whose only run holds all queries in order: its result is not copied into another tensor."""
    (run,) = plan.runs
    keep = statistics and _keeps(run, plan, q, v)
    part, part_lse = attention(run.q.take(q), run.k.take(k), run.k.take(v), scale, run.mask, keep)
    out = part.transpose(1, 2).flatten(0, 1).contiguous()
    out = out if out.dtype == q.dtype else out.to(q.dtype)
    if not statistics:
        return out, out  # which nobody then reads
    if part_lse is None:
        return out, q.new_zeros(*q.shape[:2], 1, dtype=runs.wide(q))
    return out, part_lse.transpose(1, 2).flatten(0, 1).contiguous()


def _keeps(run: Run, plan: Plan, q: Tensor, v: Tensor) -> bool:
    """Whether a run's log-sum-exp is kept; fused kernels of other devices keep theirs to themselves."""
    return plan.merges or run.mask is not None or runs.fused(q, v)


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: Plan | Tiling,
    scale: float,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if kernel == "triton":
        from tubelet.attention import in_place

        return in_place.backward(grad, q, k, v, out, lse, plan, scale)
    assert isinstance(plan, Plan)
    wide = runs.wide(q) if runs.widens(q) else q.dtype
    covered = plan.once and (plan.queries, plan.keys) == (q.shape[0], k.shape[0])
    make = torch.empty if covered else torch.zeros
    totals = [make(x.shape, dtype=q.dtype if plan.once else wide, device=x.device) for x in (q, k, v)]
    rows = [_readable(x) for x in (grad, q, k, v, out)]
    for run in plan.runs:
        grads, qs, outs = (run.q.take(x) for x in (rows[0], rows[1], rows[4]))
        ks, vs = run.k.take(rows[2]), run.k.take(rows[3])
        statistics = run.q.take(lse) if _keeps(run, plan, q, v) else None
        parts = runs.backward(grads, qs, ks, vs, outs, statistics, scale, run.mask)
        for total, place, part in zip(totals, (run.q, run.k, run.k), parts, strict=True):
            (place.put if plan.once else place.add)(total, part)
    dq, dk, dv = (total.to(x.dtype) for total, x in zip(totals, (q, k, v), strict=True))
    return dq, dk, dv


class _Planned(torch.autograd.Function):
    """The eager form of the operator."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, plan: Plan | Tiling, scale: float, kernel: str
    ) -> tuple[Tensor, Tensor]:
        return _forward(q, k, v, plan, scale, True, kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, ctx.plan, ctx.scale, ctx.kernel = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(q, k, v, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and torch._C._functorch.peek_interpreter_stack() is None:
            # create_graph=True: what follows would look constant to a second derivative
            raise RuntimeError("planned attention has no second derivative; backend='reference' has")
        return _Planned._first(ctx, grad)

    @staticmethod
    @once_differentiable
    def _first(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        return *_backward(grad, q, k, v, out, lse, ctx.plan, ctx.scale, ctx.kernel), None, None, None


@torch.library.custom_op("tubelet::planned_attention", mutates_args=())
def _op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    keys: Tensor | None,
    kept: Tensor | None,
    kept_keys: Tensor | None,
    spec: str,
    scale: float,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    plan = _plan(from_spec(spec), Tables(table, keys, kept, kept_keys), q, kernel)
    return _forward(q, k, v, plan, scale, True, kernel)


@_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:2], v.shape[-1]), q.new_empty(*q.shape[:2], 1, dtype=runs.wide(q))


@torch.library.custom_op("tubelet::planned_attention_backward", mutates_args=())
def _op_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    table: Tensor,
    keys: Tensor | None,
    kept: Tensor | None,
    kept_keys: Tensor | None,
    spec: str,
    scale: float,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _plan(from_spec(spec), Tables(table, keys, kept, kept_keys), q, "triton" if kernel == "triton" else "fused")
    return _backward(grad, q, k, v, out, lse, plan, scale, kernel)


@_op_backward.register_fake
def _(_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.tables, ctx.spec, ctx.scale, ctx.kernel = inputs
    ctx.save_for_backward(q, k, v, *output)


def _op_gradients(ctx: Any, grad: Tensor, _grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = _op_backward(grad, *ctx.saved_tensors, *ctx.tables, ctx.spec, ctx.scale, ctx.kernel)
    return *grads, *(None,) * 7


_op.register_autograd(_op_gradients, setup_context=_save)


class _Vmapped(torch.autograd.Function):
    """The operator under ``torch.func``, whose transforms see through no operator's own gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        out, lse = _op(*inputs)
        return out, lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        _save(ctx, inputs, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        return _op_gradients(ctx, grad, grad_lse)


def _one_by_one(op: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], Any]:
    """The operator on each element of a vmapped axis: a plan is one loop anyway."""
    sides = list(zip(args, in_dims, strict=True))
    calls = [[x if axis is None else x.select(axis, i) for x, axis in sides] for i in range(info.batch_size)]
    outs = tuple(map(torch.stack, zip(*(op(*each) for each in calls), strict=True)))
    return outs, (0,) * len(outs)


_op.register_vmap(partial(_one_by_one, _op))
_op_backward.register_vmap(partial(_one_by_one, _op_backward))
