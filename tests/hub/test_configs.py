"""Configs go to JSON and back, strictly."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.hub import from_dict, to_dict


class Kind(Enum):
    DENSE = 1
    CAUSAL = 2


@dataclass(frozen=True)
class Rope:
    axes: tuple[int, int, int]
    theta: float = 10000.0


@dataclass(frozen=True)
class Learned:
    length: int


@dataclass(frozen=True, kw_only=True)
class Config:
    dim: int
    rope: Rope
    ratio: float = 4.0
    norm: Literal["rms", "layer"] = "rms"
    kind: Kind = Kind.DENSE
    windows: tuple[tuple[int, int], ...] = ()
    positions: tuple[Rope | Learned, ...] = ()
    cond: int | None = None
    words: list[str] = field(default_factory=list)
    sizes: dict[str, tuple[int, float]] = field(default_factory=dict)
    scale: int | float | str = 1
    extra: Any = None
    area: int = field(init=False)

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim must be positive, got {self.dim}")
        object.__setattr__(self, "area", self.dim * self.dim)


INTS = st.integers(1, 10**6)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
ROPES = st.builds(Rope, axes=st.tuples(INTS, INTS, INTS), theta=FLOATS)
CONFIGS = st.builds(
    Config,
    dim=INTS,
    rope=ROPES,
    ratio=FLOATS,
    norm=st.sampled_from(["rms", "layer"]),
    kind=st.sampled_from(Kind),
    windows=st.lists(st.tuples(INTS, INTS)).map(tuple),
    positions=st.lists(ROPES | st.builds(Learned, length=INTS)).map(tuple),
    cond=st.none() | INTS,
    words=st.lists(st.text()),
    sizes=st.dictionaries(st.text(), st.tuples(INTS, FLOATS)),
    scale=INTS | FLOATS | st.text(),
)
MINIMAL = {"dim": 4, "rope": {"axes": [1, 2, 3]}}


@given(config=CONFIGS)
def test_round_trip_through_json_text(config):
    restored = from_dict(Config, json.loads(json.dumps(to_dict(config), allow_nan=False)))
    assert restored == config
    assert type(restored.scale) is type(config.scale)
    assert isinstance(restored.windows, tuple)
    assert all(isinstance(w, tuple) for w in restored.windows)
    assert isinstance(restored.rope.axes, tuple)


def test_missing_keys_take_defaults_and_derived_fields_stay_out():
    config = from_dict(Config, MINIMAL)
    assert config == Config(dim=4, rope=Rope((1, 2, 3)))
    assert config.area == 16
    assert "area" not in to_dict(config)


def test_a_whole_number_serves_as_a_float():
    ratio = from_dict(Config, {**MINIMAL, "ratio": 3}).ratio
    assert ratio == 3.0
    assert isinstance(ratio, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimm": 4, "zeta": 1}, r"config \(Config\) has unknown keys \['dimm', 'zeta'\] and lacks \[\]"),
        ({"area": 16}, r"unknown keys \['area'\]"),
        ({"rope": {"theta": 1.0}}, r"config.rope \(Rope\) has unknown keys \[\] and lacks \['axes'\]"),
        ({"rope": 3}, "config.rope must be the fields of Rope, got 3"),
        ({"dim": "4"}, "config.dim must be int, got '4'"),
        ({"dim": True}, "config.dim must be int, got True"),
        ({"dim": 4.0}, "config.dim must be int, got 4.0"),
        ({"ratio": True}, "config.ratio must be float, got True"),
        ({"dim": 0}, "dim must be positive, got 0"),
        ({"norm": "batch"}, "config.norm must be .*'rms', 'layer'.*, got 'batch'"),
        ({"kind": "SPARSE"}, r"config.kind must be one of \['DENSE', 'CAUSAL'\], got 'SPARSE'"),
        ({"rope": {"axes": [1, 2]}}, r"config.rope.axes must be 3 items, got \[1, 2\]"),
        ({"rope": {"axes": [1, 2, "3"]}}, r"config.rope.axes\[2\] must be int, got '3'"),
        ({"windows": [[1, 2], [3]]}, r"config.windows\[1\] must be 2 items"),
        ({"windows": "ab"}, "config.windows must be a list, got 'ab'"),
        ({"words": ("a",)}, r"config.words must be list\[str\]"),
        ({"words": [1]}, r"config.words\[0\] must be str, got 1"),
        ({"sizes": {"a": [1, "x"]}}, r"config.sizes\['a'\]\[1\] must be float, got 'x'"),
        ({"cond": "x"}, "config.cond='x' fits 0 members"),
        ({"positions": [{"width": 1}]}, r"config.positions\[0\]={'width': 1} fits 0 members"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        from_dict(Config, MINIMAL | changes)


def test_an_ambiguous_union_is_an_error():
    @dataclass(frozen=True)
    class A:
        n: int

    @dataclass(frozen=True)
    class B:
        n: int

    @dataclass(frozen=True)
    class Both:
        part: A | B

    Both.__annotations__["part"] = A | B
    with pytest.raises(ValueError, match="fits 2 members"):
        to_dict(Both(A(1)))


def test_values_that_would_not_return_are_refused_when_saving():
    with pytest.raises(ValueError, match="config does not return from JSON"):
        to_dict(Config(dim=4, rope=Rope((1, 2, 3)), windows=[(1, 2)]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"config.ratio is inf, a float that JSON cannot hold"):
        to_dict(Config(dim=4, rope=Rope((1, 2, 3)), ratio=float("inf")))
    with pytest.raises(ValueError, match=r"config.extra is .*, a object that JSON cannot hold"):
        to_dict(Config(dim=4, rope=Rope((1, 2, 3)), extra=object()))


def test_annotations_that_cannot_be_restored_are_refused():
    @dataclass(frozen=True)
    class Raw:
        data: bytes

    @dataclass(frozen=True)
    class Sets:
        data: set[int]

    with pytest.raises(ValueError, match=r"config.data is annotated bytes"):
        from_dict(Raw, {"data": "x"})
    with pytest.raises(ValueError, match=r"config.data is annotated set\[int\]"):
        from_dict(Sets, {"data": [1]})


def test_only_dataclasses():
    with pytest.raises(ValueError, match="config must be a dataclass instance"):
        to_dict({"dim": 4})
    with pytest.raises(ValueError, match="config must be a dataclass instance"):
        to_dict(Config)
    with pytest.raises(ValueError, match="cls must be a dataclass"):
        from_dict(dict, {"dim": 4})


def test_mappings_are_read_as_mappings():
    @dataclass(frozen=True)
    class Table:
        rows: Mapping[str, int]

    assert from_dict(Table, {"rows": {"a": 1}}).rows == {"a": 1}
