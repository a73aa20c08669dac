"""The diagrams of docs/models.md name what the models are made of, all of it and nothing else."""

import inspect
import re
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from tubelet import attention, models, positions
from tubelet.hub import foreign

PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
CHECKPOINTS = (Path(__file__).parents[1] / "docs" / "hub.md").read_text(encoding="utf-8")
HOW = PAGE.split("## How each is composed")[1]
SECTIONS = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^### |\Z)", HOW, re.S | re.M))

TINY = {"dim": 48, "depth": 2, "heads": 2}
FLUX = {**TINY, "single_depth": 1, "rope_axes": (8, 8, 8)}
MODELS = {
    "Allegro": [models.AllegroTransformer(models.AllegroConfig(**TINY), device="meta")],
    "CogVideoX": [
        models.CogVideoXTransformer(models.CogVideoXConfig(dim=64, depth=1, heads=2, **positions), device="meta")
        for positions in (
            {"rotary": False, "sincos": (1.0, 2.0, 2.0)},
            {"base": (4, 4), "learned": (1, 4, 4), "learned_text": 2},
        )
    ],
    "Cosmos": [models.CosmosTransformer(models.CosmosConfig(**TINY, extent=(2, 2, 2)), device="meta")],
    "DiT": [models.DiT(models.DiTConfig(**TINY, mlp_dim=8), device="meta")],
    "HunyuanVideo": [models.HunyuanVideoTransformer(models.HunyuanVideoConfig(**FLUX, guidance=True), device="meta")],
    "LTX-Video": [models.LTXTransformer(models.LTXConfig(**TINY), device="meta")],
    "Latte": [
        models.LatteTransformer(models.LatteConfig(**TINY), device="meta"),
        models.LatteClassTransformer(models.LatteClassConfig(**TINY), device="meta"),
    ],
    "Mochi": [models.MochiTransformer(models.MochiConfig(**TINY, text_width=24), device="meta")],
    "NaViT": [models.NaViT(models.NaViTConfig(**TINY, mlp_dim=8, positions="fractional"), device="meta")],
    "Open-Sora 2": [models.OpenSoraTransformer(models.OpenSoraConfig(**FLUX, given_channels=2), device="meta")],
    "U-ViT": [models.UViT(models.UViTConfig(**TINY, mlp_dim=8, grid=(1, 4, 4), classes=3), device="meta")],
    "ViViT": [
        models.ViViT(models.ViViTConfig(**TINY, mlp_dim=8, grid=(2, 4, 4), variant=variant), device="meta")
        for variant in get_args(models.ViViTVariant)
    ],
    "W.A.L.T": [
        models.Walt(models.WaltConfig(**TINY, mlp_dim=8, classes=3, text_dim=8, super_resolution=True), device="meta")
    ],
    "Wan": [
        models.WanTransformer(models.WanConfig(**TINY, mlp_dim=8, image_dim=image), device="meta")
        for image in (None, 8)
    ],
}  # fmt: skip
PLUMBING = {"Branch", "ModulationSlice"}
"""What every block is made of, and no diagram names."""


def made_of(model: nn.Module) -> set[str]:
    """The names of our public classes among the modules."""
    kinds = {type(each) for each in model.modules()}
    return {kind.__name__ for kind in kinds if kind.__module__.startswith("tubelet") and kind.__name__[0] != "_"}


def named(text: str) -> set[str]:
    """The names of classes: words of several humps, patterns, and maps of places."""
    words = set(re.findall(r"\b[A-Z][A-Za-z0-9]*\b", text))
    humps = {word for word in words if len(re.findall("[A-Z]", word)) > 1 and re.search("[a-z]", word)}
    return humps | words & {*attention.__all__, *positions.__all__}


def source(model: nn.Module) -> str:
    """The model's file and those of ``tubelet.models`` that its blocks come from."""
    text = inspect.getsource(sys.modules[type(model).__module__])
    others = set(re.findall(r"from (tubelet\.models\.\w+) import", text)) - {"tubelet.models.inputs"}
    return text + "".join(inspect.getsource(sys.modules[name]) for name in others)


def test_every_family_has_a_section_in_order() -> None:
    assert list(SECTIONS) == sorted(MODELS, key=str.casefold)
    assert all(section.count("```text") == 1 for section in SECTIONS.values())
    exported = {name.removesuffix("Config") for name in models.__all__ if name.endswith("Config")} - {"VideoDiT"}
    assert {
        type(model).__name__.removesuffix("Transformer") for family in MODELS.values() for model in family
    } == exported


@pytest.mark.parametrize("family", MODELS)
def test_all_that_a_model_is_made_of_has_its_place(family: str) -> None:
    for model in MODELS[family]:
        assert made_of(model) - PLUMBING <= set(re.findall(r"\w+", SECTIONS[family]))


@pytest.mark.parametrize("family", MODELS)
def test_a_diagram_names_nothing_else(family: str) -> None:
    diagram = SECTIONS[family].split("```text")[1].split("```")[0]
    text = "".join(map(source, MODELS[family])) + " ".join(dir(nn))
    strange = {name for name in named(diagram) - {"HunyuanVideo"} if not re.search(rf"\b{name}\b", text)}
    assert not strange
    assert torch.nn.Linear.__name__ in diagram


def test_every_preset_is_in_the_table() -> None:
    listed = set(PAGE.split('PRESETS = """')[1].split('"""')[0].split())
    ours = re.compile("video_dit")
    presets = {
        name
        for name in models.__all__
        if name.islower() and not ours.match(name) and _is_preset(getattr(models, name))
    }  # fmt: skip
    assert listed == presets


def test_every_adapter_is_in_the_table_of_checkpoints() -> None:
    peer = r"(?:`(\w+)`[^|]*)?"
    rows = re.findall(rf"^\| `(\w+)` \| {peer} *\| {peer} *\| `(\w+)` \|", CHECKPOINTS, re.M)
    listed = {
        (model, family, form, name)
        for model, *peers, family in rows
        for form, name in zip(("diffusers", "original"), peers, strict=True)
        if name
    }
    ours = {(each.model.__name__, each.name, each.form, each.peer or each.name) for each in foreign._FAMILIES}
    assert listed == ours


def _is_preset(function: object) -> bool:
    returned = inspect.signature(function).return_annotation  # type: ignore[arg-type]
    return getattr(returned, "__name__", "").endswith("Config")
