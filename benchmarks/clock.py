"""The clock by which two implementations are compared on a CPU that others may use as well."""

import time
from collections.abc import Callable

import torch

__all__ = ["fair_clock"]


def fair_clock() -> Callable[[], float]:
    """Of one thread the process's own time, which is that of an idle machine; of several the clock on the wall."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter
