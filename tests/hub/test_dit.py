"""DiT's adapters: configs both ways, and weights that return bit by bit, of diffusers' form and of the authors'."""

import dataclasses
from pathlib import Path
from typing import Any

import dits
import pytest
import torch
from diffusers import DiTTransformer2DModel
from parity import error
from safetensors.torch import load_file

from tubelet.hub import from_diffusers, load_diffusers, save_diffusers, to_diffusers
from tubelet.hub.dit import dit_config_from_diffusers, dit_config_to_diffusers, dit_keys
from tubelet.models import DiTConfig, dit_b, dit_l, dit_s, dit_xl

PRESETS = [make(patch) for make in (dit_s, dit_b, dit_l, dit_xl) for patch in (8, 4, 2)]


@pytest.mark.parametrize("config", PRESETS)
def test_our_configs_return(config: DiTConfig) -> None:
    side = 32 // config.patch[1]
    theirs = dataclasses.replace(config, freq_shift=1, mlp_eps=1e-5, base_grid=(side, side))
    assert dit_config_from_diffusers(dit_config_to_diffusers(theirs)) == theirs
    assert dit_config_to_diffusers(theirs)["sample_size"] == 32


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_their_configs_and_weights_return_bit_by_bit(seed: int) -> None:
    theirs = dits.peer(seed)
    state = theirs.state_dict()
    model = from_diffusers(dict(theirs.config) | {"_class_name": "DiTTransformer2DModel"}, state)
    config, back = to_diffusers(model)
    known = {k: v for k, v in theirs.config.items() if not k.startswith("_")}
    known["out_channels"] = known["out_channels"] or known["in_channels"]
    assert {k: v for k, v in config.items() if k != "_class_name"} == known
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert len({tensor.data_ptr() for tensor in back.values()}) == len(back)  # files hold no tensor twice
    keys = dit_keys(model.config)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in keys.to_ours(back).items())


def test_what_we_save_they_read_and_we(tmp_path: Path) -> None:
    theirs = dits.peer()
    config = dict(theirs.config) | {"_class_name": "DiTTransformer2DModel"}
    folder = save_diffusers(from_diffusers(config, theirs.state_dict()), tmp_path / "ours")
    again = DiTTransformer2DModel.from_config(DiTTransformer2DModel.load_config(folder)).eval()
    again.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    asked = dits.question("trained", theirs)
    assert torch.equal(asked.theirs(again), asked.theirs(theirs))
    assert error(asked.ours(load_diffusers(folder)), asked.theirs(theirs)) <= 1e-5


def test_blocks_with_different_embeddings_are_refused() -> None:
    theirs = dits.peer()
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
    state[name][3] += 1
    with pytest.raises(ValueError, match=f"{name} differs from transformer_blocks.0"):
        from_diffusers(dict(theirs.config) | {"_class_name": "DiTTransformer2DModel"}, state)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"activation_fn": "geglu"}, "activation_fn='geglu', but this model has 'gelu-approximate'"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"out_channels": 3}, "out_channels=3 are fewer than in_channels=4"),
        ({"sample_size": 33}, "sample_size=33 is not a multiple of patch_size=2"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dit_config_from_diffusers(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"freq_shift": 0}, "freq_shift=0, but DiTTransformer2DModel has 1"),
        ({"mlp_dim": 100}, "mlp_dim=100, but DiTTransformer2DModel has 1536"),
        ({"base_grid": None}, "base_grid=None"),
        ({"base_grid": (2, 3)}, r"base_grid=\(2, 3\)"),
        ({"patch": (2, 2, 2)}, r"patch=\(2, 2, 2\)"),
        ({"time_shift": 0.0}, "time_shift=0.0"),
    ],
)
def test_what_has_no_place_in_their_config_is_named(change: dict[str, Any], says: str) -> None:
    config = dataclasses.replace(dit_s(), freq_shift=1, base_grid=(16, 16))
    with pytest.raises(ValueError, match=says):
        dit_config_to_diffusers(dataclasses.replace(config, **change))
