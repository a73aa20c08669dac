"""The adapters of HunyuanVideo's, CogVideoX's and Mochi's autoencoders: configs both ways, weights bit by bit."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import peer_vaes
import pytest
import torch

from tubelet.hub import load_diffusers, save_diffusers, to_diffusers
from tubelet.hub.cogvideox_vae import cogvideox_vae_config_from_diffusers, cogvideox_vae_config_to_diffusers
from tubelet.hub.hunyuan_vae import hunyuan_vae_config_from_diffusers, hunyuan_vae_config_to_diffusers
from tubelet.hub.mochi_vae import mochi_vae_config_from_diffusers, mochi_vae_config_to_diffusers
from tubelet.vae.families import (
    MochiAutoencoderConfig,
    cogvideox_vae_2b,
    cogvideox_vae_5b,
    hunyuan_vae,
    mochi_vae,
)

COG = (cogvideox_vae_config_from_diffusers, cogvideox_vae_config_to_diffusers)
HUNYUAN = (hunyuan_vae_config_from_diffusers, hunyuan_vae_config_to_diffusers)
MOCHI = (mochi_vae_config_from_diffusers, mochi_vae_config_to_diffusers)
Both = tuple[Callable[[Any], Any], Callable[[Any], Any]]


@pytest.mark.parametrize(
    ("functions", "config"),
    [(HUNYUAN, hunyuan_vae()), (COG, cogvideox_vae_2b()), (COG, cogvideox_vae_5b()), (MOCHI, mochi_vae())],
)
def test_our_config_returns(functions: Both, config: Any) -> None:
    read, write = functions
    assert read(write(config)) == config


@pytest.mark.parametrize(
    ("functions", "config", "peer"),
    [
        (HUNYUAN, hunyuan_vae(), "AutoencoderKLHunyuanVideo"),
        (COG, cogvideox_vae_2b(), "AutoencoderKLCogVideoX"),
        (MOCHI, mochi_vae(), "AutoencoderKLMochi"),
    ],
)
def test_the_defaults_are_the_releases(functions: Both, config: Any, peer: str) -> None:
    read, write = functions
    assert read({}) == config
    with torch.device("meta"):
        theirs = public(getattr(diffusers, peer)().config)
    assert as_lists(write(config)) == as_lists(theirs)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", list(peer_vaes.PEERS))
def test_their_configs_and_weights_return_bit_by_bit(family: str, seed: int) -> None:
    theirs = peer_vaes.PEERS[family](seed)
    state = theirs.state_dict()
    config, back = to_diffusers(peer_vaes.ours(theirs))
    assert config.pop("_class_name") == type(theirs).__name__
    assert as_lists(config) == as_lists(public(theirs.config))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("family", list(peer_vaes.PEERS))
def test_folders_both_ways(family: str, tmp_path: Path) -> None:
    theirs = peer_vaes.PEERS[family](0)
    theirs.save_pretrained(tmp_path / "theirs")
    vae = load_diffusers(tmp_path / "theirs")
    again = type(theirs).from_pretrained(save_diffusers(vae, tmp_path / "ours"))
    z = peer_vaes.latents(vae, (3, 1, 1)).float()
    with torch.no_grad():
        assert torch.equal(again.decode(z).sample, theirs.decode(z).sample)


def test_all_keys_that_do_not_fit_are_in_one_error(tmp_path: Path) -> None:
    theirs = peer_vaes.cogvideox(0)
    state = theirs.state_dict()
    del state["decoder.conv_in.conv.bias"]
    state["encoder.conv_out.conv.bias"] = torch.zeros(1)
    with pytest.raises(ValueError, match="do not fit") as caught:
        peer_vaes.from_diffusers(dict(theirs.config) | {"_class_name": "AutoencoderKLCogVideoX"}, state)
    assert "missing decoder.conv_in.conv.bias" in str(caught.value)
    assert "encoder.conv_out.conv.bias is (1,)" in str(caught.value)


@pytest.mark.parametrize(
    ("read", "config", "says"),
    [
        (HUNYUAN[0], {"sizes": 3}, r"config has keys \['sizes'\]"),
        (HUNYUAN[0], {"mid_block_add_attention": False}, "mid_block_add_attention=False"),
        (HUNYUAN[0], {"out_channels": 4}, "out_channels=4 are not the in_channels=3"),
        (HUNYUAN[0], {"spatial_compression_ratio": 16}, "spatial_compression_ratio=16, but its 4 scales make 8"),
        (HUNYUAN[0], {"temporal_compression_ratio": 8}, "temporal_compression_ratio=8"),
        (HUNYUAN[0], {"down_block_types": ["A"]}, r"down_block_types=\['A'\], but 4 block_out_channels"),
        (COG[0], {"norm_eps": 1e-5}, "norm_eps=1e-05"),
        (COG[0], {"use_quant_conv": True}, "use_quant_conv=True"),
        (COG[0], {"temporal_compression_ratio": 3}, "temporal_compression_ratio=3 is no power of two"),
        (COG[0], {"temporal_compression_ratio": 16}, "time_halvings 4 must be fewer than the 4 widths"),
        (MOCHI[0], {"in_channels": 12}, "in_channels=12 are not 5 times out_channels=3"),
        (MOCHI[0], {"scaling_factor": 2.0}, "scaling_factor=2.0"),
    ],
)
def test_configs_of_other_models_are_refused(read: Callable[[Any], Any], config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read(config)


def test_what_their_config_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match="time_halvings=1, but AutoencoderKLHunyuanVideo has 2"):
        HUNYUAN[1](dataclasses.replace(hunyuan_vae(), time_halvings=1))


@pytest.mark.parametrize(
    ("config", "change", "says"),
    [
        (hunyuan_vae(), {"depth": 0}, "depth must be positive, not 0"),
        (hunyuan_vae(), {"scaling_factor": 0.0}, "scaling_factor must be positive, not 0.0"),
        (cogvideox_vae_2b(), {"widths": (32, 40)}, r"widths \(32, 40\) must be positive multiples of groups 32"),
        (cogvideox_vae_2b(), {"time_halvings": 4}, "time_halvings 4 must be fewer than the 4 widths"),
        (mochi_vae(), {"latent_channels": 0}, "latent_channels must be positive, not 0"),
        (mochi_vae(), {"temporal": (1, 2)}, r"temporal \(1, 2\) must be 3 values for the 4 widths"),
        (mochi_vae(), {"spatial": (2, 2, 0)}, r"spatial \(2, 2, 0\) must be positive"),
        (mochi_vae(), {"widths": (32, 48, 64, 64)}, r"widths \(32, 48, 64, 64\) must be positive multiples of 32"),
        (mochi_vae(), {"latent_mean": (1.0,)}, "latent_mean has 1 values for 12 latent channels"),
        (MochiAutoencoderConfig(), {"latent_std": (0.0,) * 12}, "latent_std must be positive, not 0.0"),
    ],
)
def test_bad_configs_are_named(config: Any, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(config, **change)


def public(config: Any) -> dict[str, Any]:
    return {name: value for name, value in dict(config).items() if not name.startswith("_")}


def as_lists(config: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple | list) else value for name, value in config.items()}
