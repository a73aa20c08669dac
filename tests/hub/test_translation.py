"""Tensors of one form as those of another, where one of ours is several of theirs and the other way round."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tubelet.hub import Entry, Family, KeyMap
from tubelet.hub.tensors import held
from tubelet.hub.translation import recast, to_ours, to_theirs


@dataclass(frozen=True)
class PairConfig:
    width: int = 3


class Pair(nn.Module):
    """One tensor that is two of theirs, two that are one of theirs."""

    def __init__(self, config: PairConfig, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.config = config
        for name, rows in (("joined", 4), ("first", 1), ("second", 2)):
            self.register_parameter(name, nn.Parameter(torch.zeros(rows, config.width, device=device, dtype=dtype)))


def complete(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return dict(config) or {"width": shapes["a"][1]}


PAIR = Family(
    Pair,
    "",
    lambda config: KeyMap(
        (
            Entry(("joined",), ("a", "b"), lambda a, b: [torch.cat([a, b])], lambda both: both.split([1, 3])),
            Entry(("first", "second"), ("c",), lambda c: c.split([1, 2]), lambda *two: [torch.cat(two)]),
        ),
        ignored=("old",),
    ),
    lambda config: PairConfig(config["width"]),
    lambda config: {"width": config.width},
    wide=("first",),
    complete=complete,
    prefixes=("other.", "net."),
    others=("vae.",),
)
THEIRS = {"a": torch.randn(1, 5), "b": torch.randn(3, 5), "c": torch.randn(3, 5)}


@pytest.mark.parametrize("prefix", ["", "net.", "other."])
def test_there_and_back_from_the_shapes_alone(prefix: str) -> None:
    file = {prefix + name: tensor for name, tensor in THEIRS.items()} | {f"{prefix}old": torch.zeros(2)}
    model, ours = to_ours(PAIR, "a file", {}, held(file))
    assert model.config == PairConfig(5)
    assert ours.shapes == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert torch.equal(ours.read("joined"), torch.cat([THEIRS["a"], THEIRS["b"]]))
    assert torch.equal(ours.read("second"), THEIRS["c"][1:])
    config, back = to_theirs(PAIR, model.config, ours)
    assert config == {"width": 5}
    assert back.shapes == {name: tuple(tensor.shape) for name, tensor in THEIRS.items()}
    assert all(torch.equal(back.read(name), tensor) for name, tensor in THEIRS.items())


def test_a_prefix_before_some_names_only_is_no_prefix() -> None:
    with pytest.raises(ValueError, match=r"a file: its tensors do not fit Pair in 2 places:\n  missing a") as caught:
        to_ours(PAIR, "a file", {"width": 5}, held({"net.a": THEIRS["a"], "b": THEIRS["b"], "c": THEIRS["c"]}))
    assert "unexpected net.a (1, 5)" in str(caught.value)


def test_other_models_in_the_file_are_left_alone() -> None:
    file = {f"net.{name}": tensor for name, tensor in THEIRS.items()} | {"vae.a": torch.zeros(2)}
    _, ours = to_ours(PAIR, "a file", {}, held(file))
    assert torch.equal(ours.read("second"), THEIRS["c"][1:])


def test_a_table_that_follows_from_the_config_is_judged_by_its_entry_and_written() -> None:
    """Of any length; missing it is named as any other tensor, and its numbers are compared before anything is built."""

    def judge(table: Tensor) -> list[Tensor]:
        if not table.is_meta and table.any():
            raise ValueError(f"steps holds {table.tolist()}")
        return []

    steps = Entry((), ("steps",), judge, lambda: [torch.zeros(4)])
    family = replace(PAIR, keys=lambda config: KeyMap((*PAIR.keys(config).entries, steps)))
    model, ours = to_ours(family, "a file", {}, held(THEIRS | {"steps": torch.zeros(2)}))
    assert ours.like.keys() == {"joined", "first", "second"}
    _, back = to_theirs(family, model.config, ours)
    assert torch.equal(back.read("steps"), torch.zeros(4)) and back.shapes["steps"] == (4,)
    with pytest.raises(ValueError, match=r"steps holds \[1.0\]"):
        to_ours(family, "a file", {}, held(THEIRS | {"steps": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"missing steps \(4,\)"):
        to_ours(family, "a file", {}, held(THEIRS))


def test_a_dtype_spares_islands_and_integers() -> None:
    _, ours = to_ours(PAIR, "a file", {}, held(THEIRS), torch.bfloat16)
    expected = {"joined": torch.bfloat16, "first": torch.float32, "second": torch.bfloat16}
    assert {name: tensor.dtype for name, tensor in ours.like.items()} == expected
    assert {name: ours.read(name).dtype for name in ours.like} == expected
    state: dict[str, Tensor] = {"first": torch.ones(1), "steps": torch.ones(1, dtype=torch.long)}
    cast = recast(held(state), torch.float64, PAIR.stays_wide)
    assert [cast.read(name).dtype for name in state] == [torch.float64, torch.int64]
    assert torch.equal(recast(held(state), None, PAIR.stays_wide).read("first"), state["first"])
