"""The adapter of Cosmos's tokenizers: configs both ways, and weights that return bit by bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
import vae_parity as vaes
from diffusers import AutoencoderKLCosmos

from tubelet.hub import load_diffusers, save_diffusers, to_diffusers
from tubelet.hub.cosmos_vae import cosmos_vae_config_from_diffusers, cosmos_vae_config_to_diffusers
from tubelet.vae.families import CosmosAutoencoder, CosmosAutoencoderConfig, cosmos_vae

SIZES: dict[str, Any] = {"encoder_block_out_channels": (4, 6, 6, 8), "decode_block_out_channels": (6, 4, 8, 8)}
SIZES |= {"latents_mean": None, "latents_std": None, "resolution": 64, "attention_resolutions": (16,)}


@pytest.mark.parametrize("config", [cosmos_vae(8, 8), cosmos_vae(4, 8)])
def test_our_config_returns(config: CosmosAutoencoderConfig) -> None:
    assert cosmos_vae_config_from_diffusers(cosmos_vae_config_to_diffusers(config)) == config


def test_the_defaults_are_the_release() -> None:
    with torch.device("meta"):
        config = AutoencoderKLCosmos().config
    assert cosmos_vae_config_from_diffusers({}) == cosmos_vae(8, 8)
    assert cosmos_vae_config_to_diffusers(cosmos_vae(8, 8)) == vaes.listed(config)


@pytest.mark.parametrize("patch_type", ["haar", "rearrange"])
def test_configs_and_weights_return_bit_by_bit(patch_type: str, tmp_path: Path) -> None:
    theirs = vaes.drawn(AutoencoderKLCosmos(**SIZES, patch_type=patch_type))
    state = theirs.state_dict()
    theirs.save_pretrained(tmp_path / "theirs")
    vae = load_diffusers(tmp_path / "theirs")
    assert isinstance(vae, CosmosAutoencoder)
    config, back = to_diffusers(vae)
    assert config == {"_class_name": "AutoencoderKLCosmos"} | vaes.listed(theirs.config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    again = AutoencoderKLCosmos.from_pretrained(save_diffusers(vae, tmp_path / "ours"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"scaling_factor": 2.0}, "scaling_factor=2.0, but this model has 1.0"),
        ({"patch_type": "db4"}, r"patch_type='db4' must be one of \['haar', 'rearrange'\]"),
        ({"out_channels": 4}, "out_channels=4 are not the in_channels=3"),
        ({"spatial_compression_ratio": 16, "temporal_compression_ratio": 16}, "not temporal 16 and spatial 16"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cosmos_vae_config_from_diffusers(config)
