"""The adapter of the image autoencoder: configs both ways, and weights that return bit by bit."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import vae_parity as vaes
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from tubelet.hub import load_diffusers, save_diffusers, to_diffusers
from tubelet.hub.kl_vae import kl_vae_config_from_diffusers, kl_vae_config_to_diffusers
from tubelet.vae.families import KLAutoencoder, kl_f8

SIZES: dict[str, Any] = {"block_out_channels": (4, 8), "norm_num_groups": 2, "layers_per_block": 1}
SIZES |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
SHIFTED: dict[str, Any] = {"scaling_factor": 1.5305, "shift_factor": 0.0609, "sample_size": 1024}
BARE: dict[str, Any] = {"mid_block_add_attention": False, "use_quant_conv": False, "use_post_quant_conv": False}
BY_CHANNEL: dict[str, Any] = {"latent_mean": (1.0,) * 4, "latent_std": (1.0, 2.0, 3.0, 4.0)}
STATISTICS: dict[str, Any] = {
    "scaling_factor": 1.0,
    "latents_mean": [1.0, 2.0, 3.0, 4.0],
    "latents_std": [5.0, 4.0, 3.0, 2.0],
}


@pytest.mark.parametrize(
    "change", [{}, {"latent_mean": (0.1,) * 4}, {"latent_mean": (1.0,) * 4, "latent_std": (1.0, 2.0, 3.0, 4.0)}]
)
def test_our_config_returns(change: dict[str, Any]) -> None:
    config = dataclasses.replace(kl_f8(), **change)
    assert kl_vae_config_from_diffusers(kl_vae_config_to_diffusers(config)) == config


@pytest.mark.parametrize("change", [{}, SHIFTED, BARE, STATISTICS], ids=["sd", "shifted", "bare", "statistics"])
def test_their_configs_and_weights_return_bit_by_bit(change: dict[str, Any]) -> None:
    theirs = vaes.drawn(AutoencoderKL(**SIZES | change))
    state = theirs.state_dict()
    config, back = to_diffusers(vaes.ours(theirs))
    expected = {k: v for k, v in theirs.config.items() if not k.startswith("_")}
    assert config == {"_class_name": "AutoencoderKL"} | expected | {"block_out_channels": [4, 8]}
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_folders_both_ways(tmp_path: Path) -> None:
    theirs = vaes.drawn(AutoencoderKL(**SIZES))
    theirs.save_pretrained(tmp_path / "theirs")
    vae = load_diffusers(tmp_path / "theirs")
    assert isinstance(vae, KLAutoencoder)
    again = AutoencoderKL.from_pretrained(save_diffusers(vae, tmp_path / "ours"))
    z = torch.randn(1, 4, 2, 3)
    with torch.no_grad():
        assert torch.equal(again.decode(z).sample, theirs.decode(z).sample)


def test_files_with_the_names_of_stable_diffusion_1_load(tmp_path: Path) -> None:
    theirs = vaes.drawn(AutoencoderKL(**SIZES))
    theirs.save_pretrained(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in theirs.state_dict().items():
        parts = name.rpartition(".attentions.0.")
        then = next((then for now, then in old.items() if parts[2].startswith(now)), None)
        leaf = name.rpartition(".")[2]
        state[name if then is None else f"{parts[0]}.attentions.0.{then}.{leaf}"] = tensor
    assert "encoder.mid_block.attentions.0.proj_attn.bias" in state
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    z = torch.randn(1, 4, 1, 2, 3)
    with torch.no_grad():
        assert torch.equal(load_diffusers(tmp_path).decode(z), vaes.ours(theirs).decode(z))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"act_fn": "relu"}, "act_fn='relu', but this model has 'silu'"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, r"down_block_types=\['AttnDownEncoderBlock2D'\], but"),
        ({"out_channels": 4}, "out_channels=4 are not the in_channels=3"),
        ({"use_quant_conv": False}, "use_quant_conv=False, but use_post_quant_conv=True"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        kl_vae_config_from_diffusers(config)
