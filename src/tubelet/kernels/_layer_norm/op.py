"""Layer norm (arXiv:1607.06450) as one operation: on the CPU PyTorch's kernel of two precisions.

It reads and writes bfloat16 and computes in float32 with a float32 weight and bias: no tokens in float32 are made, and
what is kept for the backward is x as it is and two numbers a token. Its own
backward sums the gradients of weight and bias in bfloat16 (3 % off for 1,024 tokens), so the backward here computes in
float32. A layer norm whose weight is ``1 + scale`` and whose bias is ``shift`` is norm + modulate for one row.
"""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.kernels._layer_norm.reference import reference

__all__ = ["LayerNormBackend", "layer_norm"]

LayerNormBackend = Literal["auto", "reference", "native"]
"""``auto`` is PyTorch's mixed kernel for what it serves, else the reference. Example: ``"native"``."""


def layer_norm(
    x: Float[Tensor, "*lead d"],
    weight: Float[Tensor, " d"] | None = None,
    bias: Float[Tensor, " d"] | None = None,
    *,
    eps: float = 1e-6,
    backend: LayerNormBackend = "auto",
) -> Float[Tensor, "*lead d"]:
    """``(x - mean) / sqrt(var + eps) · weight + bias`` in float32 or better, rounded once.

    Args:
        x: tokens, of any strides.
        weight, bias: of any precision; None for ones and zeros.
        eps: added to the variance.
        backend: ``"auto"``, ``"reference"`` or ``"native"``.

    Returns:
        The normalised tokens, in the dtype of ``x``.

    Raises:
        ValueError: ``backend`` is unknown, the shapes do not fit, or ``native`` was asked for and cannot serve, with
            the reason.

    Example:
        >>> layer_norm(torch.tensor([[1.0, 3.0]], dtype=torch.bfloat16), torch.full((2,), 2.0)).tolist()
        [[-2.0, 2.0]]
    """
    if backend not in get_args(LayerNormBackend):
        raise ValueError(f"backend must be one of {', '.join(get_args(LayerNormBackend))}, got {backend!r}")
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None and part.shape != x.shape[-1:]:
            raise ValueError(f"{name} has shape {tuple(part.shape)}, but x has {tuple(x.shape)}")
    if backend == "reference" or torch.compiler.is_compiling():
        return reference(x, weight, bias, eps)
    if (reason := _refusal(x, weight, bias)) is not None:
        if backend == "native":
            raise ValueError(f"backend='native' cannot serve this layer_norm: {reason}; backend='reference' can")
        return reference(x, weight, bias, eps)
    weight = x.new_ones(x.shape[-1], dtype=torch.float32) if weight is None else weight.float()
    bias = x.new_zeros(x.shape[-1], dtype=torch.float32) if bias is None else bias.float()
    out: Tensor = _LayerNorm.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    return out


def _refusal(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> str | None:
    """Why the mixed kernel cannot serve tensors."""
    for tensor in (part for part in (x, weight, bias) if part is not None):
        if type(tensor) not in (Tensor, nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return f"a tensor is a {type(tensor).__name__} or transformed by torch.func"
        if tensor.device.type != "cpu":
            return f"it computes on the CPU, and a tensor lies on {tensor.device}"
        if tensor.dtype not in (torch.float32, torch.bfloat16):
            return f"it reads float32 or bfloat16, and a tensor is {tensor.dtype}"
    return None


class _LayerNorm(torch.autograd.Function):
    """The mixed kernel with a backward in float32, which is made of differentiable operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        parts = (grad.float(), x.float(), x.shape[-1:], mean, rstd, weight, bias, wanted)
        of_x, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(*parts)
        return None if of_x is None else of_x.to(x.dtype), of_weight, of_bias, None
