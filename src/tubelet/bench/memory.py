"""The most memory that one call holds beyond what was held before it; its result counts.

On CUDA that is what the caching allocator says. On a CPU it is the sum of the allocations and releases that PyTorch's
profiler records, at its highest: scratch memory that a library such as oneDNN takes elsewhere is not seen.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_bytes"]


def peak_bytes(call: Callable[[], Any], device: torch.device) -> tuple[int | None, str | None]:
    """Bytes, and None; or None, and why they are not known.

    Example:
        >>> peak_bytes(lambda: torch.zeros(10) + torch.ones(10), torch.device("cpu"))
        (120, None)
    """
    if device.type == "cuda":
        return _on_cuda(call, device), None
    if device.type == "cpu":
        return _on_cpu(call), None
    return None, f"no count of memory on {device.type}"


def _on_cuda(call: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _on_cpu(call: Callable[[], Any]) -> int:
    record = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _quiet():
        record.start()
    try:
        result = call()
    finally:
        with _quiet():
            record.stop()
    del result
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # type: ignore[attr-defined]
        most = max(most, held)
    return most


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's own library writes lines to the process's standard error; not inside this block."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
