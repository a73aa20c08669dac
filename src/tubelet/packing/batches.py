"""Whole samples in packs: tokens, noise levels, text and positions together, and back.

NaViT's batches (arXiv:2307.06304, section 2.1) for diffusion: beside its patches a sample has a noise level, a text
and, where the grid's own coordinates do not do, positions. :func:`collate` lays several on one axis,
:meth:`PackedBatch.samples` takes them apart again, and :class:`PackedStream` makes batches of a token budget from an
endless stream, for a ``DataLoader``.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from tubelet.layout import Grid, LayoutIndex, Level, Rows, TokenLayout
from tubelet.packing.bins import pack_stream
from tubelet.packing.tokens import pack, unpack

__all__ = ["PackedBatch", "PackedStream", "Sample", "collate"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One image or clip as tokens, with what belongs to it.

    Args:
        tokens: ``(n, p)``, patches or latents in the raster order of ``grid``.
        grid: where they lie.
        time: its noise level: one number, or one for each frame of the grid ``(t,)``; None where there is none yet.
        text: its encoded prompt ``(m, c)``, a stream of its own; None for no text.
        positions: ``(n, k)`` where they are not the grid's ``(t, h, w)``: a crop's, say, or times in seconds.
        kept: which tokens of the grid are left after dropping, ascending; None for all. See :meth:`keep`.

    Raises:
        ValueError: numbers of tokens, frames or positions differ from the grid's.

    Example:
        >>> sample = Sample(torch.zeros(6, 16), Grid(1, 2, 3), time=torch.tensor(0.7), text=torch.zeros(4, 8))
        >>> sample.keep([0, 5]).layout.on("cpu").coords.tolist()
        [[0, 0, 0], [0, 1, 2]]
    """

    tokens: Shaped[Tensor, "n p"]
    grid: Grid
    time: Float[Tensor, "*frames"] | None = None
    text: Float[Tensor, "m c"] | None = None
    positions: Shaped[Tensor, "n k"] | None = None
    kept: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        count = self.grid.tokens if self.kept is None else len(self.kept)
        if len(self.tokens) != count:
            raise ValueError(f"tokens has {len(self.tokens)} entries, but {self.grid} has {count} tokens")
        if self.positions is not None and len(self.positions) != count:
            raise ValueError(f"positions has {len(self.positions)} entries, but the sample has {count} tokens")
        if self.time is not None and tuple(self.time.shape) not in ((), (self.grid.t,)):
            raise ValueError(f"time must be one number or one a frame, got {tuple(self.time.shape)} for {self.grid}")

    @property
    def layout(self) -> TokenLayout:
        """The layout of this sample alone."""
        return _layout([self], None)

    def keep(self, index: Sequence[int] | Int[Tensor, " k"]) -> "Sample":
        """The sample with the tokens ``index`` only, e.g. from :func:`tubelet.packing.drop_tokens`.

        Raises:
            ValueError: ``index`` is not strictly increasing or names no token of the sample.
        """
        kept = self.layout.keep(index).kept
        chosen = torch.as_tensor(index, dtype=torch.long, device=self.tokens.device)
        positions = None if self.positions is None else self.positions[chosen]
        return replace(self, tokens=self.tokens[chosen], positions=positions, kept=None if kept is None else kept[0])


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Samples on one token axis, with a row for each of what they have one of; made by :func:`collate`.

    ``time`` holds a noise level for each sample or, where ``level`` is "frame", for each (sample, frame); ``text`` lies
    end to end in ``text_layout``. What the samples do not have is None.

    Example:
        >>> clips = [Sample(torch.ones(4, 3), Grid(2, 1, 2), torch.tensor([0.0, 0.5])),
        ...          Sample(torch.ones(2, 3), Grid(1, 1, 2), torch.tensor([0.9]))]
        >>> batch = collate(clips, capacity=8)
        >>> batch.tokens.shape, batch.rows(batch.layout.on("cpu")).expand()[:6]
        (torch.Size([8, 3]), tensor([0.0000, 0.0000, 0.5000, 0.5000, 0.9000, 0.9000]))
    """

    tokens: Shaped[Tensor, "n p"]
    layout: TokenLayout
    time: Float[Tensor, " r"] | None = None
    level: Level = "sample"
    text: Float[Tensor, "m c"] | None = None
    text_layout: TokenLayout | None = None
    positions: Shaped[Tensor, "n k"] | None = None

    def rows(self, index: LayoutIndex) -> Rows:
        """The noise levels as rows of ``index``, which is ``batch.layout.on(device)``.

        Raises:
            ValueError: the samples have no noise levels, or the index is of another layout.
        """
        if self.time is None:
            raise ValueError(f"the batch has no noise levels: its {len(self.layout.grids)} samples were made without")
        return index.rows(self.time, self.level)

    def unpack(self, x: Shaped[Tensor, "n ..."]) -> list[Shaped[Tensor, "_ ..."]]:
        """The part of each sample of a tensor on the packed axis, such as a model's output.

        Raises:
            ValueError: ``x`` does not lie on the batch's axis.
        """
        return unpack(x, self.layout)

    def samples(self) -> list[Sample]:
        """The samples again, as views: the inverse of :func:`collate`."""
        count = len(self.layout.grids)
        times: Sequence[Tensor | None] = [None] * count
        if self.time is not None:
            frames = [grid.t for grid in self.layout.grids if grid is not None]
            times = torch.split(self.time, frames) if self.level == "frame" else self.time.unbind()
        texts: Sequence[Tensor | None] = [None] * count
        if self.text is not None and self.text_layout is not None:
            texts = unpack(self.text, self.text_layout)
        positions = [None] * count if self.positions is None else unpack(self.positions, self.layout)
        kept = [None] * count if self.layout.kept is None else self.layout.kept
        whole = zip(unpack(self.tokens, self.layout), self.layout.grids, times, texts, positions, kept, strict=True)
        return [Sample(tokens, grid, *rest) for tokens, grid, *rest in whole if grid is not None]

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The batch with its tensors on ``device``; the layouts stay on the host."""
        return self._map(lambda x: x.to(device))

    def pin_memory(self) -> "PackedBatch":
        """The batch in page-locked memory, as ``DataLoader(pin_memory=True)`` asks for."""
        return self._map(lambda x: x.pin_memory())

    def _map(self, fn: Callable[[Tensor], Tensor]) -> "PackedBatch":
        time, text, positions = (None if x is None else fn(x) for x in (self.time, self.text, self.positions))
        return replace(self, tokens=fn(self.tokens), time=time, text=text, positions=positions)


