"""The device side of a layout: tensors that say where each token lies, what it is and whose.

Shapes: ``*lead`` is ``n`` (packed) or ``b n`` (batched), ``s`` segments, ``f`` rows of (sample, frame).
"""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from tubelet.layout.rows import Level, Rows

__all__ = ["HostTable", "Kind", "LayoutIndex", "TokenInfo", "geometry", "whole_samples"]


class Kind:
    """What a token is: padding, a prefix token (text or register), or a cell of the video grid.

    Plain integers: ``torch.compile`` evaluates a comparison of a tensor with an enum member to a constant.

    Example:
        >>> Kind.PAD, Kind.TEXT, Kind.GRID
        (0, 1, 2)
    """

    PAD: Final = 0
    TEXT: Final = 1
    GRID: Final = 2


class TokenInfo(NamedTuple):
    """What an attention pattern may know of a token; every field broadcasts over the token axes.

    ``coords`` is ``(t, h, w)`` inside the sample's grid (text: ``(-1, 0, position)``), ``extent`` the grid's sides
    (text: ``(1, 1, length)``), ``kind`` one of :class:`Kind`, ``sample`` the sample's number (padding: -1).

    Example:
        >>> from tubelet.layout import Grid, TokenLayout
        >>> info = TokenLayout.packed([Grid(1, 1, 2)]).on("cpu").info()
        >>> info.coords.tolist()
        [[0, 0, 0], [0, 0, 1]]
    """

    coords: Int[Tensor, "*lead 3"]
    extent: Int[Tensor, "*lead 3"]
    kind: Int[Tensor, "*lead"]
    sample: Int[Tensor, "*lead"]


class HostTable(NamedTuple):
    """What the samples of a layout are, on the host, where looking at it waits for no device.

    ``table`` has a row for each segment: its start, length, text length and grid (t, h, w; zeros without one);
    ``kept`` are the canonical positions of all tokens where some were dropped.

    Example:
        >>> from tubelet.layout import Grid, TokenLayout
        >>> TokenLayout.packed([Grid(1, 2, 2), Grid(2, 1, 1)]).host.table.tolist()
        [[0, 4, 0, 1, 2, 2], [4, 2, 0, 2, 1, 1]]
    """

    table: Int[Tensor, "s 6"]
    kept: Int[Tensor, " m"] | None

    def difference(self, other: "HostTable") -> str | None:
        """Where the samples of two layouts differ, in words; None where they do not, whatever the room for more.

        Example:
            >>> from tubelet.layout import TokenLayout
            >>> one, other = TokenLayout.packed([None], [3]).host, TokenLayout.packed([None], [2]).host
            >>> one.difference(other)
            'sample 0 has (tokens, text, t, h, w) of (3, 3, 0, 0, 0), not (2, 2, 0, 0, 0)'
        """
        rows = max(len(self.table), len(other.table))
        ours, theirs = (F.pad(each.table[:, 1:], (0, 0, 0, rows - len(each.table))) for each in (self, other))
        if not torch.equal(ours, theirs):
            at = int((ours != theirs).any(dim=1).nonzero()[0])
            found, asked = tuple(ours[at].tolist()), tuple(theirs[at].tolist())
            return f"sample {at} has (tokens, text, t, h, w) of {found}, not {asked}"
        # of as many tokens: where none was dropped from one, none was from the other
        if self.kept is not None and other.kept is not None and not torch.equal(self.kept, other.kept):
            at = int((self.kept != other.kept).nonzero()[0])
            return f"token {at} is number {int(self.kept[at])} of its sample, not {int(other.kept[at])}"
        return None


