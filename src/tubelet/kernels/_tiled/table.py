"""Tables of tiles: which tokens a program owns, and which it walks through.

A *tile* is a box of tokens of a grid in raster order, or a stretch of a line, of queries in one table and of keys in
the other. What it attends (or is attended by) is two *lines*, every token of them, and a list of *boxes* of its grid.
Inside boxes a pair counts where, on every axis, the key's place lies in the span of the query's, ``first <= place <
last``; boxes that lie inside of every span need no such question. Tables are int32, a row a tile, and every token is in
one tile of its side, so that outputs need no zeros.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["FIELDS", "TileSizes", "Tiles", "line_tiles", "segment_tiles", "tile_rows"]

FIELDS = (
    "start", "side_h", "side_w", "here_t", "here_h", "here_w", "at_t", "at_h", "at_w",
    "line", "length", "more", "more_length",
    "grid", "pitch_t", "pitch_h", "length_t", "length_h", "length_w", "spans",
    "box_t", "box_h", "box_w", "boxes", "count",
)  # fmt: skip
"""Of a row: the tile's first token, the sides of its box, how much of it is there, its place in the grid; both lines;
the grid's first token, steps and sides, and where its spans begin; the sides of boxes, the first one's number, and how
many there are."""


class TileSizes(NamedTuple):
    """Tokens of a tile and of the tiles it walks: of queries forward, of queries backward, and of keys backward.

    Example:
        >>> TileSizes(128, 64, 64, 32, 64, 32).rows
        128
    """

    rows: int
    keys: int
    back_rows: int
    back_keys: int
    own_keys: int
    few_rows: int

    @property
    def pairs(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """A tile's tokens and those of the tiles it walks, of the three tables."""
        return (self.rows, self.keys), (self.back_rows, self.back_keys), (self.own_keys, self.few_rows)


class Tiles(NamedTuple):
    """What the kernels read: three tables, boxes, and spans ``(first, last)`` by place.

    A box is twice its first token, counted in its grid, plus 1 where no pair needs a question, and its place (t, h, w).
    Without boxes both last tensors are None. ``tokens``: how many queries and keys the tables are of.

    Example:
        >>> cu = torch.tensor([0, 3, 5])
        >>> segment_tiles(cu, cu, 5, 5, TileSizes(*[4] * 6)).queries.shape
        torch.Size([5, 25])
    """

    queries: Int[Tensor, "a f"]
    back_queries: Int[Tensor, "b f"]
    keys: Int[Tensor, "c f"]
    boxes: Int[Tensor, "d 4"] | None
    spans: Int[Tensor, "p 2"] | None
    sizes: TileSizes
    tokens: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """How much memory the tables take."""
        return sum(x.nbytes for x in self[:5] if x is not None)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Tiles":
        """The same on another device.

        Example:
            >>> cu = torch.tensor([0, 3, 5])
            >>> segment_tiles(cu, cu, 5, 5, TileSizes(*[4] * 6)).to("meta").keys.device
            device(type='meta')
        """
        moved: list[Any] = [x if x is None else x.to(device, non_blocking=non_blocking) for x in self[:5]]
        return Tiles(moved[0], moved[1], moved[2], moved[3], moved[4], self.sizes, self.tokens)


def segment_tiles(
    cu_q: Int[Tensor, " s1"], cu_k: Int[Tensor, " s1"], queries: int, keys: int, sizes: TileSizes
) -> Tiles:
    """Segments end to end: queries ``cu_q[i]`` to ``cu_q[i + 1]`` attend keys ``cu_k[i]`` to ``cu_k[i + 1]``.

    Made where ``cu_q`` and ``cu_k`` lie; nothing waits for a device. Tokens behind the last segment are in none.

    Example:
        >>> cu = torch.tensor([0, 3, 5])
        >>> segment_tiles(cu, cu, 6, 6, TileSizes(*[4] * 6)).queries[:, :1].T.tolist()
        [[0, 3, 5, 6, 6]]
    """
    sides = []
    for cu, tokens in ((cu_q, queries), (cu_k, keys)):
        cu = cu.clamp(0, tokens).cummax(0).values  # whatever they say, kernels stay inside of their memory
        cu = torch.cat([cu, cu.new_full((1,), tokens)]).to(torch.int32)
        seen = cu.diff()
        seen[-1:] = 0  # the tokens behind the last segment attend nothing, and nothing attends them
        sides.append((cu[:-1], cu.diff(), seen))
    (q, q_lengths, q_seen), (k, k_lengths, k_seen) = sides
    none = torch.zeros_like(q)
    by_queries = torch.stack([q, q_lengths, k, k_seen, none, none], 1)
    by_keys = torch.stack([k, k_lengths, q, q_seen, none, none], 1)
    forward, backward, of_keys = (size for size, _ in sizes.pairs)
    table = line_tiles(by_queries, forward, -(-queries // forward) + len(q))
    again = table if forward == backward else line_tiles(by_queries, backward, -(-queries // backward) + len(q))
    of_k = line_tiles(by_keys, of_keys, -(-keys // of_keys) + len(k))
    return Tiles(table, again, of_k, None, None, sizes, (queries, keys))


def line_tiles(stretches: Int[Tensor, "s 6"], size: int, tiles: int) -> Int[Tensor, "t f"]:
    """Stretches cut into ``tiles`` tiles of ``size`` tokens that attend two lines; those that are too many are empty.

    Args:
        stretches: first token and length of each, and of both lines.
        size: tokens of a tile.
        tiles: how many there are to be: at least ``Σ ceil(length / size)``.

    Example:
        >>> line_tiles(torch.tensor([[7, 7, 5, 2, 0, 1]]), 4, 3)[:, [0, 5, 9, 10]].tolist()
        [[7, 4, 5, 2], [11, 3, 5, 2], [14, 0, 5, 2]]
    """
    starts, lengths = stretches[:, 0], stretches[:, 1]
    counts = (lengths + (size - 1)) // size
    ends = counts.cumsum(0)
    number = torch.arange(tiles, device=starts.device)
    segment = torch.searchsorted(ends, number, right=True).clamp(max=len(starts) - 1)
    done = (number - (ends - counts)[segment]) * size
    one = torch.ones_like(number)
    lines = dict(zip(("line", "length", "more", "more_length"), stretches[segment, 2:].unbind(1), strict=True))
    return tile_rows(
        {
            "start": starts[segment] + torch.minimum(done, lengths[segment]),
            "side_h": one,
            "box_h": one,
            "box_w": one,
            "side_w": one * size,
            "here_t": one,
            "here_h": one,
            "here_w": (lengths[segment] - done).clamp(0, size),
            **lines,
        }
    )


def tile_rows(columns: dict[str, Int[Tensor, " t"]]) -> Int[Tensor, "t f"]:
    """A table from some of its columns; the others are 0.

    Example:
        >>> tile_rows({"start": torch.tensor([3, 4])}).shape
        torch.Size([2, 25])
    """
    zeros = torch.zeros_like(columns["start"])
    return torch.stack([columns.get(name, zeros) for name in FIELDS], 1).to(torch.int32)
