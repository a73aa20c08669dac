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
from tubelet.kernels._launching import Launcher, Sizes, described, has_descriptors, launch, power_of_two, strides
from tubelet.kernels._tuning import choose

__all__ = ["LARGEST", "Given", "Tile", "backward", "forward", "tile"]

LARGEST = 128
"""The widest head that the kernels take."""


class Tile(NamedTuple):
    """Queries and keys a program holds at a time, how many whole groups that is (0: parts of one), and warps.

    Example:
        >>> Tile(64, 64, together=0, warps=4).sets(5)
        5
    """

    rows: int
    keys: int
    together: int
    warps: int

    def sets(self, groups: int) -> int:
        """Sets of groups that lie in one tile."""
        return -(-groups // max(1, self.together))

    def blocks(self, length: int, size: int) -> int:
        """Tiles of ``size`` that such a set needs."""
        return 1 if self.together else -(-length // size)

    def name(self, direction: str) -> str:
        """Of the sizes that a device may have measured, for short groups or long ones."""
        return f"grouped_{direction}_{'short' if self.together else 'long'}"

    def resized(self, sizes: Sizes, pair: Pair) -> "Tile":
        """A tile of other rows and warps; this one where a product has more rows, or a group does.

        Example:
            >>> axes = Axes(0, (1, 1, 1, 9), (0, 0, 0, 1), (1, 1, 21), (0, 0, 9))
            >>> Tile(64, 64, together=3, warps=4).resized(Sizes(128, 8), Pair(axes, axes, False))
            Tile(rows=128, keys=128, together=6, warps=8)
        """
        rows, together = sizes.tokens, min(pair.q.groups, sizes.tokens // max(pair.q.length, pair.k.length))
        if rows < 16 or (self.together and not together):
            return self
        return Tile(rows, rows, together, sizes.warps) if self.together else Tile(rows, self.keys, 0, sizes.warps)


@dataclass(frozen=True)
class Given:
    """What both directions read: q ``(n, h, d)``, k ``(m, hk, d)``, v ``(m, hk, e)``; last axes lie dense.

    ``descriptors``: load by them where groups are regular; None: where the device has them.

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
    descriptors: bool | None = None

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

    def tiles(self, x: Tensor, side: Axes, together: int, rows: int) -> Any:
        """A descriptor of ``rows`` rows of one head; None where pointers serve.

        Short groups that share a tile are not as many as a tile of the hardware has rows.
        """
        wanted = has_descriptors(x) if self.descriptors is None else self.descriptors
        if not wanted or together or side.sizes[:2] != (1, 1) or side.count[:2] != (1, 1):
            return None
        token, head = x.stride(0), x.stride(1)
        steps = [(side.length, side.strides[2]), (side.count[3], side.pitch[3]), (side.count[2], side.pitch[2])]
        axes = [(size, (step if size > 1 else 1) * token) for size, step in steps]
        width = max(16, power_of_two(x.shape[-1]))
        return described(x, [*axes, (x.shape[1], head)], side.start * token, [rows, 1, 1, 1, width])

    def shared(self, pair: Pair, chosen: Tile, **more: Tensor) -> dict[str, Any]:
        """The arguments of every kernel; ``more`` tensors are read as well."""
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
            **strides({"q": self.q, "k": self.k, "v": self.v, **more}, ("token", "head")),
            "D": width,
            "WIDTH": max(16, power_of_two(width)),
            "E": v_width,
            "V_WIDTH": max(16, power_of_two(v_width)),
            "ROWS": chosen.rows,
            "KEYS": chosen.keys,
        }


def forward(given: Given, launcher: Launcher = launch, sizes: Sizes | None = None) -> tuple[Tensor, Tensor]:
    """The output ``(n, h, e)`` and the log-sum-exp ``(n, h)``, contiguous; 0 and -inf for queries of no run.

    ``sizes`` are rows of a tile and warps; None: measured or fixed ones.

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
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    lse = lse if whole else lse.fill_(-torch.inf)
    for pair in given.pairs:
        chosen = _chosen(pair, q, sizes, backward=False)
        blocks = chosen.blocks(pair.q.length, chosen.rows)
        results: dict[str, Any] = {
            "OUT": out,
            "LSE": lse,
            "blocks": blocks,
            "SHARED": chosen.together > 0,
            "MERGE": pair.merge,
        }
        results |= {
            f"{name}_TILES": given.tiles(x, pair.k, chosen.together, chosen.keys)
            for name, x in (("K", given.k), ("V", given.v))
        }
        grid = (heads * blocks * chosen.sets(pair.q.groups),)
        launcher(kernel.forward, grid, {**given.shared(pair, chosen), **results}, chosen.warps)
    return out.to(q.dtype), lse


def backward(
    grad: Tensor, given: Given, out: Tensor, lse: Tensor, launcher: Launcher = launch, sizes: Sizes | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, contiguous; ``sizes`` as of the forward.

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
    from tubelet.kernels._grouped import kernel

    q, (heads, kv_heads) = given.q, (given.q.shape[1], given.k.shape[1])
    once = len(given.pairs) == 1
    named = given.queries == q.shape[0] and sum(p.k.groups * p.k.length for p in given.pairs) == given.k.shape[0]
    make = torch.empty if once and named else torch.zeros
    dtype = q.dtype if once else torch.float32
    totals = [make(x.shape, dtype=dtype, device=x.device) for x in (q, given.k, given.v)]
    delta = torch.empty_like(lse)
    for pair in given.pairs:
        chosen = _chosen(pair, q, sizes, backward=True, adds=not once)
        dq, dk, dv = totals
        read = {**given.shared(pair, chosen, g=grad), "GRAD": grad, "LSE": lse}
        sets = chosen.sets(pair.q.groups)
        if chosen.together:
            arguments = {**read, "OUT": out, "DQ": dq, "DK": dk, "DV": dv}
            launcher(kernel.backward_together, (kv_heads * sets,), arguments, chosen.warps)
            continue
        read |= {"DELTA": delta, "ADD": not once}
        blocks = chosen.blocks(pair.q.length, chosen.rows)
        walked = {
            f"{name}_TILES": given.tiles(x, pair.k, 0, chosen.keys) for name, x in (("K", given.k), ("V", given.v))
        }
        arguments = {**read, **walked, "OUT": out, "DQ": dq, "blocks": blocks}
        launcher(kernel.backward_queries, (heads * blocks * sets,), arguments, chosen.warps)
        blocks = chosen.blocks(pair.k.length, chosen.keys)
        padded = read["D"] < read["WIDTH"]
        few = {"ROWS": max(16, chosen.rows // (4 if padded else 2))}  # sums of keys take what registers there are
        walked = {f"{name}_TILES": given.tiles(x, pair.q, 0, few["ROWS"]) for name, x in (("Q", q), ("GRAD", grad))}
        arguments = {**read, **walked, **few, "DK": dk, "DV": dv, "blocks": blocks}
        launcher(kernel.backward_keys, (kv_heads * blocks * sets,), arguments, chosen.warps)
    dq, dk, dv = (total.to(q.dtype) for total in totals)
    return dq, dk, dv


def tile(pair: Pair, dtype: torch.dtype, width: int, backward: bool, adds: bool = False) -> Tile:
    """The fixed tiles of a run: groups that fit into one share it, as many as do.

    Where gradients are added to others, the kernel for that would not have the registers: a tile for each.

    Example:
        >>> axes = Axes(0, (1, 1, 1, 9), (0, 0, 0, 1), (1, 1, 21), (0, 0, 9))
        >>> tile(Pair(axes, axes, False), torch.bfloat16, 128, backward=False)
        Tile(rows=64, keys=64, together=3, warps=4)
    """
    wide = dtype == torch.float32  # which no tensor core multiplies
    rows = 16 if wide else 64
    together = 0 if adds else min(pair.q.groups, rows // max(pair.q.length, pair.k.length))
    if wide:
        return Tile(rows, rows, together, 4)
    if together:
        return Tile(rows, rows, together, 8 if backward else 4)
    return Tile(128 if width <= 64 < pair.q.length and not backward else rows, rows, 0, 8)


def _chosen(pair: Pair, q: Tensor, sizes: Sizes | None, *, backward: bool, adds: bool = False) -> Tile:
    """The tiles of a run: given ones, else measured ones, else the fixed ones."""
    fixed, width = tile(pair, q.dtype, q.shape[-1], backward, adds), q.shape[-1]
    name = fixed.name("backward" if backward else "forward")
    sizes = sizes or choose(name, q.device, width, q.dtype, Sizes(fixed.rows, fixed.warps))
    return fixed.resized(sizes, pair)


def _side(name: str, axes: Axes) -> dict[str, int]:
    return {
        f"{name}_start": axes.start,
        **{f"{name}_pitch{axis}": step for axis, step in enumerate(axes.pitch)},
        **{f"{name}_size{axis}": axes.sizes[axis] for axis in (1, 2)},
        **{f"{name}_stride{axis}": step for axis, step in enumerate(axes.strides)},
        f"{name}_length": axes.length,
    }
