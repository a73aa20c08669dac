"""Requests as segments end to end, the form that variable-length kernels take: orders of tokens and segment lengths.

A plan (:mod:`tubelet.attention.plan`) whose runs need neither masks nor merging is a list of segments: joint attention
on any layout, and partitions of the grid without text.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelet.attention.backends.sdpa import plannable, tables_of
from tubelet.attention.memory import Memory
from tubelet.attention.places import Affine, Places
from tubelet.attention.plan import Plan, make_plan
from tubelet.attention.planned import as_bytes
from tubelet.protocols import Answer, AttentionRequest

__all__ = ["SEGMENTS", "Segments", "segmentable", "segments"]


@dataclass(frozen=True, eq=False)
class Segments:
    """Queries and keys in the order of their segments; an order of None is that of the tokens, cut after the last one.

    Example:
        >>> Segments(None, None, (2, 1), (2, 1)).starts("q", "cpu").tolist()
        [0, 2, 3]
    """

    q_order: Int[Tensor, " a"] | None
    k_order: Int[Tensor, " b"] | None
    q_lengths: tuple[int, ...]
    k_lengths: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """About how much memory the orders and lengths take."""
        orders = sum(order.nbytes for order in (self.q_order, self.k_order) if order is not None)
        return orders + 32 * (len(self.q_lengths) + len(self.k_lengths))

    def starts(self, side: str, device: str) -> Int[Tensor, " s1"]:
        """Where the segments begin and the last one ends, as int32 on ``device``."""
        lengths = self.q_lengths if side == "q" else self.k_lengths
        return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device, non_blocking=True)

    def take(self, x: Float[Tensor, "*lead h d"], side: str) -> Float[Tensor, "m h d"]:
        """The tokens in the order of the segments; nothing is copied where that is their own."""
        flat = x.reshape(-1, *x.shape[-2:])
        order, lengths = (self.q_order, self.q_lengths) if side == "q" else (self.k_order, self.k_lengths)
        return flat[: sum(lengths)] if order is None else flat.index_select(0, order.to(x.device, non_blocking=True))

    def put(self, out: Float[Tensor, "m h e"], lead: tuple[int, ...]) -> Float[Tensor, "*lead h e"]:
        """Undo :meth:`take` of the queries; tokens of no segment give 0."""
        shape = (*lead, *out.shape[1:])
        tokens = torch.Size(lead).numel()
        if self.q_order is None and len(out) == tokens:
            return out.reshape(shape)
        if self.q_order is None:
            return torch.cat([out, out.new_zeros(tokens - len(out), *out.shape[1:])]).reshape(shape)
        zeros = out.new_zeros(tokens, *out.shape[1:])
        return zeros.index_copy(0, self.q_order.to(out.device, non_blocking=True), out).reshape(shape)


def segmentable(request: AttentionRequest) -> Answer:
    """Whether a request is segments; only partitions are planned to find out.

    Example:
        >>> from tubelet.attention import Joint
        >>> request = AttentionRequest(Joint(), None, None, (8, 2, 4), (8, 1, 4), torch.float32, "cpu", 0.5, None)
        >>> bool(segmentable(request))
        True
    """
    answer = plannable(request)
    if not answer:
        return answer
    if not hasattr(request.pattern, "group"):
        return Answer(f"{request.pattern} is no partition into segments: it has no group()")
    plan = _plan(request)
    if plan.merges or any(run.mask is not None for run in plan.runs):
        return Answer(f"{request.pattern} on this layout is no list of segments: text joins groups")
    if not plan.runs:
        return Answer("no query has any key")
    return Answer()


def segments(request: AttentionRequest) -> Segments:
    """The segments of a request that :func:`segmentable` accepts; remembered.

    Example:
        >>> from tubelet.attention import Joint
        >>> request = AttentionRequest(Joint(), None, None, (2, 8, 2, 4), (2, 8, 1, 4), torch.float32, "cpu", 0.5, None)
        >>> segments(request).q_lengths
        (8, 8)
    """
    return SEGMENTS(_plan(request))


def _segments(plan: Plan) -> Segments:
    q_lengths = tuple(n for run in plan.runs for n in [run.q.length] * run.q.groups)
    k_lengths = tuple(n for run in plan.runs for n in [run.k.length] * run.k.groups)
    q, k = (_order([getattr(run, side) for run in plan.runs]) for side in "qk")
    return Segments(q, k, q_lengths, k_lengths)


SEGMENTS: Memory[Segments] = Memory(_segments, limit=1 << 27)
"""The segments that were used last, 128 MiB of them."""


def _order(places: list[Places]) -> Tensor | None:
    order = torch.cat([(p.index() if isinstance(p, Affine) else p.places).flatten() for p in places])
    return None if torch.equal(order, torch.arange(len(order))) else order


def _plan(request: AttentionRequest) -> Plan:
    pattern: Any = request.pattern
    table, *others = (None if x is None else as_bytes(x) for x in tables_of(request))
    assert table is not None
    return make_plan(pattern, table, *others, heads=request.shape[-2])
