"""Group norms by their formula, per frame and modulated by latents; means of frames, shuffles and features."""

import math

import pytest
import torch
from einops import rearrange, repeat
from torch import nn

from tubelet.attention import Attention
from tubelet.attention.patterns import FrameCausal
from tubelet.norms import UnitNorm
from tubelet.vae import (
    CausalConv3d,
    CausalFrameAttention,
    Chain,
    FourierFeatures,
    FrameGroupNorm,
    Guided,
    MeanTime,
    NormedConv,
    PerFrame,
    PointwiseUp,
    SkipFrames,
    SpatialNorm,
    TimeAttention,
)

F64 = torch.float64


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(0))


def test_each_frame_is_normalised_alone() -> None:
    norm, x = FrameGroupNorm(2, 6, 1e-3, dtype=F64), drawn(2, 6, 3, 4, 5) * 3 + 1
    nn.init.normal_(norm.norm.weight)
    nn.init.normal_(norm.norm.bias)
    groups = rearrange(x, "b (g c) t h w -> b g t (c h w)", g=2)
    centred = groups - groups.mean(-1, keepdim=True)
    centred = centred / (groups.var(-1, unbiased=False, keepdim=True) + 1e-3).sqrt()
    expected = rearrange(centred, "b g t (c h w) -> b (g c) t h w", c=3, h=4)
    expected = expected * norm.norm.weight.reshape(-1, 1, 1, 1) + norm.norm.bias.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize(("start", "frames"), [(True, 1), (True, 3), (True, 5), (True, 9), (False, 6), (False, 12)])
