"""Norm + modulate as one operation: ``norm(x)·(1 + scale) + shift`` with each token's row looked up inside the kernel.

It is the head of every modulated branch (DiT, arXiv:2212.09748, section 3.2; FiLM, arXiv:1709.07871). Fused, x is read
once and the result written once; what it saves for the backward is x and two numbers a token.

The gradients of the rows are sums over the tokens of each row. They are deterministic and need no atomics: programs
walk chunks of the tokens in the order of their rows (sorted on the device where an index is given) and write partial
sums to slots that only they own, which a second kernel adds in order. The gradients of an affine norm follow from the
same sums, ``dweight = Σ_r (1 + scale_r)·a_r``, for nothing.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.kernels._checks import check_vectors
from tubelet.kernels._choice import PointwiseBackend, use_blocks, use_triton
from tubelet.kernels._launching import dense
from tubelet.kernels._modulation import launches
from tubelet.kernels._modulation.cpu import NormModulate
from tubelet.kernels._modulation.reference import Norm, reference
from tubelet.kernels._rows.sums import by_row, check_rows, flat, flat_index, row_gradients, tokens_per_row
from tubelet.layout import Rows

__all__ = ["norm_modulate"]


def norm_modulate(
    x: Float[Tensor, "*lead d"],
    shift: Rows,
    scale: Rows,
    *,
    norm: Norm = "layer",
    weight: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
    backend: PointwiseBackend = "auto",
) -> Float[Tensor, "*lead d"]:
    """``norm(x)·(1 + scale) + shift`` in float32 or better, rounded once.

    Args:
        x: tokens, of any strides.
        shift, scale: rows ``(r, d)``, one per sample, frame or token, with one index, as ``Rows.chunk`` gives them.
        norm: ``"layer"`` or ``"rms"``.
        weight, bias: of the norm, where it is affine.
        eps: added to the variance or the mean square.
        dtype: of the result; None for what ``x`` and the rows promote to.
        backend: ``"auto"``, ``"reference"``, ``"triton"`` or ``"blocks"``.

    Returns:
        The modulated tokens.

    Raises:
        ValueError: the rows, weight or bias do not fit ``x``; or a backend was asked for and cannot serve, with the
            reason.
        IndexError: on the CPU, the index names rows that are not there; on a GPU it is clamped to those that are.

    Example:
        >>> shift, scale = Rows(torch.zeros(2, 8)), Rows(torch.ones(2, 8))
        >>> norm_modulate(torch.randn(2, 5, 8), shift, scale).shape
        torch.Size([2, 5, 8])
    """
    if norm not in ("layer", "rms"):
        raise ValueError(f"norm must be 'layer' or 'rms', got {norm!r}")
    _check(x, shift, scale)
    check_vectors(x.shape[-1], weight=weight, bias=bias)
    dtype = torch.promote_types(x.dtype, shift.values.dtype) if dtype is None else dtype
    tensors = (x, shift.values, scale.values, shift.index, weight, bias)
    on_cpu = shift.index is scale.index and use_blocks(backend, "norm_modulate", tensors)
    if not on_cpu and not use_triton(backend, "norm_modulate", tensors, _refusal(x, shift, scale)):
        return reference(x, shift, scale, norm, weight, bias, eps).to(dtype)
    per_row, index = tokens_per_row(x, shift), flat_index(x, shift)
    given = (flat(x), shift.values, scale.values, index, weight, bias)
    if on_cpu:
        out: Tensor = NormModulate.apply(*given, norm == "rms", eps, dtype)  # type: ignore[no-untyped-call]
    else:
        out = _norm_modulate(*given, per_row, norm == "rms", eps)[0].to(dtype)
    return out.view(x.shape)


def _check(x: Tensor, shift: Rows, scale: Rows) -> None:
    if shift.values.shape != scale.values.shape or shift.values.shape[1:] != x.shape[-1:]:
        found = f"shift has rows {tuple(shift.values.shape)} and scale {tuple(scale.values.shape)}"
        raise ValueError(f"{found}, but x has width {x.shape[-1]}")
    check_rows(x, shift)


def _refusal(x: Tensor, shift: Rows, scale: Rows) -> str | None:
    if shift.index is not scale.index:
        return "shift and scale have two indexes"
    if x.shape[-1] > launches.LARGEST:
        return f"its rows have at most {launches.LARGEST} numbers, and x has width {x.shape[-1]}"
    return None


@torch.library.custom_op("tubelet::norm_modulate", mutates_args=())
def _norm_modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    per_row: int,
    rms: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    x, shift, scale = map(dense, (x, shift, scale))
    weight, bias = dense(weight), dense(bias)
    return launches.forward(launches.Given(x, scale, index, weight, per_row, rms, eps), shift, bias)


@_norm_modulate.register_fake
def _(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    per_row: int,
    rms: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    out = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, shift.dtype))
    return out, x.new_empty(1 if rms else 2, x.shape[0], dtype=torch.float32)


@torch.library.custom_op("tubelet::norm_modulate_backward", mutates_args=())
def _norm_modulate_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    stats: Tensor,
    index: Tensor | None,
    order: Tensor | None,
    offsets: Tensor | None,
    weight: Tensor | None,
    per_row: int,
    rms: bool,
) -> tuple[Tensor, Tensor]:
    grad, x, scale = map(dense, (grad, x, scale))
    weight = dense(weight)
    given = launches.Given(x, scale, index, weight, per_row, rms, 0.0)
    return launches.backward(grad, given, stats, order, offsets)


@_norm_modulate_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    stats: Tensor,
    index: Tensor | None,
    order: Tensor | None,
    offsets: Tensor | None,
    weight: Tensor | None,
    per_row: int,
    rms: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(2, *scale.shape, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, shift, scale, index, weight, bias, ctx.per_row, ctx.rms, _ = inputs
    ctx.shift_dtype = shift.dtype
    ctx.save_for_backward(x, scale, output[1], index, weight, bias)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, scale, stats, index, weight, bias = ctx.saved_tensors
    order, offsets = (None, None) if index is None else by_row(index, scale.shape[0])
    dx, sums = _norm_modulate_backward(grad, x, scale, stats, index, order, offsets, weight, ctx.per_row, ctx.rms)
    dshift, dscale, dweight, dbias = row_gradients(sums, ctx.shift_dtype, scale, weight, bias)
    return dx, dshift, dscale, None, dweight, dbias, None, None, None


_norm_modulate.register_autograd(_backward, setup_context=_save)
