"""The state of the random number generators of a process, as plain values for a checkpoint.

Python's ``random``, numpy's global generator, torch's default one on the CPU and on every CUDA device in use, and any
``torch.Generator`` by name.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["restore_rng_state", "rng_state"]


def rng_state(generators: Mapping[str, torch.Generator] | None = None) -> dict[str, Any]:
    """Capture every global generator and the given ones.

    Args:
        generators: the run's own generators, by name.

    Returns:
        A nested dict of tensors, numbers and strings that :func:`save_checkpoint` takes.

    Example:
        >>> state = rng_state()
        >>> first = torch.rand(2)
        >>> restore_rng_state(state)
        >>> torch.equal(first, torch.rand(2))
        True
    """
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
        "generators": {name: generator.get_state() for name, generator in (generators or {}).items()},
    }


def restore_rng_state(state: Mapping[str, Any], generators: Mapping[str, torch.Generator] | None = None) -> None:
    """Put every generator back to where :func:`rng_state` found it.

    Args:
        state: from :func:`rng_state`.
        generators: the generators whose states were captured, by the same names.

    Raises:
        ValueError: other generator names or another number of CUDA devices than were captured.

    Example:
        >>> generator = torch.Generator().manual_seed(1)
        >>> state = rng_state({"noise": generator})
        >>> first = torch.rand(2, generator=generator)
        >>> restore_rng_state(state, {"noise": generator})
        >>> torch.equal(first, torch.rand(2, generator=generator))
        True
    """
    generators, cuda = generators or {}, state["cuda"]
    if set(generators) != set(state["generators"]):
        raise ValueError(f"generators are {sorted(generators)}, but the state has {sorted(state['generators'])}")
    if cuda and len(cuda) != torch.cuda.device_count():
        raise ValueError(f"the state has {len(cuda)} CUDA generators, but there are {torch.cuda.device_count()}")
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    for name, generator in generators.items():
        generator.set_state(state["generators"][name])
