"""Runs of groups as numbers: what a compiled graph can hold, and what the kernels read."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

__all__ = ["GROUP_AXES", "ITEM_AXES", "Pair", "Places", "Run", "pairs"]

GROUP_AXES, ITEM_AXES = 4, 3


@runtime_checkable
class Places(Protocol):
    """Tokens of equal groups, ``start + Σ groupᵢ·pitchᵢ + Σ itemⱼ·strideⱼ``: ``tubelet.attention.places.Affine``.

    Example:
        >>> from tubelet.attention.places import Affine
        >>> isinstance(Affine(0, (4,), (1,), (3,), (4,)), Places)
        True
    """

    @property
    def start(self) -> int:
        """The first token."""

    @property
    def count(self) -> tuple[int, ...]:
        """Groups along each of their axes."""

    @property
    def pitch(self) -> tuple[int, ...]:
        """Tokens from group to group along each axis."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Items of a group along each of their axes."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Tokens from item to item along each axis."""

    @property
    def distinct(self) -> bool:
        """Whether no token is named twice."""


@runtime_checkable
class Run(Protocol):
    """Groups of queries with their groups of keys: ``tubelet.attention.tiles.Run``.

    ``merge``: the queries have been in an earlier run, and attend the keys of both.

    Example:
        >>> axes = Axes(0, (4,), (1,), (3,), (4,))
        >>> isinstance(Pair(axes, axes, merge=False), Run)
        True
    """

    @property
    def q(self) -> Places:
        """The queries."""

    @property
    def k(self) -> Places:
        """The keys, as many groups in the same order."""

    @property
    def merge(self) -> bool:
        """Whether the queries have been in an earlier run."""


@dataclass(frozen=True)
class Axes:
    """Places with as many axes as the kernels count."""

    start: int
    count: tuple[int, ...]
    pitch: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of a group."""
        return math.prod(self.sizes)

    @property
    def groups(self) -> int:
        """How many groups."""
        return math.prod(self.count)

    @property
    def last(self) -> int:
        """The last token."""
        steps = zip((*self.count, *self.sizes), (*self.pitch, *self.strides), strict=True)
        return self.start + sum((size - 1) * step for size, step in steps)


class Pair(NamedTuple):
    """One run in numbers.

    Example:
        >>> axes = Axes(0, (1, 1, 1, 4), (0, 0, 0, 1), (1, 1, 3), (0, 0, 4))
        >>> pair = Pair(axes, axes, False)
        >>> Pair.read(iter(pair.numbers())) == pair
        True
    """

    q: Axes
    k: Axes
    merge: bool

    def numbers(self) -> list[int]:
        """All of it end to end."""
        sides = [[side.start, *side.count, *side.pitch, *side.sizes, *side.strides] for side in (self.q, self.k)]
        return [*sides[0], *sides[1], int(self.merge)]

    @staticmethod
    def read(numbers: Iterator[int]) -> "Pair":
        """Undo :meth:`numbers`."""
        return Pair(_read(numbers), _read(numbers), bool(next(numbers)))


def pairs(runs: Sequence[Run]) -> list[Pair]:
    """Runs as numbers.

    Raises:
        ValueError: a run has more axes than the kernels count, or its groups of queries and of keys differ in number.

    Example:
        >>> pairs([])
        []
    """
    found = []
    for run in runs:
        if run.q.count != run.k.count:
            raise ValueError(f"a run has {run.q.count} groups of queries, but {run.k.count} of keys")
        found.append(Pair(_padded(run.q), _padded(run.k), run.merge))
    return found


def _padded(places: Places) -> Axes:
    if len(places.count) > GROUP_AXES or len(places.sizes) > ITEM_AXES:
        raise ValueError(
            f"runs must have at most {GROUP_AXES} axes of groups and {ITEM_AXES} of items, got groups {places.count} "
            f"of {places.sizes}"
        )
    groups, items = GROUP_AXES - len(places.count), ITEM_AXES - len(places.sizes)
    return Axes(
        places.start,
        (1,) * groups + places.count,
        (0,) * groups + places.pitch,
        (1,) * items + places.sizes,
        (0,) * items + places.strides,
    )


def _read(numbers: Iterator[int]) -> Axes:
    start = next(numbers)
    count, pitch, sizes, strides = (
        tuple(next(numbers) for _ in range(axes)) for axes in (GROUP_AXES, GROUP_AXES, ITEM_AXES, ITEM_AXES)
    )
    return Axes(start, count, pitch, sizes, strides)
