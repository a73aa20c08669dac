"""The host side of a layout: small hashable values that say how samples share a token axis.

Packing several samples of any size on one axis is NaViT's "Patch n' Pack" (arXiv:2307.06304, section 2.1).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from tubelet.layout.index import HostTable, Kind, LayoutIndex, geometry
from tubelet.layout.rows import Level, Rows

__all__ = ["Grid", "TokenLayout"]


@dataclass(frozen=True, order=True, slots=True)
class Grid:
    """The token grid of one sample: ``t`` frames of ``h`` by ``w`` tokens. An image has ``t = 1``.

    Raises:
        ValueError: a side is smaller than 1.

    Example:
        >>> Grid(3, 4, 5).tokens
        60
    """

    t: int
    h: int
    w: int

    def __post_init__(self) -> None:
        whole = all(isinstance(side, Integral) for side in (self.t, self.h, self.w))
        if not whole or min(self.t, self.h, self.w) < 1:
            raise ValueError(f"a Grid needs whole sides of at least 1, got t={self.t}, h={self.h}, w={self.w}")

    @property
    def tokens(self) -> int:
        """How many tokens the grid holds, ``t·h·w``."""
        return self.t * self.h * self.w


@dataclass(frozen=True)
class TokenLayout:
    """How a batch of samples of any sizes lies on one token axis, or on ``b`` rows of one.

    Make one with :meth:`dense`, :meth:`packed` or :meth:`padded`. ``grids[i]`` is None for a sample of text alone.
    ``kept`` (set by :meth:`keep`) lists the canonical positions that token dropping left of each sample.

    Example:
        >>> layout = TokenLayout.packed([Grid(1, 4, 4), Grid(3, 2, 2)], text_lengths=[2, 5], capacity=40)
        >>> layout.lengths, layout.shape
        ((18, 17), (40,))
    """

    grids: tuple[Grid | None, ...]
    text_lengths: tuple[int, ...]
    width: int
    batched: bool
    bucketed: bool = False
    kept: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        if len(self.grids) != len(self.text_lengths):
            raise ValueError(f"grids has {len(self.grids)} samples, but text_lengths has {len(self.text_lengths)}")
        if not self.grids:
            raise ValueError("a layout needs at least one sample, got grids=()")
        _check_kinds(self.grids, (*self.text_lengths, self.width))
        if min(self.text_lengths) < 0:
            raise ValueError(f"text_lengths must not be negative, got {self.text_lengths}")
        if not self.batched and sum(self.lengths) > self.width:
            raise ValueError(f"the samples hold {sum(self.lengths)} tokens, more than capacity={self.width}")
        if self.batched and max(self.lengths) > self.width:
            raise ValueError(f"lengths has a sample of {max(self.lengths)} tokens, but a row holds n={self.width}")

    @classmethod
    def dense(cls, batch: int, grid: Grid, text_length: int = 0) -> "TokenLayout":
        """``batch`` samples of one grid: token tensors are ``(batch, text_length + grid.tokens, d)``.

        Raises:
            ValueError: ``batch`` is smaller than 1 or ``text_length`` negative.

        Example:
            >>> TokenLayout.dense(2, Grid(1, 2, 2)).shape
            (2, 4)
        """
        return cls((grid,) * batch, (text_length,) * batch, text_length + grid.tokens, batched=True)

    @classmethod
    def packed(
        cls,
        grids: Sequence[Grid | None],
        text_lengths: Sequence[int] | None = None,
        capacity: int | None = None,
    ) -> "TokenLayout":
        """Samples end to end on one axis: token tensors are ``(n, d)``, with ``n = capacity`` where one is given.

        With a capacity the tail is padding, and the index's tables are padded to bucketed sizes, so that one compiled
        graph serves all layouts of the capacity.

        Raises:
            ValueError: lengths differ, or the samples hold more tokens than ``capacity``.

        Example:
            >>> TokenLayout.packed([Grid(1, 1, 3), Grid(2, 1, 1)]).shape
            (5,)
        """
        texts = tuple(text_lengths) if text_lengths is not None else (0,) * len(grids)
        _check_kinds(grids, texts if capacity is None else (*texts, capacity))
        total = sum(texts) + sum(g.tokens for g in grids if g is not None)
        return cls(tuple(grids), texts, total if capacity is None else capacity, False, capacity is not None)

    @classmethod
    def padded(cls, lengths: Sequence[int], n: int) -> "TokenLayout":
        """Rows of ``n`` tokens of which the first ``lengths[i]`` are real: key padding is a layout.

        Raises:
            ValueError: a length is negative or above ``n``.

        Example:
            >>> TokenLayout.padded([2, 3], n=4).on("cpu").valid.tolist()
            [[True, True, False, False], [True, True, True, False]]
        """
        return cls((None,) * len(lengths), tuple(lengths), n, batched=True)

    def repeat(self, times: int) -> "TokenLayout":
        """The layout of all samples ``times`` over, copy by copy: a guided batch with its conditions in turn.

        Raises:
            ValueError: ``times`` is smaller than 1.

        Example:
            >>> TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 1)]).repeat(2).lengths
            (2, 1, 2, 1)
        """
        if times < 1:
            raise ValueError(f"times must be at least 1, got {times}")
        width = self.width if self.batched else self.width * times
        kept = None if self.kept is None else self.kept * times
        return replace(
            self, grids=self.grids * times, text_lengths=self.text_lengths * times, width=width, kept=kept
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, ...]:
        """The leading shape of token tensors: ``(n,)`` packed, ``(b, n)`` batched."""
        return (len(self.grids), self.width) if self.batched else (self.width,)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of tokens of each sample, text included."""
        if self.kept is not None:
            return tuple(len(k) for k in self.kept)
        return self.full_lengths

    @property
    def full_lengths(self) -> tuple[int, ...]:
        """The number of tokens of each sample before any were dropped."""
        pairs = zip(self.grids, self.text_lengths, strict=True)
        return tuple(text + (0 if grid is None else grid.tokens) for grid, text in pairs)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each sample begins on the flattened token axis."""
        if self.batched:
            return tuple(i * self.width for i in range(len(self.grids)))
        return (0, *itertools.accumulate(self.lengths[:-1]))

    @property
    def irregular(self) -> str | None:
        """Why the tokens of a sample are not its whole grid in raster order, or None where they are."""
        return None if self.kept is None else "tokens were dropped by layout.keep(...)"

    @property
    def host(self) -> HostTable:
        """What the samples are, as the index has it on the host."""
        with torch.device("cpu"):
            sides = [(0, 0, 0) if g is None else (g.t, g.h, g.w) for g in self.grids]
            columns = zip(self.starts, self.lengths, self.text_lengths, sides, strict=True)
            table = torch.tensor([(start, length, text, *side) for start, length, text, side in columns])
            flat = None if self.kept is None else torch.tensor([*itertools.chain(*self.kept)], dtype=torch.long)
        return HostTable(table, flat)

    def keep(self, index: Sequence[int] | Int[Tensor, " k"]) -> "TokenLayout":
        """The packed layout of ``tokens.flatten(0, -2)[index]``: token dropping (NaViT, section 2.2).

        Raises:
            ValueError: ``index`` is not strictly increasing, or names padding or a place outside the layout.

        Example:
            >>> layout = TokenLayout.packed([Grid(1, 2, 2), Grid(1, 1, 2)]).keep([0, 3, 5])
            >>> layout.lengths, layout.on("cpu").coords.tolist()
            ((2, 1), [[0, 0, 0], [0, 1, 1], [0, 0, 1]])
        """
        if isinstance(index, Tensor) and (index.dtype == torch.bool or index.dtype.is_floating_point):
            raise ValueError(f"index must hold whole token numbers, got {index.dtype} of shape {tuple(index.shape)}")
        chosen = [int(i) for i in index]
        for before, after in itertools.pairwise(chosen):
            if after <= before:
                raise ValueError(f"index must be strictly increasing, got {after} after {before}")
        old = self.kept if self.kept is not None else tuple(tuple(range(n)) for n in self.full_lengths)
        kept: list[tuple[int, ...]] = []
        for start, positions in zip(self.starts, old, strict=True):
            kept.append(tuple(positions[i - start] for i in chosen if 0 <= i - start < len(positions)))
        found = sum(map(len, kept))
        if found != len(chosen):
            raise ValueError(f"index has {len(chosen)} entries, but only {found} of them name tokens of {self.shape}")
        return replace(self, width=found, batched=False, bucketed=False, kept=tuple(kept))

    def rows(self, values: Shaped[Tensor, "r ..."], level: Level) -> Rows:
        """:meth:`LayoutIndex.rows` on the device of ``values``; inside a loop build the index once instead.

        Example:
            >>> TokenLayout.dense(2, Grid(1, 1, 2)).rows(torch.tensor([0.1, 0.2]), "sample").expand().shape
            torch.Size([2, 1])
        """
        return self.on(values.device).rows(values, level)

    def on(self, device: torch.device | str) -> LayoutIndex:
        """The index of this layout on ``device``: tensors for positions, patterns, rows and kernels.

        It is made on the host, outside of compiled code: inside, it breaks the graph, and with ``fullgraph=True`` is an
        error that says so.

        Example:
            >>> TokenLayout.dense(1, Grid(1, 1, 2), text_length=1).on("cpu").frame.tolist()
            [[-1, 0, 0]]
        """
        if torch.compiler.is_compiling():  # not torch.compiler.disable, which loads the compiler with the package
            torch._dynamo.graph_break(msg="pass layout.on(device) to compiled code, not the layout")
        return _on_the_host(self, device)

    def _on(self, device: torch.device | str) -> LayoutIndex:
        table, kept = self.host
        starts, lengths, texts, sides = table[:, 0], table[:, 1], table[:, 2], table[:, 3:]
        sample = torch.repeat_interleave(torch.arange(len(self.grids)), lengths)
        position = kept if kept is not None else _ranges(lengths)
        tokens = geometry(position, texts[sample], sides[sample], sample)
        is_text = tokens.kind == Kind.TEXT
        has_text = (texts > 0).long()
        row_counts = has_text + sides[:, 0]
        first_row = row_counts.cumsum(0) - row_counts
        frame_row = first_row[sample] + torch.where(is_text, 0, has_text[sample] + tokens.coords[:, 0])
        place = starts[sample] + _ranges(lengths)
        spread = self._spread(place)
        segments = _bucket(len(self.grids), 16) if self.bucketed else len(self.grids)
        rows = int(row_counts.sum())
        tail = segments - len(self.grids)
        end = self.width * len(self.grids) if self.batched else sum(self.lengths)
        cu = torch.tensor([*self.starts, *[end] * (tail + 1)], dtype=torch.int32)
        used = torch.tensor([*self.lengths, *[0] * tail], dtype=torch.int32)
        owner = torch.repeat_interleave(torch.arange(len(self.grids)), row_counts)
        owner = torch.cat([owner, owner.new_zeros((_bucket(rows, 32) if self.bucketed else rows) - rows)])
        longest = max(self.lengths)
        return LayoutIndex(
            cu_seqlens=cu.to(device),
            seqlens=used.to(device),
            table=torch.cat([table, table.new_zeros(tail, 6)]),
            kept=kept,
            coords=spread(tokens.coords, -1).to(device),
            extent=spread(tokens.extent, 0).to(device),
            sample=spread(sample, -1).to(device),
            kind=spread(tokens.kind, Kind.PAD).to(device),
            frame_row=spread(frame_row, 0).to(device),
            frame_sample=owner.to(device),
            samples=len(self.grids),
            frames=rows,
            max_seqlen=_bucket(longest, 64) if self.bucketed else longest,
            dense=self.batched and all(n == self.width for n in self.lengths),
        )

    def positions(self) -> Sequence[Sequence[int]]:
        """The canonical position of each token inside its sample, per sample."""
        return self.kept if self.kept is not None else [range(n) for n in self.full_lengths]

    def _spread(self, place: Int[Tensor, " m"]) -> Callable[[Tensor, int], Tensor]:
        """Scatter per-token values (without padding) to their places in the layout's shape."""

        def spread(values: Tensor, fill: int) -> Tensor:
            size = self.width * (len(self.grids) if self.batched else 1)
            out = torch.full((size, *values.shape[1:]), fill, dtype=torch.long)
            out[place] = values
            return out.view(*self.shape, *values.shape[1:])

        return spread


def _check_kinds(grids: Sequence[object], numbers: Sequence[object]) -> None:
    for grid in grids:
        if grid is not None and not isinstance(grid, Grid):
            raise ValueError(f"grids must hold Grid(t, h, w) or None, got {grid!r}")
    for number in numbers:
        if not isinstance(number, Integral):
            raise ValueError(f"lengths and capacity must be whole numbers, got {number!r}")


def _ranges(lengths: Int[Tensor, " s"]) -> Int[Tensor, " m"]:
    """``0..n-1`` for each length, end to end."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts, lengths)


def _bucket(count: int, smallest: int) -> int:
    """The next power of two, at least ``smallest``."""
    return max(smallest, 1 << (count - 1).bit_length())


def _on_the_host(layout: TokenLayout, device: torch.device | str) -> LayoutIndex:
    """The index, whatever the default device is: the tables are made on the host, then moved."""
    with torch.device("cpu"):
        return layout._on(device)
