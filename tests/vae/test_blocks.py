"""The parts of the autoencoder against strided and transposed convolutions with mapped weights, and their formulas."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm
from torch.nn import functional as F

from tubelet.vae import CausalResBlock, ChannelNorm, Downsample, FrameGroups, FrameUngroups, Upsample

F64 = torch.float64
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=F64))
    return module


def kernel(linear: torch.nn.Linear, t: int, side: int) -> torch.Tensor:
    """The weight ``(d, pt·ph·pw·c)`` of a map of patches as a convolution's ``(d, c, pt, ph, pw)``."""
    return linear.weight.reshape(linear.out_features, t, side, side, -1).permute(0, 4, 1, 2, 3)


def transposed_kernel(linear: torch.nn.Linear, t: int, side: int) -> torch.Tensor:
    """The weight ``(pt·ph·pw·c, d)`` of a map to patches as a transposed convolution's ``(d, c, pt, ph, pw)``."""
    return linear.weight.reshape(t, side, side, -1, linear.in_features).permute(4, 3, 0, 1, 2)


def unfolded_bias(linear: torch.nn.Linear, t: int, side: int, grid: tuple[int, int, int]) -> torch.Tensor:
    """The bias of a map to patches, laid out on the video: ``(c, t, h, w)``."""
    return linear.bias.reshape(t, side, side, -1).permute(3, 0, 1, 2).repeat(1, *grid)


def test_channel_norm_is_its_formula() -> None:
    x = 3 * torch.randn(2, 5, 3, 4, 2, dtype=F64) + 1
    norm = randomised(ChannelNorm(5, eps=1e-3, dtype=F64))
    scale = ((x**2).sum(1, keepdim=True) / 5 + 1e-3).sqrt()
    torch.testing.assert_close(norm(x), x / scale * norm.weight.reshape(5, 1, 1, 1), **EXACT)


def test_channel_norm_is_wans() -> None:
    x, wan = torch.randn(2, 5, 3, 4, 2), WanRMS_norm(5, images=False)
    norm = randomised(ChannelNorm(5, eps=0.0))
    wan.gamma.data.copy_(norm.weight.reshape(5, 1, 1, 1))
    torch.testing.assert_close(norm(x), wan(x), rtol=1e-5, atol=1e-6)


def test_channel_norm_takes_its_mean_in_float32() -> None:
    x = torch.randn(1, 512, 1, 2, 2, dtype=torch.bfloat16)
    y, expected = ChannelNorm(512)(x), ChannelNorm(512, dtype=F64)(x.double())
    assert y.dtype == torch.bfloat16
    assert (y.double() / expected - 1).abs().max() < 2**-8


def test_res_block_is_its_formula() -> None:
    block = randomised(CausalResBlock(4, dtype=F64))
    x, past = torch.randn(2, 4, 5, 3, 2, dtype=F64), torch.randn(2, 4, 2, 3, 2, dtype=F64)

    def act(v: torch.Tensor, norm: ChannelNorm) -> torch.Tensor:
        v = v / (v.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight.reshape(-1, 1, 1, 1)
        return v / (1 + torch.exp(-v))

    spatial, temporal = block.spatial.conv, block.temporal.conv
    hidden = torch.stack(
        [F.conv2d(frame, spatial.weight[:, :, 0], spatial.bias, padding=1) for frame in act(x, block.norm1).unbind(2)],
        2,
    )
    hidden = torch.cat([past, act(hidden, block.norm2)], 2)
    hidden = F.conv1d(hidden.permute(0, 3, 4, 1, 2).reshape(-1, 4, 7), temporal.weight[..., 0, 0], temporal.bias)
    expected = x + hidden.reshape(2, 3, 2, 4, 5).permute(0, 3, 4, 1, 2)
    torch.testing.assert_close(block(x, past)[0], expected, **EXACT)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_frame_groups_are_strided_convolutions(k: int) -> None:
    groups = randomised(FrameGroups(2, 6, temporal=3, patch=4, dtype=F64))
    x = torch.randn(2, 2, 1 + 3 * k, 8, 4, dtype=F64)
    y = groups(x, start=True)
    first = F.conv3d(x[:, :, :1], kernel(groups.first, 1, 4), groups.first.bias, stride=(1, 4, 4))
    torch.testing.assert_close(y[:, :, :1], first, **EXACT)
    if k:
        rest = F.conv3d(x[:, :, 1:], kernel(groups.rest, 3, 4), groups.rest.bias, stride=(3, 4, 4))
        torch.testing.assert_close(y[:, :, 1:], rest, **EXACT)
        torch.testing.assert_close(groups(x[:, :, 1:], start=False), rest, **EXACT)
    assert y.shape == (2, 6, 1 + k, 2, 1)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_frame_ungroups_are_transposed_convolutions(k: int) -> None:
    ungroups = randomised(FrameUngroups(6, 2, temporal=3, patch=4, dtype=F64))
    x = torch.randn(2, 6, 1 + k, 2, 1, dtype=F64)
    y = ungroups(x, start=True)
    first = F.conv_transpose3d(x[:, :, :1], transposed_kernel(ungroups.first, 1, 4), stride=(1, 4, 4))
    torch.testing.assert_close(y[:, :, :1], first + unfolded_bias(ungroups.first, 1, 4, (1, 2, 1)), **EXACT)
    if k:
        rest = F.conv_transpose3d(x[:, :, 1:], transposed_kernel(ungroups.rest, 3, 4), stride=(3, 4, 4))
        rest = rest + unfolded_bias(ungroups.rest, 3, 4, (k, 2, 1))
        torch.testing.assert_close(y[:, :, 1:], rest, **EXACT)
        torch.testing.assert_close(ungroups(x[:, :, 1:], start=False), rest, **EXACT)
    assert y.shape == (2, 2, 1 + 3 * k, 8, 4)


def test_changes_of_scale_are_convolutions() -> None:
    x = torch.randn(2, 3, 2, 4, 6, dtype=F64)
    down, up = (randomised(change(3, 5, dtype=F64)) for change in (Downsample, Upsample))
    expected = F.conv3d(x, kernel(down.proj, 1, 2), down.proj.bias, stride=(1, 2, 2))
    torch.testing.assert_close(down(x), expected, **EXACT)
    expected = F.conv_transpose3d(x, transposed_kernel(up.proj, 1, 2), stride=(1, 2, 2))
    torch.testing.assert_close(up(x), expected + unfolded_bias(up.proj, 1, 2, (2, 4, 6)), **EXACT)


@pytest.mark.parametrize(
    "make",
    [
        lambda **kw: ChannelNorm(4, **kw),
        lambda **kw: CausalResBlock(4, **kw),
        lambda **kw: FrameGroups(1, 4, 4, 2, **kw),
        lambda **kw: FrameUngroups(4, 1, 4, 2, **kw),
        lambda **kw: Downsample(4, 8, **kw),
        lambda **kw: Upsample(8, 4, **kw),
    ],
)
def test_meta_dtype_and_reset(make) -> None:  # type: ignore[no-untyped-def]
    assert all(p.is_meta and p.dtype == F64 for p in make(device="meta", dtype=F64).parameters())
    fresh, again = make(), randomised(make())
    for module in (fresh, again):
        torch.manual_seed(0)
        module.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), again.parameters(), strict=True))
