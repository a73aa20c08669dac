"""Tables of names: both directions, several tensors to one, stars, and what does not fit."""

import pytest
import torch

from tubelet.hub import Entry, KeyMap, fused, renamed

FUSED = Entry(
    ("blocks.*.q.weight", "blocks.*.k.weight"),
    ("layers.*.qk.weight",),
    lambda qk: qk.chunk(2),
    lambda q, k: [torch.cat([q, k])],
)
KEYS = KeyMap(
    (FUSED, *renamed("blocks.*.parts.*.up", "layers.*.mlp.*.fc1"), *renamed("up", "fc1", ["weight"])),
    ignored=("layers.*.old",),
)


def test_both_directions_are_inverse() -> None:
    ours = {
        "blocks.0.q.weight": torch.randn(2, 3),
        "blocks.0.k.weight": torch.randn(2, 3),
        "blocks.11.q.weight": torch.randn(2, 3),
        "blocks.11.k.weight": torch.randn(2, 3),
        "blocks.1.parts.12.up.bias": torch.randn(3),
        "up.weight": torch.randn(1),
    }
    theirs = KEYS.to_theirs(ours)
    assert sorted(theirs) == ["fc1.weight", "layers.0.qk.weight", "layers.1.mlp.12.fc1.bias", "layers.11.qk.weight"]
    assert torch.equal(
        theirs["layers.11.qk.weight"], torch.cat([ours["blocks.11.q.weight"], ours["blocks.11.k.weight"]])
    )
    back = KEYS.to_ours({**theirs, "layers.3.old": torch.zeros(1)})
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)


def test_a_star_is_one_number_and_a_point_is_a_point() -> None:
    _, unknown = KEYS.groups(
        ["layers.x.qk.weight", "layers.1.2.qk.weight", "layers-1-qk-weight", "fc1xweight"], "theirs"
    )
    assert len(unknown) == 4


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown \['what'\], missing \['blocks.4.k.weight'\]"):
        KEYS.to_theirs({"blocks.4.q.weight": torch.zeros(1), "what": torch.zeros(1)})


def test_equal_parts_of_one_tensor_are_those_of_several_modules_in_order() -> None:
    keys = KeyMap(fused(["q", "k", "v"], "qkv"))
    state = {"qkv.weight": torch.arange(6.0).view(6, 1), "qkv.bias": torch.arange(6.0)}
    ours = keys.to_ours(state)
    assert [ours[f"{name}.bias"].tolist() for name in "qkv"] == [[0, 1], [2, 3], [4, 5]]
    back = keys.to_theirs(ours)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    assert [entry.theirs for entry in fused(["q"], "a", ["weight"])] == [("a.weight",)]
