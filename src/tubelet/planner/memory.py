"""Bytes that a model needs: by formula for any size, and measured from the real model on ``meta``.

The formulas count what dominates. A training state of AdamW in mixed precision has 16 bytes a parameter: two copies in
half precision (weights, gradients) and three in float32 (weights and both moments), as in ZeRO (arXiv:1910.02054,
section 3.1); an average of the weights has 4 more. Activations of a layer are 34 bytes a number of the stream and more
(arXiv:2205.05198, section 4.1); checkpointing keeps its input alone.
"""

import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tubelet.attention import attend
from tubelet.planner.amounts import check_amounts

__all__ = [
    "activation_bytes",
    "inference_bytes",
    "peak_bytes",
    "saved_bytes",
    "training_state_bytes",
    "weight_bytes",
]


def weight_bytes(parameters: int, itemsize: int = 2) -> int:
    """The weights, in a dtype of ``itemsize`` bytes.

    Raises:
        ValueError: a number is negative or not finite.

    Example:
        >>> weight_bytes(34_000_000_000)
        68000000000
    """
    check_amounts(0, parameters=parameters, itemsize=itemsize)
    return parameters * itemsize


def training_state_bytes(parameters: int, *, average: bool = False) -> int:
    """Weights, gradients and moments of AdamW in mixed precision; ``average`` adds one of the weights.

    Raises:
        ValueError: a number is negative or not finite.

    Example:
        >>> training_state_bytes(34_000_000_000), training_state_bytes(1, average=True)
        (544000000000, 20)
    """
    check_amounts(0, parameters=parameters)
    return parameters * (20 if average else 16)


def activation_bytes(
    tokens: int, dim: int, depth: int, *, checkpointed: bool = False, per_number: int | float = 34
) -> int:
    """What the backward pass needs of a forward in half precision: ``per_number·depth·tokens·dim``.

    Args:
        tokens, dim, depth: of all samples together, the width, and the layers.
        checkpointed: each layer keeps its input alone, 2 bytes a number, and one at a time is recomputed.
        per_number: bytes for each number of the stream in one layer, 34 to 62 by implementation.

    Raises:
        ValueError: a number is negative or not finite.

    Example:
        >>> activation_bytes(10, 2, 3), activation_bytes(10, 2, 3, checkpointed=True)
        (2040, 800)
    """
    check_amounts(0, tokens=tokens, dim=dim, depth=depth, per_number=per_number)
    layer = round(per_number * tokens * dim)
    return 2 * depth * tokens * dim + layer if checkpointed else depth * layer


def inference_bytes(parameters: int, tokens: int, dim: int, itemsize: int = 2) -> int:
    """The weights and what lives during one layer, about ten tensors of the stream's size.

    Raises:
        ValueError: a number is negative or not finite.

    Example:
        >>> inference_bytes(100, 4, 2)
        360
    """
    check_amounts(0, parameters=parameters, tokens=tokens, dim=dim, itemsize=itemsize)
    return itemsize * (parameters + 10 * tokens * dim)


def saved_bytes(model: nn.Module, *inputs: Any, **named: Any) -> int:
    """Bytes that a forward of the real model keeps for its backward: each storage once, parameters aside.

    On ``meta`` nothing is allocated; attention keeps q, k, v, the result and its log-sum-exp, as fused kernels do.

    Example:
        >>> saved_bytes(nn.Sequential(nn.Linear(8, 8), nn.GELU()), torch.ones(2, 8))
        128
    """
    given = {_key(parameter) for parameter in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(x: Tensor) -> Tensor:
        if _key(x) not in given:
            kept[_key(x)] = x.untyped_storage()  # held, so that no other storage gets its place
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), _Fused():
        out = model(*inputs, **named)
    del out
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(model: nn.Module, *inputs: Any, call: str = "forward", **named: Any) -> int:
    """The most bytes that live at once while the model runs without gradients, beside its weights and inputs.

    What an operation holds inside itself is not seen: workspaces, and attention elsewhere than on ``meta``.

    Example:
        >>> peak_bytes(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.ones(2, 8))
        128
    """
    meter = _Living([*model.parameters(), *model.buffers(), *tree_leaves((inputs, named))])
    with torch.no_grad(), meter, _Fused():
        (model if call == "forward" else getattr(model, call))(*inputs, **named)
    return meter.peak


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the bytes of storages from their making to their end."""

    def __init__(self, given: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: dict[int, Any] = {_key(x): x.untyped_storage() for x in given if isinstance(x, Tensor)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and _key(leaf) not in self.known:
                self._begins(leaf.untyped_storage())
        return out

    def _begins(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known[key] = weakref.ref(storage, partial(self._ends, key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _ends(self, key: int, size: int, _: Any) -> None:
        del self.known[key]
        self.now -= size


class _Fused(TorchFunctionMode):
    """On ``meta`` attention is one operation that keeps what fused kernels keep."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is attend and args[0].is_meta:
            return _Kept.apply(*args[:3])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("on meta there is nothing to differentiate")


def _key(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)