@dataclass(frozen=True, eq=False)
class LayoutIndex:
    """A layout as tensors on one device; made by :meth:`TokenLayout.on`.

    Segment ``i`` holds ``seqlens[i]`` tokens from ``cu_seqlens[i]`` on the flattened token axis. In a layout with a
    capacity, ``cu_seqlens``, ``seqlens`` and the row tables are padded to bucketed sizes, so that code compiled for one
    layout serves every layout of that capacity. ``table`` stays on the host and spares kernels a synchronisation: per
    segment its start, length, text length and grid (t, h, w; zeros without one); ``kept`` holds the canonical positions
    of the tokens where some were dropped.

    Example:
        >>> from tubelet.layout import Grid, TokenLayout
        >>> index = TokenLayout.packed([Grid(1, 2, 2), Grid(2, 1, 1)]).on("cpu")
        >>> index.cu_seqlens.tolist(), index.sample.tolist()
        ([0, 4, 6], [0, 0, 0, 0, 1, 1])
    """

    cu_seqlens: Int[Tensor, " s1"]
    seqlens: Int[Tensor, " s"]
    table: Int[Tensor, "s 6"]
    kept: Int[Tensor, " m"] | None
    coords: Int[Tensor, "*lead 3"]
    extent: Int[Tensor, "*lead 3"]
    sample: Int[Tensor, "*lead"]
    kind: Int[Tensor, "*lead"]
    frame_row: Int[Tensor, "*lead"]
    frame_sample: Int[Tensor, " f"]
    samples: int
    frames: int
    max_seqlen: int
    dense: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The leading shape of token tensors: ``(n,)`` packed, ``(b, n)`` batched."""
        return tuple(self.sample.shape)

    @property
    def host(self) -> HostTable:
        """What the samples are, on the host."""
        return HostTable(self.table, self.kept)

    @property
    def frame(self) -> Int[Tensor, "*lead"]:
        """The frame number of each token; -1 for text and padding."""
        return self.coords[..., 0]

    @property
    def valid(self) -> Bool[Tensor, "*lead"]:
        """True where a token is not padding."""
        return self.kind != Kind.PAD

    def zero_padding(self, x: Shaped[Tensor, "*lead d"]) -> Shaped[Tensor, "*lead d"]:
        """Tokens with zeros that padding's NaN cannot pass, in gradients neither; dense ones, without any, as they are.

        Example:
            >>> from tubelet.layout import TokenLayout
            >>> TokenLayout.padded([1, 2], 2).on("cpu").zero_padding(torch.full((2, 2, 1), torch.inf)).flatten()
            tensor([inf, 0., inf, inf])
        """
        if self.dense and not torch.compiler.is_compiling():  # compiled code serves layouts of either kind
            return x
        return torch.where(self.valid[..., None], x, 0)

    def info(self) -> TokenInfo:
        """What a pattern's predicate sees of these tokens."""
        return TokenInfo(self.coords, self.extent, self.kind, self.sample)

    def rows(self, values: Shaped[Tensor, "r ..."], level: Level) -> Rows:
        """Give each token its row of ``values``: one per sample, per (sample, frame) or per token.

        At ``"frame"`` a sample with text has one more row, first, for its text. Rows beyond the real ones
        (capacity) are zeros; padding tokens use some row. Rows per sample of a batched layout are by view.

        Raises:
            ValueError: ``values`` has another number of rows than the level.

        Example:
            >>> from tubelet.layout import Grid, TokenLayout
            >>> index = TokenLayout.dense(1, Grid(2, 1, 2)).on("cpu")
            >>> index.rows(torch.tensor([0.0, 0.7]), "frame").expand()
            tensor([[0.0000, 0.0000, 0.7000, 0.7000]])
        """
        real, capacity = self.row_counts(level)
        # a full table never reads the number of real rows, so that compiled code holds no guard on it
        if values.shape[0] != capacity and values.shape[0] != real:
            raise ValueError(f"values has {values.shape[0]} rows, but the layout has {real} at level {level!r}")
        values = _fit(values, capacity)
        by_view = level == "sample" and len(self.shape) == 2
        return Rows(values, None if by_view else self._row_index(level), self._owner(level))

    def row_counts(self, level: Level) -> tuple[int, int]:
        """``(real, capacity)``: how many rows the level has, and how many with the capacity's padding."""
        if level == "sample":
            return self.samples, self.seqlens.shape[0]
        if level == "frame":
            return self.frames, self.frame_sample.shape[0]
        if level != "token":
            raise ValueError(f"level must be 'sample', 'frame' or 'token', got {level!r}")
        return self.sample.numel(), self.sample.numel()

    def lift(self, values: Shaped[Tensor, "s ..."], level: Level) -> Shaped[Tensor, "r ..."]:
        """Repeat one row per sample into one row per ``level``: ``(samples, ...)`` to ``(rows, ...)``.

        Example:
            >>> from tubelet.layout import Grid, TokenLayout
            >>> index = TokenLayout.packed([Grid(2, 1, 1), Grid(1, 1, 1)]).on("cpu")
            >>> index.lift(torch.tensor([5, 6]), "frame").tolist()
            [5, 5, 6]
        """
        return values[self._owner(level)[: self.row_counts(level)[0]]]

    def add_per_sample(self, rows: Rows, values: Shaped[Tensor, "s ..."]) -> Rows:
        """Add one value per sample to rows of any level, as pooled text is added to embedded noise levels.

        A single row without an owner (one noise level for all) becomes one row per sample; rows by view stay so.
        ``values`` may come from a layout of the same samples with another capacity of samples.

        Raises:
            ValueError: several rows of unknown owners.

        Example:
            >>> from tubelet.layout import Grid, Rows, TokenLayout
            >>> index = TokenLayout.packed([Grid(1, 1, 1), Grid(1, 1, 2)]).on("cpu")
            >>> index.add_per_sample(Rows(torch.tensor([[1.0]])), torch.tensor([[10.0], [20.0]])).expand().flatten()
            tensor([11., 21., 21.])
        """
        values = _fit(values, self.seqlens.shape[0])
        if rows.owner is not None:
            return Rows(rows.values + values[rows.owner], rows.index, rows.owner)
        if rows.index is None and len(self.shape) == 2 and rows.values.shape[0] == self.shape[0]:
            return Rows(rows.values + values)  # one row per batch element, by view
        if rows.values.shape[0] != 1:
            raise ValueError(f"rows has {rows.values.shape[0]} rows without owners; make them with layout.rows(...)")
        return self.rows(rows.values + values, "sample")

    def prefix(self, tokens: int) -> "LayoutIndex":
        """The index of ``tokens`` further tokens for each sample, batched or packed as this one: registers, conditions.

        Samples behind the real ones (capacity) have them too, so that compiled code serves any number; a
        :class:`~tubelet.layout.JointIndex` puts them before the sample's own.

        Raises:
            ValueError: ``tokens`` is smaller than 1.

        Example:
            >>> from tubelet.layout import Grid, TokenLayout
            >>> TokenLayout.packed([Grid(1, 1, 3), Grid(2, 1, 1)]).on("cpu").prefix(2).sample
            tensor([0, 0, 1, 1])
        """
        if tokens < 1:
            raise ValueError(f"tokens must be at least 1, got tokens={tokens} for {self.samples} samples")
        rows = self.seqlens.shape[0]
        none = torch.zeros(rows, dtype=torch.long)
        table = torch.stack([torch.arange(rows) * tokens, none + tokens, none + tokens, none, none, none], dim=1)
        shape = (rows, tokens) if len(self.shape) == 2 else (rows * tokens,)
        # compiled code hands the number of samples on without reading it, and so holds no guard on it
        return whole_samples(table, shape, self.samples, rows, tokens, len(shape) == 2, self.sample.device)

    def same_samples(self, other: "LayoutIndex") -> bool:
        """Whether both hold as many samples; taken for granted in compiled code, whose graph serves any number.

        Example:
            >>> from tubelet.layout import Grid, TokenLayout
            >>> index = TokenLayout.dense(2, Grid(1, 1, 1)).on("cpu")
            >>> index.same_samples(TokenLayout.padded([1, 0], 3).on("cpu"))
            True
        """
        return torch.compiler.is_compiling() or self.samples == other.samples

    def _owner(self, level: Level) -> Int[Tensor, " r"]:
        """The sample of each row of a level, up to the capacity."""
        if level == "sample":
            return torch.arange(self.seqlens.shape[0], device=self.sample.device)
        return self.frame_sample if level == "frame" else self.sample.flatten().clamp(min=0)

    def _row_index(self, level: Level) -> Int[Tensor, "*lead"]:
        if level == "sample":
            return self.sample.clamp(min=0)
        if level == "frame":
            return self.frame_row
        return torch.arange(self.sample.numel(), device=self.sample.device).view(self.shape)


