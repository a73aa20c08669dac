"""Presets are found by annotations, built without numbers, and each is planned on some grid."""

import inspect
import json

import pytest
import torch
from torch import nn

from tubelet import models, planner
from tubelet.layout import Grid
from tubelet.planner import count_parameters, find_preset, forward_inputs, plan, preset_of, presets, survey
from tubelet.planner.presets import _Unfilled
from tubelet.vae.families import wan_vae


def is_preset(value: object) -> bool:
    made = getattr(inspect.signature(value).return_annotation, "__name__", "") if inspect.isfunction(value) else ""
    return made.endswith("Config")


def test_every_preset_of_the_models_is_found() -> None:
    names = {name for name in models.__all__ if is_preset(getattr(models, name))}
    assert names <= presets().keys()
    assert {"digits", "wan_vae_2_1", "wan_vae_2_2"} <= presets().keys()
    classifiers = {name for name in names if presets()[name].kind == "classifier"}
    assert classifiers == {name for name in names if name.startswith(("vivit_", "navit_"))} != set()
    assert {presets()[name].kind for name in names - classifiers} == {"denoiser"}


def test_the_model_is_the_one_of_the_name() -> None:
    assert presets()["latte_xl"].model is models.LatteClassTransformer
    assert presets()["latte_1"].model is models.LatteTransformer
    assert presets()["wan_vae_2_1"].model is wan_vae.WanAutoencoder
    assert presets()["wan_vae_2_1"].kind == "autoencoder"
    assert presets()["digits"].architecture == "CausalAutoencoder"


@pytest.mark.parametrize(("asked", "found"), [("DiT-XL", "dit_xl"), (" wan-1.3b ", "wan_1_3b"), ("Wan_14B", "wan_14b")])
def test_names_may_be_written_as_papers_do(asked: str, found: str) -> None:
    assert find_preset(asked).name == found


@pytest.mark.parametrize(
    ("asked", "near"), [("wan_15b", "wan_14b"), ("hunyuan", "hunyuan_video"), ("uvitcoco", "uvit_coco")]
)
def test_a_strange_name_is_told_what_is_near(asked: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"no preset is called '{asked}': did you mean .*{near}"):
        find_preset(asked)


def test_a_name_that_is_near_nothing() -> None:
    with pytest.raises(ValueError, match="no preset is called 'qqq': tubelet info lists them"):
        find_preset("qqq")


