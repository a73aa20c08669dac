"""CogVideoX under its authors' names: what diffusers' conversion makes of the file, and bit by bit back."""

import re
from dataclasses import replace
from pathlib import Path

import cogvideoxs
import pytest
import torch
from torch import Tensor

from tubelet import hub
from tubelet.hub.cogvideox_original import cogvideox_original_keys
from tubelet.models import CogVideoXTransformer

WHOLE = {
    r"mixins\.pos_embed\.pos_embedding": "patch_embed.pos_embedding",
    r"mixins\.patch_embed\.(.*)": r"patch_embed.\1",
    r"time_embed\.0\.(.*)": r"time_embedding.linear_1.\1",
    r"time_embed\.2\.(.*)": r"time_embedding.linear_2.\1",
    r"ofs_embed\.0\.(.*)": r"ofs_embedding.linear_1.\1",
    r"ofs_embed\.2\.(.*)": r"ofs_embedding.linear_2.\1",
    r"transformer\.layers\.(\d+)\.input_layernorm\.(.*)": r"transformer_blocks.\1.norm1.norm.\2",
    r"transformer\.layers\.(\d+)\.post_attention_layernorm\.(.*)": r"transformer_blocks.\1.norm2.norm.\2",
    r"transformer\.layers\.(\d+)\.attention\.dense\.(.*)": r"transformer_blocks.\1.attn1.to_out.0.\2",
    r"transformer\.layers\.(\d+)\.mlp\.dense_h_to_4h\.(.*)": r"transformer_blocks.\1.ff.net.0.proj.\2",
    r"transformer\.layers\.(\d+)\.mlp\.dense_4h_to_h\.(.*)": r"transformer_blocks.\1.ff.net.2.\2",
    r"mixins\.adaln_layer\.query_layernorm_list\.(\d+)\.(.*)": r"transformer_blocks.\1.attn1.norm_q.\2",
    r"mixins\.adaln_layer\.key_layernorm_list\.(\d+)\.(.*)": r"transformer_blocks.\1.attn1.norm_k.\2",
    r"transformer\.final_layernorm\.(.*)": r"norm_final.\1",
    r"mixins\.final_layer\.norm_final\.(.*)": r"norm_out.norm.\1",
    r"mixins\.final_layer\.linear\.(.*)": r"proj_out.\1",
    r"mixins\.final_layer\.adaLN_modulation\.1\.(.*)": r"norm_out.linear.\1",
}
"""The renamings of diffusers' scripts/convert_cogvideox_to_diffusers.py, where a tensor stays as it is."""


def converted(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """What that script makes of a file."""
    out: dict[str, Tensor] = {}
    for name, tensor in file.items():
        if found := re.fullmatch(r"transformer\.layers\.(\d+)\.attention\.query_key_value\.(.*)", name):
            for x, part in zip("qkv", tensor.chunk(3), strict=True):
                out[f"transformer_blocks.{found[1]}.attn1.to_{x}.{found[2]}"] = part
        elif found := re.fullmatch(r"mixins\.adaln_layer\.adaLN_modulations\.(\d+)\.1\.(.*)", name):
            parts = tensor.chunk(12)
            for norm, chosen in (("norm1", (0, 1, 2, 6, 7, 8)), ("norm2", (3, 4, 5, 9, 10, 11))):
                whole = torch.cat([parts[i] for i in chosen])
                out[f"transformer_blocks.{found[1]}.{norm}.linear.{found[2]}"] = whole
        else:
            (new,) = {re.sub(f"^{old}$", new, name) for old, new in WHOLE.items() if re.fullmatch(old, name)}
            out[new] = tensor
    return out


def tiny(kind: str) -> tuple[CogVideoXTransformer, dict[str, Tensor]]:
    theirs = cogvideoxs.peer(kind)
    state = theirs.state_dict()
    model = hub.from_diffusers(dict(theirs.config) | {"_class_name": "CogVideoXTransformer3DModel"}, state)
    assert isinstance(model, CogVideoXTransformer)
    return model, state


@pytest.mark.parametrize("kind", cogvideoxs.KINDS)
def test_a_file_is_what_diffusers_converts_and_returns_bit_by_bit(kind: str) -> None:
    model, state = tiny(kind)
    config, file = hub.to_original(model)
    assert config == {}
    made = converted(file)
    assert made.keys() == state.keys()
    assert all(torch.equal(made[name], state[name]) for name in state)
    again = hub.from_original(model.config, file)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    _, back = hub.to_original(again)
    assert back.keys() == file.keys()
    assert all(torch.equal(back[name], file[name]) for name in file)


def test_a_training_state_is_read_by_a_config_of_ours(tmp_path: Path) -> None:
    model, _ = tiny("rotary")
    _, file = hub.to_original(model)
    whole = {f"model.diffusion_model.{name}": tensor for name, tensor in file.items()}
    unread = list(cogvideox_original_keys(model.config).ignored)
    whole |= {f"model.diffusion_model.{name}": torch.zeros(2) for name in unread}
    whole |= {"conditioner.embedders.0.weight": torch.zeros(2), "first_stage_model.encoder.weight": torch.zeros(2)}
    torch.save({"module": whole}, tmp_path / "mp_rank_00_model_states.pt")
    path = tmp_path / "mp_rank_00_model_states.pt"
    loaded = hub.load_original(path, config=model.config)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"no config, and no tensor tells .*: give config=, such as cogvideox_5b\(\)"):
        hub.load_original(path, family="cogvideox")
    with pytest.raises(ValueError, match="its tensors do not fit CogVideoXTransformer in"):
        hub.load_original(path, config=replace(model.config, depth=model.config.depth + 1))
    target = hub.convert(
        path, tmp_path / "theirs", source_form="original", target_form="diffusers", config=model.config
    )
    again = hub.load_diffusers(target)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
