"""The kit's check of patterns: ours pass, and what a pattern says falsely is named with its layout and pair."""

import dataclasses
from typing import ClassVar

import drawn
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tubelet.attention import FrameCausal, Joint, SlidingTile, Temporal, Window
from tubelet.layout import Grid, Kind, TokenInfo
from tubelet.protocols import Pattern
from tubelet.testing import check_pattern, matrix_patterns


@pytest.mark.parametrize("name", matrix_patterns())
def test_our_patterns_pass(name: str) -> None:
    check_pattern(matrix_patterns()[name], heads=4)


@settings(max_examples=10)
@given(draw=drawn.patterns | drawn.splits(3))
def test_drawn_patterns_pass(draw: drawn.Made) -> None:
    check_pattern(draw(), heads=3)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A pattern from a word."""

    kind: str

    def attends(self, q: TokenInfo, k: TokenInfo, head: Tensor) -> Tensor:
        same_frame = q.coords[..., 0] == k.coords[..., 0]
        if self.kind == "frames, one per head":
            return torch.where(head == 0, same_frame, torch.ones_like(same_frame))
        if self.kind == "strict past":
            return k.coords[..., 0] < q.coords[..., 0]
        if self.kind == "numbers of samples":
            return same_frame | (k.sample == 0)
        return same_frame.float()


def test_a_predicate_is_enough() -> None:
    check_pattern(Rule("frames, one per head"))


class NoValue:
    """Equal to nothing, not even itself."""

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0

    def attends(self, q: TokenInfo, k: TokenInfo, head: Tensor) -> Tensor:
        return q.sample == k.sample


@pytest.mark.graph  # the runtime type checker would refuse the floats first
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (Rule("strict past"), r"layout 'packed', sample 0: a grid token does not attend itself: \(0, 0, 0\)"),
        (Rule("numbers of samples"), r"sample 2: attends otherwise than alone: query \(0, 0, 0\), key \(1, 0, 0\)"),
        (Rule("floats"), "torch.bool|and_"),
        (NoValue(), "is not a hashable value"),
    ],
)
def test_bad_predicates_are_named(pattern: Pattern, message: str) -> None:
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError), match=message):
        check_pattern(pattern)


class Rows(Temporal):
    """A group by row alone."""

    def attends(self, q: TokenInfo, k: TokenInfo, head: Tensor) -> Tensor:
        return Temporal().attends(q, k, head)

    def group(self, tokens: TokenInfo) -> Tensor:
        return tokens.coords[..., 1]


class Wider(Window):
    """Axes of windows that are not shifted."""

    def axes(self, grid: Grid) -> object:
        return Window(self.size).axes(grid)


class Twice(FrameCausal):
    """Sinks that the window holds already."""

    def more_axes(self, grid: Grid) -> object:
        return self.axes(grid)


class Blind(Joint):
    """Text that sees the grid, and says that it does not."""

    text_sees_grid: ClassVar[bool] = False


class Deaf(SlidingTile):
    """Grid tokens that do not attend the text."""

    axes = SlidingTile.axes  # said again: what is inherited is not trusted beside another predicate

    def attends(self, q: TokenInfo, k: TokenInfo, head: Tensor) -> Tensor:
        return super().attends(q, k, head) & ((q.kind == Kind.TEXT) | (k.kind != Kind.TEXT))


class Silent:
    """Axes without the text rule."""

    spec = ""

    def attends(self, q: TokenInfo, k: TokenInfo, head: Tensor) -> Tensor:
        return q.sample == k.sample

    def axes(self, grid: Grid) -> object:
        return Joint().axes(grid)


class Forgets(FrameCausal):
    """A spec without its arguments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "spec", '["FrameCausal"]')


@pytest.mark.graph
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (Rows(), r"sample \d: group\(\) is not the predicate: query \(0, 0, 0\), key \(0, 0, 1\), head 0: 1 times"),
        (Wider((2, 2, 2), (1, 0, 1)), r"axes\(\) is not the predicate: query \(\d, \d, \d\), key \(\d, \d, \d\)"),
        (Twice(), r"axes\(\) is not the predicate: .* 2 times, where the predicate alone says True"),
        (Blind(), r"text_sees_grid is False: query text 0, key \(0, 0, 0\), head 0"),
        (Deaf((1, 2, 2), (1, 1, 1)), r"every query attends the text: query \(0, 0, 0\), key text 0"),
        (Silent(), "offers axes, but not text_sees_grid"),
        (Forgets(2), r"spec '\[\"FrameCausal\"\]' of .* gives FrameCausal\(window=None, sink=0\) back"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_false_offers_are_named(pattern: Pattern, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_pattern(pattern)
