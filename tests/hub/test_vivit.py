"""ViViT against transformers' model 1 with mapped random weights, and image transformers as its start."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import error, randomise
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    VivitConfig,
    VivitForVideoClassification,
)

from tubelet import hub
from tubelet.hub.vit import VIT, VIT_MODEL, vit_config_from_transformers, vit_config_to_transformers, vit_keys
from tubelet.hub.vit_timm import VIT_TIMM, timm_vit_keys, vit_config_from_timm, vit_config_to_timm
from tubelet.hub.vivit import vivit_config_from_transformers, vivit_config_to_transformers, vivit_keys
from tubelet.layout import Grid, TokenLayout
from tubelet.models import ViViT, ViViTConfig, vivit_b, vivit_from_image_, vivit_h, vivit_l
from tubelet.patchify import central_frame_, fold, inflate_


def video_peer(seed: int = 0) -> VivitForVideoClassification:
    """Drawn sizes, random weights, in float32."""
    draw = random.Random(seed)
    heads, patch = draw.randint(1, 3), [draw.randint(1, 3), *draw.sample([2, 3], 2)]
    config = VivitConfig(
        image_size=[2 * patch[1], 3 * patch[2]], num_frames=2 * patch[0], tubelet_size=patch,
        num_channels=draw.randint(1, 3), hidden_size=8 * heads, num_hidden_layers=draw.randint(1, 2),
        num_attention_heads=heads, intermediate_size=20, num_labels=draw.choice([3, 5]),
        layer_norm_eps=draw.choice([1e-6, 1e-3]), qkv_bias=draw.choice([True, False]),
        hidden_act=draw.choice(["gelu_fast", "gelu"]),
    )  # fmt: skip
    return randomise(VivitForVideoClassification(config), seed)  # type: ignore[return-value]


def image_peer(seed: int = 0) -> ViTForImageClassification:
    draw = random.Random(seed)
    heads, patch = draw.randint(1, 3), draw.choice([2, 3])
    config = ViTConfig(
        image_size=3 * patch, patch_size=patch, num_channels=draw.randint(1, 3), hidden_size=8 * heads,
        num_hidden_layers=2, num_attention_heads=heads, intermediate_size=20, num_labels=4,
        layer_norm_eps=draw.choice([1e-12, 1e-3]), qkv_bias=draw.choice([True, False]),
    )  # fmt: skip
    return randomise(ViTForImageClassification(config), seed)  # type: ignore[return-value]


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def ask(model: ViViT, video: Tensor) -> Tensor:
    """Of videos ``(b, t, c, h, w)``, as the peer takes them."""
    x = fold(video.transpose(1, 2), model.config.patch)
    grid = Grid(*(side // part for side, part in zip(video.transpose(1, 2).shape[2:], model.config.patch, strict=True)))
    return model(x, TokenLayout.dense(len(video), grid))


def clip(config: Any, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, config.num_frames, config.num_channels, *config.image_size, generator=draw)


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_transformers(seed: int, tmp_path: Path) -> None:
    """In float32, in float64, and the gradient of every weight; their activation has ten digits of its constant."""
    theirs = video_peer(seed)
    folder, video = saved(theirs, tmp_path / "theirs"), clip(theirs.config, seed)
    with torch.no_grad():
        assert error(ask(hub.load_original(folder), video), theirs(video).logits) <= 1e-5  # type: ignore[arg-type]
    ours, exact = hub.load_original(folder, dtype=torch.float64), theirs.double()
    got, expected = ask(ours, video.double()), exact(video.double()).logits  # type: ignore[arg-type]
    assert error(got, expected) <= 1e-9
    got.square().sum().backward()
    expected.square().sum().backward()
    grads = vivit_keys(ours.config).to_ours(in_file_names(exact, tmp_path / "grads"))  # type: ignore[arg-type]
    for name, parameter in ours.named_parameters():
        if not name.endswith("k_proj.bias"):  # the same for all keys: softmax does not see it
            assert error(parameter.grad, grads[name]) <= 1e-8, name


def in_file_names(model: Any, folder: Path) -> dict[str, Tensor]:
    """Gradients under the names that transformers writes the weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    return load_file(saved(model, folder) / "model.safetensors")


