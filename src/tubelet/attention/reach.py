"""How far apart tokens may lie that attend each other, which is what a table of relative positions must hold."""

from collections.abc import Iterable

from tubelet.attention.patterns import Both, Either, HeadSplit
from tubelet.attention.patterns.spans import Span
from tubelet.attention.plan import offers
from tubelet.layout import Grid
from tubelet.protocols import Pattern

__all__ = ["reach"]

Sides = tuple[int, int, int]


def reach(pattern: Pattern, grid: Grid) -> Sides:
    """The sides ``(t, h, w)`` of the smallest box that holds any two tokens of a grid that attend each other.

    Of a pattern that is known by its predicate alone, the sides of the grid.

    Example:
        >>> from tubelet.attention.patterns import Joint, Window
        >>> reach(Window((5, 8, 8)), Grid(5, 32, 6)), reach(Joint(), Grid(5, 32, 6))
        ((5, 8, 6), (5, 32, 6))
    """
    if isinstance(pattern, HeadSplit):
        return _each(max, (reach(part, grid) for part in pattern.patterns))
    if isinstance(pattern, Both | Either):
        return _each(min if isinstance(pattern, Both) else max, (reach(pattern.a, grid), reach(pattern.b, grid)))
    if not offers(pattern, "axes"):
        return grid.t, grid.h, grid.w
    axes = [pattern.axes(grid)]  # type: ignore[attr-defined]
    more = pattern.more_axes(grid) if hasattr(pattern, "more_axes") else None
    return _each(max, ((_length(t), _length(h), _length(w)) for t, h, w in (axes if more is None else [*axes, more])))


def _length(spans: Iterable[Span]) -> int:
    """The largest distance of a query and a key, and one more."""
    return max(max(span.q + span.nq - span.k, span.k + span.nk - span.q) for span in spans)


def _each(choose: object, sides: Iterable[Sides]) -> Sides:
    t, h, w = (choose(axis) for axis in zip(*sides, strict=True))  # type: ignore[operator]
    return t, h, w
