"""Wan's original checkpoints: names and configs as published, the weights as diffusers' own converter reads them."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import wans
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from parity import error
from safetensors.torch import save_file
from torch import Tensor

from tubelet.hub import from_diffusers, from_original, load_original, save_original, to_original
from tubelet.hub.wan_original import (
    wan_config_from_original,
    wan_config_to_original,
    wan_original_config,
    wan_original_keys,
)
from tubelet.models import WanConfig, WanTransformer, wan_1_3b, wan_2_2_5b, wan_2_2_i2v_14b, wan_14b, wan_i2v_14b

PUBLISHED = {
    "text_len": 512,
    "freq_dim": 256,
    "eps": 1e-6,
    "_class_name": "WanModel",
    "_diffusers_version": "0.30.0",
}
"""What the config.json of every published checkpoint says, and below what each says of its own."""
LARGE = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40, "out_dim": 16}
CONFIGS: list[tuple[WanConfig, dict[str, Any]]] = [
    (
        wan_1_3b(),
        {
            "model_type": "t2v",
            "dim": 1536,
            "ffn_dim": 8960,
            "num_heads": 12,
            "num_layers": 30,
            "in_dim": 16,
            "out_dim": 16,
        },
    ),
    (wan_14b(), {"model_type": "t2v", "in_dim": 16, **LARGE}),
    (wan_i2v_14b(), {"model_type": "i2v", "in_dim": 36, **LARGE}),
    (wan_2_2_i2v_14b(), {"model_type": "i2v", "in_dim": 36, **LARGE}),
    (
        wan_2_2_5b(),
        {
            "model_type": "ti2v",
            "dim": 3072,
            "ffn_dim": 14336,
            "num_heads": 24,
            "num_layers": 30,
            "in_dim": 48,
            "out_dim": 48,
        },
    ),
]

NAMES = """
patch_embedding.weight patch_embedding.bias text_embedding.0.weight text_embedding.0.bias text_embedding.2.weight
text_embedding.2.bias time_embedding.0.weight time_embedding.0.bias time_embedding.2.weight time_embedding.2.bias
time_projection.1.weight time_projection.1.bias head.head.weight head.head.bias head.modulation
blocks.0.modulation blocks.0.norm3.weight blocks.0.norm3.bias
blocks.0.self_attn.q.weight blocks.0.self_attn.q.bias blocks.0.self_attn.k.weight blocks.0.self_attn.k.bias
blocks.0.self_attn.v.weight blocks.0.self_attn.v.bias blocks.0.self_attn.o.weight blocks.0.self_attn.o.bias
blocks.0.self_attn.norm_q.weight blocks.0.self_attn.norm_k.weight
blocks.0.cross_attn.q.weight blocks.0.cross_attn.q.bias blocks.0.cross_attn.k.weight blocks.0.cross_attn.k.bias
blocks.0.cross_attn.v.weight blocks.0.cross_attn.v.bias blocks.0.cross_attn.o.weight blocks.0.cross_attn.o.bias
blocks.0.cross_attn.norm_q.weight blocks.0.cross_attn.norm_k.weight
blocks.0.ffn.0.weight blocks.0.ffn.0.bias blocks.0.ffn.2.weight blocks.0.ffn.2.bias
"""
"""Every tensor of the published text-to-video checkpoints, of one block."""
IMAGE = """
img_emb.proj.0.weight img_emb.proj.0.bias img_emb.proj.1.weight img_emb.proj.1.bias img_emb.proj.3.weight
img_emb.proj.3.bias img_emb.proj.4.weight img_emb.proj.4.bias
blocks.0.cross_attn.k_img.weight blocks.0.cross_attn.k_img.bias blocks.0.cross_attn.v_img.weight
blocks.0.cross_attn.v_img.bias blocks.0.cross_attn.norm_k_img.weight
"""
"""What image-to-video checkpoints of Wan 2.1 have besides; with a first and a last frame also ``img_emb.emb_pos``."""

SIZES: dict[str, Any] = {"patch_size": (1, 2, 2), "text_dim": 4096}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("text", SIZES),
    "latents": ("latents", SIZES),
    "image": ("image", {**SIZES, "image_dim": 1280}),
    "two_images": ("two_images", {**SIZES, "image_dim": 1280, "pos_embed_seq_len": 514}),
}
"""Tiny models of sizes that ``WanModel`` can have: it reads no other patch and no other widths of text and image."""


def peer(name: str) -> Any:
    kind, sizes = PEERS[name]
    return wans.peer(kind, **sizes)


def ours(theirs: Any) -> WanTransformer:
    model = from_diffusers({**theirs.config, "_class_name": "WanTransformer3DModel"}, theirs.state_dict())
    assert isinstance(model, WanTransformer)
    return model


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("name", PEERS)
def test_what_we_write_is_what_diffusers_converter_takes_for_the_original(name: str) -> None:
    theirs = peer(name)
    config, state = to_original(ours(theirs))
    expected, converted = theirs.state_dict(), convert_wan_transformer_to_diffusers(dict(state))
    if name == "two_images":  # the converter does not know the positions
        converted["condition_embedder.image_embedder.pos_embed"] = converted.pop("img_emb.emb_pos")
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)
    again = from_original(config, state)
    assert again.config == ours(theirs).config
    back = to_original(again)[1]
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("name", PEERS)
def test_names_are_the_published_ones(name: str) -> None:
    _, state = to_original(ours(peer(name)))
    names = NAMES + (IMAGE if "image" in name else "") + ("img_emb.emb_pos" if name == "two_images" else "")
    first = {key for key in state if not key.startswith("blocks.") or key.startswith("blocks.0.")}
    assert first == set(names.split())


@pytest.mark.parametrize(("preset", "own"), CONFIGS)
def test_published_configs_are_the_presets(preset: WanConfig, own: dict[str, Any]) -> None:
    _, state = to_original(WanTransformer(preset, device="meta"))
    published = {**PUBLISHED, **own}
    assert wan_config_from_original(wan_original_config(published, shapes(state))) == preset
    assert wan_config_from_original(wan_original_config({}, shapes(state))) == preset
    written = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", **wan_config_to_original(preset)}
    assert written == published | {"model_type": written["model_type"]}
    assert written["model_type"] == {"ti2v": "t2v"}.get(own["model_type"], own["model_type"])


def test_the_same_answers_from_a_file_that_says_nothing_of_its_config(tmp_path: Path) -> None:
    theirs = wans.peer("text", **SIZES, num_attention_heads=1, attention_head_dim=128)
    model = ours(theirs)
    state = to_original(model)[1]
    save_file({f"model.diffusion_model.{name}": t for name, t in state.items()}, tmp_path / "prefixed.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"step": 3, "state_dict": state}, tmp_path / "nested.pt")
    torch.save(state, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for file in ("prefixed.safetensors", "plain.pth", "nested.pt", "old.ckpt"):
        loaded = load_original(tmp_path / file, family="wan")
        assert loaded.config == replace(model.config, eps=1e-6)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_folders_of_shards_with_and_without_a_config(tmp_path: Path) -> None:
    theirs = wans.peer("text", **SIZES, num_attention_heads=1, attention_head_dim=128)
    folder = save_original(ours(theirs), tmp_path / "folder", max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    asked = wans.question("text", theirs)
    assert error(asked.ours(load_original(tmp_path, subfolder="folder")), asked.theirs(theirs)) <= 1e-5
    narrow = load_original(folder, dtype=torch.bfloat16)
    assert narrow.embed.weight.dtype == torch.bfloat16 and narrow.time.up.weight.dtype == torch.float32
    (folder / "config.json").unlink()
    assert load_original(folder, family="wan").config.dim == 128
    with pytest.raises(ValueError, match="already holds"):
        save_original(narrow, folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no file of tensors alone"),
        (b"not a checkpoint", "is no file of tensors alone"),
        (pickle.dumps(Path, protocol=2), "is no file of tensors alone"),
        ({"a": 3}, r"must hold one mapping of tensors, got keys \['a'\], of which \[\] are such"),
        ({"ema": {"a": torch.zeros(1)}, "model": {"a": torch.zeros(1)}}, r"of which \['ema', 'model'\] are such"),
        ([torch.zeros(1)], "must hold one mapping of tensors, got a list"),
    ],
)
def test_files_of_anything_but_tensors_are_refused(content: Any, says: str, tmp_path: Path) -> None:
    file = tmp_path / "wan.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=f"{file} {says}" if says[0] in "im" else says):
        load_original(file, family="wan")


def test_what_says_too_little_or_too_much_is_refused(tmp_path: Path) -> None:
    _, state = to_original(ours(peer("image")))
    with pytest.raises(ValueError, match=r"names no class .* give family=.* WanModel \(WanTransformer, family wan\)"):
        from_original({}, state)
    with pytest.raises(ValueError, match="without a config heads are 128 wide, which does not divide the width"):
        from_original({}, state, family="wan")
    with pytest.raises(ValueError, match="a config without a class as family 'want' has no adapter"):
        from_original({}, state, family="want")
    with pytest.raises(ValueError, match="VaceWanModel has no adapter; there is one for .*WanModel"):
        from_original({"_class_name": "VaceWanModel"}, state)
    with pytest.raises(ValueError, match="the state dict: the tensors are not WanModel's: there is no patch_embedding"):
        from_original({"_class_name": "WanModel"}, {"a": torch.zeros(1)})
    save_file(state, tmp_path / "wan.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no weights file 'diffusion_pytorch_model\.safetensors'"):
        load_original(tmp_path, family="wan")
    config = {"_class_name": "WanModel", "num_heads": 2}
    del state["blocks.1.self_attn.q.bias"]
    state["vace_blocks.0.after_proj.bias"] = torch.zeros(2)
    with pytest.raises(ValueError, match="do not fit WanModel in 2 places") as caught:
        from_original(config, state)
    assert "missing blocks.1.self_attn.q.bias (" in str(caught.value)
    assert "unexpected vace_blocks.0.after_proj.bias (2,)" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"qk_norm": False}, "qk_norm=False"),
        ({"window_size": [8, 8]}, r"window_size=\(8, 8\)"),
        ({"model_type": "vace"}, "model_type='vace' with image_dim=None and image_tokens=None is no Wan"),
        ({"model_type": "t2v", "image_dim": 1280}, "model_type='t2v' with image_dim=1280"),
        ({"model_type": "flf2v", "image_dim": 1280}, "model_type='flf2v' with image_dim=1280 and image_tokens=None"),
        ({"in_dim": 4}, "in_dim=4 are fewer than out_dim=16"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wan_config_from_original(config)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"text_dim": 8}, "text_dim=8, but WanModel has 4096 and reads no other"),
        ({"patch": (2, 2, 2)}, r"patch=\(2, 2, 2\), but WanModel has \(1, 2, 2\)"),
        ({"image_dim": 7}, "image_dim=7"),
        ({"image_dim": 1280, "image_tokens": 6}, "image_tokens=6"),
        ({"cross_norm": False}, "cross_norm=False"),
        ({"time_scale": 1.0}, "time_scale=1.0"),
    ],
)
def test_what_their_config_cannot_say_is_not_written(sizes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wan_config_to_original(WanConfig(dim=24, depth=1, heads=2, mlp_dim=4, **sizes))


def test_keys_are_inverse() -> None:
    model = ours(peer("two_images"))
    keys = wan_original_keys(model.config)
    back = keys.to_ours(keys.to_theirs(model.state_dict()))
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
