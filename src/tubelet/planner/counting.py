"""Multiply-accumulates of one forward pass, counted while the real model runs, on the device ``meta`` for example.

There tensors have shapes and no numbers, so that a model of any size is counted without memory. Matrix products and
convolutions are read from the operations that PyTorch dispatches, by the formulas of ``torch.utils.flop_counter``,
halved: papers say "FLOPs" for multiply-accumulates. Attention is counted where :func:`tubelet.attend` is called, by the
pairs that its pattern allows on its layout, and never computed on ``meta``.

Norms, activations, softmax and additions are left out, as in the papers.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tubelet.attention import Joint, attend
from tubelet.bench.pairs import count_pairs
from tubelet.layout import TokenLayout
from tubelet.planner.repeats import repeats

__all__ = ["Counts", "Part", "count", "count_parameters"]


@dataclass(frozen=True)
class Part:
    """What one child of a model holds and does: parameters, and multiply-accumulates of products and of attention.

    ``dense`` are those of linear layers and convolutions, ``attention`` those of scores and of weighted sums.

    Example:
        >>> Part("blocks", 10, 70, 30).macs
        100
    """

    name: str
    parameters: int
    dense: int
    attention: int

    @property
    def macs(self) -> int:
        """All multiply-accumulates."""
        return self.dense + self.attention


@dataclass(frozen=True)
class Counts:
    """Parameters and multiply-accumulates of a model, part by part in the order of its children.

    Example:
        >>> counts = count(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.ones(3, 4))
        >>> counts.parameters, counts.macs, counts["1"].dense
        (58, 144, 48)
    """

    parts: tuple[Part, ...]

    @property
    def parameters(self) -> int:
        """Trainable numbers; one that several parts share is counted once."""
        return sum(part.parameters for part in self.parts)

    @property
    def dense(self) -> int:
        """Multiply-accumulates of linear layers and convolutions."""
        return sum(part.dense for part in self.parts)

    @property
    def attention(self) -> int:
        """Multiply-accumulates of attention's scores and sums."""
        return sum(part.attention for part in self.parts)

    @property
    def macs(self) -> int:
        """All multiply-accumulates."""
        return self.dense + self.attention

    def __getitem__(self, name: str) -> Part:
        """The part of a name.

        Raises:
            KeyError: there is none.
        """
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(name)


def count_parameters(model: nn.Module) -> int:
    """All trainable numbers of a model, on any device; shared ones once.

    Example:
        >>> count_parameters(nn.Linear(10, 10, device="meta"))
        110
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count(model: nn.Module, *inputs: Any, call: str = "forward", **named: Any) -> Counts:
    """Run ``model(*inputs, **named)`` without gradients and count what it does.

    Args:
        model: any module. On ``meta``, equal blocks of a ``ModuleList`` run once and are counted each time.
        inputs, named: of its forward, on the model's device.
        call: the method to run instead, such as ``"encode"``.

    Returns:
        The counts of its children; what it does between them is the part ``""``.

    Example:
        >>> from tubelet import Attention, Grid, Spatial
        >>> model = Attention(64, heads=2, pattern=Spatial(), device="meta")
        >>> x, layout = torch.empty(1, 32, 64, device="meta"), TokenLayout.dense(1, Grid(2, 4, 4))
        >>> counts = count(model, x, layout)
        >>> counts.dense == 32 * 4 * 64**2, counts.attention == 2 * 32 * 16 * 64
        (True, True)
    """
    tally = _Tally()
    on_meta = all(parameter.is_meta for parameter in model.parameters())
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_watched(model, tally))
        if on_meta:
            stack.enter_context(repeats(model, tally.read, tally.add))
        stack.enter_context(_Operations(tally))
        stack.enter_context(_Attention(tally))
        (model if call == "forward" else getattr(model, call))(*inputs, **named)
    return Counts(tuple(_parts(model, tally)))


_FORMULAS: Final = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
}
"""Floating-point operations by operator; PyTorch's own table lacks the CPU's attention."""


class _Tally:
    """Sums, dense and of attention, for each part; ``running`` are the parts whose turn it is, innermost last."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[int, int]] = {}
        self.running = [""]
        self.paused = False

    @property
    def part(self) -> str:
        return self.running[-1]

    def read(self) -> tuple[int, int]:
        return self.sums.get(self.part, (0, 0))

    def add(self, dense: int, attention: int) -> None:
        if not self.paused:
            before = self.read()
            self.sums[self.part] = before[0] + dense, before[1] + attention

    @contextmanager
    def pause(self) -> Iterator[None]:
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds the products of each operation of PyTorch."""

    def __init__(self, tally: _Tally) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tally = tally

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.tally.add(formula(*args, **(kwargs or {}), out_val=out) // 2, 0)
        return out


class _Attention(TorchFunctionMode):
    """Adds the pairs of each call of attention, ours or PyTorch's; on ``meta`` ours is not computed."""

    def __init__(self, tally: _Tally) -> None:
        super().__init__()
        self.tally = tally

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is attend:
            with self.tally.pause():
                macs, out = _attended(*args, **(kwargs or {}))
        elif func is F.scaled_dot_product_attention:
            with self.tally.pause():
                out = func(*args, **(kwargs or {}))
            macs = _products(*args, **(kwargs or {}))
        else:
            return func(*args, **(kwargs or {}))
        self.tally.add(0, macs)
        return out


def _products(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Of PyTorch's attention, by its own names: callers may give all three so."""
    return math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _attended(q: Tensor, k: Tensor, v: Tensor, **named: Any) -> tuple[int, Tensor]:
    out = q.new_empty(*q.shape[:-1], v.shape[-1]) if q.is_meta else attend(q, k, v, **named)
    pattern, layout, kv_layout = (named.get(name) for name in ("pattern", "layout", "kv_layout"))
    if layout is None and kv_layout is None:
        pairs = math.prod(q.shape[:-1]) * k.shape[-3]
    else:
        rows = TokenLayout.padded([q.shape[-3]] * q.shape[0], q.shape[-3]) if layout is None else layout
        pairs = count_pairs(pattern or Joint(), rows, q.shape[-2], kv_layout=kv_layout)
    return pairs * (q.shape[-1] + v.shape[-1]), out


@contextmanager
def _watched(model: nn.Module, tally: _Tally) -> Iterator[None]:
    """While a child runs, it is the part that is added to."""
    handles = []
    for name, child in _children(model):

        def enter(*_: Any, name: str = name) -> None:
            tally.running.append(name)

        def leave(*_: Any) -> None:
            tally.running.pop()

        handles += [child.register_forward_pre_hook(enter), child.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _children(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts by name; a list or a dictionary is a part, and each of its items is run."""
    for name, child in model.named_children():
        yield from ((name, item) for item in _run(child))


def _run(module: nn.Module) -> Iterator[nn.Module]:
    """What is called of a module that may only hold others."""
    if not isinstance(module, nn.ModuleList | nn.ModuleDict):
        yield module
        return
    for item in module.children():
        yield from _run(item)


def _parts(model: nn.Module, tally: _Tally) -> Iterator[Part]:
    seen: set[int] = set()
    children = dict(model.named_children())
    named = {"": list(model.parameters(recurse=False))} | {name: list(c.parameters()) for name, c in children.items()}
    for name, parameters in named.items():
        own = {id(p): p.numel() for p in parameters if id(p) not in seen}
        seen |= own.keys()
        dense, attention = tally.sums.get(name, (0, 0))
        if name or own or dense or attention:
            yield Part(name, sum(own.values()), dense, attention)
