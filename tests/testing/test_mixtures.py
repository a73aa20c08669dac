"""What the checks share."""

import pytest
import torch
from torch import nn

from tubelet.testing import mixtures, same
from tubelet.testing.mixtures import alone, check_module, pieces


def test_mixtures_cover_every_form() -> None:
    found = mixtures()
    assert set(found) == {"packed", "capacity", "dense", "dropped", "text", "padded"}
    assert not any(any(layout.text_lengths) for layout in mixtures(text=False).values())
    assert found["dropped"].kept is not None and found["capacity"].width > sum(found["capacity"].lengths)


def test_pieces_and_their_layouts_agree_with_the_index() -> None:
    for layout in mixtures().values():
        index = layout.on("cpu")
        for i, where in pieces(layout):
            one = alone(layout, i).on("cpu")
            assert torch.equal(index.coords.reshape(-1, 3)[where], one.coords)
            assert torch.equal(index.kind.flatten()[where], one.kind)


def test_same_says_what_differs() -> None:
    same("x", torch.tensor([1.0 + 1e-6]), torch.ones(1), 1e-5)
    with pytest.raises(AssertionError, match="x differs: error 1.0e-03, allowed 1.0e-05"):
        same("x", torch.tensor([1.001]), torch.ones(1), 1e-5)
    with pytest.raises(AssertionError, match=r"x has shape \(2,\), expected \(1,\)"):
        same("x", torch.ones(2), torch.ones(1), 1.0)


class Forgetful(nn.Linear):
    def _load_from_state_dict(self, *arguments: object) -> None:
        super()._load_from_state_dict(*arguments)
        nn.init.zeros_(self.bias)


def test_a_state_dict_must_round_trip() -> None:
    check_module("a layer", nn.Linear(2, 2))
    check_module("a function", lambda x: x)
    with pytest.raises(AssertionError, match="bias changed in a state-dict round trip"):
        check_module("a layer", Forgetful(2, 2))
