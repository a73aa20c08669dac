"""The adapter of LTX-Video's autoencoders: configs both ways, and weights that return bit by bit."""

import dataclasses
from pathlib import Path
from typing import Any

import ltx_vaes
import pytest
import torch
import vae_parity as vaes
from diffusers import AutoencoderKLLTXVideo

from tubelet.hub import load_diffusers, save_diffusers, to_diffusers
from tubelet.hub.ltx_vae import ltx_vae_config_from_diffusers, ltx_vae_config_to_diffusers
from tubelet.vae.families import LTXAutoencoder, LTXAutoencoderConfig, ltx_vae_0_9, ltx_vae_0_9_1, ltx_vae_0_9_5


@pytest.mark.parametrize("config", [ltx_vae_0_9(), ltx_vae_0_9_1(), ltx_vae_0_9_5()])
def test_our_config_returns(config: LTXAutoencoderConfig) -> None:
    assert ltx_vae_config_from_diffusers(ltx_vae_config_to_diffusers(config)) == config


def test_the_defaults_are_0_9_0() -> None:
    with torch.device("meta"):
        config = AutoencoderKLLTXVideo().config
    assert ltx_vae_config_from_diffusers({}) == ltx_vae_0_9()
    assert ltx_vae_config_to_diffusers(ltx_vae_0_9()) == vaes.listed(config)


@pytest.mark.parametrize("kind", ltx_vaes.KINDS)
def test_configs_and_weights_return_bit_by_bit(kind: str, tmp_path: Path) -> None:
    theirs = ltx_vaes.peer(kind)
    state = theirs.state_dict()
    theirs.save_pretrained(tmp_path / "theirs")
    vae = load_diffusers(tmp_path / "theirs")
    assert isinstance(vae, LTXAutoencoder)
    assert torch.equal(vae.latent_std, theirs.latents_std)
    config, back = to_diffusers(vae)
    expected, (t, s) = vaes.listed(theirs.config), (vae.config.factors.temporal, vae.config.factors.spatial)
    if kind == "0.9.5":
        expected |= {"temporal_compression_ratio": t, "spatial_compression_ratio": s}
    assert config == {"_class_name": "AutoencoderKLLTXVideo"} | expected
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    again = AutoencoderKLLTXVideo.from_pretrained(save_diffusers(vae, tmp_path / "ours"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


FOLDING = {"down_block_types": ["LTXVideo095DownBlock3D"] * 2, "block_out_channels": [8, 8, 16]}
FOLDING |= {"layers_per_block": [1] * 3, "spatio_temporal_scaling": [True] * 2, "downsample_type": ["both", "conv"]}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"encoder_causal": False}, "encoder_causal=False, but this model has True"),
        ({"patch_size_t": 2}, "patch_size_t=2, but this model has 1"),
        ({"out_channels": 4}, "out_channels=4 are not the in_channels=3"),
        ({"temporal_compression_ratio": 4}, "temporal_compression_ratio=4, but its scales make 8"),
        ({"down_block_types": ["Down"] * 4}, "must all be LTXVideoDownBlock3D or all LTXVideo095DownBlock3D"),
        (FOLDING, "downsample_type 'both' must be one of"),
        (FOLDING | {"downsample_type": ["spatial", "conv"]}, "change where LTXVideo095DownBlock3D keeps them"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ltx_vae_config_from_diffusers(config)


def test_what_their_config_cannot_say_is_refused() -> None:
    config = dataclasses.replace(ltx_vae_0_9(), widths=(128, 256, 512, 512, 1024))
    with pytest.raises(ValueError, match="must end in two equal ones"):
        ltx_vae_config_to_diffusers(config)
