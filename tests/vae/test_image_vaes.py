"""The deep-compression and the tiny image autoencoder: equal to diffusers', adapters both ways, tiles, attention."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import vae_parity as vaes
from diffusers import AutoencoderDC, AutoencoderTiny
from parity import error, size

from tubelet.hub import load_diffusers, save_diffusers, to_diffusers
from tubelet.hub.dc_vae import dc_vae_config_from_diffusers, dc_vae_config_to_diffusers
from tubelet.hub.tiny_vae import tiny_vae_config_from_diffusers, tiny_vae_config_to_diffusers
from tubelet.testing import check_autoencoder
from tubelet.vae import MultiscaleLinearAttention, decode_tiled, decoder_reach
from tubelet.vae.families import (
    DCAutoencoder,
    DCAutoencoderConfig,
    TinyAutoencoder,
    TinyAutoencoderConfig,
    dc_vae_f32,
    dc_vae_f64,
    tiny_vae,
)

F64 = torch.float64


def dc(kind: str, seed: int = 0) -> AutoencoderDC:
    """A tiny model of diffusers'; ``deep`` begins with a change of scale, ``strided`` skips and copies positions."""
    draw = random.Random(seed)
    dim, z = draw.choice([4, 8]), draw.choice([2, 4])
    widths = [8, 16, 8, 16][: 3 + (kind == "deep")]
    scales = len(widths)
    first = 0 if kind == "deep" else 1
    attends = [False] * (scales - 2) + [True] * 2
    sizes: dict[str, Any] = {"latent_channels": z, "attention_head_dim": dim}
    for side in ("encoder", "decoder"):
        sizes[f"{side}_block_types"] = ["EfficientViTBlock" if yes else "ResBlock" for yes in attends]
        sizes[f"{side}_block_out_channels"] = widths
        sizes[f"{side}_layers_per_block"] = [first, *(draw.randint(1, 2) for _ in widths[1:])]
        sizes[f"{side}_qkv_multiscales"] = [[3, 5][: 1 + seed % 2] if yes else [] for yes in attends]
    if kind == "strided":
        sizes |= {"downsample_block_type": "Conv", "upsample_block_type": "interpolate", "scaling_factor": 0.41407}
    return vaes.drawn(AutoencoderDC(**sizes), seed)


def tiny(seed: int = 0) -> AutoencoderTiny:
    draw = random.Random(seed)
    scales = 2 + seed % 2
    sizes: dict[str, Any] = {"latent_channels": draw.randint(2, 4)}
    for side in ("encoder", "decoder"):
        sizes[f"{side}_block_out_channels"] = [6] * scales
        sizes[f"num_{side}_blocks"] = [draw.randint(1, 3) for _ in range(scales)]
    if seed:
        sizes |= {"scaling_factor": 0.7, "shift_factor": 0.25}
    return vaes.drawn(AutoencoderTiny(**sizes), seed)


PEERS = {"dc": lambda seed: dc("plain", seed), "dc deep": lambda seed: dc("deep", seed),
         "dc strided": lambda seed: dc("strided", seed), "tiny": tiny}  # fmt: skip


def frames(x: torch.Tensor) -> torch.Tensor:
    """A video as a batch of images."""
    return x.transpose(1, 2).flatten(0, 1)


def encoded(theirs: Any, x: torch.Tensor) -> torch.Tensor:
    return theirs.encode(x, return_dict=False)[0]


def decoded(theirs: Any, z: torch.Tensor) -> torch.Tensor:
    return theirs.decode(z, return_dict=False)[0]


@pytest.mark.parametrize("latent", [(1, 2, 3), (3, 3, 2)], ids=["image", "clip"])
@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (F64, 1e-6)])
def test_equal_to_diffusers(kind: str, latent: tuple[int, int, int], dtype: torch.dtype, bound: float) -> None:
    # their linear attention rounds to float32 whatever the dtype
    bound = 1e-12 if dtype == F64 and kind == "tiny" else bound
    for seed in range(3):
        theirs = PEERS[kind](seed)
        vae = vaes.ours(theirs).to(dtype)
        theirs.to(dtype)
        x, z = vaes.video(vae, latent).to(dtype), vaes.latents(vae, latent).to(dtype)
        with torch.no_grad():
            assert error(frames(vae.encode(x).mode()), encoded(theirs, frames(x))) <= bound
            assert error(frames(vae.decode(z)), decoded(theirs, frames(z))) <= bound


@pytest.mark.parametrize("kind", PEERS)
def test_gradients_of_every_weight_are_the_peers(kind: str) -> None:
    theirs = PEERS[kind](0)
    vae = vaes.ours(theirs)
    x = vaes.video(vae, (2, 1, 2)).float()
    vae.decode(vae.encode(x).mode()).sin().sum().backward()
    decoded(theirs, encoded(theirs, frames(x))).sin().sum().backward()
    gradients = vaes.from_theirs(vae, {name: p.grad for name, p in theirs.named_parameters()})
    assert gradients.keys() == dict(vae.named_parameters()).keys()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None
        assert error(parameter.grad, gradients[name]) <= 1e-3, name


@pytest.mark.parametrize("kind", PEERS)
def test_their_configs_and_weights_return_bit_by_bit(kind: str) -> None:
    for seed in range(2):
        theirs = PEERS[kind](seed)
        state = theirs.state_dict()
        config, back = to_diffusers(vaes.ours(theirs))
        again = type(theirs).from_config(config)
        names = {k for k in theirs.config if not k.startswith("_")} - {"block_out_channels"}
        plain = {k: [*theirs.config[k]] if isinstance(theirs.config[k], tuple) else theirs.config[k] for k in names}
        assert {k: config[k] for k in names} == plain
        assert back.keys() == state.keys() == again.state_dict().keys()
        assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("kind", ["dc", "tiny"])
