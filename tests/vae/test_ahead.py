"""Layers that see later frames, chunk by chunk, against themselves on the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import error
from torch import Tensor, nn

from tubelet.vae import (
    CausalConv3d,
    Chain,
    ChannelNorm,
    ClipConv3d,
    NormedConv,
    PerFrame,
    Residual,
    SkipFrames,
    State,
    copies,
    zeros,
)
from tubelet.vae.ahead import advance

F64 = torch.float64
KERNELS = st.lists(st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([copies, zeros])), min_size=1, max_size=3)


def conv(kernel: int, around: object) -> ClipConv3d:
    return ClipConv3d(2, 2, (kernel, 1, 3), around=around, dtype=F64)


def in_parts(layer: nn.Module, x: Tensor, plan: list[int]) -> Tensor:
    """Chunks of these lengths; the last takes what is left."""
    parts = [n for n in plan if n]
    cuts = torch.tensor(parts).cumsum(0).tolist()
    pieces = [piece for piece in x.tensor_split(cuts, 2) if piece.shape[2]]
    state: State | None = None
    made = []
    for piece in pieces:
        y, state = advance(layer, piece, state, last=piece is pieces[-1])
        made += [] if y is None else [y]
    assert state == ()
    return torch.cat(made, 2)


@settings(max_examples=40)
@given(kernels=KERNELS, plan=st.lists(st.integers(1, 4), max_size=5), frames=st.integers(1, 12))
def test_any_chunks_are_the_whole(kernels: list[tuple[int, object]], plan: list[int], frames: int) -> None:
    """Kernels and ends of all kinds one after the other, clips shorter than what a frame sees among them."""
    layer, x = Chain(*(conv(*each) for each in kernels)), torch.randn(1, 2, frames, 2, 3, dtype=F64)
    assert error(in_parts(layer, x, plan), layer(x)[0]) <= 1e-12


@settings(max_examples=20)
@given(plan=st.lists(st.integers(1, 4), max_size=5), early=st.sampled_from([1, 3, 5]), late=st.sampled_from([1, 3, 5]))
def test_the_earlier_of_two_ways_waits(plan: list[int], early: int, late: int) -> None:
    x = torch.randn(2, 2, 9, 2, 3, dtype=F64)
    layer = Chain(Residual(conv(early, copies), conv(late, zeros)), SkipFrames(1), Residual(conv(3, copies)))
    assert error(in_parts(layer, x, plan), layer(x)[0]) <= 1e-12


def test_norms_and_causal_layers_go_along() -> None:
    x = torch.randn(1, 2, 9, 2, 3, dtype=F64)
    clip = NormedConv(ChannelNorm(2), Chain(conv(3, copies), PerFrame(nn.Tanh())))
    layer = Chain(CausalConv3d(2, 2, dtype=F64), clip, NormedConv(ChannelNorm(2), CausalConv3d(2, 2, dtype=F64)))
    layer.double()
    assert error(in_parts(layer, x, [2, 1, 3]), layer(x)[0]) <= 1e-12


def test_what_waits_has_a_constant_size_and_no_frame_is_made_twice() -> None:
    seen: list[int] = []
    first, second = conv(3, copies), conv(5, zeros)
    second.conv.register_forward_hook(lambda _, given, y: seen.append(y.shape[2]))
    state, sizes = None, []
    for _ in range(6):
        _, state = advance(Chain(first, second), torch.randn(1, 2, 2, 2, 3, dtype=F64), state, last=False)
        sizes.append(sum(part.numel() for part in state if part is not None))
    assert sum(seen) == 12 - 1 - 2 and len(set(sizes[2:])) == 1


@pytest.mark.graph  # run-time shape checks off, as for users
def test_a_state_of_other_layers_is_named() -> None:
    x = torch.randn(1, 2, 2, 2, 3, dtype=F64)
    _, state = advance(conv(3, copies), x, None, last=False)
    with pytest.raises(ValueError, match="state must hold the states of 5 modules, not of 2"):
        advance(Chain(conv(3, copies), PerFrame(nn.Identity())), x, state, last=True)
    with pytest.raises(ValueError, match=r"held has shape \(1, 2, 3, 2, 3\), .* to x of \(1, 2, 2, 2, 4\)"):
        conv(5, copies).ahead(torch.zeros(1, 2, 2, 2, 4, dtype=F64), torch.zeros(1, 2, 3, 2, 3, dtype=F64), last=False)


@torch.no_grad()
@pytest.mark.parametrize("place", ["", "0", "1", "1.conv"])
def test_a_hook_that_would_not_hear_all_frames_is_refused(place: str) -> None:
    """On a chain, a convolution, a norm with a convolution, and the convolution in that."""
    layer = Chain(conv(3, copies), NormedConv(ChannelNorm(2), conv(3, copies))).double()
    layer.get_submodule(place).register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="would not hear frames that wait; decode it whole"):
        advance(layer, torch.randn(1, 2, 2, 2, 3, dtype=F64), None, last=False)
