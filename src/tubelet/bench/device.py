"""What a number means nothing without: versions, the machine and its clocks, and the ceilings measured beside it."""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tubelet._version import __version__
from tubelet.bench.harness import stopwatch

__all__ = ["ceilings", "clocks", "environment", "hardware"]

_PACKAGES = ("einops", "flash-attn", "natten", "numpy", "triton", "xformers")
_STEP_SECONDS = 0.02
"""Products of matrices grow until one takes this long."""


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine, threads and switches, as JSON values.

    Example:
        >>> environment(torch.device("cpu"))["versions"]["tubelet"] == __version__
        True
    """
    installed = {name: _version(name) for name in _PACKAGES}
    return {
        "versions": {
            "tubelet": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            "cudnn": _cudnn(device),
            **{name: version for name, version in installed.items() if version},
        },
        "hardware": hardware(device),
        "platform": platform.platform(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "clocks": clocks(device),
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """What makes two runs comparable: the device, its name and size, and the threads.

    Example:
        >>> hardware(torch.device("cpu"))["device"]
        'cpu'
    """
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return {
            "device": "cuda",
            "name": found.name,
            "capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory_bytes": found.total_memory,
            "l2_bytes": getattr(found, "L2_cache_size", None),
        }
    return {
        "device": device.type,
        "name": _cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def clocks(device: torch.device) -> dict[str, Any]:
    """Clocks, power and temperature at this moment; ``reason`` says why there are none.

    Example:
        >>> isinstance(clocks(torch.device("cpu")), dict)
        True
    """
    return _gpu_clocks(device) if device.type == "cuda" else _cpu_clocks()


def ceilings(device: torch.device, dtypes: Sequence[torch.dtype]) -> dict[str, Any]:
    """The best of several square matrix products a dtype in TFLOP/s, and of copies in GB/s read and written.

    Products grow until one takes 20 ms (or n = 4096, CUDA 16384), so that no dtype that a processor serves slowly takes
    long; the best of all sizes counts.

    Example:
        >>> sorted(ceilings(torch.device("cpu"), [torch.float32]))
        ['copy_gbps', 'matmul_n', 'matmul_tflops']
    """
    products = {_name(dtype): _matmul(device, dtype) for dtype in dtypes}
    return {
        "matmul_tflops": {name: speed for name, (speed, _) in products.items()},
        "matmul_n": {name: size for name, (_, size) in products.items()},
        "copy_gbps": _copy(device),
    }


def _matmul(device: torch.device, dtype: torch.dtype) -> tuple[float, int]:
    """The best speed and its size."""
    size, largest = (1024, 16384) if device.type == "cuda" else (256, 4096)
    speeds: dict[int, float] = {}
    seconds = 0.0
    while seconds < _STEP_SECONDS and size <= largest:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = _best(device, partial(torch.mm, a, b))
        speeds[size] = 2 * size**3 / seconds / 1e12
        size *= 2
    best = max(speeds, key=lambda size: speeds[size])
    return speeds[best], best


def _copy(device: torch.device) -> float:
    size = 1 << (30 if device.type == "cuda" else 27)
    source, target = (torch.ones(size, dtype=torch.int8, device=device) for _ in range(2))
    return 2 * size / _best(device, lambda: target.copy_(source)) / 1e9


def _best(device: torch.device, call: Callable[[], Any], repeats: int = 10) -> float:
    watch = stopwatch(device)
    call()
    return min(watch(call) for _ in range(repeats))


def _gpu_clocks(device: torch.device) -> dict[str, Any]:
    fields = ("clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu")
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"reason": "nvidia-smi is not installed"}
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    which = f"--id=GPU-{uuid}" if uuid is not None else f"--id={device.index or 0}"
    question = [program, which, f"--query-gpu=driver_version,{','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(question, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return {"reason": f"nvidia-smi gave no answer: {type(error).__name__}"}
    driver, *values = (value.strip() for value in done.stdout.strip().split(","))
    numbers = {name: _number(value) for name, value in zip(fields, values, strict=False)}
    return {"time": time.time(), "driver": driver, **numbers}


def _cpu_clocks() -> dict[str, Any]:
    found = [line.partition(":")[2] for line in _cpu_lines() if line.startswith("cpu MHz")]
    speeds = [number for number in map(_number, found) if number is not None]
    if not speeds:
        return {"reason": "this system does not tell its processors' clocks"}
    return {"time": time.time(), "mhz_min": min(speeds), "mhz_max": max(speeds)}


def _cpu_name() -> str:
    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.is_file() else []


def _cudnn(device: torch.device) -> int | None:
    version: int | None = torch.backends.cudnn.version() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    return version


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
