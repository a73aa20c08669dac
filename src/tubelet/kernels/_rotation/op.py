"""QK-norm + RoPE as one operation: queries and keys normalised and turned, in one pass over both.

RMS or layer norm of queries and keys, head by head (arXiv:2403.03206, section 5.3.2) or over all heads before they are
split (Wan, LTX), then the rotation that :func:`tubelet.positions.apply_rope` applies, in each of its layouts. q and k
may be views into a packed qkv: strides are arguments, nothing is copied first; the results are contiguous. Angles that
heads share are read once a token for all heads of both. The backward recomputes the norm's statistics, so only q, k and
the angles are kept; the gradients of weights and biases are sums of one partial sum a program, without atomics.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.kernels._checks import check_vectors
from tubelet.kernels._choice import PointwiseBackend, use_blocks, use_triton
from tubelet.kernels._launching import dense, power_of_two
from tubelet.kernels._rotation import launches
from tubelet.kernels._rotation.cpu import by_blocks
from tubelet.kernels._rotation.reference import HeadNorm, reference
from tubelet.positions import Rotary

__all__ = ["norm_rope", "qk_norm_rope"]


def qk_norm_rope(
    q: Float[Tensor, "*lead heads head_dim"],
    k: Float[Tensor, "*lead kv_heads head_dim"],
    rotary: Rotary | None,
    q_weight: Float[Tensor, " q_width"] | None = None,
    k_weight: Float[Tensor, " k_width"] | None = None,
    *,
    q_bias: Float[Tensor, " q_width"] | None = None,
    k_bias: Float[Tensor, " k_width"] | None = None,
    norm: HeadNorm = "rms",
    across_heads: bool = False,
    eps: float = 1e-6,
    backend: PointwiseBackend = "auto",
) -> tuple[Float[Tensor, "*lead heads head_dim"], Float[Tensor, "*lead kv_heads head_dim"]]:
    """The norm of each head of q and k, or of all together, then their rotation, in float32 or better, rounded once.

    Args:
        q, k: queries and keys, of any strides.
        rotary: the rotation of each token, or of each token and head; leading axes that it lacks broadcast. None turns
            nothing, as an angle of 0 does (text beside video).
        q_weight, k_weight, q_bias, k_bias: of the norms; None for none.
        norm: ``"rms"``, ``"layer"`` or ``"none"``.
        across_heads: one norm over all heads, whose weights are ``heads·head_dim`` wide instead of ``head_dim``.
        eps: added to the mean square or the variance.
        backend: ``"auto"``, ``"reference"``, ``"triton"`` or ``"blocks"``.

    Returns:
        q and k, in their dtypes.

    Raises:
        ValueError: shapes of q, k, weights or angles disagree, the norm is unknown or has weights without being one; or
            a backend was asked for and cannot serve, with the reason.

    Example:
        >>> from tubelet.positions import Rope3d
        >>> q, k = torch.randn(2, 5, 6, 16), torch.randn(2, 5, 2, 16)
        >>> q, k = qk_norm_rope(q, k, Rope3d(16)(torch.zeros(5, 3)), torch.ones(16), torch.ones(16))
        >>> q.shape, k.shape
        (torch.Size([2, 5, 6, 16]), torch.Size([2, 5, 2, 16]))
    """
    vectors = (q_weight, k_weight, q_bias, k_bias)
    if q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q and k may differ in heads alone, got {tuple(q.shape)} and {tuple(k.shape)}")
    for name, x, (weight, bias) in (("q", q, vectors[::2]), ("k", k, vectors[1::2])):
        _check(name, x, rotary, weight, bias, norm, across_heads)
    tensors = (q, k, *_turns(rotary), *vectors)
    blocks = use_blocks(backend, "qk_norm_rope", tensors)
    if blocks or not use_triton(backend, "qk_norm_rope", tensors, _refusal(q, k, rotary, across_heads)):
        run = partial(by_blocks if blocks else reference, norm=norm, across_heads=across_heads, eps=eps)
        return run(q, rotary, q_weight, q_bias), run(k, rotary, k_weight, k_bias)
    turned = _run(q, k, rotary, vectors, norm, across_heads, eps)
    return turned[0], turned[1]


def norm_rope(
    x: Float[Tensor, "*lead heads head_dim"],
    rotary: Rotary | None = None,
    weight: Float[Tensor, " width"] | None = None,
    bias: Float[Tensor, " width"] | None = None,
    *,
    norm: HeadNorm = "rms",
    across_heads: bool = False,
    eps: float = 1e-6,
    backend: PointwiseBackend = "auto",
) -> Float[Tensor, "*lead heads head_dim"]:
    """:func:`qk_norm_rope` of queries alone, or keys alone: those of cross-attention stand on axes of their own.

    Raises:
        ValueError: as :func:`qk_norm_rope`.

    Example:
        >>> norm_rope(torch.randn(2, 5, 6, 16), weight=torch.ones(96), across_heads=True).shape
        torch.Size([2, 5, 6, 16])
    """
    _check("x", x, rotary, weight, bias, norm, across_heads)
    tensors = (x, *_turns(rotary), weight, bias)
    blocks = use_blocks(backend, "norm_rope", tensors)
    if blocks or not use_triton(backend, "norm_rope", tensors, _refusal(x, None, rotary, across_heads)):
        run = by_blocks if blocks else reference
        return run(x, rotary, weight, bias, norm=norm, across_heads=across_heads, eps=eps)
    return _run(x, None, rotary, (weight, None, bias, None), norm, across_heads, eps)[0]


def _check(
    name: str,
    x: Tensor,
    rotary: Rotary | None,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: str,
    across_heads: bool,
) -> None:
    if norm not in ("rms", "layer", "none"):
        raise ValueError(f"norm must be 'rms', 'layer' or 'none', got {norm!r}")
    if x.ndim < 3:
        raise ValueError(f"{name} must be (*lead, tokens, heads, head_dim), got {tuple(x.shape)}")
    for what, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and norm == "none":
            raise ValueError(f"norm='none' has no {what}, got one of shape {tuple(vector.shape)}")
    check_vectors(x.shape[-2] * x.shape[-1] if across_heads else x.shape[-1], f" of {name}", weight=weight, bias=bias)
    if rotary is None:
        return
    if rotary.cos.shape != rotary.sin.shape or rotary.cos.ndim < (3 if rotary.per_head else 2):
        found = f"{tuple(rotary.cos.shape)} and {tuple(rotary.sin.shape)}"
        axes = "tokens, heads, half" if rotary.per_head else "tokens, half"
        raise ValueError(f"rotary must have cosines and sines of one shape (*lead, {axes}), got {found}")
    tokens, half = rotary.cos.shape[-3 if rotary.per_head else -2], rotary.cos.shape[-1]
    if x.shape[-1] != 2 * half or x.shape[-3] != tokens:
        found = f"{x.shape[-3]} tokens of head_dim {x.shape[-1]}"
        raise ValueError(f"{name} has {found}, but rotary turns {tokens} tokens of head_dim {2 * half}")
    if rotary.per_head and x.shape[-2] != rotary.cos.shape[-2]:
        heads = rotary.cos.shape[-2]
        raise ValueError(f"{name} has {x.shape[-2]} heads, but rotary turns {heads} by angles of their own")


def _turns(rotary: Rotary | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if rotary is None else (rotary.cos, rotary.sin)


def _refusal(q: Tensor, k: Tensor | None, rotary: Rotary | None, across_heads: bool) -> str | None:
    if q.shape[-1] > launches.LARGEST or q.shape[-1] % 2:
        return f"its heads have at most {launches.LARGEST} features, an even number, and q has head_dim {q.shape[-1]}"
    if k is not None and q.dtype != k.dtype:
        return f"q is {q.dtype} and k {k.dtype}"
    heads = max(q.shape[-2], 0 if k is None else k.shape[-2])
    if across_heads and power_of_two(heads) * power_of_two(q.shape[-1]) > launches.LARGEST_ACROSS:
        most = f"{launches.LARGEST_ACROSS} numbers, heads and head_dim rounded up to powers of two"
        return f"it norms at most {most}, together, and q has {heads} heads of {q.shape[-1]}"
    if rotary is None:
        return None
    if rotary.layout == "half_per_axis" and len(rotary.axes) != 3:
        return f"it turns the halves of three axes, and rotary has axes {rotary.axes}"
    if not rotary.per_head and (rotary.cos.requires_grad or rotary.sin.requires_grad):
        return "it has no gradient for angles that heads share, and they require one"
    cos, inner = rotary.cos, 3 if rotary.per_head else 2
    lead = cos.shape[:-inner]
    if len(lead) > q.ndim - 3 or any(
        have not in (1, want) for have, want in zip(lead[::-1], q.shape[-4::-1], strict=False)
    ):
        return f"rotary {tuple(cos.shape)} does not broadcast to q {tuple(q.shape)}"
    return None


def _run(
    q: Tensor,
    k: Tensor | None,
    rotary: Rotary | None,
    vectors: Sequence[Tensor | None],
    norm: str,
    across_heads: bool,
    eps: float,
) -> Sequence[Tensor]:
    """The kernels' results in the shapes of q and k."""
    cos, sin, pairing = None, None, []
    if rotary is not None:
        inner = 2 if rotary.per_head else 1
        lead = q.shape[:-2]
        cos, sin = (_rows(x.expand(*lead, *x.shape[-inner:]), inner) for x in rotary[:2])
        pairing = _pairing(rotary, q.shape[-1])
    flat = (_rows(q, 2), None if k is None else _rows(k, 2))
    results = _qk_norm_rope(*flat, cos, sin, *vectors, eps, norm, across_heads, pairing)
    return results[0].view(q.shape), results[1] if k is None else results[1].view(k.shape)


