"""Gate + residual as one operation, ``x + gate·update``, alone and with the norm + modulate that follows it.

It ends every branch of a transformer block, and the norm + modulate of the next branch begins where it ends (DiT,
arXiv:2212.09748, figure 3). Fused, the sum is written once and not read again for its norm; what both save for the
backward is the update, and with a norm the sum, which the next branch keeps anyway, and two numbers a token.

The gradients of the rows are sums over tokens, as those of norm + modulate are: deterministic, without atomics.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.kernels._checks import check_vectors
from tubelet.kernels._choice import Backend, PointwiseBackend, use_blocks, use_triton
from tubelet.kernels._launching import dense
from tubelet.kernels._modulation.reference import Norm
from tubelet.kernels._residual import launches
from tubelet.kernels._residual.cpu import GateResidual
from tubelet.kernels._residual.reference import added, normed
from tubelet.kernels._rows.sums import by_row, check_rows, flat, flat_index, row_gradients, tokens_per_row
from tubelet.layout import Rows

__all__ = ["gate_residual", "residual_norm_modulate"]


def gate_residual(
    x: Float[Tensor, "*lead d"], update: Float[Tensor, "*lead d"], gate: Rows, *, backend: PointwiseBackend = "auto"
) -> Float[Tensor, "*lead d"]:
    """``x + gate·update`` in float32 or better, rounded once.

    Args:
        x: tokens, of any strides.
        update: what a branch made of them, of any strides.
        gate: rows ``(r, d)``, one per sample, frame or token.
        backend: ``"auto"``, ``"reference"``, ``"triton"`` or ``"blocks"``.

    Returns:
        The sum, in the dtype of ``x``.

    Raises:
        ValueError: the update or the rows do not fit ``x``; or a backend was asked for and cannot serve, with the
            reason.
        IndexError: as :func:`tubelet.kernels.norm_modulate`.

    Example:
        >>> gate_residual(torch.ones(2, 5, 8), torch.ones(2, 5, 8), Rows(torch.ones(2, 8))).unique()
        tensor([2.])
    """
    _check(x, update, [gate])
    tensors = (x, update, gate.values, gate.index)
    on_cpu = use_blocks(backend, "gate_residual", tensors)
    if not on_cpu and not use_triton(backend, "gate_residual", tensors, _refusal(x, [gate])):
        return added(x, update, gate)
    given = (flat(x), flat(update), gate.values, flat_index(x, gate))
    if on_cpu:
        out: Tensor = GateResidual.apply(*given)  # type: ignore[no-untyped-call]
    else:
        out = _gate_residual(*given, tokens_per_row(x, gate))
    return out.view(x.shape)


def residual_norm_modulate(
    x: Float[Tensor, "*lead d"],
    update: Float[Tensor, "*lead d"],
    gate: Rows | None,
    shift: Rows | None,
    scale: Rows | None,
    *,
    norm: Norm = "layer",
    weight: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "*lead d"], Float[Tensor, "*lead d"]]:
    """``y = x + gate·update`` and ``norm(y)·(1 + scale) + shift``: one branch ends and the next one begins.

    The norm is that of ``y`` as it is returned; each result is computed in float32 or better and rounded once.

    Args:
        x: tokens, of any strides.
        update: what a branch made of them, of any strides.
        gate, shift, scale: rows ``(r, d)``, one per sample, frame or token, with one index; None leaves a part out.
        norm: ``"layer"`` or ``"rms"``.
        weight, bias: of the norm, where it is affine.
        eps: added to the variance or the mean square.
        backend: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        The sum and the modulated tokens, in the dtype of ``x``.

    Raises:
        ValueError: the update, the rows, weight or bias do not fit ``x``; or ``triton`` was asked for and cannot serve,
            with the reason.
        IndexError: as :func:`tubelet.kernels.norm_modulate`.

    Example:
        >>> x, one = torch.ones(5, 8), Rows(torch.ones(1, 8))
        >>> y, h = residual_norm_modulate(x, x, one, one, one, norm="rms")
        >>> y.unique(), h.round(decimals=3).unique()
        (tensor([2.]), tensor([3.]))
    """
    if norm not in ("layer", "rms"):
        raise ValueError(f"norm must be 'layer' or 'rms', got {norm!r}")
    rows = [each for each in (gate, shift, scale) if each is not None]
    _check(x, update, rows)
    check_vectors(x.shape[-1], weight=weight, bias=bias)
    tensors = [x, update, weight, bias, *(each.values for each in rows), *(each.index for each in rows)]
    if not use_triton(backend, "residual_norm_modulate", tensors, _refusal(x, rows)):
        y = added(x, update, gate)
        return y, normed(y, shift, scale, norm, weight, bias, eps)
    some = rows[0] if rows else None
    values = (None if each is None else each.values for each in (gate, shift, scale))
    places = (flat_index(x, some), weight, bias, tokens_per_row(x, some))
    y, out, _ = _residual_norm(flat(x), flat(update), *values, *places, norm == "rms", eps)
    return y.view(x.shape), out.view(x.shape)


def _check(x: Tensor, update: Tensor, rows: list[Rows]) -> None:
    if update.shape != x.shape:
        raise ValueError(f"update is {tuple(update.shape)}, but x is {tuple(x.shape)}")
    for each in rows:
        if each.values.ndim != 2 or each.values.shape[1:] != x.shape[-1:]:
            raise ValueError(f"rows are {tuple(each.values.shape)}, but x has width {x.shape[-1]}")
        check_rows(x, each)


def _refusal(x: Tensor, rows: list[Rows]) -> str | None:
    if any(each.index is not rows[0].index for each in rows):
        return "gate, shift and scale have several indexes"
    if any(each.values.shape != rows[0].values.shape for each in rows):
        return f"gate, shift and scale have {' and '.join(str(each.values.shape[0]) for each in rows)} rows"
    if x.shape[-1] > launches.LARGEST:
        return f"its rows have at most {launches.LARGEST} numbers, and x has width {x.shape[-1]}"
    return None


@torch.library.custom_op("tubelet::gate_residual", mutates_args=())
def _gate_residual(x: Tensor, update: Tensor, gate: Tensor, index: Tensor | None, per_row: int) -> Tensor:
    x, update, gate = map(dense, (x, update, gate))
    return launches.forward(x, launches.Given(update, gate, index, per_row, gate.shape[0]), None)[0]


@_gate_residual.register_fake
def _(x: Tensor, update: Tensor, gate: Tensor, index: Tensor | None, per_row: int) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("tubelet::gate_residual_backward", mutates_args=())
def _gate_residual_backward(
    grad: Tensor,
    update: Tensor,
    gate: Tensor,
    index: Tensor | None,
    order: Tensor | None,
    offsets: Tensor | None,
    per_row: int,
) -> tuple[Tensor, Tensor]:
    grad, update, gate = map(dense, (grad, update, gate))
    given = launches.Given(update, gate, index, per_row, gate.shape[0])
    _, dupdate, sums = launches.backward((grad, None), None, None, given, None, order, offsets)
    return dupdate, sums


@_gate_residual_backward.register_fake
def _(
    grad: Tensor,
    update: Tensor,
    gate: Tensor,
    index: Tensor | None,
    order: Tensor | None,
    offsets: Tensor | None,
    per_row: int,
) -> tuple[Tensor, Tensor]:
    return update.new_empty(update.shape), update.new_empty(1, *gate.shape, dtype=torch.float32)


def _save_gated(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, update, gate, index, ctx.per_row = inputs
    ctx.save_for_backward(update, gate, index)


def _backward_gated(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    update, gate, index = ctx.saved_tensors
    order, offsets = (None, None) if index is None else by_row(index, gate.shape[0])
    dupdate, sums = _gate_residual_backward(grad, update, gate, index, order, offsets, ctx.per_row)
    return grad, dupdate, sums[0].to(gate.dtype), None, None


_gate_residual.register_autograd(_backward_gated, setup_context=_save_gated)


@torch.library.custom_op("tubelet::residual_norm", mutates_args=())
def _residual_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    index: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    per_row: int,
    rms: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    x, update = dense(x), dense(update)
    gate, shift, scale, weight, bias = map(dense, (gate, shift, scale, weight, bias))
    given = launches.Given(update, gate, index, per_row, _rows(gate, shift, scale))
    y, out, stats = launches.forward(x, given, launches.Normed(shift, scale, weight, bias, rms, eps))
    return y, out, stats


@_residual_norm.register_fake
def _(
    x: Tensor,
    update: Tensor,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    index: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    per_row: int,
    rms: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    stats = x.new_empty(1 if rms else 2, x.shape[0], dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape), stats


@torch.library.custom_op("tubelet::residual_norm_backward", mutates_args=())
def _residual_norm_backward(
    grad_y: Tensor | None,
    grad: Tensor,
    y: Tensor,
    stats: Tensor,
    update: Tensor,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    index: Tensor | None,
    order: Tensor | None,
    offsets: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    per_row: int,
    rms: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad, update = dense(grad), dense(update)
    grad_y, gate, scale, weight = map(dense, (grad_y, gate, scale, weight))
    given = launches.Given(update, gate, index, per_row, _rows(gate, shift, scale))
    normed = launches.Normed(shift, scale, weight, bias, rms, 0.0)
    return launches.backward((grad_y, grad), y, stats, given, normed, order, offsets)


@_residual_norm_backward.register_fake
def _(
    grad_y: Tensor | None,
    grad: Tensor,
    y: Tensor,
    stats: Tensor,
    update: Tensor,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    index: Tensor | None,
    order: Tensor | None,
    offsets: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    per_row: int,
    rms: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    summed = launches.Normed(shift, scale, weight, bias, rms, 0.0).summed
    kept = (gate is not None) + 2 * summed
    sums = y.new_empty(kept, _rows(gate, shift, scale) if kept else 1, y.shape[1], dtype=torch.float32)
    return y.new_empty(y.shape), update.new_empty(0 if gate is None else update.shape), sums


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, update, *parts, ctx.per_row, ctx.rms, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], output[2], update, *parts)


def _backward(ctx: Any, grad_y: Tensor | None, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    y, stats, update, gate, shift, scale, index, weight, bias = ctx.saved_tensors
    if grad is None:
        grad = torch.zeros_like(y)
    order, offsets = (None, None) if index is None else by_row(index, _rows(gate, shift, scale))
    tensors = (grad_y, grad, y, stats, update, gate, shift, scale, index, order, offsets, weight, bias)
    dx, dupdate, sums = _residual_norm_backward(*tensors, ctx.per_row, ctx.rms)
    if gate is None:
        dupdate, dgate, rest = dx.to(update.dtype), None, sums
    else:
        dgate, rest = sums[0].to(gate.dtype), sums[1:]
    dtype = None if shift is None else shift.dtype
    by_norm = row_gradients(rest, dtype, scale, weight, bias) if len(rest) else (None, None, None, None)
    return dx, dupdate, dgate, *by_norm[:2], None, *by_norm[2:], None, None, None


_residual_norm.register_autograd(_backward, setup_context=_save)


def _rows(*parts: Tensor | None) -> int:
    """How many rows there are; one without any."""
    return next((part.shape[0] for part in parts if part is not None), 1)
