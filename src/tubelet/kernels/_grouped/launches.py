"""The host side of grouped attention: outputs, tiles and launches. Nothing here waits for the device.

Bytes moved by one run of short groups, of ``n·h·d`` numbers in 2 bytes: the forward ``8·n·h·d`` (q, k, v read, the
output written once), the backward ``16·n·h·d``; no copy is ever permuted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tubelet.kernels._grouped.places import Axes, Pair
from tubelet.kernels._launching import Launcher, launch, power_of_two

__all__ = ["LARGEST", "Given", "Tile", "backward", "forward", "tile"]

LARGEST = 128
"""The widest head that the kernels take."""


class Tile(NamedTuple):
    """Queries and keys a program holds at a time, groups that share them (1: a group has tiles of its own), warps.

    Example:
        >>> Tile(64, 64, together=3, warps=4).together
        3
    """

    rows: int
    keys: int
    together: int
    warps: int


@dataclass(frozen=True)
class Given:
    """What both directions read: q ``(n, h, d)``, k ``(m, hk, d)``, v ``(m, hk, e)``; last axes lie dense.

    Example:
        >>> x = torch.ones(5, 4, 8)
        >>> Given(x, x[:, :2], x[:, :2], 1.0, ()).ratio
        2
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    pairs: Sequence[Pair]

    @property
    def ratio(self) -> int:
        """Query heads of a key head."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def merges(self) -> bool:
        """Whether queries attend the keys of several runs."""
        return any(pair.merge for pair in self.pairs)

    @property
    def queries(self) -> int:
        """How many queries the runs name."""
        return sum(pair.q.groups * pair.q.length for pair in self.pairs if not pair.merge)

    def shared(self, pair: Pair, chosen: Tile) -> dict[str, Any]:
        """The arguments of every kernel."""
        width, v_width = self.q.shape[-1], self.v.shape[-1]
        return {
            "Q": self.q,
            "K": self.k,
            "V": self.v,
            "scale": self.scale,
            "heads": self.q.shape[1],
            "ratio": self.ratio,
            "groups": pair.q.groups,
            "together": chosen.together,
            **{f"count{axis}": pair.q.count[axis] for axis in (1, 2, 3)},
            **_side("q", pair.q),
            **_side("k", pair.k),
            **_strides({"q": self.q, "k": self.k, "v": self.v}),
            "D": width,
            "WIDTH": max(16, power_of_two(width)),
            "E": v_width,
            "V_WIDTH": max(16, power_of_two(v_width)),
            "ROWS": chosen.rows,
            "KEYS": chosen.keys,
        }


def forward(given: Given, launcher: Launcher = launch) -> tuple[Tensor, Tensor]:
    """The output ``(n, h, e)`` and the log-sum-exp ``(n, h)``, contiguous; 0 and -inf for queries of no run.

    Example:
        >>> axes = Axes(0, (1, 1, 1, 2), (0, 0, 0, 1), (1, 1, 3), (0, 0, 2))
        >>> x = torch.ones(6, 4, 8)
        >>> given = Given(x, x, x, 1.0, [Pair(axes, axes, False)])
        >>> forward(given, lambda kernel, grid, arguments, warps: print(grid))[0].shape
        (4,)
        torch.Size([6, 4, 8])
    """
    from tubelet.kernels._grouped import kernel

    q, heads = given.q, given.q.shape[1]
    shape = (*q.shape[:2], given.v.shape[-1])
    whole = given.queries == q.shape[0]
    out = (q.new_empty if whole else q.new_zeros)(shape, dtype=torch.float32 if given.merges else q.dtype)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32) if whole else q.new_full(q.shape[:2], -torch.inf).float()
    for pair in given.pairs:
        chosen = tile(pair, q.dtype, backward=False)
        blocks, sets = _blocks(pair.q, chosen, chosen.rows)
        arguments = {
            **given.shared(pair, chosen),
            "OUT": out,
            "LSE": lse,
            "blocks": blocks,
            "SHARED": chosen.together > 1,
            "MERGE": pair.merge,
        }
        launcher(kernel.forward, (heads * blocks * sets,), arguments, chosen.warps)
    return out.to(q.dtype), lse


def backward(
    grad: Tensor, given: Given, out: Tensor, lse: Tensor, launcher: Launcher = launch
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, contiguous.

    Runs add to what earlier ones gave, in float32, where a token stands in several; all sums have one order.

    Example:
        >>> axes = Axes(0, (1, 1, 1, 2), (0, 0, 0, 1), (1, 1, 3), (0, 0, 2))
        >>> x = torch.ones(6, 4, 8)
        >>> given = Given(x, x, x, 1.0, [Pair(axes, axes, False)])
        >>> grads = backward(x, given, x, x[..., 0], lambda kernel, grid, arguments, warps: print(kernel.__name__))
        backward_together
        >>> [tuple(each.shape) for each in grads]
        [(6, 4, 8), (6, 4, 8), (6, 4, 8)]
    """
    q, (heads, kv_heads) = given.q, (given.q.shape[1], given.k.shape[1])
    once = len(given.pairs) == 1
    named = given.queries == q.shape[0] and sum(p.k.groups * p.k.length for p in given.pairs) == given.k.shape[0]
    make = torch.empty if once and named else torch.zeros
    dtype = q.dtype if once else torch.float32
    totals = [make(x.shape, dtype=dtype, device=x.device) for x in (q, given.k, given.v)]
    delta = torch.empty_like(lse)
    for pair in given.pairs:
        chosen = tile(pair, q.dtype, backward=True)
        arguments = {
            **given.shared(pair, chosen),
            **_strides({"g": grad}),
            "GRAD": grad,
            "OUT": out,
            "LSE": lse,
            "ADD": not once,
            **dict(zip(("DQ", "DK", "DV"), totals, strict=True)),
        }
        _start_backward(arguments, pair, chosen, delta, (heads, kv_heads), launcher)
    dq, dk, dv = (total.to(q.dtype) for total in totals)
    return dq, dk, dv


