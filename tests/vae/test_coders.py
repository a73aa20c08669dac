"""The halves of the autoencoder against their parts applied one by one."""

import torch
from torch.nn import functional as F

from tubelet.vae import CausalAutoencoderConfig, CausalResBlock, Decoder, Downsample, Encoder, Stage

F64 = torch.float64
CONFIG = CausalAutoencoderConfig(
    latent_channels=3,
    widths=(4, 6, 8),
    depths=(1, 0, 2),
    decoder_widths=(5, 7, 9),
    decoder_depths=(1, 0, 2),
    temporal=2,
    spatial=8,
)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=F64))
    return module


def pointwise(linear: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return F.conv3d(x, linear.weight[..., None, None, None], linear.bias)


def test_encoder_is_its_parts_in_order() -> None:
    encoder, video = randomised(Encoder(CONFIG, dtype=F64)), torch.randn(2, 1, 5, 16, 8, dtype=F64)
    first, second, third = encoder.stages
    x = encoder.groups(video, start=True)
    x = first.change(first.blocks[0](x)[0])
    x = second.change(x)
    for block in third.blocks:
        x, _ = block(x)
    expected = pointwise(encoder.project, F.silu(encoder.norm(x)))
    moments, state = encoder(video)
    torch.testing.assert_close(moments, expected, rtol=1e-11, atol=1e-12)
    assert moments.shape == (2, 6, 3, 2, 1)
    assert [tuple(s.shape) for s in state] == [(2, 4, 2, 8, 4), (2, 8, 2, 2, 1), (2, 8, 2, 2, 1)]


def test_decoder_is_its_parts_in_order() -> None:
    decoder, z = randomised(Decoder(CONFIG, dtype=F64)), torch.randn(2, 3, 3, 2, 1, dtype=F64)
    first, second, third = decoder.stages
    x = pointwise(decoder.project, z)
    for block in first.blocks:
        x, _ = block(x)
    x = second.change(first.change(x))
    x, _ = third.blocks[0](x)
    video, state = decoder(z)
    expected = decoder.ungroups(F.silu(decoder.norm(x)), start=True)
    torch.testing.assert_close(video, expected, rtol=1e-11, atol=1e-12)
    assert video.shape == (2, 1, 5, 16, 8)
    assert len(state) == 3


def test_stage_hands_each_block_its_own_state() -> None:
    blocks = [randomised(CausalResBlock(3, dtype=F64)) for _ in range(2)]
    stage = Stage(blocks, randomised(Downsample(3, 5, dtype=F64)))
    x, past = torch.randn(1, 3, 2, 4, 4, dtype=F64), torch.randn(2, 1, 3, 2, 4, 4, dtype=F64)
    y, state = stage(x, tuple(past))
    hidden, one = blocks[0](x, past[0])
    hidden, two = blocks[1](hidden, past[1])
    assert torch.equal(y, stage.change(hidden))
    assert torch.equal(state[0], one)
    assert torch.equal(state[1], two)
