"""Packing: which samples share a sequence, and how their tokens lie in it.

NaViT (Dehghani et al. 2023, arXiv:2307.06304) trains on whole images and clips of every size by laying several samples
on one token axis of a fixed budget. Choosing the samples is bin packing: a pack is a bin of ``budget`` tokens, a sample
an item of ``lengths[i]`` tokens, and

    fill = sum(lengths) / (packs * budget),    padding fraction = 1 - fill.

Two rules, both *best fit* (put a sample in the fullest pack that still has room; Johnson 1974):

- :func:`pack_stream` sees samples in order and keeps ``open_bins`` packs open: for endless data, order roughly kept.
- :func:`pack_offline` sees all lengths and places the longest first (best-fit decreasing).

Both hand out *indices*; :func:`pack` and :func:`unpack` move the tokens: ``[(n_0, ...), (n_1, ...)] <-> (n, ...)``.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from tubelet.layout import TokenLayout

__all__ = ["fill", "pack", "pack_offline", "pack_stream", "unpack"]


def pack_stream(lengths: Iterable[int], budget: int, open_bins: int = 16) -> Iterator[list[int]]:
    """Group a stream of samples into packs of at most ``budget`` tokens, best fit over a few open packs.

    A full pack leaves at once; when a sample fits nowhere and ``open_bins`` packs are open, the fullest leaves to make
    room. So at most ``open_bins`` packs are held, and endless ``lengths`` are welcome. When the stream ends the open
    packs follow, fullest first. The result depends on nothing but the arguments.

    Args:
        lengths: tokens of each sample, in order; plain integers (call ``.tolist()`` on arrays: it is much faster).
        budget: the most tokens one pack may hold.
        open_bins: how many packs may be open at once; more fills better and mixes further apart samples.

    Returns:
        An iterator over packs; a pack lists the positions of its samples in ``lengths``, ascending.

    Raises:
        ValueError: ``budget`` or ``open_bins`` below 1 (at the call); a sample without tokens or longer than
            ``budget`` (when the stream reaches it).

    Example:
        >>> list(pack_stream([6, 5, 4, 3, 2], budget=10, open_bins=2))
        [[0, 2], [1, 3, 4]]
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1 token, got {budget}")
    if open_bins < 1:
        raise ValueError(f"open_bins must be at least 1, got {open_bins}")
    return _stream(lengths, budget, open_bins)


def _stream(lengths: Iterable[int], budget: int, slots: int) -> Iterator[list[int]]:
    # An open pack is one integer, room * slots + slot: sorted, they stand by room, and a bisection finds the best fit.
    packs: list[list[int]] = [[] for _ in range(slots)]
    unused = list(range(slots - 1, -1, -1))
    rooms: list[int] = []
    for index, length in enumerate(lengths):
        _check_length(index, length, budget)
        at = bisect_left(rooms, length * slots)
        if at < len(rooms):
            key = rooms.pop(at)
        elif unused:
            key = budget * slots + unused.pop()
        else:
            slot = rooms.pop(0) % slots
            yield packs[slot]
            packs[slot] = []
            key = budget * slots + slot
        slot = key % slots
        packs[slot].append(index)
        key -= length * slots
        if key >= slots:
            insort(rooms, key)
        else:
            yield packs[slot]
            packs[slot] = []
            unused.append(slot)
    for key in rooms:
        yield packs[key % slots]


