"""The adapter of Allegro's autoencoder: configs both ways, and weights that return bit by bit."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import vae_parity as vaes
from diffusers import AutoencoderKLAllegro

from tubelet.hub import load_diffusers, save_diffusers, to_diffusers
from tubelet.hub.allegro_vae import allegro_vae_config_from_diffusers, allegro_vae_config_to_diffusers
from tubelet.vae.families import AllegroAutoencoder, allegro_vae


def test_the_defaults_are_the_release() -> None:
    with torch.device("meta"):
        config = AutoencoderKLAllegro().config
    assert allegro_vae_config_from_diffusers({}) == allegro_vae()
    assert allegro_vae_config_to_diffusers(allegro_vae()) == vaes.listed(config)


def test_configs_and_weights_return_bit_by_bit(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"block_out_channels": (4, 8, 8, 12), "norm_num_groups": 2, "latent_channels": 3}
    theirs = vaes.drawn(AutoencoderKLAllegro(**sizes, scaling_factor=0.3, sample_size=64))
    state = theirs.state_dict()
    theirs.save_pretrained(tmp_path / "theirs")
    vae = load_diffusers(tmp_path / "theirs")
    assert isinstance(vae, AllegroAutoencoder)
    config, back = to_diffusers(vae)
    assert config == {"_class_name": "AutoencoderKLAllegro"} | vaes.listed(theirs.config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    again = AutoencoderKLAllegro.from_pretrained(save_diffusers(vae, tmp_path / "ours"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"act_fn": "relu"}, "act_fn='relu', but this model has 'silu'"),
        ({"out_channels": 4}, "out_channels=4 are not the in_channels=3"),
        ({"up_block_types": ["Up"] * 4}, r"up_block_types=\['Up', 'Up', 'Up', 'Up'\], but"),
        ({"temporal_compression_ratio": 8}, "temporal_compression_ratio=8, but its scales make 4"),
        ({"temporal_upsample_blocks": [False] * 4}, "must be as many"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        allegro_vae_config_from_diffusers(config)


def test_what_their_config_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match="AutoencoderKLAllegro has no shift"):
        allegro_vae_config_to_diffusers(dataclasses.replace(allegro_vae(), latent_mean=(1.0,) * 4))
