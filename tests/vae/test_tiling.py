"""Tiles of space and windows of time: equal to the whole, as far as the reach and no less; fades; errors."""

from dataclasses import replace
from typing import Any

import pytest
import small_vaes
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.vaes import causal, randomised, wan
from tubelet.vae import (
    CausalAutoencoder,
    CausalAutoencoderConfig,
    Chain,
    PerFrame,
    Reach,
    VideoAutoencoder,
    decode_tiled,
    decoder_reach,
    encode_tiled,
    encoder_reach,
    families,
    split_decoder,
    split_encoder,
)
from tubelet.vae.families import WanAutoencoderConfig
from tubelet.vae.quantise import CodeBottleneck, FiniteScalar

F64 = torch.float64
TILES = st.tuples(*[st.none() | st.integers(1, 6)] * 3)


def noise(*shape: int, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@settings(max_examples=8)
@given(tile=TILES, sides=st.tuples(st.integers(1, 9), st.integers(1, 11), st.integers(1, 7)))
def test_any_tiles_give_the_whole(tile: tuple[int | None, ...], sides: tuple[int, int, int]) -> None:
    vae, z = causal(), noise(1, 3, *sides)
    video = vae.decode(z)
    assert error(decode_tiled(vae, z, tile), video) <= 1e-14
    whole, tiled = vae.encode(video), encode_tiled(vae, video, tile)
    assert error(tiled.mean, whole.mean) <= 1e-14
    assert error(tiled.logvar, whole.logvar) <= 1e-14


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_tiles_stream(chunk: int) -> None:
    vae, z = causal(), noise(2, 3, 5, 9, 8)
    assert error(decode_tiled(vae, z, (None, 4, 3), chunk=chunk), vae.decode(z)) <= 1e-14
    assert error(decode_tiled(vae, z, (None, None, None), chunk=chunk), vae.decode(z)) <= 1e-14


@pytest.mark.parametrize("axis", ["height", "width"])
def test_the_reach_is_as_short_as_can_be(axis: str) -> None:
    vae, z = causal(), noise(1, 3, 2, 12, 12)
    video, tile = vae.decode(z), (None, 4, None) if axis == "height" else (None, None, 4)
    decoder, encoder = split_decoder(vae), split_encoder(vae)
    for side in (0, 1):
        less = [list(getattr(split.reach, axis)) for split in (decoder, encoder)]
        for margins in less:
            margins[side] -= 1
        short = [replace(split, reach=replace(split.reach, **{axis: tuple(margins)}))
                 for split, margins in zip((decoder, encoder), less, strict=True)]  # fmt: skip
        assert error(decode_tiled(vae, z, tile, split=short[0]), video) > 1e-4
        assert error(encode_tiled(vae, video, tile, split=short[1]).mean, vae.encode(video).mean) > 1e-5


def test_the_reach_in_time_by_hand() -> None:
    # three residual blocks of a convolution over three frames each: six frames back, none ahead
    assert decoder_reach(causal()).time == encoder_reach(causal()).time == (6, 0)
    assert decoder_reach(causal()) == decoder_reach(causal(torch.float32))
    # one 3×3 convolution on the latent grid, then twice the space
    assert encoder_reach(causal(depths=(0, 1))) == decoder_reach(causal(depths=(0, 1))) == Reach((2, 0), (1, 1), (1, 1))


def test_layers_that_see_whole_frames_run_on_them() -> None:
    vae, z = wan(), noise(1, 4, 3, 33, 5)
    assert decoder_reach(vae).unbounded == encoder_reach(vae).unbounded == ("height", "width")
    split = split_decoder(vae)
    assert split.whole is not None
    assert not split.reach.unbounded
    assert 2 * sum(split.reach.height) < 33  # so that tiles leave something out
    video = vae.decode(z)
    for chunk in (None, 1, 2):
        assert error(decode_tiled(vae, z, (None, 9, 3), chunk=chunk), video) <= 1e-14
    assert error(decode_tiled(vae, z, (1, 9, None)), video) <= 1e-14
    assert error(encode_tiled(vae, video, (None, 9, None)).mean, vae.encode(video).mean) <= 1e-13


@torch.no_grad()
def test_windows_of_time_are_run_from_a_frame_more() -> None:
    """The first frame of a run is special: linear cells of one frame, not of four."""
    vae, video = small_vaes.small("CausalAutoencoder"), torch.randn(1, 3, 33, 8, 8, dtype=torch.float64)
    for window in (1, 2, 3):
        assert error(encode_tiled(vae, video, (window, None, None)).mean, vae.encode(video).mean) <= 1e-14


LTX: dict[str, Any] = {"widths": (4, 8), "depths": (1, 1), "changes": ("conv",), "decoder_widths": (8,)}
LTX |= {"decoder_depths": (1, 1), "doubles": (True,), "narrows": (1,), "shortcuts": (True,), "noise": (False, False)}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "ltx": (families.LTXAutoencoder, families.LTXAutoencoderConfig(latent_channels=3, **LTX)),
    "walt": (families.WaltAutoencoder, families.WaltAutoencoderConfig(widths=(3, 4), depth=1, halve_time=(True,))),
    "kl": (families.KLAutoencoder, families.KLAutoencoderConfig(widths=(4, 4), depth=1, groups=2)),
    "svd": (families.SVDAutoencoder, families.SVDAutoencoderConfig(widths=(4, 4), depth=1, groups=2)),
}


@pytest.mark.parametrize("name", ["ltx", "walt"])
def test_families_without_a_sight_of_frames_are_tiled_exactly(name: str) -> None:
    family, config = FAMILIES[name]
    vae = randomised(family(config, dtype=F64))
    z = noise(1, config.latent_channels, 4, 26, 3)
    video = vae.decode(z)
    assert error(decode_tiled(vae, z, (None, 7, None)), video) <= 1e-14
    assert error(decode_tiled(vae, z, (2, 13, 2)), video) <= 1e-14
    assert error(encode_tiled(vae, video, (1, 7, None)).mode(), vae.encode(video).mode()) <= 1e-14


