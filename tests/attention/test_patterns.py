"""Patterns as values."""

import torch

from tubelet.attention import Joint
from tubelet.layout import Grid, TokenLayout
from tubelet.protocols import Pattern


def test_joint_is_a_value_that_allows_everything() -> None:
    info = TokenLayout.packed([Grid(1, 1, 2)]).on("cpu").info()
    assert Joint() == Joint() and hash(Joint()) == hash(Joint()) and isinstance(Joint(), Pattern)
    assert Joint().attends(info, info, torch.zeros(1, dtype=torch.long)).all()
