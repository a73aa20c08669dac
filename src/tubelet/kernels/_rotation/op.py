"""QK-norm + RoPE as one operation: queries and keys normalised per head and turned, in one pass over both.

RMS norm of queries and keys (arXiv:2403.03206, section 5.3.2), then the three-axis rotation that
:func:`tubelet.positions.apply_rope` applies. q and k may be views into a packed qkv: strides are arguments, nothing is
copied first; the results are contiguous. The angles are read once a token for all heads of both. The backward
recomputes the norm's statistics, so only q, k and the angles are kept; the weights' gradients are sums of one partial
sum a program, without atomics.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelet.kernels._choice import PointwiseBackend, use_blocks, use_triton
from tubelet.kernels._launching import dense
from tubelet.kernels._rotation import launches
from tubelet.kernels._rotation.cpu import by_blocks
from tubelet.kernels._rotation.reference import reference
from tubelet.positions import Rotary

__all__ = ["qk_norm_rope"]


def qk_norm_rope(
    q: Float[Tensor, "*lead heads head_dim"],
    k: Float[Tensor, "*lead kv_heads head_dim"],
    rotary: Rotary,
    q_weight: Float[Tensor, " head_dim"] | None = None,
    k_weight: Float[Tensor, " head_dim"] | None = None,
    *,
    eps: float = 1e-6,
    backend: PointwiseBackend = "auto",
) -> tuple[Float[Tensor, "*lead heads head_dim"], Float[Tensor, "*lead kv_heads head_dim"]]:
    """RMS norm of each head of q and k, then their rotation, in float32 or better, rounded once.

    Args:
        q, k: queries and keys, of any strides.
        rotary: the rotation of each token; leading axes that it lacks broadcast.
        q_weight, k_weight: of the norms; None for none.
        eps: added to the mean square.
        backend: ``"auto"``, ``"reference"``, ``"triton"`` or ``"blocks"``.

    Returns:
        q and k, in their dtypes.

    Raises:
        ValueError: widths or numbers of tokens disagree; or a backend was asked for and cannot serve, with the reason.

    Example:
        >>> from tubelet.positions import Rope3d
        >>> q, k = torch.randn(2, 5, 6, 16), torch.randn(2, 5, 2, 16)
        >>> q, k = qk_norm_rope(q, k, Rope3d(16)(torch.zeros(5, 3)), torch.ones(16), torch.ones(16))
        >>> q.shape, k.shape
        (torch.Size([2, 5, 6, 16]), torch.Size([2, 5, 2, 16]))
    """
    _check(q, k, rotary)
    tensors = (q, k, rotary.cos, rotary.sin, q_weight, k_weight)
    if use_blocks(backend, "qk_norm_rope", tensors):
        return by_blocks(q, rotary, q_weight, eps=eps), by_blocks(k, rotary, k_weight, eps=eps)
    if not use_triton(backend, "qk_norm_rope", tensors, _refusal(q, k, rotary)):
        return reference(q, rotary, q_weight, eps=eps), reference(k, rotary, k_weight, eps=eps)
    cos, sin = (_rows(x.expand(*q.shape[:-2], x.shape[-1]), 1) for x in rotary[:2])
    flat = (_rows(q, 2), _rows(k, 2))
    results = _qk_norm_rope(*flat, cos, sin, q_weight, k_weight, eps, rotary.layout == "interleaved")
    return results[0].view(q.shape), results[1].view(k.shape)


def _check(q: Tensor, k: Tensor, rotary: Rotary) -> None:
    tokens, half = rotary.cos.shape[-3 if rotary.per_head else -2], rotary.cos.shape[-1]
    for name, x in (("q", q), ("k", k)):
        if x.shape[-1] != 2 * half or x.shape[-3] != tokens:
            found = f"{x.shape[-3]} tokens of head_dim {x.shape[-1]}"
            raise ValueError(f"{name} has {found}, but rotary turns {tokens} tokens of head_dim {2 * half}")


def _refusal(q: Tensor, k: Tensor, rotary: Rotary) -> str | None:
    if q.shape[-1] > launches.LARGEST:
        return f"its heads have at most {launches.LARGEST} features, and q has head_dim {q.shape[-1]}"
    if rotary.per_head or rotary.layout not in ("interleaved", "half"):
        turned = "each head by angles of its own" if rotary.per_head else rotary.layout
        return f"it turns pairs interleaved or half, the heads alike, and rotary turns {turned}"
    if q.dtype != k.dtype:
        return f"q is {q.dtype} and k {k.dtype}"
    if rotary.cos.requires_grad or rotary.sin.requires_grad:
        return "it has no gradient for the angles, and they require one"
    if rotary.cos.ndim >= q.ndim or any(
        have not in (1, want) for have, want in zip(rotary.cos.shape[-3::-1], q.shape[-4::-1], strict=False)
    ):
        return f"rotary {tuple(rotary.cos.shape)} does not broadcast to q {tuple(q.shape)}"
    return None


def _rows(x: Tensor, inner: int) -> Tensor:
    """``(*lead, n, ...)`` as ``(b, n, ...)``, where ``...`` are ``inner`` axes; a view where strides allow it."""
    return x.reshape(-1 if x.numel() else 0, *x.shape[-1 - inner :])


@torch.library.custom_op("tubelet::qk_norm_rope", mutates_args=())
def _qk_norm_rope(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    return launches.forward(_given(q, k, cos, sin, q_weight, k_weight, eps, interleaved))


@_qk_norm_rope.register_fake
def _(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


@torch.library.custom_op("tubelet::qk_norm_rope_backward", mutates_args=())
def _qk_norm_rope_backward(
    q_grad: Tensor,
    k_grad: Tensor,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = _given(q, k, cos, sin, q_weight, k_weight, eps, interleaved)
    return launches.backward(dense(q_grad), dense(k_grad), given)


@_qk_norm_rope_backward.register_fake
def _(
    q_grad: Tensor,
    k_grad: Tensor,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = [q.new_empty(0) if w is None else q.new_empty(w.shape, dtype=torch.float32) for w in (q_weight, k_weight)]
    return q.new_empty(q.shape), k.new_empty(k.shape), sums[0], sums[1]


def _given(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    interleaved: bool,
) -> launches.Given:
    cos, sin = dense(cos), dense(sin)
    if cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    q_weight, k_weight = (None if weight is None else weight.contiguous() for weight in (q_weight, k_weight))
    return launches.Given(dense(q), dense(k), cos, sin, q_weight, k_weight, eps, interleaved)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.eps, ctx.interleaved = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, q_grad: Tensor, k_grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    dq, dk, *sums = _qk_norm_rope_backward(q_grad, k_grad, *tensors, ctx.eps, ctx.interleaved)
    dw = [None if w is None else total.to(w.dtype) for w, total in zip(tensors[4:], sums, strict=True)]
    return dq, dk, None, None, *dw, None, None


_qk_norm_rope.register_autograd(_backward, setup_context=_save)
