"""Patterns made of patterns: unions, intersections, and another pattern for other heads."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tubelet.attention.patterns.specs import spec, whole_number
from tubelet.layout import TokenInfo
from tubelet.protocols import Pattern

__all__ = ["Both", "Either", "HeadSplit", "both", "either"]


def either(a: Pattern, b: object) -> "Either":
    """``a | b``: what patterns define as ``__or__``.

    Example:
        >>> from tubelet.attention.patterns import Spatial, Temporal
        >>> either(Spatial(), Temporal()) == Spatial() | Temporal()
        True
    """
    return Either(a, b) if isinstance(b, Pattern) else NotImplemented


def both(a: Pattern, b: object) -> "Both":
    """``a & b``: what patterns define as ``__and__``.

    Example:
        >>> from tubelet.attention.patterns import FrameCausal, Spatial
        >>> both(FrameCausal(), Spatial()) == FrameCausal() & Spatial()
        True
    """
    return Both(a, b) if isinstance(b, Pattern) else NotImplemented


@dataclass(frozen=True)
class Either:
    """The union ``a | b``: a query attends what it attends under either pattern.

    Example:
        >>> from tubelet.attention.patterns import Spatial, Temporal
        >>> Spatial() | Temporal()
        Either(a=Spatial(), b=Temporal())
    """

    a: Pattern
    b: Pattern
    spec: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", spec(self, "Either", self.a, self.b))

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """True where either part is."""
        return self.a.attends(q, k, head) | self.b.attends(q, k, head)

    __or__ = __ror__ = either
    __and__ = __rand__ = both


@dataclass(frozen=True)
class Both:
    """The intersection ``a & b``: a query attends what it attends under both patterns.

    Example:
        >>> from tubelet.attention.patterns import FrameCausal, Window
        >>> FrameCausal() & Window((4, 8, 8))
        Both(a=FrameCausal(window=None, sink=0), b=Window(size=(4, 8, 8), shift=(0, 0, 0)))
    """

    a: Pattern
    b: Pattern
    spec: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", spec(self, "Both", self.a, self.b))

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """True where both parts are."""
        return self.a.attends(q, k, head) & self.b.attends(q, k, head)

    __or__ = __ror__ = either
    __and__ = __rand__ = both


@dataclass(frozen=True)
class HeadSplit:
    """Another pattern for other heads: the first ``heads[0]`` follow ``patterns[0]``, and so on.

    ``HeadSplit((Spatial(), Temporal()), (6, 6))`` is ViViT's factorised dot-product attention (arXiv:2103.15691, model
    4). Backends see one request for each part, whose heads are numbered from 0.

    Raises:
        ValueError: not as many head counts as patterns, a count below 1, or a part that is itself a split.

    Example:
        >>> from tubelet import Grid, TokenLayout, attend
        >>> from tubelet.attention.patterns import Spatial, Temporal
        >>> q, k, v = torch.randn(3, 8, 4, 16)
        >>> split = HeadSplit((Spatial(), Temporal()), (2, 2))
        >>> attend(q, k, v, pattern=split, layout=TokenLayout.packed([Grid(2, 2, 2)])).shape
        torch.Size([8, 4, 16])
    """

    patterns: tuple[Pattern, ...]
    heads: tuple[int, ...]
    spec: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(whole_number("heads", count) for count in self.heads))
        if len(self.patterns) != len(self.heads) or not self.heads or min(self.heads) < 1:
            raise ValueError(f"heads must give each of {len(self.patterns)} patterns 1 or more, got {self.heads}")
        if nested := [p for p in self.patterns if isinstance(p, HeadSplit)]:
            raise ValueError(f"patterns of a split must not be splits, got {nested[0]}")
        parts = [getattr(p, "spec", "") for p in self.patterns]
        text = f'["HeadSplit", [{", ".join(parts)}], {list(self.heads)}]'
        object.__setattr__(self, "spec", text if all(parts) and type(self) is HeadSplit else "")

    def attends(self, q: TokenInfo, k: TokenInfo, head: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """The predicate of the part that ``head`` belongs to."""
        allowed = torch.zeros((), dtype=torch.bool, device=head.device)
        first = 0
        for pattern, count in zip(self.patterns, self.heads, strict=True):
            mine = (head >= first) & (head < first + count)
            allowed = allowed | (mine & pattern.attends(q, k, head - first))
            first += count
        return allowed

    __or__ = __ror__ = either
    __and__ = __rand__ = both
