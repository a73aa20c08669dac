"""Several token streams of the same samples whose attention is joint: merging and splitting q, k, v.

The streams keep their own widths and weights, as in MM-DiT (Esser et al., 2024, arXiv:2403.03206, figure 2b).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from tubelet.layout.index import HostTable, Kind, LayoutIndex, whole_samples
from tubelet.layout.rows import Rows
from tubelet.layout.tokens import TokenLayout

__all__ = ["JointIndex", "JointLayout"]


@dataclass(frozen=True)
class JointLayout:
    """Several streams (text, video) of the same samples whose attention is joint (MM-DiT, arXiv:2403.03206, figure 2).

    Streams of different widths are separate tensors with separate layouts; only their q, k, v are merged, in the
    canonical order: per sample the prefix tokens of each stream in turn, then the grid, then (per row or at the end of
    the axis) all padding.

    Raises:
        ValueError: the streams differ in samples or in being batched, or two of them have a grid for one sample.

    Example:
        >>> from tubelet.layout import Grid
        >>> text, video = TokenLayout.packed([None, None], [1, 2]), TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 1)])
        >>> joint = JointLayout((text, video)).on("cpu")
        >>> joint.merge(torch.tensor([10, 20, 21]), torch.tensor([1, 2, 3])).tolist()
        [10, 1, 2, 20, 21, 3]
    """

    streams: tuple[TokenLayout, ...]

    def __post_init__(self) -> None:
        first = self.streams[0]
        for other in self.streams[1:]:
            if len(other.grids) != len(first.grids) or other.batched != first.batched:
                raise ValueError(
                    f"streams must hold the same samples in the same form, got {len(first.grids)} samples "
                    f"(batched={first.batched}) and {len(other.grids)} (batched={other.batched})"
                )
        for i, grids in enumerate(zip(*(s.grids for s in self.streams), strict=True)):
            if sum(g is not None for g in grids) > 1:
                raise ValueError(f"sample {i} has a grid in more than one stream: {grids}")

    @property
    def merged(self) -> TokenLayout:
        """The layout of the merged axis."""
        per_sample = zip(*(s.grids for s in self.streams), strict=True)
        grids = tuple(next((g for g in found if g is not None), None) for found in per_sample)
        texts = tuple(map(sum, zip(*(s.text_lengths for s in self.streams), strict=True)))
        width = sum(s.width for s in self.streams)
        bucketed = any(s.bucketed for s in self.streams)
        kept = None
        if any(s.kept is not None for s in self.streams):
            positions = zip(*self._merged_positions(), strict=True)
            kept = tuple(tuple(sorted(itertools.chain(*parts))) for parts in positions)
        return TokenLayout(grids, texts, width, self.streams[0].batched, bucketed, kept)

    def on(self, device: torch.device | str) -> "JointIndex":
        """The index of the merged layout with the permutation that merges and splits, on ``device``."""
        batch = len(self.streams[0].grids) if self.streams[0].batched else 1
        width = sum(s.width for s in self.streams)
        samples = len(self.streams[0].grids)
        stride = max(sum(lengths) for lengths in zip(*(s.full_lengths for s in self.streams), strict=True)) + 1
        key = torch.full((batch, width), samples * stride, dtype=torch.long)  # padding sorts behind every token
        offset = 0
        for stream, positions in zip(self.streams, self._merged_positions(), strict=True):
            for i, places in enumerate(positions):
                row = i if stream.batched else 0
                start = offset + (0 if stream.batched else stream.starts[i])
                # the sample's number in the high part, the merged position in the low part
                key[row, start : start + len(places)] = torch.tensor(places, dtype=torch.long) + i * stride
            offset += stream.width
        order = torch.argsort(key, dim=1, stable=True)
        merged = self.merged
        # one graph for a capacity: what is compiled must not depend on where the samples happen to lie
        identity = not merged.bucketed and bool((order == torch.arange(width)).all())
        ends = torch.argsort(order, dim=1) + torch.arange(batch)[:, None] * width
        parts = torch.split(ends, [s.width for s in self.streams], dim=1)
        index = merged.on(device)
        own = (part.reshape(s.shape).to(device) for part, s in zip(parts, self.streams, strict=True))
        return JointIndex(index, tuple(own), identity, tuple(s.host for s in self.streams))

    def _merged_positions(self) -> list[list[list[int]]]:
        """Per stream and sample, the canonical position on the merged axis of each of its tokens."""
        totals = [sum(texts) for texts in zip(*(s.text_lengths for s in self.streams), strict=True)]
        before, result = [0] * len(totals), []
        for s in self.streams:
            places = [
                [before[i] + p if p < text else totals[i] + p - text for p in positions]
                for i, (text, positions) in enumerate(zip(s.text_lengths, s.positions(), strict=True))
            ]
            result.append(places)
            before = [a + b for a, b in zip(before, s.text_lengths, strict=True)]
        return result


@dataclass(frozen=True, eq=False)
class JointIndex:
    """The merged index of several streams, and where on its flattened axis each of their tokens stands.

    With ``identity`` the streams stand one behind the other, row by row. ``streams`` says of each what its samples
    were, so that an index of other layouts, though of as many tokens, is known as such.

    Example:
        >>> from tubelet.layout import Grid
        >>> joint = JointLayout((TokenLayout.padded([1], 2), TokenLayout.dense(1, Grid(1, 1, 2)))).on("cpu")
        >>> merged = joint.merge(torch.tensor([[7, 0]]), torch.tensor([[1, 2]]))
        >>> merged.tolist(), [s.tolist() for s in joint.split(merged)]
        ([[7, 1, 2, 0]], [[[7, 0]], [[1, 2]]])
    """

    index: LayoutIndex
    places: tuple[Int[Tensor, "..."], ...]
    identity: bool
    streams: tuple[HostTable, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Tokens on the axis of each stream."""
        return tuple(places.shape[-1] for places in self.places)

    @classmethod
    def of(cls, *streams: LayoutIndex) -> "JointIndex":
        """Merge indices where they are, without their layouts: inside compiled code, too.

        Args:
            streams: of the same samples, all batched or all packed; at most one has the grid of a sample. One may have
                room for more samples than another.

        Raises:
            ValueError: the streams differ in form or in samples, or tokens of one were dropped.

        Example:
            >>> from tubelet.layout import Grid
            >>> index = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 1)]).on("cpu")
            >>> joint = JointIndex.of(index.prefix(1), index)
            >>> joint.merge(torch.tensor([10, 20]), torch.tensor([1, 2, 3])).tolist()
            [10, 1, 2, 20, 3]
        """
        first = streams[0]
        for other in streams[1:]:
            if len(first.shape) != len(other.shape) or not first.same_samples(other):
                raise ValueError(f"streams must hold the same samples in one form, got {first.shape}, {other.shape}")
        if any(stream.kept is not None for stream in streams):
            raise ValueError(f"one of {len(streams)} streams has dropped tokens: merge the layouts by a JointLayout")
        sample, kind = (torch.cat(parts, -1) for parts in zip(*((s.sample, s.kind) for s in streams), strict=True))
        table, widths = _merged_table(streams), tuple(stream.shape[-1] for stream in streams)
        # per sample the prefixes, stream by stream, then the grid; padding last
        order = torch.where(kind == Kind.PAD, 2 * len(table), 2 * sample + (kind == Kind.GRID)).argsort(stable=True)
        frames = sum(stream.frame_sample.shape[0] for stream in streams)
        longest, dense = sum(stream.max_seqlen for stream in streams), all(stream.dense for stream in streams)
        shape, device = (*first.shape[:-1], sum(widths)), first.sample.device
        index = whole_samples(table, shape, first.samples, frames, longest, dense, device)
        rows = torch.arange(math.prod(shape[:-1]), device=device).view(*shape[:-1], 1)
        places = torch.split(order.argsort() + rows * shape[-1], list(widths), dim=-1)
        return cls(index, tuple(places), False, tuple(stream.host for stream in streams))

    def merge(self, *streams: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Streams ``(*lead_i, ...)`` of one dtype, in the order of the joint layout, to one tensor ``(*lead, ...)``."""
        axis = len(self.index.shape) - 1
        got = tuple(s.shape[axis] for s in streams)
        if got != self.widths:
            raise ValueError(f"streams have {got} tokens, but the joint layout has {self.widths}")
        if self.identity:
            return torch.cat(streams, dim=axis)
        rest = streams[0].shape[axis + 1 :]
        merged = streams[0].new_empty(self.index.sample.numel(), *rest)
        for stream, places in zip(streams, self.places, strict=True):  # written once, instead of joined and gathered
            merged.index_copy_(0, places.flatten(), stream.flatten(0, axis))
        return merged.view(*self.index.shape, *rest)

    def merge_rows(self, *rows: Rows) -> Rows:
        """Rows of each stream, in the order of the joint layout, as rows of the merged axis.

        Streams that share one table by view (``index`` None, the same ``values``) keep it.

        Raises:
            ValueError: as many rows as streams are not given, or those of one do not fit its tokens.

        Example:
            >>> from tubelet.layout import Grid
            >>> text, video = TokenLayout.packed([None, None], [1, 1]), TokenLayout.packed([Grid(1, 1, 1)] * 2)
            >>> levels = text.rows(torch.tensor([0.0, 0.5]), "sample"), video.rows(torch.tensor([0.1, 0.6]), "sample")
            >>> JointLayout((text, video)).on("cpu").merge_rows(*levels).expand()
            tensor([0.0000, 0.1000, 0.5000, 0.6000])
        """
        if len(rows) != len(self.widths):
            raise ValueError(f"rows are those of {len(rows)} streams, but the joint layout has {len(self.widths)}")
        if all(each.index is None and each.values is rows[0].values for each in rows):
            return rows[0]
        starts = itertools.accumulate((each.values.shape[0] for each in rows[:-1]), initial=0)
        parts = zip(rows, self.widths, starts, strict=True)
        index = self.merge(*(self._tokens(each, width) + start for each, width, start in parts))
        owners = [each.owner for each in rows if each.owner is not None]
        owner = torch.cat(owners) if len(owners) == len(rows) else None
        return Rows(torch.cat([each.values for each in rows]), index, owner)

    def _tokens(self, rows: Rows, width: int) -> Int[Tensor, "*lead"]:
        """The row of each token of one stream."""
        shape = (*self.index.shape[:-1], width)
        if rows.index is not None:
            if tuple(rows.index.shape) != shape:
                raise ValueError(f"rows have tokens {tuple(rows.index.shape)}, but the stream has {shape}")
            return rows.index
        count = rows.values.shape[0]
        if count != 1 and (len(shape) == 1 or count != shape[0]):
            raise ValueError(f"rows has {count} values without an index, but the stream has tokens {shape}")
        each = torch.arange(count, device=self.index.sample.device)
        return each.expand(shape) if count == 1 else each[:, None].expand(shape)

    def split(self, merged: Shaped[Tensor, "..."]) -> tuple[Shaped[Tensor, "..."], ...]:
        """Undo :meth:`merge`."""
        axis = len(self.index.shape) - 1
        if merged.shape[axis] != sum(self.widths):
            raise ValueError(f"merged has {merged.shape[axis]} tokens, but the joint layout has {sum(self.widths)}")
        if self.identity:
            return torch.split(merged, list(self.widths), dim=axis)
        flat, rest = merged.flatten(0, axis), merged.shape[axis + 1 :]
        return tuple(flat.index_select(0, places.flatten()).view(*places.shape, *rest) for places in self.places)


def _merged_table(streams: Sequence[LayoutIndex]) -> Int[Tensor, "s 6"]:
    """The host table of the merged axis."""
    room = max(len(stream.table) for stream in streams)
    table = sum(F.pad(stream.table, (0, 0, 0, room - len(stream.table))) for stream in streams)
    assert isinstance(table, Tensor)
    ends = table[:, 1].cumsum(0)
    width = sum(stream.shape[-1] for stream in streams)
    starts = torch.arange(room) * width if len(streams[0].shape) == 2 else ends - table[:, 1]
    return torch.cat([starts[:, None], table[:, 1:]], dim=1)
