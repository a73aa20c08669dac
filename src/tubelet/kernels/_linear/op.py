"""A linear map and its activation as one operation: on the CPU oneDNN's matrix product, the activation in its epilogue.

PyTorch hands float32 products to MKL and bfloat16 ones to oneDNN, and computes an activation in another pass over the
result, which is four times as wide as its input in a transformer's MLP. oneDNN computes both at once; its float32
product is the faster one on processors that are not Intel's. TorchInductor uses the same operation, so that nothing is
to be gained inside of ``torch.compile``, where the reference serves.

With gradients the activation stays a pass of its own, since its backward needs what it was given.
"""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from tubelet.kernels._checks import plain
from tubelet.kernels._linear.reference import ACTIVATIONS, Activation, reference

__all__ = ["LinearBackend", "linear"]

LinearBackend = Literal["auto", "reference", "onednn"]
"""``auto`` is oneDNN for what it serves, else the reference. Example: ``"onednn"``."""

_NAMES = {
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "sigmoid": ("sigmoid", ""),
    "silu": ("swish", ""),
}
"""oneDNN's names of the activations."""


def linear(
    x: Float[Tensor, "*lead d"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " b"] | None = None,
    *,
    act: Activation | None = None,
    backend: LinearBackend = "auto",
) -> Float[Tensor, "*lead out"]:
    """``act(x·Wᵀ + b)``.

    Args:
        x: tokens, of any strides.
        weight: of the map, as ``nn.Linear`` holds it.
        bias: of the map.
        act: the activation, None for none.
        backend: ``"auto"``, ``"reference"`` or ``"onednn"``.

    Returns:
        The mapped tokens, in the dtype of ``x``.

    Raises:
        ValueError: ``act`` or ``backend`` is unknown, shapes, dtypes or devices do not fit, or ``onednn`` was asked for
            and cannot serve, with the reason.

    Example:
        >>> linear(torch.ones(2, 3), torch.ones(4, 3), act="relu").shape
        torch.Size([2, 4])
    """
    if act is not None and act not in ACTIVATIONS:
        raise ValueError(f"act must be None or one of {', '.join(ACTIVATIONS)}, got {act!r}")
    if backend not in get_args(LinearBackend):
        raise ValueError(f"backend must be one of {', '.join(get_args(LinearBackend))}, got {backend!r}")
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"x has shape {tuple(x.shape)}, but weight has {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, but weight has {tuple(weight.shape)}")
    if backend == "reference" or torch.compiler.is_compiling():
        return reference(x, weight, bias, act)
    _check_alike(x, weight, bias)
    if (reason := _refusal(x, weight, bias)) is not None:
        if backend == "onednn":
            raise ValueError(f"backend='onednn' cannot serve this linear: {reason}; backend='reference' can")
        return reference(x, weight, bias, act)
    recorded = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, weight, bias)
    )
    if not recorded:
        return _product(x, weight, bias, act)
    out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out if act is None else ACTIVATIONS[act](out)


def _check_alike(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Tensors of a class of their own may convert themselves, and autocast converts all."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None or not (plain(x) and plain(tensor)):
            continue
        if tensor.device != x.device:
            raise ValueError(f"{name} lies on {tensor.device}, but x on {x.device}")
        kind = x.device.type
        if tensor.dtype != x.dtype and not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            raise ValueError(f"{name} is {tensor.dtype}, but x is {x.dtype}")


def _refusal(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why oneDNN cannot serve tensors."""
    tensors = [tensor for tensor in (x, weight, bias) if tensor is not None]
    for tensor in tensors:
        if not (plain(tensor) or type(tensor) is FakeTensor):  # one that has no data asks what would be done
            return f"a tensor is a {type(tensor).__name__} or transformed by torch.func"
        if tensor.device.type != "cpu":
            return f"it computes on the CPU, and a tensor lies on {tensor.device}"
        if tensor.dtype not in (torch.float32, torch.bfloat16) or tensor.dtype != x.dtype:
            return f"it computes in float32 or bfloat16, all alike, and a tensor is {tensor.dtype}"
    if 0 in weight.shape:
        return f"it has no product of shape {tuple(weight.shape)}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses the dtype of products"
    if not (torch._C._has_mkldnn and torch._C._get_mkldnn_enabled()):
        return "this PyTorch has no oneDNN, or it is switched off"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this PyTorch lacks mkldnn::_linear_pointwise"
    return None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, act: Activation | None = None) -> Tensor:
    kind, variant = _NAMES[act]
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, _apart(weight), bias, kind, [], variant)
    return out


def _apart(weight: Tensor) -> Tensor:
    """A weight whose rows or columns lie one behind the other, since oneDNN refuses those that overlap."""
    (rows, columns), (down, across) = weight.shape, weight.stride()
    return weight if (across == 1 and down >= columns) or (down == 1 and across >= rows) else weight.contiguous()


class _Linear(torch.autograd.Function):
    """The product with gradients; the backward is made of differentiable operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        flat = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[0]:
            of_x = linear(grad, weight.t())
        if ctx.needs_input_grad[1]:
            # PyTorch's product copies nothing, which counts for a first layer, and is oneDNN's too in bfloat16
            product = linear if grad.dtype == torch.float32 and ctx.needs_input_grad[0] else F.linear
            of_weight = product(flat.t(), x.reshape(-1, x.shape[-1]).t())
        if ctx.needs_input_grad[2]:
            of_bias = flat.sum(0)
        return of_x, of_weight, of_bias