@pytest.mark.parametrize(
    ("asked", "found", "config"),
    [
        ("dit_xl(4)", "dit_xl(patch=4)", models.dit_xl(4)),
        ("dit_xl( patch = 4 )", "dit_xl(patch=4)", models.dit_xl(4)),
        ("DiT-XL/8", "dit_xl(patch=8)", models.dit_xl(8)),
        ("DiT-XL/2", "dit_xl", models.dit_xl()),
        ("ViViT-L/32x4", "vivit_l(patch=32, frames=4)", models.vivit_l(patch=32, frames=4)),
        ("vivit_b(factorised_encoder)", "vivit_b(variant='factorised_encoder')", models.vivit_b("factorised_encoder")),
        ("vivit_b('average', classes=None)", "vivit_b(variant='average', classes=None)",
         models.vivit_b("average", classes=None)),
        ("ViViT-B/32x2(average)", "vivit_b(variant='average', patch=32)", models.vivit_b("average", 32)),
        ("Latte-XL/2", "latte_xl", models.latte_xl()),
        ("NaViT-B/16", "navit_b", models.navit_b()),
        ("Latte-S/2(101)", "latte_s(classes=101)", models.latte_s(101)),
        ("latte_s(classes=101)", "latte_s(classes=101)", models.latte_s(101)),
    ],
)  # fmt: skip
def test_arguments_may_follow_the_name(asked: str, found: str, config) -> None:
    preset = find_preset(asked)
    assert preset.name == found
    assert preset.config() == config
    assert find_preset(preset.name).config() == config


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("dit_xl(size=4)", r"dit_xl takes the arguments patch, got size=4"),
        ("dit_xl(4, 2)", r"dit_xl takes the arguments patch, got \(4, 2\)"),
        ("dit_xl(4, patch=2)", r"dit_xl got patch twice: 4 and 2"),
        ("dit_xl/4(patch=2)", r"has patch twice"),
        ("dit_xl(patch=0)", r"patch of dit_xl must be an integer of at least 1, got 0"),
        ("dit_xl(patch=-2)", r"patch of dit_xl must be an integer of at least 1, got -2"),
        ("dit_xl(True)", r"patch of dit_xl must be an integer of at least 1, got True"),
        ("dit_xl(2.0)", r"patch of dit_xl must be an integer of at least 1, got 2.0"),
        ("vivit_b(early)", r"variant of vivit_b must be 'joint' or .*, got 'early'"),
        ("navit_b/32", r"navit_b takes no arguments, got patch=32"),
        ("latte_xl(size=None)", r"latte_xl takes the arguments classes, got size=None"),
        ("latte_xl/2x2", r"latte_xl takes the arguments classes, got frames=2"),
        ("cosmos_vae/2", r"cosmos_vae takes the arguments temporal, spatial, got patch=2"),
        ("walt_l(classes=3)", r"walt_l takes no arguments, got classes=3"),
        ("dit_xl(patch=print(4))", r"arguments are integers and words"),
        ("dit_xl(**{'patch': 4})", r"arguments are integers and words"),
        ("dit_xl(4)(5)", r"arguments are integers and words"),
        ("dit_xl(4", r"a preset is written name, name\(argument=value\) or name/patch, got 'dit_xl\(4'"),
        ("dit_xl/two", r"a preset is written"),
        ("dit_xxl(4)", r"no preset is called 'dit_xxl\(4\)': did you mean .*dit_xl"),
    ],
)
def test_strange_arguments_are_told(asked: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        find_preset(asked)


def test_a_name_a_preset_and_a_config_are_planned_alike() -> None:
    ways = [plan("DiT-S/4"), plan(find_preset("dit_s(4)")), plan(models.dit_s(4))]
    assert {each.preset.name for each in ways} == {"dit_s(patch=4)", "DiTConfig"}
    assert len({(each.grid, each.parameters, each.counts, each.memory) for each in ways}) == 1
    assert ways[0].grid == Grid(1, 8, 8)
    assert ways[0].counts.macs == pytest.approx(1.41e9, rel=0.006)  # the paper's DiT-S/4
    assert json.loads(json.dumps(ways[2].as_json()))["config"]["patch"] == [1, 4, 4]
    assert preset_of(wan_vae.wan_vae_2_1()).kind == "autoencoder"


@pytest.mark.parametrize("other", [None, 4, models.DiTConfig, models.dit_s, Grid(1, 2, 2)])
def test_what_is_no_config_is_not_planned(other: object) -> None:
    with pytest.raises(ValueError, match="model must be the name of a preset, a Preset or the config of a model, got"):
        plan(other)


def test_text_is_what_the_model_reads() -> None:
    grid = Grid(1, 2, 2)
    assert [plan("wan_1_3b", grid).text, plan("wan_1_3b", grid, text=5).text] == [256, 5]
    assert plan("uvit_coco").text == plan("uvit_coco", text=77).text == 77
    assert plan("dit_s", text=0).text == 0
    with pytest.raises(ValueError, match="text of uvit_coco must be 77, .*, got 5"):
        plan("uvit_coco", text=5)
    with pytest.raises(ValueError, match="text of dit_s must be 0, .*, got 5"):
        plan("dit_s", text=5)


def test_the_text_of_a_survey_is_of_those_that_take_it() -> None:
    found = survey(Grid(1, 2, 2), names=["dit_s", "uvit_coco", "wan_1_3b"], text=5)
    assert [(each.text, each.reason) for each in found] == [(0, None), (77, None), (5, None)]
    with pytest.raises(ValueError, match="dit_z"):
        survey(names=["dit_z"])


def test_building_fills_nothing_on_meta_and_all_elsewhere() -> None:
    built = presets()["dit_s"].build()
    assert all(parameter.is_meta for parameter in built.parameters())
    assert count_parameters(built) == count_parameters(models.DiT(models.dit_s(), device="meta"))
    with _Unfilled():
        linear = nn.Linear(4, 4, bias=False)
        nn.init.constant_(linear.weight, 3.0)
    assert linear.weight.eq(3).all()
    assert presets()["dit_s"].build(dtype=torch.bfloat16).embed.weight.dtype == torch.bfloat16


@pytest.mark.slow
def test_every_preset_is_planned() -> None:
    found = survey()
    assert [each.preset.name for each in found] == list(presets())
    assert [(each.preset.name, each.reason) for each in found if each.counts is None] == []
    for each in found:
        assert each.parameters == each.counts.parameters > 0
        assert each.counts.macs > each.parameters / 1000
        assert each.memory.weights == 2 * each.parameters
        assert json.loads(json.dumps(each.as_json()))["name"] == each.preset.name


def test_a_grid_that_a_model_does_not_take() -> None:
    with pytest.raises(ValueError, match="grid"):
        plan("uvit_cifar10", Grid(9, 99, 99))


def test_an_input_of_a_strange_name_is_an_error_and_a_reason(monkeypatch) -> None:
    def forward(self, x, t, layout, labels, smell):
        raise AssertionError

    monkeypatch.setattr(models.DiT, "forward", forward)
    with pytest.raises(ValueError, match="DiT takes smell, an input that is not among x, t, layout"):
        plan("dit_s")
    only = {"dit_s": presets()["dit_s"]}
    monkeypatch.setattr(planner.estimate, "presets", lambda: only)
    (found,) = survey()
    assert (found.parameters, found.counts, found.memory.forward) == (32_865_056, None, None)
    assert "smell" in found.reason
    assert found.as_json()["macs"] is None
    with pytest.raises(ValueError, match="dit_s has no count: DiT takes smell"):
        _ = found.flops


def test_inputs_are_those_the_config_asks_for() -> None:
    small = {"dim": 48, "depth": 1, "heads": 2, "mlp_dim": 8, "text_dim": 8}
    plain = models.WanTransformer(models.WanConfig(**small), device="meta")
    image = models.WanTransformer(models.WanConfig(**small, given_channels=2, image_dim=6), device="meta")
    assert list(forward_inputs(plain, Grid(1, 2, 2))) == ["x", "t", "text", "layout", "text_layout"]
    found = forward_inputs(image, Grid(1, 2, 2), batch=3, image=11, dtype=torch.float16)
    assert list(found)[5:] == ["given", "image", "image_layout"]
    assert (found["given"].shape, found["image"].shape) == ((3, 4, 8), (3, 11, 6))
    assert found["x"].dtype == torch.float16
    assert image(**forward_inputs(image, Grid(1, 2, 2))).shape == (1, 4, 64)


def test_all_that_stands_beside_the_latents_is_made() -> None:
    sizes = {"dim": 32, "depth": 2, "heads": 2, "mlp_dim": 64, "classes": 3}
    config = models.WaltConfig(**sizes, frame_prediction=True, super_resolution=True)
    model = models.Walt(config, device="meta")
    inputs = forward_inputs(model, Grid(1, 2, 2))
    assert list(inputs) == ["x", "t", "layout", "labels", "estimate", "known", "low", "noise"]
    assert model(**inputs).shape == inputs["x"].shape


def test_a_batch_costs_as_often() -> None:
    one, three = plan("dit_s"), plan("dit_s", batch=3)
    assert three.counts.macs == 3 * one.counts.macs
    assert three.training_hours(100) == pytest.approx(one.training_hours(100))


def test_an_autoencoder_encodes_and_decodes() -> None:
    found = plan("digits", Grid(2, 4, 4), measured=True)
    assert [part.name for part in found.counts.parts] == ["encoder", "decoder"]
    assert min(part.dense for part in found.counts.parts) > 0
    assert found.memory.forward > 0
    assert found.memory.saved is None
    assert plan("digits", Grid(2, 8, 4)).counts.macs == 2 * found.counts.macs


def test_measured_memory_grows_with_the_grid() -> None:
    small, large = (plan("dit_s", Grid(1, side, side), measured=True).memory for side in (8, 16))
    assert 3 < large.forward / small.forward < 5
    assert 3 < large.saved / small.saved < 5
    assert plan("dit_s").memory.saved is None
