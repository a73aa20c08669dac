"""What accelerators can do, and how long a number of operations takes on them.

Rates are the makers' published peaks of dense matrix products, in operations a second; memory is in bytes. A run
reaches a share of the peak, its MFU (model FLOPs utilisation, PaLM, arXiv:2204.02311, appendix B): 0.4 is good for
training.
"""

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tubelet.planner.amounts import check_amounts

__all__ = ["ACCELERATORS", "Accelerator", "devices_for", "equivalent", "hours", "mfu"]


@dataclass(frozen=True)
class Accelerator:
    """One device: peak rates in bfloat16 and float32 (outside matrix units on GPUs), and memory in bytes.

    Example:
        >>> ACCELERATORS["a100"].bfloat16
        312000000000000.0
    """

    name: str
    bfloat16: float
    float32: float | None
    memory: float


ACCELERATORS: Final = MappingProxyType(
    {
        "a100": Accelerator("A100 80 GB", 312e12, 19.5e12, 80e9),
        "h100": Accelerator("H100 SXM", 989e12, 67e12, 80e9),
        "h200": Accelerator("H200", 989e12, 67e12, 141e9),
        "tpu-v3": Accelerator("TPU v3 chip (two cores)", 123e12, None, 32e9),
        "tpu-v4": Accelerator("TPU v4 chip", 275e12, None, 32e9),
    }
)
"""Devices by name. Example: ``ACCELERATORS["h100"].memory``."""


def hours(flops: int | float, accelerator: str = "a100", *, mfu: int | float = 0.4, devices: int = 1) -> float:
    """Hours that ``devices`` need for so many operations in bfloat16.

    Raises:
        ValueError: no accelerator has the name, ``mfu`` is not in (0, 1], ``flops`` are negative or no finite number,
            or there is no device.

    Example:
        >>> round(hours(3.44e19), 1)
        76.6
    """
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu must be a share in (0, 1], got {mfu}")
    check_amounts(0, flops=flops)
    check_amounts(1, devices=devices)
    return flops / (_named(accelerator).bfloat16 * mfu * devices) / 3600


def mfu(flops: int | float, seconds: int | float, accelerator: str = "a100", *, devices: int = 1) -> float:
    """The share of the devices' bfloat16 peak that so many operations in so many seconds are.

    Raises:
        ValueError: no accelerator has the name, ``seconds`` is not positive, ``flops`` are negative or no finite
            number, or there is no device.

    Example:
        >>> mfu(1.56e14, 1.0)
        0.5
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    check_amounts(0, flops=flops, seconds=seconds)
    check_amounts(1, devices=devices)
    return flops / (seconds * _named(accelerator).bfloat16 * devices)


def equivalent(count: int | float, accelerator: str, other: str = "a100") -> float:
    """How many of ``other`` have the bfloat16 peak of ``count`` of one accelerator.

    Raises:
        ValueError: no accelerator has the name, or ``count`` is negative or no finite number.

    Example:
        >>> round(equivalent(128, "tpu-v3"), 1)
        50.5
    """
    check_amounts(0, count=count)
    return count * _named(accelerator).bfloat16 / _named(other).bfloat16


def devices_for(nbytes: int | float, accelerator: str = "a100") -> int:
    """How many devices hold so many bytes, shared evenly.

    Raises:
        ValueError: no accelerator has the name, or ``nbytes`` is negative or no finite number.

    Example:
        >>> devices_for(544e9)
        7
    """
    check_amounts(0, nbytes=nbytes)
    return math.ceil(nbytes / _named(accelerator).memory)


def _named(accelerator: str) -> Accelerator:
    if accelerator not in ACCELERATORS:
        raise ValueError(f"no accelerator is called {accelerator!r}; there are {', '.join(ACCELERATORS)}")
    return ACCELERATORS[accelerator]