def whole_samples(
    table: Int[Tensor, "s 6"],
    shape: tuple[int, ...],
    samples: int,
    frames: int,
    max_seqlen: int,
    dense: bool,
    device: torch.device | str,
) -> LayoutIndex:
    """The index of samples of which no token was dropped, from their host table; compiled code may make it.

    Args:
        table: as :class:`LayoutIndex` has it, with as many rows as segments.
        shape: of the token axes; batched rows hold a sample each, packed samples lie end to end.
        samples, max_seqlen, dense: of the index.
        frames: room for its rows of (sample, frame).
        device: where it goes.

    Example:
        >>> whole_samples(torch.tensor([[0, 3, 1, 1, 1, 2], [3, 1, 1, 0, 0, 0]]), (5,), 2, 4, 3, False, "cpu").kind
        tensor([1, 2, 2, 1, 0])
    """
    starts, lengths, texts = table.to(device)[:, :3].unbind(1)
    sides, number = table.to(device)[:, 3:], torch.arange(shape[-1], device=device).expand(shape)
    if len(shape) == 2:
        sample, position = torch.arange(shape[0], device=device)[:, None].expand(shape), number
    else:
        sample = torch.searchsorted(starts + lengths, number, right=True).clamp(max=len(table) - 1)
        position = number - starts[sample]
    valid = position < lengths[sample]
    tokens = geometry(position.flatten(), texts[sample].flatten(), sides[sample].flatten(0, -2), sample.flatten())
    coords, extent, kind = tokens.coords.view(*shape, 3), tokens.extent.view(*shape, 3), tokens.kind.view(shape)
    has_text = (texts > 0).long()
    rows = has_text + sides[:, 0]
    frame = torch.where(kind == Kind.TEXT, 0, has_text[sample] + coords[..., 0])
    owners = torch.searchsorted(rows.cumsum(0), torch.arange(frames, device=device), right=True)
    end = torch.tensor([math.prod(shape)], device=device) if len(shape) == 2 else (starts + lengths)[-1:]
    return LayoutIndex(
        cu_seqlens=torch.cat([starts, end]).int(),
        seqlens=lengths.int(),
        table=table,
        kept=None,
        coords=torch.where(valid[..., None], coords, -1),
        extent=torch.where(valid[..., None], extent, 0),
        sample=torch.where(valid, sample, -1),
        kind=torch.where(valid, kind, Kind.PAD),
        frame_row=torch.where(valid, (rows.cumsum(0) - rows)[sample] + frame, 0),
        frame_sample=owners.clamp(max=len(table) - 1),
        samples=samples,
        frames=frames,
        max_seqlen=max_seqlen,
        dense=dense,
    )


