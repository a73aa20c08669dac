"""Cosmos's tokenizers: equal to diffusers' with the same weights, as a stream, and at their real sizes."""

import pickle
import random
from itertools import pairwise
from typing import Any

import pytest
import torch
import vae_parity as vaes
from diffusers import AutoencoderKLCosmos
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import error, size

from tubelet.hub.cosmos_vae import cosmos_vae_config_to_diffusers
from tubelet.layout import Grid
from tubelet.vae.families import CosmosAutoencoder, CosmosAutoencoderConfig, cosmos_vae

F64 = torch.float64
KINDS = ("8x8x8", "4x8x8", "plain", "attending")
"""Time and space halved together; space alone; without wavelets; with attention at each scale."""


def peer(kind: str, seed: int = 0, exact: bool = False, **sizes: Any) -> AutoencoderKLCosmos:
    """A tiny model of diffusers' whose every parameter is random; ``exact`` wavelets are not rounded to float32."""
    draw = random.Random(seed)
    z = draw.randint(2, 3)
    drawn: dict[str, Any] = {"latent_channels": z, "num_layers": draw.randint(1, 2), "patch_size": 2}
    drawn |= {"encoder_block_out_channels": draw.choice([(4, 6, 6, 8), (6, 4, 8, 8)])}
    drawn |= {"decode_block_out_channels": draw.choice([(6, 4, 8, 8), (4, 8, 6, 6)])}
    drawn |= {"spatial_compression_ratio": 4, "temporal_compression_ratio": 4}
    drawn |= {"latents_mean": [draw.uniform(-1, 1) for _ in range(3 * z)]}
    drawn |= {"latents_std": [draw.uniform(0.5, 2) for _ in range(3 * z)]}
    if kind == "4x8x8":
        drawn |= {"patch_size": 4, "spatial_compression_ratio": 8, "in_channels": 1, "out_channels": 1}
    if kind == "plain":
        drawn |= {"patch_type": "rearrange"}
    if kind == "attending":
        drawn |= {"attention_resolutions": (16, 4), "resolution": 32, "num_layers": 1}
    model = vaes.drawn(AutoencoderKLCosmos(**drawn | sizes), seed)
    if exact and kind != "plain":
        for patch in (model.encoder.patch_embed, model.decoder.unpatch_embed):
            patch.wavelets = torch.full((2,), 0.5, dtype=F64).sqrt()
    return model


@pytest.mark.parametrize("latent", [(1, 2, 3), (3, 1, 2)], ids=["image", "clip"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (F64, 1e-12)])
def test_equal_to_diffusers(kind: str, latent: tuple[int, int, int], dtype: torch.dtype, bound: float) -> None:
    for seed in range(3):
        theirs = peer(kind, seed)
        vae = vaes.ours(theirs).to(dtype)
        theirs = peer(kind, seed, exact=dtype == F64).to(dtype)
        x, z = vaes.video(vae, latent).to(dtype), vaes.latents(vae, latent).to(dtype)
        with torch.no_grad():
            assert error(vae.encode(x).mode(), theirs.encode(x).latent_dist.mode()) <= bound
            assert error(vae.decode(z), theirs.decode(z).sample) <= bound


@pytest.mark.parametrize("kind", ["8x8x8", "attending"])
def test_gradients_of_every_weight_are_the_peers(kind: str) -> None:
    vae = vaes.ours(peer(kind).double())
    x = vaes.video(vae, (3, 1, 2))
    vaes.check_gradients(
        peer(kind, exact=True).double(),
        vae,
        lambda model: model.decode(model.encode(x).mode()).sin().sum(),
        lambda model: model.decode(model.encode(x).latent_dist.mode()).sample.sin().sum(),
    )


