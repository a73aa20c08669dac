"""What operations ask of their arguments before a kernel reads memory: shapes always, values where the host sees them.

A kernel trusts shapes. Values on a GPU are never read by the host, which would wait for them: there kernels keep to the
memory that is theirs, whatever an index says.
"""

import torch
from torch import Tensor, nn

__all__ = ["check_attention", "check_index", "check_starts", "check_vectors", "plain", "visible"]


def plain(tensor: Tensor) -> bool:
    """Whether a tensor is neither of a class of its own nor transformed by ``torch.func``.

    Example:
        >>> plain(torch.ones(2))
        True
    """
    return type(tensor) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def visible(tensor: Tensor) -> bool:
    """Whether the host may look at values: those of a plain tensor on the CPU, outside of ``torch.compile``.

    Example:
        >>> visible(torch.ones(2)), visible(torch.ones(2, device="meta"))
        (True, False)
    """
    return not torch.compiler.is_compiling() and tensor.device.type == "cpu" and plain(tensor)


def check_vectors(width: int, of: str = "", **vectors: Tensor | None) -> None:
    """Whether vectors of a norm have ``width`` numbers.

    Args:
        width: how many there are to be.
        of: what the message says behind a vector's name.
        vectors: by their names; None is none.

    Raises:
        ValueError: one has another shape.

    Example:
        >>> check_vectors(3, weight=torch.ones(1))
        Traceback (most recent call last):
        ValueError: weight must be (3,), got (1,)
    """
    for name, vector in vectors.items():
        if vector is not None and vector.shape != (width,):
            raise ValueError(f"{name}{of} must be ({width},), got {tuple(vector.shape)}")


def check_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Whether queries ``(n, h, d)``, keys ``(m, hk, d)`` and values ``(m, hk, e)`` belong together, in one precision.

    Raises:
        ValueError: they do not.

    Example:
        >>> check_attention(torch.ones(5, 4, 8), torch.ones(6, 2, 8), torch.ones(6, 2, 3))
    """
    if not q.ndim == k.ndim == v.ndim == 3 or k.shape[:2] != v.shape[:2] or q.shape[2] != k.shape[2]:
        shapes = f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        raise ValueError(f"q, k and v must be (n, h, d), (m, hk, d) and (m, hk, e), got {shapes}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"q has {q.shape[1]} heads, not a multiple of k's {k.shape[1]}")


def check_index(index: Tensor, rows: int) -> None:
    """Whether an index is of integers and names rows that are there, ``-rows`` to ``rows - 1``; unasked on a GPU.

    Raises:
        ValueError: it is of other numbers.
        IndexError: it names others.

    Example:
        >>> check_index(torch.tensor([0, 3]), 3)
        Traceback (most recent call last):
        IndexError: the index names rows 0 to 3, but there are 3
    """
    if index.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"the index of rows must be int32 or int64, got {index.dtype}")
    if not index.numel() or not visible(index):
        return
    low, high = (int(end) for end in index.aminmax())
    if low < -rows or high >= rows:
        raise IndexError(f"the index names rows {low} to {high}, but there are {rows}")


def check_starts(name: str, starts: Tensor, tokens: int) -> None:
    """Whether numbers say where segments end to end begin, and the last one ends: of values on a GPU only their form.

    Args:
        name: of the argument.
        starts: integers ``(s + 1,)`` from 0 that do not decrease.
        tokens: what the last one must not exceed.

    Raises:
        ValueError: they do not.

    Example:
        >>> check_starts("cu_q", torch.tensor([0, 9]), 8)
        Traceback (most recent call last):
        ValueError: cu_q must start at 0, not decrease and end at most at 8 tokens, got [0, 9]
    """
    if starts.ndim != 1 or not len(starts) or starts.is_floating_point() or starts.dtype == torch.bool:
        raise ValueError(f"{name} must be integers (s + 1,), got {starts.dtype} of shape {tuple(starts.shape)}")
    if not visible(starts):
        return
    values = starts.tolist()
    if values[0] != 0 or values[-1] > tokens or values != sorted(values):
        shown = f"[{', '.join(map(str, values[:8]))}{', ...' if len(values) > 8 else ''}]"
        raise ValueError(f"{name} must start at 0, not decrease and end at most at {tokens} tokens, got {shown}")