def _pairing(rotary: Rotary, width: int) -> list[int]:
    """The pairs of each axis, half an axis apart; none where neighbours are pairs."""
    if rotary.layout == "interleaved":
        return []
    return [width // 2, 0, 0] if rotary.layout == "half" else [axis // 2 for axis in rotary.axes]


def _rows(x: Tensor, inner: int) -> Tensor:
    """``(*lead, n, ...)`` as ``(b, n, ...)``, where ``...`` are ``inner`` axes; a view where strides allow it."""
    return x.reshape(-1 if x.numel() else 0, *x.shape[-1 - inner :])


@torch.library.custom_op("tubelet::qk_norm_rope", mutates_args=())
def _qk_norm_rope(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    q_bias: Tensor | None,
    k_bias: Tensor | None,
    eps: float,
    norm: str,
    across: bool,
    pairing: Sequence[int],
) -> tuple[Tensor, Tensor]:
    tensors = (q, k, cos, sin, q_weight, k_weight, q_bias, k_bias)
    q_out, k_out = launches.forward(_given(tensors, eps, norm, across, pairing))
    return q_out, q.new_empty(0) if k_out is None else k_out


@_qk_norm_rope.register_fake
def _(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    q_bias: Tensor | None,
    k_bias: Tensor | None,
    eps: float,
    norm: str,
    across: bool,
    pairing: Sequence[int],
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(0) if k is None else k.new_empty(k.shape)


@torch.library.custom_op("tubelet::qk_norm_rope_backward", mutates_args=())
def _qk_norm_rope_backward(
    q_grad: Tensor,
    k_grad: Tensor | None,
    q: Tensor,
    k: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    q_bias: Tensor | None,
    k_bias: Tensor | None,
    eps: float,
    norm: str,
    across: bool,
    pairing: Sequence[int],
    of_angles: bool,
) -> list[Tensor]:
    """The gradients of the eight tensors in their order; empty ones of what is not there or not asked for."""
    given = _given((q, k, cos, sin, q_weight, k_weight, q_bias, k_bias), eps, norm, across, pairing)
    k_grad = None if k is None else dense(k_grad)
    found = launches.backward(dense(q_grad), k_grad, given, of_angles=of_angles)
    grads = [found.dq, found.dk, *found.of_angles, *found.of_affine]
    return [q.new_empty(0) if grad is None else grad for grad in grads]


@_qk_norm_rope_backward.register_fake
def _(
    q_grad: Tensor,
    k_grad: Tensor | None,
    q: Tensor,
    k: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    q_bias: Tensor | None,
    k_bias: Tensor | None,
    eps: float,
    norm: str,
    across: bool,
    pairing: Sequence[int],
    of_angles: bool,
) -> list[Tensor]:
    turns = (cos, sin) if of_angles else (None, None)
    sides = [q.new_empty(0) if x is None else x.new_empty(x.shape) for x in (q, k)]
    others = (*turns, q_weight, k_weight, q_bias, k_bias)
    return sides + [q.new_empty(0) if x is None else x.new_empty(x.shape, dtype=torch.float32) for x in others]


def _given(
    tensors: Sequence[Tensor | None], eps: float, norm: str, across: bool, pairing: Sequence[int]
) -> launches.Given:
    q, k, cos, sin, *vectors = tensors
    assert q is not None
    if cos is not None and sin is not None:
        cos, sin = dense(cos), dense(sin)
        if cos.stride() != sin.stride():
            cos, sin = cos.contiguous(), sin.contiguous()
    rows = map(dense, vectors)
    axes = (pairing[0], pairing[1], pairing[2]) if len(pairing) == 3 else None
    return launches.Given(dense(q), dense(k), cos, sin, *rows, eps=eps, norm=norm, across=across, axes=axes)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, ctx.rest = inputs[:8], inputs[8:]
    ctx.here = [tensor is not None for tensor in tensors]
    ctx.save_for_backward(*(tensor for tensor in tensors if tensor is not None))


def _backward(ctx: Any, q_grad: Tensor, k_grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = iter(ctx.saved_tensors)
    tensors = [next(saved) if here else None for here in ctx.here]
    of_angles = any(ctx.needs_input_grad[2:4])
    found = _qk_norm_rope_backward(q_grad, k_grad if ctx.here[1] else None, *tensors, *ctx.rest, of_angles)
    asked = [True, True, of_angles, of_angles, *[True] * 4]
    parts = zip(tensors, found, asked, strict=True)
    grads = [grad.to(x.dtype) if x is not None and wanted else None for x, grad, wanted in parts]
    return *grads, None, None, None, None


_qk_norm_rope.register_autograd(_backward, setup_context=_save)
