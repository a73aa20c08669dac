"""The diagrams of docs/models.md name what the models are made of, all of it and nothing else."""

import inspect
import re
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from tubelet import attention, blocks, diffusion, models, positions
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


def rows_of(head: str) -> dict[str, list[str]]:
    """The cells of a table by its first column, which may name several families of one kind."""
    body = PAGE.split(f"| Family | {head}")[1].split("\n\n")[0].splitlines()[2:]
    cells = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in body)
    return {re.sub(r"\[(.+)\]\(.*\)", r"\1", first): rest for first, *rest in cells}


SHARED, PROCESSES = rows_of("Text reaches"), rows_of("`Process(...)`")
COMMON = {"self", "x", "t", "text", "layout", "text_layout"}


@pytest.mark.parametrize("family", SHARED)
def test_the_table_of_families_says_what_a_model_has(family: str) -> None:
    model = MODELS[family][0]
    norms, modulation, inputs = SHARED[family][2], SHARED[family][3], SHARED[family][5:]
    of_tokens, of_heads = norms.split("; ")
    branches = [each for each in model.modules() if isinstance(each, blocks.Branch)]
    kinds = {type(each.norm).__name__ for each in branches} - {"Identity"}
    assert kinds == set(re.findall(r"\w*Norm", of_tokens))
    affine = [getattr(each.norm, "weight", None) is not None for each in branches]
    assert all(affine) == ("affine" in of_tokens)
    assert any(not isinstance(each.post_norm, nn.Identity) for each in branches) == ("behind" in of_tokens)
    attentions = [each for each in model.modules() if isinstance(each, attention.Attention)]
    width = {each.norm_widths[0] == each.head_dim for each in attentions}
    found = {type(each.q_norm).__name__ for each in attentions} - {"Identity"}
    assert {name.replace("RMSNorm", "RMS") for name in found} == set(of_heads.split()[:1]) - {"none"}
    assert not found or width == {"per head" in of_heads} == {"across heads" not in of_heads}
    has = {name for name in made_of(model) if name.startswith("AdaLN")}
    named = {name.replace("-", "").lower() for name in re.findall(r"adaLN-\w+", modulation)}
    assert named <= {name.lower() for name in has} <= named | {"adalnzero"}
    listed = set(re.findall(r"`(\w+)`", "".join(inputs)))
    assert listed - {"text"} == set(inspect.signature(type(model).forward).parameters) - COMMON


def family_of(row: str) -> list[nn.Module]:
    """A tiny model of each family that a row of processes is about: ``CogVideoX 2B``, ``DiT, Latte``."""
    return [MODELS[name][0] for name in MODELS if name == row or name in re.split(r", | ", row)]


@pytest.mark.parametrize("row", PROCESSES)
def test_what_a_network_is_fed_is_what_its_config_says(row: str) -> None:
    fed = PROCESSES[row][1]
    assert family_of(row)
    for model in family_of(row):
        config = models.cosmos_1_7b() if row == "Cosmos 1" else model.config
        if isinstance(config, models.CosmosConfig):
            assert fed == {"edm": "EDM's logarithm", "level": "level"}[config.time]
            continue
        assert config.time_scale == 1000
        assert ("index" if getattr(config, "time_shift", 0) == -1 else "1000") == re.match(r"index|`?1000", fed)[
            0
        ].strip("`")
        assert ("1 - level" in inspect.getsource(type(model))) == ("1 - t" in fed)
    assert row != "U-ViT" or f"`{models.uvit_cifar10().time_scale:.0f}·t` on pixels" in fed


def published() -> dict[str, object]:
    """diffusers' schedulers with the numbers of the checkpoints' files."""
    import diffusers as d

    stable = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return {
        "Allegro": d.DDPMScheduler(beta_schedule="linear"),
        "CogVideoX 2B": d.CogVideoXDDIMScheduler(snr_shift_scale=3.0, rescale_betas_zero_snr=True),
        "CogVideoX 5B, 1.5": d.CogVideoXDPMScheduler(snr_shift_scale=1.0, rescale_betas_zero_snr=True),
        "DiT, Latte": d.DDIMScheduler(beta_schedule="linear"),
        "W.A.L.T": d.DDIMScheduler(beta_schedule="linear", rescale_betas_zero_snr=True),
        "U-ViT": d.DPMSolverMultistepScheduler(**stable),
        "HunyuanVideo": d.FlowMatchEulerDiscreteScheduler(shift=7.0),
        "Wan 2.1": d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "Wan 2.2": d.FlowMatchEulerDiscreteScheduler(shift=5.0),
    }


def test_published_processes_are_those_of_the_peers_schedulers() -> None:
    for row, scheduler in published().items():
        code = re.search(r"`((?:path|warp)=[^`]+)`", PROCESSES[row][0])[1]
        process = eval(f"Process({code})", vars(diffusion))
        levels = torch.arange(1, 1001, dtype=torch.float64) / 1000
        if "warp" in code:
            torch.testing.assert_close(process.warp(levels).flip(0), scheduler.sigmas.double(), rtol=1e-6, atol=1e-7)
            assert process.prediction == "velocity"
        else:
            expected = scheduler.alphas_cumprod.double()
            torch.testing.assert_close(process.path.alpha(levels).square(), expected, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(process.path.sigma(levels).square(), 1 - expected, rtol=1e-4, atol=1e-6)
            assert process.prediction == ("v" if row[:3] in ("Cog", "W.A") else "eps")


@pytest.mark.parametrize("row", PROCESSES)
def test_what_the_table_of_processes_names_exists(row: str) -> None:
    names = set(re.findall(r"`([A-Za-z_0-9]+)[`(]", " ".join(PROCESSES[row])))
    names |= set(re.findall(r"\b([A-Za-z_]\w*)\(", " ".join(PROCESSES[row])))
    known = {*dir(diffusion), *dir(models), *dir(diffusion.VP), "guidance", "sqrt"}
    assert not {name for name in names if not name[0].isdigit()} - known