def geometry(
    position: Int[Tensor, " m"], text: Int[Tensor, " m"], sides: Int[Tensor, "m 3"], sample: Int[Tensor, " m"]
) -> TokenInfo:
    """What tokens are, from their canonical positions inside their samples, and each sample's text length and grid.

    Example:
        >>> geometry(*torch.tensor([[0, 1], [1, 1]]), torch.ones(2, 3, dtype=torch.long), torch.zeros(2).long()).kind
        tensor([1, 2])
    """
    cell = position - text
    h, w = sides[:, 1].clamp(min=1), sides[:, 2].clamp(min=1)
    grid_coords = torch.stack([cell // (h * w), cell // w % h, cell % w], dim=-1)
    text_coords = torch.stack([torch.full_like(position, -1), torch.zeros_like(position), position], dim=-1)
    text_extent = torch.stack([torch.ones_like(text), torch.ones_like(text), text], dim=-1)
    is_text = position < text
    choose = is_text[:, None]
    coords, extent = torch.where(choose, text_coords, grid_coords), torch.where(choose, text_extent, sides)
    return TokenInfo(coords, extent, torch.where(is_text, Kind.TEXT, Kind.GRID), sample)


def _fit(values: Shaped[Tensor, "r ..."], rows: int) -> Shaped[Tensor, "rows ..."]:
    """Zeros behind ``values``, or its first rows, so that it has ``rows`` of them."""
    missing = rows - values.shape[0]
    if missing <= 0:
        return values[:rows]
    return torch.cat([values, values.new_zeros(missing, *values.shape[1:])])