def test_modulation_is_that_of_each_positions_latent(start: bool, frames: int) -> None:
    z = drawn(2, 2, 1 if frames == 1 else 3, 2, 3)
    norm, x = SpatialNorm(nn.GroupNorm(2, 4), 4, 2, dtype=F64), drawn(2, 4, frames, 8, 12)
    norm.norm.double()
    by = (frames - start) // max(z.shape[2] - start, 1)
    which = [0] * start + [start + i // max(by, 1) for i in range(frames - start)]
    copies = repeat(z[:, :, which], "b c t h w -> b c t (h r) (w s)", r=4, s=4)
    expected = norm.norm(x) * norm.scale(copies) + norm.shift(copies)
    torch.testing.assert_close(norm(x, z, start), expected)


def test_sides_that_do_not_fit_are_named() -> None:
    norm = SpatialNorm(nn.GroupNorm(2, 4), 4, 2)
    with pytest.raises(ValueError, match=r"x has sides \(4, 4, 4\), which are no multiples of the sides \(3, 2, 2\)"):
        norm(torch.zeros(1, 4, 4, 4, 4), torch.zeros(1, 2, 3, 2, 2), True)


def test_a_guided_chain_tells_its_norms_the_input() -> None:
    norm = SpatialNorm(nn.GroupNorm(1, 3), 3, 3)
    layer = Guided(Chain(PerFrame(nn.Identity()), NormedConv(norm, CausalConv3d(3, 3))))
    x = torch.randn(1, 3, 4, 2, 2)
    y, state = layer(x[:, :, :3])
    conv = layer.inner.get_submodule("1").conv
    by_hand, own = conv(nn.functional.silu(norm(x[:, :, :3], x[:, :, :3], True)))
    assert torch.equal(y, by_hand)
    assert torch.equal(state[1], own)
    z, _ = layer(x[:, :, 3:], state)
    assert torch.equal(z, conv(nn.functional.silu(norm(x[:, :, 3:], x[:, :, 3:], False)), own)[0])


def test_frames_are_averaged_but_for_the_first() -> None:
    x = drawn(1, 2, 7, 2, 2)
    y, state = MeanTime(3)(x)
    assert state == ()
    expected = torch.stack([x[:, :, 0], x[:, :, 1:4].mean(2), x[:, :, 4:].mean(2)], 2)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(MeanTime(3)(x[:, :, 1:], ())[0], expected[:, :, 1:])


def test_each_position_becomes_a_box() -> None:
    up, x = PointwiseUp(3, 2, temporal=2, spatial=3, dtype=F64), drawn(1, 3, 2, 2, 1)
    y, flat = up(x), up.conv(x)
    for c, t, i, j in [(0, 0, 0, 0), (1, 1, 2, 0), (0, 1, 0, 2), (1, 0, 1, 1)]:
        assert y[0, c, 2 + t, 3 + i, j] == flat[0, ((c * 2 + t) * 3 + i) * 3 + j, 1, 1, 0]


def test_frames_are_skipped_at_the_start_alone() -> None:
    x, skip = drawn(1, 1, 4, 1, 1), SkipFrames(3)
    head, state = skip(x)
    assert torch.equal(head, x[:, :, 3:])
    assert torch.equal(skip(x, state)[0], x)


def test_features_are_sines_and_cosines_channel_by_channel() -> None:
    x = drawn(1, 2, 1, 1, 1)
    y, (a, b) = FourierFeatures([1, 3])(x).flatten(), x.flatten().tolist()
    angles = [2 * math.pi * f * p for p in (a, b) for f in (2, 8)]
    expected = [a, b, *map(math.sin, angles), *map(math.cos, angles)]
    torch.testing.assert_close(y, torch.tensor(expected, dtype=F64))


@pytest.mark.parametrize("kind", [CausalFrameAttention, TimeAttention])
def test_attention_to_the_past_is_masked_attention(kind: type) -> None:
    attention = Attention(8, heads=2, qk_norm=UnitNorm, pattern=FrameCausal(), dtype=F64)
    layer, x = kind(nn.Identity(), attention), drawn(2, 8, 4, 2, 3)
    tokens = rearrange(x, "b c t h w -> b (t h w) c")
    frame, place = torch.arange(24) // 6, torch.arange(24) % 6
    mask = frame[:, None] >= frame
    if kind is TimeAttention:
        mask &= place[:, None] == place
    q, k, v = (rearrange(part(tokens), "b n (h d) -> b h n d", h=2) for part in layers(attention))
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    scores = (q @ k.transpose(-1, -2) / 2).masked_fill(~mask, -torch.inf).softmax(-1)
    expected = attention.out_proj(rearrange(scores @ v, "b h n d -> b n (h d)"))
    expected = rearrange(expected, "b (t h w) c -> b c t h w", h=2, w=3)
    whole, _ = layer(x)
    torch.testing.assert_close(whole, expected)
    head, state = layer(x[:, :, :1])
    tail, _ = layer(x[:, :, 1:], state)
    torch.testing.assert_close(torch.cat([head, tail], 2), expected)


def layers(attention: Attention) -> list[nn.Module]:
    return [attention.q_proj, attention.k_proj, attention.v_proj]


def test_edges_are_those_of_the_frame() -> None:
    conv = CausalConv3d(2, 3, edges="replicate", dtype=F64)
    x = drawn(1, 2, 3, 4, 5)
    padded = nn.functional.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate")
    expected = nn.functional.conv3d(padded, conv.conv.weight, conv.conv.bias)
    torch.testing.assert_close(conv(x)[0], expected)


def test_a_kernel_may_be_the_stride() -> None:
    conv = CausalConv3d(2, 3, (3, 2, 2), (3, 2, 2), dtype=F64)
    x = drawn(1, 2, 7, 4, 6)
    whole, state = conv(x)
    padded = torch.cat([x[:, :, :1], x[:, :, :1], x], 2)
    torch.testing.assert_close(whole, nn.functional.conv3d(padded, conv.conv.weight, conv.conv.bias, (3, 2, 2)))
    head, state = conv(x[:, :, :4])
    tail, _ = conv(x[:, :, 4:], state)
    torch.testing.assert_close(torch.cat([head, tail], 2), whole)
    with pytest.raises(ValueError, match=r"odd or the stride \(1, 1, 1\), not \(3, 2, 2\)"):
        CausalConv3d(2, 3, (3, 2, 2))
