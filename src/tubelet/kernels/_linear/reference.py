"""``act(x·Wᵀ + b)`` in plain PyTorch, and the activations by name."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "Activation", "reference"]

Activation = Literal["gelu", "gelu_tanh", "relu", "sigmoid", "silu"]
"""What may follow a linear map in one pass. Example: ``"gelu_tanh"``."""


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: MappingProxyType[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"gelu": F.gelu, "gelu_tanh": _gelu_tanh, "relu": F.relu, "sigmoid": torch.sigmoid, "silu": F.silu}
)


def reference(
    x: Float[Tensor, "*lead d"], weight: Float[Tensor, "e d"], bias: Float[Tensor, " e"] | None, act: Activation | None
) -> Float[Tensor, "*lead e"]:
    """The definition, differentiable any number of times.

    Example:
        >>> reference(torch.tensor([-1.0, 2.0]), torch.eye(2), None, "relu")
        tensor([0., 2.])
    """
    out = F.linear(x, weight, bias)
    return out if act is None else ACTIVATIONS[act](out)
