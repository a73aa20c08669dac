"""Allegro's autoencoder: equal to diffusers' with the same weights, whole clips of any length, and at its real size."""

import random
from typing import Any

import pytest
import torch
import vae_parity as vaes
from diffusers import AutoencoderKLAllegro
from parity import error, size
from torch import Tensor

from tubelet.layout import Grid
from tubelet.vae import encode_stream
from tubelet.vae.families import AllegroAutoencoder, AllegroAutoencoderConfig, allegro_vae

F64 = torch.float64
KINDS = ("released", "late", "short")
"""As released; time halved and doubled at other scales; two scales and half the time."""


def peer(kind: str, seed: int = 0, **sizes: Any) -> AutoencoderKLAllegro:
    """A tiny model of diffusers' whose every parameter is random."""
    draw = random.Random(seed)
    widths = draw.choice([(4, 8, 12, 8), (8, 4, 4, 8)])
    down, up = (True, True, False, False), (False, True, True, False)
    if kind == "late":
        widths, down, up = widths[:3], (False, True, True), (True, False, True)
    if kind == "short":
        widths, down, up = widths[:2], (True, False), (False, True)
    drawn: dict[str, Any] = {"block_out_channels": widths, "layers_per_block": draw.randint(1, 2)}
    drawn |= {"latent_channels": draw.randint(2, 3), "norm_num_groups": draw.choice([2, 4])}
    drawn["in_channels"] = drawn["out_channels"] = draw.choice([1, 3])
    drawn |= {"down_block_types": ["AllegroDownBlock3D"] * len(widths)}
    drawn |= {"up_block_types": ["AllegroUpBlock3D"] * len(widths)}
    drawn |= {"temporal_downsample_blocks": down, "temporal_upsample_blocks": up}
    drawn |= {"temporal_compression_ratio": 2 ** sum(down), "sample_size": 16}
    return vaes.drawn(AutoencoderKLAllegro(**drawn | sizes), seed)


def encode(model: AutoencoderKLAllegro, x: Tensor) -> Tensor:
    """The peer's moments; its public way cuts tiles of 24 frames."""
    moments = model.encoder(x)
    return model.quant_conv(moments.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)


def decode(model: AutoencoderKLAllegro, z: Tensor) -> Tensor:
    """The peer's frames without tiles."""
    mixed = model.post_quant_conv(z.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(z), -1)).transpose(1, 2)
    return model.decoder(mixed)


@pytest.mark.parametrize("latent", [(1, 2, 3), (3, 3, 2)], ids=["short", "clip"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (F64, 1e-12)])
def test_equal_to_diffusers(kind: str, latent: tuple[int, int, int], dtype: torch.dtype, bound: float) -> None:
    for seed in range(3):
        theirs = peer(kind, seed)
        vae = vaes.ours(theirs).to(dtype)
        theirs.to(dtype)
        x, z = vaes.video(vae, latent).to(dtype), vaes.latents(vae, latent).to(dtype)
        with torch.no_grad():
            mean, logvar = encode(theirs, x).chunk(2, 1)
            got = vae.encode(x)
            assert error(got.mean, mean) <= bound
            assert error(got.logvar, logvar.clamp(-30, 20)) <= bound
            assert error(vae.decode(z), decode(theirs, z)) <= bound


def test_one_tile_of_theirs_is_the_whole() -> None:
    theirs = peer("released").double()
    vae = vaes.ours(theirs)
    theirs.enable_tiling()
    x, z = vaes.video(vae, (6, 2, 2), batch=1), vaes.latents(vae, (6, 2, 2), batch=1)
    with torch.no_grad():
        assert error(vae.encode(x).mean, theirs.encode(x).latent_dist.mean) <= 1e-12
        assert error(vae.decode(z).transpose(1, 2), theirs.decode(z).sample) <= 1e-12