@pytest.mark.parametrize("seed", range(4))
def test_files_return_bit_by_bit_and_transformers_reads_ours(seed: int, tmp_path: Path) -> None:
    theirs = video_peer(seed)
    folder, video = saved(theirs, tmp_path / "theirs"), clip(theirs.config, seed)
    ours = hub.load_original(folder)
    back = hub.save_original(ours, tmp_path / "back")
    before, after = (load_file(each / "model.safetensors") for each in (folder, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    again = VivitForVideoClassification.from_pretrained(back).eval()
    with torch.no_grad():
        assert torch.equal(again(video).logits, theirs(video).logits)
    assert hub.load_original(back).config == ours.config  # type: ignore[union-attr]
    converted = hub.convert(folder, tmp_path / "ours", source_form="original", target_form="tubelet")
    assert all(
        torch.equal(a, b) for a, b in zip(hub.load(converted).parameters(), ours.parameters(), strict=True)
    )  # fmt: skip


@pytest.mark.parametrize("config", [vivit_b(), vivit_l(patch=16, frames=4, classes=600), vivit_h(classes=5)])
def test_our_configs_return(config: ViViTConfig) -> None:
    written = vivit_config_to_transformers(config)
    assert vivit_config_from_transformers(written) == config
    assert vivit_config_from_transformers(json.loads(json.dumps(written))) == config
    assert VivitConfig(**written).num_labels == config.classes


def test_their_default_config_is_b_16x2() -> None:
    theirs = VivitConfig(num_labels=400)
    assert vivit_config_from_transformers(theirs.to_dict()) == vivit_b()
    with torch.device("meta"):
        assert VivitForVideoClassification(theirs).num_parameters() == 88_954_000


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu', but this model has one of"),
        ({"image_size": 225}, r"image_size=\(225, 225\) are no multiples of tubelet_size=\(2, 16, 16\)"),
        ({"num_frames": 31}, "num_frames=31"),
        ({"num_frames": 32.0}, r"num_frames must be 1 positive whole number, got \[32.0\]"),
        ({"tubelet_size": (2, 16)}, r"tubelet_size must be 3 positive whole numbers, got \(2, 16\)"),
        ({"tubelet_size": 16}, "tubelet_size must be 3 positive whole numbers, got 16"),
        ({"tubelet_size": [2, 0, 16]}, r"tubelet_size must be 3 positive whole numbers, got \[2, 0, 16\]"),
        ({"image_size": (224, 224, 3)}, r"image_size must be 2 positive whole numbers, got \(224, 224, 3\)"),
        ({"image_size": 224.0}, "image_size must be 2 positive whole numbers, got 224.0"),
        ({"hidden_act": ["gelu"]}, r"hidden_act=\['gelu'\], but this model has one of"),
        ({"id2label": ["up"]}, r"id2label must be a mapping of numbers to names, got \['up'\]"),
    ],
)
def test_configs_of_other_models_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        vivit_config_from_transformers(config)


