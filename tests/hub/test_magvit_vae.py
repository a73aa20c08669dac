"""The adapter of EasyAnimate's autoencoder: configs both ways, and weights that return bit by bit."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import vae_parity as vaes
from diffusers import AutoencoderKLMagvit

from tubelet.hub import load_diffusers, save_diffusers, to_diffusers
from tubelet.hub.magvit_vae import magvit_vae_config_from_diffusers, magvit_vae_config_to_diffusers
from tubelet.vae.families import MagvitAutoencoder, magvit_vae


def test_the_defaults_are_the_release() -> None:
    with torch.device("meta"):
        config = AutoencoderKLMagvit().config
    assert magvit_vae_config_from_diffusers({}) == magvit_vae()
    assert magvit_vae_config_to_diffusers(magvit_vae()) == vaes.listed(config)


def test_configs_and_weights_return_bit_by_bit(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"block_out_channels": (4, 8, 8, 12), "norm_num_groups": 2, "latent_channels": 3}
    theirs = vaes.drawn(AutoencoderKLMagvit(**sizes, scaling_factor=0.3))
    state = theirs.state_dict()
    theirs.save_pretrained(tmp_path / "theirs")
    vae = load_diffusers(tmp_path / "theirs")
    assert isinstance(vae, MagvitAutoencoder)
    config, back = to_diffusers(vae)
    assert config == {"_class_name": "AutoencoderKLMagvit"} | vaes.listed(theirs.config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    again = AutoencoderKLMagvit.from_pretrained(save_diffusers(vae, tmp_path / "ours"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"spatial_group_norm": False}, "spatial_group_norm=False, but this model has True"),
        ({"out_channels": 4}, "out_channels=4 are not the in_channels=3"),
        ({"up_block_types": ["Up"] * 4}, r"up_block_types=\['Up', 'Up', 'Up', 'Up'\] must be one of"),
        ({"down_block_types": ["SpatialDownBlock3D"] * 3}, "for each of 4 scales"),
        ({"down_block_types": ["SpatialDownBlock3D"] * 4}, "must be as many"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        magvit_vae_config_from_diffusers(config)


def test_what_their_config_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match="AutoencoderKLMagvit has no shift"):
        magvit_vae_config_to_diffusers(dataclasses.replace(magvit_vae(), latent_mean=(1.0,) * 16))
