"""How kernels are started, and with which sizes: fixed choices by width, which ``tubelet.kernels._tuning`` may replace.

Host code of an operation describes each launch to a ``Launcher``. At run time that is :func:`launch`; the gate that
compiles without a GPU (:mod:`tubelet.kernels.aot`) hands in another one, so that it compiles what really runs.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

__all__ = ["Launcher", "Sizes", "dense", "described", "has_descriptors", "launch", "power_of_two", "strides"]


Launcher = Callable[[Any, tuple[int, ...], Mapping[str, Any], int], None]
"""Starts a kernel on a grid with its arguments (tensors, numbers, None and constants by name) and warps; :func:`launch`
is one."""


class Sizes(NamedTuple):
    """What a launch may choose: tokens a program handles, and warps it has.

    Example:
        >>> Sizes(tokens=4, warps=8).tokens
        4
    """

    tokens: int
    warps: int


def launch(kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], warps: int) -> None:
    """Start a Triton kernel on its tensors' device; nothing waits for it.

    Example:
        >>> class Kernel:
        ...     def __getitem__(self, grid):
        ...         return lambda **arguments: print(grid, sorted(arguments))
        >>> launch(Kernel(), (2, 1), {"n": 3}, warps=4)
        (2, 1) ['enable_fp_fusion', 'n', 'num_warps']
    """
    device = next((value.device for value in arguments.values() if isinstance(value, Tensor)), torch.device("cpu"))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](**arguments, num_warps=warps, enable_fp_fusion=True)


def power_of_two(value: int) -> int:
    """The smallest power of two that is not below ``value``.

    Example:
        >>> power_of_two(72), power_of_two(1)
        (128, 1)
    """
    return 1 << (value - 1).bit_length()


def strides(tensors: Mapping[str, Tensor], axes: Sequence[str]) -> dict[str, int]:
    """``<name>_by_<axis>`` of each tensor and axis in units of ``UNIT``: 8 numbers where all are multiples, else 1.

    A compiler that is told of multiples of 16 alone would load half precision number by number from heads of 72.

    Example:
        >>> strides({"q": torch.ones(5, 2, 72)}, ("token", "head"))
        {'q_by_token': 18, 'q_by_head': 9, 'UNIT': 8}
    """
    found = {f"{name}_by_{axis}": x.stride(i) for name, x in tensors.items() for i, axis in enumerate(axes)}
    unit = 8 if all(stride % 8 == 0 for stride in found.values()) else 1
    return {**{name: stride // unit for name, stride in found.items()}, "UNIT": unit}


@overload
def dense(x: Tensor) -> Tensor: ...
@overload
def dense(x: Tensor | None) -> Tensor | None: ...
def dense(x: Tensor | None) -> Tensor | None:
    """A tensor whose last axis lies dense in memory, as kernels read it; others are copied. None stays None.

    Example:
        >>> dense(torch.ones(4, 2).mT).stride()
        (4, 1)
    """
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def has_descriptors(x: Tensor) -> bool:
    """Whether a tensor's device moves whole tiles by itself (TMA, from compute capability 9.0), by what triton offers.

    Example:
        >>> has_descriptors(torch.ones(1))
        False
    """
    if not x.is_cuda or torch.cuda.get_device_capability(x.device) < (9, 0):
        return False
    return importlib.util.find_spec("triton.tools.tensor_descriptor") is not None


def described(x: Tensor, axes: Sequence[tuple[int, int]], start: int, block: Sequence[int]) -> Any:
    """A descriptor by which kernels load tiles of ``x``; None where the hardware cannot: it counts in 16 bytes.

    Args:
        x: what is read; its last axis lies dense and is the descriptor's last one.
        axes: size and step, in numbers of ``x``, of the other axes; what is loaded outside of them is 0.
        start: where the first of all lies, in numbers.
        block: the sides of a tile.

    Example:
        >>> described(torch.ones(4, 3), [(4, 3)], 0, [2, 4]) is None  # 12 bytes a row
        True
    """
    size = x.element_size()
    if any(step * size % 16 for _, step in axes) or (x.data_ptr() + start * size) % 16:
        return None
    from triton.tools.tensor_descriptor import TensorDescriptor

    sizes, steps = zip(*axes, strict=True)
    base = x.as_strided((x.shape[-1],), (1,), x.storage_offset() + start)
    return TensorDescriptor(base, [*sizes, x.shape[-1]], [*steps, 1], list(block))
