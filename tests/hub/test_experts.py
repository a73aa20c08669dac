"""Two experts in one folder, in every form, and their boundary."""

import json

import pytest
import torch
from parity import randomise

from tubelet import hub
from tubelet.attention import Temporal, set_pattern
from tubelet.attention.patterning import patterned
from tubelet.models import NoiseExperts, WanConfig, WanTransformer

CONFIG = WanConfig(dim=128, depth=1, heads=1, mlp_dim=8, text_dim=4096)


@pytest.fixture(scope="module")
def experts():
    return randomise(NoiseExperts(WanTransformer(CONFIG), WanTransformer(CONFIG), boundary=0.9))


@pytest.mark.parametrize(
    ("form", "folders"),
    [
        ("tubelet", ["transformer", "transformer_2"]),
        ("diffusers", ["transformer", "transformer_2"]),
        ("original", ["high_noise_model", "low_noise_model"]),
    ],
)
def test_both_return_in_every_form(tmp_path, experts, form, folders):
    folder = hub.save_experts(experts, tmp_path / "both", form=form)
    assert sorted(file.name for file in folder.iterdir()) == sorted([*folders, "model_index.json"])
    assert json.loads((folder / "model_index.json").read_text())["boundary_ratio"] == 0.9
    loaded = hub.load_experts(folder, form=form)
    assert loaded.boundary == 0.9
    assert not loaded.training
    for name, value in experts.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert hub.load_experts(folder, form=form, boundary=0.5, dtype=torch.bfloat16).boundary == 0.5
    with pytest.raises(FileExistsError, match="exists already"):
        hub.save_experts(experts, folder, form=form)


def test_a_pipeline_of_diffusers_is_read(tmp_path, experts):
    hub.save_diffusers(experts.high, tmp_path / "transformer")
    hub.save_diffusers(experts.low, tmp_path / "transformer_2")
    with pytest.raises(ValueError, match="notes no boundary_ratio, got None: give boundary="):
        hub.load_experts(tmp_path, form="diffusers")
    index = {"_class_name": "WanPipeline", "boundary_ratio": 0.875, "transformer": ["diffusers", "Wan"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = hub.load_experts(tmp_path, form="diffusers")
    assert loaded.boundary == 0.875
    assert torch.equal(loaded.low.embed.weight, experts.low.embed.weight)


def test_patterns_return(tmp_path, experts):
    set_pattern(experts.low, Temporal())
    loaded = hub.load_experts(hub.save_experts(experts, tmp_path / "both"))
    assert [module.pattern for module in patterned(loaded).values()] == [
        module.pattern for module in patterned(experts).values()
    ]


def test_forms_are_known(tmp_path, experts):
    for call in (
        lambda: hub.load_experts(tmp_path, form="gguf"),
        lambda: hub.save_experts(experts, tmp_path, form="x"),
    ):
        with pytest.raises(ValueError, match="form must be one of tubelet, diffusers, original"):
            call()
