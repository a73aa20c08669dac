"""The adapter of Wan's autoencoders: configs both ways, and weights that return bit by bit."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import wan_vaes
from diffusers import AutoencoderKLWan

from tubelet.hub import load_diffusers, save_diffusers, to_diffusers
from tubelet.hub.wan_vae import wan_vae_config_from_diffusers, wan_vae_config_to_diffusers
from tubelet.vae.families import WanAutoencoder, WanAutoencoderConfig, wan_vae_2_1, wan_vae_2_2


@pytest.mark.parametrize("config", [wan_vae_2_1(), wan_vae_2_2()])
def test_our_config_returns(config: WanAutoencoderConfig) -> None:
    assert wan_vae_config_from_diffusers(wan_vae_config_to_diffusers(config)) == config


def test_the_defaults_are_wan_2_1() -> None:
    assert wan_vae_config_from_diffusers({}) == wan_vae_2_1()
    with torch.device("meta"):
        config = AutoencoderKLWan().config
    assert wan_vae_config_to_diffusers(wan_vae_2_1()) == {k: v for k, v in config.items() if not k.startswith("_")}


@pytest.mark.parametrize("kind", wan_vaes.KINDS)
def test_their_configs_and_weights_return_bit_by_bit(kind: str) -> None:
    theirs = wan_vaes.peer(kind)
    state = theirs.state_dict()
    config, back = to_diffusers(wan_vaes.ours(theirs))
    assert config == {"_class_name": "AutoencoderKLWan"} | {
        k: v for k, v in theirs.config.items() if not k.startswith("_")
    }
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_folders_both_ways(tmp_path: Path) -> None:
    theirs = wan_vaes.peer("2.2")
    theirs.save_pretrained(tmp_path / "theirs")
    vae = load_diffusers(tmp_path / "theirs")
    assert isinstance(vae, WanAutoencoder)
    assert vae.latent_mean.tolist() == pytest.approx(theirs.config.latents_mean)
    again = AutoencoderKLWan.from_pretrained(save_diffusers(vae, tmp_path / "ours"))
    z = wan_vaes.latents(vae, (2, 1, 1)).float()
    with torch.no_grad():
        assert torch.equal(again.decode(z).sample, theirs.decode(z).sample)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"attn_scales": [0.5]}, r"attn_scales=\[0.5\], but Wan's is \[\]"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"dim_mult": [2, 2, 4, 4]}, r"dim_mult=\[2, 2, 4, 4\], but"),
        ({"out_channels": 4}, "out_channels=4 are not the in_channels=3"),
        ({"patch_size": 2}, "in_channels=3 are no channels of patches of patch_size=2"),
        ({"scale_factor_spatial": 16}, "scale_factor_spatial=16, but its scales make 8"),
        ({"scale_factor_temporal": 8}, "scale_factor_temporal=8, but its scales make 4"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wan_vae_config_from_diffusers(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"widths": (96, 100, 384, 384)}, r"widths \(96, 100, 384, 384\) are not 96 times"),
        ({"decoder_widths": (96, 96, 384, 384)}, r"decoder_widths \(96, 96, 384, 384\) are not 96 times"),
    ],
)
def test_what_their_config_cannot_say_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wan_vae_config_to_diffusers(dataclasses.replace(wan_vae_2_1(), **change))
