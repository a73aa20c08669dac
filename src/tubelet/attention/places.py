"""Where the tokens of equal groups lie: affine in raster order (read as views, nothing listed), or listed one by one.

A group of ``m`` tokens, ``g`` times. Shapes: tokens ``(n, h, d)``, groups ``(g, h, m, d)``.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

_LONG = 256
"""Groups of more tokens are copied head by head: they are read so often that the numbers of a head should be near."""

__all__ = ["Affine", "Listed", "Places"]


@dataclass(frozen=True)
class Affine:
    """The places ``start + Σ groupᵢ·pitchᵢ + Σ itemⱼ·strideⱼ``, with ``groupᵢ < countᵢ`` and ``itemⱼ < sizeⱼ``.

    Example:
        >>> Affine(1, (2,), (10,), (3,), (1,)).index().tolist()
        [[1, 2, 3], [11, 12, 13]]
    """

    start: int
    count: tuple[int, ...]
    pitch: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def groups(self) -> int:
        """How many groups."""
        return math.prod(self.count)

    @property
    def length(self) -> int:
        """Tokens of a group."""
        return math.prod(self.sizes)

    @property
    def in_order(self) -> bool:
        """Whether the places, group after group, are the tokens from 0 on."""
        axes = zip((*self.count, *self.sizes), (*self.pitch, *self.strides), strict=True)
        return self.start == 0 and _nested([axis for axis in axes if axis[0] > 1])[1] in ((), (1,))

    @property
    def distinct(self) -> bool:
        """Whether no token is named twice, as a rule of strides that nest; False where that cannot be told so."""
        axes = sorted(zip((*self.pitch, *self.strides), (*self.count, *self.sizes), strict=True))
        reach = 0
        for step, size in axes:
            if size > 1 and step <= reach:
                return False
            reach += step * (size - 1)
        return True

    def part(self, first: int, last: int) -> "Affine":
        """The groups ``first`` to ``last - 1`` of the first axis."""
        count = (min(last, self.count[0]) - first, *self.count[1:])
        return Affine(self.start + first * self.pitch[0], count, self.pitch, self.sizes, self.strides)

    def inside(self, first: int) -> "Affine":
        """The groups of one element of the first axis."""
        start = self.start + first * self.pitch[0]
        return Affine(start, self.count[1:], self.pitch[1:], self.sizes, self.strides)

    def moved(self, by: int) -> "Affine":
        """The same places ``by`` tokens further."""
        return Affine(self.start + by, self.count, self.pitch, self.sizes, self.strides)

    def simplified(self) -> "Affine":
        """The same places in the same order with as few item axes as can be; the groups' axes stay."""
        sizes, strides = _nested([(n, s) for n, s in zip(self.sizes, self.strides, strict=True) if n > 1])
        return Affine(self.start, self.count, self.pitch, sizes or (1,), strides or (1,))

    def index(self) -> Int[Tensor, "g m"]:
        """The places, listed on the host."""
        groups, items = _sums(self.count, self.pitch), _sums(self.sizes, self.strides)
        return self.start + groups[:, None] + items[None]

    def view(self, x: Shaped[Tensor, "n h d"]) -> Shaped[Tensor, "..."]:
        """``(*count, h, *sizes, d)``, nothing copied."""
        _, heads, width = x.shape
        token, head, last = x.stride()
        start = x.storage_offset() + self.start * token
        if len(self.count) == 1 and len(self.sizes) == 1:  # the common case, spelled out: this runs for every segment
            shape = (self.count[0], heads, self.sizes[0], width)
            return x.as_strided(shape, (self.pitch[0] * token, head, self.strides[0] * token, last), start)
        steps = (*(p * token for p in self.pitch), head, *(s * token for s in self.strides), last)
        return x.as_strided((*self.count, heads, *self.sizes, width), steps, start)

    def take(self, x: Shaped[Tensor, "n h d"]) -> Shaped[Tensor, "g h m d"]:
        """The groups: a view where one axis of groups and one of items do, else a copy."""
        view = self.view(x)
        if view.ndim == 4:
            return view
        if self.length > _LONG:
            return view.reshape(self.groups, x.shape[1], self.length, x.shape[2])
        # token by token, all heads of one side by side: long stretches to copy, which the kernels read as they are
        tokens = view.movedim(len(self.count), -2).reshape(self.groups, self.length, *x.shape[1:])
        return tokens.transpose(1, 2)

    def put(self, x: Shaped[Tensor, "n h d"], values: Shaped[Tensor, "g h m d"]) -> None:
        """Write the groups back into ``x``."""
        view = self.view(x)
        view.copy_(values if view.ndim == 4 else values.reshape(view.shape))

    def add(self, x: Shaped[Tensor, "n h d"], values: Shaped[Tensor, "g h m d"]) -> None:
        """Add the groups to ``x``, every time a token is named."""
        if self.distinct:
            view = self.view(x)
            view.add_(values.reshape(view.shape))
        else:
            Listed(self.index()).add(x, values)


