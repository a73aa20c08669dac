"""The adapter of the temporal decoder's autoencoder: configs both ways, and weights that return bit by bit."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import vae_parity as vaes
from diffusers import AutoencoderKLTemporalDecoder

from tubelet.hub import load_diffusers, save_diffusers, to_diffusers
from tubelet.hub.svd_vae import svd_vae_config_from_diffusers, svd_vae_config_to_diffusers
from tubelet.vae.families import SVDAutoencoder, svd_vae

SIZES: dict[str, Any] = {"block_out_channels": (32, 64), "layers_per_block": 2, "sample_size": 96}
SIZES |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "scaling_factor": 0.3}


def test_our_config_returns() -> None:
    assert svd_vae_config_from_diffusers(svd_vae_config_to_diffusers(svd_vae())) == svd_vae()


def test_configs_and_weights_return_bit_by_bit(tmp_path: Path) -> None:
    theirs = vaes.drawn(AutoencoderKLTemporalDecoder(**SIZES))
    state = theirs.state_dict()
    theirs.save_pretrained(tmp_path / "theirs")
    vae = load_diffusers(tmp_path / "theirs")
    assert isinstance(vae, SVDAutoencoder)
    config, back = to_diffusers(vae)
    expected = {k: v for k, v in theirs.config.items() if not k.startswith("_")} | {"block_out_channels": [32, 64]}
    assert config == {"_class_name": "AutoencoderKLTemporalDecoder"} | expected
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    again = AutoencoderKLTemporalDecoder.from_pretrained(save_diffusers(vae, tmp_path / "ours"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"layers_per_block": 1}, "layers_per_block=1, but this model has 2"),
        ({"down_block_types": ["DownBlock2D"]}, r"down_block_types=\['DownBlock2D'\], but"),
        ({"out_channels": 4}, "out_channels=4 are not the in_channels=3"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        svd_vae_config_from_diffusers(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"groups": 16}, "groups=16, but AutoencoderKLTemporalDecoder has 32"),
        ({"depth": 3}, "depth=3, but AutoencoderKLTemporalDecoder has 2"),
        ({"latent_mean": (1.0,) * 4}, r"latent_mean \(1.0, 1.0, 1.0, 1.0\), but AutoencoderKLTemporalDecoder has no"),
        ({"latent_std": (1.0, 2.0, 3.0, 4.0)}, "latent_std .* differ by channel"),
    ],
)
def test_what_their_config_cannot_say_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        svd_vae_config_to_diffusers(dataclasses.replace(svd_vae(), **change))
