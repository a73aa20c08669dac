"""Stable Video Diffusion's autoencoder: equal to diffusers' with the same weights; encoded in chunks, decoded whole."""

from typing import Any

import pytest
import torch
import vae_parity as vaes
from diffusers import AutoencoderKLTemporalDecoder
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import error, size
from torch import Tensor

from tubelet.vae.families import SVDAutoencoder, SVDAutoencoderConfig, svd_vae

F64 = torch.float64
WIDTHS = ((32, 64), (64, 64), (64, 32, 32))


def peer(seed: int = 0, **sizes: Any) -> AutoencoderKLTemporalDecoder:
    """A tiny model of diffusers', whose norms want 32 channels a scale."""
    widths = sizes.pop("widths", WIDTHS[seed % len(WIDTHS)])
    drawn = {"block_out_channels": widths, "layers_per_block": 2, "latent_channels": 2 + seed % 3}
    drawn |= {"down_block_types": ["DownEncoderBlock2D"] * len(widths)}
    return vaes.drawn(AutoencoderKLTemporalDecoder(**drawn | sizes), seed)


def frames(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("latent", [(1, 2, 3), (3, 3, 2)], ids=["image", "clip"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (F64, 1e-12)])
def test_equal_to_diffusers(latent: tuple[int, int, int], dtype: torch.dtype, bound: float) -> None:
    for seed in range(3):
        theirs = peer(seed)
        vae = vaes.ours(theirs).to(dtype)
        theirs.to(dtype)
        x, z = vaes.video(vae, latent).to(dtype), vaes.latents(vae, latent).to(dtype)
        with torch.no_grad():
            expected, got = theirs.encode(frames(x)).latent_dist, vae.encode(x)
            assert error(frames(got.mean), expected.mean) <= bound
            assert error(frames(got.logvar), expected.logvar) <= bound
            assert error(frames(vae.decode(z)), theirs.decode(frames(z), num_frames=latent[0]).sample) <= bound


def test_gradients_of_every_weight_are_the_peers() -> None:
    theirs = peer().double()
    vae = vaes.ours(theirs)
    x = vaes.video(vae, (3, 1, 2))

    def loss(model: Any) -> Tensor:
        posterior = model.encode(x)
        return model.decode(posterior.mean).sin().sum() + posterior.logvar.cos().sum()

    def their_loss(model: Any) -> Tensor:
        posterior = model.encode(frames(x)).latent_dist
        return model.decode(posterior.mean, num_frames=3).sample.sin().sum() + posterior.logvar.cos().sum()

    vaes.check_gradients(theirs, vae, loss, their_loss)


def test_the_size_released() -> None:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "layers_per_block": 2}
    with torch.device("meta"):
        theirs = AutoencoderKLTemporalDecoder(block_out_channels=(128, 256, 512, 512), **blocks)
    assert size(SVDAutoencoder(svd_vae(), device="meta")) == size(theirs) == 97_742_847


@settings(max_examples=4)
@given(plan=st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_any_chunk_plan_encodes_as_the_whole(plan: list[int]) -> None:
    vae = vaes.ours(peer().double())
    x = vaes.video(vae, (4, 1, 2))
    with torch.no_grad():
        assert error(vaes.encoded_in_parts(vae, x, plan), vae.encode(x).mean) <= 1e-12


def test_a_clip_is_decoded_whole() -> None:
    vae = vaes.ours(peer().double())
    z = vaes.latents(vae, (4, 1, 2))
    with torch.no_grad():
        whole, state = vae.decode_chunk(z)
        assert torch.equal(whole, vae.decode(z))
        assert error(vae.decode(z[:, :, :2]), whole[:, :, :2]) > 1e-3, "the first latents decode to other frames"
        with pytest.raises(ValueError, match="state must be None: this layer sees later frames"):
            vae.decode_chunk(z, state)


def test_sides_that_diffusers_changes_are_refused_or_padded() -> None:
    theirs = peer()
    vae = vaes.ours(theirs)
    odd = torch.rand(1, 3, 2, 7, 9) * 2 - 1
    with torch.no_grad():
        assert theirs(frames(odd), num_frames=2).sample.shape[2:] == (6, 8), "the edges are gone"
        assert vae(vae.config.factors.padded(odd))[..., :7, :9].shape == odd.shape
        with pytest.raises(ValueError, match="height must be a multiple of the spatial factor 2, not 7"):
            vae.encode(odd)


@pytest.mark.slow
def test_a_full_width_decode_is_the_peers() -> None:
    torch.manual_seed(0)
    theirs = peer(widths=(128, 256, 512, 512), latent_channels=4)
    vae = vaes.ours(theirs)
    z = torch.randn(1, 4, 3, 6, 6)
    with torch.no_grad():
        assert error(frames(vae.decode(z)), theirs.decode(frames(z), num_frames=3).sample) <= 1e-5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": 0}, "depth must be a positive whole number, not 0"),
        ({"widths": (128, 200)}, r"widths \(128, 200\) must be multiples of groups 32"),
        ({"latent_std": (1.0,)}, "latent_std has 1 values for 4 latent channels"),
    ],
)
def test_bad_configs_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SVDAutoencoderConfig(**change)