@dataclass(frozen=True, eq=False)
class Listed:
    """Places one by one, ``(g, m)``.

    Example:
        >>> Listed(torch.tensor([[2, 0]])).take(torch.arange(3.0).view(3, 1, 1)).flatten().tolist()
        [2.0, 0.0]
    """

    places: Int[Tensor, "g m"]

    @property
    def count(self) -> tuple[int, ...]:
        """The groups' only axis."""
        return (self.places.shape[0],)

    @property
    def groups(self) -> int:
        """How many groups."""
        return self.places.shape[0]

    @property
    def length(self) -> int:
        """Tokens of a group."""
        return self.places.shape[1]

    def index(self) -> Int[Tensor, "g m"]:
        """The places themselves."""
        return self.places

    def affine(self) -> "Affine | None":
        """The same places in the same order by steps; None where they are not that."""
        if not self.places.numel():
            return None
        start = self.places[0, 0]
        groups, items = self.places[:, 0] - start, self.places[0] - start
        if not torch.equal(self.places, start + groups[:, None] + items):
            return None
        outer, inner = _axes(groups), _axes(items)
        return None if outer is None or inner is None else Affine(int(start), *outer, *inner)

    def part(self, first: int, last: int) -> "Listed":
        """The groups ``first`` to ``last - 1``."""
        return Listed(self.places[first:last])

    def inside(self, first: int) -> "Listed":
        """One group."""
        return self.part(first, first + 1)

    def take(self, x: Shaped[Tensor, "n h d"]) -> Shaped[Tensor, "g h m d"]:
        """The groups, copied."""
        return x[self._on(x)].transpose(1, 2)

    def put(self, x: Shaped[Tensor, "n h d"], values: Shaped[Tensor, "g h m d"]) -> None:
        """Write the groups back into ``x``."""
        x[self._on(x)] = values.transpose(1, 2).to(x.dtype)

    def add(self, x: Shaped[Tensor, "n h d"], values: Shaped[Tensor, "g h m d"]) -> None:
        """Add the groups to ``x``, every time a token is named."""
        x.index_add_(0, self._on(x).flatten(), values.transpose(1, 2).flatten(0, 1).to(x.dtype))

    def _on(self, x: Tensor) -> Tensor:
        return self.places.to(x.device, non_blocking=True)


Places = Affine | Listed


def _nested(axes: list[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Join neighbouring axes of which the outer one goes on where the inner one ends."""
    joined: list[tuple[int, int]] = []
    for size, stride in axes:
        if joined and joined[-1][1] == size * stride:
            joined[-1] = (joined[-1][0] * size, stride)
        else:
            joined.append((size, stride))
    return tuple(n for n, _ in joined), tuple(s for _, s in joined)


def _axes(sums: Int[Tensor, " m"]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Sizes and strides whose :func:`_sums` these are, as few as can be; None where there are none."""
    sizes: list[int] = []
    strides: list[int] = []
    while len(sums) > 1:
        steps = sums.diff()
        changed = (steps != steps[0]).nonzero()
        size = int(changed[0]) + 1 if len(changed) else len(sums)
        if len(sums) % size:
            return None
        rows = sums.view(-1, size)
        if not torch.equal(rows - rows[:, :1], (rows[0] - rows[0, 0]).expand_as(rows)):
            return None
        sizes, strides, sums = [size, *sizes], [int(steps[0]), *strides], rows[:, 0]
    return tuple(sizes) or (1,), tuple(strides) or (1,)


def _sums(sizes: tuple[int, ...], strides: tuple[int, ...]) -> Int[Tensor, " m"]:
    """Every ``Σ iⱼ·strideⱼ`` with ``iⱼ < sizeⱼ``, the last axis fastest."""
    total = torch.zeros(1, dtype=torch.long)
    for size, stride in zip(sizes, strides, strict=True):
        total = (total[:, None] + torch.arange(size) * stride).flatten()
    return total
