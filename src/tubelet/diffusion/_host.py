"""Checks that read numbers: on the CPU they cost next to nothing, on another device they would stall it."""

import torch
from torch import Tensor

__all__ = ["readable"]


def readable(values: Tensor) -> bool:
    """Whether numbers may be looked at: on the CPU, outside of compiled code, where they are real.

    Example:
        >>> readable(torch.zeros(1)), readable(torch.zeros(1, device="meta"))
        (True, False)
    """
    return type(values) is Tensor and values.device.type == "cpu" and not torch.compiler.is_compiling()