def pack_offline(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group a known set of samples into packs of at most ``budget`` tokens by best-fit decreasing.

    Uses at most ``11/9 * optimal + 4`` packs (Johnson et al. 1974), in practice hardly more than
    ``ceil(sum(lengths) / budget)``. Equal lengths keep their order, so the result is deterministic.

    Args:
        lengths: tokens of each sample.
        budget: the most tokens one pack may hold.

    Returns:
        The packs in the order they were opened; a pack lists the positions of its samples in ``lengths``, ascending.

    Raises:
        ValueError: ``budget`` below 1, a sample without tokens, or one longer than ``budget``.

    Example:
        >>> pack_offline([6, 5, 4, 3, 2], budget=10)
        [[0, 2], [1, 3, 4]]
        >>> pack_offline([12], budget=10)
        Traceback (most recent call last):
        ...
        ValueError: sample 0 has 12 tokens, more than the budget of 10
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1 token, got {budget}")
    for index, length in enumerate(lengths):
        _check_length(index, length, budget)
    packs: list[list[int]] = []
    slots = len(lengths)
    rooms: list[int] = []
    for index in sorted(range(slots), key=lengths.__getitem__, reverse=True):
        length = lengths[index]
        at = bisect_left(rooms, length * slots)
        if at < len(rooms):
            key = rooms.pop(at)
        else:
            key = budget * slots + len(packs)
            packs.append([])
        packs[key % slots].append(index)
        key -= length * slots
        if key >= slots:
            insort(rooms, key)
    return [sorted(members) for members in packs]


def _check_length(index: int, length: int, budget: int) -> None:
    if length > budget:
        raise ValueError(f"sample {index} has {length} tokens, more than the budget of {budget}")
    if length < 1:
        raise ValueError(f"sample {index} has {length} tokens; every sample needs at least 1")


def fill(lengths: Sequence[int], packs: Sequence[Sequence[int]], budget: int) -> float:
    """Share of the packs' token slots that hold a token; 1 minus this is the padding fraction.

    Args:
        lengths: tokens of each sample.
        packs: sample positions per pack, as :func:`pack_stream` and :func:`pack_offline` give them.
        budget: token slots of every pack.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: no packs, or a pack that holds more than ``budget`` tokens.

    Example:
        >>> fill([6, 5, 4, 3], [[0, 2], [1, 3]], budget=10)
        0.9
    """
    if not packs:
        raise ValueError("packs is empty: the fill of no packs is undefined")
    tokens = [sum(lengths[index] for index in members) for members in packs]
    if max(tokens) > budget:
        raise ValueError(f"a pack holds {max(tokens)} tokens, more than the budget of {budget}")
    return sum(tokens) / (len(packs) * budget)


def pack(samples: Sequence[Shaped[Tensor, "_ ..."]], capacity: int | None = None) -> Shaped[Tensor, "n ..."]:
    """Lay the tokens of several samples on one axis, one sample after another.

    Args:
        samples: per sample ``(tokens, ...)``; trailing shape, dtype and device must agree.
        capacity: length of the result; zeros fill what the samples leave. Default: no padding.

    Returns:
        ``(n, ...)`` with ``n = capacity`` or the number of tokens in all.

    Raises:
        ValueError: no samples, different trailing shapes, or more tokens than ``capacity``.

    Example:
        >>> pack([torch.ones(2, 3), torch.zeros(1, 3)]).shape
        torch.Size([3, 3])
        >>> pack([torch.ones(2), 2 * torch.ones(1)], capacity=5)
        tensor([1., 1., 2., 0., 0.])
    """
    if not samples:
        raise ValueError("samples is empty: there is nothing to pack")
    trailing = samples[0].shape[1:]
    for index, sample in enumerate(samples):
        if sample.shape[1:] != trailing:
            raise ValueError(
                f"samples must agree beyond the token axis: sample 0 has {tuple(trailing)}, "
                f"sample {index} has {tuple(sample.shape[1:])}"
            )
    tokens = torch.cat(list(samples))
    if capacity is None:
        return tokens
    if len(tokens) > capacity:
        raise ValueError(f"the samples have {len(tokens)} tokens, more than the capacity of {capacity}")
    return torch.cat([tokens, tokens.new_zeros(capacity - len(tokens), *trailing)])


def unpack(tokens: Shaped[Tensor, "..."], layout: TokenLayout) -> list[Shaped[Tensor, "_ ..."]]:
    """Cut a ragged batch into its samples; padding is left behind. The inverse of :func:`pack`.

    Args:
        tokens: ``(n, ...)`` for a packed layout, ``(b, n, ...)`` for a dense or padded one.
        layout: says how the samples lie.

    Returns:
        Per sample a view ``(layout.lengths[i], ...)``.

    Raises:
        ValueError: the leading shape of ``tokens`` is not ``layout.shape``.

    Example:
        >>> from tubelet.layout import Grid
        >>> layout = TokenLayout.packed([Grid(1, 1, 2), Grid(1, 1, 1)], capacity=4)
        >>> [sample.tolist() for sample in unpack(torch.arange(4), layout)]
        [[0, 1], [2]]
    """
    lead = tuple(tokens.shape[: len(layout.shape)])
    if lead != layout.shape:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)} do not start with the layout's {layout.shape}")
    if len(lead) == 2:
        return [row[:length] for row, length in zip(tokens, layout.lengths, strict=True)]
    used = tokens[: sum(layout.lengths)]
    return list(torch.split(used, list(layout.lengths)))
