"""Weights of a network of metrics from a safetensors file."""

import os
from typing import TypeVar

from torch import nn

from tubelet.files import parsing

__all__ = ["load_weights"]

M = TypeVar("M", bound=nn.Module)


def load_weights(network: M, path: str | os.PathLike[str]) -> M:
    """Fill a network of metrics from a safetensors file, and freeze it.

    Args:
        network: such as ``LPIPS()`` or ``I3D()``.
        path: of a file with exactly its tensors, as ``scripts/metric_weights.py`` writes them.

    Returns:
        ``network``, in eval mode, its parameters without gradients.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or tensors are missing, unexpected or of another shape; all are named.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from safetensors.torch import save_file
        >>> from tubelet.metrics import LPIPS
        >>> path = Path(tempfile.mkdtemp()) / "lpips.safetensors"
        >>> save_file(LPIPS((4, 4, 4, 4, 4)).state_dict(), path)
        >>> any(p.requires_grad for p in load_weights(LPIPS((4, 4, 4, 4, 4)), path).parameters())
        False
    """
    from safetensors.torch import load_file

    with parsing(path):
        given = load_file(os.fspath(path))
    wanted = network.state_dict()
    wrong = [f"missing: {name}" for name in sorted(wanted.keys() - given.keys())]
    wrong += [f"unexpected: {name}" for name in sorted(given.keys() - wanted.keys())]
    wrong += [
        f"{name}: {tuple(given[name].shape)} in the file, {tuple(tensor.shape)} in {type(network).__name__}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"{os.fspath(path)} does not fit {type(network).__name__}:\n  " + "\n  ".join(wrong))
    network.load_state_dict(given)
    return network.eval().requires_grad_(False)
