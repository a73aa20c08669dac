"""The host side of tiled attention: outputs, tiles and launches. Nothing here waits for the device.

Work of a head, of pairs in tiles that are walked: the forward ``4·pairs·d`` operations, the backward ``10·pairs·d`` and
``4·pairs·d`` more, since scores and their gradients are made by queries and again by keys, each in one order of sums.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tubelet.kernels._launching import Launcher, described, has_descriptors, launch, power_of_two, strides
from tubelet.kernels._tiled.table import Tiles, TileSizes

__all__ = ["LARGEST", "Given", "backward", "fixed_sizes", "forward"]

LARGEST = 256
"""The widest head that the kernels take."""


@dataclass(frozen=True)
class Given:
    """What both directions read: q ``(n, h, d)``, k ``(m, hk, d)``, v ``(m, hk, e)``; last axes lie dense.

    ``descriptors``: load by them where only lines are walked; None: where the device has them.

    Example:
        >>> from tubelet.kernels._tiled.table import segment_tiles
        >>> x, cu = torch.ones(5, 4, 8), torch.tensor([0, 5])
        >>> Given(x, x[:, :2], x[:, :2], 1.0, segment_tiles(cu, cu, 5, 5, TileSizes(*[16] * 6))).ratio
        2
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    tiles: Tiles
    descriptors: bool | None = None

    @property
    def ratio(self) -> int:
        """Query heads of a key head."""
        return self.q.shape[1] // self.k.shape[1]

    def walked(self, rows: int, **tensors: Tensor) -> dict[str, Any]:
        """Descriptors of ``rows`` tokens of one head of each, all or none: None where pointers serve."""
        wanted = [has_descriptors(x) if self.descriptors is None else self.descriptors for x in tensors.values()]
        found: dict[str, Any] = dict.fromkeys(tensors)
        if all(wanted) and self.tiles.boxes is None:
            for name, x in tensors.items():
                axes = [(x.shape[0], x.stride(0)), (x.shape[1], x.stride(1))]
                found[name] = described(x, axes, 0, [rows, 1, max(16, power_of_two(x.shape[-1]))])
        return {f"{name}_TILES": None if None in found.values() else tiles for name, tiles in found.items()}

    def shared(self, table: Tensor, rows: int, keys: int, **more: Tensor) -> dict[str, Any]:
        """The arguments of every kernel; ``more`` tensors are read as well."""
        width, v_width = self.q.shape[-1], self.v.shape[-1]
        return {
            "Q": self.q,
            "K": self.k,
            "V": self.v,
            "TILES": table,
            "BOXES": self.tiles.boxes,
            "SPANS": self.tiles.spans,
            "scale": self.scale,
            "tiles": len(table),
            "heads": self.q.shape[1],
            "ratio": self.ratio,
            **strides({"q": self.q, "k": self.k, "v": self.v, **more}, ("token", "head")),
            "D": width,
            "WIDTH": max(16, power_of_two(width)),
            "E": v_width,
            "V_WIDTH": max(16, power_of_two(v_width)),
            "ROWS": rows,
            "KEYS": keys,
            "STAGES": 2,
        }


def forward(given: Given, launcher: Launcher = launch) -> tuple[Tensor, Tensor]:
    """The output ``(n, h, e)`` and the log-sum-exp ``(n, h)``, contiguous; 0 and -inf for queries without keys.

    Example:
        >>> from tubelet.kernels._tiled.table import segment_tiles
        >>> x, cu = torch.ones(5, 4, 8), torch.tensor([0, 5])
        >>> given = Given(x, x, x, 1.0, segment_tiles(cu, cu, 5, 5, TileSizes(*[16] * 6)))
        >>> forward(given, lambda kernel, grid, arguments, warps: print(grid))[0].shape
        (12,)
        torch.Size([5, 4, 8])
    """
    from tubelet.kernels._tiled import kernel

    q, tiles = given.q, given.tiles
    out = q.new_empty(*q.shape[:2], given.v.shape[-1])
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    if q.numel():
        shared = given.shared(tiles.queries, tiles.sizes.rows, tiles.sizes.keys)
        grid = (len(tiles.queries) * q.shape[1],)
        warps = 8 if q.dtype == torch.float32 else _warps(q, tiles.sizes.rows)
        walked = given.walked(tiles.sizes.keys, K=given.k, V=given.v)
        launcher(kernel.forward, grid, {**shared, **walked, "OUT": out, "LSE": lse}, warps)
    return out, lse


def backward(
    grad: Tensor, given: Given, out: Tensor, lse: Tensor, launcher: Launcher = launch
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, contiguous; all sums have one order.

    Example:
        >>> from tubelet.kernels._tiled.table import segment_tiles
        >>> x, cu = torch.ones(5, 4, 8), torch.tensor([0, 5])
        >>> given = Given(x, x, x, 1.0, segment_tiles(cu, cu, 5, 5, TileSizes(*[16] * 6)))
        >>> grads = backward(x, given, x, x[..., 0], lambda kernel, grid, arguments, warps: print(kernel.__name__))
        backward_queries
        backward_keys
        >>> [tuple(each.shape) for each in grads]
        [(5, 4, 8), (5, 4, 8), (5, 4, 8)]
    """
    from tubelet.kernels._tiled import kernel

    q, k, tiles = given.q, given.k, given.tiles
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, given.v))
    delta = torch.empty_like(lse)
    read = {"GRAD": grad, "LSE": lse, "DELTA": delta}
    chosen = tiles.sizes
    if q.numel():
        shared = given.shared(tiles.back_queries, chosen.back_rows, chosen.back_keys, g=grad)
        grid = (len(tiles.back_queries) * q.shape[1],)
        arguments = {**shared, **read, **given.walked(chosen.back_keys, K=k, V=given.v), "OUT": out, "DQ": dq}
        launcher(kernel.backward_queries, grid, arguments, _warps(q, chosen.back_rows))
    if k.numel():
        shared = given.shared(tiles.keys, chosen.few_rows, chosen.own_keys, g=grad)
        grid = (len(tiles.keys) * k.shape[1],)
        arguments = {**shared, **read, **given.walked(chosen.few_rows, Q=q, GRAD=grad), "DK": dk, "DV": dv}
        launcher(kernel.backward_keys, grid, arguments, _warps(q, 2 * chosen.own_keys))
    return dq, dk, dv


def fixed_sizes(dtype: torch.dtype, width: int, boxes: bool) -> TileSizes:
    """Tiles by precision and head width: as large as the registers hold, and smaller ones where boxes are walked.

    Example:
        >>> fixed_sizes(torch.bfloat16, 128, boxes=False)
        TileSizes(rows=128, keys=64, back_rows=128, back_keys=64, own_keys=64, few_rows=32)
    """
    if dtype == torch.float32:  # which no tensor core multiplies
        return TileSizes(16, 16, 16, 16, 16, 16)
    if width > 128:
        return TileSizes(64, 32, 64, 16 if boxes else 32, 32, 32)
    if boxes:
        return TileSizes(128, 32, 64, 32, 64, 32)
    return TileSizes(128, 64, 128, 64, 64, 64 if width <= 64 else 32)


def _warps(q: Tensor, tokens: int) -> int:
    return 8 if tokens >= 128 or q.shape[-1] > 128 else 4
