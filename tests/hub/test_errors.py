"""What a newcomer gets wrong with checkpoints is said in a line or a few, with what to do."""

from typing import Any

import diffusers
import pytest
import torch

from tubelet import Grid, TokenLayout, hub
from tubelet.cli import main
from tubelet.models import WanConfig, WanTransformer

SMALL = WanConfig(dim=24, depth=1, heads=2, mlp_dim=32, text_dim=8)


@pytest.mark.graph
def test_a_dtype_by_its_name(tmp_path: Any) -> None:
    model = WanTransformer(SMALL)
    ours, theirs = hub.save(model, tmp_path / "ours"), hub.save_diffusers(model, tmp_path / "theirs")
    options: dict[str, Any] = {"dtype": "bfloat16"}
    for call in (
        lambda: hub.from_diffusers(*hub.to_diffusers(model), **options),
        lambda: hub.load_diffusers(theirs, **options),
        lambda: hub.load(ours, **options),
        lambda: hub.convert(ours, tmp_path / "new", source_form="tubelet", target_form="tubelet", **options),
    ):
        with pytest.raises(ValueError, match=r"dtype must be one of torch's, such as torch\.bfloat16, got 'bfloat16'"):
            call()


def test_a_config_without_a_class() -> None:
    model = WanTransformer(SMALL)
    config, state = hub.to_diffusers(model)
    del config["_class_name"]
    with pytest.raises(
        ValueError, match=r"names no class \(_class_name\): give family=, such as 'wan'; there is one for"
    ):
        hub.from_diffusers(config, state)
    again = hub.from_diffusers(config, state, family="wan")
    assert torch.equal(again.embed.weight, model.embed.weight)
    with pytest.raises(ValueError, match="family 'nope' has no adapter; there is one for"):
        hub.from_diffusers(config, state, family="nope")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["convert", *arguments]) != 0
    return capsys.readouterr().err


def test_the_command_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = WanTransformer(SMALL)
    theirs = str(hub.save_diffusers(model, tmp_path / "theirs"))
    new, file = str(tmp_path / "new"), f"{theirs}/diffusion_pytorch_model.safetensors"
    text = said(capsys, "--from", "tubelet", "--to", "original", theirs, new)
    assert "names WanTransformer3DModel, so it is not of tubelet's own form: load_diffusers or load_original" in text
    assert "'nope' has no adapter" in said(
        capsys, "--from", "original", "--to", "tubelet", "--family", "nope", file, new
    )
    text = said(capsys, "--from", "original", "--to", "tubelet", "--preset", "wan_13b", file, new)
    assert "no preset is called wan_13b; there are wan_" in text
    assert len(text) < 300
    text = said(capsys, "--from", "original", "--to", "tubelet", "--preset", "wan_14b", file, new)
    assert "and 1" in text
    assert "more" in text
    assert len(text) < 5000


def test_models_that_mind_their_text_themselves() -> None:
    sizes: dict[str, Any] = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 12, "in_channels": 4}
    text = TokenLayout.padded([2], 3)
    mochi = diffusers.MochiTransformer3DModel(
        **sizes, pooled_projection_dim=8, text_embed_dim=8, time_embed_dim=4, out_channels=4
    )
    with pytest.raises(ValueError, match="MochiTransformer3DModel takes the padding .* leave text out, got"):
        hub.use_attend(mochi, Grid(1, 2, 2), text=text)
    latte = diffusers.LatteTransformer3DModel(
        **sizes, cross_attention_dim=12, caption_channels=8, sample_size=4, patch_size=2,
        norm_type="ada_norm_single", video_length=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match="LatteTransformer3DModel repeats its text for each frame.* leave text out"):
        hub.use_attend(latte, Grid(1, 2, 2), text=text)
