"""Cosmos' adapter: configs both ways, and weights that return bit by bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cosmoses
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers
from torch import Tensor

from tubelet import models
from tubelet.hub import from_diffusers, from_original, load_original, to_diffusers, to_original
from tubelet.hub.cosmos import (
    cosmos_config_from_diffusers,
    cosmos_config_to_diffusers,
    cosmos_keys,
    cosmos_original_keys,
)
from tubelet.models import CosmosConfig, latte_1

PRESETS = [name for name in models.__all__ if name.startswith("cosmos_")]


@pytest.mark.parametrize("preset", PRESETS)
def test_our_configs_return(preset: str) -> None:
    config = getattr(models, preset)()
    assert cosmos_config_from_diffusers(cosmos_config_to_diffusers(config)) == config


@pytest.mark.parametrize("kind", cosmoses.KINDS)
def test_their_configs_and_weights_return_bit_by_bit(kind: str) -> None:
    theirs = cosmoses.peer(kind)
    state = theirs.state_dict()
    model = from_diffusers(dict(theirs.config) | {"_class_name": "CosmosTransformer3DModel"}, state)
    config, back = to_diffusers(model)
    assert {k: v for k, v in config.items() if k != "_class_name"} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in theirs.config.items() if not k.startswith("_")
    }
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    keys = cosmos_keys(model.config)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in keys.to_ours(back).items())


@pytest.mark.parametrize("kind", ["world", "projected"])
def test_learned_positions_stay_in_float32(kind: str) -> None:
    theirs = cosmoses.peer(kind)
    config = dict(theirs.config) | {"_class_name": "CosmosTransformer3DModel"}
    model = from_diffusers(config, theirs.state_dict(), dtype=torch.bfloat16)
    wide = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert wide == ({f"positions.{axis}" for axis in ("time", "height", "width")} if kind == "world" else set())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"img_context_dim_in": 1152}, "img_context_dim_in=1152 makes a Cosmos-Transfer2.5"),
        ({"controlnet_block_every_n": 7}, "controlnet_block_every_n=7 makes a Cosmos-Transfer2.5"),
        ({"in_channels": 15}, "in_channels=15 with out_channels=16"),
        ({"in_channels": 18}, "in_channels=18 with out_channels=16"),
        ({"extra_pos_embed_type": "sincos"}, "extra_pos_embed_type='sincos'"),
        (
            {"use_crossattn_projection": True, "encoder_hidden_states_channels": 7},
            "encoder_hidden_states_channels=7, but cross-attention takes text_embed_dim=1024",
        ),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cosmos_config_from_diffusers(config)


@pytest.mark.parametrize("change", [{"time": "edm"}, {"extent": (2, 2, 2)}])
def test_times_that_no_published_model_has_have_no_place_in_their_config(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the published models have both or neither"):
        cosmos_config_to_diffusers(CosmosConfig(dim=24, depth=1, heads=2, **change))


class Kept(dict[str, Tensor]):
    """A file as diffusers' conversion needs it: it looks for the generation after it has taken every tensor out."""

    def pop(self, key: str) -> Tensor:  # type: ignore[override]
        return self[key]


@pytest.mark.parametrize("kind", ["video", "frames", "projected"])
def test_names_of_the_original_files_are_those_that_diffusers_converts(kind: str) -> None:
    theirs = cosmoses.peer(kind)
    state, config = theirs.state_dict(), dict(theirs.config) | {"_class_name": "CosmosTransformer3DModel"}
    model = from_diffusers(config, state)
    keys = cosmos_original_keys(model.config)
    file = keys.to_theirs(model.state_dict())
    unread = {name.replace("*", "1"): torch.zeros(1) for name in keys.ignored}
    converted = convert_cosmos_transformer_checkpoint_to_diffusers(Kept(file | unread))
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)
    back = keys.to_ours(file | unread)
    assert all(torch.equal(tensor, back[name]) for name, tensor in model.state_dict().items())
    assert ("net.blocks.block1.blocks.0.block.attn.to_q.0.weight" in file) == (kind == "video")


@pytest.mark.parametrize("kind", ["video", "frames", "projected"])
def test_original_files_load_by_a_config_of_ours(kind: str, tmp_path: Path) -> None:
    theirs = cosmoses.peer(kind)
    model = from_diffusers(dict(theirs.config) | {"_class_name": "CosmosTransformer3DModel"}, theirs.state_dict())
    config, state = to_original(model)
    assert config == {}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"no config, and no tensor tells .*: give config=, such as cosmos_1_7b\(\)"):
        load_original(tmp_path / "model.pt", family="cosmos")
    for loaded in (load_original(tmp_path / "model.pt", config=model.config), from_original(model.config, state)):
        assert loaded.config == model.config
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    with pytest.raises(ValueError, match="its tensors do not fit CosmosTransformer in"):
        load_original(tmp_path / "model.pt", config=replace(model.config, depth=1))
    with pytest.raises(ValueError, match="LatteConfig has no adapter; there is one for .*files"):
        load_original(tmp_path / "model.pt", config=latte_1())