@pytest.mark.parametrize("name", ["kl", "svd"])
def test_families_with_norms_over_frames_say_so(name: str) -> None:
    family, config = FAMILIES[name]
    vae, z = randomised(family(config, dtype=F64)), noise(1, config.latent_channels, 2, 12, 8)
    with pytest.raises(ValueError, match=r"height cannot be divided exactly, since all of it counts everywhere"):
        decode_tiled(vae, z, (None, 6, None))
    errors = [error(decode_tiled(vae, z, (None, 6, None), overlap=overlap), vae.decode(z)) for overlap in (0, 3)]
    assert errors[0] > errors[1] > 0


def test_fades_add_up_and_their_error_falls_with_the_overlap() -> None:
    vae, z = wan(), noise(1, 4, 5, 16, 16)
    video = vae.decode(z)
    errors = [error(decode_tiled(vae, z, (None, 8, 8), overlap=overlap), video) for overlap in (0, 2, 4)]
    assert errors[0] > errors[1] > errors[2] > 1e-6
    one = torch.ones(1, 4, 5, 16, 16, dtype=F64)
    local = _local(lambda: nn.Conv3d(4, 4, 1, dtype=F64))
    for tile in ((3, None, None), (None, 5, 6), (3, 4, 7)):
        torch.testing.assert_close(decode_tiled(local, one, tile, overlap=1), local.decode(one), rtol=1e-14, atol=1e-14)
        faded = encode_tiled(local, one, tile, overlap=1).mean
        torch.testing.assert_close(faded, local.encode(one).mean, rtol=1e-14, atol=1e-14)


def _local(make) -> VideoAutoencoder:
    """An autoencoder whose layers see one position."""
    config = WanAutoencoderConfig(in_channels=4, latent_channels=4, widths=(4,), depth=1, halve_time=())
    encoder, decoder = Chain(PerFrame(nn.Conv3d(4, 8, 1, dtype=F64))), Chain(PerFrame(make()))
    return randomised(VideoAutoencoder(config, encoder, decoder, dtype=F64))


def test_a_norm_over_the_frame_cannot_be_tiled_exactly() -> None:
    vae, z = _local(lambda: nn.Conv3d(4, 4, 1, dtype=F64)), noise(1, 4, 2, 8, 8)
    norm, convolution = PerFrame(nn.GroupNorm(2, 4, dtype=F64)), PerFrame(nn.Conv3d(4, 4, 1, dtype=F64))
    vae.decoder = Chain(norm, convolution)
    assert error(decode_tiled(vae, z, (None, 4, 4)), vae.decode(z)) <= 1e-14  # the norm is behind
    vae.decoder = Chain(convolution, norm)
    assert split_decoder(vae).reach == Reach(None, None, None)
    with pytest.raises(ValueError, match=r"height cannot be divided exactly, since all of it counts everywhere"):
        decode_tiled(vae, z, (None, 4, 4))
    assert 0 < error(decode_tiled(vae, z, (None, 4, 4), overlap=1), vae.decode(z)) < 1


def test_codes_are_tiled() -> None:
    config = CausalAutoencoderConfig(in_channels=2, latent_channels=3, widths=(6, 8), depths=(1, 1), spatial=4)
    vae = CausalAutoencoder(config, posterior=CodeBottleneck(FiniteScalar((5, 4, 3))), dtype=F64)
    randomised(vae)
    video = noise(1, 2, 5, 32, 24)
    assert torch.equal(encode_tiled(vae, video, (None, 4, 4)).indices, vae.encode(video).indices)


def test_gradients_pass() -> None:
    vae, z = causal(), noise(1, 3, 2, 8, 4).requires_grad_()
    (whole,) = torch.autograd.grad(vae.decode(z).sin().sum(), z)
    (tiled,) = torch.autograd.grad(decode_tiled(vae, z, (None, 4, None)).sin().sum(), z)
    torch.testing.assert_close(tiled, whole, rtol=1e-12, atol=1e-13)


@pytest.mark.graph  # run-time shape checks off, as for users
def test_errors_name_the_argument() -> None:
    vae, z = causal(), noise(1, 3, 3, 8, 8)
    with pytest.raises(ValueError, match=r"tile must have three positive sizes or None, not \(None, 0, 4\)"):
        decode_tiled(vae, z, (None, 0, 4))
    with pytest.raises(ValueError, match=r"overlap must be a whole number of at least 0, not -1"):
        decode_tiled(vae, z, (None, 4, 4), overlap=-1)
    with pytest.raises(ValueError, match=r"three positive sizes or None, not \(1, 4\)"):
        decode_tiled(vae, z, (1, 4))
    with pytest.raises(ValueError, match=r"three positive sizes or None, not \(None, 1.5, 4\)"):
        decode_tiled(vae, z, (None, 1.5, 4))
    with pytest.raises(ValueError, match=r"overlap 3 must be at most half a tile"):
        decode_tiled(vae, z, (None, 4, 4), overlap=3)
    with pytest.raises(ValueError, match=r"chunk must be positive and without windows of time"):
        decode_tiled(vae, z, (1, 4, 4), chunk=1)
    with pytest.raises(ValueError, match=r"z must have 3 channels, not 4"):
        decode_tiled(vae, noise(1, 4, 3, 8, 8), (None, 4, 4))
    with pytest.raises(ValueError, match=r"frames must be 1 \+ 4·k, not 4"):
        encode_tiled(vae, noise(1, 2, 4, 8, 8), (None, 1, 1))
