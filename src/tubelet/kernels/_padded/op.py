"""Norm + SiLU + padding as one operation: what stands before every convolution of a causal video autoencoder.

Wan's decoder, say, is ``conv(silu(norm(x)))`` again and again, and the convolution first joins its input to the frames
before it (arXiv:2503.20314, section 4.1). Fused, x is read once and the convolution's input written once. The gradient
of x needs x and, of groups, two numbers a group: what was written is not kept.

Sums over positions are deterministic: programs write partial sums to places of their own, added in order.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.kernels._checks import check_vectors
from tubelet.kernels._choice import Backend, use_triton
from tubelet.kernels._launching import dense
from tubelet.kernels._padded import launches
from tubelet.kernels._padded.reference import Before, ChannelNormKind, Edges, folded, padded, reference

__all__ = ["norm_silu_pad"]


def norm_silu_pad(
    x: Float[Tensor, "b c t h w"],
    *,
    norm: ChannelNormKind,
    eps: float,
    groups: int | None = None,
    weight: Float[Tensor, " c"] | None = None,
    bias: Float[Tensor, " c"] | None = None,
    per_frame: bool = True,
    state: Float[Tensor, "b c s h w"] | None = None,
    frames: int = 0,
    before: Before = "copies",
    around: tuple[int, int] = (0, 0),
    edges: Edges = "zeros",
    backend: Backend = "auto",
) -> Float[Tensor, "b c t2 h2 w2"]:
    """``silu(norm(x))`` behind the frames before it and with positions round each, in float32 or better, rounded once.

    Args:
        x: frames; contiguous or ``channels_last_3d``, which the result is as well.
        norm: ``"rms"`` over the channels of each position, or ``"group"``.
        eps: added to the mean square or the variance.
        groups: of channels, for ``"group"``.
        weight, bias: one a channel.
        per_frame: whether each frame has statistics of its own, for ``"group"``; else all frames share theirs.
        state: the frames before ``x`` as they are, normalised and activated long ago; None at the start of a video.
        frames: how many stand before ``x`` where there is no state.
        before: what these are: ``"copies"`` of the first frame of the result, or ``"zeros"``.
        around: positions on each side along height and width.
        edges: what these are: ``"zeros"``, or the edge of the frame again, ``"replicate"``.
        backend: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        ``(b, c, frames + t, h + 2·around[0], w + 2·around[1])`` in the dtype of ``x``: what a convolution without
        padding reads.

    Raises:
        ValueError: no frames, groups that do not divide the channels, or shapes that do not fit; or ``triton`` was
            asked for and cannot serve, with the reason.

    Example:
        >>> norm_silu_pad(torch.randn(1, 8, 3, 4, 4), norm="rms", eps=1e-6, frames=2, around=(1, 1)).shape
        torch.Size([1, 8, 5, 6, 6])
    """
    _check(x, norm, groups, (weight, bias), state, frames, before, around, edges)
    frames = frames if state is None else state.shape[2]
    if not use_triton(backend, "norm_silu_pad", (x, state, weight, bias), _refusal(x, norm)):
        y = reference(x, norm, groups, weight, bias, eps, per_frame)
        return padded(y, state, frames, before, around, edges)
    x = launches.dense_frames(x)
    state = None if state is None else launches.dense_frames(state, x)
    group = 0 if groups is None or norm == "rms" else x.shape[1] // groups
    copies = before == "copies" and state is None
    options = (group, per_frame, frames, copies, *around, edges == "replicate", eps)
    out: Tensor = _norm_silu_pad(x, state, weight, bias, *options)[0]
    return out


def _check(
    x: Tensor,
    norm: str,
    groups: int | None,
    affine: tuple[Tensor | None, Tensor | None],
    state: Tensor | None,
    frames: int,
    before: str,
    around: tuple[int, int],
    edges: str,
) -> None:
    if x.ndim != 5 or len(around) != 2:
        raise ValueError(f"x must be (b, c, t, h, w) and around (h, w), got {tuple(x.shape)} and {around}")
    for name, value, known in (
        ("norm", norm, ("rms", "group")),
        ("before", before, ("copies", "zeros")),
        ("edges", edges, ("zeros", "replicate")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, got {value!r}")
    if norm == "group" and (groups is None or groups < 1 or x.shape[1] % groups):
        raise ValueError(f"groups must divide the {x.shape[1]} channels of x, got {groups}")
    check_vectors(x.shape[1], weight=affine[0], bias=affine[1])
    if state is not None and (state.shape[:2], state.shape[3:]) != (x.shape[:2], x.shape[3:]):
        raise ValueError(f"state has shape {tuple(state.shape)}, which does not go on to x of {tuple(x.shape)}")
    if min(frames, *around) < 0:
        raise ValueError(f"frames and around must not be negative, got {frames} and {around}")
    if not x.shape[2]:
        raise ValueError(f"x must have at least one frame, got {tuple(x.shape)}")
    if edges == "replicate" and any(pad and not side for pad, side in zip(around, x.shape[3:], strict=True)):
        raise ValueError(f"edges='replicate' needs an edge to copy round {around}, got x of {tuple(x.shape)}")


def _refusal(x: Tensor, norm: str) -> str | None:
    if norm == "rms" and x.shape[1] > launches.LARGEST:
        return f"positions have at most {launches.LARGEST} channels, and x has {x.shape[1]}"
    return None


@torch.library.custom_op("tubelet::norm_silu_pad", mutates_args=())
def _norm_silu_pad(
    x: Tensor,
    state: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    group: int,
    per_frame: bool,
    frames: int,
    copies: bool,
    rows: int,
    columns: int,
    replicate: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    weight, bias = dense(weight), dense(bias)
    shape, padding = launches.Shape(group, per_frame), launches.Padding(frames, copies, rows, columns, replicate)
    stats = launches.statistics(x, shape, eps) if group else x.new_empty(0, dtype=torch.float32)
    out = launches.forward(x, state, stats if group else None, weight, bias, shape, padding, eps)
    return out, stats


@_norm_silu_pad.register_fake
def _(
    x: Tensor,
    state: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    group: int,
    per_frame: bool,
    frames: int,
    copies: bool,
    rows: int,
    columns: int,
    replicate: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    b, c, t, h, w = x.shape
    size = (launches.Shape(group, per_frame).instances(x.shape), c // group, 2) if group else (0,)
    out = launches.empty(x, (b, c, t + frames, h + 2 * rows, w + 2 * columns))
    return out, x.new_empty(size, dtype=torch.float32)


@torch.library.custom_op("tubelet::norm_silu_pad_backward", mutates_args=())
def _norm_silu_pad_backward(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    group: int,
    per_frame: bool,
    frames: int,
    copies: bool,
    rows: int,
    columns: int,
    replicate: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    grad, weight, bias = launches.dense_frames(grad, x), dense(weight), dense(bias)
    shape, padding = launches.Shape(group, per_frame), launches.Padding(frames, copies, rows, columns, replicate)
    return launches.backward(grad, x, stats if group else None, weight, bias, shape, padding, eps)


@_norm_silu_pad_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    group: int,
    per_frame: bool,
    frames: int,
    copies: bool,
    rows: int,
    columns: int,
    replicate: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    return launches.empty(x, x.shape), x.new_empty(2, x.shape[1], dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, state, weight, bias, *ctx.options = inputs
    ctx.state_dtype = None if state is None else state.dtype
    ctx.save_for_backward(x, output[1], weight, bias)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, stats, weight, bias = ctx.saved_tensors
    dx, (plain, normed) = _norm_silu_pad_backward(grad, x, stats, weight, bias, *ctx.options)
    _, _, frames, _, rows, columns, replicate, _ = ctx.options
    dstate = None
    if ctx.state_dtype is not None:
        edges: Edges = "replicate" if replicate else "zeros"
        dstate = folded(grad[:, :, :frames], (rows, columns), edges).to(ctx.state_dtype)
    dweight = None if weight is None else normed.to(weight.dtype)
    dbias = None if bias is None else plain.to(bias.dtype)
    return dx, dstate, dweight, dbias, *(None,) * len(ctx.options)


_norm_silu_pad.register_autograd(_backward, setup_context=_save)
