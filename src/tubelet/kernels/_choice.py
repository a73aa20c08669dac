"""Which implementation serves a call: an explicit backend raises with its reason, ``auto`` never guesses."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tubelet.kernels._blocks import refusal as unserved

__all__ = ["SERVED", "Backend", "PointwiseBackend", "absence", "installed", "interpreted", "use_blocks", "use_triton"]

Backend = Literal["auto", "reference", "triton"]
"""``auto`` is Triton for what it can serve on CUDA, else the reference. Example: ``"triton"``."""

PointwiseBackend = Literal["auto", "reference", "triton", "blocks"]
"""``auto`` is Triton for what it can serve on CUDA, blocks of tokens on the CPU, else the reference. Example:
``"blocks"``."""

SERVED = (torch.float32, torch.float16, torch.bfloat16)
"""Precisions that kernels read."""


def use_blocks(backend: PointwiseBackend, name: str, tensors: Sequence[Tensor | None]) -> bool:
    """Whether a call goes through blocks of tokens on the CPU; inside of ``torch.compile`` its own loops do as well.

    Raises:
        ValueError: ``blocks`` was asked for and cannot serve.

    Example:
        >>> use_blocks("auto", "norm_modulate", [torch.ones(2, 2)]), use_blocks("reference", "", [])
        (True, False)
    """
    if backend not in ("auto", "blocks") or torch.compiler.is_compiling():
        return False
    reason = unserved(tensors)
    if reason is not None and backend == "blocks":
        raise ValueError(f"backend='blocks' cannot serve this {name}: {reason}; backend='reference' can")
    return reason is None


def use_triton(backend: PointwiseBackend, name: str, tensors: Sequence[Tensor | None], refusal: str | None) -> bool:
    """Whether a kernel serves a call.

    Args:
        backend: what was asked for.
        name: of the operation, for the message.
        tensors: everything that the kernel would read.
        refusal: why the operation's own sizes cannot be served; None where they can.

    Raises:
        ValueError: ``triton`` was asked for and cannot serve, or ``blocks`` where no blocks did, or the backend is
            unknown.

    Example:
        >>> use_triton("auto", "norm_modulate", [torch.ones(2, 2)], None)
        False
    """
    if backend not in ("auto", "reference", "triton", "blocks"):
        raise ValueError(f"backend must be 'auto', 'reference' or 'triton', got {backend!r}")
    if backend == "reference" or (backend == "blocks" and torch.compiler.is_compiling()):
        return False
    if backend == "blocks":
        why = refusal or "it has no blocks of tokens on the CPU"
        raise ValueError(f"backend='blocks' cannot serve this {name}: {why}; backend='reference' can")
    given = [tensor for tensor in tensors if tensor is not None]
    if backend == "auto":
        return all(tensor.is_cuda for tensor in given) and refusal is None and _misfit(given) is None and installed()
    reason = refusal or _misfit(given) or absence(str(given[0].device), [tensor.dtype for tensor in given])
    if reason is not None:
        raise ValueError(f"backend='triton' cannot serve this {name}: {reason}; backend='reference' can")
    return True


def _misfit(tensors: Sequence[Tensor]) -> str | None:
    """Why the kernels cannot read these tensors anywhere."""
    if others := [tensor.device for tensor in tensors if tensor.device != tensors[0].device]:
        return f"its tensors lie on {tensors[0].device} and {others[0]}"
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in SERVED:
            return f"it computes in float32, and a tensor is {tensor.dtype}"
    return None


def absence(device: str, dtypes: Sequence[torch.dtype]) -> str | None:
    """Why kernels on tensors of a device and these precisions cannot run; None where they can.

    Example:
        >>> absence("meta", [torch.float32])
        'it needs a CUDA device, and the tensors lie on meta'
    """
    if not installed():
        return "triton is not installed (pip install 'tubelet[triton]')"
    on_cuda = device.startswith("cuda")
    if (on_cuda or _interpretable()) and interpreted():
        return "Triton's interpreter computes bfloat16 wrongly" if torch.bfloat16 in dtypes else None
    return None if on_cuda else f"it needs a CUDA device, and the tensors lie on {device}"


def _interpretable() -> bool:
    """Whether kernels may run on the CPU: asked before triton is imported to see."""
    return "TRITON_INTERPRET" in os.environ


def installed() -> bool:
    """Whether triton can be imported; nothing is imported to find out.

    Example:
        >>> isinstance(installed(), bool)
        True
    """
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter: ``TRITON_INTERPRET=1`` when triton was first imported.

    Example:
        >>> interpreted()
        False
    """
    from triton.runtime.interpreter import InterpretedFunction

    from tubelet.kernels._modulation import kernel

    return isinstance(kernel.forward, InterpretedFunction)


# what torch.compiler.assume_constant_result sets, without importing the compiler
for _asked in (_interpretable, installed, interpreted):
    _asked._dynamo_marked_constant = True  # type: ignore[attr-defined]
