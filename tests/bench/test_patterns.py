"""Patterns are named after the library's classes, and made from plain values."""

from dataclasses import dataclass

import pytest

from tubelet.attention import Joint, patterns
from tubelet.bench import parse_pattern, pattern_names
from tubelet.bench.patterns import _value


@dataclass(frozen=True)
class FrameWindow:
    size: tuple[int, int, int]
    reach: int = 1
    causal: bool = False

    def __post_init__(self) -> None:
        if self.reach < 0:
            raise ValueError(f"reach must not be negative, got {self.reach}")

    def attends(self, q, k, head):
        return q.kind == k.kind

    def __or__(self, other):
        return Pair("|", self, other)

    def __and__(self, other):
        return Pair("&", self, other)


@dataclass(frozen=True)
class Pair:
    sign: str
    left: object
    right: object

    def attends(self, q, k, head):
        return q.kind == k.kind

    def __or__(self, other):
        return Pair("|", self, other)


@pytest.fixture
def _frame_window(monkeypatch) -> None:
    monkeypatch.setattr(patterns, "FrameWindow", FrameWindow, raising=False)
    monkeypatch.setattr(patterns, "__all__", [*patterns.__all__, "FrameWindow"])


def test_every_named_pattern_is_a_class_of_the_library() -> None:
    assert "joint" in pattern_names()
    assert parse_pattern("joint") == Joint()


@pytest.mark.usefixtures("_frame_window")
def test_a_class_that_is_added_has_a_name_at_once() -> None:
    assert pattern_names()["frame-window"] == "frame-window:size[:reach=1][:causal=False]"
    assert parse_pattern("frame-window:5x8×8") == FrameWindow((5, 8, 8))
    assert parse_pattern("frame-window:5x8x8:2:true") == FrameWindow((5, 8, 8), 2, True)
    assert parse_pattern("frame-window:size=1x2x3:causal=true") == FrameWindow((1, 2, 3), causal=True)


@pytest.mark.usefixtures("_frame_window")
def test_and_binds_closer_than_or() -> None:
    a, b, c = (FrameWindow((n, n, n)) for n in (1, 2, 3))
    text = "frame-window:1x1x1 | frame-window:2x2x2 & frame-window:3x3x3"
    assert parse_pattern(text) == Pair("|", a, Pair("&", b, c))


@pytest.mark.usefixtures("_frame_window")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dance", "'dance' is unknown; the patterns are"),
        ("", "'' is unknown"),
        ("joint:3", "'joint:3' is written joint"),
        ("frame-window", "is written frame-window:size"),
        ("frame-window:1x1x1:speed=3", "is written frame-window:size"),
        ("frame-window:big", "'big' is no whole number"),
        ("frame-window:1x1x1:-1", "reach must not be negative, got -1"),
        ("joint|", "'' is unknown"),
        ("joint@2/joint", "must give each part its heads"),
    ],
)
def test_mistakes_are_named(text: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_pattern(text)
    assert says in str(caught.value)


def test_values() -> None:
    found = [_value(text) for text in ("3", "-2", "1x2×3", "true", "False", "none", "truexfalsexfalse")]
    assert found == [3, -2, (1, 2, 3), True, False, None, (True, False, False)]
