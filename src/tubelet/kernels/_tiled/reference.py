"""Tiled attention in plain PyTorch: what the kernels are compared with, and what runs where there is no GPU."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tubelet.kernels._tiled.table import FIELDS, Tiles

__all__ = ["pairs", "reference"]


def reference(
    q: Float[Tensor, "n h d"], k: Float[Tensor, "m hk d"], v: Float[Tensor, "m hk e"], scale: float, tiles: Tiles
) -> Float[Tensor, "n h e"]:
    """``softmax(scale·q kᵀ) v`` over each query's keys, in float32 or better; 0 for a query without keys.

    Example:
        >>> from tubelet.kernels._tiled.table import TileSizes, segment_tiles
        >>> cu = torch.tensor([0, 4, 5])
        >>> reference(*torch.ones(3, 6, 4, 8), 1.0, segment_tiles(cu, cu, 6, 6, TileSizes(*[4] * 6)))[:, 0, 0].tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    allowed = pairs(tiles, len(q), len(k)).to(q.device)
    out = torch.zeros(*q.shape[:2], v.shape[-1], dtype=wide, device=q.device)
    rows = allowed.any(1).nonzero().flatten()
    ratio = q.shape[1] // k.shape[1]
    keys, values = (x.to(wide).repeat_interleave(ratio, dim=1) for x in (k, v))
    scores = torch.einsum("mhd,nhd->hmn", q[rows].to(wide), keys) * scale
    weights = scores.masked_fill(~allowed[rows], -torch.inf).softmax(-1)
    return out.index_put((rows,), torch.einsum("hmn,nhe->mhe", weights, values)).to(q.dtype)


def pairs(tiles: Tiles, queries: int, keys: int) -> Bool[Tensor, "n m"]:
    """Which queries attend which keys, read off the table of queries one tile after another.

    Example:
        >>> from tubelet.kernels._tiled.table import TileSizes, segment_tiles
        >>> cu = torch.tensor([0, 1, 3])
        >>> pairs(segment_tiles(cu, cu, 3, 3, TileSizes(*[4] * 6)), 3, 3).int().tolist()
        [[1, 0, 0], [0, 1, 1], [0, 1, 1]]
    """
    allowed = torch.zeros(queries, keys, dtype=torch.bool)
    for row in tiles.queries.tolist():
        tile = dict(zip(FIELDS, row, strict=True))
        own = _places(tile, "here")
        at = _tokens(tile, own, tile["start"])
        for line, length in ((tile["line"], tile["length"]), (tile["more"], tile["more_length"])):
            allowed[at[:, None], torch.arange(line, line + length)[None]] = True
        if tiles.spans is None or not tile["count"]:
            continue
        spans = tiles.spans.cpu().long()
        lengths = [tile[f"length_{axis}"] for axis in "thw"]
        grid = torch.cartesian_prod(*map(torch.arange, lengths)).view(-1, 3)
        near = torch.ones(len(own), len(grid), dtype=torch.bool)
        begin = tile["spans"]
        for axis, name in enumerate("thw"):
            first, last = spans[begin + tile[f"at_{name}"] + own[:, axis]].unbind(-1)
            near &= (grid[:, axis] >= first[:, None]) & (grid[:, axis] < last[:, None])
            begin += lengths[axis]
        block = tile["grid"] + grid @ torch.tensor([tile["pitch_t"], tile["pitch_h"], 1])
        allowed[at[:, None], block[None]] |= near
    return allowed


def _places(tile: dict[str, int], name: str) -> Int[Tensor, "m 3"]:
    sides = [tile[f"{name}_{axis}"] for axis in "thw"]
    return torch.cartesian_prod(*map(torch.arange, sides)).view(-1, 3)


def _tokens(tile: dict[str, int], places: Int[Tensor, "m 3"], start: int) -> Int[Tensor, " m"]:
    return start + places @ torch.tensor([tile["pitch_t"], tile["pitch_h"], 1])