@pytest.mark.parametrize(("factors", "parameters"), [((8, 8), 105_653_696), ((4, 8), 104_669_888)])
def test_the_real_sizes(factors: tuple[int, int], parameters: int) -> None:
    config = cosmos_vae(*factors)
    with torch.device("meta"):
        theirs = AutoencoderKLCosmos(**cosmos_vae_config_to_diffusers(config))
    vae = CosmosAutoencoder(config, device="meta")
    assert size(vae) == size(theirs) == parameters
    assert vae.latent_grid(17, 64, 96) == Grid(1 + 16 // factors[0], 8, 12)


@pytest.mark.parametrize("kind", ["8x8x8", "4x8x8", "attending"])
@settings(max_examples=4)
@given(plan=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_any_chunk_plan_equals_the_whole(kind: str, plan: list[int]) -> None:
    vae = vaes.ours(peer(kind).double())
    vaes.check_plan(vae, vaes.video(vae, (4, 1, 2)), vaes.latents(vae, (4, 2, 1)), plan, 1e-11)


def test_the_state_grows_by_keys_and_values_alone_and_can_be_stored() -> None:
    vae = vaes.ours(peer("8x8x8").double())
    z = vaes.latents(vae, (5, 1, 2))
    with torch.no_grad():
        sizes = [held(vae.decode_chunk(z[:, :, :k])[1]) for k in (1, 2, 3, 4)]
        keys_and_values = 2 * 2 * 2 * vae.config.decoder_widths[-1]
        assert [after - before for before, after in pairwise(sizes)] == [keys_and_values] * 3
        head, state = vae.decode_chunk(z[:, :, :3])
        tail, _ = vae.decode_chunk(z[:, :, 3:], pickle.loads(pickle.dumps(state)))
        assert error(torch.cat([head, tail], 2), vae.decode(z)) <= 1e-11


def held(state: Any) -> int:
    """How many numbers a state holds."""
    if isinstance(state, torch.Tensor):
        return state.numel()
    return sum(map(held, state if isinstance(state, tuple) else (state.sink, state.recent)))


@pytest.mark.parametrize("kind", ["8x8x8", "attending"])
def test_no_frame_sees_a_later_one(kind: str) -> None:
    vae = vaes.ours(peer(kind).double())
    x, z = vaes.video(vae, (3, 1, 2)), vaes.latents(vae, (4, 1, 2))
    with torch.no_grad():
        whole, frames = vae.encode(x).mode(), vae.decode(z)
        for k in (1, 2):
            assert error(vae.decode(z[:, :, :k]), frames[:, :, : 1 + 4 * (k - 1)]) <= 1e-12
        changed = x.clone()
        changed[:, :, 5] += 1
        moved = (vae.encode(changed).mode() - whole).abs().amax((0, 1, 3, 4))
        assert not moved[:2].any() and moved[2] > 1e-5


def test_latents_in_the_numbers_of_the_diffusion_model() -> None:
    theirs = peer("8x8x8")
    vae, c = vaes.ours(theirs), theirs.config
    z = vaes.latents(vae, (2, 1, 2)).float()
    mean, std = (torch.tensor(v).reshape(c.latent_channels, 3, 1, 1)[:, :2] for v in (c.latents_mean, c.latents_std))
    torch.testing.assert_close(vae.scale(z), (z - mean) / std)
    torch.testing.assert_close(vae.unscale(vae.scale(z)), z)
    with pytest.raises(ValueError, match="z has 4 frames, but there are statistics of the first 3"):
        vae.scale(vaes.latents(vae, (4, 1, 2)))


def test_sizes_that_diffusers_cannot_take_are_padded() -> None:
    theirs = peer("8x8x8")
    vae = vaes.ours(theirs)
    odd = torch.rand(1, 3, 3, 10, 8) * 2 - 1
    with torch.no_grad():
        with pytest.raises(RuntimeError):
            theirs(odd)
        assert theirs(odd[..., :8, :]).sample.shape[2] != 3, "another number of frames"
        assert vae(vae.config.factors.padded(odd))[:, :, :3, :10].shape == odd.shape
        with pytest.raises(ValueError, match="frames must be 1 \\+ 4·k, not 3"):
            vae.encode(odd)


@pytest.mark.slow
def test_a_full_width_decode_is_the_peers() -> None:
    torch.manual_seed(0)
    theirs = AutoencoderKLCosmos().eval()
    vae = vaes.ours(theirs)
    z = torch.randn(1, 16, 2, 4, 4)
    with torch.no_grad():
        assert error(vae.decode(z), theirs.decode(z).sample) <= 1e-5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": 0}, "depth must be a positive whole number, not 0"),
        ({"patch": 3}, "patch must be a power of two, not 3"),
        ({"decoder_widths": (8, 8)}, r"decoder_widths \(8, 8\) must be a positive whole number for each of 4 scales"),
        ({"spatial": 32}, r"make the factors \[8, 16\], not temporal 8 and spatial 32"),
        ({"temporal": 16}, "not temporal 16 and spatial 8"),
        ({"latent_mean": (1.0,)}, "latent_mean has 1 values for 16 latent channels"),
    ],
)
def test_bad_configs_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CosmosAutoencoderConfig(**change)