def _start_backward(
    arguments: dict[str, Any], pair: Pair, chosen: Tile, delta: Tensor, heads: tuple[int, int], launcher: Launcher
) -> None:
    from tubelet.kernels._grouped import kernel

    if chosen.together > 1:
        _, sets = _blocks(pair.q, chosen, chosen.rows)
        launcher(kernel.backward_together, (heads[1] * sets,), _without(arguments, "blocks"), chosen.warps)
        return
    arguments |= {"DELTA": delta, "SHARED": False}
    for start, side, rows, count in (
        (kernel.backward_queries, pair.q, chosen.rows, heads[0]),
        (kernel.backward_keys, pair.k, chosen.keys, heads[1]),
    ):
        blocks, sets = _blocks(side, chosen, rows)
        read = ("OUT", "DQ") if start is kernel.backward_keys else ("DK", "DV")
        launcher(start, (count * blocks * sets,), {**_without(arguments, *read), "blocks": blocks}, chosen.warps)


def tile(pair: Pair, dtype: torch.dtype, backward: bool) -> Tile:
    """The fixed tiles of a run: short groups share one, the smallest that leaves at most a quarter of its rows empty.

    Example:
        >>> axes = Axes(0, (1, 1, 1, 9), (0, 0, 0, 1), (1, 1, 21), (0, 0, 9))
        >>> tile(Pair(axes, axes, False), torch.bfloat16, backward=False)
        Tile(rows=64, keys=64, together=3, warps=4)
    """
    wide = dtype == torch.float32
    shared = _shared(max(pair.q.length, pair.k.length), pair.q.groups, (32,) if wide else (64, 128))
    if shared is not None:
        rows, together = shared
        return Tile(rows, rows, together, 8 if rows == 128 or (backward and not wide) else 4)
    if wide:
        return Tile(32, 32, 1, 4)
    long = not backward and pair.q.length > 64
    return Tile(128 if long else 64, 64, 1, 8 if long or backward else 4)


def _shared(length: int, groups: int, sizes: tuple[int, ...]) -> tuple[int, int] | None:
    """A tile's rows and how many groups share it; None where fewer than two do."""
    fits = [(rows, min(groups, rows // length)) for rows in sizes if rows >= 2 * length and groups > 1]
    if not fits:
        return None
    return next((each for each in fits if 4 * each[1] * length >= 3 * each[0]), fits[0])


def _blocks(side: Axes, chosen: Tile, rows: int) -> tuple[int, int]:
    """Tiles of a set of groups, and sets."""
    return (1 if chosen.together > 1 else -(-side.length // rows)), -(-side.groups // chosen.together)


def _side(name: str, axes: Axes) -> dict[str, int]:
    return {
        f"{name}_start": axes.start,
        **{f"{name}_pitch{axis}": step for axis, step in enumerate(axes.pitch)},
        **{f"{name}_size{axis}": axes.sizes[axis] for axis in (1, 2)},
        **{f"{name}_stride{axis}": step for axis, step in enumerate(axes.strides)},
        f"{name}_length": axes.length,
    }


def _strides(tensors: dict[str, Tensor]) -> dict[str, int]:
    """``<name>_by_token`` and ``_by_head`` of each."""
    return {f"{name}_by_{axis}": x.stride(i) for name, x in tensors.items() for i, axis in enumerate(("token", "head"))}


def _without(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in names}