def test_folders_both_ways(tmp_path: Path, kind: str) -> None:
    theirs = PEERS[kind](0)
    theirs.save_pretrained(tmp_path / "theirs")
    vae = load_diffusers(tmp_path / "theirs")
    again = type(theirs).from_pretrained(save_diffusers(vae, tmp_path / "ours"))
    z = torch.randn(1, vae.config.latent_channels, 2, 3)
    with torch.no_grad():
        assert torch.equal(decoded(again, z), decoded(theirs, z))


def test_our_configs_return() -> None:
    for config in (dc_vae_f32(), dc_vae_f64(), DCAutoencoderConfig(attends=(False,) * 6)):
        assert dc_vae_config_from_diffusers(dc_vae_config_to_diffusers(config)) == config
    for own in (tiny_vae(), dataclasses.replace(tiny_vae(), latent_mean=(0.25,) * 4, latent_std=(2.0,) * 4)):
        assert tiny_vae_config_from_diffusers(tiny_vae_config_to_diffusers(own)) == own


def test_real_sizes() -> None:
    with torch.device("meta"):
        assert size(TinyAutoencoder(tiny_vae())) == sum(p.numel() for p in AutoencoderTiny().parameters()) == 2_445_063
        for config in (dc_vae_f32(), dc_vae_f64()):
            theirs = AutoencoderDC(**{k: v for k, v in dc_vae_config_to_diffusers(config).items() if k[0] != "_"})
            vae = DCAutoencoder(config)
            assert size(vae) == sum(p.numel() for p in theirs.parameters())
            side = config.factors.spatial
            assert vae.encode(torch.zeros(1, 3, 1, 2 * side, side)).mode().shape == (1, config.latent_channels, 1, 2, 1)
    assert (dc_vae_f32().factors.spatial, dc_vae_f64().factors.spatial) == (32, 64)


def test_they_plug_in_and_the_tiny_one_is_tiled_exactly() -> None:
    check_autoencoder(TinyAutoencoder(TinyAutoencoderConfig(width=6, depths=(1, 1), decoder_depths=(1, 1))), 3)
    vae = vaes.ours(tiny()).double()
    z = vaes.latents(vae, (2, 24, 3), batch=1)
    assert not decoder_reach(vae).unbounded
    with torch.no_grad():
        assert error(decode_tiled(vae, z, (None, 6, None)), vae.decode(z)) <= 1e-14
    vae = vaes.ours(dc("plain"))
    check_autoencoder(vae, 3)
    assert decoder_reach(vae).unbounded == ("height", "width")


def test_linear_attention_by_its_definition() -> None:
    torch.manual_seed(0)
    attention = MultiscaleLinearAttention(8, head_dim=4, kernels=(3,), dtype=F64)
    x = torch.randn(2, 8, 2, 3, 4, dtype=F64)
    qkv = attention.qkv(x)
    parts = torch.cat([qkv, attention.scales[0](qkv)], 1)
    found = torch.empty(2, 16, 2, 3, 4, dtype=F64)
    for head in range(4):
        q, k, v = (parts[:, 12 * head + 4 * i : 12 * head + 4 * i + 4].flatten(3) for i in range(3))
        scores = torch.einsum("bdti,bdtj->btij", q.relu(), k.relu())
        shares = scores / (scores.sum(-1, keepdim=True) + 1e-15)
        found[:, 4 * head : 4 * head + 4] = torch.einsum("btij,bdtj->bdti", shares, v).unflatten(3, (3, 4))
    torch.testing.assert_close(attention(x), attention.out(found), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("change", "message"), [
    ({"decoder_norm_types": "batch_norm"}, r"decoder_norm_types='batch_norm', but this model has 'rms_norm'"),
    ({"decoder_block_out_channels": [8] * 6}, r"encoder and decoder differ"),
    ({"upsample_block_type": "deconv"}, r"upsample_block_type='deconv', but known are pixel_shuffle, interpolate"),
    ({"encoder_block_types": "Other"}, r"encoder_block_types=.* but known are ResBlock, EfficientViTBlock"),
    ({"encoder_layers_per_block": [0, 2, 2, 3, 3, 3]}, r"must both begin with 0 or not"),
])  # fmt: skip
def test_other_deep_models_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dc_vae_config_from_diffusers(change)


def test_other_tiny_models_are_refused() -> None:
    for change, message in [({"act_fn": "silu"}, "act_fn='silu', but this model has 'relu'"),
                            ({"encoder_block_out_channels": [32, 64, 64, 64]}, "differ, but this model has one width"),
                            ({"out_channels": 4}, "out_channels=4 are not the in_channels=3")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            tiny_vae_config_from_diffusers(change)
    with pytest.raises(ValueError, match="differ by channel, but AutoencoderTiny has one"):
        tiny_vae_config_to_diffusers(dataclasses.replace(tiny_vae(), latent_std=(1.0, 2.0, 3.0, 4.0)))
    with pytest.raises(ValueError, match=r"channels 3 must be at least the head_dim 4"):
        MultiscaleLinearAttention(3, head_dim=4)
    with pytest.raises(ValueError, match=r"kernels must be positive and odd, not \(4,\)"):
        MultiscaleLinearAttention(8, head_dim=4, kernels=(4,))
