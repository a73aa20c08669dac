"""Tensors that lie in memory in other ways than end to end."""

import torch
from torch import Tensor


def place(n: int, heads: int, width: int, memory: str) -> Tensor:
    """Random numbers of a shape ``(n, h, d)`` in some memory."""
    if memory == "packed qkv":
        return torch.randn(n, 3, heads, width)[:, 1]
    if memory == "heads first":
        return torch.randn(heads, n, width).transpose(0, 1)
    return torch.randn(n, width, heads).mT if memory == "features apart" else torch.randn(n, heads, width)
