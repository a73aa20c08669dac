"""The image autoencoder of latent diffusion: equal to diffusers' with the same weights, on every frame alone."""

import random
from typing import Any

import pytest
import torch
import vae_parity as vaes
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import error, size

from tubelet.layout import Grid
from tubelet.testing import check_autoencoder
from tubelet.vae.families import KLAutoencoder, KLAutoencoderConfig, kl_f8

F64 = torch.float64
KINDS = ("sd", "flux", "plain")
SIZES = [(1, 2, 3), (3, 3, 2)]


def peer(kind: str, seed: int = 0) -> AutoencoderKL:
    """A tiny model of diffusers'; ``flux`` has a shift and no 1×1 convolutions, ``plain`` no attention."""
    draw = random.Random(seed)
    widths = draw.choice([(8, 12, 16), (4, 8), (8, 8, 4, 8)])
    sizes: dict[str, Any] = {"block_out_channels": widths, "layers_per_block": draw.randint(1, 2)}
    sizes |= {"latent_channels": draw.randint(2, 4), "norm_num_groups": draw.choice([2, 4])}
    sizes |= {"down_block_types": ["DownEncoderBlock2D"] * len(widths)}
    sizes |= {"up_block_types": ["UpDecoderBlock2D"] * len(widths)}
    if kind == "flux":
        sizes |= {"use_quant_conv": False, "use_post_quant_conv": False}
        sizes |= {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    if kind == "plain":
        sizes |= {"mid_block_add_attention": False, "in_channels": 1, "out_channels": 1, "scaling_factor": 0.7}
        sizes |= {"latents_mean": [0.5] * sizes["latent_channels"], "latents_std": [2.0] * sizes["latent_channels"]}
    return vaes.drawn(AutoencoderKL(**sizes), seed)


def frames(x: torch.Tensor) -> torch.Tensor:
    """A video as a batch of images."""
    return x.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("latent", SIZES, ids=["image", "clip"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (F64, 1e-12)])
def test_equal_to_diffusers(kind: str, latent: tuple[int, int, int], dtype: torch.dtype, bound: float) -> None:
    for seed in range(3):
        theirs = peer(kind, seed)
        vae = vaes.ours(theirs).to(dtype)
        theirs.to(dtype)
        x, z = vaes.video(vae, latent).to(dtype), vaes.latents(vae, latent).to(dtype)
        with torch.no_grad():
            expected, got = theirs.encode(frames(x)).latent_dist, vae.encode(x)
            assert error(frames(got.mean), expected.mean) <= bound
            assert error(frames(got.logvar), expected.logvar) <= bound
            assert error(frames(vae.decode(z)), theirs.decode(frames(z)).sample) <= bound


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_every_weight_are_the_peers(kind: str) -> None:
    theirs = peer(kind).double()
    vae = vaes.ours(theirs)
    x = vaes.video(vae, (2, 1, 2))

    def loss(model: Any) -> torch.Tensor:
        posterior = model.encode(x)
        return model.decode(posterior.mean).sin().sum() + posterior.logvar.cos().sum()

    def their_loss(model: Any) -> torch.Tensor:
        posterior = model.encode(frames(x)).latent_dist
        return model.decode(posterior.mean).sample.sin().sum() + posterior.logvar.cos().sum()

    vaes.check_gradients(theirs, vae, loss, their_loss)


def test_the_size_of_the_paper() -> None:
    vae = KLAutoencoder(kl_f8(), device="meta")
    assert size(vae) == 83_653_863
    assert size(vae.encoder.moments) == 72 and size(vae.decoder.latents) == 20
    assert size(vae.encoder) - 72 == 34_163_592 and size(vae.decoder) - 20 == 49_490_179
    assert vae.latent_grid(1, 256, 256) == Grid(1, 32, 32)
    assert vae.encode(torch.zeros(1, 3, 1, 256, 256, device="meta")).mean.shape == (1, 4, 1, 32, 32)


@settings(max_examples=5)
@given(plan=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_any_chunk_plan_equals_the_whole(plan: list[int]) -> None:
    vae = vaes.ours(peer("sd").double())
    vaes.check_plan(vae, vaes.video(vae, (4, 1, 2)), vaes.latents(vae, (4, 2, 1)), plan, 1e-12)


def test_no_frame_sees_another() -> None:
    vae = vaes.ours(peer("sd").double())
    x, z = vaes.video(vae, (3, 1, 2)), vaes.latents(vae, (3, 1, 2))
    with torch.no_grad():
        for model, given in ((lambda v: vae.encode(v).mean, x), (vae.decode, z)):
            whole, changed = model(given), given.clone()
            changed[:, :, 1] += 1
            moved = (model(changed) - whole).abs().amax((0, 1, 3, 4))
            assert moved[0] == moved[2] == 0 and moved[1] > 1e-4


def test_sides_that_diffusers_changes_are_refused_or_padded() -> None:
    theirs = peer("sd", seed=1)
    vae = vaes.ours(theirs)
    odd = torch.rand(1, 3, 2, 13, 18) * 2 - 1
    factors = vae.config.factors
    with torch.no_grad():
        assert theirs(frames(odd)).sample.shape[2:] != odd.shape[3:], "the edges are gone"
        assert vae(factors.padded(odd))[..., :13, :18].shape == odd.shape
        with pytest.raises(ValueError, match=f"height must be a multiple of the spatial factor {factors.spatial}, not"):
            vae.encode(odd)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_in_the_numbers_of_the_diffusion_model(kind: str) -> None:
    theirs = peer(kind)
    vae, c = vaes.ours(theirs), theirs.config
    z = vaes.latents(vae, (1, 1, 2)).float()
    mean = torch.tensor(c.latents_mean or [c.shift_factor or 0.0]).reshape(-1, 1, 1, 1)
    std = torch.tensor(c.latents_std or [1.0]).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(vae.scale(z), (z - mean) * c.scaling_factor / std)
    torch.testing.assert_close(vae.unscale(vae.scale(z)), z)


def test_it_plugs_in() -> None:
    check_autoencoder(KLAutoencoder(KLAutoencoderConfig(widths=(4, 8), depth=1, groups=2)), channels=3)


@pytest.mark.slow
def test_a_full_width_decode_is_the_peers() -> None:
    torch.manual_seed(0)
    wide = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    theirs = AutoencoderKL(**wide, **blocks).eval()
    vae = vaes.ours(theirs)
    z = torch.randn(1, 4, 2, 8, 8)
    with torch.no_grad():
        assert error(frames(vae.decode(z)), theirs.decode(frames(z)).sample) <= 1e-5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": 0}, "depth must be a positive whole number, not 0"),
        ({"groups": 48}, r"widths \(128, 256, 512, 512\) must be multiples of groups 48"),
        ({"widths": ()}, r"widths \(\) must be a positive whole number for each of the scales"),
        ({"latent_mean": (1.0,)}, "latent_mean has 1 values for 4 latent channels"),
        ({"latent_std": (0.0,) * 4}, "latent_std must be positive, not 0.0"),
    ],
)
def test_bad_configs_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        KLAutoencoderConfig(**change)
