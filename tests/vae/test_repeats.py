"""Convolutions of repeated positions equal those of the copies, whole and as a stream, in both memory formats."""

from itertools import product
from typing import Literal

import pytest
import torch
from torch import nn

from tubelet.vae import CausalConv3d, Chain, DoubleSpace, DoubleTime, MeanTime, RepeatConv3d, RepeatFrames
from tubelet.vae.causal import follow, zeros
from tubelet.vae.shortcuts import RepeatShortcut

F64 = torch.float64
LAST = torch.channels_last_3d


@pytest.mark.parametrize("edges", ["zeros", "replicate"])
@pytest.mark.parametrize(
    ("kernel", "temporal", "spatial"),
    [((3, 3, 3), 2, 2), ((3, 3, 3), 1, 2), ((1, 3, 3), 1, 2), ((3, 5, 3), 3, 3), ((2, 1, 3), 2, 1), ((5, 3, 3), 2, 2)],
)
def test_it_is_the_convolution_of_the_copies(
    kernel: tuple[int, int, int], temporal: int, spatial: int, edges: Literal["zeros", "replicate"]
) -> None:
    torch.manual_seed(0)
    ours = RepeatConv3d(4, 5, temporal, spatial, kernel, edges=edges, dtype=F64)
    plain = CausalConv3d(4, 5, kernel, edges=edges, dtype=F64)
    plain.conv.load_state_dict(ours.conv.state_dict())
    x = torch.randn(2, 4, 4, 3, 5, dtype=F64, requires_grad=True)
    expected, _ = Chain(RepeatShortcut(4, 4, temporal, spatial), plain)(x)
    whole, _ = ours(x)
    torch.testing.assert_close(whole, expected, rtol=1e-12, atol=1e-12)
    state, parts = None, []
    for chunk in x.split([1, 2, 1], 2):
        y, state = ours(chunk, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 2), expected, rtol=1e-12, atol=1e-12)
    leaves = (x, ours.conv.weight, ours.conv.bias)
    theirs = torch.autograd.grad(expected.square().sum(), (x, plain.conv.weight, plain.conv.bias))
    for got, grad in zip(torch.autograd.grad(whole.square().sum(), leaves), theirs, strict=True):
        torch.testing.assert_close(got, grad, rtol=1e-10, atol=1e-10)


def test_space_alone() -> None:
    up, x = DoubleSpace(4, 3, dtype=F64), torch.randn(2, 4, 3, 5, 6, dtype=F64)
    expected = up.conv(x.repeat_interleave(2, 3).repeat_interleave(2, 4))
    torch.testing.assert_close(up(x), expected, rtol=1e-12, atol=1e-12)


def test_frames_alone() -> None:
    x = torch.randn(1, 2, 3, 2, 2)
    head, state = RepeatFrames(3)(x)
    assert torch.equal(head, x[:, :, [0, 1, 1, 1, 2, 2, 2]])
    assert torch.equal(RepeatFrames(3)(x, state)[0], x.repeat_interleave(3, 2))


def test_memory_formats_stay() -> None:
    x = torch.randn(1, 4, 5, 4, 4).to(memory_format=LAST)
    layers: list[nn.Module] = [RepeatConv3d(4, 8, 2, 2), RepeatFrames(2), MeanTime(2)]
    with torch.no_grad():
        for layer, start in product(layers, (True, False)):
            state = None if start else layer(x)[1]
            y, _ = layer(x[:, :, int(not start) :], state)
            assert torch.cat([y, y], 2).is_contiguous(memory_format=LAST), (layer, start)
            other, _ = layer(x[:, :, int(not start) :].contiguous(), state)
            assert other.is_contiguous() or isinstance(layer, RepeatConv3d)
            torch.testing.assert_close(y, other)
        joined = follow(zeros(x[:, :, :1].bfloat16(), 2), x)
        assert joined.is_contiguous(memory_format=LAST)
        assert joined.dtype == x.dtype
        pair = DoubleTime(4)
        torch.testing.assert_close(pair(x)[0], pair(x.contiguous())[0])


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="temporal and spatial must be at least 1, got 0 and 2"):
        RepeatConv3d(1, 1, 0, 2)
    with pytest.raises(ValueError, match=r"kernel must be positive and odd over height and width, not \(3, 2, 3\)"):
        RepeatConv3d(1, 1, 2, 2, (3, 2, 3))
    with pytest.raises(ValueError, match="state must hold 1 frames, not 2"):
        RepeatConv3d(1, 1, 2, 2)(torch.zeros(1, 1, 1, 2, 2), torch.zeros(1, 1, 2, 2, 2))
