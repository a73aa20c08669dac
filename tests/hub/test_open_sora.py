"""Open-Sora 2's adapter: configs both ways, names as published, weights that return bit by bit."""

from pathlib import Path
from typing import Any

import open_soras
import pytest
import torch
from safetensors.torch import save_file

from tubelet.hub import from_original, load_original, to_original
from tubelet.hub.open_sora import open_sora_config_from_original, open_sora_config_to_original
from tubelet.models import OpenSoraConfig, open_sora_2

PUBLISHED: dict[str, Any] = {
    "guidance_embed": False, "fused_qkv": False, "use_liger_rope": True, "in_channels": 64, "vec_in_dim": 768,
    "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
    "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "cond_embed": True,
    "patch_size": 2,
}  # fmt: skip
"""What the configs of the published model say."""


def test_the_published_config_is_the_preset() -> None:
    assert open_sora_config_from_original(PUBLISHED) == open_sora_config_from_original({}) == open_sora_2()
    assert open_sora_config_to_original(open_sora_2()) == PUBLISHED


@pytest.mark.parametrize("kind", open_soras.KINDS)
def test_configs_and_weights_return_bit_by_bit(kind: str) -> None:
    config = open_soras.sizes(kind)
    state = open_soras.checkpoint(config)
    model = from_original(config, state, family="open_sora")
    written, back = to_original(model)
    assert written == config | {"_class_name": "MMDiTModel"}
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_file_alone_as_it_is_published(tmp_path: Path) -> None:
    config = PUBLISHED | {"hidden_size": 128, "num_heads": 1, "depth": 1, "depth_single_blocks": 2, "in_channels": 12}
    state = {name: tensor.float() for name, tensor in open_soras.checkpoint(config).items()}
    save_file(state, tmp_path / "Open_Sora_v2.safetensors")
    model = load_original(tmp_path / "Open_Sora_v2.safetensors", family="open_sora")
    assert to_original(model)[0] == config | {"_class_name": "MMDiTModel"}
    with pytest.raises(ValueError, match=r"there is no img_in\.weight"):
        from_original({}, {"img.weight": torch.zeros(2)}, family="open_sora")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sizes": 3}, r"config has keys \['sizes'\]"),
        ({"fused_qkv": True}, "fused_qkv=True, but the published model"),
        ({"in_channels": 63}, "in_channels=63 are not those of patch_size=2"),
        ({"axes_dim": [64, 64]}, r"axes_dim=\[64, 64\] are not those of three axes"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        open_sora_config_from_original(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patch": (2, 2, 2)}, r"patch=\(2, 2, 2\), but MMDiTModel has square patches of one frame"),
        ({"given_channels": 4}, "given_channels=4, but MMDiTModel has none or latent_channels=16 and a mask"),
        ({"rope_layout": "half_per_axis"}, "rope_layout='half_per_axis'"),
        ({"time_scale": 1.0}, "time_scale=1.0"),
    ],
)
def test_what_has_no_place_in_their_config_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        open_sora_config_to_original(OpenSoraConfig(**vars(open_sora_2()) | change))