@pytest.mark.parametrize("classes", [None, 1, 2, 1000])
def test_our_configs_of_images_return(classes: int | None) -> None:
    config = dataclasses.replace(vit_config_from_transformers({}), classes=classes)
    written = vit_config_to_transformers(config)
    assert vit_config_from_transformers(json.loads(json.dumps(written))) == config
    assert classes is None or vit_config_from_transformers(ViTConfig(num_labels=classes).to_dict()).classes == classes


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"patch_size": 0}, r"patch_size must be 2 positive whole numbers, got \[0, 0\]"),
        ({"patch_size": (16,)}, r"patch_size must be 2 positive whole numbers, got \(16,\)"),
        ({"image_size": 224.0}, "image_size must be 2 positive whole numbers, got 224.0"),
        ({"image_size": (224, 224, 3)}, r"image_size must be 2 positive whole numbers, got \(224, 224, 3\)"),
        ({"hidden_act": ["gelu"]}, r"hidden_act=\['gelu'\]"),
    ],
)
def test_configs_of_images_that_do_not_fit_are_named(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        vit_config_from_transformers(config)


def test_other_variants_have_no_such_file() -> None:
    with pytest.raises(ValueError, match="variant='average' with classes=400"):
        vivit_config_to_transformers(vivit_b("average"))
    with pytest.raises(ValueError, match="variant='joint' with classes=None"):
        vivit_config_to_transformers(vivit_b(classes=None))


@pytest.mark.parametrize("seed", range(3))
def test_an_image_transformer_of_transformers_is_one_of_single_frames(seed: int, tmp_path: Path) -> None:
    """Its classifier, and its encoder alone, whose pooler is passed over."""
    theirs = image_peer(seed)
    pictures = torch.randn(2, theirs.config.num_channels, *[theirs.config.image_size] * 2)
    image = hub.load_original(saved(theirs, tmp_path / "whole"))
    with torch.no_grad():
        got = ask(image, pictures[:, None])  # type: ignore[arg-type]
        assert error(got, theirs(pictures).logits) <= 1e-5
        encoder = hub.load_original(saved(theirs.vit, tmp_path / "encoder"))
        assert encoder.config.classes is None  # type: ignore[union-attr]
        first = theirs.vit(pictures).last_hidden_state[:, 0]
        assert error(ask(encoder, pictures[:, None]), first) <= 1e-5  # type: ignore[arg-type]
    keys = vit_keys(image.config)  # type: ignore[arg-type]
    back = keys.to_theirs(image.state_dict())
    state = load_file(tmp_path / "whole" / "model.safetensors")
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    written = vit_config_to_transformers(image.config)  # type: ignore[arg-type]
    assert vit_config_from_transformers(written | {"num_labels": 4}) == image.config
    assert (VIT.name, VIT_MODEL.name, VIT_TIMM.name) == ("vit", "vit", "vit_timm")


def timm_state(dim: int = 192, seed: int = 0) -> dict[str, Tensor]:
    """A file of timm's in float64 with random weights, from the sizes that its class gives its modules."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim), "pos_embed": (1, 5, dim), "norm": (dim,), "head": (7, dim),
        "patch_embed.proj": (dim, 3, 2, 2),
    }  # fmt: skip
    for i in range(2):
        linears = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (8, dim), "mlp.fc2": (dim, 8)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in linears.items()}
        shapes |= {f"blocks.{i}.norm1": (dim,), f"blocks.{i}.norm2": (dim,)}
    draw, state = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        bare = name in ("cls_token", "pos_embed")
        state[name if bare else f"{name}.weight"] = 0.2 * torch.randn(shape, generator=draw, dtype=torch.float64)
        if not bare:
            state[f"{name}.bias"] = torch.randn(shape[0], generator=draw, dtype=torch.float64)
    return state


def timm_defined(state: dict[str, Tensor], pictures: Tensor) -> Tensor:
    """The class by its definition: pre-norm blocks with one projection of queries, keys and values, exact GELU."""

    def norm(h: Tensor, name: str) -> Tensor:
        return F.layer_norm(h, h.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(h: Tensor, name: str) -> Tensor:
        return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    h = F.conv2d(pictures, kernel, bias, stride=2).flatten(2).mT
    h = torch.cat([state["cls_token"].expand(len(h), -1, -1), h], 1) + state["pos_embed"]
    for i in range(2):
        qkv = linear(norm(h, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").unflatten(-1, (3, 3, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        h = h + linear(mixed, f"blocks.{i}.attn.proj")
        h = h + linear(F.gelu(linear(norm(h, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")), f"blocks.{i}.mlp.fc2")
    return linear(norm(h, "norm")[:, 0], "head")


def test_a_file_of_timm_alone_is_an_image_model(tmp_path: Path) -> None:
    state, pictures = timm_state(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    save_file(state, tmp_path / "model.safetensors")
    image = hub.load_original(tmp_path / "model.safetensors", family="vit_timm")
    assert error(ask(image, pictures[:, None]), timm_defined(state, pictures)) <= 1e-12  # type: ignore[arg-type]
    back = timm_vit_keys(image.config).to_theirs(image.state_dict())  # type: ignore[arg-type]
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    assert vit_config_from_timm(vit_config_to_timm(image.config)) == image.config  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eps=1e-12, but VisionTransformer has"):
        vit_config_to_timm(dataclasses.replace(image.config, eps=1e-12))  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"variant='joint', grid=\(16, 14, 14\), patch=\(2, 16, 16\) is no image"):
        vit_config_to_timm(vivit_b())
    with pytest.raises(ValueError, match=r"no shape tells the number of heads, and none .* is 24"):
        hub.from_original({}, timm_state(24), family="vit_timm")
    assert hub.from_original({"num_heads": 2}, timm_state(24), family="vit_timm").config.heads == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("embed", [central_frame_, inflate_])
def test_a_video_model_starts_as_the_image_model_of_transformers(embed: Callable[..., None], tmp_path: Path) -> None:
    """On a still video, against the peer's own numbers; on a moving one the central frame is all that counts."""
    theirs = image_peer()
    image = hub.load_original(saved(theirs, tmp_path / "image"))
    c: Any = image.config
    model = ViViT(dataclasses.replace(c, grid=(2, 3, 3), patch=(3, *c.patch[1:]), variant="average"))
    vivit_from_image_(model, image, embed)  # type: ignore[arg-type]
    model.head.load_state_dict(image.head.state_dict())  # type: ignore[union-attr, arg-type]
    picture = torch.randn(2, 1, theirs.config.num_channels, *[theirs.config.image_size] * 2)
    with torch.no_grad():
        expected = theirs(picture[:, 0]).logits
        assert error(ask(model, picture.expand(-1, 6, -1, -1, -1)), expected) <= 1e-5
        moving = torch.randn(2, 6, *picture.shape[2:])
        moving[:, 1::3] = picture  # the middle of each tubelet
        difference = error(ask(model, moving), expected)
    assert difference <= 1e-5 if embed is central_frame_ else difference > 1e-2
