"""Blocks of several token streams: branches that all streams share, and branches that each has alone.

The dual-stream block of MM-DiT (Esser et al., 2024, arXiv:2403.03206, figure 2b; HunyuanVideo, arXiv:2412.03603,
section 4.3; Mochi) is a :class:`JointBranch` around a joint attention and a :class:`StreamBranches` of one MLP per
stream. A stream that a block reads but does not change (the text of Mochi's last block) has no update. The
single-stream block is a :class:`tubelet.blocks.TransformerBlock` on the merged axis.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch  # noqa: F401 - the examples use it
from jaxtyping import Float
from torch import Tensor, nn

from tubelet.blocks import Branch, taken
from tubelet.layout import Rows
from tubelet.protocols import ModulationSource

__all__ = ["JointBranch", "MultiStreamBlock", "StreamBranches", "streams_in_turn"]

Streams = tuple[Float[Tensor, "..."], ...]  # each stream (*lead, d) of its own


class JointBranch(nn.Module):
    """One residual branch of all streams at once: norms, modulation, gates of their own around one inner module.

    Args:
        inner: takes one tensor per stream and returns as many, such as a :class:`tubelet.attention.JointAttention`.
        branches: the norm, modulation, post-norm and gate of each stream, as a :class:`tubelet.Branch` of nothing
            (``nn.Identity()``).
        updates: which streams change; None means all.
        takes: names of the context entries handed to ``inner`` as keywords.

    Raises:
        ValueError: ``updates`` has not one entry per branch; at the call, what a branch or ``inner`` refuses.

    Example:
        >>> class Swap(nn.Module):
        ...     def forward(self, a, b):
        ...         return b, a
        >>> branch = JointBranch(Swap(), [Branch(nn.Identity()), Branch(nn.Identity())], updates=(False, True))
        >>> branch((torch.ones(1), torch.zeros(1)), (None, None))
        (tensor([1.]), tensor([1.]))
    """

    def __init__(
        self,
        inner: nn.Module,
        branches: Sequence[Branch],
        *,
        updates: Sequence[bool] | None = None,
        takes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.inner, self.branches = inner, nn.ModuleList(branches)
        self.updates = (True,) * len(branches) if updates is None else tuple(updates)
        if len(self.updates) != len(branches):
            raise ValueError(f"updates has {len(self.updates)} entries, but there are {len(branches)} branches")
        self.takes = tuple(takes)

    def forward(
        self, streams: Streams, conds: Sequence[Rows | None], context: Mapping[str, Any] | None = None
    ) -> Streams:
        """Add the branch to the streams; ``conds`` holds the conditioning of each."""
        parts = zip(self._own, streams, *self.run(streams, conds, context), self.updates, strict=True)
        return tuple(branch.leave(x, update, gate) if moves else x for branch, x, update, gate, moves in parts)

    def run(
        self, streams: Streams, conds: Sequence[Rows | None], context: Mapping[str, Any] | None
    ) -> tuple[Streams, tuple[Rows | None, ...]]:
        """What ``inner`` makes of the normed and modulated streams, and the gate of each."""
        entered = [branch.enter(x, cond) for branch, x, cond in zip(self._own, streams, conds, strict=True)]
        return self.inner(*(h for h, _ in entered), **taken(context, self.takes)), tuple(gate for _, gate in entered)

    @property
    def _own(self) -> list[Branch]:
        return list(self.branches)  # type: ignore[arg-type]


class StreamBranches(nn.Module):
    """One branch per stream, which sees its own stream alone; None leaves a stream as it is.

    Example:
        >>> branches = StreamBranches([None, Branch(nn.Identity())])
        >>> branches((torch.ones(1), torch.ones(1)), (None, None))
        (tensor([1.]), tensor([2.]))
    """

    def __init__(self, branches: Sequence[nn.Module | None]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({str(i): each for i, each in enumerate(branches) if each is not None})

    def forward(
        self, streams: Streams, conds: Sequence[Rows | None], context: Mapping[str, Any] | None = None
    ) -> Streams:
        """Add each branch to its stream."""
        out = list(streams)
        for name, branch in self.branches.items():
            out[int(name)] = branch(streams[int(name)], conds[int(name)], context)
        return tuple(out)

    def of(self, stream: int) -> nn.Module | None:
        """The branch of a stream."""
        return dict(self.branches.items()).get(str(stream))


def streams_in_turn(
    branches: Iterable[nn.Module],
    streams: Streams,
    conds: Sequence[Rows | None],
    context: Mapping[str, Any] | None,
) -> Streams:
    """Every branch in turn.

    What :func:`tubelet.fused.use_kernels` replaces where a branch that all streams share is followed by one of each.

    Example:
        >>> each = StreamBranches([Branch(nn.Identity()), None])
        >>> streams_in_turn([each, each], (torch.ones(1), torch.ones(1)), (None, None), None)
        (tensor([4.]), tensor([1.]))
    """
    for branch in branches:
        streams = branch(streams, conds, context)
    return streams


class MultiStreamBlock(nn.Module):
    """Branches of several streams in order.

    Args:
        branches: such as a :class:`JointBranch` and a :class:`StreamBranches`.
        modulations: per stream what its branches share of the modulation, each its part through a ``ModulationSlice``;
            None hands a stream's branches its conditioning as it is.

    Raises:
        ValueError: at the call, as many streams or conditionings as modulations are not given; a modulated stream
            without conditioning.

    Example:
        >>> block = MultiStreamBlock([StreamBranches([Branch(nn.Identity()), None])], [None, None])
        >>> block((torch.ones(1), torch.ones(1)), (None, None))
        (tensor([2.]), tensor([1.]))
    """

    in_turn: Callable[..., Streams] = staticmethod(streams_in_turn)

    def __init__(self, branches: Sequence[nn.Module], modulations: Sequence[nn.Module | None]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.modulations = nn.ModuleDict({str(i): each for i, each in enumerate(modulations) if each is not None})
        self.streams = len(modulations)

    def forward(
        self, streams: Streams, conds: Sequence[Rows | None], context: Mapping[str, Any] | None = None
    ) -> Streams:
        """Apply every branch in turn."""
        if not len(streams) == len(conds) == self.streams:
            raise ValueError(f"streams={len(streams)} and conds={len(conds)} given, but the block has {self.streams}")
        rows = list(conds)
        for name, source in self.modulations.items():
            rows[int(name)] = _modulated(int(name), source, conds[int(name)])
        return self.in_turn(self.branches, streams, rows, context)


def _modulated(stream: int, source: ModulationSource, cond: Rows | None) -> Rows:
    if cond is None:
        raise ValueError(f"conds[{stream}] is None, but stream {stream} of this block is modulated")
    return source(cond)