def collate(samples: Sequence[Sample], capacity: int | None = None, text_capacity: int | None = None) -> PackedBatch:
    """Lay samples on one token axis, with their noise levels, text and positions.

    Args:
        samples: all with or all without time, text and positions; with one time each or one a frame each.
        capacity: length of the token axis, so that compiled models see one shape; None means what the samples fill.
        text_capacity: the same for the text.

    Raises:
        ValueError: no samples, samples that differ in what they have, or more tokens than a capacity.

    Example:
        >>> batch = collate([Sample(torch.ones(2, 3), Grid(1, 1, 2)), Sample(torch.zeros(1, 3), Grid(1, 1, 1))])
        >>> batch.layout.lengths, [part.shape for part in batch.unpack(torch.randn(3, 5))]
        ((2, 1), [torch.Size([2, 5]), torch.Size([1, 5])])
    """
    if not samples:
        raise ValueError("samples is empty: there is nothing to collate")
    times, texts, positions = (_all_or_none(samples, name) for name in ("time", "text", "positions"))
    layout = _layout(samples, capacity)
    text_layout = None
    if texts is not None:
        text_layout = TokenLayout.packed([None] * len(texts), [len(t) for t in texts], text_capacity)
    time, level = _levels(times)
    return PackedBatch(
        tokens=pack([sample.tokens for sample in samples], capacity),
        layout=layout,
        time=time,
        level=level,
        text=None if texts is None else pack(texts, text_capacity),
        text_layout=text_layout,
        positions=None if positions is None else pack(positions, capacity),
    )


class PackedStream(IterableDataset[PackedBatch]):
    """Batches of at most ``budget`` tokens from a stream of samples, for ``DataLoader(stream, batch_size=None)``.

    Samples are packed as they come (:func:`tubelet.packing.pack_stream`): at most ``open_bins`` packs of them are held.
    Every batch has the capacity ``budget``. With several workers, each takes every so-many-th sample, so that none is
    seen twice.

    Args:
        samples: anything that can be iterated, again for each epoch; endless is fine.
        budget: tokens of a batch.
        open_bins: packs that are filled at a time.
        text_capacity: length of the text axis; None means what each batch fills.

    Raises:
        ValueError: ``budget`` or ``open_bins`` below 1; while iterating, a sample that is longer than ``budget``.

    Example:
        >>> images = [Sample(torch.zeros(h * w, 3), Grid(1, h, w)) for h, w in [(2, 3), (1, 5), (2, 2), (1, 3), (1, 2)]]
        >>> [batch.layout.lengths for batch in PackedStream(images, budget=10, open_bins=2)]
        [(6, 4), (5, 3, 2)]
    """

    def __init__(
        self, samples: Iterable[Sample], budget: int, open_bins: int = 16, text_capacity: int | None = None
    ) -> None:
        super().__init__()
        pack_stream((), budget, open_bins)  # checks both
        self.source, self.budget, self.open_bins, self.text_capacity = samples, budget, open_bins, text_capacity

    def __iter__(self) -> Iterator[PackedBatch]:
        """One pass over the samples of this worker."""
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        held: dict[int, Sample] = {}

        def lengths() -> Iterator[int]:
            for number, sample in enumerate(itertools.islice(self.source, first, None, step)):
                held[number] = sample
                yield len(sample.tokens)

        for members in pack_stream(lengths(), self.budget, self.open_bins):
            yield collate([held.pop(i) for i in members], self.budget, self.text_capacity)


def _layout(samples: Sequence[Sample], capacity: int | None) -> TokenLayout:
    """The packed layout of samples, some of which may have lost tokens."""
    grids = [sample.grid for sample in samples]
    if all(sample.kept is None for sample in samples):
        return TokenLayout.packed(grids, capacity=capacity)
    kept = tuple(tuple(range(s.grid.tokens)) if s.kept is None else s.kept for s in samples)
    width = sum(map(len, kept)) if capacity is None else capacity
    return TokenLayout(tuple(grids), (0,) * len(grids), width, False, capacity is not None, kept)


def _all_or_none(samples: Sequence[Sample], name: str) -> list[Tensor] | None:
    values = [getattr(sample, name) for sample in samples]
    present = [value for value in values if value is not None]
    if present and len(present) != len(values):
        missing = next(i for i, value in enumerate(values) if value is None)
        raise ValueError(f"{len(present)} of {len(values)} samples have {name}, but sample {missing} has none")
    return present or None


def _levels(times: list[Tensor] | None) -> tuple[Tensor | None, Level]:
    """One row per sample from numbers, one per frame from vectors."""
    if times is None:
        return None, "sample"
    if len({time.ndim for time in times}) > 1:
        raise ValueError(
            f"times must all be one number or all one a frame, got shapes {[tuple(t.shape) for t in times]}"
        )
    return (torch.stack(times), "sample") if times[0].ndim == 0 else (torch.cat(times), "frame")
