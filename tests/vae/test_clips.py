"""Convolution that sees both sides in time, against its definition."""

import pytest
import torch
from parity import error
from torch.nn import functional as F

from tubelet.vae import ClipConv3d, copies, zeros


def test_zeros_around_a_clip_are_padding() -> None:
    layer = ClipConv3d(2, 3, (5, 3, 1), around=zeros, dtype=torch.float64)
    x = torch.randn(2, 2, 4, 5, 3, dtype=torch.float64)
    expected = F.conv3d(x, layer.conv.weight, layer.conv.bias, padding=(2, 1, 0))
    assert error(layer(x)[0], expected) <= 1e-14


def test_copies_around_a_clip_are_its_ends() -> None:
    layer = ClipConv3d(2, 3, (3, 3, 3), around=copies, dtype=torch.float64)
    x = torch.randn(2, 2, 4, 5, 3, dtype=torch.float64)
    longer = x[:, :, [0, 0, 1, 2, 3, 3]]
    expected = F.conv3d(longer, layer.conv.weight, layer.conv.bias, padding=(0, 1, 1))
    assert error(layer(x)[0], expected) <= 1e-14
    assert error(layer(x.flip(2))[0], expected.flip(2)) > 1e-2


def test_a_clip_does_not_go_on() -> None:
    _, state = ClipConv3d(2, 3)(torch.zeros(1, 2, 2, 3, 3))
    with pytest.raises(ValueError, match="state must be None"):
        ClipConv3d(2, 3)(torch.zeros(1, 2, 2, 3, 3), state)
    with pytest.raises(ValueError, match=r"kernel must be positive and odd, not \(2, 3, 3\)"):
        ClipConv3d(2, 3, (2, 3, 3))