def test_sizes_and_lengths_that_diffusers_cannot_take() -> None:
    theirs = peer("released")
    vae = vaes.ours(theirs)
    c = vae.config.in_channels
    with torch.no_grad():
        with pytest.raises(NotImplementedError):
            theirs.encode(torch.zeros(1, c, 24, 16, 16))
        theirs.enable_tiling()
        short = (torch.randn(1, c, 20, 16, 16), torch.randn(1, c, 20, 16, 16))
        assert torch.equal(*(theirs.encode(x).latent_dist.mean for x in short)), "no tile: nothing is encoded"
        with pytest.raises(RuntimeError):
            theirs.encode(torch.zeros(2, c, 24, 16, 16))
        for odd in (torch.zeros(1, c, 1, 9, 16), torch.zeros(2, c, 7, 8, 20)):
            padded = vae.config.factors.padded(odd)
            assert padded.shape[2] in (4, 8)
            assert vae(padded)[:, :, : odd.shape[2], : odd.shape[3], : odd.shape[4]].shape == odd.shape
            with pytest.raises(ValueError, match="frames must be 4 \\+ 4·k, not"):
                vae.encode(odd)


def test_gradients_of_every_weight_are_the_peers() -> None:
    theirs = peer("released").double()
    vae = vaes.ours(theirs)
    x = vaes.video(vae, (2, 2, 1))

    def loss(model: Any) -> Tensor:
        posterior = model.encode(x)
        return model.decode(posterior.mean).sin().sum() + posterior.logvar.cos().sum()

    def their_loss(model: Any) -> Tensor:
        mean, logvar = encode(model, x).chunk(2, 1)
        return decode(model, mean).sin().sum() + logvar.cos().sum()

    vaes.check_gradients(theirs, vae, loss, their_loss)


def test_the_size_released() -> None:
    with torch.device("meta"):
        theirs = AutoencoderKLAllegro()
    vae = AllegroAutoencoder(allegro_vae(), device="meta")
    assert size(vae) == size(theirs) == 174_955_751
    assert vae.latent_grid(88, 720, 1280) == Grid(22, 90, 160)


def test_a_clip_goes_whole_both_ways() -> None:
    vae = vaes.ours(peer("released").double())
    x, z = vaes.video(vae, (2, 1, 2)), vaes.latents(vae, (3, 1, 2))
    with torch.no_grad():
        posterior, state = vae.encode_chunk(x)
        assert torch.equal(posterior.mean, vae.encode(x).mean)
        assert error(vae.encode(x[:, :, :4]).mean, posterior.mean[:, :, :1]) > 1e-3, "frames see later ones"
        with pytest.raises(ValueError, match="state must be None: this layer sees later frames"):
            vae.encode_chunk(x, state)
        with pytest.raises(ValueError, match="state must be None: this layer sees later frames"):
            list(encode_stream(vae, x.split(4, 2)))
        frames, state = vae.decode_chunk(z)
        assert error(vae.decode(z[:, :, :2]), frames[:, :, :8]) > 1e-3
        with pytest.raises(ValueError, match="state must be None: this layer sees later frames"):
            vae.decode_chunk(z, state)
        assert torch.equal(torch.cat([p.mean for p in encode_stream(vae, [x])], 2), posterior.mean)
        with pytest.raises(ValueError, match="frames must be 4 \\+ 4·k together, but 3 are left over"):
            list(encode_stream(vae, [x[:, :, :3]]))


@pytest.mark.slow
def test_a_full_width_decode_is_the_peers() -> None:
    torch.manual_seed(0)
    theirs = AutoencoderKLAllegro().eval()
    vae = vaes.ours(theirs)
    z = torch.randn(1, 4, 2, 4, 4)
    with torch.no_grad():
        assert error(vae.decode(z), decode(theirs, z)) <= 1e-5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": 0}, "depth must be a positive whole number, not 0"),
        ({"groups": 48}, "must be multiples of groups 48"),
        ({"halve_time": (True,)}, r"halve_time \(True,\) must say yes or no for 4 scales"),
        ({"halve_time": (True,) * 4}, "must be as many"),
        ({"latent_std": (0.0,) * 4}, "latent_std must be positive, not 0.0"),
    ],
)
def test_bad_configs_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AllegroAutoencoderConfig(**change)
